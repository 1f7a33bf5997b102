//! Tokens that the files beside `tokenizer.json` add to it, or change.
//!
//! As Transformers 5.24 reads them (`tokenization_utils_base.py` `_from_pretrained`, `tokenization_utils_tokenizers.py`):
//! `added_tokens_decoder` of `tokenizer_config.json` counts alone where it is there; otherwise `special_tokens_map.json`
//! and `added_tokens.json` are read. Then come the named tokens that are not known yet, then those of
//! `extra_special_tokens` (`additional_special_tokens` by its older name). The numbers in these files only order the
//! tokens: one that the vocabulary does not hold gets the next free number.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer_class::Class;
use super::tokenizer_file::optional_json;
use crate::fault::{Result, fault};

/// Tokens that have a name of their own, in the order in which they are added.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokens found in the files of a folder.
#[derive(Default)]
struct Found {
    /// Tokens by the number that orders them.
    numbered: BTreeMap<i64, AddedToken>,
    /// Tokens listed in [`NAMED`].
    named: BTreeMap<&'static str, AddedToken>,
    /// Tokens under other names that end in `_token`.
    own: Vec<AddedToken>,
    extra: Vec<AddedToken>,
    /// Texts of named and extra tokens, except objects in `tokenizer_config.json`: Transformers skips those.
    texts: Vec<String>,
}

/// Outcome of [`complete`].
pub(super) struct Completed {
    /// Tokens that were not known, or had other flags.
    pub tokens: Vec<AddedToken>,
    /// Tokens by their names, such as `cls_token`.
    pub named: BTreeMap<&'static str, AddedToken>,
}

/// Adds the tokens. `settings` is `tokenizer_config.json`.
///
/// # Errors
/// When a file is not JSON, or a token neither a text nor an object with its text.
pub(super) fn complete(
    inner: &mut Tokenizer,
    folder: &Path,
    class: Class,
    settings: &Value,
) -> Result<Completed> {
    let known: BTreeMap<u32, AddedToken> = inner.get_added_tokens_decoder().into_iter().collect();
    let mut found = read(folder, settings, &known)?;
    for (name, text) in class.tokens() {
        // A token known only to the class, not to the vocabulary, would need an embedding row no model has.
        if inner.token_to_id(text).is_some() {
            found.named.entry(name).or_insert_with(|| AddedToken::from(*text, true));
        }
    }
    let by_text: BTreeMap<&str, &AddedToken> =
        known.values().map(|token| (token.content.as_str(), token)).collect();
    let numbers: Vec<(i64, String)> =
        found.numbered.iter().map(|(number, token)| (*number, token.content.clone())).collect();
    let mut tokens: Vec<AddedToken> = found.numbered.into_values().collect();
    let numbered: Vec<String> = tokens.iter().map(|token| token.content.clone()).collect();
    let named = NAMED.iter().filter_map(|name| found.named.get(name)).chain(&found.own);
    for token in named.chain(&found.extra) {
        let is_known = by_text.contains_key(token.content.as_str()) || numbered.contains(&token.content);
        if !is_known && !tokens.contains(token) {
            tokens.push(token.clone());
        }
    }
    let names: Vec<&str> =
        found.named.values().chain(&found.own).map(|token| token.content.as_str()).collect();
    tokens.iter_mut().for_each(|token| token.special |= names.contains(&token.content.as_str()));
    tokens.retain(|token| {
        !token.content.is_empty() && by_text.get(token.content.as_str()).is_none_or(|other| *other != token)
    });
    let ends = found.named.get("eos_token").filter(|end| inner.token_to_id(&end.content).is_none());
    inner.add_tokens(tokens.iter().cloned()).map_err(|e| fault(format!("cannot add tokens: {e}")))?;
    let number_of = |text: &str| inner.token_to_id(text).map_or(-1, i64::from);
    if let Some((number, text)) = numbers.iter().find(|(number, text)| number_of(text) != *number) {
        let (place, found) = (folder.display(), number_of(text));
        tracing::warn!(
            "`{place}`: token `{text}` gets the number {found}, as in Transformers, and not its own {number}"
        );
    }
    if let Some(end) = ends {
        let (text, id) = (&end.content, inner.token_to_id(&end.content).unwrap_or_default());
        tracing::warn!(
            "`eos_token` `{text}` is not in tokenizer.json: it becomes token {id}, as in Transformers"
        );
    }
    Ok(Completed { tokens, named: found.named })
}

