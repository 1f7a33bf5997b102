//! `loraxs chat`: a conversation in the terminal, or by standard input and output.

use super::{Outcome, environment};
use crate::cli::{ChatArgs, Global};
use crate::fault::Result;
use crate::session::chat::chat;

/// Talks until the input ends.
/// Fails when the subject cannot be used for a chat, or an answer fails.
pub fn run(global: &Global, args: &ChatArgs) -> Result<Outcome> {
    Ok(chat(&environment(global, args.subject.run.as_deref())?, args)?.into())
}
