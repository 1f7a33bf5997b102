//! Rows of PEFT's `method_comparison`: read beside our runs, and written for them.
//!
//! The layout is that of `log_results` in `MetaMathQA/utils.py` and of the loader in `processing.py`, at
//! github.com/huggingface/peft 5d602fd. `scripts/reference/peft_rows.py` holds rows against that loader.

use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::record::{Evaluated, LossPoint, Record, Status, higher_is_better};
use super::times::Times;
use crate::adapters::Method;
use crate::fault::{Result, usage};
use crate::files;

/// Task of MetaMathQA/, whose models are tested on GSM8K with PEFT's prompt.
const TASK: &str = "gsm8k/peft";
/// Metric of a task in PEFT's files, and ours.
const TESTED: &str = "test ";
/// Keys of `train_config`, and ours.
const TRAINING: [(&str, &str); 9] = [
    ("model_id", "model.name"),
    ("max_seq_length", "data.max_length"),
    ("max_steps", "train.max_steps"),
    ("batch_size", "train.batch_size"),
    ("lr_scheduler", "train.schedule"),
    ("grad_norm_clip", "train.max_grad_norm"),
    ("use_gc", "train.gradient_checkpointing"),
    ("seed", "train.seed"),
    ("dtype", "train.precision"),
];
/// Keys of `optimizer_kwargs`, and ours.
const OPTIMIZER: [(&str, &str); 2] = [("lr", "train.learning_rate"), ("weight_decay", "train.weight_decay")];
/// Keys of `peft_config`, and ours.
const ADAPTER: [(&str, &str); 3] =
    [("r", "adapter.rank"), ("lora_alpha", "adapter.alpha"), ("target_modules", "adapter.targets")];
/// Words for precisions in PEFT's files, and ours.
const PRECISIONS: [(&str, &str); 3] = [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")];

/// Returns the record of a row; `None` if the file `path` holds something else.
pub fn record(row: &Value, path: &Path) -> Option<Record> {
    let (run, train) = (row.get("run_info")?, row.get("train_info")?);
    let points = train.get("metrics").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let number = |key: &str| train[key].as_f64();
    let last = points.last();
    let rate =
        |key: &str| Some(last?[key].as_f64()? / number("train_time").filter(|seconds| *seconds > 0.0)?);
    let tested = last.and_then(tested);
    let metric = tested.as_ref().map_or("accuracy", |(name, _)| name).to_owned();
    let is_math = row["meta_info"]["dataset_info"].get("gsm8k").is_some() || metric == "accuracy";
    let step = last.and_then(|point| point["step"].as_u64());
    let best = tested.map(|(name, value)| evaluated(step, &name, value));
    let status = match train["status"].as_str() {
        Some("success") => Status::Finished,
        _ => Status::Failed { error: run["error_msg"].as_str().unwrap_or_default().to_owned(), step },
    };
    let name = run["experiment_name"].as_str().map(str::to_owned);
    Some(Record {
        name: name.unwrap_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned()),
        folder: path.to_owned(),
        source: "PEFT".to_owned(),
        status,
        settings: settings(run),
        task: if is_math { TASK } else { "image-gen" }.to_owned(),
        higher_is_better: higher_is_better(&metric),
        metric,
        last: best.clone(),
        best,
        evaluations: points.iter().filter_map(validated).collect(),
        points: points.iter().filter_map(loss).collect(),
        adapter_parameters: train["num_trainable_params"].as_u64(),
        adapter_bytes: train["file_size"].as_u64(),
        steps: step,
        train_seconds: number("train_time"),
        seconds: run["total_time"].as_f64(),
        examples_per_second: rate("train samples"),
        tokens_per_second: rate("train total tokens"),
        peak_memory_mib: number("accelerator_memory_max").map(|bytes| bytes / f64::from(1 << 20)),
        device: row["meta_info"]["system_info"]["accelerator"].as_str().unwrap_or_default().to_owned(),
        results: row.clone(),
        ..Record::default()
    })
}

/// Returns name and value of the test at the end.
fn tested(point: &Value) -> Option<(String, f64)> {
    let found =
        point.as_object()?.iter().find_map(|(key, value)| Some((key.strip_prefix(TESTED)?, value)))?;
    Some((found.0.to_owned(), found.1.as_f64().unwrap_or(f64::NAN)))
}

fn evaluated(step: Option<u64>, metric: &str, value: f64) -> Evaluated {
    let metrics = IndexMap::from([(metric.to_owned(), value)]);
    Evaluated { step: step.unwrap_or(0), epoch: None, metrics }
}

/// Returns an evaluation on the validation rows, whose metric has another name than the test's.
fn validated(point: &Value) -> Option<Evaluated> {
    let (key, value) = point.as_object()?.iter().find(|(key, _)| key.starts_with("valid "))?;
    Some(evaluated(point["step"].as_u64(), key, value.as_f64()?))
}

