//! The queue of prompts, and how many run at a time.

use std::collections::{BTreeSet, VecDeque};

use tch::no_grad;

use super::memory::{affordable, unless_exhausted};
use super::session::Session;
use super::workers::side_by_side;
use super::{Completion, Prompt, Settings};
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault};
use crate::models::CausalLm;
use crate::nn::cache::{Cache, Shape};
use crate::torch::free_bytes;

/// Default maximum of slots: more of them make a pass longer, for little gain in speed.
pub const MOST_SLOTS: usize = 256;

/// Receives each completion as it ends, with its prompt's index; an error ends the run.
pub type OnDone<'a> = dyn FnMut(usize, Completion) -> Result<()> + 'a;

/// Continues prompts.
#[derive(Debug)]
pub struct Engine<'a> {
    pub(super) model: &'a CausalLm,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) settings: &'a Settings,
}

impl<'a> Engine<'a> {
    /// `model` has one run; it is best to merge adapters and pack the model first
    /// ([`crate::models::Model::merge_adapters`], [`CausalLm::pack`]).
    pub fn new(model: &'a CausalLm, tokenizer: &'a Tokenizer, settings: &'a Settings) -> Self {
        Self { model, tokenizer, settings }
    }

    /// Continues every prompt; `on_done` gets completions in the order in which they end. Returns false if
    /// the run was interrupted.
    ///
    /// When memory runs out, unfinished prompts restart in half as many slots.
    ///
    /// # Errors
    /// When a prompt is empty or has a token that the model lacks, the logits are not finite, one slot does not fit
    /// into memory, or `on_done` fails.
    pub fn run(&self, prompts: &[Prompt], on_done: &mut OnDone<'_>) -> Result<bool> {
        self.check(prompts)?;
        // Longest first: neighbours in the queue have similar lengths, and memory runs out early if at all.
        let mut order: Vec<&Prompt> = prompts.iter().collect();
        order.sort_by_key(|prompt| std::cmp::Reverse(prompt.ids.len()));
        let longest = order.first().map_or(0, |prompt| prompt.ids.len());
        let capacity = longest.saturating_add(self.settings.max_new_tokens).saturating_add(31) / 32 * 32;
        self.check_memory(longest, capacity)?;
        let mut slots = self.slots(capacity).min(prompts.len());
        let mut done: BTreeSet<usize> = BTreeSet::new();
        let workers = self.workers().min(slots);
        if workers > 1 {
            let mut note = |index, completion| {
                on_done(index, completion)?;
                done.insert(index);
                Ok(())
            };
            if !side_by_side(self, &order, (workers, slots / workers, capacity), &mut note)? {
                return Ok(false);
            }
            // If memory ran out, the rest is done below, one pass at a time.
        }
        while done.len() < prompts.len() {
            let mut queue: VecDeque<&Prompt> = order.iter().copied().collect();
            queue.retain(|prompt| !done.contains(&prompt.index));
            let mut note = |index, completion| {
                on_done(index, completion)?;
                done.insert(index);
                Ok(())
            };
            let all = unless_exhausted(|| no_grad(|| self.serve(&mut queue, (slots, capacity), &mut note)))?;
            match all {
                Some(true) => {}
                Some(false) => return Ok(false),
                None if slots > 1 => {
                    tracing::warn!(
                        "out of memory with {slots} prompts at a time; continuing with {}",
                        slots / 2
                    );
                    slots /= 2;
                }
                None => {
                    return Err(fault(format!("not enough memory to complete a prompt of {longest} tokens"))
                        .hint("lower `--max-new-tokens`, or use a lower precision")
                        .into());
                }
            }
        }
        Ok(true)
    }

    /// Returns the number of threads that continue separate prompts. The passes of a model that fits a CPU's
    /// caches are so short that threads inside them mostly wait for each other.
    fn workers(&self) -> usize {
        if self.model.device().is_cuda() || !self.model.is_small() {
            return 1;
        }
        usize::try_from(tch::get_num_threads()).unwrap_or(1)
    }

    pub(super) fn serve(
        &self,
        queue: &mut VecDeque<&Prompt>,
        (slots, capacity): (usize, usize),
        on_done: &mut OnDone<'_>,
    ) -> Result<bool> {
        let rows = slots * self.settings.search.beams;
        // One more row, for the shared beginning of all prompts.
        let (rows, capacity) = (i64::try_from(rows + 1)?, i64::try_from(capacity)?);
        let cache = Cache::new(self.cached(), rows, capacity, self.model.device())?;
        let mut session = Session::new(self, &cache, slots);
        session.share(queue)?;
        while session.is_busy() || !queue.is_empty() {
            if (self.settings.interrupted)() {
                return Ok(false);
            }
            session.admit(queue, on_done)?;
            session.step(on_done)?;
        }
        Ok(true)
    }

    /// Returns the shape of a token's entry in the cache.
    fn cached(&self) -> Shape {
        let config = &self.model.config;
        let heads = [config.kv_heads, config.head_width];
        Shape::new(config.layers, heads, self.model.decoder.kind(), self.model.device())
    }

    fn slots(&self, capacity: usize) -> usize {
        let bytes = self.cached().bytes_per_token() * capacity * self.settings.search.beams;
        let most = match self.settings.max_slots {
            0 => (MOST_SLOTS / self.settings.search.beams).max(1),
            most => most,
        };
        affordable(bytes, self.model.device()).min(most)
    }

    /// Fails early if memory does not suffice for even one prompt.
    fn check_memory(&self, longest: usize, capacity: usize) -> Result<()> {
        // One more row, for the shared beginning of all prompts.
        let rows = self.settings.search.beams.saturating_add(1);
        let bytes = self.cached().bytes_per_token().saturating_mul(capacity).saturating_mul(rows);
        let free = free_bytes(self.model.device()).unwrap_or(usize::MAX);
        if bytes <= free {
            return Ok(());
        }
        let [bytes, free] = [bytes, free].map(|bytes| bytes as f64 / 1e9);
        let (new, beams) = (self.settings.max_new_tokens, self.settings.search.beams);
        Err(fault(format!(
            "one prompt of {longest} tokens with {new} new ones and {beams} beams takes {bytes:.1} GB of keys and values, \
             and {free:.1} GB are free"
        ))
        .hint("lower `--max-new-tokens` or `--beams`")
        .into())
    }

    fn check(&self, prompts: &[Prompt]) -> Result<()> {
        let (vocabulary, positions) = (self.model.config.vocabulary, self.model.config.positions);
        for prompt in prompts {
            let Some(largest) = prompt.ids.iter().max() else {
                return Err(fault(format!("prompt {} is empty: it has no tokens", prompt.index)).into());
            };
            if i64::from(*largest) >= vocabulary {
                let message = format!(
                    "prompt {} has token {largest}, the model's vocabulary {vocabulary}",
                    prompt.index
                );
                return Err(fault(message).hint("tokenizer and model do not match").into());
            }
        }
        let beyond = |prompt: &&Prompt| (prompt.ids.len() + self.settings.max_new_tokens) as i64 > positions;
        match prompts.iter().filter(beyond).count() {
            0 => {}
            count => tracing::warn!(
                "{count} of {} prompts with {} new tokens go beyond the {positions} positions that the model was made for",
                prompts.len(),
                self.settings.max_new_tokens
            ),
        }
        Ok(())
    }
}
