//! What is only typesetting, wording or a unit goes before an answer is read.

use std::sync::LazyLock;

use regex::Regex;

use super::read::ROW;
use crate::scoring::python::pattern;

/// Rewritten in this order.
static REWRITES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    [
        (r"\\(?:d|t|c)frac", r"\frac"),
        (r"\\(?:mathrm|mathbf|mathit|mathsf|textbf|textit|textrm|textnormal|text|mbox|operatorname|rm|bf)\s*\*?\s*\{", r"\text{"),
        (r"\\(?:m?left|m?right)(\\[a-zA-Z]+|[^a-zA-Z])", "$1"),
        (r"\\(?:displaystyle|textstyle|limits|rm\b|bf\b|bigl?|bigr?|Bigl?|Bigr?)", ""),
        (r"\\[lr]?[vV]ert\b|\\mid\b", "|"),
        (r"\\lbrace\b", r"\{"),
        (r"\\rbrace\b", r"\}"),
        (r"\\\$|\\!\s*|\$", ""),
        (r"\s*\{\s*,\s*\}\s*", ","),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)\b)|\\(?:degree|circ)\b|°", ""),
        (r"\\%|\\text\{\s*(?:percent|percentage|\\?%)\s*\}|\bpercent(?:age)?\b|\bpct\b", "%"),
        (r",?\s*\\text\{\s*,?\s*(?:and|or)\s*\}|,?\s*\b(?:and|or)\b", ","),
        (r"\\(?:,|;|:|\s|quad\b|qquad\b)|~|&nbsp;", " "),
        (r"\\text\{\s*\}", ""),
        (r"\\(?:ldots|dots|cdots)\b", " "),
        (r"−|–", "-"),
        (r"≤", r"\le "),
        (r"≥", r"\ge "),
        (r"≠|!=", r"\ne "),
        (r"√", r"\sqrt "),
    ]
    .into_iter()
    .map(|(from, to)| (pattern(from), to))
    .collect()
});

/// A number in `\text{…}` alone.
static TEXT_VALUE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^\\text\{\s*(-?\d+|-?\\frac\{\d+\}\{\d+\})\s*\}$"));

/// A unit in `\text{…}` after a value, with its power.
static TEXT_UNIT: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^(.*[^\s,=(\[{+\-*/^_<>&])\s*\\text\{[^{}]*\}\s*(?:\^\s*(?:\d|\{\d\}))?\s*$"));

/// A unit in plain letters after a value, with its power.
static WORD_UNIT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^(.*(?:[\d)}]|\\pi))\s*(?:square |cubic |sq\.? ?|cu\.? ?)?(?:inche?s?|feet|foot|ft|yards?|miles?|cm|mm|km|dm|met(?:er|re)s?|units?|degrees?|deg|dollars?|cents?|hours?|hr|minutes?|min|seconds?|sec|days?|weeks?|months?|years?|yr|kg|gm|grams?|pounds?|lbs?|lit(?:er|re)s?|mph|points?|students?|people|ways?|men|women|apples?|coins?|edges|digits|cars?|numbers?|times|gallons?|acres?)\s*(?:\^\s*(?:\d|\{\d\}))?\s*$",
    )
});

static ALL_LETTERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[A-Za-z][A-Za-z \-]*[A-Za-z]$"));

/// The answer in a narrower LaTeX, ready to be read.
pub fn clean(answer: &str) -> String {
    let text = answer.replace(['\n', '\t'], " ");
    let mut text = text.replace("\\\\", if text.contains("\\begin") { ROW } else { "\\" });
    for (from, to) in REWRITES.iter() {
        text = from.replace_all(&text, *to).into_owned();
    }
    let mut text = text.trim().to_owned();
    if let Some(value) = TEXT_VALUE.captures(&text).and_then(|groups| groups.get(1)) {
        text = value.as_str().to_owned();
    }
    for unit in [&TEXT_UNIT, &TEXT_UNIT, &WORD_UNIT] {
        if let Some(value) = unit.captures(&text).and_then(|groups| groups.get(1))
            && !value.as_str().starts_with("\\text")
        {
            text = value.as_str().trim().to_owned();
        }
    }
    // Plain words are one name, not a product of letters.
    if ALL_LETTERS.is_match(&text) { format!("\\text{{{text}}}") } else { text }
}
