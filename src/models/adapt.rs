//! Adapters over a model's named linear layers: which layers, and putting LoRA-XS on them.

use tch::{Kind, Tensor};

use super::Classifier;
use super::head::drawn;
use crate::adapters::basis::Basis;
use crate::adapters::lora_xs::LoraXs;
use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault, usage};
use crate::nn::Linear;

/// The settings of an adapter that do not depend on the layer.
#[derive(Debug, Clone, Copy)]
pub struct Spec {
    /// r.
    pub rank: i64,
    /// ΔW is scaled by alpha / rank.
    pub alpha: f64,
    /// Standard deviation of R at the start.
    pub init_std: f64,
    /// Dropout on what the adapter reads.
    pub dropout: f64,
}

/// Whether a layer's path is named by `target`, as PEFT matches: the whole path or its end after a dot.
fn matches(name: &str, target: &str) -> bool {
    name == target || name.strip_suffix(target).is_some_and(|before| before.ends_with('.'))
}

/// The layers that `targets` name, in the model's order, with their weights `[out, in]`.
///
/// # Errors
/// When a target names no layer; the message lists the names that exist.
pub fn targeted<'a>(linears: &[&'a Linear], targets: &[String]) -> Result<Vec<&'a Linear>> {
    for target in targets {
        if !linears.iter().any(|linear| matches(linear.name(), target)) {
            let mut ends: Vec<&str> = linears.iter().map(|linear| short_name(linear.name())).collect();
            ends.sort_unstable();
            ends.dedup();
            return Err(usage(format!("the target `{target}` names no layer of the model"))
                .hint(format!("layers end in {}", ends.join(", ")))
                .into());
        }
    }
    Ok(linears.iter().filter(|l| targets.iter().any(|t| matches(l.name(), t))).copied().collect())
}

/// A layer's path after its layer number: `attention.self.query`.
fn short_name(name: &str) -> &str {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let start = name.split('.').scan(0, |end, part| {
        *end += part.len() + 1;
        Some((part, *end))
    });
    start.filter(|(part, _)| number(part)).last().map_or(name, |(_, end)| &name[end..])
}

/// Puts LoRA-XS adapters on the layers of `basis`, with one core for each seed, and adds the cores to `trained`.
///
/// # Errors
/// When the basis does not fit the model's layers.
pub fn attach_lora_xs(
    model: &mut Classifier,
    basis: &Basis,
    spec: Spec,
    seeds: &[u64],
    trained: &mut Trained,
) -> Result<()> {
    let device = model.device();
    let mut linears = model.encoder.linears_mut();
    for (name, factors) in &basis.modules {
        let Some(linear) = linears.iter_mut().find(|linear| linear.name() == name) else {
            return Err(fault(format!("the basis is for a layer `{name}`, which the model does not have")).into());
        };
        let [out, inputs] = linear.shape();
        if factors.a.size() != [spec.rank, inputs] || factors.b.size() != [out, spec.rank] {
            return Err(fault(format!(
                "the basis of `{name}` has A {:?} and B {:?}, expected [{}, {inputs}] and [{out}, {}]",
                factors.a.size(),
                factors.b.size(),
                spec.rank,
                spec.rank
            ))
            .into());
        }
        let name = format!("{name}.R");
        let cores: Vec<Tensor> =
            seeds.iter().map(|&seed| drawn(seed, &name, &[spec.rank, spec.rank], spec.init_std)).collect();
        let core = trained.add(name, Group::Adapter, &Tensor::stack(&cores, 0).to_device(device));
        let kind = compute_kind(linear);
        let place = |factor: &Tensor| factor.to_device(device).to_kind(kind).contiguous();
        let adapter = LoraXs::new(place(&factors.a), place(&factors.b), core, spec.alpha / spec.rank as f64);
        linear.attach(Box::new(adapter), spec.dropout);
    }
    Ok(())
}

/// The kind of the layer's frozen weight.
fn compute_kind(linear: &Linear) -> Kind {
    linear.weight().kind()
}
