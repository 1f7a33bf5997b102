//! Prompts of generation data: what a model is to continue, and what its continuation is scored against.

use serde_json::{Value, json};

use super::Skipped;
use super::chat::{self, TOOLS};
use super::chat_prompt::{ChatPrompt, NO_TEMPLATE};
use super::dataset::Dataset;
use super::row::{Columns, Refusal, plain};
use super::split::{Need, Split};
use super::task::{Generation, Task};
use super::template::Template;
use super::tokenize::Tokenizer;
use crate::fault::{Result, fault, usage};

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

impl Prompts {
    /// Returns the tokens of the longest prompt.
    pub fn longest(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.ids.len()).max().unwrap_or(0)
    }
}

/// Solved rows that are put before every prompt.
#[derive(Debug, Clone, Copy)]
pub struct Shots<'a> {
    /// Number of shots.
    pub count: usize,
    /// Source of the shots: the first usable rows of the split `shot_split` of the data set.
    pub split: Split<'a>,
}

/// What reads prompts: a tokenizer, and the number of tokens that its model has positions for.
pub type PromptReader<'a> = (&'a Tokenizer, usize);

/// Reads and renders the files of a split; `split.limit` is the number of usable rows to keep from the start
/// (0 = all). A row whose prompt has no token, or more than there are positions, cannot be used. Without a reader, prompts have
/// no tokens, and those of a chat are the text of its last turn.
///
/// A shot is the template `shot`, or if there is none the prompt, a space unless the prompt ends in one, and the
/// answer. Shots and prompt are joined by `shot_separator`; in a chat, they are turns. A row is never its own shot.
///
/// # Errors
/// When the data set is not for generation, a template is wrong, a file cannot be read, a column does not exist,
/// there are fewer usable rows than shots, no row can be used, or the tokenizer has no chat template where one is needed.
pub fn load(
    split: &Split<'_>,
    shots: Option<&Shots<'_>>,
    reader: Option<PromptReader<'_>>,
) -> Result<Prompts> {
    let task = generation(split.dataset)?;
    let shots = shots.filter(|shots| shots.count > 0);
    let solved = shots.map(|shots| solved(shots, task)).transpose()?.unwrap_or_default();
    let hash = digest(split, task, shots, reader.map(|(tokenizer, _)| tokenizer))?;
    let same = shots.is_some_and(|shots| shots.split.name == split.name);
    let count = shots.map_or(0, |shots| shots.count);
    let form = Form::new(&split.dataset.name, task, reader)?;
    let render = |index: usize, row: &Columns| {
        let (question, gold) = ask(task, row)?;
        let others = solved.iter().filter(|(solved, _)| !same || *solved != index).take(count);
        let others: Vec<&Question> = others.map(|(_, shot)| shot).collect();
        let (text, ids) = form.prompt(&others, question, row)?;
        Ok(Prompt { index, text, ids, gold, columns: plain(row.clone()) })
    };
    let (prompts, skipped) = read(split, task, render)?;
    Ok(Prompts { prompts, skipped, hash })
}

/// Makes prompts of rows one by one, of which nobody knows the answers.
pub struct Asker<'a> {
    form: Form<'a>,
    shots: Vec<Question>,
}

impl<'a> Asker<'a> {
    /// Creates one for the prompts of the task `name`, after solved rows of a data set of its kind.
    ///
    /// # Errors
    /// When there are too few solved rows, or the tokenizer has no chat template where one is needed.
    pub fn new(
        name: &str,
        task: &'a Generation,
        shots: Option<&Shots<'_>>,
        reader: PromptReader<'a>,
    ) -> Result<Self> {
        let mut before = Vec::new();
        if let Some(shots) = shots {
            let solved = solved(shots, generation(shots.split.dataset)?)?;
            before.extend(solved.into_iter().map(|(_, shot)| shot).take(shots.count));
        }
        Ok(Self { form: Form::new(name, task, Some(reader))?, shots: before })
    }

    /// Returns the tokens of a row's prompt.
    ///
    /// # Errors
    /// Why it has none: an empty column, messages that the template refuses, too many tokens.
    pub fn tokens(&self, row: &Columns) -> std::result::Result<Vec<u32>, Refusal> {
        let (question, _) = ask(self.form.task, row)?;
        let shots: Vec<&Question> = self.shots.iter().collect();
        Ok(self.form.prompt(&shots, question, row)?.1)
    }
}

/// What a row asks, or asks and answers.
enum Question {
    Text(String),
    /// Turns of a chat.
    Turns(Vec<Value>),
}

/// What makes texts and tokens of questions.
struct Form<'a> {
    task: &'a Generation,
    reader: Option<PromptReader<'a>>,
    chat: Option<ChatPrompt<'a>>,
}

impl<'a> Form<'a> {
    fn new(name: &str, task: &'a Generation, reader: Option<PromptReader<'a>>) -> Result<Self> {
        let mut chat = None;
        if let Some((tokenizer, _)) = reader.filter(|_| task.is_chat()) {
            chat = ChatPrompt::new(tokenizer)?;
            if chat.is_none() {
                let message =
                    format!("the prompts of `{name}` are a chat, but the tokenizer has no chat template");
                return Err(fault(message).hint(NO_TEMPLATE).into());
            }
        }
        Ok(Self { task, reader, chat })
    }

