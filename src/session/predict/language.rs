//! Answers of a language model: completions, in the order of the rows.

use std::collections::VecDeque;
use std::io::Write;
use std::slice::from_ref;
use std::sync::{Mutex, OnceLock};
use std::thread::sleep;
use std::time::Duration;

use super::answer::{Kind, of_completion};
use super::input::{Form, Input, Next};
use super::output::Output;
use super::{End, PATIENCE, Predictor, Told, columns_of};
use crate::data::Task;
use crate::data::dataset::Dataset;
use crate::data::prompts::{Asker, Shots};
use crate::data::row::{Columns, Refusal, Row};
use crate::data::rows::TEXT;
use crate::data::split::Split;
use crate::data::task::Generation;
use crate::data::template::Template;
use crate::data::texts::recognised_prompt;
use crate::fault::{Result, locked, usage};
use crate::generate::config::Asked;
use crate::generate::engine::MOST_SLOTS;
use crate::generate::{Completion, Engine, GenerationSettings, NextPrompt};
use crate::models::CausalLm;
use crate::session::environment::use_precision;
use crate::session::precedence::decoding;

/// Most rows from the first without an answer to the last that was read.
const WINDOW: usize = 4 * MOST_SLOTS;

/// Rows in order, each with its answer once it has one.
#[derive(Default)]
struct Window {
    rows: VecDeque<(Row, Option<std::result::Result<Columns, String>>)>,
    /// Number of the first of them, from 0.
    first: usize,
    /// True once answers cannot be written.
    is_closed: bool,
}

impl Window {
    /// Notes what continues the row of this number; takes out the first rows that have their answers.
    fn answered(
        &mut self,
        index: usize,
        completion: Option<Completion>,
    ) -> Vec<(Row, std::result::Result<Columns, String>)> {
        if let (Some((_, answer)), Some(completion)) = (self.rows.get_mut(index - self.first), completion) {
            *answer = Some(Ok(of_completion(&completion)));
        }
        let ready = self.rows.iter().take_while(|(_, answer)| answer.is_some()).count();
        self.first += ready;
        self.rows.drain(..ready).filter_map(|(row, answer)| Some((row, answer?))).collect()
    }
}

