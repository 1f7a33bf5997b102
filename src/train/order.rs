//! Which examples a step trains on: a function of seed and step.

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::nn::pass::mix;

/// The order of the examples of one run, one epoch at a time.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    shuffle: bool,
    epoch: u64,
    permutation: Vec<usize>,
}

impl Order {
    /// The order of `examples` examples under `seed`; with `shuffle`, every epoch has its own.
    pub fn new(examples: usize, seed: u64, shuffle: bool) -> Self {
        let mut order = Self { seed, shuffle, epoch: 0, permutation: (0..examples).collect() };
        order.turn_to(0);
        order
    }

    /// The examples of optimiser step `step`, `batch_size` of them or what is left of the epoch.
    pub fn batch(&mut self, step: u64, batch_size: usize) -> Vec<usize> {
        let steps = steps_per_epoch(self.permutation.len(), batch_size);
        let epoch = step / steps;
        if epoch != self.epoch {
            self.turn_to(epoch);
        }
        let start = usize::try_from(step % steps).unwrap_or(usize::MAX).saturating_mul(batch_size);
        let end = start.saturating_add(batch_size).min(self.permutation.len());
        self.permutation.get(start..end).unwrap_or_default().to_vec()
    }

    fn turn_to(&mut self, epoch: u64) {
        self.epoch = epoch;
        if self.shuffle {
            self.permutation.sort_unstable();
            self.permutation.shuffle(&mut ChaCha8Rng::seed_from_u64(mix(&[self.seed, epoch])));
        }
    }
}

/// Optimiser steps that visit every example once; at least 1.
pub fn steps_per_epoch(examples: usize, batch_size: usize) -> u64 {
    examples.div_ceil(batch_size.max(1)).max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_visits_every_example_once_and_the_next_in_another_order() {
        let mut order = Order::new(10, 7, true);
        let epoch = |order: &mut Order, first: u64| -> Vec<usize> {
            (first..first + 4).flat_map(|step| order.batch(step, 3)).collect()
        };
        let (one, two) = (epoch(&mut order, 0), epoch(&mut order, 4));
        let mut sorted = one.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_ne!(one, two);
        assert_eq!(order.batch(3, 3).len(), 1);
    }

    #[test]
    fn a_step_does_not_depend_on_the_steps_before_it() {
        let mut whole = Order::new(50, 1, true);
        let batches: Vec<_> = (0..30).map(|step| whole.batch(step, 8)).collect();
        assert_eq!(Order::new(50, 1, true).batch(29, 8), batches[29]);
        assert_ne!(Order::new(50, 2, true).batch(29, 8), batches[29]);
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_file() {
        assert_eq!(Order::new(5, 3, false).batch(4, 2), [2, 3]);
    }
}
