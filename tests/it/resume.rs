//! Killed, interrupted and damaged runs: each goes on to the same bits as a run that never stopped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::bench::check;
use crate::forked::{self, Run};
use crate::support::{Place, Point, encoders, errors, log};

const STEPS: usize = 60;

/// The longest that any run may take, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// A place with a recipe: dropout, shuffling, accumulation and evaluations all on.
fn place() -> Place {
    let place = Place::new();
    let recipe = format!(
        "[model]\nname = {:?}\n[adapter]\nrank = 4\nalpha = 8.0\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 24\n\
         [train]\nmax_steps = {STEPS}\nbatch_size = 4\nmicro_batch_size = 3\nlearning_rate = 1e-2\nseed = 5\n\
         log_every = 2\ncheckpoint_every = 3\nkeep_checkpoints = 3\n[eval]\nevery = 12\n",
        encoders().join("bert-gelu")
    );
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    place
}

const TRAIN: [&str; 5] = ["train", "--recipe", "recipe.toml", "--out", "run"];

fn resumed() -> Vec<&'static str> {
    [&TRAIN[..], &["--resume"]].concat()
}

/// What must be the same bits: the log without its clock, and the adapter.
#[derive(Debug, PartialEq)]
pub struct Outcome {
    log: Vec<Point>,
    adapter: Vec<u8>,
    results: serde_json::Value,
}

pub fn outcome(run: &Path) -> Outcome {
    let results: serde_json::Value = crate::support::json(&run.join("results.json"));
    Outcome {
        log: log(run),
        adapter: fs::read(run.join("adapter/adapter_model.safetensors")).unwrap(),
        results: ["best", "last", "steps", "skipped_steps"]
            .map(|key| results[key].clone())
            .into_iter()
            .collect(),
    }
}

/// The same recipe without a stop.
static UNINTERRUPTED: LazyLock<Outcome> = LazyLock::new(|| {
    let place = place();
    place.run(&TRAIN, 0);
    let outcome = outcome(&place.path("run"));
    assert_eq!(outcome.log.iter().filter(|point| point.loss.is_some()).count(), STEPS / 2);
    assert!(outcome.log.iter().filter(|point| point.metrics.is_some()).count() >= STEPS / 12);
    outcome
});

/// Waits until `seen` or until the process ended; says whether it is still running.
pub fn wait_until(child: &mut Run, seen: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    while !seen() {
        if child.is_over() {
            return false;
        }
        assert!(start.elapsed() < PATIENCE, "the run does not come to the point");
        std::thread::sleep(Duration::from_micros(200));
    }
    true
}

/// The step of the newest log point.
pub fn logged_step(run: &Path) -> u64 {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default();
    let points = text.lines().filter_map(|line| serde_json::from_str::<Point>(line).ok());
    points.fold(0, |_, point| point.step)
}

/// The checkpoints of a run, newest first.
fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let step =
        |path: &PathBuf| -> Option<u64> { path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok() };
    let mut found: Vec<PathBuf> =
        entries.map(|entry| entry.path()).filter(|path| step(path).is_some()).collect();
    found.sort_by_key(|path| std::cmp::Reverse(step(path)));
    found
}

/// Whether a checkpoint is being written.
fn writing(run: &Path) -> bool {
    let mut entries = fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    entries.any(|entry| entry.file_name().to_string_lossy().starts_with(".partial"))
}

#[test]
fn a_run_killed_again_and_again_ends_with_the_bits_of_one_that_never_stopped() {
    let place = place();
    let run = place.path("run");
    // Milliseconds after a point of the log: now in a step, now in a checkpoint, now in an evaluation.
    let kills = [(0, 0), (5, 1), (9, 4), (13, 0), (18, 2), (24, 7), (31, 3), (39, 0), (46, 5), (53, 1)];
    let mut killed = 0;
    for (step, delay) in kills {
        let mut child = forked::start(&place.command(&resumed()));
        if wait_until(&mut child, || logged_step(&run) >= step) {
            std::thread::sleep(Duration::from_millis(delay));
        }
        child.signal(libc::SIGKILL);
        // The signal leaves no exit code; a run that was faster than the test has one.
        killed += usize::from(child.wait().status.code().is_none());
    }
    assert!(killed >= kills.len() / 2, "only {killed} kills came in time");
    place.run(&resumed(), 0);
    assert_eq!(outcome(&run), *UNINTERRUPTED);
}

