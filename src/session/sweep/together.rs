//! Which runs of a sweep train together.

use std::collections::BTreeSet;

use super::work::SweepTraining;
use crate::adapters::Method;
use crate::fault::Result;
use crate::recipe::Recipe;
use crate::recipe::Together;
use crate::session::training::Training;
use crate::torch::unless_exhausted;
use crate::torch::world::World;
use crate::train::trial;

/// Most runs in a group of a CPU: it computes each by itself, and gains only the time in which a group begins.
const MOST_ON_CPU: usize = 16;
/// Most runs that are tried together.
const MOST: usize = 64;
/// Part of the time of a run that more of them together must spare to be taken.
const WORTHWHILE: f64 = 0.05;

/// Divides runs into groups of one kind, of at most as many as the sweep asks for, or as are fastest.
/// Fails when a group cannot begin.
pub fn groups(training: &mut SweepTraining, runs: &[usize]) -> Result<Vec<Vec<usize>>> {
    let runs: BTreeSet<usize> = runs.iter().copied().collect();
    let mut groups = Vec::new();
    for kind in 0..training.kinds.len() {
        let of_kind = training.kinds[kind].iter().copied().filter(|run| runs.contains(run));
        let of_kind: Vec<usize> = of_kind.collect();
        if of_kind.is_empty() {
            continue;
        }
        let recipes: Vec<&Recipe> = of_kind.iter().map(|run| &training.sweep.runs[*run].recipe).collect();
        let mut most = training.most_together(of_kind.len(), &recipes[0].adapter.method);
        if training.sweep.settings.together == Together::Auto && training.place.devices.is_cuda() && most > 1
        {
            most = match training.fastest.get(&kind) {
                Some(known) => most.min(*known),
                None => fastest(training, &recipes[..most])?,
            };
            training.fastest.insert(kind, most);
        }
        let (alone, of_kind): (Vec<usize>, Vec<usize>) =
            of_kind.into_iter().partition(|run| training.alone.contains(run));
        groups.extend(of_kind.chunks(most).map(<[usize]>::to_vec));
        groups.extend(alone.into_iter().map(|run| vec![run]));
    }
    Ok(groups)
}

impl SweepTraining<'_> {
    /// Returns how many of so many runs of one kind may train together: few enough for every shard to have some.
    pub(super) fn most_together(&self, of_kind: usize, method: &Method) -> usize {
        let share = self.sweep.runs.len().div_ceil(self.shard.count).min(of_kind).max(1);
        match self.sweep.settings.together {
            // The weights of the base have no axis of runs.
            _ if *method == Method::Full => 1,
            Together::Runs(most) => most.clamp(1, of_kind),
            Together::Auto if self.place.devices.is_cuda() => share.min(MOST),
            Together::Auto => share.min(MOST_ON_CPU),
        }
    }
}

/// Returns how many of these runs take the least time each in one pass, as far as they fit.
fn fastest(training: &mut SweepTraining, recipes: &[&Recipe]) -> Result<usize> {
    let inputs = training.inputs(recipes[0])?;
    let most = recipes.len();
    let others: Vec<Recipe> = recipes[1..].iter().map(|recipe| (*recipe).clone()).collect();
    let all = Training::new(training.place, inputs, &others)?;
    let (mut best, mut least) = (1, f64::INFINITY);
    for runs in (0..).map(|power| 1 << power).take_while(|runs| *runs <= most) {
        // Too many for the memory: fewer were not.
        let train = &all.inputs.recipe.train;
        let passes = [train.micro_batch_size, train.micro_batch_tokens];
        let objective = all.objective(&World::alone());
        let tried = unless_exhausted(|| trial::seconds(objective.as_ref(), most, runs, passes))?;
        let Some(seconds) = tried else { break };
        let of_one = seconds / runs as f64;
        if of_one > least * (1.0 - WORTHWHILE) {
            break;
        }
        (best, least) = (runs, of_one);
    }
    let fastest = if best == 1 { "one run alone is".into() } else { format!("{best} runs together are") };
    match least.is_finite() {
        true => tracing::info!("{fastest} fastest: {:.1} ms a step for each", 1000.0 * least),
        false => tracing::warn!("a step of one run ran out of memory when it was tried"),
    }
    training.keep(recipes[0].clone(), all.into_inputs());
    Ok(best)
}
