//! Scores completions: each prompt is continued once, judged by several rules, and kept in a resumable file.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::metrics::Score;
use crate::data::prompts::Prompt;
use crate::fault::Result;
use crate::generate::{Completion, Finish};
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
    pub(super) fn read(
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

/// What a model answers to a prompt.
#[derive(Debug, Serialize, Deserialize)]
pub struct Answered {
    /// The prompt's row.
    pub index: usize,
    /// The text.
    pub completion: String,
    /// Why it ended.
    pub finish: Finish,
    /// Its number of tokens.
    pub tokens: usize,
}

impl Answered {
    /// Keeps what counts of a completion.
    pub fn new(index: usize, Completion { ids, text, finish }: Completion) -> Self {
        Self { index, completion: text, finish, tokens: ids.len() }
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
