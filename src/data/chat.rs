//! Chat data: conversations rendered by the tokenizer's chat template, trained on the assistant's turns.
//!
//! If the template marks the assistant's text (`{% generation %}`), the text between the marks is trained
//! on. Otherwise a turn of the assistant is what the template adds for it beyond the prompt it would have
//! written; the token that ends the turn is included, white space after it is not. If a template rewrites
//! earlier turns once others follow, only turns that are unchanged in the whole text are trained on.

use std::borrow::Cow;
use std::ops::Range;

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::chat_prompt::NO_TEMPLATE;
use super::jinja::{ChatTemplate, Conversation, Rendered, with_stack};
use super::odd;
use super::row::{Columns, Refusal, kind};
use super::task::Chat;
use super::tokenize::Tokenizer;
use super::{Example, Whole};
use crate::fault::{Result, fault, short};

/// Names under which a message may hold its reasoning; templates read the first, and some the second.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
/// Most bytes assumed per token when deciding that the rest of a long conversation cannot matter.
const TOKEN_BYTES: usize = 256;
/// Most keys of a message that an error names.
const NAMED: usize = 8;

/// The column of the functions that may be called.
pub(super) const TOOLS: &str = "tools";

/// Encodes the conversations of one data set.
#[derive(Debug)]
pub struct ChatEncoder<'a> {
    column: String,
    /// Column of messages before them, of which none is trained on.
    prompt: Option<String>,
    template: ChatTemplate,
    /// Template of conversations with tools, if they have their own.
    tool_template: Option<ChatTemplate>,
    tokenizer: &'a Tokenizer,
    max_length: usize,
}

impl<'a> ChatEncoder<'a> {
    /// Creates an encoder from the chat template of a tokenizer.
    ///
    /// # Errors
    /// When the tokenizer has no chat template, or a wrong one.
    pub fn new(name: &str, task: &Chat, tokenizer: &'a Tokenizer, max_length: usize) -> Result<Self> {
        let source = tokenizer.chat_template().ok_or_else(|| {
            fault(format!("data set `{name}` is for chat, but the tokenizer has no chat template"))
                .hint(NO_TEMPLATE)
        })?;
        let parsed = |source: &str| ChatTemplate::new(source, tokenizer.named_tokens());
        let (template, tool_template) = (parsed(source)?, tokenizer.tool_template().map(parsed).transpose()?);
        let (column, prompt) = (task.messages.clone(), task.prompt.clone());
        Ok(Self { column, prompt, template, tool_template, tokenizer, max_length })
    }

