//! Units of length, time, mass, volume and money, where both answers have one.

use std::sync::LazyLock;

use regex::Regex;

use crate::scoring::python::pattern;

/// Names of units, what they measure, and their size in the first unit of that, as a fraction.
const MEASURES: [(&[&str], char, (u32, u32)); 26] = [
    (&["m", "meter", "meters", "metre", "metres"], 'L', (1, 1)),
    (&["mm", "millimeter", "millimeters", "millimetre", "millimetres"], 'L', (1, 1000)),
    (&["cm", "centimeter", "centimeters", "centimetre", "centimetres"], 'L', (1, 100)),
    (&["dm", "decimeter", "decimeters", "decimetre", "decimetres"], 'L', (1, 10)),
    (&["km", "kilometer", "kilometers", "kilometre", "kilometres"], 'L', (1000, 1)),
    (&["in", "inch", "inches"], 'L', (254, 10_000)),
    (&["ft", "foot", "feet"], 'L', (3048, 10_000)),
    (&["yd", "yds", "yard", "yards"], 'L', (9144, 10_000)),
    (&["mi", "mile", "miles"], 'L', (1_609_344, 1000)),
    (&["s", "sec", "second", "seconds"], 'T', (1, 1)),
    (&["min", "minute", "minutes"], 'T', (60, 1)),
    (&["h", "hr", "hrs", "hour", "hours"], 'T', (3600, 1)),
    (&["day", "days"], 'T', (86_400, 1)),
    (&["week", "weeks"], 'T', (604_800, 1)),
    (&["month", "months"], 'M', (1, 1)),
    (&["yr", "yrs", "year", "years"], 'M', (12, 1)),
    (&["g", "gm", "gram", "grams"], 'G', (1, 1)),
    (&["mg", "milligram", "milligrams"], 'G', (1, 1000)),
    (&["kg", "kilogram", "kilograms"], 'G', (1000, 1)),
    (&["lb", "lbs", "pound", "pounds"], 'P', (1, 1)),
    (&["oz", "ounce", "ounces"], 'P', (1, 16)),
    (&["L", "l", "liter", "liters", "litre", "litres"], 'V', (1, 1)),
    (&["mL", "ml", "milliliter", "milliliters", "millilitre", "millilitres"], 'V', (1, 1000)),
    (&["dollar", "dollars", "USD"], '$', (1, 1)),
    (&["cent", "cents"], '$', (1, 100)),
    (&["km/h", "kph"], 'S', (1, 1)),
];

/// The last unit of an answer, with its power.
static LAST: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?:(?P<text>\\text\{)\s*|[\d)}]\s*|\s)(?P<words>square\s|sq\.?\s|cubic\s|cu\.?\s)?\s*(?P<name>[A-Za-z]+(?:/h)?)(?P<digit>[23])?\s*\}?\s*(?:\^\s*\{?\s*(?P<power>[23])\s*\}?)?\s*$",
    )
});

/// A unit: what it measures, to which power, and the factor to the first unit of that, as a fraction in LaTeX.
#[derive(Debug, PartialEq, Eq)]
pub struct Measure {
    pub of: (char, u32),
    pub factor: String,
}

/// Returns the unit at the end of an answer that was cleaned except for its units.
pub fn last(answer: &str) -> Option<Measure> {
    let groups = LAST.captures(answer)?;
    let name = &groups["name"];
    // A letter alone may be a name.
    if name.len() == 1 && groups.name("text").is_none() {
        return None;
    }
    let (_, of, (above, below)) = MEASURES.into_iter().find(|(names, ..)| names.contains(&name))?;
    let words = groups.name("words").map_or(1, |words| if words.as_str().starts_with('s') { 2 } else { 3 });
    let power = groups
        .name("power")
        .or(groups.name("digit"))
        .map_or(Some(words), |power| power.as_str().parse().ok())?;
    Some(Measure { of: (of, power), factor: format!("(\\frac{{{above}}}{{{below}}})^{power}") })
}
