//! Tokenises the files of a split into examples.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rayon::prelude::*;

use super::chat::{Chat, TOOLS};
use super::dataset::Dataset;
use super::instruction::Instruction;
use super::jinja::Refusal;
use super::label::{self, Label};
use super::row::{Columns, Row, Wanted};
use super::rows::Rows;
use super::template::cell;
use super::tokenize::Tokenizer;
use super::{Example, Examples, Skipped, TaskKind, cache};
use crate::fault::{Fault, Result, fault, reading, usage};
use crate::files;

/// Version of the tokenisation, to be raised with any change to what the same files give.
const VERSION: u32 = 5;
/// Number of unusable rows that are shown.
pub(super) const SHOWN: usize = 3;
/// Rows tokenised at once, at most.
const CHUNK: usize = 8192;

/// Tokenises the files of a split, or takes the result from the cache.
///
/// Keeps the first `limit` usable rows (0 = all). Rows that cannot be used are counted and the first ones
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
    /// Number of usable rows to keep from the start, 0 = all.
    pub limit: usize,
}

impl<'a> Split<'a> {
    /// Returns the criteria by which its rows are found.
    pub(super) fn wanted(&self, columns: &'a [&'a str]) -> Wanted<'a> {
        Wanted { columns, split: self.name, field: self.dataset.field.as_deref(), kept: None }
    }
}

/// Returns how many rows to read at once for this limit of usable ones.
pub(super) fn piece_for(limit: usize) -> usize {
    if limit == 0 { CHUNK } else { limit.clamp(64, CHUNK) }
}

/// Like [`load`], with the cache folder given.
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
    if dataset.task == TaskKind::Generation {
        let message = format!("data set `{}` is for generation, not for training", dataset.name);
        return Err(usage(message).hint("training needs another `task`, such as `instruction`").into());
    }
    let hash = digest(split, tokenizer, max_length)?;
    let examples = match cache::load(cache, &hash) {
        Some(examples) => examples,
        None => {
            let examples = tokenise(split, tokenizer, max_length, hash)?;
            if let Err(error) = cache::store(cache, &examples) {
                tracing::warn!("cannot cache the tokenised data: {error:#}");
            }
            examples
        }
    };
    warn_of_skipped(split, &examples);
    warn_of_cut(split, &examples, max_length);
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

fn warn_of_cut(split: &Split<'_>, examples: &Examples, max_length: usize) {
    let (cut, all) = (examples.truncated, examples.examples.len());
    if cut > 0 {
        let (name, split) = (&split.dataset.name, split.name);
        tracing::warn!(
            "`{name}` {split}: {cut} of {all} examples have more than {max_length} tokens and are truncated"
        );
    }
}

