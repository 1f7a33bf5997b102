//! The training loop: forward, backward, clip, update, log, evaluate, checkpoint. There is one; a
//! [`BatchSource`] supplies the examples of each step, an [`Objective`] their loss and the metrics.

pub mod checkpoint;
mod gradient;
pub mod interrupt;
pub mod language;
pub mod mixture;
pub mod objective;
pub mod optim;
pub mod order;
pub mod plan;
pub mod recorded;
pub mod schedule;
pub mod share;
pub mod source;
mod step;
pub mod trial;

use std::path::Path;

use tch::Device;

use crate::adapters::Trained;
use crate::eval::Evaluation;
use crate::fault::{Fault, Result};
use crate::nn::{Noise, Sites};
use crate::report::metrics_log::TrainPoint;
use crate::report::progress::Progress;
use crate::spec::Every;
use crate::torch::stream::Stream;
use checkpoint::{EvalRecord, TrainState};
pub use objective::Objective;
use optim::{AdamW, Rates};
pub use plan::{RunEnd, RunPlan, TrainPlan};
use share::Share;
use source::BatchSource;
use step::Unseen;

/// Receives and records the loop's progress.
pub trait Recorder {
    /// Records a log point of run `run`.
    ///
    /// # Errors
    /// When it cannot be written.
    fn logged(&mut self, _run: usize, _point: &TrainPoint) -> Result<()> {
        Ok(())
    }

    /// Saves what run `run` needs to resume from here into a checkpoint's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    fn keep(&self, _run: usize, _checkpoint: &Path) -> Result<()> {
        Ok(())
    }

    /// Records an evaluation of run `run` after `step` steps; `best` is true if it is the best so far.
    ///
    /// # Errors
    /// When it cannot be written.
    fn evaluated(&mut self, _run: usize, _step: u64, _evaluation: &Evaluation, _best: bool) -> Result<()> {
        Ok(())
    }

    /// Records that run `run` ended, while others go on; `share` is its part of the training time of all runs so far.
    ///
    /// # Errors
    /// When it cannot be written.
    fn ended(&mut self, _run: usize, _state: &TrainState, _share: f64, _end: &RunEnd) -> Result<()> {
        Ok(())
    }
}

/// Outcome of work that a signal may end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All of it was done.
    Finished,
    /// A signal came.
    Interrupted,
}

/// A training in progress.
pub struct Trainer<'a> {
    plan: TrainPlan,
    objective: &'a dyn Objective,
    recorder: &'a mut dyn Recorder,
    optimizer: AdamW,
    source: BatchSource,
    noise: Noise,
    share: Share,
    /// What a pass draws for, where others draw it.
    sites: Sites,
    runs: Vec<Running>,
    /// Steps that a GPU has taken and the CPU has not looked at.
    unseen: Vec<Unseen>,
    /// Loss, speed and memory when it last looked.
    message: String,
}

/// One of the k runs.
struct Running {
    state: TrainState,
    /// Its seconds of training before.
    begun: f64,
    /// Tokens and seconds since the last log point.
    window: (usize, f64),
    /// Loss and norm of the last step that was looked at.
    last: [f64; 2],
    end: Option<RunEnd>,
}

