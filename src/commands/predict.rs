//! `loraxs predict`: answers to new rows.

use super::{Outcome, environment};
use crate::cli::Global;
use crate::fault::Result;
use crate::session::predict::predict;
use crate::spec::request::PredictRequest;

/// Answers every row of the input, in order.
/// Fails when subject, input or output cannot be used, or some rows could not be answered.
pub fn run(global: &Global, request: &PredictRequest) -> Result<Outcome> {
    Ok(predict(&environment(global, request.subject.run.as_deref())?, request)?.into())
}
