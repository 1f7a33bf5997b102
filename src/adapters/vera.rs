//! VeRA: `ΔW = diag(λ_b) B diag(λ_d) A`, with one pair A, B for the whole model, cut to each layer's shape.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, largest in]`, the first `in` columns used | frozen, shared | Kaiming-uniform: U(-√(6/in), √(6/in)) |
//! | B | `[largest out, r]`, the first `out` rows used | frozen, shared | U(-√(6/r), √(6/r)) |
//! | λ_d | `[k, r]` | trained | 0.1 (`d_initial`) |
//! | λ_b | `[k, out]` | trained | 0 |
//!
//! Trained numbers per target: out + r. Sources: arXiv 2310.11454, section 3; the pair is drawn number for number as
//! github.com/huggingface/peft at 5d602fd, `tuners/vera/model.py`, draws it from the same seed.

use tch::{Device, Kind, Tensor, no_grad};

use super::{Adapter, Named, Site, Trained, add_product};
use crate::torch::{cast, dims2};

/// What follows the layer's path in the names of the trained tensors: of λ_b, of λ_d.
pub const SCALES: [&str; 2] = ["vera_lambda_b", "vera_lambda_d"];
/// The names of the shared pair.
pub const PAIR: [&str; 2] = ["vera_A", "vera_B"];

/// One layer's VeRA adapter.
#[derive(Debug)]
pub struct Vera {
    a: Tensor,
    b: Tensor,
    lambda_b: Tensor,
    lambda_d: Tensor,
}

/// The shared pair for layers of these shapes `[out, in]`, in fp32.
pub fn pair(shapes: impl Iterator<Item = [i64; 2]>, rank: i64, seed: u64) -> Named {
    let [out, inputs] = shapes.fold([0, 0], |[out, inputs], shape| [out.max(shape[0]), inputs.max(shape[1])]);
    // libtorch's generator itself, seeded as PEFT seeds it, so that the numbers are the same.
    tch::manual_seed(seed.cast_signed());
    let draw = |shape: [i64; 2]| {
        let bound = (6.0 / shape[1].max(1) as f64).sqrt();
        Tensor::empty(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
    };
    let a = draw([rank, inputs]);
    vec![(PAIR[0].into(), a), (PAIR[1].into(), draw([out, rank]))]
}

impl Vera {
    /// `a` `[r, in]` and `b` `[out, r]` in the kind that the base computes in, `lambda_b` `[k, out]` and `lambda_d`
    /// `[k, r]` in fp32.
    pub fn new(a: Tensor, b: Tensor, lambda_b: Tensor, lambda_d: Tensor) -> Self {
        Self { a, b, lambda_b, lambda_d }
    }

    /// The adapter of one layer over the shared pair (placed, see [`Site`]), its scales added to `trained`.
    pub fn build(site: &Site, [a, b]: [&Tensor; 2], d_initial: f64, trained: &mut Trained) -> Self {
        let ([out, inputs], [rank, _in]) = (site.shape, dims2(a));
        let full = |count: i64, value: f64| Tensor::full([count], value, (Kind::Float, Device::Cpu));
        let lambda_b = site.train(trained, SCALES[0], |_, _| full(out, 0.0));
        let lambda_d = site.train(trained, SCALES[1], |_, _| full(rank, d_initial));
        // Views: layers share the memory of one pair.
        Self::new(a.narrow(1, 0, inputs), b.narrow(0, 0, out), lambda_b, lambda_d)
    }

    /// `diag(λ_b) B diag(λ_d)` in fp32: `[k, out, r]`.
    fn scaled_b(&self) -> Tensor {
        let b = cast(&self.b, Kind::Float);
        b * self.lambda_b.unsqueeze(2) * self.lambda_d.unsqueeze(1)
    }
}

impl Adapter for Vera {
    fn delta(&self) -> Tensor {
        self.scaled_b().matmul(&cast(&self.a, Kind::Float)) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor) -> Tensor {
        // Both scales ride on B, so that of a pass only the thin product is kept for the gradient.
        add_product(y, &x.matmul(&self.a.tr()), &self.scaled_b())
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let a = cast(&self.a, Kind::Float) * self.lambda_d.get(run).unsqueeze(1);
            let b = cast(&self.b, Kind::Float) * self.lambda_b.get(run).unsqueeze(1);
            Some((a, b))
        })
    }

    fn scale(&self) -> f64 {
        1.0
    }
}
