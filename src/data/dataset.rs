//! One data set of the catalog: where it comes from, its columns, labels, metrics and templates.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::TaskKind;
use super::template::Template;
use crate::fault::{Result, fault, usage, which};

/// One entry of the catalog, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Dataset {
    /// Its key in the catalog, such as `glue/mrpc`.
    pub name: String,
    /// The kind of task.
    pub task: TaskKind,
    /// Repository on the hub; absent for local files.
    pub hub: Option<String>,
    /// Branch, tag or commit of the repository; absent = `main`.
    pub revision: Option<String>,
    /// Folder of local files, absolute; absent for the hub.
    pub dir: Option<PathBuf>,
    /// File names or patterns of each split.
    pub files: BTreeMap<String, Vec<String>>,
    /// Key of a JSON object that holds its rows, as `field` of Hugging Face's `datasets`.
    pub field: Option<String>,
    /// One text column, or two for pairs.
    pub text: Vec<String>,
    /// Column of the label.
    pub label: Option<String>,
    /// Names of the classes 0..n-1; empty unless this is classification.
    pub labels: Vec<String>,
    /// Metric names; the first picks the best checkpoint.
    pub metrics: Vec<String>,
    /// Template of the prompt, `{column}` replaced.
    pub prompt: Option<String>,
    /// Template of the trained response.
    pub response: Option<String>,
    /// Template of the answer that a generation is scored against.
    pub answer: Option<String>,
    /// Names of the scoring rules of a generation.
    pub scorers: Vec<String>,
    /// Longest generation, in tokens; 0 = not given.
    pub max_new_tokens: usize,
    /// Texts that end a generation.
    pub stop: Vec<String>,
    /// Beams of a generation; 1 = none.
    pub beams: usize,
    /// Temperature of a generation; 0 = the likeliest token.
    pub temperature: f64,
    /// Share of the probability that is sampled from; 1 = all.
    pub top_p: f64,
    /// Number of tokens that are sampled from; 0 = all.
    pub top_k: usize,
    /// Columns by whose values scores are told apart too.
    pub group_by: Vec<String>,
    /// Template of a solved row in a few-shot prompt; absent = prompt and answer.
    pub shot: Option<String>,
    /// Text between the examples of a few-shot prompt.
    pub shot_separator: String,
    /// The split that solved rows come from.
    pub shot_split: String,
    /// Column of a chat's messages.
    pub messages: String,
    /// File name of the GLUE submission for each test split.
    pub submission: BTreeMap<String, String>,
    /// Command that fetches missing local files.
    pub source: Option<String>,
    /// The submission holds label names instead of numbers.
    pub submission_names: bool,
}

impl Dataset {
    /// The template under `key`, whose text is given.
    ///
    /// # Errors
    /// Names data set and key when there is none, or it is wrong.
    pub fn template(&self, key: &str, text: Option<&str>) -> Result<Template> {
        let place = format!("`{}.{key}`", self.name);
        let text = text.ok_or_else(|| usage(format!("{place}: required for this task, but missing")))?;
        Template::parse(text).map_err(|reason| usage(format!("{place}: {reason}")).into())
    }

    /// The file names or patterns of a split.
    ///
    /// # Errors
    /// Names the splits that exist when this one does not.
    pub fn patterns(&self, split: &str) -> Result<&[String]> {
        if let Some(patterns) = self.files.get(split) {
            return Ok(patterns);
        }
        let splits = self.files.keys().map(String::as_str);
        let message = format!("data set `{}` has no split `{split}`", self.name);
        Err(usage(message).hint(which("splits", split, splits)).into())
    }

    /// The files of a split of a local data set, those of one pattern sorted by name.
    ///
    /// # Errors
    /// When the split does not exist, or a file name or pattern matches nothing, which names the folder.
    pub fn local_files(&self, split: &str) -> Result<Vec<PathBuf>> {
        let dir = self.dir.as_deref().filter(|d| !d.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut found = Vec::new();
        for pattern in self.patterns(split)? {
            let matches = expand(&dir.join(pattern))?;
            if matches.is_empty() {
                let message = format!("no file `{}` in `{}`", pattern, dir.display());
                let source = self.source.as_ref().map(|s| format!("; get it with `{s}`")).unwrap_or_default();
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

/// Returns true if `name` matches `pattern`, where `*` is any run of bytes and `?` any one byte.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => (0..=name.len()).any(|i| name.get(i..).is_some_and(|n| matches(rest, n))),
        (Some((p, rest)), Some((n, names))) => (*p == b'?' || p == n) && matches(rest, names),
        _ => false,
    }
}
