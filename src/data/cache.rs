//! The cache of tokenised splits: one file each, named by the digest of everything that it depends on.
//!
//! Layout, little-endian: magic, length and JSON of the header, then per example its index (u32), length (u32) and the
//! count of the numbers of its label (u32, the largest = no label), then all these numbers (f32), all token ids (u32), then all token types (u8) if any is not 0, then for each token
//! whether it is trained on (u8) where that is known, and at the end the BLAKE3 digest of the file's name and everything
//! before it. A file that is not exactly that is made again.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::label::Label;
use super::{Example, Examples, Skipped, Truncation};
use crate::fault::Result;
use crate::files;

const MAGIC: &[u8; 8] = b"lxstok04";

/// Count of the numbers of a label that is not there.
const NO_LABEL: u32 = u32::MAX;

#[derive(Serialize, Deserialize)]
struct Header {
    count: usize,
    tokens: usize,
    numbers: usize,
    has_types: bool,
    has_targets: bool,
    truncation: Truncation,
    skipped: Skipped,
}

impl Header {
    /// Bytes between the header and the digest.
    fn body(&self) -> Option<usize> {
        let of_a_token = 4 + usize::from(self.has_types) + usize::from(self.has_targets);
        let numbers = self.count.checked_mul(3)?.checked_add(self.numbers)?;
        numbers.checked_mul(4)?.checked_add(self.tokens.checked_mul(of_a_token)?)
    }
}

/// Returns the path of the cache file for a digest.
pub fn path(folder: &Path, hash: &str) -> PathBuf {
    folder.join(format!("{hash}.tokens"))
}

/// Returns the cached examples of a digest, whose labels `label` makes of their numbers, or `None` if there are none or the file is damaged.
pub fn load(folder: &Path, hash: &str, label: impl Fn(&[f32]) -> Option<Label>) -> Option<Examples> {
    let path = path(folder, hash);
    let file = File::open(&path).ok()?;
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let examples = decode(file, size, hash, label);
    if examples.is_none() {
        tracing::warn!("`{}` is damaged; making it again", path.display());
    }
    examples
}

/// Stores the examples under their digest.
///
/// # Errors
/// When the folder cannot be written.
pub fn store(folder: &Path, examples: &Examples) -> Result<()> {
    files::write_atomically(&path(folder, &examples.hash), |out| encode(examples, out))
}

/// Reader or writer with the digest of all bytes that passed through it.
struct Digested<T> {
    inner: T,
    hasher: blake3::Hasher,
}

impl<T> Digested<T> {
    /// Buffer size in bytes, large enough to be worth a pass of the digest.
    const PIECE: usize = 1 << 18;

    /// Wraps `inner`; the name is part of the digest, so that no file can pass for another.
    fn new(inner: T, name: &str) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(name.as_bytes());
        Self { inner, hasher }
    }
}

impl<W: Write> Write for Digested<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }
}

fn encode(examples: &Examples, out: &mut dyn Write) -> Result<()> {
    let list = &examples.examples;
    let header = Header {
        count: list.len(),
        tokens: list.iter().map(|e| e.ids.len()).sum(),
        numbers: list.iter().filter_map(|e| Some(e.label.as_ref()?.numbers().len())).sum(),
        has_types: list.iter().any(|e| !e.types.is_empty()),
        has_targets: list.iter().any(|e| !e.trained.is_empty()),
        truncation: examples.truncation,
        skipped: examples.skipped.clone(),
    };
    let json = serde_json::to_vec(&header)?;
    let mut out = BufWriter::with_capacity(Digested::<()>::PIECE, Digested::new(out, &examples.hash));
    out.write_all(MAGIC)?;
    out.write_all(&u32::try_from(json.len())?.to_le_bytes())?;
    out.write_all(&json)?;
    for example in list {
        out.write_all(&u32::try_from(example.index)?.to_le_bytes())?;
        out.write_all(&u32::try_from(example.ids.len())?.to_le_bytes())?;
        let numbers = example.label.as_ref().map(|label| label.numbers().len());
        out.write_all(&numbers.map_or(Ok(NO_LABEL), u32::try_from)?.to_le_bytes())?;
    }
    for number in list.iter().filter_map(|example| example.label.as_ref()).flat_map(Label::numbers) {
        out.write_all(&number.to_le_bytes())?;
    }
    for id in list.iter().flat_map(|example| &example.ids) {
        out.write_all(&id.to_le_bytes())?;
    }
    for example in list.iter().filter(|_| header.has_types) {
        out.write_all(&example.types)?;
        out.write_all(&vec![0; example.ids.len() - example.types.len()])?;
    }
    for example in list.iter().filter(|_| header.has_targets) {
        out.write_all(&example.trained)?;
    }
    let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(out.inner.write_all(out.hasher.finalize().as_bytes())?)
}

