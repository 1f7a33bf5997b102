//! Multiple choice as in LLM-Adapters: the first label that the completion names.
//!
//! AGI-Edgerunners/LLM-Adapters@8166572, `commonsense_evaluate.py`: the leftmost match of the labels, word
//! boundaries ignored (`untrue` is `true`; `answer12` is `answer1`).

use super::Verdict;

/// Compares the leftmost of `labels` in the completion with the gold label.
pub fn judge(completion: &str, gold: &str, labels: &[&str]) -> Verdict {
    let first = labels.iter().filter_map(|label| completion.find(label).map(|place| (place, *label))).min();
    first.map_or_else(Verdict::none, |(_, label)| Verdict::of(label, label == gold.trim()))
}
