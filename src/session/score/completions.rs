//! Scores of answers that were made elsewhere, which need no model: for `eval --completions`.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::write_and_show;
use crate::data::Task;
use crate::data::dataset::Dataset;
use crate::data::prompts::{self, Prompt, Prompts};
use crate::data::row::{Columns, Wanted};
use crate::data::rows::Rows;
use crate::data::split::Split;
use crate::eval::generation::{AnswerRecord, PromptSet};
use crate::eval::harness::{self, Scored};
use crate::eval::results::TaskResult;
use crate::fault::{Result, fault, usage};
use crate::files;
use crate::scoring::Rule;
use crate::session::environment::Environment;
use crate::session::precedence::prompt_split;
use crate::session::run_folder::EVAL;
use crate::session::sources;
use crate::spec::request::ScoreRequest;
use crate::train::Ending;

/// Rows read at once.
const PIECE: usize = 4096;

/// Scores the completions in `file` on the data set asked for, by its rules.
/// Fails when the data set has none, a row cannot be used, or a prompt has no completion or two.
pub fn rescore(place: &Environment, request: &ScoreRequest, file: &Path) -> Result<Ending> {
    let start = Instant::now();
    let [name] = &request.task[..] else {
        return Err(usage("`--completions` are the answers to one `--task`").into());
    };
    let dataset = sources::open(place, name)?;
    let Task::Generation(keys) = &dataset.task else {
        let message =
            format!("`{name}` is for `{}`, and completions answer `generation`", dataset.task.name());
        return Err(usage(message).into());
    };
    let rules: Vec<Rule> = keys.scorers.iter().map(|name| Rule::named(name)).collect::<Result<_>>()?;
    if rules.is_empty() {
        return Err(usage(format!("nothing scores `{name}`"))
            .hint("give its catalog entry `scorers`")
            .into());
    }
    let split = request.split.as_deref().or(prompt_split(&dataset)).unwrap_or("validation");
    let files = place.files(&dataset, split)?;
    let mut found =
        prompts::load(&Split { dataset: &dataset, name: split, files: &files, limit: 0 }, None, None)?;
    let answers = Answers { file, dataset: &dataset, split }.all(&mut found, request.limit)?;
    let identity = json!({
        "completions": blake3::hash(&files::read_bytes(file)?).to_hex().to_string(),
        "split": split, "prompts": found.hash, "scorers": keys.scorers, "limit": request.limit,
    });
    let (prompts, earlier) = (&found.prompts, &Value::Null);
    let task = PromptSet { name, rules: &rules, prompts, identity: &identity, earlier };
    let records: Vec<AnswerRecord> = (prompts.iter().zip(answers))
        .map(|(prompt, text)| AnswerRecord::new(&task, prompt, (text, None, None)))
        .collect::<Result<_>>()?;
    let out = request.out.clone().unwrap_or_else(|| PathBuf::from(EVAL));
    write(&out, &task, &records)?;
    let seconds = start.elapsed().as_secs_f64();
    let scored = Scored { task: &task, records: &records, shots: 0, arguments: &json!({}), seconds };
    harness::write(&out, file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("completions"), &scored)?;
    let result = TaskResult::of_answers(&keys.group_by, split, (&rules, &found, &records), seconds);
    write_and_show(&[(name.clone(), result)].into(), &out, false)?;
    Ok(Ending::Finished)
}

/// Writes the records as `eval` does with a model.
/// Fails when the folder has other completions.
fn write(out: &Path, task: &PromptSet<'_>, records: &[AnswerRecord]) -> Result<()> {
    files::refuse_file(out)?;
    files::hold_for_good(out)?;
    let path = out.join("predictions").join(format!("{}.jsonl", task.name));
    let beside = path.with_extension("settings.json");
    if path.exists() && files::read_json::<Value>(&beside).ok().as_ref() != Some(task.identity) {
        let message = format!("`{}` has other completions", path.display());
        return Err(usage(message).hint("choose another folder with `--out`, or delete it").into());
    }
    files::write_json(&beside, task.identity)?;
    files::write_json_lines(&path, records)
}

/// Answers in a file, to the prompts of a split.
struct Answers<'a> {
    file: &'a Path,
    dataset: &'a Dataset,
    split: &'a str,
}

/// What a row of the file answers.
enum Asked {
    Index(usize),
    Prompt(String),
}

