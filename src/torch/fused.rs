//! Training operations with their own backward passes: the functions of `training.cpp` and `wide.h`.
//!
//! libtorch computes a low-precision norm, rotation or gate in a dozen passes over memory, and sums the
//! gradients of an input that several layers share in as many more. Here each is one pass, in fp32 inside.

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{Kernel, cast, checked, dims2, dims3, kernels, made, own_cuda, unless_failed};
use crate::fault::Result;

unsafe extern "C" {
    #[rustfmt::skip]
    fn lx_rms_norm(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        add: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        round: c_int,
    ) -> c_int;
    fn lx_rotation(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        cos: *const C_tensor,
        sin: *const C_tensor,
    ) -> c_int;
    fn lx_swiglu(out: *mut *mut C_tensor, gate: *const C_tensor, up: *const C_tensor) -> c_int;
    fn lx_adapted(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        layers: *const *const C_tensor,
        scales: *const f64,
        count: i64,
        blocks: *const i64,
        runs: i64,
    ) -> c_int;
    fn lx_wide(out: *mut *mut C_tensor, x: *const C_tensor) -> c_int;
    fn lx_through(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        matrices: *const C_tensor,
        vectors: *const C_tensor,
        blocks: *const i64,
        runs: i64,
    ) -> c_int;
    fn lx_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        blocks: *const i64,
        count: i64,
    ) -> c_int;
    fn lx_look_up(
        out: *mut *mut C_tensor,
        table: *const C_tensor,
        ids: *const C_tensor,
        padding: i64,
    ) -> c_int;
    fn lx_layer_norm(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
        eps: f64,
    ) -> c_int;
    fn lx_scaled(out: *mut *mut C_tensor, x: *const C_tensor, weight: *const C_tensor, offset: f64) -> c_int;
    fn lx_padded_attention(
        out: *mut *mut C_tensor,
        qkv: *const *const C_tensor,
        to: *const C_tensor,
        mask: *const C_tensor,
        dropout: f64,
        scale: f64,
    ) -> c_int;
    fn lx_attention(
        out: *mut *mut C_tensor,
        qkv: *const *const C_tensor,
        bounds: *const C_tensor,
        longest: i64,
        window: i64,
        scale: f64,
        causal: c_int,
    ) -> c_int;
    fn lx_softmax_loss(
        logits: *const C_tensor,
        targets: *const C_tensor,
        weights: *const C_tensor,
        losses: *const C_tensor,
    ) -> c_int;
}

/// Returns true if [`adapted`] accepts `x`: contiguous, on the CPU of bf16 or fp32.
pub fn serves_products(x: &Tensor) -> bool {
    serves(x) || x.device().is_cuda() && x.is_contiguous()
}

