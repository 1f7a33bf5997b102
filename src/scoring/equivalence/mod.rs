//! Mathematical equivalence of two answers: a reader of LaTeX, exact rational arithmetic, then values at random points.
//!
//! Meant to agree with Hugging Face's Math-Verify 0.9, which asks SymPy; `docs/scoring.md` lists where it does not. Length,
//! depth, the size of exact numbers and of sets are bounded, so the time is too.

mod atoms;
mod clean;
mod compare;
mod expression;
mod read;

use std::sync::LazyLock;

use regex::Regex;

use super::python::pattern;
use super::{Verdict, boxed};

/// The longest answer that is read, in bytes.
const LONGEST: usize = 2000;

/// The most parts of an answer that are compared; sets are matched part by part, so the work grows with their square.
const MOST_PARTS: usize = 400;

/// `The final answer is`, then the rest of the line.
static PHRASE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)answer is\s*:?\s*([^\n]+)"));
/// `Answer:`, then the rest of the line.
static LABEL: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?i)answer\s*:\s*([^\n]+)"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?%?"));
static WHOLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^-?\d+(?:\\?%)?$"));
static FORMULA: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(?s)\$\$(.+?)\$\$|\$((?:\\\$|[^$\n])+)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)"));

/// The answer of a completion against that of the gold solution.
pub fn judge(completion: &str, gold: &str) -> Verdict {
    let Some(found) = extracted(completion) else { return Verdict::none() };
    let gold_boxed = boxed::last_answer(gold).is_some();
    let gold = loosened(extracted(gold).unwrap_or_else(|| gold.to_owned()), gold_boxed);
    let predicted = loosened(found.clone(), boxed::last_answer(completion).is_some());
    let percent_apart = WHOLE.is_match(&gold) && WHOLE.is_match(&predicted);
    let correct = equivalent(&gold, &predicted)
        || (percent_apart
            && equivalent(gold.trim_end_matches(['\\', '%']), predicted.trim_end_matches(['\\', '%'])));
    Verdict::of(found, correct)
}

/// Outside of a box Math-Verify falls back on the number that it finds, so that a full stop or a stray brace after one
/// does not matter, and `16\%` is 16; inside of one they do. A space before the percent sign of a boxed answer keeps
/// it from [`WHOLE`].
fn loosened(answer: String, boxed: bool) -> String {
    if boxed {
        return answer.replace("\\%", " \\%");
    }
    let answer = answer.trim().trim_matches('$').trim();
    let number = answer
        .strip_suffix(['.', '}'])
        .filter(|rest| NUMBER.find(rest).is_some_and(|n| n.len() == rest.len()));
    number.unwrap_or(answer).to_owned()
}

/// The last box; else all of a text that is a formula; else what follows the last `answer is` or `Answer:`; else the last
/// formula; else the last number.
fn extracted(text: &str) -> Option<String> {
    if let Some(content) = boxed::last_answer(text) {
        return Some(content);
    }
    let short = text.len() <= LONGEST && FORMULA.find_iter(text).count() <= 1;
    if short && !text.trim().contains(' ') && read::read(&clean::clean(text)).is_some() {
        return Some(text.trim().to_owned());
    }
    let rest = |pattern: &Regex| {
        let groups = pattern.captures_iter(text).last()?;
        groups.get(1).map(|rest| rest.as_str())
    };
    if let Some(rest) = rest(&PHRASE) {
        let sentence = rest.split(". ").next().unwrap_or_default();
        let sentence = sentence.strip_suffix('.').unwrap_or(sentence);
        return Some(formula(rest, false).unwrap_or(sentence).trim().to_owned());
    }
    if let Some(rest) = rest(&LABEL) {
        return last_formula_or_number(rest).map(str::to_owned);
    }
    formula(text, true)
        .or_else(|| NUMBER.find_iter(text).last().map(|found| found.as_str()))
        .map(str::to_owned)
}

/// What stands between the last or the first pair of dollars or of `\[ \]` and `\( \)`.
fn formula(text: &str, last: bool) -> Option<&str> {
    let mut all = FORMULA.captures_iter(text);
    let groups = if last { all.last() } else { all.next() }?;
    (1..=4).find_map(|group| groups.get(group)).map(|inner| inner.as_str().trim())
}

fn last_formula_or_number(text: &str) -> Option<&str> {
    let end = FORMULA.find_iter(text).last().map_or(0, |found| found.end());
    let after = NUMBER.find_iter(&text[end..]).last().map(|found| found.as_str());
    after.or_else(|| formula(text, true))
}

/// Whether `predicted` is the answer `gold`, both in LaTeX. Never panics; an answer that cannot be read equals only
/// itself, spaces aside.
pub fn equivalent(gold: &str, predicted: &str) -> bool {
    if gold.len() > LONGEST || predicted.len() > LONGEST {
        return gold.trim() == predicted.trim();
    }
    let (gold, predicted) = (clean::clean(gold), clean::clean(predicted));
    let bare = |text: &str| text.split_whitespace().collect::<String>();
    if bare(&gold) == bare(&predicted) {
        return !gold.is_empty();
    }
    // Math-Verify takes no full stop within an answer; a gold one is a slip of the data.
    match (read::read(gold.trim_end_matches('.')), read::read(&predicted)) {
        (Some(gold), Some(predicted)) => {
            gold.size().max(predicted.size()) <= MOST_PARTS && compare::same(&gold, &predicted)
        }
        _ => false,
    }
}
