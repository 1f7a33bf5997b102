//! Layer normalisation and root-mean-square normalisation.

use tch::{Kind, Tensor};

use crate::torch::{cast, fused, kernels, own_cuda};

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
        fused::layer_norm(x, &self.weight, &self.bias, self.eps)
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
    /// `weight + offset`, if our own kernel is used.
    packed: Option<Tensor>,
}

impl RmsNorm {
    /// `weight` is `[d]`.
    pub fn new(weight: Tensor, offset: f64, eps: f64) -> Self {
        Self { weight, offset, eps, packed: None }
    }

    /// Speeds up passes without gradients; the weight is fp32 on the CPU and must not change after this.
    pub fn pack(&mut self) {
        self.packed = Some((self.weight.detach() + self.offset).contiguous());
    }

    /// Returns the weight plus its offset in fp32, if the one-pass norm applies.
    fn fused(&self, x: &Tensor) -> Option<Tensor> {
        let serves = self.packed.is_none() && fused::serves_row(x) && !self.weight.requires_grad();
        serves.then(|| {
            if self.offset == 0.0 {
                cast(&self.weight, Kind::Float)
            } else {
                cast(&self.weight, Kind::Float) + self.offset
            }
        })
    }

    /// Returns `x + add` and the norm of that sum.
    ///
    /// # Shapes
    /// `[.., d]` to the same, twice.
    pub fn add_forward(&self, x: &Tensor, add: &Tensor) -> (Tensor, Tensor) {
        if let Some(weight) = self.fused(x).filter(|_| fused::serves_row(add)) {
            return fused::add_rms_norm([x, add], &weight, self.eps, self.offset == 0.0);
        }
        if let Some((normed, Some(sum))) =
            own_cuda::rms_norm(x, Some(add), &self.weight, [self.eps, self.offset])
        {
            return (sum, normed);
        }
        let sum = x + add;
        let normed = self.forward(&sum);
        (sum, normed)
    }

    /// # Shapes
    /// `[.., d]` to the same.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        if let Some(weight) = &self.packed {
            return kernels::normalise(x, weight, self.eps);
        }
        if let Some(weight) = self.fused(x) {
            return fused::rms_norm(x, &weight, self.eps, self.offset == 0.0);
        }
        if let Some((normed, _)) = own_cuda::rms_norm(x, None, &self.weight, [self.eps, self.offset]) {
            return normed;
        }
        let width = self.weight.size();
        // On a GPU one kernel computes in fp32 and rounds once, also in low precision; else the rounding is Transformers'.
        if x.device().is_cuda() {
            let (wide, weight) = match self.offset > 0.0 {
                true => (cast(x, Kind::Float), cast(&self.weight, Kind::Float) + self.offset),
                false => (x.shallow_clone(), cast(&self.weight, x.kind())),
            };
            return cast(&wide.rms_norm(width, Some(&weight), self.eps), x.kind());
        }
        let normed = cast(x, Kind::Float).rms_norm(width, None::<&Tensor>, self.eps);
        if self.offset > 0.0 {
            return cast(&fused::scaled(&normed, &self.weight, self.offset), x.kind());
        }
        fused::scaled(&cast(&normed, x.kind()), &self.weight, 0.0)
    }
}
