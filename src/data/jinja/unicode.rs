//! Kinds of characters as Python's `str` knows them.

use std::sync::LazyLock;

use regex::Regex;

/// Returns true for white space of `str.isspace`, `str.strip` and `\s`.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.rstrip`.
pub(super) fn trim_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `str.strip`.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Appends a text, replacing each character that is not plain.
pub(super) fn replace_chars(
    text: &str,
    is_plain: impl Fn(char) -> bool,
    out: &mut String,
    replace: impl Fn(char, &mut String),
) {
    let mut rest = text;
    while let Some((at, c)) = rest.char_indices().find(|(_, c)| !is_plain(*c)) {
        out.push_str(&rest[..at]);
        replace(c, out);
        rest = &rest[at + c.len_utf8()..];
    }
    out.push_str(rest);
}

/// Returns true for characters that end a line in `str.splitlines`.
pub(super) fn is_line_end(c: char) -> bool {
    matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// Characters of some general categories of Unicode.
pub(super) struct Category {
    /// Test for the ASCII characters that belong to it.
    ascii: fn(char) -> bool,
    /// One bit for each character.
    all: LazyLock<Vec<u64>>,
}

impl Category {
    pub fn has(&self, c: char) -> bool {
        if c.is_ascii() {
            return (self.ascii)(c);
        }
        let code = u32::from(c) as usize;
        self.all.get(code / 64).is_some_and(|bits| bits >> (code % 64) & 1 == 1)
    }
}

/// Returns the characters that a class of a regular expression matches, one bit each.
fn class(pattern: &str) -> Vec<u64> {
    let mut bits = vec![0; 0x11_0000 / 64];
    let Ok(class) = Regex::new(pattern) else { return bits };
    let mut bytes = [0; 4];
    for c in (0..0x11_0000).filter_map(char::from_u32) {
        if class.is_match(c.encode_utf8(&mut bytes)) {
            let code = u32::from(c) as usize;
            bits[code / 64] |= 1 << (code % 64);
        }
    }
    bits
}

/// `str.isalpha`.
pub(super) static LETTER: Category =
    Category { ascii: |c| c.is_ascii_alphabetic(), all: LazyLock::new(|| class(r"\p{L}")) };
/// `str.isdecimal`.
pub(super) static DECIMAL: Category =
    Category { ascii: |c| c.is_ascii_digit(), all: LazyLock::new(|| class(r"\p{Nd}")) };
/// `\w`: letters, everything that has a number's value, and `_`.
static WORD: Category = Category {
    ascii: |c| c.is_ascii_alphanumeric() || c == '_',
    all: LazyLock::new(|| class(r"[\p{L}\p{N}]")),
};
/// Characters that `repr` writes as an escape.
static HIDDEN: Category =
    Category { ascii: |c| c.is_ascii_control(), all: LazyLock::new(|| class(r"[\p{C}\p{Z}]")) };

/// `str.isalnum` or `_`.
pub(super) fn is_word(c: char) -> bool {
    WORD.has(c)
}

/// `str.isprintable`.
pub(super) fn is_printable(c: char) -> bool {
    !HIDDEN.has(c)
}

/// Returns true for a letter of two of which only the first is upper case.
pub(super) fn is_title(c: char) -> bool {
    let greek = ('\u{1f88}'..='\u{1faf}').contains(&c) && u32::from(c) & 8 != 0;
    greek || matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | 'ᾼ' | 'ῌ' | 'ῼ')
}

/// Returns true if a character has a case of its own.
pub(super) fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// Appends a character as `str.title` writes it at the beginning of a word.
pub(super) fn title(c: char, out: &mut String) {
    match c {
        // Letters of two, of which only the first becomes upper case
        'Ǆ'..='ǆ' => out.push('ǅ'),
        'Ǉ'..='ǉ' => out.push('ǈ'),
        'Ǌ'..='ǌ' => out.push('ǋ'),
        'Ǳ'..='ǳ' => out.push('ǲ'),
        // Georgian letters stay the same at the beginning of a word, and Greek ones have an iota below
        'ა'..='ჺ' | 'ჽ'..='ჿ' => out.push(c),
        'ᾀ'..='ᾯ' => out.extend(char::from_u32(u32::from(c) | 8)),
        'ᾳ' | 'ᾼ' => out.push('ᾼ'),
        'ῃ' | 'ῌ' => out.push('ῌ'),
        'ῳ' | 'ῼ' => out.push('ῼ'),
        'ŉ' => out.push_str("ʼN"),
        _ => {
            let mut large = c.to_uppercase();
            out.extend(large.next());
            let is_greek = ('\u{1f80}'..'\u{2000}').contains(&c);
            let iota = |c: char| if is_greek && c == 'Ι' { '\u{345}' } else { c };
            out.extend(large.map(iota).flat_map(char::to_lowercase));
        }
    }
}
