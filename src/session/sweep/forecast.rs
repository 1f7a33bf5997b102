//! Cost of a sweep, estimated before its first run (`--dry-run`).

use super::work::SweepTraining;
use anyhow::Context as _;

use crate::adapters::Method;
use crate::fault::Result;
use crate::report::table;
use crate::session::adapter_setup;
use crate::session::environment::kind_of;
use crate::train::trial::operations_per_second;

const MIB: f64 = 1_048_576.0;
/// Most lines of groups that are shown.
const SHOWN: usize = 24;

/// Returns the text that `--dry-run` prints after the plan: of each group of runs that share all but their own keys, the number of runs,
/// their steps, trainable parameters and memory; then the least time of all.
/// Fails when a run cannot begin.
pub fn text(training: &mut SweepTraining) -> Result<String> {
    let halving = training.sweep.settings.halving;
    let (mut rows, mut operations, mut arithmetic) = (Vec::new(), 0.0, None);
    for (kind, of_kind) in training.kinds.clone().into_iter().enumerate() {
        let first = &training.sweep.runs[of_kind[0]];
        let inputs = training.inputs(&first.recipe).with_context(|| format!("run `{}`", first.name))?;
        let forecast = inputs.costs(training.place, training.out)?;
        let steps = of_kind.iter().map(|run| inputs.steps_of(&training.sweep.runs[*run].recipe.train));
        let (least, most, all) = steps.fold((u64::MAX, 0, 0), |(least, most, all), steps| {
            (steps.min(least), steps.max(most), all + steps)
        });
        training.check_rungs(kind, &inputs)?;
        adapter_setup::check_start(&inputs.recipe, &inputs.base)?;
        let together = training.most_together(of_kind.len(), &first.recipe.adapter.method);
        let examples = first.recipe.train.batch_size.min(inputs.train.examples.len());
        let tokens: usize = forecast.lengths.iter().sum();
        let tokens = tokens as f64 / forecast.lengths.len().max(1) as f64 * examples as f64;
        // A product forward and one for the gradient of its input; of trained weights, one more.
        let products = if first.recipe.adapter.method == Method::Full { 6.0 } else { 4.0 };
        operations += products * forecast.counts.all as f64 * tokens * all as f64;
        arithmetic = arithmetic.or(Some(kind_of(inputs.recipe.train.precision)));
        let memory = forecast.bytes(together, training.place.devices.is_cuda());
        let steps = if least == most { most.to_string() } else { format!("{least} to {most}") };
        let counts = forecast.counts;
        rows.push(vec![
            first.name.clone(),
            of_kind.len().to_string(),
            together.to_string(),
            steps,
            (counts.adapter + counts.full).to_string(),
            counts.head.to_string(),
            format!("{:.0}", memory / MIB),
        ]);
        training.keep(first.recipe.clone(), inputs);
    }
    let more = rows.len().saturating_sub(SHOWN);
    rows.truncate(SHOWN);
    let headers = ["first run", "runs", "together", "steps", "adapter", "head", "MiB, estimated"];
    let mut text = table(&headers, &rows);
    if more > 0 {
        text += &format!("\n… and {more} groups more");
    }
    let speed =
        operations_per_second(arithmetic.unwrap_or(tch::Kind::Float), training.place.devices.first())?;
    let hours = operations / speed / 3600.0;
    let at_most = if halving.is_some() { ", without what halving spares" } else { "" };
    text += &format!(
        "\ntime of the training at least {} on this device ({:.0} GFLOP/s){at_most}, evaluations aside\nwould write {}",
        spoken(hours),
        speed / 1e9,
        training.out.display()
    );
    Ok(text)
}

/// Returns hours in a unit that suits them.
fn spoken(hours: f64) -> String {
    match hours {
        _ if hours >= 48.0 => format!("{:.1} days", hours / 24.0),
        _ if hours >= 1.0 => format!("{hours:.1} hours"),
        _ if hours >= 1.0 / 60.0 => format!("{:.0} minutes", (hours * 60.0).ceil()),
        _ => format!("{:.0} seconds", (hours * 3600.0).ceil()),
    }
}
