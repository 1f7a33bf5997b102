//! The methods, each with the settings that its adapter files record.

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use super::lora::Lora;
use super::lora_mini::LoraMini;
use super::lora_xs::{Cores, LoraXs};
use super::svd::Factors;
use super::tiny_lora::{self, TinyLora};
use super::vera::{self, Vera};
use super::{Adapter, Frozen, Named, Site, Trained};
use crate::fault::{Result, fault};
use crate::spec::{Init, Tying};

/// A method with its settings.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Method {
    /// `adapters::lora_xs`.
    LoraXs {
        /// r.
        r: i64,
        /// α.
        lora_alpha: f64,
    },
    /// `adapters::lora`.
    Lora {
        /// r.
        r: i64,
        /// α.
        lora_alpha: f64,
        /// Whether the scale is α/√r.
        use_rslora: bool,
    },
    /// `adapters::vera`.
    Vera {
        /// r.
        r: i64,
        /// λ_d at the start.
        d_initial: f64,
        /// Seed of the shared pair.
        projection_prng_key: u64,
        /// Whether the adapter file holds the shared pair.
        save_projection: bool,
    },
    /// `adapters::lora_mini`.
    LoraMini {
        /// a, columns of A_aux.
        rank_a: i64,
        /// b, rows of B_aux.
        rank_b: i64,
        /// r.
        r: i64,
        /// α.
        lora_alpha: f64,
    },
    /// `adapters::tiny_lora`.
    TinyLora {
        /// r.
        r: i64,
        /// u, trained numbers of a group of layers.
        u: i64,
        /// Groups for each layer, from 0 (one group) to 1 (each layer its own).
        untied: f64,
        /// Which layers are near each other.
        tying: Tying,
        /// Seed of P; the number of the layer is added.
        projection_seed: u64,
    },
    /// Every weight of the base.
    Full,
    /// The head alone.
    Head,
}

/// Where the cores of LoRA-XS start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    /// Standard deviation of the cores.
    pub init_std: f64,
    /// Words of each run's stream that are drawn before the adapter.
    pub drawn: usize,
}

/// A layer's path and its shape `[out, in]`.
pub type Layer = (String, [i64; 2]);

