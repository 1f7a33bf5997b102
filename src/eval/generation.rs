//! Scoring completions: every prompt continued once, judged by several rules, kept in a file that a run resumes from.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::data::prompts::Prompt;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, usage};
use crate::files;
use crate::generate::{self, Completion, Engine, Finish, Settings};
use crate::models::CausalLm;
use crate::report::progress::Progress;
use crate::scoring::summary::{Summary, summary};
use crate::scoring::{Rule, Verdict};

/// One line of `OUT/predictions/TASK.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Row of the split, from 0.
    pub index: usize,
    /// What the model read.
    pub prompt: String,
    /// What it answered.
    pub completion: String,
    /// The answer that the first rule found in it.
    pub extracted: Option<String>,
    /// What the row holds as the answer.
    pub gold: String,
    /// Whether the first rule takes the answer for right.
    pub correct: bool,
    /// The verdicts of all rules by their names.
    pub verdicts: BTreeMap<String, Judged>,
    /// `end`, `stop` or `length`: why the completion ended.
    pub finish: String,
    /// Its number of tokens.
    pub tokens: usize,
}

/// What a rule says of a completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The answer that it found.
    pub extracted: Option<String>,
    /// Whether that is right.
    pub correct: bool,
}

impl Record {
    fn new(prompt: &Prompt, completion: Completion, rules: &[Rule]) -> Self {
        let finish = match completion.finish {
            Finish::End => "end",
            Finish::Stop => "stop",
            Finish::Length => "length",
        };
        let judge = |rule: &Rule| {
            let Verdict { extracted, correct } = rule.judge(&completion.text, &prompt.gold);
            (rule.name().to_owned(), Judged { extracted, correct })
        };
        let verdicts: BTreeMap<String, Judged> = rules.iter().map(judge).collect();
        let first = rules.first().and_then(|rule| verdicts.get(rule.name()));
        Self {
            index: prompt.index,
            prompt: prompt.text.clone(),
            extracted: first.and_then(|judged| judged.extracted.clone()),
            gold: prompt.gold.clone(),
            correct: first.is_some_and(|judged| judged.correct),
            verdicts,
            finish: finish.to_owned(),
            tokens: completion.ids.len(),
            completion: completion.text,
        }
    }
}

/// What is continued and judged.
#[derive(Debug)]
pub struct Task<'a> {
    /// The data set's name.
    pub name: &'a str,
    /// The rules, the main one first.
    pub rules: &'a [Rule],
    /// The prompts.
    pub prompts: &'a [Prompt],
    /// Everything that the answers depend on; an interrupted scoring resumes only under the same.
    pub identity: &'a Value,
}

/// Continues and judges every prompt; what the file `path` holds already is not continued again. Returns the records in
/// the order of their rows, or nothing when the run was interrupted.
///
/// # Errors
/// When the file belongs to other settings or cannot be written, or generation fails.
pub fn answer(
    task: &Task<'_>,
    (model, tokenizer): (&CausalLm, &Tokenizer),
    settings: &Settings,
    path: &Path,
) -> Result<Option<Vec<Record>>> {
    let mut records = resumed(task, path)?;
    let known: BTreeSet<usize> = records.iter().map(|record| record.index).collect();
    let by_index: BTreeMap<usize, &Prompt> =
        task.prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
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
            let record = Record::new(prompt, completion, task.rules);
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

fn cannot_write(path: &Path) -> String {
    format!("cannot write `{}`", path.display())
}

fn append(file: &mut File, record: &Record) -> Result<()> {
    // One write a line: an interruption leaves at most one broken line, the last.
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

/// The records of an earlier, interrupted run under the same settings; the file is there afterwards, and whole.
fn resumed(task: &Task<'_>, path: &Path) -> Result<Vec<Record>> {
    let beside = path.with_extension("settings.json");
    let mut records: Vec<Record> = Vec::new();
    if path.exists() {
        if !beside.exists() || files::read_json::<Value>(&beside)? != *task.identity {
            let message = format!("`{}` holds answers of another model or of other settings", path.display());
            return Err(usage(message).hint("choose another folder by `--out`, or delete it").into());
        }
        let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        records.extend(text.lines().map_while(|line| serde_json::from_str(line).ok()));
    }
    let rows: BTreeSet<usize> = task.prompts.iter().map(|prompt| prompt.index).collect();
    records.retain(|record| rows.contains(&record.index));
    // First what the answers belong to: answers alone would be taken for another model's.
    files::write_json(&beside, task.identity)?;
    rewrite(path, &records)?;
    Ok(records)
}

/// The share of right answers by each rule.
pub fn scores<'a>(records: impl Iterator<Item = &'a Record> + Clone, rules: &[Rule]) -> Vec<(Rule, Summary)> {
    let verdicts = |rule: Rule| {
        records
            .clone()
            .map(move |record| record.verdicts.get(rule.name()).is_some_and(|judged| judged.correct))
    };
    rules.iter().map(|&rule| (rule, summary(verdicts(rule)))).collect()
}

/// The records whose rows have the same value in a column, by that value.
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
