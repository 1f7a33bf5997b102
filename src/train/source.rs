//! The micro batches of each optimiser step: which examples, in which order, how many at once.

use super::mixture::Mixture;
use super::order::steps_per_epoch;
use super::plan::TrainPlan;

/// Examples computed in one pass: for each of the k runs, their indices.
pub type MicroBatch = Vec<Vec<usize>>;

/// The examples of k runs, each in its own order.
#[derive(Debug)]
pub struct BatchSource {
    orders: Vec<Mixture>,
    /// Tokens of each example.
    lengths: Vec<usize>,
    batch_size: usize,
    micro_batch_size: usize,
    micro_batch_tokens: usize,
}

impl BatchSource {
    /// Creates the source of a plan over examples of these `lengths` in tokens.
    pub fn new(plan: &TrainPlan, lengths: Vec<usize>) -> Self {
        let order = |seed| Mixture::new(&plan.mixture, lengths.len(), seed, plan.shuffle);
        Self {
            orders: plan.runs.iter().map(|run| order(run.seed)).collect(),
            batch_size: plan.batch_size,
            micro_batch_size: plan.micro_batch_size.max(1),
            micro_batch_tokens: plan.micro_batch_tokens,
            lengths,
        }
    }

    /// Returns the number of steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        let length = self.orders.first().map_or(self.lengths.len(), Mixture::length);
        steps_per_epoch(length, self.batch_size)
    }

    /// Returns the micro batches of optimiser step `step`, split by number of examples or of tokens. The split is
    /// the same for all runs, whose steps have equally many examples.
    pub fn next(&mut self, step: u64) -> Vec<MicroBatch> {
        let size = self.batch_size;
        let batches: Vec<Vec<usize>> = self.orders.iter_mut().map(|order| order.batch(step, size)).collect();
        let tokens = |at: usize| batches.iter().map(|batch| self.lengths[batch[at]]).max().unwrap_or(0);
        let mut found: Vec<MicroBatch> = Vec::new();
        let (mut count, mut filled) = (0, 0);
        for at in 0..batches.iter().map(Vec::len).min().unwrap_or(0) {
            let full = match self.micro_batch_tokens {
                0 => count == self.micro_batch_size,
                budget => filled + tokens(at) > budget,
            };
            if full || found.is_empty() {
                found.push(vec![Vec::new(); batches.len()]);
                (count, filled) = (0, 0);
            }
            for (micro, batch) in found.last_mut().into_iter().flatten().zip(&batches) {
                micro.push(batch[at]);
            }
            (count, filled) = (count + 1, filled + tokens(at));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(micro_batch_size: usize, micro_batch_tokens: usize) -> BatchSource {
        let lengths = vec![5, 1, 2, 9, 3, 3, 1];
        let order = |seed, shuffle| Mixture::new(&[], lengths.len(), seed, shuffle);
        let orders = vec![order(0, false), order(1, true)];
        BatchSource { orders, lengths, batch_size: 5, micro_batch_size, micro_batch_tokens }
    }

    #[test]
    fn a_step_is_split_by_examples_or_by_the_tokens_of_its_longer_run() {
        let sizes = |source: &mut BatchSource, step| -> Vec<[usize; 2]> {
            source.next(step).iter().map(|micro| [micro[0].len(), micro[1].len()]).collect()
        };
        let mut by_examples = source(2, 0);
        assert_eq!(by_examples.steps_per_epoch(), 2);
        assert_eq!(sizes(&mut by_examples, 0), [[2, 2], [2, 2], [1, 1]]);
        assert_eq!(sizes(&mut by_examples, 1), [[2, 2]]);
        assert_eq!(by_examples.next(2)[1][0], [2, 3]);
        let mut by_tokens = source(1, 9);
        for step in 0..4 {
            let (whole, parts) = (source(7, 0).next(step).remove(0), by_tokens.next(step));
            assert!(parts.len() > 1 || step % 2 == 1, "{parts:?}");
            for run in [0, 1] {
                assert_eq!(parts.iter().flat_map(|micro| micro[run].clone()).collect::<Vec<_>>(), whole[run]);
            }
            for micro in &parts {
                let tokens = |at: usize| micro.iter().map(|run| by_tokens.lengths[run[at]]).max().unwrap();
                let sum: usize = (0..micro[0].len()).map(tokens).sum();
                assert!(sum <= 9, "{parts:?}");
            }
        }
    }
}
