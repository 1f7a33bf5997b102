//! The part of each step that one of several processes computes.

use std::ops::Range;

use super::source::MicroBatch;
use crate::nn::Around;

/// Which part of a step's examples a process computes: adjacent ones, with about as many tokens as the parts of the others.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// Number of the process.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// True if micro batches are given whole where there are enough: on a GPU, whose kernels draw masks for whole ones.
    pub whole: bool,
}

/// A process's part of a micro batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// Its own examples of each run.
    pub own: MicroBatch,
    /// Of each run, the other examples.
    pub around: Vec<Around>,
}

impl Share {
    /// Returns the share of a process that is alone.
    pub fn all() -> Self {
        Self { rank: 0, size: 1, whole: false }
    }

    /// Returns this process's part of each micro batch of a step; `tokens` tells the length of an example.
    pub fn of(self, batches: &[MicroBatch], tokens: impl Fn(usize) -> usize) -> Vec<Portion> {
        let runs = batches.first().map_or(0, Vec::len);
        let empty =
            |_: &MicroBatch| Portion { own: vec![Vec::new(); runs], around: vec![Around::default(); runs] };
        let mut parts: Vec<Portion> = batches.iter().map(empty).collect();
        for run in 0..runs {
            let rows: Vec<&[usize]> = batches.iter().map(|batch| batch[run].as_slice()).collect();
            let range = self.range(&rows, &tokens);
            let mut start = 0;
            for (part, rows) in parts.iter_mut().zip(rows) {
                let inside = |at: usize| at.clamp(start, start + rows.len()) - start;
                let (from, to) = (inside(range.start), inside(range.end));
                part.own[run] = rows[from..to].to_vec();
                let longest = rows.iter().map(|row| tokens(*row)).max().unwrap_or(0);
                part.around[run] = Around { before: from, after: rows.len() - to, longest };
                start += rows.len();
            }
        }
        parts
    }

    /// Returns which rows of all micro batches of a run are this process's.
    fn range(self, rows: &[&[usize]], tokens: &impl Fn(usize) -> usize) -> Range<usize> {
        let of = |rows: &[usize]| rows.iter().map(|row| tokens(*row)).sum();
        let filled = rows.iter().filter(|rows| !rows.is_empty()).count();
        if !self.whole || filled < self.size {
            let each: Vec<usize> = rows.concat().iter().map(|row| tokens(*row)).collect();
            return cut(&each, self.size, self.rank)..cut(&each, self.size, self.rank + 1);
        }
        let each: Vec<usize> = rows.iter().map(|rows| of(rows)).collect();
        let start = |part| rows[..cut(&each, self.size, part)].iter().map(|rows| rows.len()).sum();
        start(self.rank)..start(self.rank + 1)
    }
}

/// Returns where the part `part` of `parts` equal ones begins: before the first item whose middle is not before it.
fn cut(items: &[usize], parts: usize, part: usize) -> usize {
    let all: usize = items.iter().sum();
    let mut before = 0;
    let is_before = |item: &&usize| {
        let middle = 2 * before + **item;
        before += **item;
        middle * parts < 2 * all * part
    };
    if part >= parts { items.len() } else { items.iter().take_while(is_before).count() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_is_in_the_part_of_one_process() {
        let lengths = [5, 1, 2, 9, 3, 3, 1, 40, 2, 2];
        let batches: Vec<MicroBatch> =
            vec![vec![vec![0, 1, 2, 3], vec![4]], vec![vec![4, 5, 6, 7], vec![]], vec![vec![8, 9], vec![]]];
        for (size, whole) in (1..=12).flat_map(|size| [(size, false), (size, true)]) {
            let parts: Vec<Vec<Portion>> =
                (0..size).map(|rank| Share { rank, size, whole }.of(&batches, |row| lengths[row])).collect();
            for (at, batch) in batches.iter().enumerate() {
                for run in 0..2 {
                    let own: Vec<usize> = parts.iter().flat_map(|of| of[at].own[run].clone()).collect();
                    assert_eq!(own, batch[run], "{size} {whole}");
                    let longest = batch[run].iter().map(|row| lengths[*row]).max().unwrap_or(0);
                    for of in &parts {
                        let Portion { own, around } = &of[at];
                        let Around { before, after, .. } = around[run];
                        assert_eq!(around[run].longest, longest);
                        assert_eq!(before + own[run].len() + after, batch[run].len(), "{size} {of:?}");
                        assert_eq!(own[run], batch[run][before..before + own[run].len()]);
                        let is_split = !own[run].is_empty() && before + after > 0;
                        assert!(!(whole && size <= 3 && run == 0 && is_split), "{size} {of:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn parts_have_about_as_many_tokens() {
        let items = [7, 7, 7, 7, 7, 7, 7, 7];
        assert_eq!([0, 1, 2, 3].map(|part| cut(&items, 3, part)), [0, 3, 5, 8]);
        assert_eq!([0, 1, 2].map(|part| cut(&[1, 1, 1, 9], 2, part)), [0, 3, 4]);
        assert_eq!([0, 1, 2, 3].map(|part| cut(&[4], 3, part)), [0, 0, 1, 1]);
    }
}