impl<'a> Trainer<'a> {
    /// Prepares the loop; each run starts anew, or from its checkpoint in `resume`.
    ///
    /// # Errors
    /// When a checkpoint belongs to another run.
    pub fn new(
        plan: TrainPlan,
        objective: &'a dyn Objective,
        trained: &Trained,
        recorder: &'a mut dyn Recorder,
        resume: Vec<Option<checkpoint::Loaded>>,
    ) -> Result<Self> {
        let mut optimizer = AdamW::new(trained)?;
        let mut runs = Vec::new();
        let loaded = resume.into_iter().chain(std::iter::repeat_with(|| None));
        for ((i, run), loaded) in plan.runs.iter().enumerate().zip(loaded) {
            let state = match loaded {
                None => TrainState::new(&run.fingerprint, run.stream(), plan.loss_scaling),
                Some(loaded) => loaded.restore(run, i, &mut optimizer)?,
            };
            let begun = state.seconds;
            runs.push(Running { state, begun, window: (0, 0.0), last: [f64::NAN; 2], end: None });
        }
        let mut sites = Sites::default();
        runs.iter_mut().for_each(|run: &mut Running| run.state.processes = plan.world.size());
        if !plan.world.is_alone() {
            gradient::begin_alike(&plan.world, &mut runs, &mut optimizer)?;
            if optimizer.device() == Device::Cpu {
                sites = trial::sites(objective, runs.len())?;
                optimizer.clear_gradients();
            }
        }
        let source = BatchSource::new(&plan, objective.lengths());
        let noise = Noise::new(runs.iter().map(|run| run.state.run.noise.clone()).collect());
        let [rank, size] = [plan.world.rank(), plan.world.size()];
        let share = Share { rank, size, whole: optimizer.device().is_cuda() };
        let (unseen, message) = (Vec::new(), String::new());
        Ok(Self { plan, objective, recorder, optimizer, source, noise, share, sites, runs, unseen, message })
    }

