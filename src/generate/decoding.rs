//! The pass that gives every running sequence the logits of its next token.

use std::collections::BTreeMap;

use tch::Tensor;

use super::memory::rooms;
use crate::fault::Result;
use crate::models::CausalLm;
use crate::nn::Pass;
use crate::nn::cache::{Cache, Decode};
use crate::torch::coming::sent;
use crate::torch::graph::{self, Graph};

/// Passes of a size after which it is recorded. Recording takes about as long as two of them, which on a GPU take the CPU several times
/// as long as a replay.
const RECORDED_AFTER: usize = 2;
/// Tokens that slots on a GPU can hold more than they need when they grow, so that they seldom do: passes are recorded anew then.
pub const ROOM: usize = 256;
/// Recorded passes have a multiple of this many rows, or few.
const ROWS: usize = 32;

/// Decoding from a cache; on a GPU, passes are recorded and replayed.
#[derive(Debug)]
pub struct Decoding<'a> {
    model: &'a CausalLm,
    /// For each number of rows, the passes taken.
    taken: BTreeMap<usize, usize>,
    recorded: BTreeMap<usize, Recorded>,
    /// False if passes cannot be recorded.
    records: bool,
    /// Dropped after the recorded passes, which write into it.
    cache: Cache,
    /// Rows of the cache that sequences may occupy.
    slots: usize,
}

/// A pass that the GPU repeats alone.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    /// Token, and tokens before it, of each row: int64 `[2, s]`.
    inputs: Tensor,
    /// Tokens before it, of each sequence of the last replay.
    lengths: Vec<i64>,
    /// `[s, v]`.
    logits: Tensor,
}

impl<'a> Decoding<'a> {
    /// Decodes from the first `slots` rows of the cache.
    pub fn new(model: &'a CausalLm, cache: Cache, slots: usize) -> Self {
        let one_device = !model.placement.is_divided();
        let records = one_device && graph::records(model.device()) && model.decodes_in_one_kernel();
        Self { model, cache, slots, taken: BTreeMap::new(), recorded: BTreeMap::new(), records }
    }

    /// Returns the cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Lets the slots of a cache on a GPU hold at least `needed` tokens, and at most `most`. Recorded passes go, and what they wrote with them.
    ///
    /// # Errors
    /// As [`Cache::grow`].
    pub fn make_room(&mut self, needed: usize, most: usize) -> Result<()> {
        self.recorded.clear();
        let held = usize::try_from(self.cache.capacity())?;
        // Passes, and the copy of a layer, take the other half of what is free.
        let spare = |(token, free): (usize, usize)| free / 2 / (token * (self.slots + 1)).max(1);
        let affordable = held + rooms(self.model).into_iter().map(spare).min().unwrap_or(0);
        let tokens = grown([held, needed, most], affordable);
        self.cache.grow(i64::try_from(tokens)?)
    }

