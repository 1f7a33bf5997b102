//! The random numbers of one run: those of PyTorch's CPU generator after `torch.manual_seed(seed)`.
//!
//! PyTorch's own `bernoulli_` takes 12 ns per number on the CPU. Here words are made in blocks, which the
//! compiler vectorises.
//!
//! Source of the generator: M. Matsumoto and T. Nishimura, "Mersenne Twister", ACM TOMACS 8 (1998), as 32-bit MT19937.

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::fault::{Fault, fault};

/// Words in the generator's state.
const N: usize = 624;
/// Distance between the words that a new one is made from.
const M: usize = 397;

/// PyTorch's CPU generator at some point of its stream of 32-bit words.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Stream {
    state: [u32; N],
    /// Number of words of `state` already used.
    used: usize,
}

impl Stream {
    /// Starts a stream. As in PyTorch, only the low 32 bits of the seed count.
    pub fn seeded(seed: u64) -> Self {
        let mut state = [seed as u32; N];
        for i in 1..N {
            let before = state[i - 1];
            state[i] = 1_812_433_253_u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, used: N }
    }

    /// Returns the next 64 bits, two words combined as in `at::CPUGeneratorImpl::random64`.
    pub fn next_u64(&mut self) -> u64 {
        let [high, low] = [self.next_u32(), self.next_u32()].map(u64::from);
        high << 32 | low
    }

    fn next_u32(&mut self) -> u32 {
        if self.used == N {
            self.turn();
        }
        self.used += 1;
        tempered(self.state[self.used - 1])
    }

    /// Skips `words` words.
    pub fn pass_over(&mut self, mut words: usize) {
        while words > N - self.used {
            words -= N - self.used;
            self.turn();
        }
        self.used += words;
    }

