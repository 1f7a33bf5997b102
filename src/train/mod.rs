//! The training loop: forward, backward, clip, update, log, evaluate, checkpoint. There is one; a
//! [`BatchSource`] supplies the examples of each step, an [`Objective`] their loss and the metrics.

pub mod checkpoint;
pub mod interrupt;
pub mod language;
pub mod mixture;
pub mod objective;
pub mod optim;
pub mod order;
pub mod plan;
pub mod recorded;
pub mod schedule;
pub mod source;

use std::path::Path;
use std::time::Instant;

use tch::{Kind, Tensor};

use crate::adapters::Trained;
use crate::eval::Evaluation;
use crate::fault::{Result, fault};
use crate::nn::Noise;
use crate::report::metrics_log::TrainPoint;
use crate::report::progress::Progress;
use crate::spec::Every;
use crate::torch::peak_memory_mib;
use checkpoint::{EvalRecord, TrainState};
pub use objective::Objective;
use optim::{AdamW, Rates};
use plan::MOST_BAD_STEPS;
pub use plan::{RunPlan, TrainPlan};
use source::{BatchSource, MicroBatch};

/// Receives and records the loop's progress.
pub trait Recorder {
    /// Records a log point of run `run`.
    ///
    /// # Errors
    /// When it cannot be written.
    fn logged(&mut self, run: usize, point: &TrainPoint) -> Result<()>;

    /// Saves what it needs to resume from here into a checkpoint's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    fn keep(&self, _checkpoint: &Path) -> Result<()> {
        Ok(())
    }

    /// Records an evaluation of run `run` after `step` steps; `best` is true if it is the best so far.
    ///
    /// # Errors
    /// When it cannot be written.
    fn evaluated(&mut self, run: usize, step: u64, evaluation: &Evaluation, best: bool) -> Result<()>;
}

/// Outcome of a training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All steps done, or stopped early.
    Finished,
    /// A signal came; a checkpoint was written.
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
    state: TrainState,
    /// Tokens and seconds since the last log point.
    window: (usize, f64),
}

impl<'a> Trainer<'a> {
    /// Prepares the loop; with `resume`, from that checkpoint.
    ///
    /// # Errors
    /// When a checkpoint belongs to another run.
    pub fn new(
        plan: TrainPlan,
        objective: &'a dyn Objective,
        trained: &Trained,
        recorder: &'a mut dyn Recorder,
        resume: Option<checkpoint::Loaded>,
    ) -> Result<Self> {
        let mut optimizer = AdamW::new(trained)?;
        let state = match resume {
            None => TrainState::new(&plan.fingerprint, plan.streams(), plan.loss_scaling),
            Some(loaded) => loaded.restore(&plan, &mut optimizer)?,
        };
        let source = BatchSource::new(&plan, objective.lengths());
        let noise = Noise::new(state.runs.iter().map(|run| run.noise.clone()).collect());
        Ok(Self { plan, objective, recorder, optimizer, source, noise, state, window: (0, 0.0) })
    }

    /// Trains until the last step, an early stop or a signal.
    ///
    /// # Errors
    /// When libtorch or a file fails, or no gradient is finite any more.
    pub fn run(mut self) -> Result<(Ending, TrainState)> {
        let steps = self.plan.steps();
        let progress = Progress::new(steps, "train", "steps").starting_at(self.state.step);
        let mut ending = Ending::Finished;
        loop {
            let active = self.active();
            if active.is_empty() {
                break;
            }
            let message = self.step(&active)?;
            progress.tick(self.state.step, &message);
            for run in active {
                let last = self.state.step == self.plan.runs[run].steps;
                if self.due(self.plan.evaluate) || (last && self.plan.evaluate != Every::Never) {
                    self.evaluate(run)?;
                }
            }
            let interrupted = interrupt::requested();
            if interrupted || (self.due(self.plan.checkpoint) && self.state.step < steps) {
                let keep = self.plan.keep_checkpoints;
                for (run, noise) in self.state.runs.iter_mut().zip(self.noise.streams()) {
                    run.noise = noise;
                }
                let beside = |folder: &Path| self.recorder.keep(folder);
                checkpoint::save(&self.plan.checkpoints, &self.state, &self.optimizer, keep, &beside)?;
            }
            if interrupted {
                ending = Ending::Interrupted;
                break;
            }
        }
        progress.finish();
        Ok((ending, self.state))
    }