/// Computes attention in sequences of one length on CUDA, in fp32, with dropout on the probabilities.
///
/// # Shapes
/// `q`, `k`, `v` and the result `[n, h, d]`; `to` int64 `[n]`: each token's place in the flat `[s·t]`; `mask` fp32 `[s, 1, 1 or t, t]`,
/// added to the scores, where t is a multiple of 8.
///
/// # Errors
/// When libtorch fails.
pub fn padded_attention(
    qkv: [&Tensor; 3],
    to: &Tensor,
    mask: &Tensor,
    dropout: f64,
    scale: f64,
) -> Result<Tensor> {
    let all = qkv.map(Tensor::as_ptr);
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors for the length of the call; on success `out` is a new tensor that we own.
    unsafe {
        checked(lx_padded_attention(&raw mut out, all.as_ptr(), to.as_ptr(), mask.as_ptr(), dropout, scale))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Returns true if this file's gates accept `x`: bf16 or fp32 on the CPU, contiguous.
pub fn serves(x: &Tensor) -> bool {
    x.device() == Device::Cpu && matches!(x.kind(), Kind::BFloat16 | Kind::Float) && x.is_contiguous()
}

/// Like [`serves`], for norms, rotations and losses: bf16 only. In fp32 they save little time, so libtorch's
/// own order of operations is kept: with any other, the gradients of an ill-conditioned small model move by
/// 1e-5, and the losses of a real one diverge from PyTorch's five times as fast.
pub fn serves_row(x: &Tensor) -> bool {
    serves(x) && x.kind() == Kind::BFloat16
}

/// Computes `x / sqrt(mean(x²) + eps) · weight`; `round` rounds the quotient to the kind of `x` first.
///
/// # Shapes
/// `x` `[.., d]` to the same; `weight` fp32 `[d]`, which gets no gradient.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, round: bool) -> Tensor {
    let none = std::ptr::null();
    // SAFETY: live tensors for the length of the call.
    let [y] =
        made(|out| unsafe { lx_rms_norm(out, x.as_ptr(), none, weight.as_ptr(), eps, c_int::from(round)) });
    y
}

/// Returns `x + add` and its [`rms_norm`].
pub fn add_rms_norm([x, add]: [&Tensor; 2], weight: &Tensor, eps: f64, round: bool) -> (Tensor, Tensor) {
    assert!(x.size() == add.size() && x.kind() == add.kind(), "what is added");
    // SAFETY: live tensors for the length of the call.
    let [y, sum] = made(|out| unsafe {
        lx_rms_norm(out, x.as_ptr(), add.as_ptr(), weight.as_ptr(), eps, c_int::from(round))
    });
    (sum, y)
}

/// Rotates the pairs (i, i + half) of each head.
///
/// # Shapes
/// `x` `[m, h, d]` to the same; `cos` and `sin` `[m, 1, half]` of its kind, without gradients.
pub fn rotation(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Tensor {
    let ([m, _, d], [rows, _, half]) = (dims3(x), dims3(cos));
    assert!(rows == m && 2 * half <= d && sin.size() == cos.size() && cos.kind() == x.kind(), "angles");
    // SAFETY: live tensors for the length of the call, whose shapes fit.
    let [y] = made(|out| unsafe { lx_rotation(out, x.as_ptr(), cos.as_ptr(), sin.as_ptr()) });
    y
}

/// Computes `silu(gate) · up`; both have the same shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Tensor {
    assert!(gate.size() == up.size() && gate.kind() == up.kind(), "gate and value");
    // SAFETY: live tensors of one shape.
    let [y] = made(|out| unsafe { lx_swiglu(out, gate.as_ptr(), up.as_ptr()) });
    y
}

/// Returns true if [`packed_attention`] accepts queries `q` `[m, h, d]`: on the CPU, d a multiple of 16, in
/// fp32, or in bf16 if the CPU multiplies it.
pub fn attends(q: &Tensor) -> bool {
    let [_m, _h, d] = dims3(q);
    q.device() == Device::Cpu && d % kernels::LANES == 0 && kernels::packs(q.kind())
}

/// Computes `softmax(q kᵀ · scale) v` in each sequence, without dropout. With a `window`, a query sees
/// itself and the `window - 1` keys before it; only if causal.
///
/// # Shapes
/// `q` and the result `[m, h, d]`, `k` and `v` `[m, kv, d]`, where [`attends`]; `bounds` int32 `[s + 1]`, rising from
/// 0 to m.
pub fn packed_attention(
    [q, k, v]: [&Tensor; 3],
    bounds: &Tensor,
    Kernel { longest, causal, window, scale, .. }: Kernel,
) -> Tensor {
    let ([m, h, d], [rows, kv, width]) = (dims3(q), dims3(k));
    assert!(rows == m && width == d && h % kv == 0 && v.size() == k.size(), "queries, keys and values");
    assert!(k.kind() == q.kind() && v.kind() == q.kind(), "kinds of queries, keys and values");
    let all = [q, k, v].map(Tensor::as_ptr);
    // SAFETY: live tensors for the length of the call, whose shapes fit.
    let [y] = made(|out| unsafe {
        let window = window.unwrap_or(0);
        lx_attention(out, all.as_ptr(), bounds.as_ptr(), longest, window, scale, c_int::from(causal))
    });
    y
}

/// A layer with a frozen weight and an adapter whose core alone is trained.
#[derive(Debug)]
pub struct Adapted<'a> {
    /// `[out, in]`.
    pub weight: &'a Tensor,
    /// `[out]`.
    pub bias: Option<&'a Tensor>,
    /// A `[i, in]`, M `[k, o, i]` in fp32 or [`wide`], B `[out, o]`, if the layer has an adapter.
    pub factors: Option<[Tensor; 3]>,
    /// Factor of the adapter.
    pub scale: f64,
}

