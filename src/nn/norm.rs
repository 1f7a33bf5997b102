//! Layer normalisation and root-mean-square normalisation.

use tch::{Kind, Tensor};

use crate::torch::{cast, kernels};

/// `y = (x − mean) / sqrt(var + eps) · weight + bias`; statistics in fp32 whatever the kind of `x`.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// `weight` and `bias` are `[d]`.
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias, eps }
    }

    /// # Shapes
    /// `[.., d]` to the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (cast(&self.weight, x.kind()), cast(&self.bias, x.kind()));
        x.layer_norm(weight.size(), Some(&weight), Some(&bias), self.eps, true)
    }
}

/// `y = x / sqrt(mean(x²) + eps) · (weight + offset)` (Zhang and Sennrich, arXiv 1910.07467).
///
/// Computed in fp32. Llama and its relatives round to the kind of `x` before the weight is applied, Gemma (which has
/// the offset) after it, as in their classes in Transformers.
#[derive(Debug)]
pub struct RmsNorm {
    weight: Tensor,
    offset: f64,
    eps: f64,
    /// `weight + offset`, where our own kernel is used.
    packed: Option<Tensor>,
}

impl RmsNorm {
    /// `weight` is `[d]`.
    pub fn new(weight: Tensor, offset: f64, eps: f64) -> Self {
        Self { weight, offset, eps, packed: None }
    }

    /// Makes it fast without gradients; the weight is fp32 on the CPU and does not change after this.
    pub fn pack(&mut self) {
        self.packed = Some((self.weight.detach() + self.offset).contiguous());
    }

    /// # Shapes
    /// `[.., d]` to the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if let Some(weight) = &self.packed {
            return kernels::normalise(x, weight, self.eps);
        }
        let width = self.weight.size();
        if self.offset > 0.0 {
            let weight = cast(&self.weight, Kind::Float) + self.offset;
            return cast(&cast(x, Kind::Float).rms_norm(width, Some(&weight), self.eps), x.kind());
        }
        if x.kind() == Kind::Float {
            return x.rms_norm(width, Some(&cast(&self.weight, Kind::Float)), self.eps);
        }
        let normed = cast(&cast(x, Kind::Float).rms_norm(width, None::<&Tensor>, self.eps), x.kind());
        normed * cast(&self.weight, x.kind())
    }
}
