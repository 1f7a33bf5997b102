//! Chat data: conversations in the words of the tokenizer's own chat template, trained on what the assistant says.
//!
//! Where the template marks it (`{% generation %}`), that is what stands between the marks. Otherwise a turn of the
//! assistant is what the template adds when the turn is added, beyond the prompt that it would have written for it;
//! the token that ends the turn belongs to it, white space after that does not. Of a template that writes earlier
//! turns differently once others follow, only the turns are trained on that stand unchanged in the whole text.

use std::ops::Range;

use serde_json::Value;

use super::Example;
use super::catalog::Dataset;
use super::jinja::{ChatTemplate, unmarked};
use super::odd;
use super::rows::{Columns, kind};
use super::tokenize::Tokenizer;
use crate::fault::{Result, fault};

/// Who may speak.
const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Renders conversations of one data set.
#[derive(Debug)]
pub struct Chat<'a> {
    column: String,
    template: ChatTemplate,
    tokenizer: &'a Tokenizer,
    max_length: usize,
}

impl<'a> Chat<'a> {
    /// A renderer with the chat template of a tokenizer.
    ///
    /// # Errors
    /// When the tokenizer has no chat template, or a wrong one.
    pub fn new(dataset: &Dataset, tokenizer: &'a Tokenizer, max_length: usize) -> Result<Self> {
        let source = tokenizer.chat_template().ok_or_else(|| {
            fault(format!("data set `{}` is for chat, but the tokenizer has no chat template", dataset.name))
                .hint("put a `chat_template.jinja` beside tokenizer.json, or take the instruct model's")
        })?;
        let template = ChatTemplate::new(source, tokenizer.named_tokens())?;
        Ok(Self { column: dataset.messages.clone(), template, tokenizer, max_length })
    }

    /// The column of the messages.
    pub fn column(&self) -> &str {
        &self.column
    }

    /// The example of one conversation, and whether it was cut.
    ///
    /// # Errors
    /// Why the row cannot be used: not a list of messages, no turn of an assistant, refused by the template, or no
    /// room for any of the assistant's words.
    pub fn encode(&self, row: &Columns) -> std::result::Result<(Example, bool), String> {
        let messages = messages(&self.column, row.get(&self.column))?;
        let tools = row.get("tools").filter(|tools| !tools.is_null());
        if let Some(odd) = tools.and_then(odd::inside) {
            return Err(format!("column `tools` holds {}", odd.words()));
        }
        let (text, spans) = self.render(&messages, tools)?;
        if spans.iter().all(Range::is_empty) {
            return Err("the template leaves nothing of the assistant's turns to train on".to_owned());
        }
        let encoded = self.tokenizer.encode_plain(&text, self.max_length).map_err(|e| format!("{e:#}"))?;
        let (mut ids, places, cut) = encoded;
        let overlaps = |place: &Range<usize>| {
            let meets = |span: &Range<usize>| place.start < span.end && span.start < place.end;
            u8::from(spans.iter().any(meets))
        };
        let mut trained: Vec<u8> = places.iter().map(overlaps).collect();
        let whole = ids.len();
        ids.truncate(self.max_length);
        trained.truncate(self.max_length);
        // The first token has none before it to be predicted from
        trained.iter_mut().take(1).for_each(|t| *t = 0);
        if !trained.contains(&1) {
            let first = places.iter().map(overlaps).take_while(|t| *t == 0).count();
            return Err(format!(
                "the assistant's first turn begins after {first} tokens, beyond `max_length` {}",
                self.max_length
            ));
        }
        let types = vec![0; ids.len()];
        Ok((Example { index: 0, types, trained, label: None, ids }, cut || whole > self.max_length))
    }

