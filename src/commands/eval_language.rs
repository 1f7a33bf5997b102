//! `loraxs eval` of a language model: the loss of responses.

use std::collections::BTreeMap;

use super::eval::{Settings, TaskResult, write_results};
use super::open::{Workplace, check_fit, kind};
use super::subject::Subject;
use crate::cli::EvalArgs;
use crate::data::TaskKind;
use crate::data::catalog::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::eval::language::evaluate;
use crate::fault::{Result, usage};

/// Scores every task and writes the results.
///
/// # Errors
/// When the subject, a data set or the folder for the results cannot be used.
pub fn run(place: &Workplace, subject: &Subject, settings: &Settings, args: &EvalArgs) -> Result<()> {
    let base = &subject.base.base;
    let tokenizer = Tokenizer::load(&base.folder)?;
    check_fit(base, &tokenizer, settings.max_length)?;
    let datasets: Vec<&Dataset> =
        settings.tasks.iter().map(|task| fitting(place, task)).collect::<Result<_>>()?;
    let (model, _trained) = subject.build(place, kind(settings.precision)?, 0)?;
    let model = model.language()?;
    let mut results = BTreeMap::new();
    for dataset in datasets {
        let examples = place.split(dataset, &settings.split, &tokenizer, settings.max_length, args.limit)?;
        let tokens = settings.batch_size * settings.max_length;
        let evaluation = evaluate(model, 0, &examples.examples, tokens)?;
        results.insert(dataset.name.clone(), TaskResult::new(&evaluation, &settings.split, &examples));
    }
    write_results(&results, &settings.out)
}

/// The data set of this name, which a language model can be scored on.
fn fitting<'a>(place: &'a Workplace, task: &str) -> Result<&'a Dataset> {
    let dataset = place.catalog.get(task)?;
    match dataset.task {
        TaskKind::Instruction | TaskKind::Chat => Ok(dataset),
        other => {
            let found = format!("{other:?}").to_lowercase();
            Err(usage(format!("data set `{task}` is for `{found}`, and the base is a language model"))
                .hint("score it on data sets for `instruction` or `chat`")
                .into())
        }
    }
}
