//! `loraxs merge --rebase`: a LoRA-XS adapter in another basis.

use std::path::Path;

use crate::adapters::basis::Basis;
use crate::adapters::file::{self, AdapterConfig, BasisRecord};
use crate::adapters::lora_xs::{CORE, LoraXsConfig};
use crate::adapters::rebase::rebased;
use crate::adapters::{Group, Method, Named, Trained, witness};
use crate::cli::MergeArgs;
use crate::fault::{Result, fault, usage};
use crate::files;
use crate::models::adapt::Layer;
use crate::report::say;
use crate::session::environment::Environment;
use crate::session::subject::{Subject, adapter_basis};

/// Default limit of the residual: fp32 factors of one span agree to about 1e-6.
const TOLERANCE: f64 = 1e-4;

/// Writes the adapter of `subject`, whose trained tensors are `trained`, in the basis stored in `folder`.
/// Fails when the method has no core, the basis is smaller or of another base, or its span leaves too large
/// a residual.
pub fn run(
    place: &Environment,
    args: &MergeArgs,
    subject: &Subject,
    trained: &Trained,
    folder: &Path,
) -> Result<()> {
    let Some(adapter) = &subject.adapter else { return Err(fault("there is no adapter").into()) };
    let config = &adapter.config;
    let Method::LoraXs(LoraXsConfig { r, lora_alpha }) = config.method else {
        let message =
            format!("`--rebase` is for adapters of `lora-xs`, this one is of `{}`", config.method.name());
        return Err(usage(message).into());
    };
    let from = adapter_basis(place, &subject.base, adapter, args.subject.basis.as_deref())?;
    let shape = |name: &String| -> Option<Layer> {
        let (_, factors) = from.modules.iter().find(|(module, _)| module == name)?;
        Some((name.clone(), [factors.b.size2().ok()?.0, factors.a.size2().ok()?.1]))
    };
    let layers: Vec<Layer> = config.modules.iter().filter_map(shape).collect();
    let to = place.basis(&subject.base, &layers, &from.spec, Some(folder))?.0;
    let rank = to.spec.rank;
    if rank < r {
        return Err(usage(format!(
            "the basis in `{}` has rank {rank}, the adapter rank {r}",
            folder.display()
        ))
        .hint("a smaller basis cannot hold the adapter: make one of the same or a larger rank")
        .into());
    }
    let (moved, largest) = cores(trained, &from, &to)?;
    let limit = args.tolerance.unwrap_or(TOLERANCE);
    if largest.is_nan() || largest > limit {
        return Err(fault(format!(
            "the other basis spans other directions: a residual of {largest:.2e} of ΔW, more than {limit:.0e}; \
             nothing was written"
        ))
        .hint("take a basis of a larger rank, or raise `--tolerance`")
        .into());
    }
    let record = BasisRecord { spec: to.spec.clone(), witness: witness::witness(&to)?, with_basis: true };
    let config = AdapterConfig {
        // The scale does not change.
        method: Method::LoraXs(LoraXsConfig { r: rank, lora_alpha: lora_alpha / r as f64 * rank as f64 }),
        base_hash: subject.base.hash.clone(),
        basis: Some(record),
        ..config.clone()
    };
    let mut kept = Named::new();
    for (name, factors) in &to.modules {
        kept.push((format!("{name}.A"), factors.a.shallow_clone()));
        kept.push((format!("{name}.B"), factors.b.shallow_clone()));
    }
    files::write_folder(&args.out, |out| file::save(out, &config, &moved, 0, &kept))?;
    say(&format!("wrote {}: rank {r} to {rank}, largest residual of a ΔW {largest:.2e}", args.out.display()));
    Ok(())
}

/// Moves every core of the trained tensors to the basis `to`; returns them and the largest residual.
fn cores(trained: &Trained, from: &Basis, to: &Basis) -> Result<(Trained, f64)> {
    let (mut moved, mut largest) = (Trained::new(1), 0.0f64);
    for entry in trained.entries() {
        let Some(module) =
            entry.name.strip_suffix(&format!(".{CORE}")).filter(|_| entry.group == Group::Adapter)
        else {
            let _ = moved.add(entry.name.clone(), entry.group, &entry.tensor.detach());
            continue;
        };
        let find = |basis: &Basis| basis.modules.iter().position(|(name, _)| name == module);
        let (Some(old), Some(new)) = (find(from), find(to)) else {
            return Err(fault(format!("a basis lacks the module `{module}`")).into());
        };
        let core = entry.tensor.detach().get(0);
        let (core, residual) = rebased(&from.modules[old].1, &core, &to.modules[new].1)?;
        largest = if residual.is_nan() { residual } else { largest.max(residual) };
        let _ = moved.add(entry.name.clone(), entry.group, &core.unsqueeze(0));
    }
    Ok((moved, largest))
}
