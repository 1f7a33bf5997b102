//! Words and their tags as an example: each tag belongs to the first token of its word, as in Transformers' `run_ner.py`.

use serde_json::Value;
use tokenizers::PostProcessor as _;

use super::label::{self, Label};
use super::template::cell;
use super::tokenize::{Encoding, Tokenizer};
use super::tokenizer_class::with_space;
use super::tokenizer_file::{failed, guarded};
use super::{Example, Whole};
use crate::fault::{Result, usage};

impl Tokenizer {
    /// Returns the same tokenizer for texts that are split into words: RoBERTa's needs a space before each, which
    /// `run_ner.py` of Transformers asks of it, too (`add_prefix_space=True`).
    ///
    /// # Errors
    /// When the tokenizer refuses the change.
    pub fn of_words(&self) -> Result<Self> {
        let mut of_words = self.clone();
        if self.is_roberta {
            with_space(&mut of_words.inner, &Value::Bool(true))?;
        }
        Ok(of_words)
    }

    /// Encodes words, with special tokens; also returns, for each token that is the first of a word, the word's place.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_words(&self, words: &[&str], max_length: usize) -> Result<(Encoding, Vec<Option<usize>>)> {
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(false));
        if max_length < added {
            let message = format!("`max_length` is {max_length}, but the special tokens alone are {added}");
            return Err(usage(message).into());
        }
        let mut encoding = guarded(|| self.inner.encode(words, false)).map_err(failed)?;
        let whole = encoding.len() + added;
        let truncated = whole > max_length;
        encoding.truncate(max_length - added, 0, self.direction);
        let encoding = guarded(|| self.inner.post_process(encoding, None, true)).map_err(failed)?;
        let types = self.types_of(&encoding)?;
        let ids = self.embeddable(encoding.get_ids().to_vec())?;
        let mut before = None;
        let first = |word: &Option<u32>| {
            let is_first = *word != std::mem::replace(&mut before, *word);
            word.filter(|_| is_first).map(|word| word as usize)
        };
        Ok((Encoding { ids, types, whole, truncated }, encoding.get_word_ids().iter().map(first).collect()))
    }
}

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
) -> std::result::Result<(Example, Whole), String> {
    let value =
        value.filter(|value| !value.is_null()).ok_or_else(|| format!("column `{column}` is empty"))?;
    let list = label::list(value).map_err(|reason| format!("column `{column}`: {reason}"))?;
    let words: Vec<String> =
        list.iter().map(|word| cell(column, Some(word))).collect::<std::result::Result<_, _>>()?;
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