fn read(folder: &Path, settings: &Value, known: &BTreeMap<u32, AddedToken>) -> Result<Found> {
    let mut found = Found::default();
    let config = folder.join("tokenizer_config.json");
    let fields = settings.as_object().cloned().unwrap_or_default();
    found.names(&fields, &config)?;
    let [extra, older] = ["extra_special_tokens", "additional_special_tokens"].map(|key| fields.get(key));
    found.lists(extra, &config)?;
    if found.extra.is_empty() {
        found.lists(older, &config)?;
    }
    if let Some(decoder) = fields.get("added_tokens_decoder") {
        for (number, value) in decoder.as_object().into_iter().flatten() {
            let number = number.parse().map_err(|_| wrong(&config, "`added_tokens_decoder`", number))?;
            found.numbered.insert(number, token(value, false, &config)?);
        }
        return Ok(found);
    }
    let path = folder.join("special_tokens_map.json");
    let map = optional_json(&path)?;
    found.names(map.as_object().unwrap_or(&Map::new()), &path)?;
    found.lists(map.get("extra_special_tokens"), &path)?;
    let special = found.texts.clone();
    if found.extra.is_empty() {
        found.lists(map.get("additional_special_tokens"), &path)?;
    }
    let path = folder.join("added_tokens.json");
    for (text, number) in optional_json(&path)?.as_object().into_iter().flatten() {
        let number = number.as_i64().ok_or_else(|| wrong(&path, text, &number.to_string()))?;
        found.numbered.insert(number, AddedToken::from(text.as_str(), special.contains(text)));
    }
    found.numbered.extend(known.iter().map(|(number, token)| (i64::from(*number), token.clone())));
    Ok(found)
}

impl Found {
    /// Collects the fields that name a token.
    fn names(&mut self, fields: &Map<String, Value>, path: &Path) -> Result<()> {
        for (key, value) in fields.iter().filter(|(key, _)| key.ends_with("_token")) {
            if let Some(name) = NAMED.into_iter().find(|name| name == key) {
                if !value.is_null() {
                    self.note(value, path);
                    self.named.insert(name, token(value, true, path)?);
                }
            } else if value.is_string() || value.get("content").is_some() {
                self.own.push(token(value, true, path)?);
            }
        }
        Ok(())
    }

    fn note(&mut self, value: &Value, path: &Path) {
        let is_config = path.ends_with("tokenizer_config.json");
        let text = value.as_str().or(value.get("content").and_then(Value::as_str).filter(|_| !is_config));
        self.texts.extend(text.map(str::to_owned));
    }

    /// Collects a list of tokens, or an object of them by name.
    fn lists(&mut self, value: Option<&Value>, path: &Path) -> Result<()> {
        match value {
            Some(Value::Array(list)) => {
                for value in list {
                    self.note(value, path);
                    self.extra.push(token(value, value.is_string(), path)?);
                }
            }
            Some(Value::Object(named)) => self
                .own
                .extend(named.values().map(|value| token(value, true, path)).collect::<Result<Vec<_>>>()?),
            _ => {}
        }
        Ok(())
    }
}

/// Reads a token, written as its text or as an object with its flags; a bare text is a special token.
fn token(value: &Value, special: bool, path: &Path) -> Result<AddedToken> {
    if let Some(text) = value.as_str() {
        return Ok(AddedToken::from(text, true));
    }
    let Some(text) = value.get("content").and_then(Value::as_str) else {
        return Err(wrong(path, "a token", &value.to_string()));
    };
    let flag = |key: &str| value.get(key).and_then(Value::as_bool);
    let special = special || flag("special").unwrap_or(false);
    Ok(AddedToken::from(text, special)
        .normalized(flag("normalized").unwrap_or(!special))
        .lstrip(flag("lstrip").unwrap_or(false))
        .rstrip(flag("rstrip").unwrap_or(false))
        .single_word(flag("single_word").unwrap_or(false)))
}

fn wrong(path: &Path, what: &str, found: &str) -> anyhow::Error {
    fault(format!("`{}` is not valid: {what}: `{found}`", path.display()))
        .hint("a token is written as its text, or as an object with its text as `content`; its number is a whole one")
        .into()
}
