//! Reference of every key of a recipe and of a catalog entry, made from the code that reads them.

use std::fmt::Write as _;

use toml::Value;

use crate::adapters::Method;
use crate::data::entry::Entry;
use crate::data::task::{KINDS, Task};
use crate::fault::Result;
use crate::recipe::{
    AdapterRecipe, DataRecipe, EvalRecipe, ModelRecipe, Recipe, Sweep, SweepSettings, TrainRecipe,
};
use crate::spec::reader::Reader;

const INTRODUCTION: &str = "# Keys

Every key of a recipe and of a catalog entry, with its default, the values that it takes, and its meaning, as
`loraxs recipe --keys` prints them. `loraxs recipe NAME --all` writes a recipe with every key.
";

const SWEEPS: &str = "\
Any key above with a list of values makes a recipe many runs, one for every combination, each with a folder of its own:
`train.seed = [0, 1, 2]`, or `--sweep train.seed=0,1,2`; of a key that is a list, a list of lists. With `random`, also a range:
`train.learning_rate = { min = 1e-5, max = 1e-2, scale = \"log\" }` (or `\"linear\"`), or `--sweep
train.learning_rate=log:1e-5..1e-2`. `--set` with a key of the section replaces its values. The settings below are also typed as
`--sweep random=20`, `--sweep zip=train.learning_rate+train.head_learning_rate`, `--sweep halving=2x3`, `--sweep together=4`.
";

/// The keys of a section with their meanings, and the function that reads them.
type Keys<'a> = (&'static [(&'static str, &'static str)], &'a dyn Fn(&mut Reader));

/// A key as its reader knows it.
struct Known {
    /// Without its section.
    leaf: &'static str,
    /// What its value must be, in words.
    values: String,
    /// Its default; `None` if it has none.
    default: Option<Value>,
    required: bool,
    meaning: &'static str,
}

impl Known {
    /// Returns `= default (values): meaning`.
    fn line(&self) -> String {
        let Self { leaf, values, default, required, meaning } = self;
        let shown = default.as_ref().map(|value| format!(" = `{}`", inline(value))).unwrap_or_default();
        let without = match (required, default) {
            (true, _) => ", required",
            (_, None) => ", none by default",
            _ => "",
        };
        format!("- `{leaf}`{shown} ({values}{without}): {}\n", meaning.trim())
    }
}

/// Returns every key, in Markdown.
pub fn all_keys() -> String {
    let mut text = format!("{INTRODUCTION}\n## Recipe\n");
    let add = |text: &mut String, title: &str, section: &str, keys: Keys| {
        *text += &format!("\n{title}\n\n");
        known(section, "", keys).iter().for_each(|key| *text += &key.line());
    };
    for (section, keys) in sections() {
        add(&mut text, &format!("### `[{section}]`"), section, (keys.0, &keys.1));
        if section == "adapter" {
            let methods = Method::all();
            let defaults = methods.first().map(|method| method.basis_defaults());
            for method in methods.iter().filter(|method| !method.documented().is_empty()) {
                let (init, sigma) = method.basis_defaults();
                let own = match Some((init, sigma)) == defaults {
                    true => String::new(),
                    false => format!(", where `init = \"{init}\"` and `sigma = \"{sigma}\"` by default"),
                };
                let title = format!("With `method = \"{}\"`{own}:", method.name());
                add(&mut text, &title, section, (method.documented(), &|reader| _ = method.read(reader)));
            }
        }
    }
    text += &format!("\n### `[sweep]`\n\n{SWEEPS}");
    known("", "", SETTINGS).iter().enumerate().for_each(|(n, key)| {
        text += if n == 0 { "\n" } else { "" };
        text += &key.line();
    });
    text += "\n## Catalog\n";
    add(&mut text, "### Every entry", "", (Entry::KEYS, &|reader| _ = Entry::read(reader)));
    for (kind, keys) in KINDS {
        add(
            &mut text,
            &format!("### `task = \"{kind}\"`"),
            "",
            (keys, &|reader| _ = Task::read(kind, reader)),
        );
    }
    text
}

/// Returns the recipe `name` in TOML with every key that it may have, each below its meaning, the values that it takes and its
/// default. Of a sweep, only the keys that its recipe gives have values: others may depend on the run.
/// Fails when there is no such recipe, or one with faults.
pub fn explained(name: &str) -> Result<String> {
    let Some((sweep, _)) = Sweep::load(name, &[], &[])? else {
        let (recipe, _) = Recipe::load(name, &[])?;
        return Ok(explained_keys(&recipe.adapter.method, &recipe.to_toml()?.parse()?).trim_end().to_owned());
    };
    let method = sweep.runs.first().map_or(Method::Head, |run| run.recipe.adapter.method.clone());
    let values: toml::Table = sweep.text.parse()?;
    let mut text = explained_keys(&method, &values);
    text += "[sweep]\n";
    let lines = sweep.text.rsplit_once("\n[sweep]\n").map_or("", |(_, section)| section).lines();
    let is_key = |line: &&str| line.split('=').next().is_some_and(|key| key.contains('.'));
    lines.filter(is_key).for_each(|line| _ = writeln!(text, "{line}"));
    explain(&mut text, known("", "", SETTINGS), values.get("sweep"));
    Ok(text.trim_end().to_owned())
}

