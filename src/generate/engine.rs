//! Many prompts continued in the same way: how many run at a time, and on how many threads.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::decoding::ROOM;
use super::entry::{Event, Id};
use super::feed::{Feed, NextPrompt, PromptShare, PromptSource};
use super::memory::rooms;
use super::request::{Request, StopRule};
use super::scheduler::Scheduler;
use super::slots::Limits;
use super::text::{completion, stop_rule};
use super::workers::side_by_side;
use super::{GenerationSettings, OnDone, OnNews, SamplingParams};
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault};
use crate::models::CausalLm;
use crate::models::decoder::causal::MOST_PACKED_BYTES;

/// Default maximum of slots: more of them make a pass longer, for little gain in speed.
pub const MOST_SLOTS: usize = 256;

/// Share of the free memory that the cache may take; the rest is for passes and other processes.
const SHARE: f64 = 0.6;

/// Tokens of slots are a multiple of this.
const STEP: usize = 32;

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
        let mut all = Some(0..prompts.len());
        let share = PromptShare { processes: 1, claim: &mut || Ok(all.take()), look: &|| Ok(true) };
        self.run_shared(prompts, share, on_done)
    }

    /// As [`Self::run`], for the prompts that are this process's.
    ///
    /// # Errors
    /// As [`Self::run`], and as the functions of `share`.
    pub fn run_shared(
        &self,
        prompts: &[(usize, &[u32])],
        share: PromptShare<'_>,
        on_done: &mut OnDone<'_>,
    ) -> Result<bool> {
        let config = &self.model.config;
        let params = Arc::new(self.settings.params.clone());
        let request = |&(index, ids): &(usize, &[u32])| Request {
            index,
            ids: ids.to_vec(),
            params: params.clone(),
            stop: None,
        };
        let mut requests: Vec<Request<'_>> = prompts.iter().map(request).collect();
        requests.iter().try_for_each(|request| request.check(config))?;
        // Longest first: neighbours in the queue have similar lengths, and memory runs out early if at all.
        requests.sort_by_key(|request| Reverse(request.ids.len()));
        let beyond = requests.iter().filter(|request| request.tokens() as i64 > config.positions).count();
        if beyond > 0 {
            tracing::warn!(
                "{beyond} of {} prompts with {} new tokens go beyond the {} positions that the model was made for",
                requests.len(),
                params.max_new_tokens,
                config.positions
            );
        }
        let longest = requests.first().map_or(0, Request::tokens);
        // With all prompts running from the start, each process has as many.
        let count = requests.len().div_ceil(share.processes);
        let PromptShare { claim, look, .. } = share;
        let mut places = 0..0;
        let mut next = |_| {
            loop {
                if let Some(request) = places.next().and_then(|place: usize| requests.get(place)) {
                    return Ok(NextPrompt::Prompt(request.index, request.ids.clone()));
                }
                match claim()? {
                    Some(more) => places = more,
                    None => return Ok(NextPrompt::End),
                }
            }
        };
        let mut done =
            |index, found: Option<_>| found.map_or(Ok(()), |completion| on_done(index, completion));
        self.serve(&mut next, (count, longest), look, &mut done)
    }

    /// Continues prompts as `next` has them; `on_news` gets completions in the order in which they end, and for what has no
    /// tokens, nothing. Returns false if the run was interrupted.
    ///
    /// # Errors
    /// As [`Self::run`], and as `next`.
    pub fn follow(&self, next: &mut PromptSource<'_>, on_news: &mut OnNews<'_>) -> Result<bool> {
        self.serve(next, (usize::MAX, 0), &|| Ok(true), on_news)
    }

    /// Continues at most `count` prompts at a time; `longest` are the tokens of the longest and its completion, 0 if unknown.
    fn serve(
        &self,
        next: &mut PromptSource<'_>,
        (count, longest): (usize, usize),
        look: &(dyn Fn() -> Result<bool> + Sync),
        on_news: &mut OnNews<'_>,
    ) -> Result<bool> {
        let threads = self.workers().min(count).max(1);
        let feed = Feed::new(next, threads);
        let (tokenizer, settings) = (self.tokenizer, self.settings);
        let how = How { tokenizer, settings, threads, count, longest, look };
        if threads > 1 {
            let mut note = |index, found| {
                feed.done(index);
                on_news(index, found)
            };
            let serve = |model: &CausalLm, thread: usize, news: &mut OnNews<'_>, stop: &AtomicBool| {
                let served = Server::new(model, how, &feed, thread).run(news, stop);
                feed.leave(thread);
                served
            };
            if !side_by_side(self.model, (0..threads).collect(), serve, &mut note)? {
                return Ok(false);
            }
            // Prompts that a thread had no memory for are left.
            feed.return_all();
        }
        let how = How { threads: 1, ..how };
        Server::new(self.model, how, &feed, 0).run(on_news, &AtomicBool::new(false))
    }

    /// Returns the number of threads that continue separate prompts. The passes of a model that fits a CPU's
    /// caches are so short that threads inside them mostly wait for each other.
    fn workers(&self) -> usize {
        if self.model.device().is_cuda() || self.model.bytes() > MOST_PACKED_BYTES {
            return 1;
        }
        usize::try_from(tch::get_num_threads()).unwrap_or(1)
    }
}

