//! Results of `eval` per task: `OUT/results.json` and its table.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Evaluation;
use super::generation::{Record, grouped, scores};
use super::metrics::Score;
use crate::data::Examples;
use crate::data::dataset::Dataset;
use crate::data::prompts::Prompts;
use crate::fault::Result;
use crate::files;
use crate::report::table;
use crate::scoring::Rule;
use crate::scoring::summary::Summary;

/// One task's part of the file.
#[derive(Serialize)]
pub struct TaskResult {
    /// The split.
    pub split: String,
    /// Scores by the names of metrics or rules.
    pub metrics: BTreeMap<String, Score>,
    /// The mean of several metrics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub combined_score: Option<f64>,
    /// Column, its value, rule, score.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, BTreeMap<String, BTreeMap<String, Score>>>,
    /// Generation settings, in Transformers' terms.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<serde_json::Value>,
    /// Examples scored.
    pub count: usize,
    /// Number of unusable rows.
    pub skipped: usize,
    /// Duration.
    pub seconds: f64,
}

impl TaskResult {
    /// Builds the result of an evaluation of these examples.
    pub fn new(evaluation: &Evaluation, split: &str, examples: &Examples) -> Self {
        Self {
            split: split.to_owned(),
            metrics: evaluation.scores.iter().map(|(m, score)| (m.name().to_owned(), *score)).collect(),
            combined_score: evaluation.by_name().get("combined_score").copied(),
            groups: BTreeMap::new(),
            generation: None,
            count: examples.examples.len(),
            skipped: examples.skipped.count,
            seconds: evaluation.seconds,
        }
    }

    /// Builds the result of the answers to these prompts, each judged by the rules.
    pub fn of_answers(
        dataset: &Dataset,
        split: &str,
        (rules, found, records): (&[Rule], &Prompts, &[Record]),
        seconds: f64,
    ) -> Self {
        let named = |all: &[&Record]| {
            let score = |(rule, summary): (Rule, Summary)| {
                (rule.name().to_owned(), Score { value: summary.mean, stderr: summary.stderr })
            };
            scores(all.iter().copied(), rules).into_iter().map(score).collect()
        };
        let group = |column: &String| {
            let groups = grouped(records, &found.prompts, column);
            let scored = groups.into_iter().map(|(value, records)| (value, named(&records))).collect();
            (column.clone(), scored)
        };
        Self {
            split: split.to_owned(),
            metrics: named(&records.iter().collect::<Vec<_>>()),
            combined_score: None,
            groups: dataset.group_by.iter().map(group).collect(),
            generation: None,
            count: records.len(),
            skipped: found.skipped.count,
            seconds,
        }
    }
}

/// Writes the results of these tasks into `out`; in a run's own folder, those of other tasks are kept.
///
/// # Errors
/// When the file cannot be written.
pub fn write_results(results: &BTreeMap<String, TaskResult>, out: &Path, of_run: bool) -> Result<()> {
    let path = out.join("results.json");
    let mut all: BTreeMap<String, serde_json::Value> = match of_run && path.exists() {
        true => files::read_json(&path).unwrap_or_else(|error| {
            tracing::warn!("the results of other tasks are lost: {error:#}");
            BTreeMap::new()
        }),
        false => BTreeMap::new(),
    };
    for (task, result) in results {
        all.insert(task.clone(), serde_json::to_value(result)?);
    }
    files::write_json(&path, &all)
}

/// Formats the results as a table.
pub fn results_table(results: &BTreeMap<String, TaskResult>) -> String {
    let mut rows = Vec::new();
    for (task, result) in results {
        for (metric, score) in &result.metrics {
            rows.push(vec![
                task.clone(),
                result.split.clone(),
                metric.clone(),
                format!("{:.4}", score.value),
                format!("{:.4}", score.stderr),
                result.count.to_string(),
                format!("{:.1}", result.seconds),
            ]);
        }
        if let Some(combined) = result.combined_score {
            let empty = String::new;
            rows.push(vec![
                task.clone(),
                result.split.clone(),
                "combined_score".into(),
                format!("{combined:.4}"),
                empty(),
                result.count.to_string(),
                empty(),
            ]);
        }
    }
    table(&["task", "split", "metric", "value", "stderr", "count", "seconds"], &rows)
}
