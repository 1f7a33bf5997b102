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

    /// Returns the micro batches of the runs' next optimiser steps, which `steps` numbers; a run without a number has no
    /// examples. Each run's are split as if it were alone, by number of examples or of tokens.
    pub fn next(&mut self, steps: &[Option<u64>]) -> Vec<MicroBatch> {
        let size = self.batch_size;
        let runs = self.orders.iter_mut().zip(steps);
        let batches: Vec<Vec<usize>> =
            runs.map(|(order, step)| step.map_or_else(Vec::new, |step| order.batch(step, size))).collect();
        let mut parts: Vec<_> = batches.iter().map(|batch| self.split(batch).into_iter()).collect();
        let most = parts.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
        (0..most).map(|_| parts.iter_mut().map(|run| run.next().unwrap_or_default()).collect()).collect()
    }

    /// Returns the tokens of these examples.
    pub fn tokens(&self, examples: &[usize]) -> usize {
        examples.iter().map(|example| self.lengths[*example]).sum()
    }

    /// Splits a step's examples into micro batches: by tokens into as few as the budget allows, the largest of which is as small as it can
    /// be, since a GPU takes nearly as long for a few tokens as for some hundreds.
    fn split(&self, batch: &[usize]) -> Vec<Vec<usize>> {
        let most = self.micro_batch_tokens;
        if most == 0 {
            return batch.chunks(self.micro_batch_size).map(<[usize]>::to_vec).collect();
        }
        let fewest = self.filled(batch, most).len();
        // A larger budget never needs more.
        let (mut least, mut enough) = (0, most);
        while least + 1 < enough {
            let middle = usize::midpoint(least, enough);
            if self.filled(batch, middle).len() > fewest { least = middle } else { enough = middle }
        }
        self.filled(batch, enough)
    }

    /// Fills micro batches with examples in turn, each up to so many tokens or with one example.
    fn filled(&self, batch: &[usize], budget: usize) -> Vec<Vec<usize>> {
        let mut found: Vec<Vec<usize>> = Vec::new();
        let mut tokens = 0;
        for &example in batch {
            let length = self.lengths[example];
            match found.last_mut() {
                Some(micro) if tokens + length <= budget => micro.push(example),
                _ => {
                    found.push(vec![example]);
                    tokens = 0;
                }
            }
            tokens += length;
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
    fn a_step_is_split_by_examples_or_by_tokens_of_each_run() {
        let sizes = |source: &mut BatchSource, step| -> Vec<[usize; 2]> {
            source.next(&[Some(step); 2]).iter().map(|micro| [micro[0].len(), micro[1].len()]).collect()
        };
        let mut by_examples = source(2, 0);
        assert_eq!(by_examples.steps_per_epoch(), 2);
        assert_eq!(sizes(&mut by_examples, 0), [[2, 2], [2, 2], [1, 1]]);
        assert_eq!(sizes(&mut by_examples, 1), [[2, 2]]);
        assert_eq!(
            by_examples.next(&[Some(2), None]),
            [[vec![0, 1], vec![]], [vec![2, 3], vec![]], [vec![4], vec![]]]
        );
        assert_eq!(by_examples.next(&[Some(1), Some(2)]).len(), 3);
        let mut by_tokens = source(1, 9);
        for step in 0..4 {
            let (whole, parts) =
                (source(7, 0).next(&[Some(step); 2]).remove(0), by_tokens.next(&[Some(step); 2]));
            assert!(parts.len() > 1 || step % 2 == 1, "{parts:?}");
            for run in [0, 1] {
                assert_eq!(parts.iter().flat_map(|micro| micro[run].clone()).collect::<Vec<_>>(), whole[run]);
                for micro in &parts {
                    assert!(by_tokens.tokens(&micro[run]) <= 9, "{parts:?}");
                }
            }
            let alone: Vec<MicroBatch> = by_tokens.next(&[Some(step), None]);
            assert!(alone.iter().zip(&parts).all(|(alone, part)| alone[0] == part[0]));
        }
    }

    #[test]
    fn micro_batches_by_tokens_are_few_and_alike() {
        let lengths = vec![5, 1, 2, 4, 3, 3, 1, 20, 2];
        let mut source = source(1, 17);
        (source.lengths, source.batch_size) = (lengths, 7);
        // 19 tokens: not 15 and 4.
        assert_eq!(source.split(&[0, 1, 2, 3, 4, 5, 6]), [vec![0, 1, 2], vec![3, 4, 5, 6]]);
        assert_eq!(source.split(&[0, 7, 8]), [[0], [7], [8]]);
        assert_eq!(source.split(&[4, 5, 6]), [vec![4, 5, 6]]);
        assert!(source.split(&[]).is_empty());
        source.micro_batch_tokens = 1;
        assert_eq!(source.split(&[1, 0, 6]), [[1], [0], [6]]);
    }
}