    /// Returns the text of a question after the shots, and its tokens.
    fn prompt(
        &self,
        shots: &[&Question],
        question: Question,
        row: &Columns,
    ) -> std::result::Result<(String, Vec<u32>), Refusal> {
        let text = match question {
            Question::Text(text) => {
                let before = shots.iter().filter_map(|shot| match shot {
                    Question::Text(text) => Some([text, self.task.shot_separator.as_str()]),
                    Question::Turns(_) => None,
                });
                before.flatten().chain([text.as_str()]).collect()
            }
            Question::Turns(mut turns) => {
                let shots = shots.iter().flat_map(|shot| match shot {
                    Question::Turns(turns) => without_system(turns),
                    Question::Text(_) => &[],
                });
                let start = turns.len() - without_system(&turns).len();
                turns.splice(start..start, shots.cloned().collect::<Vec<_>>());
                match &self.chat {
                    Some(chat) => chat.text(&turns, chat::tools(row.get(TOOLS))?.as_deref())?,
                    None => turns.last().map(content).unwrap_or_default(),
                }
            }
        };
        let Some((tokenizer, longest)) = self.reader else { return Ok((text, Vec::new())) };
        let tokens = match &self.chat {
            Some(chat) => chat.tokens(&text, longest),
            None => tokenizer.encode_open(&text, longest),
        };
        let (ids, cut) = tokens.map_err(|e| format!("{e:#}"))?;
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
            _ => Ok((text, ids)),
        }
    }
}

/// Returns the turns after the system's at the start.
fn without_system(turns: &[Value]) -> &[Value] {
    let start = turns.iter().take_while(|turn| chat::role(turn) == "system").count();
    turns.get(start..).unwrap_or_default()
}

/// Returns what a turn says, if that is a text.
fn content(turn: &Value) -> String {
    turn.get("content").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Renders one shot more than requested, because a row is never its own shot.
fn solved(shots: &Shots<'_>, task: &Generation) -> Result<Vec<(usize, Question)>> {
    let split = Split { limit: shots.count.saturating_add(1), ..shots.split };
    let render = |index, row: &Columns| {
        if let Some(shot) = task.shot.as_ref().filter(|_| !task.is_chat()) {
            return Ok((index, Question::Text(shot.render(row)?)));
        }
        let solved = match ask(task, row)? {
            (Question::Text(prompt), gold) => {
                let space = if prompt.ends_with(char::is_whitespace) { "" } else { " " };
                Question::Text(format!("{prompt}{space}{gold}"))
            }
            (Question::Turns(mut turns), gold) => {
                turns.push(json!({"role": "assistant", "content": gold}));
                Question::Turns(turns)
            }
        };
        Ok((index, solved))
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

/// Renders question and gold answer.
fn ask(task: &Generation, row: &Columns) -> std::result::Result<(Question, String), String> {
    let gold = task.answer.as_ref().map(|answer| answer.render(row)).transpose()?;
    let Some(column) = &task.messages else {
        let prompt = task.prompt.render(row)?;
        let question = match task.chat {
            true => Question::Turns(vec![json!({"role": "user", "content": prompt})]),
            false => Question::Text(prompt),
        };
        return Ok((question, gold.unwrap_or_default()));
    };
    let mut turns = chat::messages(column, row.get(column))?;
    let answer = turns.pop_if(|turn| chat::role(turn) == "assistant");
    if turns.is_empty() {
        return Err(format!("column `{column}` has no message before the assistant's"));
    }
    Ok((Question::Turns(turns), gold.or(answer.as_ref().map(content)).unwrap_or_default()))
}

/// Renders the usable rows of a split; `render` gets their numbers, too.
fn read<T: Send>(
    split: &Split<'_>,
    task: &Generation,
    render: impl Fn(usize, &Columns) -> std::result::Result<T, Refusal> + Sync,
) -> Result<(Vec<T>, Skipped)> {
    let templates =
        [Some(&task.prompt), task.answer.as_ref(), task.shot.as_ref().filter(|_| !task.is_chat())];
    let columns = templates.into_iter().flatten().flat_map(Template::needed);
    let columns: Vec<&str> = columns.chain(task.messages.as_deref()).collect();
    let hint = "see `prompt`, `messages` and `answer` of its catalog entry";
    let (found, skipped) = split.convert(&Need { columns: &columns, kept: None, hint }, render)?;
    split.warn_of(&skipped, found.len());
    Ok((found, skipped))
}

fn digest(
    split: &Split<'_>,
    task: &Generation,
    shots: Option<&Shots<'_>>,
    tokenizer: Option<&Tokenizer>,
) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let count = shots.map_or(0, |shots| shots.count);
    let templates = json!([task.prompt, task.answer, task.shot, task.shot_separator]);
    let hash = tokenizer.map(Tokenizer::hash);
    hasher.update(json!([templates, hash, split.limit, count]).to_string().as_bytes());
    if task.is_chat() {
        let templates = tokenizer.map(|own| (own.chat_template(), own.tool_template(), own.named_tokens()));
        hasher.update(json!([task.messages, templates]).to_string().as_bytes());
    }
    split.hash_into(&mut hasher)?;
    if let Some(shots) = shots {
        shots.split.hash_into(&mut hasher)?;
    }
    Ok(hasher.finalize().to_hex().to_string())
}
