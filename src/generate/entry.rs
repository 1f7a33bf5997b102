//! A request on its way: the tokens so far, its slots, and what is told of it.

use std::ops::Range;

use super::Finish;
use super::beams::Beams;
use super::penalties::Context;
use super::request::Request;

/// Identifies a request of a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id(pub(super) u64);

/// News of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Its next token; a beam search knows its tokens only at the end.
    Token(Id, u32),
    /// All its tokens, without the one that ended them, and why they ended.
    Finished(Id, Vec<u32>, Finish),
}

/// A request that waits or runs.
pub struct Submitted<'a> {
    pub id: Id,
    pub request: Request<'a>,
    /// First of its slots, of which it has one for each beam.
    pub slot: usize,
    /// Number of tokens in each of them.
    pub length: usize,
    pub state: State,
    /// True once its completion has ended.
    pub done: bool,
}

/// The new tokens so far.
pub enum State {
    One(Vec<u32>),
    Beams(Beams),
}

impl<'a> Submitted<'a> {
    pub fn new(id: Id, request: Request<'a>) -> Self {
        let beams = request.params.search.beams;
        let state = if beams > 1 { State::Beams(Beams::new(beams)) } else { State::One(Vec::new()) };
        Self { id, request, slot: 0, length: 0, state, done: false }
    }

    /// Returns the number of slots that it takes.
    pub fn width(&self) -> usize {
        self.request.params.search.beams.max(1)
    }

    /// Returns its slots.
    pub fn slots(&self) -> Range<usize> {
        self.slot..self.slot + self.width()
    }

    /// Gives up its slots: it starts again with the tokens that it has made, a beam search without any.
    pub fn evicted(self) -> Self {
        match self.state {
            State::One(_) => Self { slot: 0, length: 0, ..self },
            State::Beams(_) => Self::new(self.id, self.request),
        }
    }

    /// Returns the tokens to read before its next token can be chosen.
    pub fn text(&self) -> Vec<u32> {
        [&self.request.ids, self.made()].concat()
    }

    /// Returns the tokens made so far; none of a beam search.
    pub fn made(&self) -> &[u32] {
        if let State::One(ids) = &self.state { ids } else { &[] }
    }

    /// Returns the last token of each slot.
    pub fn last(&self) -> Vec<u32> {
        self.contexts().iter().map(|context| context.new.last().copied().unwrap_or_default()).collect()
    }

    /// Marks it as done.
    pub fn end(&mut self, mut ids: Vec<u32>, finish: Finish, events: &mut Vec<Event>) {
        if finish == Finish::End {
            ids.pop();
        }
        self.done = true;
        events.push(Event::Finished(self.id, ids, finish));
    }

    /// Returns the text that each slot follows.
    pub fn contexts(&self) -> Vec<Context<'_>> {
        let context = |new| Context { prompt: &self.request.ids, new, params: &self.request.params };
        match &self.state {
            State::One(ids) => vec![context(ids)],
            State::Beams(beams) => beams.running().map(context).collect(),
        }
    }
}