impl Predictor<'_> {
    /// Completes all rows.
    pub(super) fn completions(&self, out: &mut dyn Write) -> Result<Told> {
        let Self { place, subject, request, settings, tokenizer } = self;
        if request.max_length.is_some() {
            let message = "`--max-length` cuts the texts of classifiers, but the base is a language model";
            return Err(usage(message).hint("`--max-new-tokens` limits completions").into());
        }
        let dataset = if request.raw { None } else { self.dataset()? };
        let known = dataset.as_ref().map(task_of).transpose()?;
        let dataset = dataset.as_ref();
        let base = &subject.base.base;
        let asked = Asked::read(&base.folder, base.config.vocabulary)?;
        let task = known.clone().unwrap_or_else(Generation::unset);
        let (generation, remarks) = decoding(&request.generation, &task, tokenizer, &asked)?;
        remarks.iter().for_each(|remark| tracing::warn!("{remark}"));
        let generation = GenerationSettings { max_slots: request.batch_size.unwrap_or(0), ..generation };
        let input = self.input(self.prompt_form(dataset, known.as_ref())?)?;
        let (mut model, _trained) = subject.build(place, use_precision(settings.precision)?, None)?;
        model.merge_adapters();
        model.pack();
        let mut output = Output::new(out, self.format(), &Kind::Text);
        let end =
            self.follow(input, (dataset, known.as_ref()), (model.language()?, &generation), &mut output)?;
        Ok(Told { rows: output.rows, bad: output.bad, end })
    }

    /// Continues the prompts of all rows as they come.
    fn follow(
        &self,
        mut input: Input,
        (dataset, known): (Option<&Dataset>, Option<&Generation>),
        (model, generation): (&CausalLm, &GenerationSettings),
        output: &mut Output<'_>,
    ) -> Result<End> {
        let (window, unit) = (Mutex::new(Window::default()), OnceLock::new());
        let chosen: OnceLock<Generation> = OnceLock::new();
        let mut asker: Option<Asker<'_>> = None;
        let mut next = |wait: bool| -> Result<NextPrompt> {
            let is_full = match &*locked(&window) {
                Window { is_closed: true, .. } => return Ok(NextPrompt::End),
                window => window.rows.len() >= WINDOW,
            };
            if is_full {
                sleep(if wait { PATIENCE } else { Duration::ZERO });
                return Ok(NextPrompt::Later);
            }
            let row = match input.next(1, if wait { PATIENCE } else { Duration::ZERO })? {
                Next::Rows(mut rows) => rows.pop(),
                Next::Later => return Ok(NextPrompt::Later),
                Next::End => None,
            };
            let Some(row) = row else { return Ok(NextPrompt::End) };
            let _ = unit.set(input.unit);
            let tokens = match &row.columns {
                Err(reason) => Err(Refusal::Row(reason.clone())),
                Ok(columns) => {
                    if asker.is_none() {
                        let task = self.task_for(known, &input.columns, columns)?;
                        asker = Some(self.asker(dataset, chosen.get_or_init(|| task))?);
                    }
                    asker.as_ref().map_or(Ok(Vec::new()), |asker| asker.tokens(columns))
                }
            };
            let mut window = locked(&window);
            let index = window.first + window.rows.len();
            match tokens {
                Ok(ids) => {
                    window.rows.push_back((row, None));
                    Ok(NextPrompt::Prompt(index, ids))
                }
                Err(Refusal::Row(reason)) => {
                    window.rows.push_back((row, Some(Err(reason))));
                    Ok(NextPrompt::Refused(index))
                }
                Err(Refusal::All(fault)) => Err(fault.into()),
            }
        };
        let mut failure = None;
        let finished =
            Engine::new(model, &self.tokenizer, generation).follow(&mut next, &mut |index, completion| {
                let answered = locked(&window).answered(index, completion);
                output.write(answered.into_iter(), unit.get().copied().unwrap_or("line")).inspect_err(|_| {
                    failure = output.failure.take();
                    locked(&window).is_closed = true;
                })
            });
        match (failure, finished) {
            (Some(error), _) => Ok(End::Unwritten(error)),
            (None, finished) => Ok(if finished? { End::Finished } else { End::Interrupted }),
        }
    }

    /// Returns the columns of prompts.
    fn prompt_form(&self, dataset: Option<&Dataset>, task: Option<&Generation>) -> Result<Form> {
        let given = &self.request.columns;
        let named: Vec<String> = match task {
            Some(Generation { messages: Some(column), .. }) => vec![column.clone()],
            Some(task) if !given.is_empty() => {
                let columns: Vec<&str> = task.prompt.columns().collect();
                return Err(usage(format!(
                    "the template of the prompts names their columns, `{}`",
                    columns.join("`, `")
                ))
                .hint("leave `--columns` out, or pass `--raw` to continue the text of a column as it is")
                .into());
            }
            Some(task) => columns_of(from_ref(&task.prompt)),
            None => Vec::new(),
        };
        if given.len() > 1 {
            return Err(usage("a prompt is in one column").hint("name it with `--columns`").into());
        }
        let is_text = task.is_none_or(|task| task.messages.is_some());
        Ok(Form {
            plain: if is_text { vec![TEXT.to_owned()] } else { named.clone() },
            columns: if given.is_empty() { named } else { given.clone() },
            is_given: !given.is_empty(),
            find: recognised_prompt,
            field: dataset.and_then(|dataset| dataset.field.clone()),
        })
    }

    /// Returns how rows with these columns are asked, of which `row` is one.
    fn task_for(&self, known: Option<&Generation>, columns: &[String], row: &Columns) -> Result<Generation> {
        let own = known.cloned().unwrap_or_else(Generation::unset);
        let column = columns.first().map(String::as_str).unwrap_or_default();
        if known.is_some() && own.messages.is_none() {
            return Ok(own);
        }
        if row.get(column).is_some_and(|value| value.is_array()) {
            return Ok(Generation { messages: Some(column.to_owned()), ..own });
        }
        let prompt = Template::column(column);
        let is_chat = known.is_some() || !self.request.raw && self.tokenizer.chat_template().is_some();
        tracing::info!(
            "`{column}` is {}",
            match is_chat {
                true => "a user's message in the chat template; `--raw` continues it as it is",
                false => "continued as it is",
            }
        );
        Ok(Generation { messages: None, prompt, chat: is_chat, ..own })
    }

    /// Returns what makes prompts of rows, after solved ones if the command line asks for them.
    fn asker<'t>(&'t self, dataset: Option<&Dataset>, task: &'t Generation) -> Result<Asker<'t>> {
        let longest = usize::try_from(self.subject.base.base.config.longest_sequence())?;
        let reader = (&self.tokenizer, longest);
        let count = self.request.shots;
        if count == 0 {
            return Asker::new(dataset.map_or("the input", |dataset| &dataset.name), task, None, reader);
        }
        let Some(dataset) = dataset.filter(|dataset| matches!(dataset.task, Task::Generation(_))) else {
            return Err(usage("`--shots` are rows of a data set for `generation`, and there is none")
                .hint("name one with `--task`")
                .into());
        };
        let files = self.place.files(dataset, &task.shot_split)?;
        let split = Split { dataset, name: &task.shot_split, files: &files, limit: 0 };
        Asker::new(&dataset.name, task, Some(&Shots { count, split }), reader)
    }
}

/// Returns how the prompts of a data set are asked, whose answers nobody knows.
fn task_of(dataset: &Dataset) -> Result<Generation> {
    Ok(match &dataset.task {
        Task::Generation(task) => Generation { answer: None, ..task.clone() },
        Task::Instruction(task) => of_prompt(&task.prompt),
        Task::Text(task) => of_prompt(&task.text),
        Task::Chat(task) => {
            let asked = task.prompt.as_ref().unwrap_or(&task.messages);
            Generation { messages: Some(asked.clone()), ..Generation::unset() }
        }
        other => {
            let (name, task) = (&dataset.name, other.name());
            return Err(usage(format!(
                "data set `{name}` is for `{task}`, but the base is a language model"
            ))
            .hint("use one for `instruction`, `chat` or `generation`, or `--raw`")
            .into());
        }
    })
}

/// Returns a task of this prompt alone.
fn of_prompt(prompt: &Template) -> Generation {
    Generation { prompt: prompt.clone(), ..Generation::unset() }
}
