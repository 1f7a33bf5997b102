//! The most probable next tokens of each row, and drawing among them.

use tch::Tensor;

use super::Sampling;
use crate::fault::{Result, fault};
use crate::torch::dims2;
use crate::torch::draw::mix;

/// Returns the most probable token of each row.
///
/// # Shapes
/// `logits` `[s, v]`.
///
/// # Errors
/// When a row is not finite.
pub fn best(logits: &Tensor) -> Result<Vec<u32>> {
    let (most, ids) = logits.max_dim(1, false);
    // One copy to the host carries both: -1 marks a row whose largest logit is not finite.
    let ids = ids.where_self(&most.isfinite(), &Tensor::from(-1_i64).to_device(logits.device()));
    let ids: Vec<i64> = Vec::try_from(ids)?;
    ids.into_iter().map(|id| u32::try_from(id).map_err(|_| not_finite())).collect()
}

/// Returns the token with the largest score of each row; the first if all are banned.
///
/// # Shapes
/// `scores` `[s, v]`.
///
/// # Errors
/// When they cannot be copied from the device.
pub fn likeliest(scores: &Tensor) -> Result<Vec<u32>> {
    let ids: Vec<i64> = Vec::try_from(scores.argmax(1, false))?;
    ids.into_iter().map(|id| Ok(u32::try_from(id)?)).collect()
}

fn not_finite() -> anyhow::Error {
    fault("the model's logits are not finite")
        .hint("the weights may be damaged, or too large for the precision: try `--precision fp32`")
        .into()
}

/// Returns the top `count` tokens of each row, row by row, in descending order of log-probability; 0 = all.
///
/// # Shapes
/// `scores` `[s, v]`: log-probabilities, or what penalties made of them.
///
/// # Errors
/// When a row holds no number.
pub fn candidates(scores: &Tensor, count: usize) -> Result<impl Iterator<Item = Vec<(u32, f32)>>> {
    let [_, vocabulary] = dims2(scores);
    let count =
        i64::try_from(count).ok().filter(|count| (1..vocabulary).contains(count)).unwrap_or(vocabulary);
    let (scores, ids) = scores.topk(count, 1, true, true);
    let (scores, ids): (Vec<f32>, Vec<i64>) =
        (Vec::try_from(scores.flatten(0, 1))?, Vec::try_from(ids.flatten(0, 1))?);
    let count = usize::try_from(count)?;
    // A row may be banned entirely: then all its scores are -∞, which is no error.
    if scores.chunks(count).any(|row| row[0].is_nan() || row[0] == f32::INFINITY) {
        return Err(not_finite());
    }
    let rows = scores.len() / count;
    Ok((0..rows).map(move |row| {
        let range = row * count..(row + 1) * count;
        let id = |id: &i64| u32::try_from(*id).unwrap_or_default();
        ids[range.clone()].iter().map(id).zip(scores[range].iter().copied()).collect()
    }))
}

/// Applies temperature, top-k and top-p to candidates in descending order, keeping at least `least` of them.
///
/// Order and semantics are those of Transformers (`generation/logits_process.py`): top-p drops a token when
/// those before it sum to `top_p` or more.
pub fn warp(candidates: &mut Vec<(u32, f32)>, sampling: Sampling, least: usize) {
    let Sampling::Random { temperature, top_k, top_p } = sampling else { return };
    // Below this, quotients overflow fp32; long before, only the most probable token is left.
    let temperature = (temperature as f32).max(1e-30);
    for (_, score) in candidates.iter_mut() {
        *score /= temperature;
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

/// Returns the softmax of the candidates' scores.
fn probabilities(candidates: &[(u32, f32)]) -> Vec<f64> {
    let most = candidates.first().map_or(0.0, |(_, score)| f64::from(*score));
    let weights: Vec<f64> = candidates.iter().map(|(_, score)| (f64::from(*score) - most).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

/// Draws a candidate by probability: the first whose cumulative sum exceeds a number in 0..1 made from `key`.
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

/// Converts 53 bits to a number in 0..1.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use tch::Kind;

    use super::*;

    #[derive(Deserialize)]
    struct Fixture {
        filters: Filters,
    }

    #[derive(Deserialize)]
    struct Filters {
        logits: Vec<f32>,
        rows: Vec<Row>,
    }

    #[derive(Deserialize)]
    struct Row {
        temperature: f64,
        top_k: usize,
        top_p: f64,
        probabilities: Vec<f64>,
    }

    fn filters() -> Filters {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/generation.json");
        let text = std::fs::read_to_string(path).unwrap();
        serde_json::from_str::<Fixture>(&text).unwrap().filters
    }

    #[test]
    fn filters_leave_the_probabilities_of_transformers() {
        let Filters { logits, rows } = filters();
        let logits = Tensor::from_slice(&logits).unsqueeze(0);
        assert_eq!(rows.len(), 5);
        for row in rows {
            let sampling =
                Sampling::Random { temperature: row.temperature, top_k: row.top_k, top_p: row.top_p };
            let mut left =
                candidates(&logits.log_softmax(1, Kind::Float), row.top_k).unwrap().next().unwrap();
            warp(&mut left, sampling, 1);
            let weights = probabilities(&left);
            assert_eq!(left.len(), row.probabilities.iter().filter(|p| **p > 0.0).count());
            for ((id, _), weight) in left.iter().zip(weights) {
                assert!((row.probabilities[*id as usize] - weight).abs() < 1e-6, "{id}");
            }
        }
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_probable() {
        let candidates = [(5, 0.6_f32.ln()), (2, 0.3_f32.ln()), (9, 0.1_f32.ln())];
        let mut counts = [0; 10];
        for step in 0..20_000 {
            counts[draw(&candidates, &[1, 4, step]) as usize] += 1;
        }
        for (id, expected) in [(5, 12_000), (2, 6_000), (9, 2_000)] {
            assert!(i32::abs(counts[id] - expected) < 300, "{counts:?}");
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = Tensor::from_slice(&[0.0, 1.0, bad, 2.0]).view([2, 2]);
            assert!(best(&logits).is_err());
            assert!(candidates(&logits.log_softmax(1, Kind::Float), 1).is_err());
        }
        assert_eq!(best(&Tensor::from_slice(&[0.0_f32, 1.0, 3.0, 2.0]).view([2, 2])).unwrap(), [1, 0]);
    }
}
