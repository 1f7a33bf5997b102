//! Training objectives: the loop's interface to them, and the one of classifying sequences.

use tch::{Kind, Reduction, Tensor};

use super::recorded::Passes;
use crate::data::{Example, Label};
use crate::eval::{Evaluation, Scoring, evaluate, sequence};
use crate::fault::Result;
use crate::models::Classifier;
use crate::nn::layout::{Fill, PackedLayout, Sequence};
use crate::nn::{Noise, Packed, Pass};
use crate::spec::Metric;
use crate::torch::unforeseen;

/// Loss and metrics of a task: all that the loop knows of it.
pub trait Objective {
    /// Returns the tokens of each training example.
    fn lengths(&self) -> Vec<usize>;

    /// Returns the number of terms in the loss of these examples, which a step divides by: examples in
    /// classification, target tokens in a language model.
    fn weight(&self, batch: &[usize]) -> f64;

    /// Adds the gradient of the summed losses of one micro batch, times `scale`, to the trained tensors.
    ///
    /// `batches` holds the examples of each of the k runs, `divisors` the divisor of each run's sum; dropout
    /// draws from `noise`.
    ///
    /// # Errors
    /// When libtorch fails.
    fn backward(&self, batches: &[Vec<usize>], divisors: &[f64], scale: f64, noise: &Noise) -> Result<Micro>;

    /// Scores run `run` on the validation data.
    ///
    /// # Errors
    /// When libtorch fails or a logit is not finite.
    fn evaluate(&self, run: usize) -> Result<Evaluation>;
}

/// Result of one micro batch.
#[derive(Debug)]
pub struct Micro {
    /// Loss of each run, divided by its divisor, `[k]` in fp32, without a graph.
    pub losses: Tensor,
    /// Tokens computed.
    pub tokens: usize,
}

/// SequenceClassification of sequences (cross-entropy), or regression (squared error).
#[derive(Debug)]
pub struct SequenceClassification<'a> {
    /// The model.
    pub model: &'a Classifier,
    /// Examples to train on.
    pub train: &'a [Example],
    /// Examples to score.
    pub validation: &'a [Example],
    /// The task's metrics.
    pub metrics: Vec<Metric>,
    /// Examples in one evaluation pass.
    pub eval_batch_size: usize,
    /// True if activations are recomputed in the backward pass.
    pub recompute: bool,
    /// Recordings of passes on a GPU.
    pub passes: Passes,
}

impl SequenceClassification<'_> {
    /// Returns the summed loss of each of k runs with as many sequences: logits `[s, c]` and labels `[s]` to `[k]`.
    fn losses(&self, logits: &Tensor, labels: &Tensor, runs: i64) -> Tensor {
        let each = match self.train.first().and_then(|example| example.label.as_ref()) {
            Some(Label::Value(_)) => logits.flatten(0, -1).mse_loss(labels, Reduction::None),
            _ => {
                let classes = labels.to_kind(Kind::Int64);
                logits.cross_entropy_loss(&classes, None::<&Tensor>, Reduction::None, -100, 0.0)
            }
        };
        each.view([runs, -1]).sum_dim_intlist(1, false, Kind::Float)
    }

    /// Runs forward and backward; `numbers` holds the labels `[s]`, the divisors `[k]` and the scale. Returns losses `[k]`.
    fn forward_and_backward(&self, batch: &Packed, numbers: &Tensor, pass: &Pass) -> Result<Tensor> {
        let k = batch.places.len() as i64;
        let labels = numbers.numel() as i64 - k - 1;
        let mut parts = numbers.split_with_sizes([labels, k, 1], 0).into_iter();
        let [Some(labels), Some(divisors), Some(scale)] = [(); 3].map(|()| parts.next()) else {
            return Err(unforeseen("labels, divisors and a scale").into());
        };
        let (logits, tape) = if self.recompute {
            let (logits, tape) = self.model.forward_recomputed(batch, pass)?;
            (logits, Some(tape))
        } else {
            (self.model.forward(batch, pass)?, None)
        };
        let losses = self.losses(&logits, &labels, k) / divisors;
        (losses.sum(Kind::Float) * scale).sum(Kind::Float).f_backward()?;
        if let Some(tape) = tape {
            tape.backward()?;
        }
        Ok(losses.detach())
    }
}

impl Objective for SequenceClassification<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.train.iter().map(|example| example.ids.len()).collect()
    }

    fn weight(&self, batch: &[usize]) -> f64 {
        batch.len() as f64
    }

    fn backward(&self, batches: &[Vec<usize>], divisors: &[f64], scale: f64, noise: &Noise) -> Result<Micro> {
        let runs: Vec<Vec<Sequence>> =
            batches.iter().map(|batch| batch.iter().map(|&i| sequence(&self.train[i])).collect()).collect();
        let device = self.model.device();
        // Recording pays where launches are slow, and what is recorded must have one of few shapes.
        let fill = if device.is_cuda() { Fill::Tokens } else { Fill::None };
        let layout = PackedLayout::new(&runs, self.model.config.position_rule, fill);
        let pass = Pass::seeded(noise, device);
        let labels = batches.iter().flatten().filter_map(|&i| self.train[i].label.as_ref());
        let others = divisors.iter().chain([&scale]).map(|number| *number as f32);
        let numbers: Vec<f32> = labels.flat_map(Label::numbers).chain(others).collect();
        let shape = layout.shape().filter(|_| !self.recompute);
        let losses = self.passes.run(shape, &layout.table(), &numbers, device, |table, numbers| {
            let batch = Packed::over(&layout, table);
            self.forward_and_backward(&batch, numbers, &pass.over(&batch))
        })?;
        Ok(Micro { losses, tokens: layout.tokens() })
    }

    fn evaluate(&self, run: usize) -> Result<Evaluation> {
        let how = Scoring { metrics: &self.metrics, outputs: &[], batch_size: self.eval_batch_size };
        evaluate(self.model, run, self.validation, how)
    }
}
