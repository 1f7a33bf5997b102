//! The draws that make an input: a function of its kind and its seed alone.

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// A stream of draws.
pub struct Dice(ChaCha8Rng);

impl Dice {
    /// The stream of one input.
    pub fn new(kind: &str, seed: u64) -> Self {
        let digest = blake3::hash(format!("{kind} {seed}").as_bytes());
        Self(ChaCha8Rng::from_seed(*digest.as_bytes()))
    }

    /// A number below `end`, 0 where that is 0.
    pub fn below(&mut self, end: usize) -> usize {
        if end == 0 { 0 } else { self.0.random_range(0..end) }
    }

    /// True in this many of a hundred draws.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of the words of a list that `¦` separates.
    pub fn word<'a>(&mut self, list: &'a str) -> &'a str {
        let words: Vec<&str> = list.split('¦').collect();
        words[self.below(words.len())]
    }

    /// One of these.
    pub fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// A part of `0..length`, more often a short one.
    pub fn range(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length);
        let most = if self.chance(70) { 16.min(length - start) } else { length - start };
        start..start + self.below(most + 1)
    }

    /// How often something is changed: mostly once.
    pub fn few(&mut self) -> usize {
        [1, 1, 1, 1, 1, 1, 2, 2, 2, 4][self.below(10)]
    }

    /// A count: mostly a few, at times very many.
    pub fn count(&mut self) -> usize {
        let most = [3, 3, 3, 40, 40, 3_000, 120_000][self.below(7)];
        1 + self.below(most)
    }

    /// Bytes without a meaning.
    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.0.fill(&mut bytes[..]);
        bytes
    }
}
