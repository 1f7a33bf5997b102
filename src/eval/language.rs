//! The loss of a language model: over target tokens only, and never with all logits at once.

use std::sync::Arc;
use std::time::Instant;

use tch::{Device, Kind, Reduction, Tensor, no_grad};

use super::metrics::pooled_mean;
use super::{Evaluation, by_length, sequence};
use crate::data::Example;
use crate::fault::{Result, fault};
use crate::models::CausalLm;
use crate::nn::layout::{Fill, PackedLayout, PassShape, Positions, Sequence, rounded_up, step};
use crate::nn::{Packed, Pass};
use crate::report::progress::Progress;
use crate::spec::Metric;
use crate::torch::coming::sent;
use crate::torch::fused;
use crate::torch::world::World;

/// Maximum number of logits computed at once: 64 MiB in fp32.
const MOST_LOGITS: i64 = 1 << 24;

/// Packed sequences and their target tokens.
#[derive(Debug)]
pub struct Batch {
    /// The tokens.
    pub packed: Packed,
    /// Row of the token before each target: int64 `[T]`.
    pub before: Tensor,
    /// The targets: int64 `[T]`.
    pub targets: Tensor,
    /// For each target, the number of its sequence, counted over all runs: int64 `[T]`.
    pub sequences: Tensor,
    /// For each target, its run: int64 `[T]`; k for what fills them up.
    pub runs: Tensor,
}

/// A [`Batch`] before it is on a device.
#[derive(Debug)]
pub struct BatchLayout {
    /// Where its tokens lie.
    pub tokens: Arc<PackedLayout>,
    /// Rows before the targets, targets, sequences and runs.
    targets: [Vec<i64>; 4],
}

impl BatchLayout {
    /// Packs the examples of each run; with what fills up the tokens, the targets are filled up to a multiple of a quarter.
    pub fn new(runs: &[Vec<&Example>], fill: Fill) -> Self {
        let sequences: Vec<Vec<Sequence>> =
            runs.iter().map(|run| run.iter().map(|example| sequence(example)).collect()).collect();
        let tokens = PackedLayout::new(&sequences, Positions::FromZero, fill);
        let mut targets: [Vec<i64>; 4] = Default::default();
        let mut push = |numbers: [i64; 4]| {
            for (column, number) in targets.iter_mut().zip(numbers) {
                column.push(number);
            }
        };
        let (mut count, mut owner) = (0, 0);
        for ((run, examples), places) in (0..).zip(runs).zip(tokens.places.iter()) {
            for (example, place) in examples.iter().zip(places) {
                for at in target_places(example) {
                    push([(place.start + at) as i64 - 1, i64::from(example.ids[at]), owner, run]);
                    count += 1;
                }
                owner += 1;
            }
        }
        if fill != Fill::None {
            let all = rounded_up(count, step(count, 4).max(64));
            (count..all).for_each(|_| push([0, 0, 0, runs.len() as i64]));
        }
        Self { tokens: Arc::new(tokens), targets }
    }

    /// Returns its columns, one after another.
    pub fn table(&self) -> Vec<i64> {
        [self.tokens.table(), self.targets.concat()].concat()
    }

    /// Returns the batch whose [`BatchLayout::table`] lies on a device.
    pub fn over(&self, table: &Tensor) -> Batch {
        let [count, all] = [self.targets[0].len() as i64, table.numel() as i64];
        let [before, targets, sequences, runs] =
            [4, 3, 2, 1].map(|behind| table.narrow(0, all - behind * count, count));
        Batch { packed: Packed::over(&self.tokens, table), before, targets, sequences, runs }
    }

    /// Returns what the launches of a pass depend on; see [`PackedLayout::shape`].
    pub fn shape(&self) -> Option<PassShape> {
        let [bounds, rows, longest, _] = self.tokens.shape()?;
        Some([bounds, rows, longest, self.targets[0].len() as i64])
    }
}

/// Returns the positions of an example's targets. The first token follows nothing and is never one.
fn target_places(example: &Example) -> impl Iterator<Item = usize> {
    example.trained.iter().enumerate().skip(1).filter(|(_, trained)| **trained != 0).map(|(at, _)| at)
}

/// Returns the number of an example's targets.
pub fn target_count(example: &Example) -> usize {
    target_places(example).count()
}

