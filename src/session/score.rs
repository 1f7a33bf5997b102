//! Scores of a subject on data sets of the catalog: for `eval`, and for `train` once its run is done.

pub mod completions;
mod generation;
mod language;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::environment::{Environment, use_precision};
use super::facts::agree_on_values;
use super::fit::{check_fit, fitting};
use super::next::after_eval;
use super::precedence::ScoreSettings;
use super::run_folder::{EVAL, RESULTS};
use super::sources;
use super::subject::Subject;
use crate::adapters::file::AdapterFile;
use crate::data::Examples;
use crate::data::dataset::Dataset;
use crate::data::entry;
use crate::data::tokenize::Tokenizer;
use crate::eval::predictions::{submission_name, submit};
use crate::eval::results::{TaskResult, classes_table, results_table, write_results};
use crate::eval::{Scoring, evaluate};
use crate::fault::Result;
use crate::files;
use crate::models::HeadShape;
use crate::report::say;
use crate::spec::request::ScoreRequest;
use crate::train::Ending;

/// Results by the names of the data sets; `None` if interrupted.
type Results = Option<BTreeMap<String, TaskResult>>;

/// Scores the subject on every data set asked for; writes and prints results and predictions.
/// Fails when a data set or the folder for the results cannot be used, or a data set does not fit the
/// subject.
pub fn score(place: &Environment, subject: &Subject, request: &ScoreRequest) -> Result<Ending> {
    let settings = ScoreSettings::new(request, subject, &place.devices)?;
    files::refuse_file(&settings.out)?;
    let base = &subject.base.base;
    let tokenizer = Tokenizer::load(&base.folder)?;
    check_fit(base, &tokenizer, settings.max_length)?;
    let scorer = Scorer { place, subject, request, settings, tokenizer };
    scorer.agree()?;
    let results = match subject.head()? {
        Some(head) => scorer.classification(head)?,
        None => scorer.language()?,
    };
    let ScoreSettings { out, of_run, .. } = &scorer.settings;
    let Some(results) = results else {
        say("interrupted: run the same command again to continue");
        return Ok(Ending::Interrupted);
    };
    place.world.on_first(|| write_and_show(&results, out, *of_run))?;
    let task = results.keys().next().map(String::as_str).unwrap_or_default();
    after_eval(&request.subject, out, task).iter().for_each(|next| say(next));
    Ok(Ending::Finished)
}

/// Writes and prints results.
/// Fails when the folder cannot be written.
fn write_and_show(results: &BTreeMap<String, TaskResult>, out: &Path, of_run: bool) -> Result<()> {
    write_results(results, out, of_run)?;
    if results.values().any(|result| !result.metrics.is_empty()) {
        say(&results_table(results));
        classes_table(results).iter().for_each(|table| say(table));
    }
    say(&format!("wrote {}", out.display()));
    Ok(())
}

/// Returns true if the run in `out` has scores on all these data sets.
/// Fails when they cannot be read.
pub fn has_scores(out: &Path, tasks: &[String]) -> Result<bool> {
    let results = out.join(EVAL).join(RESULTS);
    let found: Value = if results.exists() { files::read_json(&results)? } else { Value::Null };
    Ok(tasks.iter().all(|task| found.get(task).is_some()))
}

/// A subject with everything to score it.
struct Scorer<'a> {
    place: &'a Environment,
    subject: &'a Subject,
    request: &'a ScoreRequest,
    settings: ScoreSettings,
    tokenizer: Tokenizer,
}

impl Scorer<'_> {
    /// Refuses processes that would score otherwise than the first.
    fn agree(&self) -> Result<()> {
        let Self { place, subject, settings, .. } = self;
        if place.world.is_alone() {
            return Ok(());
        }
        let asked = json!({
            "base": subject.base.hash,
            "config.json of the base": subject.base.config_hash,
            "adapter": subject.adapter.as_ref().map(AdapterFile::hash).transpose()?,
            "--task": settings.tasks,
            "precision": settings.precision,
            "--batch-size": settings.batch_size,
        });
        agree_on_values(&place.world, "another evaluation", &asked)
    }

    /// Scores a classifier, with its predictions for every example.
    fn classification(&self, head: HeadShape) -> Result<Results> {
        let Self { place, subject, request, settings, .. } = self;
        let labels = subject.labels(Some(head));
        let datasets: Vec<(Dataset, Vec<usize>)> = settings
            .tasks
            .iter()
            .map(|task| fitting(sources::open(place, task)?, head, &labels))
            .collect::<Result<_>>()?;
        if request.predict {
            let named =
                |(dataset, _): &(Dataset, _)| submission_name(dataset, settings.split(dataset)).map(drop);
            datasets.iter().try_for_each(named)?;
        }
        let (model, _trained) = subject.build(place, use_precision(settings.precision)?, Some(head))?;
        let model = model.classifier()?;
        let mut results = BTreeMap::new();
        for (dataset, order) in &datasets {
            let examples = self.examples(dataset)?;
            let how = Scoring {
                metrics: &dataset.task.metrics(),
                labels: dataset.task.labels(),
                outputs: order,
                batch_size: settings.batch_size,
                world: &place.world,
            };
            let evaluation = evaluate(model, 0, &examples.examples, how)?;
            let (out, split) = (&settings.out, settings.split(dataset));
            place.world.on_first(|| {
                files::hold_for_good(out)?;
                let file = out.join("predictions").join(format!("{}.jsonl", dataset.name));
                files::write_json_lines(&file, &evaluation.predictions)?;
                if request.predict {
                    let path = submit(dataset, split, &evaluation.predictions, out)?;
                    say(&format!("wrote {}", path.display()));
                }
                Ok(())
            })?;
            results.insert(dataset.name.clone(), TaskResult::new(&evaluation, split, &examples));
        }
        Ok(Some(results))
    }

    /// Reads the examples of a data set.
    fn examples(&self, dataset: &Dataset) -> Result<Examples> {
        let Self { place, subject, request, settings, tokenizer } = self;
        let data = subject.run.as_ref().map(|(_, recipe)| &recipe.data);
        let data = data.filter(|data| data.names().iter().any(|name| entry::shown(name) == dataset.name));
        let split = settings.split(dataset);
        let limits = (settings.max_length, request.limit);
        let found =
            place.world.agreed(sources::examples(place, (dataset, split), data, tokenizer, limits))?;
        let rows = json!({ "rows": found.hash, "number of rows": found.examples.len() });
        agree_on_values(&place.world, "other data", &rows)?;
        Ok(found)
    }
}
