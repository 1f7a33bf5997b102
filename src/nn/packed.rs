//! A packed batch: the tokens of all sequences back to back, and where each sequence begins.

use std::cell::{OnceCell, RefCell};
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::torch::{dims2, dims3};

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

/// A batch of k runs with n tokens each; shorter runs are filled up with sequences of zeros at their end.
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
    /// Tokens in the longest sequence, or more.
    pub longest: i64,
    /// Number of tokens, filling excluded.
    pub tokens: usize,
    /// Rows that each run's masks are drawn for on a GPU: those of the run alone.
    pub drawn: Arc<Vec<i64>>,
    /// Sequences of filling of each run alone.
    fillers: Vec<i64>,
    /// The groups of each run, and for all of them, int64: places of tokens and lengths of sequences.
    groups: Vec<Vec<Group>>,
    padding: [Tensor; 2],
    /// The runs padded, made when first asked for.
    padded: OnceCell<Vec<Vec<Padded>>>,
}

/// A batch before it is on a device: what is known of it there, and its columns.
#[derive(Debug)]
pub struct Layout {
    /// Number of runs, tokens and given sequences of each.
    k: i64,
    n: i64,
    s: i64,
    longest: i64,
    tokens: usize,
    places: Arc<Vec<Vec<Place>>>,
    stretches: Vec<Stretch>,
    drawn: Arc<Vec<i64>>,
    fillers: Vec<i64>,
    groups: Vec<Vec<Group>>,
    rounded: bool,
    /// Ids, positions, types, bounds, first tokens; where each token lies in its padded group, and lengths.
    columns: [Vec<i64>; 7],
}

/// Adjacent sequences of a run that are padded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Group {
    start: i64,
    tokens: i64,
    sequences: i64,
    longest: i64,
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

impl Group {
    /// Groups sequences in the order of their lengths; where they are many and long, with lengths within twice the shortest.
    /// What fills a run up belongs to the last group; with it, lengths are rounded to few.
    fn of(lengths: &[i64], fill: &[i64]) -> Vec<Self> {
        let longest = lengths.last().copied().unwrap_or(0);
        let few = (lengths.len() + fill.len()) as i64 * longest * longest <= MOST_PADDED;
        let mut start = 0;
        let mut groups = Vec::new();
        let mut rest = lengths;
        while let Some(&shortest) = rest.first() {
            let count = rest.iter().take_while(|&&length| few || length <= 2 * shortest).count();
            let (group, left) = rest.split_at(count);
            let all = if left.is_empty() { [group, fill].concat() } else { group.to_vec() };
            let longest = all.iter().max().copied().unwrap_or(0);
            let longest = if fill.is_empty() { rounded_up(longest, 8) } else { rounded_length(longest) };
            let tokens = all.iter().sum();
            groups.push(Self { start, tokens, sequences: all.len() as i64, longest });
            start += tokens;
            rest = left;
        }
        groups
    }
}

/// Rounds up to one of eight lengths below each power of two, and to a multiple of 8.
fn rounded_length(longest: i64) -> i64 {
    rounded_up(longest, step(longest, 8).max(8))
}

fn rounded_up(x: i64, step: i64) -> i64 {
    (x + step - 1) / step * step
}

/// Returns one of `parts` equal parts of the power of two below `x`.
fn step(x: i64, parts: i64) -> i64 {
    (1 << x.max(1).ilog2()) / parts
}

/// Returns the lengths of the sequences that fill a batch of `tokens` up so that few numbers of rows occur, a sixteenth apart: as
/// many sequences, of at least one token, for all batches that are filled up to one number.
fn filling(tokens: i64, longest: i64) -> Vec<i64> {
    let (rows, length) = (step(tokens, 16).max(32), rounded_length(longest));
    let count = (rows + length - 2) / (length - 1);
    let mut missing = rounded_up(tokens + count, rows) - tokens;
    let lengths = (0..count).rev().map(|after| {
        let own = length.min(missing - after);
        missing -= own;
        own
    });
    lengths.collect()
}