/// Decodes the `size` bytes written by [`encode`]. Sizes that they claim are checked before any allocation.
fn decode(
    input: impl Read,
    size: u64,
    hash: &str,
    as_label: impl Fn(&[f32]) -> Option<Label>,
) -> Option<Examples> {
    let size = size.checked_sub(blake3::OUT_LEN as u64)?;
    let digested = Digested::new(input.take(size), hash);
    let mut input = BufReader::with_capacity(Digested::<()>::PIECE, digested);
    if take(&mut input, MAGIC.len())? != MAGIC {
        return None;
    }
    let length = *numbers(&take(&mut input, 4)?).first()? as usize;
    let left = usize::try_from(size).ok()?.checked_sub(MAGIC.len() + 4)?.checked_sub(length)?;
    let header: Header = serde_json::from_slice(&take(&mut input, length)?).ok()?;
    if header.body()? != left {
        return None;
    }
    let mut examples = Vec::with_capacity(header.count);
    let (mut lengths, mut counts) = (Vec::with_capacity(header.count), Vec::with_capacity(header.count));
    for _ in 0..header.count {
        let [index, length, count] = numbers(&take(&mut input, 12)?).try_into().ok()?;
        let [types, trained] = [Vec::new(), Vec::new()];
        examples.push(Example { index: index as usize, ids: Vec::new(), types, trained, label: None });
        lengths.push(length as usize);
        counts.push(Some(count as usize).filter(|_| count != NO_LABEL));
    }
    let all: usize = counts.iter().flatten().sum();
    if lengths.iter().sum::<usize>() != header.tokens || all != header.numbers {
        return None;
    }
    for (example, count) in examples.iter_mut().zip(&counts) {
        let Some(count) = count else { continue };
        let found: Vec<f32> =
            numbers(&take(&mut input, count * 4)?).into_iter().map(f32::from_bits).collect();
        example.label = Some(as_label(&found)?);
    }
    for (example, length) in examples.iter_mut().zip(&lengths) {
        example.ids = numbers(&take(&mut input, length * 4)?);
    }
    for (example, length) in examples.iter_mut().zip(&lengths).filter(|_| header.has_types) {
        let types = take(&mut input, *length)?;
        example.types = if types.iter().all(|t| *t == 0) { Vec::new() } else { types };
    }
    for (example, length) in examples.iter_mut().zip(&lengths).filter(|_| header.has_targets) {
        example.trained = take(&mut input, *length)?;
    }
    let digested = input.into_inner();
    let mut digest = [0; blake3::OUT_LEN];
    digested.inner.into_inner().read_exact(&mut digest).ok()?;
    let found =
        Examples { examples, skipped: header.skipped, truncation: header.truncation, hash: hash.to_owned() };
    (digested.hasher.finalize() == digest).then_some(found)
}

/// Reads the next `count` bytes.
fn take(input: &mut impl Read, count: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; count];
    input.read_exact(&mut bytes).ok().map(|()| bytes)
}

fn numbers(bytes: &[u8]) -> Vec<u32> {
    bytes.as_chunks().0.iter().map(|number| u32::from_le_bytes(*number)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(numbers: &[f32]) -> Option<Label> {
        numbers.first().map(|number| Label::Value(*number))
    }

    fn some() -> Examples {
        let example = |index, ids: &[u32], types: &[u8], label| Example {
            index,
            ids: ids.to_vec(),
            types: types.to_vec(),
            trained: Vec::new(),
            label,
        };
        Examples {
            examples: vec![
                example(0, &[1, 70_000], &[0, 1], Some(Label::Value(2.5))),
                example(3, &[], &[], None),
                example(4, &[7], &[], Some(Label::Value(0.0))),
            ],
            skipped: Skipped { count: 2, first: vec!["`f` line 2: é".to_owned()] },
            truncation: Truncation { rows: 1, longest: 9, without_end: 1 },
            hash: "abc".to_owned(),
        }
    }

    #[test]
    fn what_is_stored_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut examples = some();
        store(folder.path(), &examples).unwrap();
        assert_eq!(load(folder.path(), "abc", value), Some(examples.clone()));
        assert_eq!(load(folder.path(), "abd", value), None);
        examples.examples[0].types = Vec::new();
        examples.examples.iter_mut().for_each(|e| e.trained = vec![0; e.ids.len()]);
        examples.examples[0].trained[1] = 1;
        store(folder.path(), &examples).unwrap();
        assert_eq!(load(folder.path(), "abc", value), Some(examples));
    }

    #[test]
    fn any_damage_is_noticed() {
        let mut whole = Vec::new();
        encode(&some(), &mut whole).unwrap();
        let decode = |bytes: &[u8]| decode(bytes, bytes.len() as u64, "abc", value);
        assert!(decode(&whole).is_some());
        assert!(
            super::decode(&whole[..], whole.len() as u64, "abd", value).is_none(),
            "a file under another name"
        );
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            assert!(decode(&damaged).is_none(), "byte {i}");
            assert!(decode(&whole[..i]).is_none(), "cut at {i}");
        }
    }
}
