//! Mathematical equivalence of two answers.

use super::Verdict;
use super::boxed;

/// Equivalence.
pub fn judge(completion: &str, gold: &str) -> Verdict {
    let (Some(found), Some(gold)) = (boxed::last_content(completion), boxed::last_content(gold)) else {
        return Verdict::none();
    };
    Verdict::of(found, equivalent(gold, found))
}

/// Whether two answers are the same.
pub fn equivalent(gold: &str, predicted: &str) -> bool {
    gold == predicted
}