impl Answers<'_> {
    /// Returns an answer for each of the first `limit` prompts (0 = all), which are kept.
    fn all(&self, found: &mut Prompts, limit: usize) -> Result<Vec<String>> {
        let mut answers: Vec<Option<String>> = vec![None; found.prompts.len()];
        let (mut strange, mut doubled) = (Vec::new(), Vec::new());
        let rows = self.rows()?;
        let mut places = Places::new(&found.prompts);
        let mut filters: BTreeMap<usize, Value> = BTreeMap::new();
        for Answer { number, asked, text, filter } in &rows {
            match places.of(asked) {
                None => strange.push(number),
                Some(place) => match answers.get_mut(place) {
                    Some(free @ None) => {
                        *free = Some(text.clone());
                        filters.insert(place, filter.clone());
                    }
                    // The harness writes a line for each filter, all with the same answer.
                    Some(Some(known)) if known == text && filters.get(&place) != Some(filter) => {}
                    _ => doubled.push(number),
                },
            }
        }
        let (file, split) = (self.file.display(), format!("`{}` {}", self.dataset.name, self.split));
        let refuse = |numbers: &[&usize], what: &str, hint: &str| match numbers.first() {
            Some(first) => {
                let (count, all) = (numbers.len(), rows.len());
                let message =
                    format!("`{file}`: {count} of {all} rows {what} of {split}; the first is row {first}");
                Err(fault(message).hint(hint.to_owned()))
            }
            None => Ok(()),
        };
        refuse(
            &strange,
            "answer no prompt",
            "`index` counts rows from 0, `prompt` is the whole text of a prompt",
        )?;
        refuse(&doubled, "are a second answer to a prompt", "give one completion for each prompt")?;
        if limit > 0 {
            found.prompts.truncate(limit);
            answers.truncate(limit);
        }
        let missing = answers.iter().filter(|answer| answer.is_none()).count();
        if missing > 0 {
            let whole = answers.iter().take_while(|answer| answer.is_some()).count();
            let message =
                format!("`{file}`: {missing} of {} prompts of {split} have no completion", answers.len());
            let first =
                format!("the first is row {}", found.prompts.get(whole).map_or(0, |prompt| prompt.index));
            return Err(fault(format!("{message}; {first}"))
                .hint(match whole {
                    0 => "give a completion for each prompt; `--limit N` scores the first N".to_owned(),
                    _ => format!("`--limit {whole}` scores those before it"),
                })
                .into());
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// Reads all rows of the file.
    fn rows(&self) -> Result<Vec<Answer>> {
        let file = self.file.display();
        let mut rows = Rows::open(self.file, &Wanted::default())?;
        let (mut found, mut bad, mut first) = (Vec::new(), 0, String::new());
        loop {
            let piece = rows.next(PIECE)?;
            if piece.is_empty() {
                break;
            }
            for row in piece {
                match row.columns.and_then(|columns| Answer::of(row.number, &columns)) {
                    Ok(answer) => found.push(answer),
                    Err(reason) => {
                        bad += 1;
                        if bad == 1 {
                            first = format!("{} {}: {reason}", rows.unit, row.number);
                        }
                    }
                }
            }
        }
        match bad {
            0 => Ok(found),
            _ => {
                let all = bad + found.len();
                Err(fault(format!("`{file}`: {bad} of {all} rows cannot be used; the first is {first}"))
                    .hint("rows have `index` or `prompt`, and `completion`; or are lm-evaluation-harness's samples")
                    .into())
            }
        }
    }
}

/// A row of the file.
struct Answer {
    number: usize,
    asked: Asked,
    text: String,
    /// The filter of a sample of the harness.
    filter: Value,
}

impl Answer {
    /// Reads a row with `index` or `prompt`, and `completion`, or a sample of lm-evaluation-harness.
    fn of(number: usize, columns: &Columns) -> std::result::Result<Self, String> {
        let index =
            |name: &str| columns.get(name).and_then(Value::as_u64).and_then(|index| index.try_into().ok());
        let asked = match (index("index").or(index("doc_id")), columns.get("prompt")) {
            (Some(index), _) => Asked::Index(index),
            (None, Some(Value::String(prompt))) => Asked::Prompt(prompt.clone()),
            (None, _) => return Err("it has no `index` and no `prompt`".to_owned()),
        };
        let named = |name: &'static str| columns.get(name).map(|value| (name, value));
        let found = ["completion", "resps", "filtered_resps"].into_iter().find_map(named);
        let Some((column, mut value)) = found else { return Err("it has no `completion`".to_owned()) };
        while let (Value::Array(items), true) = (value, column != "completion") {
            let [item] = &items[..] else {
                return Err(format!("`{column}` holds {} answers, expected one", items.len()));
            };
            value = item;
        }
        let Some(text) = value.as_str() else {
            return Err(format!("its `{column}` is no text"));
        };
        let filter = columns.get("filter").cloned().unwrap_or_default();
        Ok(Self { number, asked, text: text.to_owned(), filter })
    }
}

/// Where prompts stand, by what rows name them by.
struct Places {
    by_index: BTreeMap<usize, usize>,
    /// Equal prompts are answered in their order; the last of them again and again.
    by_text: BTreeMap<String, VecDeque<usize>>,
}

impl Places {
    fn new(prompts: &[Prompt]) -> Self {
        let mut by_text: BTreeMap<String, VecDeque<usize>> = BTreeMap::new();
        for (place, prompt) in prompts.iter().enumerate() {
            by_text.entry(prompt.text.clone()).or_default().push_back(place);
        }
        let by_index = prompts.iter().enumerate().map(|(place, prompt)| (prompt.index, place)).collect();
        Self { by_index, by_text }
    }

    fn of(&mut self, asked: &Asked) -> Option<usize> {
        match asked {
            Asked::Index(index) => self.by_index.get(index).copied(),
            Asked::Prompt(text) => {
                let places = self.by_text.get_mut(text)?;
                if places.len() > 1 { places.pop_front() } else { places.front().copied() }
            }
        }
    }
}
