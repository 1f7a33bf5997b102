//! Gradient-free decoder operations on a CPU, in fp32 (products also in bf16): functions of `kernels.cpp`.
//!
//! A row's results are the same to the bit, whatever else is in the batch.

use std::ffi::{c_int, c_void};

use tch::{Device, Kind, Tensor};

use super::{cast, dims2, dims3};

unsafe extern "C" {
    #[rustfmt::skip]
    fn lx_multiply(
        x: *const f32,
        panels: *const f32,
        bias: *const f32,
        y: *mut f32,
        rows: i64,
        k: i64,
        n: i64,
        threads: i64,
    );
    fn lx_multiplies_narrow() -> c_int;
    #[rustfmt::skip]
    fn lx_multiply_narrow(
        x: *const c_void,
        panels: *const c_void,
        bias: *const f32,
        y: *mut c_void,
        rows: i64,
        pairs: i64,
        n: i64,
        threads: i64,
    );
    fn lx_normalise(x: *const f32, weight: *const f32, y: *mut f32, rows: i64, d: i64, eps: f32);
    fn lx_gate(gate: *mut f32, up: *const f32, count: i64);
    #[rustfmt::skip]
    fn lx_rotate(x: *mut f32, cos: *const f32, sin: *const f32, rows: i64, heads: i64, d: i64, half: i64);
    #[rustfmt::skip]
    fn lx_attend(
        q: *const f32,
        k: *const f32,
        v: *const f32,
        keys: *mut f32,
        values: *mut f32,
        out: *mut f32,
        places: *const i64,
        shape: *const i64,
        scale: f32,
        cap: f32,
    );
}

/// Number of elements that kernels process at a time; the sizes that they read are multiples of it.
pub const LANES: i64 = 16;

/// Returns true if weights of this kind can be packed: fp32 anywhere, bf16 if the CPU multiplies it.
pub fn packs(kind: Kind) -> bool {
    // SAFETY: asks what the CPU can do.
    kind == Kind::Float || kind == Kind::BFloat16 && unsafe { lx_multiplies_narrow() } != 0
}

fn numbers(x: &Tensor) -> *mut f32 {
    debug_assert!(x.kind() == Kind::Float && x.is_contiguous() && x.device() == Device::Cpu);
    x.data_ptr().cast()
}

fn like(x: &Tensor) -> Tensor {
    Tensor::empty(x.size(), (Kind::Float, Device::Cpu))
}

/// A weight in the memory order of our products.
#[derive(Debug)]
pub struct Panels {
    /// `[n / 16, k, 16]`; of bf16 `[n / 16, k / 2, 16, 2]`.
    panels: Tensor,
    /// `[n]`, rounded up to 16.
    bias: Tensor,
    n: i64,
    k: i64,
}

impl Panels {
    /// Copies `weight` `[n, k]` and `bias` `[n]`, both on the CPU and of a kind that [`packs`].
    pub fn new(weight: &Tensor, bias: Option<&Tensor>) -> Self {
        let [n, k] = dims2(weight);
        let missing = (LANES - n % LANES) % LANES;
        let panels = weight.detach().constant_pad_nd([0, 0, 0, missing]);
        let panels = if weight.kind() == Kind::BFloat16 {
            // An odd width gets a column of zeros.
            panels.constant_pad_nd([0, k % 2]).view([-1, LANES, (k + 1) / 2, 2]).transpose(1, 2).contiguous()
        } else {
            panels.view([-1, LANES, k]).transpose(1, 2).contiguous()
        };
        let bias = match bias {
            Some(bias) => cast(&bias.detach(), Kind::Float).constant_pad_nd([0, missing]),
            None => Tensor::zeros([n + missing], (Kind::Float, Device::Cpu)),
        };
        Self { panels, bias, n, k }
    }

    /// Returns the weight's shape, `[n, k]`.
    pub fn shape(&self) -> [i64; 2] {
        [self.n, self.k]
    }

