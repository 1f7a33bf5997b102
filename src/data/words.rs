//! Words and their tags as an example: each tag belongs to the first token of its word, as in Transformers' `run_ner.py`.

use serde_json::Value;

use super::label::{self, Label};
use super::template::cell;
use super::tokenize::Tokenizer;
use super::{Example, Whole};

/// Tokenises the words of a column, with the tags of all of them or none; returns the example, and whether it was cut.
///
/// Words that leave no token, or lie beyond `max_length`, lose their tags.
///
/// # Errors
/// When the column holds no list of texts, there are not as many tags, or no word is left.
pub(super) fn encode(
    column: &str,
    value: Option<&Value>,
    label: Option<Label>,
    (tokenizer, max_length): (&Tokenizer, usize),
) -> Result<(Example, Whole), String> {
    let value =
        value.filter(|value| !value.is_null()).ok_or_else(|| format!("column `{column}` is empty"))?;
    let list = label::list(value).map_err(|reason| format!("column `{column}`: {reason}"))?;
    let words: Vec<String> = list.iter().map(|word| cell(column, Some(word))).collect::<Result<_, _>>()?;
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (encoded, firsts) = tokenizer.encode_words(&words, max_length).map_err(|e| format!("{e:#}"))?;
    let label = match label {
        Some(Label::Tags(tags)) if tags.len() != words.len() => {
            return Err(unequal(column, words.len(), tags.len()));
        }
        Some(Label::Tags(tags)) => {
            let of_word = |word: &usize| tags.get(*word).copied();
            Some(Label::Tags(firsts.iter().flatten().filter_map(of_word).collect()))
        }
        _ => None,
    };
    if firsts.iter().flatten().next().is_none() {
        return Err(format!("column `{column}` holds no word of which the model sees a token"));
    }
    let trained = firsts.iter().map(|first| u8::from(first.is_some())).collect();
    let whole = Whole::new(encoded.whole, encoded.truncated, false);
    Ok((Example { index: 0, ids: encoded.ids, types: encoded.types, trained, label }, whole))
}

fn unequal(column: &str, words: usize, tags: usize) -> String {
    format!("column `{column}` has {words} words, but there are {tags} tags")
}