impl Method {
    /// The name that recipes use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::LoraXs { .. } => "lora-xs",
            Self::Lora { .. } => "lora",
            Self::Vera { .. } => "vera",
            Self::LoraMini { .. } => "lora-mini",
            Self::TinyLora { .. } => "tiny-lora",
            Self::Full => "full",
            Self::Head => "head",
        }
    }

    /// What ΔW is scaled by.
    pub fn scale(&self) -> f64 {
        match *self {
            Self::LoraXs { r, lora_alpha } | Self::LoraMini { r, lora_alpha, .. } => lora_alpha / r as f64,
            Self::Lora { r, lora_alpha, use_rslora: false } => lora_alpha / r as f64,
            Self::Lora { r, lora_alpha, use_rslora: true } => lora_alpha / (r as f64).sqrt(),
            Self::Vera { .. } | Self::TinyLora { .. } | Self::Full | Self::Head => 1.0,
        }
    }

    /// Rank of the frozen pair A, B that every layer has of its own; `None` for methods without one.
    pub fn basis_rank(&self) -> Option<i64> {
        match *self {
            Self::LoraXs { r, .. } | Self::TinyLora { r, .. } => Some(r),
            Self::LoraMini { rank_a, rank_b, .. } => Some(rank_a.max(rank_b)),
            Self::Lora { .. } | Self::Vera { .. } | Self::Full | Self::Head => None,
        }
    }

    /// Whether adapters of this method are written as PEFT writes them.
    pub fn is_of_peft(&self) -> bool {
        matches!(self, Self::Lora { .. } | Self::Vera { .. } | Self::TinyLora { .. })
    }

    /// Words of PyTorch's stream that a program over PEFT takes to make the adapters on layers of these shapes: first all
    /// of LoRA, then the cores of LoRA-XS, with the factors where these are `random`. `nn.Linear` draws A and B, then
    /// `LoraLayer.reset_lora_parameters` A again (`peft/tuners/lora/layer.py`). Methods that do not build on LoRA take none.
    pub fn words_drawn(&self, shapes: impl Iterator<Item = [i64; 2]>, random: bool) -> [usize; 2] {
        let (Self::Lora { r, .. } | Self::LoraXs { r, .. }) = *self else { return [0, 0] };
        let with_cores = matches!(self, Self::LoraXs { .. });
        shapes.fold([0, 0], |[lora, cores], shape| {
            let [out, inputs] = shape;
            let core = if with_cores { Cores::words(r, shape, random).iter().sum() } else { 0 };
            [lora + usize::try_from(r * (2 * inputs + out)).unwrap_or(0), cores + core]
        })
    }

    /// Trained numbers of the adapters on `layers`, by the formula of the method.
    pub fn count(&self, layers: &[Layer]) -> i64 {
        let shapes = layers.iter().map(|(_, shape)| *shape);
        match *self {
            Self::LoraXs { r, .. } => r * r * layers.len() as i64,
            Self::Lora { r, .. } => shapes.map(|[out, inputs]| r * (out + inputs)).sum(),
            Self::Vera { r, .. } => shapes.map(|[out, _]| out + r).sum(),
            Self::LoraMini { rank_a, rank_b, r, .. } => r * (rank_a + rank_b) * layers.len() as i64,
            Self::TinyLora { u, .. } => {
                let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
                u * self.groups(&names).into_iter().max().map_or(0, |last| last as i64 + 1)
            }
            Self::Full | Self::Head => 0,
        }
    }

    /// Numbers in the adapter file of one run, the head apart: what is trained, and the frozen factors that go with it.
    pub fn stored(&self, layers: &[Layer]) -> i64 {
        let shapes = || layers.iter().map(|(_, shape)| *shape);
        let frozen = match *self {
            Self::Vera { r, save_projection: true, .. } => {
                let [out, inputs] =
                    shapes().fold([0, 0], |[o, i], [out, inputs]| [o.max(out), i.max(inputs)]);
                r * (out + inputs)
            }
            Self::TinyLora { r, u, .. } => shapes().map(|[out, inputs]| r * (out + inputs) + u * r * r).sum(),
            _ => 0,
        };
        let copies = match *self {
            // PEFT cannot tie by kind: every layer has a copy.
            Self::TinyLora { u, tying: Tying::Kind, .. } => u * layers.len() as i64,
            _ => self.count(layers),
        };
        copies + frozen
    }

    /// The group of each of `names`, which are in the order of the model; numbered from 0. Without tying, each its own.
    pub fn groups(&self, names: &[&str]) -> Vec<usize> {
        let Self::TinyLora { untied, tying, .. } = *self else { return (0..names.len()).collect() };
        if tying == Tying::Depth {
            return tiles(names.len(), untied);
        }
        let mut kinds: Vec<String> = Vec::new();
        let kind_of: Vec<usize> = names
            .iter()
            .map(|name| {
                let kind = kind(name);
                kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
                    kinds.push(kind);
                    kinds.len() - 1
                })
            })
            .collect();
        let (mut groups, mut first) = (vec![0; names.len()], 0);
        for kind in 0..kinds.len() {
            let members: Vec<usize> = (0..names.len()).filter(|&i| kind_of[i] == kind).collect();
            let within = tiles(members.len(), untied);
            for (&member, group) in members.iter().zip(&within) {
                groups[member] = first + group;
            }
            first += within.last().map_or(0, |last| last + 1);
        }
        groups
    }

    /// The adapters of `sites`, in the order of the model, with the frozen tensors that their file must hold.
    ///
    /// # Errors
    /// When a frozen factor is missing or has another shape.
    pub fn build(
        &self,
        sites: &[Site],
        frozen: &Frozen,
        start: Start,
        trained: &mut Trained,
    ) -> Result<(Vec<Box<dyn Adapter>>, Named)> {
        match *self {
            Self::LoraXs { r, .. } => {
                let random = frozen.is_random();
                let [lora, _] = self.words_drawn(sites.iter().map(|site| site.shape), random);
                let seeds = sites.first().map_or(&[][..], |site| site.seeds);
                let mut cores = Cores::new(seeds, start.drawn + lora, r, start.init_std, random);
                // Drawn in the order of the model, whatever the order of the adapter's file.
                let mut in_model: Vec<&Site> = sites.iter().collect();
                in_model.sort_by_key(|site| site.place);
                let drawn: Vec<Tensor> = in_model.iter().map(|site| cores.next(site.shape)).collect();
                each(sites, |site| {
                    let (factors, core) = (frozen.factors(site, r)?, &drawn[site.place]);
                    Ok(Box::new(LoraXs::build(site, factors, self.scale(), core, trained)))
                })
            }
            Self::LoraMini { rank_a, rank_b, r, .. } => each(sites, |site| {
                let factors = frozen.factors(site, rank_a.max(rank_b))?;
                let ranks = [rank_a, rank_b, r];
                Ok(Box::new(LoraMini::build(site, factors, ranks, self.scale(), trained)))
            }),
            Self::Lora { r, .. } => {
                each(sites, |site| Ok(Box::new(Lora::build(site, r, self.scale(), trained))))
            }
            Self::Vera { .. } => self.build_vera(sites, frozen, trained),
            Self::TinyLora { .. } => self.build_tiny(sites, frozen, trained),
            Self::Full | Self::Head => Ok((Vec::new(), Vec::new())),
        }
    }

    fn build_vera(
        &self,
        sites: &[Site],
        frozen: &Frozen,
        trained: &mut Trained,
    ) -> Result<(Vec<Box<dyn Adapter>>, Named)> {
        let Self::Vera { r, d_initial, projection_prng_key, save_projection } = *self else {
            return Err(fault("not a VeRA").into());
        };
        let pair = match vera::PAIR.map(|name| frozen.tensors.get(name)) {
            [Some(a), Some(b)] => {
                vec![
                    (vera::PAIR[0].to_owned(), a.shallow_clone()),
                    (vera::PAIR[1].to_owned(), b.shallow_clone()),
                ]
            }
            _ => vera::pair(sites.iter().map(|site| site.shape), r, projection_prng_key),
        };
        let Some(first) = sites.first() else { return Ok((Vec::new(), Vec::new())) };
        let [a, b] = [first.place(&pair[0].1), first.place(&pair[1].1)];
        let (adapters, _) = each(sites, |site| {
            let (a_size, b_size) = (a.size(), b.size());
            let fits = matches!(a_size[..], [rows, inputs] if rows == r && inputs >= site.shape[1])
                && matches!(b_size[..], [out, columns] if columns == r && out >= site.shape[0]);
            if !fits {
                let (a, b) = (a_size, b_size);
                let message =
                    format!("the shared pair {a:?}, {b:?} of rank {r} is too small for `{}`", site.name);
                return Err(fault(message).into());
            }
            Ok(Box::new(Vera::build(site, [&a, &b], d_initial, trained)))
        })?;
        Ok((adapters, if save_projection { pair } else { Vec::new() }))
    }

    fn build_tiny(
        &self,
        sites: &[Site],
        frozen: &Frozen,
        trained: &mut Trained,
    ) -> Result<(Vec<Box<dyn Adapter>>, Named)> {
        let Self::TinyLora { r, u, projection_seed, .. } = *self else {
            return Err(fault("not a TinyLoRA").into());
        };
        let names: Vec<&str> = sites.iter().map(|site| site.name).collect();
        let groups = self.groups(&names);
        let mut vectors: Vec<Option<Tensor>> = sites.iter().map(|_| None).collect();
        let mut kept = Vec::new();
        let mut index = 0;
        let (adapters, _) = each(sites, |site| {
            let factors = frozen.factors(site, r)?;
            let name = format!("{}.{}", site.name, tiny_lora::FROZEN[2]);
            let projections = match frozen.tensors.get(&name) {
                Some(stored) => stored.shallow_clone(),
                None => tiny_lora::projections(u, r, projection_seed.wrapping_add(index as u64)),
            };
            if projections.size() != [u, r, r] {
                let (found, expected) = (projections.size(), [u, r, r]);
                return Err(fault(format!("`{name}` has shape {found:?}, expected {expected:?}")).into());
            }
            let group = groups[index];
            index += 1;
            let vector = vectors[group]
                .get_or_insert_with(|| tiny_lora::vector(group, u, site.seeds.len(), site.device, trained));
            let adapter = TinyLora::build(site, factors, &projections, vector.shallow_clone());
            for (suffix, tensor) in tiny_lora::FROZEN.into_iter().zip([&factors.a, &factors.b, &projections])
            {
                kept.push((format!("{}.{suffix}", site.name), tensor.to_device(Device::Cpu)));
            }
            Ok(Box::new(adapter))
        })?;
        Ok((adapters, kept))
    }
}

