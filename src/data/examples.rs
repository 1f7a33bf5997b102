//! From the files of a split to tokenised examples.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rayon::prelude::*;
use serde_json::Value;

use super::catalog::{Dataset, which};
use super::label::{self, Label};
use super::rows::{Columns, Row, Rows, kind, read_rows};
use super::tokenize::Tokenizer;
use super::{Example, Examples, Skipped, TaskKind, cache};
use crate::fault::{Fault, Result, fault};
use crate::files;

/// Changes with anything here that changes what the same files give.
const VERSION: u32 = 1;
/// How many of the rows that cannot be used are shown.
const SHOWN: usize = 3;
/// Rows tokenised at once when only the first examples are wanted.
const CHUNK: usize = 8192;

/// Tokenises the files of a split, or takes the result from the cache.
///
/// `limit` keeps the first so many usable rows (0 = all). Rows that cannot be used are counted and the first ones
/// shown as a warning. Labels may be missing in splits whose name begins with `test`.
///
/// # Errors
/// When a file cannot be read, a column does not exist, a label is none of the catalog's, or no row can be used.
pub fn load(
    dataset: &Dataset,
    split: &str,
    files: &[PathBuf],
    tokenizer: &Tokenizer,
    max_length: usize,
    limit: usize,
) -> Result<Examples> {
    let folder = files::cache_folder().join("tokens");
    load_in(&folder, &Split { dataset, name: split, files, limit }, tokenizer, max_length)
}

/// A split of a data set, with its files at hand.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    /// The catalog entry.
    pub dataset: &'a Dataset,
    /// Name of the split.
    pub name: &'a str,
    /// Its files, in order.
    pub files: &'a [PathBuf],
    /// The first so many usable rows, 0 = all.
    pub limit: usize,
}

/// As [`load`], with the folder of the cache given.
///
/// # Errors
/// As [`load`].
pub fn load_in(
    cache: &Path,
    split: &Split<'_>,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> Result<Examples> {
    let dataset = split.dataset;
    if !matches!(dataset.task, TaskKind::Classification | TaskKind::Regression) {
        let message = format!("data set `{}` has neither labels nor scores to train on", dataset.name);
        return Err(fault(message).hint("`task` must be `classification` or `regression` here").into());
    }
    let hash = digest(split, tokenizer, max_length)?;
    let examples = match cache::load(cache, &hash) {
        Some(examples) => examples,
        None => {
            let examples = tokenise(split, tokenizer, max_length, hash)?;
            if let Err(error) = cache::store(cache, &examples) {
                tracing::warn!("tokenised data is not cached: {error:#}");
            }
            examples
        }
    };
    warn_of_skipped(split, &examples);
    Ok(examples)
}

fn warn_of_skipped(split: &Split<'_>, examples: &Examples) {
    let skipped = &examples.skipped;
    if skipped.count > 0 {
        let total = skipped.count + examples.examples.len();
        let first = skipped.first.join("; ");
        let (name, split) = (&split.dataset.name, split.name);
        tracing::warn!("`{name}` {split}: {} of {total} rows cannot be used: {first}", skipped.count);
    }
}

/// Digest of everything that the examples depend on.
fn digest(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize) -> Result<String> {
    let dataset = split.dataset;
    let mut hasher = blake3::Hasher::new();
    let settings = serde_json::json!([
        VERSION,
        dataset.task,
        dataset.text,
        dataset.label,
        dataset.labels,
        may_miss_labels(split.name),
        tokenizer.hash(),
        max_length,
        split.limit,
    ]);
    hasher.update(settings.to_string().as_bytes());
    for path in split.files {
        let mut file = blake3::Hasher::new();
        file.update_mmap_rayon(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        // The name is part of it: its ending is the format, and the skipped rows are shown with it
        hasher.update(file.finalize().as_bytes()).update(path.as_os_str().as_encoded_bytes());
    }
    Ok(hasher.finalize().to_hex().to_string())
}

fn may_miss_labels(split: &str) -> bool {
    split.starts_with("test")
}

/// What became of one row.
enum Outcome {
    Example(Example, bool),
    Skip(String),
    Wrong(Fault),
}

fn tokenise(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize, hash: String) -> Result<Examples> {
    tokenizer.encode("", split.dataset.text.get(1).map(|_| ""), max_length)?;
    let mut found = Examples { examples: Vec::new(), skipped: Skipped::default(), truncated: 0, hash };
    let mut before = 0;
    for path in split.files {
        let rows = read_rows(path)?;
        check_columns(split, path, &rows)?;
        let reader = Reader { split, path, unit: rows.unit, before, tokenizer, max_length };
        reader.read(&rows.rows, &mut found)?;
        before += rows.rows.len();
        if split.limit > 0 && found.examples.len() >= split.limit {
            break;
        }
    }
    if found.examples.is_empty() {
        let (name, first) = (&split.dataset.name, found.skipped.first.join("; "));
        let message = format!("no row of `{name}` {} can be used: {first}", split.name);
        return Err(fault(message).hint("see `text`, `label` and `labels` of its catalog entry").into());
    }
    // The hub marks a test split without scores by -1 throughout
    if may_miss_labels(split.name) && found.examples.iter().all(|e| e.label.is_none_or(|x| x == -1.0)) {
        found.examples.iter_mut().for_each(|e| e.label = None);
    }
    Ok(found)
}

/// Every column that the catalog names must occur in the file; the label may be absent in test splits.
fn check_columns(split: &Split<'_>, path: &Path, rows: &Rows) -> Result<()> {
    if rows.columns.is_empty() {
        return Ok(());
    }
    let label = split.dataset.label.iter().filter(|_| !may_miss_labels(split.name));
    for column in split.dataset.text.iter().chain(label) {
        if !rows.columns.contains(column) {
            let message = format!("`{}` has no column `{column}`", path.display());
            let hint = which("columns", column, rows.columns.iter().map(String::as_str));
            return Err(fault(message).hint(hint).into());
        }
    }
    Ok(())
}

/// Reads the rows of one file.
struct Reader<'a> {
    split: &'a Split<'a>,
    path: &'a Path,
    unit: &'static str,
    /// Rows of the split in the files before this one.
    before: usize,
    tokenizer: &'a Tokenizer,
    max_length: usize,
}

