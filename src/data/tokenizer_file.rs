//! Reads `tokenizer.json` with the library; errors name the part of the file that is wrong.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{
    AddedToken, DecoderWrapper, ModelWrapper, NormalizerWrapper, PaddingParams, PostProcessorWrapper,
    PreTokenizerWrapper, Tokenizer, TruncationParams,
};

use crate::fault::{Result, fault, words};
use crate::files::{self, check_start};

/// Calls the library and turns a panic, which some files cause, into an ordinary error.
pub(super) fn guarded<T>(body: impl FnOnce() -> tokenizers::Result<T>) -> std::result::Result<T, String> {
    let outcome = catch_unwind(AssertUnwindSafe(body));
    outcome.map_err(|payload| words(payload.as_ref()).to_owned())?.map_err(|error| error.to_string())
}

/// Wraps an error or panic message of the library.
pub(super) fn failed(reason: impl std::fmt::Display) -> anyhow::Error {
    fault(format!("`tokenizer.json` cannot be applied: {reason}")).into()
}

/// Reads a JSON file, or returns an empty object if there is none.
pub(super) fn optional_json(path: &Path) -> Result<Value> {
    let value = if path.is_file() { files::read_json(path)? } else { json!({}) };
    if !Value::is_object(&value) {
        return Err(
            fault(format!("`{}` is not valid: expected an object of settings", path.display())).into()
        );
    }
    Ok(value)
}

/// Parses a `tokenizer.json`. Dropout of byte pairs is removed: it would cut a text differently each time.
///
/// # Errors
/// Names the file, and the part of it that is wrong.
pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Tokenizer> {
    check_start(path, bytes)?;
    let place = path.display();
    let read = guarded(|| Tokenizer::from_bytes(bytes));
    let mut tokenizer = read.map_err(|reason| {
        let reason = wrong_part(bytes).unwrap_or(reason);
        fault(format!("`{place}` is not a tokenizer: {reason}"))
            .hint("download the file again, or save it again with Transformers' `tokenizer.save_pretrained`")
    })?;
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && let Some(dropout) = model.dropout.filter(|dropout| *dropout > 0.0)
    {
        let mut model = model.clone();
        model.dropout = None;
        tokenizer.with_model(model);
        tracing::warn!(
            "`{place}`: `model.dropout` {dropout} is ignored, so that a text always has the same tokens"
        );
    }
    Ok(tokenizer)
}

/// Returns the first part that cannot be read, and why.
fn wrong_part(bytes: &[u8]) -> Option<String> {
    let whole: Value = match serde_json::from_slice(bytes) {
        Ok(whole) => whole,
        Err(error) => {
            let part = part_at(bytes, error.line(), error.column());
            return Some(part.map_or(error.to_string(), |part| format!("`{part}`: {error}")));
        }
    };
    let parts: [(&str, Check); 8] = [
        ("added_tokens", check::<Vec<Added>>),
        ("truncation", check::<Option<TruncationParams>>),
        ("padding", check::<Option<PaddingParams>>),
        ("normalizer", check::<Option<NormalizerWrapper>>),
        ("pre_tokenizer", check::<Option<PreTokenizerWrapper>>),
        ("post_processor", check::<Option<PostProcessorWrapper>>),
        ("decoder", check::<Option<DecoderWrapper>>),
        ("model", check::<ModelWrapper>),
    ];
    parts.into_iter().find_map(|(name, check)| {
        let value = whole.get(name).unwrap_or(&Value::Null);
        let reason = check(value).err()?;
        let kind = value.get("type").and_then(Value::as_str).map(|kind| format!(" of the type `{kind}`"));
        Some(format!("`{name}`{}: {reason}", kind.unwrap_or_default()))
    })
}

/// An added token, as the file writes it.
#[derive(Deserialize)]
struct Added {
    #[serde(rename = "id")]
    _id: u32,
    #[serde(flatten)]
    _token: AddedToken,
}

type Check = fn(&Value) -> std::result::Result<(), String>;

