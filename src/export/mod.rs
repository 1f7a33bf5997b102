//! Exports for other tools: a Hugging Face folder with the adapter merged in, or a plain PEFT LoRA.

pub mod hf;
pub mod peft;

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use tch::{Kind, Tensor, no_grad};

use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault, renamed};
use crate::files::{self, Partial, is_partial};
use crate::models::{Base, Config, Model};
use crate::nn::layout::Sequence;
use crate::nn::{Packed, Pass};

/// A model with its adapter, ready to be written in another form.
#[derive(Debug)]
pub struct Source<'a> {
    /// The checkpoint that the model was built from.
    pub base: &'a Base,
    /// The model in fp32, adapter attached.
    pub model: &'a Model,
    /// Its trained tensors, for one run.
    pub trained: &'a Trained,
    /// Names of the classes; empty for a regression.
    pub labels: &'a [String],
}

impl Source<'_> {
    /// Returns the trained tensors of `groups` by name, without the axis of runs, in fp32.
    fn trained_tensors(&self, groups: &[Group]) -> Vec<(String, Tensor)> {
        let entries = self.trained.entries().iter().filter(|entry| groups.contains(&entry.group));
        entries
            .map(|entry| {
                let tensor = entry.tensor.detach();
                (entry.name.clone(), if entry.group == Group::Base { tensor } else { tensor.get(0) })
            })
            .collect()
    }
}

/// Creates the folder `out` through `fill`, in a temporary folder that is moved into place when complete. Of
/// several processes that write the same folder, the first to finish wins.
///
/// # Errors
/// When `out` exists and holds anything, a folder cannot be made or has gone, or `fill` fails.
pub fn write_folder<T>(out: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let cannot = |error: io::Error| {
        fault(format!("cannot make the folder `{}`: {error}", out.display()))
            .hint("choose a folder that can be made and written by `--out`")
    };
    // An existing folder may be a link or a mount point: it stays, and is filled.
    let is_there = out.exists();
    if is_there && !is_empty(out) {
        return Err(is_used(out));
    }
    if !is_there && out.file_name().is_none() {
        return Err(fault(format!("`{}` names no folder that could be made", out.display())).into());
    }
    let beside = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = if is_there { out } else { beside };
    fs::create_dir_all(parent).map_err(cannot)?;
    let partial = Partial::folder(parent).map_err(cannot)?;
    let temporary = partial.path().display().to_string();
    let held = files::hold(partial.path(), out)?;
    let made =
        fill(partial.path()).map_err(|error| renamed(error, &temporary, &out.display().to_string()))?;
    files::check_held(partial.path())?;
    drop(held);
    let moved = if is_there { fill_from(out, partial.path()) } else { partial.name(out) };
    moved.map_err(|error| match error.kind() {
        ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => is_used(out),
        _ => cannot(error).into(),
    })?;
    Ok(made)
}

fn is_used(out: &Path) -> anyhow::Error {
    fault(format!("`{}` is there already and no empty folder", out.display()))
        .hint("choose another folder by `--out`, or remove this one")
        .into()
}

/// Returns true if a folder holds nothing but other processes' unfinished files.
fn is_empty(folder: &Path) -> bool {
    let used = |entry: io::Result<fs::DirEntry>| !entry.is_ok_and(|entry| is_partial(&entry.file_name()));
    fs::read_dir(folder).is_ok_and(|mut entries| !entries.any(used))
}

/// Moves the content of `partial` into the empty folder `out`, one process at a time; `config.json` comes
/// last, for without it there is no checkpoint and no adapter.
fn fill_from(out: &Path, partial: &Path) -> io::Result<()> {
    let _uninterrupted = files::uninterrupted();
    let lock = File::open(out)?;
    // A file system may have no locks; then there is nothing to wait for.
    let _ = lock.lock();
    if !is_empty(out) {
        return Err(ErrorKind::DirectoryNotEmpty.into());
    }
    let entries: io::Result<Vec<_>> =
        fs::read_dir(partial)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let mut names = entries?;
    names.sort_by_key(|name| name.as_encoded_bytes().ends_with(b"config.json"));
    names.iter().try_for_each(|name| fs::rename(partial.join(name), out.join(name)))
}

/// Computes logits of eight fixed sequences of mixed lengths, to compare two forms of one model: `[s, c]`, or
/// for a language model those after every token, `[n, v]`.
///
/// # Errors
/// When libtorch fails.
pub fn probe(config: &Config, model: &Model) -> Result<Tensor> {
    let vocabulary = u32::try_from(config.vocabulary).unwrap_or(u32::MAX).max(2);
    let longest = usize::try_from(config.longest_sequence()).unwrap_or(1).clamp(1, 48);
    let rows: Vec<Vec<u32>> = (0..8u32)
        .map(|row| {
            let length = (longest * (row as usize + 1)).div_ceil(8);
            // Spread over the vocabulary by a multiplicative hash; any tokens will do.
            (0..length as u32).map(|i| (row * 977 + i + 1).wrapping_mul(2_654_435_761) % vocabulary).collect()
        })
        .collect();
    let sequences = rows.iter().map(|ids| Sequence { ids, types: &[] }).collect();
    let batch = Packed::new(&[sequences], config.position_rule, model.device());
    let logits: Result<Tensor> = no_grad(|| match model {
        Model::Classifier(model) => model.forward(&batch, &Pass::evaluation()),
        Model::Language(model) => Ok(model.logits(&model.hidden(&batch, &Pass::evaluation())?)),
    });
    Ok(logits?.to_kind(Kind::Double))
}

/// Returns the largest difference, relative to the largest expected value.
pub fn relative_difference(expected: &Tensor, found: &Tensor) -> f64 {
    let largest = expected.abs().max().double_value(&[]);
    (expected - found).abs().max().double_value(&[]) / largest.max(f64::MIN_POSITIVE)
}
