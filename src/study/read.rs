//! Runs on disk to records.
//!
//! A run that goes on while it is read may show a torn last line, or no results yet; whatever cannot be read is left out with a
//! warning.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use indexmap::IndexMap;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::foreign;
use super::record::{Evaluated, LossPoint, Record, Status, higher_is_better, null_as_nan};
use crate::fault::{Result, fault};
use crate::files;
use crate::report::metrics_log::METRICS_FILE;

/// Names of a run's files; `session::run_folder` says what they hold.
pub const RECIPE: &str = "recipe.toml";
const RESULTS: &str = "results.json";
pub const FAILED: &str = "failed.json";

/// Folders below a named one in which runs are looked for.
const DEPTH: usize = 12;

/// Returns the records of all runs in `paths`, each a run, a folder of runs at any depth, or a file of another tool's results, sorted
/// by name. Fails where a path does not exist or there is no run.
pub fn records(paths: &[PathBuf]) -> Result<Vec<Record>> {
    let mut runs = Vec::new();
    let mut seen = HashSet::new();
    for path in paths {
        if !path.exists() {
            return Err(fault(format!("`{}` does not exist", path.display()))
                .hint("name the folder of a run or of a sweep, or one that holds some, such as `runs`")
                .into());
        }
        if path.is_file() && foreign::records(path).is_empty() {
            return Err(fault(format!("`{}` holds no results that can be read", path.display()))
                .hint("name the folder of a run, or a JSON file of PEFT's `method_comparison` or of lm-evaluation-harness")
                .into());
        }
        let mut found = Vec::new();
        find(path, DEPTH, &mut seen, &mut found);
        let several = paths.len() > 1;
        runs.extend(found.into_iter().map(|run| (name_of(&run, path, several), run)));
    }
    let (files, runs): (Vec<_>, Vec<_>) = runs.into_iter().partition(|(_, run)| run.is_file());
    let others: Vec<Record> = files.par_iter().flat_map(|(_, file)| foreign::records(file)).collect();
    if runs.is_empty() && others.is_empty() {
        let shown: Vec<String> = paths.iter().map(|path| format!("`{}`", path.display())).collect();
        return Err(fault(format!("no run in {}", shown.join(", ")))
            .hint("a run is a folder with a `recipe.toml`, written by `loraxs train --out`")
            .into());
    }
    let mut records: Vec<Record> = runs.par_iter().flat_map(|(name, run)| read(name, run)).collect();
    name_metrics(&mut records);
    records.extend(others);
    records.sort_by_cached_key(|record| natural(&record.name));
    Ok(records)
}

/// Returns when anything in the runs was last written, and how many files there are.
pub fn last_change(paths: &[PathBuf]) -> (usize, Option<SystemTime>) {
    let mut runs = Vec::new();
    let mut seen = HashSet::new();
    paths.iter().for_each(|path| find(path, DEPTH, &mut seen, &mut runs));
    let names = [RECIPE, RESULTS, FAILED, METRICS_FILE];
    let times =
        runs.iter().flat_map(|run| names.map(|name| fs::metadata(run.join(name)).ok()?.modified().ok()));
    let times: Vec<SystemTime> = times.flatten().collect();
    (times.len(), times.into_iter().max())
}

/// Returns a run's name: its path below the folder that was named, whose own name comes first where there are several.
fn name_of(run: &Path, named: &Path, several: bool) -> String {
    let own = || {
        let whole = named.canonicalize().unwrap_or_else(|_| named.to_owned());
        whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
    };
    match run.strip_prefix(named).map(|below| below.to_string_lossy().into_owned()) {
        Ok(below) if below.is_empty() => own(),
        Ok(below) if several => format!("{}/{below}", own()),
        Ok(below) => below,
        Err(_) => own(),
    }
}

/// Adds the runs in `folder` and its JSON files to `found`, each once however many links lead to it.
fn find(folder: &Path, depth: usize, seen: &mut HashSet<PathBuf>, found: &mut Vec<PathBuf>) {
    if !folder.canonicalize().is_ok_and(|whole| seen.insert(whole)) {
        return;
    }
    if folder.is_file() {
        found.push(folder.to_owned());
        return;
    }
    if folder.join(RECIPE).is_file() || folder.join(FAILED).is_file() {
        found.push(folder.to_owned());
        return;
    }
    let Ok(entries) = fs::read_dir(folder) else {
        if folder.is_dir() {
            tracing::warn!("cannot read `{}`; runs in it are left out", folder.display());
        }
        return;
    };
    let is_hidden =
        |path: &Path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let is_json = path.extension().is_some_and(|ending| ending == "json");
        if depth > 0 && !is_hidden(&path) && (is_json || path.is_dir()) {
            find(&path, depth - 1, seen, found);
        }
    }
}

