//! Data files packed by gzip: checks of their first bytes against their names, and their contents.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Seek as _};
use std::path::Path;

use anyhow::Context as _;
use flate2::bufread::GzDecoder;

use crate::fault::{Fault, Result, fault};
use crate::files::check_start;

/// Number of first bytes that identify a file.
const START: u64 = 1 << 10;
/// Magic bytes of gzip.
const GZIP: &[u8] = b"\x1f\x8b";
/// Magic bytes and names of other packers.
const OTHERS: [(&[u8], &str); 3] =
    [(b"\x28\xb5\x2f\xfd", "zstd"), (b"PK\x03\x04", "zip"), (b"\xfd7zXZ\0", "xz")];

/// Opens a data file, compressed with gzip or not, by its name.
///
/// # Errors
/// When it cannot be read, is not the file itself, or is compressed differently than its name implies.
pub(super) fn open(path: &Path, is_packed: bool) -> Result<File> {
    let cannot = || format!("cannot read `{}`", path.display());
    let mut file = File::open(path).with_context(cannot)?;
    let mut start = Vec::new();
    file.by_ref().take(START).read_to_end(&mut start).with_context(cannot)?;
    file.rewind().with_context(cannot)?;
    check_start(path, &start)?;
    check_packing(path, &start, is_packed)?;
    Ok(file)
}

fn check_packing(path: &Path, start: &[u8], is_packed: bool) -> std::result::Result<(), Fault> {
    let shown = path.display();
    if let Some((_, packer)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Err(fault(format!("`{shown}` is compressed with {packer}")).hint("decompress it first"));
    }
    match (is_packed, start.starts_with(GZIP)) {
        (false, true) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Err(fault(format!("`{shown}` is compressed with gzip")).hint(format!("name it `{name}.gz`")))
        }
        // A file that ends within the magic bytes counts as cut short.
        (true, false) if !GZIP.starts_with(start) => {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            Err(fault(format!("`{shown}` is not compressed with gzip")).hint(format!("name it `{name}`")))
        }
        _ => Ok(()),
    }
}

/// Returns the error for a gzip stream that cannot be unpacked.
pub(super) fn broken(path: &Path, error: &io::Error) -> Fault {
    let message = format!("`{}` is not a complete gzip file: {error}", path.display());
    fault(message).hint("download the file again")
}

/// Returns the name of a file with another ending, before that of gzip if it has one.
pub(super) fn renamed(path: &Path, ending: &str, is_packed: bool) -> String {
    let renamed = match is_packed {
        true => path.with_extension("").with_extension(format!("{ending}.gz")),
        false => path.with_extension(ending),
    };
    renamed.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Bytes unpacked from the members of a gzip file. Like gzip itself, it skips zeros after a member: those
/// fill the last block of a tape.
pub(super) struct Members(Option<GzDecoder<BufReader<File>>>);

impl Members {
    /// Unpacks a file from its start.
    pub fn new(file: File) -> Self {
        Self(Some(GzDecoder::new(BufReader::with_capacity(1 << 15, file))))
    }
}

impl Read for Members {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(mut member) = self.0.take() {
            let read = member.read(buffer);
            if buffer.is_empty() || !matches!(read, Ok(0)) {
                self.0 = Some(member);
                return read;
            }
            let mut file = member.into_inner();
            if pass_zeros(&mut file)? {
                self.0 = Some(GzDecoder::new(file));
            }
        }
        Ok(0)
    }
}

/// Skips zeros; returns true if anything follows.
fn pass_zeros(file: &mut BufReader<File>) -> io::Result<bool> {
    loop {
        let bytes = file.fill_buf()?;
        let (count, whole) = (bytes.iter().take_while(|byte| **byte == 0).count(), bytes.len());
        file.consume(count);
        if count < whole || whole == 0 {
            return Ok(whole > 0);
        }
    }
}
