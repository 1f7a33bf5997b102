//! Scores completions: each prompt is continued once, judged by several rules, and kept in a resumable file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::metrics::Score;
use crate::data::prompts::Prompt;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, usage};
use crate::files;
use crate::generate::{Engine, Finish, GenerationSettings};
use crate::models::CausalLm;
use crate::report::progress::Progress;
use crate::scoring::{Rule, Verdict};

/// One line of `OUT/predictions/TASK.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AnswerRecord {
    /// Row of the split, from 0.
    pub index: usize,
    /// The model's input.
    pub prompt: String,
    /// The model's output.
    pub completion: String,
    /// The answer that the first rule found in it.
    pub extracted: Option<String>,
    /// The row's reference answer.
    pub gold: String,
    /// True if the first rule accepts the answer; absent if there is no rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correct: Option<bool>,
    /// The verdicts of all rules by their names.
    pub verdicts: BTreeMap<String, Verdict>,
    /// Why the completion ended; unknown of one that was made elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<Finish>,
    /// Its number of tokens; unknown likewise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// First digits of a hash of the answer and all it depends on; absent in lines of older versions.
    #[serde(default)]
    pub check: String,
}

impl AnswerRecord {
    /// Judges the `completion` of `prompt` by the rules of `task`.
    ///
    /// # Errors
    /// When it cannot be hashed.
    pub fn new(
        task: &PromptSet,
        prompt: &Prompt,
        (completion, finish, tokens): (String, Option<Finish>, Option<usize>),
    ) -> Result<Self> {
        let judge = |rule: &Rule| (rule.name().to_owned(), rule.judge(&completion, &prompt.gold));
        let verdicts: BTreeMap<String, Verdict> = task.rules.iter().map(judge).collect();
        let first = task.rules.first().and_then(|rule| verdicts.get(rule.name()));
        let mut record = Self {
            index: prompt.index,
            prompt: prompt.text.clone(),
            extracted: first.and_then(|judged| judged.extracted.clone()),
            gold: prompt.gold.clone(),
            correct: first.map(|judged| judged.correct),
            verdicts,
            finish,
            tokens,
            completion,
            check: String::new(),
        };
        record.check = record.hash(task.identity)?;
        Ok(record)
    }

    /// Returns the first digits of a hash of the answer and of all it depends on.
    fn hash(&self, identity: &Value) -> Result<String> {
        // Verdicts are not hashed: they are made anew, by rules that may have improved.
        let Self { index, prompt, completion, gold, finish, tokens, .. } = self;
        let hashed = serde_json::to_vec(&(index, prompt, completion, gold, finish, tokens, identity))?;
        Ok(blake3::hash(&hashed).to_hex().chars().take(16).collect())
    }

    /// Rejudges a line that was written under `identity`; `None` if it is torn, changed, or answers no prompt of the
    /// task.
    fn read(
        task: &PromptSet,
        prompts: &BTreeMap<usize, &Prompt>,
        identity: &Value,
        line: &[u8],
    ) -> Option<Self> {
        let found: Self = serde_json::from_slice(line).ok()?;
        let prompt = prompts.get(&found.index)?;
        let whole = Self::new(task, prompt, (found.completion, found.finish, found.tokens)).ok()?;
        let is_known = found.check.is_empty() || found.check == whole.hash(identity).ok()?;
        (is_known && (&found.prompt, &found.gold) == (&whole.prompt, &whole.gold)).then_some(whole)
    }
}

/// A set of prompts to continue and judge.
#[derive(Debug)]
pub struct PromptSet<'a> {
    /// The data set's name.
    pub name: &'a str,
    /// The rules, the main one first; none to write completions alone.
    pub rules: &'a [Rule],
    /// The prompts.
    pub prompts: &'a [Prompt],
    /// Everything that the answers depend on; an interrupted scoring resumes only under the same.
    pub identity: &'a Value,
    /// The same as earlier releases wrote it.
    pub earlier: &'a Value,
}

/// Continues and judges every prompt, except those already answered in the file `path`. Returns the records
/// in the order of their rows, or `None` if the run was interrupted.
///
/// # Errors
/// When the file belongs to other settings or cannot be written, or generation fails.
pub fn answer(
    task: &PromptSet<'_>,
    (model, tokenizer): (&CausalLm, &Tokenizer),
    settings: &GenerationSettings,
    path: &Path,
) -> Result<Option<Vec<AnswerRecord>>> {
    let by_index: BTreeMap<usize, &Prompt> =
        task.prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
    let mut records = resumed(task, &by_index, path)?;
    let known: BTreeSet<usize> = records.iter().map(|record| record.index).collect();
    let open = task.prompts.iter().filter(|prompt| !known.contains(&prompt.index));
    let open: Vec<(usize, &[u32])> = open.map(|prompt| (prompt.index, &prompt.ids[..])).collect();
    let mut file = OpenOptions::new().append(true).open(path).with_context(|| cannot_write(path))?;
    let progress =
        Progress::new(task.prompts.len() as u64, task.name, "prompts").starting_at(known.len() as u64);
    let is_right = |record: &AnswerRecord| record.correct == Some(true);
    let mut right = records.iter().filter(|record| is_right(record)).count();
    let all = Engine::new(model, tokenizer, settings).run(&open, &mut |index, completion| {
        if let Some(prompt) = by_index.get(&index) {
            let answered = (completion.text, Some(completion.finish), Some(completion.ids.len()));
            let record = AnswerRecord::new(task, prompt, answered)?;
            files::check_held(path)?;
            append(&mut file, &record).with_context(|| cannot_write(path))?;
            right += usize::from(is_right(&record));
            records.push(record);
            let accuracy = right as f64 / records.len() as f64;
            let told = if task.rules.is_empty() { String::new() } else { format!("accuracy {accuracy:.4}") };
            progress.tick(records.len() as u64, &told);
        }
        Ok(())
    })?;
    progress.finish();
    if !all {
        return Ok(None);
    }
    records.sort_by_key(|record| record.index);
    files::write_json_lines(path, &records)?;
    Ok(Some(records))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}`", path.display())
}

fn append(file: &mut File, record: &AnswerRecord) -> Result<()> {
    // One write per line: an interruption breaks at most the last line.
    Ok(file.write_all(format!("{}\n", serde_json::to_string(record)?).as_bytes())?)
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

/// Returns the share of right answers by each rule.
pub fn scores<'a>(
    records: impl Iterator<Item = &'a AnswerRecord> + Clone,
    rules: &[Rule],
) -> Vec<(Rule, Score)> {
    let verdicts = |rule: &Rule| {
        let verdict =
            |record: &AnswerRecord| record.verdicts.get(rule.name()).is_some_and(|verdict| verdict.correct);
        Score::of_verdicts(records.clone().map(verdict))
    };
    rules.iter().map(|rule| (*rule, verdicts(rule))).collect()
}

/// Groups the records by the value of a column in their rows.
pub fn grouped<'a>(
    records: &'a [AnswerRecord],
    prompts: &[Prompt],
    column: &str,
) -> BTreeMap<String, Vec<&'a AnswerRecord>> {
    let value = |prompt: &Prompt| match prompt.columns.get(column) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let values: BTreeMap<usize, String> =
        prompts.iter().map(|prompt| (prompt.index, value(prompt))).collect();
    let mut groups: BTreeMap<String, Vec<&AnswerRecord>> = BTreeMap::new();
    for record in records {
        if let Some(value) = values.get(&record.index) {
            groups.entry(value.clone()).or_default().push(record);
        }
    }
    groups
}