/// Calls `each` with ranges of rows whose logits fit into memory at once: start and count.
///
/// # Errors
/// As `each`.
pub fn in_chunks(rows: i64, vocabulary: i64, mut each: impl FnMut(i64, i64) -> Result<()>) -> Result<()> {
    let most = (MOST_LOGITS / vocabulary.max(1)).max(1);
    let mut start = 0;
    while start < rows {
        let count = most.min(rows - start);
        each(start, count)?;
        start += count;
    }
    Ok(())
}

/// Returns negative log-likelihoods of `targets` `[T]` after the hidden states `[T, d]`: `[T]` in fp32.
///
/// # Errors
/// When libtorch fails.
pub fn losses(model: &CausalLm, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
    Ok(model.logits(hidden).f_cross_entropy_loss(targets, None::<&Tensor>, Reduction::None, -100, 0.0)?)
}

/// Like [`losses`], with the gradient `[T, d]` of the hidden states, for the losses' sum weighted by
/// `weights` `[T]`. If the output layer is trained, its gradient is accumulated too.
///
/// # Errors
/// When libtorch fails.
pub fn losses_backward(
    model: &CausalLm,
    hidden: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
) -> Result<(Tensor, Tensor)> {
    if let Some(head) = model.plain_head(hidden.kind()) {
        return no_grad(|| {
            let logits = hidden.linear(&head, None::<&Tensor>); // [T, v]
            let losses = fused::softmax_loss(&logits, targets, weights);
            Ok((losses, logits.f_matmul(&head)?))
        });
    }
    let leaf = hidden.detach().set_requires_grad(true);
    let found = losses(model, &leaf, targets)?;
    (&found * weights).sum(Kind::Float).f_backward()?;
    Ok((found.detach(), leaf.grad()))
}

/// Computes the mean loss of run `run` over the targets of `examples`, about `batch_tokens` tokens per pass; the processes of
/// `world` share the passes.
///
/// # Errors
/// When a loss is not finite, or libtorch fails.
pub fn evaluate(
    model: &CausalLm,
    run: usize,
    examples: &[Example],
    (batch_tokens, world): (usize, &World),
) -> Result<Evaluation> {
    let start = Instant::now();
    let progress = Progress::new(examples.len() as u64, "eval", "examples");
    let sums = by_length(
        world,
        examples,
        |_, tokens| tokens <= batch_tokens,
        |batch| {
            let sums = summed(model, run, batch)?;
            match batch.iter().zip(&sums).find(|(_, sum)| !sum.is_finite()) {
                Some((Example { index, .. }, _)) => {
                    Err(fault(format!("the loss of example {index} is not finite"))
                        .hint("evaluate in fp32 or bf16, or train with a lower learning rate")
                        .into())
                }
                None => Ok(sums.into_iter().map(|sum| vec![sum]).collect()),
            }
        },
        |done| progress.tick(done as u64, ""),
    )?;
    progress.finish();
    let counts: Vec<f64> = examples.iter().map(|example| target_count(example) as f64).collect();
    let scores = vec![(Metric::Loss, pooled_mean(&sums.concat(), &counts))];
    Ok(Evaluation { predictions: Vec::new(), scores, report: None, seconds: start.elapsed().as_secs_f64() })
}

/// Returns each example's summed loss.
fn summed(model: &CausalLm, run: usize, examples: &[&Example]) -> Result<Vec<f64>> {
    no_grad(|| {
        let mut runs = vec![Vec::new(); model.runs];
        runs[run] = examples.to_vec();
        let layout = BatchLayout::new(&runs, Fill::None);
        let batch = layout.over(&sent(&Tensor::from_slice(&layout.table()), model.device()));
        let hidden = model.hidden(&batch.packed, &Pass::evaluation().over(&batch.packed))?;
        let device = model.logits_device();
        let sums = Tensor::zeros([examples.len() as i64], (Kind::Double, device));
        let before = batch.before.to_device(hidden.device());
        let [targets, sequences] = [&batch.targets, &batch.sequences].map(|x| x.to_device(device));
        let rows = before.size()[0];
        in_chunks(rows, model.config.vocabulary, |start, count| {
            let part = |x: &Tensor| x.narrow(0, start, count);
            let found = losses(model, &hidden.index_select(0, &part(&before)), &part(&targets))?;
            let _ = sums.shallow_clone().index_add_(0, &part(&sequences), &found.to_kind(Kind::Double));
            Ok(())
        })?;
        Ok(Vec::try_from(sums.to_device(Device::Cpu))?)
    })
}
