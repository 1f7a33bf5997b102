//! Tokenises the files of a split into examples.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::chat::{ChatEncoder, TOOLS};
use super::dataset::Dataset;
use super::instruction::InstructionEncoder;
use super::label::{self, Label};
use super::row::{Columns, Refusal};
use super::split::{Need, Split};
use super::task::{Chat, Task};
use super::template::Template;
use super::tokenize::Tokenizer;
use super::{Example, Examples, Truncation, Whole, cache, words};
use crate::fault::{Result, usage};
use crate::files;

/// Version of the tokenisation, to be raised with any change to what the same files give.
const VERSION: u32 = 5;

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
    let Truncation { rows, longest, without_end } = examples.truncation;
    if rows > 0 {
        let ends = match without_end {
            0 => String::new(),
            lost => format!(", and {lost} lost the token that ends them"),
        };
        tracing::warn!(
            "`{name}` {}: {rows} of {all} rows have more than {max_length} tokens (`data.max_length`) and are truncated; \
             the longest has {longest}{ends}",
            split.name
        );
    }
    Ok(examples)
}

/// Returns the digest of everything that the examples depend on.
fn digest(split: &Split<'_>, tokenizer: &Tokenizer, max_length: usize) -> Result<String> {
    let task = &split.dataset.task;
    let (text, label) = task.labelled().unzip();
    // One column as earlier releases wrote it, whose runs go on.
    let label = label.map(|columns| match columns {
        [column] => json!(column),
        columns => json!(columns),
    });
    let own = match task {
        Task::Instruction(task) => json!([task.prompt, task.response, "messages"]),
        Task::Text(task) => json!([null, task.text, null]),
        Task::Chat(Chat { messages, prompt: None }) => json!([null, null, messages]),
        Task::Chat(Chat { messages, prompt }) => json!([prompt, null, messages]),
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
    let (mut columns, used) = form.columns();
    if may_miss_labels(split.name) {
        columns.truncate(columns.len() - form.labels());
    }
    let need = Need { columns: &columns, kept: Some(&used), hint: form.hint() };
    let (found, skipped) = split.convert(&need, |index, row| {
        let label = form.label(row, split.name)?;
        let (mut example, whole) = form.encode(row, label)?;
        example.index = index;
        if example.types.iter().all(|of| *of == 0) {
            example.types = Vec::new();
        }
        // A text that was cut still holds memory for its rest.
        example.ids.shrink_to_fit();
        example.trained.shrink_to_fit();
        Ok((example, whole))
    })?;
    let truncation = Truncation::of(found.iter().map(|(_, whole)| *whole));
    let mut examples: Vec<Example> = found.into_iter().map(|(example, _)| example).collect();
    // The hub marks a test split without scores by -1 throughout
    let is_none = |example: &Example| example.label.as_ref().is_none_or(|label| *label == Label::Value(-1.0));
    if may_miss_labels(split.name) && examples.iter().all(is_none) {
        examples.iter_mut().for_each(|example| example.label = None);
    }
    Ok(Examples { examples, skipped, truncation, hash })
}

/// Returns the example of the text, or the pair, of a row, and its length before it was cut. Of several columns, those that
/// are empty count as empty texts.
///
/// # Errors
/// The reason why the row cannot be used: nothing but empty columns, or text that the model has no tokens for.
pub fn encode_texts(
    text: &[Template],
    row: &Columns,
    tokenizer: &Tokenizer,
    max_length: usize,
) -> std::result::Result<(Example, Whole), String> {
    let texts = text.iter().map(|text| text.render_what_is_there(row));
    let texts: Vec<Option<String>> = texts.collect::<std::result::Result<_, _>>()?;
    if texts.iter().all(Option::is_none) {
        let columns: Vec<&str> = text.iter().flat_map(Template::columns).collect();
        let (s, are) = if columns.len() > 1 { ("s", "are") } else { ("", "is") };
        return Err(format!("column{s} `{}` {are} empty", columns.join("`, `")));
    }
    let texts: Vec<String> = texts.into_iter().map(Option::unwrap_or_default).collect();
    let first = texts.first().map(String::as_str).unwrap_or_default();
    let second = texts.get(1).map(String::as_str);
    let encoded = tokenizer.encode(first, second, max_length).map_err(|e| format!("{e:#}"))?;
    let (ids, types) = (encoded.ids, encoded.types);
    let whole = Whole::new(encoded.whole, encoded.truncated, false);
    Ok((Example { index: 0, ids, types, trained: Vec::new(), label: None }, whole))
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
        tokenizer: Box<Tokenizer>,
        max_length: usize,
    },
    Instruction(InstructionEncoder<'a>),
    Chat(Box<ChatEncoder<'a>>),
}

impl<'a> Form<'a> {
    fn new(dataset: &'a Dataset, tokenizer: &'a Tokenizer, max_length: usize) -> Result<Self> {
        let Dataset { name, task, .. } = dataset;
        Ok(match task {
            Task::Instruction(task) => Self::Instruction(InstructionEncoder::new(
                Some(&task.prompt),
                &task.response,
                tokenizer,
                max_length,
            )?),
            Task::Text(task) => {
                Self::Instruction(InstructionEncoder::new(None, &task.text, tokenizer, max_length)?)
            }
            Task::Chat(task) => Self::Chat(Box::new(ChatEncoder::new(name, task, tokenizer, max_length)?)),
            Task::TokenClassification(_) => {
                let tokenizer = Box::new(tokenizer.of_words()?);
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

    /// Returns the columns that must exist, those of the label last, and all that it reads.
    fn columns(&self) -> (Vec<&str>, Vec<&str>) {
        match self {
            Self::Labelled { task, .. } | Self::Words { task, .. } => {
                let (text, label) = task.labelled().unwrap_or_default();
                let label = || label.iter().map(String::as_str);
                let (needed, used) =
                    (text.iter().flat_map(Template::needed), text.iter().flat_map(Template::columns));
                (needed.chain(label()).collect(), used.chain(label()).collect())
            }
            Self::Instruction(own) => {
                let (needed, used) = (own.templates(), own.templates());
                (needed.flat_map(Template::needed).collect(), used.flat_map(Template::columns).collect())
            }
            Self::Chat(chat) => (chat.columns().collect(), chat.columns().chain([TOOLS]).collect()),
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
            Self::Instruction(_) => "see `prompt` and `response`, or `text`, of its catalog entry",
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

    /// Returns the example of a row with this label, and its length before it was cut.
    fn encode(&self, row: &Columns, label: Option<Label>) -> std::result::Result<(Example, Whole), Refusal> {
        match self {
            Self::Labelled { task, tokenizer, max_length } => {
                let (text, _) = task.labelled().unwrap_or_default();
                let (example, whole) = encode_texts(text, row, tokenizer, *max_length)?;
                Ok((Example { label, ..example }, whole))
            }
            Self::Words { task, tokenizer, max_length } => {
                let column =
                    task.labelled().and_then(|(text, _)| text.first()?.columns().next()).unwrap_or_default();
                Ok(words::encode(column, row.get(column), label, (tokenizer, *max_length))?)
            }
            Self::Instruction(instruction) => Ok(instruction.encode(row)?),
            Self::Chat(chat) => chat.encode(row),
        }
    }
}
