//! A sweep in its folder, with the inputs that its groups share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{AskedSweep, halving};
use crate::fault::Result;
use crate::files;
use crate::recipe::{Recipe, SWEEP, Sweep};
use crate::session::environment::Environment;
use crate::session::inputs::TrainInputs;
use crate::session::run_folder::{FAILED, RESULTS};
use crate::spec::Shard;

/// A sweep that is being trained, or planned.
pub struct SweepTraining<'a> {
    pub place: &'a Environment,
    pub sweep: &'a Sweep,
    pub out: &'a Path,
    pub shard: Shard,
    /// The inputs of the group before, and the recipe that they were opened for.
    inputs: Option<(Recipe, TrainInputs)>,
    /// How many runs of a kind were found to be fastest together, by what they share.
    pub fastest: BTreeMap<String, usize>,
}

impl<'a> SweepTraining<'a> {
    /// Prepares a sweep; nothing is written.
    /// Fails when its folder is that of another one.
    pub fn new(place: &'a Environment, asked: &'a AskedSweep) -> Result<Self> {
        let AskedSweep { sweep, out, shard } = asked;
        files::refuse_file(out)?;
        if out.join(SWEEP).exists() {
            sweep.check_same(out)?;
        }
        Ok(Self { place, sweep, out, shard: *shard, inputs: None, fastest: BTreeMap::new() })
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
