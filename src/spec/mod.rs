//! The words that recipes, adapter files, bases and the command line share: pure data, each defined once.

mod device;
mod foreign;
mod given;
mod keys;
mod metric;
mod problem;
pub mod reader;
pub mod request;
mod shard;
pub mod values;

use std::fmt;

use clap::ValueEnum;
pub use device::DeviceChoice;
pub(crate) use keys::keys;
pub use metric::Metric;
pub use problem::Problem;
use serde::{Deserialize, Serialize, Serializer};
pub use shard::Shard;

/// Source of the frozen factors A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// The singular value decomposition of the base's own weights.
    #[default]
    Svd,
    /// Kaiming-uniform draws (a = √5).
    Random,
}

/// Algorithm of the singular value decomposition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum SvdMethod {
    /// Randomized range finder with power iterations, seeded; only for the top of the spectrum.
    #[default]
    Randomized,
    /// The full decomposition, truncated.
    Exact,
}

/// Singular directions that make the basis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Spectrum {
    /// Those of the largest singular values.
    #[default]
    Top,
    /// Those around the median singular value.
    Middle,
    /// Those of the smallest singular values.
    Bottom,
    /// A seeded choice without repetition, in descending order of singular value.
    Random,
}

/// Place of the singular values of a basis.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sigma {
    /// On A, as in the published LoRA-XS code: A = S Vᵀ, B = U.
    #[default]
    A,
    /// On B: A = Vᵀ, B = U S.
    B,
    /// A square root on each, as in TinyLoRA: A = √S Vᵀ, B = U √S.
    Split,
}

/// Layers that share a trainable vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Tying {
    /// Neighbours in the model.
    #[default]
    Depth,
    /// Neighbours among the layers of one kind (all queries, all values, …).
    Kind,
}

/// The learning rate after warm-up, as a factor of its peak.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Falls linearly to 0 at the last step.
    #[default]
    Linear,
    /// Falls to 0 along half a cosine.
    Cosine,
    /// Stays at 1.
    Constant,
}

/// Arithmetic of the base; trainable tensors and optimiser state are fp32 in any case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// On a GPU with tensor cores for it, tf32 for an encoder and bf16 for a decoder; fp32 elsewhere.
    #[default]
    Auto,
    /// 32-bit floats.
    Fp32,
    /// 32-bit floats whose products are rounded to 10 bits of mantissa on GPUs that can.
    Tf32,
    /// bfloat16.
    Bf16,
    /// 16-bit floats with dynamic loss scaling.
    Fp16,
}

/// Rows to score during training: a split, or a share of the training rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Validation {
    /// The name of a split, or a file.
    Split(String),
    /// A share above 0 and below 1.
    Share(f64),
}

impl Validation {
    /// Returns the name of the split.
    pub fn split(&self) -> &str {
        if let Self::Split(name) = self { name } else { "validation" }
    }
}

/// Interval of an event: `"epoch"`, `"never"`, or a number of optimiser steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Every {
    /// At the end of each epoch.
    Epoch,
    /// After each so many optimiser steps, at least 1.
    Steps(u64),
    /// Not at all during training.
    Never,
}

impl Serialize for Every {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Epoch => serializer.serialize_str("epoch"),
            Self::Steps(steps) => serializer.serialize_u64(*steps),
            Self::Never => serializer.serialize_str("never"),
        }
    }
}

/// The weights of classes in the loss: `"balanced"`, or a list.
#[derive(Debug, Clone, PartialEq)]
pub enum ClassWeights {
    /// One for each class; empty = all alike.
    Listed(Vec<f64>),
    /// Examples over classes times examples of the class, as scikit-learn's `balanced`.
    Balanced,
}

impl ClassWeights {
    /// Returns true if all classes are alike.
    pub fn is_none(&self) -> bool {
        matches!(self, Self::Listed(weights) if weights.is_empty())
    }
}

impl Serialize for ClassWeights {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Listed(weights) => weights.serialize(serializer),
            Self::Balanced => serializer.serialize_str("balanced"),
        }
    }
}

/// Prints a word as recipes and files write it.
macro_rules! display {
    ($($word:ty),*) => {
        $(impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.serialize(f)
            }
        })*
    };
}
display!(Init, SvdMethod, Spectrum, Sigma, Tying, Schedule, Precision);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_same_written_and_read() {
        fn check<T: ValueEnum + Serialize + fmt::Display>() {
            for variant in T::value_variants() {
                let name = variant.to_possible_value().unwrap().get_name().to_owned();
                assert_eq!(serde_json::to_value(variant).unwrap(), name);
                assert_eq!(variant.to_string(), name);
            }
        }
        check::<Init>();
        check::<SvdMethod>();
        check::<Spectrum>();
        check::<Sigma>();
        check::<Tying>();
        check::<Schedule>();
        check::<Precision>();
    }
}
