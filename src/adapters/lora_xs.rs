//! LoRA-XS: `ΔW = (α/r) · B R A`.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, in]` | frozen | `S_r V_rᵀ` from `W ≈ U S Vᵀ`, or Kaiming-uniform (a = √5) |
//! | B | `[out, r]` | frozen | `U_r`, or Kaiming-uniform (a = √5) |
//! | R | `[k, r, r]` | trained | N(0, init_std²) |
//!
//! S may also be on B, or √S on both (`spec::Sigma`).
//! Trainable parameters per target: r². Source: arXiv 2405.17604, section 3, and the authors' code
//! (github.com/MohammadrezaBanaei/LoRA-XS at e50b1a8), which puts S on the input side.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};
use toml::Value;

use super::lora;
use super::rules::{Built, Layer, Rules, Shapes, Start, each};
use super::svd::Factors;
use super::{Adapter, Frozen, Group, Route, Scale, Site, Trained, add_through_core};
use crate::fault::Result;
use crate::limits::RANK;
use crate::spec::keys;
use crate::spec::values::POSITIVE;
use crate::torch::cast;
use crate::torch::fused::wide;
use crate::torch::stream::{Stream, words_of_normal};

/// Suffix of the trained tensor's name after the layer's path.
pub const CORE: &str = "R";
/// Name of the cores of all layers in a file, stacked.
pub const STACK: &str = "lora_xs_R";

keys! {
    /// Settings of LoRA-XS.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct LoraXsConfig in "adapter." {
        /// Rank r.
        r as "rank": i64 = whole(16, 1, RANK);
        /// Numerator α of the scale.
        lora_alpha as "alpha": f64 = number(16.0, POSITIVE);
    }
}

impl Rules for LoraXsConfig {
    fn name(&self) -> &'static str {
        "lora-xs"
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        self.values()
    }

    fn scale(&self) -> f64 {
        self.lora_alpha / self.r as f64
    }

    fn basis_rank(&self) -> Option<i64> {
        Some(self.r)
    }

    fn count(&self, layers: &[Layer]) -> i64 {
        self.r * self.r * layers.len() as i64
    }

    fn words_drawn(&self, shapes: &[[i64; 2]], random: bool) -> [usize; 2] {
        let core = |shape: &[i64; 2]| Cores::words(self.r, *shape, random).iter().sum::<usize>();
        [lora::words_drawn(self.r, shapes), shapes.iter().map(core).sum()]
    }

    fn build(&self, sites: &[Site], frozen: &Frozen, start: Start, trained: &mut Trained) -> Result<Built> {
        let (r, random) = (self.r, frozen.is_random());
        let shapes: Vec<[i64; 2]> = sites.iter().map(|site| site.shape).collect();
        let [before, _] = self.words_drawn(&shapes, random);
        let seeds = sites.first().map_or(&[][..], |site| site.seeds);
        let stds = sites.first().map(|site| site.init_stds).filter(|stds| !stds.is_empty());
        let stds = stds.map_or_else(|| vec![start.init_std; seeds.len()], <[f64]>::to_vec);
        let mut cores = Cores::new(seeds, start.drawn + before, r, &stds, random);
        // Drawn in the order of the model, whatever the order of the adapter's file.
        let mut in_model: Vec<&Site> = sites.iter().collect();
        in_model.sort_by_key(|site| site.place);
        let drawn: Vec<Tensor> = in_model.iter().map(|site| cores.next(site.shape)).collect();
        let scale = |lora_alpha| Self { lora_alpha, ..*self }.scale();
        each(sites, |site| {
            let (factors, core) = (frozen.factors(site, r)?, &drawn[site.place]);
            Ok(LoraXs::build(site, factors, site.scale(self.lora_alpha, scale), core, trained))
        })
    }

    fn stacks(&self) -> Vec<(&'static str, Vec<i64>)> {
        vec![(STACK, vec![self.r, self.r])]
    }

    fn shapes(&self) -> Shapes {
        let mut shapes = lora::shapes(self.r);
        shapes.push((CORE, vec![Some(self.r), Some(self.r)]));
        shapes
    }

    fn is_frozen(&self, name: &str) -> bool {
        lora::FACTORS.iter().any(|ending| name.ends_with(ending))
    }
}

