//! A model of either kind, for commands that do not care which.

use tch::Device;

use super::{Base, Build, CausalLm, Classifier, Config};
use crate::adapters::Trained;
use crate::fault::{Result, fault};
use crate::nn::Linear;

/// A model of either kind.
#[derive(Debug)]
pub enum Model {
    /// Sequences to classes or numbers.
    Classifier(Classifier),
    /// Tokens to the next token.
    Language(CausalLm),
}

impl Model {
    /// Builds what the base is: a classifier from an encoder, a language model from a decoder.
    ///
    /// # Errors
    /// Names every missing and mis-shaped tensor at once.
    pub fn load(base: &Base, build: &Build, trained: &mut Trained) -> Result<Self> {
        Ok(match &base.config {
            Config::Encoder(_) => Self::Classifier(Classifier::load(base, build, trained)?),
            Config::Decoder(_) => Self::Language(CausalLm::load(base, build, trained)?),
        })
    }

    /// Every linear layer that an adapter may go on, in the order of the checkpoint's layers.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Classifier(model) => model.encoder.linears_mut(),
            Self::Language(model) => model.decoder.linears_mut(),
        }
    }

    /// The same layers, for reading.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Classifier(model) => model.encoder.linears(),
            Self::Language(model) => model.decoder.linears(),
        }
    }

    /// Puts every adapter of the first run into its layer's weight, for reading only: nothing is trained after this.
    pub fn merge_adapters(&mut self) {
        self.linears_mut().into_iter().for_each(Linear::merge);
    }

    /// [`CausalLm::pack`] of a language model.
    pub fn pack(&mut self) {
        if let Self::Language(model) = self {
            model.pack();
        }
    }

    /// Where the model computes.
    pub fn device(&self) -> Device {
        match self {
            Self::Classifier(model) => model.device(),
            Self::Language(model) => model.device(),
        }
    }

    /// The classifier.
    ///
    /// # Errors
    /// When it is a language model.
    pub fn classifier(&self) -> Result<&Classifier> {
        match self {
            Self::Classifier(model) => Ok(model),
            Self::Language(model) => {
                let name = &model.config.architecture;
                Err(fault(format!("the base is a decoder (`{name}`), expected an encoder")).into())
            }
        }
    }

    /// The language model.
    ///
    /// # Errors
    /// When it is a classifier.
    pub fn language(&self) -> Result<&CausalLm> {
        match self {
            Self::Language(model) => Ok(model),
            Self::Classifier(model) => {
                let name = &model.config.prefix;
                Err(fault(format!("the base is an encoder (`{name}`), expected a decoder")).into())
            }
        }
    }
}
