//! Passes of a training that a GPU repeats from recordings: a short one takes it less time than a CPU needs to launch its kernels.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tch::{Device, Tensor};

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
}

#[derive(Debug, Default)]
struct Seen {
    taken: usize,
    recorded: Option<Recorded>,
}

/// A pass that the GPU repeats alone.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    /// The batch's table and the other numbers, which each pass reads anew.
    table: Tensor,
    numbers: Tensor,
    losses: Tensor,
}

impl Passes {
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
        let [table, numbers] =
            [Tensor::from_slice(table), Tensor::from_slice(numbers)].map(|tensor| sent(&tensor, device));
        let mut shapes = self.shapes.borrow_mut();
        let full = shapes.values().filter(|seen| seen.recorded.is_some()).count() >= MOST;
        let mut records = None;
        if let Some(shape) = shape.filter(|_| graph::records(device)) {
            let seen = shapes.entry(shape).or_default();
            seen.taken += 1;
            if let Some(recorded) = &seen.recorded {
                recorded.table.shallow_clone().copy_(&table);
                recorded.numbers.shallow_clone().copy_(&numbers);
                recorded.graph.replay()?;
                return Ok(recorded.losses.copy());
            }
            records = Some(shape).filter(|_| seen.taken > RECORDED_AFTER && !full);
        }
        let Some(shape) = records else { return body(&table, &numbers) };
        // One is replayed at a time, and its losses are copied before the next.
        let sharing = shapes.values().find_map(|seen| Some(&seen.recorded.as_ref()?.graph));
        let (losses, made) = Graph::record(device, sharing, || body(&table, &numbers))?;
        let recorded = made.map(|(graph, losses)| Recorded { graph, table, numbers, losses });
        shapes.entry(shape).and_modify(|seen| seen.recorded = recorded);
        Ok(losses)
    }
}
