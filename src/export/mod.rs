//! Exports for other tools: a Hugging Face folder with the adapter merged in, or a plain PEFT LoRA.

pub mod hf;
pub mod peft;

use tch::{Kind, Tensor, no_grad};

use crate::adapters::{Group, Trained};
use crate::fault::Result;
use crate::models::{Base, Config, Model};
use crate::nn::layout::Sequence;
use crate::nn::{Packed, Pass};

/// A model with its adapter, ready to be written in another form.
#[derive(Debug)]
pub struct AdaptedModel<'a> {
    /// The checkpoint that the model was built from.
    pub base: &'a Base,
    /// The model in fp32, adapter attached.
    pub model: &'a Model,
    /// Its trained tensors, for one run.
    pub trained: &'a Trained,
    /// Names of the classes; empty for a regression.
    pub labels: &'a [String],
}

impl AdaptedModel<'_> {
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

/// Computes logits of eight fixed sequences of mixed lengths, to compare two forms of one model: `[s, c]`, or
/// for a language model and with a head for tokens those of every token, `[n, v]`.
/// Fails when libtorch fails.
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
