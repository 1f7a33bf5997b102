//! One table of `datasets.toml`, read key by key so that all its faults are found at once.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::{Table, Value};

use super::TaskKind;
use super::dataset::Dataset;
use super::template::Template;
use crate::fault::{nearest, which};
use crate::limits::{BEAMS, Most, NEW_TOKENS, TOP_K};
use crate::spec::Metric;

const KEYS: [&str; 29] = [
    "like",
    "task",
    "hub",
    "revision",
    "dir",
    "files",
    "field",
    "text",
    "label",
    "labels",
    "metrics",
    "prompt",
    "response",
    "answer",
    "scorers",
    "max_new_tokens",
    "stop",
    "beams",
    "temperature",
    "top_p",
    "top_k",
    "group_by",
    "shot",
    "shot_separator",
    "shot_split",
    "messages",
    "source",
    "submission",
    "submission_names",
];
const TASKS: [&str; 5] = ["classification", "regression", "instruction", "chat", "generation"];

/// A TOML value in words.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Table(_) => "a table".to_owned(),
        Value::Array(_) => "another list".to_owned(),
        _ => format!("{} `{value}`", value.type_str()),
    }
}

/// Reads one entry and collects its faults.
pub struct Entry<'a> {
    name: &'a str,
    table: &'a Table,
    faults: &'a mut Vec<String>,
}

impl<'a> Entry<'a> {
    /// A reader of the table under `name`, which adds to `faults`.
    pub fn new(name: &'a str, table: &'a Table, faults: &'a mut Vec<String>) -> Self {
        Self { name, table, faults }
    }

