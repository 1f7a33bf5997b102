//! Context of one forward pass: training or not, and its noise.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::Packed;
use super::layout::{Place, Places};
use crate::torch::dims3;
use crate::torch::draw::{generator_state, restore_generator, seed_torch};
use crate::torch::stream::{Stream, filled};

/// The noise of k runs trained together: one stream per run, continued from pass to pass.
#[derive(Debug, Clone)]
pub struct Noise(Rc<RefCell<Vec<Stream>>>);

impl Noise {
    /// Creates noise that continues these streams.
    pub fn new(streams: Vec<Stream>) -> Self {
        Self(Rc::new(RefCell::new(streams)))
    }

    /// Returns the current state of the streams.
    pub fn streams(&self) -> Vec<Stream> {
        self.0.borrow().clone()
    }

    /// Skips `words` words of the stream of run `run`.
    pub fn pass_over(&self, run: usize, words: usize) {
        self.0.borrow_mut().iter_mut().skip(run).take(1).for_each(|stream| stream.pass_over(words));
    }
}

/// The generator of a GPU in a pass, which the runs share: each goes on where it stopped, as if it drew alone.
#[derive(Debug)]
struct Generator {
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
    /// Draws a seed for each run from its stream.
    fn new(noise: &Noise, device: Device) -> Self {
        let runs = noise.0.borrow_mut().iter_mut().map(|stream| Start::Seed(stream.next_u64())).collect();
        Self { device, runs, current: None }
    }

    /// Lets the next draws be those of run `run`.
    fn enter(&mut self, run: usize) {
        if self.current == Some(run) {
            return;
        }
        if let Some(before) = self.current.replace(run) {
            self.runs[before] = Start::State(generator_state(self.device));
        }
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
    /// Places of the tokens of `[k, n, ..]` in the padded batch, and the rows that masks are drawn for on a GPU; `None` for
    /// tensors without padding.
    tokens: Option<(Places, Arc<Vec<i64>>)>,
}

impl Pass {
    /// Creates a pass without dropout.
    pub fn evaluation() -> Self {
        Self { noise: None, generator: None, tokens: None }
    }

    /// Creates a training pass over the tokens of `batch`. On a GPU, it takes a seed from each run's stream.
    pub fn training(noise: &Noise, batch: &Packed) -> Self {
        Self::seeded(noise, batch.ids.device()).over(batch)
    }

    /// Creates a training pass over a batch that is still to be placed on the device; a single run can draw at once.
    pub fn seeded(noise: &Noise, device: Device) -> Self {
        let generator = device.is_cuda().then(|| Generator::new(noise, device));
        let pass = Self {
            noise: Some(noise.clone()),
            generator: generator.map(|g| Rc::new(RefCell::new(g))),
            tokens: None,
        };
        pass.enter(0);
        pass
    }

    /// Returns the same pass for the tokens of `batch`.
    pub fn over(&self, batch: &Packed) -> Self {
        let tokens = Some((Arc::clone(&batch.places), Arc::clone(&batch.drawn)));
        Self { tokens, ..self.per_sequence() }
    }

    /// Returns the same pass for tensors with one row per sequence, in the order in which these were given.
    pub fn per_sequence(&self) -> Self {
        Self { noise: self.noise.clone(), generator: self.generator.clone(), tokens: None }
    }

    /// Returns a pass that draws, once, what this one draws next, for recomputation.
    pub fn repetition(&self) -> Self {
        let noise = self.noise.as_ref().map(|noise| Noise::new(noise.streams()));
        let generator =
            self.generator.as_ref().map(|generator| Rc::new(RefCell::new(generator.borrow().again())));
        Self { noise, generator, tokens: self.tokens.clone() }
    }

    /// On a GPU, lets an operator that draws internally draw for run `run`.
    pub fn enter(&self, run: usize) {
        if let Some(generator) = &self.generator {
            generator.borrow_mut().enter(run);
        }
    }

    /// Returns true if dropout with probability `p` has an effect in this pass.
    pub fn drops(&self, p: f64) -> bool {
        p > 0.0 && self.noise.is_some()
    }

    /// Applies dropout with probability `p`; run j's mask comes from run j's stream.
    ///
    /// # Shapes
    /// `[k, ..]` to the same: `[k, n, ..]` tokens, or one row for each sequence ([`Pass::per_sequence`]).
    pub fn dropout(&self, x: &Tensor, p: f64) -> Tensor {
        let Some(noise) = self.noise.as_ref().filter(|_| p > 0.0) else { return x.shallow_clone() };
        if x.device().is_cuda() {
            let runs = noise.0.borrow().len();
            self.enter(0);
            return if runs == 1 { x.dropout(p, true) } else { self.dropout_of_each(x, p, runs) };
        }
        let mut streams = noise.0.borrow_mut();
        let per_run = x.numel() / streams.len().max(1);
        let tokens = x.size().get(1).map_or(1, |&n| n as usize);
        let mask = filled(&x.size(), |mask| {
            for (run, stream) in streams.iter_mut().enumerate() {
                let mask = &mut mask[run * per_run..(run + 1) * per_run];
                match &self.tokens {
                    Some((places, _)) => tokens_mask(stream, &places[run], mask, per_run / tokens, p),
                    None => stream.fill_mask(mask, p),
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
        let all = filled(&[sizes.iter().sum()], |mask| {
            for (stream, places) in noise.0.borrow_mut().iter_mut().zip(batch.places.iter()) {
                probabilities_mask(stream, places, mask, heads as usize, p);
            }
        });
        let parts = all.split_with_sizes(&sizes, 0);
        Some(parts.iter().zip(&shapes).map(|(part, shape)| part.view(*shape)).collect())
    }

    /// Applies dropout on a GPU, run by run.
    fn dropout_of_each(&self, x: &Tensor, p: f64, runs: usize) -> Tensor {
        let dropped = |run| {
            self.enter(run);
            let x = x.narrow(0, run as i64, 1);
            let Some((places, drawn)) = &self.tokens else { return x.dropout(p, true) };
            // A mask depends on its size, which must be that of the run alone.
            let own: i64 = places[run].iter().map(|place| place.length as i64).sum();
            let [_, n, d] = dims3(&x);
            let mask = Tensor::ones([1, drawn[run], d], (x.kind(), x.device())).dropout(p, true);
            Tensor::cat(&[x.narrow(1, 0, own) * mask.narrow(1, 0, own), x.narrow(1, own, n - own)], 1)
        };
        Tensor::cat(&(0..runs).map(dropped).collect::<Vec<_>>(), 0)
    }
}

/// Fills the mask of one run's tokens, `width` numbers each, from the padded batch's `[s, longest, width]`.
fn tokens_mask(stream: &mut Stream, places: &[Place], mask: &mut [f32], width: usize, p: f64) {
    let longest = longest(places);
    for place in places {
        let first = place.start * width;
        stream.fill_mask(&mut mask[first..first + place.length * width], p);
        stream.pass_over(2 * (longest - place.length) * width);
    }
}

/// Fills one run's masks of attention probabilities from the padded batch's `[s, h, longest, longest]`.
fn probabilities_mask(stream: &mut Stream, places: &[Place], mask: &mut [f32], heads: usize, p: f64) {
    let longest = longest(places);
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
}

fn longest(places: &[Place]) -> usize {
    places.iter().map(|place| place.length).max().unwrap_or(0)
}
