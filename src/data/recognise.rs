//! What an entry does not say, told by the rows themselves: the task, its columns, and the names of the classes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use toml::{Table, Value};

use super::dataset::Dataset;
use super::row::{Columns, Wanted, kind};
use super::rows::Rows;
use super::{entry, odd};
use crate::fault::{Fault, Result, fault, short, usage};

/// Columns of a text, or of a pair, by the names that data sets give them.
const TEXTS: [&[&str]; 10] = [
    &["sentence1", "sentence2"],
    &["premise", "hypothesis"],
    &["question1", "question2"],
    &["question", "sentence"],
    &["text1", "text2"],
    &["text"],
    &["sentence"],
    &["review"],
    &["content"],
    &["tweet"],
];
/// Columns of a label.
const LABELS: [&str; 2] = ["label", "labels"];
/// Columns of what answers a prompt.
const RESPONSES: [&str; 2] = ["completion", "response"];
/// Stanford Alpaca's prompt, with and without an input.
const ALPACA: &str = "Below is an instruction that describes a task{[input:, paired with an input that provides further context]}. \
                      Write a response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n\
                      {[input:### Input:\n{input}\n\n]}### Response:";
/// Rows that tell the columns.
const ENOUGH: usize = 100;
/// Rows read at once.
const PIECE: usize = 8192;
/// Most names of classes that are collected: a column with more is no label.
const MOST_CLASSES: usize = 1000;

/// Gets the files of a split.
type FilesOf<'a> = &'a dyn Fn(&Dataset, &str) -> Result<Vec<PathBuf>>;

/// Returns the data set of the entry `name` with these keys, whose local files are relative to `folder`. What the keys do
/// not say, the rows of its training split tell, or of its first one; the log says what that is.
///
/// # Errors
/// When its files cannot be had, its rows do not tell what is missing, or keys are wrong.
pub fn complete(name: &str, mut keys: Table, folder: &Path, files_of: FilesOf<'_>) -> Result<Dataset> {
    let place = entry::place(name, &keys, folder)?;
    let splits = || place.files.keys().map(String::as_str);
    let split = splits().find(|split| *split == "train").or(splits().next()).unwrap_or_default();
    let found = told(&place, split, &files_of(&place, split)?, &keys)?;
    if !found.is_empty() {
        let shown = |(key, value): (&String, &Value)| format!("`{key} = {}`", short(&value.to_string()));
        let said: Vec<String> = found.iter().map(shown).collect();
        let said = said.join(", ");
        tracing::info!("`{name}`: the columns tell {said}; the entry may say otherwise");
    }
    keys.extend(found);
    Ok(entry::complete(name, keys, folder)?)
}

/// Returns what the keys of an entry lack, from the rows of one of its splits.
///
/// # Errors
/// When a file cannot be read, or the rows do not tell it.
fn told(dataset: &Dataset, split: &str, files: &[PathBuf], given: &Table) -> Result<Table> {
    let (mut found, mut classes, mut read) = (None::<Table>, Classes::default(), 0);
    for path in files {
        let mut rows =
            Rows::open(path, &Wanted { split, field: dataset.field.as_deref(), ..Wanted::default() })?;
        loop {
            let piece = rows.next(if found.is_none() { ENOUGH } else { PIECE })?;
            if piece.is_empty() {
                break;
            }
            let columns: Vec<Columns> = piece.into_iter().filter_map(|row| row.columns.ok()).collect();
            if found.is_none() && !columns.is_empty() {
                found = Some(task(&dataset.name, given, &columns)?);
            }
            let Some(label) = found.as_ref().and_then(|found| unnamed(given, found)) else {
                if found.is_some() {
                    return Ok(found.unwrap_or_default());
                }
                continue;
            };
            if let Some(names) = rows.class_names(&label) {
                let names: Vec<Value> = names.into_iter().map(Value::from).collect();
                let mut found = found.unwrap_or_default();
                found.insert("labels".to_owned(), names.into());
                return Ok(found);
            }
            for row in &columns {
                let added = classes.add(row.get(&label).unwrap_or(&Json::Null));
                added.map_err(|reason| fault(format!("`{}`: column `{label}`: {reason}", path.display())))?;
            }
            read += columns.len();
        }
    }
    let mut found: Table =
        found.ok_or_else(|| fault(format!("`{}` has no row that can be read", dataset.name)))?;
    if read > 0 {
        found.insert(
            "labels".to_owned(),
            classes.sorted().into_iter().map(Value::from).collect::<Vec<_>>().into(),
        );
    }
    Ok(found)
}

/// Returns the column whose values name the classes, if no key does.
fn unnamed(given: &Table, found: &Table) -> Option<String> {
    let said = |key: &str| given.get(key).or(found.get(key)).and_then(Value::as_str);
    let is_asked =
        matches!(said("task"), Some("classification" | "multi-label")) && !given.contains_key("labels");
    said("label").filter(|_| is_asked).map(str::to_owned)
}

