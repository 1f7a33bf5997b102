//! `loraxs eval`: metrics with standard errors, predictions, GLUE submissions.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{Outcome, eval_language};
use crate::cli::{EvalArgs, Global};
use crate::data::catalog::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::eval::predictions::{submission_name, submit, write_predictions};
use crate::eval::results::{TaskResult, write_results};
use crate::eval::{Scoring, evaluate};
use crate::fault::Result;
use crate::files;
use crate::models::Config;
use crate::session::fit::{check_fit, fitting, metrics};
use crate::session::subject::Subject;
use crate::session::use_precision;
use crate::session::workplace::Workplace;
use crate::spec::Precision;

/// Examples in one pass where nothing else is said.
const BATCH_SIZE: usize = 64;
/// Tokens of a sequence where nothing else is said.
const MAX_LENGTH: usize = 128;

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
    files::refuse_file(&settings.out)?;
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
    let (model, _trained) = subject.build(&place, use_precision(settings.precision)?, outputs)?;
    let model = model.classifier()?;
    let mut results = BTreeMap::new();
    for (dataset, order) in datasets {
        let examples = place.split(dataset, &settings.split, &tokenizer, settings.max_length, args.limit)?;
        let metrics = metrics(dataset)?;
        let how = Scoring { metrics: &metrics, outputs: &order, batch_size: settings.batch_size };
        let evaluation = evaluate(model, 0, &examples.examples, how)?;
        files::hold_for_good(&settings.out)?;
        let file = settings.out.join("predictions").join(format!("{}.jsonl", dataset.name));
        write_predictions(&file, &evaluation.predictions)?;
        if args.predict {
            submit(dataset, &settings.split, &evaluation.predictions, &settings.out)?;
        }
        let result = TaskResult::new(&evaluation, &settings.split, &examples);
        results.insert(dataset.name.clone(), result);
    }
    write_results(&results, &settings.out, settings.of_run)?;
    Ok(Outcome::Done)
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
