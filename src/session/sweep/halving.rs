//! Successive halving: at each rung, the weaker runs of a sweep end. Source: K. Jamieson and A. Talwalkar, arXiv 1502.07943.

use std::path::PathBuf;

use serde_json::Value;

use crate::fault::{Result, usage};
use crate::files;
use crate::recipe::Halving;
use crate::session::inputs::TrainInputs;
use crate::session::run_folder::RESULTS;
use crate::session::training::Training;
use crate::spec::{Every, Metric};

/// Returns the name of the file of a run's results at a rung.
pub fn file(rung: u64) -> String {
    format!("rung-{rung}.json")
}

/// Returns the step at which each run of a training pauses at a rung: after one of its evaluations; never without halving, and at the
/// last rung.
/// Fails when there are fewer evaluations than rungs.
pub fn pauses(halving: Option<&Halving>, rung: u64, training: &Training) -> Result<Vec<u64>> {
    let Training { inputs, recipes, .. } = training;
    let steps = recipes.iter().map(|recipe| inputs.steps_of(&recipe.train));
    let Some(halving) = halving else { return Ok(steps.map(|_| u64::MAX).collect()) };
    steps.map(|steps| check(halving, inputs, steps).map(|rungs| rungs[place_of(rung)])).collect()
}

fn place_of(rung: u64) -> usize {
    usize::try_from(rung.saturating_sub(1)).unwrap_or(usize::MAX)
}

/// Returns the step of each rung of a run of so many steps, the last one beyond its end.
/// Fails when there are fewer evaluations than rungs.
pub fn check(halving: &Halving, inputs: &TrainInputs, steps: u64) -> Result<Vec<u64>> {
    let interval = match inputs.recipe.eval.every {
        Every::Epoch => inputs.steps_per_epoch(&inputs.recipe.train),
        Every::Steps(steps) => steps,
        Every::Never => u64::MAX,
    };
    let evaluations = steps.div_ceil(interval.max(1));
    let mut at: Vec<u64> = (1..=halving.rungs).map(|rung| halving.share(evaluations, rung)).collect();
    if at.windows(2).any(|pair| pair[0] == pair[1]) {
        let rungs = halving.rungs;
        return Err(usage(format!(
            "`sweep.halving`: {rungs} rungs need more evaluations than the {evaluations} of a run"
        ))
        .hint("evaluate more often (`eval.every`), train for longer, or set fewer `rungs`")
        .into());
    }
    at.pop();
    Ok(at.into_iter().map(|evaluation| evaluation.saturating_mul(interval)).chain([u64::MAX]).collect())
}

impl Halving {
    /// Returns how many of so many evaluations a run takes until a rung.
    fn share(&self, evaluations: u64, rung: u64) -> u64 {
        let left = u32::try_from(self.rungs.saturating_sub(rung)).unwrap_or(u32::MAX);
        evaluations.div_ceil(self.factor.saturating_pow(left).max(1))
    }
}

/// Ends the weaker of the runs that have reached a rung, and returns the others.
/// Fails when results cannot be read or written.
pub fn survivors(
    folder: impl Fn(usize) -> PathBuf,
    halving: &Halving,
    rung: u64,
    contenders: &[usize],
) -> Result<Vec<usize>> {
    let mut ranked: Vec<(usize, f64)> = Vec::new();
    for &run in contenders {
        // A run that stopped early has its results alone; one that failed before the rung has neither.
        let found = [file(rung), RESULTS.to_owned()].map(|name| folder(run).join(name));
        if let Some(found) = found.iter().find(|path| path.exists()) {
            ranked.push((run, merit(&files::read_json(found)?)));
        }
    }
    ranked.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    let kept = ranked.len().div_ceil(usize::try_from(halving.factor).unwrap_or(usize::MAX));
    for (run, _) in ranked.split_off(kept) {
        let [at_rung, results] = [&file(rung), RESULTS].map(|name| folder(run).join(name));
        if !results.exists() {
            files::write_json(&results, &files::read_json::<Value>(&at_rung)?)?;
        }
    }
    let mut runs: Vec<usize> = ranked.into_iter().map(|(run, _)| run).collect();
    runs.sort_unstable();
    Ok(runs)
}

/// Returns a run's best value of the metric that picks the best, larger is better; the least where it is undefined.
fn merit(results: &Value) -> f64 {
    let metric = results["metric"].as_str().and_then(|name| name.parse::<Metric>().ok());
    let value = results["metric"].as_str().and_then(|name| results["best"]["metrics"][name].as_f64());
    let merit = metric.zip(value).map(|(metric, value)| metric.merit(value));
    merit.filter(|merit| merit.is_finite()).unwrap_or(f64::NEG_INFINITY)
}
