//! One entry of `datasets.toml`, read with all its faults.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

use super::dataset::{Dataset, DatasetSource};
use super::task::{KINDS, Task};
use super::template::Template;
use crate::fault::{Fault, usage, which};
use crate::files::is_data;
use crate::spec::reader::{Reader, refuse};
use crate::spec::values::texts_of;
use crate::spec::{Metric, keys};

keys! {
    /// The keys of every entry.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Entry in "" {
        /// Name of an entry above whose keys hold where this one does not set them; with `hub`, `dir` or `files` of its own,
        /// it does not take the other's `hub`, `revision` or `dir`.
        like: Option<String> = optional();
        /// Kind of task; without it, the columns of the rows tell it, and what else is missing.
        task: Option<&'static str> = optional_name(&KINDS.map(|(name, _)| name));
        /// Repository on the hub.
        hub: Option<String> = optional();
        /// Branch, tag or commit of the repository.
        revision: String = text("main");
        /// Folder of local files, relative to this file; excludes `hub`.
        dir: Option<String> = optional();
        /// Names of the files of each split, or patterns with `*` and `?`: `.jsonl`, `.ndjson`, `.json`, `.csv`, `.tsv`,
        /// `.parquet`, `.arrow` or `.txt` (each line a `text`), each also `.gz`.
        files: BTreeMap<String, Vec<String>> = files();
        /// Key of a `.json` file's one object under which its rows stand; without it, the object is a row where it has the
        /// columns, else its only key, `data` or the split's name holds the rows.
        field: Option<String> = optional();
        /// Command that gets local files which are missing, for an error's hint.
        source: Option<String> = optional();
    }
}

/// Reads the data set of this name, whose local files are relative to `folder`; faults are recorded. `None` if it does not
/// say its task.
pub(super) fn read(name: &str, reader: &mut Reader, folder: &Path) -> Option<Dataset> {
    let entry = Entry::read(reader);
    let Some(kind) = entry.task.filter(|_| reader.sound(&["task"])) else {
        // Any kind may be meant.
        KINDS.iter().flat_map(|(_, keys)| *keys).for_each(|(key, _)| reader.know(key));
        reader.refuse_unknown();
        return None;
    };
    let task = Task::read(kind, reader);
    check(&task, &entry, reader);
    refuse_foreign_keys(&task, reader);
    reader.refuse_unknown();
    if entry.hub.is_some() && entry.dir.is_some() {
        reader.fail("dir", "`hub` and `dir` cannot be combined");
    }
    let catalog = folder;
    let origin = match entry.hub {
        Some(repository) => DatasetSource::Hub { repository, revision: entry.revision },
        None => {
            // Collecting the components drops a `.` among them.
            let folder = folder.join(entry.dir.unwrap_or_default()).components().collect();
            DatasetSource::Folder { folder, source: entry.source }
        }
    };
    let own = reader.given().filter(|(key, _)| *key != "like" && reader.known().contains_key(key.as_str()));
    let keys = own.map(|(key, value)| (key.clone(), value.clone())).collect();
    let (name, folder) = (shown(name), catalog.to_owned());
    Some(Dataset { name, task, origin, files: entry.files, field: entry.field, folder, keys })
}

