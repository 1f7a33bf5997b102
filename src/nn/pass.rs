//! Context of one forward pass: training or not, and its noise.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Tensor};

use super::Packed;
use super::layout::{Place, Places};
use crate::adapters::Route;
use crate::torch::draw::{generator_state, restore_generator, seed_torch};
use crate::torch::stream::{Stream, filled};
use crate::torch::{dims2, joined};

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
    /// Draws a seed for each run that has rows from its stream: without, it would not draw alone either.
    fn new(noise: &Noise, device: Device, has_rows: impl Fn(usize) -> bool) -> Self {
        let mut streams = noise.0.borrow_mut();
        let start = |(run, stream): (usize, &mut Stream)| {
            Start::Seed(if has_rows(run) { stream.next_u64() } else { 0 })
        };
        Self { device, runs: streams.iter_mut().enumerate().map(start).collect(), current: None }
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
        pass.enter(0);
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

    /// Returns a pass that draws, once, what this one draws next, for recomputation.
    pub fn repetition(&self) -> Self {
        let noise = self.noise.as_ref().map(|noise| Noise::new(noise.streams()));
        let generator =
            self.generator.as_ref().map(|generator| Rc::new(RefCell::new(generator.borrow().again())));
        Self { noise, generator, tokens: self.tokens.clone(), route: self.route.clone() }
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
    /// `[m, d]` to the same: the tokens of a batch, or one row for each sequence ([`Pass::per_sequence`]).
    pub fn dropout(&self, x: &Tensor, p: f64) -> Tensor {
        let Some(noise) = self.noise.as_ref().filter(|_| p > 0.0) else { return x.shallow_clone() };
        let [m, width] = dims2(x);
        let blocks = self.route.blocks(m).unwrap_or_default();
        if x.device().is_cuda() {
            self.enter(0);
            let alone = noise.0.borrow().len() == 1;
            return if alone { x.dropout(p, true) } else { self.dropout_of_each(x, p, &blocks) };
        }
        let mask = filled(&x.size(), |mut mask| {
            for (run, stream) in noise.0.borrow_mut().iter_mut().enumerate() {
                match (&self.tokens, &self.route) {
                    (Some((places, _)), _) => tokens_mask(stream, &places[run], mask, width as usize, p),
                    (None, Route::One(one)) if *one != run as i64 => {}
                    (None, Route::One(_)) => stream.fill_mask(mask, p),
                    (None, _) => {
                        let (of_run, rest) = mask.split_at_mut((blocks[run] * width) as usize);
                        stream.fill_mask(of_run, p);
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
        let all = filled(&[sizes.iter().sum()], |mask| {
            for (stream, places) in noise.0.borrow_mut().iter_mut().zip(batch.places.iter()) {
                probabilities_mask(stream, places, mask, heads as usize, p);
            }
        });
        let parts = all.split_with_sizes(&sizes, 0);
        Some(parts.iter().zip(&shapes).map(|(part, shape)| part.view(*shape)).collect())
    }

    /// Applies dropout on a GPU, run by run.
    fn dropout_of_each(&self, x: &Tensor, p: f64, blocks: &[i64]) -> Tensor {
        let dropped = |(run, block): (usize, &Tensor)| {
            self.enter(run);
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