/// How prompts are continued.
#[derive(Clone, Copy)]
struct How<'a> {
    tokenizer: &'a Tokenizer,
    settings: &'a GenerationSettings,
    /// Threads that do so.
    threads: usize,
    /// Most prompts at a time.
    count: usize,
    /// Tokens of the longest and its completion; 0 if unknown.
    longest: usize,
    /// Called between passes; false ends the run.
    look: &'a (dyn Fn() -> Result<bool> + Sync + 'a),
}

impl How<'_> {
    fn params(&self) -> &SamplingParams {
        &self.settings.params
    }

    /// Returns the number of prompts that a thread continues at a time, each of so many `tokens` with its completion.
    ///
    /// # Errors
    /// When memory does not suffice for even one.
    fn slots(&self, model: &CausalLm, tokens: usize) -> Result<usize> {
        let (new, beams) = (self.params().max_new_tokens, self.params().search.beams);
        let usually = if model.device().is_cuda() { usual_tokens(tokens, new) } else { tokens };
        let mut affordable = usize::MAX;
        for (each, free) in rooms(model) {
            let row = each.saturating_mul(tokens);
            // One more slot, for the shared beginning of all prompts.
            let least = row.saturating_mul(beams.saturating_add(1));
            if least > free {
                let [least, free] = [least, free].map(|bytes| bytes as f64 / 1e9);
                let longest = tokens.saturating_sub(new);
                return Err(fault(format!(
                    "one prompt of {longest} tokens with {new} new ones and {beams} beams takes {least:.1} GB of keys \
                     and values, and {free:.1} GB are free"
                ))
                .hint("lower `--max-new-tokens` or `--beams`")
                .into());
            }
            affordable =
                affordable.min(affordable_slots(free, each.saturating_mul(usually).saturating_mul(beams)));
        }
        Ok((affordable.min(self.most()) / self.threads).max(1))
    }

    /// Returns the most prompts at a time, of all threads.
    fn most(&self) -> usize {
        let most = match self.settings.max_slots {
            0 => MOST_SLOTS / self.params().search.beams,
            most => most,
        };
        most.min(self.count).max(1)
    }
}

/// Returns how many of so many `tokens` of a slot on a GPU its sequence usually takes, `new` of them new: slots grow, and there are fewer if
/// that fails.
fn usual_tokens(tokens: usize, new: usize) -> usize {
    tokens - new.saturating_sub(ROOM.max(new / 4)).min(tokens)
}

/// Returns how many slots of so many bytes fit into the memory that the cache may take.
fn affordable_slots(free: usize, bytes: usize) -> usize {
    (free as f64 * SHARE / bytes.max(1) as f64) as usize
}

/// A scheduler with the prompts that a thread continues.
struct Server<'a, 'f, 'p> {
    model: &'a CausalLm,
    how: How<'a>,
    feed: &'a Feed<'f, 'p>,
    thread: usize,
    params: Arc<SamplingParams>,
    stop: Option<StopRule<'a>>,
    scheduler: Scheduler<'a>,
    /// Prompts at a time, and tokens of each.
    room: (usize, usize),
    running: BTreeMap<Id, usize>,
    /// Prompts that need more room, for which the running ones must end.
    ahead: Vec<Request<'a>>,
    is_over: bool,
}