impl Padded {
    fn new(group: Group, to: Tensor, lengths: &Tensor) -> Self {
        let places = Tensor::arange(group.longest, (Kind::Int64, to.device()));
        let filled = places.less_tensor(&lengths.view([-1, 1, 1, 1]));
        let Group { start, tokens, longest, .. } = group;
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

    /// Appends a sequence of zeros.
    fn fill(&mut self, length: i64) {
        for column in [&mut self.ids, &mut self.positions, &mut self.types] {
            column.resize(column.len() + usize::try_from(length).unwrap_or(0), 0);
        }
        self.lengths.push(length);
    }

    fn tokens(&self) -> i64 {
        self.ids.len() as i64
    }
}

impl Layout {
    /// Packs the sequences of each run. Every run holds the same number of sequences, none of them empty.
    ///
    /// `rounded` fills up a single run so that steps of a training have few shapes, and lets the masks of several be those.
    pub fn new(runs: &[Vec<Sequence>], positions: Positions, rounded: bool) -> Self {
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
        let longest = |c: &Columns| c.lengths.iter().max().copied().unwrap_or(0);
        let alone: Vec<Vec<i64>> = (columns.iter())
            .map(|c| if rounded { filling(c.tokens(), longest(c)) } else { Vec::new() })
            .collect();
        let drawn =
            columns.iter().zip(&alone).map(|(c, fill)| c.tokens() + fill.iter().sum::<i64>()).collect();
        let mut to = Vec::new();
        let mut lengths = Vec::new();
        let mut groups = Vec::new();
        let single = columns.len() == 1;
        for (column, fill) in columns.iter().zip(&alone) {
            let own = [column.lengths.as_slice(), fill].concat();
            let mut of_run = Group::of(&column.lengths, fill);
            let filled = if single { 0 } else { fill.iter().sum() };
            let mut rest = own.as_slice();
            for group in &of_run {
                let (in_group, left) = rest.split_at(usize::try_from(group.sequences).unwrap_or(0));
                let starts = (0..).step_by(usize::try_from(group.longest.max(1)).unwrap_or(1)).zip(in_group);
                to.extend(starts.flat_map(|(start, &length): (i64, &i64)| start..start + length));
                rest = left;
            }
            to.truncate(to.len() - usize::try_from(filled).unwrap_or(0));
            of_run.iter_mut().rev().take(1).for_each(|last| last.tokens -= filled);
            lengths.extend(own);
            groups.push(of_run);
        }
        if let [column] = columns.as_mut_slice() {
            alone.iter().flatten().for_each(|&length| column.fill(length));
        }
        let n = columns.iter().map(Columns::tokens).max().unwrap_or(0);
        for column in &mut columns {
            let missing = n - column.tokens();
            if missing > 0 {
                column.fill(missing);
            }
        }
        let places = places(&columns, &orders);
        let flat = |pick: fn(&Columns) -> &Vec<i64>| -> Vec<i64> {
            columns.iter().flat_map(|c| pick(c).iter().copied()).collect()
        };
        let starts: Vec<i64> = places.iter().flatten().map(|place| place.start as i64).collect();
        let longest = columns.iter().map(longest).max().unwrap_or(0);
        Self {
            k: runs.len() as i64,
            n,
            s: runs.first().map_or(0, Vec::len) as i64,
            longest: if rounded { rounded_length(longest) } else { longest },
            tokens,
            places: Arc::new(places),
            stretches: stretches(&columns),
            drawn: Arc::new(drawn),
            fillers: alone.iter().map(|fill| fill.len() as i64).collect(),
            groups,
            rounded,
            columns: [
                flat(|c| &c.ids),
                flat(|c| &c.positions),
                flat(|c| &c.types),
                bounds(&columns),
                starts,
                to,
                lengths,
            ],
        }
    }

    /// Returns the columns, one after another.
    pub fn table(&self) -> Vec<i64> {
        self.columns.concat()
    }

    /// Returns what the launches of a pass depend on, where one for all batches of this shape can be recorded: sequences, tokens, and the
    /// most tokens of a sequence.
    pub fn shape(&self) -> Option<[i64; 3]> {
        let single = self.rounded && matches!(self.groups.as_slice(), [groups] if groups.len() == 1);
        single.then_some([self.s, self.n, self.longest])
    }

