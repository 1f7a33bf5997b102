//! LoRA: `ΔW = s · B A` with s = α/r, or α/√r where rank-stabilised.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[k, r, in]` | trained | Kaiming-uniform (a = √5): U(-1/√in, 1/√in) |
//! | B | `[k, out, r]` | trained | 0 |
//!
//! Trainable parameters per target: r(in + out). Sources: arXiv 2106.09685, section 4.1; the stabilised
//! scale arXiv 2312.03732; the start that of github.com/huggingface/peft at 5d602fd, `tuners/lora/layer.py`.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};
use toml::Value;

use super::rules::{Built, Kept, Layer, Rules, Shapes, Start, each};
use super::{Adapter, Frozen, Route, Scale, Site, Trained};
use crate::fault::Result;
use crate::limits::RANK;
use crate::spec::keys;
use crate::spec::values::POSITIVE;
use crate::torch::{cast, draw};

/// Suffixes of the trained tensors' names after the layer's path: of A, of B.
pub const FACTORS: [&str; 2] = ["lora_A.weight", "lora_B.weight"];

keys! {
    /// Settings of LoRA, by PEFT's names.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct LoraConfig in "adapter." {
        /// Rank r.
        r as "rank": i64 = whole(8, 1, RANK);
        /// Numerator α of the scale.
        lora_alpha as "alpha": f64 = number(16.0, POSITIVE);
        /// True if the scale is α/√r.
        use_rslora as "rslora": bool = flag(false);
    }
}

impl Rules for LoraConfig {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        self.values()
    }

    fn kept(&self) -> Kept {
        Kept::Inputs
    }

    fn scale(&self) -> f64 {
        let rank = self.r as f64;
        self.lora_alpha / if self.use_rslora { rank.sqrt() } else { rank }
    }

    fn count(&self, layers: &[Layer]) -> i64 {
        layers.iter().map(|(_, [out, inputs])| self.r * (out + inputs)).sum()
    }

    fn words_drawn(&self, shapes: &[[i64; 2]], _random: bool) -> [usize; 2] {
        [words_drawn(self.r, shapes), 0]
    }

    fn build(&self, sites: &[Site], _: &Frozen, _: Start, trained: &mut Trained) -> Result<Built> {
        let scale = |lora_alpha| Self { lora_alpha, ..*self }.scale();
        each(sites, |site| Ok(Lora::build(site, self.r, site.scale(self.lora_alpha, scale), trained)))
    }

    fn peft(&self, _layers: usize) -> Option<serde_json::Value> {
        Some(json!({
            "peft_type": "LORA", "r": self.r, "lora_alpha": self.lora_alpha, "use_rslora": self.use_rslora,
            "use_dora": false, "lora_dropout": 0.0, "init_lora_weights": true, "rank_pattern": {}, "alpha_pattern": {},
        }))
    }

    fn shapes(&self) -> Shapes {
        shapes(self.r)
    }
}

/// Counts the words of PyTorch's stream for the factors of all layers: `nn.Linear` draws A and B, then
/// `LoraLayer.reset_lora_parameters` A again (`peft/tuners/lora/layer.py`).
pub(super) fn words_drawn(rank: i64, shapes: &[[i64; 2]]) -> usize {
    shapes.iter().map(|[out, inputs]| usize::try_from(rank * (2 * inputs + out)).unwrap_or(0)).sum()
}

/// Returns the shapes of a layer's factors in PEFT's layout.
pub(super) fn shapes(rank: i64) -> Shapes {
    vec![(FACTORS[0], vec![Some(rank), None]), (FACTORS[1], vec![None, Some(rank)])]
}

/// One layer's LoRA adapter.
#[derive(Debug)]
pub struct Lora {
    a: Tensor,
    b: Tensor,
    scale: Scale,
}

impl Lora {
    /// Creates an adapter from `a` `[k, r, in]` and `b` `[k, out, r]` in fp32, and `scale` s.
    pub fn new(a: Tensor, b: Tensor, scale: Scale) -> Self {
        Self { a, b, scale }
    }

    /// Builds the adapter of one layer and adds its factors to `trained`.
    pub fn build(site: &Site, rank: i64, scale: Scale, trained: &mut Trained) -> Self {
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
        self.scale.times(&self.b.matmul(&self.a)) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor, route: &Route) -> Tensor {
        let [a, b] = [&self.a, &self.b].map(|factor| cast(factor, x.kind()));
        let thin = self.scale.times_rows(&route.multiply(x, &a), route); // [m, r]
        route.add_product(y, &thin, &b)
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| Some((self.a.get(run).copy(), self.b.get(run).copy())))
    }

    fn scale(&self, run: i64) -> f64 {
        self.scale.of(run)
    }
}
