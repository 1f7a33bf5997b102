//! `loraxs eval`: metrics with standard errors, predictions, GLUE submissions.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::open::{Workplace, check_fit, classes, kind, metrics};
use super::subject::Subject;
use super::{Outcome, eval_language};
use crate::cli::{EvalArgs, Global};
use crate::data::catalog::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, TaskKind};
use crate::eval::metrics::Score;
use crate::eval::predictions::{Submission, write_predictions, write_submission};
use crate::eval::{Evaluation, Scoring, evaluate};
use crate::fault::{Result, usage};
use crate::files;
use crate::models::Config;
use crate::recipe::Precision;
use crate::report::{say, table};

/// Examples in one pass where nothing else is said.
const BATCH_SIZE: usize = 64;
/// Tokens of a sequence where nothing else is said.
const MAX_LENGTH: usize = 128;

/// One task's part of `OUT/results.json`.
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
    /// Examples scored.
    pub count: usize,
    /// Rows that cannot be used.
    pub skipped: usize,
    /// Time that it took.
    pub seconds: f64,
}

/// Settings that the command line, the run or a default decides.
pub struct Settings {
    /// The data sets to score.
    pub tasks: Vec<String>,
    /// Their split.
    pub split: String,
    /// Arithmetic of the base.
    pub precision: Precision,
    /// Examples in one pass.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub max_length: usize,
    /// Folder of the results.
    pub out: PathBuf,
    /// Whether that is the run's own folder.
    pub of_run: bool,
}

/// Scores every task and writes results and predictions.
///
/// # Errors
/// When the subject, a data set or the folder for the results cannot be used.
pub fn run(global: &Global, args: &EvalArgs) -> Result<Outcome> {
    let place = Workplace::open(global)?;
    let subject = Subject::open(&place, &args.subject, &args.set)?;
    let settings = settings(args, &subject);
    if matches!(subject.base.base.config, Config::Decoder(_)) {
        return eval_language::run(&place, &subject, &settings, args);
    }
    let tokenizer = Tokenizer::load(&subject.base.base.folder)?;
    check_fit(&subject.base.base, &tokenizer, settings.max_length)?;
    let outputs = subject.classes()?;
    let labels = subject.labels(outputs);
    let datasets: Vec<(&Dataset, Vec<usize>)> =
        settings.tasks.iter().map(|task| fitting(&place, task, outputs, &labels)).collect::<Result<_>>()?;
    if args.predict {
        datasets.iter().try_for_each(|(dataset, _)| submission_name(dataset, &settings.split).map(drop))?;
    }
    let (model, _trained) = subject.build(&place, kind(settings.precision)?, outputs)?;
    let model = model.classifier()?;
    let mut results = BTreeMap::new();
    for (dataset, order) in datasets {
        let examples = place.split(dataset, &settings.split, &tokenizer, settings.max_length, args.limit)?;
        let metrics = metrics(dataset)?;
        let how = Scoring { metrics: &metrics, outputs: &order, batch_size: settings.batch_size };
        let evaluation = evaluate(model, 0, &examples.examples, how)?;
        let file = settings.out.join("predictions").join(format!("{}.jsonl", dataset.name));
        write_predictions(&file, &evaluation.predictions)?;
        if args.predict {
            submit(dataset, &settings.split, &evaluation, &settings.out)?;
        }
        let result = TaskResult::new(&evaluation, &settings.split, &examples);
        results.insert(dataset.name.clone(), result);
    }
    write_results(&results, &settings)?;
    Ok(Outcome::Done)
}

/// Writes and shows the results of all tasks; those of other tasks stay in the folder of a run.
///
/// # Errors
/// When the file cannot be written.
pub fn write_results(results: &BTreeMap<String, TaskResult>, settings: &Settings) -> Result<()> {
    let out = &settings.out;
    let path = out.join("results.json");
    let mut all: BTreeMap<String, serde_json::Value> = match settings.of_run && path.exists() {
        true => files::read_json(&path).unwrap_or_default(),
        false => BTreeMap::new(),
    };
    for (task, result) in results {
        all.insert(task.clone(), serde_json::to_value(result)?);
    }
    files::write_json(&path, &all)?;
    say(&results_table(results));
    say(&format!("wrote {}", out.display()));
    Ok(())
}

