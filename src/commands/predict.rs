//! `loraxs predict`: answers to new rows.

use super::{Outcome, environment};
use crate::cli::{Global, PredictArgs};
use crate::fault::Result;
use crate::session::predict::predict;

/// Answers every row of the input, in order.
/// Fails when subject, input or output cannot be used, or some rows could not be answered.
pub fn run(global: &Global, args: &PredictArgs) -> Result<Outcome> {
    Ok(predict(&environment(global, args.subject.run.as_deref())?, args)?.into())
}
