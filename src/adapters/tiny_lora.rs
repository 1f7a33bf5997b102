//! TinyLoRA: `ΔW = B (Σ_i v_i P_i) A`, with v shared by a group of layers.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, in]` | frozen | `√S_r V_rᵀ` from `W ≈ U S Vᵀ` |
//! | B | `[out, r]` | frozen | `U_r √S_r` |
//! | P | `[u, r, r]` | frozen | N(0, 1/r) |
//! | v | `[k, u]` | trained, one for each group | 0 |
//!
//! Trained numbers: u for each group of layers. Source: arXiv 2602.04118; factors, draw of P, tensor names and the
//! rule of the groups as in github.com/huggingface/peft at 5d602fd, `tuners/tinylora/`.

use tch::{Device, Kind, Tensor, no_grad};

use super::svd::Factors;
use super::{Adapter, Group, Site, Trained, add_through_core};
use crate::torch::{cast, dims3};

/// What follows the layer's path in the names of the frozen tensors: of A, B and P.
pub const FROZEN: [&str; 3] = ["tinylora_A", "tinylora_B", "tinylora_P"];
/// What precedes the number of the group in the name of its v.
pub const VECTOR: &str = "tinylora_v.";

/// One layer's TinyLoRA adapter.
#[derive(Debug)]
pub struct TinyLora {
    a: Tensor,
    b: Tensor,
    projections: Tensor,
    vector: Tensor,
}

/// P of the layer with this number, in fp32: `[u, r, r]`.
pub fn projections(count: i64, rank: i64, seed: u64) -> Tensor {
    tch::manual_seed(seed.cast_signed());
    Tensor::empty([count, rank, rank], (Kind::Float, Device::Cpu)).normal_(0.0, 1.0 / (rank as f64).sqrt())
}

/// The v of group `group`, which all its layers share; added to `trained` with k copies of zero.
pub fn vector(group: usize, count: i64, runs: usize, device: Device, trained: &mut Trained) -> Tensor {
    let zeros = Tensor::zeros([runs as i64, count], (Kind::Float, device));
    trained.add(format!("{VECTOR}{group}"), Group::Adapter, &zeros)
}

impl TinyLora {
    /// `a` `[r, in]` and `b` `[out, r]` in the kind that the base computes in, `projections` `[u, r, r]` and `vector`
    /// `[k, u]` in fp32.
    pub fn new(a: Tensor, b: Tensor, projections: Tensor, vector: Tensor) -> Self {
        Self { a, b, projections, vector }
    }

    /// The adapter of one layer in its basis, with the v of its group.
    pub fn build(site: &Site, factors: &Factors, projections: &Tensor, vector: Tensor) -> Self {
        let (a, b) = (site.place(&factors.a), site.place(&factors.b));
        Self::new(a, b, projections.to_device(site.device), vector)
    }

    /// `Σ_i v_i P_i`: `[k, r, r]`.
    fn core(&self) -> Tensor {
        let [_u, _r, rank] = dims3(&self.projections);
        self.vector.matmul(&self.projections.flatten(1, 2)).view([-1, rank, rank])
    }
}

impl TinyLora {
    fn factors(&self) -> [Tensor; 3] {
        [self.a.shallow_clone(), self.core(), self.b.shallow_clone()]
    }
}

impl Adapter for TinyLora {
    fn delta(&self) -> Tensor {
        let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
        b.matmul(&self.core()).matmul(&a) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor) -> Tensor {
        add_through_core(y, x, &self.factors())
    }

    fn through_core(&self) -> Option<[Tensor; 3]> {
        Some(self.factors())
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
            Some((a, b.matmul(&self.core().get(run))))
        })
    }

    fn scale(&self) -> f64 {
        1.0
    }
}