fn loss(point: &Value) -> Option<LossPoint> {
    // The test repeats the loss of the last step.
    point.get("train time")?;
    Some(LossPoint { step: point["step"].as_u64()?, epoch: f64::NAN, loss: point["train loss"].as_f64()? })
}

/// Returns the settings for which a recipe has keys.
fn settings(run: &Value) -> Map<String, Value> {
    let (train, adapter) = (&run["train_config"], &run["peft_config"]);
    let kind = adapter["peft_type"].as_str().unwrap_or("FULL");
    let all = Method::all();
    let own = all.iter().map(|method| method.name()).find(|name| peft_type(name) == kind);
    let method = own.map_or_else(|| kind.to_lowercase().replace('_', "-"), str::to_owned);
    // Two experiments may differ in what a recipe has no key for.
    let experiment = ("experiment".to_owned(), run["experiment_name"].clone());
    let mut found = Map::from_iter([("adapter.method".to_owned(), Value::from(method)), experiment]);
    let tables = [(train, &TRAINING[..]), (&train["optimizer_kwargs"], &OPTIMIZER), (adapter, &ADAPTER)];
    for (table, keys) in tables {
        let known = keys.iter().filter_map(|(theirs, ours)| Some((*ours, table.get(*theirs)?)));
        found.extend(
            known.filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.to_owned(), value.clone())),
        );
    }
    if let Some(precision) = found.get_mut("train.precision")
        && let Some((_, ours)) = PRECISIONS.iter().find(|(theirs, _)| *theirs == *precision)
    {
        *precision = Value::from(*ours);
    }
    found
}

/// Returns PEFT's word for a method; for one that it does not have, a word of the same kind.
fn peft_type(method: &str) -> String {
    method.replace('-', "").to_uppercase()
}

/// Writes a row for each run: with one run and no `out`, returns it instead; else `out` is a file that ends in `.json`, or a folder of
/// files named after their experiments, as in PEFT's `results/`.
///
/// # Errors
/// When a file cannot be written, or there are several runs and no folder.
pub fn write(records: &[Record], out: Option<&Path>) -> Result<String> {
    let rows: Vec<Value> = records.chunk_by(|a, b| a.folder == b.folder).filter_map(row).collect();
    let is_file = out.is_some_and(|out| out.extension().is_some_and(|ending| ending == "json"));
    match (out, rows.as_slice()) {
        (None, [row]) => return Ok(serde_json::to_string_pretty(row)?),
        (Some(out), [row]) if is_file => {
            files::write_json(out, row)?;
            return Ok(format!("wrote {}", out.display()));
        }
        (Some(out), rows) if !is_file => {
            let name = |row: &Value| {
                row["run_info"]["experiment_name"].as_str().unwrap_or_default().replace('/', "--")
            };
            let mut names: Vec<String> = rows.iter().map(name).collect();
            names.sort();
            if let Some((twice, _)) = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
                let hint = "name a folder above them, below which their paths differ";
                return Err(usage(format!("two runs would be written to `{twice}.json`")).hint(hint).into());
            }
            for row in rows {
                files::write_json(&out.join(format!("{}.json", name(row))), row)?;
            }
            return Ok(format!("wrote {} rows into {}", rows.len(), out.display()));
        }
        _ => {}
    }
    let hint = "name a folder for them with `--out`, or one run";
    Err(usage(format!("expected one run for one row of `--format peft`, found {}", rows.len()))
        .hint(hint)
        .into())
}

