//! Results of `eval` per task: `OUT/results.json` and its table.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::Evaluation;
use super::averages::ClassScores;
use super::generation::{AnswerRecord, grouped, scores};
use super::metrics::Score;
use super::outcomes::ClassReport;
use crate::data::prompts::Prompts;
use crate::data::{Examples, Truncation};
use crate::fault::Result;
use crate::files;
use crate::report::table;
use crate::scoring::Rule;

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
    /// Scores class by class.
    #[serde(flatten)]
    pub report: Option<ClassReport>,
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
    /// What was cut off the rows; nothing off prompts.
    pub truncation: Truncation,
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
            report: evaluation.report.clone(),
            groups: BTreeMap::new(),
            generation: None,
            count: examples.examples.len(),
            skipped: examples.skipped.count,
            truncation: examples.truncation,
            seconds: evaluation.seconds,
        }
    }

    /// Builds the result of the answers to these prompts, each judged by the rules, also by the values of some columns.
    pub fn of_answers(
        group_by: &[String],
        split: &str,
        (rules, found, records): (&[Rule], &Prompts, &[AnswerRecord]),
        seconds: f64,
    ) -> Self {
        let named = |all: &[&AnswerRecord]| {
            let scores = scores(all.iter().copied(), rules).into_iter();
            scores.map(|(rule, score)| (rule.name().to_owned(), score)).collect()
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
            report: None,
            groups: group_by.iter().map(group).collect(),
            generation: None,
            count: records.len(),
            skipped: found.skipped.count,
            truncation: Truncation { longest: found.longest(), ..Truncation::default() },
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
            tracing::warn!("could not keep the results of other tasks: {error:#}");
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
        let mut row = |metric: &str, value: f64, stderr: String, seconds: String| {
            let [task, split, count] = [task.clone(), result.split.clone(), result.count.to_string()];
            rows.push(vec![task, split, metric.to_owned(), format!("{value:.4}"), stderr, count, seconds]);
        };
        for (metric, score) in &result.metrics {
            row(metric, score.value, format!("{:.4}", score.stderr), format!("{:.1}", result.seconds));
        }
        if let Some(combined) = result.combined_score {
            row("combined_score", combined, String::new(), String::new());
        }
    }
    table(&["task", "split", "metric", "value", "stderr", "count", "seconds"], &rows)
}

/// Most classes that are shown one by one.
const MOST_CLASSES: usize = 10;

/// Formats the scores of the classes of each task that has few, with what is predicted instead of each.
pub fn classes_table(results: &BTreeMap<String, TaskResult>) -> Option<String> {
    let mut tables = Vec::new();
    for (task, result) in results {
        let Some(report) = result.report.as_ref().filter(|report| report.classes.len() <= MOST_CLASSES)
        else {
            continue;
        };
        let mut head = vec![task.as_str(), "precision", "recall", "f1", "support"];
        let predicted: Vec<String> =
            report.classes.iter().map(|class| format!("as {}", class.label)).collect();
        if report.confusion_matrix.is_some() {
            head.extend(predicted.iter().map(String::as_str));
        }
        let row = |(place, class): (usize, &ClassScores)| {
            let scores = [class.precision, class.recall, class.f1].map(|score| format!("{score:.4}"));
            let counts = report.confusion_matrix.as_ref().and_then(|rows| rows.get(place));
            let counts = counts.into_iter().flatten().map(u64::to_string);
            let own = [class.label.clone()].into_iter().chain(scores).chain([class.support.to_string()]);
            own.chain(counts).collect()
        };
        let rows: Vec<Vec<String>> = report.classes.iter().enumerate().map(row).collect();
        tables.push(table(&head, &rows));
    }
    (!tables.is_empty()).then(|| tables.join("\n"))
}
