//! Kernels of our own on a GPU: the functions of `own_cuda.cpp` over `heads.h`, `newest.h` and `norms.h`, and that of `training.cpp` over `halves.h`.

use std::ffi::{CStr, c_char, c_int};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{checked, dims3, unless_failed};

unsafe extern "C" {
    fn lx_frozen_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
    ) -> c_int;
    fn lx_cuda_norm(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        add: *const C_tensor,
        weight: *const C_tensor,
        eps: f64,
        offset: f64,
    ) -> c_int;
    fn lx_capability(index: c_int, capability: *mut c_int) -> c_int;
    fn lx_kernels_state(index: c_int, text: *mut *const c_char) -> c_int;
    fn lx_store(
        kv: *const *const C_tensor,
        cache: *const *const C_tensor,
        at: *const C_tensor,
        stored: *mut c_int,
    ) -> c_int;
    fn lx_attend_newest(
        out: *mut *mut C_tensor,
        qkv: *const *const C_tensor,
        cache: *const *const C_tensor,
        angles: *const *const C_tensor,
        positions: *const C_tensor,
        arrived: *const C_tensor,
        window: i64,
        scale: f64,
        cap: f64,
    ) -> c_int;
    fn lx_attends_newest(
        index: c_int,
        is_bf16: c_int,
        heads: i64,
        kv: i64,
        d: i64,
        serves: *mut c_int,
    ) -> c_int;
}

/// Computes `x Wᵀ + b` of a frozen layer in fp32 by products of halves, which tensor cores compute (`halves.h`); `None` where they do not serve.
pub(super) fn by_halves(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Option<Tensor> {
    if !x.device().is_cuda() || x.kind() != Kind::Float {
        return None;
    }
    let (mut y, bias) = (std::ptr::null_mut(), bias.map_or(std::ptr::null(), |bias| bias.as_ptr()));
    // SAFETY: live tensors, or null for none, for the length of the call.
    unless_failed(unsafe { lx_frozen_linear(&raw mut y, x.as_ptr(), weight.as_ptr(), bias) });
    // SAFETY: unless it is null, a new tensor that we own.
    (!y.is_null()).then(|| unsafe { Tensor::from_ptr(y) })
}

/// Returns the root-mean-square norm of `x + add` on a GPU in one kernel (`norms.h`), and that sum; without an `add`, the norm of `x` and none. `None` where
/// no kernel serves, as where the weight takes a gradient.
///
/// # Shapes
/// `x`, `add` and both results `[.., d]`; `weight` `[d]`, of fp32 or the kind of `x`, to which `offset` is added.
pub fn rms_norm(
    x: &Tensor,
    add: Option<&Tensor>,
    weight: &Tensor,
    [eps, offset]: [f64; 2],
) -> Option<(Tensor, Option<Tensor>)> {
    if !x.device().is_cuda() {
        return None;
    }
    assert!(x.size().ends_with(&weight.size()), "the norm's width");
    let mut out = [std::ptr::null_mut(); 2];
    let add = add.map_or(std::ptr::null(), |add| add.as_ptr());
    // SAFETY: live tensors, or null for none, for the length of the call.
    unless_failed(unsafe { lx_cuda_norm(out.as_mut_ptr(), x.as_ptr(), add, weight.as_ptr(), eps, offset) });
    // SAFETY: unless it is null, each is a new tensor that we own.
    let [y, sum] = out.map(|out| (!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) }));
    Some((y?, sum))
}

/// Stores keys and values of tokens in the rows `at` of a cache on a GPU, in one kernel; returns false where that does not serve.
///
/// # Shapes
/// `k` and `v` `[m, kv, d]`; `keys` and `values` `[.., kv, d]`, with more rows than any of `at`, int64 `[m]`.
pub fn store([k, v]: [&Tensor; 2], [keys, values]: [&Tensor; 2], at: &Tensor) -> bool {
    let [m, kv, d] = dims3(k);
    let fits = |cache: &Tensor| cache.size().ends_with(&[kv, d]) && cache.device() == k.device();
    assert!(v.size() == [m, kv, d] && at.size() == [m] && fits(keys) && fits(values), "keys and values");
    let (kv, cache, mut stored) = ([k, v].map(Tensor::as_ptr), [keys, values].map(Tensor::as_ptr), 0);
    // SAFETY: live tensors for the length of the call, whose shapes fit.
    unless_failed(unsafe { lx_store(kv.as_ptr(), cache.as_ptr(), at.as_ptr(), &raw mut stored) });
    stored != 0
}

/// Returns the compute capability of a GPU, as 90 for 9.0; `None` if unknown.
pub fn capability(index: usize) -> Option<i32> {
    let mut capability = 0;
    // SAFETY: `capability` is a live local.
    checked(unsafe { lx_capability(c_int::try_from(index).ok()?, &raw mut capability) }).ok()?;
    Some(capability)
}

