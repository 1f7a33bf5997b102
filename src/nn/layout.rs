//! Where the tokens of a batch lie, before it is on a device.

use std::sync::Arc;

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
    /// Index of the run.
    pub run: usize,
    /// Number of sequences.
    pub count: i64,
    /// Tokens in each.
    pub length: i64,
}

/// Location of a sequence in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Place {
    /// Index of its first token among those of all runs.
    pub start: usize,
    /// Tokens.
    pub length: usize,
    /// Sum of the squared lengths of all sequences before it, including those of earlier runs.
    pub squares: usize,
}

/// The sequences of each run.
pub type Places = Arc<Vec<Vec<Place>>>;

/// What the launches of a training pass depend on.
pub type PassShape = [i64; 4];

/// A batch before it is on a device: what is known of it there, and its columns.
#[derive(Debug)]
pub struct PackedLayout {
    /// Tokens in the longest sequence, or more.
    pub longest: i64,
    /// Number of tokens, filling excluded.
    pub tokens: usize,
    /// The sequences of each run, in the order in which they were given.
    pub places: Places,
    /// The sequences from left to right, run after run.
    pub stretches: Vec<Stretch>,
    /// Rows that each run's masks are drawn for on a GPU: those of the run alone.
    pub drawn: Arc<Vec<i64>>,
    /// Sequences of filling of each run alone.
    pub(super) fillers: Vec<i64>,
    /// The groups of each run.
    pub(super) groups: Vec<Vec<PaddedGroup>>,
    fill: Fill,
    /// Ids, positions, types, bounds, first tokens; where each token lies in its padded group, and lengths.
    pub(super) columns: [Vec<i64>; 7],
}

/// Adjacent sequences of a run that are padded together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaddedGroup {
    /// First of their tokens in the run.
    pub start: i64,
    /// Number of their tokens.
    pub tokens: i64,
    /// Number of sequences.
    pub sequences: i64,
    /// Tokens of a padded sequence.
    pub longest: i64,
}

/// Largest s·t² that is padded at once, whatever the lengths.
const MOST_PADDED: i64 = 1 << 22;

impl PaddedGroup {
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

/// Rounds up to a multiple of `step`.
pub fn rounded_up(x: i64, step: i64) -> i64 {
    (x + step - 1) / step * step
}

/// Returns one of `parts` equal parts of the power of two below `x`.
pub fn step(x: i64, parts: i64) -> i64 {
    (1 << x.max(1).ilog2()) / parts
}

/// What fills up a single run so that passes of a training have few shapes, each of which can be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Nothing.
    None,
    /// Tokens. The number of sequences is given, and masks of several runs are drawn as each would alone.
    Tokens,
    /// Tokens and sequences, for kernels that take boundaries and for sequences of at most so many tokens.
    Sequences(i64),
}

impl Fill {
    /// Returns the lengths of the sequences that fill up a run of these lengths: the tokens to a multiple of a sixteenth, or of an eighth
    /// with sequences, with as many sequences, of at least one token, for all runs that are filled up to one number of tokens and one
    /// longest sequence.
    fn of(self, given: &[i64]) -> Vec<i64> {
        let (tokens, longest) = (given.iter().sum(), given.iter().max().copied().unwrap_or(0));
        match self {
            _ if given.is_empty() => Vec::new(),
            Self::None => Vec::new(),
            Self::Tokens => filling(tokens, step(tokens, 16), rounded_length(longest), |least| least),
            Self::Sequences(longest) => {
                let own = given.len() as i64;
                filling(tokens, step(tokens, 8), longest.max(2), |least| rounded_up(own + least, 8) - own)
            }
        }
    }

    fn longest(self, found: i64) -> i64 {
        match self {
            Self::None => found,
            Self::Tokens => rounded_length(found),
            Self::Sequences(longest) => longest.max(found),
        }
    }
}