#[test]
fn a_run_killed_while_it_writes_a_checkpoint_loses_nothing() {
    let place = place();
    let run = place.path("run");
    let mut torn = 0;
    for step in [1, 12, 24, 36, 48] {
        let mut child = forked::start(&place.command(&resumed()));
        wait_until(&mut child, || logged_step(&run) >= step && writing(&run));
        child.signal(libc::SIGKILL);
        child.wait();
        torn += usize::from(writing(&run));
    }
    println!("{torn} checkpoints were left half written");
    assert!(torn >= 1, "no kill came while a checkpoint was written");
    place.run(&resumed(), 0);
    assert_eq!(outcome(&run), *UNINTERRUPTED);
}

/// Asks a running training to end, and returns its exit code.
fn interrupted(place: &Place, signal: i32, step: u64) -> Option<i32> {
    let run = place.path("run");
    let mut child = forked::start(&place.command(&resumed()));
    assert!(wait_until(&mut child, || logged_step(&run) >= step), "the run ended before the signal");
    child.signal(signal);
    child.wait().status.code()
}

#[test]
fn signals_that_end_a_run_leave_a_checkpoint_and_exit_code_130() {
    let place = place();
    let run = place.path("run");
    for (signal, step) in [(libc::SIGTERM, 7), (libc::SIGINT, 15), (libc::SIGHUP, 23), (libc::SIGUSR1, 31)] {
        assert_eq!(interrupted(&place, signal, step), Some(130));
        let newest = checkpoints(&run).first().cloned().unwrap();
        assert!(newest.join("state.json").exists());
        assert!(!run.join("results.json").exists());
    }
    place.run(&resumed(), 0);
    assert_eq!(outcome(&run), *UNINTERRUPTED);
}

#[test]
fn resuming_a_finished_run_changes_nothing() {
    let place = place();
    place.run(&TRAIN, 0);
    let files = ["results.json", "metrics.jsonl", "recipe.toml", "adapter/adapter_model.safetensors"];
    let state = || -> Vec<_> {
        let look = |file: &str| {
            let path = place.path("run").join(file);
            (fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap())
        };
        files.map(look).into()
    };
    let before = state();
    let output = place.run(&resumed(), 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("is finished"));
    assert!(state() == before);
    let output = place.run(&TRAIN, 1);
    assert!(errors(&output).contains("already has a run"), "{}", errors(&output));
    assert!(state() == before);
}

/// A run that was interrupted after some steps and has several checkpoints.
fn begun(step: u64) -> Place {
    let place = place();
    assert_eq!(interrupted(&place, libc::SIGTERM, step), Some(130));
    assert!(checkpoints(&place.path("run")).len() >= 2);
    place
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

/// Changes one byte in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// What happens to a file.
type Trouble<'a> = &'a dyn Fn(&Path);

/// Changes the text of a file.
fn replaced(from: &'static str, to: &'static str) -> impl Fn(&Path) {
    move |path| {
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(from), "no `{from}` in `{}`", path.display());
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    }
}

/// A copy of `kept` as the run `run`.
fn put_back(kept: &Path, run: &Path) {
    let _ = fs::remove_dir_all(run);
    assert!(Command::new("cp").arg("-r").args([kept, run]).status().unwrap().success());
}

#[test]
fn a_remark_in_the_recipe_of_a_run_does_not_keep_it_from_going_on() {
    let place = place();
    place.run(&TRAIN, 0);
    let run = place.path("run");
    fs::remove_file(run.join("results.json")).unwrap();
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    fs::write(run.join("recipe.toml"), format!("# The one for the paper.\n{recipe}")).unwrap();
    let output = place.run(&resumed(), 0);
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("resuming")
            || String::from_utf8_lossy(&output.stdout).contains("resuming")
    );
    assert_eq!(outcome(&run), *UNINTERRUPTED);
}