/// Returns what the keys of the entry `name` lack to say its task, from some of its rows.
///
/// # Errors
/// Names the columns if they do not tell it.
fn task(name: &str, given: &Table, rows: &[Columns]) -> std::result::Result<Table, Fault> {
    let rows = Sample(rows);
    let mut found = Table::new();
    let mut add = |key: &str, value: Value| {
        if !given.contains_key(key) {
            found.insert(key.to_owned(), value);
        }
    };
    let has = |key: &str| given.contains_key(key);
    let text = TEXTS.iter().find(|columns| columns.iter().all(|column| rows.has(column)));
    let label = given.get("label").and_then(Value::as_str);
    let label = label.or(LABELS.into_iter().find(|column| rows.has(column)));
    let response = RESPONSES.into_iter().find(|column| rows.has(column));
    let list = |column: &str| rows.first(column).is_some_and(Json::is_array);
    if has("response") {
        add("task", "instruction".into());
    } else if has("answer") || has("scorers") {
        add("task", "generation".into());
    } else if has("messages") || list("messages") {
        add("task", "chat".into());
        add("messages", "messages".into());
    } else if list("conversations") {
        add("task", "chat".into());
        add("messages", "conversations".into());
    } else if let Some(response) =
        response.filter(|column| rows.has("prompt") && list("prompt") && list(column))
    {
        add("task", "chat".into());
        add("prompt", "prompt".into());
        add("messages", response.into());
    } else if let Some(response) = response.filter(|_| rows.has("prompt") && !list("prompt")) {
        add("task", "instruction".into());
        add("prompt", "{prompt}".into());
        add("response", format!("{{{response}}}").into());
    } else if rows.has("instruction") && rows.has("output") {
        add("task", "instruction".into());
        add("prompt", ALPACA.into());
        add("response", "{output}".into());
    } else if let Some(label) = label.filter(|_| has("label") || has("text") || text.is_some()) {
        add("task", rows.labelled(label, has("labels")).into());
        if let Some(columns) = text {
            add("text", columns.iter().map(|column| Value::from(*column)).collect::<Vec<_>>().into());
        }
        add("label", label.into());
    } else if has("text") || rows.has("text") {
        add("task", "text".into());
        add("text", "text".into());
    } else {
        let columns: Vec<&str> = rows.names().into_iter().collect();
        let message =
            format!("`{name}` does not say its `task`, nor do its columns `{}`", columns.join("`, `"));
        return Err(usage(message).hint(
            "say the columns: `text` and `label` of a classifier, `prompt` and `response` of a language model, or `task` itself; \
             in a catalog entry, or in `[data]` of the recipe",
        ));
    }
    Ok(found)
}

/// Rows that tell what a data set holds.
struct Sample<'a>(&'a [Columns]);

impl Sample<'_> {
    fn names(&self) -> BTreeSet<&str> {
        self.0.iter().flat_map(|row| row.keys()).map(String::as_str).collect()
    }

    fn has(&self, column: &str) -> bool {
        self.0.iter().any(|row| row.contains_key(column))
    }

    /// Returns the first value of a column.
    fn first(&self, column: &str) -> Option<&Json> {
        self.0.iter().filter_map(|row| row.get(column)).find(|value| !value.is_null())
    }

    /// Returns the task of a column of labels, whose names are known or not.
    fn labelled(&self, label: &str, is_named: bool) -> &'static str {
        match self.first(label) {
            Some(Json::Array(_)) => "multi-label",
            _ if !is_named && self.numbers(label) => "regression",
            _ => "classification",
        }
    }

    /// Returns true if a column holds numbers, not all of them whole.
    fn numbers(&self, column: &str) -> bool {
        let number =
            |value: &Json| value.as_f64().or(value.as_str().and_then(|text| text.trim().parse().ok()));
        let values = self.0.iter().filter_map(|row| row.get(column)).filter(|value| !value.is_null());
        let found: Vec<Option<f64>> = values.map(number).collect();
        found.iter().all(Option::is_some) && found.iter().flatten().any(|x| x.fract() != 0.0)
    }
}

/// Names of classes, collected from the labels of rows.
#[derive(Default)]
struct Classes(BTreeSet<String>);

