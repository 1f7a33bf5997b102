//! What one forward pass needs to know beyond its input: training or not, and its noise.

use std::cell::Cell;

use tch::Tensor;

pub use crate::torch::draw::{mix, mix_name, seed_torch};

/// One forward pass. Its noise is a function of the seeds alone, so a repeated pass draws the same masks.
#[derive(Debug)]
pub struct Pass {
    /// One seed for each run of the leading axis; empty when not training.
    seeds: Vec<u64>,
    drawn: Cell<u64>,
}

impl Pass {
    /// A pass without dropout.
    pub fn evaluation() -> Self {
        Self { seeds: Vec::new(), drawn: Cell::new(0) }
    }

    /// A training pass; `seeds` holds one seed for each of the k runs.
    pub fn training(seeds: Vec<u64>) -> Self {
        Self { seeds, drawn: Cell::new(0) }
    }

    /// The pass of one layer: its noise does not depend on what other layers draw, so that a layer can be recomputed.
    pub fn layer(&self, index: usize) -> Self {
        let seeds = self.seeds.iter().map(|&seed| mix(&[seed, index as u64])).collect();
        Self { seeds, drawn: Cell::new(0) }
    }

    /// This pass from its start: it draws again what it drew first, so that what came first can be recomputed.
    pub fn restarted(&self) -> Self {
        Self::training(self.seeds.clone())
    }

    /// Whether dropout with probability `p` does anything in this pass.
    pub fn drops(&self, p: f64) -> bool {
        p > 0.0 && !self.seeds.is_empty()
    }

    /// Dropout with probability `p`; run j's mask comes from run j's seed.
    ///
    /// # Shapes
    /// `[k, ..]` to the same; with k = 1, any shape.
    pub fn dropout(&self, x: &Tensor, p: f64) -> Tensor {
        if !self.drops(p) {
            return x.shallow_clone();
        }
        let draw = self.next_draw();
        match self.seeds.as_slice() {
            [seed] => {
                seed_torch(mix(&[*seed, draw]));
                x.dropout(p, true)
            }
            seeds => {
                let dropped: Vec<Tensor> = (0i64..)
                    .zip(seeds)
                    .map(|(run, seed)| {
                        seed_torch(mix(&[*seed, draw]));
                        x.get(run).dropout(p, true)
                    })
                    .collect();
                Tensor::stack(&dropped, 0)
            }
        }
    }

    /// Seeds libtorch for an operator of run `run` that draws inside (attention); `draw` is from [`Pass::next_draw`].
    pub fn seed_run(&self, run: usize, draw: u64) {
        if let Some(seed) = self.seeds.get(run) {
            seed_torch(mix(&[*seed, draw]));
        }
    }

    /// The number of the next draw in this pass.
    pub fn next_draw(&self) -> u64 {
        self.drawn.replace(self.drawn.get() + 1)
    }
}
