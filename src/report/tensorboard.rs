//! Event files that TensorBoard reads: scalars only, encoded by hand.
//!
//! A file is a row of TFRecords, each `length u64 | crc(length) | payload | crc(payload)` in little-endian with
//! the masked CRC-32C; a payload is a protobuf `Event` (tensorflow/core/util/event.proto and
//! framework/summary.proto), of which five fields are needed here. The first record carries the version.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::fault::Result;
use crate::files::cannot_write;

/// Version of the format in which restarts can take back steps.
const VERSION: &[u8] = b"brain.Event:2";

/// Protobuf wire types: a varint, eight bytes, a length and that many bytes, four bytes.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const BYTES: u64 = 2;
const FIXED32: u64 = 5;

/// An open file `events.out.tfevents.<seconds>.<host>.<pid>` in the folder of a run.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Starts a file in `folder`. TensorBoard discards the steps from `takes_back_from` on in earlier files
    /// of the folder, since a resumed run repeats them.
    ///
    /// # Errors
    /// When the folder or the file cannot be made or written.
    pub fn create(folder: &Path, takes_back_from: Option<u64>) -> Result<Self> {
        std::fs::create_dir_all(folder).map_err(|error| cannot_write(folder, &error))?;
        let (file, path) = create_new(folder)?;
        let mut events = Self { file, path };
        events.write(&event(0, 3, VERSION))?;
        if let Some(step) = takes_back_from {
            // SessionLog { status: START }
            let mut session = Vec::new();
            put_varint(&mut session, 1, 1);
            events.write(&event(step, 7, &session))?;
        }
        Ok(events)
    }

    /// Writes the values of one step under their tags.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn scalars(&mut self, step: u64, values: &[(String, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut scalar = Vec::new();
            put_bytes(&mut scalar, 1, tag.as_bytes());
            put_key(&mut scalar, 2, FIXED32);
            scalar.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &scalar);
        }
        self.write(&event(step, 5, &summary))
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one record in a single write, so that a killed process leaves whole records.
    fn write(&mut self, payload: &[u8]) -> Result<()> {
        self.file.write_all(&record(payload)).map_err(|error| cannot_write(&self.path, &error))
    }
}

/// Creates a new file; a number is appended if a process starts two within a second.
fn create_new(folder: &Path) -> Result<(File, PathBuf)> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = if host.trim().is_empty() { "localhost" } else { host.trim() };
    let name = format!("events.out.tfevents.{}.{host}.{}", now() as u64, std::process::id());
    let mut path = folder.join(&name);
    let mut number = 0;
    loop {
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Ok(file) => return Ok((file, path)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                number += 1;
                path = folder.join(format!("{name}.{number}"));
            }
            Err(error) => return Err(cannot_write(&path, &error)),
        }
    }
}

/// `Event { wall_time = 1, step = 2, <field>: bytes }`
fn event(step: u64, field: u64, content: &[u8]) -> Vec<u8> {
    let mut event = Vec::new();
    put_key(&mut event, 1, FIXED64);
    event.extend(now().to_le_bytes());
    put_varint(&mut event, 2, step);
    put_bytes(&mut event, field, content);
    event
}

fn record(payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(payload.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(payload);
    record.extend(masked_crc(payload).to_le_bytes());
    record
}

/// Returns TFRecord's rotated and shifted CRC-32C; a plain one is weak over data that holds CRCs itself.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Returns seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

fn put_key(out: &mut Vec<u8>, field: u64, wire: u64) {
    put_number(out, field << 3 | wire);
}

fn put_varint(out: &mut Vec<u8>, field: u64, value: u64) {
    put_key(out, field, VARINT);
    put_number(out, value);
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_key(out, field, BYTES);
    put_number(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Writes seven bits per byte, lowest first, the top bit set on all but the last.
fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the payloads of a file, checking its framing and checksums.
    fn payloads(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
            let (crc, rest) = rest.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*crc), masked_crc(length));
            let (payload, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let (crc, rest) = rest.split_first_chunk::<4>().unwrap();
            assert_eq!(u32::from_le_bytes(*crc), masked_crc(payload));
            found.push(payload.to_vec());
            bytes = rest;
        }
        found
    }

    /// Returns an event without its nine bytes of wall time.
    fn untimed(payload: &[u8]) -> &[u8] {
        assert_eq!(payload[0], 0x09);
        assert!(f64::from_le_bytes(payload[1..9].try_into().unwrap()) > 1.6e9);
        &payload[9..]
    }

    #[test]
    fn the_checksum_is_the_masked_castagnoli_one() {
        // RFC 3720 B.4: the CRC-32C of 32 zero bytes is 8a9136aa; the mask is that of TensorFlow's hash/crc32c.h.
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(masked_crc(&[0; 32]), 0x0fd7_fffa);
    }

    #[test]
    fn a_file_holds_the_version_then_the_scalars() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path(), None).unwrap();
        events.scalars(300, &[("a".to_owned(), 0.5), ("b".to_owned(), f64::NAN)]).unwrap();
        let found = payloads(&std::fs::read(events.path()).unwrap());
        assert_eq!(found.len(), 2);
        assert_eq!(untimed(&found[0]), b"\x10\x00\x1a\x0dbrain.Event:2");
        let scalars =
            b"\x10\xac\x02\x2a\x14\x0a\x08\x0a\x01a\x15\x00\x00\x00\x3f\x0a\x08\x0a\x01b\x15\x00\x00\xc0\x7f";
        assert_eq!(untimed(&found[1]), scalars);
    }

    #[test]
    fn a_resumed_run_takes_back_later_steps_in_a_file_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventFile::create(folder.path(), None).unwrap();
        let second = EventFile::create(folder.path(), Some(21)).unwrap();
        assert_ne!(first.path(), second.path());
        let name = second.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("events.out.tfevents."), "{name}");
        let found = payloads(&std::fs::read(second.path()).unwrap());
        assert_eq!(untimed(&found[1]), b"\x10\x15\x3a\x02\x08\x01");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = EventFile::create(&file, None).unwrap_err();
        let words = format!("cannot write `{}`: ", file.display());
        assert!(error.to_string().starts_with(&words), "{error}");
    }
}
