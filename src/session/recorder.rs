//! Records a run's training in its folder: log, best adapter, and in a checkpoint the adapter of its step.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::run_folder::{ADAPTER, CHECKPOINTS, DATASETS, RECIPE};
use super::training::Training;
use crate::adapters::file::{self, CONFIG, NOTES, WEIGHTS};
use crate::eval::Evaluation;
use crate::fault::{Result, fault};
use crate::files;
use crate::report::POINTS;
use crate::report::metrics_log::{EvalPoint, METRICS_FILE, MetricsLog, TrainPoint};
use crate::train::checkpoint::{Loaded, TrainState};

/// The files of an adapter that depend on its training.
const FILES: [&str; 3] = [WEIGHTS, CONFIG, NOTES];
/// Prefix of their names in a checkpoint, for the best adapter at its step.
const BEST: &str = "best-";
/// File in a checkpoint that records where the log ended at its step.
const LOG: &str = "log.json";

/// A run folder, open for writing.
pub struct RunRecorder<'a> {
    training: &'a Training,
    /// Its number among those of the training.
    run: usize,
    out: PathBuf,
    adapter: PathBuf,
    log: MetricsLog,
}

impl<'a> RunRecorder<'a> {
    /// Opens the folder for a new run, or for one that resumes from a checkpoint.
    /// Fails when it cannot be written, or the checkpoint's best adapter is lost.
    pub fn open(training: &'a Training, run: usize, out: &Path, resumed: Option<&Loaded>) -> Result<Self> {
        let adapter = out.join(ADAPTER);
        files::write_bytes(&out.join(DATASETS), training.inputs.catalog.as_bytes())?;
        let mut end = None;
        if let Some(loaded) = resumed {
            // Nothing is looked for there before the next checkpoint, which may never come.
            files::sweep(&out.join(CHECKPOINTS));
            restore(loaded, &adapter)?;
            let path = loaded.place().join(LOG);
            end = path.exists().then(|| files::read_json(&path)).transpose()?;
        }
        let log = MetricsLog::open(out, resumed.map(|loaded| loaded.state().step), end)?;
        Ok(Self { training, run, out: out.to_owned(), adapter, log })
    }

    /// Writes the adapter as it is now.
    fn save_adapter(&self, folder: &Path) -> Result<()> {
        let Training { adapters, trained, kept, .. } = self.training;
        file::save(folder, &adapters[self.run], trained, self.run as i64, kept)
    }

    /// Writes the last adapter if no evaluation has picked a best one.
    /// Fails when it cannot be written, or the run is not whole.
    pub fn finish(&self, state: &TrainState) -> Result<()> {
        if state.run.best.is_none() {
            self.save_adapter(&self.adapter)?;
        }
        let whole = [self.out.join(RECIPE), self.out.join(METRICS_FILE), self.adapter.join(WEIGHTS)];
        whole.into_iter().find(|path| !path.exists()).map_or(Ok(()), |path| Err(lost(&path)))
    }
}

/// Restores the checkpoint's best adapter: the one in `adapter` may be of a step that is done again.
fn restore(loaded: &Loaded, adapter: &Path) -> Result<()> {
    let picked = loaded.state().run.best.is_some();
    for name in FILES.into_iter().filter(|_| picked) {
        let kept = loaded.place().join(format!("{BEST}{name}"));
        if kept.exists() {
            files::write_atomically(&adapter.join(name), |out| {
                Ok(io::copy(&mut File::open(kept)?, out).map(drop)?)
            })?;
        } else if name == WEIGHTS && !adapter.join(name).exists() {
            // A checkpoint of an older version, which did not store it.
            return Err(lost(&adapter.join(name)));
        }
    }
    Ok(())
}

/// Returns the error for a file of the run that was removed.
fn lost(path: &Path) -> anyhow::Error {
    fault(format!("`{}` was removed before the run ended", path.display()))
        .hint("`--resume` continues from the newest checkpoint, if there is one")
        .into()
}

impl RunRecorder<'_> {
    /// Records a log point.
    /// Fails when it cannot be written.
    pub fn logged(&mut self, point: &TrainPoint) -> Result<()> {
        if self.training.recipes.len() > 1 {
            return self.log.train(point);
        }
        let TrainPoint { step, epoch, loss, learning_rate, head_learning_rate, grad_norm, tokens_per_second } =
            *point;
        tracing::info!(
            target: POINTS,
            step,
            epoch,
            loss,
            learning_rate,
            head_learning_rate,
            grad_norm,
            tokens_per_second,
            "step {step}: loss {loss:.4}"
        );
        self.log.train(point)
    }

    /// Saves what it needs to resume from here into a checkpoint's folder.
    /// Fails when it cannot be written.
    pub fn keep(&self, checkpoint: &Path) -> Result<()> {
        for name in FILES.into_iter().filter(|name| self.adapter.join(name).exists()) {
            let to = checkpoint.join(format!("{BEST}{name}"));
            fs::copy(self.adapter.join(name), &to).map_err(|error| files::cannot_write(&to, &error))?;
        }
        self.save_adapter(checkpoint)?;
        files::write_json(&checkpoint.join(LOG), &self.log.end())
    }

    /// Records an evaluation after `step` steps, and the adapter if it is the best so far.
    /// Fails when they cannot be written.
    pub fn evaluated(&mut self, step: u64, evaluation: &Evaluation, best: bool) -> Result<()> {
        let metrics = evaluation.by_name();
        let task = self.training.inputs.dataset.name.clone();
        if self.training.recipes.len() == 1 {
            let shown: Vec<String> =
                metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            // The first one is kept whatever it is; where its metric is undefined, it is not better than another.
            let is_best =
                best && evaluation.value(self.training.inputs.metrics[0]).is_some_and(f64::is_finite);
            tracing::info!(
                step,
                task,
                metrics = serde_json::to_string(&metrics)?,
                best = is_best,
                "step {step}: {}{}",
                shown.join(", "),
                if is_best { " (best)" } else { "" }
            );
        }
        self.log.eval(&EvalPoint { step, task, metrics })?;
        if best { self.save_adapter(&self.adapter) } else { Ok(()) }
    }
}
