//! The order of a run's examples where they are a mixture: data sets back to back, each with its number of examples an epoch.

use super::order::{Order, steps_per_epoch};

/// One data set of a mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its examples, at least one.
    pub examples: usize,
    /// Number of them in an epoch.
    pub count: usize,
}

/// The order of one run's examples; of a mixture, each data set goes on where it ended, in a new order once it was seen whole.
#[derive(Debug)]
pub struct Mixture {
    /// Each data set with the place of its first example, its number in an epoch, and its own order.
    parts: Vec<(usize, Part, Order)>,
    /// The order within an epoch.
    whole: Order,
    length: usize,
    /// The examples of an epoch, data set by data set.
    chosen: Option<(u64, Vec<usize>)>,
}

impl Mixture {
    /// Creates the order of `examples` examples in all; they are one data set if there are no `parts`.
    pub fn new(parts: &[Part], examples: usize, seed: u64, shuffle: bool) -> Self {
        let mut first = 0;
        let mut of_part = |(i, part): (usize, &Part)| {
            let start = first;
            first += part.examples;
            // An order of its own, so that equal data sets do not go in step.
            (start, *part, Order::new(part.examples, seed.wrapping_add(i as u64 + 1), shuffle))
        };
        let parts: Vec<_> = parts.iter().enumerate().map(&mut of_part).collect();
        let length =
            if parts.is_empty() { examples } else { parts.iter().map(|(_, part, _)| part.count).sum() };
        Self { parts, whole: Order::new(length, seed, shuffle), length, chosen: None }
    }

    /// Returns the number of examples in an epoch.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Returns the examples of optimiser step `step`: `batch_size` of them, or the rest of the epoch.
    pub fn batch(&mut self, step: u64, batch_size: usize) -> Vec<usize> {
        let batch = self.whole.batch(step, batch_size);
        if self.parts.is_empty() {
            return batch;
        }
        let epoch = step / steps_per_epoch(self.length, batch_size);
        if self.chosen.as_ref().is_none_or(|(of, _)| *of != epoch) {
            self.chosen = Some((epoch, self.choose(epoch)));
        }
        let chosen = self.chosen.as_ref().map(|(_, chosen)| chosen.as_slice()).unwrap_or_default();
        batch.into_iter().filter_map(|place| chosen.get(place).copied()).collect()
    }

    fn choose(&mut self, epoch: u64) -> Vec<usize> {
        let mut chosen = Vec::with_capacity(self.length);
        for (start, part, order) in &mut self.parts {
            let first = epoch.saturating_mul(part.count as u64);
            for position in (0..part.count as u64).map(|i| first.saturating_add(i)) {
                let pass = position / part.examples as u64;
                let place = usize::try_from(position % part.examples as u64).unwrap_or(0);
                chosen.push(*start + order.at(pass, place));
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [Part; 2] = [Part { examples: 7, count: 6 }, Part { examples: 3, count: 4 }];

    fn epoch(order: &mut Mixture, epoch: u64) -> Vec<usize> {
        (0..3).flat_map(|step| order.batch(3 * epoch + step, 4)).collect()
    }

    #[test]
    fn each_data_set_has_its_share_of_every_epoch_and_goes_on_where_it_ended() {
        let mut order = Mixture::new(&PARTS, 10, 5, true);
        let epochs: Vec<Vec<usize>> = (0..21).map(|number| epoch(&mut order, number)).collect();
        for examples in &epochs {
            assert_eq!(examples.iter().filter(|example| **example < 7).count(), 6);
            assert_eq!(examples.iter().filter(|example| **example >= 7).count(), 4);
        }
        // 21 epochs see 18 times the seven and 28 times the three.
        for example in 0..10 {
            let seen = epochs.iter().flatten().filter(|seen| **seen == example).count();
            assert_eq!(seen, if example < 7 { 18 } else { 28 }, "{example}");
        }
        assert_ne!(epochs[0], epochs[1]);
        assert_ne!(epochs[0], epoch(&mut Mixture::new(&PARTS, 10, 6, true), 0));
    }

    #[test]
    fn a_step_does_not_depend_on_the_steps_before_it() {
        let mut whole = Mixture::new(&PARTS, 10, 5, true);
        let batches: Vec<_> = (0..30).map(|step| whole.batch(step, 4)).collect();
        assert_eq!(Mixture::new(&PARTS, 10, 5, true).batch(29, 4), batches[29]);
        assert_eq!(whole.batch(3, 4), batches[3]);
        let mut plain = Mixture::new(&[], 10, 5, true);
        assert_eq!(plain.batch(4, 4), Order::new(10, 5, true).batch(4, 4));
    }
}
