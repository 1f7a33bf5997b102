//! `loraxs eval`: metrics with standard errors, predictions, GLUE submissions.

use std::collections::BTreeMap;

use super::{Outcome, eval_language};
use crate::cli::{EvalArgs, Global};
use crate::data::dataset::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::eval::predictions::{submission_name, submit, write_predictions};
use crate::eval::results::{TaskResult, write_results};
use crate::eval::{Scoring, evaluate};
use crate::fault::Result;
use crate::files;
use crate::session::fit::{check_fit, fitting, metrics};
use crate::session::request::Request;
use crate::session::subject::Subject;
use crate::session::use_precision;
use crate::session::workplace::Workplace;

/// Scores every task and writes results and predictions.
///
/// # Errors
/// When the subject, a data set or the folder for the results cannot be used.
pub fn run(global: &Global, args: &EvalArgs) -> Result<Outcome> {
    let place = Workplace::open(global)?;
    let subject = Subject::open(&place, &args.subject, &args.set)?;
    let request = Request::new(args, &subject, place.device);
    files::refuse_file(&request.out)?;
    if subject.base.base.config.is_decoder() {
        return eval_language::run(&place, &subject, &request, args);
    }
    let tokenizer = Tokenizer::load(&subject.base.base.folder)?;
    check_fit(&subject.base.base, &tokenizer, request.max_length)?;
    let outputs = subject.head_outputs()?;
    let labels = subject.labels(Some(outputs));
    let datasets: Vec<(&Dataset, Vec<usize>)> =
        request.tasks.iter().map(|task| fitting(&place, task, outputs, &labels)).collect::<Result<_>>()?;
    if args.predict {
        datasets.iter().try_for_each(|(dataset, _)| submission_name(dataset, &request.split).map(drop))?;
    }
    let (model, _trained) = subject.build(&place, use_precision(request.precision)?, Some(outputs))?;
    let model = model.classifier()?;
    let mut results = BTreeMap::new();
    for (dataset, order) in datasets {
        let examples = place.split(dataset, &request.split, &tokenizer, request.max_length, args.limit)?;
        let metrics = metrics(dataset)?;
        let how = Scoring { metrics: &metrics, outputs: &order, batch_size: request.batch_size };
        let evaluation = evaluate(model, 0, &examples.examples, how)?;
        files::hold_for_good(&request.out)?;
        let file = request.out.join("predictions").join(format!("{}.jsonl", dataset.name));
        write_predictions(&file, &evaluation.predictions)?;
        if args.predict {
            submit(dataset, &request.split, &evaluation.predictions, &request.out)?;
        }
        let result = TaskResult::new(&evaluation, &request.split, &examples);
        results.insert(dataset.name.clone(), result);
    }
    write_results(&results, &request.out, request.of_run)?;
    Ok(Outcome::Done)
}