#[test]
fn a_broken_checkpoint_is_passed_over_for_an_older_one() {
    let place = begun(50);
    let (run, kept) = (place.path("run"), place.path("kept"));
    fs::rename(&run, &kept).unwrap();
    let best = "best-adapter_model.safetensors";
    let cases: [(&str, Trouble); 9] = [
        ("state.safetensors", &cut),
        ("state.safetensors", &damage),
        (best, &damage),
        ("best-adapter_config.json", &replaced("\"lora_alpha\": 8", "\"lora_alpha\": 9")),
        ("log.json", &replaced("\"bytes\": ", "\"bytes\": 1")),
        ("state.json", &cut),
        ("state.json", &replaced("\"noise\": \"", "\"noise\": \"1")),
        ("state.json", &replaced("\"best_value\": 0.", "\"best_value\": 0.9")),
        ("state.json", &|path| {
            let mut whole: serde_json::Value = crate::support::json(path);
            whole["state"]["runs"] = serde_json::json!([]);
            fs::write(path, whole.to_string()).unwrap();
        }),
    ];
    for (number, (file, trouble)) in (1..).zip(cases) {
        put_back(&kept, &run);
        trouble(&checkpoints(&run)[0].join(file));
        let output = place.run(&resumed(), 0);
        let warned = errors(&output).matches("skipping the damaged checkpoint").count();
        assert_eq!(warned, 1, "{number}: {}", errors(&output));
        assert!(errors(&output).contains(file), "{number}: {}", errors(&output));
        assert_eq!(outcome(&run), *UNINTERRUPTED, "{number}: {file}");
    }
}

#[test]
fn a_checkpoint_of_an_older_version_is_taken_and_looked_at() {
    let place = begun(50);
    let (run, kept) = (place.path("run"), place.path("kept"));
    let older = |change: &dyn Fn(&mut serde_json::Value)| {
        for folder in checkpoints(&run) {
            let mut whole: serde_json::Value = crate::support::json(&folder.join("state.json"));
            change(&mut whole);
            let checksum = &whole["files"]["state.safetensors"];
            let text = serde_json::json!({"checksum": checksum, "state": whole["state"]}).to_string();
            fs::write(folder.join("state.json"), text).unwrap();
            for name in ["log.json", "best-adapter_model.safetensors", "best-adapter_config.json"] {
                fs::remove_file(folder.join(name)).unwrap();
            }
        }
    };
    fs::rename(&run, &kept).unwrap();
    put_back(&kept, &run);
    older(&|_| ());
    let output = place.run(&resumed(), 0);
    assert!(errors(&output).contains("state.json` has no checksum"), "{}", errors(&output));
    assert_eq!(outcome(&run), *UNINTERRUPTED);
    put_back(&kept, &run);
    older(&|whole| whole["state"]["fingerprint"] = "another".into());
    let output = place.run(&resumed(), 1);
    assert!(errors(&output).contains("belongs to another run"), "{}", errors(&output));
    put_back(&kept, &run);
    older(&|_| ());
    fs::remove_file(run.join("adapter/adapter_model.safetensors")).unwrap();
    let output = place.run(&resumed(), 1);
    assert!(errors(&output).contains("adapter_model.safetensors` was removed"), "{}", errors(&output));
}

#[test]
fn what_lies_beside_the_checkpoints_is_put_back_or_told() {
    let place = begun(50);
    let (run, kept) = (place.path("run"), place.path("kept"));
    fs::rename(&run, &kept).unwrap();
    let adapter = "adapter/adapter_model.safetensors";
    let cases: [(&str, Trouble, &str); 6] = [
        (adapter, &damage, ""),
        (adapter, &|path| fs::remove_file(path).unwrap(), ""),
        ("adapter/adapter_config.json", &replaced("\"lora_alpha\": 8", "\"lora_alpha\": 9"), ""),
        ("adapter", &|path| fs::remove_dir_all(path).unwrap(), ""),
        ("metrics.jsonl", &replaced("\"loss\":", "\"loss\":1"), "is not what the run wrote"),
        ("metrics.jsonl", &|path| fs::remove_file(path).unwrap(), "is not what the run wrote"),
    ];
    for (number, (file, trouble, words)) in (1..).zip(cases) {
        put_back(&kept, &run);
        trouble(&run.join(file));
        let output = place.run(&resumed(), 0);
        assert_eq!(
            errors(&output).contains("not what the run wrote"),
            !words.is_empty(),
            "{}",
            errors(&output)
        );
        let found = outcome(&run);
        assert_eq!(
            (&found.adapter, &found.results),
            (&UNINTERRUPTED.adapter, &UNINTERRUPTED.results),
            "{number}"
        );
        assert_eq!(found.log == UNINTERRUPTED.log, words.is_empty(), "{number}: {file}");
        let config = |run: &Path| fs::read(run.join("adapter/adapter_config.json")).unwrap();
        assert_eq!(config(&run), config(&kept), "{number}: {file}");
    }
}

