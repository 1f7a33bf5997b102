//! Cuts JSON into values without parsing it.

use super::text_file::TextFile;
use crate::fault::{Result, fault};

/// A text of JSON that is cut into values.
pub(super) struct Scan {
    pub text: TextFile,
}

/// Position within a value that is being read.
#[derive(Default)]
pub(super) struct Place {
    /// Brackets that are open.
    pub depth: usize,
    is_text: bool,
    is_escaped: bool,
    pub is_begun: bool,
}

/// Role of a byte in a value.
enum Step {
    Inside,
    Last,
    /// The first byte after a number or word.
    After,
}

impl Place {
    fn step(&mut self, byte: u8) -> Step {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' if self.is_text => self.is_escaped = true,
            b'"' if self.is_text => {
                self.is_text = false;
                return if self.depth == 0 { Step::Last } else { Step::Inside };
            }
            _ if self.is_text => {}
            b'"' | b'{' | b'[' if self.depth > 0 || !self.is_begun => {
                self.is_text = byte == b'"';
                self.depth += usize::from(!self.is_text);
            }
            b'}' | b']' if self.depth > 0 => {
                self.depth -= 1;
                return if self.depth == 0 { Step::Last } else { Step::Inside };
            }
            b'"' | b'{' | b'[' | b'}' | b']' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r'
                if self.depth == 0 =>
            {
                return Step::After;
            }
            _ => {}
        }
        self.is_begun = true;
        Step::Inside
    }
}

impl Scan {
    pub fn invalid(&self, what: &str) -> anyhow::Error {
        fault(format!("`{}` is not valid JSON: {what} at line {}", self.text.name(), self.text.line)).into()
    }

    /// Returns the next byte that is not white space, or `None` at the end.
    pub fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let bytes = self.text.bytes()?;
            let blank = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count();
            let (next, is_end) = (bytes.get(blank).copied(), bytes.is_empty());
            self.text.pass(blank);
            if next.is_some() || is_end {
                return Ok(next);
            }
        }
    }

    /// Consumes one of these bytes.
    pub fn expect(&mut self, bytes: &[u8], what: &str) -> Result<u8> {
        match self.peek()? {
            Some(byte) if bytes.contains(&byte) => {
                self.text.pass(1);
                Ok(byte)
            }
            Some(_) => Err(self.invalid(&format!("expected {what}"))),
            None => Err(self.invalid(&format!("it ends where {what} was expected"))),
        }
    }

    /// Reads the bytes of the next value.
    pub fn value(&mut self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.peek()?;
        self.run(Place::default(), Some(&mut bytes))?;
        Ok(bytes)
    }

    /// Reads a value from this place on, appending its bytes to `into` if given.
    pub fn run(&mut self, mut place: Place, mut into: Option<&mut Vec<u8>>) -> Result<()> {
        let first = self.text.line;
        loop {
            let bytes = self.text.bytes()?;
            let is_over = bytes.is_empty();
            let mut steps = bytes.iter().map(|byte| place.step(*byte)).enumerate();
            let end = steps.find_map(|(at, step)| match step {
                Step::Inside => None,
                Step::Last => Some(at + 1),
                Step::After => Some(at),
            });
            let count = end.unwrap_or(bytes.len());
            if let Some(into) = &mut into {
                into.extend(bytes.get(..count).unwrap_or_default());
                let length = into.len();
                self.text.check_length(first, length, "the rows of a `.json` file are a list of objects")?;
            }
            self.text.pass(count);
            let is_whole = end.is_some() || is_over && place.depth == 0 && !place.is_text;
            match (is_whole, place.is_begun) {
                (true, true) => return Ok(()),
                (true, false) if is_over => return Err(self.invalid("it ends where a value was expected")),
                (true, false) => return Err(self.invalid("expected a value")),
                _ if is_over => return Err(self.invalid("it ends inside a value")),
                _ => {}
            }
        }
    }

    /// Reads the next key of an open object, with its colon; `None` if the object is closed.
    pub fn key(&mut self, is_first: bool) -> Result<Option<String>> {
        let is_closed = match is_first {
            true => self.peek()? == Some(b'}') && self.expect(b"}", "`}`").is_ok(),
            false => self.expect(b",}", "`,` or `}`")? == b'}',
        };
        if is_closed {
            return Ok(None);
        }
        if self.peek()? != Some(b'"') {
            return Err(self.invalid("expected a key"));
        }
        let key = self.value()?;
        let key = serde_json::from_slice(&key).map_err(|e| self.invalid(&e.to_string()))?;
        self.expect(b":", "`:`")?;
        Ok(Some(key))
    }
}
