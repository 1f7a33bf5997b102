//! One data set of the catalog: its task, and where its files are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use toml::{Table, Value};

use super::task::Task;
use crate::fault::{Result, fault, usage, which};
use crate::files::matches;

/// One entry of the catalog, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Its key in the catalog, such as `glue/mrpc`.
    pub name: String,
    /// The kind of task.
    pub task: Task,
    /// Where its files are.
    pub origin: DatasetSource,
    /// File names or patterns of each split.
    pub files: BTreeMap<String, Vec<String>>,
    /// Key of a JSON object that holds its rows, as `field` of Hugging Face's `datasets`.
    pub field: Option<String>,
    /// Folder of its catalog, which local files are relative to.
    pub folder: PathBuf,
    /// The keys of its entry, those of the entry that it is like included.
    pub keys: Table,
}

/// Place of a data set's files.
#[derive(Debug, Clone, PartialEq)]
pub enum DatasetSource {
    /// A repository on the hub.
    Hub {
        /// Its name.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
    },
    /// A local folder.
    Folder {
        /// Its path, absolute except in the built-in catalog.
        folder: PathBuf,
        /// Command that gets files which are missing.
        source: Option<String>,
    },
}

impl Dataset {
    /// Returns its keys with the place of local files absolute, for a file in any folder.
    ///
    /// # Errors
    /// When that place cannot be resolved, or is not valid UTF-8.
    pub fn settled(&self) -> Result<Table> {
        let mut keys = self.keys.clone();
        if let DatasetSource::Folder { folder, .. } = &self.origin {
            let whole = std::env::current_dir().context("cannot resolve the current folder")?.join(folder);
            let whole = whole.to_str().ok_or_else(|| {
                usage(format!("the path of `{}` is not valid UTF-8", whole.display()))
                    .hint("catalogs name it as text: move it, or rename its folders")
            })?;
            keys.insert("dir".to_owned(), Value::from(whole));
        }
        Ok(keys)
    }

    /// Returns the file names or patterns of a split.
    ///
    /// # Errors
    /// Names the splits that exist when this one does not.
    pub fn patterns(&self, split: &str) -> Result<&[String]> {
        if let Some(patterns) = self.files.get(split) {
            return Ok(patterns);
        }
        let splits = self.files.keys().map(String::as_str);
        let message = format!("data set `{}` has no split `{split}`", self.name);
        let share = match split {
            "validation" => "; `data.validation = 0.1` holds out a share of the training rows instead",
            _ => "",
        };
        Err(usage(message).hint(which("splits", split, splits) + share).into())
    }

    /// Returns the files of a split of a local data set, those of one pattern sorted by name.
    ///
    /// # Errors
    /// When the split does not exist, or a file name or pattern matches nothing, which names the folder.
    pub fn local_files(&self, split: &str) -> Result<Vec<PathBuf>> {
        let (folder, source) = match &self.origin {
            DatasetSource::Folder { folder, source } if !folder.as_os_str().is_empty() => {
                (folder.as_path(), source)
            }
            DatasetSource::Folder { source, .. } => (Path::new("."), source),
            DatasetSource::Hub { .. } => (Path::new("."), &None),
        };
        let mut found = Vec::new();
        for pattern in self.patterns(split)? {
            let matches = expand(&folder.join(pattern))?;
            if matches.is_empty() {
                let message = format!("no file `{}` in `{}`", pattern, folder.display());
                let source =
                    source.as_ref().map(|source| format!("; get it with `{source}`")).unwrap_or_default();
                return Err(fault(message)
                    .hint(format!("split `{split}` of data set `{}` names it{source}", self.name))
                    .into());
            }
            found.extend(matches);
        }
        Ok(found)
    }
}

/// The files that a path with `*` and `?` in its file name matches, sorted; without them, the path itself if it exists.
fn expand(path: &Path) -> Result<Vec<PathBuf>> {
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    if !name.contains(['*', '?']) {
        return Ok(if path.is_file() { vec![path.to_owned()] } else { Vec::new() });
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    let entries =
        std::fs::read_dir(folder).with_context(|| format!("cannot read folder `{}`", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read folder `{}`", folder.display()))?;
        let is_match = entry.file_name().to_str().is_some_and(|n| matches(name.as_bytes(), n.as_bytes()));
        if is_match && entry.path().is_file() {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
