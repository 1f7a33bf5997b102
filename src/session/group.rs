//! Trains one run, or several together, each in a folder of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::course::{Course, GroupPlan};
use super::recorder::RunRecorder;
use super::results::Results;
use super::resume::{Beginning, begin};
use super::run_folder::{ADAPTER, EVAL, RECIPE, RESULTS};
use super::training::Training;
use crate::adapters::file::AdapterFile;
use crate::eval::Evaluation;
use crate::fault::Result;
use crate::files;
use crate::recipe::Recipe;
use crate::report::metrics_log::TrainPoint;
use crate::report::say;
use crate::train::checkpoint::TrainState;
use crate::train::{Recorder, RunEnd, Trainer, interrupt};

/// Trains all runs of `training`, and writes the results of each when it ends.
/// Fails when a run cannot begin, or a file cannot be written; what ends a run alone is in its end.
pub fn train(training: &mut Training, group: &GroupPlan) -> Result<Vec<(TrainState, RunEnd)>> {
    let Beginning { plan, loaded, writes_recipe } = begin_together(training, group)?;
    let training = &*training;
    let mut runs = Vec::new();
    let written = if group.world.is_first() { group.courses } else { &[] };
    for (run, Course { out, .. }) in written.iter().enumerate() {
        // Scores first, so that without results there are none of the adapter before.
        for stale in [out.join(EVAL).join(RESULTS), out.join(RESULTS)].iter().filter(|path| path.exists()) {
            fs::remove_file(stale).map_err(|error| files::cannot_write(stale, &error))?;
        }
        if writes_recipe[run] {
            files::write_bytes(&out.join(RECIPE), training.recipes[run].to_toml()?.as_bytes())?;
        }
        let loaded = loaded.get(run).and_then(Option::as_ref);
        let before = loaded.map_or(0.0, |loaded| loaded.state().seconds);
        runs.push((RunRecorder::open(training, run, out, loaded)?, before));
    }
    let resumed: Vec<u64> = loaded.iter().flatten().map(|loaded| loaded.state().step).collect();
    if let Some(step) = resumed.iter().min() {
        say(&format!("resuming after step {step}"));
    }
    let objective = training.objective(group.world);
    let _awaited = interrupt::awaited();
    let mut recorders = Recorders { training, group, runs, checked: Instant::now() };
    let recorder: &mut dyn Recorder = if group.world.is_first() { &mut recorders } else { &mut Silent };
    Trainer::new(plan, objective.as_ref(), &training.trained, recorder, loaded)?.run()
}

/// Finds where the training begins: the first process looks, and the others take its recipes.
fn begin_together(training: &mut Training, group: &GroupPlan) -> Result<Beginning> {
    let GroupPlan { courses, fewest, world, .. } = *group;
    let of_first = world.is_first().then(|| begin(training, group)).transpose();
    let of_first = world.agreed(of_first)?;
    let recipes: Vec<String> = world.on_first(|| training.recipes.iter().map(Recipe::to_toml).collect())?;
    if let Some(beginning) = of_first {
        return Ok(beginning);
    }
    let parse = |text: &String| Recipe::parse(text, RECIPE, &[]);
    training.recipes = recipes.iter().map(parse).collect::<Result<_>>()?;
    let plan = training.plan(courses, fewest, world)?;
    Ok(Beginning { plan, loaded: Vec::new(), writes_recipe: Vec::new() })
}

/// The recorder of a process that writes nothing.
struct Silent;

impl Recorder for Silent {}

/// Time after which a log point asks whether the runs are still this process's.
const CHECK_AFTER: Duration = Duration::from_secs(5);

/// The recorders of all runs, each with the seconds that its training took before.
struct Recorders<'a> {
    training: &'a Training,
    group: &'a GroupPlan<'a>,
    runs: Vec<(RunRecorder<'a>, f64)>,
    /// When it was last asked whether the runs are still this process's.
    checked: Instant,
}

impl Recorder for Recorders<'_> {
    fn logged(&mut self, run: usize, point: &TrainPoint) -> Result<()> {
        if self.checked.elapsed() > CHECK_AFTER {
            (0..self.runs.len()).try_for_each(|run| (self.group.check)(run))?;
            self.checked = Instant::now();
        }
        self.runs[run].0.logged(point)
    }

    fn keep(&self, run: usize, checkpoint: &Path) -> Result<()> {
        (self.group.check)(run)?;
        self.runs[run].0.keep(checkpoint)
    }

    fn evaluated(&mut self, run: usize, step: u64, evaluation: &Evaluation, best: bool) -> Result<()> {
        (self.group.check)(run)?;
        self.runs[run].0.evaluated(step, evaluation, best)
    }

    fn ended(&mut self, run: usize, state: &TrainState, share: f64, end: &RunEnd) -> Result<()> {
        let (ended, file) = match end {
            RunEnd::Finished => ("finished", RESULTS),
            RunEnd::StoppedEarly => ("patience", RESULTS),
            RunEnd::Paused => ("halving", self.group.paused),
            RunEnd::Yielded | RunEnd::Interrupted | RunEnd::Failed(_) => return Ok(()),
        };
        (self.group.check)(run)?;
        let (recorder, before) = &self.runs[run];
        recorder.finish(state)?;
        let Course { name, out, .. } = &self.group.courses[run];
        let results = Results {
            training: (self.training, run),
            state,
            ended,
            seconds: before + share * self.group.start.elapsed().as_secs_f64(),
            delta_norm: delta_norms(self.training, run, out)?,
        };
        results.write(out, file).context("training ended, but its results could not be saved")?;
        say(&match name.as_str() {
            "" => results.summary(),
            name => format!("{name}: {}", results.scores()),
        });
        Ok(())
    }
}

/// Returns ‖ΔW‖ of each layer of a run that has ended, by its best adapter, which it takes on.
/// Fails when the adapter cannot be read.
fn delta_norms(training: &Training, run: usize, out: &Path) -> Result<BTreeMap<String, f64>> {
    let (model, run) = (&training.model, run as i64);
    if model.linears().iter().all(|layer| layer.adapter().is_none()) {
        return Ok(BTreeMap::new());
    }
    AdapterFile::open(&out.join(ADAPTER))?.load_into(&training.trained.of_run(run), true)?;
    model.delta_norms(run)
}