    /// Draws as `torch.randn(numbers)` does in fp32: `normal_fill` of
    /// `aten/src/ATen/native/cpu/DistributionTemplates.h`; below 16 numbers `at::normal_distribution<double>`
    /// (`aten/src/ATen/core/DistributionsHelper.h`), of which an unused second number of a pair is discarded.
    pub fn normals(&mut self, numbers: usize) -> Vec<f32> {
        if numbers < 16 {
            let pair = |_| {
                let mut uniform = || (self.next_u64() & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64;
                let (angle, radius) = (TAU * uniform(), (-2.0 * (-uniform()).ln_1p()).sqrt());
                [radius * angle.cos(), radius * angle.sin()]
            };
            let pairs: Vec<[f64; 2]> = (0..numbers.div_ceil(2)).map(pair).collect();
            return pairs.concat().into_iter().take(numbers).map(|x| x as f32).collect();
        }
        let mut uniform = |_| (self.next_u32() & 0x00ff_ffff) as f32 / (1 << 24) as f32;
        let mut drawn: Vec<f32> = (0..numbers).map(&mut uniform).collect();
        drawn.chunks_exact_mut(16).for_each(to_normal);
        if !numbers.is_multiple_of(16) {
            let mut last: Vec<f32> = (0..16).map(&mut uniform).collect();
            to_normal(&mut last);
            drawn.truncate(numbers - 16);
            drawn.extend(last);
        }
        drawn
    }

    /// Fills `row` as `torch.empty_like(row).bernoulli_(1 - p).div_(1 - p)` does: 0 with probability `p`,
    /// else 1/(1 - p).
    pub fn fill_mask(&mut self, row: &mut [f32], p: f64) {
        let keep = 1.0 - p;
        let scale = (keep as f32).recip();
        // A double is below `keep` if its 53 bits are below this. Of its words, the second rarely matters.
        let limit = (keep * (1_u64 << 53) as f64).ceil() as u64;
        let (high, low) = ((limit >> 32) as u32, limit as u32);
        let mut rest = row;
        while !rest.is_empty() {
            let pairs = ((N - self.used) / 2).min(rest.len());
            if pairs == 0 {
                let drawn = self.next_u64() & ((1 << 53) - 1);
                rest[0] = if drawn < limit { scale } else { 0.0 };
                rest = &mut rest[1..];
                continue;
            }
            let (now, later) = rest.split_at_mut(pairs);
            let words = &self.state[self.used..self.used + 2 * pairs];
            let mut undecided = false;
            for (slot, pair) in now.iter_mut().zip(words.chunks_exact(2)) {
                let first = tempered(pair[0]) & 0x001f_ffff;
                *slot = if first < high { scale } else { 0.0 };
                undecided |= first == high;
            }
            if undecided {
                for (slot, pair) in now.iter_mut().zip(words.chunks_exact(2)) {
                    if tempered(pair[0]) & 0x001f_ffff == high {
                        *slot = if tempered(pair[1]) < low { scale } else { 0.0 };
                    }
                }
            }
            self.used += 2 * pairs;
            rest = later;
        }
    }

    /// Generates the next `N` words.
    fn turn(&mut self) {
        let s = &mut self.state;
        for i in 0..N - M {
            s[i] = s[i + M] ^ twisted(s[i], s[i + 1]);
        }
        for i in N - M..N - 1 {
            s[i] = s[i + M - N] ^ twisted(s[i], s[i + 1]);
        }
        s[N - 1] = s[M - 1] ^ twisted(s[N - 1], s[0]);
        self.used = 0;
    }
}

/// Applies the Box-Muller transform to 16 uniform numbers, paired as in `normal_fill_16`.
fn to_normal(uniform: &mut [f32]) {
    let (lower, upper) = uniform.split_at_mut(8);
    for (first, second) in lower.iter_mut().zip(upper) {
        let (radius, angle) = ((-2.0 * (1.0 - *first).ln()).sqrt(), std::f32::consts::TAU * *second);
        (*first, *second) = (radius * angle.cos(), radius * angle.sin());
    }
}

/// Returns the number of words that [`Stream::normals`] takes.
pub fn words_of_normal(numbers: usize) -> usize {
    match numbers {
        0..16 => 4 * numbers.div_ceil(2),
        _ if numbers.is_multiple_of(16) => numbers,
        _ => numbers + 16,
    }
}

/// Creates an fp32 tensor of zeros on the CPU and lets `fill` write to it.
pub fn filled(shape: &[i64], fill: impl FnOnce(&mut [f32])) -> Tensor {
    let tensor = Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    // SAFETY: a new contiguous tensor of fp32 whose memory nothing else knows.
    let numbers = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<f32>(), tensor.numel()) };
    fill(numbers);
    tensor
}

fn twisted(upper: u32, lower: u32) -> u32 {
    let mixed = (upper & 0x8000_0000) | (lower & 0x7fff_ffff);
    (mixed >> 1) ^ (0_u32.wrapping_sub(lower & 1) & 0x9908_b0df)
}

fn tempered(word: u32) -> u32 {
    let mut y = word;
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c_5680;
    y ^= (y << 15) & 0xefc6_0000;
    y ^ (y >> 18)
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Stream({:08x}…, {} of {N} used)", self.state[0], self.used)
    }
}

/// For checkpoints: the words used up, and the state in hexadecimal.
impl From<Stream> for String {
    fn from(stream: Stream) -> Self {
        let words: String = stream.state.iter().map(|word| format!("{word:08x}")).collect();
        format!("{}:{words}", stream.used)
    }
}

impl TryFrom<String> for Stream {
    type Error = Fault;

