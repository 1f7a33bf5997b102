//! Results and samples in the layout of lm-evaluation-harness 0.4, readable by its tools and others.
//!
//! Keys follow `lm_eval/loggers/evaluation_tracker.py` and `lm_eval/evaluator.py`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::generation::{AnswerRecord, PromptSet, scores};
use crate::fault::Result;
use crate::files;
use crate::report::local_time;

/// Longest name, in bytes, to which a time can be appended; file systems allow 255.
const LONGEST_NAME: usize = 200;

/// The answers to a task.
#[derive(Debug)]
pub struct Scored<'a> {
    /// What was asked.
    pub task: &'a PromptSet<'a>,
    /// One per prompt, in their order.
    pub records: &'a [AnswerRecord],
    /// Solved examples before each prompt.
    pub shots: usize,
    /// Generation arguments: `until`, `max_gen_toks`, `do_sample`.
    pub arguments: &'a Value,
    /// Time that the answers took.
    pub seconds: f64,
}

/// Writes `OUT/MODEL/results_TIME.json` and `samples_TASK_TIME.jsonl`; returns the folder.
///
/// # Errors
/// When a file cannot be written.
pub fn write(out: &Path, model: &str, scored: &Scored<'_>) -> Result<PathBuf> {
    let folder = out.join(end_of(&model.replace(|c: char| !(c.is_alphanumeric() || "._-".contains(c)), "_")));
    let now = local_time();
    let time = now.format("%Y-%m-%dT%H-%M-%S%.6f").to_string();
    let (name, count) = (&plain(scored.task.name), scored.records.len());
    samples(&folder.join(format!("samples_{}_{time}.jsonl", end_of(name))), scored)?;
    let config = json!({"task": name, "num_fewshot": scored.shots, "generation_kwargs": scored.arguments});
    let whole = json!({
        "results": {name: result(scored, name)},
        "group_subtasks": {name: []},
        "configs": {name: config},
        "versions": {name: 1.0},
        "n-shot": {name: scored.shots},
        "higher_is_better": {name: {"exact_match": true}},
        "n-samples": {name: {"original": count, "effective": count}},
        "config": {"model": "loraxs", "model_args": {"pretrained": model}, "limit": null},
        "git_hash": null,
        "date": now.timestamp_micros() as f64 / 1e6,
        "lm_eval_version": null,
        "model_name": model,
        "total_evaluation_time_seconds": scored.seconds.to_string(),
    });
    files::write_json(&folder.join(format!("results_{time}.json")), &whole)?;
    Ok(folder)
}

/// Returns a name without slashes, which would make folders of it.
fn plain(name: &str) -> String {
    name.replace('/', "_")
}

/// Returns the end of a name that is too long for a file with a time in it.
fn end_of(name: &str) -> &str {
    let start = (0..name.len()).find(|&at| name.is_char_boundary(at) && name.len() - at <= LONGEST_NAME);
    &name[start.unwrap_or(0)..]
}

fn result(scored: &Scored<'_>, name: &str) -> Value {
    let mut found = Map::new();
    found.insert("alias".into(), json!(name));
    for (rule, score) in scores(scored.records.iter(), scored.task.rules) {
        let key = rule.metric_key();
        found.insert(key.replacen(',', "_stderr,", 1), json!(score.stderr));
        found.insert(key, json!(score.value));
    }
    found.insert("sample_len".into(), json!(scored.records.len()));
    Value::Object(found)
}

/// Writes one line for each prompt and rule.
fn samples(path: &Path, scored: &Scored<'_>) -> Result<()> {
    files::write_atomically(path, |out| {
        for (prompt, record) in scored.task.prompts.iter().zip(scored.records) {
            let doc = Value::Object(prompt.columns.clone());
            let hashes = [serde_json::to_string_pretty(&doc)?, record.prompt.clone(), record.gold.clone()];
            let [doc_hash, prompt_hash, target_hash] = hashes.map(|text| sha256(&text));
            for rule in scored.task.rules {
                let Some(judged) = record.verdicts.get(rule.name()) else { continue };
                let key = rule.metric_key();
                let extracted = judged.extracted.as_deref().unwrap_or("[invalid]");
                let line = json!({
                    "doc_id": record.index,
                    "doc": doc,
                    "target": record.gold,
                    "arguments": {"gen_args_0": {"arg_0": record.prompt, "arg_1": scored.arguments}},
                    "resps": [[record.completion]],
                    "filtered_resps": [extracted],
                    "filter": key.split_once(',').map_or("none", |(_, filter)| filter),
                    "metrics": ["exact_match"],
                    "doc_hash": doc_hash,
                    "prompt_hash": prompt_hash,
                    "target_hash": target_hash,
                    "exact_match": f64::from(u8::from(judged.correct)),
                });
                writeln!(out, "{line}")?;
            }
        }
        Ok(())
    })
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
