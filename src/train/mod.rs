//! The training loop: forward, backward, clip, update, log, evaluate, checkpoint. There is one; a [`Task`] supplies
//! batches, loss and metric.

pub mod checkpoint;
pub mod interrupt;
pub mod language;
pub mod optim;
pub mod order;
pub mod schedule;
pub mod task;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::{Kind, Tensor};

use crate::adapters::{Group, Trained};
use crate::eval::Evaluation;
use crate::eval::metrics::Metric;
use crate::fault::{Result, fault};
use crate::nn::Noise;
use crate::report::metrics_log::TrainPoint;
use crate::report::progress::Progress;
use crate::spec::{Every, Schedule};
use crate::torch::peak_memory_mib;
use crate::torch::stream::Stream;
use checkpoint::{Record, State};
use optim::AdamW;
use order::{Order, steps_per_epoch};
pub use task::Task;

/// Consecutive steps without a finite gradient after which training fails.
const MOST_BAD_STEPS: u64 = 10;

/// Seed and peak learning rates of one of the k runs.
#[derive(Debug, Clone, Copy)]
pub struct RunPlan {
    /// Seed of order and dropout.
    pub seed: u64,
    /// Words of the seed's stream drawn before training, by head and adapter, as PyTorch creates them.
    pub drawn: usize,
    /// Peak learning rate of adapter or base.
    pub learning_rate: f64,
    /// Peak learning rate of the head.
    pub head_learning_rate: f64,
}

/// The settings of the loop.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The runs trained together.
    pub runs: Vec<RunPlan>,
    /// Total number of optimiser steps.
    pub steps: u64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Examples in one step.
    pub batch_size: usize,
    /// Examples in one forward pass.
    pub micro_batch_size: usize,
    /// Tokens in one forward pass, instead of examples; 0 = by examples.
    pub micro_batch_tokens: usize,
    /// Shape of the learning rate.
    pub schedule: Schedule,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// Largest gradient norm; 0 = no limit.
    pub max_grad_norm: f64,
    /// True if the loss is scaled dynamically (fp16).
    pub loss_scaling: bool,
    /// True if each epoch has its own order.
    pub shuffle: bool,
    /// Steps between log points.
    pub log_every: u64,
    /// Every of evaluations.
    pub evaluate: Every,
    /// The metric that picks the best step.
    pub metric: Metric,
    /// Evaluations without improvement before stopping; 0 = off.
    pub patience: u64,
    /// Every of checkpoints.
    pub checkpoint: Every,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
    /// Folder of the checkpoints.
    pub checkpoints: PathBuf,
    /// Fingerprint of all that the run depends on; a checkpoint with another one is rejected.
    pub fingerprint: String,
    /// The fingerprint that earlier versions wrote, which ignored the base's `config.json`.
    pub earlier: String,
}