    /// Returns the number of tokens, filling excluded.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Returns the batch whose [`Layout::table`] lies on a device.
    pub fn over(&self, table: &Tensor) -> Packed {
        let mut start = 0;
        let [ids, positions, types, bounds, first, to, lengths] = self.columns.each_ref().map(|column| {
            let length = column.len() as i64;
            start += length;
            table.narrow(0, start - length, length)
        });
        let [ids, positions, types] = [ids, positions, types].map(|column| column.view([self.k, self.n]));
        Packed {
            ids,
            positions,
            types,
            first: first.view([self.k, -1]),
            longest: self.longest,
            stretches: self.stretches.clone(),
            bounds: bounds.to_kind(Kind::Int),
            tokens: self.tokens,
            places: Arc::clone(&self.places),
            drawn: Arc::clone(&self.drawn),
            fillers: self.fillers.clone(),
            groups: self.groups.clone(),
            padding: [to, lengths],
            padded: OnceCell::new(),
        }
    }
}

impl Packed {
    /// Packs the sequences of each run, as [`Layout::new`], on a device.
    pub fn new(runs: &[Vec<Sequence>], positions: Positions, device: Device) -> Self {
        let layout = Layout::new(runs, positions, false);
        layout.over(&Tensor::from_slice(&layout.table()).to_device(device))
    }

    /// Returns the tokens of a run without its filling.
    pub fn tokens_of(&self, run: usize) -> i64 {
        self.places[run].iter().map(|place| place.length as i64).sum()
    }

    /// Returns [`Packed::bounds`] of one run of several, counted from its own first token: without what fills it up to
    /// the others, and with an empty sequence for each that fills it up alone.
    pub fn bounds_of(&self, run: usize) -> Tensor {
        let sequences = |run: usize| self.stretches.iter().filter(move |s| s.run == run).map(|s| s.count);
        let before: i64 = (0..run).flat_map(sequences).sum();
        let [_k, n] = dims2(&self.ids);
        let own = self.places[run].len() as i64 + 1;
        let bounds = self.bounds.narrow(0, before, own) - run as i64 * n;
        Tensor::cat(&[&bounds, &bounds.narrow(0, own - 1, 1).expand([self.fillers[run]], false)], 0)
    }

    /// Returns the sequences of each run padded, in one or several groups: those of several runs without filling.
    pub fn padded(&self) -> &[Vec<Padded>] {
        let [to, lengths] = &self.padding;
        let (mut token, mut sequence) = (0, 0);
        let mut of_group = |group: &Group| {
            let padded = Padded::new(
                *group,
                to.narrow(0, token, group.tokens),
                &lengths.narrow(0, sequence, group.sequences),
            );
            token += group.tokens;
            sequence += group.sequences;
            padded
        };
        let mut of_run = |groups: &Vec<Group>| groups.iter().map(&mut of_group).collect();
        self.padded.get_or_init(|| self.groups.iter().map(&mut of_run).collect())
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
            let groups = Group::of(lengths, &[]);
            groups.iter().map(|g| [g.start, g.tokens, g.sequences, g.longest]).collect()
        };
        assert_eq!(groups(&[3, 9, 40]), [[0, 52, 3, 40]]);
        assert_eq!(groups(&[10, 20, 21, 1500, 1600]), [[0, 30, 2, 24], [30, 21, 1, 24], [51, 3100, 2, 1600]]);
        assert_eq!(groups(&[2000, 2000]), [[0, 4000, 2, 2000]]);
    }

    #[test]
    fn steps_are_filled_up_to_few_shapes() {
        let mut shapes = std::collections::BTreeMap::new();
        for (tokens, longest) in (40..3000).flat_map(|tokens| [(tokens, 2 + tokens % 130), (tokens, 40)]) {
            let fill = filling(tokens, longest);
            let (rows, length) = (tokens + fill.iter().sum::<i64>(), rounded_length(longest));
            assert!(fill.iter().all(|&own| (1..=length).contains(&own)), "{tokens}, {longest}: {fill:?}");
            assert!(rows - tokens <= 64 + tokens / 8, "{tokens} to {rows}");
            // One shape has one number of sequences that fill it up.
            assert_eq!(
                *shapes.entry((rows, length)).or_insert(fill.len()),
                fill.len(),
                "{tokens}, {longest}"
            );
        }
        let of_40 = shapes.keys().filter(|(rows, length)| *length == 40 && *rows > 1024).count();
        assert!(of_40 <= 28, "{of_40}");
    }
}