    /// Trains until every run has ended; returns how, with its counters.
    ///
    /// # Errors
    /// When libtorch or a file fails.
    pub fn run(mut self) -> Result<Vec<(TrainState, RunEnd)>> {
        let last = |run: &RunPlan| run.steps.min(run.pause);
        let label = if self.plan.runs.len() > 1 { "train together" } else { "train" };
        let progress = Progress::new(self.plan.runs.iter().map(last).sum(), label, "steps");
        let progress = progress.starting_at(self.steps_done());
        loop {
            let active = self.active()?;
            if active.is_empty() {
                break;
            }
            if active.len() < self.plan.fewest.min(self.runs.len()) {
                self.look()?;
                let going = self.going(&active);
                self.save(&going, self.noise.streams())?;
                for run in going {
                    self.end(run, RunEnd::Yielded)?;
                }
                self.active()?;
                break;
            }
            let before = self.noise.streams();
            let interrupted = match self.step(&active) {
                Ok(done) => done,
                // What the others lost with their process ends here, and goes on later.
                Err(error) if !self.plan.world.is_alone() => {
                    self.save(&active, before)?;
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            progress.tick(self.steps_done(), &self.message);
            for run in self.going(&active) {
                let last = self.runs[run].state.step == self.plan.runs[run].steps;
                if self.due(run, self.plan.evaluate) || (last && self.plan.evaluate != Every::Never) {
                    self.evaluate(run)?;
                }
            }
            let interrupted = interrupted || self.plan.world.is_alone() && interrupt::requested();
            if interrupted {
                self.look()?;
            }
            let mut saved = self.going(&active);
            saved.retain(|&run| interrupted || self.saves(run));
            self.save(&saved, self.noise.streams())?;
            if interrupted {
                for run in saved {
                    self.end(run, RunEnd::Interrupted)?;
                }
            }
        }
        progress.finish();
        Ok(self.runs.into_iter().map(|run| (run.state, run.end.unwrap_or(RunEnd::Finished))).collect())
    }

    fn steps_done(&self) -> u64 {
        self.runs.iter().map(|run| run.state.step).sum()
    }

    /// Returns the runs that go on, after telling of those that have ended.
    fn active(&mut self) -> Result<Vec<usize>> {
        for run in 0..self.runs.len() {
            if let Some(end) = self.plan.runs[run].end(&self.runs[run].state) {
                self.end(run, end)?;
            }
        }
        Ok((0..self.runs.len()).filter(|&run| self.runs[run].end.is_none()).collect())
    }

    /// Returns those of the runs that have not diverged.
    fn going(&self, runs: &[usize]) -> Vec<usize> {
        runs.iter().copied().filter(|&run| !self.runs[run].state.run.has_diverged()).collect()
    }

    /// Ends a run, unless it has ended.
    fn end(&mut self, run: usize, end: RunEnd) -> Result<()> {
        let own = |run: &Running| run.state.seconds - run.begun;
        let all: f64 = self.runs.iter().map(own).sum();
        let share = if all > 0.0 { own(&self.runs[run]) / all } else { 1.0 / self.runs.len() as f64 };
        let Running { state, end: ended, .. } = &mut self.runs[run];
        if ended.is_none() {
            self.recorder.ended(run, state, share, ended.insert(end))?;
        }
        Ok(())
    }

    /// Returns true if an action with this interval is due after the run's step just done.
    fn due(&self, run: usize, interval: Every) -> bool {
        let step = self.runs[run].state.step;
        match interval {
            Every::Epoch => step.is_multiple_of(self.source.steps_per_epoch()),
            Every::Steps(n) => step.is_multiple_of(n.max(1)),
            Every::Never => false,
        }
    }

    /// Returns true if the run needs a checkpoint after the step just done.
    fn saves(&self, run: usize) -> bool {
        let (step, plan) = (self.runs[run].state.step, &self.plan.runs[run]);
        step < plan.steps && (step == plan.pause || self.due(run, self.plan.checkpoint))
    }

    /// Writes checkpoints of these runs, whose noise goes on from these streams.
    fn save(&mut self, saved: &[usize], noise: Vec<Stream>) -> Result<()> {
        if !saved.is_empty() {
            self.look()?;
        }
        for (run, noise) in self.runs.iter_mut().zip(noise) {
            run.state.run.noise = noise;
        }
        if !self.plan.world.is_first() {
            return Ok(());
        }
        for &run in saved {
            let (state, folder) = (&self.runs[run].state, &self.plan.runs[run].checkpoints);
            let beside = |folder: &Path| self.recorder.keep(run, folder);
            let keep = self.plan.keep_checkpoints;
            checkpoint::save(folder, state, &self.optimizer.state(run), keep, &beside)?;
        }
        Ok(())
    }

    /// Returns true if the run has a log point after the step just done.
    fn logs(&self, run: usize) -> bool {
        let step = self.runs[run].state.step;
        step.is_multiple_of(self.plan.log_every) || step == self.plan.runs[run].steps
    }

    /// Records a log point of the `active` runs that have one after the step just done.
    fn log(&mut self, active: &[usize]) -> Result<()> {
        for run in active.iter().copied().filter(|&run| self.logs(run)).collect::<Vec<_>>() {
            let (plan, Running { state, window, last, .. }) = (&self.plan.runs[run], &mut self.runs[run]);
            let step = state.step;
            let (tokens, seconds) = std::mem::take(window);
            let Rates { adapter, head, .. } = plan.rates(step - 1);
            let point = TrainPoint {
                step,
                epoch: step as f64 / self.source.steps_per_epoch() as f64,
                loss: state.run.take_mean_loss(),
                learning_rate: adapter,
                head_learning_rate: Some(head),
                grad_norm: last[1],
                tokens_per_second: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            };
            self.recorder.logged(run, &point)?;
        }
        Ok(())
    }

    /// Evaluates a run. One whose model cannot be evaluated, such as one without finite logits, ends.
    fn evaluate(&mut self, run: usize) -> Result<()> {
        let step = self.runs[run].state.step;
        // `_BaseDataLoaderIter.__init__` draws a 64-bit seed for workers that do not exist.
        self.noise.pass_over(run, 2);
        let alone = self.plan.world.is_alone();
        let scored = || self.objective.evaluate(run);
        // Others would wait for what is scored again.
        let evaluation = match if alone { self.with_room(scored) } else { scored() } {
            Ok(evaluation) => evaluation,
            // Anything else than a judgement of the model, such as a lack of memory, is no failure of the run.
            Err(error) if error.is::<Fault>() => return self.end(run, RunEnd::Failed(error)),
            Err(error) => return Err(error),
        };
        let value = self.plan.metric.merit(evaluation.value(self.plan.metric).unwrap_or(f64::NAN));
        let epoch = step as f64 / self.source.steps_per_epoch() as f64;
        let record = EvalRecord { step, epoch, metrics: evaluation.by_name() };
        let best = self.runs[run].state.run.note(record, value);
        self.recorder.evaluated(run, step, &evaluation, best)
    }
}
