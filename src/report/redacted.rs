//! Hides secrets in messages: passwords and tokens in URLs, and the hub's access token.

use std::sync::{LazyLock, Mutex};

use regex::Regex;

use crate::fault::locked;

/// Replacement for a secret.
const HIDDEN: &str = "***";

/// Secrets registered by [`hide`].
static SECRETS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Secrets recognised by their context: the user of a URL, values in a query such as those of signed URLs,
/// the hub's tokens, and a request's authorisation.
#[expect(clippy::unwrap_used, reason = "the expressions are fixed, and a test compiles them")]
static PLACES: LazyLock<[Regex; 4]> = LazyLock::new(|| {
    [
        r#"(?<before>://)[^/?\#\s"'`<>]*(?<after>@)"#,
        r#"(?i)(?<before>[?&][^=&\s]*(?:token|sig|credential|secret|passw|key|policy|auth)[^=&\s]*=)[^&\s"'`<>\\]+"#,
        r"\b(?<before>hf_)[A-Za-z0-9]{8,}",
        r#"(?i)(?<before>\bauthorization\W{1,4}(?:bearer |basic )?)[A-Za-z0-9+/=._~-]+"#,
    ]
    .map(|expression| Regex::new(expression).unwrap())
});

/// Hides `secret` in every message from now on.
pub fn hide(secret: &str) {
    // One or two letters would match all over every message.
    if secret.len() > 2 {
        locked(&SECRETS).push(secret.to_owned());
    }
}

/// Returns `text` without its secrets.
pub fn redacted(text: &str) -> String {
    let mut text = text.to_owned();
    for secret in locked(&SECRETS).iter() {
        text = text.replace(secret, HIDDEN);
    }
    let hidden = format!("${{before}}{HIDDEN}$after");
    PLACES.iter().fold(text, |text, place| place.replace_all(&text, &hidden).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_tokens_and_signatures_are_hidden_wherever_they_stand() {
        let cases = [
            ("cannot reach `http://me:PASS@hub:80/x`", "cannot reach `http://***@hub:80/x`"),
            ("socks5://me:P@SS@proxy", "socks5://***@proxy"),
            ("https://TOKEN@hub", "https://***@hub"),
            ("`https://cdn/x?X-Amz-Signature=abc&a=1`", "`https://cdn/x?X-Amz-Signature=***&a=1`"),
            ("{\"url\":\"https://cdn/x?Key-Pair-Id=K1\"}", "{\"url\":\"https://cdn/x?Key-Pair-Id=***\"}"),
            ("token hf_abcdefghijkl is wrong", "token hf_*** is wrong"),
            ("authorization: Bearer abcdefgh.ijk", "authorization: Bearer ***"),
            ("https://hub/me@main/x, me@host, a@b", "https://hub/me@main/x, me@host, a@b"),
            ("\"authorization\": \"abcdefgh\"", "\"authorization\": \"***\""),
            ("a basic tokenizer of a bearer", "a basic tokenizer of a bearer"),
        ];
        for (text, expected) in cases {
            assert_eq!(redacted(text), expected);
        }
        hide("s3cret word");
        assert_eq!(redacted("says s3cret word twice: s3cret word"), "says *** twice: ***");
    }
}
