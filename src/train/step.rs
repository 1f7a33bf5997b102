//! One step: the gradient, the update, and what is noted of both. A CPU decides at once whether a step counts; a GPU decides by itself,
//! and the CPU, which goes ahead, notes it when it next looks.

use std::time::Instant;

use tch::{Kind, Tensor};

use super::optim::Terms;
use super::source::MicroBatch;
use super::{Running, Trainer};
use crate::fault::Result;

/// Most steps that a GPU takes before the CPU looks at their losses.
const MOST_UNSEEN: usize = 100;

/// A step that a GPU decides on.
pub(super) struct Unseen {
    /// Of each run, the number of its step.
    steps: Vec<Option<u64>>,
    /// Loss and norm of each, `[k, 2]` on the device.
    outcome: Tensor,
}

impl Trainer<'_> {
    /// Takes one optimiser step of the `active` runs; returns whether a signal came to another process, or this one of several.
    pub(super) fn step(&mut self, active: &[usize]) -> Result<bool> {
        let start = Instant::now();
        let mut steps = vec![None; self.runs.len()];
        active.iter().for_each(|&run| steps[run] = Some(self.runs[run].state.step));
        let batches = self.source.next(&steps);
        let terms = self.optimizer.device().is_cuda().then(|| self.terms(&steps));
        let (losses, interrupted) = self.gradient(&batches, terms.as_deref())?;
        if terms.is_some() {
            let terms = self.objective.passes().arrived(self.optimizer.device());
            let outcome = self.optimizer.step_ahead(&terms, &losses)?;
            self.unseen.push(Unseen { steps, outcome });
        } else {
            self.update(&steps, &losses)?;
        }
        let shares = self.count(active, &batches);
        if self.looks(active) {
            self.look()?;
        }
        let seconds = start.elapsed().as_secs_f64();
        for (&run, share) in active.iter().zip(shares) {
            let Running { state, window, .. } = &mut self.runs[run];
            state.seconds += seconds * share;
            window.1 += seconds * share;
        }
        if self.unseen.is_empty() {
            self.message = self.told(active);
        }
        self.log(active)?;
        Ok(interrupted)
    }

    /// Returns loss, speed and memory for the progress line.
    fn told(&self, active: &[usize]) -> String {
        let loss = active.iter().map(|&run| self.runs[run].last[0]).sum::<f64>() / active.len() as f64;
        let memory = self.optimizer.devices().peak_memory_mib();
        let speed = self.runs[active[0]].state.examples_per_second();
        format!("loss {loss:.4}, {speed:.0} examples/s, {memory:.0} MiB")
    }

    /// Returns what a GPU decides these steps by.
    fn terms(&self, steps: &[Option<u64>]) -> Vec<f32> {
        let of_run = |(run, step): (usize, &Option<u64>)| {
            let plan = &self.plan.runs[run];
            let (max_norm, scale) = (plan.max_grad_norm, self.runs[run].state.scale.value);
            step.map(|step| Terms { rates: plan.rates(step), max_norm, scale })
        };
        self.optimizer.terms(&steps.iter().enumerate().map(of_run).collect::<Vec<_>>())
    }

    /// Clips and updates the runs that take these steps, except those with a number that is not finite.
    fn update(&mut self, steps: &[Option<u64>], losses: &Tensor) -> Result<()> {
        let norms = self.optimizer.gradient_norms();
        let mut losses: Vec<f64> = Vec::try_from(Tensor::cat(&[losses, &norms], 0).to_kind(Kind::Double))?;
        let mut norms = losses.split_off(self.runs.len());
        let mut rates = vec![None; self.runs.len()];
        let mut factors = vec![1.0; self.runs.len()];
        for (run, step) in steps.iter().enumerate().filter_map(|(run, step)| Some((run, (*step)?))) {
            let (plan, scale) = (&self.plan.runs[run], self.runs[run].state.scale.value);
            norms[run] /= scale;
            factors[run] = plan.clip(norms[run]) / scale;
            let own = plan.rates(step);
            rates[run] = self.note(run, step, [losses[run], norms[run]]).then_some(own);
        }
        self.optimizer.step(&rates, &factors);
        Ok(())
    }

    /// Notes the loss and the norm of a run's step; returns true if it counts: both are finite, and the run has not diverged before.
    fn note(&mut self, run: usize, step: u64, [loss, norm]: [f64; 2]) -> bool {
        let Running { state, last, .. } = &mut self.runs[run];
        if state.run.has_diverged() {
            // A GPU had gone ahead.
            state.step = state.step.min(step);
            return false;
        }
        let is_finite = loss.is_finite() && norm.is_finite();
        *last = [loss, norm];
        state.scale.update(is_finite);
        if is_finite {
            state.run.bad_in_a_row = 0;
            state.run.add_loss(loss);
        } else {
            state.run.skipped += 1;
            state.run.bad_in_a_row += 1;
            let name = &self.plan.runs[run].name;
            let of_run = if name.is_empty() { String::new() } else { format!(" of {name}") };
            tracing::warn!("step {}{of_run}: loss or gradient is not finite, skipped", step + 1);
        }
        is_finite
    }

    /// Looks at what a GPU has done: one copy, which waits for it.
    pub(super) fn look(&mut self) -> Result<()> {
        let unseen = std::mem::take(&mut self.unseen);
        if unseen.is_empty() {
            return Ok(());
        }
        let outcomes = Tensor::stack(&unseen.iter().map(|step| &step.outcome).collect::<Vec<_>>(), 0);
        let numbers: Vec<f64> = Vec::try_from(outcomes.flatten(0, -1))?;
        let (numbers, _) = numbers.as_chunks::<2>();
        for (Unseen { steps, .. }, outcome) in unseen.iter().zip(numbers.chunks(self.runs.len())) {
            for (run, step) in steps.iter().enumerate().filter_map(|(run, step)| Some((run, (*step)?))) {
                if self.note(run, step, outcome[run]) {
                    self.optimizer.count(run);
                }
            }
        }
        Ok(())
    }

    /// Returns true if the CPU is to look at what a GPU has done, after the step just done: where something is told or written, where
    /// the next step depends on it, and from time to time.
    fn looks(&self, active: &[usize]) -> bool {
        let of_run = |&run: &usize| self.logs(run) || self.due(run, self.plan.evaluate) || self.saves(run);
        self.plan.loss_scaling || self.unseen.len() >= MOST_UNSEEN || active.iter().any(of_run)
    }

    /// Counts a step of the `active` runs; returns the share of each, by its tokens.
    fn count(&mut self, active: &[usize], batches: &[MicroBatch]) -> Vec<f64> {
        let of_run = |run: usize| batches.iter().map(|batch| self.source.tokens(&batch[run])).sum::<usize>();
        let tokens: Vec<usize> = (0..self.runs.len()).map(of_run).collect();
        let all = tokens.iter().sum::<usize>().max(1) as f64;
        for &run in active {
            let Running { state, window, .. } = &mut self.runs[run];
            state.step += 1;
            state.examples += batches.iter().map(|batch| batch[run].len() as u64).sum::<u64>();
            state.tokens += tokens[run] as u64;
            window.0 += tokens[run];
        }
        active.iter().map(|&run| tokens[run] as f64 / all).collect()
    }
}
