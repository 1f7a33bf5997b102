//! Context of one forward pass: training or not, and its noise.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::Packed;
use super::layout::{Place, Places};
use crate::adapters::Route;
use crate::torch::draw::{generator_state, mix, restore_generator, seed_torch};
use crate::torch::stream::{Stream, filled};
use crate::torch::{dims2, joined};

/// The noise of k runs trained together: one stream per run, continued from pass to pass.
#[derive(Debug, Clone)]
pub struct Noise(Rc<RefCell<Draws>>);

#[derive(Debug, Clone)]
struct Draws {
    streams: Vec<Stream>,
    /// The sequences around those of each run in the next pass.
    around: Vec<Around>,
    /// What the passes so far drew for.
    sites: Sites,
}

/// Sequences of a batch that other processes compute, for which a pass draws all the same: masks are those of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Around {
    /// Number of sequences before a run's own.
    pub before: usize,
    /// Number of sequences after them.
    pub after: usize,
    /// Tokens of the longest sequence of all.
    pub longest: usize,
}

/// Numbers that a pass draws for one sequence: for each place of a token, for each pair of places, and for the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sites {
    tokens: usize,
    pairs: usize,
    sequences: usize,
}

impl Sites {
    /// Returns the words that a pass draws for so many sequences, the longest of so many tokens.
    fn words(self, sequences: usize, longest: usize) -> usize {
        2 * sequences * (longest * (self.tokens + longest * self.pairs) + self.sequences)
    }
}

impl Noise {
    /// Creates noise that continues these streams.
    pub fn new(streams: Vec<Stream>) -> Self {
        let around = vec![Around::default(); streams.len()];
        Self(Rc::new(RefCell::new(Draws { streams, around, sites: Sites::default() })))
    }

    /// Returns the current state of the streams.
    pub fn streams(&self) -> Vec<Stream> {
        self.0.borrow().streams.clone()
    }

    /// Continues these streams from now on.
    pub fn restore(&self, streams: Vec<Stream>) {
        self.0.borrow_mut().streams = streams;
    }

    /// Returns what all passes so far drew for, on a CPU.
    pub fn sites(&self) -> Sites {
        self.0.borrow().sites
    }

    /// Skips `words` words of the stream of run `run`.
    pub fn pass_over(&self, run: usize, words: usize) {
        self.0.borrow_mut().streams.iter_mut().skip(run).take(1).for_each(|stream| stream.pass_over(words));
    }

    /// Skips what a pass on this device with these sites draws for a run whose sequences are all [`Around`] it.
    pub fn skip_pass(&self, run: usize, around: Around, sites: Sites, device: Device) {
        let words = match device {
            Device::Cpu => sites.words(around.before + around.after, around.longest),
            // A seed.
            _ => 2,
        };
        self.pass_over(run, words);
    }

    /// Sets which sequences are around those of each run from the next pass on.
    pub fn surround(&self, around: Vec<Around>) {
        self.0.borrow_mut().around = around;
    }

    /// Returns noise that draws the same without effect on this one.
    fn again(&self) -> Self {
        Self(Rc::new(RefCell::new(self.0.borrow().clone())))
    }
}

/// The generator of a GPU in a pass, which the runs share: each goes on where it stopped, as if it drew alone. Where layers lie on
/// several GPUs, the generator of the next goes on from there.
#[derive(Debug)]
struct Generator {
    /// The GPU that drew last.
    device: Device,
    runs: Vec<Start>,
    /// The run whose state the generator has.
    current: Option<usize>,
}

/// Where a run's draws begin or go on.
#[derive(Debug)]
enum Start {
    Seed(u64),
    State(Tensor),
}

impl Generator {
    /// Draws a seed for each run that has rows from its stream: without, it would not draw alone either.
    fn new(noise: &Noise, device: Device, has_rows: impl Fn(usize) -> bool) -> Self {
        let Draws { streams, around, .. } = &mut *noise.0.borrow_mut();
        let start = |(run, (stream, around)): (usize, (&mut Stream, &Around))| {
            let seed = if has_rows(run) { stream.next_u64() } else { 0 };
            // Kernels cannot draw a part of a batch: each part has masks of its own.
            Start::Seed(if around.before > 0 { mix(&[seed, around.before as u64]) } else { seed })
        };
        let runs = streams.iter_mut().zip(around.iter()).enumerate().map(start).collect();
        Self { device, runs, current: None }
    }

    /// Lets the next draws, on `device`, be those of run `run`.
    fn enter(&mut self, run: usize, device: Device) {
        if self.current == Some(run) && self.device == device {
            return;
        }
        if let Some(before) = self.current.replace(run) {
            self.runs[before] = Start::State(generator_state(self.device));
        }
        self.device = device;
        match &self.runs[run] {
            Start::Seed(seed) => seed_torch(*seed),
            Start::State(state) => restore_generator(self.device, state),
        }
    }