/// One adapter for each site, nothing kept.
fn each<A: Adapter + 'static>(
    sites: &[Site],
    mut build: impl FnMut(&Site) -> Result<Box<A>>,
) -> Result<(Vec<Box<dyn Adapter>>, Named)> {
    let adapters = sites.iter().map(|site| Ok(build(site)? as Box<dyn Adapter>)).collect::<Result<_>>()?;
    Ok((adapters, Vec::new()))
}

impl Frozen {
    /// Whether the basis was drawn, not decomposed.
    pub fn is_random(&self) -> bool {
        self.basis.as_ref().is_some_and(|basis| basis.spec.init == Init::Random)
    }

    /// A and B of a layer, of rank `rank`.
    fn factors(&self, site: &Site, rank: i64) -> Result<&Factors> {
        let ([out, inputs], name) = (site.shape, site.name);
        let found = self.basis.iter().flat_map(|basis| &basis.modules).find(|(module, _)| module == name);
        let Some((_, factors)) = found else {
            return Err(fault(format!("there are no frozen factors for the layer `{name}`")).into());
        };
        if factors.a.size() != [rank, inputs] || factors.b.size() != [out, rank] {
            let (a, b) = (factors.a.size(), factors.b.size());
            return Err(fault(format!(
                "the frozen factors of `{name}` are A {a:?} and B {b:?}, expected [{rank}, {inputs}] and [{out}, {rank}]"
            ))
            .into());
        }
        Ok(factors)
    }
}