fn check<T: DeserializeOwned>(value: &Value) -> std::result::Result<(), String> {
    guarded(|| T::deserialize(value).map(drop).map_err(Into::into))
}

/// Returns the key of the outermost object whose value contains a place (line and column from 1).
fn part_at(bytes: &[u8], line: usize, column: usize) -> Option<String> {
    let before: usize =
        bytes.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(<[u8]>::len).sum();
    let (mut depth, mut start, mut escaped) = (0, None, false);
    let (mut last, mut part) = (None, None);
    for (place, &byte) in bytes.iter().enumerate().take(before + column) {
        match (start, byte) {
            (Some(_), _) if escaped => escaped = false,
            (Some(_), b'\\') => escaped = true,
            (Some(from), b'"') => (last, start) = (bytes.get(from..place), None),
            (Some(_), _) => {}
            (None, b'"') => start = Some(place + 1),
            (None, b'{' | b'[') => depth += 1,
            (None, b'}' | b']') => depth -= 1,
            (None, b':') if depth == 1 => part = last,
            (None, _) => {}
        }
    }
    part.map(|part| String::from_utf8_lossy(part).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of one word with this in the place of one of its parts.
    fn reason(part: &str, text: &str) -> String {
        let parts = [
            ("truncation", "null"),
            ("padding", "null"),
            ("added_tokens", "[]"),
            ("normalizer", "null"),
            ("pre_tokenizer", "{\"type\": \"Whitespace\"}"),
            ("post_processor", "null"),
            ("decoder", "{\"type\": \"WordPiece\", \"prefix\": \"##\", \"cleanup\": true}"),
            ("model", "{\"type\": \"WordLevel\", \"vocab\": {\"a\": 0}, \"unk_token\": \"a\"}"),
        ];
        let written =
            parts.map(|(name, own)| format!("\"{name}\": {}", if name == part { text } else { own }));
        let file = format!("{{\"version\": \"1.0\",\n{}}}", written.join(",\n"));
        match parse(Path::new("f/tokenizer.json"), file.as_bytes()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn a_fault_names_the_file_and_the_part_that_holds_it() {
        assert_eq!(reason("", ""), "");
        for part in [
            "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
            "decoder", "model",
        ] {
            for text in
                ["{\"type\": \"Sequence\", }", "{\"type\" \"Fuse\"}", "[1 2]", "{\"type\": \"Fu", "\"\\x\""]
            {
                let found = reason(part, text);
                assert!(
                    found.starts_with(&format!("`f/tokenizer.json` is not a tokenizer: `{part}`: ")),
                    "{text}: {found}"
                );
                assert!(found.contains(" at line "), "{found}");
            }
        }
        for part in ["normalizer", "pre_tokenizer", "post_processor", "decoder", "model"] {
            for text in [
                "{\"type\": \"Unheard\"}",
                "3",
                "{\"type\": \"Sequence\"}",
                "{\"type\": \"Sequence\", \"decoders\": [{\"type\": \"No\"}]}",
            ] {
                let found = reason(part, text);
                assert!(found.contains(&format!("is not a tokenizer: `{part}`")), "{text}: {found}");
            }
        }
        for text in ["[{}]", "[{\"id\": -1, \"content\": \"a\"}]", "3"] {
            assert!(reason("added_tokens", text).contains("is not a tokenizer: `added_tokens`: "), "{text}");
        }
        assert!(reason("decoder", "{\"type\": \"Strip\"}").contains("`decoder` of the type `Strip`: "));
    }

    #[test]
    fn byte_pairs_are_not_dropped() {
        let model = "{\"type\": \"BPE\", \"dropout\": 0.9, \"vocab\": {\"a\": 0, \"b\": 1, \"ab\": 2}, \"merges\": [[\"a\", \"b\"]]}";
        let file = format!("{{\"version\": \"1.0\", \"added_tokens\": [], \"model\": {model}}}");
        let tokenizer = parse(Path::new("tokenizer.json"), file.as_bytes()).unwrap();
        for _ in 0..20 {
            assert_eq!(tokenizer.encode("abab", false).unwrap().get_ids(), [2, 2]);
        }
    }
}
