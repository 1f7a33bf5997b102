//! `loraxs doctor`: true of a sound machine, of a broken library, of a device that computes wrongly.

use std::fs;
use std::process::{Command, Output};

use serde_json::Value;

use crate::standin::standin;
use crate::support::{Place, device_name, encoders, errors};

fn doctor(device: &str, variables: &[(&str, &str)]) -> (Output, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(["doctor", "--json", "--offline", "--device", device]).envs(variables.iter().copied());
    let output = command.output().unwrap();
    let found = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", errors(&output)));
    (output, found)
}

#[test]
fn a_sound_device_passes_every_check() {
    let (output, found) = doctor(&device_name(), &[]);
    assert_eq!(output.status.code(), Some(0), "{found}");
    let checks = found["self_test"].as_array().unwrap();
    let kernels = found["gpu"]["kernels"].as_str();
    assert_eq!(kernels.is_some_and(|state| state.starts_with("own")), device_name() != "cpu", "{kernels:?}");
    assert!(checks.len() >= 11 && checks.iter().all(|check| check["ok"] == true), "{found}");
    assert!(checks.iter().all(|check| check["error"].as_f64().unwrap() < check["limit"].as_f64().unwrap()));
    assert_eq!((&found["device"], &found["ok"]), (&Value::from(device_name()), &Value::Bool(true)));
    assert!(found["libraries"][0].as_str().unwrap().ends_with("libtorch_cpu.so"));
    assert!(found["caches"][0]["free_bytes"].as_u64().unwrap() > 0);
    assert!(found["hub"].as_str().unwrap().ends_with("not contacted (offline)"));
}

