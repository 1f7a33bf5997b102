//! Number of slots that memory allows, and detection of running out of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::Device;

use crate::fault::{Result, words};
use crate::torch::{free_bytes, ran_out};

/// Share of the free memory that the cache may take; the rest is for passes and other processes.
const SHARE: f64 = 0.6;

/// Returns the number of slots of `bytes` each that fit into the device's free memory; at least one.
pub fn affordable(bytes: usize, device: Device) -> usize {
    let free = free_bytes(device).unwrap_or(usize::MAX) as f64 * SHARE;
    ((free / bytes.max(1) as f64) as usize).max(1)
}

/// Returns what `body` returns, or `None` if the device ran out of memory.
pub fn unless_exhausted<T>(body: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    // libtorch's plain operators panic: the whole pass is then discarded, so nothing half-done is seen again.
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(error)) if ran_out(&format!("{error:#}")) => Ok(None),
        Ok(Err(error)) => Err(error),
        Err(payload) if ran_out(words(payload.as_ref())) => Ok(None),
        Err(payload) => resume_unwind(payload),
    }
}
