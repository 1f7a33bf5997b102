//! Data sets: the catalog, readers of local files, tokenising, and its cache. Independent of tensors.

mod added_tokens;
mod cache;
pub mod catalog;
mod chat;
pub mod chat_prompt;
pub mod dataset;
pub mod entry;
pub mod examples;
mod instruction;
mod jinja;
mod json;
mod label;
mod long_texts;
mod odd;
mod packed;
mod parquet;
pub mod prompts;
pub mod row;
pub mod rows;
mod scan;
mod separated;
mod special;
pub mod split;
pub mod task;
pub mod template;
mod text_file;
pub mod texts;
pub mod tokenize;
mod tokenizer_class;
mod tokenizer_file;
mod words;

pub use label::Label;
use serde::{Deserialize, Serialize};
pub use task::Task;

/// One tokenised row.
#[derive(Debug, Clone, PartialEq)]
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

/// A tokenised split.
#[derive(Debug, Clone, PartialEq)]
pub struct Examples {
    /// The usable rows, in the order of the files.
    pub examples: Vec<Example>,
    /// Rows that could not be used.
    pub skipped: Skipped,
    /// Number of examples cut to `max_length`.
    pub truncated: usize,
    /// Hex digest of everything that these depend on: file contents, tokenizer, columns, labels, lengths.
    pub hash: String,
}