/// Computes `W x + b + s B M A x` for layers that share one input, at least one of them with an adapter; on any device.
/// `blocks` counts the rows of each run, which lie one run after another.
///
/// # Shapes
/// `x` `[m, in]` of the kind of the frozen tensors to `[m, out]` of each.
pub fn adapted<const N: usize>(x: &Tensor, layers: &[Adapted<'_>; N], blocks: &[i64]) -> [Tensor; N] {
    let (runs, [m, _in]) = (blocks.len() as i64, dims2(x));
    let cores = layers.iter().filter_map(|layer| layer.factors.as_ref().map(|[_, core, _]| dims3(core)[0]));
    assert!(cores.chain([runs]).all(|k| k == runs) && blocks.iter().sum::<i64>() == m, "runs of the rows");
    let pointers = |layer: &Adapted<'_>| -> [*const C_tensor; 5] {
        let none = [std::ptr::null(); 3];
        let [a, core, b] = layer.factors.as_ref().map_or(none, |all| all.each_ref().map(Tensor::as_ptr));
        let bias = layer.bias.map_or(std::ptr::null(), |bias| bias.as_ptr());
        [layer.weight.as_ptr(), bias, a, core, b]
    };
    let all: Vec<*const C_tensor> = layers.iter().flat_map(pointers).collect();
    let scales = layers.each_ref().map(|layer| layer.scale);
    // SAFETY: a scale and five pointers a layer, to live tensors or null where the layer has none; as many blocks as told.
    made(|out| unsafe {
        lx_adapted(out, x.as_ptr(), all.as_ptr(), scales.as_ptr(), N as i64, blocks.as_ptr(), runs)
    })
}

/// oneMKL rounds each row of a product as in any other, if there are as many.
const ROWS: i64 = 4;

/// Returns `x` `[m, d]` on the CPU with at least four rows, which further ones of zeros make up, and any other as it is. Without them, what
/// becomes of a row would depend on the number of its neighbours.
pub fn filled(x: &Tensor) -> Tensor {
    let [rows, _] = dims2(x);
    match x.device() {
        Device::Cpu if rows < ROWS => x.constant_pad_nd([0, 0, 0, ROWS - rows]),
        _ => x.shallow_clone(),
    }
}

/// Returns true for a trained leaf on the CPU, whose gradient is summed in fp64.
fn is_wide(leaf: &Tensor) -> bool {
    leaf.device() == Device::Cpu && leaf.requires_grad()
}

/// Computes `x Wᵀ + b` of at least four rows ([`filled`]). The rows are blocks of so many each, if any are given, that stay together
/// however rows are divided, so that a leaf's gradient can be summed in fp32 in each of them.
///
/// # Shapes
/// `x` `[m, i]`, the leaves or frozen tensors `weight` `[o, i]` and `bias` `[o]` to `[m, o]` of the kind of `x`.
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, blocks: &[i64]) -> Tensor {
    let ([m, i], [o, width]) = (dims2(x), dims2(weight));
    if is_wide(weight) {
        assert!(width == i && bias.is_none_or(|bias| bias.size() == [o]), "a layer's input and bias");
        let bias = bias.map_or(std::ptr::null(), |bias| bias.as_ptr());
        assert!(blocks.is_empty() || blocks.iter().sum::<i64>() == m, "rows of the blocks");
        let count = blocks.len() as i64;
        // SAFETY: live tensors, or null for none, for the length of the call; as many blocks as told.
        let [y] =
            made(|out| unsafe { lx_linear(out, x.as_ptr(), weight.as_ptr(), bias, blocks.as_ptr(), count) });
        return y;
    }
    if let Some(y) = own_cuda::by_halves(x, weight, bias) {
        return y;
    }
    let bias = bias.map(|bias| cast(bias, x.kind()));
    let rows = filled(x);
    let y = rows.linear(&cast(weight, x.kind()), bias.as_ref());
    if rows.size() == x.size() { y } else { y.narrow(0, 0, m).copy() }
}

