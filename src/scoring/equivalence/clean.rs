//! Removes what is only typesetting, wording or a unit before an answer is read.

use std::sync::LazyLock;

use regex::Regex;

use super::read::{AND, COMMA, OR, ROW};
use super::units;
use crate::scoring::python::pattern;

/// Characters and their LaTeX.
const CHARACTERS: [(&str, &str); 43] = [
    ("−", "-"),
    ("–", "-"),
    ("≤", r"\le "),
    ("≥", r"\ge "),
    ("⩽", r"\le "),
    ("⩾", r"\ge "),
    ("≠", r"\ne "),
    ("≈", r"\approx "),
    ("≅", r"\cong "),
    ("√", r"\sqrt "),
    ("π", r"\pi "),
    ("θ", r"\theta "),
    ("α", r"\alpha "),
    ("β", r"\beta "),
    ("∞", r"\infty "),
    ("∈", r"\in "),
    ("∅", r"\emptyset "),
    ("∖", r"\setminus "),
    ("ℝ", r"\R "),
    ("²", "^2"),
    ("³", "^3"),
    ("½", r"\frac12"),
    ("⅓", r"\frac13"),
    ("⅔", r"\frac23"),
    ("¼", r"\frac14"),
    ("¾", r"\frac34"),
    ("∨", OR),
    ("∧", AND),
    ("∣", "|"),
    ("‖", "|"),
    ("⟨", r"\langle "),
    ("⟩", r"\rangle "),
    ("∠", r"\angle "),
    ("△", r"\triangle "),
    ("′", "'"),
    ("\u{a0}", " "),
    ("\u{2009}", " "),
    ("\u{202f}", " "),
    ("**", "^"),
    ("€", ""),
    ("£", ""),
    ("¥", ""),
    ("₹", ""),
];

/// Pattern of an ellipsis.
const ELLIPSIS: &str = r"\\(?:ldots|dots|cdots|dotsc|dotsb)\b|…|\.\.\.";

/// Returns a pattern of ordinal numbers with their ending: `2nd`, `2^{\text{nd}}`.
fn ordinal(number: &str, ending: &str) -> String {
    let text = format!(r"\\text\{{\s*{ending}\s*\}}");
    format!(r"\b({number})(?:{ending}\b|\^\s*(?:{text}|\{{\s*(?:{ending}|{text})\s*\}}))")
}

