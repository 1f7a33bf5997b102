//! The cache of tokenised splits: one file each, named by the digest of everything that it depends on.
//!
//! Layout, little-endian: magic, length and JSON of the header, then per example its index (u32), length (u32) and
//! label (f32, NaN = none), then all token ids (u32), then all token types (u8) if any is not 0, then for each token
//! whether it is trained on (u8) where that is known, and at the end the BLAKE3 digest of the file's name and everything
//! before it. A file that is not exactly that is made again.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Example, Examples, Skipped};
use crate::fault::Result;
use crate::files;

const MAGIC: &[u8; 8] = b"lxstok03";

#[derive(Serialize, Deserialize)]
struct Header {
    count: usize,
    tokens: usize,
    has_types: bool,
    has_targets: bool,
    truncated: usize,
    skipped: Skipped,
}

/// The cache file of this digest.
pub fn path(folder: &Path, hash: &str) -> PathBuf {
    folder.join(format!("{hash}.tokens"))
}

/// The examples of this digest, or nothing where they are not cached or the file is damaged.
pub fn load(folder: &Path, hash: &str) -> Option<Examples> {
    let path = path(folder, hash);
    let bytes = std::fs::read(&path).ok()?;
    let examples = decode(&bytes, hash);
    if examples.is_none() {
        tracing::warn!("`{}` is damaged and made again", path.display());
    }
    examples
}

/// Stores the examples under their digest.
///
/// # Errors
/// When the folder cannot be written.
pub fn store(folder: &Path, examples: &Examples) -> Result<()> {
    files::write_bytes(&path(folder, &examples.hash), &encode(examples)?)
}

fn encode(examples: &Examples) -> Result<Vec<u8>> {
    let list = &examples.examples;
    let has_types = list.iter().any(|e| e.types.iter().any(|t| *t != 0));
    let header = Header {
        count: list.len(),
        tokens: list.iter().map(|e| e.ids.len()).sum(),
        has_types,
        has_targets: list.iter().any(|e| !e.trained.is_empty()),
        truncated: examples.truncated,
        skipped: examples.skipped.clone(),
    };
    let mut bytes = Vec::with_capacity(12 * header.count + 5 * header.tokens + 1024);
    let json = serde_json::to_vec(&header)?;
    bytes.extend(MAGIC);
    bytes.extend(u32::try_from(json.len())?.to_le_bytes());
    bytes.extend(json);
    for example in list {
        bytes.extend(u32::try_from(example.index)?.to_le_bytes());
        bytes.extend(u32::try_from(example.ids.len())?.to_le_bytes());
        bytes.extend(example.label.unwrap_or(f32::NAN).to_le_bytes());
    }
    for example in list {
        bytes.extend(example.ids.iter().flat_map(|id| id.to_le_bytes()));
    }
    if has_types {
        list.iter().for_each(|e| bytes.extend(&e.types));
    }
    if header.has_targets {
        list.iter().for_each(|e| bytes.extend(&e.trained));
    }
    let digest = digest(&examples.hash, &bytes);
    bytes.extend(digest.as_bytes());
    Ok(bytes)
}

/// The name is part of it, so that no file stands for another.
fn digest(hash: &str, bytes: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(hash.as_bytes()).update(bytes).finalize()
}

fn decode(bytes: &[u8], hash: &str) -> Option<Examples> {
    let (bytes, digest) = bytes.split_at_checked(bytes.len().checked_sub(blake3::OUT_LEN)?)?;
    if self::digest(hash, bytes).as_bytes() != digest {
        return None;
    }
    let (magic, mut rest) = bytes.split_at_checked(MAGIC.len())?;
    let length = u32_of(take(&mut rest, 4)?)? as usize;
    let header: Header = serde_json::from_slice(take(&mut rest, length)?).ok()?;
    let mut table = take(&mut rest, header.count.checked_mul(12)?)?;
    let mut ids = take(&mut rest, header.tokens.checked_mul(4)?)?;
    let mut types = take(&mut rest, if header.has_types { header.tokens } else { 0 })?;
    let mut trained = take(&mut rest, if header.has_targets { header.tokens } else { 0 })?;
    if magic != MAGIC || !rest.is_empty() {
        return None;
    }
    let mut examples = Vec::with_capacity(header.count);
    for _ in 0..header.count {
        let index = u32_of(take(&mut table, 4)?)? as usize;
        let length = u32_of(take(&mut table, 4)?)? as usize;
        let label = f32::from_bits(u32_of(take(&mut table, 4)?)?);
        examples.push(Example {
            index,
            ids: take(&mut ids, length.checked_mul(4)?)?.chunks_exact(4).filter_map(u32_of).collect(),
            types: if header.has_types { take(&mut types, length)?.to_vec() } else { vec![0; length] },
            trained: if header.has_targets { take(&mut trained, length)?.to_vec() } else { Vec::new() },
            label: Some(label).filter(|x| !x.is_nan()),
        });
    }
    Some(Examples { examples, skipped: header.skipped, truncated: header.truncated, hash: hash.to_owned() })
}

/// Splits the next `count` bytes off.
fn take<'a>(rest: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, left) = rest.split_at_checked(count)?;
    *rest = left;
    Some(taken)
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
                example(0, &[1, 70_000], &[0, 1], Some(2.5)),
                example(3, &[], &[], None),
                example(4, &[7], &[0], Some(0.0)),
            ],
            skipped: Skipped { count: 2, first: vec!["`f` line 2: é".to_owned()] },
            truncated: 1,
            hash: "abc".to_owned(),
        }
    }

    #[test]
    fn what_is_stored_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut examples = some();
        store(folder.path(), &examples).unwrap();
        assert_eq!(load(folder.path(), "abc"), Some(examples.clone()));
        assert_eq!(load(folder.path(), "abd"), None);
        examples.examples[0].types = vec![0, 0];
        examples.examples.iter_mut().for_each(|e| e.trained = vec![0; e.ids.len()]);
        examples.examples[0].trained[1] = 1;
        store(folder.path(), &examples).unwrap();
        assert_eq!(load(folder.path(), "abc"), Some(examples));
    }

    #[test]
    fn any_damage_is_noticed() {
        let whole = encode(&some()).unwrap();
        assert!(decode(&whole, "abc").is_some());
        assert!(decode(&whole, "abd").is_none(), "a file under another name");
        for i in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[i] ^= 1;
            assert!(decode(&damaged, "abc").is_none(), "byte {i}");
            assert!(decode(&whole[..i], "abc").is_none(), "cut at {i}");
        }
    }
}
