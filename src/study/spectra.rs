//! The singular values of a basis, read from its file: that of the recipe, else one in the cache of the same base.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::Value;

use super::record::Record;
use crate::files;

/// Name of the file in its folder.
const FILE: &str = "basis.safetensors";
/// More bytes than a header has.
const MOST_HEADER: u64 = 64 << 20;

/// The singular values of layers, by name.
pub type Spectra = Vec<(String, Vec<f64>)>;

/// The header of a basis.
struct BasisHeader {
    path: PathBuf,
    header: Metadata,
    /// Where the values start.
    start: u64,
}

/// Returns the singular values of each layer of the largest basis that one of the runs used, by layer; nothing if there is none at
/// hand.
pub fn spectra_of<'a>(records: impl Iterator<Item = &'a Record>) -> Spectra {
    let mut cached: Option<Vec<BasisHeader>> = None;
    let mut best: Option<(u64, Spectra)> = None;
    let mut seen: Vec<[String; 4]> = Vec::new();
    for record in records {
        let text = |key: &str| record.settings.get(key).map(Value::to_string).unwrap_or_default();
        let hash = record.results["base"]["hash"].as_str().unwrap_or_default().to_owned();
        let rank = record.settings.get("adapter.rank").and_then(Value::as_u64).unwrap_or(0);
        let kind = [text("adapter.basis"), hash.clone(), rank.to_string(), text("adapter.spectrum")];
        let has_basis =
            record.settings.get("adapter.init").and_then(Value::as_str) == Some("svd") && !hash.is_empty();
        if !has_basis || seen.contains(&kind) || best.as_ref().is_some_and(|(largest, _)| *largest >= rank) {
            continue;
        }
        seen.push(kind);
        let folder =
            record.settings.get("adapter.basis").and_then(Value::as_str).filter(|folder| !folder.is_empty());
        let own = folder.and_then(|folder| header(&Path::new(folder).join(FILE)));
        let matching = |found: &&BasisHeader| {
            let known = |key: &str| found.header.metadata().as_ref()?.get(key);
            let is = |key: &str, value: &str| known(key).is_some_and(|known| known == value);
            let spectrum = record.settings.get("adapter.spectrum").and_then(Value::as_str).unwrap_or("top");
            is("base_hash", &hash)
                && is("rank", &rank.to_string())
                && is("spectrum", spectrum)
                && is("init", "svd")
        };
        let found = match &own {
            Some(own) => Some(own),
            None => cached.get_or_insert_with(cached_headers).iter().find(matching),
        };
        if let Some(values) = found.map(values).filter(|values| !values.is_empty()) {
            best = Some((rank, values));
        }
    }
    best.map(|(_, values)| values).unwrap_or_default()
}

fn cached_headers() -> Vec<BasisHeader> {
    let entries = fs::read_dir(files::cache_folder().join("basis")).into_iter().flatten();
    entries.filter_map(|entry| header(&entry.ok()?.path().join(FILE))).collect()
}

/// Reads the header of a basis; `None` if there is none that can be read.
fn header(path: &Path) -> Option<BasisHeader> {
    let mut file = File::open(path).ok()?;
    let mut length = [0; 8];
    file.read_exact(&mut length).ok()?;
    let length = Some(u64::from_le_bytes(length)).filter(|length| *length < MOST_HEADER)?;
    let mut text = Vec::new();
    file.take(length).read_to_end(&mut text).ok()?;
    Some(BasisHeader {
        path: path.to_owned(),
        header: serde_json::from_slice(&text).ok()?,
        start: length + 8,
    })
}

/// Reads the singular values of each layer.
fn values(basis: &BasisHeader) -> Spectra {
    let Ok(mut file) = File::open(&basis.path) else { return Vec::new() };
    let mut read = |name: String| {
        let (layer, tensor) = (name.strip_suffix(".S")?, basis.header.info(&name)?);
        let (start, end) = tensor.data_offsets;
        file.seek(SeekFrom::Start(basis.start + start as u64)).ok()?;
        let mut bytes = vec![0; end.checked_sub(start).filter(|size| *size < 1 << 20)?];
        file.read_exact(&mut bytes).ok()?;
        let numbers = match tensor.dtype {
            Dtype::F32 => {
                bytes.as_chunks::<4>().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes))).collect()
            }
            Dtype::F64 => bytes.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect(),
            _ => return None,
        };
        Some((layer.to_owned(), numbers))
    };
    basis.header.offset_keys().into_iter().filter_map(&mut read).collect()
}
