//! The keys that a sweep varies, each with its values, in groups of those that go in step.

use rand::Rng as _;
use rand_chacha::ChaCha8Rng;
use toml::{Table, Value};

use super::super::parse;
use super::settings::SweepSettings;
use crate::spec::reader::{Given, Reader};

/// Significant digits of a number that is drawn.
const DIGITS: usize = 4;

/// A key and one of its values.
pub(super) type Assignment = (String, Given);

/// Values of a key.
#[derive(Debug, Clone)]
pub(super) enum Values {
    /// Listed.
    List(Vec<Given>),
    /// Between two numbers, ends included.
    Range(Between),
}

/// A range of numbers.
#[derive(Debug, Clone)]
pub(super) struct Between {
    pub(super) min: f64,
    pub(super) max: f64,
    /// True if logarithms are uniform, and not the numbers.
    pub(super) log: bool,
    /// True if only whole numbers are meant.
    pub(super) whole: bool,
    given: Given,
}

impl Between {
    fn value(&self, number: f64) -> Value {
        if self.whole { Value::Integer(number as i64) } else { Value::Float(number) }
    }

    /// Returns it as a recipe has it.
    pub(super) fn table(&self) -> Table {
        let scale = if self.log { "log" } else { "linear" };
        let ends = [("min", self.value(self.min)), ("max", self.value(self.max)), ("scale", scale.into())];
        ends.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn draw(&self, random: &mut ChaCha8Rng) -> Given {
        let share: f64 = random.random();
        // All whole numbers are as wide as each other.
        let (low, high) = if self.whole { (self.min - 0.5, self.max + 0.5) } else { (self.min, self.max) };
        let drawn = match self.log {
            true => self.min * (self.max / self.min).powf(share),
            false => low + (high - low) * share,
        };
        let drawn = if self.whole { drawn.round() } else { rounded(drawn) };
        self.given.one(self.value(drawn.clamp(self.min, self.max)), None)
    }
}

/// Returns a number with so many digits as are told apart in the name of a run.
fn rounded(number: f64) -> f64 {
    format!("{number:.*e}", DIGITS - 1).parse().unwrap_or(number)
}

/// A key that is varied.
#[derive(Debug, Clone)]
pub(super) struct Axis {
    pub(super) key: String,
    pub(super) values: Values,
}

impl Axis {
    /// Gives the value at a place of the list the form that it has in a recipe.
    pub(super) fn settle(&mut self, place: usize, recipe: &Table) {
        if let Values::List(list) = &mut self.values
            && let Some(given) = list.get_mut(place)
        {
            *given = settled(given, &self.key, recipe);
        }
    }
}

/// Returns what is given in the form that it has in a recipe; a key that the recipe's method passes over is in none.
pub(super) fn settled(given: &Given, key: &str, recipe: &Table) -> Given {
    let value = key.split_once('.').and_then(|(section, leaf)| recipe.get(section)?.get(leaf));
    let mut settled = given.clone();
    if let Some(value) = value {
        (settled.value, settled.raw) = (value.clone(), None);
    }
    settled
}

/// Keys whose lists go in step, or one key.
#[derive(Debug, Clone)]
pub(super) struct Group(pub(super) Vec<Axis>);

impl Group {
    /// Returns the length of its lists; `None` for a range.
    pub(super) fn len(&self) -> Option<usize> {
        match self.0.first().map(|axis| &axis.values) {
            Some(Values::List(list)) => Some(list.len()),
            _ => None,
        }
    }

    /// Returns the values at a place of the lists; of a range, its first or last number.
    pub(super) fn at(&self, place: usize) -> Vec<Assignment> {
        let one = |axis: &Axis| {
            let given = match &axis.values {
                Values::List(list) => list.get(place).cloned(),
                Values::Range(range) => {
                    let end = if place == 0 { range.min } else { range.max };
                    Some(range.given.one(range.value(end), None))
                }
            };
            Some((axis.key.clone(), given?))
        };
        self.0.iter().filter_map(one).collect()
    }