/// Patterns and their replacements, applied in this order.
static REWRITES: LazyLock<Vec<(Regex, String)>> = LazyLock::new(|| {
    let words = r"(?:math(?:rm|bf|it|sf|tt|cal|normal)|text(?:bf|it|rm|normal|sf|tt|up)?|emph|underline|boldsymbol|bold|bm|mbox|hbox|operatorname|rm|bf)";
    [
        (r"([\d)])!=".into(), "$1! =".into()),
        (r"!=".into(), r"\ne ".into()),
        (r"\\(?:d|t|c|x|s|nice)frac".into(), r"\frac".into()),
        (format!(r"\\{words}\b\s*\*?\s*\{{"), r"\text{".into()),
        (r"\\math(?:rm|bf|it|sf)\b\s*|\\(?:bm|boldsymbol)\b\s*".into(), String::new()),
        (
            r"\\(?:text)?color\s*\{[^{}]*\}|\\(?:phantom|label|tag|hspace|vspace)\s*\{[^{}]*\}".into(),
            " ".into(),
        ),
        (r"\\(?:m?left|m?right)\s*\.".into(), String::new()),
        (r"\\m?left\s*(?:\||\\[lr]?[vV]ert\b|\\mid\b|\\\|)|\\l[vV]ert\b".into(), r"\lvert ".into()),
        (r"\\m?right\s*(?:\||\\[lr]?[vV]ert\b|\\mid\b|\\\|)|\\r[vV]ert\b".into(), r"\rvert ".into()),
        (r"\\(?:m?left|m?right)(\\[a-zA-Z]+|[^a-zA-Z])".into(), "$1".into()),
        (r"\\[bB]igg?[lrm]?([^a-zA-Z])".into(), "$1".into()),
        (
            r"\\(?:displaystyle|textstyle|limits|rm|bf|tiny|small|normalsize|large|Large|LARGE|huge|Huge)\b"
                .into(),
            String::new(),
        ),
        (r"\\colon\b".into(), ":".into()),
        (r"\\[vV]ert\b|\\mid\b|\\middle\s*\||\\\|".into(), "|".into()),
        (r"\\lbrace\b".into(), r"\{".into()),
        (r"\\rbrace\b".into(), r"\}".into()),
        (r",\s*\\!\s*".into(), ",".into()),
        (r"\\\$|\\!\s*|\$|\\(?:pounds|euro)\b".into(), String::new()),
        (r"\s*\{\s*,\s*\}\s*".into(), COMMA.to_string()),
        (r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)\b)|\\degree\b".into(), "°".into()),
        (r"([\d})])\s*\\circ\b".into(), "$1°".into()),
        (r"°\s*(?:\\text\{\s*[CF]\s*\}|[CF]\b)".into(), "°".into()),
        (
            r"\\%|\\text\{\s*(?:percent|percentage|per ?cent|pct|\\?%)\s*\}|\bper ?cent(?:age)?\b|\bpct\b"
                .into(),
            "%".into(),
        ),
        (r"\{([^{}]*)\\over\b([^{}]*)\}".into(), r"\frac{$1}{$2}".into()),
        (r"\{([^{}]*)\\choose\b([^{}]*)\}".into(), r"\binom{$1}{$2}".into()),
        (r"\\(?:,|;|:|>|\s|quad\b|qquad\b|space\b|enspace\b|thinspace\b)|~|&nbsp;".into(), " ".into()),
        (r"\\bigcup\b|([)\]}])\s*U\s*([(\[{\\])".into(), r"$1\cup $2".into()),
        (r"\\leqq\b".into(), r"\le ".into()),
        (r"\\geqq\b".into(), r"\ge ".into()),
        (r"\\not\s*=".into(), r"\ne ".into()),
        (r"\\not\s*\\in\b|∉".into(), r"\notin ".into()),
        (r"\\(?:lor|vee)\b".into(), OR.into()),
        (r"\\(?:land|wedge)\b".into(), AND.into()),
        (r"&\s*=|=\s*&".into(), "=".into()),
        (r"\\&".into(), AND.into()),
        (r"\x01\s*\[\s*-?[\d.]+\s*[a-z]{2}\s*\]".into(), ROW.into()),
        // An ellipsis between commas is a part of the list; elsewhere it is left out.
        (format!(r"([,;])\s*(?:{ELLIPSIS})"), r"$1\ellipsis ".into()),
        (format!(r"(^|[(\[{{])\s*(?:{ELLIPSIS})\s*([,;])"), r"$1\ellipsis $2".into()),
        (ELLIPSIS.into(), " ".into()),
        (r"\b(\d+)\s*_\s*(?:10\b|\{\s*10\s*\}|\{?\s*\\text\{\s*ten\s*\}\s*\}?)".into(), "$1".into()),
        (ordinal(r"(?:\d*[02-9])?1", "st"), "$1".into()),
        (ordinal(r"(?:\d*[02-9])?2", "nd"), "$1".into()),
        (ordinal(r"(?:\d*[02-9])?3", "rd"), "$1".into()),
        (ordinal(r"\d*(?:1[1-3]|[04-9])", "th"), "$1".into()),
        (
            r"(^|[^A-Za-z\\])d(\^\d)?\s?([A-Za-z])\s*/\s*d([A-Za-z](?:\^\d)?)\b".into(),
            r"$1\frac{d$2$3}{d$4}".into(),
        ),
        (r"\\\{(\\begin.*\\end\{\w+\*?\})$".into(), "$1".into()),
        (r"(\d{1,2}:\d{2})\s*(?:\\text\{\s*)?[aA]\.?\s?[mM]\b\.?\s*\}?".into(), r"$1\forenoon ".into()),
        (r"(\d{1,2}:\d{2})\s*(?:\\text\{\s*)?[pP]\.?\s?[mM]\b\.?\s*\}?".into(), r"$1\afternoon ".into()),
    ]
    .into_iter()
    .map(|(from, to)| (pattern(&from), to))
    .collect()
});

