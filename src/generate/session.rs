//! Running prompts in one cache: prefill of new ones, and the next token of all.

use std::collections::VecDeque;
use std::ops::Range;

use tch::{Kind, Tensor};

use super::beams::{Beams, Rules};
use super::candidates::{Candidates, best, draw, likeliest, warp};
use super::decoding::Decoding;
use super::engine::{Engine, OnDone};
use super::penalties::Context;
use super::stopping::Stopping;
use super::{Finish, Prompt, Sampling};
use crate::fault::Result;
use crate::nn::cache::{Cache, Prefill};
use crate::nn::layout::{Positions, Sequence};
use crate::nn::{Packed, Pass};

/// Maximum tokens of one prefill, except for a longer single prompt.
const PREFILL_TOKENS: usize = 4096;
/// The same on a CPU, so that a pass's results stay in the caches.
const PREFILL_TOKENS_CPU: usize = 512;
/// Minimum tokens of a shared beginning that is read only once.
const LEAST_SHARED: usize = 16;
/// New prompts are read once one slot in this many is free: reading one costs about as much as reading a few.
const FREE_SHARE: usize = 16;

/// Running prompts, which occupy the cache without gaps, each in `width` rows.
pub struct Session<'a> {
    engine: &'a Engine<'a>,
    cache: &'a Cache,
    decoding: Decoding<'a>,
    stopping: Stopping<'a>,
    slots: usize,
    width: usize,
    groups: Vec<Group>,
    /// Length of the beginning that all prompts share; the last row of the cache holds it.
    shared: usize,
}

/// One running prompt.
struct Group {
    index: usize,
    /// The tokens of the prompt, if penalties need them.
    prompt: Vec<u32>,
    /// Tokens in the cache.
    length: i64,
    state: State,
}

/// The tokens so far.
enum State {
    One(Vec<u32>),
    Beams(Beams),
}

impl Group {
    /// Returns the text that each row follows.
    fn contexts(&self) -> Vec<Context<'_>> {
        let context = |new| Context { prompt: &self.prompt, new };
        match &self.state {
            State::One(ids) => vec![context(ids)],
            State::Beams(beams) => beams.running().map(context).collect(),
        }
    }

    /// Returns the last token of each row.
    fn last(&self) -> Vec<u32> {
        let last = |ids: &[u32]| ids.last().copied().unwrap_or_default();
        match &self.state {
            State::One(ids) => vec![last(ids)],
            State::Beams(beams) => beams.running().map(last).collect(),
        }
    }
}

impl<'a> Session<'a> {
    pub fn new(engine: &'a Engine<'a>, cache: &'a Cache, slots: usize) -> Self {
        let stopping = Stopping::new(engine.settings, engine.tokenizer);
        Self {
            engine,
            cache,
            decoding: Decoding::new(engine.model, cache, slots * engine.settings.search.beams),
            stopping,
            slots,
            width: engine.settings.search.beams,
            groups: Vec::new(),
            shared: 0,
        }
    }

    /// Reads the shared beginning of all queued prompts into the cache row after those of the slots.
    ///
    /// # Errors
    /// When the pass fails.
    pub fn share(&mut self, queue: &VecDeque<&Prompt>) -> Result<()> {
        let shared = beginning(queue.iter().map(|prompt| prompt.ids.as_slice()));
        if self.cache.continues() && queue.len() > 1 && shared.len() >= LEAST_SHARED {
            let _logits = self.read(&[shared], &[self.slots * self.width])?;
            self.shared = shared.len();
        }
        Ok(())
    }

