//! What other tools load: a Hugging Face folder with the adapter merged in, or the adapter as a plain PEFT LoRA.

pub mod hf;
pub mod peft;

use std::fs;
use std::path::{Path, PathBuf};

use tch::{Kind, Tensor, no_grad};

use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault};
use crate::models::{Base, Config, Model};
use crate::nn::packed::Sequence;
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
    /// The trained tensors of `groups` by name, without the axis of runs, in fp32.
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

/// Makes the folder `out` by `fill`, in a folder beside it that is renamed when it is whole.
///
/// # Errors
/// When `out` exists and holds anything, a folder cannot be made, or `fill` fails.
pub fn write_folder<T>(out: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    if out.exists() && !fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none()) {
        return Err(fault(format!("`{}` is there already and no empty folder", out.display()))
            .hint("choose another folder by `--out`, or remove this one")
            .into());
    }
    let Some(name) = out.file_name() else {
        return Err(fault(format!("`{}` names no folder that could be made", out.display())).into());
    };
    let partial: PathBuf = out.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    let cannot = |error: std::io::Error| {
        fault(format!("cannot make the folder `{}`: {error}", out.display()))
            .hint("choose a folder that can be made and written by `--out`")
    };
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(cannot)?;
    }
    fs::create_dir_all(&partial).map_err(cannot)?;
    let made = fill(&partial).and_then(|made| {
        if out.exists() {
            fs::remove_dir(out).map_err(cannot)?;
        }
        fs::rename(&partial, out).map_err(cannot)?;
        Ok(made)
    });
    if made.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&partial);
    }
    made
}

/// Logits of eight fixed sequences of mixed lengths, for comparing two forms of one model: `[s, c]`, or those after every
/// token, `[n, v]`, of a language model.
///
/// # Errors
/// When libtorch fails.
pub fn probe(config: &Config, model: &Model) -> Result<Tensor> {
    let vocabulary = u32::try_from(config.vocabulary()).unwrap_or(u32::MAX).max(2);
    let longest = usize::try_from(config.longest_sequence()).unwrap_or(1).clamp(1, 48);
    let rows: Vec<Vec<u32>> = (0..8u32)
        .map(|row| {
            let length = (longest * (row as usize + 1)).div_ceil(8);
            // Spread over the vocabulary by a multiplicative hash; any tokens will do.
            (0..length as u32).map(|i| (row * 977 + i + 1).wrapping_mul(2_654_435_761) % vocabulary).collect()
        })
        .collect();
    let sequences = rows.iter().map(|ids| Sequence { ids, types: &[] }).collect();
    let batch = Packed::new(&[sequences], config.position_rule(), model.device());
    let logits = no_grad(|| match model {
        Model::Classifier(model) => model.forward(&batch, &Pass::evaluation()),
        Model::Language(model) => Ok(model.logits(&model.hidden(&batch, &Pass::evaluation())?)),
    })?;
    Ok(logits.get(0).to_kind(Kind::Double))
}

/// The largest difference, relative to the largest expected value.
pub fn relative_difference(expected: &Tensor, found: &Tensor) -> f64 {
    let largest = expected.abs().max().double_value(&[]);
    (expected - found).abs().max().double_value(&[]) / largest.max(f64::MIN_POSITIVE)
}
