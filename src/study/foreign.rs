//! Results of other tools, told apart by their keys.

use std::fs::File;
use std::path::Path;

use serde_json::Value;

use super::record::Record;
use super::{harness, peft};

/// Largest file that is read, in bytes; results of all tasks of a harness have less than 1 MiB.
const LARGEST: u64 = 64 << 20;

/// Returns the records in a file; none if it holds something else.
pub fn records(path: &Path) -> Vec<Record> {
    let is_small = path.metadata().is_ok_and(|about| about.is_file() && about.len() <= LARGEST);
    if !is_small || path.extension().is_none_or(|ending| ending != "json") {
        return Vec::new();
    }
    let Ok(file) = File::open(path) else { return Vec::new() };
    let Ok(value) = serde_json::from_reader::<_, Value>(std::io::BufReader::new(file)) else {
        return Vec::new();
    };
    match peft::record(&value, path) {
        Some(record) => vec![record],
        None => harness::records(&value, path),
    }
}
