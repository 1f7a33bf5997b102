//! Memory of a cache, and detection of running out of it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::fault::{Result, words};
use crate::models::CausalLm;
use crate::nn::cache::Shape;
use crate::torch::{free_bytes, ran_out};

/// Share of the free memory that the cache may take; the rest is for passes and other processes.
const SHARE: f64 = 0.6;

/// Returns the shape of a token's entry in a model's cache.
pub fn shape(model: &CausalLm) -> Shape {
    let config = &model.config;
    Shape::new(config.layers, [config.kv_heads, config.head_width], model.decoder.kind(), model.device())
}

/// Returns the number of slots of `bytes` each that fit into the free memory of the model's device; at least one.
pub fn affordable(bytes: usize, model: &CausalLm) -> usize {
    let free = free_bytes(model.device()).unwrap_or(usize::MAX) as f64 * SHARE;
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
