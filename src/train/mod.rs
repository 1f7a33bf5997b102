//! The training loop: forward, backward, clip, update, log, evaluate, checkpoint. There is one; a [`Task`] supplies
//! batches, loss and metric.

pub mod checkpoint;
pub mod interrupt;
pub mod language;
pub mod optim;
pub mod order;
pub mod plan;
pub mod schedule;
pub mod task;

use std::ops::Range;
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
use checkpoint::{Record, RunState, State};
use optim::{AdamW, Rates};
use order::{Order, steps_per_epoch};
pub use plan::{Plan, RunPlan};
pub use task::Task;

/// Consecutive steps without a finite gradient after which training fails.
const MOST_BAD_STEPS: u64 = 10;

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
    plan: Plan,
    task: &'a dyn Task,
    recorder: &'a mut dyn Recorder,
    optimizer: AdamW,
    orders: Vec<Order>,
    noise: Noise,
    state: State,
    steps_per_epoch: u64,
    /// Tokens and seconds since the last log point.
    window: (usize, f64),
}

impl<'a> Trainer<'a> {
    /// Prepares the loop; with `resume`, from that checkpoint.
    ///
    /// # Errors
    /// When a checkpoint belongs to another run.
    pub fn new(
        plan: Plan,
        task: &'a dyn Task,
        trained: &Trained,
        recorder: &'a mut dyn Recorder,
        resume: Option<checkpoint::Loaded>,
    ) -> Result<Self> {
        let mut optimizer = AdamW::new(trained)?;
        let state = match resume {
            None => State::new(&plan.fingerprint, plan.streams(), plan.loss_scaling),
            Some(loaded) => loaded.restore(&plan, &mut optimizer)?,
        };
        let orders =
            plan.runs.iter().map(|run| Order::new(task.examples(), run.seed, plan.shuffle)).collect();
        let steps_per_epoch = steps_per_epoch(task.examples(), plan.batch_size);
        let noise = Noise::new(state.runs.iter().map(|run| run.noise.clone()).collect());
        Ok(Self { plan, task, recorder, optimizer, orders, noise, state, steps_per_epoch, window: (0, 0.0) })
    }

    /// Trains until the last step, an early stop or a signal.
    ///
    /// # Errors
    /// When libtorch or a file fails, or no gradient is finite any more.
    pub fn run(mut self) -> Result<(Ending, State)> {
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

    /// Returns the runs that have not ended: by their last step, an early stop, or too many steps without a
    /// finite gradient.
    fn active(&self) -> Vec<usize> {
        let ended = |(plan, run): (&RunPlan, &RunState)| {
            self.state.step >= plan.steps
                || run.stopped_early(plan.patience)
                || run.bad_in_a_row >= MOST_BAD_STEPS
        };
        let runs = self.plan.runs.iter().zip(&self.state.runs).enumerate();
        runs.filter(|(_, run)| !ended(*run)).map(|(index, _)| index).collect()
    }

    /// Returns true if an action with this interval is due after the step just done.
    fn due(&self, interval: Every) -> bool {
        match interval {
            Every::Epoch => self.state.step.is_multiple_of(self.steps_per_epoch),
            Every::Steps(n) => self.state.step.is_multiple_of(n.max(1)),
            Every::Never => false,
        }
    }

    /// Takes one optimiser step of the `active` runs; returns the message of the progress line.
    fn step(&mut self, active: &[usize]) -> Result<String> {
        let start = Instant::now();
        let step = self.state.step;
        let size = self.plan.batch_size;
        let batches: Vec<Vec<usize>> = self.orders.iter_mut().map(|order| order.batch(step, size)).collect();
        let (losses, tokens) = self.accumulate(&batches)?;
        let norms = self.optimizer.gradient_norm(self.state.scale.value);
        // One copy from the device; the CPU waits for the step there.
        let mut losses: Vec<f64> = Vec::try_from(Tensor::cat(&[losses, norms], 0).to_kind(Kind::Double))?;
        let norms = losses.split_off(self.plan.runs.len());
        self.update(active, &losses, &norms)?;
        self.state.step += 1;
        let seconds = start.elapsed().as_secs_f64();
        self.state.seconds += seconds;
        self.state.examples += batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
        self.state.tokens += tokens as u64;
        self.window = (self.window.0 + tokens, self.window.1 + seconds);
        self.log(active, &norms)?;
        let shown = losses.first().copied().unwrap_or(f64::NAN);
        let memory = peak_memory_mib(self.optimizer.device());
        Ok(format!("loss {shown:.4}, {:.0} examples/s, {memory:.0} MiB", self.state.examples_per_second()))
    }

    /// Runs forward and backward over the micro batches; returns each run's loss `[k]`, and the tokens computed.
    fn accumulate(&self, batches: &[Vec<usize>]) -> Result<(Tensor, usize)> {
        let divisors: Vec<f64> = batches.iter().map(|batch| self.task.weight(batch)).collect();
        let mut sum: Option<Tensor> = None;
        let mut tokens = 0;
        for range in self.micro_batches(batches) {
            let slices: Vec<Vec<usize>> = batches.iter().map(|batch| batch[range.clone()].to_vec()).collect();
            let done = self.task.backward(&slices, &divisors, self.state.scale.value, &self.noise)?;
            tokens += done.tokens;
            sum = Some(sum.map_or_else(|| done.losses.shallow_clone(), |sum| sum + &done.losses));
        }
        let losses = sum.ok_or_else(|| fault("there are no training examples"))?;
        Ok((losses, tokens))
    }

    /// Splits a step's examples into micro batches by number of examples or of tokens. The split is the same
    /// for all runs, whose steps have equally many examples.
    fn micro_batches(&self, batches: &[Vec<usize>]) -> Vec<Range<usize>> {
        let examples = batches.iter().map(Vec::len).min().unwrap_or(0);
        let tokens = |at: usize| batches.iter().map(|batch| self.task.tokens(batch[at])).max().unwrap_or(0);
        let mut cuts = Vec::new();
        let (mut start, mut filled) = (0, 0);
        for at in 0..examples {
            let full = match self.plan.micro_batch_tokens {
                0 => at - start >= self.plan.micro_batch_size.max(1),
                budget => at > start && filled + tokens(at) > budget,
            };
            if full {
                cuts.push(start..at);
                (start, filled) = (at, 0);
            }
            filled += tokens(at);
        }
        cuts.push(start..examples);
        cuts
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
        if factors.iter().any(|factor| (factor - 1.0).abs() > 0.0) {
            self.optimizer.scale_gradients(&factors);
        }
        self.optimizer.step(&rates);
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
            true => format!("; the checkpoints before it are in `{place}`"),
            false => String::new(),
        };
        Err(fault(format!("no finite gradient in {MOST_BAD_STEPS} steps up to step {step}{before}"))
            .hint("lower the learning rates, or use `train.precision` fp32 or bf16")
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
                epoch: step as f64 / self.steps_per_epoch as f64,
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
        let evaluation = match self.task.evaluate(run) {
            Ok(evaluation) => evaluation,
            Err(error) => return self.end(run, error),
        };
        let value = self.plan.metric.merit(evaluation.value(self.plan.metric).unwrap_or(f64::NAN));
        let epoch = step as f64 / self.steps_per_epoch as f64;
        let record = Record { step, epoch, metrics: evaluation.by_name() };
        let best = self.state.runs[run].note(record, value);
        self.recorder.evaluated(run, step, &evaluation, best)
    }
}