/// One layer's LoRA-XS adapter.
#[derive(Debug)]
pub struct LoraXs {
    a: Tensor,
    b: Tensor,
    core: Tensor,
    scale: Scale,
}

impl LoraXs {
    /// Takes `a` `[r, in]` and `b` `[out, r]` in the base's kind, `core` `[k, r, r]` in fp32, `scale` α/r.
    pub fn new(a: Tensor, b: Tensor, core: Tensor, scale: Scale) -> Self {
        Self { a, b, core, scale }
    }

    /// Builds one layer's adapter in its basis and adds its core to `trained`: `drawn` `[k, r, r]`, for a
    /// basis with scikit-learn's signs (the largest entry of each row of A is positive), turned to ours.
    pub fn build(
        site: &Site,
        factors: &Factors,
        scale: Scale,
        drawn: &Tensor,
        trained: &mut Trained,
    ) -> Self {
        let largest = factors.a.abs().argmax(1, true);
        let signs =
            factors.a.gather(1, &largest, false).sign().to_kind(Kind::Float).to_device(drawn.device()); // [r, 1]
        let core = drawn * &signs * signs.tr();
        let core = trained.add(format!("{}.{CORE}", site.name), Group::Adapter, &core.to_device(site.device));
        Self::new(site.place(&factors.a), site.place(&factors.b), core, scale)
    }
}

/// The cores of one layer after another from each run's stream, as `torch.randn(r, r)` draws them over PEFT.
#[derive(Debug)]
pub struct Cores {
    /// Each run's stream and standard deviation.
    runs: Vec<(Stream, f64)>,
    rank: i64,
    /// True if A and B of a layer are drawn before its core.
    random: bool,
}

impl Cores {
    /// Starts after `drawn` words of the streams; if `random`, A and B take words of the streams, too.
    pub fn new(seeds: &[u64], drawn: usize, rank: i64, stds: &[f64], random: bool) -> Self {
        let begun = |(&seed, &std): (&u64, &f64)| {
            let mut stream = Stream::seeded(seed);
            stream.pass_over(drawn);
            (stream, std)
        };
        Self { runs: seeds.iter().zip(stds).map(begun).collect(), rank, random }
    }

    /// Counts the words of the stream for the factors of a layer of shape `[out, in]`, and for its core.
    pub fn words(rank: i64, [out, inputs]: [i64; 2], random: bool) -> [usize; 2] {
        let words = |numbers: i64| usize::try_from(numbers).unwrap_or(0);
        [words(if random { rank * (inputs + out) } else { 0 }), words_of_normal(words(rank * rank))]
    }

    /// Draws the cores of the next layer, of shape `[out, in]`: `[k, r, r]` on the CPU.
    pub fn next(&mut self, shape: [i64; 2]) -> Tensor {
        let [factors, _] = Self::words(self.rank, shape, self.random);
        let core = |(stream, std): &mut (Stream, f64)| {
            stream.pass_over(factors);
            let numbers = stream.normals(usize::try_from(self.rank * self.rank).unwrap_or(0));
            Tensor::from_slice(&numbers).view([self.rank, self.rank]) * *std
        };
        Tensor::stack(&self.runs.iter_mut().map(core).collect::<Vec<_>>(), 0)
    }
}

impl LoraXs {
    fn factors(&self) -> [Tensor; 3] {
        [self.a.shallow_clone(), self.scale.times(&wide(&self.core)), self.b.shallow_clone()]
    }
}

impl Adapter for LoraXs {
    fn delta(&self) -> Tensor {
        let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
        self.scale.times(&b.matmul(&self.core).matmul(&a)) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor, route: &Route) -> Tensor {
        add_through_core(y, x, &self.factors(), route)
    }

    fn through_core(&self) -> Option<([Tensor; 3], f64)> {
        let (core, scale) = self.scale.shared(&wide(&self.core));
        Some(([self.a.shallow_clone(), core, self.b.shallow_clone()], scale))
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
            Some((a, b.matmul(&self.core.get(run))))
        })
    }

    fn scale(&self, run: i64) -> f64 {
        self.scale.of(run)
    }
}
