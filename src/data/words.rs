//! Words and their tags as an example: each tag belongs to the first token of its word, as in Transformers' `run_ner.py`.

use std::ops::Range;

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

/// A text or a list of words, whose tags a model is to tell.
#[derive(Debug)]
pub struct Sentence {
    /// Its tokens.
    pub example: Example,
    /// Its length before it was cut.
    pub whole: Whole,
    /// The words, each with its place: in characters of the text, or among the words.
    pub words: Vec<(String, Range<usize>)>,
    /// The words of which the model sees a token, in order.
    pub seen: Vec<usize>,
    /// The text that they are from; `None` for a list.
    pub text: Option<String>,
}

/// Tokenises the words of a column without tags: a list of them, or a text, which is split at white space and punctuation, as
/// BERT does; `tokenizer` is one [`Tokenizer::of_words`].
///
/// # Errors
/// When the column holds neither, or no word of which the model sees a token.
pub fn sentence(
    column: &str,
    value: Option<&Value>,
    (tokenizer, max_length): (&Tokenizer, usize),
) -> std::result::Result<Sentence, String> {
    let (words, text) = match value {
        None | Some(Value::Null) => return Err(format!("column `{column}` is empty")),
        Some(Value::String(text)) if !text.trim_start().starts_with('[') => (split(text), Some(text.clone())),
        Some(value) => {
            let list = label::list(value).map_err(|reason| format!("column `{column}`: {reason}"))?;
            let word = |(at, word): (usize, &Value)| Ok((cell(column, Some(word))?, at..at + 1));
            (list.iter().enumerate().map(word).collect::<std::result::Result<_, String>>()?, None)
        }
    };
    let texts: Vec<&str> = words.iter().map(|(word, _)| word.as_str()).collect();
    let (encoded, firsts) = tokenizer.encode_words(&texts, max_length).map_err(|e| format!("{e:#}"))?;
    let seen: Vec<usize> = firsts.iter().flatten().copied().collect();
    if seen.is_empty() {
        return Err(format!("column `{column}` holds no word of which the model sees a token"));
    }
    let trained = firsts.iter().map(|first| u8::from(first.is_some())).collect();
    let whole = Whole::new(encoded.whole, encoded.truncated, false);
    let example = Example { index: 0, ids: encoded.ids, types: encoded.types, trained, label: None };
    Ok(Sentence { example, whole, words, seen, text })
}

/// Splits a text into words and marks of punctuation, each with its place in characters.
fn split(text: &str) -> Vec<(String, Range<usize>)> {
    let is_mark = |c: char| {
        c.is_ascii_punctuation()
            || matches!(c, '¡' | '§' | '«' | '¶' | '·' | '»' | '¿' | '\u{2010}'..='\u{2027}' | '\u{2030}'..='\u{205e}' | '\u{3001}'..='\u{3003}' | '\u{3008}'..='\u{3011}')
    };
    let mut words: Vec<(String, Range<usize>)> = Vec::new();
    let mut is_open = false;
    for (at, c) in text.chars().enumerate() {
        let goes_on = !c.is_whitespace() && !is_mark(c);
        match words.last_mut().filter(|_| is_open && goes_on) {
            Some((word, place)) => {
                word.push(c);
                place.end = at + 1;
            }
            None if c.is_whitespace() => {}
            None => words.push((c.to_string(), at..at + 1)),
        }
        is_open = goes_on;
    }
    words
}

fn unequal(column: &str, words: usize, tags: usize) -> String {
    format!("column `{column}` has {words} words, but there are {tags} tags")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_split_at_white_space_and_punctuation() {
        let found: Vec<(String, usize, usize)> =
            split("Ann's é-mail, to  Zoë.").into_iter().map(|(word, at)| (word, at.start, at.end)).collect();
        let expected = [
            ("Ann", 0, 3),
            ("'", 3, 4),
            ("s", 4, 5),
            ("é", 6, 7),
            ("-", 7, 8),
            ("mail", 8, 12),
            (",", 12, 13),
            ("to", 14, 16),
            ("Zoë", 18, 21),
            (".", 21, 22),
        ];
        assert_eq!(found, expected.map(|(word, start, end)| (word.to_owned(), start, end)));
        assert!(split(" \n").is_empty());
    }
}
