//! Context of one forward pass: training or not, and its noise.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use tch::Tensor;

use super::Packed;
use super::packed::Place;
use crate::torch::dims3;
use crate::torch::draw::seed_torch;
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

/// One forward pass.
///
/// On the CPU its masks equal those of a PyTorch program that pads a batch to its longest sequence and draws
/// from the same stream, numbers for padding included. On a GPU the stream seeds libtorch for each mask.
#[derive(Debug)]
pub struct Pass {
    /// `None` when not training.
    noise: Option<Noise>,
    /// Places of the tokens of `[k, n, ..]` in the padded batch; `None` for tensors without padding.
    places: Option<Arc<Vec<Vec<Place>>>>,
}

impl Pass {
    /// Creates a pass without dropout.
    pub fn evaluation() -> Self {
        Self { noise: None, places: None }
    }

    /// Creates a training pass over the tokens of `batch`.
    pub fn training(noise: &Noise, batch: &Packed) -> Self {
        Self { noise: Some(noise.clone()), places: Some(Arc::clone(&batch.places)) }
    }

    /// Returns the same pass for tensors with one row per sequence, in the order in which these were given.
    pub fn per_sequence(&self) -> Self {
        Self { noise: self.noise.clone(), places: None }
    }

    /// Returns a pass that draws, once, what this one draws next, for recomputation.
    pub fn repetition(&self) -> Self {
        let noise = self.noise.as_ref().map(|noise| Noise::new(noise.streams()));
        Self { noise, places: self.places.clone() }
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
            let dropped = |run| {
                self.seed(run);
                if runs == 1 {
                    return x.dropout(p, true);
                }
                // A mask depends on its size, which must be that of the run alone, without its filling.
                let x = x.narrow(0, run as i64, 1);
                let Some(places) = &self.places else { return x.dropout(p, true) };
                let own: i64 = places[run].iter().map(|place| place.length as i64).sum();
                let [_, n, _] = dims3(&x);
                Tensor::cat(&[x.narrow(1, 0, own).dropout(p, true), x.narrow(1, own, n - own)], 1)
            };
            let mut dropped: Vec<Tensor> = (0..runs).map(dropped).collect();
            return if runs == 1 { dropped.remove(0) } else { Tensor::cat(&dropped, 0) };
        }
        let mut streams = noise.0.borrow_mut();
        let per_run = x.numel() / streams.len().max(1);
        let tokens = x.size().get(1).map_or(1, |&n| n as usize);
        let mask = filled(&x.size(), |mask| {
            for (run, stream) in streams.iter_mut().enumerate() {
                let mask = &mut mask[run * per_run..(run + 1) * per_run];
                match &self.places {
                    Some(places) => tokens_mask(stream, &places[run], mask, per_run / tokens, p),
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

    /// Seeds libtorch from the stream of run `run`, for an operator that draws internally.
    pub fn seed(&self, run: usize) {
        let Some(noise) = &self.noise else { return };
        if let Some(stream) = noise.0.borrow_mut().get_mut(run) {
            seed_torch(stream.next_u64());
        }
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