    /// Returns the columns of the messages.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.prompt.iter().chain([&self.column]).map(String::as_str)
    }

    /// Returns the example of one conversation, and its length before it was cut.
    ///
    /// # Errors
    /// Why the row cannot be used: not a list of messages, no turn of an assistant, refused by the template, or no
    /// room for any of the assistant's words; and what is wrong with the template, whatever the row.
    pub(super) fn encode(&self, row: &Columns) -> std::result::Result<(Example, Whole), Refusal> {
        let before = self.prompt.as_ref().map(|prompt| messages(prompt, row.get(prompt))).transpose()?;
        let asked = before.as_ref().map(Vec::len);
        let own = messages(&self.column, row.get(&self.column))?;
        let messages: Vec<Value> = before.into_iter().flatten().chain(own).collect();
        let tools = tools(row.get(TOOLS))?;
        let rendered = with_stack(|| self.render(&messages, asked, tools.as_deref()));
        let (text, spans) = rendered.map_err(|refusal| self.explained(refusal, &messages))?;
        let encoded = self.tokenizer.encode_plain(&text, self.max_length).map_err(|e| format!("{e:#}"))?;
        let (mut ids, places, cut) = encoded;
        let overlaps = |place: &Range<usize>| {
            let meets = |span: &Range<usize>| place.start < span.end && span.start < place.end;
            u8::from(spans.iter().any(meets))
        };
        let mut trained: Vec<u8> = places.iter().map(overlaps).collect();
        let tokens = ids.len();
        let is_cut = cut || tokens > self.max_length;
        let lost_end = cut || trained.iter().skip(self.max_length).any(|t| *t == 1);
        ids.truncate(self.max_length);
        trained.truncate(self.max_length);
        // The first token has no predecessor to be predicted from
        trained.iter_mut().take(1).for_each(|t| *t = 0);
        if !trained.contains(&1) {
            let first = places.iter().map(overlaps).take_while(|t| *t == 0).count();
            let message =
                format!("the assistant's first turn begins after {first} tokens, beyond `max_length` ");
            return Err((message + &self.max_length.to_string()).into());
        }
        let types = vec![0; ids.len()];
        Ok((Example { index: 0, types, trained, label: None, ids }, Whole::new(tokens, is_cut, lost_end)))
    }

    /// Returns the text of a conversation, and the byte ranges of it that are trained on: what the assistant writes, or
    /// all after the first `asked` messages.
    fn render(
        &self,
        messages: &[Value],
        asked: Option<usize>,
        tools: Option<&Value>,
    ) -> std::result::Result<Rendered, Refusal> {
        let template = self.tool_template.as_ref().filter(|_| tools.is_some()).unwrap_or(&self.template);
        let mut conversation = template.open(messages, tools)?;
        let (text, marked) = conversation.render(messages.len(), false)?;
        if let Some(asked) = asked {
            let (prompt, _) = conversation.render(asked, true)?;
            let start = agreement(&text, &prompt);
            let end = text.len();
            return trained((text, std::iter::once(start..end).collect()));
        }
        if template.has_marks() {
            return trained((text, marked));
        }
        if !messages.iter().any(|message| role(message) == "assistant") {
            let message = format!("column `{}` has no message with the role `assistant`", self.column);
            return Err(message.into());
        }
        let enough = self.max_length.saturating_mul(TOKEN_BYTES).max(1 << 16);
        let mut spans = Vec::new();
        for (i, _) in messages.iter().enumerate().filter(|(_, m)| role(m) == "assistant") {
            let start = match i {
                0 => Some(opening(&text, &mut conversation, messages.len())?),
                before => start(&text, &mut conversation, before)?,
            };
            let (end, _) = conversation.render(i + 1, false)?;
            if let Some(start) = start.filter(|start| text.starts_with(&end) && *start < end.len()) {
                spans.push(start..start + self.turn(&end[start..]));
            }
            // Nothing after this is trained on
            if end.len() > enough && !spans.is_empty() {
                break;
            }
        }
        match spans.is_empty() {
            true => Err("the template writes no turn of the assistant as it stands in the whole text; \
                         mark it there with `{% generation %}`"
                .to_owned()
                .into()),
            false => trained((text, spans)),
        }
    }

    /// Explains a refusal of messages that have no role: the template itself only says where it failed.
    fn explained(&self, refusal: Refusal, messages: &[Value]) -> Refusal {
        let other = messages.iter().find(|message| message.get("role").is_none()).and_then(Value::as_object);
        let (reason, keys) = match (refusal, other) {
            (Refusal::Row(reason), Some(keys)) if !keys.is_empty() => (reason, keys),
            (refusal, _) => return refusal,
        };
        let found: Vec<String> = keys.keys().take(NAMED).map(|key| format!("`{}`", short(key))).collect();
        let found = found.join(", ");
        format!("column `{}`: a message has no `role`; found {found} ({reason})", self.column).into()
    }

    /// Returns the length of a turn in its added text: without white space after the token that ends it.
    fn turn(&self, added: &str) -> usize {
        let words = added.trim_end();
        let is_ended = self.tokenizer.special_texts().any(|token| words.ends_with(token));
        if is_ended { words.len() } else { added.len() }
    }
}

/// Refuses a rendering that leaves nothing to train on.
fn trained((text, spans): Rendered) -> std::result::Result<Rendered, Refusal> {
    match spans.iter().all(Range::is_empty) {
        true => {
            Err("after the template, nothing of the assistant's turns is left to train on".to_owned().into())
        }
        false => Ok((text, spans)),
    }
}

/// Returns where the assistant's words begin after the first `before` messages: as far as the text agrees
/// with their prompt. `None` if the messages themselves are changed in the whole text.
fn start(
    text: &str,
    conversation: &mut Conversation<'_>,
    before: usize,
) -> std::result::Result<Option<usize>, Refusal> {
    let (history, _) = conversation.render(before, false)?;
    let (asked, _) = conversation.render(before, true)?;
    let start = agreement(text, &asked);
    Ok(Some(start).filter(|start| text.starts_with(&history) && *start >= history.len()))
}

/// Returns the number of bytes up to which two texts agree.
fn agreement(one: &str, other: &str) -> usize {
    one.chars().zip(other.chars()).take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum()
}

/// Returns where the words of an assistant that opens the conversation begin. Few templates accept no
/// messages, so this is after the first place that reads as the prompt for its next turn.
fn opening(
    text: &str,
    conversation: &mut Conversation<'_>,
    count: usize,
) -> std::result::Result<usize, Refusal> {
    let (asked, _) = conversation.render(count, true)?;
    let header = asked.strip_prefix(text).filter(|header| !header.is_empty());
    Ok(header.and_then(|header| Some(text.find(header)? + header.len())).unwrap_or(0))
}

