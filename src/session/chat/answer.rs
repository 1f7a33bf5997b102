//! An answer: the tokens of a conversation continued, shown as they come.

use std::io::{self, ErrorKind, Write as _};
use std::sync::Arc;

use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault};
use crate::generate::{Event, Finish, Limits, Request, SamplingParams, Scheduler, TextStream, stop_rule};
use crate::models::CausalLm;
use crate::train::interrupt;

/// What ended an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    Finished(Finish),
    /// A signal.
    Interrupted,
    /// Nobody reads standard output any more.
    Closed,
}

/// What continues conversations.
pub struct Speaker<'a> {
    pub model: &'a CausalLm,
    pub tokenizer: &'a Tokenizer,
    /// Texts that end an answer.
    pub stop: &'a [String],
    /// True if a person reads the answers: control characters are shown as such.
    pub is_terminal: bool,
}

impl Speaker<'_> {
    /// Continues the tokens of turn number `index`, and prints what comes. Returns the text, and why it ended.
    /// Fails when generation fails, or standard output cannot be written.
    pub fn answer(&self, index: usize, ids: Vec<u32>, params: SamplingParams) -> Result<(String, AnswerEnd)> {
        let slots = params.search.beams;
        let stop = stop_rule(self.tokenizer, self.stop);
        let request = Request { index, ids, params: Arc::new(params), stop };
        let mut scheduler = Scheduler::new(self.model, Limits { slots, tokens: request.tokens() });
        let mut stream = TextStream::new(self.tokenizer, self.stop);
        let _awaited = interrupt::awaited();
        scheduler.submit(request)?;
        let mut end = None;
        while end.is_none() {
            if interrupt::requested() {
                end = Some(AnswerEnd::Interrupted);
                break;
            }
            for event in scheduler.step()? {
                let new = match event {
                    Event::Token(_, token) => stream.push(token)?,
                    Event::Finished(_, ids, finish) => {
                        end = Some(AnswerEnd::Finished(finish));
                        stream.finish(ids)?
                    }
                };
                if !self.put(&new)? {
                    return Ok((stream.given().to_owned(), AnswerEnd::Closed));
                }
            }
        }
        let text = stream.given();
        let is_open = !(text.ends_with('\n') && self.is_terminal);
        let is_read = !is_open || self.put("\n")?;
        Ok((text.to_owned(), end.filter(|_| is_read).unwrap_or(AnswerEnd::Closed)))
    }

    /// Prints a piece of an answer at once. Returns false if nobody reads standard output any more.
    /// Fails when it cannot be written otherwise.
    fn put(&self, text: &str) -> Result<bool> {
        let shown = |c: char| match c {
            '\n' | '\t' => c.to_string(),
            c if c.is_control() => c.escape_default().to_string(),
            c => c.to_string(),
        };
        let text = if self.is_terminal { text.chars().map(shown).collect() } else { text.to_owned() };
        let mut out = io::stdout().lock();
        match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(fault(format!("cannot write the answer: {error}")).into()),
        }
    }
}
