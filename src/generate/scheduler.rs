//! Continuous batching: requests wait in a queue, run together in the slots of one cache, and leave as they end.
//!
//! ```no_run
//! # use loraxs::{fault::Result, generate::{Event, Limits, Request, Scheduler}, models::CausalLm};
//! # fn serve(model: &CausalLm, request: Request<'_>) -> Result<()> {
//! let mut scheduler = Scheduler::new(model, Limits { slots: 8, tokens: 4096 });
//! let asked = scheduler.submit(request)?;
//! while !scheduler.is_idle() {
//!     for event in scheduler.step()? {
//!         match event {
//!             Event::Token(id, token) if id == asked => println!("{token}"),
//!             Event::Finished(_, ids, finish) => println!("{finish:?} after {} tokens", ids.len()),
//!             Event::Token(..) => {}
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```

use std::collections::VecDeque;

use tch::no_grad;

use super::entry::{Event, Id, Submitted};
use super::request::Request;
use super::slots::{Limits, Slots};
use crate::fault::{Result, fault};
use crate::models::CausalLm;
use crate::torch::unless_exhausted;

/// Continues requests, each with its own settings. What is made of one does not depend on the others.
pub struct Scheduler<'a> {
    model: &'a CausalLm,
    limits: Limits,
    submitted: u64,
    queue: VecDeque<Submitted<'a>>,
    /// Made in the first step.
    slots: Option<Slots<'a>>,
    /// News since the last step.
    events: Vec<Event>,
}

impl<'a> Scheduler<'a> {
    /// `model` has one run; it is best to merge adapters and pack the model first
    /// ([`crate::models::Model::merge_adapters`], [`CausalLm::pack`]).
    pub fn new(model: &'a CausalLm, limits: Limits) -> Self {
        Self { model, limits, submitted: 0, queue: VecDeque::new(), slots: None, events: Vec::new() }
    }

    /// Appends a request to the queue.
    ///
    /// # Errors
    /// When the model cannot read the prompt, or the request does not fit into the cache.
    pub fn submit(&mut self, request: Request<'a>) -> Result<Id> {
        request.check(&self.model.config)?;
        let (index, tokens) = (request.index, request.tokens());
        let entry = Submitted::new(Id(self.submitted), request);
        let Limits { slots: most_slots, tokens: most_tokens } = self.limits;
        if tokens > most_tokens || entry.width() > most_slots {
            let width = entry.width();
            return Err(fault(format!(
                "prompt {index} may take {width} slots of {tokens} tokens, and the cache has {most_slots} of {most_tokens}"
            ))
            .into());
        }
        self.submitted += 1;
        let id = entry.id;
        self.queue.push_back(entry);
        Ok(id)
    }

    /// Drops a request, of which no more news comes. Returns false if it has ended.
    pub fn cancel(&mut self, id: Id) -> bool {
        let waiting = self.queue.len();
        self.queue.retain(|entry| entry.id != id);
        let ran = no_grad(|| self.slots.as_mut().is_some_and(|slots| slots.retire(|entry| entry.id == id)));
        ran || self.queue.len() < waiting
    }

    /// Returns true if no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.slots.as_ref().is_none_or(Slots::is_empty)
    }

    /// Reads waiting prompts if there is room for them, and gives every running request its next token.
    ///
    /// When memory runs out, all running requests go back to the queue and go on in half as many slots: from their last
    /// token, or in a beam search from the start.
    ///
    /// # Errors
    /// When logits are not finite, a stop rule fails, or one request does not fit into memory.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        while !self.is_idle() && unless_exhausted(|| no_grad(|| self.advance()))?.is_none() {
            self.shrink()?;
        }
        Ok(std::mem::take(&mut self.events))
    }

    fn advance(&mut self) -> Result<()> {
        let slots = match &mut self.slots {
            Some(slots) => slots,
            none => none.insert(Slots::new(self.model, self.limits)?),
        };
        slots.admit(&mut self.queue, &mut self.events)?;
        slots.step(&mut self.events)
    }

    /// Frees the cache, and queues all running requests for a smaller one.
    fn shrink(&mut self) -> Result<()> {
        let running = self.slots.take().map(Slots::into_running).unwrap_or_default();
        for entry in running.into_iter().filter(|entry| !entry.done).rev() {
            self.queue.push_front(entry.evicted());
        }
        let widest = self.queue.iter().map(Submitted::width).max().unwrap_or(1);
        let (slots, fewer) = (self.limits.slots, (self.limits.slots / 2).max(widest));
        if fewer >= slots {
            let longest = self.queue.iter().map(|entry| entry.request.ids.len()).max().unwrap_or(0);
            return Err(fault(format!("out of memory even for one prompt of {longest} tokens"))
                .hint("lower `--max-new-tokens`, or use a lower precision")
                .into());
        }
        tracing::warn!("memory ran out with {slots} sequences at a time: going on with {fewer}");
        self.limits.slots = fewer;
        Ok(())
    }
}