/// Writes the sections of a recipe with these values, and a line between them.
fn explained_keys(method: &Method, values: &toml::Table) -> String {
    let mut text = String::new();
    for (section, (keys, read)) in sections() {
        let _ = writeln!(text, "[{section}]");
        let mut found = known(section, "", (keys, &read));
        if section == "adapter" {
            // Which method it is decides the defaults of some keys, and adds those of its own behind its name.
            let of_method = format!("method = \"{}\"", method.name());
            let own = known(section, "", (method.documented(), &|reader| _ = method.read(reader)));
            let rest = known(section, &of_method, (keys, &read)).into_iter().skip(1);
            found = found.into_iter().take(1).chain(own).chain(rest).collect();
        }
        explain(&mut text, found, values.get(section));
        text += "\n";
    }
    text
}

/// Writes keys, each below its meaning, with their values in a section.
fn explain(text: &mut String, keys: Vec<Known>, section: Option<&Value>) {
    for Known { leaf, values: expected, default, required, meaning } in keys {
        let default = match default {
            Some(default) => format!("default {}", inline(&default)),
            None if required => "required".to_owned(),
            None => "none by default".to_owned(),
        };
        let _ = writeln!(text, "# {} ({expected}; {default})", meaning.trim());
        let _ = match section.and_then(|section| section.get(leaf)) {
            Some(value) => writeln!(text, "{leaf} = {}", inline(value)),
            None => writeln!(text, "# {leaf} ="),
        };
    }
}

/// Returns the full names of the keys of every recipe, and the values of those that take one of a few words.
pub fn recipe_keys() -> Vec<(String, Vec<String>)> {
    let all = |section: &'static str, keys: Keys| {
        let of = move |key: Known| (format!("{section}.{}", key.leaf), words(&key.values));
        known(section, "", keys).into_iter().map(of).collect::<Vec<_>>()
    };
    let mut found: Vec<_> =
        sections().into_iter().flat_map(|(section, (keys, read))| all(section, (keys, &read))).collect();
    for method in Method::all() {
        found.extend(all("adapter", (method.documented(), &|reader| _ = method.read(reader))));
    }
    found.sort();
    found.dedup();
    found
}

/// Returns the words of ``one of `a`, `b` ``, or `true` and `false`.
fn words(values: &str) -> Vec<String> {
    let few = values.starts_with("one of ") || values.starts_with("`true`") || values.starts_with("`epoch`");
    let quoted = values.split('`').skip(1).step_by(2);
    quoted.filter(|_| few).map(str::to_owned).collect()
}

/// The keys of `[sweep]` that are no keys of a run.
const SETTINGS: Keys = (SweepSettings::KEYS, &|reader| _ = SweepSettings::read(reader));

type Section = (&'static str, (&'static [(&'static str, &'static str)], fn(&mut Reader)));

fn sections() -> [Section; 5] {
    [
        ("model", (ModelRecipe::KEYS, |reader| _ = ModelRecipe::read(reader))),
        ("adapter", (AdapterRecipe::KEYS, |reader| _ = AdapterRecipe::read(reader))),
        ("data", (DataRecipe::KEYS, |reader| _ = DataRecipe::read(reader))),
        ("train", (TrainRecipe::KEYS, |reader| _ = TrainRecipe::read(reader))),
        ("eval", (EvalRecipe::KEYS, |reader| _ = EvalRecipe::read(reader))),
    ]
}

/// Looks up `keys` in their reader, in a document that has the line `given` in this section.
fn known(section: &str, given: &str, (keys, read): Keys) -> Vec<Known> {
    let reading = |line: &str| {
        let head = if section.is_empty() { String::new() } else { format!("[{section}]\n") };
        let mut reader = Reader::open(&format!("{head}{given}\n{line}\n"), "").unwrap_or_default();
        read(&mut reader);
        reader
    };
    let of = |(key, meaning): &(&'static str, &'static str)| {
        let leaf = key.rsplit('.').next().unwrap_or(key);
        let reader = reading("");
        let default = reader.known().get(key).cloned().flatten();
        let missing = reader.faults().iter().any(|fault| fault.contains(&format!("missing key `{key}`")));
        // A date fits no key: the fault says what would.
        let faults = reading(&format!("{leaf} = 1979-05-27")).faults().join("\n");
        let expected = faults.split_once(": expected ").map_or("", |(_, words)| words);
        let words = expected.split(", found a date or time").next().unwrap_or_default();
        let values = words.split(", since").next().unwrap_or_default().to_owned();
        Known { leaf, values, default, required: missing, meaning }
    };
    keys.iter().map(of).collect()
}

/// Returns a value as TOML in one line.
fn inline(value: &Value) -> String {
    match value {
        Value::String(text) => serde_json::Value::from(text.as_str()).to_string(),
        other => other.to_string(),
    }
}
