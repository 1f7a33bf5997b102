//! GSM8K as lm-evaluation-harness scores it, and the last number of LLM-Adapters.

use std::sync::LazyLock;

use regex::Regex;

use super::Verdict;
use super::python::{float, pattern};

/// The harness's placeholder for an answer that it cannot find.
const INVALID: &str = "[invalid]";

static STRICT: LazyLock<Regex> = LazyLock::new(|| pattern(r"#### (\-?[0-9\.\,]+)"));
static FLEXIBLE: LazyLock<Regex> = LazyLock::new(|| pattern(r"(-?[$0-9.,]{2,})|(-?[0-9]+)"));
static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"-?\d+\.?\d*"));

/// Scores the first `#### N` (`lm_eval/tasks/gsm8k/gsm8k.yaml` version 3.0, `strict-match`).
pub fn strict(completion: &str, gold: &str) -> Verdict {
    let found = STRICT.captures(completion).and_then(|groups| groups.get(1)).map(|group| group.as_str());
    exact_match(found, gold)
}

/// Scores the last number-like run of characters (`flexible-extract` of the same file).
pub fn flexible(completion: &str, gold: &str) -> Verdict {
    exact_match(FLEXIBLE.find_iter(completion).last().map(|found| found.as_str().trim()), gold)
}

fn exact_match(found: Option<&str>, gold: &str) -> Verdict {
    let correct = normalised(found.unwrap_or(INVALID)) == normalised(gold);
    Verdict { extracted: found.map(str::to_owned), correct }
}

/// Normalises as the `exact_match` of that file: `regexes_to_ignore` in turn, then lower case.
fn normalised(text: &str) -> String {
    let text = text.replace([',', '$'], "");
    let text = text.rsplit("#### ").next().unwrap_or_default();
    // Python's `\.$` also matches before a line feed that ends the text.
    let text = match text.strip_suffix('.') {
        Some(rest) => rest.to_owned(),
        None => text.strip_suffix(".\n").map_or_else(|| text.to_owned(), |rest| format!("{rest}\n")),
    };
    text.to_lowercase()
}

/// Scores the last number within 0.001 of the gold one (AGI-Edgerunners/LLM-Adapters@8166572, `evaluate.py`).
/// Of a GSM8K answer the gold number is what follows `####`.
pub fn last_number(completion: &str, gold: &str) -> Verdict {
    let completion = completion.replace(',', "");
    let Some(found) = NUMBER.find_iter(&completion).last() else { return Verdict::none() };
    let gold = gold.rsplit("####").next().unwrap_or_default().replace([',', '$'], "");
    let correct = match (float(found.as_str()), float(&gold)) {
        (Some(predicted), Some(gold)) => (gold - predicted).abs() <= 0.001,
        _ => false,
    };
    Verdict::of(found.as_str(), correct)
}
