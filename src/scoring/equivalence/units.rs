//! Units and other words after a value.

use std::sync::LazyLock;

use regex::Regex;

use super::words::is_product;
use crate::scoring::python::pattern;

/// Units in plain letters, as a pattern.
const UNIT: &str = r"(?:inche?s?|feet|foot|ft|yards?|yds?|miles?|mi|cm|mm|km|dm|nm|(?:centi|milli|kilo|deci)?met(?:er|re)s?|units?|degrees?|deg|radians?|rad|dollars?|usd|eur|euros?|yuan|rupees?|cents?|hours?|hrs?|minutes?|min|seconds?|sec|days?|weeks?|months?|years?|yrs?|kg|mg|gm|grams?|kilograms?|tons?|tonnes?|pounds?|lbs?|ounces?|oz|(?:milli)?lit(?:er|re)s?|ml|mL|mph|kph|points?|students?|people|ways?|men|women|apples?|coins?|edges|digits|cars?|numbers?|times|gallons?|acres?|joules?|watts?|volts?|newtons?|amperes?|ohms?|hertz|Hz|kWh|kW|cubes?|squares?|books?|balls?|pieces?|steps?|pages?|terms?|games?)";
/// Letters that are a unit only beside another one: `m/s`.
const SHORT: &str = r"(?:m|s|h|g|J|W|V|N|L|l)";
/// A power of a unit.
const POWER: &str = r"(?:\s*\^\s*(?:-?\d|\{\s*-?\d\s*\})|[23]\b)?";

/// Words for powers of ten and a dozen.
const MULTIPLES: [(&str, &str); 6] = [
    ("hundred", "10^2"),
    ("thousand", "10^3"),
    ("million", "10^6"),
    ("billion", "10^9"),
    ("trillion", "10^{12}"),
    ("dozen", "12"),
];

/// Units alone, with their powers.
static COMPOUND: LazyLock<Regex> = LazyLock::new(|| {
    let unit = format!(r"(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{UNIT}|{SHORT}){POWER}");
    pattern(&format!(r"^\s*{unit}(?:(?:\s*(?:/|\\cdot|·|per\b|\s)\s*)+{unit})*\s*$"))
});

/// `3\text{ million}`, `3 million`.
static MULTIPLES_AFTER: LazyLock<Vec<(Regex, String)>> = LazyLock::new(|| {
    let after = |(word, times)| {
        let wanted = format!(r"(\d)\s*(?:\\text\{{\s*{word}s?\b\s*([^{{}}]*)\}}|{word}s?\b)");
        (pattern(&wanted), format!("$1\\cdot {times}\\text{{$2}}"))
    };
    MULTIPLES.into_iter().map(after).collect()
});

/// Units in `\text{…}` after a value, with their powers, at the end or before a comma, a bracket or a sign.
static TEXT_UNIT: LazyLock<Regex> = LazyLock::new(|| {
    let one = r"\\text\{[^{}]*\}\s*(?:\^\s*(?:-?\d|\{\s*-?\d\s*\}))?";
    pattern(&format!(
        r"([^\s,;=(\[{{+\-*/^_<>&\x01\x02\x03])\s*(?:\\frac\s*\{{\s*{one}\s*\}}\s*\{{\s*{one}\s*\}}|{one}(?:\s*(?:/|\\cdot|·|\s)\s*{one})*)\s*([,;)\]}}=<>\x01\x02\x03&]|\\\}}|\\cup|\\le|\\ge|\\approx|$)"
    ))
});

/// A unit in plain letters after a value, with its power.
static WORD_UNIT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(&format!(
        r"([\d)}}]|\\pi)\s*(?:(?:square|cubic|sq\.?|cu\.?)\s+)?(?:{UNIT}{POWER}(?:\s*(?:/|per\b)\s*(?:{UNIT}|{SHORT}){POWER})?|{SHORT}{POWER}\s*/\s*(?:{UNIT}|{SHORT}){POWER}|m\^[23])\s*([,;)\]=<>\x01\x02\x03]|\\\}}|$)"
    ))
});

/// Other words after a number that is all of the answer.
static WORDS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^(-?\d[\d.,/ ]*)\s((?:[A-Za-z]{3,}|of|in|to|a|per)(?:\s(?:[A-Za-z]{3,}|of|in|to|a|per))*)$")
});

/// Returns true if a text is nothing but units.
pub fn is_compound(text: &str) -> bool {
    COMPOUND.is_match(text)
}

/// Returns the answer without units.
pub fn without(text: &str) -> String {
    // A text that opens the answer is not a unit, nor is the name of a month.
    if text.starts_with("\\text") || super::MONTH.is_match(text) {
        return text.to_owned();
    }
    let replaced = |text: String, (from, to): (&Regex, &str)| from.replace_all(text.trim(), to).into_owned();
    let text = MULTIPLES_AFTER.iter().map(|(from, to)| (from, to.as_str())).fold(text.to_owned(), replaced);
    let units: [&Regex; 4] = [&TEXT_UNIT, &TEXT_UNIT, &WORD_UNIT, &WORD_UNIT];
    let text = units.into_iter().map(|unit| (unit, "$1$2")).fold(text, replaced);
    match WORDS.captures(&text) {
        Some(groups) if !is_product(&groups[2]) => groups[1].trim().to_owned(),
        _ => text.trim().to_owned(),
    }
}
