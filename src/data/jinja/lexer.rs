//! Splits the text of a template into tokens, as Jinja2 does with `trim_blocks` and `lstrip_blocks`.

use num_bigint::BigInt;

use super::meter::{Failure, Outcome};
use super::unicode::{is_space, is_word, trim_end};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Data(String),
    /// `{%`.
    Block,
    /// `{{`.
    Variable,
    /// The end of either.
    End,
    Name(String),
    Text(String),
    Int(BigInt),
    Float(f64),
    Op(&'static str),
    /// The end of the template.
    Eof,
}

/// Operators, longer ones before those that they begin with.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

/// Returns the tokens of a template with their lines.
///
/// # Errors
/// When a tag does not end, or holds what is no token.
pub(super) fn tokens(source: &str) -> Outcome<Vec<(usize, Token)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0, line: 1, begins_line: true, found: Vec::new() };
    lexer.root().map_err(|failure| failure.at(lexer.line))?;
    lexer.found.push((lexer.line, Token::Eof));
    Ok(lexer.found)
}

struct Lexer<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// True if the text read last ended a line.
    begins_line: bool,
    found: Vec<(usize, Token)>,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// Moves on by `bytes` bytes.
    fn pass(&mut self, bytes: usize) -> &'a str {
        let passed = &self.source[self.at..self.at + bytes];
        self.line += passed.matches('\n').count();
        self.at += bytes;
        if !passed.is_empty() {
            self.begins_line = passed.ends_with('\n');
        }
        passed
    }

    /// Moves past a text if it comes next; returns whether it does.
    fn skip(&mut self, text: &str) -> bool {
        let is_here = self.rest().starts_with(text);
        if is_here {
            self.pass(text.len());
        }
        is_here
    }

    fn skip_spaces(&mut self) {
        let rest = self.rest();
        self.pass(rest.len() - rest.trim_start_matches(is_space).len());
    }

    fn push(&mut self, token: Token) {
        self.found.push((self.line, token));
    }

    fn root(&mut self) -> Outcome<()> {
        loop {
            let rest = self.rest().as_bytes();
            let is_start = |pair: &[u8]| pair[0] == b'{' && matches!(pair[1], b'{' | b'%' | b'#');
            let Some(length) = rest.windows(2).position(is_start) else {
                let data = self.rest().to_owned();
                if !data.is_empty() {
                    self.push(Token::Data(data));
                }
                return Ok(());
            };
            let kind = self.rest().as_bytes().get(length + 1).copied().unwrap_or_default();
            let sign = self.rest().as_bytes().get(length + 2).copied().unwrap_or_default();
            self.data(length, sign, kind != b'{');
            if let Some(bytes) = self.raw_tag("raw", false) {
                self.pass(bytes);
                self.raw()?;
                continue;
            }
            let tag = self.line;
            self.pass(if matches!(sign, b'-' | b'+') { 3 } else { 2 });
            match kind {
                b'#' => self.comment().map_err(|failure| failure.at(tag))?,
                kind => {
                    self.push(if kind == b'%' { Token::Block } else { Token::Variable });
                    self.tag(kind == b'%')?;
                    self.push(Token::End);
                }
            }
        }
    }

    /// Adds `length` bytes of text before a tag, without the white space that the tag strips.
    fn data(&mut self, length: usize, sign: u8, strips_line: bool) {
        let begins_line = self.begins_line;
        let (line, text) = (self.line, self.pass(length));
        let line_start = text.rfind('\n').map_or(0, |at| at + 1);
        let text = match sign {
            b'-' => trim_end(text),
            b'+' => text,
            _ if strips_line && (line_start > 0 || begins_line) => {
                if text[line_start..].chars().all(is_space) { &text[..line_start] } else { text }
            }
            _ => text,
        };
        if !text.is_empty() {
            self.found.push((line, Token::Data(text.to_owned())));
        }
    }

    /// Returns the length of a `{% raw %}` or `{% endraw %}` tag here, with the white space that it strips.
    fn raw_tag(&self, word: &str, ends: bool) -> Option<usize> {
        let rest = self.rest().strip_prefix("{%")?;
        let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).trim_start_matches(is_space);
        let rest = rest.strip_prefix(word)?.trim_start_matches(is_space);
        let after = if let Some(after) = rest.strip_prefix("-%}") {
            after.trim_start_matches(is_space)
        } else if !ends {
            rest.strip_prefix("%}")?
        } else if let Some(after) = rest.strip_prefix("+%}") {
            after
        } else {
            let after = rest.strip_prefix("%}")?;
            after.strip_prefix('\n').unwrap_or(after)
        };
        Some(self.rest().len() - after.len())
    }

    fn raw(&mut self) -> Outcome<()> {
        let mut from = 0;
        while let Some(start) = self.rest()[from..].find("{%") {
            let here = Lexer { at: self.at + from + start, found: Vec::new(), ..*self };
            if let Some(bytes) = here.raw_tag("endraw", true) {
                let sign = here.rest().as_bytes().get(2).copied().unwrap_or_default();
                self.data(from + start, sign, true);
                self.pass(bytes);
                return Ok(());
            }
            from += start + 2;
        }
        // Jinja2 accepts the end of the template instead if nothing follows
        if self.rest().is_empty() { Ok(()) } else { Err(Failure::template("`{% raw %}` does not end")) }
    }

    fn comment(&mut self) -> Outcome<()> {
        let Some(end) = self.rest().find("#}") else {
            let is_all = self.rest().is_empty();
            return if is_all { Ok(()) } else { Err(Failure::template("a comment does not end")) };
        };
        let sign = self.rest()[..end].chars().next_back();
        self.pass(end + 2);
        match sign {
            Some('-') => self.skip_spaces(),
            Some('+') => {}
            _ => {
                self.skip("\n");
            }
        }
        Ok(())
    }

    /// Consumes the end of a tag, with the white space that it strips; returns false if there is none.
    fn ends(&mut self, is_block: bool) -> bool {
        if self.skip(if is_block { "-%}" } else { "-}}" }) {
            self.skip_spaces();
            return true;
        }
        if !is_block {
            return self.skip("}}");
        }
        if self.skip("+%}") {
            return true;
        }
        let ends = self.skip("%}");
        if ends {
            self.skip("\n");
        }
        ends
    }

    /// Splits the inside of a tag into tokens.
    fn tag(&mut self, is_block: bool) -> Outcome<()> {
        let mut open: Vec<&str> = Vec::new();
        loop {
            if open.is_empty() && self.ends(is_block) {
                return Ok(());
            }
            self.skip_spaces();
            if open.is_empty() && self.ends(is_block) {
                return Ok(());
            }
            let Some(first) = self.rest().chars().next() else {
                return Err(Failure::template("unexpected end of the template"));
            };
            if first.is_ascii_digit() {
                self.number()?;
            } else if is_word(first) {
                let rest = self.rest();
                let length = rest.len() - rest.trim_start_matches(is_word).len();
                let name = self.pass(length).to_owned();
                self.push(Token::Name(name));
            } else if matches!(first, '\'' | '"') {
                let text = self.text(first)?;
                self.push(Token::Text(text));
            } else {
                self.operator(first, &mut open)?;
            }
        }
    }

    fn operator(&mut self, first: char, open: &mut Vec<&'static str>) -> Outcome<()> {
        let Some(found) = OPERATORS.into_iter().find(|op| self.rest().starts_with(op)) else {
            return Err(Failure::template(format!("unexpected character `{first}`")));
        };
        match found {
            "(" => open.push(")"),
            "[" => open.push("]"),
            "{" => open.push("}"),
            ")" | "]" | "}" => match open.pop() {
                Some(expected) if expected == found => {}
                Some(expected) => {
                    return Err(Failure::template(format!("unexpected `{found}`, expected `{expected}`")));
                }
                None => return Err(Failure::template(format!("unexpected `{found}`"))),
            },
            _ => {}
        }
        self.push(Token::Op(found));
        self.pass(found.len());
        Ok(())
    }

    fn number(&mut self) -> Outcome<()> {
        let rest = self.rest();
        let follows_dot = self.source[..self.at].ends_with('.');
        if let Some(length) = float(rest).filter(|_| !follows_dot) {
            let digits = self.pass(length).replace('_', "");
            let number = digits.parse().map_err(|_| Failure::template(format!("`{digits}` is no number")))?;
            self.push(Token::Float(number));
            return Ok(());
        }
        let radix = match rest.get(..2).unwrap_or_default() {
            "0b" | "0B" => 2,
            "0o" | "0O" => 8,
            "0x" | "0X" => 16,
            _ => 10,
        };
        let of_radix = if radix == 10 { 0 } else { digits(&rest[2..], radix, true) };
        let (start, radix, length) = match of_radix {
            0 if rest.starts_with('0') => (0, 10, zeros(rest)),
            0 => (0, 10, digits(rest, 10, false)),
            length => (2, radix, length),
        };
        let text = self.pass(start + length)[start..].replace('_', "");
        match BigInt::parse_bytes(text.as_bytes(), radix) {
            // Python reads no number with more digits
            Some(number) if text.len() <= 4300 => self.push(Token::Int(number)),
            _ => return Err(Failure::template("a number is too long")),
        }
        Ok(())
    }

    /// Reads a text in quotes, taking escapes as Python's `unicode-escape` does.
    fn text(&mut self, quote: char) -> Outcome<String> {
        let mut chars = self.rest().char_indices().skip(1);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            if c == quote {
                self.pass(at + 1);
                return Ok(text);
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else { break };
            let radix = if escaped.is_digit(8) { 8 } else { 16 };
            let (mut code, wanted) = match escaped {
                'x' => (0, 2),
                'u' => (0, 4),
                'U' => (0, 8),
                c => (c.to_digit(8).unwrap_or(0), 2),
            };
            match escaped {
                'x' | 'u' | 'U' | '0'..='7' => {
                    let mut taken = 0;
                    while taken < wanted {
                        let next = chars.clone().next().and_then(|(_, c)| c.to_digit(radix));
                        let Some(digit) = next else { break };
                        chars.next();
                        code = code * radix + digit;
                        taken += 1;
                    }
                    let c = char::from_u32(code).filter(|_| radix == 8 || taken == wanted);
                    text.push(
                        c.ok_or_else(|| Failure::template(format!("`\\{escaped}` names no character")))?,
                    );
                }
                'N' => return Err(Failure::refused("a character by its name (`\\N`)")),
                _ => escape(&mut text, escaped),
            }
        }
        Err(Failure::template(format!("unexpected character `{quote}`")))
    }
}

