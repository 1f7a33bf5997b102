//! A conversation with a language model by its chat template: for `chat`.

mod answer;
mod input;
mod order;

use std::path::PathBuf;

use answer::{AnswerEnd, Speaker};
use input::ChatInput;
use order::{COMMANDS, ChatLine};
use serde_json::{Value, json};
use tch::Kind;

use super::environment::{Environment, settled, use_precision};
use super::fit::check_fit;
use super::precedence::decoding;
use super::subject::Subject;
use crate::data::chat_prompt::{ChatPrompt, NO_TEMPLATE};
use crate::data::task::Generation;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault, hint_of, usage};
use crate::generate::config::Asked;
use crate::generate::{Finish, Sampling, SamplingParams};
use crate::models::{Config, Model};
use crate::report::{say, table};
use crate::spec::Precision;
use crate::spec::request::{ChatRequest, GenerationOptions};
use crate::train::{Ending, interrupt};

/// Default number of new tokens.
const MAX_NEW_TOKENS: usize = 1024;

/// Talks until the input ends. An error of a message or a command ends a chat only where no person sits before it.
/// Fails when the subject is no language model with a chat template, or an answer fails.
pub fn chat(place: &Environment, request: &ChatRequest) -> Result<Ending> {
    let mut subject = Subject::open(place, &request.subject, &[])?;
    let base = &subject.base.base;
    if matches!(base.config, Config::Encoder(_)) || subject.head()?.is_some() {
        let message = format!("a chat needs a language model, and `{}` is a classifier", subject.base.name);
        return Err(usage(message).hint("`loraxs predict` answers new texts").into());
    }
    let tokenizer = Tokenizer::load(&base.folder)?;
    check_fit(base, &tokenizer, 1)?;
    let Some(prompt) = ChatPrompt::new(&tokenizer)? else {
        let message = format!("`{}` has no chat template", subject.base.name);
        return Err(fault(message).hint(NO_TEMPLATE).into());
    };
    let asked = Asked::read(&base.folder, base.config.vocabulary)?;
    let task = Generation { max_new_tokens: Some(MAX_NEW_TOKENS), ..Generation::unset() };
    let (first, remarks) = decoding(&request.generation, &task, &tokenizer, &asked)?;
    for remark in remarks {
        tracing::warn!("{remark}");
    }
    let mut chat = Chat {
        input: ChatInput::open()?,
        prompt: &prompt,
        positions: usize::try_from(base.config.longest_sequence())?,
        decoding: &|options| Ok(decoding(options, &task, &tokenizer, &asked)?.0.params),
        settings: request.generation.clone(),
        params: first.params,
        system: request.system.clone(),
        turns: Vec::new(),
    };
    let recipe = subject.run.as_ref().map(|(_, recipe)| recipe.train.precision);
    let precision = request.precision.or(recipe).unwrap_or(Precision::Auto);
    let kind = use_precision(settled(precision, &place.devices, &base.config)?)?;
    let mut model = build(place, &subject, kind)?;
    let is_terminal = chat.input.is_terminal();
    if is_terminal {
        say(&format!("{}: /help shows the commands, Ctrl-D leaves", subject.base.name));
    }
    loop {
        let (model_now, stop) = (model.language()?, &first.stop[..]);
        let speaker = Speaker { model: model_now, tokenizer: &tokenizer, stop, is_terminal };
        match chat.talk(&speaker)? {
            Leave::For(ending) => return Ok(ending),
            Leave::Adapter(folder) => {
                let adapter = folder.map(|folder| subject.adapter_of(&folder)).transpose();
                let Some(adapter) = chat.told(adapter)? else { continue };
                // Merged weights do not give the base back, and two models may not fit into memory.
                drop(model);
                let before = std::mem::replace(&mut subject.adapter, adapter);
                model = match chat.told(build(place, &subject, kind))? {
                    Some(model) => model,
                    None => {
                        subject.adapter = before;
                        build(place, &subject, kind)?
                    }
                };
            }
        }
    }
}

/// Builds the model, ready to answer.
fn build(place: &Environment, subject: &Subject, kind: Kind) -> Result<Model> {
    let (mut model, _trained) = subject.build(place, kind, None)?;
    model.merge_adapters();
    model.pack();
    Ok(model)
}

/// Why a talk with one model ends.
enum Leave {
    For(Ending),
    /// Go on with this adapter, or without any.
    Adapter(Option<PathBuf>),
}

/// A conversation.
struct Chat<'a> {
    input: ChatInput,
    prompt: &'a ChatPrompt<'a>,
    /// Tokens that the model has positions for.
    positions: usize,
    /// What options make of the checkpoint's settings.
    decoding: &'a dyn Fn(&GenerationOptions) -> Result<SamplingParams>,
    settings: GenerationOptions,
    params: SamplingParams,
    system: Option<String>,
    /// Messages of user and assistant in turns.
    turns: Vec<Value>,
}

