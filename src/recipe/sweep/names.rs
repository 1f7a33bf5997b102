//! Names of a sweep's runs, which are those of their folders: what varies, fit for file systems.

use std::collections::{BTreeMap, BTreeSet};

use toml::Value;

/// Most bytes of one value in a name, and of a whole name; file systems take 255, with the endings that files are given.
const LONGEST: (usize, usize) = (40, 160);

/// Returns the name of each run, such as `rank=4,seed=0`, from the keys that vary and their values. Keys go by their last part
/// where no other has it. No two names differ only in upper and lower case.
pub(super) fn names(runs: &[Vec<(String, Value)>]) -> Vec<String> {
    let mut leaves: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut texts: BTreeMap<(&str, String), BTreeSet<String>> = BTreeMap::new();
    for (key, value) in runs.iter().flatten() {
        leaves.entry(leaf(key)).or_default().insert(key);
        texts.entry((key, text(value).to_lowercase())).or_default().insert(value.to_string());
    }
    let part = |(key, value): &(String, Value)| {
        let is_alone = leaves.get(leaf(key)).is_some_and(|keys| keys.len() == 1);
        let mut shown = text(value);
        if texts.get(&(key.as_str(), shown.to_lowercase())).is_some_and(|values| values.len() > 1) {
            shown = hashed(&shown, &value.to_string(), LONGEST.0);
        }
        format!("{}={shown}", if is_alone { leaf(key) } else { key })
    };
    let name = |run: &Vec<(String, Value)>| {
        let whole = run.iter().map(part).collect::<Vec<_>>().join(",");
        if whole.len() > LONGEST.1 { hashed(&whole, &whole, LONGEST.1) } else { whole }
    };
    runs.iter().map(name).collect()
}

fn leaf(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

/// Returns a value as a part of a file's name: of a path or hub id, its last part.
fn text(value: &Value) -> String {
    let whole = match value {
        Value::String(text) => text.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join("+"),
        Value::Float(number) => format!("{number:?}"),
        other => other.to_string(),
    };
    let safe = |c: char| if c.is_alphanumeric() || "._-+".contains(c) { c } else { '-' };
    let shown: String = whole.chars().map(safe).collect();
    if shown.len() > LONGEST.0 { hashed(&shown, &value.to_string(), LONGEST.0) } else { shown }
}

/// Returns the beginning of `shown` and a hash of `whole`, at most `longest` bytes.
fn hashed(shown: &str, whole: &str, longest: usize) -> String {
    let hash = blake3::hash(whole.as_bytes()).to_hex();
    let hash = hash.get(..8).unwrap_or_default();
    let room = longest.saturating_sub(hash.len() + 1);
    let end = (0..=room.min(shown.len())).rev().find(|end| shown.is_char_boundary(*end)).unwrap_or(0);
    format!("{}-{hash}", shown.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(keys: &[(&str, Value)]) -> Vec<(String, Value)> {
        keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    #[test]
    fn a_name_says_what_varies_and_is_one_part_of_a_path() {
        let list = Value::Array(vec!["query".into(), "attention.output.dense".into()]);
        let runs = [run(&[
            ("adapter.rank", 4.into()),
            ("train.learning_rate", 1e-5.into()),
            ("train.batch_size", 8.into()),
            ("eval.batch_size", 16.into()),
            ("model.name", "/models/mini lm:v2/".into()),
            ("adapter.targets", list),
            ("adapter.basis", "".into()),
        ])];
        assert_eq!(
            names(&runs),
            ["rank=4,learning_rate=1e-5,train.batch_size=8,eval.batch_size=16,name=mini-lm-v2,\
              targets=query+attention.output.dense,basis="]
        );
    }

    #[test]
    fn what_looks_alike_or_is_cut_ends_in_a_hash() {
        let long = "x".repeat(300);
        for values in [["a/base", "b/base"], ["Base", "base"], ["a b", "a:b"], [&long, &format!("{long}y")]] {
            let runs = values.map(|value| run(&[("model.name", value.into())]));
            let [one, other] = names(&runs).try_into().unwrap();
            assert!(one.to_lowercase() != other.to_lowercase() && one.len() < 60, "{one} {other}");
        }
        let keys: Vec<(String, Value)> =
            (0..20).map(|key| (format!("train.key_of_some_length_{key}"), 1.into())).collect();
        let [name] = names(&[keys]).try_into().unwrap();
        assert_eq!(name.len(), LONGEST.1);
        let accents = run(&[("model.name", "é".repeat(100).as_str().into())]);
        assert!(names(&[accents])[0].starts_with("name=éé"));
    }
}
