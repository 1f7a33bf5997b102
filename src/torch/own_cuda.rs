//! Kernels of our own on a GPU: the functions of `training.cpp` over `halves.h` and `heads.h`.

use std::ffi::c_int;

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use super::{dims3, unless_failed};

unsafe extern "C" {
    fn lx_frozen_linear(
        out: *mut *mut C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        bias: *const C_tensor,
    ) -> c_int;
    fn lx_store(
        kv: *const *const C_tensor,
        cache: *const *const C_tensor,
        at: *const C_tensor,
        stored: *mut c_int,
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