/// Returns the files of an entry that does not say its task, as a data set of some task.
///
/// # Errors
/// When the keys of its place are wrong.
pub fn place(name: &str, keys: &Table, folder: &Path) -> Result<Dataset, Fault> {
    let known = |key: &String| key != "task" && Entry::KEYS.iter().any(|(known, _)| known == key);
    let mut own: Table =
        keys.iter().filter(|(key, _)| known(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    own.insert("task".to_owned(), "text".into());
    complete(name, own, folder)
}

/// Returns the data set of an entry with these keys.
///
/// # Errors
/// Lists the faults of the keys.
pub fn complete(name: &str, keys: Table, folder: &Path) -> Result<Dataset, Fault> {
    let mut reader = Reader::of_entry(name, keys);
    let dataset = read(name, &mut reader, folder);
    refuse("data set", &reader.faults())?;
    dataset.ok_or_else(|| usage(format!("data set `{name}` does not say its `task`")))
}

/// Returns the name under which results stand: of a file or folder its own name alone.
pub fn shown(name: &str) -> String {
    let path = Path::new(name);
    let leaf = path.file_name().map(|leaf| leaf.to_string_lossy());
    match leaf.filter(|_| is_data(name) || path.is_absolute() || name.starts_with('.')) {
        Some(leaf) => leaf.split('.').next().filter(|stem| !stem.is_empty()).unwrap_or(&leaf).to_owned(),
        None => name.trim_start_matches("hub:").to_owned(),
    }
}

/// Refuses keys of another kind of task, unless they come from the entry that this one is like.
fn refuse_foreign_keys(task: &Task, reader: &mut Reader) {
    for key in KINDS.iter().flat_map(|(_, keys)| *keys).map(|(key, _)| *key) {
        if !reader.known().contains_key(key) && reader.sets(key) {
            let owners = KINDS.iter().filter(|(_, keys)| keys.iter().any(|(known, _)| *known == key));
            let names: Vec<String> = owners.map(|(name, _)| format!("`{name}`")).collect();
            reader.fail(key, format!("belongs to {}, not to `{}`", names.join(", "), task.name()));
            reader.know(key);
        }
    }
}

/// Refuses keys that are valid one by one but not together.
fn check(task: &Task, entry: &Entry, reader: &mut Reader) {
    if let Some((texts, label)) = task.labelled() {
        if label.is_empty() && reader.gives("label") && reader.sound(&["label"]) {
            reader.fail("label", "expected at least one column, found none");
        }
        check_texts(texts, reader);
    }
    let splits = task.submission().map(|(split, _)| split).filter(|split| !entry.files.contains_key(*split));
    splits.for_each(|split| reader.fail(&format!("submission.{split}"), "no such split in `files`"));
    match task {
        Task::MultiLabel(task) if task.label.len() == 1 && !reader.gives("labels") => {
            reader.missing("labels")
        }
        Task::MultiLabel(task)
            if task.label.len() > 1 && task.labels.len() != task.label.len() && reader.sound(&["labels"]) =>
        {
            let (columns, labels) = (task.label.len(), task.labels.len());
            reader.fail(
                "labels",
                format!("expected a name for each of the {columns} columns of `label`, found {labels}"),
            );
        }
        Task::Classification(task) if task.labels.len() > 2 && reader.sound(&["labels"]) => {
            for metric in task.metrics.iter().filter(|metric| Metric::OF_TWO.contains(metric)) {
                let (name, found) = (metric.name(), task.labels.len());
                reader
                    .fail("metrics", format!("`{name}` needs two labels, found {found}; use `{name}_macro`"));
            }
        }
        Task::Generation(task) if task.messages.is_some() && reader.sets("prompt") => {
            reader.fail("prompt", "`prompt` and `messages` cannot be combined");
        }
        Task::Generation(task) if task.is_chat() && reader.sets("shot") => {
            reader.fail("shot", "has no effect in a chat, where shots are turns of prompt and answer");
        }
        Task::Generation(task) if task.stop.iter().any(String::is_empty) => {
            reader.fail("stop", "an empty text would end every completion at once");
        }
        _ => {}
    }
    if reader.gives("labels") && reader.sound(&["labels"]) {
        check_labels(task.labels(), if matches!(task, Task::MultiLabel(_)) { 1 } else { 2 }, reader);
    }
}

fn check_texts(texts: &[Template], reader: &mut Reader) {
    if !(1..=2).contains(&texts.len()) && reader.gives("text") && reader.sound(&["text"]) {
        reader.fail("text", format!("expected one or two texts, found {}", texts.len()));
    }
}

fn check_labels(labels: &[String], least: usize, reader: &mut Reader) {
    if labels.len() < least {
        let least = if least == 1 { "one label" } else { "two labels" };
        reader.fail("labels", format!("expected at least {least}, found {}", labels.len()));
    }
    for (i, label) in labels.iter().enumerate() {
        if labels.iter().take(i).any(|other| other == label) {
            reader.fail("labels", format!("`{label}` is listed twice"));
        }
    }
}

/// The types of values that only a catalog has.
impl Reader {
    /// Reads a template that may be empty.
    pub(super) fn prompt(&mut self, key: &'static str) -> Template {
        let text = self.given_text(key);
        self.read_as(key, &text, Template::parse)
    }

    /// Reads a template that may be empty, and must be given unless `other` is.
    pub(super) fn prompt_or(&mut self, key: &'static str, other: &Option<String>) -> Template {
        if other.is_some() {
            return self.optional_template(key).unwrap_or_default();
        }
        self.prompt(key)
    }

    /// Reads a template that must be given.
    pub(super) fn template(&mut self, key: &'static str) -> Template {
        let text = self.required(key);
        self.read_as(key, &text, Template::parse)
    }

    /// Reads a column or template with a default.
    pub(super) fn column(&mut self, key: &'static str, default: &str) -> Template {
        let text = self.text(key, default);
        self.read_as(key, &text, Template::of_column)
    }

    /// Reads a column that must be given.
    pub(super) fn words(&mut self, key: &'static str) -> Template {
        Template::column(&self.required(key))
    }

    /// Reads one column or template or a list of them, which must be given.
    pub(super) fn given_templates(&mut self, key: &'static str) -> Vec<Template> {
        let texts = self.given_texts(key);
        texts.iter().map(|text| self.read_as(key, text, Template::of_column)).collect()
    }

    /// Reads a template that has no default.
    pub(super) fn optional_template(&mut self, key: &'static str) -> Option<Template> {
        self.optional(key).map(|text| self.read_as(key, &text, Template::parse))
    }

    fn read_as(&mut self, key: &str, text: &str, parse: fn(&str) -> Result<Template, String>) -> Template {
        parse(text).unwrap_or_else(|reason| {
            self.fail(key, reason);
            Template::default()
        })
    }

    /// Reads names of metrics among `all`, the first `count` of them by default.
    pub(super) fn metrics(&mut self, key: &'static str, all: &[Metric], count: usize) -> Vec<Metric> {
        let names = || all.iter().map(|metric| metric.name());
        let mut found = Vec::new();
        let default: Vec<&str> = names().take(count).collect();
        let given = self.texts(key, &default);
        for name in
            if given.is_empty() { default.iter().map(|name| (*name).to_owned()).collect() } else { given }
        {
            match all.iter().find(|metric| metric.name() == name) {
                Some(metric) => found.push(*metric),
                None => {
                    let hint = which("metrics of this task", &name, names());
                    self.fail(key, format!("unknown metric `{name}`; {hint}"));
                }
            }
        }
        found
    }

    /// Reads the files of each split.
    pub(super) fn files(&mut self, key: &'static str) -> BTreeMap<String, Vec<String>> {
        let names = |value: &Value| {
            texts_of(value).ok().filter(|names| !names.is_empty()).ok_or("a file name or a list of them")
        };
        let found = self.table(key, "a table of splits", names);
        if !self.gives(key) {
            self.missing(key);
        } else if found.is_empty() && self.sound(&[key]) {
            self.fail(key, "expected at least one split, found none");
        }
        found
    }

    /// Reads a file name for each of some splits.
    pub(super) fn submission(&mut self, key: &'static str) -> BTreeMap<String, String> {
        self.table(key, "a table of file names by split", |value| {
            value.as_str().map(str::to_owned).ok_or("a file name")
        })
    }
}