fn settings(args: &EvalArgs, subject: &Subject) -> Settings {
    let recipe = subject.recipe.as_ref();
    let trained_length = subject.adapter.as_ref().map(|a| a.config.max_length).filter(|&length| length > 0);
    let longest = usize::try_from(subject.base.base.config.longest_sequence()).unwrap_or(MAX_LENGTH);
    // Each split has a folder of its own, so that one does not take another's place.
    let other = |split: &&String| recipe.is_none_or(|recipe| recipe.data.validation != **split);
    let own_out = args.subject.run.as_ref().map(|run| match args.split.as_ref().filter(other) {
        Some(split) => run.join("eval").join(split),
        None => run.join("eval"),
    });
    Settings {
        of_run: args.out.is_none() && own_out.is_some(),
        tasks: match (&recipe, args.task.as_slice()) {
            (Some(recipe), []) => vec![recipe.data.dataset.clone()],
            (_, tasks) => tasks.to_vec(),
        },
        split: args
            .split
            .clone()
            .or(recipe.map(|recipe| recipe.data.validation.clone()))
            .unwrap_or_else(|| "validation".into()),
        precision: args.precision.or(recipe.map(|recipe| recipe.train.precision)).unwrap_or(Precision::Fp32),
        batch_size: args.batch_size.unwrap_or(BATCH_SIZE),
        max_length: args
            .max_length
            .or(recipe.map(|recipe| recipe.data.max_length))
            .or(trained_length)
            .unwrap_or(MAX_LENGTH.min(longest)),
        out: args.out.clone().or(own_out).unwrap_or_else(|| PathBuf::from("eval")),
    }
}

/// The data set of this name, whose labels fit the head, and the order in which the head's outputs mean them.
fn fitting<'a>(
    place: &'a Workplace,
    task: &str,
    outputs: i64,
    labels: &[String],
) -> Result<(&'a Dataset, Vec<usize>)> {
    let dataset = place.catalog.get(task)?;
    let wanted = classes(dataset)?;
    if wanted != outputs {
        return Err(usage(format!("`{task}` has {wanted} outputs, the model's head has {outputs}"))
            .hint("score the task that the head was trained on")
            .into());
    }
    let order = output_order(labels, &dataset.labels);
    if order.as_ref().is_some_and(|order| !order.is_sorted()) {
        tracing::info!("the head's classes are {labels:?}: its outputs are put into the order of `{task}`");
    }
    let nameless = || labels.iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"));
    if order.is_none() && !nameless() {
        let wanted = &dataset.labels;
        tracing::warn!(
            "the head's classes {labels:?} are taken as those of `{task}`, {wanted:?}, in this order"
        );
    }
    Ok((dataset, order.unwrap_or_default()))
}

/// For each name of `wanted` its place in `labels`, upper and lower case alike; nothing where one has none of its own.
fn output_order(labels: &[String], wanted: &[String]) -> Option<Vec<usize>> {
    let place = |name: &String| labels.iter().position(|label| label.to_lowercase() == name.to_lowercase());
    let order: Vec<usize> = wanted.iter().map(place).collect::<Option<_>>()?;
    let distinct: BTreeSet<&usize> = order.iter().collect();
    (distinct.len() == labels.len()).then_some(order)
}

impl TaskResult {
    /// The result of an evaluation of these examples.
    pub fn new(evaluation: &Evaluation, split: &str, examples: &Examples) -> Self {
        Self {
            split: split.to_owned(),
            metrics: evaluation.scores.iter().map(|(m, score)| (m.name().to_owned(), *score)).collect(),
            combined_score: evaluation.by_name().get("combined_score").copied(),
            groups: BTreeMap::new(),
            count: examples.examples.len(),
            skipped: examples.skipped.count,
            seconds: evaluation.seconds,
        }
    }
}

/// The name of the submission file for a split.
fn submission_name<'a>(dataset: &'a Dataset, split: &str) -> Result<&'a str> {
    dataset.submission.get(split).map(String::as_str).ok_or_else(|| {
        let known: Vec<String> = dataset.submission.keys().map(|split| format!("`{split}`")).collect();
        usage(format!("`{}` has no submission file for the split `{split}`", dataset.name))
            .hint(if known.is_empty() {
                "only data sets with a `submission` in the catalog have one".to_owned()
            } else {
                format!("choose `--split` among {}", known.join(", "))
            })
            .into()
    })
}

/// Writes the predictions as GLUE wants them.
fn submit(dataset: &Dataset, split: &str, evaluation: &Evaluation, out: &Path) -> Result<()> {
    let name = submission_name(dataset, split)?;
    let style = match dataset.task {
        TaskKind::Regression => Submission::Numbers { low: 0.0, high: 5.0 },
        _ if dataset.submission_names => Submission::Names(&dataset.labels),
        _ => Submission::Classes,
    };
    let path = out.join(name);
    write_submission(&path, &evaluation.predictions, style)?;
    say(&format!("wrote {}", path.display()));
    Ok(())
}

fn results_table(results: &BTreeMap<String, TaskResult>) -> String {
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
