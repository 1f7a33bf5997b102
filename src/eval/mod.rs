//! Scoring without generation: logits of every example, predictions, metrics; the loss of a language model.

pub mod generation;
pub mod harness;
pub mod language;
pub mod metrics;
pub mod predictions;
pub mod results;

use std::collections::BTreeMap;
use std::time::Instant;

use tch::{Kind, Tensor, no_grad};

use crate::data::Example;
use crate::fault::{Result, fault};
use crate::models::Classifier;
use crate::nn::layout::Sequence;
use crate::nn::{Packed, Pass};
use crate::report::progress::Progress;
use crate::spec::Metric;
use metrics::{Score, combined, score};
use predictions::Prediction;

/// A scored split.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// One for each example, in the order of the split.
    pub predictions: Vec<Prediction>,
    /// The requested metrics, in that order; empty if the split has no labels.
    pub scores: Vec<(Metric, Score)>,
    /// Time of the forward passes and the metrics.
    pub seconds: f64,
}

impl Evaluation {
    /// Returns metrics by name, and their mean as `combined_score` if there are several.
    pub fn by_name(&self) -> BTreeMap<String, f64> {
        let mut named: BTreeMap<String, f64> =
            self.scores.iter().map(|(metric, score)| (metric.name().to_owned(), score.value)).collect();
        let scores: Vec<Score> = self.scores.iter().map(|(_, score)| *score).collect();
        if let Some(mean) = combined(&scores) {
            named.insert("combined_score".into(), mean);
        }
        named
    }

    /// Returns the value of one metric.
    pub fn value(&self, metric: Metric) -> Option<f64> {
        self.scores.iter().find(|(m, _)| *m == metric).map(|(_, score)| score.value)
    }
}

/// Returns an example's tokens in the form that packing takes.
pub fn sequence(example: &Example) -> Sequence<'_> {
    Sequence { ids: &example.ids, types: &example.types }
}

/// Settings for scoring a split.
#[derive(Debug, Clone, Copy)]
pub struct Scoring<'a> {
    /// Metrics to compute; those of a regression make it one.
    pub metrics: &'a [Metric],
    /// The head's output for each class of the task; empty if they agree.
    pub outputs: &'a [usize],
    /// Examples in one pass.
    pub batch_size: usize,
}

/// Scores run `run` of `model` on `examples`.
///
/// # Errors
/// When a logit is not finite, or libtorch fails.
pub fn evaluate(model: &Classifier, run: usize, examples: &[Example], how: Scoring) -> Result<Evaluation> {
    let start = Instant::now();
    let Scoring { metrics, outputs, batch_size } = how;
    let regression = metrics.iter().any(|metric| metric.is_regression());
    let mut logits = logits(model, run, examples, batch_size)?;
    if !outputs.is_empty() {
        for row in &mut logits {
            *row = outputs.iter().filter_map(|&output| row.get(output).copied()).collect();
        }
    }
    let predictions: Vec<Prediction> = examples
        .iter()
        .zip(logits)
        .map(|(example, logits)| match regression {
            true => {
                let value = logits.first().copied().unwrap_or(f32::NAN);
                Prediction::of_number(example.index, value, example.label.map(f64::from))
            }
            // Labels were checked against the classes when the rows were read.
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "small whole numbers"
            )]
            false => Prediction::of_class(example.index, logits, example.label.map(|label| label as usize)),
        })
        .collect();
    let labelled = predictions.iter().filter_map(|p| Some((p.prediction.as_number(), p.label?.as_number())));
    let (given, gold): (Vec<f64>, Vec<f64>) = labelled.unzip();
    let scored = if gold.is_empty() { &[] } else { metrics };
    let scores = scored.iter().map(|&metric| (metric, score(metric, &given, &gold))).collect();
    Ok(Evaluation { predictions, scores, seconds: start.elapsed().as_secs_f64() })
}

/// Returns logits of every example, in their order. Passes are packed from examples of similar length.
fn logits(model: &Classifier, run: usize, examples: &[Example], batch_size: usize) -> Result<Vec<Vec<f32>>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| examples[i].ids.len());
    let mut found = vec![Vec::new(); examples.len()];
    let progress = Progress::new(examples.len() as u64, "eval", "examples");
    let mut done = 0;
    for batch in order.chunks(batch_size.max(1)) {
        let sequences: Vec<Sequence> = batch.iter().map(|&i| sequence(&examples[i])).collect();
        let rows = batch_logits(model, run, sequences)?;
        for (&i, row) in batch.iter().zip(rows) {
            if row.iter().any(|logit| !logit.is_finite()) {
                let index = examples[i].index;
                return Err(fault(format!("the logits of example {index} are not finite: {row:?}"))
                    .hint("train with smaller learning rates; in fp16, evaluate in fp32 or bf16 instead")
                    .into());
            }
            found[i] = row;
        }
        done += batch.len() as u64;
        progress.tick(done, "");
    }
    progress.finish();
    Ok(found)
}

fn batch_logits(model: &Classifier, run: usize, sequences: Vec<Sequence>) -> Result<Vec<Vec<f32>>> {
    let mut runs = vec![Vec::new(); model.runs()];
    runs[run] = sequences;
    let batch = Packed::new(&runs, model.config.position_rule, model.device());
    let pass = Pass::evaluation().over(&batch);
    let logits = no_grad(|| model.forward(&batch, &pass))?; // [s, c]
    let logits: Tensor = logits.to_kind(Kind::Float).to_device(tch::Device::Cpu).contiguous();
    let classes = logits.size().last().copied().unwrap_or(1);
    let flat: Vec<f32> = Vec::try_from(logits.flatten(0, -1))?;
    Ok(flat.chunks(usize::try_from(classes)?).map(<[f32]>::to_vec).collect())
}
