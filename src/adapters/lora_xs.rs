//! LoRA-XS: `ΔW = (α/r) · B R A`.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, in]` | frozen | `S_r V_rᵀ` from `W ≈ U S Vᵀ`, or Kaiming-uniform (a = √5) |
//! | B | `[out, r]` | frozen | `U_r`, or Kaiming-uniform (a = √5) |
//! | R | `[k, r, r]` | trained | N(0, init_std²) |
//!
//! S may also stand on B, or as √S on both (`basis::Sigma`).
//! Trained numbers per target: r². Source: arXiv 2405.17604, section 3, and the authors' code
//! (github.com/MohammadrezaBanaei/LoRA-XS at e50b1a8), which puts S on the input side.

use tch::{Kind, Tensor, no_grad};

use super::svd::Factors;
use super::{Adapter, Site, Trained, add_through_core};
use crate::torch::{cast, draw};

/// What follows the layer's path in the name of the trained tensor.
pub const CORE: &str = "R";

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

    /// The adapter of one layer in its basis, its core drawn with standard deviation `init_std` and added to `trained`.
    pub fn build(site: &Site, factors: &Factors, scale: f64, init_std: f64, trained: &mut Trained) -> Self {
        let rank = factors.s.numel() as i64;
        let core = site.train(trained, CORE, |seed, name| draw::normal(seed, name, &[rank, rank], init_std));
        Self::new(site.place(&factors.a), site.place(&factors.b), core, scale)
    }
}

impl Adapter for LoraXs {
    fn delta(&self) -> Tensor {
        let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
        b.matmul(&self.core).matmul(&a) * self.scale // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor) -> Tensor {
        add_through_core(y, x, &self.a, &(&self.core * self.scale), &self.b)
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
            Some((a, b.matmul(&self.core.get(run))))
        })
    }

    fn scale(&self) -> f64 {
        self.scale
    }
}
