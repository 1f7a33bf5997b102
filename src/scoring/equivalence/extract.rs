//! Finds the answer in a completion.

use std::sync::LazyLock;

use regex::Regex;

use super::clean::clean;
use super::words::is_word;
use super::{LONGEST, MONTHS, read};
use crate::scoring::boxed;
use crate::scoring::python::pattern;

/// Maximum number of clauses of a sentence in which the end of an answer is looked for.
const MOST_CLAUSES: usize = 16;

/// An answer as found in a text.
pub struct Found {
    pub text: String,
    /// True if it is in a box.
    pub boxed: bool,
    /// True if it is neither in a box nor in a formula.
    pub bare: bool,
}

/// `The final answer is`, `Answer:`, or a line of its own, `Final answer`.
static PHRASE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?im)\banswers?\s*(?:,?\s*(?:then|therefore|thus|so)\s*,?)?\s*(?:(?P<is>\b(?:is|are|was|were|equals?|(?:should|would|must|will) be|comes? (?:out )?to(?: be)?)\b)|:|=)|^\W*(?:final\s+)?answers?\W*$",
    )
});
static FINAL: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)final answer is\b"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"-?(?:\d{1,2}:\d{2}\b|\d{1,3}(?:\.\d{3})+,\d+\b|\d{1,3}(?: \d{3})+\b(?:[.,]\d+)?|\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)(?:/\d+)?(?:\s?(?:\\?%|per ?cent\b|pct\b))?",
    )
});
static FORMULA: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?s)\$\$(.+?)\$\$|\$((?:\\\$|[^$\n])+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"));
static OPENING: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)^(?:[\s:,\x22'“*]|(?:therefore|thus|then|hence|simply|just|exactly|given by|as follows|equal to|the following)\b)*",
    )
});
/// Displayed formulas.
static DISPLAY: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"\\(begin|end)\s*\{(?:equation|align|gather|multline|displaymath|math|eqnarray)\*?\}")
});
/// Text between two formulas of one answer.
static JOINT: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\s*(?:[,;]?\s*(?:and|or)\b|[,;]|\\?&)\s*$"));
static PERCENT: LazyLock<Regex> = LazyLock::new(|| pattern(r"^\s*\$?\s*(?:\\?%|per ?cent\b|pct\b)"));
/// Text between a formula and what no longer refers to it.
static NEW_SENTENCE: LazyLock<Regex> = LazyLock::new(|| pattern(r"[.!?]\s+\S|\n|^\s*[A-Z]"));
static LETTERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\text\{[^{}]*\}|\\?[A-Za-z]+"));
/// End of a clause, also before one that gives the reason.
static CLAUSE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[;!?]|,\s|\.(?:\s|$)|\s(?:because|since|as|which|where|so|for|when)\s"));

/// Marks of Markdown and HTML around text, in the order in which they go.
static MARKS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"(?m)^\s{0,3}```\w*[^\S\n]*$", ""),
        (r"`", ""),
        (r"(?i)</?(?:b|strong|em|i|u|p|span|div|answer|code|br|mark|h[1-6])\b[^<>\n]*>", " "),
        (r"~~[^~\n]+~~", ""),
        (r"(^|[^\w)}*\]^])\*\*([^*\n]+?)\*\*", "$1$2"),
        (r"(^|[^\w)}*\]^])\*\*\s*\n([^*]+?)\n\s*\*\*", "$1\n$2\n"),
        (r"(?m)(^|[\s(:])\*([^\s*](?:[^*\n]*[^\s*])?)\*($|[\s.,;:!?)])", "$1$2$3"),
        (r"(?m)(^|[\s(:])__([^\s_](?:[^_\n]*[^\s_])?)__($|[\s.,;:!?)])", "$1$2$3"),
        (r"(?m)(^|[\s(:])_([^\s_](?:[^_\n]*[^\s_])?)_($|[\s.,;:!?)])", "$1$2$3"),
        (r"(?m)^\s{0,3}(?:#{1,6}|>|[*•])\s+", ""),
    ]
    .into_iter()
    .map(|(from, to)| (pattern(from), to))
    .collect()
});

/// Returns the answer of a text: the last box, or what is called the final answer after it; else all of a
/// text that is a formula; else what follows the last `answer is` or `Answer:`; else the last formula, or the
/// last number of a later sentence; else the last number.
pub fn answer(text: &str) -> Option<Found> {
    if let Some((content, after)) = boxed::last_answer(text) {
        let after_all = FINAL.find_iter(after).last().and_then(|phrase| stated(&after[phrase.end()..]));
        let found = Found { text: with_percent(content, after), boxed: true, bare: false };
        return Some(after_all.filter(|found| read::read(&clean(&found.text)).is_some()).unwrap_or(found));
    }
    let text = DISPLAY
        .replace_all(text, |groups: &regex::Captures| if &groups[1] == "begin" { "\\[" } else { "\\]" });
    let text = without_marks(&text);
    let stopped = text.trim().trim_end_matches('.');
    // The points of `1, 2, ...` are a part of the list.
    let whole = if stopped.trim_end().ends_with(',') { text.trim() } else { stopped };
    let short = text.len() <= LONGEST && FORMULA.find_iter(&text).count() <= 1;
    let phrase = PHRASE.is_match(whole) && !whole.starts_with(['$', '\\']);
    if short && !phrase && is_mathematics(whole) {
        let bare = !FORMULA.is_match(whole);
        return Some(Found { text: whole.to_owned(), boxed: false, bare });
    }
    let phrases: Vec<_> = PHRASE.captures_iter(&text).collect();
    let after_phrase = |groups: &regex::Captures| {
        let rest = &text[groups.get(0)?.end()..];
        if groups.name("is").is_some() { stated(rest) } else { labelled(rest) }
    };
    phrases.iter().rev().find_map(after_phrase).or_else(|| last(&text))
}

