//! Size of a token in the cache.

use std::ops::Range;

use crate::models::CausalLm;
use crate::nn::cache::Shape;
use crate::torch::free_bytes;

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