    fn try_from(text: String) -> Result<Self, Fault> {
        let read = || {
            let (used, words) = text.split_once(':')?;
            let word = |i: usize| u32::from_str_radix(words.get(8 * i..8 * i + 8)?, 16).ok();
            let mut state = [0; N];
            for (i, slot) in state.iter_mut().enumerate() {
                *slot = word(i)?;
            }
            let used = used.parse().ok().filter(|used| *used <= N)?;
            Some(Self { state, used })
        };
        read().ok_or_else(|| fault("the state of a random generator cannot be read"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(stream: &mut Stream, n: usize, p: f64) -> Vec<f32> {
        let mut row = vec![f32::NAN; n];
        stream.fill_mask(&mut row, p);
        row
    }

    #[test]
    fn the_words_are_those_of_an_independent_generator() {
        let (mut stream, mut other) = (Stream::seeded((7 << 32) + 12345), rand_mt::Mt::new(12345));
        assert!((0..2000).all(|_| stream.next_u32() == other.next_u32()));
        for words in [0, 1, 623, 624, 625, 5000] {
            stream.pass_over(words);
            (0..words).for_each(|_| {
                other.next_u32();
            });
            assert_eq!(stream.next_u32(), other.next_u32(), "after {words}");
        }
    }

    // Printed by torch 2.11: `torch.manual_seed(3); torch.empty(7).uniform_(); torch.randn(numbers)[at]`.
    #[test]
    fn normal_numbers_are_those_of_torch() {
        let expected = [
            (16, 0, -1.596_708),
            (16, 7, 0.316_977),
            (16, 15, -0.104_524),
            (25, 8, 0.416_331),
            (25, 9, -0.476_031),
            (25, 24, 0.819_459),
            (3, 2, -0.547_530),
            (4, 0, 0.442_740),
            (4, 3, 0.419_633),
        ];
        for (numbers, at, value) in expected {
            let mut stream = Stream::seeded(3);
            stream.pass_over(7);
            let mut other = stream.clone();
            let drawn = stream.normals(numbers);
            assert_eq!(drawn.len(), numbers);
            assert!((drawn[at] - value).abs() < 2e-6, "{at} of {numbers}: {}", drawn[at]);
            other.pass_over(words_of_normal(numbers));
            assert!(stream == other, "{numbers}");
        }
    }

    // Printed by torch 2.11: `torch.manual_seed(5); torch.empty(33).uniform_()`, then
    // `torch.nonzero(torch.empty(700).bernoulli_(0.95) == 0)`.
    #[test]
    fn a_mask_is_the_one_that_torch_draws() {
        let mut stream = Stream::seeded(5);
        stream.pass_over(33);
        let mask = mask(&mut stream, 700, 1.0 - 0.95);
        let zeros: Vec<usize> = (0..700).filter(|&i| mask[i] == 0.0).collect();
        let expected = [
            8, 19, 47, 60, 63, 86, 90, 95, 113, 185, 215, 231, 261, 264, 267, 287, 304, 318, 365, 391, 404,
            409, 421, 429, 447, 462, 492, 545, 558, 559, 568, 571, 573, 609, 610, 618, 629, 630, 643, 644,
            654, 660, 661, 667,
        ];
        assert_eq!(zeros, expected);
        assert!(mask.iter().all(|&x| x == 0.0 || x == 1.052_631_6));
    }

    #[test]
    fn a_mask_takes_two_words_a_number_wherever_it_begins() {
        for (p, before) in [(0.1, 0), (0.5, 1), (0.9, 623)] {
            let mut whole = Stream::seeded(3);
            whole.pass_over(before);
            let mut other = whole.clone();
            let expected: Vec<f32> = (0..3000)
                .map(|_| {
                    let u = (other.next_u64() & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64;
                    if u < 1.0 - p { 1.0 / (1.0 - p) as f32 } else { 0.0 }
                })
                .collect();
            let mut parts = whole.clone();
            assert_eq!(mask(&mut whole, 3000, p), expected);
            let joined = [7, 305, 1, 2687].map(|n| mask(&mut parts, n, p)).concat();
            assert_eq!(joined, expected);
            assert!(whole == other && whole == parts);
        }
    }

    #[test]
    fn a_stream_goes_on_from_its_text() {
        let mut stream = Stream::seeded(1);
        stream.pass_over(700);
        let mut read: Stream = serde_json::from_str(&serde_json::to_string(&stream).unwrap()).unwrap();
        assert!((0..700).all(|_| read.next_u32() == stream.next_u32()));
        for broken in ["", "625:00", "0:xy"] {
            assert!(Stream::try_from(broken.to_owned()).is_err());
        }
    }
}
