//! Changed state of runs, caches and scorings; where it is accepted, what comes of it is what comes of the whole one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::dice::Dice;
use super::json as json_text;
use super::kinds::{
    EVAL_SUMS, RESUME, TRAIN, change_one, common, copy_all, decoder, edit, encoder, owned, runs,
};
use crate::forked;
use crate::support::{Point, encoders, errors, fixture, json, log};

/// Names the fixture itself in the recipe, because a run remembers the folder of its base.
fn name_fixture(folder: &Path, more: &str) {
    let name = format!("{:?}", encoders().join("bert-gelu"));
    edit(&folder.join("recipe.toml"), |bytes| {
        format!("{}{more}", String::from_utf8(bytes).unwrap().replace("\"model\"", &name)).into_bytes()
    });
}

/// A run that was told to end, and has two checkpoints.
pub fn interrupted(folder: &Path) {
    common(folder, "tiny/pairs", 20);
    name_fixture(folder, "log_every = 1\ncheckpoint_every = 2\nkeep_checkpoints = 2\n[eval]\nevery = 3\n");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(TRAIN).args(["--device", "cpu", "--threads", "1"]).current_dir(folder);
    command.env("LORAXS_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    let mut child = forked::start(&command);
    while !folder.join("run/checkpoints/step-6").exists() && !child.is_over() {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.signal(libc::SIGTERM);
    let output = child.wait();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
}

/// What comes of a training, but for its clock.
pub fn trained(folder: &Path) -> Value {
    let results: Value = json(&folder.join("run/results.json"));
    let log: Vec<String> =
        log(&folder.join("run")).iter().map(|point: &Point| format!("{point:?}")).collect();
    let adapter = fs::read(folder.join("run/adapter/adapter_model.safetensors")).unwrap_or_default();
    json!({
        "adapter": blake3::hash(&adapter).to_hex().as_str(), "best": results["best"], "last": results["last"],
        "steps": results["steps"], "log": blake3::hash(log.join("\n").as_bytes()).to_hex().as_str(), "points": log.len(),
    })
}

pub fn checkpoint(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let checkpoints = folder.join("run/checkpoints");
    let mut steps: Vec<PathBuf> = fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path()).collect();
    steps.sort_by_key(|path| path.to_str().map(str::len));
    let newest = steps.last().unwrap();
    match dice.below(10) {
        0 => {
            let name = dice.word(
                "step-0¦step-1¦step-7¦step-19¦step-20¦step-21¦step-18446744073709551615¦step-x¦step-007",
            );
            let _ = fs::rename(newest, checkpoints.join(name));
        }
        1 => copy_all(newest, &checkpoints.join(dice.word("step-19¦step-20¦step-99¦.partial"))),
        2..7 => {
            // A digit of a counter
            edit(&newest.join("state.json"), |bytes| {
                json_text::changed(dice, &bytes, "step¦runs¦seconds¦checksum")
            });
        }
        _ => change_one(dice, &checkpoints, &[""]),
    }
    owned(&RESUME)
}

pub fn finished(folder: &Path) {
    encoder(folder);
    name_fixture(folder, "");
    runs(folder, &["train", "--recipe", "recipe.toml", "--out", "run"]);
    runs(folder, &["eval", "--run", "run"]);
}

pub fn run(dice: &mut Dice, folder: &Path) -> Vec<String> {
    change_one(dice, &folder.join("run"), &[""]);
    match dice.below(6) {
        0..2 => owned(&["eval", "--run", "run", "--datasets", "datasets.toml"]),
        2 => owned(&["merge", "--run", "run", "--out", "merged"]),
        3 => owned(&["merge", "--run", "run", "--out", "merged", "--format", "peft"]),
        _ => owned(&RESUME),
    }
}

/// A run, a row for PEFT's table, and results of lm-evaluation-harness.
pub fn compared(folder: &Path) {
    encoder(folder);
    name_fixture(folder, "");
    runs(folder, &["train", "--recipe", "recipe.toml", "--out", "study/run"]);
    runs(folder, &["report", "study", "--format", "peft", "--out", "study/row.json"]);
    let harness = fixture("harness/results_2026-11-26T12-00-00.000000.json");
    fs::copy(harness, folder.join("study/harness.json")).unwrap();
    fs::remove_dir_all(folder.join("study/run/adapter")).unwrap();
}

pub fn report(dice: &mut Dice, folder: &Path) -> Vec<String> {
    change_one(dice, &folder.join("study"), &[".json", ".jsonl", ".toml"]);
    match dice.below(6) {
        0 => owned(&["report", "study", "--format", "peft", "--out", "rows"]),
        1 => owned(&["report", "study", "--format", "mlflow"]),
        2 => owned(&["report", "study", "--format", "json"]),
        3 => owned(&["report", "study/row.json", "study/harness.json", "--format", "csv"]),
        4 => owned(&["report", "study/row.json", "study/run"]),
        _ => owned(&["report", "study"]),
    }
}

pub fn cached(folder: &Path) {
    encoder(folder);
    runs(folder, &["train", "--recipe", "recipe.toml", "--out", "run"]);
    fs::remove_dir_all(folder.join("run")).unwrap();
}

pub fn cache(dice: &mut Dice, folder: &Path) -> Vec<String> {
    change_one(dice, &folder.join("cache"), &[""]);
    owned(&TRAIN)
}

/// A scoring that was cut short.
pub fn answered(folder: &Path) {
    decoder(folder);
    runs(folder, &["eval", "--model", "model", "--task", "sums", "--out", "out"]);
    fs::remove_file(folder.join("out/results.json")).unwrap();
    edit(&folder.join("out/predictions/sums.jsonl"), |bytes| {
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        lines[..lines.len() - 1].concat()
    });
}

/// What comes of a scoring, but for its clock.
pub fn scored(folder: &Path) -> Value {
    let results: Value = json(&folder.join("out/results.json"));
    let kept = ["metrics", "groups", "count"].map(|key| results["sums"][key].clone());
    let rows = fs::read_to_string(folder.join("out/predictions/sums.jsonl")).unwrap_or_default();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
    let seen: Vec<Value> = rows
        .iter()
        .map(|row| ["index", "completion", "gold", "correct"].iter().map(|key| row[*key].clone()).collect())
        .collect();
    json!({ "results": kept, "rows": seen })
}

pub fn predictions(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let out = folder.join("out/predictions");
    if dice.chance(70) {
        edit(&out.join("sums.jsonl"), |bytes| {
            json_text::lines_changed(dice, &bytes, "index¦correct¦verdicts¦completion")
        });
    } else {
        change_one(dice, &out, &[""]);
    }
    owned(&[&EVAL_SUMS[..], &["--out", "out"]].concat())
}
