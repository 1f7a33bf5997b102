//! Very long texts, of which only the first tokens count: no more is read than gives them.

use crate::fault::Result;

/// Size in bytes up to which texts are read whole.
const SHORT: usize = 1 << 16;
/// Bytes of text read per token that counts, as a first try.
const BYTES: usize = 8;
/// Maximum bytes of text read per token that counts.
const MOST_BYTES: usize = 256;
/// Tokens required beyond those that count, because tokens near a cut may differ from the whole text's.
const SPARE: usize = 64;

/// Encodes as much of a text as it takes for `enough` tokens, from its end if `from_end`; also returns
/// whether any of it was left out. Parts end at white space, where all known tokenizers begin a new token.
pub(super) fn first<T>(
    text: &str,
    enough: usize,
    from_end: bool,
    encode: impl Fn(&str) -> Result<T>,
    tokens: impl Fn(&T) -> usize,
) -> Result<(T, bool)> {
    let most = enough.saturating_mul(MOST_BYTES).max(SHORT);
    let mut bytes = enough.saturating_mul(BYTES).max(SHORT);
    loop {
        let part = cut(text, bytes, from_end);
        let found = encode(part)?;
        let whole = part.len() == text.len();
        if whole || tokens(&found) >= enough.saturating_add(SPARE) || bytes >= most {
            return Ok((found, !whole));
        }
        bytes = bytes.saturating_mul(4);
    }
}

/// Returns at most `bytes` bytes of a text, cut at white space if the last half of them has some.
fn cut(text: &str, bytes: usize, from_end: bool) -> &str {
    if text.len() <= bytes {
        return text;
    }
    if from_end {
        let part = &text[boundary(text, text.len() - bytes)..];
        let start = part.len() - part.trim_start().len();
        let space =
            part.get(start..boundary(part, bytes / 2)).and_then(|half| half.find(char::is_whitespace));
        return space.map_or(part, |space| &part[start + space..]);
    }
    let part = &text[..boundary(text, bytes)];
    let half = boundary(part, bytes / 2);
    let space = part[half..].rfind(char::is_whitespace).map(|space| part[..half + space].trim_end());
    space.filter(|ended| ended.len() > half).unwrap_or(part)
}

/// Returns the last place up to `at` where a character begins.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|place| text.is_char_boundary(*place)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// Words as tokens, and how many bytes were read for them.
    fn words(text: &str, enough: usize, from_end: bool) -> (Vec<String>, bool, usize) {
        let read = Cell::new(0);
        let encode = |part: &str| {
            read.set(read.get() + part.len());
            Ok(part.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let (found, cut) = first(text, enough, from_end, encode, Vec::len).unwrap();
        (found, cut, read.get())
    }

    #[test]
    fn the_first_tokens_are_those_of_the_whole_text() {
        let text: String = (0..400_000).map(|i| format!("wörd{i} ")).collect();
        let whole: Vec<&str> = text.split_whitespace().collect();
        for enough in [1, 500, 20_000, 100_000] {
            let (found, cut, read) = words(&text, enough, false);
            assert!(cut && read < (enough * 100).max(100_000), "{read}");
            assert_eq!(found[..enough], whole[..enough]);
            let (found, _, _) = words(&text, enough, true);
            assert_eq!(found[found.len() - enough..], whole[whole.len() - enough..]);
        }
        let (found, cut, _) = words(&text, usize::MAX, false);
        assert_eq!((found.len(), cut), (whole.len(), false));
    }

    #[test]
    fn a_text_without_tokens_is_not_read_for_ever() {
        let blank = " ".repeat(50_000_000) + "end";
        for (text, from_end) in [(&blank, false), (&blank, true), (&"日".repeat(20_000_000), false)] {
            let (_, cut, read) = words(text, 128, from_end);
            assert!(cut && read < 300_000, "{read}");
        }
    }
}
