//! Adapters: what is added to a frozen linear layer, and the store of what is trained.
//!
//! One file a method; [`Method`] names them, and [`Method::build`] puts one on a layer.

pub mod basis;
pub mod basis_file;
pub mod file;
mod foreign;
pub mod layout;
pub mod lora;
pub mod lora_mini;
pub mod lora_xs;
pub mod method;
pub mod numpy_random;
mod open;
pub mod peft_config;
pub mod rebase;
mod sigma;
pub mod svd;
pub mod tiny_lora;
pub mod trained;
pub mod vera;
pub mod witness;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

pub use method::Method;
pub use trained::{Group, Trained};

use crate::torch::{cast, dims3};
use basis::Basis;

/// What is added to a linear layer `y = W x`: `y = W x + ΔW x`.
pub trait Adapter: std::fmt::Debug {
    /// ΔW of every run, its scale included, in fp32: `[k, out, in]`.
    fn delta(&self) -> Tensor;

    /// `y + ΔW x`, written into `y`'s memory where k is 1 or the last factor is shared.
    ///
    /// # Shapes
    /// `y` and the result `[k·n, out]`, no views; `x` `[k, n, in]`.
    fn add_to(&self, y: Tensor, x: &Tensor) -> Tensor;

    /// A, M and B of ΔW = B M A, where A and B are frozen: A `[i, in]`, M `[k, o, i]` in fp32, B `[out, o]`, the scale in M.
    fn through_core(&self) -> Option<[Tensor; 3]> {
        None
    }

    /// ΔW of run `run` without [`Adapter::scale`] as a product B·A of plain LoRA factors, in fp32: A `[r, in]`,
    /// B `[out, r]`; `None` where it is not of low rank.
    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)>;

    /// What ΔW is scaled by.
    fn scale(&self) -> f64;
}

/// Frozen tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// The frozen factors that a method starts from.
#[derive(Debug, Default)]
pub struct Frozen {
    /// A and B of each layer, for the methods that have such a pair.
    pub basis: Option<Basis>,
    /// Further tensors as an adapter file holds them; what is absent is drawn.
    pub tensors: BTreeMap<String, Tensor>,
}

/// A layer that an adapter is put on.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The layer's path as in the checkpoint.
    pub name: &'a str,
    /// `[out, in]`.
    pub shape: [i64; 2],
    /// Its number among the adapted layers in the order of the model.
    pub place: usize,
    /// Kind that the layer's frozen weight computes in.
    pub kind: Kind,
    /// Where the layer computes.
    pub device: Device,
    /// One seed for each run.
    pub seeds: &'a [u64],
}

impl Site<'_> {
    /// A frozen factor where and as the layer computes.
    fn place(&self, factor: &Tensor) -> Tensor {
        factor.to_device(self.device).to_kind(self.kind).contiguous()
    }

    /// Adds the trained tensor `<layer>.<suffix>` with one draw for each run: `[k, ..]`.
    fn train(&self, trained: &mut Trained, suffix: &str, draw: impl Fn(u64, &str) -> Tensor) -> Tensor {
        let name = format!("{}.{suffix}", self.name);
        let runs: Vec<Tensor> = self.seeds.iter().map(|&seed| draw(seed, &name)).collect();
        trained.add(name, Group::Adapter, &Tensor::stack(&runs, 0).to_device(self.device))
    }
}

/// `y + x Aᵀ Mᵀ Bᵀ` with A and B shared by the runs, and a core M of each run's own ([`Adapter::through_core`]).
///
/// # Shapes
/// `y` and the result `[k·n, out]`; `x` `[k, n, in]`.
fn add_through_core(mut y: Tensor, x: &Tensor, [a, core, b]: &[Tensor; 3]) -> Tensor {
    let thin = x.matmul(&a.tr()).matmul(&cast(core, x.kind()).transpose(1, 2)); // [k, n, o]
    // One product that adds into the base's result: no separate read and write of y.
    y.addmm_(&thin.flatten(0, 1), &b.tr())
}

/// `y + thin Bᵀ` with a factor B of each run's own.
///
/// # Shapes
/// `y` and the result `[k·n, out]`; `thin` `[k, n, r]`, `b` `[k, out, r]` of any kind.
fn add_product(mut y: Tensor, thin: &Tensor, b: &Tensor) -> Tensor {
    let [k, n, _r] = dims3(thin);
    let b = cast(b, thin.kind());
    if k == 1 {
        return y.addmm_(&thin.flatten(0, 1), &b.get(0).tr());
    }
    y.view([k, n, -1]).baddbmm(thin, &b.transpose(1, 2), 1.0, 1.0).flatten(0, 1) // [k·n, out]
}
