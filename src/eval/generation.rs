//! Scores completions: each prompt is continued once, judged by several rules, and kept in a resumable file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::prompts::Prompt;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, usage};
use crate::files;
use crate::generate::{self, Engine, Finish, Settings};
use crate::models::CausalLm;
use crate::report::progress::Progress;
use crate::scoring::summary::{Summary, summary};
use crate::scoring::{Rule, Verdict};

/// One line of `OUT/predictions/TASK.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
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
    /// True if the first rule accepts the answer.
    pub correct: bool,
    /// The verdicts of all rules by their names.
    pub verdicts: BTreeMap<String, Judged>,
    /// `end`, `stop` or `length`: why the completion ended.
    pub finish: String,
    /// Its number of tokens.
    pub tokens: usize,
    /// First digits of a hash of the answer and all it depends on; absent in lines of older versions.
    #[serde(default)]
    pub check: String,
}

/// A rule's verdict on a completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The answer that it found.
    pub extracted: Option<String>,
    /// True if that is right.
    pub correct: bool,
}

impl Record {
    /// Judges the `completion` of `prompt` by the rules of `task`.
    fn new(
        task: &PromptSet,
        prompt: &Prompt,
        (completion, finish, tokens): (String, &str, usize),
    ) -> Result<Self> {
        let judge = |rule: &Rule| {
            let Verdict { extracted, correct } = rule.judge(&completion, &prompt.gold);
            (rule.name().to_owned(), Judged { extracted, correct })
        };
        let verdicts: BTreeMap<String, Judged> = task.rules.iter().map(judge).collect();
        let first = task.rules.first().and_then(|rule| verdicts.get(rule.name()));
        let mut record = Self {
            index: prompt.index,
            prompt: prompt.text.clone(),
            extracted: first.and_then(|judged| judged.extracted.clone()),
            gold: prompt.gold.clone(),
            correct: first.is_some_and(|judged| judged.correct),
            verdicts,
            finish: finish.to_owned(),
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
        let whole = Self::new(task, prompt, (found.completion, &found.finish, found.tokens)).ok()?;
        let is_known = found.check.is_empty() || found.check == whole.hash(identity).ok()?;
        (is_known && (&found.prompt, &found.gold) == (&whole.prompt, &whole.gold)).then_some(whole)
    }
}

/// A set of prompts to continue and judge.
#[derive(Debug)]
pub struct PromptSet<'a> {
    /// The data set's name.
    pub name: &'a str,
    /// The rules, the main one first.
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
    settings: &Settings,
    path: &Path,
) -> Result<Option<Vec<Record>>> {
    let by_index: BTreeMap<usize, &Prompt> =
        task.prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
    let mut records = resumed(task, &by_index, path)?;
    let known: BTreeSet<usize> = records.iter().map(|record| record.index).collect();
    let open: Vec<generate::Prompt> = task
        .prompts
        .iter()
        .filter(|prompt| !known.contains(&prompt.index))
        .map(|prompt| generate::Prompt { index: prompt.index, ids: prompt.ids.clone() })
        .collect();
    let mut file = OpenOptions::new().append(true).open(path).with_context(|| cannot_write(path))?;
    let progress =
        Progress::new(task.prompts.len() as u64, task.name, "prompts").starting_at(known.len() as u64);
    let mut right = records.iter().filter(|record| record.correct).count();
    let all = Engine::new(model, tokenizer, settings).run(&open, &mut |index, completion| {
        if let Some(prompt) = by_index.get(&index) {
            let answered = (completion.text, named(completion.finish), completion.ids.len());
            let record = Record::new(task, prompt, answered)?;
            files::check_held(path)?;
            append(&mut file, &record).with_context(|| cannot_write(path))?;
            right += usize::from(record.correct);
            records.push(record);
            let accuracy = right as f64 / records.len() as f64;
            progress.tick(records.len() as u64, &format!("accuracy {accuracy:.4}"));
        }
        Ok(())
    })?;
    progress.finish();
    if !all {
        return Ok(None);
    }
    records.sort_by_key(|record| record.index);
    rewrite(path, &records)?;
    Ok(Some(records))
}

/// Returns the file's word for why a completion ended.
fn named(finish: Finish) -> &'static str {
    match finish {
        Finish::End => "end",
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}`", path.display())
}

fn append(file: &mut File, record: &Record) -> Result<()> {
    // One write per line: an interruption breaks at most the last line.
    Ok(file.write_all(format!("{}\n", serde_json::to_string(record)?).as_bytes())?)
}

fn rewrite(path: &Path, records: &[Record]) -> Result<()> {
    files::write_atomically(path, |out| {
        for record in records {
            writeln!(out, "{}", serde_json::to_string(record)?)?;
        }
        Ok(())
    })
}

/// Reads the records of an earlier, interrupted run under the same settings; leaves a whole file behind.
fn resumed(task: &PromptSet<'_>, prompts: &BTreeMap<usize, &Prompt>, path: &Path) -> Result<Vec<Record>> {
    let beside = path.with_extension("settings.json");
    let mut records: BTreeMap<usize, Record> = BTreeMap::new();
    if path.exists() {
        let known = files::read_json::<Value>(&beside).ok();
        let known = known.filter(|known| [task.identity, task.earlier].contains(&known));
        let Some(known) = known else {
            let message = format!("`{}` holds answers of another model or of other settings", path.display());
            return Err(usage(message).hint("choose another folder by `--out`, or delete it").into());
        };
        let bytes = files::read_bytes(path)?;
        // A line without its end was torn when the run was interrupted.
        let lines: Vec<&[u8]> =
            bytes.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n")).collect();
        records.extend(
            lines
                .iter()
                .filter_map(|line| Record::read(task, prompts, &known, line))
                .map(|read| (read.index, read)),
        );
        if records.len() < lines.len() {
            let (name, all, rest) = (path.display(), lines.len(), lines.len() - records.len());
            tracing::warn!(
                "`{name}`: {rest} of {all} answers are damaged, doubled or to no prompt of the task, and left out"
            );
        }
    }
    // Settings first: answers alone would be taken for another model's.
    files::write_json(&beside, task.identity)?;
    let records: Vec<Record> = records.into_values().collect();
    rewrite(path, &records)?;
    Ok(records)
}

/// Returns the share of right answers by each rule.
pub fn scores<'a>(records: impl Iterator<Item = &'a Record> + Clone, rules: &[Rule]) -> Vec<(Rule, Summary)> {
    let verdicts = |rule: Rule| {
        records
            .clone()
            .map(move |record| record.verdicts.get(rule.name()).is_some_and(|judged| judged.correct))
    };
    rules.iter().map(|&rule| (rule, summary(verdicts(rule)))).collect()
}

/// Groups the records by the value of a column in their rows.
pub fn grouped<'a>(
    records: &'a [Record],
    prompts: &[Prompt],
    column: &str,
) -> BTreeMap<String, Vec<&'a Record>> {
    let value = |prompt: &Prompt| match prompt.columns.get(column) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let values: BTreeMap<usize, String> =
        prompts.iter().map(|prompt| (prompt.index, value(prompt))).collect();
    let mut groups: BTreeMap<String, Vec<&Record>> = BTreeMap::new();
    for record in records {
        if let Some(value) = values.get(&record.index) {
            groups.entry(value.clone()).or_default().push(record);
        }
    }
    groups
}