/// Adds an escaped character; what is not an escape stays as it is.
fn escape(text: &mut String, escaped: char) {
    match escaped {
        '\n' => {}
        '\\' | '\'' | '"' => text.push(escaped),
        'a' => text.push('\u{7}'),
        'b' => text.push('\u{8}'),
        'f' => text.push('\u{c}'),
        'n' => text.push('\n'),
        'r' => text.push('\r'),
        't' => text.push('\t'),
        'v' => text.push('\u{b}'),
        // Jinja2 writes these as escapes itself, whose backslash the first one then escapes
        c if !c.is_ascii() => match u32::from(c) {
            code @ ..0x100 => text.push_str(&format!("\\x{code:02x}")),
            code @ ..0x10000 => text.push_str(&format!("\\u{code:04x}")),
            code => text.push_str(&format!("\\U{code:08x}")),
        },
        c => text.extend(['\\', c]),
    }
}

/// Returns how many bytes are digits, with single `_` between them, and before them if `may_lead`.
fn digits(text: &str, radix: u32, may_lead: bool) -> usize {
    let (mut length, mut may_join) = (0, may_lead);
    for (at, c) in text.char_indices() {
        if c.is_digit(radix) {
            (length, may_join) = (at + 1, true);
        } else if c == '_' && may_join {
            may_join = false;
        } else {
            break;
        }
    }
    length
}

fn zeros(text: &str) -> usize {
    let end = text.find(|c| c != '0' && c != '_').unwrap_or(text.len());
    digits(&text[..end], 10, false)
}

/// Returns the length of the number with a fraction or an exponent at the start of a text.
fn float(text: &str) -> Option<usize> {
    let whole = digits(text, 10, false);
    let fraction = match text[whole..].strip_prefix('.') {
        Some(rest) => digits(rest, 10, false),
        None => 0,
    };
    let end = if fraction > 0 { whole + 1 + fraction } else { whole };
    let exponent = text[end..].strip_prefix(['e', 'E']).and_then(|rest| {
        let sign = usize::from(rest.starts_with(['+', '-']));
        Some(digits(&rest[sign..], 10, false)).filter(|length| *length > 0).map(|length| 1 + sign + length)
    });
    match (fraction, exponent) {
        (0, None) => None,
        (_, exponent) => Some(end + exponent.unwrap_or(0)),
    }
}
