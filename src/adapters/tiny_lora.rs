//! TinyLoRA: `ΔW = B (Σ_i v_i P_i) A`, with v shared by a group of layers.
//!
//! | factor | shape | | at the start |
//! |---|---|---|---|
//! | A | `[r, in]` | frozen | `√S_r V_rᵀ` from `W ≈ U S Vᵀ` |
//! | B | `[out, r]` | frozen | `U_r √S_r` |
//! | P | `[u, r, r]` | frozen | N(0, 1/r) |
//! | v | `[k, u]` | trained, one for each group | 0 |
//!
//! Trainable parameters: u per group of layers. Source: arXiv 2602.04118; factors, draw of P, tensor names
//! and the rule of the groups as in github.com/huggingface/peft at 5d602fd, `tuners/tinylora/`.

use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Device, Kind, Tensor, no_grad};
use toml::Value;

use super::rules::{Built, Layer, Rules, Shapes, Start, each};
use super::svd::Factors;
use super::{Adapter, Frozen, Group, Route, Site, Trained, add_through_core};
use crate::fault::{Result, fault};
use crate::limits::{Most, RANK, SEED};
use crate::spec::reader::Reader;
use crate::spec::{Init, Sigma, Tying, keys};
use crate::torch::fused::wide;
use crate::torch::{cast, dims3, joined};

/// Suffixes of the frozen tensors' names after the layer's path: of A, B and P.
pub const FROZEN: [&str; 3] = ["tinylora_A", "tinylora_B", "tinylora_P"];
/// Prefix of the name of a group's v, before the group's number.
pub const VECTOR: &str = "tinylora_v.";

/// Upper limit of the numbers in a layer's projections, which may have to be drawn.
const MOST_DRAWN: i64 = 1 << 26;

keys! {
    /// Settings of TinyLoRA, by PEFT's names where it has them.
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct TinyLoraConfig in "adapter." {
        /// Rank r.
        r as "rank": i64 = whole(2, 1, RANK);
        /// u, trainable parameters of a group of layers.
        u: i64 = whole(64, 1, RANK);
        /// Layers that share their trainable parameters, 0 = all; held as groups per layer, from 0 (one group) to 1.
        untied as "tie": f64 = share_of(1, RANK);
        /// Layers that count as neighbours.
        tying: Tying = choice(Tying::Depth);
        /// Seed of P; the number of the layer is added.
        projection_seed: u64 = whole(0, 0, SEED);
    }
}