/// Returns a name by which 2 sorts before 10.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let text = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        parts.push((rest[..digits].parse().unwrap_or(0), rest[digits..text].to_owned()));
        rest = &rest[text..];
    }
    parts
}

/// Returns the record of a run, and one for each data set that it was scored on besides its own.
fn read(name: &str, folder: &Path) -> Vec<Record> {
    let path = folder.join(RESULTS);
    let found = json(&path).map(|results| of_results(&path, results));
    let mut record = Record {
        name: name.to_owned(),
        folder: folder.to_owned(),
        source: "loraxs".to_owned(),
        ..found.unwrap_or_default()
    };
    if !record.status.is_end()
        && let Some(failed) = json::<Value>(&folder.join(FAILED))
    {
        let error = failed["error"].as_str().unwrap_or("no reason given").to_owned();
        record.status = Status::Failed { error, step: failed["step"].as_u64() };
    }
    if record.settings.is_empty() {
        record.settings = flat(&recipe(&folder.join(RECIPE)));
    }
    if record.task.is_empty() {
        let text =
            |key: &str| record.settings.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        (record.task, record.metric) = (text("data.dataset"), text("eval.metric"));
    }
    take_log(&mut record);
    let model = folder.join("adapter").join("adapter_model.safetensors");
    record.adapter_bytes = fs::metadata(model).ok().map(|about| about.len());
    let scores = scores(&record);
    if record.best.is_none() && !scores.is_empty() { scores } else { [vec![record], scores].concat() }
}

/// Returns the record of a run that has results.
fn of_results(path: &Path, results: Value) -> Record {
    let found = Record::deserialize(&results).inspect_err(|error| warn(path, error)).unwrap_or_default();
    let count = |name: &str| results["parameters"][name].as_u64();
    Record {
        adapter_parameters: count("adapter"),
        head_parameters: count("head"),
        base_parameters: count("base"),
        status: if results["ended"] == "halving" { Status::Stopped } else { Status::Finished },
        settings: flat(&results["recipe"]),
        results,
        ..found
    }
}

/// A line of `metrics.jsonl`.
#[derive(Deserialize)]
struct LogLine {
    step: u64,
    epoch: Option<f64>,
    loss: Option<f64>,
    task: Option<String>,
    metrics: Option<Metrics>,
}

#[derive(Deserialize)]
struct Metrics(#[serde(deserialize_with = "null_as_nan")] IndexMap<String, f64>);

/// Reads the log; a run without results gets its evaluations and last step from there.
fn take_log(record: &mut Record) {
    let path = record.folder.join(METRICS_FILE);
    let Ok(bytes) = fs::read(&path) else { return };
    let mut damaged = 0;
    for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let Ok(line) = serde_json::from_slice::<LogLine>(line) else {
            damaged += 1;
            continue;
        };
        match line.metrics {
            Some(Metrics(metrics)) if line.task.as_ref().is_none_or(|task| *task == record.task) => {
                record.evaluations.push(Evaluated { step: line.step, epoch: line.epoch, metrics });
            }
            Some(_) => {}
            None => record.points.push(LossPoint {
                step: line.step,
                epoch: line.epoch.unwrap_or(f64::NAN),
                loss: line.loss.unwrap_or(f64::NAN),
            }),
        }
    }
    // A run that goes on is in the middle of its last line.
    if damaged > usize::from(!record.status.is_end()) {
        tracing::warn!("`{}`: left out {damaged} damaged lines", path.display());
    }
    let rate =
        record.points.iter().find(|point| point.epoch > 0.0).map(|point| point.epoch / point.step as f64);
    for evaluation in &mut record.evaluations {
        evaluation.epoch = evaluation.epoch.or(rate.map(|rate| rate * evaluation.step as f64));
    }
    record.steps = record.steps.or(record.points.last().map(|point| point.step));
}

/// Scores that `eval` wrote: `RUN/eval/results.json`, and `RUN/eval/SPLIT/results.json` of further splits.
#[derive(Deserialize)]
struct Scored {
    split: Option<String>,
    metrics: IndexMap<String, Score>,
}

