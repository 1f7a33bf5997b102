//! `sweep.toml`: the recipe and the section of a sweep, with which the same runs are made again.

use std::collections::{BTreeMap, BTreeSet};

use toml::{Table, Value};

use super::super::flat;
use super::axes::{Group, Values};
use super::settings::SweepSettings;
use crate::fault::Result;
use crate::spec::reader::Reader;

/// Writes the keys of `base` that do not vary, then the section.
///
/// # Errors
/// When a value has no form in TOML, which none that was read has.
pub(super) fn text(base: &Reader, groups: &[Group], settings: &SweepSettings) -> Result<String> {
    let axes = || groups.iter().flat_map(|group| &group.0);
    let mut recipe = Table::new();
    for (key, value) in base.given().filter(|(key, _)| axes().all(|axis| axis.key != **key)) {
        let Some((section, leaf)) = key.split_once('.') else { continue };
        let section = recipe.entry(section).or_insert_with(|| Table::new().into());
        if let Value::Table(section) = section {
            section.insert(leaf.to_owned(), value.clone());
        }
    }
    let mut text = format!("{}\n[sweep]\n", toml::to_string(&recipe)?);
    for axis in axes() {
        // Dotted keys keep the order in which the keys vary.
        let values = match &axis.values {
            Values::List(list) => Value::Array(list.iter().map(|given| given.value.clone()).collect()),
            Values::Range(range) => range.table().into(),
        };
        text += &format!("{} = {values}\n", axis.key);
    }
    let is_default = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    for (key, value) in settings.values().into_iter().filter(|(_, value)| !is_default(value)) {
        text += &format!("{key} = {value}\n");
    }
    Ok(text)
}

/// Returns each key with another value in `now` than in `before`, with both; but for `sweep.together`.
///
/// # Errors
/// When one of the texts is no TOML.
pub(super) fn differing(before: &str, now: &str) -> Result<Vec<String>> {
    let [before, now] = [flat(&before.parse()?, ""), flat(&now.parse()?, "")];
    let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let value = |table: &BTreeMap<String, String>, key: &str| {
        table.get(key).map_or("absent".to_owned(), |v| format!("`{v}`"))
    };
    let differing =
        keys.into_iter().filter(|key| *key != "sweep.together" && before.get(*key) != now.get(*key));
    Ok(differing
        .map(|key| format!("`{key}` was {}, now {}", value(&before, key), value(&now, key)))
        .collect())
}