fn without_marks(text: &str) -> String {
    if !text.contains(['*', '_', '`', '<', '#', '>', '•', '~']) {
        return text.to_owned();
    }
    MARKS.iter().fold(text.to_owned(), |text, (from, to)| from.replace_all(&text, *to).into_owned())
}

/// Returns true if a text is an answer alone, without words.
fn is_mathematics(text: &str) -> bool {
    if text.len() > LONGEST {
        return false;
    }
    let clean = clean(text);
    let word = |run: regex::Match| {
        !run.as_str().starts_with('\\') && is_word(run.as_str()) && !MONTHS.contains(&run.as_str())
    };
    !LETTERS.find_iter(&clean).any(word) && read::read(&clean).is_some()
}

/// Adds `\%` to an answer that a percent sign or word follows.
fn with_percent(answer: String, after: &str) -> String {
    if PERCENT.is_match(after) && !answer.contains('%') { format!("{answer}\\%") } else { answer }
}

/// Returns what follows a phrase, without marks, empty words and the mark of a list before it.
fn opened(rest: &str) -> &str {
    let (opening, after) = rest.split_at(OPENING.find(rest).map_or(0, |opening| opening.end()));
    // On a line of its own a dash and a space are not a minus.
    if opening.contains('\n') { after.trim_start_matches("- ").trim_start() } else { after }
}

fn opens_with_formula(rest: &str) -> bool {
    FORMULA.find(rest).is_some_and(|formula| formula.start() == 0)
}

/// Returns the answer after a label: the last number after all formulas of the line, unless the text opens
/// with a formula or a number, or its sentence is mathematics alone; else as [`stated`].
fn labelled(rest: &str) -> Option<Found> {
    let rest = opened(rest);
    let line = rest.lines().next().unwrap_or_default();
    let end = FORMULA.find_iter(line).last().map_or(0, |found| found.end());
    let number = NUMBER.find_iter(&line[end..]).last();
    let sentence = line.split(". ").next().unwrap_or_default();
    let opens = opens_with_formula(rest) || NUMBER.find(line).is_some_and(|number| number.start() == 0);
    match number {
        Some(number) if !opens && !is_mathematics(sentence.trim_end_matches('.')) => {
            Some(Found { text: number.as_str().to_owned(), boxed: false, bare: true })
        }
        _ => stated(rest),
    }
}

/// Returns the answer right after a phrase: the formula there, also on the next lines, else the clause.
fn stated(rest: &str) -> Option<Found> {
    let rest = opened(rest);
    let line = rest.lines().next().unwrap_or_default();
    let place = if opens_with_formula(rest) { rest } else { line };
    let number = NUMBER.find(line).filter(|number| {
        let next = line[number.end()..].trim_start().chars().next();
        number.start() == 0 && next.is_some_and(|c| c.is_alphabetic() || ",.;".contains(c))
    });
    if number.is_none()
        && let Some(formulas) = formulas(place).into_iter().next()
    {
        return Some(formulas);
    }
    let sentence = line.split(". ").next().unwrap_or_default();
    let sentence = sentence.strip_suffix('.').unwrap_or(sentence).trim();
    let bare = |text: &str| Some(Found { text: text.trim().to_owned(), boxed: false, bare: true });
    // The longest part that is mathematics alone: `[1, 2]`, but not `, as shown`.
    let mut ends: Vec<usize> = CLAUSE.find_iter(line).take(MOST_CLAUSES).map(|end| end.start()).collect();
    ends.push(sentence.len());
    ends.sort_unstable();
    if let Some(end) = ends.iter().rev().find(|end| is_mathematics(line[..**end].trim())) {
        return bare(&line[..*end]);
    }
    let clause = &line[..ends.into_iter().find(|end| *end > 0)?];
    match NUMBER.find(clause) {
        Some(number) => bare(number.as_str()),
        None => bare(if NUMBER.is_match(sentence) { clause } else { sentence }),
    }
}

/// Returns the formulas of a text, those joined by commas and `and` or `or` as one.
fn formulas(text: &str) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    let mut end = 0;
    for groups in FORMULA.captures_iter(text) {
        let (Some(all), Some(inner)) = (groups.get(0), (1..=4).find_map(|group| groups.get(group))) else {
            continue;
        };
        let inner = with_percent(inner.as_str().trim().to_owned(), &text[all.end()..]);
        let gap = &text[end..all.start()];
        end = all.end();
        match found.last_mut() {
            Some(last) if JOINT.is_match(gap) => {
                last.text.push_str(&format!(" {} {inner}", gap.trim().replace("\\&", ",").replace('&', ",")))
            }
            _ => found.push(Found { text: inner, boxed: false, bare: false }),
        }
    }
    found
}

/// Returns the last formula, or the last number of a later sentence.
fn last(text: &str) -> Option<Found> {
    let end = FORMULA.find_iter(text).last().map_or(0, |found| found.end());
    let number = NUMBER.find_iter(&text[end..]).last();
    let formula = formulas(text).pop();
    let later =
        |number: &regex::Match| formula.is_none() || NEW_SENTENCE.is_match(&text[end..end + number.start()]);
    match number.filter(later) {
        Some(number) => Some(Found { text: number.as_str().to_owned(), boxed: false, bare: true }),
        None => formula,
    }
}
