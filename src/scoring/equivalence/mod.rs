//! Mathematical equivalence of two answers: a reader of LaTeX, exact rational arithmetic, then values at random points.
//!
//! Meant to agree with Hugging Face's Math-Verify 0.9, which uses SymPy; `docs/scoring.md` lists where it does not. Length,
//! depth, the size of exact numbers and of sets are bounded, so the time is too.

mod arithmetic;
mod assignments;
mod atoms;
mod clean;
mod closeness;
mod compare;
mod expression;
mod extract;
mod functions;
mod lists;
mod measures;
mod numbers;
mod read;
mod residue;
mod sets;
mod units;
mod value;
mod words;

use std::sync::LazyLock;

use regex::Regex;

use super::Verdict;
use super::python::pattern;
use extract::Found;

/// The longest answer that is read, in bytes.
const LONGEST: usize = 2000;

/// The most parts of an answer that are compared; sets are matched part by part, so the work grows with their square.
const MOST_PARTS: usize = 400;

static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"^-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?$"));
static WHOLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"^(\d+)(?:\s*%)?$"));
static DECIMAL_COMMA: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^(-?\d+|-?\d{1,3}(?:[ .]\d{3})+),(\d+)(\s*%)?$"));
static DATE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^(?:\d{4}([-/.])\d{1,2}([-/.])\d{1,2}|\d{1,2}([-/.])\d{1,2}([-/.])\d{4}|\d+\.\d+\.\d+(?:\.\d+)*|(?:\d{3}-)?\d{3}-\d{4})$",
    )
});

const MONTHS: [&str; 12] = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
    "November", "December",
];
/// A month with a number before or after it.
static MONTH: LazyLock<Regex> = LazyLock::new(|| {
    let month = format!(r"\b(?:{})\b", MONTHS.join("|"));
    pattern(&format!(r"\d[^A-Za-z]*(?:\\text\{{)?\s*{month}|{month}[^A-Za-z]*\d"))
});
static WORD: LazyLock<Regex> = LazyLock::new(|| pattern(r"[a-z]{3,}|\d+"));

/// Compares the answer of a completion with that of the gold solution.
pub fn judge(completion: &str, gold: &str) -> Verdict {
    let Some(found) = extract::answer(completion) else { return Verdict::none() };
    let gold =
        extract::answer(gold).unwrap_or_else(|| Found { text: gold.to_owned(), boxed: false, bare: true });
    let (a, b) = (loosened(&gold), loosened(&found));
    let correct = equivalent(a, b)
        || (whole_percent(a).is_some() && whole_percent(a) == whole_percent(b))
        || as_decimal(a).filter(|_| gold.bare).is_some_and(|a| equivalent(&a, b))
        // In prose an exclamation mark may be one.
        || b.strip_suffix('!').filter(|_| found.bare).is_some_and(|b| equivalent(a, b))
        || as_decimal(b).is_some_and(|b| equivalent(a, &b));
    Verdict::of(found.text, correct)
}

/// Drops a full stop or a stray brace after a number outside of a box; inside of one they matter.
fn loosened(found: &Found) -> &str {
    if found.boxed {
        return &found.text;
    }
    let answer = found.text.trim().trim_matches('$').trim();
    answer.strip_suffix(['.', '}']).filter(|rest| NUMBER.is_match(rest)).unwrap_or(answer)
}

/// Returns the number of a whole number or of whole percents, which are interchangeable.
fn whole_percent(answer: &str) -> Option<String> {
    let clean = if answer.len() <= LONGEST { clean::with_units(answer) } else { return None };
    WHOLE.captures(&clean).map(|groups| groups[1].trim_start_matches('0').to_owned())
}

/// Reads `2,74` as 2.74. Three digits after the comma are a group of them, except after a zero.
fn as_decimal(answer: &str) -> Option<String> {
    if answer.len() > LONGEST {
        return None;
    }
    let clean = clean::clean(answer);
    let groups = DECIMAL_COMMA.captures(&clean)?;
    let (whole, decimals) = (groups[1].replace([' ', '.'], ""), &groups[2]);
    let grouped = decimals.len() == 3 && !matches!(&whole[..], "0" | "-0") && whole.len() <= 3;
    let percent = groups.get(3).map_or("", |sign| sign.as_str());
    (!grouped).then(|| format!("{whole}.{decimals}{percent}"))
}

/// Removes the wrapping of words, and spaces except between two digits: `1 3/4` is not `13/4`.
fn bare(text: &str) -> String {
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    let joined = |mut whole: String, part: &str| {
        if digit(whole.chars().next_back()) && digit(part.chars().next()) {
            whole.push(' ');
        }
        whole + part
    };
    let text = text.split_whitespace().fold(String::new(), joined);
    if text.contains("\\text{") { text.replace("\\text{", "").replace('}', "").to_lowercase() } else { text }
}

/// Returns true if `predicted` is the answer `gold`, both in LaTeX. Never panics; an answer that cannot be
/// read equals only itself, spaces aside.
pub fn equivalent(gold: &str, predicted: &str) -> bool {
    if gold.len() > LONGEST || predicted.len() > LONGEST {
        return gold.trim() == predicted.trim();
    }
    // A full stop after an answer is not part of it.
    let cleaned = |text: &str| clean::with_units(text).trim_end_matches('.').trim_end().to_owned();
    let (gold, predicted) = (cleaned(gold), cleaned(predicted));
    if let (Some(a), Some(b)) = (measures::last(&gold), measures::last(&predicted))
        && a != b
    {
        let scaled = |text: &str, measure: &measures::Measure| {
            format!("({})\\cdot {}", units::without(text), measure.factor)
        };
        return a.of == b.of && same(&scaled(&gold, &a), &scaled(&predicted, &b));
    }
    same(&units::without(&gold), &units::without(&predicted))
}

/// [`equivalent`] of answers that were cleaned.
fn same(gold: &str, predicted: &str) -> bool {
    if bare(gold) == bare(predicted) {
        return !gold.is_empty();
    }
    // Dates, versions and telephone numbers are names.
    if MONTH.is_match(gold) || MONTH.is_match(predicted) {
        return words(gold) == words(predicted);
    }
    if DATE.is_match(gold) || DATE.is_match(predicted) {
        return false;
    }
    match (read::read(gold), read::read(predicted)) {
        (Some(gold), Some(predicted)) => {
            gold.size().max(predicted.size()) <= MOST_PARTS
                && compare::same(&arithmetic::evaluated(gold), &arithmetic::evaluated(predicted))
        }
        _ => false,
    }
}

/// Returns the words and numbers of a date, in sorted order.
fn words(text: &str) -> Vec<String> {
    let lower = text.replace("\\text", " ").to_lowercase();
    let mut words: Vec<String> = WORD.find_iter(&lower).map(|word| word.as_str().to_owned()).collect();
    words.sort_unstable();
    words
}
