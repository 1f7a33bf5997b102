//! Selects a model's linear layers by name and attaches adapters to them.

pub use crate::adapters::rules::{Layer, Start};
use crate::adapters::{Frozen, Method, Named, Site, Trained};
use crate::fault::{Result, fault, usage};
use crate::nn::Linear;

/// Returns true if `target` names this layer as PEFT matches: the whole path, or its end after a dot.
fn matches(name: &str, target: &str) -> bool {
    name == target || name.strip_suffix(target).is_some_and(|before| before.ends_with('.'))
}

/// Returns the layers that `targets` name, in the order of `layers`.
///
/// # Errors
/// When a target names no layer; the message lists the names that exist.
pub fn targeted(layers: &[Layer], targets: &[String]) -> Result<Vec<Layer>> {
    for target in targets {
        if !layers.iter().any(|(name, _)| matches(name, target)) {
            let mut ends: Vec<&str> = layers.iter().map(|(name, _)| short_name(name)).collect();
            ends.sort_unstable();
            ends.dedup();
            return Err(usage(format!("the target `{target}` matches no layer of the model"))
                .hint(format!("layers end in {}", ends.join(", ")))
                .into());
        }
    }
    Ok(layers.iter().filter(|(name, _)| targets.iter().any(|t| matches(name, t))).cloned().collect())
}

/// Returns a layer's path after its layer number: `attention.self.query`.
fn short_name(name: &str) -> &str {
    let number = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let start = name.split('.').scan(0, |end, part| {
        *end += part.len() + 1;
        Some((part, *end))
    });
    start.filter(|(part, _)| number(part)).last().map_or(name, |(_, end)| &name[end..])
}

/// Adapters to attach to a model's layers.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// The method with its settings.
    pub method: &'a Method,
    /// The adapted layers.
    pub layers: &'a [Layer],
    /// Frozen factors; those that the method draws itself may be absent.
    pub frozen: &'a Frozen,
    /// Starting point of LoRA-XS.
    pub start: Start,
    /// Dropout on the adapters' input.
    pub dropout: f64,
    /// α of each run; empty = that of the method's settings.
    pub alphas: &'a [f64],
    /// Standard deviation of each run's cores; empty = that of `start`.
    pub init_stds: &'a [f64],
}

/// Attaches adapters to those `linears` that the plan names, each on its layer's device, with one set of trained
/// factors per seed, added to `trained`. Returns the frozen tensors that an adapter file must hold.
///
/// # Errors
/// When the plan does not fit the layers.
pub fn attach(
    mut linears: Vec<&mut Linear>,
    plan: Plan,
    seeds: &[u64],
    trained: &mut Trained,
) -> Result<Named> {
    for (name, shape) in plan.layers {
        match linears.iter().find(|linear| linear.name() == name) {
            Some(linear) if linear.shape() == *shape => {}
            Some(linear) => {
                let found = linear.shape();
                let message = format!("the layer `{name}` has shape {found:?}, the adapter is for {shape:?}");
                return Err(fault(message).into());
            }
            None => {
                return Err(fault(format!(
                    "the adapter is for a layer `{name}`, which the model does not have"
                ))
                .into());
            }
        }
    }
    linears.retain(|linear| plan.layers.iter().any(|(name, _)| name == linear.name()));
    let in_model: Vec<String> = linears.iter().map(|linear| linear.name().to_owned()).collect();
    if !plan.method.ties() {
        // The order of the cores in a file. Groups of tied layers follow the model's order instead.
        linears.sort_by_cached_key(|linear| plan.layers.iter().position(|(name, _)| name == linear.name()));
    }
    let sites: Vec<Site> = linears
        .iter()
        .map(|linear| Site {
            name: linear.name(),
            shape: linear.shape(),
            place: in_model.iter().position(|name| name == linear.name()).unwrap_or_default(),
            // The kind of the layer's frozen weight.
            kind: linear.weight().kind(),
            device: linear.weight().device(),
            seeds,
            alphas: plan.alphas,
            init_stds: plan.init_stds,
        })
        .collect();
    let (adapters, kept) = plan.method.build(&sites, plan.frozen, plan.start, trained)?;
    for (linear, adapter) in linears.into_iter().zip(adapters) {
        linear.attach(adapter, plan.dropout);
    }
    Ok(kept)
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
