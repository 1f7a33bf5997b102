//! Results of other tools, told apart by their keys.

use std::path::Path;

use regex::Regex;
use serde_json::Value;

use super::record::Record;
use super::{harness, peft};
use crate::files::read_json_text;

/// Returns the records in a file; none if it holds something else.
pub fn records(path: &Path) -> Vec<Record> {
    if !path.is_file() || path.extension().is_none_or(|ending| ending != "json") {
        return Vec::new();
    }
    let Some(value) = read_json_text(path).ok().and_then(|text| parse(&text)) else { return Vec::new() };
    match peft::record(&value, path) {
        Some(record) => vec![record],
        None => harness::records(&value, path),
    }
}

/// Parses JSON as Python writes it, with NaN and infinities; these become `null`.
fn parse(text: &str) -> Option<Value> {
    let plain = || {
        let number = Regex::new(r"([:\[,]\s*)-?(?:NaN|Infinity)\b").ok()?;
        serde_json::from_str(&number.replace_all(text, "${1}null")).ok()
    };
    serde_json::from_str(text).ok().or_else(plain)
}
