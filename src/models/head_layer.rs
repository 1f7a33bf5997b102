//! The shape of a head: what it answers, and its layers by their paths in a checkpoint.

use crate::spec::Problem;

/// What a head answers, and its outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadShape {
    /// What it answers.
    pub problem: Problem,
    /// c: its classes, or 1 for a number.
    pub outputs: i64,
}

/// A layer of a head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadLayer {
    /// Its path in the checkpoint.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [i64; 2],
    /// True if it has a bias.
    pub biased: bool,
}

impl HeadLayer {
    /// Describes a layer of this path, with `[outputs, inputs]`.
    pub fn new(name: impl Into<String>, shape: [i64; 2], biased: bool) -> Self {
        Self { name: name.into(), shape, biased }
    }

    /// Returns the number of its parameters.
    pub fn numbers(&self) -> i64 {
        let [out, inputs] = self.shape;
        out * (inputs + i64::from(self.biased))
    }

    /// Returns its tensors, path and shape.
    pub fn tensors(&self) -> impl Iterator<Item = (String, Vec<i64>)> {
        let [out, inputs] = self.shape;
        let bias = self.biased.then(|| (format!("{}.bias", self.name), vec![out]));
        std::iter::once((format!("{}.weight", self.name), vec![out, inputs])).chain(bias)
    }
}