    /// The data set, or `None` with at least one fault added. Local files are relative to `folder`.
    pub fn dataset(&mut self, folder: &Path) -> Option<Dataset> {
        let before = self.faults.len();
        for key in self.table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let near = nearest(key, KEYS).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            self.fault(key, &format!("unknown key{near}"));
        }
        let task = self.task();
        let hub = self.string("hub");
        let dir = self.folder(hub.is_some(), folder);
        let dataset = Dataset {
            name: self.name.to_owned(),
            task: task.unwrap_or(TaskKind::Classification),
            hub,
            revision: self.string("revision"),
            dir,
            files: self.files(),
            field: self.string("field"),
            text: self.strings("text"),
            label: self.string("label"),
            labels: self.strings("labels"),
            metrics: self.strings("metrics"),
            prompt: self.text("prompt"),
            response: self.string("response"),
            answer: self.string("answer"),
            scorers: self.strings("scorers"),
            max_new_tokens: self.whole("max_new_tokens", 0, (1, NEW_TOKENS)),
            stop: self.stop(),
            beams: self.whole("beams", 1, (1, BEAMS)),
            temperature: self.number("temperature", 0.0),
            top_p: self.number("top_p", 1.0),
            top_k: self.whole("top_k", 0, (0, TOP_K)),
            group_by: self.strings("group_by"),
            shot: self.string("shot"),
            shot_separator: self.string("shot_separator").unwrap_or_else(|| "\n\n".to_owned()),
            shot_split: self.string("shot_split").unwrap_or_else(|| "train".to_owned()),
            messages: self.string("messages").unwrap_or_else(|| "messages".to_owned()),
            source: self.string("source"),
            submission: self.submission(),
            submission_names: self.flag("submission_names"),
        };
        let checked = task.map(|_| self.check(dataset));
        if self.faults.len() == before { checked } else { None }
    }

    /// Checks the keys that the task needs, and fills in default metrics.
    fn check(&mut self, mut dataset: Dataset) -> Dataset {
        let (required, metrics): (&[&str], &[Metric]) = match dataset.task {
            TaskKind::Classification => (&["text", "label", "labels"], &Metric::OF_CLASSES),
            TaskKind::Regression => (&["text", "label"], &Metric::OF_NUMBERS),
            TaskKind::Instruction => (&["prompt", "response"], &[]),
            TaskKind::Generation => (&["prompt"], &[]),
            TaskKind::Chat => (&[], &[]),
        };
        for key in required.iter().filter(|key| !self.table.contains_key(**key)) {
            self.fault(key, "required for this task, but missing");
        }
        for key in ["prompt", "response", "answer", "shot"] {
            let text = self.table.get(key).and_then(Value::as_str).map(Template::parse);
            if let Some(Err(reason)) = text {
                self.fault(key, &reason);
            }
        }
        if metrics.is_empty() {
            return dataset;
        }
        let is_empty = self.table.get("text").and_then(Value::as_array).is_some_and(Vec::is_empty);
        if dataset.text.len() > 2 || is_empty {
            self.fault("text", &format!("expected one or two columns, found {}", dataset.text.len()));
        }
        let names = || metrics.iter().map(|metric| metric.name());
        for metric in dataset.metrics.iter().filter(|metric| names().all(|name| name != *metric)) {
            let hint = which("metrics of this task", metric, names());
            self.fault("metrics", &format!("unknown metric `{metric}`; {hint}"));
        }
        self.check_labels(&dataset);
        for split in dataset.submission.keys().filter(|split| !dataset.files.contains_key(*split)) {
            self.fault(&format!("submission.{split}"), "no such split in `files`");
        }
        if dataset.metrics.is_empty() {
            let count = if dataset.task == TaskKind::Regression { 2 } else { 1 };
            dataset.metrics = names().take(count).map(str::to_owned).collect();
        }
        dataset
    }

    fn check_labels(&mut self, dataset: &Dataset) {
        let labels = &dataset.labels;
        if dataset.task == TaskKind::Regression {
            if !labels.is_empty() {
                self.fault("labels", "regression has no labels");
            }
            return;
        }
        if self.table.contains_key("labels") && labels.len() < 2 {
            self.fault("labels", &format!("expected at least two labels, found {}", labels.len()));
        }
        for (i, label) in labels.iter().enumerate() {
            if labels.iter().take(i).any(|other| other == label) {
                self.fault("labels", &format!("`{label}` is listed twice"));
            }
        }
        if labels.len() > 2 && dataset.metrics.iter().any(|m| m == "f1") {
            self.fault("metrics", &format!("`f1` needs two labels, found {}", labels.len()));
        }
    }

    fn fault(&mut self, key: &str, message: &str) {
        self.faults.push(format!("`{}.{key}`: {message}", self.name));
    }

    fn expected(&mut self, key: &str, expected: &str, found: &Value) {
        self.fault(key, &format!("expected {expected}, found {}", shown(found)));
    }

    fn task(&mut self) -> Option<TaskKind> {
        if !self.table.contains_key("task") {
            self.fault("task", "missing, but required");
        }
        let word = self.string("task")?;
        let task = TaskKind::deserialize(Value::String(word.clone())).ok();
        if task.is_none() {
            let hint = which("tasks", &word, TASKS.iter().copied());
            self.fault("task", &format!("unknown task `{word}`; {hint}"));
        }
        task
    }

    fn folder(&mut self, from_hub: bool, folder: &Path) -> Option<PathBuf> {
        let dir = self.string("dir");
        match (from_hub, dir) {
            (true, None) => None,
            (true, Some(_)) => {
                self.fault("dir", "`hub` and `dir` cannot be combined");
                None
            }
            // Collecting the components drops a `.` among them.
            (false, dir) => Some(folder.join(dir.unwrap_or_default()).components().collect()),
        }
    }

    fn files(&mut self) -> BTreeMap<String, Vec<String>> {
        let mut files = BTreeMap::new();
        match self.table.get("files") {
            Some(Value::Table(table)) if !table.is_empty() => {
                for (split, value) in table {
                    let key = format!("files.{split}");
                    match strings_of(value) {
                        Some(names) if !names.is_empty() => drop(files.insert(split.clone(), names)),
                        _ => self.expected(&key, "a file name or a list of them", value),
                    }
                }
            }
            Some(Value::Table(_)) => self.fault("files", "expected at least one split, found none"),
            Some(other) => self.expected("files", "a table of splits", other),
            None => self.fault("files", "missing, but required"),
        }
        files
    }

    fn submission(&mut self) -> BTreeMap<String, String> {
        let mut names = BTreeMap::new();
        match self.table.get("submission") {
            None => {}
            Some(Value::Table(table)) => {
                for (split, value) in table {
                    match value.as_str() {
                        Some(name) => drop(names.insert(split.clone(), name.to_owned())),
                        None => self.expected(&format!("submission.{split}"), "a file name", value),
                    }
                }
            }
            Some(other) => self.expected("submission", "a table of file names by split", other),
        }
        names
    }

    /// A text that may be empty.
    fn text(&mut self, key: &str) -> Option<String> {
        let value = self.table.get(key)?;
        if !value.is_str() {
            self.expected(key, "a text", value);
        }
        value.as_str().map(str::to_owned)
    }

    fn string(&mut self, key: &str) -> Option<String> {
        let text = self.text(key)?;
        if text.is_empty() {
            self.fault(key, "expected a text, found an empty one");
        }
        Some(text).filter(|text| !text.is_empty())
    }

    fn strings(&mut self, key: &str) -> Vec<String> {
        let Some(value) = self.table.get(key) else { return Vec::new() };
        strings_of(value).unwrap_or_else(|| {
            self.expected(key, "a list of texts", value);
            Vec::new()
        })
    }

    fn stop(&mut self) -> Vec<String> {
        let stop = self.strings("stop");
        if stop.iter().any(String::is_empty) {
            self.fault("stop", "an empty text would end every completion at once");
        }
        stop
    }

    /// A whole number of at least `least`.
    fn whole(&mut self, key: &str, default: usize, (least, most): (usize, Most)) -> usize {
        let Some(value) = self.table.get(key) else { return default };
        let number = value.as_integer().and_then(|n| usize::try_from(n).ok());
        number.filter(|number| (least..=most.number).contains(number)).unwrap_or_else(|| {
            self.expected(key, &most.words(least), value);
            default
        })
    }

    /// A number that is not negative; `top_p` is a share besides.
    fn number(&mut self, key: &str, default: f64) -> f64 {
        let Some(value) = self.table.get(key) else { return default };
        let number = value.as_float().or_else(|| value.as_integer().map(|n| n as f64));
        match number.filter(|x| x.is_finite() && *x >= 0.0) {
            Some(x) if key != "top_p" || (x > 0.0 && x <= 1.0) => x,
            _ => {
                let range = if key == "top_p" { "a number above 0 and up to 1" } else { "a number from 0" };
                self.expected(key, range, value);
                default
            }
        }
    }

    fn flag(&mut self, key: &str) -> bool {
        let Some(value) = self.table.get(key) else { return false };
        value.as_bool().unwrap_or_else(|| {
            self.expected(key, "`true` or `false`", value);
            false
        })
    }
}

/// One text or a list of texts.
fn strings_of(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(list) => list.iter().map(|v| v.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}
