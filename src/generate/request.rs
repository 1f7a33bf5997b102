//! A prompt, how it is continued, and when its completion ends.

use std::sync::Arc;

use super::{Finish, SamplingParams};
use crate::fault::{Result, fault};
use crate::models::decoder::config::DecoderConfig;

/// Returns true if a completion ends with the last of these new tokens, for a reason of the caller.
pub type StopRule<'a> = Arc<dyn Fn(&[u32]) -> Result<bool> + Send + Sync + 'a>;

/// A prompt to be continued.
#[derive(Clone)]
pub struct Request<'a> {
    /// The number by which messages name it, and on which its random draws depend beside the seed.
    pub index: usize,
    /// Its tokens, special ones included; at least one.
    pub ids: Vec<u32>,
    /// How it is continued.
    pub params: Arc<SamplingParams>,
    /// What ends its completion besides `params`.
    pub stop: Option<StopRule<'a>>,
}

impl Request<'_> {
    /// Returns the most tokens that prompt and completion have.
    pub fn tokens(&self) -> usize {
        self.ids.len().saturating_add(self.params.max_new_tokens)
    }

    /// Returns an error if a model of this shape cannot read the prompt.
    ///
    /// # Errors
    /// When the prompt is empty or has a token that the model lacks.
    pub fn check(&self, config: &DecoderConfig) -> Result<()> {
        let Some(largest) = self.ids.iter().max() else {
            return Err(fault(format!("prompt {} is empty: it has no tokens", self.index)).into());
        };
        if i64::from(*largest) >= config.vocabulary {
            let (index, vocabulary) = (self.index, config.vocabulary);
            let message = format!("prompt {index} has token {largest}, the model's vocabulary {vocabulary}");
            return Err(fault(message).hint("tokenizer and model do not match").into());
        }
        Ok(())
    }

    /// Returns why a completion ends with the last of these tokens, if it does.
    ///
    /// # Errors
    /// As the stop rule.
    pub fn finish(&self, new: &[u32]) -> Result<Option<Finish>> {
        if new.last().is_some_and(|id| self.params.ends.contains(id)) {
            return Ok(Some(Finish::End));
        }
        if let Some(stops) = &self.stop
            && stops(new)?
        {
            return Ok(Some(Finish::Stop));
        }
        Ok((new.len() >= self.params.max_new_tokens).then_some(Finish::Length))
    }
}