impl Reader<'_> {
    fn read(&self, rows: &[Row], found: &mut Examples) -> Result<()> {
        let limit = self.split.limit;
        let chunk = if limit == 0 { rows.len().max(1) } else { CHUNK };
        for (i, rows) in rows.chunks(chunk).enumerate() {
            let first = self.before + i * chunk;
            let outcomes: Vec<Outcome> =
                rows.par_iter().enumerate().map(|(j, row)| self.outcome(first + j, row)).collect();
            for (row, outcome) in rows.iter().zip(outcomes) {
                match outcome {
                    Outcome::Wrong(fault) => return Err(anyhow::Error::new(fault).context(self.place(row))),
                    Outcome::Skip(reason) => {
                        found.skipped.count += 1;
                        if found.skipped.first.len() < SHOWN {
                            found.skipped.first.push(format!("{}: {reason}", self.place(row)));
                        }
                    }
                    Outcome::Example(example, truncated) => {
                        found.truncated += usize::from(truncated);
                        found.examples.push(example);
                        if found.examples.len() == limit {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn place(&self, row: &Row) -> String {
        format!("`{}` {} {}", self.path.display(), self.unit, row.number)
    }

    fn outcome(&self, index: usize, row: &Row) -> Outcome {
        let columns = match &row.columns {
            Ok(columns) => columns,
            Err(reason) => return Outcome::Skip(reason.clone()),
        };
        let dataset = self.split.dataset;
        let column = dataset.label.as_deref().unwrap_or_default();
        let label = match label::read(dataset, columns.get(column)) {
            Label::Is(x) => Some(x),
            Label::Missing if may_miss_labels(self.split.name) => None,
            Label::Missing => return Outcome::Skip(format!("column `{column}` holds no label")),
            Label::Unusable(reason) => return Outcome::Skip(reason),
            Label::Wrong(fault) => return Outcome::Wrong(fault),
        };
        match self.encode(columns) {
            Ok((mut example, truncated)) => {
                (example.index, example.label) = (index, label);
                Outcome::Example(example, truncated)
            }
            Err(reason) => Outcome::Skip(reason),
        }
    }

    fn encode(&self, columns: &Columns) -> std::result::Result<(Example, bool), String> {
        let mut texts = Vec::with_capacity(2);
        for column in &self.split.dataset.text {
            texts.push(text(column, columns.get(column))?);
        }
        let first = texts.first().map(String::as_str).unwrap_or_default();
        let second = texts.get(1).map(String::as_str);
        let encoded = self.tokenizer.encode(first, second, self.max_length).map_err(|e| format!("{e:#}"))?;
        let example = Example { index: 0, ids: encoded.ids, types: encoded.types, label: None };
        Ok((example, encoded.truncated))
    }
}

/// A cell as text: numbers count as what they look like.
fn text(column: &str, value: Option<&Value>) -> std::result::Result<String, String> {
    match value {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(Value::Number(number)) => Ok(number.to_string()),
        None | Some(Value::Null) => Err(format!("column `{column}` is empty")),
        Some(other) => Err(format!("column `{column}`: expected a text, found {}", kind(other))),
    }
}
