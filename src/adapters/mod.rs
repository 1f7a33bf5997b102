//! Adapters: additions to a frozen linear layer, and the store of trained tensors.
//!
//! One file per method; [`Method`] names them, and [`rules::Rules::build`] puts one on a layer.

pub mod basis;
pub mod basis_file;
mod basis_shared;
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
pub mod route;
pub mod rules;
mod sigma;
pub mod svd;
pub mod tiny_lora;
pub mod trained;
pub mod vera;
pub mod witness;

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

pub use method::Method;
pub use route::Route;
pub use trained::{Group, Trained};

use crate::torch::dims2;
use basis::Basis;

/// Addition to a linear layer `y = W x`: `y = W x + ΔW x`.
pub trait Adapter: std::fmt::Debug {
    /// Computes ΔW of every run, its scale included, in fp32: `[k, out, in]`.
    fn delta(&self) -> Tensor;

    /// Computes `y + ΔW x` with ΔW of each row's run, in `y`'s memory where possible: `y` is no view.
    ///
    /// # Shapes
    /// `y` and the result `[m, out]`; `x` `[m, in]`.
    fn add_to(&self, y: Tensor, x: &Tensor, route: &Route) -> Tensor;

    /// Returns frozen A `[i, in]`, fp32 M `[k, o, i]`, and frozen B `[out, o]` of ΔW = s B M A, and s.
    fn through_core(&self) -> Option<([Tensor; 3], f64)> {
        None
    }

    /// Returns ΔW of run `run` without [`Adapter::scale`] as a product B·A of plain LoRA factors, in fp32:
    /// A `[r, in]`, B `[out, r]`; `None` where it is not of low rank.
    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)>;

    /// Returns the factor of ΔW of run `run`.
    fn scale(&self, run: i64) -> f64;
}

/// Factors of ΔW: one for all runs, or one for each.
#[derive(Debug, Clone)]
pub struct Scale(Vec<f64>);

impl Scale {
    /// Returns the factor of run `run`.
    fn of(&self, run: i64) -> f64 {
        let run = usize::try_from(run).unwrap_or(0);
        self.0.get(run).or(self.0.first()).copied().unwrap_or(1.0)
    }

    /// Returns the cores `[k, _, _]` of a layer, with the factors of their runs, and what is left to the product by them: on a GPU a
    /// factor that all share, since each operation there takes a launch.
    fn shared(&self, cores: &Tensor) -> (Tensor, f64) {
        match self.0.as_slice() {
            [one] if cores.device().is_cuda() => (cores.shallow_clone(), *one),
            _ => (self.times(cores), 1.0),
        }
    }

    /// Multiplies each run's part of `x` `[k, _, _]` by its factor.
    fn times(&self, x: &Tensor) -> Tensor {
        self.scaled(x, |each| each.view([-1, 1, 1]))
    }

    /// Multiplies each row of `x` `[m, _]` by its run's factor.
    fn times_rows(&self, x: &Tensor, route: &Route) -> Tensor {
        let [m, _] = dims2(x);
        self.scaled(x, |each| route.spread(&each.unsqueeze(1), m))
    }

    /// Multiplies `x` by the common factor, or by `place` of those of all runs, `[k]`.
    fn scaled(&self, x: &Tensor, place: impl FnOnce(Tensor) -> Tensor) -> Tensor {
        match self.0.as_slice() {
            [1.0] => x.shallow_clone(),
            [one] => x * *one,
            each => x * place(Tensor::from_slice(each).to_kind(x.kind()).to_device(x.device())),
        }
    }
}

/// Tensors by name.
pub type Named = Vec<(String, Tensor)>;

/// The frozen factors that a method starts from.
#[derive(Debug, Default)]
pub struct Frozen {
    /// A and B of each layer, for the methods that have such a pair.
    pub basis: Option<Basis>,
    /// Further tensors from an adapter file; absent ones are drawn.
    pub tensors: BTreeMap<String, Tensor>,
}

/// A layer that an adapter is put on.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// The layer's path as in the checkpoint.
    pub name: &'a str,
    /// Shape `[out, in]`.
    pub shape: [i64; 2],
    /// Number of the layer among the adapted ones, in the order of the model.
    pub place: usize,
    /// Kind that the layer's frozen weight computes in.
    pub kind: Kind,
    /// Device that the layer computes on.
    pub device: Device,
    /// One seed for each run.
    pub seeds: &'a [u64],
    /// α of each run, for methods that have one; empty = that of the method's settings.
    pub alphas: &'a [f64],
    /// Standard deviation of the cores of each run of LoRA-XS; empty = that of the start.
    pub init_stds: &'a [f64],
}

impl Site<'_> {
    /// Returns the factor `of` each run's α; without any, `of` the α that is common to all.
    fn scale(&self, common: f64, of: impl Fn(f64) -> f64) -> Scale {
        let alphas = if self.alphas.is_empty() { &[common] } else { self.alphas };
        Scale(alphas.iter().copied().map(of).collect())
    }

    /// Moves a frozen factor to the device and kind that the layer computes in.
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

/// Computes `y + x Aᵀ Mᵀ Bᵀ` with A, B shared by the runs and a core M for each ([`Adapter::through_core`]).
///
/// # Shapes
/// `y` and the result `[m, out]`; `x` `[m, in]`.
fn add_through_core(mut y: Tensor, x: &Tensor, [a, core, b]: &[Tensor; 3], route: &Route) -> Tensor {
    let thin = route.multiply(&x.matmul(&a.tr()), core); // [m, o]
    // One product that adds into the base's result: no separate read and write of y.
    y.addmm_(&thin, &b.tr())
}
