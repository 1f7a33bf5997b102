//! Tokenises the files of a split into examples.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::chat::{ChatEncoder, TOOLS};
use super::dataset::Dataset;
use super::instruction::InstructionEncoder;
use super::label::{self, Label};
use super::row::{Columns, Refusal};
use super::split::{Need, Split};
use super::task::Task;
use super::template::cell;
use super::tokenize::Tokenizer;
use super::{Example, Examples, cache, words};
use crate::fault::{Result, usage};
use crate::files;

/// Version of the tokenisation, to be raised with any change to what the same files give.
const VERSION: u32 = 6;

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
    let Dataset { name, task, .. } = split.dataset;
    if matches!(task, Task::Generation(_)) {
        let message = format!("data set `{name}` is for generation, not for training");
        return Err(usage(message).hint("training needs another `task`, such as `instruction`").into());
    }
    let hash = digest(split, tokenizer, max_length)?;
    let examples = match cache::load(cache, &hash, |numbers| Label::stored(task, numbers)) {
        Some(examples) => examples,
        None => {
            let examples = tokenise(split, tokenizer, max_length, hash)?;
            if let Err(error) = cache::store(cache, &examples) {
                tracing::warn!("cannot cache the tokenised data: {error:#}");
            }
            examples
        }
    };
    let all = examples.examples.len();
    split.warn_of(&examples.skipped, all);
    if examples.truncated > 0 {
        let (cut, split) = (examples.truncated, split.name);
        tracing::warn!(
            "`{name}` {split}: {cut} of {all} examples have more than {max_length} tokens and are truncated"
        );
    }
    Ok(examples)
}

/// Returns the digest of everything that the examples depend on.
fn digest(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize) -> Result<String> {
    let task = &split.dataset.task;
    let (text, label) = task.labelled().unzip();
    let own = match task {
        Task::Instruction(task) => json!([task.prompt, task.response, "messages"]),
        Task::Chat(task) => json!([null, null, task.messages]),
        _ => json!([null, null, "messages"]),
    };
    let settings = json!([
        VERSION,
        task.name(),
        text.unwrap_or_default(),
        label,
        task.labels(),
        own,
        [&split.dataset.field],
        [tokenizer.eos().ok()],
        [tokenizer.chat_template(), tokenizer.tool_template()],
        may_miss_labels(split.name),
        tokenizer.hash(),
        max_length,
        split.limit,
    ]);
    let mut hasher = blake3::Hasher::new();
    hasher.update(settings.to_string().as_bytes());
    split.hash_into(&mut hasher)?;
    Ok(hasher.finalize().to_hex().to_string())
}

fn may_miss_labels(split: &str) -> bool {
    split.starts_with("test")
}

fn tokenise(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize, hash: String) -> Result<Examples> {
    let form = Form::new(split.dataset, tokenizer, max_length)?;
    let mut columns = form.columns();
    // A label is used where there is one, and so are the tools of a chat.
    let used = [&columns[..], &[TOOLS]].concat();
    if may_miss_labels(split.name) {
        columns.truncate(columns.len() - form.labels());
    }
    let need = Need { columns: &columns, kept: Some(&used), hint: form.hint() };
    let (found, skipped) = split.convert(&need, |index, row| {
        let label = form.label(row, split.name)?;
        let (mut example, is_cut) = form.encode(row, label)?;
        example.index = index;
        if example.types.iter().all(|of| *of == 0) {
            example.types = Vec::new();
        }
        // A text that was cut still holds memory for its rest.
        example.ids.shrink_to_fit();
        example.trained.shrink_to_fit();
        Ok((example, is_cut))
    })?;
    let truncated = found.iter().filter(|(_, is_cut)| *is_cut).count();
    let mut examples: Vec<Example> = found.into_iter().map(|(example, _)| example).collect();
    // The hub marks a test split without scores by -1 throughout
    let is_none = |example: &Example| example.label.as_ref().is_none_or(|label| *label == Label::Value(-1.0));
    if may_miss_labels(split.name) && examples.iter().all(is_none) {
        examples.iter_mut().for_each(|example| example.label = None);
    }
    Ok(Examples { examples, skipped, truncated, hash })
}

