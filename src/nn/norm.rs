//! Layer normalisation.

use tch::Tensor;

use crate::torch::cast;

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
