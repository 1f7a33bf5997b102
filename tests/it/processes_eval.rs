//! `loraxs eval` on prompts by several processes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bench::check;
use crate::support::{Place, errors, fixture, json, json_lines, together};

const CATALOG: &str = r#"
[sums]
task = "generation"
files = { test = "sums.jsonl" }
prompt = "Question: {question}\nAnswer:"
answer = "{answer}"
scorers = ["gsm8k/flexible", "gsm8k/strict"]
max_new_tokens = 12
stop = ["Question:"]
"#;

/// A place with so many questions, of different lengths.
fn place(count: usize) -> Place {
    let place = Place::with_own(CATALOG);
    let row = |i: usize| {
        let sum = vec!["2"; i % 5 + 1].join(" + ");
        format!("{{\"question\": \"What is {i} + {sum}?\", \"answer\": \"#### {}\"}}\n", i + 2)
    };
    fs::write(place.path("sums.jsonl"), (0..count).map(row).collect::<String>()).unwrap();
    place
}

fn args<'a>(model: &'a Path, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["eval", "--model", model.to_str().unwrap(), "--task", "sums", "--out", out];
    [&args[..], more].concat()
}

/// The command itself: a process that starts others cannot be forked.
fn command(place: &Place, out: &str, more: &[&str]) -> Command {
    let mut command = place.command(&args(&fixture("decoders/llama-biased"), out, more));
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn eval(place: &Place, out: &str, more: &[&str]) {
    let output = command(place, out, more).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
}

fn predictions(place: &Place, out: &str) -> Vec<Value> {
    json_lines(&file(place, out))
}

fn file(place: &Place, out: &str) -> PathBuf {
    place.path(out).join("predictions/sums.jsonl")
}

/// Number of whole lines.
fn answered(place: &Place, out: &str) -> usize {
    fs::read_to_string(file(place, out)).unwrap_or_default().matches('\n').count()
}

/// Starts processes that have answered so many prompts when it returns.
fn begun(place: &Place, out: &str, more: &[&str], count: usize) -> Child {
    let mut child = command(place, out, more).spawn().unwrap();
    while answered(place, out) < count {
        if child.try_wait().unwrap().is_some() {
            let output = child.wait_with_output().unwrap();
            panic!("it ended with {} answers: {}", answered(place, out), errors(&output));
        }
        sleep(Duration::from_millis(2));
    }
    child
}

fn signal(number: u32, signal: Signal) {
    kill_process(Pid::from_raw(number.try_into().unwrap()).unwrap(), signal).unwrap();
}

/// Numbers of the processes that this one has started, in the order of their ranks.
fn ranks(launcher: &Child) -> Vec<u32> {
    let number = launcher.id();
    let children = fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap();
    children.split_whitespace().map(|number| number.parse().unwrap()).collect()
}

/// What `results.json` says, but for the clock.
fn scores(place: &Place, out: &str) -> Value {
    let mut results: Value = json(&place.path(out).join("results.json"));
    results["sums"]["seconds"] = Value::Null;
    results
}

#[test]
fn answers_of_several_processes_equal_those_of_one() {
    let place = place(40);
    let drawn = ["--temperature", "1.5", "--top-k", "30", "--seed", "3"];
    for (name, how) in [("greedy", &[][..]), ("drawn", &drawn), ("beams", &["--beams", "3", "--limit", "9"])]
    {
        eval(&place, name, how);
        for processes in ["2", "3"] {
            let out = format!("{name}-{processes}");
            eval(&place, &out, &[how, &["--processes", processes]].concat());
            assert_eq!(predictions(&place, &out), predictions(&place, name), "{out}");
            assert_eq!(scores(&place, &out), scores(&place, name), "{out}");
        }
    }
    assert_ne!(predictions(&place, "greedy"), predictions(&place, "drawn"));
    // More processes than prompts, and none that is left.
    let few = ["--limit", "2"];
    eval(&place, "few", &few);
    for _ in 0..2 {
        eval(&place, "few-3", &[&few[..], &["--processes", "3"]].concat());
        assert_eq!(predictions(&place, "few-3"), predictions(&place, "few"));
    }
}

#[test]
fn interrupted_or_killed_processes_are_resumed_by_any_number() {
    let place = place(3000);
    let long = ["--max-new-tokens", "200"];
    eval(&place, "whole", &long);
    let lengths = |count: &str| ["--processes".to_owned(), count.to_owned()];
    let [two, three] = ["2", "3"].map(lengths);
    let [two, three] = [&two, &three].map(|args| args.each_ref().map(String::as_str));
    let mut known = 0;
    // To all, then to one alone, then to the first and to another one for good.
    let stopped = |more: &[&str], known: usize, stop: &dyn Fn(&Child)| -> (Output, usize) {
        // One prompt at a time takes half a minute, so that much is left after each stop.
        let slow = ["--batch-size", "1", "--timeout", "10"];
        let child = begun(&place, "out", &[more, &long, &slow].concat(), known + 5);
        stop(&child);
        let output = child.wait_with_output().unwrap();
        let count = answered(&place, "out");
        assert!(count > known && count < 3000, "{count} answers: {}", errors(&output));
        (output, count)
    };
    let to_all = |child: &Child| signal(child.id(), Signal::INT);
    let to_one = |child: &Child| signal(ranks(child)[1], Signal::TERM);
    for (more, stop) in [(&two, &to_all as &dyn Fn(&Child)), (&three, &to_one)] {
        let (output, count) = stopped(more, known, stop);
        assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
        known = count;
    }
    for (rank, words) in [(0, "rank 0 is lost: signal 9 ended it"), (1, "is lost: no sign of life for")] {
        let kill = |child: &Child| signal(ranks(child)[rank], Signal::KILL);
        let (output, count) = stopped(&two, known, &kill);
        assert_eq!(output.status.code(), Some(75), "{}", errors(&output));
        assert!(errors(&output).contains(words), "{}", errors(&output));
        known = count;
    }
    let kept = fs::read_to_string(file(&place, "out")).unwrap();
    eval(&place, "out", &long);
    let whole = predictions(&place, "whole");
    assert_eq!(predictions(&place, "out"), whole);
    assert_eq!(scores(&place, "out"), scores(&place, "whole"));
    // What was kept was not answered again.
    let mut indices: Vec<u64> = kept
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .map(|row| row["index"].as_u64().unwrap())
        .collect();
    indices.sort_unstable();
    indices.dedup();
    assert_eq!(indices.len(), known);
}

#[test]
fn processes_with_other_prompts_are_refused_and_a_failing_one_ends_all() {
    let place = place(3000);
    let mut commands = place.processes(2, &args(&fixture("decoders/llama-biased"), "out", &[]));
    commands[1].args(["--limit", "10"]);
    for output in together(&commands) {
        let words = "rank 1 has other prompts or settings than rank 0: `prompts` is";
        check(&["eval"], &output, 2, &[words, "hint: give all processes the same"]);
    }
    assert!(!file(&place, "out").exists());
    let child = begun(&place, "out", &["--processes", "2"], 3);
    fs::rename(place.path("out"), place.path("moved")).unwrap();
    let output = child.wait_with_output().unwrap();
    check(&["eval"], &output, 1, &["`out` was removed or moved while being written"]);
}
