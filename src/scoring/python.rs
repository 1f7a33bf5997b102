//! Numbers as Python reads them, on which the published rules depend, and the patterns of this module.

use regex::Regex;

/// Compiles a pattern of this crate.
///
/// # Panics
/// When it is no pattern; every rule's tests compile its own.
#[allow(clippy::expect_used, reason = "a literal of this crate, compiled by the tests")]
pub fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a valid pattern")
}

/// Reads as `float(text)` does; `None` where that raises.
pub fn float(text: &str) -> Option<f64> {
    let text = text.trim();
    let bytes = text.as_bytes();
    let between_digits = |place: usize| {
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        place > 0 && digit(place - 1) && digit(place + 1)
    };
    let valid = bytes.iter().enumerate().all(|(place, &byte)| byte != b'_' || between_digits(place));
    valid.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// Returns true if `int(text)` reads it.
pub fn is_int(text: &str) -> bool {
    let text = text.trim();
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    !digits.is_empty()
        && digits.split('_').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
}

/// `math.isclose(a, b, rel_tol=relative)`.
pub fn is_close(a: f64, b: f64, relative: f64) -> bool {
    a == b || (a.is_finite() && b.is_finite() && (a - b).abs() <= relative * a.abs().max(b.abs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_python_reads_them() {
        for (text, value) in [(" 1.5 ", 1.5), ("1_000", 1000.0), (".5", 0.5), ("5.", 5.0), ("+1e3", 1000.0)] {
            assert_eq!(float(text), Some(value), "{text}");
        }
        for text in ["", "1__0", "_1", "1_", "1,000", "0x1", "--1", "1_.5"] {
            assert_eq!(float(text), None, "{text}");
        }
        assert!(is_int("-12") && is_int("+1_0") && is_int(" 7 "));
        assert!(!is_int("") && !is_int("1.0") && !is_int("-") && !is_int("1__0") && !is_int("x"));
    }
}
