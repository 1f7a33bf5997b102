//! The bytes of a text file, unpacked where it is gzipped, read on as they are asked for.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::fault::{Fault, Result, fault};

/// No row is longer than so many bytes: what is read as one is a file of another form, or packed to fill the memory.
pub(super) const LONGEST: usize = if cfg!(test) { 1 << 20 } else { 1 << 26 };

/// A text file that is being read.
pub(super) struct TextFile {
    path: PathBuf,
    is_packed: bool,
    input: BufReader<Box<dyn Read>>,
    /// The line, from 1, of the next byte.
    pub line: usize,
    /// Whether the byte before was a carriage return, whose line feed ends no line of its own.
    returned: bool,
}

/// Opens a file as it is.
pub(super) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// The error of a gzip stream that cannot be unpacked.
pub(super) fn broken_gzip(path: &Path, error: &std::io::Error) -> Fault {
    let message = format!("`{}` is not a whole gzip file: {error}", path.display());
    fault(message).hint("fetch the file again")
}

impl TextFile {
    /// Opens a file; a byte order mark is passed over.
    ///
    /// # Errors
    /// When it cannot be read, or is UTF-16 or UTF-32.
    pub fn open(path: &Path, is_packed: bool) -> Result<Self> {
        let file = open(path)?;
        let bytes: Box<dyn Read> =
            if is_packed { Box::new(flate2::read::MultiGzDecoder::new(file)) } else { Box::new(file) };
        let input = BufReader::with_capacity(1 << 18, bytes);
        let mut text = Self { path: path.to_owned(), is_packed, input, line: 1, returned: false };
        let start = text.bytes()?;
        let is_wide = start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff");
        if is_wide || start.iter().take(4).any(|byte| *byte == 0) {
            let message =
                format!("`{}` is not UTF-8 text: it begins as UTF-16 or UTF-32 does", path.display());
            return Err(fault(message)
                .hint("convert it, for example with `iconv -f utf-16 -t utf-8`")
                .into());
        }
        let mark = b"\xef\xbb\xbf";
        if start.starts_with(mark) {
            text.input.consume(mark.len());
        }
        Ok(text)
    }

    /// The path, for messages.
    pub fn name(&self) -> std::path::Display<'_> {
        self.path.display()
    }

    /// Some of the bytes that come next; none at the end.
    ///
    /// # Errors
    /// When the file cannot be read or unpacked.
    pub fn bytes(&mut self) -> std::result::Result<&[u8], Fault> {
        // A second call gives what the first one read: the borrow of an error must end before.
        if let Err(error) = self.input.fill_buf() {
            return Err(match self.is_packed {
                true => broken_gzip(&self.path, &error),
                false => fault(format!("cannot read `{}`: {error}", self.path.display())),
            });
        }
        Ok(self.input.buffer())
    }

    /// Passes over `count` bytes of those that come next, and counts their lines.
    pub fn pass(&mut self, count: usize) {
        for byte in self.input.buffer().iter().take(count) {
            self.line += usize::from(*byte == b'\r' || *byte == b'\n' && !self.returned);
            self.returned = *byte == b'\r';
        }
        self.input.consume(count);
    }

    /// The next line, without what ends it (a line feed, a carriage return, or both), with its number; nothing at the end.
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
            self.check_length(number, line.len(), "end the lines of the file, one for each row")?;
        }
    }

    /// Refuses a row from this line of so many bytes where they are too many.
    ///
    /// # Errors
    /// Where it is longer than [`LONGEST`]; `hint` says what to do about it.
    pub fn check_length(&self, line: usize, bytes: usize, hint: &str) -> std::result::Result<(), Fault> {
        if bytes <= LONGEST {
            return Ok(());
        }
        let message = format!("`{}` line {line}: a row of more than {} MiB", self.name(), LONGEST >> 20);
        Err(fault(message).hint(hint))
    }

    /// The bytes as a text.
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
