//! LoRA-Mini: `ΔW = (α/r) · A_aux A_train B_train B_aux`.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A_aux | `[out, a]` | frozen | Kaiming-uniform (a = √5), or the first a of `U_r` |
//! | A_train | `[k, a, r]` | trained | 0 |
//! | B_train | `[k, r, b]` | trained | Kaiming-uniform (a = √5): U(-1/√b, 1/√b) |
//! | B_aux | `[b, in]` | frozen | Kaiming-uniform (a = √5), or the first b of `S_r V_rᵀ` |
//!
//! Trainable parameters per target: r(a + b). Source of the product: arXiv 2411.15804. The paper's start and
//! scale are not published; those above are this program's own, so that ΔW starts at 0 as LoRA's does: the
//! outer trained factor zero, the inner one drawn. The frozen pair is a LoRA-XS basis of rank max(a, b), cut.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use toml::Value;

use super::rules::{Built, Layer, Rules, Start, each};
use super::svd::Factors;
use super::{Adapter, Frozen, Route, Scale, Site, Trained, add_through_core};
use crate::fault::Result;
use crate::limits::RANK;
use crate::spec::keys;
use crate::spec::reader::Reader;
use crate::spec::values::POSITIVE;
use crate::spec::{Init, Sigma};
use crate::torch::fused::wide;
use crate::torch::{cast, draw};

/// Suffixes of the trained tensors' names after the layer's path: of A_train, of B_train.
pub const INNER: [&str; 2] = ["lora_mini_A", "lora_mini_B"];

keys! {
    /// Settings of LoRA-Mini.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct LoraMiniConfig in "adapter." {
        /// Columns a of A_aux.
        rank_a: i64 = whole(32, 1, RANK);
        /// Rows b of B_aux.
        rank_b: i64 = whole(32, 1, RANK);
        /// Rank r, at most `rank_a` and `rank_b`.
        r as "rank": i64 = whole(8, 1, RANK);
        /// Numerator α of the scale.
        lora_alpha as "alpha": f64 = number(16.0, POSITIVE);
    }
}

impl Rules for LoraMiniConfig {
    fn name(&self) -> &'static str {
        "lora-mini"
    }

    fn check(&self, recipe: &mut Reader) {
        let Self { rank_a, rank_b, r, .. } = *self;
        if r > rank_a.min(rank_b) && recipe.sound(&["adapter.rank", "adapter.rank_a", "adapter.rank_b"]) {
            let problem = format!(
                "expected at most `adapter.rank_a` = {rank_a} and `adapter.rank_b` = {rank_b}, found {r}"
            );
            recipe.fail("adapter.rank", problem);
        }
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        self.values()
    }

    fn basis_defaults(&self) -> (Init, Sigma) {
        (Init::Random, Sigma::A)
    }

    fn scale(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }

    fn basis_rank(&self) -> Option<i64> {
        Some(self.rank_a.max(self.rank_b))
    }

    fn count(&self, layers: &[Layer]) -> i64 {
        self.r * (self.rank_a + self.rank_b) * layers.len() as i64
    }

    fn build(&self, sites: &[Site], frozen: &Frozen, _: Start, trained: &mut Trained) -> Result<Built> {
        let Self { rank_a, rank_b, r, lora_alpha } = *self;
        let scale = |lora_alpha| Self { lora_alpha, ..*self }.scale();
        each(sites, |site| {
            let factors = frozen.factors(site, rank_a.max(rank_b))?;
            Ok(LoraMini::build(site, factors, [rank_a, rank_b, r], site.scale(lora_alpha, scale), trained))
        })
    }

    fn stacks(&self) -> Vec<(&'static str, Vec<i64>)> {
        vec![(INNER[0], vec![self.rank_a, self.r]), (INNER[1], vec![self.r, self.rank_b])]
    }
}

/// One layer's LoRA-Mini adapter.
#[derive(Debug)]
pub struct LoraMini {
    /// A_aux.
    left: Tensor,
    /// B_aux.
    right: Tensor,
    a: Tensor,
    b: Tensor,
    scale: Scale,
}

impl LoraMini {
    /// Creates an adapter from A_aux `[out, a]` and B_aux `[b, in]` in the kind that the base computes in,
    /// A_train `[k, a, r]` and B_train `[k, r, b]` in fp32, and `scale` α/r.
    pub fn new([left, right]: [Tensor; 2], [a, b]: [Tensor; 2], scale: Scale) -> Self {
        Self { left, right, a, b, scale }
    }

    /// Builds the adapter of one layer in its basis, with ranks a, b, r; adds its inner factors to `trained`.
    pub fn build(
        site: &Site,
        factors: &Factors,
        [rank_a, rank_b, rank]: [i64; 3],
        scale: Scale,
        trained: &mut Trained,
    ) -> Self {
        let a =
            site.train(trained, INNER[0], |_, _| Tensor::zeros([rank_a, rank], (Kind::Float, Device::Cpu)));
        let bound = 1.0 / (rank_b as f64).sqrt();
        let b = site.train(trained, INNER[1], |seed, name| draw::uniform(seed, name, &[rank, rank_b], bound));
        let left = site.place(&factors.b.narrow(1, 0, rank_a));
        let right = site.place(&factors.a.narrow(0, 0, rank_b));
        Self::new([left, right], [a, b], scale)
    }
}

impl LoraMini {
    fn factors(&self) -> [Tensor; 3] {
        let core = self.scale.times(&wide(&self.a).matmul(&wide(&self.b)));
        [self.right.shallow_clone(), core, self.left.shallow_clone()]
    }
}

impl Adapter for LoraMini {
    fn delta(&self) -> Tensor {
        let (left, right) = (cast(&self.left, Kind::Float), cast(&self.right, Kind::Float));
        self.scale.times(&left.matmul(&self.a).matmul(&self.b.matmul(&right))) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor, route: &Route) -> Tensor {
        add_through_core(y, x, &self.factors(), route)
    }

    fn through_core(&self) -> Option<([Tensor; 3], f64)> {
        let (core, scale) = self.scale.shared(&wide(&self.a).matmul(&wide(&self.b)));
        Some(([self.right.shallow_clone(), core, self.left.shallow_clone()], scale))
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let (left, right) = (cast(&self.left, Kind::Float), cast(&self.right, Kind::Float));
            Some((self.b.get(run).matmul(&right), left.matmul(&self.a.get(run))))
        })
    }

    fn scale(&self, run: i64) -> f64 {
        self.scale.of(run)
    }
}
