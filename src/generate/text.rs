//! Text around the scheduler, which knows tokens alone: texts that end a completion, and the text of one.

use std::sync::Arc;

use super::request::StopRule;
use super::{Completion, Finish};
use crate::data::tokenize::Tokenizer;
use crate::fault::Result;

/// Spare tokens to search: a token has at least one byte of text, except those that decode to nothing.
const SPARE: usize = 8;

/// Returns a rule that ends a completion with the first of these texts; `None` if there are none.
pub fn stop_rule<'a>(tokenizer: &'a Tokenizer, stop: &'a [String]) -> Option<StopRule<'a>> {
    // Number of trailing tokens that contain any stop text completed by the last one.
    let tail = stop.iter().map(|text| text.len() + SPARE).max()?;
    Some(Arc::new(move |ids: &[u32]| {
        let text = tokenizer.decode(&ids[ids.len().saturating_sub(tail)..], true)?;
        Ok(stop.iter().any(|stop| text.contains(stop)))
    }))
}

/// Builds the completion of tokens that ended for this reason.
///
/// # Errors
/// When the tokenizer cannot decode them.
pub fn completion(
    tokenizer: &Tokenizer,
    stop: &[String],
    ids: Vec<u32>,
    finish: Finish,
) -> Result<Completion> {
    Ok(Completion { text: text(tokenizer, stop, &ids)?, ids, finish })
}

/// Returns the text of tokens without special ones, cut before the first stop text.
///
/// # Errors
/// When the tokenizer cannot decode them.
pub fn text(tokenizer: &Tokenizer, stop: &[String], ids: &[u32]) -> Result<String> {
    let mut text = tokenizer.decode(ids, true)?;
    if let Some(cut) = stop.iter().filter_map(|stop| text.find(stop)).min() {
        text.truncate(cut);
    }
    Ok(text)
}
