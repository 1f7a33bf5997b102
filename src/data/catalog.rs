//! `datasets.toml`: every data set, where it comes from, its columns, labels and metrics.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml::{Table, Value};

use super::dataset::Dataset;
use super::entry;
use crate::fault::{Fault, Result, usage, which};
use crate::files;
use crate::spec::reader::{Reader, refuse};

const BUILTIN: &str = include_str!("../../datasets.toml");

/// Advice on adding a data set.
const ADD: &str = "`--datasets FILE` adds those in a TOML file";
/// One that is added.
const EXAMPLE: &str = "  [NAME]
  task = \"instruction\"                     # or classification, regression, chat, generation
  files = { train = \"train.jsonl\" }        # beside that file
  prompt = \"{question}\"
  response = \" {answer}\"";

/// All known data sets by name.
#[derive(Debug, Clone)]
pub struct Catalog {
    /// Each with its keys as written, for entries that say `like`.
    entries: BTreeMap<String, (Table, State)>,
}

/// What an entry is.
#[derive(Debug, Clone)]
enum State {
    /// A data set.
    Whole(Box<Dataset>),
    /// Without a task, which its rows tell; the folder of its file.
    Open(PathBuf),
    /// Faulty.
    Faulty(Fault),
}

impl Catalog {
    /// Returns the catalog that is compiled into the binary.
    ///
    /// # Errors
    /// Never, unless the file compiled in is wrong.
    pub fn builtin() -> Result<Self> {
        let empty = Self { entries: BTreeMap::new() };
        // Their local files are relative to the folder that the command runs in
        empty.with_text(BUILTIN, Path::new("datasets.toml"), Path::new(""))
    }

    /// Adds the entries of a file, or replaces those of the same name. A faulty entry is refused when it is asked for.
    ///
    /// # Errors
    /// When the file cannot be read or is not TOML.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let text = files::read_text(path)?;
        let absolute =
            std::path::absolute(path).with_context(|| format!("cannot resolve `{}`", path.display()))?;
        self.with_text(&text, path, absolute.parent().unwrap_or(Path::new("/")))
    }

    /// Adds the entries of `text`, read from `path`. Local files are relative to `folder`.
    fn with_text(mut self, text: &str, path: &Path, folder: &Path) -> Result<Self> {
        let file = path.display().to_string();
        for (name, mut reader) in Reader::open_entries(text, &file)? {
            let dataset = self.inherit(&mut reader).and_then(|()| entry::read(&name, &mut reader, folder));
            let keys = reader.given().map(|(key, value)| (key.clone(), value.clone())).collect();
            let state = match (refuse(&format!("`{file}`"), &reader.faults()), dataset) {
                (Err(fault), _) => State::Faulty(fault),
                (Ok(()), Some(dataset)) => State::Whole(Box::new(dataset)),
                (Ok(()), None) => State::Open(folder.to_owned()),
            };
            self.entries.insert(name, (keys, state));
        }
        Ok(self)
    }

    /// Gives an entry the keys of the one that it says it is like; its place only where it has none itself. `None` if
    /// there is none of that name.
    fn inherit(&self, reader: &mut Reader) -> Option<()> {
        let Some(like) = reader.optional("like") else { return reader.sound(&["", "like"]).then_some(()) };
        let Some((other, _)) = self.entries.get(&like) else {
            let hint = which("data sets", &like, self.names());
            reader.fail("like", format!("no data set `{like}` before it; {hint}"));
            return None;
        };
        let has_place = ["hub", "dir", "files"].iter().any(|key| reader.gives(key));
        let files = reader.given().find(|(key, _)| *key == "files").map(|(_, files)| files.clone());
        for (key, value) in other {
            let is_place = ["hub", "revision", "dir"].contains(&key.as_str());
            if key == "like" || reader.gives(key) || has_place && is_place {
                continue;
            }
            let mut value = value.clone();
            // Splits that the entry's own files lack have no submission.
            if let ("submission", Value::Table(names), Some(Value::Table(splits))) =
                (key.as_str(), &mut value, &files)
            {
                names.retain(|split, _| splits.contains_key(split));
            }
            reader.take_over(key, value);
        }
        Some(())
    }

    /// Returns the data set of this name.
    ///
    /// # Errors
    /// Names the nearest and all names that exist, or every fault of its entry.
    pub fn get(&self, name: &str) -> Result<&Dataset> {
        let Some((_, state)) = self.entries.get(name) else {
            let hint = which("data sets", name, self.names());
            let toml = Value::from(name);
            return Err(usage(format!("no data set `{name}` in the catalog"))
                .hint(format!("{hint}; {ADD}, such as\n{}", EXAMPLE.replace("NAME", &toml.to_string())))
                .into());
        };
        match state {
            State::Whole(dataset) => Ok(dataset),
            State::Faulty(fault) => Err(fault.clone().into()),
            State::Open(_) => Err(usage(format!("`{name}` does not say its `task`")).into()),
        }
    }

    /// Returns true if there is an entry of this name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Returns the keys of the entry of this name, and the folder that its files are relative to. `None` if there is none,
    /// or a faulty one.
    pub fn entry(&self, name: &str) -> Option<(Table, PathBuf)> {
        match self.entries.get(name)? {
            (_, State::Whole(dataset)) => Some((dataset.keys.clone(), dataset.folder.clone())),
            (keys, State::Open(folder)) => {
                let own = keys.iter().filter(|(key, _)| *key != "like");
                Some((own.map(|(key, value)| (key.clone(), value.clone())).collect(), folder.clone()))
            }
            (_, State::Faulty(_)) => None,
        }
    }

    /// Returns all names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.entries.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::dataset::DatasetSource;
    use crate::data::task::{Generation, Task};
    use crate::fault::{exit_code, hint_of};
    use crate::spec::Metric;

    fn generation(dataset: &Dataset) -> &Generation {
        let Task::Generation(task) = &dataset.task else { panic!("{}", dataset.name) };
        task
    }

    #[test]
    fn builtin_catalog_holds_the_nine_glue_tasks() {
        let catalog = Catalog::builtin().unwrap();
        for task in ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"] {
            let dataset = catalog.get(&format!("glue/{task}")).unwrap();
            assert!(
                matches!(&dataset.origin, DatasetSource::Hub { repository, .. } if repository == "nyu-mll/glue")
            );
            for split in ["train", "validation", "test"] {
                assert!(!dataset.patterns(split).unwrap().is_empty(), "{task} {split}");
            }
            assert!(dataset.task.submission().any(|(split, _)| split == "test"), "{task}");
            assert_eq!(dataset.task.labels().is_empty(), task == "stsb");
        }
        let mnli = catalog.get("glue/mnli").unwrap();
        assert_eq!(mnli.patterns("validation").unwrap(), mnli.patterns("validation_matched").unwrap());
        assert_ne!(mnli.patterns("validation").unwrap(), mnli.patterns("validation_mismatched").unwrap());
        assert!(mnli.task.submission().any(|found| found == ("test_mismatched", "MNLI-mm.tsv")));
    }

    #[test]
    fn builtin_catalog_holds_the_published_instruction_and_generation_sets() {
        let catalog = Catalog::builtin().unwrap();
        let task = |name: &str| catalog.get(name).unwrap().task.name();
        for name in ["metamathqa", "metamathqa/peft", "commonsense-170k", "math-10k"] {
            assert_eq!(task(name), "instruction", "{name}");
        }
        let sets = "boolq piqa social_i_qa hellaswag winogrande arc-easy arc-challenge openbookqa";
        for (name, tokens) in sets.split(' ').map(|set| (format!("commonsense/{set}"), 32)).chain(
            ["addsub", "multiarith", "singleeq", "svamp", "mawps", "aqua"]
                .map(|set| (format!("arithmetic/{set}"), 256)),
        ) {
            let set = catalog.get(&name).unwrap();
            let keys = generation(set);
            assert_eq!((keys.beams, keys.max_new_tokens), (4, Some(tokens)), "{name}");
            assert!(
                keys.scorers.len() == 1 && keys.stop.is_empty() && set.files.contains_key("test"),
                "{name}"
            );
            let hint = set.local_files("test").map_err(|error| hint_of(&error).unwrap().to_owned());
            assert!(hint.unwrap_err().contains("get it with `git clone "), "{name}");
        }
        assert_eq!((task("gsm8k"), task("math")), ("generation", "generation"));
    }

    #[test]
    fn an_entry_that_is_like_another_takes_its_keys_but_not_its_place() {
        let catalog = Catalog::builtin().unwrap();
        let text =
            "[math]\nlike = \"math\"\nfiles = { test = \"t.jsonl\" }\n[b]\nlike = \"math\"\nstop = [\"x\"]\n";
        let catalog = catalog.clone().with_text(text, Path::new("d.toml"), Path::new("/f")).unwrap();
        let (math, builtin) = (catalog.get("math").unwrap(), Catalog::builtin().unwrap());
        assert_eq!(math.origin, DatasetSource::Folder { folder: "/f".into(), source: None });
        assert_eq!(math.task, builtin.get("math").unwrap().task);
        assert_eq!(generation(math).group_by, ["type", "level"]);
        assert_eq!(generation(catalog.get("b").unwrap()).stop, ["x"]);
        let text = "[s]\nlike = \"glue/sst2\"\nfiles = { train = \"t.tsv\", validation = \"v.tsv\" }\n";
        let catalog = catalog.with_text(text, Path::new("d.toml"), Path::new("/f")).unwrap();
        assert_eq!(catalog.get("s").unwrap().task.submission().count(), 0);
        let catalog = catalog.with_text("[c]\nlike = \"maht\"", Path::new("d.toml"), Path::new("")).unwrap();
        let message = catalog.get("c").unwrap_err().to_string();
        assert!(
            message.starts_with(
                "`d.toml`: line 2: `c.like`: no data set `maht` before it; did you mean `math`?"
            ),
            "{message}"
        );
    }

    #[test]
    fn unknown_names_are_answered_with_the_nearest_and_how_to_add_one() {
        let catalog = Catalog::builtin().unwrap();
        let error = catalog.get("glue/mrcp").unwrap_err();
        let hint = hint_of(&error).unwrap().to_owned();
        assert!(
            hint.starts_with("did you mean `glue/mrpc`? similar data sets: `glue/mrpc`, `glue/"),
            "{hint}"
        );
        // What it says to add is one that can be added.
        let (words, example) = hint.split_once(", such as\n").unwrap();
        assert!(words.contains("`--datasets FILE`"), "{hint}");
        let added = Catalog::builtin().unwrap().with_text(example, Path::new("d.toml"), Path::new(""));
        assert_eq!(added.unwrap().get("glue/mrcp").unwrap().task.name(), "instruction");
        assert_eq!(exit_code(&error), 2);
        let error = catalog.get("glue/rte").unwrap().patterns("dev").unwrap_err();
        assert_eq!(error.to_string(), "data set `glue/rte` has no split `dev`");
        assert!(hint_of(&error).unwrap().contains("`validation`"));
    }

    #[test]
    fn all_faults_of_an_entry_are_reported_at_once() {
        let text = "name = 3\n[a]\ntask = \"clasification\"\nfile = {}\n[b]\ntask = \"classification\"\n\
                    files = { train = 4 }\ntext = [\"x\", 1]\nlabel = \"y\"\nlabels = [\"n\", \"n\"]\n\
                    metrics = [\"pearson\"]\nsubmission = { test = \"x\" }\nhub = \"a/b\"\ndir = \"c\"\n";
        let catalog = Catalog::builtin().unwrap();
        let catalog = catalog.with_text(text, Path::new("d.toml"), Path::new("/f")).unwrap();
        let message = |name: &str| catalog.get(name).unwrap_err().to_string();
        assert_eq!(message("name"), "`d.toml`: line 1: `name`: expected a table, found `3`");
        for part in [
            "`d.toml` has 3 faults:",
            "line 2: missing key `a.files`",
            "line 3: `a.task`: expected one of `classification`, `regression`, `multi-label`, `token-classification`, `instruction`, `text`, `chat`, \
             `generation`, \
             found the string `clasification`",
            "line 4: unknown key `a.file`; did you mean `a.files`?",
        ] {
            assert!(message("a").contains(part), "no `{part}` in {}", message("a"));
        }
        let error = catalog.get("b").unwrap_err();
        let message = error.to_string();
        for part in [
            "`d.toml` has 6 faults:",
            "line 7: `b.files.train`: expected a file name or a list of them, found `4`",
            "line 8: `b.text`: expected a text or a list of texts, found the list `[\"x\", 1]`",
            "line 10: `b.labels`: `n` is listed twice",
            "line 11: `b.metrics`: unknown metric `pearson`",
            "line 12: `b.submission.test`: no such split in `files`",
            "line 14: `b.dir`: `hub` and `dir` cannot be combined",
        ] {
            assert!(message.contains(part), "no `{part}` in {message}");
        }
        assert_eq!(exit_code(&error), 2);
    }

    #[test]
    fn a_faulty_entry_is_refused_alone_and_a_key_of_another_task_is_a_fault() {
        let good = "files = { train = \"t.tsv\" }\ntask = \"chat\"\n";
        let text =
            format!("[good]\n{good}[\"glue/rte\"]\n{good}stop = \"x\"\n[two]\nlike = \"gsm8k\"\n{good}");
        let catalog = Catalog::builtin().unwrap();
        let catalog = catalog.with_text(&text, Path::new("d.toml"), Path::new("")).unwrap();
        assert_eq!(catalog.get("good").unwrap().task.name(), "chat");
        let error = catalog.get("glue/rte").unwrap_err().to_string();
        assert_eq!(error, "`d.toml`: line 7: `glue/rte.stop`: belongs to `generation`, not to `chat`");
        // Keys of the other's task are not taken over.
        assert_eq!(catalog.get("two").unwrap().task.name(), "chat");
    }

    #[test]
    fn broken_toml_names_file_and_line() {
        let catalog = Catalog::builtin().unwrap();
        let error = catalog.with_text("[a\ntask = 1\n", Path::new("d.toml"), Path::new("")).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("`d.toml` is not valid TOML: ") && error.contains("line 1"), "{error}");
    }

    #[test]
    fn local_files_are_relative_to_the_catalog_and_patterns_are_sorted() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["b-2.csv", "b-1.csv", "b-10.tsv", "c.jsonl"] {
            std::fs::create_dir_all(folder.path().join("sub")).unwrap();
            std::fs::write(folder.path().join("sub").join(name), "x").unwrap();
        }
        let path = folder.path().join("my.toml");
        let entry = "task = \"regression\"\nfiles = { train = [\"b-?.csv\", \"c.jsonl\"], test = \"no*\" }\n\
                     text = \"t\"\nlabel = \"y\"\n";
        std::fs::write(&path, format!("[one]\ndir = \"sub\"\n{entry}[\"glue/rte\"]\n{entry}")).unwrap();
        let catalog = Catalog::builtin().unwrap().with_file(&path).unwrap();
        let one = catalog.get("one").unwrap();
        let names: Vec<String> = one
            .local_files("train")
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["b-1.csv", "b-2.csv", "c.jsonl"]);
        assert!(one.local_files("test").unwrap_err().to_string().starts_with("no file `no*` in `/"));
        assert_eq!(one.task.metrics(), [Metric::Pearson, Metric::Spearmanr, Metric::Loss]);
        let replaced = catalog.get("glue/rte").unwrap();
        assert_eq!(replaced.task.name(), "regression");
        assert_eq!(replaced.origin, DatasetSource::Folder { folder: folder.path().into(), source: None });
        assert!(replaced.local_files("train").is_err());
    }
}
