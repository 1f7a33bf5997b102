//! Conversations whose next turn is the assistant's, as the tokenizer's chat template writes them.

use serde_json::Value;

use super::jinja::{ChatTemplate, with_stack};
use super::row::Refusal;
use super::tokenize::Tokenizer;
use crate::fault::Result;

/// Advice where a tokenizer has no chat template.
pub const NO_TEMPLATE: &str =
    "put a `chat_template.jinja` beside tokenizer.json, or use the instruct model's";

/// A tokenizer's chat template, rendered with the prompt for the assistant's turn: `apply_chat_template` of Transformers with
/// `add_generation_prompt=True`.
#[derive(Debug)]
pub struct ChatPrompt<'a> {
    template: ChatTemplate,
    /// Template of conversations with tools, if they have their own.
    tool_template: Option<ChatTemplate>,
    tokenizer: &'a Tokenizer,
}

impl<'a> ChatPrompt<'a> {
    /// Reads the chat template of a tokenizer; `None` if it has none.
    ///
    /// # Errors
    /// Says which line of the template is wrong.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<Option<Self>> {
        let parsed = |source: &str| ChatTemplate::new(source, tokenizer.named_tokens());
        let Some(template) = tokenizer.chat_template().map(parsed).transpose()? else { return Ok(None) };
        let tool_template = tokenizer.tool_template().map(parsed).transpose()?;
        Ok(Some(Self { template, tool_template, tokenizer }))
    }

    /// Returns the text of a conversation, up to where the assistant's answer begins.
    ///
    /// # Errors
    /// What the template objects to.
    pub fn text(&self, messages: &[Value], tools: Option<&Value>) -> std::result::Result<String, Refusal> {
        let template = self.tool_template.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.template);
        with_stack(|| Ok(template.open(messages, tools)?.render(messages.len(), true)?.0))
    }

    /// Returns the tokens of such a text, which holds its special tokens already. Of more than `enough` tokens, returns at
    /// least that many, and whether some are left out.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn tokens(&self, text: &str, enough: usize) -> Result<(Vec<u32>, bool)> {
        let (ids, _, cut) = self.tokenizer.encode_plain(text, enough)?;
        Ok((ids, cut))
    }
}
