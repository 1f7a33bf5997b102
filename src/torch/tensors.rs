//! Safetensors of a checkpoint folder: single or sharded, memory-mapped, checked before anything is computed.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::fault::{Result, fault};
use crate::files;

/// The tensors of one or several safetensors files, by name.
#[derive(Debug)]
pub struct Tensors {
    maps: Vec<(PathBuf, Mmap)>,
    index: BTreeMap<String, Slot>,
}

#[derive(Debug, Clone)]
struct Slot {
    map: usize,
    kind: Kind,
    shape: Vec<i64>,
    start: usize,
    end: usize,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Tensors {
    /// Opens `model.safetensors`, or the shards that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// Names the file that is missing, truncated or not safetensors, and a tensor that its shard does not hold.
    pub fn open_checkpoint(folder: &Path) -> Result<Self> {
        let single = folder.join("model.safetensors");
        let index_path = folder.join("model.safetensors.index.json");
        if single.exists() {
            return Self::open(&[single]);
        }
        if !index_path.exists() {
            return Err(fault(format!("`{}` holds no `model.safetensors`", folder.display())).into());
        }
        let index: ShardIndex = files::read_json(&index_path)?;
        let mut shards: Vec<PathBuf> = index.weight_map.values().map(|file| folder.join(file)).collect();
        shards.sort();
        shards.dedup();
        let tensors = Self::open(&shards)?;
        match index.weight_map.keys().find(|name| !tensors.index.contains_key(*name)) {
            None => Ok(tensors),
            Some(name) => Err(fault(format!("`{}` names tensor `{name}`, which no shard holds", index_path.display()))
                .hint("a shard is missing or of another checkpoint; download it again")
                .into()),
        }
    }

    /// Opens these files.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut opened = Self { maps: Vec::new(), index: BTreeMap::new() };
        for path in paths {
            opened.add(path).with_context(|| format!("cannot read tensors of `{}`", path.display()))?;
        }
        Ok(opened)
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path)?;
        // SAFETY: the file is read only; a program that truncates it meanwhile would break any reader.
        let map = unsafe { Mmap::map(&file) }?;
        let parsed = SafeTensors::deserialize(&map).map_err(|e| {
            fault(format!("not a whole safetensors file ({e}), {} bytes", map.len()))
                .hint("the file is truncated or of another format; download or copy it again")
        })?;
        for (name, view) in parsed.iter() {
            let kind = kind_of(view.dtype())
                .ok_or_else(|| fault(format!("tensor `{name}` has the unsupported type {:?}", view.dtype())))?;
            let shape = view.shape().iter().map(|&n| n as i64).collect();
            let start = view.data().as_ptr() as usize - map.as_ptr() as usize;
            let slot = Slot { map: self.maps.len(), kind, shape, start, end: start + view.data().len() };
            self.index.insert(name.to_owned(), slot);
        }
        self.maps.push((path.to_owned(), map));
        Ok(())
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.index.get(name).map(|slot| slot.shape.as_slice())
    }

    /// The kind in which a tensor is stored.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.index.get(name).map(|slot| slot.kind)
    }

    /// The bytes of a tensor as stored, little-endian.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let slot = self.index.get(name)?;
        self.maps.get(slot.map)?.1.get(slot.start..slot.end)
    }

    /// A copy of a tensor on `device`, in `kind` or as stored.
    ///
    /// # Errors
    /// When there is none, or it holds a number that is not finite.
    pub fn tensor(&self, name: &str, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let (Some(slot), Some(bytes)) = (self.index.get(name), self.bytes(name)) else {
            return Err(fault(format!("there is no tensor `{name}`")).into());
        };
        let tensor = Tensor::f_from_data_size(bytes, &slot.shape, slot.kind)?;
        let tensor = tensor.to_device(device).to_kind(kind.unwrap_or(slot.kind));
        if tensor.is_floating_point() && i64::try_from(tensor.isfinite().all())? == 0 {
            let path = self.maps[slot.map].0.display();
            return Err(fault(format!("tensor `{name}` of `{path}` holds NaN or infinite numbers"))
                .hint("the checkpoint is broken, or its numbers do not fit the precision that it is loaded in")
                .into());
        }
        Ok(tensor)
    }
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::F32 => Kind::Float,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::I32 => Kind::Int,
        Dtype::U8 => Kind::Uint8,
        Dtype::BOOL => Kind::Bool,
        _ => return None,
    })
}

/// The safetensors type of a kind.
pub fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Float => Dtype::F32,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        Kind::Int => Dtype::I32,
        Kind::Uint8 => Dtype::U8,
        Kind::Bool => Dtype::BOOL,
        _ => return None,
    })
}

/// Writes tensors as one safetensors file, as they are, beside its place and then into it.
///
/// # Errors
/// Names the file when it cannot be written.
pub fn write(path: &Path, tensors: &[(String, Tensor)], metadata: Option<(&str, String)>) -> Result<()> {
    let mut views = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let tensor = tensor.detach().to_device(Device::Cpu).contiguous();
        let dtype = dtype_of(tensor.kind()).ok_or_else(|| fault(format!("cannot store {:?}", tensor.kind())))?;
        let mut bytes = vec![0u8; tensor.numel() * tensor.kind().elt_size_in_bytes()];
        tensor.f_copy_data_u8(&mut bytes, tensor.numel())?;
        views.push((name.as_str(), dtype, tensor.size(), bytes));
    }
    let views = views
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let shape = shape.iter().map(|&n| usize::try_from(n).unwrap_or(0)).collect();
            Ok((*name, safetensors::tensor::TensorView::new(*dtype, shape, bytes)?))
        })
        .collect::<Result<Vec<_>>>()?;
    // One key at most: the library keeps them in a hash map, whose order would change the file's bytes.
    let metadata = metadata.map(|(key, value)| std::iter::once((key.to_owned(), value)).collect());
    let bytes = safetensors::serialize(views, metadata)?;
    files::write_bytes(path, &bytes)
}
