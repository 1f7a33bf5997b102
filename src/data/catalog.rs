//! `datasets.toml`: every data set, where it comes from, its columns, labels and metrics.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use toml::{Table, Value};

use super::dataset::Dataset;
use super::entry::{Entry, shown};
use crate::fault::{Result, usage, which};
use crate::files;

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
    datasets: BTreeMap<String, Dataset>,
    /// As they were written, for entries that say `like`.
    tables: BTreeMap<String, Table>,
}

impl Catalog {
    /// The catalog that is compiled into the binary.
    ///
    /// # Errors
    /// Never, unless the file compiled in is wrong.
    pub fn builtin() -> Result<Self> {
        let empty = Self { datasets: BTreeMap::new(), tables: BTreeMap::new() };
        // Their local files are relative to the folder that the command runs in
        empty.with_text(BUILTIN, Path::new("datasets.toml"), Path::new(""))
    }

    /// Adds the entries of a file, or replaces those of the same name.
    ///
    /// # Errors
    /// Names every fault of the file at once.
    pub fn with_file(self, path: &Path) -> Result<Self> {
        let text = files::read_text(path)?;
        let absolute =
            std::path::absolute(path).with_context(|| format!("cannot resolve `{}`", path.display()))?;
        self.with_text(&text, path, absolute.parent().unwrap_or(Path::new("/")))
    }

    /// Adds the entries of `text`, read from `path`. Local files are relative to `folder`.
    fn with_text(mut self, text: &str, path: &Path, folder: &Path) -> Result<Self> {
        let file = path.display();
        let table: Table = text
            .parse()
            .map_err(|e| usage(format!("`{file}` is not valid TOML: {}", format!("{e}").trim())))?;
        let mut faults = Vec::new();
        for (name, value) in table {
            let Value::Table(table) = value else {
                faults.push(format!("`{name}`: expected a table, found {}", shown(&value)));
                continue;
            };
            let table = match self.inherited(table) {
                Ok(table) => table,
                Err(reason) => {
                    faults.push(format!("`{name}.like`: {reason}"));
                    continue;
                }
            };
            if let Some(dataset) = Entry::new(&name, &table, &mut faults).dataset(folder) {
                self.datasets.insert(name.clone(), dataset);
            }
            self.tables.insert(name, table);
        }
        match faults.as_slice() {
            [] => Ok(self),
            [one] => Err(usage(format!("`{file}`: {one}")).into()),
            many => {
                let list: Vec<String> = many.iter().map(|f| format!("\n  {f}")).collect();
                Err(usage(format!("`{file}` has {} faults:{}", many.len(), list.concat())).into())
            }
        }
    }

    /// The keys of an entry with those that it inherits by `like`; the place only if it has none itself.
    fn inherited(&self, mut table: Table) -> std::result::Result<Table, String> {
        let Some(like) = table.remove("like") else { return Ok(table) };
        let name = like.as_str().ok_or_else(|| format!("expected a name, found {}", shown(&like)))?;
        let Some(other) = self.tables.get(name) else {
            return Err(format!("no earlier data set `{name}`; {}", which("data sets", name, self.names())));
        };
        let inherits = !table.contains_key("submission");
        let has_place = ["hub", "dir", "files"].iter().any(|key| table.contains_key(*key));
        for (key, value) in other {
            let is_place = ["hub", "revision", "dir"].contains(&key.as_str());
            if !(table.contains_key(key) || has_place && is_place) {
                table.insert(key.clone(), value.clone());
            }
        }
        // Splits that the entry's own files lack have no submission.
        let splits = table.get("files").and_then(Value::as_table).cloned();
        if let (Some(splits), Some(submission)) =
            (splits, inherits.then(|| table.get_mut("submission")).flatten().and_then(Value::as_table_mut))
        {
            submission.retain(|split, _| splits.contains_key(split));
        }
        Ok(table)
    }

    /// The data set of this name.
    ///
    /// # Errors
    /// Names the nearest and all names that exist.
    ///
    /// ```
    /// let catalog = loraxs::data::catalog::Catalog::builtin()?;
    /// assert_eq!(catalog.get("glue/rte")?.labels, ["entailment", "not_entailment"]);
    /// # anyhow::Ok(())
    /// ```
    pub fn get(&self, name: &str) -> Result<&Dataset> {
        self.datasets.get(name).ok_or_else(|| {
            let hint = which("data sets", name, self.names());
            let toml = toml::Value::from(name);
            usage(format!("no data set `{name}` in the catalog"))
                .hint(format!("{hint}; {ADD}, such as\n{}", EXAMPLE.replace("NAME", &toml.to_string())))
                .into()
        })
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.datasets.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::TaskKind;
    use crate::fault::{exit_code, hint_of};

    #[test]
    fn builtin_catalog_holds_the_nine_glue_tasks() {
        let catalog = Catalog::builtin().unwrap();
        for task in ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"] {
            let dataset = catalog.get(&format!("glue/{task}")).unwrap();
            assert_eq!(dataset.hub.as_deref(), Some("nyu-mll/glue"));
            for split in ["train", "validation", "test"] {
                assert!(!dataset.patterns(split).unwrap().is_empty(), "{task} {split}");
            }
            assert!(dataset.submission.contains_key("test"), "{task}");
            assert_eq!(dataset.labels.is_empty(), task == "stsb");
        }
        let mnli = catalog.get("glue/mnli").unwrap();
        assert_eq!(mnli.patterns("validation").unwrap(), mnli.patterns("validation_matched").unwrap());
        assert_ne!(mnli.patterns("validation").unwrap(), mnli.patterns("validation_mismatched").unwrap());
        assert_eq!(mnli.submission["test_mismatched"], "MNLI-mm.tsv");
    }

