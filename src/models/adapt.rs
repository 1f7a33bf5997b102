//! Adapters over a model's named linear layers: which layers, and putting LoRA-XS on them.

use tch::{Device, Tensor};

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

/// A linear layer: its path and its shape `[out, in]`.
pub type Layer = (String, [i64; 2]);

/// The layers that `targets` name, in the order of `layers`.
///
/// # Errors
/// When a target names no layer; the message lists the names that exist.
pub fn targeted(layers: &[Layer], targets: &[String]) -> Result<Vec<Layer>> {
    for target in targets {
        if !layers.iter().any(|(name, _)| matches(name, target)) {
            let mut ends: Vec<&str> = layers.iter().map(|(name, _)| short_name(name)).collect();
            ends.sort_unstable();
            ends.dedup();
            return Err(usage(format!("the target `{target}` names no layer of the model"))
                .hint(format!("layers end in {}", ends.join(", ")))
                .into());
        }
    }
    Ok(layers.iter().filter(|(name, _)| targets.iter().any(|t| matches(name, t))).cloned().collect())
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

/// What is put on a model's layers: a method with its settings and its frozen factors.
#[derive(Debug, Clone, Copy)]
pub enum Plan<'a> {
    /// LoRA-XS on the layers of its basis.
    LoraXs {
        /// Frozen factors of each adapted layer.
        basis: &'a Basis,
        /// The settings.
        spec: Spec,
    },
}

/// Puts adapters on those of `linears`, all on `device`, that the plan names, with one set of trained factors for each
/// seed, and adds these to `trained`.
///
/// # Errors
/// When the plan does not fit the layers.
pub fn attach(
    linears: Vec<&mut Linear>,
    device: Device,
    plan: Plan,
    seeds: &[u64],
    trained: &mut Trained,
) -> Result<()> {
    match plan {
        Plan::LoraXs { basis, spec } => attach_lora_xs(linears, device, (basis, spec), seeds, trained),
    }
}

fn attach_lora_xs(
    mut linears: Vec<&mut Linear>,
    device: Device,
    (basis, spec): (&Basis, Spec),
    seeds: &[u64],
    trained: &mut Trained,
) -> Result<()> {
    for (name, factors) in &basis.modules {
        let Some(linear) = linears.iter_mut().find(|linear| linear.name() == name) else {
            return Err(
                fault(format!("the basis is for a layer `{name}`, which the model does not have")).into()
            );
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
        // The kind that the layer's frozen weight computes in.
        let kind = linear.weight().kind();
        let place = |factor: &Tensor| factor.to_device(device).to_kind(kind).contiguous();
        let adapter = LoraXs::new(place(&factors.a), place(&factors.b), core, spec.alpha / spec.rank as f64);
        linear.attach(Box::new(adapter), spec.dropout);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers() -> Vec<Layer> {
        ["attention.self.query", "attention.output.dense", "output.dense", "intermediate.dense"]
            .map(|end| (format!("bert.encoder.layer.0.{end}"), [2, 3]))
            .into()
    }

    fn names(targets: &[&str]) -> Vec<String> {
        let targets: Vec<String> = targets.iter().map(|&t| t.to_owned()).collect();
        targeted(&layers(), &targets).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_target_matches_the_end_of_a_path_after_a_dot() {
        assert_eq!(names(&["query"]).len(), 1);
        assert_eq!(names(&["output.dense"]).len(), 2);
        assert_eq!(names(&["dense"]).len(), 3);
        assert!(targeted(&layers(), &["uery".to_owned()]).is_err());
    }

    #[test]
    fn a_target_that_names_nothing_is_answered_with_the_names_that_exist() {
        let error = targeted(&layers(), &["q_proj".to_owned()]).unwrap_err();
        let hint = crate::fault::hint_of(&error).unwrap();
        assert_eq!(
            hint,
            "layers end in attention.output.dense, attention.self.query, intermediate.dense, output.dense"
        );
        assert_eq!(crate::fault::exit_code(&error), 2);
    }
}
