//! The weight of a linear layer, by the way it is stored.

use tch::{Device, Kind, Tensor};

use crate::torch::dims2;
use crate::torch::fused::linear;
use crate::torch::kernels::Panels;

/// W of `x Wᵀ`.
#[derive(Debug)]
pub enum Weight {
    /// `[out, in]`; may take gradients and be read back.
    Dense(Tensor),
    /// In the order of our own products on a CPU, with the layer's bias: it is only multiplied with, without gradients.
    Panels(Panels),
}

impl Weight {
    /// Packs a dense weight on the CPU, of a kind that [`crate::torch::kernels::packs`], together with the layer's bias.
    pub fn pack(&mut self, bias: Option<Tensor>) {
        if let Self::Dense(weight) = self {
            *self = Self::Panels(Panels::new(weight, bias.as_ref()));
        }
    }

    /// Returns `[out, in]`.
    pub fn shape(&self) -> [i64; 2] {
        match self {
            Self::Dense(weight) => dims2(weight),
            Self::Panels(panels) => panels.shape(),
        }
    }

    /// Returns the kind of its numbers.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Dense(weight) => weight.kind(),
            Self::Panels(panels) => panels.kind(),
        }
    }

    /// Returns the device of its numbers.
    pub fn device(&self) -> Device {
        self.dense().map_or(Device::Cpu, Tensor::device)
    }

    /// Returns the weight `[out, in]` unless it is packed.
    pub fn dense(&self) -> Option<&Tensor> {
        match self {
            Self::Dense(weight) => Some(weight),
            Self::Panels(_) => None,
        }
    }

    /// Returns the weight `[out, in]` if it is dense and frozen.
    pub fn frozen(&self) -> Option<&Tensor> {
        self.dense().filter(|weight| !weight.requires_grad())
    }

    /// Computes `x Wᵀ + bias`, where panels have their own bias; `blocks` as in [`linear`].
    ///
    /// # Shapes
    /// `x` `[m, in]` and `bias` `[out]` to `[m, out]`.
    pub fn multiply(&self, x: &Tensor, bias: Option<&Tensor>, blocks: &[i64]) -> Tensor {
        match self {
            Self::Dense(weight) => linear(x, weight, bias, blocks),
            Self::Panels(panels) => panels.multiply(x),
        }
    }
}