    #[test]
    fn builtin_catalog_holds_the_published_instruction_and_generation_sets() {
        let catalog = Catalog::builtin().unwrap();
        let task = |name: &str| catalog.get(name).unwrap().task;
        for name in ["metamathqa", "metamathqa/peft", "commonsense-170k", "math-10k"] {
            assert_eq!(task(name), TaskKind::Instruction, "{name}");
        }
        let sets = "boolq piqa social_i_qa hellaswag winogrande arc-easy arc-challenge openbookqa";
        for (name, tokens) in sets.split(' ').map(|set| (format!("commonsense/{set}"), 32)).chain(
            ["addsub", "multiarith", "singleeq", "svamp", "mawps", "aqua"]
                .map(|set| (format!("arithmetic/{set}"), 256)),
        ) {
            let set = catalog.get(&name).unwrap();
            assert_eq!(
                (set.task, set.beams, set.max_new_tokens),
                (TaskKind::Generation, 4, tokens),
                "{name}"
            );
            assert!(
                set.scorers.len() == 1 && set.stop.is_empty() && set.files.contains_key("test"),
                "{name}"
            );
            let hint = set.local_files("test").map_err(|error| hint_of(&error).unwrap().to_owned());
            assert!(hint.unwrap_err().contains("get it with `git clone "), "{name}");
        }
        assert_eq!((task("gsm8k"), task("math")), (TaskKind::Generation, TaskKind::Generation));
    }

    #[test]
    fn an_entry_that_is_like_another_takes_its_keys_but_not_its_place() {
        let catalog = Catalog::builtin().unwrap();
        let text =
            "[math]\nlike = \"math\"\nfiles = { test = \"t.jsonl\" }\n[b]\nlike = \"math\"\nstop = [\"x\"]\n";
        let catalog = catalog.clone().with_text(text, Path::new("d.toml"), Path::new("/f")).unwrap();
        let (math, builtin) = (catalog.get("math").unwrap(), Catalog::builtin().unwrap());
        assert_eq!((math.hub.as_deref(), math.dir.as_deref()), (None, Some(Path::new("/f"))));
        assert_eq!(math.prompt, builtin.get("math").unwrap().prompt);
        assert_eq!(math.group_by, ["type", "level"]);
        assert_eq!(catalog.get("b").unwrap().stop, ["x"]);
        let text = "[s]\nlike = \"glue/sst2\"\nfiles = { train = \"t.tsv\", validation = \"v.tsv\" }\n";
        let catalog = catalog.with_text(text, Path::new("d.toml"), Path::new("/f")).unwrap();
        assert!(catalog.get("s").unwrap().submission.is_empty());
        let error =
            catalog.with_text("[c]\nlike = \"maht\"", Path::new("d.toml"), Path::new("")).unwrap_err();
        let message = error.to_string();
        assert!(
            message.starts_with("`d.toml`: `c.like`: no earlier data set `maht`; did you mean `math`?"),
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
        assert_eq!(added.unwrap().get("glue/mrcp").unwrap().task, TaskKind::Instruction);
        assert_eq!(exit_code(&error), 2);
        let error = catalog.get("glue/rte").unwrap().patterns("dev").unwrap_err();
        assert_eq!(error.to_string(), "data set `glue/rte` has no split `dev`");
        assert!(hint_of(&error).unwrap().contains("`validation`"));
    }

    #[test]
    fn all_faults_of_a_file_are_reported_at_once() {
        let text = "name = 3\n[a]\ntask = \"clasification\"\nfile = {}\n[b]\ntask = \"classification\"\n\
                    files = { train = 4 }\ntext = [\"x\", 1]\nlabel = \"y\"\nlabels = [\"n\", \"n\"]\n\
                    metrics = [\"pearson\"]\nsubmission = { test = \"x\" }\nhub = \"a/b\"\ndir = \"c\"\n";
        let error =
            Catalog::builtin().unwrap().with_text(text, Path::new("d.toml"), Path::new("/f")).unwrap_err();
        let message = error.to_string();
        for part in [
            "`d.toml` has 10 faults:",
            "`name`: expected a table, found integer `3`",
            "`a.file`: unknown key; did you mean `files`?",
            "`a.task`: unknown task `clasification`; did you mean `classification`?",
            "`a.files`: missing, but required",
            "`b.dir`: `hub` and `dir` cannot be combined",
            "`b.files.train`: expected a file name or a list of them, found integer `4`",
            "`b.text`: expected a list of texts, found another list",
            "`b.submission.test`: no such split in `files`",
            "`b.labels`: `n` is listed twice",
            "`b.metrics`: unknown metric `pearson`",
        ] {
            assert!(message.contains(part), "no `{part}` in {message}");
        }
        assert_eq!(exit_code(&error), 2);
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
        assert_eq!(one.metrics, ["pearson", "spearmanr"]);
        let replaced = catalog.get("glue/rte").unwrap();
        assert_eq!((replaced.task, replaced.dir.as_deref()), (TaskKind::Regression, Some(folder.path())));
        assert!(replaced.local_files("train").is_err());
    }
}