#[test]
fn a_library_that_cannot_be_loaded_is_named() {
    if device_name() != "cpu" {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let absent = doctor("cuda:0", &[]);
    fs::write(folder.path().join("libtorch_cuda.so"), "no library").unwrap();
    let there = || doctor("cuda:0", &[("LD_LIBRARY_PATH", folder.path().to_str().unwrap())]);
    let broken = there();
    let mut cases = vec![(absent, "cannot open"), (broken, "file too short")];
    // One that asks libtorch_cpu for what it does not have.
    let source = "extern \"C\" int of_an_older_libtorch(); int asked = of_an_older_libtorch();";
    fs::write(folder.path().join("older.cpp"), source).unwrap();
    let mut compiler = Command::new(std::env::var_os("CXX").unwrap_or_else(|| "c++".into()));
    compiler.args(["-shared", "-fPIC", "older.cpp", "-o", "libtorch_cuda.so"]).current_dir(folder.path());
    match compiler.status().is_ok_and(|status| status.success()) {
        true => cases.push((there(), "it is of another version than libtorch 2.11.0")),
        false => println!("skipped: an older library, without a C++ compiler"),
    }
    for ((output, found), words) in cases {
        assert_eq!(output.status.code(), Some(1), "{found}");
        let problem = found["gpu"]["problem"].as_str().unwrap();
        assert!(problem.starts_with("cannot use `cuda:0`") && problem.contains(words), "{problem}");
        assert!(found["gpu"]["hint"].as_str().unwrap().contains("setup.sh --cuda"), "{found}");
        // The CPU is looked at in its place.
        assert_eq!(found["device"], "cpu");
    }
}

#[test]
fn settings_of_the_hub_that_cannot_be_used_are_reported() {
    let variables = ["HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"];
    let (output, found) = doctor(&device_name(), &variables.map(|name| (name, "")));
    assert_eq!(output.status.code(), Some(1), "{found}");
    let hub = found["hub"].as_str().unwrap();
    assert!(hub.starts_with("cannot be used: cannot locate the hub's cache"), "{hub}");
    assert_eq!((found["caches"].as_array().unwrap().len(), &found["ok"]), (1, &Value::Bool(false)));
    assert!(found["self_test"].as_array().unwrap().iter().all(|check| check["ok"] == true), "{found}");
}

#[test]
fn a_device_that_computes_wrongly_is_found_out() {
    if !standin() {
        return;
    }
    let (output, found) = doctor("cuda:0", &[("STANDIN_WRONG", "1")]);
    assert_eq!(output.status.code(), Some(1), "{found}");
    let wrong: Vec<&str> = found["self_test"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["ok"] == false)
        .map(|check| check["name"].as_str().unwrap())
        .collect();
    assert!(wrong.len() >= 6, "{wrong:?}");
    assert!(wrong.iter().all(|name| name.ends_with("bf16") || name.ends_with("fp16")), "{wrong:?}");
}

/// The command where NVIDIA's driver is an old one, under which libtorch sees no GPU: in a mount namespace of its own, or `None` where that is
/// not permitted.
fn under_an_old_driver(command: &Command) -> Option<Command> {
    const SCRIPT: &str = "set -e; mount -t tmpfs none /proc/driver; mkdir /proc/driver/nvidia; \
        echo 'NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023' > /proc/driver/nvidia/version; \
        if [ -e /sys/module/nvidia ]; then mount -t tmpfs none /sys/module; fi; exec \"$@\"";
    let unshared = |how: &[&str]| {
        let mut unshared = Command::new("unshare");
        unshared.args(how).args(["--mount", "sh", "-c", SCRIPT, "sh"]);
        unshared
    };
    let works =
        |how: &&[&str]| unshared(how).arg("true").output().is_ok_and(|output| output.status.success());
    let Some(how) = [&[][..], &["--map-root-user"]].into_iter().find(works) else {
        println!("skipped: `unshare` makes no mount namespace here");
        return None;
    };
    let mut own = unshared(how);
    own.arg(command.get_program()).args(command.get_args()).env("STANDIN_DEVICES", "0");
    own.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.get_current_dir().map(|folder| own.current_dir(folder));
    Some(own)
}

#[test]
fn an_old_driver_is_named_and_the_cpu_serves() {
    if !standin() {
        return;
    }
    let problem = "the driver 535.104.05 is too old for CUDA 13.0";
    for device in ["cuda:0", "auto"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
        command.args(["doctor", "--json", "--offline", "--device", device]);
        let Some(mut command) = under_an_old_driver(&command) else { return };
        let output = command.output().unwrap();
        let found: Value =
            serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", errors(&output)));
        assert_eq!(output.status.code(), Some(1), "{found}");
        let gpu = &found["gpu"];
        assert_eq!((&gpu["driver"], &found["device"]), (&"535.104.05".into(), &"cpu".into()));
        assert_eq!(gpu["problem"], format!("cannot use `cuda:0`: {problem}"));
        assert_eq!(gpu["hint"], "install driver 580 or later");
        assert!(found["self_test"].as_array().unwrap().iter().all(|check| check["ok"] == true), "{found}");
        assert_eq!(errors(&output), "");
    }
    let place = Place::new();
    fs::write(
        place.path("recipe.toml"),
        format!(
            "[model]\nname = {:?}\n[adapter]\nrank = 4\ntargets = [\"query\"]\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 24\n\
             [train]\nmax_steps = 1\n",
            encoders().join("bert-gelu")
        ),
    )
    .unwrap();
    let row = "{\"sentence1\": \"rain\", \"sentence2\": \"snow\"}\n";
    fs::write(place.path("rows.jsonl"), row).unwrap();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    let predict = ["predict", "--run", "run", "--input", "rows.jsonl"];
    for args in [&[&train[..], &["--dry-run"]].concat()[..], &train, &predict] {
        let Some(mut command) = under_an_old_driver(&place.command_on("auto", args)) else { return };
        let output = command.output().unwrap();
        let said = errors(&output);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {said}");
        let expected = format!("the GPU cannot be used ({problem}); running on the CPU");
        assert!(said.contains(&expected) && said.contains("hint: install driver 580 or later"), "{said}");
        assert!(!said.contains("CUDA initialization"), "libtorch says it too: {said}");
    }
}

#[test]
fn what_libtorch_says_where_it_sees_no_gpu_is_passed_on() {
    if !standin() {
        return;
    }
    let (output, found) = doctor("cuda:0", &[("STANDIN_DEVICES", "0")]);
    assert_eq!(output.status.code(), Some(1), "{found}");
    let problem = found["gpu"]["problem"].as_str().unwrap();
    let expected =
        "cannot use `cuda:0`: libtorch sees 0 CUDA devices: The NVIDIA driver on your system is too old";
    assert!(problem.starts_with(expected), "{problem}");
    let (_, found) = doctor("cuda:1", &[("STANDIN_DEVICES", "1")]);
    assert_eq!(found["gpu"]["problem"], "cannot use `cuda:1`: libtorch sees 1 CUDA devices");
}

#[test]
fn a_gpu_has_its_memory_and_its_fast_precisions_told() {
    if !standin() {
        return;
    }
    let gpus = |device: &str, variables: &[(&str, &str)]| {
        let (_, found) = doctor(device, &[&[("STANDIN_BYTES", "2147483648")], variables].concat());
        found["gpu"]["used"].as_array().unwrap().clone()
    };
    let new = gpus("cuda:1", &[]);
    assert_eq!((new.len(), &new[0]["device"]), (1, &"cuda:1".into()));
    assert_eq!((&new[0]["total_bytes"], &new[0]["capability"]), (&2_147_483_648_u64.into(), &"9.0".into()));
    assert!((1_u64 << 30..1 << 31).contains(&new[0]["free_bytes"].as_u64().unwrap()), "{new:?}");
    assert_eq!(new[0]["fast"], serde_json::json!(["tf32", "bf16", "fp16"]));
    let old = gpus("cuda:0", &[("STANDIN_TURING", "1")]);
    assert_eq!((&old[0]["capability"], &old[0]["fast"]), (&"7.5".into(), &serde_json::json!(["fp16"])));
    assert!(gpus("cpu", &[]).is_empty());
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(["doctor", "--offline", "--device", "cuda:0,cuda:1"]).env("STANDIN_BYTES", "2147483648");
    let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
    for device in ["cuda:0", "cuda:1"] {
        let line = told.lines().find(|line| line.starts_with(device)).unwrap_or_else(|| panic!("{told}"));
        assert!(line.contains(" 2.0 GiB, "), "{line}");
        assert!(line.ends_with(" free, compute capability 9.0, fast in tf32, bf16, fp16"), "{line}");
    }
}
