//! Letters in a row: a word, a product of names, or the name of a function.

/// Names of functions and constants that may lack a backslash.
pub const FUNCTIONS: [&str; 17] = [
    "sqrt", "abs", "sin", "cos", "tan", "cot", "det", "csc", "arcsin", "arccos", "arctan", "ln", "log",
    "exp", "pi", "theta", "infty",
];

/// Words of two letters.
const SHORT_WORDS: [&str; 34] = [
    "ad", "ah", "am", "an", "as", "at", "ax", "be", "by", "do", "ed", "eh", "ex", "go", "ha", "he", "hi",
    "if", "in", "is", "it", "me", "mr", "ms", "my", "no", "of", "oh", "ok", "on", "or", "so", "to", "up",
];

/// Returns true if letters are a word rather than a product of names or the name of a function.
pub fn is_word(letters: &str) -> bool {
    let lower = letters.to_ascii_lowercase();
    match letters.len() {
        0 | 1 => false,
        2 => SHORT_WORDS.contains(&lower.as_str()) || is_roman(letters),
        _ => !FUNCTIONS.contains(&lower.as_str()) && !is_capital(letters),
    }
}

fn is_capital(letters: &str) -> bool {
    letters.bytes().all(|c| c.is_ascii_uppercase())
}

/// Returns true if it is a small Roman number.
pub fn is_roman(letters: &str) -> bool {
    letters.bytes().all(|c| b"IVX".contains(&c))
}

/// Returns true if letters denote numbers rather than words: `xy`, `abc`, `a - b`.
pub fn is_product(text: &str) -> bool {
    let (letters, vowels) = (text.as_bytes(), text.bytes().filter(|c| b"aeiou".contains(c)).count());
    let neighbours = letters.windows(2).all(|pair| pair[0] + 1 == pair[1]);
    match letters.len() {
        2 if !text.contains(' ') => !is_word(text),
        3 if is_lower(text) => vowels == 0 || neighbours,
        _ if text.contains('-') => text.split('-').all(|run| run.trim().len() <= 2),
        _ => text.split(' ').all(|run| run.len() <= 1),
    }
}

fn is_lower(letters: &str) -> bool {
    letters.bytes().all(|c| c.is_ascii_lowercase())
}