pub(super) fn role(message: &Value) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// Returns the tools of a row: as in Transformers, a list of their schemas, or nothing; also as JSON text.
pub(super) fn tools(value: Option<&Value>) -> std::result::Result<Option<Cow<'_, Value>>, String> {
    let tools = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => {
            let read = serde_json::from_str(&odd::kept(text));
            Cow::Owned(
                read.map_err(|error| format!("column `tools` holds a text that is not JSON: {error}"))?,
            )
        }
        Some(tools) => Cow::Borrowed(tools),
    };
    if tools.is_null() {
        return Ok(None);
    }
    let wrong = match &*tools {
        Value::Array(list) => list.iter().find(|tool| !tool.is_object()),
        other => Some(other),
    };
    match (wrong, odd::unusable_inside(&tools)) {
        (_, Some(odd)) => Err(format!("column `tools` holds {}", odd.words())),
        (Some(other), None) => {
            Err(format!("column `tools`: expected a list of objects, found {}", kind(other)))
        }
        (None, None) => Ok(Some(tools)),
    }
}

/// Returns true if a text is a JSON list or object.
fn is_json(text: &str) -> bool {
    text.trim_start().starts_with(['[', '{']) && serde_json::from_str::<IgnoredAny>(text).is_ok()
}

/// Names of roles in ShareGPT's messages, as Axolotl reads them, with those of its function calls.
const ROLES: [(&str, &str); 9] = [
    ("human", "user"),
    ("user", "user"),
    ("gpt", "assistant"),
    ("assistant", "assistant"),
    ("model", "assistant"),
    ("system", "system"),
    ("tool", "tool"),
    ("function_response", "tool"),
    ("observation", "tool"),
];

/// Returns the keys of a message, with `role` and `content` as well where it has ShareGPT's `from` and `value`.
fn shared(keys: &Map<String, Value>) -> std::result::Result<Map<String, Value>, String> {
    let Some(from) = keys.get("from").filter(|_| !keys.contains_key("role")) else { return Ok(keys.clone()) };
    let from = from.as_str().ok_or_else(|| format!("`from`: expected a text, found {}", kind(from)))?;
    let Some((_, role)) = ROLES.iter().find(|(name, _)| *name == from) else {
        let known = ROLES.map(|(name, _)| name).join("`, `");
        return Err(format!("unknown `from`: `{}`; known are `{known}`", short(from)));
    };
    let mut both = keys.clone();
    both.insert("role".to_owned(), Value::from(*role));
    if let Some(value) = keys.get("value").filter(|_| !keys.contains_key("content")) {
        both.insert("content".to_owned(), value.clone());
    }
    Ok(both)
}

/// Returns the messages of a row as Transformers gives them to a template: without keys that hold nothing,
/// and with the reasoning under every name that templates know.
pub(super) fn messages(column: &str, value: Option<&Value>) -> std::result::Result<Vec<Value>, String> {
    let list = match value {
        None | Some(Value::Null) => return Err(format!("column `{column}` is empty")),
        Some(Value::Array(list)) if list.is_empty() => {
            return Err(format!("column `{column}` has no message"));
        }
        Some(Value::Array(list)) => list,
        Some(other) => {
            let of_json = if other.as_str().is_some_and(is_json) { " that holds JSON" } else { "" };
            let found = kind(other);
            return Err(format!("column `{column}`: expected a list of messages, found {found}{of_json}"));
        }
    };
    let mut messages = Vec::with_capacity(list.len());
    for (i, message) in list.iter().enumerate() {
        let Value::Object(keys) = message else {
            let found = kind(message);
            return Err(format!("column `{column}`, message {}: expected an object, found {found}", i + 1));
        };
        if let Some(odd) = keys.values().find_map(odd::unusable_inside) {
            return Err(format!("column `{column}`, message {}: holds {}", i + 1, odd.words()));
        }
        let shared =
            shared(keys).map_err(|reason| format!("column `{column}`, message {}: {reason}", i + 1))?;
        let held = shared.into_iter().filter(|(_, value)| !value.is_null());
        let thought = REASONING.iter().find_map(|name| keys.get(*name).filter(|value| !value.is_null()));
        messages.push(match thought {
            None => held.collect(),
            Some(thought) => {
                let first = ("thinking".to_owned(), thought.clone());
                let last = ("reasoning_content".to_owned(), thought.clone());
                std::iter::once(first).chain(held).chain([last]).collect()
            }
        });
    }
    Ok(messages)
}
