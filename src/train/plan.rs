//! Settings of a training: those of each run, and those that its runs share.

use std::path::PathBuf;

use super::checkpoint::{MOST_BAD_STEPS, TrainState};
use super::mixture::Part;
use super::optim::Rates;
use super::schedule;
use crate::fault::fault;
use crate::spec::{Every, Metric, Schedule};
use crate::torch::stream::Stream;
use crate::torch::world::World;

/// Settings of one of the k runs.
#[derive(Debug, Clone)]
pub struct RunPlan {
    /// Its name in messages; empty = the only one.
    pub name: String,
    /// Seed of order and dropout.
    pub seed: u64,
    /// Words of the seed's stream drawn before training, by head and adapter, as PyTorch creates them.
    pub drawn: usize,
    /// Peak learning rate of adapter or base.
    pub learning_rate: f64,
    /// Peak learning rate of the head.
    pub head_learning_rate: f64,
    /// Number of optimiser steps.
    pub steps: u64,
    /// Steps of linear warm-up.
    pub warmup: u64,
    /// Shape of the learning rate.
    pub schedule: Schedule,
    /// AdamW's decay.
    pub weight_decay: f64,
    /// Largest gradient norm; 0 = no limit.
    pub max_grad_norm: f64,
    /// Evaluations without improvement before stopping; 0 = off.
    pub patience: u64,
    /// Step at which it pauses with a checkpoint; none from `steps` on.
    pub pause: u64,
    /// Folder of its checkpoints.
    pub checkpoints: PathBuf,
    /// Fingerprint of all that it depends on; a checkpoint with another one is rejected.
    pub fingerprint: String,
    /// Fingerprints that earlier releases would have given it.
    pub earlier: Vec<String>,
}

impl RunPlan {
    /// Returns the learning rates of optimiser step `step`, counted from 0.
    pub(super) fn rates(&self, step: u64) -> Rates {
        let factor = schedule::factor(self.schedule, step, self.warmup, self.steps);
        Rates {
            adapter: self.learning_rate * factor,
            head: self.head_learning_rate * factor,
            weight_decay: self.weight_decay,
        }
    }

    /// Returns how a run in this state ended, if it did.
    pub(super) fn end(&self, TrainState { step, run, .. }: &TrainState) -> Option<RunEnd> {
        if run.has_diverged() {
            Some(RunEnd::Failed(self.diverged(*step)))
        } else if *step >= self.steps {
            Some(RunEnd::Finished)
        } else if run.stopped_early(self.patience) {
            Some(RunEnd::StoppedEarly)
        } else {
            (*step >= self.pause).then_some(RunEnd::Paused)
        }
    }

    /// Returns the error of a run without a finite gradient.
    fn diverged(&self, step: u64) -> anyhow::Error {
        let place = self.checkpoints.display();
        let before = match self.checkpoints.exists() {
            true => format!("; earlier checkpoints are in `{place}`"),
            false => String::new(),
        };
        fault(format!("no finite gradient in {MOST_BAD_STEPS} steps up to step {step}{before}"))
            .hint("lower the learning rates, or set `train.precision` to fp32 or bf16")
            .into()
    }

    /// Returns its noise before the first step.
    pub(super) fn stream(&self) -> Stream {
        let mut stream = Stream::seeded(self.seed);
        stream.pass_over(self.drawn);
        stream
    }

    /// Returns the factor that clips a gradient of this norm, as `torch.nn.utils.clip_grad_norm_`.
    pub(super) fn clip(&self, norm: f64) -> f64 {
        if self.max_grad_norm > 0.0 { (self.max_grad_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }
}

/// How a run's training ended.
#[derive(Debug)]
pub enum RunEnd {
    /// All steps are done.
    Finished,
    /// Evaluations no longer improved.
    StoppedEarly,
    /// It goes on later, from a checkpoint.
    Paused,
    /// Too few others were left: it goes on in another group, from a checkpoint.
    Yielded,
    /// A signal came; a checkpoint was written.
    Interrupted,
    /// It diverged, or could not be evaluated.
    Failed(anyhow::Error),
}

/// The settings of the loop, which its runs share.
#[derive(Debug, Clone)]
pub struct TrainPlan {
    /// The runs trained together.
    pub runs: Vec<RunPlan>,
    /// Examples in one step.
    pub batch_size: usize,
    /// Examples in one forward pass.
    pub micro_batch_size: usize,
    /// Tokens in one forward pass, instead of examples; 0 = by examples.
    pub micro_batch_tokens: usize,
    /// True if the loss is scaled dynamically (fp16).
    pub loss_scaling: bool,
    /// True if each epoch has its own order.
    pub shuffle: bool,
    /// The data sets of a mixture; none if there is one.
    pub mixture: Vec<Part>,
    /// Steps between log points.
    pub log_every: u64,
    /// Interval of evaluations.
    pub evaluate: Every,
    /// The metric that picks the best step.
    pub metric: Metric,
    /// Interval of checkpoints.
    pub checkpoint: Every,
    /// Number of checkpoints to keep.
    pub keep_checkpoints: usize,
    /// True if the runs' examples are computed in one pass; else each run's alone, with the bits that it has alone.
    pub joined: bool,
    /// The processes that train together, each a part of every step.
    pub world: World,
    /// Once others have ended and fewer than so many runs are left, these yield; 0 = never.
    pub fewest: usize,
}