/// Returns the rows of a table, a leaf or frozen, by their ids; that of the id `padding`, unless -1, gets no gradient.
///
/// # Shapes
/// `table` `[v, d]` and `ids` int64 `[m]` to `[m, d]`.
pub fn look_up(table: &Tensor, ids: &Tensor, padding: i64) -> Tensor {
    if !is_wide(table) {
        return Tensor::embedding(table, ids, padding, false, false);
    }
    // SAFETY: live tensors for the length of the call.
    let [rows] = made(|out| unsafe { lx_look_up(out, table.as_ptr(), ids.as_ptr(), padding) });
    rows
}

/// Normalises the last axis, with leaves or frozen tensors: `(x − mean) / sqrt(var + eps) · weight + bias`.
///
/// # Shapes
/// `x` `[.., d]` to the same; `weight` and `bias` `[d]`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Tensor {
    if !is_wide(weight) {
        let (weight, bias) = (cast(weight, x.kind()), cast(bias, x.kind()));
        return x.layer_norm(weight.size(), Some(&weight), Some(&bias), eps, true);
    }
    // SAFETY: live tensors for the length of the call.
    let [y] = made(|out| unsafe { lx_layer_norm(out, x.as_ptr(), weight.as_ptr(), bias.as_ptr(), eps) });
    y
}

/// Computes `x · (weight + offset)` in the kind of `x`, with a leaf or a frozen tensor.
///
/// # Shapes
/// `x` `[.., d]` to the same; `weight` `[d]`.
pub fn scaled(x: &Tensor, weight: &Tensor, offset: f64) -> Tensor {
    if !is_wide(weight) {
        let weight = if offset == 0.0 { weight.shallow_clone() } else { weight + offset };
        return x * cast(&weight, x.kind());
    }
    // SAFETY: live tensors for the length of the call.
    let [y] = made(|out| unsafe { lx_scaled(out, x.as_ptr(), weight.as_ptr(), offset) });
    y
}

/// Returns a trained leaf on the CPU in fp64, so that its gradient is summed in fp64 and hardly depends on how rows are divided; any other
/// tensor as it is.
pub fn wide(leaf: &Tensor) -> Tensor {
    if !is_wide(leaf) {
        return leaf.shallow_clone();
    }
    // SAFETY: a live tensor for the length of the call.
    let [wide] = made(|out| unsafe { lx_wide(out, leaf.as_ptr()) });
    wide
}

/// Computes `x Mᵀ + b` with the matrix and the vector of each row's run, made of [`wide`] leaves; `blocks` as in [`adapted`].
///
/// # Shapes
/// `x` `[m, i]`, `matrices` `[k, o, i]` and `vectors` `[k, o]` to `[m, o]` of the kind of `x`.
pub fn through(x: &Tensor, matrices: &Tensor, vectors: Option<&Tensor>, blocks: &[i64]) -> Tensor {
    let ([m, i], [k, o, width], runs) = (dims2(x), dims3(matrices), blocks.len() as i64);
    assert!(k == runs && width == i && blocks.iter().sum::<i64>() == m, "runs of the rows");
    assert!(vectors.is_none_or(|vectors| dims2(vectors) == [k, o]), "vectors of the runs");
    let vectors = vectors.map_or(std::ptr::null(), |vectors| vectors.as_ptr());
    // SAFETY: live tensors, or null for none, for the length of the call; as many blocks as told.
    let [y] =
        made(|out| unsafe { lx_through(out, x.as_ptr(), matrices.as_ptr(), vectors, blocks.as_ptr(), runs) });
    y
}

