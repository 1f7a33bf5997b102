//! The most probable next tokens of each row, and drawing among them.

use tch::{Kind, Tensor};

use super::Sampling;
use crate::fault::{Result, fault};
use crate::nn::pass::mix;

/// The most probable token of each row.
///
/// # Shapes
/// `logits` `[s, v]`.
///
/// # Errors
/// When a row is not finite.
pub fn best(logits: &Tensor) -> Result<Vec<u32>> {
    let (most, ids) = logits.max_dim(1, false);
    // One copy to the host says both: -1 stands for a row whose largest logit is not a number.
    let ids = ids.where_self(&most.isfinite(), &Tensor::from(-1_i64).to_device(logits.device()));
    let ids: Vec<i64> = Vec::try_from(ids)?;
    ids.into_iter().map(|id| u32::try_from(id).map_err(|_| not_finite())).collect()
}

fn not_finite() -> anyhow::Error {
    fault("the model's logits are not finite")
        .hint("the weights may be damaged, or too large for the precision: try `--precision fp32`")
        .into()
}

/// The first tokens of each row in falling order of their log-probability, on the host.
#[derive(Debug)]
pub struct Candidates {
    /// Rows of `count` log-probabilities.
    scores: Vec<f32>,
    ids: Vec<i64>,
    count: usize,
}

impl Candidates {
    /// The first `count` of every row; 0 = all.
    ///
    /// # Shapes
    /// `logits` `[s, v]`.
    ///
    /// # Errors
    /// When a row is not finite.
    pub fn new(logits: &Tensor, count: usize) -> Result<Self> {
        let vocabulary = logits.size().last().copied().unwrap_or(1);
        let count = if count == 0 { vocabulary } else { vocabulary.min(i64::try_from(count)?) };
        let (scores, ids) = logits.log_softmax(1, Kind::Float).topk(count, 1, true, true);
        let (scores, ids) = (Vec::try_from(scores.flatten(0, 1))?, Vec::try_from(ids.flatten(0, 1))?);
        let found = Self { scores, ids, count: usize::try_from(count)? };
        if found.scores.chunks(found.count).any(|row| !row[0].is_finite()) {
            return Err(not_finite());
        }
        Ok(found)
    }

    /// Token and log-probability, best first, of row `row`.
    pub fn row(&self, row: usize) -> Vec<(u32, f32)> {
        let range = row * self.count..(row + 1) * self.count;
        let id = |id: &i64| u32::try_from(*id).unwrap_or_default();
        self.ids[range.clone()].iter().map(id).zip(self.scores[range].iter().copied()).collect()
    }
}

/// Applies temperature, top-k and top-p to candidates in falling order; at least `least` of them stay.
///
/// The order and the meaning are those of Transformers (`generation/logits_process.py`): top-p drops a token when
/// those before it sum up to `top_p` or more.
pub fn warp(candidates: &mut Vec<(u32, f32)>, sampling: Sampling, least: usize) {
    let Sampling::Random { temperature, top_k, top_p } = sampling else { return };
    for (_, score) in candidates.iter_mut() {
        *score /= temperature as f32;
    }
    if top_k > 0 {
        candidates.truncate(top_k.max(least));
    }
    if top_p < 1.0 {
        let weights = probabilities(candidates);
        let mut before = 0.0;
        let within = weights.iter().take_while(|&&weight| {
            let stays = before < top_p;
            before += weight;
            stays
        });
        let within = within.count();
        candidates.truncate(within.max(least));
    }
}

/// The softmax of the candidates' scores.
fn probabilities(candidates: &[(u32, f32)]) -> Vec<f64> {
    let most = candidates.first().map_or(0.0, |(_, score)| f64::from(*score));
    let weights: Vec<f64> = candidates.iter().map(|(_, score)| (f64::from(*score) - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Draws one of the candidates by its probability: the first at which the sum passes a number in 0..1 made of `key`.
pub fn draw(candidates: &[(u32, f32)], key: &[u64]) -> u32 {
    let wanted = unit(mix(key));
    let mut sum = 0.0;
    let weights = probabilities(candidates);
    let found = weights.iter().position(|weight| {
        sum += weight;
        sum > wanted
    });
    // Rounding may leave the sum below 1.
    let last = candidates.len().saturating_sub(1);
    candidates.get(found.unwrap_or(last)).map_or(0, |(id, _)| *id)
}

/// 53 bits as a number from 0 to below 1.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}
