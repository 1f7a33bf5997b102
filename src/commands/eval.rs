//! `loraxs eval`: metrics with standard errors, predictions, GLUE submissions.

use super::{Outcome, environment};
use crate::cli::Global;
use crate::fault::Result;
use crate::session::score::completions::rescore;
use crate::session::score::score;
use crate::session::subject::Subject;
use crate::spec::request::ScoreRequest;

/// Scores every task and writes results and predictions.
/// Fails when the subject, a data set or the folder for the results cannot be used.
pub fn run(global: &Global, request: &ScoreRequest) -> Result<Outcome> {
    let place = environment(global, request.subject.run.as_deref())?;
    if let Some(file) = &request.completions {
        return Ok(rescore(&place, request, file)?.into());
    }
    let subject = Subject::open(&place, &request.subject, &request.set)?;
    Ok(score(&place, &subject, request)?.into())
}