    /// The text of a conversation, and the bytes of it that are the assistant's.
    fn render(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
    ) -> std::result::Result<(String, Vec<Range<usize>>), String> {
        let (text, marked) = unmarked(&self.template.render(messages, tools, false)?);
        if self.template.has_marks {
            return Ok((text, marked));
        }
        let mut spans = Vec::new();
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| role(m) == "assistant") {
            let start = match messages.get(..i).unwrap_or_default() {
                [] => Some(self.opening(&text, messages, tools)?),
                before => self.start(&text, before, tools)?,
            };
            let end = self.template.render(messages.get(..=i).unwrap_or_default(), tools, false)?;
            if let Some(start) = start.filter(|start| text.starts_with(&end) && *start < end.len()) {
                spans.push(start..start + self.turn(&end[start..]));
            }
        }
        match spans.is_empty() {
            true => Err("the template writes no turn of the assistant as it stands in the whole text; \
                         mark it there with `{% generation %}`"
                .to_owned()),
            false => Ok((text, spans)),
        }
    }

    /// Where the words of an assistant begin after these messages: as far as the text agrees with the prompt for them,
    /// which is at least the messages themselves, or they stand differently in the whole text.
    fn start(
        &self,
        text: &str,
        before: &[Value],
        tools: Option<&Value>,
    ) -> std::result::Result<Option<usize>, String> {
        let history = self.template.render(before, tools, false)?;
        let asked = self.template.render(before, tools, true)?;
        let same = text.chars().zip(asked.chars()).take_while(|(a, b)| a == b);
        let start = same.map(|(c, _)| c.len_utf8()).sum();
        Ok(Some(start).filter(|start| text.starts_with(&history) && *start >= history.len()))
    }

    /// Where the words of an assistant begin that opens the conversation: few templates take no messages, so it is after
    /// the first place that reads as the prompt for its next turn.
    fn opening(
        &self,
        text: &str,
        messages: &[Value],
        tools: Option<&Value>,
    ) -> std::result::Result<usize, String> {
        let asked = self.template.render(messages, tools, true)?;
        let header = asked.strip_prefix(text).filter(|header| !header.is_empty());
        Ok(header.and_then(|header| Some(text.find(header)? + header.len())).unwrap_or(0))
    }

    /// How much of what a template adds for a turn belongs to it: without white space after the token that ends it.
    fn turn(&self, added: &str) -> usize {
        let words = added.trim_end();
        let is_ended = self.tokenizer.special_texts().any(|token| words.ends_with(token));
        if is_ended { words.len() } else { added.len() }
    }
}

fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// The messages of a row, without keys that hold nothing.
fn messages(column: &str, value: Option<&Value>) -> std::result::Result<Vec<Value>, String> {
    let list = match value {
        None | Some(Value::Null) => return Err(format!("column `{column}` is empty")),
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(format!("column `{column}` has no message"));
        }
        Some(Value::Array(list)) => list,
        Some(other) => {
            return Err(format!("column `{column}`: expected a list of messages, found {}", kind(other)));
        }
    };
    let mut messages = Vec::with_capacity(list.len());
    for (i, message) in list.iter().enumerate() {
        let wrong = |found: String| Err(format!("column `{column}`, message {}: {found}", i + 1));
        let Value::Object(keys) = message else {
            return wrong(format!("expected `role` and `content`, found {}", kind(message)));
        };
        match keys.get("role") {
            Some(Value::String(role)) if ROLES.contains(&role.as_str()) => {}
            Some(Value::String(role)) => {
                return wrong(format!("unknown role `{role}`; roles: `{}`", ROLES.join("`, `")));
            }
            _ => return wrong("has no `role`".to_owned()),
        }
        match keys.get("content") {
            Some(Value::String(_) | Value::Array(_)) => {}
            None | Some(Value::Null) if keys.contains_key("tool_calls") => {}
            None | Some(Value::Null) => return wrong("has no `content`".to_owned()),
            Some(other) => return wrong(format!("expected a text as `content`, found {}", kind(other))),
        }
        if let Some(odd) = keys.values().find_map(odd::inside) {
            return wrong(format!("holds {}", odd.words()));
        }
        let held = keys.iter().filter(|(_, value)| !value.is_null());
        messages.push(held.map(|(key, value)| (key.clone(), value.clone())).collect());
    }
    if !messages.iter().any(|message| role(message) == "assistant") {
        return Err(format!("column `{column}` has no message of the role `assistant`"));
    }
    Ok(messages)
}
