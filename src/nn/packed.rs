//! A packed batch: the tokens of all sequences back to back, and where each sequence begins.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::torch::{dims2, dims3, upload};

/// Tokens of one sequence, ready to be packed.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// Token ids.
    pub ids: &'a [u32],
    /// Segment (token type) of each token; the same length, or empty for all zeros.
    pub types: &'a [u8],
}

/// A family's numbering of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// 0, 1, 2, …
    FromZero,
    /// RoBERTa: padding id + 1, + 2, …, counting tokens that are not the padding token; a padding token in a
    /// text gets the padding id itself (`create_position_ids_from_input_ids` in Transformers).
    AfterPadding(u32),
}

/// Sequences of equal length that lie side by side in one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Index along k.
    pub run: usize,
    /// Number of sequences.
    pub count: i64,
    /// Tokens in each.
    pub length: i64,
}

/// Location of a sequence in its run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Index of its first token.
    pub start: usize,
    /// Tokens.
    pub length: usize,
    /// Sum of the squared lengths of all sequences before it, including those of earlier runs.
    pub squares: usize,
}

/// A batch of k runs with n tokens each; shorter runs are filled up with one sequence of zeros at their end.
#[derive(Debug)]
pub struct Packed {
    /// Token ids, int64 `[k, n]`.
    pub ids: Tensor,
    /// Position of each token in its sequence by the family's rule, int64 `[k, n]`.
    pub positions: Tensor,
    /// Token types, int64 `[k, n]`.
    pub types: Tensor,
    /// Index of each sequence's first token in its run, int64 `[k, s]`.
    pub first: Tensor,
    /// The sequences of each run, in the order in which they were given.
    pub places: Arc<Vec<Vec<Place>>>,
    /// The sequences from left to right, run after run.
    pub stretches: Vec<Stretch>,
    /// Start of each sequence in the flat `[k·n]`, and the end of the last: int32 `[s + 1]`, on the device.
    pub bounds: Tensor,
    /// Tokens in the longest sequence.
    pub longest: i64,
    /// Number of tokens, filling excluded.
    pub tokens: usize,
    /// The runs padded, made when first asked for.
    padded: OnceCell<Vec<Vec<Padded>>>,
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
    /// What is added to scores, by window.
    added: RefCell<Vec<(Option<i64>, Tensor)>>,
}

/// Largest s·t² that is padded at once, whatever the lengths.
const MOST_PADDED: i64 = 1 << 22;

impl Padded {
    /// Pads sequences in the order of their lengths; where they are many and long, in groups whose lengths are within twice
    /// the shortest.
    fn groups(lengths: &[i64], device: Device) -> Vec<Self> {
        let longest = lengths.last().copied().unwrap_or(0);
        let few = lengths.len() as i64 * longest * longest <= MOST_PADDED;
        let mut start = 0;
        let mut groups = Vec::new();
        let mut rest = lengths;
        while let Some(&shortest) = rest.first() {
            let count = rest.iter().take_while(|&&length| few || length <= 2 * shortest).count();
            let (group, left) = rest.split_at(count);
            groups.push(Self::new(start, group, device));
            start += group.iter().sum::<i64>();
            rest = left;
        }
        groups
    }

