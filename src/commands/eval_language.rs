//! `loraxs eval` of a language model: the loss of responses, and the answers to prompts.

use std::collections::{BTreeMap, BTreeSet};

use super::Outcome;
use super::decoding::decoding;
use super::eval_generation::Scoring;
use crate::cli::EvalArgs;
use crate::data::TaskKind;
use crate::data::dataset::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::eval::language::evaluate;
use crate::eval::results::{TaskResult, write_results};
use crate::fault::{Result, usage};
use crate::generate::Settings as Generation;
use crate::generate::config::Asked;
use crate::report::say;
use crate::session::fit::check_fit;
use crate::session::request::Request;
use crate::session::subject::Subject;
use crate::session::use_precision;
use crate::session::workplace::Workplace;

/// Scores every task and writes the results.
///
/// # Errors
/// When the subject, a data set or the folder for the results cannot be used.
pub fn run(place: &Workplace, subject: &Subject, request: &Request, args: &EvalArgs) -> Result<Outcome> {
    let base = &subject.base.base;
    let tokenizer = Tokenizer::load(&base.folder)?;
    check_fit(base, &tokenizer, request.max_length)?;
    if args.predict {
        return Err(usage("`--predict` writes a GLUE submission, and the base is a language model")
            .hint("leave it out: answers to prompts are written in any case")
            .into());
    }
    let datasets: Vec<&Dataset> =
        request.tasks.iter().map(|task| fitting(place, task)).collect::<Result<_>>()?;
    let (continued, read): (Vec<&Dataset>, Vec<&Dataset>) =
        datasets.into_iter().partition(|dataset| dataset.task == TaskKind::Generation);
    let of = |dataset: &&Dataset| {
        let asked = Asked::read(&base.folder, base.config.vocabulary)?;
        decoding(&args.generation, dataset, &tokenizer, &asked)
    };
    let (generations, remarks): (Vec<_>, Vec<_>) =
        continued.iter().map(of).collect::<Result<Vec<_>>>()?.into_iter().unzip();
    for remark in remarks.into_iter().flatten().collect::<BTreeSet<String>>() {
        tracing::warn!("{remark}");
    }
    let (mut model, _trained) = subject.build(place, use_precision(request.precision)?, None)?;
    let mut results = BTreeMap::new();
    for dataset in read {
        let examples = place.split(dataset, &request.split, &tokenizer, request.max_length, args.limit)?;
        let tokens = request.batch_size * request.max_length;
        let evaluation = evaluate(model.language()?, 0, &examples.examples, tokens)?;
        results.insert(dataset.name.clone(), TaskResult::new(&evaluation, &request.split, &examples));
    }
    if !continued.is_empty() {
        model.merge_adapters();
        model.pack();
    }
    let scoring = Scoring { place, subject, request, args, tokenizer: &tokenizer };
    for (dataset, generation) in continued.into_iter().zip(generations) {
        let generation = Generation { max_slots: args.batch_size.unwrap_or(0), ..generation };
        let Some(result) = scoring.run((dataset, &generation), model.language()?)? else {
            say("interrupted: the same command goes on with the prompts that are left");
            return Ok(Outcome::Interrupted);
        };
        results.insert(dataset.name.clone(), result);
    }
    write_results(&results, &request.out, request.of_run)?;
    Ok(Outcome::Done)
}

/// Returns the data set of this name, if a language model can be scored on it.
fn fitting<'a>(place: &'a Workplace, task: &str) -> Result<&'a Dataset> {
    let dataset = place.catalog.get(task)?;
    match dataset.task {
        TaskKind::Instruction | TaskKind::Chat | TaskKind::Generation => Ok(dataset),
        other => {
            let found = format!("{other:?}").to_lowercase();
            Err(usage(format!("data set `{task}` is for `{found}`, and the base is a language model"))
                .hint("score it on data sets for `instruction`, `chat` or `generation`")
                .into())
        }
    }
}
