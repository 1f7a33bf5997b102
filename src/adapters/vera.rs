//! VeRA: `ΔW = diag(λ_b) B diag(λ_d) A`, with one pair A, B for the whole model, cut to each layer's shape.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, largest in]`, the first `in` columns used | frozen, shared | Kaiming-uniform: U(-√(6/in), √(6/in)) |
//! | B | `[largest out, r]`, the first `out` rows used | frozen, shared | U(-√(6/r), √(6/r)) |
//! | λ_d | `[k, r]` | trained | 0.1 (`d_initial`) |
//! | λ_b | `[k, out]` | trained | 0 |
//!
//! Trainable parameters per target: out + r. Sources: arXiv 2310.11454, section 3; the pair is drawn number
//! for number as github.com/huggingface/peft at 5d602fd, `tuners/vera/model.py`, draws it from the same seed.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};
use toml::Value;

use super::rules::{Built, Layer, Rules, Shapes, Start, each};
use super::{Adapter, Frozen, Named, Route, Site, Trained};
use crate::fault::{Result, fault};
use crate::limits::{RANK, SEED};
use crate::spec::keys;
use crate::spec::values::NOT_NEGATIVE;
use crate::torch::{Copies, cast, dims2};

/// Suffixes of the trained tensors' names after the layer's path: of λ_b, of λ_d.
pub const SCALES: [&str; 2] = ["vera_lambda_b", "vera_lambda_d"];
/// Names of the shared pair.
pub const PAIR: [&str; 2] = ["vera_A", "vera_B"];

/// Upper limit of the rank of an adapter file, whose pair may have to be drawn.
const MOST_RANK: i64 = 1 << 16;

keys! {
    /// Settings of VeRA, by PEFT's names.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct VeraConfig in "adapter." {
        /// Rank r.
        r as "rank": i64 = whole(256, 1, RANK);
        /// Initial value of λ_d.
        d_initial: f64 = number(0.1, NOT_NEGATIVE);
        /// Seed of the shared pair.
        projection_prng_key as "projection_seed": u64 = whole(0, 0, SEED);
        /// True if the adapter file holds the shared pair.
        save_projection: bool = flag(true);
    }
}

impl Rules for VeraConfig {
    fn name(&self) -> &'static str {
        "vera"
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        self.values()
    }

    fn taken_from_start(&self) -> &'static [&'static str] {
        &["adapter.d_initial", "adapter.projection_seed", "adapter.save_projection"]
    }

    fn count(&self, layers: &[Layer]) -> i64 {
        layers.iter().map(|(_, [out, _])| out + self.r).sum()
    }

    fn stored(&self, layers: &[Layer]) -> i64 {
        let largest = |axis: usize| layers.iter().map(|(_, shape)| shape[axis]).max().unwrap_or(0);
        let pair = if self.save_projection { self.r * (largest(0) + largest(1)) } else { 0 };
        self.count(layers) + pair
    }

    fn build(&self, sites: &[Site], frozen: &Frozen, _: Start, trained: &mut Trained) -> Result<Built> {
        let r = self.r;
        let pair = match PAIR.map(|name| frozen.tensor(name)) {
            [Some(a), Some(b)] => {
                PAIR.into_iter().map(str::to_owned).zip([a, b].map(Tensor::shallow_clone)).collect()
            }
            _ => pair(sites.iter().map(|site| site.shape), r, self.projection_prng_key),
        };
        let Some(first) = sites.first() else { return Ok((Vec::new(), Vec::new())) };
        let place = |site: &Site| [0, 1].map(|part| site.place(&pair[part].1));
        // Layers of one device share a pair.
        let (own, copies) = (place(first), Copies::default());
        let (adapters, _) = each(sites, |site| {
            let [a, b] =
                if site.device == first.device { &own } else { copies.on(site.device, &|| place(site)) };
            let (a_size, b_size) = (a.size(), b.size());
            let fits = matches!(a_size[..], [rows, inputs] if rows == r && inputs >= site.shape[1])
                && matches!(b_size[..], [out, columns] if columns == r && out >= site.shape[0]);
            if !fits {
                let name = site.name;
                let message =
                    format!("the shared pair {a_size:?}, {b_size:?} of rank {r} is too small for `{name}`");
                return Err(fault(message).into());
            }
            Ok(Vera::build(site, [a, b], self.d_initial, trained))
        })?;
        Ok((adapters, if self.save_projection { pair } else { Vec::new() }))
    }

    fn peft(&self, _layers: usize) -> Option<serde_json::Value> {
        Some(json!({
            "peft_type": "VERA", "r": self.r, "d_initial": self.d_initial,
            "projection_prng_key": self.projection_prng_key, "save_projection": self.save_projection,
            "vera_dropout": 0.0, "init_weights": true,
        }))
    }

    fn shapes(&self) -> Shapes {
        vec![(SCALES[0], vec![None]), (SCALES[1], vec![Some(self.r)])]
    }

    fn model_shapes(&self) -> Result<Shapes> {
        let r = self.r;
        if r > MOST_RANK {
            return Err(fault(format!("`r` must be at most {MOST_RANK}, found {r}")).into());
        }
        Ok(vec![(PAIR[0], vec![Some(r), None]), (PAIR[1], vec![None, Some(r)])])
    }

    fn is_frozen(&self, name: &str) -> bool {
        PAIR.contains(&name)
    }
}

