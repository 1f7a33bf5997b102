//! Many prompts continued in the same way: how many run at a time, and on how many threads.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::entry::Event;
use super::memory::shape;
use super::request::Request;
use super::scheduler::Scheduler;
use super::slots::Limits;
use super::text::{completion, stop_rule};
use super::workers::side_by_side;
use super::{GenerationSettings, OnDone, SamplingParams};
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault};
use crate::models::CausalLm;
use crate::torch::free_bytes;

/// Default maximum of slots: more of them make a pass longer, for little gain in speed.
pub const MOST_SLOTS: usize = 256;

/// Share of the free memory that the cache may take; the rest is for passes and other processes.
const SHARE: f64 = 0.6;

/// Continues prompts.
#[derive(Debug)]
pub struct Engine<'a> {
    model: &'a CausalLm,
    tokenizer: &'a Tokenizer,
    settings: &'a GenerationSettings,
}

impl<'a> Engine<'a> {
    /// `model` is one for a [`Scheduler`].
    pub fn new(model: &'a CausalLm, tokenizer: &'a Tokenizer, settings: &'a GenerationSettings) -> Self {
        Self { model, tokenizer, settings }
    }

    /// Continues the tokens of every prompt, each with its index; `on_done` gets completions in the order in which they
    /// end. Returns false if the run was interrupted.
    ///
    /// # Errors
    /// When a prompt is empty or has a token that the model lacks, the logits are not finite, one slot does not fit
    /// into memory, or `on_done` fails.
    pub fn run(&self, prompts: &[(usize, &[u32])], on_done: &mut OnDone<'_>) -> Result<bool> {
        let mut requests = self.requests(prompts)?;
        let longest = requests.first().map_or(0, |request| request.ids.len());
        let capacity = longest.saturating_add(self.params().max_new_tokens).saturating_add(31) / 32 * 32;
        let slots = self.slots(longest, capacity)?.min(prompts.len());
        let limits = |slots| Limits { slots: slots * self.params().search.beams, tokens: capacity };
        let workers = self.workers().min(slots);
        if workers > 1 {
            let mut done = BTreeSet::new();
            let mut note = |index, completion| {
                on_done(index, completion)?;
                done.insert(index);
                Ok(())
            };
            // Dealt out in turn, so that lengths are similar.
            let deal = |worker| requests.iter().skip(worker).step_by(workers).cloned().collect();
            let (tokenizer, settings, limits) = (self.tokenizer, self.settings, limits(slots / workers));
            let serve = |model: &CausalLm, requests: Vec<Request<'_>>, on_done: &mut OnDone<'_>| {
                serve(model, (tokenizer, settings), requests, limits, on_done)
            };
            if !side_by_side(self.model, (0..workers).map(deal).collect(), serve, &mut note)? {
                return Ok(false);
            }
            // Requests that a thread had no memory for are left.
            requests.retain(|request| !done.contains(&request.index));
        }
        serve(self.model, (self.tokenizer, self.settings), requests, limits(slots), on_done)
    }

    fn params(&self) -> &SamplingParams {
        &self.settings.params
    }

    /// Returns a request for each prompt, longest first: neighbours in the queue have similar lengths, and memory runs out
    /// early if at all.
    fn requests(&self, prompts: &[(usize, &[u32])]) -> Result<Vec<Request<'a>>> {
        let params = Arc::new(self.params().clone());
        let stop = stop_rule(self.tokenizer, &self.settings.stop);
        let request = |&(index, ids): &(usize, &[u32])| {
            let request = Request { index, ids: ids.to_vec(), params: params.clone(), stop: stop.clone() };
            request.check(&self.model.config).map(|()| request)
        };
        let mut requests = prompts.iter().map(request).collect::<Result<Vec<_>>>()?;
        requests.sort_by_key(|request| Reverse(request.ids.len()));
        let positions = self.model.config.positions;
        let beyond = requests.iter().filter(|request| request.tokens() as i64 > positions).count();
        if beyond > 0 {
            tracing::warn!(
                "{beyond} of {} prompts with {} new tokens go beyond the {positions} positions that the model was made for",
                requests.len(),
                params.max_new_tokens
            );
        }
        Ok(requests)
    }

    /// Returns the number of threads that continue separate prompts. The passes of a model that fits a CPU's
    /// caches are so short that threads inside them mostly wait for each other.
    fn workers(&self) -> usize {
        if self.model.device().is_cuda() || !self.model.is_small() {
            return 1;
        }
        usize::try_from(tch::get_num_threads()).unwrap_or(1)
    }

    /// Returns the number of prompts that run at a time, the longest of so many tokens.
    ///
    /// # Errors
    /// When memory does not suffice for even one.
    fn slots(&self, longest: usize, capacity: usize) -> Result<usize> {
        let (new, beams) = (self.params().max_new_tokens, self.params().search.beams);
        let row = shape(self.model).bytes_per_token().saturating_mul(capacity);
        let free = free_bytes(self.model.device()).unwrap_or(usize::MAX);
        // One more slot, for the shared beginning of all prompts.
        let least = row.saturating_mul(beams.saturating_add(1));
        if least > free {
            let [least, free] = [least, free].map(|bytes| bytes as f64 / 1e9);
            return Err(fault(format!(
                "one prompt of {longest} tokens with {new} new ones and {beams} beams takes {least:.1} GB of keys and \
                 values, and {free:.1} GB are free"
            ))
            .hint("lower `--max-new-tokens` or `--beams`")
            .into());
        }
        let affordable = (free as f64 * SHARE / row.saturating_mul(beams).max(1) as f64) as usize;
        let most = match self.settings.max_slots {
            0 => MOST_SLOTS / beams,
            most => most,
        };
        Ok(affordable.min(most).max(1))
    }
}

/// Continues requests with a scheduler of their own; false when interrupted.
fn serve(
    model: &CausalLm,
    (tokenizer, settings): (&Tokenizer, &GenerationSettings),
    requests: Vec<Request<'_>>,
    limits: Limits,
    on_done: &mut OnDone<'_>,
) -> Result<bool> {
    let mut scheduler = Scheduler::new(model, limits);
    let mut indices = BTreeMap::new();
    for request in requests {
        let index = request.index;
        indices.insert(scheduler.submit(request)?, index);
    }
    while !scheduler.is_idle() {
        if (settings.interrupted)() {
            return Ok(false);
        }
        for event in scheduler.step()? {
            if let Event::Finished(id, ids, finish) = event {
                on_done(indices[&id], completion(tokenizer, &settings.stop, ids, finish)?)?;
            }
        }
    }
    Ok(true)
}