impl Classes {
    /// Adds the label of a row, or every label of a list.
    ///
    /// # Errors
    /// When it is no label, or there are too many.
    fn add(&mut self, value: &Json) -> std::result::Result<(), String> {
        let name = match (odd::of(value), value) {
            (Some(odd::Odd::Number(digits)), _) => digits.to_owned(),
            (Some(_), _) | (None, Json::Null) => return Ok(()),
            (None, Json::String(text)) => text.clone(),
            (None, Json::Bool(flag)) => flag.to_string(),
            // The hub's mark of a missing label.
            (None, Json::Number(number)) if number.as_f64() == Some(-1.0) => return Ok(()),
            (None, Json::Number(number)) => odd::printed(number),
            (None, Json::Array(list)) => return list.iter().try_for_each(|value| self.add(value)),
            (None, Json::Object(_)) => return Err(format!("expected a label, found {}", kind(value))),
        };
        if !name.is_empty() {
            self.0.insert(name);
        }
        match self.0.len() > MOST_CLASSES {
            true => Err(format!("it holds more than {MOST_CLASSES} different labels")),
            false => Ok(()),
        }
    }

    /// Returns the names in their order, numbers by size.
    fn sorted(self) -> Vec<String> {
        let mut names: Vec<String> = self.0.into_iter().collect();
        let number = |name: &String| name.trim().parse::<f64>().ok();
        if names.iter().all(|name| number(name).is_some()) {
            names.sort_by(|a, b| number(a).partial_cmp(&number(b)).unwrap_or(std::cmp::Ordering::Equal));
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn said(given: &str, row: Json) -> String {
        let given: Table = toml::from_str(given).unwrap();
        match task("d", &given, &[row.as_object().unwrap().clone()]) {
            Ok(found) => {
                let value = |key: &str| found.get(key).map(|value| value.to_string().replace('"', "'"));
                ["task", "messages", "prompt", "response", "text", "label"]
                    .into_iter()
                    .filter_map(|key| {
                        Some(format!("{key} = {}", value(key).filter(|value| value.len() < 40)?))
                    })
                    .collect::<Vec<_>>()
                    .join(", ")
            }
            Err(fault) => fault.to_string(),
        }
    }

    #[test]
    fn every_shape_is_recognised_by_its_columns() {
        let turn = json!([{"role": "user", "content": "a"}]);
        for (given, row, expected) in [
            ("", json!({"messages": turn}), "task = 'chat', messages = 'messages'"),
            (
                "",
                json!({"conversations": [{"from": "human", "value": "a"}], "id": 3}),
                "task = 'chat', messages = 'conversations'",
            ),
            (
                "",
                json!({"prompt": turn, "completion": turn}),
                "task = 'chat', messages = 'completion', prompt = 'prompt'",
            ),
            (
                "",
                json!({"prompt": "a", "completion": "b"}),
                "task = 'instruction', prompt = '{prompt}', response = '{completion}'",
            ),
            (
                "",
                json!({"instruction": "a", "input": "", "output": "b"}),
                "task = 'instruction', response = '{output}'",
            ),
            (
                "",
                json!({"text": "a", "label": 1}),
                "task = 'classification', text = ['text'], label = 'label'",
            ),
            (
                "",
                json!({"premise": "a", "hypothesis": "b", "label": "x"}),
                "task = 'classification', text = ['premise', 'hypothesis'], label = 'label'",
            ),
            ("", json!({"text": "a", "label": 1.5}), "task = 'regression', text = ['text'], label = 'label'"),
            (
                "",
                json!({"text": "a", "labels": ["x", "y"]}),
                "task = 'multi-label', text = ['text'], label = 'labels'",
            ),
            ("", json!({"text": "a"}), "task = 'text', text = 'text'"),
            ("text = 'body'\nlabel = 'stars'", json!({"body": "a", "stars": "4"}), "task = 'classification'"),
            (
                "label = 'stars'",
                json!({"review": "a", "stars": "4.5"}),
                "task = 'regression', text = ['review']",
            ),
            ("prompt = '{q}'\nresponse = '{a}'", json!({"q": "a", "a": "4.5"}), "task = 'instruction'"),
            ("text = 'body'", json!({"body": "a"}), "task = 'text'"),
            ("", json!({"body": "a"}), "`d` does not say its `task`, nor do its columns `body`"),
        ] {
            assert_eq!(said(given, row.clone()), expected, "{given} {row}");
        }
    }

    #[test]
    fn classes_are_the_sorted_labels() {
        let collected = |values: Json| {
            let mut classes = Classes::default();
            values
                .as_array()
                .unwrap()
                .iter()
                .try_for_each(|value| classes.add(value))
                .map(|()| classes.sorted())
        };
        assert_eq!(collected(json!(["10", "9", 2, -1, null, ""])).unwrap(), ["2", "9", "10"]);
        assert_eq!(collected(json!(["pos", "neg", ["neutral", "pos"]])).unwrap(), ["neg", "neutral", "pos"]);
        assert_eq!(collected(json!([{"a": 1}])).unwrap_err(), "expected a label, found an object");
        assert!(collected((0..1001).map(Json::from).collect()).unwrap_err().contains("more than 1000"));
    }
}
