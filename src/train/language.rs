//! The objective of a language model: the loss of responses after their prompts.

use tch::{Kind, Tensor};

use super::objective::Objective;
use super::recorded::Passes;
use crate::data::Example;
use crate::eval::Evaluation;
use crate::eval::language::{Batch, BatchLayout, evaluate, in_chunks, losses_backward, target_count};
use crate::fault::Result;
use crate::models::CausalLm;
use crate::nn::layout::Fill;
use crate::nn::{Noise, Pass};
use crate::torch::world::World;

/// Prediction of the next token, scored on target tokens.
#[derive(Debug)]
pub struct LanguageModelling<'a> {
    /// The model.
    pub model: &'a CausalLm,
    /// Examples to train on.
    pub train: &'a [Example],
    /// Examples to score.
    pub validation: &'a [Example],
    /// Tokens in one evaluation pass.
    pub eval_batch_tokens: usize,
    /// True if activations are recomputed in the backward pass.
    pub recompute: bool,
    /// The processes that share evaluations.
    pub world: World,
    /// Tokens of the longest example.
    pub longest: i64,
    /// Recordings of passes on a GPU.
    pub passes: Passes,
}

/// Largest product of a pass's tokens and the trunk's bytes whose launches take a CPU longer than a GPU needs for the products: about
/// 4 operations a number and token at 7e14 a second, and 20 ms for the launches.
const MOST_RECORDED: f64 = 7e12;

impl LanguageModelling<'_> {
    /// Computes losses of the targets after `hidden` `[T, d]`, by run as `divisors`, and the gradient of `hidden`, on the device of
    /// the logits. Each chunk of these is freed before the next is made.
    fn output_layer(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        [divisors, scales]: [&Tensor; 2],
    ) -> Result<(Tensor, Tensor)> {
        let device = self.model.logits_device();
        let [hidden, divisors, scales, runs, targets] =
            [&hidden.detach(), divisors, scales, &batch.runs, &batch.targets].map(|x| x.to_device(device));
        let shares = divisors.reciprocal().index_select(0, &runs); // [T]
        let weights = &shares * scales.index_select(0, &runs);
        let (sums, mut gradients) = (divisors.zeros_like().to_kind(Kind::Double), Vec::new());
        in_chunks(targets.size()[0], self.model.config.vocabulary, |start, count| {
            let part = |x: &Tensor| x.narrow(0, start, count);
            let (losses, gradient) =
                losses_backward(self.model, &part(&hidden), &part(&targets), &part(&weights))?;
            let shared = (losses * part(&shares)).to_kind(Kind::Double);
            let _ = sums.shallow_clone().index_add_(0, &part(&runs), &shared);
            gradients.push(gradient);
            Ok(())
        })?;
        Ok((sums, Tensor::cat(&gradients, 0)))
    }
}

impl LanguageModelling<'_> {
    /// Returns what fills up a batch: on a GPU, where recording pays and attention is one kernel over boundaries.
    fn fill(&self, runs: &[Vec<&Example>]) -> Fill {
        let tokens: usize = runs.iter().flatten().map(|example| example.ids.len()).sum();
        let pays = self.model.device().is_cuda()
            && !self.recompute
            && runs.len() == 1
            && self.model.attends_in_one_kernel(true)
            && tokens as f64 * self.model.bytes() as f64 <= MOST_RECORDED;
        if pays { Fill::Sequences(self.longest) } else { Fill::None }
    }

    /// Runs forward and backward; `numbers` holds the divisors of the runs and of what fills them up `[k + 1]`, and as many scales.
    /// Returns losses `[k]`.
    fn forward_and_backward(&self, batch: &Batch, numbers: &Tensor, pass: &Pass) -> Result<Tensor> {
        let each = numbers.numel() as i64 / 2;
        let [divisors, scales] = [0, each].map(|start| numbers.narrow(0, start, each));
        let (hidden, tape) = if self.recompute {
            let (hidden, tape) = self.model.hidden_recomputed(&batch.packed, pass)?;
            (hidden, Some(tape))
        } else {
            (self.model.hidden(&batch.packed, pass)?, None)
        };
        let before_targets = hidden.index_select(0, &batch.before.to_device(hidden.device())); // [T, d]
        let (losses, gradient) = self.output_layer(&before_targets, batch, [&divisors, &scales])?;
        if before_targets.requires_grad() {
            // d(sum(y · g))/dy = g: a backward pass from y with the gradient g.
            (&before_targets * gradient.to_device(before_targets.device())).sum(Kind::Float).f_backward()?;
        }
        if let Some(tape) = tape {
            tape.backward()?;
        }
        Ok(losses.narrow(0, 0, each - 1))
    }
}

impl Objective for LanguageModelling<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.train.iter().map(|example| example.ids.len()).collect()
    }

    fn weight(&self, batch: &[usize]) -> f64 {
        batch.iter().map(|&i| target_count(&self.train[i])).sum::<usize>() as f64
    }

    fn backward(
        &self,
        batches: &[Vec<usize>],
        divisors: &[f64],
        scales: &[f64],
        noise: &Noise,
    ) -> Result<Tensor> {
        let runs: Vec<Vec<&Example>> =
            batches.iter().map(|batch| batch.iter().map(|&i| &self.train[i]).collect()).collect();
        let device = self.model.device();
        let layout = BatchLayout::new(&runs, self.fill(&runs));
        let pass = Pass::seeded(noise, device, |run| !batches[run].is_empty());
        // The target that fills up others belongs to a run of its own, whose share is 0.
        let numbers = divisors.iter().chain(&[f64::INFINITY]).chain(scales).chain(&[1.0]);
        let numbers: Vec<f32> = numbers.map(|&number| number as f32).collect();
        let shape = layout.shape().filter(|_| !self.model.placement.is_divided());
        self.passes.run(shape, &layout.table(), &numbers, device, |table, numbers| {
            let batch = layout.over(table);
            self.forward_and_backward(&batch, numbers, &pass.over(&batch.packed))
        })
    }

    fn passes(&self) -> &Passes {
        &self.passes
    }

    fn evaluate(&self, run: usize) -> Result<Evaluation> {
        evaluate(self.model, run, self.validation, (self.eval_batch_tokens, &self.world))
    }
}
