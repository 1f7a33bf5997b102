//! LoRA-XS: `ΔW = (α/r) · B R A`.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, in]` | frozen | `S_r V_rᵀ` from `W ≈ U S Vᵀ`, or Kaiming-uniform (a = √5) |
//! | B | `[out, r]` | frozen | `U_r`, or Kaiming-uniform (a = √5) |
//! | R | `[k, r, r]` | trained | N(0, init_std²) |
//!
//! Trained numbers per target: r². Source: arXiv 2405.17604, section 3, and the authors' code
//! (github.com/MohammadrezaBanaei/LoRA-XS at e50b1a8), which puts S on the input side.

use tch::{Kind, Tensor, no_grad};

use super::Adapter;
use crate::torch::cast;

/// One layer's LoRA-XS adapter.
#[derive(Debug)]
pub struct LoraXs {
    a: Tensor,
    b: Tensor,
    core: Tensor,
    scale: f64,
}

impl LoraXs {
    /// `a` `[r, in]` and `b` `[out, r]` in the kind that the base computes in, `core` `[k, r, r]` in fp32, `scale` α/r.
    pub fn new(a: Tensor, b: Tensor, core: Tensor, scale: f64) -> Self {
        Self { a, b, core, scale }
    }
}

impl Adapter for LoraXs {
    fn delta(&self) -> Tensor {
        let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
        b.matmul(&self.core).matmul(&a) * self.scale // [k, out, in]
    }

    fn add_to(&self, mut y: Tensor, x: &Tensor) -> Tensor {
        let core = cast(&(&self.core * self.scale), x.kind()).transpose(1, 2);
        let thin = x.matmul(&self.a.tr()).matmul(&core); // [k, n, r]
        // One product that adds into the base's result: no separate read and write of y.
        y.addmm_(&thin.flatten(0, 1), &self.b.tr())
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
            Some((a, b.matmul(&self.core.get(run))))
        })
    }
}
