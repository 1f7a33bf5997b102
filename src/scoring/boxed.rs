//! The last box of a solution, as the published scripts find it.

/// Returns the last `\boxed{…}` (or `\fbox{…}` if there is none) with its braces; `None` if the braces do not
/// close. hendrycks/math@357963a, `modeling/dataset/util.py`, as MetaMath and LoRA-XS have it.
pub fn last_braced(text: &str) -> Option<&str> {
    let start = text.rfind("\\boxed").or_else(|| text.rfind("\\fbox"))?;
    closing(&text[start..], 0).map(|end| &text[start..=start + end])
}

/// Returns the place of the brace that closes the last of those that are open, of which there are `open` before the text.
pub fn closing(text: &str, mut open: i32) -> Option<usize> {
    text.bytes().position(|byte| {
        open += i32::from(byte == b'{') - i32::from(byte == b'}');
        byte == b'}' && open == 0
    })
}

/// Returns the content of the last box; `\boxed 2$` holds `2`. EleutherAI/lm-evaluation-harness,
/// `hendrycks_math/utils.py`; where that raises (an `\fbox`, a bare `\boxed`), there is no content.
pub fn last_content(text: &str) -> Option<&str> {
    const BARE: &str = "\\boxed ";
    match text.rfind(BARE) {
        Some(start) => text[start + BARE.len()..].split('$').next(),
        None => last_braced(text).and_then(content),
    }
}

/// Maximum number of boxes of one answer.
const MOST_BOXES: usize = 64;

/// Returns the content of the last box of any form, and what follows it. Boxes shortly before it, or with a
/// comma, `and` or `or` between, belong to the answer and are joined by commas, as in Math-Verify; of nested
/// boxes the innermost. Unclosed, it holds all that follows with the open brace, which no reader takes.
pub fn last_answer(text: &str) -> Option<(String, &str)> {
    let mut parts: Vec<&str> = Vec::new();
    let mut before = text;
    let mut after = "";
    for _ in 0..MOST_BOXES {
        let Some((start, end, inner)) = last_box(before) else { break };
        if end.is_none() && !parts.is_empty() {
            // It is around the boxes that were found, and they hold the answer.
            after = after.trim_start_matches(|c: char| c == '}' || c.is_whitespace());
            before = &text[..start];
            continue;
        }
        let between = &before[end.unwrap_or(before.len())..];
        if let Some(next) = parts.last() {
            let separated = between.contains([',', ';']) || between.contains("and") || between.contains("or");
            if between.len() >= 10 && (between.len() >= 70 || !separated || inner == *next) {
                break;
            }
        } else {
            after = between;
        }
        if parts.last() != Some(&inner) {
            parts.push(inner);
        }
        before = &text[..start];
    }
    parts.reverse();
    (!parts.is_empty()).then(|| (parts.join(","), after))
}

/// Returns start, end and content of the last box; no end if its braces do not close.
fn last_box(text: &str) -> Option<(usize, Option<usize>, &str)> {
    let start = text.rfind("\\boxed").max(text.rfind("\\fbox"))?;
    let name = if text[start..].starts_with("\\boxed") { "\\boxed" } else { "\\fbox" };
    let rest = text[start + name.len()..].trim_start();
    let from = text.len() - rest.len();
    let Some(inner) = rest.strip_prefix('{') else {
        let inner = rest.split('$').next().unwrap_or_default();
        return Some((start, Some(from + inner.len()), inner.trim()));
    };
    match closing(inner, 1) {
        Some(end) => Some((start, Some(from + end + 2), inner[..end].trim())),
        None => Some((start, None, rest)),
    }
}

/// Returns the content of `\boxed{…}`, or `None` for any other text.
pub fn content(text: &str) -> Option<&str> {
    text.strip_prefix("\\boxed{")?.strip_suffix('}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_box_is_found_with_its_braces() {
        assert_eq!(last_braced(r"\boxed{1} so $\boxed{\frac{1}{2}}$."), Some(r"\boxed{\frac{1}{2}}"));
        assert_eq!(last_braced(r"\fbox{3}"), Some(r"\fbox{3}"));
        assert_eq!(last_braced(r"\boxed{\frac{1}{2}"), None);
        assert_eq!(last_braced("none"), None);
    }

    #[test]
    fn the_content_of_boxes_without_braces_ends_at_the_dollar() {
        assert_eq!(last_content(r"it is $\boxed 2$."), Some("2"));
        assert_eq!(last_content(r"$\boxed{x^{2}}$"), Some("x^{2}"));
        assert_eq!(last_content(r"\fbox{3}"), None);
    }
}
