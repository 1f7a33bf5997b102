//! The objective of a language model: the loss of responses after their prompts.

use tch::{Kind, Tensor};

use super::objective::{Micro, Objective};
use crate::data::Example;
use crate::eval::Evaluation;
use crate::eval::language::{Batch, evaluate, in_chunks, losses_backward, target_count};
use crate::fault::Result;
use crate::models::CausalLm;
use crate::nn::{Noise, Pass};

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
}

impl LanguageModelling<'_> {
    /// Computes losses `[k]` of the targets after `hidden` `[T, d]`, and the gradient of `hidden`. Each chunk
    /// of logits is freed before the next is made.
    fn output_layer(
        &self,
        hidden: &Tensor,
        batch: &Batch,
        divisors: &Tensor,
        scale: f64,
    ) -> Result<(Tensor, Tensor)> {
        let hidden = hidden.detach();
        let per_run = (batch.packed.places.first().map_or(1, Vec::len) as i64).max(1);
        let runs = batch.sequences.divide_scalar_mode(per_run, "floor"); // [T]
        let shares = divisors.reciprocal().index_select(0, &runs); // [T]
        let weights = &shares * scale;
        let (sums, mut gradients) = (divisors.zeros_like(), Vec::new());
        in_chunks(batch.targets.size()[0], self.model.config.vocabulary, |start, count| {
            let part = |x: &Tensor| x.narrow(0, start, count);
            let (losses, gradient) =
                losses_backward(self.model, &part(&hidden), &part(&batch.targets), &part(&weights))?;
            let _ = sums.shallow_clone().index_add_(0, &part(&runs), &(losses * part(&shares)));
            gradients.push(gradient);
            Ok(())
        })?;
        Ok((sums, Tensor::cat(&gradients, 0)))
    }
}

impl Objective for LanguageModelling<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.train.iter().map(|example| example.ids.len()).collect()
    }

    fn weight(&self, batch: &[usize]) -> f64 {
        batch.iter().map(|&i| target_count(&self.train[i])).sum::<usize>() as f64
    }

    fn backward(&self, batches: &[Vec<usize>], divisors: &[f64], scale: f64, noise: &Noise) -> Result<Micro> {
        let runs: Vec<Vec<&Example>> =
            batches.iter().map(|batch| batch.iter().map(|&i| &self.train[i]).collect()).collect();
        let batch = Batch::new(&runs, self.model.device());
        let pass = Pass::training(noise, &batch.packed);
        let divisors = Tensor::from_slice(divisors).to_kind(Kind::Float).to_device(self.model.device());
        let (hidden, tape) = if self.recompute {
            let (hidden, tape) = self.model.hidden_recomputed(&batch.packed, &pass)?;
            (hidden, Some(tape))
        } else {
            (self.model.hidden(&batch.packed, &pass)?, None)
        };
        let before_targets = hidden.index_select(0, &batch.before); // [T, d]
        let (losses, gradient) = self.output_layer(&before_targets, &batch, &divisors, scale)?;
        if before_targets.requires_grad() {
            // d(sum(y · g))/dy = g: a backward pass from y with the gradient g.
            (before_targets * gradient).sum(Kind::Float).f_backward()?;
        }
        if let Some(tape) = tape {
            tape.backward()?;
        }
        Ok(Micro { losses, tokens: batch.packed.tokens })
    }

    fn evaluate(&self, run: usize) -> Result<Evaluation> {
        evaluate(self.model, run, self.validation, self.eval_batch_tokens)
    }
}
