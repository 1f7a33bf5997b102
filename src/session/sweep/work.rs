//! A sweep in its folder, with the inputs that its groups share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{AskedSweep, halving, plan};
use crate::fault::Result;
use crate::files;
use crate::recipe::{Recipe, Sweep};
use crate::session::environment::Environment;
use crate::session::inputs::TrainInputs;
use crate::session::run_folder::{FAILED, RESULTS};
use crate::spec::Shard;

/// A sweep that is being trained, or planned.
pub struct SweepTraining<'a> {
    /// Hub, catalog and device.
    pub place: &'a Environment,
    /// The runs.
    pub sweep: &'a Sweep,
    /// Its folder.
    pub out: &'a Path,
    /// The share of this process.
    pub shard: Shard,
    /// The runs of each kind, which share everything but the keys of their own.
    pub kinds: Vec<Vec<usize>>,
    /// The inputs of the group before, and the recipe that they were opened for.
    inputs: Option<(Recipe, TrainInputs)>,
    /// Runs that are trained alone, because a group with them could not be trained.
    pub alone: BTreeSet<usize>,
    /// Runs that could not be trained.
    pub broken: BTreeSet<usize>,
    /// How many runs of a kind were found to be fastest together.
    pub fastest: BTreeMap<usize, usize>,
}

impl<'a> SweepTraining<'a> {
    /// Prepares a sweep; nothing is written.
    /// Fails when its folder is a file, or a recipe cannot be written.
    pub fn new(place: &'a Environment, asked: &'a AskedSweep) -> Result<Self> {
        let AskedSweep { sweep, out, shard } = asked;
        files::refuse_file(out)?;
        let kinds = plan::groups(sweep)?;
        Ok(Self {
            place,
            sweep,
            out,
            shard: *shard,
            kinds,
            inputs: None,
            alone: BTreeSet::new(),
            broken: BTreeSet::new(),
            fastest: BTreeMap::new(),
        })
    }

    /// Returns the folder of a run.
    pub fn folder(&self, run: usize) -> PathBuf {
        self.out.join(&self.sweep.runs[run].name)
    }

    /// Returns true if nothing of a run is left to do up to a rung.
    pub fn is_done(&self, run: usize, rung: u64) -> bool {
        let rung = halving::file(rung);
        [RESULTS, FAILED, &rung].into_iter().any(|name| self.folder(run).join(name).exists())
    }

    /// Refuses a kind with a run that has fewer evaluations than the sweep has rungs.
    /// Fails then.
    pub fn check_rungs(&self, kind: usize, inputs: &TrainInputs) -> Result<()> {
        let Some(halving) = &self.sweep.settings.halving else { return Ok(()) };
        let steps = self.kinds[kind].iter().map(|run| inputs.steps_of(&self.sweep.runs[*run].recipe.train));
        halving::check(halving, inputs, steps.min().unwrap_or(0)).map(drop)
    }

    /// Opens the inputs of a recipe, or takes those of the group before.
    pub fn inputs(&mut self, recipe: &Recipe) -> Result<TrainInputs> {
        match self.inputs.take() {
            Some((before, inputs)) if inputs.serves(&before, recipe) => inputs.with_recipe(recipe.clone()),
            _ => TrainInputs::open(self.place, recipe.clone()),
        }
    }

    /// Keeps the inputs that were opened for a recipe.
    pub fn keep(&mut self, recipe: Recipe, inputs: TrainInputs) {
        self.inputs = Some((recipe, inputs));
    }
}