impl Rules for TinyLoraConfig {
    fn name(&self) -> &'static str {
        "tiny-lora"
    }

    fn check(&self, recipe: &mut Reader) {
        let Self { r, u, .. } = *self;
        if r.saturating_mul(r).saturating_mul(u) > MOST_DRAWN {
            let problem = format!("{u} projections of rank {r} are more than {MOST_DRAWN} numbers a layer");
            recipe.fail("adapter.u", problem);
        }
    }

    fn keys(&self) -> Vec<(&'static str, Value)> {
        let tie = |(key, value)| {
            if key == "adapter.tie" { (key, self.tie().cast_signed().into()) } else { (key, value) }
        };
        self.values().into_iter().map(tie).collect()
    }

    fn taken_from_start(&self) -> &'static [&'static str] {
        // PEFT rounds its ratio: ties are compared by their groups.
        &["adapter.tie", "adapter.projection_seed"]
    }

    fn basis_defaults(&self) -> (Init, Sigma) {
        (Init::Svd, Sigma::Split)
    }

    fn basis_rank(&self) -> Option<i64> {
        Some(self.r)
    }

    fn count(&self, layers: &[Layer]) -> i64 {
        let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
        self.u * self.groups(&names).into_iter().max().map_or(0, |last| last as i64 + 1)
    }

    fn stored(&self, layers: &[Layer]) -> i64 {
        let Self { r, u, .. } = *self;
        let frozen: i64 = layers.iter().map(|(_, [out, inputs])| r * (out + inputs) + u * r * r).sum();
        // PEFT cannot tie by kind: every layer has a copy.
        let copies = if self.tying == Tying::Kind { u * layers.len() as i64 } else { self.count(layers) };
        copies + frozen
    }

    fn groups(&self, names: &[&str]) -> Vec<usize> {
        if self.tying == Tying::Depth {
            return tiles(names.len(), self.untied);
        }
        let mut kinds: Vec<String> = Vec::new();
        let mut members: Vec<Vec<usize>> = Vec::new();
        for (i, name) in names.iter().enumerate() {
            let kind = kind(name);
            let at = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                kinds.push(kind);
                members.push(Vec::new());
                kinds.len() - 1
            });
            members[at].push(i);
        }
        let (mut groups, mut first) = (vec![0; names.len()], 0);
        for members in members {
            let within = tiles(members.len(), self.untied);
            for (&member, group) in members.iter().zip(&within) {
                groups[member] = first + group;
            }
            first += within.last().map_or(0, |last| last + 1);
        }
        groups
    }

    fn ties(&self) -> bool {
        true
    }

    fn build(&self, sites: &[Site], frozen: &Frozen, _: Start, trained: &mut Trained) -> Result<Built> {
        let Self { r, u, projection_seed, .. } = *self;
        let names: Vec<&str> = sites.iter().map(|site| site.name).collect();
        let groups = self.groups(&names);
        let mut vectors: Vec<Option<Tensor>> = sites.iter().map(|_| None).collect();
        let mut kept = Vec::new();
        let mut index = 0;
        let (adapters, _) = each(sites, |site| {
            let factors = frozen.factors(site, r)?;
            let name = format!("{}.{}", site.name, FROZEN[2]);
            let projections = match frozen.tensor(&name) {
                Some(stored) => stored.shallow_clone(),
                None => projections(u, r, projection_seed.wrapping_add(index as u64)),
            };
            if projections.size() != [u, r, r] {
                let (found, expected) = (projections.size(), [u, r, r]);
                return Err(fault(format!("`{name}` has shape {found:?}, expected {expected:?}")).into());
            }
            let group = groups[index];
            index += 1;
            let vector = vectors[group]
                .get_or_insert_with(|| vector(group, u, site.seeds.len(), site.device, trained));
            let adapter = TinyLora::build(site, factors, &projections, vector.shallow_clone());
            for (ending, tensor) in FROZEN.into_iter().zip([&factors.a, &factors.b, &projections]) {
                kept.push((format!("{}.{ending}", site.name), tensor.to_device(Device::Cpu)));
            }
            Ok(adapter)
        })?;
        Ok((adapters, kept))
    }

    fn peft(&self, layers: usize) -> Option<serde_json::Value> {
        Some(json!({
            "peft_type": "TINYLORA", "r": self.r, "u": self.u, "weight_tying": self.weight_tying(layers),
            "projection_seed": self.projection_seed, "save_projection": true, "tinylora_dropout": 0.0,
            "init_weights": true,
        }))
    }

    fn shapes(&self) -> Shapes {
        let (r, u) = (Some(self.r), Some(self.u));
        vec![(FROZEN[0], vec![r, None]), (FROZEN[1], vec![None, r]), (FROZEN[2], vec![u, r, r])]
    }

    fn model_shapes(&self) -> Result<Shapes> {
        let Self { r, u, .. } = *self;
        match u.checked_mul(r).and_then(|n| n.checked_mul(r)) {
            Some(..=MOST_DRAWN) => Ok(vec![(VECTOR, vec![Some(u)])]),
            _ => {
                let message =
                    format!("`u` {u} and `r` {r} make projections of more than {MOST_DRAWN} numbers");
                Err(fault(message).into())
            }
        }
    }

    fn is_frozen(&self, name: &str) -> bool {
        // Layers tied by kind have a copy each.
        let copy = self.tying == Tying::Kind && name.starts_with(VECTOR);
        copy || FROZEN.iter().any(|ending| name.ends_with(ending))
    }
}

impl TinyLoraConfig {
    /// Returns the number of layers that share their trainable parameters, as in a recipe; 0 = all.
    fn tie(&self) -> u64 {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a rank")]
        if self.untied > 0.0 { (1.0 / self.untied).round() as u64 } else { 0 }
    }

    /// Returns PEFT's ratio for the groups of `layers` layers; 0, a copy for each layer, where tied by kind.
    fn weight_tying(&self, layers: usize) -> f64 {
        if self.tying == Tying::Kind {
            return 0.0;
        }
        let groups = (layers as f64 * self.untied).round_ties_even().clamp(1.0, layers.max(1) as f64);
        1.0 - groups / layers.max(1) as f64
    }
}

impl Reader {
    /// Reads a number of layers as their share: 1/n, or 0 of all.
    fn share_of(&mut self, key: &'static str, default: u64, most: Most) -> f64 {
        match self.whole::<u64>(key, default, 0, most) {
            0 => 0.0,
            layers => 1.0 / layers as f64,
        }
    }
}

/// Returns the group of each of `count` neighbours, with `untied` groups per layer, rounded as PEFT rounds.
fn tiles(count: usize, untied: f64) -> Vec<usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the count")]
    let groups = ((count as f64 * untied).round_ties_even() as usize).clamp(1, count.max(1));
    let size = (count / groups).max(1);
    (0..count).map(|index| (index / size).min(groups - 1)).collect()
}

