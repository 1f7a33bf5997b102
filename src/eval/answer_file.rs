//! The file of a data set's answers: it grows as they come, and a later run goes on from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::generation::{AnswerRecord, Answered, PromptSet};
use crate::data::prompts::Prompt;
use crate::fault::{Result, usage};
use crate::files;
use crate::report::progress::Progress;

/// The file, and the records that it holds.
pub struct AnswerFile<'a> {
    task: &'a PromptSet<'a>,
    /// The prompts by their rows.
    prompts: &'a BTreeMap<usize, &'a Prompt>,
    path: &'a Path,
    file: File,
    records: Vec<AnswerRecord>,
    /// Number of records that the first rule accepts.
    right: usize,
    progress: Progress,
}

impl<'a> AnswerFile<'a> {
    /// Opens the file at `path`, with what an earlier run under the same settings left there.
    ///
    /// # Errors
    /// When it belongs to other settings or cannot be written.
    pub fn open(
        task: &'a PromptSet<'a>,
        prompts: &'a BTreeMap<usize, &'a Prompt>,
        path: &'a Path,
    ) -> Result<Self> {
        let records = resumed(task, prompts, path)?;
        let file = OpenOptions::new().append(true).open(path).with_context(|| cannot_write(path))?;
        let progress =
            Progress::new(prompts.len() as u64, task.name, "prompts").starting_at(records.len() as u64);
        let right = records.iter().filter(|record| is_right(record)).count();
        Ok(Self { task, prompts, path, file, records, right, progress })
    }

    /// Returns the rows of the prompts that have no answer.
    pub fn missing(&self) -> BTreeSet<usize> {
        let known: BTreeSet<usize> = self.records.iter().map(|record| record.index).collect();
        self.prompts.keys().copied().filter(|index| !known.contains(index)).collect()
    }

    /// Judges an answer and appends it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, Answered { index, completion, finish, tokens }: Answered) -> Result<()> {
        let Some(prompt) = self.prompts.get(&index) else { return Ok(()) };
        let record = AnswerRecord::new(self.task, prompt, (completion, Some(finish), Some(tokens)))?;
        files::check_held(self.path)?;
        // One write per line: an interruption breaks at most the last line.
        let line = format!("{}\n", serde_json::to_string(&record)?);
        self.file.write_all(line.as_bytes()).with_context(|| cannot_write(self.path))?;
        self.right += usize::from(is_right(&record));
        self.records.push(record);
        let accuracy = self.right as f64 / self.records.len() as f64;
        let told = if self.task.rules.is_empty() { String::new() } else { format!("accuracy {accuracy:.4}") };
        self.progress.tick(self.records.len() as u64, &told);
        Ok(())
    }

    /// Puts the answers in the order of their rows and returns them; `None` if some are missing.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn finish(self) -> Result<Option<Vec<AnswerRecord>>> {
        let Self { mut records, prompts, path, progress, .. } = self;
        progress.finish();
        if records.len() < prompts.len() {
            return Ok(None);
        }
        records.sort_by_key(|record| record.index);
        files::write_json_lines(path, &records)?;
        Ok(Some(records))
    }
}

fn is_right(record: &AnswerRecord) -> bool {
    record.correct == Some(true)
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}`", path.display())
}

/// Reads the records of an earlier, interrupted run under the same settings; leaves a whole file behind.
fn resumed(
    task: &PromptSet<'_>,
    prompts: &BTreeMap<usize, &Prompt>,
    path: &Path,
) -> Result<Vec<AnswerRecord>> {
    let beside = path.with_extension("settings.json");
    let mut records: BTreeMap<usize, AnswerRecord> = BTreeMap::new();
    if path.exists() {
        let known = files::read_json::<Value>(&beside).ok();
        let known = known.filter(|known| [task.identity, task.earlier].contains(&known));
        let Some(known) = known else {
            let message = format!("`{}` has completions of another model or other settings", path.display());
            return Err(usage(message).hint("choose another folder with `--out`, or delete it").into());
        };
        let bytes = files::read_bytes(path)?;
        // A line without its end was torn when the run was interrupted.
        let lines: Vec<&[u8]> =
            bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")).collect();
        records.extend(
            lines
                .iter()
                .filter_map(|line| AnswerRecord::read(task, prompts, &known, line))
                .map(|read| (read.index, read)),
        );
        if records.len() < lines.len() {
            let (name, all, rest) = (path.display(), lines.len(), lines.len() - records.len());
            tracing::warn!(
                "`{name}`: left out {rest} of {all} completions that are damaged, duplicates, or not of the task"
            );
        }
    }
    // Settings first: answers alone would be taken for another model's.
    files::write_json(&beside, task.identity)?;
    let records: Vec<AnswerRecord> = records.into_values().collect();
    files::write_json_lines(path, &records)?;
    Ok(records)
}