    /// Draws one of its values.
    pub(super) fn draw(&self, random: &mut ChaCha8Rng) -> Vec<Assignment> {
        match (self.len(), self.0.first().map(|axis| &axis.values)) {
            (Some(len), _) => self.at(random.random_range(0..len)),
            (None, Some(Values::Range(range))) => {
                self.0.iter().map(|axis| (axis.key.clone(), range.draw(random))).collect()
            }
            (None, _) => Vec::new(),
        }
    }
}

/// Reads the groups of `[sweep]`, in the order in which their first keys are given; faults are recorded in `section`.
/// A key that `--set` gives is not varied.
pub(super) fn groups(section: &mut Reader, base: &Reader, settings: &SweepSettings) -> Vec<Group> {
    let mut keys: Vec<(usize, String)> = section
        .given()
        .filter(|(key, _)| key.contains('.') && section.known().contains_key(key.as_str()))
        .filter_map(|(key, _)| Some((section.get(key)?.at, key.clone())))
        .collect();
    keys.sort();
    let mut axes = Vec::new();
    for (_, key) in keys {
        let Some(given) = section.get(&key).cloned() else { continue };
        match base.get(&key).and_then(Given::set) {
            Some(set) if given.is_swept() => {
                section
                    .fail(&key, format!("expected one value or several, but `--set {set}` gives one, too"));
            }
            Some(set) => tracing::warn!("`--set {set}` replaces the values of `{key}` in the sweep"),
            None => match values(&key, &given, settings.random.is_some()) {
                Ok(values) => axes.push(Axis { key, values }),
                Err(problem) => section.fail(&key, problem),
            },
        }
    }
    for axis in &mut axes {
        if let Values::Range(range) = &mut axis.values {
            range.whole = range.whole && refuses_fractions(base, &axis.key, range);
        }
    }
    in_step(section, axes, &settings.zip)
}

/// Returns true if a fraction between two whole numbers is no value of the key.
fn refuses_fractions(base: &Reader, key: &str, range: &Between) -> bool {
    let mut reader = base.clone();
    reader.put(key, range.given.one(Value::Float(range.min + 0.5), None));
    parse::read(&mut reader);
    !reader.sound(&[key])
}

/// Joins the keys of a `zip` into one group, at the place of the first.
fn in_step(section: &mut Reader, axes: Vec<Axis>, zip: &[Vec<String>]) -> Vec<Group> {
    let varied = |name: &String| axes.iter().any(|axis| axis.key == *name);
    for name in zip.iter().flatten().filter(|name| !varied(name)) {
        if !section.gives(name) {
            section.fail("zip", format!("expected keys that the sweep varies, found `{name}`"));
        }
    }
    if let Some(name) =
        zip.iter().flatten().find(|name| zip.iter().flatten().filter(|n| n == name).count() > 1)
    {
        section.fail("zip", format!("expected each key once, found `{name}` twice"));
        return Vec::new();
    }
    let mut groups: Vec<(usize, Group)> = Vec::new();
    for axis in axes {
        let place = zip.iter().position(|names| names.contains(&axis.key));
        match groups.iter_mut().find(|(group, _)| Some(*group) == place) {
            Some((_, group)) => group.0.push(axis),
            None => groups.push((place.unwrap_or(usize::MAX), Group(vec![axis]))),
        }
    }
    for (_, group) in &groups {
        same_lengths(section, group);
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

fn same_lengths(section: &mut Reader, group: &Group) {
    let [first, rest @ ..] = group.0.as_slice() else { return };
    for axis in rest {
        let lengths = [first, axis].map(|axis| match &axis.values {
            Values::List(list) => Some(list.len()),
            Values::Range(_) => None,
        });
        let (one, other) = (&first.key, &axis.key);
        match lengths {
            [Some(a), Some(b)] if a == b => {}
            [Some(a), Some(b)] => section.fail(
                "zip",
                format!("expected lists of one length, found {a} values of `{one}` and {b} of `{other}`"),
            ),
            _ => section.fail("zip", format!("expected lists, found a range in `{one}` or `{other}`")),
        }
    }
}

/// Returns the values that a key is given, or what is wrong with them.
fn values(key: &str, given: &Given, draws: bool) -> Result<Values, String> {
    let without_draws = "expected a list; a range is for draws, whose number `random` gives";
    if let Some(raw) = given.raw.as_deref().filter(|_| given.is_swept()) {
        if let Some((scale, ends)) = range_of(raw) {
            let ends = ends.split_once("..").and_then(|(min, max)| Some((number(min)?, number(max)?)));
            let (min, max) = ends.ok_or(format!("expected a range such as `{scale}:1e-5..1e-2`"))?;
            let range = between(given, [&min, &max], scale == "log")?;
            return if draws { Ok(Values::Range(range)) } else { Err(without_draws.to_owned()) };
        }
        let items = items(raw).ok_or(
            "expected values between commas, none of them empty, and brackets and quotes that are closed",
        )?;
        return Ok(Values::List(items.into_iter().map(|item| one_of(given, item)).collect()));
    }
    match &given.value {
        Value::Array(list) if list.is_empty() => {
            Err("expected at least one value, found an empty list".into())
        }
        Value::Array(list) => {
            Ok(Values::List(list.iter().map(|value| given.one(value.clone(), None)).collect()))
        }
        Value::Table(table) if table.contains_key("min") || table.contains_key("max") => {
            let log = match table.get("scale").map(|scale| scale.as_str().unwrap_or_default()) {
                Some("log") => true,
                None | Some("linear") => false,
                Some(_) => return Err("expected `log` or `linear` for `scale`".to_owned()),
            };
            if let Some(other) = table.keys().find(|key| !["min", "max", "scale"].contains(&key.as_str())) {
                return Err(format!("expected `min`, `max` and `scale` of a range, found `{other}`"));
            }
            let (Some(min), Some(max)) = (table.get("min"), table.get("max")) else {
                return Err("expected both `min` and `max` of a range".to_owned());
            };
            let range = between(given, [min, max], log)?;
            if draws { Ok(Values::Range(range)) } else { Err(without_draws.to_owned()) }
        }
        _ => Err(format!(
            "expected a list of values of `{key}`, or with `random` a range such as `{{ min = 1e-5, max = 1e-2, scale = \"log\" }}`"
        )),
    }
}

/// Returns scale and ends of what is typed as a range.
fn range_of(raw: &str) -> Option<(&'static str, &str)> {
    ["log", "linear"].into_iter().find_map(|scale| {
        let ends = raw.strip_prefix(scale)?.strip_prefix(':')?;
        ends.contains("..").then_some((scale, ends))
    })
}

fn number(text: &str) -> Option<Value> {
    text.trim().parse().ok()
}

fn between(given: &Given, ends: [&Value; 2], log: bool) -> Result<Between, String> {
    let number = |value: &Value| value.as_float().or(value.as_integer().map(|whole| whole as f64));
    let [Some(min), Some(max)] = ends.map(number) else {
        return Err("expected numbers for both ends of a range".to_owned());
    };
    if !(min.is_finite() && max.is_finite() && min < max) {
        return Err(format!(
            "expected a range from a smaller number to a larger one, found {min:?} to {max:?}"
        ));
    }
    if log && min <= 0.0 {
        return Err(format!(
            "expected a range of numbers above 0 on a logarithmic scale, found {min:?} to {max:?}"
        ));
    }
    let whole = ends.iter().all(|value| value.is_integer());
    Ok(Between { min, max, log, whole, given: given.clone() })
}

/// Returns a value typed between commas.
fn one_of(given: &Given, item: &str) -> Given {
    let names = item.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    match (item.parse::<Value>(), names) {
        // Names in a list need not be quoted either.
        (Err(_), Some(names)) => {
            let names = names.split(',').map(|name| Value::from(name.trim())).collect();
            given.one(Value::Array(names), None)
        }
        (value, _) => given.one(value.unwrap_or_else(|_| Value::from(item)), Some(item.to_owned())),
    }
}

/// Splits at the commas that stand in no quotes, brackets or braces; `None` if there is nothing at one place, or something is
/// left open.
fn items(raw: &str) -> Option<Vec<&str>> {
    let (mut items, mut start, mut depth, mut quote) = (Vec::new(), 0, 0_usize, None);
    for (at, c) in raw.char_indices() {
        match (c, quote) {
            (_, Some(open)) if c == open => quote = None,
            (_, Some(_)) => {}
            // An apostrophe inside a word is none.
            ('"' | '\'', None) if raw.get(..at)?.ends_with(['[', '{', ',', '=', ' ']) || at == 0 => {
                quote = Some(c);
            }
            ('[' | '{', None) => depth += 1,
            (']' | '}', None) => depth = depth.saturating_sub(1),
            (',', None) if depth == 0 => {
                items.push(raw.get(start..at)?.trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    items.push(raw.get(start..)?.trim());
    let closed = depth == 0 && quote.is_none();
    (closed && items.iter().all(|item| !item.is_empty())).then_some(items)
}
