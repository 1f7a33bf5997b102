//! The rules of MetaMath's evaluation scripts and their variants in the scripts of LoRA-XS.
//!
//! meta-math/MetaMath@fe667b1, `eval_gsm8k.py` and `eval_math.py`; MohammadrezaBanaei/LoRA-XS@e50b1a8,
//! `instruction_tuning_eval/gsm8k_eval.py`, `MATH_eval.py`, `utils.py` and `grader.py`.

use std::sync::LazyLock;

use regex::Regex;

use super::python::{float, is_close, pattern};
use super::{Verdict, boxed, equivalence, hendrycks};

const DELIMITER: &str = "The answer is: ";

static NUMBER: LazyLock<Regex> = LazyLock::new(|| pattern(r"[\-+]?\d*[\.,/]?\d+"));

/// Compares the first number after the last `The answer is: `, rounded, with the whole number after `#### `.
pub fn gsm8k(completion: &str, gold: &str) -> Verdict {
    judge_number(completion, gold, |predicted, gold| predicted == gold)
}

/// Like [`gsm8k`], but also accepts numbers that `grader.py` calls equal ([`numbers_equal`]).
pub fn gsm8k_loraxs(completion: &str, gold: &str) -> Verdict {
    judge_number(completion, gold, |predicted, gold| predicted == gold || numbers_equal(predicted, gold))
}

fn judge_number(completion: &str, gold: &str, equal: impl Fn(f64, f64) -> bool) -> Verdict {
    let Some(predicted) = number(completion) else { return Verdict::none() };
    // Gold answers of other sets may be the number alone.
    let gold = float(&gold.split("#### ").nth(1).unwrap_or(gold).replace(',', ""));
    Verdict::of(format!("{predicted}"), gold.is_some_and(|gold| equal(predicted, gold)))
}

/// `extract_answer_number`, with its quirks: `1,234,567` is 1234, halves round to even, `3/0` is 3, and `/5` is none.
/// There is no number where the script would stop with an exception (`3/00`, `1/2` with infinite parts).
fn number(completion: &str) -> Option<f64> {
    let (_, text) = completion.rsplit_once(DELIMITER)?;
    let found = NUMBER.find(text.trim())?.as_str();
    let value = match found.split_once('/') {
        Some((above, "0")) => float(&above.replace(',', ""))?,
        Some((above, below)) => float(above)? / float(below)?,
        None => float(&found.replace(',', ""))?,
    };
    // Adding zero makes one number of 0 and -0, as Python's whole numbers have it.
    value.is_finite().then(|| value.round_ties_even() + 0.0)
}

/// Compares what follows the last `The answer is: ` with the last box of the solution, by `is_equiv`.
pub fn math(completion: &str, gold: &str) -> Verdict {
    judge_text(completion, gold, hendrycks::is_equiv)
}

/// Like [`math`], but also accepts [`math_equal`] of the two normalised strings. If the normalisation raises, the
/// published script compares the prediction with itself and counts it as correct; here the raw strings are compared.
pub fn math_loraxs(completion: &str, gold: &str) -> Verdict {
    judge_text(completion, gold, |predicted, gold| {
        match (hendrycks::strip_string(predicted), hendrycks::strip_string(gold)) {
            (Some(predicted), Some(gold)) => predicted == gold || math_equal(&predicted, &gold),
            _ => predicted == gold || math_equal(predicted, gold),
        }
    })
}

fn judge_text(completion: &str, gold: &str, equal: impl Fn(&str, &str) -> bool) -> Verdict {
    let Some((_, text)) = completion.rsplit_once(DELIMITER) else { return Verdict::none() };
    let text = text.split(".\n").next().unwrap_or_default().trim();
    let found = text.strip_suffix('.').unwrap_or(text).trim();
    let gold = boxed::last_braced(gold).and_then(boxed::content);
    Verdict::of(found, gold.is_some_and(|gold| equal(found, gold)))
}

/// `math_equal` of LoRA-XS's `grader.py`: numbers within 1e-4 of the reference, its hundredth or its hundredfold; texts
/// equal but for brackets; lists in equal brackets part by part; else [`equivalence::equivalent`] instead of SymPy.
fn math_equal(predicted: &str, reference: &str) -> bool {
    let digits = |text: &str| float(&text.replace(',', ""));
    if let (Some(predicted), Some(reference)) = (digits(predicted), digits(reference)) {
        return numbers_equal(predicted, reference);
    }
    if predicted.is_empty() {
        return false;
    }
    let (predicted, reference) = (predicted.trim(), reference.trim());
    let between = |text: &str, open: char, close: char| text.starts_with(open) && text.ends_with(close);
    let loose = (between(predicted, '[', ']') && !reference.starts_with('('))
        || (between(predicted, '(', ')') && !reference.starts_with('['));
    let bare = |text: &str| {
        let text = if loose { text.trim_matches(['[', ']', '(', ')']) } else { text };
        text.replace(['{', '}', '(', ')'], "")
    };
    if bare(predicted) == bare(reference) {
        return true;
    }
    let both = |open, close| between(predicted, open, close) && between(reference, open, close);
    if (both('[', ']') || both('(', ')')) && predicted.len() > 1 && reference.len() > 1 {
        let parts = |text: &str| text[1..text.len() - 1].split(',').map(str::to_owned).collect::<Vec<_>>();
        let (predicted, reference) = (parts(predicted), parts(reference));
        if predicted.len() == reference.len()
            && predicted.iter().zip(&reference).all(|(predicted, reference)| math_equal(predicted, reference))
        {
            return true;
        }
    }
    equivalence::equivalent(reference, predicted)
}

fn numbers_equal(predicted: f64, reference: f64) -> bool {
    [reference / 100.0, reference, reference * 100.0]
        .into_iter()
        .any(|reference| is_close(reference, predicted, 1e-4))
}