impl<'a, 'f, 'p> Server<'a, 'f, 'p> {
    fn new(model: &'a CausalLm, how: How<'a>, feed: &'a Feed<'f, 'p>, thread: usize) -> Self {
        let (params, stop) = (Arc::new(how.params().clone()), stop_rule(how.tokenizer, &how.settings.stop));
        let scheduler = Scheduler::new(model, Limits { slots: 0, tokens: 0 });
        let (running, ahead) = (BTreeMap::new(), Vec::new());
        Self {
            model,
            how,
            feed,
            thread,
            params,
            stop,
            scheduler,
            room: (0, 0),
            running,
            ahead,
            is_over: false,
        }
    }

    /// Continues prompts until there are no more; false when interrupted.
    fn run(&mut self, news: &mut OnNews<'_>, stop: &AtomicBool) -> Result<bool> {
        loop {
            if (self.how.settings.interrupted)() || stop.load(Ordering::Relaxed) || !(self.how.look)()? {
                return Ok(false);
            }
            self.take(news)?;
            if self.running.is_empty() {
                if self.ahead.is_empty() && self.is_over {
                    return Ok(true);
                }
                self.make_room()?;
            }
            for event in self.scheduler.step()? {
                if let Event::Finished(id, ids, finish) = event
                    && let Some(index) = self.running.remove(&id)
                {
                    let (tokenizer, stop) = (self.how.tokenizer, &self.how.settings.stop);
                    news(index, Some(completion(tokenizer, stop, ids, finish)?))?;
                    if self.how.threads == 1 {
                        self.feed.done(index);
                    }
                }
            }
        }
    }

    /// Takes prompts that are there, as many as there is room for; of those that need more room, as many as run at a time.
    fn take(&mut self, news: &mut OnNews<'_>) -> Result<()> {
        let most = self.how.most().div_ceil(self.how.threads);
        while !self.is_over
            && (self.running.is_empty() || self.ahead.is_empty())
            && self.running.len() + self.ahead.len() < most.min(self.room.0.max(self.ahead.len() + 1))
        {
            let is_idle = self.running.is_empty() && self.ahead.is_empty();
            match self.feed.next(self.thread, is_idle)? {
                NextPrompt::Prompt(index, ids) => {
                    let (params, stop) = (self.params.clone(), self.stop.clone());
                    let request = Request { index, ids, params, stop };
                    if request.tokens() <= self.room.1 && self.ahead.is_empty() {
                        self.running.insert(self.scheduler.submit(request)?, index);
                    } else {
                        self.ahead.push(request);
                    }
                }
                NextPrompt::Refused(index) => news(index, None)?,
                NextPrompt::Later => break,
                NextPrompt::End => self.is_over = true,
            }
        }
        Ok(())
    }

    /// Gives the prompts ahead a cache that holds them.
    fn make_room(&mut self) -> Result<()> {
        let Some(needed) = self.ahead.iter().map(Request::tokens).max() else { return Ok(()) };
        // Longer ones may come.
        let spare = if self.how.longest == 0 && !self.is_over { needed / 4 } else { 0 };
        let tokens = needed.saturating_add(spare).max(self.how.longest).max(self.room.1);
        let tokens = tokens.saturating_add(STEP - 1) / STEP * STEP;
        // Its memory must be free before it is counted.
        self.scheduler = Scheduler::new(self.model, Limits { slots: 0, tokens: 0 });
        let slots = self.how.slots(self.model, tokens)?;
        let width = self.how.params().search.beams;
        self.scheduler = Scheduler::new(self.model, Limits { slots: slots * width, tokens });
        self.room = (slots, tokens);
        for request in self.ahead.drain(..) {
            let index = request.index;
            self.running.insert(self.scheduler.submit(request)?, index);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_as_many_as_usually_fit_into_three_fifths_of_the_memory() {
        let usual = [(300, 100), (1_124, 1_024), (4_596, 4_096), (100, 4_096)]
            .map(|(all, new)| usual_tokens(all, new));
        assert_eq!(usual, [300, 356, 1_524, 0]);
        assert_eq!(affordable_slots(8_000_000_000, 356 * 131_072), 102);
        assert_eq!(affordable_slots(1_000, 1_000), 0);
    }
}
