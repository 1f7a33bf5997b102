//! Results of lm-evaluation-harness: `results_TIME.json` of 0.4, and the files of earlier versions.
//!
//! The layout is that of `lm_eval/loggers/evaluation_tracker.py` and `lm_eval/evaluator.py`; in versions before 0.4, a metric has no
//! filter, `config.model_args` is a text, and `config.num_fewshot` holds for all tasks.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value};

use super::record::{Evaluated, Record, Status, higher_is_better};

/// Marks the standard error of a metric in its name.
const STDERR: &str = "_stderr";

/// Returns a record for each task of a results file; none if the file `path` holds something else.
pub fn records(file: &Value, path: &Path) -> Vec<Record> {
    let Some(results) = file.get("results").and_then(Value::as_object) else { return Vec::new() };
    if ["config", "configs", "versions"].iter().all(|key| file.get(key).is_none()) {
        return Vec::new();
    }
    results.iter().filter_map(|(task, scores)| record(file, task, scores.as_object()?, path)).collect()
}

fn record(file: &Value, task: &str, scores: &Map<String, Value>, path: &Path) -> Option<Record> {
    // Names and counts stand between the scores, which 0.4 tells by their filters.
    let with_filter = scores.keys().any(|key| key.contains(','));
    let scores = scores.iter().filter(|(key, _)| !with_filter || key.contains(','));
    let (errors, metrics): (IndexMap<String, f64>, IndexMap<String, f64>) = scores
        .filter_map(|(key, value)| {
            Some((key.strip_suffix(",none").unwrap_or(key).to_owned(), value.as_f64()?))
        })
        .partition(|(name, _)| name.contains(STDERR));
    let metric = metrics.keys().next()?.clone();
    let (plain, filter) = metric.split_at(metric.find(',').unwrap_or(metric.len()));
    let stderr = errors.get(&format!("{plain}{STDERR}{filter}")).copied();
    let better = file["higher_is_better"][task][plain].as_bool();
    let config = &file["config"];
    let tool = config["model"].as_str().unwrap_or_default();
    let shots = [&file["n-shot"][task], &file["configs"][task]["num_fewshot"], &config["num_fewshot"]];
    let shots = shots.into_iter().find(|shots| shots.is_number()).cloned();
    let model = model(file, config);
    let settings = [("model.name", model.clone().map(Value::from)), ("num_fewshot", shots)];
    let evaluation = Some(Evaluated { step: 0, epoch: None, metrics });
    let seconds = &file["total_evaluation_time_seconds"];
    Some(Record {
        name: model.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned()),
        folder: path.to_owned(),
        source: if tool == "loraxs" { tool } else { "lm-evaluation-harness" }.to_owned(),
        status: Status::Finished,
        settings: settings.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect(),
        task: task.to_owned(),
        higher_is_better: better.unwrap_or_else(|| higher_is_better(&metric)),
        metric,
        stderr,
        last: evaluation.clone(),
        best: evaluation,
        seconds: seconds.as_f64().or_else(|| seconds.as_str()?.parse().ok()),
        device: config["device"].as_str().unwrap_or_default().to_owned(),
        results: file["results"][task].clone(),
        ..Record::default()
    })
}

/// Returns the model that was scored: its own name, else the one among the arguments by which it was opened.
fn model(file: &Value, config: &Value) -> Option<String> {
    let arguments = &config["model_args"];
    let of_text = || {
        let mut parts = arguments.as_str()?.split(',').filter_map(|part| part.split_once('='));
        parts.find(|(key, _)| ["pretrained", "model"].contains(key)).map(|(_, value)| value)
    };
    let known = [&file["model_name"], &arguments["pretrained"], &arguments["model"]];
    let found = known.into_iter().find_map(Value::as_str).filter(|name| !name.is_empty());
    found.or_else(of_text).or(config["model"].as_str()).map(str::to_owned)
}
