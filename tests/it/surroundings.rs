//! What a command finds around it: signals, closed pipes, plain terminals, clocks, names of folders, secrets in addresses.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::bench::{Bench, check};
use crate::forked;
use crate::support::{encoders, errors, fixture};

const TRAIN: [&str; 5] = ["train", "--recipe", "recipe.toml", "--out", "run"];

/// A mask of signals as `/proc/PID/status` has it.
fn mask(child: &Child, key: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix(key));
    mask.map_or(0, |mask| u64::from_str_radix(mask.trim(), 16).unwrap())
}

fn wait_until(child: &mut Child, seen: impl Fn(&Child) -> bool) {
    let start = Instant::now();
    while !seen(child) {
        assert!(child.try_wait().unwrap().is_none(), "the command ended");
        assert!(start.elapsed() < Duration::from_secs(60), "the command does not come to the point");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn send(child: &Child, signal: i32) {
    // SAFETY: sends a signal to a child that was not waited for, so its number is its own.
    assert_eq!(unsafe { libc::kill(libc::pid_t::try_from(child.id()).unwrap(), signal) }, 0);
}

/// Names in a folder that a command gives to what is not whole yet.
fn partial(folder: &Path) -> usize {
    let names = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().filter(|name| name.to_string_lossy().starts_with(".partial")).count()
}

#[test]
fn a_signal_ends_a_command_by_its_exit_code_from_its_first_moment_on() {
    forked::heed_interrupts();
    let bench = Bench::new();
    bench.0.run(&TRAIN, 0);
    let model = encoders().join("bert-gelu");
    let model = model.to_str().unwrap();
    let commands: [&[&str]; 5] = [
        &["train", "--recipe", "recipe.toml", "--out", "next"],
        &["train", "--recipe", "recipe.toml", "--out", "next", "--dry-run"],
        &["eval", "--run", "run"],
        &["merge", "--run", "run", "--out", "merged", "--max-shard-size", "1KB"],
        &["init-svd", "--model", model, "--rank", "4", "--method", "exact", "--out", "basis"],
    ];
    let caught = |signal: i32| move |child: &Child| mask(child, "SigCgt:") >> (signal - 1) & 1 == 1;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for args in commands {
            let _ = fs::remove_dir_all(bench.path("cache"));
            let mut child =
                bench.0.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_until(&mut child, caught(signal));
            send(&child, signal);
            assert_eq!(child.wait().unwrap().code(), Some(130), "{args:?}");
            assert!(
                !bench.path("next").exists()
                    && !bench.path("merged").exists()
                    && !bench.path("run/eval").exists()
            );
            assert_eq!(partial(&bench.path(".")), 0, "{args:?}");
        }
    }
    // Where work is under way already, what is half written goes.
    let mut child = bench.0.command(commands[3]).stderr(Stdio::null()).spawn().unwrap();
    wait_until(&mut child, |_| partial(&bench.path(".")) > 0);
    send(&child, libc::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(partial(&bench.path(".")), 0);
}

#[test]
fn ignored_signals_stay_ignored() {
    let bench = Bench::new();
    let train = bench.0.command(&[&TRAIN[..], &["--set", "train.max_steps=60"]].concat());
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' INT TERM; exec \"$@\"", "sh"])
        .arg(train.get_program())
        .args(train.get_args());
    command
        .envs(train.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .current_dir(bench.path("."));
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    wait_until(&mut child, |_| bench.path("run/metrics.jsonl").exists());
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGINT, libc::SIGTERM] {
        send(&child, signal);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(bench.path("run/results.json").exists());
}

#[test]
fn nobody_has_to_read_what_is_printed() {
    let bench = Bench::new();
    let commands: [&[&str]; 6] = [
        &["completions", "bash"],
        &["completions", "zsh"],
        &["--help"],
        &["train", "--help"],
        &["train", "--recipe", "recipe.toml", "--dry-run"],
        &["eval", "--model", "MODEL", "--task", "tiny/pairs"],
    ];
    for args in commands {
        let args: Vec<String> = args
            .iter()
            .map(|arg| arg.replace("MODEL", encoders().join("bert-gelu").to_str().unwrap()))
            .collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = bench.0.command(&args).stdout(writer).output().unwrap();
        assert_eq!((output.status.code(), errors(&output).contains("error:")), (Some(0), false), "{args:?}");
    }
    let full =
        bench.bare(&["completions", "bash"]).stdout(File::create("/dev/full").unwrap()).output().unwrap();
    check(&["completions"], &full, 1, &["No space left"]);
}

/// What a command writes to a terminal of this kind.
fn on_terminal(command: &mut Command, terminal: &[(&str, &str)]) -> String {
    let (mut master, mut slave) = (0, 0);
    // SAFETY: both numbers outlive the call, and nothing else is asked for.
    let opened = unsafe {
        let none = std::ptr::null_mut();
        libc::openpty(&raw mut master, &raw mut slave, none, std::ptr::null_mut(), std::ptr::null_mut())
    };
    assert_eq!(opened, 0);
    // SAFETY: both descriptors were just opened and are nobody else's.
    let (mut master, slave) = unsafe { (File::from_raw_fd(master), OwnedFd::from_raw_fd(slave)) };
    command.env_remove("TERM").env_remove("NO_COLOR").envs(terminal.iter().copied());
    let mut child = command.stdout(slave.try_clone().unwrap()).stderr(slave).spawn().unwrap();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut text = Vec::new();
    // The end of a terminal is an error.
    let _ = master.read_to_end(&mut text);
    assert!(child.wait().unwrap().success());
    String::from_utf8(text).unwrap()
}

#[test]
fn a_terminal_without_escape_codes_gets_none() {
    let bench = Bench::new();
    let shown = |terminal: &[(&str, &str)]| {
        let _ = fs::remove_dir_all(bench.path("run"));
        let text = on_terminal(&mut bench.0.command(&[&TRAIN[..], &["-v"]].concat()), terminal);
        assert!(text.contains("wrote run"), "{text}");
        text.contains(['\x1b', '\x08']) || text.replace("\r\n", "\n").contains('\r')
    };
    assert!(shown(&[("TERM", "xterm-256color")]));
    assert!(!shown(&[("TERM", "dumb")]));
    assert!(!shown(&[("TERM", "xterm-256color"), ("NO_COLOR", "1")]));
}

#[test]
fn a_current_folder_that_was_removed_is_told() {
    let bench = Bench::new();
    for args in [&TRAIN[..], &["eval", "--run", "run"], &["merge", "--run", "/run", "--out", "/tmp/x"]] {
        let gone = bench.path("gone");
        fs::create_dir(&gone).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "rmdir \"$PWD\"; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_loraxs")]).args(args);
        let output = command.current_dir(&gone).output().unwrap();
        check(args, &output, 1, &["the current folder was removed", "hint: change to"]);
    }
}

