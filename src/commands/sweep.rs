//! `loraxs train` of a sweep: many runs in one folder.

use super::{Outcome, environment};
use crate::cli::Global;
use crate::fault::{Result, usage};
use crate::recipe::SWEEP;
use crate::report::say;
use crate::session::environment::Environment;
use crate::session::next;
use crate::session::sweep::work::SweepTraining;
use crate::session::sweep::{AskedSweep, forecast, plan};
use crate::torch::world::World;
use crate::train::Ending;

/// Trains a sweep, or with `dry_run` only plans it.
/// Fails when its folder cannot be used, or a run cannot begin.
pub fn run(global: &Global, asked: &AskedSweep, dry_run: bool) -> Result<Outcome> {
    let runs = &asked.sweep.runs;
    let ranks = runs.iter().filter_map(|run| run.recipe.adapter.method.basis_rank()).collect();
    // Several processes share the runs, by their claims.
    let place =
        Environment { rehearsal: dry_run, ranks, world: World::alone(), ..environment(global, None)? };
    let mut training = SweepTraining::new(&place, asked)?;
    say(&plan::plan(asked)?);
    if dry_run {
        say(&forecast::text(&mut training)?);
        return Ok(Outcome::Done);
    }
    let world = World::current();
    world.on_first(|| training.begin())?;
    if world.gather(asked.out.join(SWEEP).exists())?.contains(&false) {
        let message = format!("`{}` is not in a file system that all processes share", asked.out.display());
        let hint = "give each process runs of its own: `--shard I/N`, each into a folder of its own";
        return Err(usage(message).hint(hint).into());
    }
    let (ending, failed) = training.run()?;
    let folder = next::quoted(&asked.out);
    if ending == Ending::Interrupted {
        say(&format!("interrupted; continue with `loraxs train --resume {folder}`"));
        return Ok(Outcome::Interrupted);
    }
    say(&format!("wrote {folder}"));
    if failed > 0 {
        say(&format!("{failed} of {} runs failed; to try one again, delete its `failed.json`", runs.len()));
    }
    say(&format!("next: loraxs report {folder}"));
    Ok(if failed > 0 { Outcome::Failed } else { Outcome::Done })
}