/// Divides what is missing to a multiple of `rows` among sequences of at most `length`; `count` makes their number of the least that
/// suffices.
fn filling(tokens: i64, rows: i64, length: i64, count: impl Fn(i64) -> i64) -> Vec<i64> {
    let rows = rows.max(32);
    let count = count((rows + length - 2) / (length - 1));
    let mut missing = rounded_up(tokens + count, rows) - tokens;
    let lengths = (0..count).rev().map(|after| {
        let own = length.min(missing - after);
        missing -= own;
        own
    });
    lengths.collect()
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

impl PackedLayout {
    /// Packs the sequences of each run, none of them empty. Runs may hold different numbers of sequences.
    ///
    /// What fills it up is at the end of a single run.
    pub fn new(runs: &[Vec<Sequence>], positions: Positions, fill: Fill) -> Self {
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
        let alone: Vec<Vec<i64>> = columns.iter().map(|c| fill.of(&c.lengths)).collect();
        let drawn =
            columns.iter().zip(&alone).map(|(c, fill)| c.tokens() + fill.iter().sum::<i64>()).collect();
        let bounded = matches!(fill, Fill::Sequences(_));
        let (groups, to, lengths) =
            if bounded { (Vec::new(), Vec::new(), Vec::new()) } else { padding(&columns, &alone) };
        if let [column] = columns.as_mut_slice() {
            alone.iter().flatten().for_each(|&length| column.fill(length));
        }
        let places = places(&columns, &orders);
        let flat = |pick: fn(&Columns) -> &Vec<i64>| -> Vec<i64> {
            columns.iter().flat_map(|c| pick(c).iter().copied()).collect()
        };
        let starts = places.iter().flatten().map(|place| place.start as i64).filter(|_| !bounded).collect();
        let longest = columns.iter().map(longest).max().unwrap_or(0);
        Self {
            longest: fill.longest(longest),
            tokens,
            places: Arc::new(places),
            stretches: stretches(&columns),
            drawn: Arc::new(drawn),
            fillers: alone.iter().map(|fill| fill.len() as i64).collect(),
            groups,
            fill,
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

    /// Returns what the launches of a pass depend on, where one for all batches of this shape can be recorded: sequences, tokens, the most
    /// tokens of a sequence, and nothing more.
    pub fn shape(&self) -> Option<PassShape> {
        let one_of_few = match self.fill {
            Fill::None => false,
            Fill::Tokens => matches!(self.groups.as_slice(), [groups] if groups.len() == 1),
            Fill::Sequences(_) => self.places.len() == 1,
        };
        let [rows, _, _, bounds, starts, ..] = self.columns.each_ref().map(|column| column.len() as i64);
        one_of_few.then_some([bounds + starts, rows, self.longest, 0])
    }

    /// Returns the number of tokens, filling included.
    pub fn rows(&self) -> usize {
        self.columns[0].len()
    }
}

/// Returns the groups of each run, the place of each of its tokens in its group, and the lengths of the groups' sequences. What fills
/// up a single run counts as tokens; that of several runs only as sequences, as many as each has alone.
fn padding(columns: &[Columns], alone: &[Vec<i64>]) -> (Vec<Vec<PaddedGroup>>, Vec<i64>, Vec<i64>) {
    let (mut groups, mut to, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for (column, fill) in columns.iter().zip(alone) {
        let own = [column.lengths.as_slice(), fill].concat();
        let mut of_run = PaddedGroup::of(&column.lengths, fill);
        let filled: i64 = if columns.len() == 1 { 0 } else { fill.iter().sum() };
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
    (groups, to, lengths)
}

/// Places the sequences; `orders` lists, per run, their given indices from left to right, before the filling.
fn places(columns: &[Columns], orders: &[Vec<usize>]) -> Vec<Vec<Place>> {
    let (mut start, mut squares) = (0, 0);
    let run = |(column, order): (&Columns, &Vec<usize>)| {
        let mut places = vec![Place::default(); order.len()];
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
            let groups = PaddedGroup::of(lengths, &[]);
            groups.iter().map(|g| [g.start, g.tokens, g.sequences, g.longest]).collect()
        };
        assert_eq!(groups(&[3, 9, 40]), [[0, 52, 3, 40]]);
        assert_eq!(groups(&[10, 20, 21, 1500, 1600]), [[0, 30, 2, 24], [30, 21, 1, 24], [51, 3100, 2, 1600]]);
        assert_eq!(groups(&[2000, 2000]), [[0, 4000, 2, 2000]]);
    }

    #[test]
    fn lengths_are_eighths_of_a_power_of_two() {
        let rounded = [1, 17, 129, 300, 520, 1100].map(rounded_length);
        assert_eq!(rounded, [8, 24, 144, 320, 576, 1152]);
    }

    #[test]
    fn steps_are_filled_up_to_few_shapes() {
        let mut shapes = std::collections::BTreeMap::new();
        for (tokens, longest) in (300..3000).flat_map(|tokens| [(tokens, 2 + tokens % 130), (tokens, 40)]) {
            let mut given = vec![longest; usize::try_from(tokens / longest).unwrap()];
            given.push(tokens % longest);
            let fill = Fill::Tokens.of(&given);
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