#[derive(Deserialize)]
struct Score {
    value: Option<f64>,
    stderr: Option<f64>,
}

/// Returns a record for each data set that the run was scored on, besides its own validation split.
fn scores(record: &Record) -> Vec<Record> {
    let eval = record.folder.join("eval");
    let of_checkpoint =
        |path: &Path| path.file_name().is_none_or(|name| name.to_string_lossy().starts_with("step-"));
    let mut splits: Vec<PathBuf> = fs::read_dir(&eval)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir() && !of_checkpoint(path))
        .collect();
    splits.sort();
    splits.insert(0, eval);
    let tasks = splits.iter().enumerate().flat_map(|(place, folder)| {
        let tasks = json::<IndexMap<String, Scored>>(&folder.join(RESULTS)).unwrap_or_default();
        tasks.into_iter().filter(move |(task, _)| place > 0 || *task != record.task)
    });
    let of = |(task, scored): (String, Scored)| {
        let task = match scored.split.filter(|_| task == record.task) {
            Some(split) => format!("{task} ({split})"),
            None => task,
        };
        let stderr = scored.metrics.values().next().and_then(|score| score.stderr);
        let metrics: IndexMap<String, f64> =
            scored.metrics.into_iter().map(|(name, score)| (name, score.value.unwrap_or(f64::NAN))).collect();
        let metric = metrics.keys().next()?.clone();
        let step = record.best.as_ref().map_or(record.steps.unwrap_or(0), |best| best.step);
        let evaluation = Some(Evaluated { step, epoch: None, metrics });
        Some(Record {
            task,
            higher_is_better: higher_is_better(&metric),
            metric,
            best: evaluation.clone(),
            stderr,
            last: evaluation,
            evaluations: Vec::new(),
            ..record.clone()
        })
    };
    tasks.filter_map(of).collect()
}

/// Names the metric of runs that have no results yet, as finished runs of their task do, else the first that is no loss; takes best
/// and last evaluation of such runs from their logs.
fn name_metrics(records: &mut [Record]) {
    let known: IndexMap<String, String> = (records.iter())
        .filter(|record| !record.metric.is_empty())
        .map(|record| (record.task.clone(), record.metric.clone()))
        .collect();
    for record in records.iter_mut() {
        if record.metric.is_empty() {
            let named = record.evaluations.iter().flat_map(|evaluation| evaluation.metrics.keys());
            let named = named.clone().find(|name| *name != "loss").or(named.clone().next());
            record.metric = known.get(&record.task).or(named).cloned().unwrap_or_default();
        }
        record.higher_is_better = higher_is_better(&record.metric);
        if record.results.is_null() {
            let (metric, up) = (record.metric.clone(), record.higher_is_better);
            let value = |evaluation: &&Evaluated| {
                let value = evaluation.metrics.get(&metric).copied().unwrap_or(f64::NAN);
                if value.is_nan() {
                    f64::NEG_INFINITY
                } else if up {
                    value
                } else {
                    -value
                }
            };
            // The first of equals, as in training.
            let best = record.evaluations.iter().rev().max_by(|a, b| value(a).total_cmp(&value(b)));
            (record.best, record.last) = (best.cloned(), record.evaluations.last().cloned());
        }
    }
}

/// Reads a JSON file; `None` where there is none, and with a warning where it is damaged.
fn json<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = fs::read(path).ok()?;
    serde_json::from_slice(&bytes).map_err(|error| warn(path, &error)).ok()
}

fn recipe(path: &Path) -> Value {
    let text = files::read_text(path).unwrap_or_default();
    toml::from_str(&text).unwrap_or_else(|error: toml::de::Error| {
        warn(path, &error.message());
        Value::Null
    })
}

fn warn(path: &Path, error: &dyn std::fmt::Display) {
    tracing::warn!("cannot read `{}`, which is left out: {error}", path.display());
}

/// Returns the values of nested tables by dotted key.
pub fn flat(value: &Value) -> Map<String, Value> {
    fn add(prefix: &str, value: &Value, found: &mut Map<String, Value>) {
        match value {
            Value::Object(table) => {
                for (key, value) in table {
                    let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    add(&key, value, found);
                }
            }
            Value::Null => {}
            value => {
                found.insert(prefix.to_owned(), value.clone());
            }
        }
    }
    let mut found = Map::new();
    add("", value, &mut found);
    found
}
