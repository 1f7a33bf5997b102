//! `loraxs init-svd`: the frozen basis of LoRA-XS from a base's weights.

use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::environment;
use crate::adapters::basis::{Basis, BasisSpec, ModuleReport};
use crate::adapters::file::short;
use crate::cli::{Global, InitSvdArgs};
use crate::fault::{Result, fault};
use crate::files;
use crate::models::adapt::{Layer, targeted};
use crate::report::{say, table};
use crate::session::facts::agree_on_values;
use crate::spec::Init;

/// Contents of `OUT/report.json`.
#[derive(Serialize)]
struct Report<'a> {
    base: &'a str,
    base_hash: &'a str,
    spec: &'a BasisSpec,
    modules: &'a [ModuleReport],
}

/// Computes the basis, or finds it in the cache, and reports each module; processes that work together share the modules.
/// Fails when the base cannot be read, a target names nothing, or the rank is too large for a module.
pub fn run(global: &Global, args: &InitSvdArgs) -> Result<()> {
    let place = environment(global, None)?;
    let base = place.base(&args.model, &args.revision)?;
    base.base.check_layers()?;
    let targets = match args.targets.as_slice() {
        [] => base.base.config.default_targets(),
        given => given.to_vec(),
    };
    let layers = targeted(&base.base.linear_layers(), &targets)?;
    let spec = BasisSpec {
        rank: args.rank,
        init: Init::Svd,
        spectrum: args.spectrum,
        sigma: args.sigma,
        method: args.method,
        iterations: args.iterations,
        seed: args.seed,
    };
    let asked = json!({ "base": base.hash, "--targets": targets, "settings": spec });
    agree_on_values(&place.world, "another basis", &asked)?;
    let (basis, modules) = place.basis(&base, &layers, &spec, None)?;
    let report = Report { base: &base.name, base_hash: &base.hash, spec: &spec, modules: &modules };
    place.world.on_first(|| keep(&basis, &report, &layers, args.out.as_deref()))
}

/// Prints the report, and writes it beside the basis if it is wanted in a folder.
/// Fails when the basis is neither there nor in the cache.
fn keep(basis: &Basis, report: &Report, layers: &[Layer], out: Option<&Path>) -> Result<()> {
    say(&module_table(report.modules));
    let seconds: f64 = report.modules.iter().map(|module| module.seconds).sum();
    say(&format!("{} modules, {seconds:.1} s of decomposition", report.modules.len()));
    if let Some(out) = out {
        files::hold_for_good(out)?;
        basis.save(out)?;
        files::write_json(&out.join("report.json"), report)?;
        say(&format!("wrote {}", out.display()));
    } else if !Basis::is_cached(report.spec, report.base_hash, layers) {
        return Err(fault("the basis was not saved: it could not be cached, and there is no `--out`")
            .hint("write it to a folder with `--out`, or point `LORAXS_CACHE` at a writable one")
            .into());
    } else {
        say(&format!("cached for base {}; `train` finds it there", short(report.base_hash)));
    }
    Ok(())
}

fn module_table(modules: &[ModuleReport]) -> String {
    let rows: Vec<Vec<String>> = modules
        .iter()
        .map(|module| {
            vec![
                module.name.clone(),
                format!("{}x{}", module.shape[0], module.shape[1]),
                format!("{:.4}", module.captured_energy),
                if module.seconds > 0.0 { format!("{:.2}", module.seconds) } else { "cached".into() },
            ]
        })
        .collect();
    table(&["module", "out x in", "captured energy", "seconds"], &rows)
}
