//! Tokens that end a text, and the chat template, from the files beside `tokenizer.json`.

use std::path::Path;

use serde_json::Value;

use super::tokenizer_class::Class;
use super::tokenizer_file::optional_json;
use crate::fault::{Result, fault};
use crate::files;

/// Special tokens by their names in chat templates, and those that end a text.
#[derive(Debug, Clone, Default)]
pub(super) struct Special {
    /// `bos_token`, `eos_token` and the like, in the order of [`NAMES`].
    pub tokens: Vec<(&'static str, String)>,
    /// The texts of all tokens that `tokenizer.json` calls special.
    pub texts: Vec<String>,
    /// The token that ends a text: that of the tokenizer, else the first one of the model.
    pub eos: Option<u32>,
    /// Every token at which a generation ends.
    pub ends: Vec<u32>,
    /// The chat template: `chat_template.jinja`, or that of `tokenizer_config.json`.
    pub chat_template: Option<String>,
    /// Chat template of conversations with tools, if they have their own.
    pub tool_template: Option<String>,
}

const NAMES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

impl Special {
    /// Reads the files of a folder. `settings` is its `tokenizer_config.json`, `config` its `config.json`.
    ///
    /// # Errors
    /// When a file is not JSON, or the chat template is neither a text nor a list of them with a default.
    pub fn read(
        folder: &Path,
        inner: &tokenizers::Tokenizer,
        class: Class,
        (settings, config): (&Value, &Value),
    ) -> Result<Self> {
        let legacy = optional_json(&folder.join("special_tokens_map.json"))?;
        let generation = optional_json(&folder.join("generation_config.json"))?;
        let mut tokens = Vec::new();
        for name in NAMES {
            let found = [settings, &legacy].into_iter().find_map(|json| token_text(json.get(name)));
            let default = class.tokens().iter().find(|(default, _)| *default == name);
            if let Some(text) = found.or(default.map(|(_, text)| (*text).to_owned())) {
                tokens.push((name, text));
            }
        }
        let named = tokens.iter().find(|(name, _)| *name == "eos_token");
        let own = named.and_then(|(_, text)| inner.token_to_id(text));
        let mut ends = ids(generation.get("eos_token_id"));
        if ends.is_empty() {
            ends = ids(config.get("eos_token_id"));
        }
        let eos = own.or(ends.first().copied());
        if let Some(own) = own.filter(|own| !ends.contains(own)) {
            ends.push(own);
        }
        let added = inner.get_added_tokens_decoder();
        let mut texts: Vec<String> = added.into_values().filter(|t| t.special).map(|t| t.content).collect();
        texts.sort();
        let (chat_template, tool_template) = chat_templates(folder, settings)?;
        Ok(Self { tokens, texts, eos, ends, chat_template, tool_template })
    }
}

/// Returns the text of a token, written as a text or as an object with its text.
fn token_text(value: Option<&Value>) -> Option<String> {
    let value = value?;
    value.get("content").unwrap_or(value).as_str().map(str::to_owned)
}

/// Reads one id or a list of them.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(list)) => list.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Returns the chat template, and that of conversations with tools; files take precedence over settings.
fn chat_templates(folder: &Path, settings: &Value) -> Result<(Option<String>, Option<String>)> {
    let file = |path: &str| {
        let path = folder.join(path);
        if path.is_file() { files::read_text(&path).map(Some) } else { Ok(None) }
    };
    let of_tools = file(&format!("{}/tool_use.jinja", files::TEMPLATES))?;
    if let Some(template) = file("chat_template.jinja")? {
        return Ok((Some(template), of_tools));
    }
    let legacy = optional_json(&folder.join("chat_template.json"))?;
    let wrong = |found: &str| {
        let place = folder.join("tokenizer_config.json");
        fault(format!("`{}`: `chat_template` {found}", place.display()))
            .hint("expected one template, or a list of `name` and `template` with one named `default`")
    };
    match settings.get("chat_template").or(legacy.get("chat_template")) {
        None | Some(Value::Null) => Ok((None, of_tools)),
        Some(Value::String(text)) => Ok((Some(text.clone()), of_tools)),
        Some(Value::Array(list)) => {
            let named = |wanted: &str| {
                let found = list.iter().find(|t| t.get("name").is_some_and(|name| name == wanted))?;
                found.get("template").and_then(Value::as_str).map(str::to_owned)
            };
            let default = named("default").ok_or_else(|| wrong("has no template named `default`"))?;
            Ok((Some(default), of_tools.or_else(|| named("tool_use"))))
        }
        Some(_) => Err(wrong("is neither a text nor a list").into()),
    }
}