    /// Returns true if a prompt is running.
    pub fn is_busy(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Reads prompts of the queue into the free slots, and gives each its first token.
    ///
    /// # Errors
    /// When a pass fails, or `on_done`.
    pub fn admit(&mut self, queue: &mut VecDeque<&Prompt>, on_done: &mut OnDone<'_>) -> Result<()> {
        if self.is_busy() && (self.slots - self.groups.len()) * FREE_SHARE < self.slots {
            return Ok(());
        }
        let most = if self.engine.model.device().is_cuda() { PREFILL_TOKENS } else { PREFILL_TOKENS_CPU };
        while self.groups.len() < self.slots && !queue.is_empty() {
            let (mut taken, mut tokens) = (Vec::new(), 0);
            while let Some(prompt) = queue.front() {
                tokens += prompt.ids.len() - self.shared;
                let full = self.groups.len() + taken.len() == self.slots;
                if full || (!taken.is_empty() && tokens > most) {
                    break;
                }
                taken.extend(queue.pop_front());
            }
            self.prefill(&taken, on_done)?;
        }
        Ok(())
    }

    fn prefill(&mut self, prompts: &[&Prompt], on_done: &mut OnDone<'_>) -> Result<()> {
        let held = self.groups.len();
        let rest: Vec<&[u32]> = prompts.iter().map(|prompt| &prompt.ids[self.shared..]).collect();
        let rows: Vec<usize> = (held..held + prompts.len()).map(|group| group * self.width).collect();
        if self.shared > 0 {
            let from = (self.slots * self.width) as i64;
            rows.iter().for_each(|&row| self.cache.copy_slot(from, row as i64, self.shared as i64));
        }
        let logits = self.read(&rest, &rows)?; // [s, v]
        let width = self.width;
        self.groups.extend(prompts.iter().map(|prompt| Group {
            index: prompt.index,
            prompt: if self.engine.settings.penalties.is_none() { Vec::new() } else { prompt.ids.clone() },
            length: prompt.ids.len() as i64,
            state: if width > 1 { State::Beams(Beams::new(width)) } else { State::One(Vec::new()) },
        }));
        let logits =
            if width > 1 { logits.repeat_interleave_self_int(width as i64, 0, None) } else { logits };
        self.decide(held..self.groups.len(), &logits, on_done)
    }

    /// Reads tokens after the shared ones into cache rows; returns the logits after each text, `[s, v]`.
    fn read(&self, texts: &[&[u32]], rows: &[usize]) -> Result<Tensor> {
        let model = self.engine.model;
        let sequences = texts.iter().map(|&ids| Sequence { ids, types: &[] }).collect();
        let batch = Packed::new(&[sequences], Positions::FromZero, model.device());
        let before = self.shared as i64;
        let places: Vec<[i64; 4]> = (texts.iter().zip(rows).zip(batch.places.iter().flatten()))
            .map(|((ids, &row), place)| [place.start as i64, ids.len() as i64, row as i64, before])
            .collect();
        let sight = Prefill::new(self.cache, &batch, &places);
        let positions = &batch.positions + before;
        let hidden = model.decoder.forward(&batch.ids, &positions, &sight, &Pass::evaluation())?;
        let last: Vec<i64> = places.iter().map(|[start, length, ..]| start + length - 1).collect();
        let last = Tensor::from_slice(&last).to_device(model.device());
        Ok(model.logits(&hidden.index_select(0, &last)))
    }

    /// Gives every running prompt its next token.
    ///
    /// # Errors
    /// When a pass fails, or `on_done`.
    pub fn step(&mut self, on_done: &mut OnDone<'_>) -> Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = self.groups.iter().flat_map(Group::last).map(i64::from).collect();
        let lengths: Vec<i64> =
            self.groups.iter().flat_map(|group| std::iter::repeat_n(group.length, self.width)).collect();
        let logits = self.decoding.next(&ids, &lengths)?; // [s, v]
        for group in &mut self.groups {
            group.length += 1;
        }
        self.decide(0..self.groups.len(), &logits, on_done)
    }

    /// Chooses the next tokens of these prompts, and completes those that have ended.
    fn decide(&mut self, groups: Range<usize>, logits: &Tensor, on_done: &mut OnDone<'_>) -> Result<()> {
        let ended = if self.width > 1 { self.search(groups, logits)? } else { self.choose(groups, logits)? };
        // From the last, so that groups only move into gaps before them.
        for (place, ids, finish) in ended.into_iter().rev() {
            let index = self.groups[place].index;
            self.remove(place);
            on_done(index, self.stopping.completion(ids, finish)?)?;
        }
        Ok(())
    }

    /// Returns scores with penalties applied, if there are any.
    fn penalised(&self, groups: Range<usize>, scores: &Tensor) -> Result<Option<Tensor>> {
        let settings = self.engine.settings;
        if settings.penalties.is_none() {
            return Ok(None);
        }
        if !settings.penalties.remove_invalid_values {
            best(scores)?;
        }
        let rows: Vec<Context<'_>> = self.groups[groups].iter().flat_map(Group::contexts).collect();
        Ok(Some(settings.penalties.apply(scores, &rows, settings)))
    }

    fn choose(&mut self, groups: Range<usize>, logits: &Tensor) -> Result<Vec<Ended>> {
        let settings = self.engine.settings;
        let penalised = self.penalised(groups.clone(), logits)?;
        let chosen = match (settings.sampling, &penalised) {
            (Sampling::Greedy, None) => best(logits)?,
            (Sampling::Greedy, Some(scores)) => likeliest(scores)?,
            (Sampling::Random { top_k, .. }, _) => {
                let scores = penalised.as_ref().unwrap_or(logits).log_softmax(1, Kind::Float);
                let candidates = Candidates::new(&scores, top_k)?;
                let draw_one = |(row, group): (usize, &Group)| {
                    let State::One(ids) = &group.state else { return 0 };
                    let mut found = candidates.row(row);
                    warp(&mut found, settings.sampling, 1);
                    draw(&found, &[settings.seed, group.index as u64, ids.len() as u64])
                };
                self.groups[groups.clone()].iter().enumerate().map(draw_one).collect()
            }
        };
        let mut ended = Vec::new();
        for (place, id) in groups.zip(chosen) {
            let State::One(ids) = &mut self.groups[place].state else { continue };
            ids.push(id);
            if let Some(finish) = self.stopping.finish(ids)? {
                ended.push((place, std::mem::take(ids), finish));
            }
        }
        Ok(ended)
    }

    fn search(&mut self, groups: Range<usize>, logits: &Tensor) -> Result<Vec<Ended>> {
        let settings = self.engine.settings;
        let rules = Rules::new(settings, &self.stopping);
        let scores = logits.log_softmax(1, Kind::Float);
        let scores = self.penalised(groups.clone(), &scores)?.unwrap_or(scores);
        let candidates = Candidates::new(&scores, rules.candidates())?;
        let mut rows: Vec<i64> = (0..(self.groups.len() * self.width) as i64).collect();
        let mut ended = Vec::new();
        for (i, place) in groups.enumerate() {
            let group = &mut self.groups[place];
            let State::Beams(beams) = &mut group.state else { continue };
            let found = (0..self.width).map(|beam| candidates.row(i * self.width + beam)).collect();
            let parents = beams.advance(found, &rules, group.index)?;
            for (beam, parent) in parents.into_iter().enumerate() {
                rows[place * self.width + beam] = (place * self.width + parent) as i64;
            }
            if let Some((ids, finish)) = beams.ended() {
                ended.push((place, ids, finish));
            }
        }
        if (0..).zip(&rows).any(|(i, row)| i != *row) {
            let longest = self.groups.iter().map(|group| group.length).max().unwrap_or(0);
            self.cache.reorder(&Tensor::from_slice(&rows).to_device(logits.device()), longest);
        }
        Ok(ended)
    }

    /// Removes a group; the last one moves into its place.
    fn remove(&mut self, place: usize) {
        self.groups.swap_remove(place);
        if let Some(moved) = self.groups.get(place) {
            let from = self.groups.len();
            for row in 0..self.width {
                let slot = |group: usize| (group * self.width + row) as i64;
                self.cache.copy_slot(slot(from), slot(place), moved.length);
            }
        }
    }
}

/// Place of a group, its tokens, and why it ended.
type Ended = (usize, Vec<u32>, Finish);

/// Returns the longest common beginning that leaves at least the last token of each text.
fn beginning<'t>(mut texts: impl Iterator<Item = &'t [u32]>) -> &'t [u32] {
    let Some(first) = texts.next() else { return &[] };
    let whole = first.len().saturating_sub(1);
    let length = texts.fold(whole, |length, text| {
        let same = first.iter().zip(text).take_while(|(a, b)| a == b).count();
        length.min(same).min(text.len().saturating_sub(1))
    });
    &first[..length]
}
