//! How many slots memory allows, and what it says when it does not.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::Device;

use crate::fault::{Result, words};
use crate::torch::{free_bytes, ran_out};

/// Share of the free memory that the cache may take; the rest is for what a pass computes, and for others.
const SHARE: f64 = 0.6;

/// How many slots of `bytes` each fit into the free memory of the device; at least one.
pub fn affordable(bytes: usize, device: Device) -> usize {
    let free = free_bytes(device).unwrap_or(usize::MAX) as f64 * SHARE;
    ((free / bytes.max(1) as f64) as usize).max(1)
}

/// What `body` returns, or nothing when the device ran out of memory.
pub fn unless_exhausted<T>(body: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    // libtorch's plain operators panic: a pass is thrown away whole then, so nothing half-done is seen again.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(error)) if ran_out(&format!("{error:#}")) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(payload) if ran_out(words(payload.as_ref())) => Ok(None),
        Err(payload) => resume_unwind(payload),
    }
}
