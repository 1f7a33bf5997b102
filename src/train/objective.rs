//! Training objectives: the loop's interface to them, and the one of predicting labels.

use std::sync::Arc;

use tch::{Kind, Reduction, Tensor};

use super::recorded::Passes;
use crate::data::{Example, Label};
use crate::eval::{Evaluation, Scoring, evaluate, sequence};
use crate::fault::Result;
use crate::models::{Backbone, Classifier, HeadShape};
use crate::nn::layout::{Fill, PackedLayout, Sequence};
use crate::nn::{Noise, Packed, Pass};
use crate::spec::{Metric, Problem};
use crate::torch::unforeseen;
use crate::torch::world::World;

/// Loss and metrics of a task: all that the loop knows of it.
pub trait Objective {
    /// Returns the tokens of each training example.
    fn lengths(&self) -> Vec<usize>;

    /// Returns the number of terms in the loss of these examples, which a step divides by: examples with one label each,
    /// words with tags, target tokens in a language model; each class by its weight.
    fn weight(&self, batch: &[usize]) -> f64;

    /// Adds the gradient of the summed losses of one micro batch, each run's times its scale, to the trained tensors. Returns the
    /// loss of each run, divided by its divisor, `[k]` in fp64, without a graph: 0 without examples.
    ///
    /// `batches` holds the examples of each of the k runs, `divisors` the divisor of each run's sum; dropout
    /// draws from `noise`.
    ///
    /// # Errors
    /// When libtorch fails.
    fn backward(
        &self,
        batches: &[Vec<usize>],
        divisors: &[f64],
        scales: &[f64],
        noise: &Noise,
    ) -> Result<Tensor>;

    /// Returns what runs the passes.
    fn passes(&self) -> &Passes;

    /// Scores run `run` on the validation data.
    ///
    /// # Errors
    /// When libtorch fails or a logit is not finite.
    fn evaluate(&self, run: usize) -> Result<Evaluation>;
}

/// Prediction of labels by a head: of classes and of tags (cross-entropy), of a number (squared error), or of sets of labels
/// (binary cross-entropy, the mean over all labels).
#[derive(Debug)]
pub struct LabelPrediction<'a> {
    /// The model.
    pub model: &'a Classifier,
    /// Examples to train on.
    pub train: &'a [Example],
    /// Examples to score.
    pub validation: &'a [Example],
    /// Names of the classes.
    pub labels: &'a [String],
    /// The task's metrics.
    pub metrics: Vec<Metric>,
    /// The weight of each class in the loss; empty = all alike.
    pub class_weights: Vec<f64>,
    /// Examples in one evaluation pass.
    pub eval_batch_size: usize,
    /// True if activations are recomputed in the backward pass.
    pub recompute: bool,
    /// The processes that share evaluations.
    pub world: World,
    /// Recordings of passes on a GPU.
    pub passes: Passes,
}

/// Target of a token that is no word's first.
const NO_TAG: f32 = -100.0;