    /// Appends a token to each of the first rows, which hold `lengths` tokens; returns their logits, `[s, v]`, which the
    /// next pass may overwrite.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn next(&mut self, ids: &[i64], lengths: &[i64]) -> Result<Tensor> {
        if let Some(logits) = self.replayed(ids, lengths)? {
            return Ok(logits);
        }
        let device = self.model.device();
        let ids = sent(&Tensor::from_slice(ids), device);
        pass(self.model, &ids, &Decode::new(&self.cache, lengths, device))
    }

    /// As [`Decoding::next`] for tokens that are on the device, int64 `[s]`, without waiting for it; `None` if no such pass is recorded, or the
    /// slots must grow first.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn next_on_device(&mut self, ids: &Tensor, lengths: Vec<i64>) -> Result<Option<Tensor>> {
        if lengths.iter().any(|length| *length >= self.cache.capacity()) {
            return Ok(None);
        }
        let rows = self.rows(lengths.len());
        let Some(recorded) = self.recorded.get_mut(&rows) else { return Ok(None) };
        let count = lengths.len() as i64;
        // A row that is not finite has the token -1, of which the host hears soon.
        recorded.inputs.get(0).narrow(0, 0, count).copy_(&ids.clamp_min(0));
        let mut held = recorded.inputs.get(1);
        if lengths.len() == recorded.lengths.len()
            && lengths.iter().zip(&recorded.lengths).all(|(length, before)| *length == before + 1)
        {
            let _ = held.narrow(0, 0, count).g_add_scalar_(1);
        } else {
            let mut padded = lengths.clone();
            padded.resize(rows, 0);
            held.copy_(&sent(&Tensor::from_slice(&padded), held.device()));
        }
        recorded.lengths = lengths;
        recorded.graph.replay()?;
        Ok(Some(recorded.logits.narrow(0, 0, count)))
    }

    /// Returns the number of rows of a recorded pass for so many sequences.
    fn rows(&self, count: usize) -> usize {
        let rows = if count <= 8 { count.next_power_of_two() } else { count.next_multiple_of(ROWS) };
        rows.min(self.slots)
    }

    /// As [`Decoding::next`] by a recorded pass; `None` if there is none.
    fn replayed(&mut self, ids: &[i64], lengths: &[i64]) -> Result<Option<Tensor>> {
        if !self.records {
            return Ok(None);
        }
        let rows = self.rows(ids.len());
        let taken = self.taken.entry(rows).or_default();
        *taken += 1;
        if *taken <= RECORDED_AFTER {
            return Ok(None);
        }
        // Rows without a sequence write into the beginning of their free slots.
        let mut numbers = vec![0; 2 * rows];
        numbers[..ids.len()].copy_from_slice(ids);
        numbers[rows..rows + lengths.len()].copy_from_slice(lengths);
        let numbers = Tensor::from_slice(&numbers).view([2, -1]);
        if let Some(recorded) = self.recorded.get_mut(&rows) {
            recorded.inputs.copy_(&numbers);
            recorded.lengths = lengths.to_vec();
            recorded.graph.replay()?;
            return Ok(Some(recorded.logits.narrow(0, 0, ids.len() as i64)));
        }
        let inputs = numbers.to_device(self.model.device());
        // One is replayed at a time, and its logits are read before the next.
        let sharing = self.recorded.values().next().map(|recorded| &recorded.graph);
        let (logits, made) = Graph::record(self.model.device(), sharing, || {
            let sight = Decode::at(&self.cache, inputs.get(1), self.cache.capacity());
            pass(self.model, &inputs.get(0), &sight)
        })?;
        let first = logits.narrow(0, 0, ids.len() as i64);
        match made {
            Some((graph, logits)) => {
                let lengths = lengths.to_vec();
                self.recorded.insert(rows, Recorded { graph, inputs, lengths, logits });
            }
            None => self.records = false,
        }
        Ok(Some(first))
    }
}

/// Returns the tokens that slots are to hold, at least `needed` and at most `most`, where they hold `held`: so many that they seldom grow, but
/// no more than is `affordable`.
fn grown([held, needed, most]: [usize; 3], affordable: usize) -> usize {
    (needed + ROOM).max(held * 3 / 2).min(affordable.max(needed)).next_multiple_of(ROWS).min(most)
}

/// Returns the logits `[s, v]` after one more token of each row.
fn pass(model: &CausalLm, ids: &Tensor, sight: &Decode<'_>) -> Result<Tensor> {
    Ok(model.logits(&model.decoder.forward(ids, sight.positions(), sight, &Pass::evaluation())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_grow_by_much_or_by_what_memory_allows() {
        let plenty = usize::MAX;
        assert_eq!(grown([256, 257, 4_096], plenty), 544);
        assert_eq!(grown([1_024, 1_025, 4_096], plenty), 1_536);
        assert_eq!(grown([256, 257, 300], plenty), 300);
        assert_eq!(grown([256, 257, 4_096], 400), 416);
        assert_eq!(grown([256, 257, 4_096], 256), 288);
    }
}
