//! Prompts of generation data: what a model is to continue, and what its continuation is scored against.

use serde_json::json;

use super::Skipped;
use super::dataset::Dataset;
use super::odd;
use super::row::{Columns, Refusal};
use super::split::{Need, Split};
use super::task::{Generation, Task};
use super::template::Template;
use super::tokenize::Tokenizer;
use crate::fault::{Result, usage};

/// One row of a generation data set, ready to be continued.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompt {
    /// Row of the split, from 0, over all its files and counting rows that cannot be used.
    pub index: usize,
    /// Text that the model reads, the shots before it included.
    pub text: String,
    /// Its token ids with the special tokens that the tokenizer adds.
    pub ids: Vec<u32>,
    /// Reference that the continuation is scored against; empty if the data set names no `answer`.
    pub gold: String,
    /// The whole row.
    pub columns: Columns,
}

/// The prompts of a split.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    /// The usable rows, in the order of the files.
    pub prompts: Vec<Prompt>,
    /// Rows that could not be used.
    pub skipped: Skipped,
    /// Hex digest of everything that these depend on: file contents, templates, tokenizer, limit, shots.
    pub hash: String,
}

/// Solved rows that are put before every prompt.
#[derive(Debug, Clone, Copy)]
pub struct Shots<'a> {
    /// Number of shots.
    pub count: usize,
    /// Source of the shots: the first usable rows of the split `shot_split` of the data set.
    pub split: Split<'a>,
}

/// Reads and renders the files of a split; `split.limit` is the number of usable rows to keep from the start
/// (0 = all). A row whose prompt has no token, or more than `longest`, cannot be used.
///
/// A shot is the template `shot`, or if there is none the prompt, a space unless the prompt ends in one, and the
/// answer. Shots and prompt are joined by `shot_separator`. A row is never its own shot.
///
/// # Errors
/// When the data set is not for generation, a template is wrong, a file cannot be read, a column does not exist,
/// there are fewer usable rows than shots, or no row can be used.
pub fn load(
    split: &Split<'_>,
    shots: Option<&Shots<'_>>,
    tokenizer: &Tokenizer,
    longest: usize,
) -> Result<Prompts> {
    let task = generation(split.dataset)?;
    let shots = shots.filter(|shots| shots.count > 0);
    let solved = shots.map(|shots| solved(shots, task)).transpose()?.unwrap_or_default();
    let hash = digest(split, task, shots, tokenizer)?;
    let same = shots.is_some_and(|shots| shots.split.name == split.name);
    let separator = &task.shot_separator;
    let count = shots.map_or(0, |shots| shots.count);
    let render = |index: usize, row: &Columns| {
        let (prompt, gold) = ask(task, row)?;
        let others = solved.iter().filter(|(solved, _)| !same || *solved != index).take(count);
        let mut text: String = others.flat_map(|(_, shot)| [shot.as_str(), separator]).collect();
        text.push_str(&prompt);
        let (ids, cut) = tokenizer.encode_open(&text, longest).map_err(|e| format!("{e:#}"))?;
        match ids.len() {
            0 => Err("the prompt is empty: it has no tokens".to_owned().into()),
            _ if cut => {
                let problem = "the prompt has more than the";
                Err(format!("{problem} {longest} tokens that the model has positions for").into())
            }
            found if found > longest => Err(format!(
                "the prompt has {found} tokens, more than the {longest} that the model has positions for"
            )
            .into()),
            _ => {
                let mut columns = row.clone();
                columns.values_mut().for_each(odd::plain);
                Ok(Prompt { index, text, ids, gold, columns })
            }
        }
    };
    let (prompts, skipped) = read(split, task, render)?;
    Ok(Prompts { prompts, skipped, hash })
}

/// Renders one shot more than requested, because a row is never its own shot.
fn solved(shots: &Shots<'_>, task: &Generation) -> Result<Vec<(usize, String)>> {
    let split = Split { limit: shots.count.saturating_add(1), ..shots.split };
    let render = |index, row: &Columns| {
        if let Some(shot) = &task.shot {
            return Ok((index, shot.render(row)?));
        }
        let (prompt, gold) = ask(task, row)?;
        let space = if prompt.ends_with(char::is_whitespace) { "" } else { " " };
        Ok((index, format!("{prompt}{space}{gold}")))
    };
    let (found, _) = read(&split, task, render)?;
    if found.len() <= shots.count {
        let (name, split) = (&split.dataset.name, split.name);
        let message =
            format!("{} shots were requested, but `{name}` {split} has {}", shots.count, found.len());
        return Err(usage(message).hint("at least one row more than shots is needed").into());
    }
    Ok(found)
}

fn generation(dataset: &Dataset) -> Result<&Generation> {
    if let Task::Generation(task) = &dataset.task {
        return Ok(task);
    }
    let message = format!("data set `{}` is not for generation", dataset.name);
    Err(usage(message).hint("this needs the task `generation`").into())
}

/// Renders prompt and gold answer.
fn ask(task: &Generation, row: &Columns) -> std::result::Result<(String, String), String> {
    let gold = task.answer.as_ref().map(|answer| answer.render(row)).transpose()?;
    Ok((task.prompt.render(row)?, gold.unwrap_or_default()))
}

/// Renders the usable rows of a split; `render` gets their numbers, too.
fn read<T: Send>(
    split: &Split<'_>,
    task: &Generation,
    render: impl Fn(usize, &Columns) -> std::result::Result<T, Refusal> + Sync,
) -> Result<(Vec<T>, Skipped)> {
    let templates = [Some(&task.prompt), task.answer.as_ref(), task.shot.as_ref()];
    let columns: Vec<&str> = templates.into_iter().flatten().flat_map(Template::columns).collect();
    let hint = "see `prompt` and `answer` of its catalog entry";
    let (found, skipped) = split.convert(&Need { columns: &columns, kept: None, hint }, render)?;
    split.warn_of(&skipped, found.len());
    Ok((found, skipped))
}

fn digest(
    split: &Split<'_>,
    task: &Generation,
    shots: Option<&Shots<'_>>,
    tokenizer: &Tokenizer,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let count = shots.map_or(0, |shots| shots.count);
    let templates = json!([task.prompt, task.answer, task.shot, task.shot_separator]);
    hasher.update(json!([templates, tokenizer.hash(), split.limit, count]).to_string().as_bytes());
    split.hash_into(&mut hasher)?;
    if let Some(shots) = shots {
        shots.split.hash_into(&mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
