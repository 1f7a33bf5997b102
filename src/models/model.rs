//! A model of either kind, for commands that work with both.

use std::collections::BTreeMap;

use tch::{Device, Kind, no_grad};

use super::placement::Placement;
use super::{Base, Build, CausalLm, Classifier};
use crate::adapters::Trained;
use crate::fault::{Result, fault};
use crate::nn::Linear;

/// A model of either kind.
#[derive(Debug)]
pub enum Model {
    /// Maps sequences to classes or numbers.
    Classifier(Classifier),
    /// Predicts the next token.
    Language(CausalLm),
}

impl Model {
    /// Builds a classifier with the head that `build` asks for, or a language model from a decoder.
    ///
    /// # Errors
    /// Names every missing and mis-shaped tensor at once.
    pub fn load(base: &Base, build: &Build, trained: &mut Trained) -> Result<Self> {
        Ok(match build.head {
            Some(_) => Self::Classifier(Classifier::load(base, build, trained)?),
            None => Self::Language(CausalLm::load(base, build, trained)?),
        })
    }

    /// Returns every linear layer that can take an adapter, in the order of the checkpoint's layers.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Classifier(model) => model.trunk.linears_mut(),
            Self::Language(model) => model.decoder.linears_mut(),
        }
    }

    /// Returns the layers of [`Self::linears_mut`], shared.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Classifier(model) => model.trunk.linears(),
            Self::Language(model) => model.decoder.linears(),
        }
    }

    /// Returns the Frobenius norm of ΔW of run `run`, by layer; none where it is not of low rank.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn delta_norms(&self, run: i64) -> Result<BTreeMap<String, f64>> {
        let of_layer = |layer: &&Linear| -> Option<Result<(String, f64)>> {
            let adapter = layer.adapter()?;
            let (a, b) = adapter.lora_factors(run)?;
            // ‖B A‖² = Σ (BᵀB) ∘ (A Aᵀ), of the size of the rank.
            let square = (b.tr().matmul(&b) * a.matmul(&a.tr())).sum(Kind::Double);
            let norm = f64::try_from(square).map(|square| square.max(0.0).sqrt() * adapter.scale(run).abs());
            Some(norm.map(|norm| (layer.name().to_owned(), norm)).map_err(Into::into))
        };
        no_grad(|| self.linears().iter().filter_map(of_layer).collect())
    }

    /// Merges every adapter of the first run into its layer's weight; nothing can be trained after this.
    pub fn merge_adapters(&mut self) {
        self.linears_mut().into_iter().for_each(Linear::merge);
    }

    /// Calls [`CausalLm::pack`] on a language model.
    pub fn pack(&mut self) {
        if let Self::Language(model) = self {
            model.pack();
        }
    }

    /// Returns where its parts lie.
    pub fn placement(&self) -> &Placement {
        match self {
            Self::Classifier(model) => &model.placement,
            Self::Language(model) => &model.placement,
        }
    }

    /// Returns the device of its inputs.
    pub fn device(&self) -> Device {
        self.placement().first()
    }

    /// Returns the classifier.
    ///
    /// # Errors
    /// When it is a language model.
    pub fn classifier(&self) -> Result<&Classifier> {
        match self {
            Self::Classifier(model) => Ok(model),
            Self::Language(_) => Err(fault("the model is a language model, expected a classifier").into()),
        }
    }

    /// Returns the language model.
    ///
    /// # Errors
    /// When it is a classifier.
    pub fn language(&self) -> Result<&CausalLm> {
        match self {
            Self::Language(model) => Ok(model),
            Self::Classifier(_) => Err(fault("the model is a classifier, expected a language model").into()),
        }
    }
}
