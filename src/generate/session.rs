//! Prompts under way in one cache: reading new ones, and the next token of all.

use std::collections::VecDeque;
use std::ops::Range;

use tch::Tensor;

use super::beams::{Beams, Rules};
use super::candidates::{Candidates, best, draw, warp};
use super::engine::{Engine, OnDone};
use super::stopping::Stopping;
use super::{Finish, Prompt, Sampling};
use crate::fault::Result;
use crate::nn::cache::{Cache, Decode, Prefill};
use crate::nn::packed::{Positions, Sequence};
use crate::nn::{Packed, Pass};

/// Tokens that one prefill reads, but for a longer single prompt.
const PREFILL_TOKENS: usize = 4096;
/// New prompts are read once this share of the slots is free: reading one costs about as much as reading a few.
const FREE_SHARE: usize = 16;

/// Prompts under way. The prompts lie in the cache without a gap, each in `width` rows.
pub struct Session<'a> {
    engine: &'a Engine<'a>,
    cache: &'a Cache,
    stopping: Stopping<'a>,
    slots: usize,
    width: usize,
    groups: Vec<Group>,
}

/// One prompt under way.
struct Group {
    index: usize,
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
    /// The last token of each row.
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
        Self { engine, cache, stopping, slots, width: engine.settings.search.beams, groups: Vec::new() }
    }

    /// Whether a prompt is under way.
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
        while self.groups.len() < self.slots && !queue.is_empty() {
            let (mut taken, mut tokens) = (Vec::new(), 0);
            while let Some(prompt) = queue.front() {
                tokens += prompt.ids.len();
                let full = self.groups.len() + taken.len() == self.slots;
                if full || (!taken.is_empty() && tokens > PREFILL_TOKENS) {
                    break;
                }
                taken.extend(queue.pop_front());
            }
            self.prefill(&taken, on_done)?;
        }
        Ok(())
    }

    fn prefill(&mut self, prompts: &[&Prompt], on_done: &mut OnDone<'_>) -> Result<()> {
        let model = self.engine.model;
        let sequences = prompts.iter().map(|prompt| Sequence { ids: &prompt.ids, types: &[] }).collect();
        let batch = Packed::new(&[sequences], Positions::FromZero, model.device());
        let starts: Vec<i64> = Vec::try_from(batch.first().flatten(0, 1))?;
        let held = self.groups.len();
        let places: Vec<[i64; 3]> = (held..)
            .zip(prompts.iter().zip(starts))
            .map(|(group, (prompt, start))| [start, prompt.ids.len() as i64, (group * self.width) as i64])
            .collect();
        let sight = Prefill::new(self.cache, &batch, &places);
        let hidden = model.decoder.forward(&batch.ids, &batch.positions, &sight, &Pass::evaluation())?;
        let last: Vec<i64> = places.iter().map(|[start, length, _]| start + length - 1).collect();
        let last = Tensor::from_slice(&last).to_device(model.device());
        let logits = model.logits(&hidden.squeeze_dim(0).index_select(0, &last)); // [s, v]
        let width = self.width;
        self.groups.extend(prompts.iter().map(|prompt| Group {
            index: prompt.index,
            length: prompt.ids.len() as i64,
            state: if width > 1 { State::Beams(Beams::new(width)) } else { State::One(Vec::new()) },
        }));
        let logits =
            if width > 1 { logits.repeat_interleave_self_int(width as i64, 0, None) } else { logits };
        self.decide(held..self.groups.len(), &logits, on_done)
    }

    /// Gives every prompt under way its next token.
    ///
    /// # Errors
    /// When a pass fails, or `on_done`.
    pub fn step(&mut self, on_done: &mut OnDone<'_>) -> Result<()> {
        if self.groups.is_empty() {
            return Ok(());
        }
        let model = self.engine.model;
        let ids: Vec<i64> = self.groups.iter().flat_map(Group::last).map(i64::from).collect();
        let lengths: Vec<i64> =
            self.groups.iter().flat_map(|group| std::iter::repeat_n(group.length, self.width)).collect();
        let ids = Tensor::from_slice(&ids).to_device(model.device()).unsqueeze(0); // [1, s]
        let sight = Decode::new(self.cache, &lengths, &model.config.windows, model.device());
        let hidden = model.decoder.forward(&ids, &sight.positions(), &sight, &Pass::evaluation())?;
        let logits = model.logits(&hidden.squeeze_dim(0)); // [s, v]
        for group in &mut self.groups {
            group.length += 1;
        }
        self.decide(0..self.groups.len(), &logits, on_done)
    }

    /// Chooses the next tokens of these prompts, and ends those that have come to their end.
    fn decide(&mut self, groups: Range<usize>, logits: &Tensor, on_done: &mut OnDone<'_>) -> Result<()> {
        let ended = if self.width > 1 { self.search(groups, logits)? } else { self.choose(groups, logits)? };
        // From the last: a group moves into the gap of one before it only.
        for (place, ids, finish) in ended.into_iter().rev() {
            let index = self.groups[place].index;
            self.remove(place);
            on_done(index, self.stopping.completion(ids, finish)?)?;
        }
        Ok(())
    }

    fn choose(&mut self, groups: Range<usize>, logits: &Tensor) -> Result<Vec<Ended>> {
        let settings = self.engine.settings;
        let chosen = match settings.sampling {
            Sampling::Greedy => best(logits)?,
            Sampling::Random { top_k, .. } => {
                let candidates = Candidates::new(logits, top_k)?;
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
        let candidates = Candidates::new(logits, rules.candidates())?;
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

    /// Takes a group away; the last one moves into its place.
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
