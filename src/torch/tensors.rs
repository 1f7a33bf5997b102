//! Safetensors of a checkpoint folder: single or sharded, checked before anything is computed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use super::tensor_file::{StoredTensor, TensorFile, View};
use crate::fault::{Result, fault, locked};
use crate::files::{self, quantised};

/// The tensors of one or several safetensors files, by name.
#[derive(Debug)]
pub struct Tensors {
    files: Vec<TensorFile>,
    /// Name to file, kind and shape.
    index: BTreeMap<String, Slot>,
    /// True if tensors are zeros that take no memory, instead of the stored numbers.
    unread: bool,
    /// Names and shapes that were asked for, where any tensor is there because there are no files.
    imagined: Option<Mutex<BTreeMap<String, Vec<i64>>>>,
}

#[derive(Debug)]
struct Slot {
    file: usize,
    /// The name in the file.
    key: String,
    about: StoredTensor,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// A tensor that may hold numbers that are not finite.
#[derive(Debug)]
pub struct Doubt {
    name: String,
    /// True if they all are, on the tensor's device.
    finite: Tensor,
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
            Some(name) => {
                Err(fault(format!("`{}` names tensor `{name}`, which no shard holds", index_path.display()))
                    .hint("a shard is missing or belongs to another checkpoint; download it again")
                    .into())
            }
        }
    }

    /// Returns tensors of which any that is asked for is there, in any shape; [`Tensors::asked_for`] ends this.
    pub fn imagined() -> Self {
        Self { files: Vec::new(), index: BTreeMap::new(), unread: true, imagined: Some(Mutex::default()) }
    }

    /// Notes that a tensor of this shape is asked for, if any is there.
    pub fn imagine(&self, name: &str, shape: &[i64]) -> bool {
        let Some(asked) = &self.imagined else { return false };
        locked(asked).insert(name.to_owned(), shape.to_vec());
        true
    }

    /// Returns the imagined tensors that were asked for, of this kind.
    pub fn asked_for(self, kind: Kind) -> Self {
        let asked = self.imagined.map(|asked| asked.into_inner().unwrap_or_else(PoisonError::into_inner));
        let slot = |(name, shape): (String, Vec<i64>)| {
            let about = StoredTensor { kind: Some(kind), dtype: format!("{kind:?}"), shape };
            (name.clone(), Slot { file: 0, key: name, about })
        };
        let index = asked.unwrap_or_default().into_iter().map(slot).collect();
        Self { files: Vec::new(), index, unread: true, imagined: None }
    }

    /// Makes all tensors zeros that take no memory.
    pub fn without_numbers(&mut self) {
        self.unread = true;
    }

    /// Opens these files.
    ///
    /// # Errors
    /// Names the file that cannot be read or is not safetensors.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut opened = Self { files: Vec::new(), index: BTreeMap::new(), unread: false, imagined: None };
        for path in paths {
            let file = TensorFile::open(path)?;
            for name in file.names() {
                let about = file.about(&name)?;
                let slot = Slot { file: opened.files.len(), key: name.clone(), about };
                opened.index.insert(name, slot);
            }
            opened.files.push(file);
        }
        Ok(opened)
    }

    /// Renames the tensors.
    ///
    /// # Errors
    /// Names two tensors that would have one name.
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Result<Self> {
        let mut index: BTreeMap<String, Slot> = BTreeMap::new();
        for (name, slot) in self.index {
            if let Some(other) = index.get(&rename(&name)) {
                let message = format!("`{}` and `{name}` are the same tensor under two names", other.key);
                return Err(fault(message).into());
            }
            index.insert(rename(&name), slot);
        }
        Ok(Self { index, ..self })
    }

    /// Returns the names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Returns true if there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.index.contains_key(name) || self.imagined.is_some()
    }

    /// Returns the shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.index.get(name).map(|slot| slot.about.shape.as_slice())
    }

    /// Returns the kind in which a tensor is stored, if libtorch has it.
    pub fn kind(&self, name: &str) -> Option<Kind> {
        self.index.get(name)?.about.kind
    }

    /// Returns true if a tensor holds floats of a kind that libtorch has.
    pub fn is_float(&self, name: &str) -> bool {
        matches!(self.kind(name), Some(Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double))
    }

    /// Returns the bytes of a tensor, of any type.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (file, key) = self.place(name).ok()?;
        file.bytes(key)
    }

    /// Returns a tensor as it is stored.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn view(&self, name: &str) -> Result<View<'_>> {
        let (file, key) = self.place(name)?;
        file.view(key)
    }

    /// Releases the memory of a tensor's bytes; see [`TensorFile::release`].
    pub fn release(&self, name: &str) {
        if let Ok((file, key)) = self.place(name) {
            file.release(key);
        }
    }

    /// Copies a tensor to `device`, in `kind` or as stored; where numbers are not read, zeros in its shape.
    ///
    /// # Errors
    /// When there is none, or it holds integers or a number that is not finite.
    pub fn tensor(&self, name: &str, kind: Option<Kind>, device: Device) -> Result<Tensor> {
        let mut doubts = Vec::new();
        let tensor = self.tensor_ahead(name, kind, device, &mut doubts)?;
        self.settle(&mut doubts)?;
        Ok(tensor)
    }

    /// As [`Self::tensor`], but a GPU is not waited for: what it finds of the numbers is one of the `doubts`, for [`Self::settle`].
    ///
    /// # Errors
    /// When there is none, or it holds integers.
    pub fn tensor_ahead(
        &self,
        name: &str,
        kind: Option<Kind>,
        device: Device,
        doubts: &mut Vec<Doubt>,
    ) -> Result<Tensor> {
        let asked = name;
        let slot = self.index.get(name).filter(|_| self.unread && self.is_float(name));
        if let Some(StoredTensor { kind: Some(stored), shape, .. }) = slot.map(|slot| &slot.about) {
            return Ok(zeros(shape, kind.unwrap_or(*stored), device));
        }
        let (float, (file, name)) = (self.is_float(name), self.place(name)?);
        if !float {
            let (path, StoredTensor { kind, dtype, .. }) = (file.path().display(), file.about(name)?);
            let found = kind.map_or(dtype, |kind| format!("{kind:?}"));
            return Err(fault(format!("tensor `{name}` of `{path}` holds {found}, expected floats"))
                .hint(self.quantised().unwrap_or_else(|| quantised::hint(self.folder())))
                .into());
        }
        let stored = file.tensor_on(name, device)?;
        let kind = kind.unwrap_or(stored.kind());
        file.release(name);
        let tensor = stored.to_kind(kind);
        doubts.push(Doubt { name: asked.to_owned(), finite: tensor.isfinite().all() });
        Ok(tensor)
    }

    /// Takes the doubts away, with one copy from their device.
    ///
    /// # Errors
    /// Names the first tensor with a number that is not finite.
    pub fn settle(&self, doubts: &mut Vec<Doubt>) -> Result<()> {
        let doubts = std::mem::take(doubts);
        if doubts.is_empty() {
            return Ok(());
        }
        let found: Vec<Tensor> =
            doubts.iter().map(|doubt| doubt.finite.to_device(doubts[0].finite.device())).collect();
        let found: Vec<bool> = Vec::try_from(Tensor::stack(&found, 0))?;
        let Some((Doubt { name, .. }, _)) = doubts.iter().zip(found).find(|(_, is_finite)| !is_finite) else {
            return Ok(());
        };
        let (file, name) = self.place(name)?;
        let path = file.path().display();
        Err(fault(format!("tensor `{name}` of `{path}` has NaN or infinite values"))
            .hint(
                "the checkpoint is damaged, or its values exceed the range of the precision it is loaded in",
            )
            .into())
    }

    /// Returns a hint if the names of the tensors are those of a quantised checkpoint.
    pub fn quantised(&self) -> Option<String> {
        let (method, name) = quantised::of_tensors(self.index.keys().map(String::as_str))?;
        Some(format!("`{name}` is a tensor of {method}: {}", quantised::hint(self.folder())))
    }

    /// Returns the folder of the first file.
    fn folder(&self) -> &Path {
        self.files.first().and_then(|file| file.path().parent()).unwrap_or(Path::new(""))
    }

    /// Returns the file of a tensor, and its name there.
    fn place(&self, name: &str) -> Result<(&TensorFile, &str)> {
        let slot = self.index.get(name);
        let found = slot.and_then(|slot| Some((self.files.get(slot.file)?, slot.key.as_str())));
        found.ok_or_else(|| {
            let first = self.files.first().map(|file| file.path().display().to_string());
            let place = first.unwrap_or_default();
            let rest = if self.files.len() > 1 { " and the files beside it" } else { "" };
            fault(format!("there is no tensor `{name}` in `{place}`{rest}")).into()
        })
    }
}

/// Returns zeros that take the memory of one.
pub fn zeros(shape: &[i64], kind: Kind, device: Device) -> Tensor {
    let none: [i64; 0] = [];
    Tensor::zeros(none, (kind, device)).expand(shape, false)
}
