//! Data sets: the catalog, readers of local files, tokenising, and its cache. Independent of tensors.

mod added_tokens;
mod arrow;
mod cache;
pub mod catalog;
mod chat;
pub mod chat_prompt;
pub mod dataset;
pub mod entry;
pub mod examples;
mod features;
mod instruction;
mod jinja;
mod json;
mod label;
pub mod local;
mod long_texts;
mod odd;
mod packed;
mod parquet;
pub mod prompts;
pub mod recognise;
pub mod repository;
pub mod row;
pub mod rows;
mod scan;
mod separated;
pub mod share;
mod special;
pub mod split;
pub mod task;
pub mod template;
mod text_file;
pub mod texts;
pub mod tokenize;
mod tokenizer_class;
mod tokenizer_file;
pub mod words;

pub use label::Label;
use serde::{Deserialize, Serialize};
pub use task::Task;

/// One tokenised row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Row of the split, from 0, over all its files and counting rows that cannot be used.
    pub index: usize,
    /// Token ids, special tokens included, at most `max_length`.
    pub ids: Vec<u32>,
    /// Token type of each id: 0, or 1 in the second sentence where the tokenizer makes a difference; empty where all are 0.
    pub types: Vec<u8>,
    /// 1 for each id that is a target, predicted from those before it, or that is the first of a word with a tag; empty where
    /// the whole example has one label.
    pub trained: Vec<u8>,
    /// Target of a labelled example; absent in test splits only.
    pub label: Option<Label>,
}

/// Rows that could not be used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// Number of skipped rows.
    pub count: usize,
    /// File, row and reason of the first ones.
    pub first: Vec<String>,
}

/// Length of a row before it was cut to `max_length`.
#[derive(Debug, Clone, Copy)]
pub struct Whole {
    /// Its tokens; of a text of more than 64 KiB, those that were read.
    tokens: u32,
    /// True if some of them were cut off.
    pub is_cut: bool,
    /// True if the last token that would be trained on is among those.
    lost_end: bool,
}

/// What was cut off the rows of a split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truncation {
    /// Number of rows cut to `max_length`.
    pub rows: usize,
    /// Tokens of the longest row before it was cut; of a text of more than 64 KiB, those that were read.
    pub longest: usize,
    /// Number of rows that lost the token that ends what is trained on.
    pub without_end: usize,
}

impl Whole {
    fn new(tokens: usize, is_cut: bool, lost_end: bool) -> Self {
        Self { tokens: u32::try_from(tokens).unwrap_or(u32::MAX), is_cut, lost_end }
    }
}

impl Truncation {
    /// Returns what was cut off the rows of both.
    pub fn and(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            longest: self.longest.max(other.longest),
            without_end: self.without_end + other.without_end,
        }
    }

    fn of(rows: impl Iterator<Item = Whole>) -> Self {
        rows.fold(Self::default(), |all, row| Self {
            rows: all.rows + usize::from(row.is_cut),
            longest: all.longest.max(row.tokens as usize),
            without_end: all.without_end + usize::from(row.lost_end),
        })
    }
}

/// A tokenised split.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// The usable rows, in the order of the files.
    pub examples: Vec<Example>,
    /// Rows that could not be used.
    pub skipped: Skipped,
    /// What was cut off them.
    pub truncation: Truncation,
    /// Hex digest of everything that these depend on: file contents, tokenizer, columns, labels, lengths.
    pub hash: String,
}
