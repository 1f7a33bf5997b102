//! Size of a token in the cache, and detection of running out of memory.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::fault::{Result, words};
use crate::models::CausalLm;
use crate::nn::cache::Shape;
use crate::torch::{free_bytes, ran_out};

/// Returns the shape of a token's entry in a model's cache.
pub fn shape(model: &CausalLm) -> Shape {
    let config = &model.config;
    Shape::new(config.layers, [config.kv_heads, config.head_width], model.decoder.kind(), model.device())
}

/// Returns the bytes of a token in the cache of each device, with the free bytes there.
pub fn rooms(model: &CausalLm) -> Vec<(usize, usize)> {
    let shape = shape(model);
    let each = shape.bytes_per_token() / shape.layers.max(1);
    let of =
        |(device, layers): (_, Range<usize>)| (each * layers.len(), free_bytes(device).unwrap_or(usize::MAX));
    model.placement.ranges(shape.layers).into_iter().map(of).collect()
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
