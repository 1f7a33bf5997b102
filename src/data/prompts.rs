//! Prompts of generation data: what a model is to continue, and what its continuation is scored against.

use std::path::Path;

use rayon::prelude::*;
use serde_json::json;

use super::dataset::Dataset;
use super::examples::{SHOWN, Split, hash_files, piece_for};
use super::odd;
use super::row::Columns;
use super::rows::Rows;
use super::template::Template;
use super::tokenize::Tokenizer;
use super::{Skipped, TaskKind};
use crate::fault::{Result, fault, reading, usage};

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
    let templates = Templates::new(split.dataset)?;
    let shots = shots.filter(|shots| shots.count > 0);
    let (solved, hash) = match shots {
        Some(shots) => (solved(shots, &templates)?, digest(split, Some(shots), tokenizer)?),
        None => (Vec::new(), digest(split, None, tokenizer)?),
    };
    let same = shots.is_some_and(|shots| shots.split.name == split.name);
    let separator = &split.dataset.shot_separator;
    let count = shots.map_or(0, |shots| shots.count);
    let render = |index: usize, row: &Columns| {
        let (prompt, gold) = templates.ask(row)?;
        let others = solved.iter().filter(|(solved, _)| !same || *solved != index).take(count);
        let mut text: String = others.flat_map(|(_, shot)| [shot.as_str(), separator]).collect();
        text.push_str(&prompt);
        let (ids, cut) = tokenizer.encode_open(&text, longest).map_err(|e| format!("{e:#}"))?;
        match ids.len() {
            0 => Err("the prompt is empty: it has no tokens".to_owned()),
            _ if cut => {
                Err(format!("the prompt has more than the {longest} tokens that the model has positions for"))
            }
            found if found > longest => Err(format!(
                "the prompt has {found} tokens, more than the {longest} that the model has positions for"
            )),
            _ => {
                let mut columns = row.clone();
                columns.values_mut().for_each(odd::plain);
                Ok(Prompt { index, text, ids, gold, columns })
            }
        }
    };
    let (prompts, skipped) = read(split, &templates, split.limit, render)?;
    Ok(Prompts { prompts, skipped, hash })
}

/// Renders one shot more than requested, because a row is never its own shot.
fn solved(shots: &Shots<'_>, templates: &Templates) -> Result<Vec<(usize, String)>> {
    let wanted = shots.count.saturating_add(1);
    let (found, _) = read(&shots.split, templates, wanted, |index, row| Ok((index, templates.solved(row)?)))?;
    if found.len() <= shots.count {
        let (name, split) = (&shots.split.dataset.name, shots.split.name);
        let message =
            format!("{} shots were requested, but `{name}` {split} has {}", shots.count, found.len());
        return Err(usage(message).hint("at least one row more than shots is needed").into());
    }
    Ok(found)
}

/// Templates rendered for each row.
struct Templates {
    prompt: Template,
    answer: Option<Template>,
    shot: Option<Template>,
}

impl Templates {
    fn new(dataset: &Dataset) -> Result<Self> {
        if dataset.task != TaskKind::Generation {
            let message = format!("data set `{}` is not for generation", dataset.name);
            return Err(usage(message).hint("this needs the task `generation`").into());
        }
        let optional = |key: &'static str, text: Option<&str>| {
            text.map(|text| dataset.template(key, Some(text))).transpose()
        };
        Ok(Self {
            prompt: dataset.template("prompt", dataset.prompt.as_deref())?,
            answer: optional("answer", dataset.answer.as_deref())?,
            shot: optional("shot", dataset.shot.as_deref())?,
        })
    }

    fn columns(&self) -> impl Iterator<Item = &str> {
        let answer = self.answer.iter().flat_map(Template::columns);
        self.prompt.columns().chain(answer).chain(self.shot.iter().flat_map(Template::columns))
    }

    /// Renders prompt and gold answer.
    fn ask(&self, row: &Columns) -> std::result::Result<(String, String), String> {
        let gold = self.answer.as_ref().map(|answer| answer.render(row)).transpose()?;
        Ok((self.prompt.render(row)?, gold.unwrap_or_default()))
    }

    fn solved(&self, row: &Columns) -> std::result::Result<String, String> {
        if let Some(shot) = &self.shot {
            return shot.render(row);
        }
        let (prompt, gold) = self.ask(row)?;
        let space = if prompt.ends_with(char::is_whitespace) { "" } else { " " };
        Ok(format!("{prompt}{space}{gold}"))
    }
}

/// Renders the usable rows of a split, at most `limit` of them (0 = all); `render` gets their numbers too.
fn read<T: Send>(
    split: &Split<'_>,
    templates: &Templates,
    limit: usize,
    render: impl Fn(usize, &Columns) -> std::result::Result<T, String> + Sync,
) -> Result<(Vec<T>, Skipped)> {
    let (mut found, mut skipped, mut before, mut advice) = (Vec::new(), Skipped::default(), 0, None);
    let most = if limit == 0 { usize::MAX } else { limit };
    for path in split.files {
        let _reading = reading(path);
        let columns: Vec<&str> = templates.columns().collect();
        let mut rows = Rows::open(path, &split.wanted(&columns))?;
        while found.len() < most {
            let piece = rows.next(piece_for(limit))?;
            if piece.is_empty() {
                rows.check(templates.columns())?;
                break;
            }
            let rendered: Vec<_> = (piece.par_iter().enumerate())
                .map(|(i, row)| {
                    row.columns.as_ref().map_err(String::clone).and_then(|row| render(before + i, row))
                })
                .collect();
            for (row, rendered) in piece.iter().zip(rendered) {
                match rendered {
                    _ if found.len() == most => break,
                    Ok(rendered) => found.push(rendered),
                    Err(reason) => note(&mut skipped, path, (rows.unit, row.number), &reason),
                }
            }
            before += piece.len();
        }
        if found.len() == most {
            break;
        }
        advice = advice.or(rows.advice());
    }
    let (name, split) = (&split.dataset.name, split.name);
    let first = skipped.first.join("; ");
    if found.is_empty() {
        return Err(fault(format!("no row of `{name}` {split} can be used: {first}"))
            .hint(advice.unwrap_or("see `prompt` and `answer` of its catalog entry"))
            .into());
    }
    if skipped.count > 0 {
        let total = found.len() + skipped.count;
        tracing::warn!("`{name}` {split}: {} of {total} rows cannot be used: {first}", skipped.count);
    }
    Ok((found, skipped))
}

fn note(skipped: &mut Skipped, path: &Path, (unit, number): (&str, usize), reason: &str) {
    skipped.count += 1;
    if skipped.first.len() < SHOWN {
        skipped.first.push(format!("`{}` {unit} {number}: {reason}", path.display()));
    }
}

fn digest(split: &Split<'_>, shots: Option<&Shots<'_>>, tokenizer: &Tokenizer) -> Result<String> {
    let dataset = split.dataset;
    let mut hasher = blake3::Hasher::new();
    let count = shots.map_or(0, |shots| shots.count);
    let templates = json!([dataset.prompt, dataset.answer, dataset.shot, dataset.shot_separator]);
    hasher.update(json!([templates, tokenizer.hash(), split.limit, count]).to_string().as_bytes());
    hash_files(&mut hasher, split.files)?;
    if let Some(shots) = shots {
        hash_files(&mut hasher, shots.split.files)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