/// Tells whether kernels of our own serve on a GPU, or why not.
pub fn state(device: Device) -> Option<String> {
    let Device::Cuda(index) = device else { return None };
    let mut text = std::ptr::null();
    // SAFETY: `text` is a live local.
    unless_failed(unsafe { lx_kernels_state(c_int::try_from(index).unwrap_or(0), &raw mut text) });
    // SAFETY: a C string that lives until the next call on this thread.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Rules of attention to a cache.
#[derive(Debug, Clone, Copy)]
pub struct NewestRules {
    /// Number of positions back that a token sees, itself included.
    pub window: Option<i64>,
    /// Factor applied to the scores.
    pub scale: f64,
    /// Bound of the scores, by a hyperbolic tangent.
    pub cap: Option<f64>,
}

/// Layer of a cache on a GPU.
#[derive(Debug, Clone, Copy)]
pub struct CachedLayer<'a> {
    /// `[slots, capacity, kv, d]`.
    pub keys: &'a Tensor,
    /// Likewise.
    pub values: &'a Tensor,
    /// Zeros, int32 `[slots, kv]`, which the kernel counts in and leaves as they were.
    pub arrived: &'a Tensor,
}

/// Returns true if [`attend_newest`] serves for queries of `heads` and keys of `kv` heads of width `d` on a GPU.
pub fn attends_newest(kind: Kind, device: Device, [heads, kv, d]: [i64; 3]) -> bool {
    let Device::Cuda(index) = device else { return false };
    if !matches!(kind, Kind::BFloat16 | Kind::Half) {
        return false;
    }
    let (index, mut serves) = (c_int::try_from(index).unwrap_or(0), 0);
    // SAFETY: `serves` is a live local.
    unless_failed(unsafe {
        lx_attends_newest(index, c_int::from(kind == Kind::BFloat16), heads, kv, d, &raw mut serves)
    });
    serves != 0
}

/// Turns the queries and keys of new tokens by their angles, cosines and sines, if there are any, stores keys and values, and attends to what the slots
/// hold, in one kernel (`newest.h`); `None` where it does not serve. Row i's token is that of slot i, after those that `positions` counts.
///
/// # Shapes
/// `q` and the result `[s, h, d]`, `k` and `v` `[s, kv, d]`, angles `[s, 1, half]` of their kind, `positions` int64 `[s]`, each less than the capacity.
pub fn attend_newest(
    [q, k, v]: [&Tensor; 3],
    layer: CachedLayer<'_>,
    angles: Option<[&Tensor; 2]>,
    positions: &Tensor,
    rules: NewestRules,
) -> Option<Tensor> {
    let ([s, _h, d], [_s, kv, _d]) = (dims3(q), dims3(k));
    let cache = [layer.keys, layer.values];
    let here = |x: &Tensor| x.is_contiguous() && x.device() == q.device();
    let fits = |x: &Tensor| here(x) && x.size()[2..] == [kv, d] && x.size()[0] >= s;
    assert!(cache.iter().all(|x| fits(x)) && layer.values.size() == layer.keys.size(), "a layer of a cache");
    let arrived = layer.arrived;
    assert!(here(arrived) && arrived.numel() as i64 >= s * kv && arrived.kind() == Kind::Int, "counts");
    let are_here = [k, v].iter().all(|x| x.device() == q.device() && x.size() == [s, kv, d]);
    assert!(are_here && here(positions) && positions.size() == [s], "new tokens");
    assert!(positions.kind() == Kind::Int64, "positions");
    let is_angle = |x: &Tensor| {
        let [rows, one, half] = dims3(x);
        rows == s && one == 1 && 2 * half <= d && x.kind() == q.kind() && x.device() == q.device()
    };
    assert!(
        angles.is_none_or(|both| both.into_iter().all(is_angle) && both[0].size() == both[1].size()),
        "angles"
    );
    let [qkv, cache] = [[q, k, v].map(Tensor::as_ptr).to_vec(), cache.map(Tensor::as_ptr).to_vec()];
    let angles = angles.map(|both| both.map(Tensor::as_ptr));
    let angles = angles.as_ref().map_or(std::ptr::null(), |both| both.as_ptr());
    let mut out = std::ptr::null_mut();
    // SAFETY: live tensors, or null for none, for the length of the call, whose shapes fit.
    unless_failed(unsafe {
        lx_attend_newest(
            &raw mut out,
            qkv.as_ptr(),
            cache.as_ptr(),
            angles,
            positions.as_ptr(),
            arrived.as_ptr(),
            rules.window.unwrap_or(0),
            rules.scale,
            rules.cap.unwrap_or(0.0),
        )
    });
    // SAFETY: unless it is null, a new tensor that we own.
    (!out.is_null()).then(|| unsafe { Tensor::from_ptr(out) })
}