    /// Returns the runs that have not ended.
    fn active(&self) -> Vec<usize> {
        let runs = self.plan.runs.iter().zip(&self.state.runs).enumerate();
        runs.filter(|(_, (plan, run))| !plan.has_ended(self.state.step, run))
            .map(|(index, _)| index)
            .collect()
    }

    /// Returns true if an action with this interval is due after the step just done.
    fn due(&self, interval: Every) -> bool {
        match interval {
            Every::Epoch => self.state.step.is_multiple_of(self.source.steps_per_epoch()),
            Every::Steps(n) => self.state.step.is_multiple_of(n.max(1)),
            Every::Never => false,
        }
    }

    /// Takes one optimiser step of the `active` runs; returns the message of the progress line.
    fn step(&mut self, active: &[usize]) -> Result<String> {
        let start = Instant::now();
        let batches = self.source.next(self.state.step);
        let (losses, tokens) = self.accumulate(&batches)?;
        let norms = self.optimizer.gradient_norm(self.state.scale.value);
        // One copy from the device; the CPU waits for the step there.
        let mut losses: Vec<f64> = Vec::try_from(Tensor::cat(&[losses, norms], 0).to_kind(Kind::Double))?;
        let norms = losses.split_off(self.plan.runs.len());
        self.update(active, &losses, &norms)?;
        self.state.step += 1;
        let seconds = start.elapsed().as_secs_f64();
        self.state.seconds += seconds;
        self.state.examples += batches.iter().flatten().map(|run| run.len() as u64).sum::<u64>();
        self.state.tokens += tokens as u64;
        self.window = (self.window.0 + tokens, self.window.1 + seconds);
        self.log(active, &norms)?;
        let shown = losses.first().copied().unwrap_or(f64::NAN);
        let memory = peak_memory_mib(self.optimizer.device());
        Ok(format!("loss {shown:.4}, {:.0} examples/s, {memory:.0} MiB", self.state.examples_per_second()))
    }

    /// Runs forward and backward over the micro batches; returns each run's loss `[k]`, and the tokens computed.
    fn accumulate(&self, batches: &[MicroBatch]) -> Result<(Tensor, usize)> {
        let weight = |run: usize| batches.iter().map(|batch| self.objective.weight(&batch[run])).sum();
        let divisors: Vec<f64> = (0..self.plan.runs.len()).map(weight).collect();
        let mut sum: Option<Tensor> = None;
        let mut tokens = 0;
        for batch in batches {
            let done = self.objective.backward(batch, &divisors, self.state.scale.value, &self.noise)?;
            tokens += done.tokens;
            sum = Some(sum.map_or_else(|| done.losses.shallow_clone(), |sum| sum + &done.losses));
        }
        let losses = sum.ok_or_else(|| fault("there are no training examples"))?;
        Ok((losses, tokens))
    }

    /// Clips and updates the `active` runs, except those with a number that is not finite.
    fn update(&mut self, active: &[usize], losses: &[f64], norms: &[f64]) -> Result<()> {
        let scale = self.state.scale.value;
        let mut rates = vec![None; self.plan.runs.len()];
        let mut bad = Vec::new();
        for &run in active {
            let state = &mut self.state.runs[run];
            if losses[run].is_finite() && norms[run].is_finite() {
                rates[run] = Some(self.plan.runs[run].rates(self.state.step));
                state.bad_in_a_row = 0;
                state.add_loss(losses[run]);
            } else {
                state.skipped += 1;
                state.bad_in_a_row += 1;
                bad.push(run);
            }
        }
        self.state.scale.update(bad.is_empty());
        self.refuse_bad(&bad)?;
        let factors: Vec<f64> =
            self.plan.runs.iter().zip(norms).map(|(run, norm)| run.clip(*norm) / scale).collect();
        self.optimizer.step(&rates, &factors)?;
        Ok(())
    }

