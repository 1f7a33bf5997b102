//! `loraxs eval`: metrics with standard errors, predictions, GLUE submissions.

use super::{Outcome, environment};
use crate::cli::{EvalArgs, Global};
use crate::fault::Result;
use crate::session::score::completions::rescore;
use crate::session::score::score;
use crate::session::subject::Subject;

/// Scores every task and writes results and predictions.
/// Fails when the subject, a data set or the folder for the results cannot be used.
pub fn run(global: &Global, args: &EvalArgs) -> Result<Outcome> {
    let place = environment(global, args.subject.run.as_deref())?;
    if let Some(file) = &args.completions {
        return Ok(rescore(&place, args, file)?.into());
    }
    let subject = Subject::open(&place, &args.subject, &args.set)?;
    Ok(score(&place, &subject, args)?.into())
}