impl Plan {
    /// Returns each run's noise before the first step.
    fn streams(&self) -> Vec<Stream> {
        let stream = |run: &RunPlan| {
            let mut stream = Stream::seeded(run.seed);
            stream.pass_over(run.drawn);
            stream
        };
        self.runs.iter().map(stream).collect()
    }
}

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
        let mut optimizer = AdamW::new(trained, plan.weight_decay)?;
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
        let progress = Progress::new(self.plan.steps, "train", "steps").starting_at(self.state.step);
        let mut ending = Ending::Finished;
        while self.state.step < self.plan.steps && !self.state.stopped_early(self.plan.patience) {
            let message = self.step()?;
            progress.tick(self.state.step, &message);
            let last = self.state.step == self.plan.steps;
            if self.due(self.plan.evaluate) || (last && self.plan.evaluate != Every::Never) {
                self.evaluate()?;
            }
            let interrupted = interrupt::requested();
            if interrupted || (self.due(self.plan.checkpoint) && !last) {
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

    /// Returns true if an action with this interval is due after the step just done.
    fn due(&self, interval: Every) -> bool {
        match interval {
            Every::Epoch => self.state.step.is_multiple_of(self.steps_per_epoch),
            Every::Steps(n) => self.state.step.is_multiple_of(n.max(1)),
            Every::Never => false,
        }
    }

    /// Takes one optimiser step; returns the message of the progress line.
    fn step(&mut self) -> Result<String> {
        let start = Instant::now();
        let step = self.state.step;
        let size = self.plan.batch_size;
        let batches: Vec<Vec<usize>> = self.orders.iter_mut().map(|order| order.batch(step, size)).collect();
        let (losses, tokens) = self.accumulate(&batches)?;
        let norms: Vec<f64> =
            Vec::try_from(self.optimizer.gradient_norm(self.state.scale.value).to_kind(Kind::Double))?;
        let finite = norms.iter().chain(&losses).all(|x| x.is_finite());
        let factor = schedule::factor(self.plan.schedule, step, self.plan.warmup, self.plan.steps);
        self.update(finite, &norms, factor)?;
        self.state.step += 1;
        let seconds = start.elapsed().as_secs_f64();
        self.state.seconds += seconds;
        self.state.examples += batches.iter().map(|batch| batch.len() as u64).sum::<u64>();
        self.state.tokens += tokens as u64;
        self.window = (self.window.0 + tokens, self.window.1 + seconds);
        if finite {
            for (record, loss) in self.state.runs.iter_mut().zip(&losses) {
                record.add_loss(*loss);
            }
        }
        if self.state.step.is_multiple_of(self.plan.log_every) || self.state.step == self.plan.steps {
            self.log(&norms, factor)?;
        }
        let shown = losses.first().copied().unwrap_or(f64::NAN);
        let memory = peak_memory_mib(self.optimizer.device());
        Ok(format!("loss {shown:.4}, {:.0} examples/s, {memory:.0} MiB", self.state.examples_per_second()))
    }

    /// Runs forward and backward over the micro batches; returns each run's loss, and the tokens computed.
    fn accumulate(&self, batches: &[Vec<usize>]) -> Result<(Vec<f64>, usize)> {
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
        Ok((Vec::try_from(losses.to_kind(Kind::Double))?, tokens))
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

    /// Clips and updates, or skips the step if a number is not finite.
    fn update(&mut self, finite: bool, norms: &[f64], factor: f64) -> Result<()> {
        let scale = self.state.scale.value;
        self.state.scale.update(finite);
        if !finite {
            self.optimizer.clear_gradients();
            self.state.skipped += 1;
            self.state.bad_in_a_row += 1;
            tracing::warn!("step {}: loss or gradient is not finite, skipped", self.state.step + 1);
            if self.state.bad_in_a_row < MOST_BAD_STEPS {
                return Ok(());
            }
            let place = self.plan.checkpoints.display();
            let before = match self.plan.checkpoints.exists() {
                true => format!("; the checkpoints before it are in `{place}`"),
                false => String::new(),
            };
            return Err(fault(format!(
                "no finite gradient in {MOST_BAD_STEPS} steps up to step {}{before}",
                self.state.step + 1
            ))
            .hint("lower the learning rates, or use `train.precision` fp32 or bf16")
            .into());
        }
        self.state.bad_in_a_row = 0;
        let limit = self.plan.max_grad_norm;
        // As in `torch.nn.utils.clip_grad_norm_`.
        let clip = |norm: &f64| if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 };
        let factors: Vec<f64> = norms.iter().map(|norm| clip(norm) / scale).collect();
        if factors.iter().any(|factor| (factor - 1.0).abs() > 0.0) {
            self.optimizer.scale_gradients(&factors);
        }
        let runs = &self.plan.runs;
        self.optimizer.step(|group| {
            let rate = |run: &RunPlan| match group {
                Group::Head => run.head_learning_rate,
                Group::Adapter | Group::Base => run.learning_rate,
            };
            runs.iter().map(|run| rate(run) * factor).collect()
        });
        Ok(())
    }

    fn log(&mut self, norms: &[f64], factor: f64) -> Result<()> {
        let (tokens, seconds) = std::mem::take(&mut self.window);
        for (run, (record, plan)) in self.state.runs.iter_mut().zip(&self.plan.runs).enumerate() {
            let point = TrainPoint {
                step: self.state.step,
                epoch: self.state.step as f64 / self.steps_per_epoch as f64,
                loss: record.take_mean_loss(),
                learning_rate: plan.learning_rate * factor,
                head_learning_rate: Some(plan.head_learning_rate * factor),
                grad_norm: norms.get(run).copied().unwrap_or(f64::NAN),
                tokens_per_second: tokens as f64 / seconds.max(f64::MIN_POSITIVE),
            };
            self.recorder.logged(run, &point)?;
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<()> {
        let step = self.state.step;
        // `_BaseDataLoaderIter.__init__` draws a 64-bit seed for workers that do not exist.
        self.noise.pass_over(2);
        for run in 0..self.plan.runs.len() {
            let evaluation = self.task.evaluate(run)?;
            let value = self.plan.metric.merit(evaluation.value(self.plan.metric).unwrap_or(f64::NAN));
            let epoch = step as f64 / self.steps_per_epoch as f64;
            let record = Record { step, epoch, metrics: evaluation.by_name() };
            let best = self.state.runs[run].note(record, value);
            self.recorder.evaluated(run, step, &evaluation, best)?;
        }
        Ok(())
    }
}