#[test]
fn a_clock_before_1970_is_a_clock() {
    let bench = Bench::new();
    let source = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
                  int clock_gettime(clockid_t c, struct timespec *t) {\n\
                  int e = syscall(SYS_clock_gettime, c, t); if (c == CLOCK_REALTIME) t->tv_sec = -86400; return e; }\n";
    fs::write(bench.path("clock.c"), source).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-o", "clock.so", "clock.c"]).current_dir(bench.path("."));
    assert!(compiler.status().unwrap().success());
    fs::write(bench.path("rows.jsonl"), "{\"question\": \"What is 1 + 2?\", \"answer\": \"#### 3\"}\n")
        .unwrap();
    let catalog = "[sums]\ntask = \"generation\"\nfiles = { test = \"rows.jsonl\" }\nprompt = \"{question}\"\n\
                   answer = \"{answer}\"\nscorers = [\"gsm8k/strict\"]\nmax_new_tokens = 3\n";
    fs::write(bench.path("sums.toml"), catalog).unwrap();
    let llama = fixture("decoders/llama-biased");
    let eval = [
        "eval",
        "--model",
        llama.to_str().unwrap(),
        "--task",
        "sums",
        "--datasets",
        "sums.toml",
        "--device",
        "cpu",
    ];
    let run = |command: &mut Command| {
        let output = command.env("LD_PRELOAD", bench.path("clock.so")).output().unwrap();
        assert!(output.status.success(), "{}", errors(&output));
        output
    };
    let output = run(&mut bench.0.command(&TRAIN));
    assert!(errors(&output).contains("1969-12-31T"), "the clock is another: {}", errors(&output));
    run(&mut bench.bare(&eval));
    let samples = fs::read_dir(bench.path("eval")).unwrap().flatten().map(|entry| entry.path());
    let folder = samples.into_iter().find(|path| path.is_dir() && !path.ends_with("predictions")).unwrap();
    let names = fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    assert!(names.into_iter().any(|name| name.starts_with("results_19")));
    let online = ["train", "--recipe", "recipe.toml", "--set", "model.name=some/model"];
    let mut command = bench.0.command(&online);
    command
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_ENDPOINT", "https://127.0.0.1:1")
        .env("HF_HOME", bench.path("hub"));
    let output = command.env("LD_PRELOAD", bench.path("clock.so")).output().unwrap();
    check(&online, &output, 1, &["this machine's clock is set before 1970", "hint: "]);
}

