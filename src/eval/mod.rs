//! Scoring without generation: logits of every example, predictions, metrics; the loss of a language model.

pub mod generation;
pub mod harness;
pub mod label_loss;
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
use label_loss::label_loss;
use metrics::{Score, combined, mean_loss, score};
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
        let of_glue = self.scores.iter().filter(|(metric, _)| Metric::OF_GLUE.contains(metric));
        let scores: Vec<Score> = of_glue.map(|(_, score)| *score).collect();
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
    /// Metrics to compute.
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
    let progress = Progress::new(examples.len() as u64, "eval", "examples");
    let mut logits = logits(model, run, examples, batch_size, |done| progress.tick(done as u64, ""))?;
    progress.finish();
    if let Some((example, row)) =
        examples.iter().zip(&logits).find(|(_, row)| row.iter().any(|logit| !logit.is_finite()))
    {
        return Err(fault(format!("the logits of example {} are not finite: {row:?}", example.index))
            .hint("train with lower learning rates; instead of fp16, evaluate in fp32 or bf16")
            .into());
    }
    if !outputs.is_empty() {
        for row in &mut logits {
            *row = outputs.iter().filter_map(|&output| row.get(output).copied()).collect();
        }
    }
    let predictions: Vec<Prediction> = examples
        .iter()
        .zip(logits)
        .map(|(example, logits)| Prediction::new(example.index, logits, example.label.clone()))
        .collect();
    let number = |label: &crate::data::Label| label.numbers().first().map(|number| f64::from(*number));
    let labelled =
        predictions.iter().filter_map(|p| Some((number(&p.prediction)?, number(p.label.as_ref()?)?)));
    let (given, gold): (Vec<f64>, Vec<f64>) = labelled.unzip();
    let losses: (Vec<f64>, Vec<f64>) =
        predictions.iter().filter_map(|p| label_loss(&p.logits, p.label.as_ref()?)).unzip();
    let scored = if gold.is_empty() { &[] } else { metrics };
    let of = |metric| match metric {
        Metric::Loss => mean_loss(&losses.0, &losses.1),
        metric => score(metric, &given, &gold),
    };
    let scores = scored.iter().map(|&metric| (metric, of(metric))).collect();
    Ok(Evaluation { predictions, scores, seconds: start.elapsed().as_secs_f64() })
}

/// Calls `pass` with batches of examples of similar length, as many as `fits` says of their number and tokens, and at least
/// one; `tick` gets the number of those done. Returns what it finds for each example, in the order of `examples`.
fn by_length<T: Clone + Default>(
    examples: &[Example],
    fits: impl Fn(usize, usize) -> bool,
    mut pass: impl FnMut(&[&Example]) -> Result<Vec<T>>,
    tick: impl Fn(usize),
) -> Result<Vec<T>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| examples[i].ids.len());
    let mut found = vec![T::default(); examples.len()];
    let mut rest = order.as_slice();
    while !rest.is_empty() {
        let (mut count, mut tokens) = (0, 0);
        let taken = rest.iter().take_while(|&&i| {
            (count, tokens) = (count + 1, tokens + examples[i].ids.len());
            fits(count, tokens)
        });
        let (batch, left) = rest.split_at(taken.count().max(1));
        rest = left;
        let of_batch = pass(&batch.iter().map(|&i| &examples[i]).collect::<Vec<_>>())?;
        batch.iter().zip(of_batch).for_each(|(&i, one)| found[i] = one);
        tick(examples.len() - rest.len());
    }
    Ok(found)
}

/// Returns what run `run` of `model` makes of each example, finite or not, `batch_size` of similar length in one pass;
/// `tick` gets the number of examples done.
///
/// # Errors
/// When libtorch fails.
pub fn logits(
    model: &Classifier,
    run: usize,
    examples: &[Example],
    batch_size: usize,
    tick: impl Fn(usize),
) -> Result<Vec<Vec<f32>>> {
    let pass = |batch: &[&Example]| {
        batch_logits(model, run, batch.iter().map(|example| sequence(example)).collect())
    };
    by_length(examples, |count, _| count <= batch_size, pass, tick)
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
