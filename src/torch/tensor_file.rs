//! One safetensors file: written with its header in a fixed order, read through a memory map.
//!
//! The `safetensors` crate writes metadata in the order of a hash map, so equal content gives unequal files;
//! here equal content gives equal bytes. Layout: <https://huggingface.co/docs/safetensors>.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use memmap2::{Mmap, UncheckedAdvice};
use safetensors::tensor::{Dtype, Metadata};
use safetensors::{SafeTensorError, SafeTensors};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use super::coming::sent_bytes;
use crate::fault::{Result, fault, reading};
use crate::files;

/// Size in bytes of the header's length, which precedes it.
const PREFIX: usize = 8;

/// Writes `tensors` (name, value) and `metadata` (key, value) to `path`, both in the order given.
///
/// # Errors
/// Names `path` when it cannot be written, or the tensor whose kind safetensors does not have.
pub fn write(
    path: &Path,
    metadata: &[(&str, String)],
    tensors: &[(String, impl Borrow<Tensor>)],
) -> Result<()> {
    let mut header = Map::new();
    let metadata: Map<String, Value> =
        metadata.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.as_str()))).collect();
    header.insert("__metadata__".into(), metadata.into());
    let mut end = 0;
    for (name, tensor) in tensors {
        let tensor: &Tensor = tensor.borrow();
        let kind = tensor.kind();
        let Some((_, dtype)) = KINDS.iter().find(|(known, _)| *known == kind) else {
            return Err(
                fault(format!("tensor `{name}` is {kind:?}, which safetensors files cannot store")).into()
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
            out.write_all(&bytes_of(tensor.borrow())?)?;
        }
        Ok(())
    })
}

/// Returns the values of a tensor on any device, row by row, as stored in a file.
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
    /// Types and shapes of tensors whose type safetensors does not have.
    unknown: BTreeMap<String, (String, Vec<i64>)>,
    /// Offset of the values.
    start: usize,
}

impl TensorFile {
    /// Opens `path` and checks that header and length agree.
    ///
    /// # Errors
    /// Names `path` when it cannot be read, is truncated, is no safetensors file or something else in the place of one.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read `{}`", path.display()))?;
        // SAFETY: it is only read; a program that truncates a checkpoint in place meanwhile would break any reader.
        let map = unsafe { Mmap::map(&file) }.with_context(|| format!("cannot read `{}`", path.display()))?;
        files::check_start(path, &map)?;
        let (length, header, unknown) = read_header(&map).map_err(|e| {
            fault(format!(
                "`{}` is truncated or not a safetensors file ({} bytes): {e}",
                path.display(),
                map.len()
            ))
            .hint("download or copy it again; delete a file in the hub's cache to download it again")
        })?;
        Ok(Self { path: path.to_owned(), start: PREFIX + length, header, unknown, map })
    }

    /// Returns the value of a metadata key.
    ///
    /// # Errors
    /// Names the file and the key that it lacks.
    pub fn metadata(&self, key: &str) -> Result<&str> {
        let value = self.header.metadata().as_ref().and_then(|m| m.get(key)).map(String::as_str);
        value.ok_or_else(|| fault(format!("`{}` has no metadata `{key}`", self.path.display())).into())
    }

    /// Returns all metadata, in no particular order.
    pub fn all_metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.header.metadata().iter().flatten();
        all.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Returns the names of the tensors in the order of their values in the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the values of all tensors.
    pub fn values(&self) -> &[u8] {
        self.map.get(self.start..).unwrap_or_default()
    }

    /// Returns the header's entry of the tensor `name`.
    ///
    /// # Errors
    /// Names the file and the tensor that it lacks or whose shape no tensor can have.
    pub fn about(&self, name: &str) -> Result<StoredTensor> {
        let path = self.path.display();
        let info = self.header.info(name).ok_or_else(|| fault(format!("`{path}` has no tensor `{name}`")))?;
        if let Some((dtype, shape)) = self.unknown.get(name) {
            return Ok(StoredTensor { kind: None, dtype: dtype.clone(), shape: shape.clone() });
        }
        let kind = KINDS.iter().find(|(_, dtype)| *dtype == info.dtype).map(|(kind, _)| *kind);
        let shape: Option<Vec<i64>> = info.shape.iter().map(|&n| i64::try_from(n).ok()).collect();
        let shape = shape.ok_or_else(|| {
            fault(format!(
                "tensor `{name}` of `{path}` has the shape {:?}, which is not a valid shape",
                info.shape
            ))
        })?;
        Ok(StoredTensor { kind, dtype: info.dtype.to_string(), shape })
    }

    /// Returns the bytes of the tensor `name`, of any type.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (start, end) = self.header.info(name)?.data_offsets;
        self.values().get(start..end)
    }

    /// Returns kind, shape and bytes of the tensor `name`, as stored in the file.
    ///
    /// # Errors
    /// Names the file and the tensor that it lacks or that has a kind libtorch does not know.
    pub fn view(&self, name: &str) -> Result<View<'_>> {
        let (path, StoredTensor { kind, dtype, shape }) = (self.path.display(), self.about(name)?);
        let kind = kind.ok_or_else(|| {
            fault(format!("tensor `{name}` of `{path}` holds {dtype}, which libtorch does not support"))
        })?;
        let bytes = self.bytes(name);
        let bytes = bytes.ok_or_else(|| fault(format!("tensor `{name}` of `{path}` is truncated")))?;
        Ok(View { kind, shape, bytes })
    }

    /// Releases the memory that caches the tensor's bytes; they are read again when needed. So a checkpoint
    /// passes through memory tensor by tensor instead of staying there.
    pub fn release(&self, name: &str) {
        let Some(info) = self.header.info(name) else { return };
        let (start, end) = info.data_offsets;
        // SAFETY: the map is of a file and private, so that what is dropped is read from the file again.
        let advised = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.start + start, end - start)
        };
        if let Err(error) = advised {
            tracing::debug!("cannot release the memory of `{name}`: {error}");
        }
    }

    /// Copies the tensor `name` to the CPU.
    ///
    /// # Errors
    /// As [`TensorFile::view`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.tensor_on(name, Device::Cpu)
    }

    /// Copies the tensor `name` to a device.
    ///
    /// # Errors
    /// As [`TensorFile::view`].
    pub fn tensor_on(&self, name: &str, device: Device) -> Result<Tensor> {
        let _reading = reading(&self.path);
        let View { kind, shape, bytes } = self.view(name)?;
        sent_bytes(bytes, &shape, kind, device)
    }
}