#[test]
fn a_path_that_is_no_text_is_refused_at_once() {
    let bench = Bench::new();
    let wrong = OsStr::from_bytes(b"folder\xff");
    let output = bench.0.command(&TRAIN[..3]).arg("--out").arg(wrong).output().unwrap();
    check(&TRAIN, &output, 2, &["expected a path in UTF-8"]);
    assert!(!bench.path(".").join(wrong).exists());
    // Neither may the folder have such a path that a recipe comes to name.
    fs::create_dir(bench.path(".").join(wrong)).unwrap();
    let inside = bench.path(".").join(wrong).join("model");
    crate::bench::copied(&encoders().join("bert-gelu"), &inside);
    std::os::unix::fs::symlink(&inside, bench.path("link")).unwrap();
    bench.refuses_set("model.name=link", 2, &["the path of `link` is not valid UTF-8", "hint: "]);
    let output = bench.bare(&TRAIN).env("HF_HOME", wrong).output().unwrap();
    check(&TRAIN, &output, 1, &["`HF_HOME` is not valid UTF-8"]);
}

#[test]
fn no_message_holds_a_secret() {
    let bench = Bench::new();
    let shown = |endpoint: &str, more: &[(&str, &str)], args: &[&str]| -> Output {
        let train = ["train", "--recipe", "recipe.toml", "--set", "model.name=some/model"];
        let mut command = bench.0.command(&[&train[..], args].concat());
        command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", endpoint).env("HF_HOME", bench.path("hub"));
        forked::output(command.env("HF_TOKEN", "t0ken-of-the-hub").envs(more.iter().copied()))
    };
    let endpoints = [
        "http://me:PASS@127.0.0.1:1",
        "http://PASS@127.0.0.1:1/hub/",
        "http://me:P/PASS@127.0.0.1:1",
        "http://me:P@PASS@127.0.0.1:1",
        "http://me:PASS word@127.0.0.1:1",
        "me:PASS@127.0.0.1:1",
        "ftp://me:PASS@127.0.0.1:1",
    ];
    let proxy: &[(&str, &str)] =
        &[("HTTP_PROXY", "http://me:PASS@127.0.0.1:1"), ("http_proxy", "http://me:PASS@127.0.0.1:1")];
    let cases =
        endpoints.into_iter().map(|endpoint| (endpoint, &[][..])).chain([("http://127.0.0.2:1", proxy)]);
    for (endpoint, more) in cases {
        for args in [&["-vv"][..], &["-vv", "--log-format", "json"]] {
            let output = shown(endpoint, more, args);
            let text = errors(&output);
            assert_eq!(output.status.code(), Some(1), "{endpoint}: {text}");
            assert!(!text.contains("PASS") && !text.contains("t0ken-of"), "{endpoint}: {text}");
        }
    }
}
