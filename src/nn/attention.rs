//! Multi-head attention inside each sequence of a packed batch. It gets boundaries, never masks.

use tch::Tensor;

use super::{Packed, Pass};
use crate::fault::Result;
use crate::torch::{dims3, packed_attention};

/// `softmax(q kᵀ / sqrt(d)) v` inside each sequence, with dropout on the probabilities.
///
/// # Shapes
/// `q`, `k`, `v` and the result `[m, h, d]`, where m counts the tokens of all runs.
///
/// # Errors
/// When the device's kernel refuses the shape.
pub fn attend([q, k, v]: [&Tensor; 3], batch: &Packed, dropout: f64, pass: &Pass) -> Result<Tensor> {
    let [_m, _h, d] = dims3(q);
    let dropout = if pass.drops(dropout) { dropout } else { 0.0 };
    let draw = pass.next_draw();
    // The fused kernel wants rows of whole 16-byte vectors; other head widths take the path of the CPU.
    if q.device().is_cuda() && d % 8 == 0 {
        pass.seed_run(0, draw);
        return packed_attention([q, k, v], &batch.bounds, batch.longest, dropout, (d as f64).sqrt().recip());
    }
    // Splitting, not slicing: its backward is one concatenation, where each slice would write a whole gradient.
    let tokens: Vec<i64> = batch.stretches.iter().map(|s| s.count * s.length).collect();
    let split = |x: &Tensor| x.split_with_sizes(&tokens, 0);
    let (q, k, v) = (split(q), split(k), split(v));
    let mut outputs = Vec::with_capacity(tokens.len());
    let mut position = (usize::MAX, 0);
    for (i, stretch) in batch.stretches.iter().enumerate() {
        // Counted inside the run, so that a run draws the same alone and in a grid.
        position = if position.0 == stretch.run { (stretch.run, position.1 + 1) } else { (stretch.run, 0) };
        let heads = |x: &Tensor| {
            let [_, h, d] = dims3(x);
            x.view([stretch.count, stretch.length, h, d]).transpose(1, 2) // [s, h, t, d]
        };
        if dropout > 0.0 {
            pass.seed_run(stretch.run, crate::nn::pass::mix(&[draw, position.1]));
        }
        let (q, k, v) = (heads(&q[i]), heads(&k[i]), heads(&v[i]));
        let attended =
            Tensor::f_scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, dropout, false, None, false)?;
        outputs.push(attended.transpose(1, 2).flatten(0, 1)); // [s·t, h, d]
    }
    Ok(Tensor::cat(&outputs, 0))
}
