//! Multi-head attention within each sequence of a packed batch; takes boundaries, never padding masks.

use tch::{Device, Kind, Tensor};

use super::packed::Padded;
use super::{Packed, Pass};
use crate::fault::Result;
use crate::torch::{Bounds, Kernel, dims3, dims4, fused, has_flash, joined, own_cuda, packed_attention};

/// Settings of a layer's attention.
#[derive(Debug, Clone, Copy)]
pub struct Attention {
    /// True if a token sees only itself and earlier tokens.
    pub causal: bool,
    /// Number of positions back a token sees, itself included; `None` = all. Only if causal.
    pub window: Option<i64>,
    /// Factor applied to the scores.
    pub scale: f64,
    /// Soft cap c of the scores: c·tanh(x / c) (Gemma 2, arXiv 2408.00118, section 2).
    pub cap: Option<f64>,
    /// Dropout on the probabilities.
    pub dropout: f64,
}

impl Attention {
    /// Computes `softmax(cap(q kᵀ · scale)) v` in each sequence, with dropout on the probabilities. There may
    /// be fewer heads of keys and values: each serves h / kv adjacent heads of queries.
    ///
    /// # Shapes
    /// `q` and the result `[m, h, d]`, `k` and `v` `[m, kv, d]`, where m counts the tokens of all runs.
    ///
    /// # Errors
    /// When the device's kernel refuses the shape.
    pub fn forward(&self, [q, k, v]: [&Tensor; 3], batch: &Packed, pass: &Pass) -> Result<Tensor> {
        let [_m, h, _d] = dims3(q);
        let batch = batch.on(q.device());
        let drops = pass.drops(self.dropout);
        let kernel = Kernel {
            longest: batch.longest,
            dropout: if drops { self.dropout } else { 0.0 },
            causal: self.causal,
            window: self.window.filter(|&window| window < batch.longest),
            scale: self.scale,
        };
        if q.device().is_cuda() {
            return self.on_cuda([q, k, v], batch, pass, kernel);
        }
        if self.cap.is_none() && !drops && fused::attends(q) {
            return Ok(fused::packed_attention([q, k, v], &batch.bounds, kernel));
        }
        // Splitting, not slicing: its backward is one concatenation, where each slice would write a whole gradient.
        let tokens: Vec<i64> = batch.stretches.iter().map(|s| s.count * s.length).collect();
        let split = |x: &Tensor| x.split_with_sizes(&tokens, 0);
        let (q, k, v) = (split(q), split(k), split(v));
        let noise = pass.attention_masks(batch, h, self.dropout);
        let mut outputs = Vec::with_capacity(tokens.len());
        for (i, stretch) in batch.stretches.iter().enumerate() {
            let heads = |x: &Tensor| {
                let [_, h, d] = dims3(x);
                x.view([stretch.count, stretch.length, h, d]).transpose(1, 2) // [s, h, t, d]
            };
            let noise = noise.as_ref().map(|masks| &masks[i]);
            let attended = self.stretch([heads(&q[i]), heads(&k[i]), heads(&v[i])], stretch.length, noise)?;
            outputs.push(attended.transpose(1, 2).flatten(0, 1)); // [s·t, h, d]
        }
        Ok(Tensor::cat(&outputs, 0))
    }

    /// Attends in sequences of equal length t: `q` `[s, h, t, d]`, `k` and `v` `[s, kv, t, d]`, to
    /// `[s, h, t, d]`; the probabilities `[s, h, t, t]` are multiplied by `noise`.
    fn stretch(&self, [q, k, v]: [Tensor; 3], t: i64, noise: Option<&Tensor>) -> Result<Tensor> {
        let masked = self.window.is_some_and(|window| window < t);
        let explicit = self.cap.is_some() || noise.is_some();
        let mask = (masked || explicit && self.causal).then(|| self.mask(t, &q));
        if explicit {
            return self.explicit([&q, &k, &v], mask.as_ref(), noise);
        }
        let [[_, h, ..], [_, kv, ..]] = [dims4(&q), dims4(&k)];
        let (causal, grouped) = (self.causal && mask.is_none(), h != kv);
        Ok(Tensor::f_scaled_dot_product_attention(
            &q,
            &k,
            &v,
            mask.as_ref(),
            0.0,
            causal,
            self.scale,
            grouped,
        )?)
    }