    /// Returns a generator that draws the same again.
    fn again(&self) -> Self {
        let state = |(run, start): (usize, &Start)| match start {
            _ if self.current == Some(run) => Start::State(generator_state(self.device)),
            Start::Seed(seed) => Start::Seed(*seed),
            Start::State(state) => Start::State(state.shallow_clone()),
        };
        Self { device: self.device, runs: self.runs.iter().enumerate().map(state).collect(), current: None }
    }
}

/// One forward pass.
///
/// On the CPU its masks equal those of a PyTorch program that pads a batch to its longest sequence and draws
/// from the same stream, numbers for padding included. On a GPU the stream seeds libtorch's generator for each pass.
#[derive(Debug)]
pub struct Pass {
    /// `None` when not training.
    noise: Option<Noise>,
    /// On a GPU, what draws from there.
    generator: Option<Rc<RefCell<Generator>>>,
    /// Places of the tokens of `[m, d]` in the padded batch, and the rows that masks are drawn for on a GPU; `None` for
    /// tensors without padding.
    tokens: Option<(Places, Arc<Vec<i64>>)>,
    /// The run of each row.
    route: Route,
}

impl Pass {
    /// Creates a pass without dropout over rows of one run.
    pub fn evaluation() -> Self {
        Self { noise: None, generator: None, tokens: None, route: Route::one_run() }
    }

    /// Creates a training pass over the tokens of `batch`. On a GPU, it takes a seed from each run's stream.
    pub fn training(noise: &Noise, batch: &Packed) -> Self {
        let has_rows = |run: usize| batch.places.get(run).is_some_and(|places| !places.is_empty());
        Self::seeded(noise, batch.ids.device(), has_rows).over(batch)
    }

    /// Creates a training pass over a batch that is still to be placed on the device, with rows of some runs; a single run can draw at
    /// once.
    pub fn seeded(noise: &Noise, device: Device, has_rows: impl Fn(usize) -> bool) -> Self {
        let generator = device.is_cuda().then(|| Generator::new(noise, device, has_rows));
        let pass = Self {
            noise: Some(noise.clone()),
            generator: generator.map(|g| Rc::new(RefCell::new(g))),
            tokens: None,
            route: Route::one_run(),
        };
        pass.enter(0, device);
        pass
    }

    /// Returns the same pass for the tokens of `batch`.
    pub fn over(&self, batch: &Packed) -> Self {
        let tokens = Some((Arc::clone(&batch.places), Arc::clone(&batch.drawn)));
        Self { tokens, ..self.along(batch.route.clone()) }
    }

    /// Returns the same pass for tensors with one row per sequence of `batch`, in the order in which these were given.
    pub fn per_sequence(&self, batch: &Packed) -> Self {
        self.along(batch.of_sequences())
    }

    /// Returns the same pass for rows of these runs, without padding.
    pub fn along(&self, route: Route) -> Self {
        Self { noise: self.noise.clone(), generator: self.generator.clone(), tokens: None, route }
    }

    /// Returns the run of each row.
    pub fn route(&self) -> &Route {
        &self.route
    }

    /// Returns the lengths of the sequences that the rows `x` `[m, d]` are; empty if they are something else, or no gradients are wanted.
    pub fn sequences(&self, x: &Tensor) -> Vec<i64> {
        let Some((places, _)) = self.tokens.as_ref().filter(|_| self.noise.is_some()) else {
            return Vec::new();
        };
        let mut all: Vec<(usize, i64)> =
            places.iter().flatten().map(|place| (place.start, place.length as i64)).collect();
        all.sort_unstable();
        let lengths: Vec<i64> = all.into_iter().map(|(_, length)| length).collect();
        if lengths.iter().sum::<i64>() == dims2(x)[0] { lengths } else { Vec::new() }
    }

    /// Returns a pass that draws, once, what this one draws next, for recomputation.
    pub fn repetition(&self) -> Self {
        let noise = self.noise.as_ref().map(Noise::again);
        let generator =
            self.generator.as_ref().map(|generator| Rc::new(RefCell::new(generator.borrow().again())));
        Self { noise, generator, tokens: self.tokens.clone(), route: self.route.clone() }
    }

    /// On a GPU, lets an operator that draws internally on `device` draw for run `run`.
    pub fn enter(&self, run: usize, device: Device) {
        if let Some(generator) = &self.generator {
            generator.borrow_mut().enter(run, device);
        }
    }

    /// Returns true if dropout with probability `p` has an effect in this pass.
    pub fn drops(&self, p: f64) -> bool {
        p > 0.0 && self.noise.is_some()
    }

