//! One safetensors file: written with its header in a fixed order, read through a memory map.
//!
//! The `safetensors` crate writes metadata in the order of a hash map, so that equal content gives unequal
//! files; here equal content gives equal bytes. Layout: <https://huggingface.co/docs/safetensors>.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, Metadata};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use crate::fault::{Result, fault};
use crate::files;

/// Bytes before the header: its length.
const PREFIX: usize = 8;

/// Writes `tensors` (name, value) and `metadata` (key, value) to `path`, both in the order given.
///
/// # Errors
/// Names `path` when it cannot be written, or the tensor whose kind safetensors does not have.
pub fn write(path: &Path, metadata: &[(&str, String)], tensors: &[(String, &Tensor)]) -> Result<()> {
    let mut header = Map::new();
    let metadata: Map<String, Value> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str()))).collect();
    header.insert("__metadata__".into(), metadata.into());
    let mut end = 0;
    for (name, tensor) in tensors {
        let kind = tensor.kind();
        let Some((_, dtype)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            return Err(
                fault(format!("tensor `{name}` is {kind:?}, which safetensors files cannot hold")).into()
            );
        };
        let start = end;
        end += tensor.numel() * kind.elt_size_in_bytes();
        let entry = json!({"dtype": dtype.to_string(), "shape": tensor.size(), "data_offsets": [start, end]});
        header.insert(name.clone(), entry);
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(PREFIX), b' ');
    files::write_atomically(path, |out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        for (_, tensor) in tensors {
            out.write_all(&bytes_of(tensor)?)?;
        }
        Ok(())
    })
}

/// The values of a tensor on any device, row by row, as they lie in a file.
///
/// # Errors
/// When the tensor cannot be copied to the CPU.
pub fn bytes_of(tensor: &Tensor) -> Result<Vec<u8>> {
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
    Ok(bytes)
}

/// An open file; its tensors are copied out one by one.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    map: Mmap,
    header: Metadata,
    /// Where the values begin.
    start: usize,
}

impl TensorFile {
    /// Opens `path` and checks that header and length agree.
    ///
    /// # Errors
    /// Names `path` when it cannot be read, is truncated or is no safetensors file.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        // SAFETY: it is only read; a program that truncates a checkpoint in place meanwhile would break any reader.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot read `{}`", path.display()))?;
        let (length, header) = SafeTensors::read_metadata(&map).map_err(|e| {
            fault(format!(
                "`{}` is truncated or not a safetensors file ({} bytes): {e}",
                path.display(),
                map.len()
            ))
            .hint("download or copy it again; one in the cache of the hub is taken again once it is deleted")
        })?;
        Ok(Self { path: path.to_owned(), start: PREFIX + length, header, map })
    }

    /// The value of a metadata key.
    ///
    /// # Errors
    /// Names the file and the key that it lacks.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        let value = self.header.metadata().as_ref().and_then(|m| m.get(key)).map(String::as_str);
        value.ok_or_else(|| fault(format!("`{}` has no metadata `{key}`", self.path.display())).into())
    }

    /// The names of the tensors in the order of their values in the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The file's place.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The values of all tensors.
    pub fn values(&self) -> &[u8] {
        self.map.get(self.start..).unwrap_or_default()
    }

    /// Kind, shape and bytes of the tensor `name`, as they lie in the file.
    ///
    /// # Errors
    /// Names the file and the tensor that it lacks or that has a kind libtorch does not know.
    pub fn view(&self, name: &str) -> Result<View<'_>> {
        let path = self.path.display();
        let info = self.header.info(name).ok_or_else(|| fault(format!("`{path}` has no tensor `{name}`")))?;
        let known = KINDS.iter().find(|(_, dtype)| *dtype == info.dtype);
        let (kind, _) =
            known.ok_or_else(|| fault(format!("tensor `{name}` of `{path}` is {}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let bytes = self.values().get(start..end);
        let bytes = bytes.ok_or_else(|| fault(format!("tensor `{name}` of `{path}` is truncated")))?;
        let shape =
            info.shape.iter().map(|&n| i64::try_from(n)).collect::<std::result::Result<Vec<_>, _>>()?;
        Ok(View { kind: *kind, shape, bytes })
    }

    /// Gives the memory back in which the system keeps the tensor's bytes; they are read again when they are needed. So a
    /// checkpoint passes through memory tensor by tensor instead of staying there.
    pub fn release(&self, name: &str) {
        let Some(info) = self.header.info(name) else { return };
        let (start, end) = info.data_offsets;
        // SAFETY: the map is of a file and private, so that what is dropped is read from the file again.
        let advised = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.start + start, end - start)
        };
        if let Err(error) = advised {
            tracing::debug!("memory of `{name}` is kept: {error}");
        }
    }

    /// A copy of the tensor `name`, on the CPU.
    ///
    /// # Errors
    /// As [`TensorFile::view`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let View { kind, shape, bytes } = self.view(name)?;
        Ok(Tensor::f_from_data_size(bytes, &shape, kind)?)
    }
}

/// A tensor as it lies in a file.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Kind of its numbers.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its numbers, little-endian, row by row.
    pub bytes: &'a [u8],
}

/// The kinds that both libtorch and safetensors have.
const KINDS: [(Kind, Dtype); 10] = [
    (Kind::Float, Dtype::F32),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Half, Dtype::F16),
    (Kind::Double, Dtype::F64),
    (Kind::Int64, Dtype::I64),
    (Kind::Int, Dtype::I32),
    (Kind::Int16, Dtype::I16),
    (Kind::Int8, Dtype::I8),
    (Kind::Uint8, Dtype::U8),
    (Kind::Bool, Dtype::BOOL),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_comes_back_in_its_order_with_the_metadata() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/file.safetensors");
        let tensors: Vec<(String, Tensor)> = KINDS
            .iter()
            .map(|(kind, dtype)| {
                let values = Tensor::from_slice(&[0i64, 1, 1, 0, 1, 0]).view([2, 3]).to_kind(*kind);
                (format!("z{dtype}"), values.transpose(0, 1))
            })
            .collect();
        let views: Vec<_> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
        write(&path, &[("b", "1".into()), ("a", "\"2\"".into())], &views).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        assert_eq!((file.metadata("b").unwrap(), file.metadata("a").unwrap()), ("1", "\"2\""));
        for (name, tensor) in &tensors {
            assert_eq!(&file.tensor(name).unwrap(), tensor);
        }
        let first = std::fs::read(&path).unwrap();
        write(&path, &[("b", "1".into()), ("a", "\"2\"".into())], &views).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }

    #[test]
    fn a_truncated_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.safetensors");
        write(&path, &[], &[("x".into(), &Tensor::from_slice(&[1f32, 2.0]))]).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for length in [0, 7, 20, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            let message = format!("{:#}", TensorFile::open(&path).unwrap_err());
            assert!(message.contains("file.safetensors"), "{message}");
        }
    }
}
