//! `is_equiv` of the MATH data set: two answers are equal if their normalised strings are.
//!
//! EleutherAI/lm-evaluation-harness, `lm_eval/tasks/hendrycks_math/utils.py`, after hendrycks/math@357963a,
//! `modeling/math_equivalence.py`. Where the original raises, [`strip_string`] is `None` and raw strings are compared.

use super::{Verdict, boxed, python};

/// Compares the text between the first and the last `$` of the completion, or all of it, with the last box.
pub fn judge(completion: &str, gold: &str) -> Verdict {
    let found = match (completion.find('$'), completion.rfind('$')) {
        (Some(first), Some(last)) if first < last => &completion[first + 1..last],
        _ => completion,
    };
    Verdict::of(found, boxed::last_content(gold).is_some_and(|gold| is_equiv(found, gold)))
}

/// Returns true if the normalised strings are equal, or the raw ones if one of them cannot be normalised.
pub fn is_equiv(a: &str, b: &str) -> bool {
    match (strip_string(a), strip_string(b)) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

/// Normalises an answer, step by step as in the original; `None` where that raises an exception.
pub fn strip_string(text: &str) -> Option<String> {
    let mut text = text.replace('\n', "").replace("\\!", "").replace("\\\\", "\\");
    for (from, to) in [("tfrac", "frac"), ("dfrac", "frac")] {
        text = text.replace(from, to);
    }
    for gone in ["\\left", "\\right", "^{\\circ}", "^\\circ", "\\$"] {
        text = text.replace(gone, "");
    }
    text = without_units(&text)?.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.");
    if text.is_empty() {
        return Some(text);
    }
    if text.starts_with('.') {
        text.insert(0, '0');
    }
    // A short name on the left of the only equals sign goes: `k = 5` is `5`.
    let parts: Vec<&str> = text.split('=').collect();
    if let [name, value] = parts[..]
        && name.chars().count() <= 2
    {
        text = value.to_owned();
    }
    text = braced_roots(&text)?.replace(' ', "");
    text = braced_fractions(&text)?;
    if text == "0.5" {
        return Some("\\frac{1}{2}".to_owned());
    }
    fraction_of_slash(text)
}

/// Cuts off `\text{ units}`; two of them raise.
fn without_units(text: &str) -> Option<&str> {
    let mut parts = text.split("\\text{ ");
    let first = parts.next()?;
    (parts.count() <= 1).then_some(first)
}

/// Rewrites `\sqrt3` as `\sqrt{3}`; a root at the end raises.
fn braced_roots(text: &str) -> Option<String> {
    let mut parts = text.split("\\sqrt");
    let mut whole = parts.next()?.to_owned();
    for part in parts {
        let first = part.chars().next()?;
        if first == '{' {
            whole.extend(["\\sqrt", part]);
        } else {
            whole.push_str(&format!("\\sqrt{{{first}}}{}", &part[first.len_utf8()..]));
        }
    }
    Some(whole)
}

/// Rewrites `\frac12` and `\frac1{2}` as `\frac{1}{2}`. A fraction at the end raises; one of a single
/// character leaves the whole text as it was.
fn braced_fractions(text: &str) -> Option<String> {
    let mut parts = text.split("\\frac");
    let mut whole = parts.next()?.to_owned();
    for part in parts {
        let mut characters = part.chars();
        let above = characters.next()?;
        if above == '{' {
            whole.extend(["\\frac", part]);
            continue;
        }
        let Some(below) = characters.next() else { return Some(text.to_owned()) };
        let rest = characters.as_str();
        if below == '{' {
            whole.push_str(&format!("\\frac{{{above}}}{{{rest}"));
        } else {
            whole.push_str(&format!("\\frac{{{above}}}{{{below}}}{rest}"));
        }
    }
    Some(whole)
}

/// Rewrites `a/b` of two whole numbers as `\frac{a}{b}`. One slash between anything else raises, except
/// numbers that are not written as Python writes them (`01/2`), which stay.
fn fraction_of_slash(text: String) -> Option<String> {
    let parts: Vec<&str> = text.split('/').collect();
    let [above, below] = parts[..] else { return Some(text) };
    if !python::is_int(above) || !python::is_int(below) {
        return None;
    }
    let canonical = |part: &str| {
        let digits = part.strip_prefix('-').unwrap_or(part);
        part == "0" || (!digits.starts_with(['0', '+']) && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let both = canonical(above) && canonical(below);
    Some(if both { format!("\\frac{{{above}}}{{{below}}}") } else { text })
}