/// Returns the example of the text, or the pair, in these columns of a row, and whether it was cut.
///
/// # Errors
/// The reason why the row cannot be used: an empty column, or text that the model has no tokens for.
pub fn encode_texts(
    columns: &[String],
    row: &Columns,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> std::result::Result<(Example, bool), String> {
    let texts = columns.iter().map(|column| cell(column, row.get(column)));
    let texts: Vec<String> = texts.collect::<std::result::Result<_, _>>()?;
    let first = texts.first().map(String::as_str).unwrap_or_default();
    let second = texts.get(1).map(String::as_str);
    let encoded = tokenizer.encode(first, second, max_length).map_err(|e| format!("{e:#}"))?;
    let (ids, types) = (encoded.ids, encoded.types);
    Ok((Example { index: 0, ids, types, trained: Vec::new(), label: None }, encoded.truncated))
}

/// Conversion of rows to tokens.
enum Form<'a> {
    /// One or two texts and a label.
    Labelled {
        task: &'a Task,
        tokenizer: &'a Tokenizer,
        max_length: usize,
    },
    /// Words and their tags.
    Words {
        task: &'a Task,
        tokenizer: Tokenizer,
        max_length: usize,
    },
    Instruction(InstructionEncoder<'a>),
    Chat(Box<ChatEncoder<'a>>),
}

impl<'a> Form<'a> {
    fn new(dataset: &'a Dataset, tokenizer: &'a Tokenizer, max_length: usize) -> Result<Self> {
        let Dataset { name, task, .. } = dataset;
        Ok(match task {
            Task::Instruction(task) => {
                Self::Instruction(InstructionEncoder::new(task, tokenizer, max_length)?)
            }
            Task::Chat(task) => Self::Chat(Box::new(ChatEncoder::new(name, task, tokenizer, max_length)?)),
            Task::TokenClassification(_) => {
                let tokenizer = tokenizer.of_words()?;
                tokenizer.encode_words(&[], max_length)?;
                Self::Words { task, tokenizer, max_length }
            }
            _ => {
                let (text, _) = task.labelled().unwrap_or_default();
                tokenizer.encode("", text.get(1).map(|_| ""), max_length)?;
                Self::Labelled { task, tokenizer, max_length }
            }
        })
    }

    /// Returns the columns that it reads, those of the label last.
    fn columns(&self) -> Vec<&str> {
        match self {
            Self::Labelled { task, .. } | Self::Words { task, .. } => {
                let (text, label) = task.labelled().unwrap_or_default();
                text.iter().chain(label).map(String::as_str).collect()
            }
            Self::Instruction(instruction) => instruction.columns().collect(),
            Self::Chat(chat) => vec![chat.column()],
        }
    }

    /// Returns the number of columns of the label.
    fn labels(&self) -> usize {
        match self {
            Self::Labelled { task, .. } | Self::Words { task, .. } => {
                task.labelled().map_or(0, |(_, label)| label.len())
            }
            Self::Instruction(_) | Self::Chat(_) => 0,
        }
    }

    /// Returns a hint at what decides which rows can be used.
    fn hint(&self) -> &'static str {
        match self {
            Self::Labelled { .. } => "see `text`, `label` and `labels` of its catalog entry",
            Self::Words { .. } => {
                "each row has a list of words and one of tags, as long; see `text`, `label` and `labels` of its catalog entry"
            }
            Self::Instruction(_) => "see `prompt` and `response` of its catalog entry",
            Self::Chat(_) => {
                "messages are a list of objects with `role` and `content`; \
                 see the tokenizer's chat template, and `messages` of its catalog entry"
            }
        }
    }

    fn label(&self, row: &Columns, split: &str) -> std::result::Result<Option<Label>, Refusal> {
        let (Self::Labelled { task, .. } | Self::Words { task, .. }) = self else { return Ok(None) };
        match label::read(task, row)? {
            None if !may_miss_labels(split) => {
                let columns = task.labelled().map(|(_, label)| label.join("`, `")).unwrap_or_default();
                Err(format!("column `{columns}` holds no label").into())
            }
            found => Ok(found),
        }
    }

    /// Returns the example of a row with this label, and whether it was cut.
    fn encode(&self, row: &Columns, label: Option<Label>) -> std::result::Result<(Example, bool), Refusal> {
        match self {
            Self::Labelled { task, tokenizer, max_length } => {
                let (text, _) = task.labelled().unwrap_or_default();
                let (example, is_cut) = encode_texts(text, row, tokenizer, *max_length)?;
                Ok((Example { label, ..example }, is_cut))
            }
            Self::Words { task, tokenizer, max_length } => {
                let column = task.labelled().and_then(|(text, _)| text.first()).map_or("", String::as_str);
                Ok(words::encode(column, row.get(column), label, (tokenizer, *max_length))?)
            }
            Self::Instruction(instruction) => Ok(instruction.encode(row)?),
            Self::Chat(chat) => chat.encode(row),
        }
    }
}
