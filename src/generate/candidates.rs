//! The most probable next tokens of each row, and drawing among them.

use tch::{Kind, Tensor};

use super::Sampling;
use crate::fault::{Result, fault};
use crate::torch::dims2;

/// Returns the most probable token of each row, int64 `[s]`: -1 where it is not finite.
///
/// # Shapes
/// `logits` `[s, v]`.
pub fn best(logits: &Tensor) -> Tensor {
    let (most, ids) = logits.max_dim(1, false);
    ids.masked_fill(&most.isfinite().logical_not(), -1)
}

/// Returns the token with the largest score of each row, int64 `[s]`; the first if all are banned.
///
/// # Shapes
/// `scores` `[s, v]`.
pub fn likeliest(scores: &Tensor) -> Tensor {
    scores.argmax(1, false)
}

/// Returns chosen tokens, int64 `[s]`, as numbers.
///
/// # Errors
/// When a row was not finite, and its token is -1.
pub fn tokens(ids: &Tensor) -> Result<Vec<u32>> {
    let ids: Vec<i64> = Vec::try_from(ids)?;
    ids.into_iter().map(|id| u32::try_from(id).map_err(|_| not_finite())).collect()
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
    let count = kept(scores, count);
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

/// Returns how many of a row's scores are among the top `count`; 0 = all.
fn kept(scores: &Tensor, count: usize) -> i64 {
    let [_, vocabulary] = dims2(scores);
    i64::try_from(count).ok().filter(|count| (1..vocabulary).contains(count)).unwrap_or(vocabulary)
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

/// Draws a candidate by probability: the first whose cumulative sum exceeds `wanted`, in 0..1.
pub fn draw(candidates: &[(u32, f32)], wanted: f64) -> u32 {
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

/// Draws a token of each row as [`candidates`], [`warp`] and [`draw`] do, on the device of the scores; int64 `[s]`, -1 where a row holds
/// no number.
///
/// # Shapes
/// `scores` `[s, v]`, and of each row the number `wanted` in 0..1, `[s]` in fp64.
pub fn draw_on_device(scores: &Tensor, sampling: Sampling, wanted: &Tensor) -> Tensor {
    let Sampling::Random { temperature, top_k, top_p } = sampling else { return likeliest(scores) };
    let (scores, ids) = scores.topk(kept(scores, top_k), 1, true, true); // [s, c]
    let weights = (&scores / temperature.max(1e-30)).softmax(1, Kind::Double);
    let sums = weights.cumsum(1, Kind::Double);
    // What top-p keeps is the beginning of a row: `last` is its last place, `[s, 1]`.
    let last = (&sums - &weights).lt(top_p).sum_dim_intlist(1, true, Kind::Int64).clamp_min(1) - 1;
    let wanted = wanted.unsqueeze(1) * sums.gather(1, &last, false);
    let place = sums.le_tensor(&wanted).sum_dim_intlist(1, true, Kind::Int64).minimum(&last);
    let most = scores.narrow(1, 0, 1);
    let is_wrong = most.isnan().logical_or(&most.isposinf());
    ids.gather(1, &place, false).masked_fill(&is_wrong, -1).flatten(0, 1)
}

/// Converts 53 bits to a number in 0..1.
pub fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use tch::{Device, Kind};

    use super::*;
    use crate::torch::draw::mix;

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
            counts[draw(&candidates, unit(mix(&[1, 4, step]))) as usize] += 1;
        }
        for (id, expected) in [(5, 12_000), (2, 6_000), (9, 2_000)] {
            assert!(i32::abs(counts[id] - expected) < 300, "{counts:?}");
        }
    }

    #[test]
    fn rows_that_are_drawn_at_once_are_drawn_as_one_by_one() {
        tch::manual_seed(7);
        let logits = Tensor::randn([300, 40], (Kind::Float, Device::Cpu)) * 3.0;
        let scores = logits.log_softmax(1, Kind::Float);
        let wanted: Vec<f64> = (0..300).map(|row| unit(mix(&[3, row]))).collect();
        for (temperature, top_k, top_p) in
            [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.9), (2.0, 30, 0.5), (1e-40, 0, 1.0), (1.0, 1, 0.1)]
        {
            let sampling = Sampling::Random { temperature, top_k, top_p };
            let each = candidates(&scores, top_k).unwrap().zip(&wanted).map(|(mut found, wanted)| {
                warp(&mut found, sampling, 1);
                draw(&found, *wanted)
            });
            let at_once = draw_on_device(&scores, sampling, &Tensor::from_slice(&wanted));
            assert_eq!(tokens(&at_once).unwrap(), each.collect::<Vec<_>>());
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_refused() {
        for bad in [f32::NAN, f32::INFINITY] {
            let logits = Tensor::from_slice(&[0.0, 1.0, bad, 2.0]).view([2, 2]);
            assert!(tokens(&best(&logits)).is_err());
            let sampling = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0 };
            assert!(tokens(&draw_on_device(&logits, sampling, &Tensor::from_slice(&[0.5; 2]))).is_err());
            assert!(candidates(&logits.log_softmax(1, Kind::Float), 1).is_err());
        }
        let logits = Tensor::from_slice(&[0.0_f32, 1.0, 3.0, 2.0]).view([2, 2]);
        assert_eq!(tokens(&best(&logits)).unwrap(), [1, 0]);
    }
}