/// A header's entry of a tensor.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    /// Kind of its numbers, if libtorch has it.
    pub kind: Option<Kind>,
    /// The file's name of the type.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<i64>,
}

/// A header's length, the header, and the types and shapes in it that safetensors does not have.
type Header = (usize, Metadata, BTreeMap<String, (String, Vec<i64>)>);

/// Reads the header. A tensor of a type unknown to safetensors is taken as bytes: it may not be needed.
fn read_header(file: &[u8]) -> std::result::Result<Header, SafeTensorError> {
    match SafeTensors::read_metadata(file) {
        Ok((length, header)) => Ok((length, header, BTreeMap::new())),
        Err(error @ SafeTensorError::InvalidHeaderDeserialization(_)) => read_unknown(file).ok_or(error),
        Err(error) => Err(error),
    }
}

fn read_unknown(file: &[u8]) -> Option<Header> {
    let length = usize::try_from(u64::from_le_bytes(*file.first_chunk()?)).ok()?;
    let values = file.get(PREFIX..)?.get(length..)?;
    let mut header: Map<String, Value> = serde_json::from_slice(file.get(PREFIX..PREFIX + length)?).ok()?;
    let mut unknown = BTreeMap::new();
    for (name, entry) in header.iter_mut().filter(|(name, _)| *name != "__metadata__") {
        let dtype = entry.get("dtype")?.as_str()?.to_owned();
        if serde_json::from_value::<Dtype>(entry.get("dtype")?.clone()).is_ok() {
            continue;
        }
        let [start, end] = serde_json::from_value::<[usize; 2]>(entry.get("data_offsets")?.clone()).ok()?;
        let shape = serde_json::from_value(entry.get("shape")?.clone()).ok()?;
        *entry = json!({"dtype": "U8", "shape": [end.checked_sub(start)?], "data_offsets": [start, end]});
        unknown.insert(name.clone(), (dtype, shape));
    }
    let header: Metadata = serde_json::from_value(header.into()).ok()?;
    (header.data_len() == values.len()).then_some((length, header, unknown))
}

/// A tensor as stored in a file.
#[derive(Debug, Clone)]
pub struct View<'a> {
    /// Kind of its numbers.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its numbers, little-endian, row by row.
    pub bytes: &'a [u8],
}

/// Kinds that both libtorch and safetensors have.
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
    fn kinds_print_as_the_hashes_of_bases_and_adapters_have_them() {
        let printed = KINDS.map(|(kind, _)| format!("{kind:?}")).join(" ");
        assert_eq!(printed, "Float BFloat16 Half Double Int64 Int Int16 Int8 Uint8 Bool");
    }

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
        write(&path, &[("b", "1".into()), ("a", "\"2\"".into())], &tensors).unwrap();
        let file = TensorFile::open(&path).unwrap();
        assert_eq!(file.names(), tensors.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
        assert_eq!((file.metadata("b").unwrap(), file.metadata("a").unwrap()), ("1", "\"2\""));
        for (name, tensor) in &tensors {
            assert_eq!(&file.tensor(name).unwrap(), tensor);
        }
        let first = std::fs::read(&path).unwrap();
        write(&path, &[("b", "1".into()), ("a", "\"2\"".into())], &tensors).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), first);
    }

    /// Writes and opens a file with one tensor of eight bytes of this type.
    fn of_type(path: &Path, dtype: &str, shape: &[i64]) -> TensorFile {
        let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": [0, 8]});
        let header =
            json!({"x": entry, "y": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}).to_string();
        let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 12]].concat();
        std::fs::write(path, bytes).unwrap();
        TensorFile::open(path).unwrap()
    }

    #[test]
    fn a_tensor_of_any_type_leaves_the_others_readable_and_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.safetensors");
        for (dtype, count) in
            [("F8_E4M3", 8), ("F8_E5M2FNUZ", 8), ("F4", 16), ("U16", 4), ("C64", 1), ("I4", 16), ("NF4", 7)]
        {
            let file = of_type(&path, dtype, &[count]);
            assert_eq!(file.tensor("y").unwrap().size(), [1]);
            let about = file.about("x").unwrap();
            assert_eq!((about.kind, about.dtype.as_str(), about.shape), (None, dtype, vec![count]));
            let message = file.tensor("x").unwrap_err().to_string();
            assert!(message.contains("`x`") && message.contains(dtype), "{message}");
        }
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