/// Returns the digest of everything that the examples depend on.
fn digest(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize) -> Result<String> {
    let dataset = split.dataset;
    let mut hasher = blake3::Hasher::new();
    let settings = serde_json::json!([
        VERSION,
        dataset.task,
        dataset.text,
        dataset.label,
        dataset.labels,
        [&dataset.prompt, &dataset.response, &dataset.messages],
        [&dataset.field],
        [tokenizer.eos().ok()],
        [tokenizer.chat_template(), tokenizer.tool_template()],
        may_miss_labels(split.name),
        tokenizer.hash(),
        max_length,
        split.limit,
    ]);
    hasher.update(settings.to_string().as_bytes());
    hash_files(&mut hasher, split.files)?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hashes the contents of files piece by piece: mapped files would count as memory of the process.
pub(super) fn hash_files(hasher: &mut blake3::Hasher, files: &[PathBuf]) -> Result<()> {
    let mut piece = vec![0; 1 << 20];
    for path in files {
        let mut file = blake3::Hasher::new();
        let cannot = || format!("cannot read `{}`", path.display());
        let mut input = File::open(path).with_context(cannot)?;
        loop {
            let count = input.read(&mut piece).with_context(cannot)?;
            if count == 0 {
                break;
            }
            file.update_rayon(piece.get(..count).unwrap_or_default());
        }
        // The name is included for its ending, the format; the folder is not: caches and data sets move.
        let name = path.file_name().unwrap_or_default();
        hasher.update(file.finalize().as_bytes()).update(name.as_encoded_bytes());
    }
    Ok(())
}

fn may_miss_labels(split: &str) -> bool {
    split.starts_with("test")
}

/// Result of tokenising one row.
enum Outcome {
    Example(Example, bool),
    Skip(String),
    Wrong(Fault),
}

fn tokenise(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize, hash: String) -> Result<Examples> {
    let form = Form::new(split.dataset, tokenizer, max_length)?;
    let mut found = Examples { examples: Vec::new(), skipped: Skipped::default(), truncated: 0, hash };
    let (mut before, mut advice) = (0, None);
    let is_full = |found: &Examples| split.limit > 0 && found.examples.len() >= split.limit;
    for path in split.files {
        let _reading = reading(path);
        let columns: Vec<&str> = form.columns(split).collect();
        // A label is used where there is one, and so are the tools of a chat.
        let used: Vec<&str> =
            columns.iter().copied().chain(split.dataset.label.as_deref()).chain([TOOLS]).collect();
        let mut rows = Rows::open(path, &Wanted { kept: Some(&used), ..split.wanted(&columns) })?;
        let reader = Reader { split, path, unit: rows.unit, form: &form };
        while !is_full(&found) {
            let piece = rows.next(piece_for(split.limit))?;
            if piece.is_empty() {
                rows.check(columns.into_iter())?;
                break;
            }
            reader.read(&piece, before, &mut found)?;
            before += piece.len();
        }
        if is_full(&found) {
            break;
        }
        advice = advice.or(rows.advice());
    }
    if found.examples.is_empty() {
        let (name, first) = (&split.dataset.name, found.skipped.first.join("; "));
        let message = format!("no row of `{name}` {} can be used: {first}", split.name);
        return Err(fault(message).hint(advice.unwrap_or(form.hint())).into());
    }
    // The hub marks a test split without scores by -1 throughout
    if may_miss_labels(split.name) && found.examples.iter().all(|e| e.label.is_none_or(|x| x == -1.0)) {
        found.examples.iter_mut().for_each(|e| e.label = None);
    }
    Ok(found)
}

/// Conversion of rows to tokens.
enum Form<'a> {
    /// One or two texts and a label.
    Labelled(&'a Dataset, &'a Tokenizer, usize),
    Instruction(Instruction<'a>),
    Chat(Box<Chat<'a>>),
}

impl<'a> Form<'a> {
    fn new(dataset: &'a Dataset, tokenizer: &'a Tokenizer, max_length: usize) -> Result<Self> {
        Ok(match dataset.task {
            TaskKind::Instruction => Self::Instruction(Instruction::new(dataset, tokenizer, max_length)?),
            TaskKind::Chat => Self::Chat(Box::new(Chat::new(dataset, tokenizer, max_length)?)),
            _ => {
                tokenizer.encode("", dataset.text.get(1).map(|_| ""), max_length)?;
                Self::Labelled(dataset, tokenizer, max_length)
            }
        })
    }

    /// Returns the columns that it needs; a label may be absent in test splits.
    fn columns(&self, split: &'a Split<'_>) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::Labelled(dataset, ..) => {
                let label = dataset.label.iter().filter(|_| !may_miss_labels(split.name));
                Box::new(dataset.text.iter().chain(label).map(String::as_str))
            }
            Self::Instruction(instruction) => Box::new(instruction.columns()),
            Self::Chat(chat) => Box::new(std::iter::once(chat.column())),
        }
    }

    /// Returns a hint at what decides which rows can be used.
    fn hint(&self) -> &'static str {
        match self {
            Self::Labelled(..) => "see `text`, `label` and `labels` of its catalog entry",
            Self::Instruction(_) => "see `prompt` and `response` of its catalog entry",
            Self::Chat(_) => {
                "messages are a list of objects with `role` and `content`; \
                 see the tokenizer's chat template, and `messages` of its catalog entry"
            }
        }
    }

    fn encode(&self, columns: &Columns) -> std::result::Result<(Example, bool), Refusal> {
        match self {
            Self::Labelled(dataset, tokenizer, max_length) => {
                let texts: Vec<String> = dataset
                    .text
                    .iter()
                    .map(|c| cell(c, columns.get(c)))
                    .collect::<std::result::Result<_, _>>()?;
                let first = texts.first().map(String::as_str).unwrap_or_default();
                let second = texts.get(1).map(String::as_str);
                let encoded = tokenizer.encode(first, second, *max_length).map_err(|e| format!("{e:#}"))?;
                let (ids, types) = (encoded.ids, encoded.types);
                let example = Example { index: 0, ids, types, trained: Vec::new(), label: None };
                Ok((example, encoded.truncated))
            }
            Self::Instruction(instruction) => Ok(instruction.encode(columns)?),
            Self::Chat(chat) => chat.encode(columns),
        }
    }
}

/// Reads the rows of one file.
struct Reader<'a> {
    split: &'a Split<'a>,
    path: &'a Path,
    unit: &'static str,
    form: &'a Form<'a>,
}

impl Reader<'_> {
    /// Adds the examples of these rows, which follow `before` others in the split.
    fn read(&self, rows: &[Row], before: usize, found: &mut Examples) -> Result<()> {
        let outcomes: Vec<Outcome> =
            rows.par_iter().enumerate().map(|(i, row)| self.outcome(before + i, row)).collect();
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
                    if found.examples.len() == self.split.limit {
                        return Ok(());
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
        let label = match self.label(columns) {
            Ok(label) => label,
            Err(outcome) => return outcome,
        };
        match self.form.encode(columns) {
            Ok((mut example, truncated)) => {
                (example.index, example.label) = (index, label);
                if example.types.iter().all(|of| *of == 0) {
                    example.types = Vec::new();
                }
                // A text that was cut still holds memory for its rest.
                example.ids.shrink_to_fit();
                example.trained.shrink_to_fit();
                Outcome::Example(example, truncated)
            }
            Err(Refusal::Conversation(reason)) => Outcome::Skip(reason),
            Err(Refusal::Template(fault)) => Outcome::Wrong(fault),
        }
    }

    fn label(&self, columns: &Columns) -> std::result::Result<Option<f32>, Outcome> {
        let dataset = self.split.dataset;
        let Some(column) = dataset.label.as_deref() else { return Ok(None) };
        match label::read(dataset, columns.get(column)) {
            Label::Is(x) => Ok(Some(x)),
            Label::Missing if may_miss_labels(self.split.name) => Ok(None),
            Label::Missing => Err(Outcome::Skip(format!("column `{column}` holds no label"))),
            Label::Unusable(reason) => Err(Outcome::Skip(reason)),
            Label::Wrong(fault) => Err(Outcome::Wrong(fault)),
        }
    }
}
