//! Sweeps: many runs of one recipe in one folder.

pub mod claim;
pub mod forecast;
mod halving;
pub mod plan;
pub mod run;
mod together;
pub mod work;

use std::path::{Path, PathBuf};

use crate::fault::{Result, usage};
use crate::recipe::{SWEEP, Sweep};
use crate::report::say;
use crate::session::resume::folder;
use crate::spec::Shard;
use crate::spec::request::TrainRequest;
use crate::torch::world::World;

/// A sweep that is to be trained.
pub struct AskedSweep {
    /// Its runs.
    pub sweep: Sweep,
    /// Its folder.
    pub out: PathBuf,
    /// The share that comes first.
    pub shard: Shard,
}

/// Returns the sweep that `train` is asked for: by a recipe with a section `[sweep]`, `--sweep`, or `--resume` with the folder
/// of one. `None` if it is asked for one run.
/// Fails when there is no such recipe, or its sweep has faults.
pub fn asked_sweep(request: &TrainRequest) -> Result<Option<AskedSweep>> {
    let out = folder(request)?;
    let found = match (&request.recipe, out) {
        (Some(name), out) => {
            let basis = request.basis.as_ref().map(|basis| format!("adapter.basis={}", basis.display()));
            let sets: Vec<String> = request.set.iter().cloned().chain(basis).collect();
            Sweep::load(name, &sets, &request.sweep)?.map(|(sweep, origin)| {
                (sweep, out.cloned().unwrap_or_else(|| Path::new("runs").join(origin.stem())))
            })
        }
        (None, Some(out)) if out.join(SWEEP).is_file() => {
            if !request.sweep.is_empty() || !request.set.is_empty() || request.basis.is_some() {
                let message = format!("`{}` is a sweep, which goes on as it began", out.display());
                return Err(usage(message).hint("leave out `--set`, `--sweep` and `--basis`").into());
            }
            Some((Sweep::of_folder(out)?, out.clone()))
        }
        (None, _) if !request.sweep.is_empty() => {
            let message = "`--sweep` begins a sweep, for which `--recipe` is missing";
            return Err(usage(message).hint("name a recipe with `--recipe`, or leave out `--sweep`").into());
        }
        (None, _) => None,
    };
    let Some((sweep, out)) = found else {
        return match request.shard {
            Some(shard) => Err(usage(format!("`--shard {shard}` is for a sweep, and the recipe is one run"))
                .hint("vary a key with `--sweep KEY.PATH=V1,V2`, or leave out `--shard`")
                .into()),
            None => Ok(None),
        };
    };
    let sweep = of_begun(sweep, &out)?;
    let slurm = || {
        let shard = Shard::of_slurm(|name| std::env::var(name).ok())?;
        say(&format!("this task of the Slurm array begins with share {shard} of the sweep"));
        Some(shard)
    };
    let world = World::current();
    let shard = request.shard.or_else(slurm).unwrap_or_default().of_process(world.rank(), world.size());
    Ok(Some(AskedSweep { sweep, out, shard }))
}

/// Returns the sweep that has begun in a folder, with the runs in its own order, trained together as is asked for now; else the
/// given one.
/// Fails when the folder has another one.
fn of_begun(asked: Sweep, out: &Path) -> Result<Sweep> {
    if !out.join(SWEEP).exists() {
        return Ok(asked);
    }
    asked.check_same(out)?;
    let mut begun = Sweep::of_folder(out)?;
    begun.settings.together = asked.settings.together;
    Ok(begun)
}
