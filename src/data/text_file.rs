//! Bytes of a text file, unpacked if it is gzipped and read on demand.

use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use super::packed;
use crate::fault::{Fault, Result, fault};
use crate::files::check_start;

/// Most bytes of a row: anything longer is a file of another form, or packed to fill the memory.
pub(super) const LONGEST: usize = if cfg!(test) { 1 << 20 } else { 1 << 26 };

/// A text file that is being read.
pub(super) struct TextFile {
    path: PathBuf,
    is_packed: bool,
    input: BufReader<Box<dyn Read>>,
    /// The line, from 1, of the next byte.
    pub line: usize,
    /// True if the previous byte was a carriage return, whose line feed ends no line of its own.
    returned: bool,
}

/// Refuses a file that does not begin as UTF-8 text does.
fn check_text(path: &Path, start: &[u8], is_packed: bool) -> std::result::Result<(), Fault> {
    check_start(path, start)?;
    let shown = path.display();
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    // A column may be called `PAR1` as well.
    if start.starts_with(b"PAR1") && start.get(4).is_some_and(is_control) {
        let name = packed::renamed(path, "parquet", is_packed);
        return Err(fault(format!("`{shown}` is Parquet")).hint(format!("name it `{name}`")));
    }
    if is_wide(start) {
        let message = format!("`{shown}` is not UTF-8 text: it begins as UTF-16 or UTF-32 does");
        return Err(fault(message).hint("convert it, for example with `iconv -f utf-16 -t utf-8`"));
    }
    if start.iter().take(8).any(|byte| *byte == 0) {
        let message = format!("`{shown}` is not text: it begins as a binary file does");
        return Err(fault(message).hint("rows are read from JSON, CSV, TSV and Parquet"));
    }
    Ok(())
}

/// Returns true if a text begins like UTF-16 or UTF-32: by a byte order mark, or zeros where they have them.
fn is_wide(start: &[u8]) -> bool {
    let marks: [&[u8]; 3] = [b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"];
    // Zero bytes of an ASCII character in each of the four encodings, little-endian and big-endian.
    let places: [&[bool]; 4] =
        [&[false, true], &[true, false], &[false, true, true, true], &[true, true, true, false]];
    let fits = |places: &[bool]| {
        let mut bytes = start.iter().take(8).zip(places.iter().cycle());
        start.len() >= places.len() && bytes.all(|(byte, is_zero)| (*byte == 0) == *is_zero)
    };
    marks.into_iter().any(|mark| start.starts_with(mark)) || places.into_iter().any(fits)
}

impl TextFile {
    /// Opens a file, skipping a byte order mark.
    ///
    /// # Errors
    /// When it cannot be read, or does not begin as UTF-8 text compressed as its name implies.
    pub fn open(path: &Path, is_packed: bool) -> Result<Self> {
        let file = packed::open(path, is_packed)?;
        let bytes: Box<dyn Read> =
            if is_packed { Box::new(packed::Members::new(file)) } else { Box::new(file) };
        Self::over(path, is_packed, bytes)
    }

    /// Reads `bytes`, which messages call `path`, skipping a byte order mark.
    ///
    /// # Errors
    /// When they cannot be read, or do not begin as UTF-8 text.
    pub fn over(path: &Path, is_packed: bool, bytes: Box<dyn Read>) -> Result<Self> {
        let input = BufReader::with_capacity(1 << 18, bytes);
        let mut text = Self { path: path.to_owned(), is_packed, input, line: 1, returned: false };
        let start = text.bytes()?;
        check_text(path, start, is_packed)?;
        let mark = b"\xef\xbb\xbf";
        if start.starts_with(mark) {
            text.input.consume(mark.len());
        }
        Ok(text)
    }

    /// Returns the path, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Returns some of the next bytes; none at the end.
    ///
    /// # Errors
    /// When the file cannot be read or unpacked.
    pub fn bytes(&mut self) -> std::result::Result<&[u8], Fault> {
        // A second call gives what the first one read: the borrow of an error must end before.
        if let Err(error) = self.input.fill_buf() {
            return Err(match self.is_packed {
                true => packed::broken(&self.path, &error),
                false => fault(format!("cannot read `{}`: {error}", self.path.display())),
            });
        }
        Ok(self.input.buffer())
    }

    /// Consumes `count` of the next bytes, and counts their lines.
    pub fn pass(&mut self, count: usize) {
        for byte in self.input.buffer().iter().take(count) {
            self.line += usize::from(*byte == b'\r' || *byte == b'\n' && !self.returned);
            self.returned = *byte == b'\r';
        }
        self.input.consume(count);
    }

    /// Reads the next line, without its ending (`\n`, `\r` or both), and its number; `None` at the end.
    ///
    /// # Errors
    /// When the file cannot be read or unpacked, or the line is longer than [`LONGEST`].
    pub fn next_line(&mut self) -> Result<Option<(usize, Vec<u8>)>> {
        if self.returned && self.bytes()?.first() == Some(&b'\n') {
            self.pass(1);
        }
        let (number, mut line) = (self.line, Vec::new());
        loop {
            let bytes = self.bytes()?;
            if bytes.is_empty() {
                return Ok(Some((number, line)).filter(|(_, line)| !line.is_empty()));
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let count = end.unwrap_or(bytes.len());
            line.extend(bytes.get(..count).unwrap_or_default());
            self.pass(count + usize::from(end.is_some()));
            if end.is_some() {
                return Ok(Some((number, line)));
            }
            self.check_length(number, line.len(), "write one row per line")?;
        }
    }

    /// Reads the next line that is not empty, as [`Self::next_line`] does.
    ///
    /// # Errors
    /// As [`Self::next_line`], and when it is not UTF-8.
    pub fn next_filled(&mut self) -> Result<Option<(usize, String)>> {
        while let Some((number, line)) = self.next_line()? {
            if !line.trim_ascii().is_empty() {
                return Ok(Some((number, self.utf8(number, line)?)));
            }
        }
        Ok(None)
    }

    /// Refuses a row of `bytes` bytes, beginning on this line, if it is too long.
    ///
    /// # Errors
    /// When it is longer than [`LONGEST`]; `hint` says what to do about it.
    pub fn check_length(&self, line: usize, bytes: usize, hint: &str) -> std::result::Result<(), Fault> {
        if bytes <= LONGEST {
            return Ok(());
        }
        let message = format!("`{}` line {line}: a row of more than {} MiB", self.name(), LONGEST >> 20);
        Err(fault(message).hint(hint))
    }

    /// Returns the bytes as a text.
    ///
    /// # Errors
    /// Names the line, of which `line` is the first.
    pub fn utf8(&self, line: usize, bytes: Vec<u8>) -> Result<String> {
        String::from_utf8(bytes).map_err(|error| {
            let bytes = error.as_bytes();
            let before = bytes.get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = line + before.iter().filter(|byte| **byte == b'\n').count();
            let message = format!("`{}` is not UTF-8 text: line {line}", self.name());
            fault(message).hint("convert it, for example with `iconv -f latin1 -t utf-8`").into()
        })
    }
}
