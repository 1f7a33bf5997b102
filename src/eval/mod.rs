//! Scoring without generation: logits of every example, predictions, metrics; the loss of a language model.

mod answer_file;
pub mod averages;
pub mod deal;
pub mod entities;
pub mod generation;
pub mod harness;
pub mod label_loss;
pub mod language;
pub mod metrics;
pub mod outcomes;
pub mod predictions;
pub mod results;

use std::collections::BTreeMap;
use std::time::Instant;

use tch::{Kind, Tensor, no_grad};

use crate::data::Example;
use crate::fault::{Result, fault};
use crate::models::Classifier;
use crate::nn::layout::{Place, Sequence};
use crate::nn::{Packed, Pass};
use crate::report::progress::Progress;
use crate::spec::{Metric, Problem};
use crate::torch::world::World;
use metrics::{Score, combined};
use outcomes::{ClassReport, Outcomes};
use predictions::Prediction;

/// A scored split.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// One for each example, in the order of the split.
    pub predictions: Vec<Prediction>,
    /// The requested metrics, in that order; empty if the split has no labels.
    pub scores: Vec<(Metric, Score)>,
    /// The scores of each class; none for numbers and without labels.
    pub report: Option<ClassReport>,
    /// Time of the forward passes and the metrics.
    pub seconds: f64,
}

impl Evaluation {
    /// Returns metrics by name, and their mean as `combined_score` if there are several and all are GLUE's.
    pub fn by_name(&self) -> BTreeMap<String, f64> {
        let mut named: BTreeMap<String, f64> =
            self.scores.iter().map(|(metric, score)| (metric.name().to_owned(), score.value)).collect();
        let others = self.scores.iter().filter(|(metric, _)| *metric != Metric::Loss);
        let are_of_glue = others.clone().all(|(metric, _)| Metric::OF_GLUE.contains(metric));
        let scores: Vec<Score> = others.filter(|_| are_of_glue).map(|(_, score)| *score).collect();
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
    /// Names of the task's classes.
    pub labels: &'a [String],
    /// The head's output for each class of the task; empty if they agree.
    pub outputs: &'a [usize],
    /// Examples in one pass.
    pub batch_size: usize,
    /// The processes that share the passes.
    pub world: &'a World,
}

/// Scores run `run` of `model` on `examples`.
///
/// # Errors
/// When a logit is not finite, or libtorch fails.
pub fn evaluate(model: &Classifier, run: usize, examples: &[Example], how: Scoring) -> Result<Evaluation> {
    let start = Instant::now();
    let Scoring { metrics, labels, outputs, batch_size, world } = how;
    let progress = Progress::new(examples.len() as u64, "eval", "examples");
    let logits = logits(model, run, examples, (batch_size, world), |done| progress.tick(done as u64, ""))?;
    progress.finish();
    if let Some((example, row)) =
        examples.iter().zip(&logits).find(|(_, row)| row.iter().any(|logit| !logit.is_finite()))
    {
        let row: Vec<&f32> = row.iter().take(8).collect();
        return Err(fault(format!("the logits of example {} are not finite: {row:?}", example.index))
            .hint("train with lower learning rates; instead of fp16, evaluate in fp32 or bf16")
            .into());
    }
    let ordered = |row: Vec<f32>| match outputs {
        [] => row,
        _ => {
            let words = row.chunks(outputs.len());
            words.flat_map(|word| outputs.iter().filter_map(|&output| word.get(output).copied())).collect()
        }
    };
    let predictions: Vec<Prediction> = examples
        .iter()
        .zip(logits)
        .map(|(example, row)| {
            Prediction::new(model.shape, example.index, ordered(row), example.label.clone())
        })
        .collect();
    let outcomes = Outcomes::new(model.shape.problem, labels, &predictions);
    let scored = if outcomes.is_empty() { &[] } else { metrics };
    let scores = scored.iter().map(|&metric| (metric, outcomes.score(metric))).collect();
    let report = outcomes.report();
    Ok(Evaluation { predictions, scores, report, seconds: start.elapsed().as_secs_f64() })
}

/// Calls `pass` with batches of examples of similar length, as many as `fits` says of their number and tokens, and at least
/// one; `tick` gets the number of those done. Returns the numbers that it finds for each example, in the order of `examples`.
///
/// The processes of `world` share the batches of one process.
fn by_length(
    world: &World,
    examples: &[Example],
    fits: impl Fn(usize, usize) -> bool,
    mut pass: impl FnMut(&[&Example]) -> Result<Vec<Vec<f64>>>,
    tick: impl Fn(usize),
) -> Result<Vec<Vec<f64>>> {
    let batches = batches(examples, fits);
    let mut busy = vec![0; world.size()];
    let (mut found, mut done) = (vec![Vec::new(); examples.len()], 0);
    // The longest are the last, and are given first, each to the process with the least to do.
    let mut own = batches.iter().rev().filter(|batch| {
        let rank = (0..busy.len()).min_by_key(|&rank| busy[rank]).unwrap_or(0);
        busy[rank] += batch.iter().map(|&i| examples[i].ids.len()).sum::<usize>();
        rank == world.rank()
    });
    let passes = own.try_for_each(|batch| {
        let of_batch = pass(&batch.iter().map(|&i| &examples[i]).collect::<Vec<_>>())?;
        batch.iter().zip(of_batch).for_each(|(&i, one)| found[i] = one);
        done += batch.len();
        tick((done * world.size()).min(examples.len()));
        Ok(())
    });
    world.agreed(passes)?;
    if world.is_alone() {
        return Ok(found);
    }
    let own = found.iter().enumerate().filter(|(_, numbers)| !numbers.is_empty());
    let own =
        own.flat_map(|(i, numbers)| [i as f64, numbers.len() as f64].into_iter().chain(numbers.clone()));
    for all in world.gather_numbers(&own.collect::<Vec<f64>>())? {
        let mut rest = all.as_slice();
        while let [i, count, numbers @ ..] = rest {
            let (own, others) = numbers.split_at(*count as usize);
            found[*i as usize] = own.to_vec();
            rest = others;
        }
    }
    Ok(found)
}

/// Divides examples into batches of similar length, the shortest first, as many in each as `fits` says.
fn batches(examples: &[Example], fits: impl Fn(usize, usize) -> bool) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|&i| examples[i].ids.len());
    let (mut found, mut rest) = (Vec::new(), order.as_slice());
    while !rest.is_empty() {
        let (mut count, mut tokens) = (0, 0);
        let taken = rest.iter().take_while(|&&i| {
            (count, tokens) = (count + 1, tokens + examples[i].ids.len());
            fits(count, tokens)
        });
        let (batch, left) = rest.split_at(taken.count().max(1));
        found.push(batch.to_vec());
        rest = left;
    }
    found
}