    /// Applies dropout with probability `p`; run j's mask comes from run j's stream.
    ///
    /// # Shapes
    /// `[m, d]` to the same: the tokens of a batch, or one row for each sequence ([`Pass::per_sequence`]).
    pub fn dropout(&self, x: &Tensor, p: f64) -> Tensor {
        let Some(noise) = self.noise.as_ref().filter(|_| p > 0.0) else { return x.shallow_clone() };
        let [m, width] = dims2(x);
        let blocks = self.route.blocks(m).unwrap_or_default();
        if x.device().is_cuda() {
            self.enter(0, x.device());
            let alone = noise.0.borrow().streams.len() == 1;
            return if alone { x.dropout(p, true) } else { self.dropout_of_each(x, p, &blocks) };
        }
        let Draws { streams, around, sites } = &mut *noise.0.borrow_mut();
        let width = width as usize;
        match &self.tokens {
            Some(_) => sites.tokens += width,
            None => sites.sequences += width,
        }
        let mask = filled(&x.size(), |mut mask| {
            for (run, (stream, around)) in streams.iter_mut().zip(around.iter()).enumerate() {
                match (&self.tokens, &self.route) {
                    (Some((places, _)), _) => tokens_mask(stream, (&places[run], *around), mask, width, p),
                    (None, Route::One(one)) if *one != run as i64 => {}
                    (None, Route::One(_)) => sequences_mask(stream, *around, mask, width, p),
                    (None, _) => {
                        let (of_run, rest) = mask.split_at_mut(blocks[run] as usize * width);
                        sequences_mask(stream, *around, of_run, width, p);
                        mask = rest;
                    }
                }
            }
        });
        x * mask.to_kind(x.kind())
    }

    /// Draws masks of attention probabilities on the CPU, for each stretch of `batch` `[s, h, t, t]` in fp32; `None` if
    /// dropout with probability `p` has no effect.
    pub fn attention_masks(&self, batch: &Packed, heads: i64, p: f64) -> Option<Vec<Tensor>> {
        let noise = self.noise.as_ref().filter(|_| p > 0.0)?;
        let stretches = &batch.stretches;
        let shapes: Vec<[i64; 4]> = stretches.iter().map(|s| [s.count, heads, s.length, s.length]).collect();
        let sizes: Vec<i64> = shapes.iter().map(|shape| shape.iter().product()).collect();
        let Draws { streams, around, sites } = &mut *noise.0.borrow_mut();
        sites.pairs += heads as usize;
        let all = filled(&[sizes.iter().sum()], |mask| {
            for ((stream, places), around) in streams.iter_mut().zip(batch.places.iter()).zip(around.iter()) {
                probabilities_mask(stream, (places, *around), mask, heads as usize, p);
            }
        });
        let parts = all.split_with_sizes(&sizes, 0);
        Some(parts.iter().zip(&shapes).map(|(part, shape)| part.view(*shape)).collect())
    }

    /// Applies dropout on a GPU, run by run.
    fn dropout_of_each(&self, x: &Tensor, p: f64, blocks: &[i64]) -> Tensor {
        let dropped = |(run, block): (usize, &Tensor)| {
            self.enter(run, x.device());
            let Some((_, drawn)) = &self.tokens else { return block.dropout(p, true) };
            // A mask depends on its size, which must be that of the run alone.
            let [own, d] = dims2(block);
            let mask = Tensor::ones([drawn[run], d], (x.kind(), x.device())).dropout(p, true);
            block * mask.narrow(0, 0, own)
        };
        let first = if let Route::One(run) = self.route { usize::try_from(run).unwrap_or(0) } else { 0 };
        joined((first..).zip(&x.split_with_sizes(blocks, 0)).map(dropped).collect())
    }
}

/// Fills one run's part of the mask of all tokens, `width` numbers each, from the padded batch's `[s, longest, width]`.
fn tokens_mask(
    stream: &mut Stream,
    (places, around): (&[Place], Around),
    mask: &mut [f32],
    width: usize,
    p: f64,
) {
    let longest = longest(places).max(around.longest);
    stream.pass_over(2 * around.before * longest * width);
    for place in places {
        let first = place.start * width;
        stream.fill_mask(&mut mask[first..first + place.length * width], p);
        stream.pass_over(2 * (longest - place.length) * width);
    }
    stream.pass_over(2 * around.after * longest * width);
}

/// Fills one run's mask of sequences, from the batch's `[s, width]`.
fn sequences_mask(stream: &mut Stream, around: Around, mask: &mut [f32], width: usize, p: f64) {
    stream.pass_over(2 * around.before * width);
    stream.fill_mask(mask, p);
    stream.pass_over(2 * around.after * width);
}

/// Fills one run's masks of attention probabilities from the padded batch's `[s, h, longest, longest]`.
fn probabilities_mask(
    stream: &mut Stream,
    (places, around): (&[Place], Around),
    mask: &mut [f32],
    heads: usize,
    p: f64,
) {
    let longest = longest(places).max(around.longest);
    stream.pass_over(2 * around.before * heads * longest * longest);
    for place in places {
        let t = place.length;
        for head in 0..heads {
            let first = (place.squares * heads) + head * t * t;
            for row in mask[first..first + t * t].chunks_exact_mut(t) {
                stream.fill_mask(row, p);
                stream.pass_over(2 * (longest - t));
            }
            stream.pass_over(2 * (longest - t) * longest);
        }
    }
    stream.pass_over(2 * around.after * heads * longest * longest);
}

fn longest(places: &[Place]) -> usize {
    places.iter().map(|place| place.length).max().unwrap_or(0)
}