    /// Warns of the runs whose step is skipped.
    ///
    /// # Errors
    /// When no run is left that has not skipped too many in a row.
    fn refuse_bad(&self, bad: &[usize]) -> Result<()> {
        let step = self.state.step + 1;
        let several = self.plan.runs.len() > 1;
        for run in bad {
            let of_run = if several { format!(" of run {run}") } else { String::new() };
            tracing::warn!("step {step}{of_run}: loss or gradient is not finite, skipped");
            if several && self.state.runs[*run].bad_in_a_row >= MOST_BAD_STEPS {
                tracing::warn!("run {run} ends: no finite gradient in {MOST_BAD_STEPS} steps");
            }
        }
        if bad.is_empty() || self.state.runs.iter().any(|run| run.bad_in_a_row < MOST_BAD_STEPS) {
            return Ok(());
        }
        let place = self.plan.checkpoints.display();
        let before = match self.plan.checkpoints.exists() {
            true => format!("; earlier checkpoints are in `{place}`"),
            false => String::new(),
        };
        Err(fault(format!("no finite gradient in {MOST_BAD_STEPS} steps up to step {step}{before}"))
            .hint("lower the learning rates, or set `train.precision` to fp32 or bf16")
            .into())
    }

    /// Records a log point of the `active` runs that have one after the step just done.
    fn log(&mut self, active: &[usize], norms: &[f64]) -> Result<()> {
        let step = self.state.step;
        let due = step.is_multiple_of(self.plan.log_every);
        let logged: Vec<usize> =
            active.iter().copied().filter(|&run| due || step == self.plan.runs[run].steps).collect();
        if logged.is_empty() {
            return Ok(());
        }
        let (tokens, seconds) = std::mem::take(&mut self.window);
        for run in logged {
            let Rates { adapter, head, .. } = self.plan.runs[run].rates(step - 1);
            let point = TrainPoint {
                step,
                epoch: step as f64 / self.source.steps_per_epoch() as f64,
                loss: self.state.runs[run].take_mean_loss(),
                learning_rate: adapter,
                head_learning_rate: Some(head),
                grad_norm: norms.get(run).copied().unwrap_or(f64::NAN),
                tokens_per_second: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            };
            self.recorder.logged(run, &point)?;
        }
        Ok(())
    }

    /// Ends a run whose model cannot be evaluated, such as one without finite logits.
    ///
    /// # Errors
    /// The given one, if no run is left.
    fn end(&mut self, run: usize, error: anyhow::Error) -> Result<()> {
        self.state.runs[run].bad_in_a_row = MOST_BAD_STEPS;
        if self.state.runs.iter().all(|run| run.bad_in_a_row >= MOST_BAD_STEPS) {
            return Err(error);
        }
        tracing::warn!("run {run} ends: {error:#}");
        Ok(())
    }

    /// Evaluates a run.
    fn evaluate(&mut self, run: usize) -> Result<()> {
        let step = self.state.step;
        // `_BaseDataLoaderIter.__init__` draws a 64-bit seed for workers that do not exist.
        self.noise.pass_over(run, 2);
        let evaluation = match self.objective.evaluate(run) {
            Ok(evaluation) => evaluation,
            Err(error) => return self.end(run, error),
        };
        let value = self.plan.metric.merit(evaluation.value(self.plan.metric).unwrap_or(f64::NAN));
        let epoch = step as f64 / self.source.steps_per_epoch() as f64;
        let record = EvalRecord { step, epoch, metrics: evaluation.by_name() };
        let best = self.state.runs[run].note(record, value);
        self.recorder.evaluated(run, step, &evaluation, best)
    }
}
