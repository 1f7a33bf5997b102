//! Instruction data: a prompt that is not trained on, a response that is, and the token that ends it; and plain text, which
//! is a response without a prompt.
//!
//! As the published code does it (MetaMath `train_math.py`; LoRA-XS `main_math_tuning.py` @0be0770 and
//! `main_commonsense_tuning.py` @e50b1a8): prompt and response are tokenised as one text, the end follows, all beyond
//! `max_length` is cut off the end, and as many tokens as the prompt has alone are not trained on.

use super::row::Columns;
use super::template::Template;
use super::tokenize::Tokenizer;
use super::{Example, Whole};
use crate::fault::Result;

/// Encodes the rows of one data set.
#[derive(Debug)]
pub struct InstructionEncoder<'a> {
    /// Nothing for plain text.
    prompt: Option<&'a Template>,
    response: &'a Template,
    tokenizer: &'a Tokenizer,
    eos: u32,
    max_length: usize,
}

impl<'a> InstructionEncoder<'a> {
    /// Creates an encoder from the templates of a data set.
    ///
    /// # Errors
    /// When no token is known that ends a text.
    pub fn new(
        prompt: Option<&'a Template>,
        response: &'a Template,
        tokenizer: &'a Tokenizer,
        max_length: usize,
    ) -> Result<Self> {
        Ok(Self { prompt, response, tokenizer, eos: tokenizer.eos()?, max_length })
    }

    /// Returns its templates.
    pub fn templates(&self) -> impl Iterator<Item = &'a Template> {
        self.prompt.into_iter().chain([self.response])
    }

    /// Returns the example of one row, and its length before it was cut.
    ///
    /// # Errors
    /// The reason why the row cannot be used: an empty column or response, or a prompt that fills `max_length`.
    pub fn encode(&self, row: &Columns) -> std::result::Result<(Example, Whole), String> {
        let prompt = self.prompt.map(|prompt| prompt.render(row)).transpose()?;
        let response = self.response.render(row)?;
        if response.trim().is_empty() {
            let what = if prompt.is_some() { "response" } else { "text" };
            return Err(format!("the {what} is empty"));
        }
        let tokens =
            |text: &str| self.tokenizer.encode_open(text, self.max_length).map_err(|e| format!("{e:#}"));
        let alone = prompt.as_deref().map(tokens).transpose()?.map_or(0, |(ids, _)| ids.len());
        let (mut ids, cut) = tokens(&(prompt.unwrap_or_default() + &response))?;
        // Some responses end with the token themselves
        if !cut && ids.last() != Some(&self.eos) {
            ids.push(self.eos);
        }
        let tokens = ids.len();
        let lost_end = cut || tokens > self.max_length;
        ids.truncate(self.max_length);
        // The first token has no predecessor to be predicted from
        let trained: Vec<u8> = (0..ids.len()).map(|i| u8::from(i > 0 && i >= alone)).collect();
        if !trained.contains(&1) {
            return Err(format!(
                "the prompt alone has {alone} tokens, which leaves nothing of `max_length` {} to train on",
                self.max_length
            ));
        }
        let types = vec![0; ids.len()];
        Ok((Example { index: 0, types, trained, label: None, ids }, Whole::new(tokens, lost_end, lost_end)))
    }
}