/// Returns a layer's path without the number of its block, the same for all layers of one kind.
fn kind(name: &str) -> String {
    let parts = name.split('.').filter(|part| part.parse::<u32>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

/// One layer's TinyLoRA adapter.
#[derive(Debug)]
pub struct TinyLora {
    a: Tensor,
    b: Tensor,
    projections: Tensor,
    vector: Tensor,
}

/// Draws P of one layer from `seed`, in fp32: `[u, r, r]`.
pub fn projections(count: i64, rank: i64, seed: u64) -> Tensor {
    tch::manual_seed(seed.cast_signed());
    Tensor::empty([count, rank, rank], (Kind::Float, Device::Cpu)).normal_(0.0, 1.0 / (rank as f64).sqrt())
}

/// Adds the v of group `group`, which all its layers share, to `trained`: k copies of zero.
pub fn vector(group: usize, count: i64, runs: usize, device: Device, trained: &mut Trained) -> Tensor {
    let zeros = Tensor::zeros([runs as i64, count], (Kind::Float, device));
    trained.add(format!("{VECTOR}{group}"), Group::Adapter, &zeros)
}

impl TinyLora {
    /// Creates an adapter from `a` `[r, in]` and `b` `[out, r]` in the kind that the base computes in, and
    /// `projections` `[u, r, r]` and `vector` `[k, u]` in fp32.
    pub fn new(a: Tensor, b: Tensor, projections: Tensor, vector: Tensor) -> Self {
        Self { a, b, projections, vector }
    }

    /// Builds the adapter of one layer in its basis, with the v of its group.
    pub fn build(site: &Site, factors: &Factors, projections: &Tensor, vector: Tensor) -> Self {
        let (a, b) = (site.place(&factors.a), site.place(&factors.b));
        Self::new(a, b, projections.to_device(site.device), vector)
    }

    /// Computes `Σ_i v_i P_i`: `[k, r, r]`.
    fn core(&self) -> Tensor {
        let [_u, _r, rank] = dims3(&self.projections);
        // Layers of several devices share a vector.
        let vector = wide(&self.vector).to_device(self.projections.device());
        let projections = cast(&self.projections, vector.kind()).flatten(1, 2);
        let of = |vectors: &Tensor| vectors.matmul(&projections);
        // On a CPU, rows of one product are rounded differently than one by one, and a run must not depend on its neighbours.
        let cores = match vector.device() {
            Device::Cpu => joined(vector.split(1, 0).iter().map(of).collect()),
            _ => of(&vector),
        };
        cores.view([-1, rank, rank])
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
        b.matmul(&cast(&self.core(), Kind::Float)).matmul(&a) // [k, out, in]
    }

    fn add_to(&self, y: Tensor, x: &Tensor, route: &Route) -> Tensor {
        add_through_core(y, x, &self.factors(), route)
    }

    fn through_core(&self) -> Option<([Tensor; 3], f64)> {
        Some((self.factors(), 1.0))
    }

    fn lora_factors(&self, run: i64) -> Option<(Tensor, Tensor)> {
        no_grad(|| {
            let (a, b) = (cast(&self.a, Kind::Float), cast(&self.b, Kind::Float));
            Some((a, b.matmul(&cast(&self.core().get(run), Kind::Float))))
        })
    }

    fn scale(&self, _run: i64) -> f64 {
        1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_tied_with_their_neighbours_or_by_kind() {
        let tiny = |untied, tying| TinyLoraConfig { r: 2, u: 4, untied, tying, projection_seed: 0 };
        let names = ["l.0.q", "l.0.v", "l.1.q", "l.1.v", "l.2.q", "l.2.v"];
        assert_eq!(tiny(1.0, Tying::Depth).groups(&names), [0, 1, 2, 3, 4, 5]);
        assert_eq!(tiny(0.0, Tying::Depth).groups(&names), [0; 6]);
        assert_eq!(tiny(0.5, Tying::Depth).groups(&names), [0, 0, 1, 1, 2, 2]);
        assert_eq!(tiny(1.0, Tying::Kind).groups(&names), [0, 3, 1, 4, 2, 5]);
        assert_eq!(tiny(0.0, Tying::Kind).groups(&names), [0, 1, 0, 1, 0, 1]);
        // The remainder goes to the last group, as in PEFT: max(1, round(5 · 0.4)) = 2 groups of 2 and 3.
        assert_eq!(tiny(0.4, Tying::Depth).groups(&names[..5]), [0, 0, 1, 1, 1]);
    }
}