/// Returns what run `run` of `model` makes of each example, finite or not, `batch_size` of similar length in one pass, which the processes of `world` share; with a
/// head for tokens the logits of the first token of each word; `tick` gets the number of examples done.
///
/// # Errors
/// When libtorch fails.
pub fn logits(
    model: &Classifier,
    run: usize,
    examples: &[Example],
    (batch_size, world): (usize, &World),
    tick: impl Fn(usize),
) -> Result<Vec<Vec<f32>>> {
    let pass = |batch: &[&Example]| -> Result<Vec<Vec<f64>>> {
        let rows = batch_logits(model, run, batch)?.into_iter();
        Ok(rows.map(|row| row.into_iter().map(f64::from).collect()).collect())
    };
    let found = by_length(world, examples, |count, _| count <= batch_size, pass, tick)?;
    Ok(found.into_iter().map(|row| row.into_iter().map(|logit| logit as f32).collect()).collect())
}

/// Returns the logits of each example, with a head for tokens those of the first token of each word.
fn batch_logits(model: &Classifier, run: usize, examples: &[&Example]) -> Result<Vec<Vec<f32>>> {
    let mut runs = vec![Vec::new(); model.runs];
    runs[run] = examples.iter().map(|example| sequence(example)).collect();
    let batch = Packed::new(&runs, model.config.position_rule, model.device());
    let pass = Pass::evaluation().over(&batch);
    let logits = no_grad(|| model.forward(&batch, &pass))?; // [s, c] or [m, c]
    let logits: Tensor = logits.to_kind(Kind::Float).to_device(tch::Device::Cpu).contiguous();
    let classes = usize::try_from(model.shape.outputs)?;
    let flat: Vec<f32> = Vec::try_from(logits.flatten(0, -1))?;
    let rows: Vec<&[f32]> = flat.chunks(classes).collect();
    if model.shape.problem != Problem::Tokens {
        return Ok(rows.into_iter().map(<[f32]>::to_vec).collect());
    }
    let of_words = |(example, place): (&&Example, &Place)| {
        let firsts = example.trained.iter().enumerate().filter(|(_, trained)| **trained != 0);
        firsts.filter_map(|(at, _)| rows.get(place.start + at)).flat_map(|row| row.iter().copied()).collect()
    };
    Ok(examples.iter().zip(&batch.places[run]).map(of_words).collect())
}
