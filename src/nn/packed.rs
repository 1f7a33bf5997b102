//! A packed batch: the tokens of all sequences back to back, and where each sequence begins.

use std::cell::{OnceCell, RefCell};
use std::ops::Deref;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::layout::{Fill, PackedLayout, PaddedGroup, Place, Positions, Sequence};
use crate::adapters::Route;
use crate::torch::coming::sent;
use crate::torch::{Copies, dims3};

/// A batch of m tokens: those of all sequences of the first run, then those of the next. A single run may be filled up with
/// sequences of zeros at its end.
#[derive(Debug)]
pub struct Packed {
    /// Token ids, int64 `[m]`.
    pub ids: Tensor,
    /// Position of each token in its sequence by the family's rule, int64 `[m]`.
    pub positions: Tensor,
    /// Token types, int64 `[m]`.
    pub types: Tensor,
    /// Index of each sequence's first token, in the order in which the sequences were given, int64 `[s]`.
    pub first: Tensor,
    /// The run of each token.
    pub route: Route,
    /// Start of each sequence from left to right, and the end of the last: int32 `[s + 1]`, on the device.
    pub bounds: Tensor,
    /// Of all groups of the layout, int64: places of tokens and lengths of sequences.
    padding: [Tensor; 2],
    /// The runs padded, made when first asked for.
    padded: OnceCell<Vec<Vec<Padded>>>,
    layout: Arc<PackedLayout>,
    /// The layout's table on the device.
    table: Tensor,
    copies: Copies<Self>,
}

impl Deref for Packed {
    type Target = PackedLayout;

    fn deref(&self) -> &PackedLayout {
        &self.layout
    }
}

/// Sequences of one run as rows of equal length, for kernels that take no boundaries.
#[derive(Debug)]
pub struct Padded {
    /// First of their tokens in the run.
    pub start: i64,
    /// n: number of their tokens.
    pub tokens: i64,
    /// Place of each token in the flat `[s·t]`: int64 `[n]`.
    pub to: Tensor,
    /// True at the places of tokens: `[s, 1, 1, t]`.
    pub filled: Tensor,
    /// t: tokens of the longest sequence, rounded up to a multiple of 8, which masks of the fused kernels must have.
    pub longest: i64,
    /// Masks added to the scores, by window.
    added: RefCell<Vec<(Option<i64>, Tensor)>>,
}

impl Padded {
    fn new(group: PaddedGroup, to: Tensor, lengths: &Tensor) -> Self {
        let places = Tensor::arange(group.longest, (Kind::Int64, to.device()));
        let filled = places.less_tensor(&lengths.view([-1, 1, 1, 1]));
        let PaddedGroup { start, tokens, longest, .. } = group;
        Self { start, tokens, to, filled, longest, added: RefCell::default() }
    }

    /// Returns what is added to scores so that only the places count that `seen` makes true, fp32 `[s, 1, t, t]`; made once for
    /// each window.
    pub fn added(&self, window: Option<i64>, seen: impl FnOnce() -> Tensor) -> Tensor {
        if let Some((_, mask)) = self.added.borrow().iter().find(|(known, _)| *known == window) {
            return mask.shallow_clone();
        }
        let seen = seen();
        let mask = Tensor::zeros(seen.size(), (Kind::Float, seen.device()))
            .masked_fill_(&seen.logical_not(), f64::NEG_INFINITY)
            .expand([self.filled.numel() as i64 / self.longest, 1, self.longest, self.longest], false);
        self.added.borrow_mut().push((window, mask.shallow_clone()));
        mask
    }

    /// Moves tokens `[n, h, d]` to their places in `[s, t, h, d]`, zero elsewhere.
    pub fn pad(&self, x: &Tensor) -> Tensor {
        let [_n, h, d] = dims3(x);
        let places = self.filled.numel() as i64;
        let padded = Tensor::zeros([places, h, d], (x.kind(), x.device())).index_copy(0, &self.to, x);
        padded.view([-1, self.longest, h, d])
    }

    /// Takes the tokens `[n, h, d]` from `[s, t, h, d]`.
    pub fn unpad(&self, x: &Tensor) -> Tensor {
        x.flatten(0, 1).index_select(0, &self.to)
    }
}

impl Packed {
    /// Creates the batch of a layout whose [`PackedLayout::table`] lies on a device.
    pub fn over(layout: &Arc<PackedLayout>, table: &Tensor) -> Self {
        let mut start = 0;
        let [ids, positions, types, bounds, first, to, lengths] = layout.columns.each_ref().map(|column| {
            let length = column.len() as i64;
            start += length;
            table.narrow(0, start - length, length)
        });
        Self {
            ids,
            positions,
            types,
            first,
            route: Route::of_blocks(layout.places.iter().map(|places| tokens_of(places)).collect()),
            bounds: bounds.to_kind(Kind::Int),
            padding: [to, lengths],
            padded: OnceCell::new(),
            layout: Arc::clone(layout),
            table: table.narrow(0, 0, start),
            copies: Copies::default(),
        }
    }

    /// Returns the same batch on a device: itself, or a copy that is made once.
    pub fn on(&self, device: Device) -> &Self {
        match device == self.table.device() {
            true => self,
            false => self.copies.on(device, &|| Self::over(&self.layout, &self.table.to_device(device))),
        }
    }

    /// Packs the sequences of each run, as [`PackedLayout::new`], on a device.
    pub fn new(runs: &[Vec<Sequence>], positions: Positions, device: Device) -> Self {
        let layout = Arc::new(PackedLayout::new(runs, positions, Fill::None));
        Self::over(&layout, &sent(&Tensor::from_slice(&layout.table()), device))
    }

    /// Returns the run of each sequence, in the order in which they were given.
    pub fn of_sequences(&self) -> Route {
        Route::of_blocks(self.places.iter().map(|places| places.len() as i64).collect())
    }

    /// Returns the first row of a run, and the number of its tokens, filling excluded.
    pub fn rows_of(&self, run: usize) -> [i64; 2] {
        [self.places[..run].iter().map(|places| tokens_of(places)).sum(), tokens_of(&self.places[run])]
    }

    /// Returns [`Packed::bounds`] of one run of several, counted from its own first token, with an empty sequence for each
    /// that fills it up alone.
    pub fn bounds_of(&self, run: usize) -> Tensor {
        let before: usize = self.places[..run].iter().map(Vec::len).sum();
        let own = self.places[run].len() as i64 + 1;
        let bounds = self.bounds.narrow(0, before as i64, own) - self.rows_of(run)[0];
        Tensor::cat(&[&bounds, &bounds.narrow(0, own - 1, 1).expand([self.fillers[run]], false)], 0)
    }

    /// Returns the sequences of each run padded, in one or several groups.
    pub fn padded(&self) -> &[Vec<Padded>] {
        let [to, lengths] = &self.padding;
        let (mut token, mut sequence) = (0, 0);
        let mut of_group = |group: &PaddedGroup| {
            let padded = Padded::new(
                *group,
                to.narrow(0, token, group.tokens),
                &lengths.narrow(0, sequence, group.sequences),
            );
            token += group.tokens;
            sequence += group.sequences;
            padded
        };
        let mut of_run = |groups: &Vec<PaddedGroup>| groups.iter().map(&mut of_group).collect();
        self.padded.get_or_init(|| self.groups.iter().map(&mut of_run).collect())
    }
}

fn tokens_of(places: &[Place]) -> i64 {
    places.iter().map(|place| place.length as i64).sum()
}
