//! The examples of each training step: a function of seed and step, in PyTorch's order.

use rand_mt::Mt;

/// Order of one run's examples, one epoch at a time.
///
/// With shuffling it is the order in which
/// `DataLoader(data, batch_size, shuffle=True, generator=torch.Generator().manual_seed(seed))` gives them.
#[derive(Debug)]
pub struct Order {
    seed: u64,
    shuffle: bool,
    /// The epoch of `permutation`.
    epoch: u64,
    permutation: Vec<usize>,
    /// PyTorch's CPU generator after `epoch + 1` epochs.
    words: Mt,
}

impl Order {
    /// Creates the order of `examples` examples under `seed`; with `shuffle`, every epoch has its own.
    pub fn new(examples: usize, seed: u64, shuffle: bool) -> Self {
        let permutation = (0..examples).collect();
        let mut order = Self { seed, shuffle, epoch: 0, permutation, words: generator(seed) };
        order.turn_to(0);
        order
    }

    /// Returns the examples of optimiser step `step`: `batch_size` of them, or the rest of the epoch.
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

    /// Returns the example at a place of an epoch, below their number.
    pub(super) fn at(&mut self, epoch: u64, place: usize) -> usize {
        if epoch != self.epoch {
            self.turn_to(epoch);
        }
        self.permutation.get(place).copied().unwrap_or(0)
    }

    /// Draws up to `epoch`: from the current epoch if that is earlier, else from the start.
    fn turn_to(&mut self, epoch: u64) {
        let mut next = self.epoch + 1;
        if epoch <= self.epoch {
            (self.words, next) = (generator(self.seed), 0);
        }
        self.epoch = epoch;
        if self.shuffle {
            for _ in next..epoch {
                self.pass_over(2 + 2 * self.swaps());
            }
            self.shuffle();
        }
    }

    /// Shuffles. `_BaseDataLoaderIter.__init__` draws a 64-bit seed for workers that do not exist,
    /// `RandomSampler.__iter__` one permutation to yield and one of which it yields nothing.
    fn shuffle(&mut self) {
        self.pass_over(2);
        self.permutation.sort_unstable();
        // ATen's `randperm` (`aten/src/ATen/native/TensorFactories.cpp`) for fewer than 2^32 / 20 examples.
        for i in 0..self.swaps() {
            let chosen = i + self.words.next_u32() as usize % (self.permutation.len() - i);
            self.permutation.swap(i, chosen);
        }
        self.pass_over(self.swaps());
    }

    /// Returns the number of generator words that one permutation takes.
    fn swaps(&self) -> usize {
        self.permutation.len().saturating_sub(1)
    }

    fn pass_over(&mut self, words: usize) {
        for _ in 0..words {
            self.words.next_u32();
        }
    }
}

/// Returns PyTorch's CPU generator after `manual_seed`: the Mersenne Twister of the seed's low 32 bits.
fn generator(seed: u64) -> Mt {
    Mt::new(seed as u32)
}

/// Returns the number of optimiser steps that visit every example once; at least 1.
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

    // Printed by torch 2.11: `loader = DataLoader(range(n), 3, shuffle=True, collate_fn=list,
    // generator=torch.Generator().manual_seed(seed))`, then `[sum(loader, []) for _ in range(3)]`.
    #[test]
    fn the_order_is_that_of_a_data_loader_with_the_same_seed() {
        let ten =
            [[1, 3, 5, 7, 9, 4, 6, 2, 8, 0], [5, 1, 6, 0, 9, 7, 8, 4, 3, 2], [4, 3, 2, 8, 1, 0, 6, 5, 9, 7]];
        let six = [[1, 0, 4, 2, 3, 5], [0, 4, 5, 3, 2, 1], [1, 5, 0, 3, 4, 2]];
        let epochs = |examples, seed| {
            let mut order = Order::new(examples, seed, true);
            [0, 1, 2].map(|epoch| order.batch(epoch, examples))
        };
        assert_eq!(epochs(10, 7), ten);
        assert_eq!(epochs(6, (1 << 32) + 5), six);
    }

    #[test]
    fn a_step_does_not_depend_on_the_steps_before_it() {
        let mut whole = Order::new(50, 1, true);
        let batches: Vec<_> = (0..30).map(|step| whole.batch(step, 8)).collect();
        assert_eq!(Order::new(50, 1, true).batch(29, 8), batches[29]);
        assert_eq!(whole.batch(3, 8), batches[3]);
        assert_ne!(Order::new(50, 2, true).batch(29, 8), batches[29]);
    }

    #[test]
    fn without_shuffling_the_order_is_that_of_the_file() {
        assert_eq!(Order::new(5, 3, false).batch(4, 2), [2, 3]);
    }
}
