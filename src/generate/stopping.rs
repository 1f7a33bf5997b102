//! Decides when a completion ends, and makes its text.

use super::{Completion, Finish, Settings};
use crate::data::tokenize::Tokenizer;
use crate::fault::Result;

/// The stopping rules of a run.
#[derive(Debug)]
pub struct Stopping<'a> {
    settings: &'a Settings,
    tokenizer: &'a Tokenizer,
    /// Number of trailing tokens that contain any stop text completed by the last one.
    tail: usize,
}

/// Spare tokens to search: a token has at least one byte of text, except those that decode to nothing.
const SPARE: usize = 8;

impl<'a> Stopping<'a> {
    pub fn new(settings: &'a Settings, tokenizer: &'a Tokenizer) -> Self {
        let tail = settings.stop.iter().map(|stop| stop.len() + SPARE).max().unwrap_or(0);
        Self { settings, tokenizer, tail }
    }

    /// Returns why a completion ends with the last of these tokens, if it does.
    ///
    /// # Errors
    /// When the tokenizer cannot decode them.
    pub fn finish(&self, ids: &[u32]) -> Result<Option<Finish>> {
        if ids.last().is_some_and(|id| self.settings.ends.contains(id)) {
            return Ok(Some(Finish::End));
        }
        if self.tail > 0 {
            let text = self.tokenizer.decode(&ids[ids.len().saturating_sub(self.tail)..], true)?;
            if self.settings.stop.iter().any(|stop| text.contains(stop)) {
                return Ok(Some(Finish::Stop));
            }
        }
        Ok((ids.len() >= self.settings.max_new_tokens).then_some(Finish::Length))
    }

    /// Builds the completion of tokens that ended for this reason.
    ///
    /// # Errors
    /// When the tokenizer cannot decode them.
    pub fn completion(&self, mut ids: Vec<u32>, finish: Finish) -> Result<Completion> {
        if finish == Finish::End {
            ids.pop();
        }
        let mut text = self.tokenizer.decode(&ids, true)?;
        if let Some(cut) = self.settings.stop.iter().filter_map(|stop| text.find(stop)).min() {
            text.truncate(cut);
        }
        Ok(Completion { ids, text, finish })
    }
}