impl Chat<'_> {
    /// Takes lines until one ends the talk with this model.
    /// Fails when the input does, or a line where no person sits before it.
    fn talk(&mut self, speaker: &Speaker<'_>) -> Result<Leave> {
        while let Some(line) = self.input.next()? {
            let followed = ChatLine::parse(&line).and_then(|order| self.follow(order, speaker));
            if let Some(Some(leave)) = self.told(followed)? {
                return Ok(leave);
            }
        }
        Ok(Leave::For(Ending::Finished))
    }

    /// Shows an error to the person before it, and returns `None`; returns the error if there is nobody.
    fn told<T>(&self, found: Result<T>) -> Result<Option<T>> {
        match found {
            Ok(found) => Ok(Some(found)),
            Err(error) if !self.input.is_terminal() => Err(error),
            Err(error) => {
                let hint = hint_of(&error).map(|hint| format!("; {hint}")).unwrap_or_default();
                tracing::error!("{error:#}{hint}");
                Ok(None)
            }
        }
    }

    /// Does what a line asks for. Returns why the talk ends, if it does.
    fn follow(&mut self, order: ChatLine, speaker: &Speaker<'_>) -> Result<Option<Leave>> {
        match order {
            ChatLine::Message(text) => return self.answer(text, speaker),
            ChatLine::Reset => self.turns.clear(),
            ChatLine::System(text) => self.system = text,
            ChatLine::Adapter(folder) => return Ok(Some(Leave::Adapter(folder))),
            ChatLine::Set(name, value) => {
                let settings = self.settings.with(&name, &value)?;
                self.params = (self.decoding)(&settings)?;
                self.settings = settings;
            }
            ChatLine::ShowSettings => say(&shown(&self.params)),
            ChatLine::Help => {
                let rows = COMMANDS.map(|(name, what, does)| vec![format!("{name} {what}"), does.to_owned()]);
                let lines = "A line that ends in `\\`, or an open `\"\"\"`, goes on on the next line. Ctrl-C stops an answer.";
                say(&format!("{}\n{lines}", table(&["command", ""], &rows)));
            }
            ChatLine::Quit => return Ok(Some(Leave::For(Ending::Finished))),
        }
        Ok(None)
    }

    /// Returns the conversation with its system message.
    fn messages(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.turns.iter().cloned()).collect()
    }

    /// Answers a message; both stay in the conversation, unless nothing could be said.
    fn answer(&mut self, text: String, speaker: &Speaker<'_>) -> Result<Option<Leave>> {
        let (index, before) = (self.turns.len() / 2, self.turns.len());
        self.turns.push(json!({"role": "user", "content": text}));
        let answered = self.next().and_then(|(ids, params)| {
            let room = self.positions - ids.len() == params.max_new_tokens;
            Ok((speaker.answer(index, ids, params)?, room))
        });
        let ((text, end), fills) = answered.inspect_err(|_| self.turns.truncate(before))?;
        match text.is_empty() && end == AnswerEnd::Interrupted {
            true => self.turns.truncate(before),
            false => self.turns.push(json!({"role": "assistant", "content": text})),
        }
        match end {
            AnswerEnd::Finished(Finish::Length) if fills => tracing::warn!(
                "the answer was cut: the model has {} positions, and the conversation fills them; `/reset` forgets it",
                self.positions
            ),
            AnswerEnd::Finished(Finish::Length) => tracing::warn!(
                "the answer was cut after {} tokens; `/set max-new-tokens=N` allows more",
                self.params.max_new_tokens
            ),
            AnswerEnd::Finished(_) => {}
            AnswerEnd::Closed => return Ok(Some(Leave::For(Ending::Finished))),
            // Ctrl-C of a person is for the answer alone.
            AnswerEnd::Interrupted if self.input.is_terminal() && interrupt::dismissed() => {}
            AnswerEnd::Interrupted => return Ok(Some(Leave::For(Ending::Interrupted))),
        }
        Ok(None)
    }

    /// Returns the tokens of the conversation so far, and how to continue them within the model's positions.
    fn next(&self) -> Result<(Vec<u32>, SamplingParams)> {
        let text = self.prompt.text(&self.messages(), None)?;
        let (ids, is_cut) = self.prompt.tokens(&text, self.positions)?;
        let room = self.positions.saturating_sub(ids.len());
        if is_cut || room == 0 {
            let (found, most) = (ids.len(), self.positions);
            let found = if is_cut { format!("more than {most}") } else { found.to_string() };
            let message = format!(
                "the conversation has {found} tokens, and the model {most} positions: no room for an answer"
            );
            return Err(fault(message)
                .hint("`/reset` forgets the conversation; or send a shorter message")
                .into());
        }
        let max_new_tokens = self.params.max_new_tokens.min(room);
        Ok((ids, SamplingParams { max_new_tokens, ..self.params.clone() }))
    }
}

/// Formats all settings by the names of their options.
fn shown(params: &SamplingParams) -> String {
    let (temperature, top_k, top_p) = match params.sampling {
        Sampling::Greedy => (0.0, 0, 1.0),
        Sampling::Random { temperature, top_k, top_p } => (temperature, top_k, top_p),
    };
    let lines = [
        format!("max-new-tokens={}", params.max_new_tokens),
        format!("temperature={temperature}"),
        format!("top-k={top_k}"),
        format!("top-p={top_p}"),
        format!("beams={}", params.search.beams),
        format!("repetition-penalty={}", params.penalties.repetition_penalty),
        format!("seed={}", params.seed),
    ];
    lines.join("\n")
}