/// Returns negative log-likelihoods of `targets`; `logits` become the gradient of their weighted sum.
///
/// # Shapes
/// `logits` `[T, v]`, contiguous, without a graph; `targets` int64 and `weights` fp32 `[T]`, to fp32 `[T]`.
pub fn softmax_loss(logits: &Tensor, targets: &Tensor, weights: &Tensor) -> Tensor {
    let (targets, weights) = (targets.contiguous(), weights.contiguous());
    let losses = weights.empty_like();
    // SAFETY: as many targets, below v, weights and losses as rows.
    unless_failed(unsafe {
        lx_softmax_loss(logits.as_ptr(), targets.as_ptr(), weights.as_ptr(), losses.as_ptr())
    });
    losses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::torch::set_grad;
    use tch::Reduction;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// Numbers of `kind` without a pattern, as leaves.
    fn noise(shape: &[i64], kind: Kind) -> Tensor {
        let count = shape.iter().product::<i64>();
        let numbers = ((Tensor::arange(count, CPU) * 12.9898).sin() * 43758.547).frac() * 2.0;
        numbers.view(shape).to_kind(kind).set_requires_grad(true)
    }

    fn close(found: &Tensor, wanted: &Tensor, tolerance: f64) {
        let [found, wanted] = [found, wanted].map(|x| x.to_kind(Kind::Float));
        let largest = f64::try_from(wanted.abs().max()).unwrap();
        let apart = f64::try_from((&found - &wanted).abs().max()).unwrap();
        assert!(apart <= tolerance * largest, "{apart} apart of {largest}");
    }

    /// Asserts that `ours` and `theirs` agree on `inputs`, in outputs and in the gradients of all inputs: to
    /// 1e-5 in fp32, to three units in the last place in bf16.
    fn agree(inputs: &[&[i64]], ours: impl Fn(&[Tensor]) -> Tensor, theirs: impl Fn(&[Tensor]) -> Tensor) {
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3.0 / 256.0)] {
            let leaves = || inputs.iter().map(|shape| noise(shape, kind)).collect::<Vec<_>>();
            let (mine, other) = (leaves(), leaves());
            let wide: Vec<Tensor> = other.iter().map(|x| x.to_kind(Kind::Float)).collect();
            let (y, wanted) = (ours(&mine), theirs(&wide));
            close(&y, &wanted, tolerance);
            let weights = noise(&wanted.size(), kind).detach();
            (&y * &weights).sum(Kind::Float).backward();
            (&wanted * weights.to_kind(Kind::Float)).sum(Kind::Float).backward();
            for (mine, other) in mine.iter().zip(&other) {
                close(&mine.grad(), &other.grad(), tolerance);
            }
        }
    }

    #[test]
    fn norms_and_their_gradients_are_libtorchs() {
        for d in [5, 16, 70] {
            let weight = (Tensor::arange(d, CPU) * 0.3).cos() + 1.5;
            let norm = |x: &Tensor| x.rms_norm([d], Some(&weight), 1e-5);
            agree(&[&[3, 7, d]], |x| rms_norm(&x[0], &weight, 1e-5, false), |x| norm(&x[0]));
            let both = |(sum, y): (Tensor, Tensor)| Tensor::cat(&[sum, y], 0);
            let ours = |x: &[Tensor]| both(add_rms_norm([&x[0], &x[1]], &weight, 1e-5, false));
            let theirs = |x: &[Tensor]| both((&x[0] + &x[1], norm(&(&x[0] + &x[1]))));
            agree(&[&[700, d], &[700, d]], ours, theirs);
        }
    }

    #[test]
    fn a_quotient_is_rounded_before_the_weight_where_asked() {
        let (x, weight) = (noise(&[9, 40], Kind::BFloat16).detach(), Tensor::full([40], 1.37, CPU));
        let quotient = x.to_kind(Kind::Float).rms_norm([40], None::<&Tensor>, 1e-6).to_kind(Kind::BFloat16);
        let wanted = (quotient.to_kind(Kind::Float) * &weight).to_kind(Kind::BFloat16);
        assert_eq!(rms_norm(&x, &weight, 1e-6, true), wanted);
        assert_ne!(rms_norm(&x, &weight, 1e-6, false), wanted);
    }

    #[test]
    fn rotations_and_gates_and_their_gradients_are_libtorchs() {
        for (d, half) in [(8, 4), (64, 32), (40, 17)] {
            let angles = noise(&[6, 1, half], Kind::Float).detach();
            let turned = |x: &Tensor| {
                let (a, b, rest) =
                    (x.narrow(2, 0, half), x.narrow(2, half, half), x.narrow(2, 2 * half, d - 2 * half));
                let kind = |y: Tensor| y.to_kind(Kind::BFloat16).to_kind(Kind::Float);
                let [cos, sin] = [angles.cos(), angles.sin()].map(kind);
                Tensor::cat(&[&a * &cos - &b * &sin, &b * &cos + &a * &sin, rest], 2)
            };
            let ours = |x: &Tensor| {
                let kind = |y: Tensor| y.to_kind(Kind::BFloat16).to_kind(x.kind());
                rotation(x, &kind(angles.cos()), &kind(angles.sin()))
            };
            agree(&[&[6, 3, d]], |x| ours(&x[0]), |x| turned(&x[0]));
        }
        for width in [3, 16, 4099] {
            let shape: &[i64] = &[11, width];
            agree(&[shape, shape], |x| swiglu(&x[0], &x[1]), |x| x[0].silu() * &x[1]);
        }
    }

    #[test]
    fn attention_inside_packed_sequences_and_its_gradients_are_libtorchs() {
        let lengths = [1, 5, 16, 47, 0, 48, 49, 100];
        let bounds: Vec<i64> = std::iter::once(0)
            .chain(lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect();
        let m = lengths.iter().sum();
        let packed = Tensor::from_slice(&bounds).to_kind(Kind::Int);
        for (heads, kv, d) in [(4, 2, 16), (3, 3, 32), (6, 2, 48)] {
            for (causal, window) in [(false, None), (true, None), (true, Some(7)), (true, Some(60))] {
                let scale = 0.1;
                let kernel = Kernel { longest: 100, dropout: 0.0, causal, window, scale };
                let ours = |x: &[Tensor]| {
                    // Without such products of bf16 there is nothing to compare.
                    let kind = if attends(&x[0]) { x[0].kind() } else { Kind::Float };
                    let [q, k, v] = [0, 1, 2].map(|i| x[i].to_kind(kind));
                    packed_attention([&q, &k, &v], &packed, kernel).to_kind(x[0].kind())
                };
                let theirs = |x: &[Tensor]| {
                    let one = |i: usize| {
                        let part = |x: &Tensor| {
                            let repeated = x.repeat_interleave_self_int(heads / x.size()[1], 1, None);
                            repeated.narrow(0, bounds[i], lengths[i]).transpose(0, 1)
                        };
                        let [q, k, v] = [0, 1, 2].map(|i| part(&x[i]));
                        let mut seen = Tensor::ones([lengths[i], lengths[i]], (Kind::Bool, Device::Cpu));
                        if causal {
                            seen = seen.tril(0).triu(1 - window.unwrap_or(m));
                        }
                        let scores = q.matmul(&k.transpose(1, 2)) * scale;
                        let scores = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
                        scores.softmax(-1, Kind::Float).matmul(&v).transpose(0, 1)
                    };
                    Tensor::cat(&(0..lengths.len()).map(one).collect::<Vec<_>>(), 0)
                };
                agree(&[&[m, heads, d], &[m, kv, d], &[m, kv, d]], ours, theirs);
            }
        }
    }

    #[test]
    fn layers_of_one_input_give_what_each_gives_alone() {
        let frozen = |shape: &[i64], kind| noise(shape, kind).detach();
        let shapes = [(24, 3, 5), (8, 4, 4)]; // out, i, o
        let layers = |x: &[Tensor], kind| {
            let layer = |((out, i, o), core): ((i64, i64, i64), &Tensor)| {
                let parts = [[out, 20], [i, 20], [out, o], [1, out]].map(|shape| frozen(&shape, kind));
                (parts, core.to_kind(Kind::Float).unsqueeze(0))
            };
            shapes.into_iter().zip(&x[1..]).map(layer).collect::<Vec<_>>()
        };
        let ours = |x: &[Tensor]| {
            let parts = layers(x, x[0].kind());
            let layer = |i: usize| {
                let ([weight, a, b, bias], core) = &parts[i];
                let bias = bias.get(0);
                (weight.shallow_clone(), bias, [a.shallow_clone(), core.shallow_clone(), b.shallow_clone()])
            };
            let [first, second] = [0, 1].map(layer);
            let biased = |(weight, bias, factors): &(Tensor, Tensor, [Tensor; 3]),
                          biased: bool|
             -> [Tensor; 1] {
                let factors = factors.each_ref().map(Tensor::shallow_clone);
                adapted(
                    &x[0],
                    &[Adapted { weight, bias: biased.then_some(bias), factors: Some(factors), scale: 1.0 }],
                    &[13],
                )
            };
            let alone = [biased(&first, true), biased(&second, false)];
            let (a, b) = (&first, &second);
            let copies = |factors: &[Tensor; 3]| factors.each_ref().map(Tensor::shallow_clone);
            let both = adapted(
                &x[0],
                &[
                    Adapted { weight: &a.0, bias: Some(&a.1), factors: Some(copies(&a.2)), scale: 1.0 },
                    Adapted { weight: &b.0, bias: None, factors: Some(copies(&b.2)), scale: 1.0 },
                ],
                &[13],
            );
            for (one, of_two) in alone.iter().flatten().zip(&both) {
                close(one, of_two, 1e-6);
            }
            Tensor::cat(&both, 1)
        };
        let theirs = |x: &[Tensor]| {
            let each = |([weight, a, b, bias], core): ([Tensor; 4], Tensor), biased: bool| {
                let through = x[0].matmul(&a.tr()).matmul(&core.get(0).tr()).matmul(&b.tr());
                let y = x[0].matmul(&weight.tr()) + through;
                if biased { y + bias.get(0) } else { y }
            };
            let mut parts = layers(x, Kind::Float).into_iter();
            let [first, second] = [(); 2].map(|()| parts.next().unwrap());
            Tensor::cat(&[each(first, true), each(second, false)], 1)
        };
        agree(&[&[13, 20], &[5, 3], &[4, 4]], ours, theirs);
    }

    #[test]
    fn losses_and_their_gradients_are_libtorchs() {
        for (v, scale) in [(5, 1.0), (333, 4.0), (5000, 30.0)] {
            let logits = noise(&[7, v], Kind::Float).detach() * scale;
            let (targets, weights) =
                (Tensor::arange(7, (Kind::Int64, Device::Cpu)).remainder(v), Tensor::arange(7, CPU) * 0.2);
            let leaf = logits.copy().set_requires_grad(true);
            let wanted = leaf.cross_entropy_loss(&targets, None::<&Tensor>, Reduction::None, -100, 0.0);
            (&wanted * &weights).sum(Kind::Float).backward();
            let found = softmax_loss(&logits, &targets, &weights);
            close(&found, &wanted, 1e-6);
            close(&logits, &leaf.grad(), 1e-6);
        }
        let broken = Tensor::from_slice(&[1.0f32, f32::NAN, 0.0]).view([1, 3]);
        let one = Tensor::ones([1], CPU);
        let loss = softmax_loss(&broken, &Tensor::zeros([1], (Kind::Int64, Device::Cpu)), &one);
        assert!(f64::try_from(loss.get(0)).unwrap().is_nan());
    }

    #[test]
    fn gradients_of_wide_leaves_do_not_depend_on_how_rows_are_divided() {
        let (x, dy) = (noise(&[40, 48], Kind::Float).detach(), noise(&[40, 16], Kind::Float).detach());
        let gradients = |parts: &[i64]| -> [Tensor; 2] {
            let leaves = [noise(&[1, 16, 48], Kind::Float), noise(&[1, 16], Kind::Float)];
            let sums = leaves.each_ref().map(|leaf| leaf.zeros_like().to_kind(Kind::Double));
            leaves.iter().zip(&sums).for_each(|(leaf, sum)| set_grad(leaf, sum).unwrap());
            let rows = x.split_with_sizes(parts, 0).into_iter().zip(dy.split_with_sizes(parts, 0));
            for ((x, dy), count) in rows.zip(parts) {
                let y = through(&x, &wide(&leaves[0]), Some(&wide(&leaves[1])), &[*count]);
                (y * dy).sum(Kind::Float).backward();
            }
            sums.map(|sum| sum.to_kind(Kind::Float))
        };
        let whole = gradients(&[40]);
        let plain = dy.tr().mm(&x).unsqueeze(0);
        close(&whole[0], &plain, 1e-5);
        close(&whole[1], &dy.sum_dim_intlist(0, true, Kind::Float), 1e-5);
        for parts in [&[20, 20][..], &[1, 2, 3, 34], &[39, 1], &[5; 8]] {
            assert_eq!(gradients(parts), whole, "{parts:?}");
        }
    }

    /// Layers over rows `[m, d]` with ids, leaves of a base, and the lengths of their sequences.
    type Layers<'a> = &'a dyn Fn(&Tensor, &Tensor, &[Tensor; 7], &[i64]) -> Tensor;

    /// Returns the gradients of leaves after passes over so many sequences each, summed in `kind`.
    fn gradients([x, ids, dy]: [&Tensor; 3], parts: &[&[i64]], kind: Kind, layers: Layers) -> [Tensor; 7] {
        let (width, out) = (dims2(x)[1], dims2(dy)[1]);
        let shapes: [&[i64]; 7] =
            [&[out, width], &[out], &[7, width], &[width], &[width], &[width], &[out, width]];
        let leaves = shapes.map(|shape| noise(shape, Kind::Float));
        let sums = leaves.each_ref().map(|leaf| leaf.zeros_like().to_kind(kind));
        leaves.iter().zip(&sums).for_each(|(leaf, sum)| set_grad(leaf, sum).unwrap());
        let mut start = 0;
        for part in parts {
            let rows: i64 = part.iter().sum();
            let [x, ids, dy] = [x, ids, dy].map(|all| all.narrow(0, start, rows));
            (layers(&x, &ids, &leaves, part) * dy).sum(Kind::Float).backward();
            start += rows;
        }
        sums.map(|sum| sum.to_kind(Kind::Float))
    }

    #[test]
    fn gradients_of_a_base_are_libtorchs_and_do_not_depend_on_how_sequences_are_divided() {
        let lengths = [5, 1, 12, 300, 3, 40];
        let m = lengths.iter().sum();
        let ids = Tensor::arange(m, (Kind::Int64, Device::Cpu)).remainder(7);
        let theirs = |x: &Tensor, ids: &Tensor, leaves: &[Tensor; 7], _: &[i64]| {
            let [weight, bias, table, scale, shift, root, free] = leaves;
            let x = x.to_kind(Kind::Float) + Tensor::embedding(table, ids, 0, false, false);
            let x = x.layer_norm(scale.size(), Some(scale), Some(shift), 1e-5, true);
            (&x * (root + 1.0)).linear(weight, Some(bias)) + x.linear(free, None::<&Tensor>)
        };
        for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::BFloat16, 3.0 / 256.0)] {
            let ours = |x: &Tensor, ids: &Tensor, leaves: &[Tensor; 7], blocks: &[i64]| {
                let [weight, bias, table, scale, shift, root, free] = leaves;
                let x = layer_norm(&(x + cast(&look_up(table, ids, 0), kind)), scale, shift, 1e-5);
                linear(&scaled(&x, root, 1.0), weight, Some(bias), blocks) + linear(&x, free, None, &[])
            };
            for (width, out) in [(48, 64), (21, 7), (33, 13)] {
                let (x, dy) = (noise(&[m, width], kind).detach(), noise(&[m, out], kind).detach());
                let all = [&x, &ids, &dy];
                let whole = gradients(all, &[&lengths], Kind::Double, &ours);
                let plain = gradients(all, &[&lengths], Kind::Float, &theirs);
                whole.iter().zip(&plain).for_each(|(found, wanted)| close(found, wanted, tolerance));
                for parts in
                    [&[&lengths[..3], &lengths[3..]][..], &[&lengths[..1], &lengths[1..5], &lengths[5..]]]
                {
                    assert_eq!(
                        gradients(all, parts, Kind::Double, &ours),
                        whole,
                        "{kind:?} {width} {parts:?}"
                    );
                }
            }
        }
    }
}
