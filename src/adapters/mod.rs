//! Adapters: what is added to a frozen linear layer, and the store of what is trained.

pub mod basis;
pub mod basis_file;
pub mod file;
pub mod lora_xs;
pub mod numpy_random;
pub mod svd;
pub mod trained;
pub mod witness;

use tch::Tensor;

pub use trained::{Group, Trained};

/// What is added to a linear layer `y = W x`: `y = W x + ΔW x`.
pub trait Adapter: std::fmt::Debug {
    /// ΔW of every run, its scale included, in fp32: `[k, out, in]`.
    fn delta(&self) -> Tensor;

    /// `y + ΔW x`, written into `y`'s memory.
    ///
    /// # Shapes
    /// `y` and the result `[k·n, out]`, no views; `x` `[k, n, in]`.
    fn add_to(&self, y: Tensor, x: &Tensor) -> Tensor;

    /// ΔW of run `run` without the scale as a product B·A of plain LoRA factors, in fp32: A `[r, in]`, B `[out, r]`;
    /// `None` where it is not of low rank.
    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)>;
}