/// One layer's VeRA adapter.
#[derive(Debug)]
pub struct Vera {
    a: Tensor,
    b: Tensor,
    lambda_b: Tensor,
    lambda_d: Tensor,
}

/// Draws the shared pair for layers of these shapes `[out, in]`, in fp32.
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
    /// Creates an adapter from `a` `[r, in]` and `b` `[out, r]` in the kind that the base computes in, and
    /// `lambda_b` `[k, out]` and `lambda_d` `[k, r]` in fp32.
    pub fn new(a: Tensor, b: Tensor, lambda_b: Tensor, lambda_d: Tensor) -> Self {
        Self { a, b, lambda_b, lambda_d }
    }

    /// Builds one layer's adapter over the shared pair (placed, see [`Site`]); adds its scales to `trained`.
    pub fn build(site: &Site, [a, b]: [&Tensor; 2], d_initial: f64, trained: &mut Trained) -> Self {
        let ([out, inputs], [rank, _in]) = (site.shape, dims2(a));
        let full = |count: i64, value: f64| Tensor::full([count], value, (Kind::Float, Device::Cpu));
        let lambda_b = site.train(trained, SCALES[0], |_, _| full(out, 0.0));
        let lambda_d = site.train(trained, SCALES[1], |_, _| full(rank, d_initial));
        // Views: layers share the memory of one pair.
        Self::new(a.narrow(1, 0, inputs), b.narrow(0, 0, out), lambda_b, lambda_d)
    }

    /// Computes `diag(λ_b) B diag(λ_d)` in fp32: `[k, out, r]`.
    fn scaled_b(&self) -> Tensor {
        let b = cast(&self.b, Kind::Float);
        b * self.lambda_b.unsqueeze(2) * self.lambda_d.unsqueeze(1)
    }
}

impl Adapter for Vera {
    fn delta(&self) -> Tensor {
        self.scaled_b().matmul(&cast(&self.a, Kind::Float)) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor, route: &Route) -> Tensor {
        // Both scales are applied to B, so that a pass keeps only the thin product for the gradient.
        route.add_product(y, &x.matmul(&self.a.tr()), &cast(&self.scaled_b(), x.kind()))
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let a = cast(&self.a, Kind::Float) * self.lambda_d.get(run).unsqueeze(1);
            let b = cast(&self.b, Kind::Float) * self.lambda_b.get(run).unsqueeze(1);
            Some((a, b))
        })
    }

    fn scale(&self, _run: i64) -> f64 {
        1.0
    }
}
