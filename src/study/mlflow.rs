//! Runs as MLflow's file store: plain files, `OUT/EXPERIMENT/RUN/{meta.yaml, params/, metrics/, tags/, artifacts/}`.
//!
//! The layout is that of `mlflow/store/tracking/file_store.py` of MLflow 2 and 3. The ids of a run and its experiment are made from
//! the run's folder and the name of the folder above, so that a second export writes the same files again. What was added in MLflow
//! itself, such as tags and notes, stays.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use indexmap::IndexMap;
use serde_json::Value;
use yaml_rust2::YamlLoader;

use super::record::{Record, Status};
use super::times::Times;
use crate::fault::Result;
use crate::files::{cannot_write, read_text, url_part, write_bytes};

/// Longest parameter or tag, in characters; MLflow's databases take no longer ones.
const LONGEST: usize = 6000;
/// Longest name of a parameter or metric, in bytes.
const LONGEST_NAME: usize = 250;
/// Describes an experiment or a run.
const META: &str = "meta.yaml";

/// Writes the runs of `records` below `out`, or `mlruns`; returns what was done.
///
/// # Errors
/// When a file cannot be written.
pub fn write(records: &[Record], out: Option<&Path>) -> Result<String> {
    let out = out.unwrap_or(Path::new("mlruns"));
    fs::create_dir_all(out).map_err(|error| cannot_write(out, &error))?;
    let shown = out.display();
    let out = &out.canonicalize().map_err(|error| cannot_write(out, &error))?;
    let mut experiments = experiments(out);
    let mut written = 0;
    for scored in records.chunk_by(|a, b| a.folder == b.folder) {
        let Some(record) = scored.first() else { continue };
        let source = record.folder.canonicalize().unwrap_or_else(|_| record.folder.clone());
        let above =
            source.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let times = Times::of(record);
        let id = match experiments.get(&above) {
            Some(id) => id.clone(),
            None => {
                let id = experiment(out, &above, &times)?;
                experiments.entry(above).or_insert(id).clone()
            }
        };
        run(scored, record, &source, &times, &out.join(id))?;
        written += 1;
    }
    let them = format!("`MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri {shown}` shows them");
    Ok(format!("wrote {written} runs into {shown}; {them}"))
}

/// Returns the ids of the experiments that are there by name.
fn experiments(out: &Path) -> IndexMap<String, String> {
    let name = |folder: PathBuf| {
        let meta = YamlLoader::load_from_str(&read_text(&folder.join(META)).ok()?).ok()?;
        let name = meta.first()?["name"].as_str()?.to_owned();
        Some((name, folder.file_name()?.to_str()?.to_owned()))
    };
    let entries = fs::read_dir(out).into_iter().flatten();
    entries.filter_map(|entry| name(entry.ok()?.path())).collect()
}

/// Creates an experiment; returns its id, a number.
fn experiment(out: &Path, name: &str, times: &Times) -> Result<String> {
    let hash = blake3::hash(name.as_bytes());
    let eight = hash.as_bytes().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte));
    // Of 18 digits, as MLflow's own.
    let id = (100_000_000_000_000_000 + eight % 900_000_000_000_000_000).to_string();
    let folder = out.join(&id);
    let time = times.started.timestamp_millis().to_string();
    let meta = [
        ("artifact_location", quoted(&uri(&folder))),
        ("creation_time", time.clone()),
        ("experiment_id", quoted(&id)),
        ("last_update_time", time),
        ("lifecycle_stage", "active".to_owned()),
        ("name", quoted(name)),
    ];
    write_yaml(&folder, &meta)?;
    Ok(id)
}

