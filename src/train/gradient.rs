//! The gradient of a step: the passes of this process over its part, and the sum over all processes.

use std::collections::BTreeMap;
use std::panic::resume_unwind;

use tch::{Device, Kind, Tensor};

use super::optim::AdamW;
use super::share::Portion;
use super::source::MicroBatch;
use super::{Running, Trainer, interrupt};
use crate::fault::{Result, fault};
use crate::nn::Around;
use crate::torch::world::World;
use crate::torch::{caught, empty_cache, lacks_memory, unforeseen};

impl Trainer<'_> {
    /// Computes the gradient of a step, with the first pass of which `beside` goes to a GPU; returns each run's loss `[k]` on the device,
    /// and true if a signal came to one of several processes.
    pub(super) fn gradient(&self, batches: &[MicroBatch], beside: Option<&[f32]>) -> Result<(Tensor, bool)> {
        let losses = self.with_room(|| {
            beside.into_iter().for_each(|numbers| self.objective.passes().send_along(numbers.to_vec()));
            let losses = self.accumulate(batches)?;
            self.optimizer.require_room()?;
            Ok(losses)
        })?;
        if self.plan.world.is_alone() {
            return Ok((losses, false));
        }
        let signal = Tensor::from_slice(&[f64::from(u8::from(interrupt::requested()))]);
        let sums = Tensor::cat(&[losses.to_device(Device::Cpu), signal], 0);
        self.optimizer.all_reduce(&self.plan.world, &sums)?;
        let runs = self.runs.len() as i64;
        let losses = sums.narrow(0, 0, runs).to_device(self.optimizer.device());
        Ok((losses, sums.double_value(&[runs]) > 0.0))
    }

    /// Runs `work`; if recordings of passes have left it too little memory, again without them: with the same noise, and with gradients
    /// of zero.
    pub(super) fn with_room<T>(&self, work: impl Fn() -> Result<T>) -> Result<T> {
        let (passes, streams) = (self.objective.passes(), self.noise.streams());
        let ended = caught(&work);
        // Also those that were made just now.
        if !lacks_memory(&ended) || !passes.has_recordings() {
            return ended.unwrap_or_else(|panic| resume_unwind(panic));
        }
        tracing::warn!(
            "memory ran out beside recorded passes: going on without recording any, which makes short ones slower"
        );
        passes.cease();
        empty_cache(self.optimizer.device())?;
        self.noise.restore(streams);
        self.optimizer.clear_gradients();
        work()
    }

    /// Runs forward and backward over this process's part of the micro batches; returns its part of each run's loss `[k]`.
    fn accumulate(&self, batches: &[MicroBatch]) -> Result<Tensor> {
        let runs = self.runs.len();
        let weight =
            |run: usize| -> f64 { batches.iter().map(|batch| self.objective.weight(&batch[run])).sum() };
        let has_rows = |run: usize| batches.iter().any(|batch| !batch[run].is_empty());
        let divisors: Vec<f64> = (0..runs).map(|run| if has_rows(run) { weight(run) } else { 1.0 }).collect();
        let scales: Vec<f64> = self.runs.iter().map(|run| run.state.scale.value).collect();
        let device = self.optimizer.device();
        let mut sum: Option<Tensor> = None;
        for Portion { own, around } in self.share.of(batches, |example| self.source.tokens(&[example])) {
            let elsewhere = |run: &usize| own[*run].is_empty() && around[*run].longest > 0;
            for run in (0..runs).filter(elsewhere) {
                self.noise.skip_pass(run, around[run], self.sites, device);
            }
            if own.iter().all(Vec::is_empty) {
                continue;
            }
            let passes = if self.plan.joined { vec![own] } else { each_alone(&own) };
            for pass in passes {
                let of_pass = pass.iter().zip(&around);
                let of_pass =
                    of_pass.map(|(own, around)| if own.is_empty() { Around::default() } else { *around });
                self.noise.surround(of_pass.collect());
                let losses = self.objective.backward(&pass, &divisors, &scales, &self.noise)?;
                sum = Some(sum.map_or_else(|| losses.shallow_clone(), |sum| sum + &losses));
            }
        }
        match sum {
            None if batches.is_empty() => Err(fault("there are no training examples").into()),
            None => Ok(Tensor::zeros([runs as i64], (Kind::Double, device))),
            Some(sum) => Ok(sum),
        }
    }
}

/// Lets all processes begin with the state of the first one, which alone has the checkpoints.
pub(super) fn begin_alike(world: &World, runs: &mut [Running], optimizer: &mut AdamW) -> Result<()> {
    for (i, run) in runs.iter_mut().enumerate() {
        let state = run.state.clone();
        run.state = world.on_first(|| Ok(state))?;
        run.begun = run.state.seconds;
        let tensors = optimizer.state(i).into_iter().map(|(name, tensor)| {
            let values = tensor.to_device(Device::Cpu).copy();
            world.broadcast(&values, 0).map(|()| (name, values))
        });
        let tensors: BTreeMap<String, Tensor> = tensors.collect::<Result<_>>()?;
        if !world.is_first() {
            let of = |name: &str| tensors.get(name).map(Tensor::shallow_clone);
            optimizer.restore(i, |name| of(name).ok_or_else(|| unforeseen(name).into()))?;
        }
    }
    Ok(())
}

/// Returns a micro batch of several runs as one for each that has examples.
fn each_alone(batch: &MicroBatch) -> Vec<MicroBatch> {
    let only = |run: usize| {
        let mut alone = vec![Vec::new(); batch.len()];
        alone[run].clone_from(&batch[run]);
        alone
    };
    (0..batch.len()).filter(|&run| !batch[run].is_empty()).map(only).collect()
}