    fn new(start: i64, lengths: &[i64], device: Device) -> Self {
        let longest = (lengths.iter().max().copied().unwrap_or(0) + 7) / 8 * 8;
        let starts = (0..).step_by(usize::try_from(longest).unwrap_or(1)).zip(lengths);
        let to: Vec<i64> = starts.flat_map(|(start, &length)| start..start + length).collect();
        let tokens = to.len() as i64;
        let [to, lengths] = upload([&to, lengths], device);
        let places = Tensor::arange(longest, (Kind::Int64, device));
        let filled = places.less_tensor(&lengths.view([-1, 1, 1, 1]));
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

/// One run's flat columns under construction.
#[derive(Default)]
struct Columns {
    ids: Vec<i64>,
    positions: Vec<i64>,
    types: Vec<i64>,
    lengths: Vec<i64>,
}

impl Columns {
    fn push(&mut self, sequence: Sequence, positions: Positions) {
        let mut next = 0;
        for (i, &id) in sequence.ids.iter().enumerate() {
            let position = match positions {
                Positions::FromZero => i as i64,
                Positions::AfterPadding(pad) if id == pad => i64::from(pad),
                Positions::AfterPadding(pad) => {
                    next += 1;
                    i64::from(pad) + next
                }
            };
            self.ids.push(i64::from(id));
            self.positions.push(position);
            self.types.push(sequence.types.get(i).copied().map_or(0, i64::from));
        }
        self.lengths.push(sequence.ids.len() as i64);
    }

    /// Fills up to `n` tokens with one sequence of zeros.
    fn fill(&mut self, n: usize) {
        let missing = n - self.ids.len();
        if missing > 0 {
            for column in [&mut self.ids, &mut self.positions, &mut self.types] {
                column.resize(n, 0);
            }
            self.lengths.push(missing as i64);
        }
    }
}

impl Packed {
    /// Packs the sequences of each run. Every run holds the same number of sequences, none of them empty.
    pub fn new(runs: &[Vec<Sequence>], positions: Positions, device: Device) -> Self {
        let mut columns: Vec<Columns> = Vec::with_capacity(runs.len());
        let mut orders: Vec<Vec<usize>> = Vec::with_capacity(runs.len());
        for sequences in runs {
            // With equal lengths side by side, attention computes several sequences in one product.
            let mut order: Vec<usize> = (0..sequences.len()).collect();
            order.sort_by_key(|&i| sequences[i].ids.len());
            let mut column = Columns::default();
            for &i in &order {
                column.push(sequences[i], positions);
            }
            columns.push(column);
            orders.push(order);
        }
        let tokens = columns.iter().map(|c| c.ids.len()).sum();
        let n = columns.iter().map(|c| c.ids.len()).max().unwrap_or(0);
        for column in &mut columns {
            column.fill(n);
        }
        let places = places(&columns, &orders);
        let flat = |pick: fn(&Columns) -> &Vec<i64>| -> Vec<i64> {
            columns.iter().flat_map(|c| pick(c).iter().copied()).collect()
        };
        let starts: Vec<i64> = places.iter().flatten().map(|place| place.start as i64).collect();
        let tables = [flat(|c| &c.ids), flat(|c| &c.positions), flat(|c| &c.types), bounds(&columns), starts];
        let k = runs.len() as i64;
        let [ids, positions, types, bounds, first] = upload(tables.each_ref().map(Vec::as_slice), device);
        let [ids, positions, types] = [ids, positions, types].map(|table| table.view([k, n as i64]));
        Self {
            ids,
            positions,
            types,
            first: first.view([k, -1]),
            longest: columns.iter().flat_map(|c| c.lengths.iter().copied()).max().unwrap_or(0),
            stretches: stretches(&columns),
            bounds: bounds.to_kind(Kind::Int),
            tokens,
            places: Arc::new(places),
            padded: OnceCell::new(),
        }
    }

    /// Returns the tokens of a run without its filling.
    pub fn tokens_of(&self, run: usize) -> i64 {
        self.places[run].iter().map(|place| place.length as i64).sum()
    }

    /// Returns the lengths of a run's sequences from left to right, its filling included.
    fn lengths(&self, run: usize) -> Vec<i64> {
        let of_run = self.stretches.iter().filter(|stretch| stretch.run == run);
        of_run.flat_map(|s| std::iter::repeat_n(s.length, usize::try_from(s.count).unwrap_or(0))).collect()
    }

    /// Returns [`Packed::bounds`] of one run, counted from its own first token.
    pub fn bounds_of(&self, run: usize) -> Tensor {
        let before: usize = (0..run).map(|earlier| self.lengths(earlier).len()).sum();
        let count = self.lengths(run).len() as i64 + 1;
        let [_k, n] = dims2(&self.ids);
        self.bounds.narrow(0, before as i64, count) - run as i64 * n
    }

    /// Returns the sequences of each run padded, in one or several groups, without its filling.
    pub fn padded(&self) -> &[Vec<Padded>] {
        let of_run = |run: usize| {
            let lengths = &self.lengths(run)[..self.places[run].len()];
            Padded::groups(lengths, self.ids.device())
        };
        self.padded.get_or_init(|| (0..self.places.len()).map(of_run).collect())
    }
}

/// Places the sequences; `orders` lists, per run, their given indices from left to right, before the filling.
fn places(columns: &[Columns], orders: &[Vec<usize>]) -> Vec<Vec<Place>> {
    let mut squares = 0;
    let run = |(column, order): (&Columns, &Vec<usize>)| {
        let mut places = vec![Place::default(); order.len()];
        let mut start = 0;
        for (i, &length) in column.lengths.iter().enumerate() {
            let length = usize::try_from(length).unwrap_or(0);
            if let Some(&given) = order.get(i) {
                places[given] = Place { start, length, squares };
            }
            start += length;
            squares += length * length;
        }
        places
    };
    columns.iter().zip(orders).map(run).collect()
}

fn bounds(columns: &[Columns]) -> Vec<i64> {
    let mut end = 0;
    std::iter::once(0)
        .chain(columns.iter().flat_map(|c| c.lengths.iter()).map(|&length| {
            end += length;
            end
        }))
        .collect()
}

fn stretches(columns: &[Columns]) -> Vec<Stretch> {
    let mut found: Vec<Stretch> = Vec::new();
    for (run, column) in columns.iter().enumerate() {
        for &length in &column.lengths {
            match found.last_mut() {
                Some(last) if last.run == run && last.length == length => last.count += 1,
                _ => found.push(Stretch { run, count: 1, length }),
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_long_sequences_are_padded_in_groups_of_similar_lengths() {
        let groups = |lengths: &[i64]| -> Vec<[i64; 4]> {
            let groups = Padded::groups(lengths, Device::Cpu);
            let sequences = |group: &Padded| group.filled.numel() as i64 / group.longest;
            groups.iter().map(|g| [g.start, g.tokens, sequences(g), g.longest]).collect()
        };
        assert_eq!(groups(&[3, 9, 40]), [[0, 52, 3, 40]]);
        assert_eq!(groups(&[10, 20, 21, 1500, 1600]), [[0, 30, 2, 24], [30, 21, 1, 24], [51, 3100, 2, 1600]]);
        assert_eq!(groups(&[2000, 2000]), [[0, 4000, 2, 2000]]);
    }
}
