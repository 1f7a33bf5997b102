//! Passes of a training that a GPU repeats from recordings: a short one takes it less time than a CPU needs to launch its kernels.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::fault::Result;
use crate::nn::layout::PassShape;
use crate::torch::coming::sent;
use crate::torch::graph::{self, Graph};

/// Passes of a shape after which it is recorded: recording takes as long as some of them.
const RECORDED_AFTER: usize = 2;
/// Most recordings that are kept.
const MOST: usize = 64;

/// Forward and backward passes of one model, recorded for each shape of a batch that returns.
#[derive(Debug, Default)]
pub struct Passes {
    shapes: RefCell<BTreeMap<PassShape, Seen>>,
    /// True once recordings left too little memory for other passes.
    ceased: Cell<bool>,
    /// Numbers that wait for the next batch to go to the device, and those that have come there.
    beside: RefCell<(Vec<f32>, Option<Tensor>)>,
}

#[derive(Debug, Default)]
struct Seen {
    taken: usize,
    /// True if it could not be recorded: trying costs a pass.
    fails: bool,
    recorded: Option<Recorded>,
}

/// A pass that the GPU repeats alone.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    /// The words of the batch, which each pass reads anew.
    batch: Tensor,
    losses: Tensor,
}

impl Passes {
    /// Lets `numbers` go to the device with the next batch.
    pub fn send_along(&self, numbers: Vec<f32>) {
        self.beside.replace((numbers, None));
    }

    /// Returns on `device` what was to be sent along.
    pub fn arrived(&self, device: Device) -> Tensor {
        let (waiting, arrived) = self.beside.take();
        // Without a batch it goes alone.
        arrived.unwrap_or_else(|| sent(&Tensor::from_slice(&waiting), device))
    }

    /// Sends words to the device in one copy, with what goes along.
    fn sent(&self, mut words: Vec<i64>, device: Device) -> Tensor {
        let (waiting, arrived) = &mut *self.beside.borrow_mut();
        let (count, beside) = (words.len() as i64, std::mem::take(waiting));
        words.extend(words_of(&beside));
        let words = sent(&Tensor::from_slice(&words), device);
        if !beside.is_empty() {
            *arrived = Some(numbers_of(&words.narrow(0, count, words.numel() as i64 - count), beside.len()));
        }
        words.narrow(0, 0, count)
    }

    /// Returns true if recordings occupy memory.
    pub fn has_recordings(&self) -> bool {
        self.shapes.borrow().values().any(|seen| seen.recorded.is_some())
    }

    /// Drops all recordings, and makes no more.
    pub fn cease(&self) {
        self.shapes.borrow_mut().clear();
        self.ceased.set(true);
    }

    /// Runs `body` over a batch's table and the `numbers` that go with it, or repeats its recording; returns its losses.
    ///
    /// What `body` launches must depend on `shape` alone, without which nothing is recorded, and its results on the two tensors and on
    /// libtorch's generator.
    ///
    /// # Errors
    /// When `body` or the GPU fails.
    pub fn run(
        &self,
        shape: Option<PassShape>,
        table: &[i64],
        numbers: &[f32],
        device: Device,
        body: impl Fn(&Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let batch = self.sent(table.iter().copied().chain(words_of(numbers)).collect(), device);
        let [entries, words] = [table.len(), numbers.len().div_ceil(2)].map(|count| count as i64);
        let body = |batch: &Tensor| {
            let words = batch.narrow(0, entries, words);
            body(&batch.narrow(0, 0, entries), &numbers_of(&words, numbers.len()))
        };
        let mut shapes = self.shapes.borrow_mut();
        let full = shapes.values().filter(|seen| seen.recorded.is_some()).count() >= MOST;
        let mut records = None;
        if let Some(shape) = shape.filter(|_| graph::records(device) && !self.ceased.get()) {
            let seen = shapes.entry(shape).or_default();
            seen.taken += 1;
            if let Some(recorded) = &seen.recorded {
                recorded.batch.shallow_clone().copy_(&batch);
                recorded.graph.replay()?;
                return Ok(recorded.losses.copy());
            }
            records = Some(shape).filter(|_| seen.taken > RECORDED_AFTER && !seen.fails && !full);
        }
        let Some(shape) = records else { return body(&batch) };
        // One is replayed at a time, and its losses are copied before the next.
        let sharing = shapes.values().find_map(|seen| Some(&seen.recorded.as_ref()?.graph));
        let (losses, made) = Graph::record(device, sharing, || body(&batch))?;
        let recorded = made.map(|(graph, losses)| Recorded { graph, batch, losses });
        shapes.entry(shape).and_modify(|seen| (seen.fails, seen.recorded) = (recorded.is_none(), recorded));
        Ok(losses)
    }
}

/// Returns the bits of numbers, two a word.
fn words_of(numbers: &[f32]) -> impl Iterator<Item = i64> {
    let bits =
        |pair: &[f32]| pair.iter().rev().fold(0, |word, number| word << 32 | i64::from(number.to_bits()));
    numbers.chunks(2).map(bits)
}

/// Returns so many numbers whose bits these words are.
fn numbers_of(words: &Tensor, count: usize) -> Tensor {
    words.view_dtype(Kind::Float).narrow(0, 0, count as i64)
}
