//! Upper and lower case, and other kinds of characters in texts.

use super::meter::{Failure, Outcome};
use super::unicode::{self, DECIMAL, LETTER, is_cased, is_printable, is_space, is_title, is_word};

/// Applies a method that only changes the case of letters; `None` if the name is another.
pub(super) fn changed_case(text: &str, name: &str) -> Outcome<Option<String>> {
    Ok(Some(match name {
        "lower" => text.to_lowercase(),
        "upper" => text.to_uppercase(),
        "capitalize" => capitalized(text),
        "title" => titled(text),
        "swapcase" => swapped(text),
        "casefold" if text.is_ascii() => text.to_ascii_lowercase(),
        "casefold" => return Err(Failure::refused("`casefold` of other than ASCII characters")),
        _ => return Ok(None),
    }))
}

/// `str.capitalize`.
fn capitalized(text: &str) -> String {
    let mut out = String::new();
    if let Some(first) = text.chars().next() {
        unicode::title(first, &mut out);
        let lower = text.to_lowercase();
        let small: String = first.to_lowercase().collect();
        out.push_str(lower.strip_prefix(&small).unwrap_or(&lower));
    }
    out
}

/// `str.title`.
fn titled(text: &str) -> String {
    recased(text, |c, follows, ends, out| match c {
        'Σ' if follows => out.push(if ends { 'ς' } else { 'σ' }),
        c if follows => out.extend(c.to_lowercase()),
        c => unicode::title(c, out),
    })
}

fn swapped(text: &str) -> String {
    recased(text, |c, follows, ends, out| match c {
        'Σ' => out.push(if follows && ends { 'ς' } else { 'σ' }),
        c if c.is_lowercase() => out.extend(c.to_uppercase()),
        c if c.is_uppercase() => out.extend(c.to_lowercase()),
        c => out.push(c),
    })
}

/// Changes each character, given whether it follows a cased letter and whether none follows it: sigma has a
/// form of its own at the end of a word.
fn recased(text: &str, change: impl Fn(char, bool, bool, &mut String)) -> String {
    let (mut out, mut follows) = (String::with_capacity(text.len()), false);
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let ends = !chars.peek().is_some_and(|next| is_cased(*next));
        change(c, follows, ends, &mut out);
        follows = is_cased(c);
    }
    out
}

/// Applies a method that asks whether all characters are of one kind.
pub(super) fn is_all(text: &str, name: &str) -> Outcome<bool> {
    let is = |kind: fn(char) -> bool| !text.is_empty() && text.chars().all(kind);
    Ok(match name {
        "isalpha" => is(|c| LETTER.has(c)),
        "isalnum" => is(|c| c != '_' && is_word(c)),
        "isdecimal" => is(|c| DECIMAL.has(c)),
        "isspace" => is(is_space),
        "isascii" => text.is_ascii(),
        "isprintable" => text.chars().all(is_printable),
        "islower" => {
            text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title(c))
        }
        "isupper" => {
            text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title(c))
        }
        "istitle" => {
            let (mut follows, mut has) = (false, false);
            for c in text.chars() {
                let is_large = c.is_uppercase() || is_title(c);
                if is_large && follows || c.is_lowercase() && !follows {
                    return Ok(false);
                }
                follows = is_cased(c);
                has |= follows;
            }
            has
        }
        "isdigit" | "isnumeric" | "isidentifier" if !text.is_ascii() => {
            if name != "isidentifier" && is(|c| DECIMAL.has(c)) {
                return Ok(true);
            }
            return Err(Failure::refused(&format!("`{name}` of other than ASCII characters")));
        }
        "isdigit" | "isnumeric" => is(|c| c.is_ascii_digit()),
        "isidentifier" => is(is_word) && !text.starts_with(|c: char| c.is_ascii_digit()),
        name => return Err(Failure::new(format!("'str' object has no attribute '{name}'"))),
    })
}
