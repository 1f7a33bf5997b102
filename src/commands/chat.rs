//! `loraxs chat`: a conversation in the terminal, or by standard input and output.

use super::{Outcome, environment};
use crate::cli::Global;
use crate::fault::Result;
use crate::session::chat::chat;
use crate::spec::request::ChatRequest;

/// Talks until the input ends.
/// Fails when the subject cannot be used for a chat, or an answer fails.
pub fn run(global: &Global, request: &ChatRequest) -> Result<Outcome> {
    Ok(chat(&environment(global, request.subject.run.as_deref())?, request)?.into())
}