#[test]
fn a_run_folder_that_goes_away_ends_the_training() {
    let place = place();
    let run = place.path("run");
    // The whole folder, all that is in it, and the log alone.
    let cases: [(&str, &dyn Fn()); 3] = [
        ("`run` was removed or moved while being written", &|| {
            fs::rename(&run, place.path("moved")).unwrap()
        }),
        ("cannot write `run/metrics.jsonl`: No such file", &|| {
            for entry in fs::read_dir(&run).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }.unwrap();
            }
        }),
        ("cannot write `run/metrics.jsonl`: No such file", &|| {
            fs::remove_file(run.join("metrics.jsonl")).unwrap()
        }),
    ];
    for (words, trouble) in cases {
        let mut child =
            forked::start(&place.command(&[&TRAIN[..], &["--set", "train.max_steps=100000"]].concat()));
        assert!(wait_until(&mut child, || logged_step(&run) >= 15), "the run ended");
        trouble();
        let output = child.wait();
        check(&TRAIN, &output, 1, &[words, "hint: "]);
        assert!(
            !run.join("results.json").exists()
                && !run.join("recipe.toml").exists() | !words.contains("moved")
        );
        for name in ["run", "moved"] {
            let _ = fs::remove_dir_all(place.path(name));
        }
    }
}

#[test]
fn a_finished_run_has_its_results_and_its_adapter() {
    let place = place();
    let short = [&resumed()[..], &["--set", "train.max_steps=3"]].concat();
    place.run(&short, 0);
    let (results, adapter) =
        (place.path("run/results.json"), place.path("run/adapter/adapter_model.safetensors"));
    let refused = |words: &str| {
        check(
            &short,
            &forked::output(&place.command(&short)),
            1,
            &[words, "hint: delete `run/results.json`"],
        );
    };
    let text = fs::read_to_string(&results).unwrap();
    cut(&results);
    refused("`run/results.json` is not valid");
    fs::write(&results, "{}").unwrap();
    refused("`run/results.json` is damaged: missing field");
    fs::write(&results, text).unwrap();
    fs::remove_file(&adapter).unwrap();
    refused("is finished, but `run/adapter/adapter_model.safetensors` is missing");
    fs::remove_file(&results).unwrap();
    place.run(&short, 0);
    assert!(adapter.exists());
}

#[test]
fn without_any_whole_checkpoint_the_run_starts_again_and_its_new_checkpoints_count() {
    let place = begun(31);
    let run = place.path("run");
    for checkpoint in checkpoints(&run) {
        cut(&checkpoint.join("state.safetensors"));
    }
    fs::remove_file(run.join("metrics.jsonl")).unwrap(); // else the old points tell a wrong step
    assert_eq!(interrupted(&place, libc::SIGTERM, 9), Some(130));
    let newest = logged_step(&run);
    assert!((9..31).contains(&newest), "the run went on at step {newest}");
    let output = place.run(&resumed(), 0);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("resuming after step"), "{said}");
    assert_eq!(outcome(&run), *UNINTERRUPTED);
}

#[test]
fn a_run_does_not_go_on_with_another_recipe_or_other_data() {
    let place = begun(31);
    let run = place.path("run");
    let state = || ["recipe.toml", "metrics.jsonl"].map(|file| fs::read(run.join(file)).unwrap());
    let before = state();
    for set in ["train.learning_rate=2e-2", "adapter.rank=5", "train.seed=6", "data.limit=50"] {
        let output = forked::output(&place.command(&[&resumed()[..], &["--set", set]].concat()));
        assert!(matches!(output.status.code(), Some(1 | 2)), "{set}: {}", errors(&output));
        assert!(errors(&output).contains("another"), "{set}: {}", errors(&output));
        assert!(state() == before, "{set} changed the run that it was refused");
    }
    place.run(&resumed(), 0);
    assert_eq!(outcome(&run), *UNINTERRUPTED);
}