/// Returns the row of a run: `scored` are its records, its own first, then those of the tasks it was scored on.
///
/// The test accuracy is that on GSM8K, by the rule closest to PEFT's; a run that was not scored on it has none. PEFT's three figures
/// of memory are all the peak. Packages that did not take part have no version.
fn row(scored: &[Record]) -> Option<Value> {
    let record = scored.first()?;
    let math = scored
        .iter()
        .filter(|record| record.task.starts_with("gsm8k"))
        .find_map(|record| record.best.as_ref());
    let accuracy = math.and_then(|math| {
        let rules = ["gsm8k/metamath", "accuracy"];
        rules.iter().find_map(|rule| math.metrics.get(*rule)).or(math.metrics.values().next())
    });
    let examples = count(record.examples_per_second, record.train_seconds);
    let tested = json!({
        "step": record.steps,
        "test accuracy": accuracy,
        "train loss": record.points.last().map(|point| point.loss),
        "train samples": examples,
        "train total tokens": count(record.tokens_per_second, record.train_seconds),
        "forgetting": null,
    });
    let mut metrics = metrics(record);
    metrics.push(tested);
    let memory = (record.peak_memory_mib.unwrap_or(0.0) * f64::from(1 << 20)).round() as u64;
    let failed = match &record.status {
        Status::Finished => None,
        Status::Failed { error, .. } => Some(error.clone()),
        Status::Stopped | Status::Unfinished => Some(record.status.word().to_owned()),
    };
    let method = record.settings.get("adapter.method").and_then(Value::as_str).unwrap_or_default();
    Some(json!({
        "run_info": {
            "created_at": Times::of(record).started.to_rfc3339(),
            "total_time": record.seconds.or(record.train_seconds).unwrap_or(0.0),
            "experiment_name": format!("{method}/{}", record.name.replace('/', "-")),
            "peft_branch": null,
            "train_config": train_config(record),
            "peft_config": peft_config(record, method),
            "error_msg": failed.clone().unwrap_or_default(),
        },
        "train_info": {
            "accelerator_memory_reserved_avg": memory,
            "accelerator_memory_max": memory,
            "accelerator_memory_reserved_99th": memory,
            "train_time": record.train_seconds.unwrap_or(0.0),
            "file_size": record.adapter_bytes.unwrap_or(0),
            "num_trainable_params": record.trained().unwrap_or(0) + record.head_parameters.unwrap_or(0),
            "num_total_params": null,
            "status": if failed.is_none() { "success" } else { "failed" },
            "metrics": metrics,
        },
        "meta_info": meta_info(record),
    }))
}

/// Returns a count that a rate and its time stand for.
fn count(rate: Option<f64>, seconds: Option<f64>) -> u64 {
    (rate.unwrap_or(0.0) * seconds.unwrap_or(0.0)).round() as u64
}

fn train_config(record: &Record) -> Value {
    let setting = |key: &str| record.settings.get(key).cloned().unwrap_or_default();
    let mut config: Map<String, Value> =
        TRAINING.iter().map(|(theirs, ours)| ((*theirs).to_owned(), setting(ours))).collect();
    let precision = &config["dtype"];
    let theirs =
        PRECISIONS.iter().find(|(_, ours)| *ours == *precision).map_or("float32", |(theirs, _)| theirs);
    let optimizer: Map<String, Value> =
        OPTIMIZER.iter().map(|(theirs, ours)| ((*theirs).to_owned(), setting(ours))).collect();
    let own = json!({
        "dtype": theirs,
        "max_steps": record.steps,
        "batch_size_eval": null,
        "eval_steps": null,
        "compile": false,
        "query_template": null,
        "optimizer_type": "AdamW",
        "optimizer_kwargs": optimizer,
        "use_amp": false,
        "autocast_adapter_dtype": true,
        "generation_kwargs": {},
        "attn_implementation": null,
        "init_kv_cache_prefix": null,
    });
    config.extend(own.as_object().cloned().unwrap_or_default());
    Value::Object(config)
}

/// Returns the settings of the adapter; `null` if the base was trained itself, by which PEFT marks that.
fn peft_config(record: &Record, method: &str) -> Value {
    if record.base_parameters.is_some_and(|count| count > 0) {
        return Value::Null;
    }
    let mut config = Map::from_iter([("peft_type".to_owned(), Value::from(peft_type(method)))]);
    for (key, value) in &record.settings {
        let Some(name) = key.strip_prefix("adapter.").filter(|name| *name != "method") else { continue };
        let name = ADAPTER.iter().find(|(_, ours)| ours == key).map_or(name, |(theirs, _)| theirs);
        config.insert(name.to_owned(), value.clone());
    }
    Value::Object(config)
}

/// Returns the evaluations during the training.
fn metrics(record: &Record) -> Vec<Value> {
    let point = |evaluation: &Evaluated| {
        let loss =
            record.points.iter().rev().find(|point| point.step <= evaluation.step).map(|point| point.loss);
        let mut point = Map::from_iter([
            ("step".to_owned(), evaluation.step.into()),
            ("train loss".to_owned(), json!(loss)),
        ]);
        point.extend(evaluation.metrics.iter().map(|(name, value)| (format!("valid {name}"), json!(value))));
        Value::Object(point)
    };
    record.evaluations.iter().map(point).collect()
}

fn meta_info(record: &Record) -> Value {
    let versions = &record.results["versions"];
    let torch = versions["libtorch"].as_str().and_then(|version| version.split(' ').next());
    json!({
        "model_info": {"sha": record.results["base"]["revision"], "created_at": null},
        "dataset_info": {},
        "package_info": {
            "loraxs-version": versions["loraxs"],
            "transformers-version": null,
            "peft-version": null,
            "datasets-version": null,
            "bitsandbytes-version": null,
            "torch-version": torch,
        },
        "system_info": {"system": "Linux", "accelerator": record.device},
        "pytorch_info": null,
    })
}