/// `and` and `or`, alone, in `\text{…}`, or glued between two values.
static JOINTS: LazyLock<Vec<(Regex, String)>> = LazyLock::new(|| {
    [("and", AND), ("or", OR)]
        .into_iter()
        .flat_map(|(word, joint)| {
            [
                (
                    pattern(&format!(r"[,;]?\s*\\text\{{\s*[,;]?\s*{word}\s*\}}|[,;]?\s*\b{word}\b")),
                    joint.to_owned(),
                ),
                (pattern(&format!(r"([\d)\]}}]){word}([A-Za-z(\[\\{{\d-])")), format!("$1{joint}$2")),
            ]
        })
        .collect()
});

/// Names of functions and constants that may lack a backslash.
const FUNCTIONS: [&str; 17] = [
    "sqrt", "abs", "sin", "cos", "tan", "cot", "det", "csc", "arcsin", "arccos", "arctan", "ln", "log",
    "exp", "pi", "theta", "infty",
];

static ARROW: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\\(?:implies|Rightarrow|Longrightarrow|therefore)\b|⇒|∴"));
static TEXT: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\text\{([^{}]*)\}"));
/// A number and plain words after it.
static COUNTED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^\s*(-?[\d.,/ ]*\d)\s+([A-Za-z][A-Za-z .-]*?)\s*$"));
/// Words that introduce a value.
static PHRASE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^\\text\{[^{}]*\b(?:is|are|equals?|be|value|about|around|approximately|roughly|nearly|exactly)\s*:?\s*\}\s*",
    )
});
static LETTERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\\?[A-Za-z]+"));
static ALL_LETTERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^[A-Za-z][A-Za-z \-]*[A-Za-z]$"));

/// Rewrites the answer in a narrower LaTeX, ready to be read.
pub fn clean(answer: &str) -> String {
    units::without(&with_units(answer))
}

/// Like [`clean`], but keeps units.
pub fn with_units(answer: &str) -> String {
    let text = answer.replace(['\n', '\t'], " ");
    let mut text = text.replace("\\\\", if text.contains("\\begin") { ROW } else { "\\" });
    for (from, to) in CHARACTERS {
        text = text.replace(from, to);
    }
    text = after_arrow(&text).to_owned();
    for (from, to) in REWRITES.iter() {
        text = from.replace_all(&text, to.as_str()).into_owned();
    }
    text = joined(&without_wrappers(&joined(&text))).replace("\\text{}", "");
    text = PHRASE.replace(text.trim(), "").trim().to_owned();
    // Plain words are one name, not a product of letters.
    if ALL_LETTERS.is_match(&text) && !is_product(&text) {
        return if FUNCTIONS.contains(&text.as_str()) {
            format!("\\{text}")
        } else {
            format!("\\text{{{text}}}")
        };
    }
    with_backslashes(&text)
}

/// Returns what follows the last arrow after a relation: `2x=4 \Rightarrow x=2` is `x=2`.
fn after_arrow(text: &str) -> &str {
    match ARROW.find_iter(text).last() {
        Some(arrow) if text[..arrow.start()].contains(['=', '<', '>']) => &text[arrow.end()..],
        _ => text.trim_start().strip_prefix("\\therefore").unwrap_or(text),
    }
}

fn joined(text: &str) -> String {
    JOINTS.iter().fold(text.to_owned(), |text, (from, to)| from.replace_all(&text, to.as_str()).into_owned())
}