/// Writes a run and all its scores into the folder of its experiment.
fn run(scored: &[Record], record: &Record, source: &Path, times: &Times, experiment: &Path) -> Result<()> {
    let hash = blake3::hash(source.as_os_str().as_encoded_bytes()).to_hex();
    let id = hash.get(..32).unwrap_or_default();
    let folder = experiment.join(id);
    let artifacts = folder.join("artifacts");
    let status = match record.status {
        Status::Finished => 3,
        Status::Failed { .. } => 4,
        Status::Stopped => 5,
        Status::Unfinished => 1,
    };
    let ended =
        if record.status.is_end() { times.ended.timestamp_millis().to_string() } else { "null".to_owned() };
    for part in ["metrics", "params", "tags"] {
        fs::create_dir_all(folder.join(part)).map_err(|error| cannot_write(&folder, &error))?;
    }
    // MLflow reads the run's own folder, and deletes no folder through a link.
    let linked = if source.is_dir() { symlink(source, &artifacts) } else { fs::create_dir(&artifacts) };
    linked.or_else(|error| {
        if error.kind() == ErrorKind::AlreadyExists { Ok(()) } else { Err(cannot_write(&artifacts, &error)) }
    })?;
    for (name, lines) in metrics(scored, times.ended.timestamp_millis()) {
        write_bytes(&folder.join("metrics").join(plain(&name)), lines.as_bytes())?;
    }
    for (name, value) in &record.settings {
        write_bytes(&folder.join("params").join(plain(name)), text(value).as_bytes())?;
    }
    let tags = [
        ("mlflow.runName", record.name.clone()),
        ("mlflow.source.name", record.source.clone()),
        ("mlflow.source.type", "LOCAL".to_owned()),
        ("loraxs.state", record.status.word().to_owned()),
        ("loraxs.task", record.task.clone()),
        ("loraxs.device", record.device.clone()),
        ("loraxs.folder", source.display().to_string()),
    ];
    for (name, value) in tags {
        write_bytes(&folder.join("tags").join(name), value.as_bytes())?;
    }
    let name = experiment.file_name().unwrap_or_default().to_string_lossy();
    let meta = [
        ("artifact_uri", quoted(&uri(&artifacts))),
        ("end_time", ended),
        ("entry_point_name", "''".to_owned()),
        ("experiment_id", quoted(&name)),
        ("lifecycle_stage", "active".to_owned()),
        ("run_id", quoted(id)),
        ("run_name", quoted(&record.name)),
        // Its name in MLflow 2.
        ("run_uuid", quoted(id)),
        ("source_name", "''".to_owned()),
        ("source_type", "4".to_owned()),
        ("source_version", "''".to_owned()),
        ("start_time", times.started.timestamp_millis().to_string()),
        ("status", status.to_string()),
        ("tags", "[]".to_owned()),
        ("user_id", "''".to_owned()),
    ];
    // Last, since MLflow finds a run by it.
    write_yaml(&folder, &meta)
}

/// Returns the lines of each metric, `TIME VALUE STEP`. The log tells no times: all are the run's end.
fn metrics(scored: &[Record], time: i64) -> BTreeMap<String, String> {
    let mut found: BTreeMap<String, String> = BTreeMap::new();
    let mut add = |name: String, value: f64, step: u64| {
        let value = if value.is_nan() { "nan".to_owned() } else { value.to_string() };
        let lines = found.entry(name).or_default();
        // Writing to a string does not fail.
        let _ = writeln!(lines, "{time} {value} {step}");
    };
    for record in scored {
        let task = &record.task;
        let of_log = record.evaluations.iter().map(|evaluation| ("eval", evaluation));
        let alone = record
            .evaluations
            .is_empty()
            .then_some(record.last.as_ref())
            .flatten()
            .map(|last| ("eval", last));
        for (kind, evaluation) in of_log.chain(alone).chain(record.best.as_ref().map(|best| ("best", best))) {
            for (metric, value) in &evaluation.metrics {
                add(format!("{kind}/{task}/{metric}"), *value, evaluation.step);
            }
        }
    }
    let Some(record) = scored.first() else { return found };
    for point in &record.points {
        add("train/loss".to_owned(), point.loss, point.step);
    }
    let step = record.steps.unwrap_or(0);
    let count = |count: Option<u64>| count.map(|count| count as f64);
    let totals = [
        ("trained_parameters", count(record.trained())),
        ("head_parameters", count(record.head_parameters)),
        ("adapter_bytes", count(record.adapter_bytes)),
        ("train_seconds", record.train_seconds),
        ("seconds", record.seconds),
        ("examples_per_second", record.examples_per_second),
        ("tokens_per_second", record.tokens_per_second),
        ("peak_memory_mib", record.peak_memory_mib),
    ];
    for (name, value) in totals.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        add(name.to_owned(), value, step);
    }
    found
}

/// Returns a name of the characters that MLflow allows, which is also a path that stays below its folder.
fn plain(name: &str) -> String {
    let allowed = |c: char| if c.is_alphanumeric() || "_-. :/".contains(c) { c } else { '_' };
    let name: String = name.chars().map(allowed).collect();
    let parts: Vec<&str> = name.split('/').filter(|part| !["", ".", ".."].contains(part)).collect();
    let name = parts.join("/");
    let start = (0..=name.len()).find(|&at| name.is_char_boundary(at) && name.len() - at <= LONGEST_NAME);
    name.get(start.unwrap_or(0)..).unwrap_or_default().trim_start_matches('/').to_owned()
}

fn text(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(LONGEST).collect()
}

/// Returns a JSON string, which YAML reads alike.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn uri(path: &Path) -> String {
    format!("file://{}", url_part(path.as_os_str().as_encoded_bytes(), "/"))
}

fn write_yaml(folder: &Path, fields: &[(&str, String)]) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
    let lines: Vec<String> = fields.iter().map(|(key, value)| format!("{key}: {value}\n")).collect();
    write_bytes(&folder.join(META), lines.concat().as_bytes())
}
