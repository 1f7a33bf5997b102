//! Running requests in the slots of one cache: prefill of new ones, and the next tokens of all.

use std::collections::VecDeque;
use std::ops::Range;

use tch::Tensor;

use super::choice::{alike, choose, search};
use super::decoding::{Decoding, ROOM};
use super::entry::{Event, Submitted};
use super::memory::shape;
use crate::fault::Result;
use crate::models::CausalLm;
use crate::nn::cache::{Cache, Prefill, Span};
use crate::nn::layout::{Place, Positions, Sequence};
use crate::nn::{Packed, Pass};
use crate::torch::coming::sent;

/// Maximum tokens of one prefill, except for a longer single prompt.
const PREFILL_TOKENS: usize = 4096;
/// The same on a CPU, so that a pass's results stay in the caches.
const PREFILL_TOKENS_CPU: usize = 512;
/// Minimum tokens of a shared beginning that is read only once.
const LEAST_SHARED: usize = 16;
/// Minimum tokens that a GPU is spared by that: a pass takes it about as long for so many as for one.
const LEAST_SPARED: usize = 256;
/// New prompts are read once one slot in this many is free: reading one costs about as much as reading a few.
const FREE_SHARE: usize = 16;

/// Size of a scheduler's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences at a time; a request is one, or one for each beam.
    pub slots: usize,
    /// Tokens of each, prompt and completion together.
    pub tokens: usize,
}

/// Running requests, which occupy the slots from the first on without gaps.
pub struct Slots<'a> {
    model: &'a CausalLm,
    decoding: Decoding<'a>,
    /// Number of slots, without the one for `shared`.
    count: usize,
    /// Most tokens of each.
    tokens: usize,
    running: Vec<Submitted<'a>>,
    /// A pass that was begun when the tokens of the last one were on the device alone.
    ahead: Option<Ahead>,
    /// The beginning of several prompts, which one more slot holds.
    shared: Vec<u32>,
}

/// Logits `[s, v]` of the next tokens.
struct Ahead {
    logits: Tensor,
    /// Of each of the first running requests, its row.
    rows: Vec<i64>,
}

/// Tokens to be read into a slot that already holds the first `held`.
struct Reading<'t> {
    ids: &'t [u32],
    held: usize,
    slot: usize,
}