impl LabelPrediction<'_> {
    /// Returns the summed loss of each of k runs: logits `[n, c]` of sequences, or of tokens, and targets `[n]`, of sets `[n·c]`, to
    /// `[k]` in fp64; `[1]` of the only run with sequences.
    fn losses(&self, logits: &Tensor, targets: &Tensor, batch: &Packed, weights: Option<&Tensor>) -> Tensor {
        let problem = self.model.shape.problem;
        let each = match problem {
            Problem::Regression => logits.flatten(0, -1).mse_loss(targets, Reduction::None),
            Problem::MultiLabel => {
                let none = None::<&Tensor>;
                let targets = targets.view_as(logits);
                let all = logits.binary_cross_entropy_with_logits(&targets, none, none, Reduction::None);
                all.mean_dim(1, false, Kind::Float)
            }
            Problem::SingleLabel | Problem::Tokens => {
                let classes = targets.to_kind(Kind::Int64);
                logits.cross_entropy_loss(&classes, weights, Reduction::None, NO_TAG as i64, 0.0)
            }
        };
        let route = match problem {
            Problem::Tokens => batch.route.clone(),
            _ => batch.of_sequences(),
        };
        let blocks = route.blocks(each.numel() as i64).unwrap_or_default();
        if blocks.iter().all(|block| *block == blocks[0]) {
            return each.view([blocks.len() as i64, -1]).sum_dim_intlist(1, false, Kind::Double);
        }
        let sums: Vec<Tensor> =
            each.split_with_sizes(&blocks, 0).iter().map(|block| block.sum(Kind::Double)).collect();
        Tensor::stack(&sums, 0)
    }

    /// Returns the targets of a batch in the order of the logits.
    fn targets(&self, batches: &[Vec<usize>], layout: &PackedLayout) -> Vec<f32> {
        let HeadShape { problem, outputs } = self.model.shape;
        let examples = || batches.iter().flatten().map(|&i| &self.train[i]);
        let labels = || examples().filter_map(|example| example.label.as_ref());
        match problem {
            Problem::SingleLabel | Problem::Regression => labels().flat_map(Label::numbers).collect(),
            Problem::MultiLabel => {
                let flag = |set: &[f32], class: i64| f32::from(u8::from(set.contains(&(class as f32))));
                let flags =
                    |set: Vec<f32>| (0..outputs).map(move |class| flag(&set, class)).collect::<Vec<_>>();
                labels().map(Label::numbers).flat_map(flags).collect()
            }
            Problem::Tokens => {
                let mut targets = vec![NO_TAG; layout.rows()];
                for (example, place) in examples().zip(layout.places.iter().flatten()) {
                    let tags = example.label.as_ref().map(Label::numbers).unwrap_or_default();
                    let firsts = (0..).zip(&example.trained).filter(|(_, trained)| **trained != 0);
                    for ((at, _), tag) in firsts.zip(tags) {
                        targets[place.start + at] = tag;
                    }
                }
                targets
            }
        }
    }

    /// Runs forward and backward; `numbers` holds the targets, the divisors `[k]`, the weights of classes, and the scales `[k]`.
    /// Returns losses `[k]`.
    fn forward_and_backward(&self, batch: &Packed, numbers: &Tensor, pass: &Pass) -> Result<Tensor> {
        let numbers = numbers.to_device(self.model.placement.last());
        let k = batch.places.len() as i64;
        let classes = self.class_weights.len() as i64;
        let targets = numbers.numel() as i64 - 2 * k - classes;
        let mut parts = numbers.split_with_sizes([targets, k, classes, k], 0).into_iter();
        let [Some(targets), Some(divisors), Some(weights), Some(scales)] = [(); 4].map(|()| parts.next())
        else {
            return Err(unforeseen("targets, divisors, weights and scales").into());
        };
        let [own_divisors, own_scales] = [&divisors, &scales].map(|numbers| batch.route.own(numbers));
        let (logits, tape) = if self.recompute {
            let (logits, tape) = self.model.forward_recomputed(batch, pass)?;
            (logits, Some(tape))
        } else {
            (self.model.forward(batch, pass)?, None)
        };
        let weights = Some(&weights).filter(|_| classes > 0);
        let losses = self.losses(&logits, &targets, batch, weights) / own_divisors;
        (&losses * own_scales).sum(Kind::Float).f_backward()?;
        if let Some(tape) = tape {
            tape.backward()?;
        }
        let all = divisors.zeros_like().to_kind(Kind::Double);
        batch.route.own(&all).copy_(&losses.detach());
        Ok(all)
    }
}

impl Objective for LabelPrediction<'_> {
    fn lengths(&self) -> Vec<usize> {
        self.train.iter().map(|example| example.ids.len()).collect()
    }

    fn weight(&self, batch: &[usize]) -> f64 {
        let labels = batch.iter().filter_map(|&i| self.train[i].label.as_ref());
        let of_class = |class: &u32| self.class_weights.get(*class as usize).copied().unwrap_or(1.0);
        let of = |label: &Label| match label {
            Label::Class(class) => of_class(class),
            Label::Tags(tags) => tags.iter().map(of_class).sum(),
            Label::Value(_) | Label::Set(_) => 1.0,
        };
        labels.map(of).sum()
    }

    fn backward(
        &self,
        batches: &[Vec<usize>],
        divisors: &[f64],
        scales: &[f64],
        noise: &Noise,
    ) -> Result<Tensor> {
        let runs: Vec<Vec<Sequence>> =
            batches.iter().map(|batch| batch.iter().map(|&i| sequence(&self.train[i])).collect()).collect();
        let device = self.model.device();
        // Recording pays where launches are slow, and what is recorded must have one of few shapes.
        let fill = match self.model.trunk {
            Backbone::Encoder(_) if device.is_cuda() => Fill::Tokens,
            _ => Fill::None,
        };
        let layout = Arc::new(PackedLayout::new(&runs, self.model.config.position_rule, fill));
        let pass = Pass::seeded(noise, device, |run| !batches[run].is_empty());
        let others = divisors.iter().chain(&self.class_weights).chain(scales).map(|number| *number as f32);
        let numbers: Vec<f32> = self.targets(batches, &layout).into_iter().chain(others).collect();
        let shape = layout.shape().filter(|_| !self.recompute && !self.model.placement.is_divided());
        self.passes.run(shape, &layout.table(), &numbers, device, |table, numbers| {
            let batch = Packed::over(&layout, table);
            self.forward_and_backward(&batch, numbers, &pass.over(&batch))
        })
    }

    fn passes(&self) -> &Passes {
        &self.passes
    }

    fn evaluate(&self, run: usize) -> Result<Evaluation> {
        let how = Scoring {
            metrics: &self.metrics,
            labels: self.labels,
            outputs: &[],
            batch_size: self.eval_batch_size,
            world: &self.world,
        };
        evaluate(self.model, run, self.validation, how)
    }
}
