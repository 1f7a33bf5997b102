//! `loraxs train` of a sweep: many runs in one folder.

use super::{Outcome, environment};
use crate::cli::Global;
use crate::fault::Result;
use crate::report::say;
use crate::session::environment::Environment;
use crate::session::next;
use crate::session::sweep::work::SweepTraining;
use crate::session::sweep::{AskedSweep, forecast, plan};
use crate::train::Ending;

/// Trains a sweep, or with `dry_run` only plans it.
/// Fails when its folder cannot be used, or a run cannot begin.
pub fn run(global: &Global, asked: &AskedSweep, dry_run: bool) -> Result<Outcome> {
    let runs = &asked.sweep.runs;
    let ranks = runs.iter().filter_map(|run| run.recipe.adapter.method.basis_rank()).collect();
    let place = Environment { rehearsal: dry_run, ranks, ..environment(global, None)? };
    let mut training = SweepTraining::new(&place, asked)?;
    say(&plan::plan(asked)?);
    if dry_run {
        say(&forecast::text(&mut training)?);
        return Ok(Outcome::Done);
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