/// Replaces every closed `\text{…}` by what [`unwrapped`] makes of it.
fn without_wrappers(text: &str) -> String {
    let (mut whole, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once("\\text{") {
        let mut open = 1;
        let end = after.char_indices().find(|(_, c)| {
            open += match c {
                '{' => 1,
                '}' => -1,
                _ => 0,
            };
            open == 0
        });
        whole.push_str(before);
        let Some((end, _)) = end else {
            rest = &rest[before.len()..];
            break;
        };
        whole.push_str(&unwrapped(&after[..end]));
        rest = &after[end + 1..];
    }
    whole + rest
}

/// Unwraps the inside of `\text{…}` if it is mathematics: numbers, equations, single letters.
fn unwrapped(inner: &str) -> String {
    let inner = inner.trim();
    if FUNCTIONS.contains(&inner) {
        return format!("\\{inner} ");
    }
    if let Some(groups) = COUNTED.captures(inner) {
        return format!(" {}\\text{{ {}}} ", &groups[1], &groups[2]);
    }
    if units::is_compound(inner) {
        return format!("\\text{{{}}}", inner.replace(['{', '}', '^', '\\'], ""));
    }
    let mathematics =
        inner.contains(|c: char| c.is_ascii_digit() || "=<>,".contains(c) || c == '\u{2}' || c == '\u{3}');
    let known = |run: regex::Match| {
        run.len() == 1 || run.as_str().starts_with('\\') || FUNCTIONS.contains(&run.as_str())
    };
    if mathematics && LETTERS.find_iter(inner).all(known) {
        return format!(" {inner} ");
    }
    format!("\\text{{{inner}}}")
}

/// Words of two letters.
const SHORT_WORDS: [&str; 34] = [
    "ad", "ah", "am", "an", "as", "at", "ax", "be", "by", "do", "ed", "eh", "ex", "go", "ha", "he", "hi",
    "if", "in", "is", "it", "me", "mr", "ms", "my", "no", "of", "oh", "ok", "on", "or", "so", "to", "up",
];

/// Returns true if letters are a word rather than a product of names or the name of a function.
pub fn is_word(letters: &str) -> bool {
    let lower = letters.to_ascii_lowercase();
    match letters.len() {
        0 | 1 => false,
        2 => SHORT_WORDS.contains(&lower.as_str()) || is_roman(letters),
        _ => !FUNCTIONS.contains(&lower.as_str()) && !is_capital(letters),
    }
}

fn is_capital(letters: &str) -> bool {
    letters.bytes().all(|c| c.is_ascii_uppercase())
}

/// Returns true if it is a small Roman number.
pub fn is_roman(letters: &str) -> bool {
    letters.bytes().all(|c| b"IVX".contains(&c))
}

/// Returns true if letters denote numbers rather than words: `xy`, `abc`, `a - b`.
pub fn is_product(text: &str) -> bool {
    let (letters, vowels) = (text.as_bytes(), text.bytes().filter(|c| b"aeiou".contains(c)).count());
    let neighbours = letters.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    match letters.len() {
        2 if !text.contains(' ') => !is_word(text),
        3 if is_lower(text) => vowels == 0 || neighbours,
        _ if text.contains('-') => text.split('-').all(|run| run.trim().len() <= 2),
        _ => text.split(' ').all(|run| run.len() <= 1),
    }
}

fn is_lower(letters: &str) -> bool {
    letters.bytes().all(|c| c.is_ascii_lowercase())
}

/// Rewrites `2sqrt(3)` as `2\sqrt(3)`, but not within `\text{…}`.
fn with_backslashes(text: &str) -> String {
    let (mut whole, mut end) = (String::new(), 0);
    let texts: Vec<_> = TEXT.find_iter(text).map(|found| found.range()).collect();
    for run in LETTERS.find_iter(text) {
        whole.push_str(&text[end..run.start()]);
        if FUNCTIONS.contains(&run.as_str()) && !texts.iter().any(|range| range.contains(&run.start())) {
            whole.push('\\');
        }
        whole.push_str(run.as_str());
        end = run.end();
    }
    whole.push_str(&text[end..]);
    whole
}
