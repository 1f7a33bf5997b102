//! LoRA: `ΔW = s · B A` with s = α/r, or α/√r where rank-stabilised.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[k, r, in]` | trained | Kaiming-uniform (a = √5): U(-1/√in, 1/√in) |
//! | B | `[k, out, r]` | trained | 0 |
//!
//! Trained numbers per target: r(in + out). Sources: arXiv 2106.09685, section 4.1; the stabilised scale
//! arXiv 2312.03732; the start that of github.com/huggingface/peft at 5d602fd, `tuners/lora/layer.py`.

use tch::{Device, Kind, Tensor, no_grad};

use super::{Adapter, Site, Trained, add_product};
use crate::torch::{cast, draw};

/// What follows the layer's path in the names of the trained tensors: of A, of B.
pub const FACTORS: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

/// One layer's LoRA adapter.
#[derive(Debug)]
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Lora {
    /// `a` `[k, r, in]` and `b` `[k, out, r]` in fp32, `scale` s.
    pub fn new(a: Tensor, b: Tensor, scale: f64) -> Self {
        Self { a, b, scale }
    }

    /// The adapter of one layer, its factors added to `trained`.
    pub fn build(site: &Site, rank: i64, scale: f64, trained: &mut Trained) -> Self {
        let [out, inputs] = site.shape;
        let bound = 1.0 / (inputs as f64).sqrt();
        let a =
            site.train(trained, FACTORS[0], |seed, name| draw::uniform(seed, name, &[rank, inputs], bound));
        let b =
            site.train(trained, FACTORS[1], |_, _| Tensor::zeros([out, rank], (Kind::Float, Device::Cpu)));
        Self::new(a, b, scale)
    }
}

impl Adapter for Lora {
    fn delta(&self) -> Tensor {
        self.b.matmul(&self.a) * self.scale // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor) -> Tensor {
        let thin = x.matmul(&cast(&self.a, x.kind()).transpose(1, 2)); // [k, n, r]
        add_product(y, &(thin * self.scale), &self.b)
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| Some((self.a.get(run).copy(), self.b.get(run).copy())))
    }

    fn scale(&self) -> f64 {
        self.scale
    }
}
