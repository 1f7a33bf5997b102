//! The folder of a run: log, best adapter, tokenizer files.

use std::path::{Path, PathBuf};

use super::Session;
use crate::adapters::file::{self, WEIGHTS};
use crate::eval::Evaluation;
use crate::fault::Result;
use crate::files;
use crate::report::metrics_log::{EvalPoint, MetricsLog, TrainPoint};
use crate::train::Recorder;
use crate::train::checkpoint::State;

/// A run folder, open for writing.
pub struct RunFolder<'a> {
    session: &'a Session,
    adapter: PathBuf,
    log: MetricsLog,
}

impl<'a> RunFolder<'a> {
    /// Opens the folder for a fresh run, or for one that goes on after step `resumed`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn open(session: &'a Session, out: &Path, resumed: Option<u64>) -> Result<Self> {
        let adapter = out.join("adapter");
        for path in session.opened.tokenizer.files() {
            if let Some(name) = path.file_name() {
                files::write_bytes(&adapter.join(name), &files::read_bytes(path)?)?;
            }
        }
        Ok(Self { session, adapter, log: MetricsLog::open(out, resumed)? })
    }

    fn save_adapter(&self) -> Result<()> {
        let session = self.session;
        file::save(&self.adapter, &session.adapter, &session.trained, 0, &session.kept)
    }

    /// Writes the last adapter where no evaluation has picked a best one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&self, state: &State) -> Result<()> {
        let picked = state.runs.iter().any(|run| run.best.is_some());
        if picked && self.adapter.join(WEIGHTS).exists() { Ok(()) } else { self.save_adapter() }
    }
}

impl Recorder for RunFolder<'_> {
    fn logged(&mut self, _run: usize, point: &TrainPoint) -> Result<()> {
        self.log.train(point)
    }

    fn evaluated(&mut self, _run: usize, step: u64, evaluation: &Evaluation, best: bool) -> Result<()> {
        let metrics = evaluation.by_name();
        let task = self.session.opened.dataset.name.clone();
        let shown: Vec<String> = metrics.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        tracing::info!("step {step}: {}{}", shown.join(", "), if best { " (best)" } else { "" });
        self.log.eval(&EvalPoint { step, task, metrics })?;
        if best { self.save_adapter() } else { Ok(()) }
    }
}