/// The groups of `count` neighbours, `untied` groups for each; rounded as PEFT rounds.
fn tiles(count: usize, untied: f64) -> Vec<usize> {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and the count")]
    let groups = ((count as f64 * untied).round_ties_even() as usize).clamp(1, count.max(1));
    let size = (count / groups).max(1);
    (0..count).map(|index| (index / size).min(groups - 1)).collect()
}

/// A layer's path without the number of its block: layers of one kind have the same.
fn kind(name: &str) -> String {
    let parts = name.split('.').filter(|part| part.parse::<u32>().is_err());
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(untied: f64, tying: Tying) -> Method {
        Method::TinyLora { r: 2, u: 4, untied, tying, projection_seed: 0 }
    }

    #[test]
    fn layers_are_tied_with_their_neighbours_or_by_kind() {
        let names = ["l.0.q", "l.0.v", "l.1.q", "l.1.v", "l.2.q", "l.2.v"];
        assert_eq!(tiny(1.0, Tying::Depth).groups(&names), [0, 1, 2, 3, 4, 5]);
        assert_eq!(tiny(0.0, Tying::Depth).groups(&names), [0; 6]);
        assert_eq!(tiny(0.5, Tying::Depth).groups(&names), [0, 0, 1, 1, 2, 2]);
        assert_eq!(tiny(1.0, Tying::Kind).groups(&names), [0, 3, 1, 4, 2, 5]);
        assert_eq!(tiny(0.0, Tying::Kind).groups(&names), [0, 1, 0, 1, 0, 1]);
        // What does not divide goes to the last group, as in PEFT: max(1, round(5 · 0.4)) = 2 groups of 2 and 3.
        assert_eq!(tiny(0.4, Tying::Depth).groups(&names[..5]), [0, 0, 1, 1, 1]);
    }

    #[test]
    fn settings_are_read_back_as_they_were_written() {
        for method in [tiny(0.25, Tying::Kind), Method::Full, Method::LoraXs { r: 4, lora_alpha: 6.0 }] {
            let text = serde_json::to_string(&method).unwrap();
            assert_eq!(serde_json::from_str::<Method>(&text).unwrap(), method, "{text}");
        }
    }
}