    /// Returns the weight's kind.
    pub fn kind(&self) -> Kind {
        self.panels.kind()
    }

    /// Computes `x Wᵀ + bias`: `[m, k]` to `[m, n]`.
    pub fn multiply(&self, x: &Tensor) -> Tensor {
        if x.kind() == Kind::BFloat16 {
            return self.multiply_narrow(x);
        }
        let (x, [m, k]) = (x.contiguous(), dims2(x));
        assert_eq!(k, self.k, "width of the input");
        let y = Tensor::empty([m, self.n], (Kind::Float, Device::Cpu));
        let threads = i64::from(tch::get_num_threads());
        // SAFETY: x is [m, k], y [m, n], the panels and the bias of this k and n: all contiguous fp32 on the CPU.
        unsafe {
            let [panels, bias] = [&self.panels, &self.bias].map(numbers);
            lx_multiply(numbers(&x), panels, bias, numbers(&y), m, k, self.n, threads);
        }
        y
    }

    fn multiply_narrow(&self, x: &Tensor) -> Tensor {
        let [m, k] = dims2(x);
        let pairs = self.panels.size()[1];
        assert!(self.kind() == Kind::BFloat16 && k == self.k, "kind and width of the input");
        let x = if k % 2 == 1 { x.constant_pad_nd([0, 1]) } else { x.contiguous() };
        let y = Tensor::empty([m, self.n], (Kind::BFloat16, Device::Cpu));
        let threads = i64::from(tch::get_num_threads());
        // SAFETY: x is [m, 2 · pairs], y [m, n], the panels of these pairs and n: contiguous bf16; bias as many fp32.
        unsafe {
            let [from, panels, to] = [&x, &self.panels, &y].map(Tensor::data_ptr);
            lx_multiply_narrow(from, panels, numbers(&self.bias), to, m, pairs, self.n, threads);
        }
        y
    }
}

/// Computes `x / sqrt(mean(x²) + eps) · weight`: `x` `[.., d]`, `weight` `[d]`.
pub fn normalise(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    let x = x.contiguous();
    let (y, d) = (like(&x), weight.numel() as i64);
    // SAFETY: y has the numbers of x, which are whole rows of d.
    unsafe {
        lx_normalise(numbers(&x), numbers(weight), numbers(&y), x.numel() as i64 / d.max(1), d, eps as f32);
    }
    y
}

/// Overwrites `gate` with `silu(gate) · up`; both have the same shape and are contiguous.
pub fn gate(gate: Tensor, up: &Tensor) -> Tensor {
    assert_eq!(gate.size(), up.size(), "gate and value");
    // SAFETY: both have so many numbers.
    unsafe { lx_gate(numbers(&gate), numbers(up), gate.numel() as i64) };
    gate
}

/// Rotates the pairs (i, i + half) of each head of `x` `[m, h, d]`, contiguous, in place; `cos` and `sin` `[m, 1, half]`.
pub fn rotate(x: &Tensor, cos: &Tensor, sin: &Tensor) {
    let [m, h, d] = dims3(x);
    let [rows, _, half] = dims3(cos);
    assert!(rows == m && 2 * half <= d && sin.size() == cos.size(), "angles of the rows");
    // SAFETY: the angles have m rows of `half`, x m rows of h heads of d.
    unsafe { lx_rotate(numbers(x), numbers(cos), numbers(sin), m, h, d, half) }
}

/// Settings of attention to a cache.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Number of positions back that a token sees, itself included.
    pub window: Option<i64>,
    /// Factor applied to the scores.
    pub scale: f64,
    /// Soft cap of the scores.
    pub cap: Option<f64>,
}