/// Runs the command, and returns what it said on both streams.
fn said(place: &Place, args: &[&str], code: i32) -> String {
    let output = place.run(args, code);
    format!("{}{}", String::from_utf8_lossy(&output.stdout), errors(&output))
}

#[test]
fn a_run_goes_on_by_its_folder_alone_and_with_other_keys_that_change_no_number() {
    let place = begun(23);
    fs::remove_file(place.path("recipe.toml")).unwrap();
    let sets = [
        "train.checkpoint_every=7",
        "train.keep_checkpoints=1",
        "train.gradient_checkpointing=true",
        "eval.tasks=",
    ];
    let mut args = vec!["train", "--resume", "run"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let text = said(&place, &args, 0);
    assert!(text.contains("resuming after step"), "{text}");
    let run = place.path("run");
    assert_eq!(outcome(&run), *UNINTERRUPTED);
    assert_eq!(checkpoints(&run).len(), 1);
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(
        recipe.contains("checkpoint_every = 7\n") && recipe.contains("gradient_checkpointing = true"),
        "{recipe}"
    );
    assert!(said(&place, &["train", "--resume", "run"], 0).contains("is finished"));
}

#[test]
fn smaller_batches_in_a_pass_are_taken_with_a_warning() {
    let place = begun(23);
    let text = said(&place, &["train", "--resume", "run", "--set", "train.micro_batch_size=2"], 0);
    assert!(text.contains("will not end with the bits"), "{text}");
    let found = outcome(&place.path("run"));
    assert_ne!(found, *UNINTERRUPTED, "dropout masks are others");
    assert_eq!(found.results[2], UNINTERRUPTED.results[2], "the same number of steps");
}

const CONSTANT: [&str; 4] = ["--set", "train.schedule=constant", "--set", "train.warmup_ratio=0.1"];

#[test]
fn a_run_with_a_constant_schedule_can_be_prolonged() {
    // Of 30 steps and 3 of warm-up, prolonged to 60 that keep the 3.
    let place = place();
    let run = place.path("run");
    place.run(&[&TRAIN[..], &CONSTANT, &["--set", "train.max_steps=30"]].concat(), 0);
    let best = fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    fs::create_dir_all(run.join("eval")).unwrap();
    fs::write(run.join("eval/results.json"), "{}").unwrap();
    let text = said(&place, &["train", "--resume", "run", "--set", "train.max_steps=60"], 0);
    assert!(text.contains("resuming after step 27"), "{text}");
    assert!(!run.join("eval/results.json").exists(), "scores of the adapter before");
    let whole = ["--out", "whole", "--set", "train.schedule=constant", "--set", "train.warmup_steps=3"];
    place.run(&[&TRAIN[..3], &whole].concat(), 0);
    assert_eq!(outcome(&run), outcome(&place.path("whole")));
    assert_ne!(fs::read(run.join("adapter/adapter_model.safetensors")).unwrap(), best);
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(recipe.contains("max_steps = 60\n") && recipe.contains("warmup_steps = 3\n"), "{recipe}");
}

#[test]
fn a_run_that_cannot_be_prolonged_says_what_can_be_done() {
    let place = place();
    place.run(&[&TRAIN[..], &["--set", "train.max_steps=6"]].concat(), 0);
    let longer = ["train", "--resume", "run", "--set", "train.max_steps=9"];
    let hint = "hint: start a new run from its adapter: `loraxs train --recipe run/recipe.toml --set train.max_steps=9 --set \
                train.init_from=run/adapter --out run-2`";
    check(
        &longer,
        &forked::output(&place.command(&longer)),
        2,
        &["to take 6 steps and is asked to take 9", "`linear`", hint],
    );
    // The hint is one that works.
    let next = [
        "train",
        "--recipe",
        "run/recipe.toml",
        "--set",
        "train.max_steps=9",
        "--set",
        "train.init_from=run/adapter",
        "--out",
        "run-2",
    ];
    place.run(&next, 0);
    let shorter = ["train", "--resume", "run", "--set", "train.max_steps=3"];
    check(
        &shorter,
        &forked::output(&place.command(&shorter)),
        2,
        &["different recipe", "`train.max_steps` was 6, now 3"],
    );
    let none = [&TRAIN[..3], &["--out", "none", "--set", "train.checkpoint_every=never"], &CONSTANT].concat();
    place.run(&none, 0);
    let longer = ["train", "--resume", "none", "--set", "train.max_steps=90"];
    check(
        &longer,
        &forked::output(&place.command(&longer)),
        1,
        &["kept no checkpoint", "train.init_from=none/adapter"],
    );
    assert!(place.path("none/results.json").exists());
}

#[test]
fn any_checkpoint_of_a_run_is_scored_and_merged() {
    let place = begun(50);
    let run = place.path("run");
    // Each checkpoint at an evaluation scores what the log says of its step; `run/adapter` is the best of them.
    let (step, name) = checkpoints(&run)
        .iter()
        .filter_map(|path| {
            let name = path.file_name()?.to_str()?.to_owned();
            Some((name.strip_prefix("step-")?.parse::<u64>().ok()?, name))
        })
        .find(|(step, _)| step % 12 == 0)
        .unwrap_or_else(|| panic!("no checkpoint at an evaluation among {:?}", checkpoints(&run)));
    let logged = log(&run).into_iter().find(|point| point.step == step && point.metrics.is_some()).unwrap();
    place.run(&["eval", "--run", "run", "--checkpoint", &name], 0);
    let found: serde_json::Value = crate::support::json(&run.join("eval").join(&name).join("results.json"));
    let metrics = logged.metrics.unwrap();
    assert_eq!(found["tiny/pairs"]["metrics"]["accuracy"]["value"].as_f64(), metrics["accuracy"], "{found}");
    place.run(&["merge", "--run", "run", "--checkpoint", &name, "--out", "merged"], 0);
    let adapter = run.join("checkpoints").join(&name);
    let base = encoders().join("bert-gelu");
    let args = [
        "merge",
        "--model",
        base.to_str().unwrap(),
        "--adapter",
        adapter.to_str().unwrap(),
        "--out",
        "again",
    ];
    place.run(&args, 0);
    let weights = |folder: &str| fs::read(place.path(folder).join("model.safetensors")).unwrap();
    assert_eq!(weights("merged"), weights("again"), "a checkpoint is an adapter folder");
    let refused =
        |args: &[&str], words: &[&str]| check(args, &forked::output(&place.command(args)), 2, words);
    refused(
        &["eval", "--run", "run", "--checkpoint", "step-1"],
        &["has no checkpoint `step-1`", &format!("`{name}`")],
    );
    // Interrupted before its first evaluation, a run has no adapter of its own.
    fs::remove_dir_all(run.join("adapter")).unwrap();
    let text = said(&place, &["eval", "--run", "run"], 0);
    assert!(text.contains("taking that of its newest checkpoint, step-"), "{text}");
}

#[test]
fn a_base_that_has_moved_is_named_anew() {
    let place = Place::new();
    crate::bench::copied(&encoders().join("bert-gelu"), &place.path("base"));
    let recipe = "[model]\nname = \"base\"\n[adapter]\nrank = 4\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 24\n\
                  [train]\nmax_steps = 2\nbatch_size = 4\n";
    place.train(recipe, "run", &[]);
    assert!(!place.path("run/adapter/tokenizer.json").exists(), "the run did not change the tokenizer");
    let first = said(&place, &["eval", "--run", "run"], 0);
    fs::rename(place.path("base"), place.path("moved")).unwrap();
    let refused = ["eval", "--run", "run"];
    let words = ["which is not there any more", "hint: say where it is now: `--run run --model DIR`"];
    check(&refused, &forked::output(&place.command(&refused)), 1, &words);
    let again = said(&place, &["eval", "--run", "run", "--model", "moved"], 0);
    let row = |text: &str| {
        text.lines().find(|line| line.contains("accuracy")).map(|l| l[..60.min(l.len())].to_owned())
    };
    assert_eq!(row(&first), row(&again));
    place.run(&["merge", "--run", "run", "--model", "moved", "--out", "merged"], 0);
    fs::write(
        place.path("moved/tokenizer.json"),
        fs::read_to_string(place.path("moved/tokenizer.json")).unwrap() + "\n",
    )
    .unwrap();
    let refused = ["eval", "--run", "run", "--model", "moved"];
    check(
        &refused,
        &forked::output(&place.command(&refused)),
        1,
        &["tokenizer.json` is not the one `run` was trained with"],
    );
}