impl<'a> Slots<'a> {
    /// Creates the cache.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn new(model: &'a CausalLm, Limits { slots, tokens }: Limits) -> Result<Self> {
        let layer = |layer| model.placement.layer(layer);
        // A GPU takes memory at once, and few answers reach their maximum length.
        let first = if model.device().is_cuda() { tokens.min(ROOM) } else { tokens };
        let cache = Cache::new(shape(model), i64::try_from(slots + 1)?, i64::try_from(first)?, layer)?;
        let decoding = Decoding::new(model, cache, slots);
        let (running, shared) = (Vec::new(), Vec::new());
        Ok(Self { model, decoding, count: slots, tokens, running, ahead: None, shared })
    }

    /// Lets each slot hold so many tokens.
    fn make_room(&mut self, needed: usize) -> Result<()> {
        if i64::try_from(needed)? <= self.decoding.cache().capacity() {
            return Ok(());
        }
        if let Some(ahead) = &mut self.ahead {
            ahead.logits = ahead.logits.copy();
        }
        self.decoding.make_room(needed, self.tokens)
    }

    /// Returns the running requests.
    pub fn into_running(self) -> Vec<Submitted<'a>> {
        self.running
    }

    /// Returns true if nothing is running.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Returns the number of occupied slots.
    fn occupied(&self) -> usize {
        self.running.last().map_or(0, |entry| entry.slot + entry.width())
    }

    /// Reads prompts of the queue into the free slots, and gives each its first token.
    ///
    /// # Errors
    /// When a pass fails.
    pub fn admit(&mut self, queue: &mut VecDeque<Submitted<'a>>, events: &mut Vec<Event>) -> Result<()> {
        if !self.is_empty() && (self.count - self.occupied()) * FREE_SHARE < self.count {
            return Ok(());
        }
        if self.is_empty() {
            self.share(queue)?;
        }
        loop {
            let start = self.running.len();
            self.take(queue);
            if self.running.len() == start {
                return Ok(());
            }
            self.prefill(start..self.running.len(), events)?;
        }
    }

    /// Reads what all waiting prompts begin with into the slot after the others.
    fn share(&mut self, queue: &VecDeque<Submitted<'a>>) -> Result<()> {
        let mut prompts = queue.iter().map(|entry| entry.request.ids.as_slice());
        let first = prompts.next().unwrap_or_default();
        let length = prompts.fold(first.len(), |length, ids| common(&first[..length], ids));
        let held = common(&self.shared, &first[..length]);
        let spared = queue.len().saturating_sub(1) * (length - held);
        let serves = match self.model.device().is_cuda() {
            true => spared >= LEAST_SPARED,
            false => spared > 0 && length >= held + LEAST_SHARED,
        };
        if serves && self.model.reads_in_parts() {
            self.make_room(length)?;
            tracing::debug!("{length} tokens that all prompts begin with are read once");
            let _logits = self.read(&[Reading { ids: &first[..length], held, slot: self.count }])?;
            self.shared = first[..length].to_vec();
        }
        Ok(())
    }

    /// Moves requests from the queue into free slots, as many as are read in one pass.
    fn take(&mut self, queue: &mut VecDeque<Submitted<'a>>) {
        let most = if self.model.device().is_cuda() { PREFILL_TOKENS } else { PREFILL_TOKENS_CPU };
        let (start, mut tokens) = (self.running.len(), 0);
        while let Some(entry) = queue.front() {
            let slot = self.occupied();
            tokens += entry.request.ids.len() + entry.made().len() - self.held(&entry.request.ids);
            let full = slot + entry.width() > self.count;
            if full || (self.running.len() > start && tokens > most) {
                return;
            }
            self.running.extend(queue.pop_front().map(|entry| Submitted { slot, ..entry }));
        }
    }

    /// Returns the number of tokens of a prompt that need not be read: all but its last at most.
    fn held(&self, ids: &[u32]) -> usize {
        common(&self.shared, ids).min(ids.len().saturating_sub(1))
    }

    fn prefill(&mut self, places: Range<usize>, events: &mut Vec<Event>) -> Result<()> {
        let texts: Vec<Vec<u32>> = self.running[places.clone()].iter().map(Submitted::text).collect();
        self.make_room(texts.iter().map(Vec::len).max().unwrap_or(0))?;
        let entries = &self.running[places.clone()];
        let readings: Vec<Reading<'_>> = (entries.iter().zip(&texts))
            .map(|(entry, ids)| Reading { ids, held: self.held(&entry.request.ids), slot: entry.slot })
            .collect();
        // Most hold the whole of it: one copy serves them, and the slots between them, which are those of further beams.
        for same in readings.chunk_by(|a, b| a.held == b.held).filter(|same| same[0].held > 0) {
            let slots = same[0].slot as i64..same[same.len() - 1].slot as i64 + 1;
            self.decoding.cache().copy_slot(self.count as i64, slots, same[0].held as i64);
        }
        let logits = self.read(&readings)?; // [s, v]
        let rows = (0..).zip(entries).flat_map(|(row, entry)| std::iter::repeat_n(row, entry.width()));
        let rows: Vec<i64> = rows.collect();
        let logits = if rows.len() == texts.len() { logits } else { selected(&logits, &rows) };
        for (entry, text) in self.running[places.clone()].iter_mut().zip(&texts) {
            entry.length = text.len();
            if entry.width() > 1 {
                let (first, others) = (entry.slot as i64, entry.slot as i64 + 1..entry.slots().end as i64);
                self.decoding.cache().copy_slot(first, others, entry.length as i64);
            }
        }
        self.decide(places, &logits, false, events)
    }

    /// Reads tokens into the cache; returns the logits after each text, `[s, v]`.
    fn read(&self, readings: &[Reading<'_>]) -> Result<Tensor> {
        let model = self.model;
        let sequences =
            readings.iter().map(|reading| Sequence { ids: &reading.ids[reading.held..], types: &[] });
        let batch = Packed::new(&[sequences.collect()], Positions::FromZero, model.device());
        let span = |(reading, place): (&Reading<'_>, &Place)| Span {
            start: place.start as i64,
            len: place.length as i64,
            slot: reading.slot as i64,
            held: reading.held as i64,
        };
        let spans: Vec<Span> = readings.iter().zip(&batch.places[0]).map(span).collect();
        let sight = Prefill::new(self.decoding.cache(), &batch, &spans);
        // Packed sequences are in an order of their own.
        let mut held = vec![0; batch.ids.numel()];
        for span in &spans {
            held[span.start as usize..(span.start + span.len) as usize].fill(span.held);
        }
        let positions = match held.iter().all(|held| *held == 0) {
            true => batch.positions.shallow_clone(),
            false => &batch.positions + sent(&Tensor::from_slice(&held), model.device()),
        };
        let hidden = model.decoder.forward(&batch.ids, &positions, &sight, &Pass::evaluation())?;
        let last: Vec<i64> = spans.iter().map(|span| span.start + span.len - 1).collect();
        Ok(model.logits(&selected(&hidden, &last)))
    }

    /// Gives every running request its next token; those that came after a pass was begun get theirs in the next step.
    ///
    /// # Errors
    /// When a pass fails.
    pub fn step(&mut self, events: &mut Vec<Event>) -> Result<()> {
        if let Some(Ahead { logits, rows }) = self.ahead.take().filter(|ahead| !ahead.rows.is_empty()) {
            let count = rows.len();
            let in_order = (0..).zip(&rows).all(|(place, row)| place == *row);
            let logits = if in_order { logits.narrow(0, 0, count as i64) } else { selected(&logits, &rows) };
            return self.advance(0..count, &logits, events);
        }
        let Some(longest) = self.running.iter().map(|entry| entry.length).max() else { return Ok(()) };
        self.make_room(longest + 1)?;
        let ids: Vec<i64> = self.running.iter().flat_map(Submitted::last).map(i64::from).collect();
        let lengths =
            self.running.iter().flat_map(|entry| std::iter::repeat_n(entry.length as i64, entry.width()));
        let logits = self.decoding.next(&ids, &lengths.collect::<Vec<_>>())?; // [s, v]
        self.advance(0..self.running.len(), &logits, events)
    }

    /// Gives these requests the tokens after a pass.
    fn advance(&mut self, places: Range<usize>, logits: &Tensor, events: &mut Vec<Event>) -> Result<()> {
        for entry in &mut self.running[places.clone()] {
            entry.length += 1;
        }
        let is_all = places.len() == self.running.len();
        self.decide(places, logits, is_all, events)
    }

    /// Chooses the next tokens of these requests, and takes away those that have ended.
    ///
    /// # Shapes
    /// `logits` `[s, v]`: a row for each slot of theirs. If they go `on`, the next pass may begin before the host knows the tokens.
    fn decide(
        &mut self,
        places: Range<usize>,
        logits: &Tensor,
        on: bool,
        events: &mut Vec<Event>,
    ) -> Result<()> {
        let mut sources: Vec<i64> = (0..self.occupied() as i64).collect();
        let lengths: Vec<i64> = self.running.iter().map(|entry| entry.length as i64).collect();
        let goes_on =
            self.running.iter().any(|entry| entry.made().len() + 1 < entry.request.params.max_new_tokens);
        let (decoding, ahead) = (&mut self.decoding, &mut self.ahead);
        let begin = |ids: &Tensor| {
            let rows = (0..lengths.len() as i64).collect();
            *ahead = decoding.next_on_device(ids, lengths)?.map(|logits| Ahead { logits, rows });
            Ok(())
        };
        let mut begin = Some(begin).filter(|_| on && goes_on);
        let mut rest: Vec<&mut Submitted<'a>> = self.running[places].iter_mut().collect();
        let (all, first) = (rest.len(), rest.first().map_or(0, |entry| entry.slot));
        while let Some(params) = rest.first().map(|entry| entry.request.params.clone()) {
            let (mut chosen, others): (Vec<_>, Vec<_>) =
                rest.into_iter().partition(|entry| alike(&entry.request.params, &params));
            let rows: Vec<i64> =
                chosen.iter().flat_map(|entry| entry.slots().map(|slot| (slot - first) as i64)).collect();
            let own = if chosen.len() == all { logits.shallow_clone() } else { selected(logits, &rows) };
            if params.search.beams > 1 {
                search(&mut chosen, &own, &mut sources, events)?;
            } else {
                let begin = begin.take().filter(|_| chosen.len() == all);
                choose(&mut chosen, &own, |ids| begin.map_or(Ok(()), |begin| begin(ids)), events)?;
            }
            rest = others;
        }
        if (0..).zip(&sources).any(|(slot, source)| slot != *source) {
            let moved = self.running.iter().filter(|entry| {
                entry.slots().any(|slot| sources.get(slot).is_some_and(|source| *source != slot as i64))
            });
            // All beams of a search have its prompt.
            let (start, end) = moved.fold((usize::MAX, 0), |(start, end), entry| {
                (start.min(entry.request.ids.len()), end.max(entry.length))
            });
            let sources = sent(&Tensor::from_slice(&sources), logits.device());
            self.decoding.cache().reorder(&sources, [start as i64, end as i64]);
        }
        self.retire(|entry| entry.done);
        Ok(())
    }

    /// Takes requests away; others move into their slots. Returns true if there were any.
    pub fn retire(&mut self, is_gone: impl Fn(&Submitted<'_>) -> bool) -> bool {
        let before = self.running.len();
        // A pass ahead has stored one more token, but not of those that came since, whose slots may be full.
        let more = usize::from(self.ahead.is_some());
        let most = usize::try_from(self.decoding.cache().capacity()).unwrap_or(usize::MAX);
        // From the last, so that requests only move into gaps before them.
        for place in (0..before).rev().filter(|&place| is_gone(&self.running[place])).collect::<Vec<_>>() {
            let fits = self.running.last().is_some_and(|last| last.width() == self.running[place].width());
            let gone = if fits { self.running.swap_remove(place) } else { self.running.remove(place) };
            // A pass ahead is of all that run, or the newest alone end.
            if let Some(Ahead { rows, .. }) = self.ahead.as_mut().filter(|ahead| place < ahead.rows.len()) {
                rows.swap_remove(place);
            }
            let mut slot = gone.slot;
            for entry in &mut self.running[place..] {
                let from = std::mem::replace(&mut entry.slot, slot);
                for i in (0..entry.width()).filter(|_| from != slot) {
                    let (from, to) = ((from + i) as i64, (slot + i) as i64);
                    let length = (entry.length + more).min(most) as i64;
                    self.decoding.cache().copy_slot(from, to..to + 1, length);
                }
                slot += entry.width();
            }
        }
        self.running.len() < before
    }
}

/// Returns the number of tokens that two texts both begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Returns some rows of a matrix.
fn selected(rows: &Tensor, indices: &[i64]) -> Tensor {
    rows.index_select(0, &sent(&Tensor::from_slice(indices), rows.device()))
}