/// Appends tokens to caches, and attends from each to its slot up to itself.
///
/// # Shapes
/// `q` and the result `[m, h, d]`, `k` and `v` `[m, kv, d]`; `keys` and `values` `[slots, kv, capacity / 16, d, 16]`,
/// contiguous per head. Each of the `places`: first of the m tokens, their number, slot, tokens before.
pub fn attend(
    [q, k, v]: [&Tensor; 3],
    [keys, values]: [&Tensor; 2],
    places: &[[i64; 4]],
    look: Look,
) -> Tensor {
    let [q, k, v] = [q, k, v].map(|x| cast(x, Kind::Float).contiguous());
    let ([m, h, d], [_, kv, _], size) = (dims3(&q), dims3(&k), keys.size());
    let (slots, capacity) = (size[0], size[2] * LANES);
    let fits = |&[first, count, slot, before]: &[i64; 4]| {
        first >= 0 && first + count <= m && (0..slots).contains(&slot) && before + count <= capacity
    };
    assert!(places.iter().all(fits), "places in the cache");
    assert!(
        k.size() == v.size() && size == values.size() && size[1] == kv && size[3..] == [d, LANES],
        "shapes of the cache"
    );
    let out = like(&q);
    let threads = i64::from(tch::get_num_threads());
    let shape = [h, kv, d, capacity, look.window.unwrap_or(0), places.len() as i64, threads];
    // SAFETY: the shapes and places were checked; all tensors are contiguous fp32 on the CPU.
    unsafe {
        let [q, k, v] = [&q, &k, &v].map(numbers);
        let (scale, cap) = (look.scale as f32, look.cap.unwrap_or(0.0) as f32);
        let (keys, values) = (numbers(keys), numbers(values));
        lx_attend(
            q,
            k,
            v,
            keys,
            values,
            numbers(&out),
            places.as_flattened().as_ptr(),
            shape.as_ptr(),
            scale,
            cap,
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(size: &[i64]) -> Tensor {
        let count: i64 = size.iter().product();
        let waves = (Tensor::arange(count, (Kind::Double, Device::Cpu)) + 1.0) * (0.7 + count as f64 % 7.0);
        (waves.sin() * 2.0).to_kind(Kind::Float).view(size)
    }

    fn check(found: &Tensor, wanted: &Tensor) {
        assert_eq!(found.size(), wanted.size());
        let error = f64::try_from((found - wanted).abs().max() / wanted.abs().max()).unwrap();
        assert!(error < 2e-6, "{error:e}");
    }

    #[test]
    fn products_are_libtorchs_and_a_rows_do_not_depend_on_the_batch() {
        for (n, k) in [(1, 1), (16, 8), (33, 7), (172, 64), (64, 172)] {
            let (weight, bias, x) = (noise(&[n, k]), noise(&[n]), noise(&[205, k]));
            let panels = Panels::new(&weight, Some(&bias));
            let y = panels.multiply(&x);
            check(&y, &x.linear(&weight, Some(&bias)));
            check(&Panels::new(&weight, None).multiply(&x), &x.linear(&weight, None::<&Tensor>));
            for (start, count) in [(0, 1), (17, 1), (90, 29), (204, 1)] {
                let part = panels.multiply(&x.narrow(0, start, count));
                assert_eq!(part, y.narrow(0, start, count), "{n} {k} {start} {count}");
            }
        }
    }

    #[test]
    fn norms_gates_and_rotations_are_libtorchs() {
        for d in [4, 16, 40] {
            let (x, weight) = (noise(&[3, 5, d]), noise(&[d]));
            check(&normalise(&x, &weight, 1e-5), &x.rms_norm([d], Some(&weight), 1e-5));
            let up = noise(&[3, 5, d]);
            check(&gate(&x * 20.0, &up), &((&x * 20.0).silu() * &up));
            let (cos, sin) = (noise(&[3, 1, d / 4]).cos(), noise(&[3, 1, d / 4]).sin());
            let (a, b) = (x.narrow(2, 0, d / 4), x.narrow(2, d / 4, d / 4));
            let turned = [&a * &cos - &b * &sin, &b * &cos + &a * &sin, x.narrow(2, d / 2, d / 2)];
            let wanted = Tensor::cat(&turned, 2);
            rotate(&x, &cos, &sin);
            check(&x, &wanted);
        }
    }

    #[test]
    fn products_of_bf16_are_libtorchs_and_do_not_depend_on_the_batch() {
        if !packs(Kind::BFloat16) {
            return;
        }
        for (n, k, biased) in [(5, 8, true), (32, 64, false), (70, 33, true)] {
            let narrow = |shape: &[i64]| noise(shape).to_kind(Kind::BFloat16);
            let (weight, bias, x) = (narrow(&[n, k]), narrow(&[n]), narrow(&[39, k]));
            let panels = Panels::new(&weight, biased.then_some(&bias));
            let found = panels.multiply(&x);
            let wide = |x: &Tensor| x.to_kind(Kind::Float);
            let wanted = wide(&x).linear(&wide(&weight), biased.then(|| wide(&bias)).as_ref());
            let apart = f64::try_from((wide(&found) - &wanted).abs().max()).unwrap();
            let largest = f64::try_from(wanted.abs().max()).unwrap();
            assert!(apart <= largest / 256.0, "{apart} apart of {largest}");
            for row in [0, 13, 38] {
                assert_eq!(panels.multiply(&x.narrow(0, row, 1)), found.narrow(0, row, 1));
            }
        }
    }

    /// Returns queries, keys and values of 70 tokens of one sequence, with `h` heads over 2 of keys.
    fn heads(h: i64, d: i64) -> [Tensor; 3] {
        [noise(&[70, h, d]), noise(&[70, 2, d]), noise(&[70, 2, d]) + 0.5]
    }

    fn places(lengths: &[i64]) -> Vec<[[i64; 4]; 1]> {
        let mut before = 0;
        let mut place = |&length: &i64| {
            before += length;
            [[0, length, 1, before - length]]
        };
        lengths.iter().map(&mut place).collect()
    }

    #[test]
    fn attention_is_libtorchs_and_does_not_depend_on_how_a_text_is_read() {
        for (h, d, window, cap) in [(2, 8, None, None), (6, 5, Some(19), None), (4, 24, None, Some(1.5))] {
            let [q, k, v] = heads(h, d);
            let look = Look { window, scale: 0.3, cap };
            let read = |lengths: &[i64]| {
                let caches = [(); 2].map(|()| Tensor::zeros([3, 2, 5, d, LANES], (Kind::Float, Device::Cpu)));
                let mut start = 0;
                let part = |place: &[[i64; 4]; 1]| {
                    let [_, count, _, _] = place[0];
                    let [q, k, v] = [&q, &k, &v].map(|x| x.narrow(0, start, count));
                    start += count;
                    attend([&q, &k, &v], [&caches[0], &caches[1]], place, look)
                };
                Tensor::cat(&places(lengths).iter().map(part).collect::<Vec<_>>(), 0)
            };
            let whole = read(&[70]);
            assert_eq!(whole, read(&[1; 70]));
            assert_eq!(whole, read(&[33, 1, 2, 34]));
            let [q, k, v] = [&q, &k, &v].map(|x| x.transpose(0, 1)); // [h, t, d]
            let [k, v] = [k, v].map(|x| x.repeat_interleave_self_int(h / 2, 0, None));
            let mut scores = q.matmul(&k.transpose(1, 2)) * 0.3;
            if let Some(cap) = cap {
                scores = (scores / cap).tanh() * cap;
            }
            let seen =
                Tensor::ones([70, 70], (Kind::Bool, Device::Cpu)).tril(0).triu(1 - window.unwrap_or(70));
            let weights = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY).softmax(-1, Kind::Float);
            check(&whole, &weights.matmul(&v).transpose(0, 1));
        }
    }
}
