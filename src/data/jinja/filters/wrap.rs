//! The filter `wordwrap`: Python's `textwrap` with white space left as it is.

use super::super::args::Args;
use super::super::meter::{Failure, Outcome};
use super::super::methods::{integer, string};
use super::super::run::Run;
use super::super::text::lines;
use super::super::unicode::{DECIMAL, is_space, is_word};
use super::super::value::Value;

/// Rules for breaking lines.
struct Width {
    chars: usize,
    breaks_words: bool,
    breaks_at_hyphens: bool,
}

impl Run<'_> {
    pub fn wordwrap(&self, value: &Value, args: Args) -> Outcome<Value> {
        let names = ["width", "break_long_words", "wrapstring", "break_on_hyphens"];
        let [width, breaks_words, joint, breaks_at_hyphens] = args.take("wordwrap", names, 0)?;
        let text = string(value)?;
        let joint = joint.filter(|joint| !joint.is_none());
        let joint = joint.as_ref().map_or(Ok("\n"), string)?;
        let width = width.map_or(Ok(79), |width| integer(&width))?;
        let is_true = |value: Option<Value>| value.is_none_or(|value| self.truth(&value));
        self.meter.spend(text.len())?;
        self.meter.room(text.len().saturating_mul(16))?;
        let chars = usize::try_from(width).unwrap_or(0);
        let (breaks_words, breaks_at_hyphens) = (is_true(breaks_words), is_true(breaks_at_hyphens));
        let width = Width { chars, breaks_words, breaks_at_hyphens };
        let mut out = String::new();
        for (i, line) in lines(text, false).into_iter().enumerate() {
            out.push_str(if i > 0 { joint } else { "" });
            if chars == 0 && !line.is_empty() {
                return Err(Failure::new("invalid width (must be > 0)"));
            }
            let line: Vec<char> = line.chars().collect();
            for (j, part) in wrapped(&line, &width).into_iter().enumerate() {
                out.push_str(if j > 0 { joint } else { "" });
                self.meter.room(out.len() + part.len())?;
                out.push_str(&part);
            }
        }
        self.meter.text(out)
    }
}

/// Breaks a paragraph into lines.
fn wrapped(text: &[char], width: &Width) -> Vec<String> {
    let mut chunks = chunks(text, width.breaks_at_hyphens).into_iter();
    let mut lines: Vec<String> = Vec::new();
    let mut chunk = chunks.next();
    while chunk.is_some() {
        let (mut line, mut length): (Vec<&[char]>, usize) = (Vec::new(), 0);
        if !lines.is_empty() && chunk.is_some_and(is_blank) {
            chunk = chunks.next();
        }
        while let Some(part) = chunk.filter(|part| length + part.len() <= width.chars) {
            line.push(part);
            length += part.len();
            chunk = chunks.next();
        }
        if let Some(word) = chunk.filter(|word| word.len() > width.chars) {
            if width.breaks_words {
                let (start, end) = word.split_at(cut(word, width.chars - length, width.breaks_at_hyphens));
                line.push(start);
                chunk = Some(end);
            } else if line.is_empty() {
                line.push(word);
                chunk = chunks.next();
            }
        }
        if line.last().is_some_and(|last| is_blank(last)) {
            line.pop();
        }
        if !line.is_empty() {
            lines.push(line.concat().into_iter().collect());
        }
    }
    lines
}

fn is_blank(chunk: &[char]) -> bool {
    chunk.iter().all(|c| is_space(*c))
}

/// Returns where to cut a word longer than a line: after the last hyphen that fits and does not lead it.
fn cut(word: &[char], left: usize, at_hyphens: bool) -> usize {
    let hyphen = word[..left].iter().rposition(|c| *c == '-').filter(|at| *at > 0 && at_hyphens);
    match hyphen {
        Some(at) if word[..at].iter().any(|c| *c != '-') => at + 1,
        _ => left,
    }
}

/// Splits a text into parts that may be on different lines.
fn chunks(text: &[char], at_hyphens: bool) -> Vec<&[char]> {
    let (mut chunks, mut start) = (Vec::new(), 0);
    while start < text.len() {
        let end = chunk_end(text, start, at_hyphens);
        chunks.push(&text[start..end]);
        start = end;
    }
    chunks
}

fn is_break(c: char) -> bool {
    matches!(c, '\t'..='\r' | ' ')
}

/// Finds the end of a part: white space, a dash between words, or a word up to a hyphen or dash in it.
fn chunk_end(text: &[char], start: usize, at_hyphens: bool) -> usize {
    let at = |place: usize| text.get(place).copied();
    let is = |place: Option<usize>, kind: fn(char) -> bool| place.and_then(at).is_some_and(kind);
    let run = |from: usize, kind: fn(char) -> bool| {
        text[from..].iter().position(|c| !kind(*c)).map_or(text.len(), |length| from + length)
    };
    let letter: fn(char) -> bool = |c| is_word(c) && !DECIMAL.has(c);
    let ends_word: fn(char) -> bool = |c| is_word(c) || "!\"'&.,?".contains(c);
    let hyphen: fn(char) -> bool = |c| c == '-';
    if is(Some(start), is_break) {
        return run(start, is_break);
    }
    if !at_hyphens {
        return run(start, |c| !is_break(c));
    }
    // The end of a dash of two hyphens or more between words
    let dash = |from: usize| {
        let follows_word = is(from.checked_sub(1), ends_word) && is(Some(from), hyphen);
        let end = if follows_word { run(from, hyphen) } else { from };
        Some(end).filter(|end| *end >= from + 2 && is(Some(*end), is_word))
    };
    if let Some(end) = dash(start) {
        return end;
    }
    let mut end = start + 1;
    loop {
        if is(Some(end), hyphen) {
            let follows = is(end.checked_sub(1), letter)
                && (is(end.checked_sub(2), letter)
                    || is(end.checked_sub(2), hyphen) && is(end.checked_sub(3), letter));
            let leads = is(Some(end + 1), letter)
                && (is(Some(end + 2), letter) || is(Some(end + 2), hyphen) && is(Some(end + 3), letter));
            if follows && leads {
                return end + 1;
            }
        }
        if end >= text.len() || is(Some(end), is_break) || dash(end).is_some() {
            return end;
        }
        end += 1;
    }
}