    /// Returns true if one kernel of the GPU computes attention over boundaries for heads of width `d`.
    pub fn in_one_kernel(&self, kind: Kind, d: i64) -> bool {
        // Both kernels read rows of whole 16-byte vectors; FlashAttention's registers hold heads of up to 256.
        let known = matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half);
        self.cap.is_none() && known && d % 8 == 0 && d <= 256
    }

    /// Returns true if FlashAttention computes attention over boundaries for heads of width `d`, forward and backward, if it drops also with
    /// this dropout.
    pub fn by_flash(&self, kind: Kind, device: Device, (d, drops): (i64, bool)) -> bool {
        let Device::Cuda(index) = device else { return false };
        // The backward pass with dropout takes 144 KiB of shared memory for wide heads. Where a block has less, nothing is launched and nothing
        // said (`run_mha_bwd_hdim256` in PyTorch's `flash_bwd_launch_template.h`).
        let drops_well = || d <= 192 || matches!(own_cuda::capability(index), Some(80 | 90..=119));
        self.in_one_kernel(kind, d)
            && has_flash(kind, device)
            && (!drops || self.dropout == 0.0 || drops_well())
    }

    /// Attends on a GPU: in one kernel over the boundaries, or else over the batch padded to its longest sequence.
    fn on_cuda(&self, qkv: [&Tensor; 3], batch: &Packed, pass: &Pass, kernel: Kernel) -> Result<Tensor> {
        let [_m, _h, d] = dims3(qkv[0]);
        let drops = kernel.dropout > 0.0;
        // Without FlashAttention, the kernel's backward pass knows no window and, over boundaries, draws other masks than the
        // forward pass.
        let bounded = match has_flash(qkv[0].kind(), qkv[0].device()) {
            true => self.by_flash(qkv[0].kind(), qkv[0].device(), (d, drops)),
            false => self.in_one_kernel(qkv[0].kind(), d) && !drops && kernel.window.is_none(),
        };
        let runs = batch.places.len();
        if bounded && (runs == 1 || !drops) {
            pass.enter(0, qkv[0].device());
            return over_bounds(qkv, &batch.bounds, kernel);
        }
        // Each run draws from its own stream.
        let of_run = |run: usize| {
            pass.enter(run, qkv[0].device());
            let [first, count] = batch.rows_of(run);
            if bounded {
                let [q, k, v] = qkv.map(|x| x.narrow(0, first, count));
                return over_bounds([&q, &k, &v], &batch.bounds_of(run), kernel);
            }
            let parts = batch.padded()[run].iter().map(|padded| {
                let [q, k, v] = qkv.map(|x| x.narrow(0, first + padded.start, padded.tokens));
                self.over_padding([&q, &k, &v], padded, kernel)
            });
            Ok(joined(parts.collect::<Result<_>>()?))
        };
        let filled = (0..runs).filter(|&run| !batch.places[run].is_empty());
        Ok(joined(filled.map(of_run).collect::<Result<_>>()?))
    }

    /// Attends in one run's sequences, padded to the longest; `q` `[n, h, d]` to the same, `k` and `v` `[n, kv, d]`.
    fn over_padding(&self, [q, k, v]: [&Tensor; 3], padded: &Padded, kernel: Kernel) -> Result<Tensor> {
        let [_n, h, d] = dims3(q);
        let [k, v] = [k, v].map(|x| repeated(x, h, 1));
        if q.kind() == Kind::Float && self.in_one_kernel(q.kind(), d) {
            let mask = padded.added(self.window.filter(|_| self.causal), || self.seen(padded, q));
            return fused::padded_attention([q, &k, &v], &padded.to, &mask, kernel.dropout, self.scale);
        }
        let seen = self.seen(padded, q);
        let [q, k, v] = [q, &k, &v].map(|x| padded.pad(x).transpose(1, 2)); // [s, h, t, d]
        let [s, _, t, _] = dims4(&q);
        let noise = (kernel.dropout > 0.0)
            .then(|| Tensor::ones([s, h, t, t], (Kind::Float, q.device())).dropout(kernel.dropout, true));
        let attended = self.explicit([&q, &k, &v], Some(&seen), noise.as_ref())?;
        Ok(padded.unpad(&attended.transpose(1, 2)))
    }

    /// Returns the keys that each query of a padded batch sees, `[1, 1, t, t]` or `[s, 1, 1, t]`. Padding follows each
    /// sequence, where no query of a causal model looks.
    fn seen(&self, padded: &Padded, like: &Tensor) -> Tensor {
        let t = padded.longest;
        if self.causal { self.mask(t, like).view([1, 1, t, t]) } else { padded.filled.shallow_clone() }
    }

    /// Returns the keys that each query sees: `[t, t]` of booleans.
    fn mask(&self, t: i64, like: &Tensor) -> Tensor {
        let seen = Tensor::ones([t, t], (Kind::Bool, like.device())).tril(0);
        match self.window {
            Some(window) => {
                seen.logical_and(&Tensor::ones([t, t], (Kind::Bool, like.device())).triu(1 - window))
            }
            None => seen,
        }
    }

    /// Attends step by step, for capped scores and for dropout, with fp32 probabilities; `q` `[s, h, t, d]`,
    /// `k` and `v` `[s, kv, keys, d]` to `[s, h, t, d]`; `mask` is true where a key is seen, `noise` a factor
    /// of the probabilities, both broadcast to `[s, h, t, keys]`.
    pub fn explicit(
        &self,
        [q, k, v]: [&Tensor; 3],
        mask: Option<&Tensor>,
        noise: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [_s, h, _t, _d] = dims4(q);
        let (k, v) = (repeated(k, h, 1), repeated(v, h, 1));
        let mut scores = (q * self.scale).f_matmul(&k.transpose(2, 3))?; // [s, h, t, keys]
        if let Some(cap) = self.cap {
            scores = (scores / cap).tanh() * cap;
        }
        if let Some(mask) = mask {
            scores = scores.masked_fill(&mask.logical_not(), f64::NEG_INFINITY);
        }
        let mut probabilities = scores.softmax(-1, Kind::Float);
        if let Some(noise) = noise {
            // Not in place: the backward pass of softmax reads its result.
            probabilities = &probabilities * noise;
        }
        Ok(probabilities.to_kind(q.kind()).f_matmul(&v)?)
    }
}

/// Attends on a GPU in one kernel over the boundaries of sequences; shapes as in [`Attention::forward`].
fn over_bounds([q, k, v]: [&Tensor; 3], bounds: &Tensor, kernel: Kernel) -> Result<Tensor> {
    let [_n, h, _d] = dims3(q);
    let flash = has_flash(q.kind(), q.device());
    // FlashAttention reads a head of keys once for all queries that share it.
    let heads = |x: &Tensor| if flash { x.shallow_clone() } else { repeated(x, h, 1) };
    let bounds = Bounds { queries: bounds, keys: bounds, used: None, longest: [kernel.longest; 2], flash };
    packed_attention([q, &heads(k), &heads(v)], bounds, kernel)
}

/// Repeats each head along `axis`, copies side by side, until there are `heads`.
fn repeated(x: &Tensor, heads: i64, axis: i64) -> Tensor {
    let own = x.size().get(usize::try_from(axis).unwrap_or(0)).copied().unwrap_or(heads);
    if own == heads { x.shallow_clone() } else { x.repeat_interleave_self_int(heads / own, axis, None) }
}
