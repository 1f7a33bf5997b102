//! Keys and values of a decoder: a fixed slot for each sequence, filled by prefill, read by decoding.

use tch::{Device, IndexOp as _, Kind, Tensor};

use super::attention::Attention;
use super::{Packed, Pass, Sight};
use crate::fault::Result;
use crate::torch::kernels::{LANES, Look, attend};
use crate::torch::{cast, dims3, zeros_on_demand};

/// Size of a token's entry in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Layers of the decoder.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: i64,
    /// Width of a head.
    pub width: i64,
    /// Kind of keys and values.
    kind: Kind,
}

impl Shape {
    /// Returns the shape for layers that compute in `kind` on `device`.
    pub fn new(layers: usize, [kv_heads, width]: [i64; 2], kind: Kind, device: Device) -> Self {
        Self { layers, kv_heads, width, kind: if device == Device::Cpu { Kind::Float } else { kind } }
    }

    /// Returns the bytes of one token in all layers.
    pub fn bytes_per_token(&self) -> usize {
        let numbers = 2 * self.layers as i64 * self.kv_heads * self.width;
        usize::try_from(numbers).unwrap_or(usize::MAX).saturating_mul(self.kind.elt_size_in_bytes())
    }
}

/// Keys and values of up to `slots` sequences of up to `capacity` tokens, layer by layer.
#[derive(Debug)]
pub struct Cache {
    /// Keys `[slots, kv, d, capacity]`: the scores of many positions are computed side by side.
    /// With kernels of our own, keys and values are `[slots, kv, capacity / 16, d, 16]`.
    keys: Vec<Tensor>,
    /// Values `[slots, kv, capacity, d]`.
    values: Vec<Tensor>,
    capacity: i64,
    /// True if our own kernels are used: on the CPU, with keys and values in fp32.
    own: bool,
}

impl Cache {
    /// Creates an empty cache. Its memory is zeroed, since masked entries must still be finite.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn new(shape: Shape, slots: i64, capacity: i64, device: Device) -> Result<Self> {
        let own = device == Device::Cpu;
        let blocks = (capacity + LANES - 1) / LANES;
        let (kv, d) = (shape.kv_heads, shape.width);
        let part = |size: &[i64]| -> Result<Vec<Tensor>> {
            // On the CPU, memory is taken on demand: few answers reach their maximum length.
            let layer = || match own {
                true => zeros_on_demand(size),
                false => Ok(Tensor::f_zeros(size, (shape.kind, device))?),
            };
            (0..shape.layers).map(|_| layer()).collect()
        };
        let (keys, values) = if own {
            let size = [slots, kv, blocks, d, LANES];
            (part(&size)?, part(&size)?)
        } else {
            (part(&[slots, kv, d, capacity])?, part(&[slots, kv, capacity, d])?)
        };
        Ok(Self { keys, values, capacity, own })
    }

    /// Returns the token axes of keys and values, and the number of steps along them for `length` tokens.
    fn axes(&self, length: i64) -> ([i64; 2], i64) {
        if self.own { ([2, 2], (length + LANES - 1) / LANES) } else { ([3, 2], length) }
    }

    fn attend(&self, layer: usize, attention: &Attention, qkv: [&Tensor; 3], places: &[[i64; 4]]) -> Tensor {
        let look = Look { window: attention.window, scale: attention.scale, cap: attention.cap };
        cast(&attend(qkv, [&self.keys[layer], &self.values[layer]], places, look), qkv[0].kind())
    }

    /// Returns true if a prompt can be continued from the end of its slot.
    pub fn continues(&self) -> bool {
        self.own
    }

    /// Returns the number of tokens that a slot can hold.
    pub fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Copies the first `length` tokens of one slot into another.
    pub fn copy_slot(&self, from: i64, to: i64, length: i64) {
        let (axes, length) = self.axes(length);
        for (axis, tensors) in axes.into_iter().zip([&self.keys, &self.values]) {
            for tensor in tensors {
                let part = |slot| tensor.i(slot).narrow(axis - 1, 0, length);
                part(to).copy_(&part(from));
            }
        }
    }

    /// Copies the first `length` tokens of slot `rows[i]` into slot i; `rows` is int64 on the device.
    pub fn reorder(&self, rows: &Tensor, length: i64) {
        let slots = rows.size().iter().product();
        let (axes, length) = self.axes(length);
        for (axis, tensors) in axes.into_iter().zip([&self.keys, &self.values]) {
            for tensor in tensors {
                let mut part = tensor.narrow(0, 0, slots).narrow(axis, 0, length);
                let moved = part.index_select(0, rows);
                part.copy_(&moved);
            }
        }
    }
}

/// Prompts being read into a cache: each attends to itself and stores its keys and values in its slot.
#[derive(Debug)]
pub struct Prefill<'a> {
    cache: &'a Cache,
    batch: &'a Packed,
    /// For each prompt: first token in the batch, number of tokens, slot, and tokens already in the slot.
    places: &'a [[i64; 4]],
}

impl<'a> Prefill<'a> {
    /// `batch` has one run; `places` gives each prompt's first token in it, its number of tokens, its slot,
    /// and the number of its tokens already in the slot: 0, unless [`Cache::continues`].
    pub fn new(cache: &'a Cache, batch: &'a Packed, places: &'a [[i64; 4]]) -> Self {
        Self { cache, batch, places }
    }
}

impl Sight for Prefill<'_> {
    fn attend(
        &self,
        layer: usize,
        attention: &Attention,
        [q, k, v]: [&Tensor; 3],
        pass: &Pass,
    ) -> Result<Tensor> {
        if self.cache.own {
            return Ok(self.cache.attend(layer, attention, [q, k, v], self.places));
        }
        for &[start, length, slot, _] in self.places {
            let part = |x: &Tensor| x.narrow(0, start, length);
            self.cache.keys[layer].i(slot).narrow(2, 0, length).copy_(&part(k).permute([1, 2, 0]));
            self.cache.values[layer].i(slot).narrow(1, 0, length).copy_(&part(v).transpose(0, 1));
        }
        attention.forward([q, k, v], self.batch, pass)
    }
}

/// One new token for each of the first slots, which attends to its slot and itself.
#[derive(Debug)]
pub struct Decode<'a> {
    cache: &'a Cache,
    /// Slot of each row, int64 `[s]`.
    rows: Tensor,
    /// Token, number of tokens, slot, and tokens before, of each row.
    places: Vec<[i64; 4]>,
    /// Position of each row's new token, int64 `[s]`.
    positions: Tensor,
    /// Positions of the cache that any row sees, rounded up.
    used: i64,
    /// For each window of the model, the positions that each row sees: `[s, 1, 1, used]`; empty if our own
    /// kernel computes each row over its own positions.
    masks: Vec<(Option<i64>, Tensor)>,
}

/// The used part of the cache is a multiple of this, so that masks and products seldom change their shape.
const STRIDE: i64 = 32;

impl<'a> Decode<'a> {
    /// Row i is slot i; `lengths` counts the tokens that each holds, `windows` lists the layers' windows.
    pub fn new(cache: &'a Cache, lengths: &[i64], windows: &[Option<i64>], device: Device) -> Self {
        let longest = 1 + lengths.iter().max().copied().unwrap_or(0);
        let used = (longest + STRIDE - 1).div_euclid(STRIDE) * STRIDE;
        let used = used.min(cache.capacity);
        let positions = Tensor::from_slice(lengths).to_device(device);
        let mut masks: Vec<(Option<i64>, Tensor)> = Vec::new();
        for &window in if cache.own { &[] } else { windows } {
            if masks.iter().all(|(known, _)| *known != window) {
                masks.push((window, mask(&positions, used, window)));
            }
        }
        let rows = Tensor::arange(lengths.len() as i64, (Kind::Int64, device));
        let places = (0..).zip(lengths).map(|(row, &length)| [row, 1, row, length]).collect();
        Self { cache, rows, places, positions, used, masks }
    }

    /// Returns the positions of the new tokens, int64 `[1, s]`.
    pub fn positions(&self) -> Tensor {
        self.positions.unsqueeze(0)
    }
}

/// Returns a mask that is true where a position is not after the row's own, and not before its window.
fn mask(positions: &Tensor, used: i64, window: Option<i64>) -> Tensor {
    let own = positions.unsqueeze(1); // [s, 1]
    let all = Tensor::arange(used, (Kind::Int64, positions.device())); // [used]
    let seen = all.less_equal_tensor(&own);
    let seen = match window {
        Some(window) => seen.logical_and(&all.greater_tensor(&(own - window))),
        None => seen,
    };
    seen.unsqueeze(1).unsqueeze(1) // [s, 1, 1, used]
}

impl Sight for Decode<'_> {
    fn attend(
        &self,
        layer: usize,
        attention: &Attention,
        [q, k, v]: [&Tensor; 3],
        _pass: &Pass,
    ) -> Result<Tensor> {
        let [s, h, d] = dims3(q);
        let [_s, kv, _d] = dims3(k);
        let (keys, values) = (&self.cache.keys[layer], &self.cache.values[layer]);
        if self.cache.own {
            return Ok(self.cache.attend(layer, attention, [q, k, v], &self.places));
        }
        let at = [Some(&self.rows), Some(&self.positions)];
        let _ = keys.permute([0, 3, 1, 2]).index_put_(&at, &cast(k, keys.kind()), false);
        let _ = values.permute([0, 2, 1, 3]).index_put_(&at, &cast(v, values.kind()), false);
        let seen = |x: &Tensor, axis| x.narrow(0, 0, s).narrow(axis, 0, self.used);
        let mask = self.masks.iter().find(|(window, _)| *window == attention.window).map(|(_, mask)| mask);
        // The queries that share a head of keys are rows of one product: nothing is repeated.
        let grouped = q.view([s, kv, h / kv, d]);
        let keys = seen(keys, 3).transpose(2, 3); // [s, kv, used, d]
        let attended = attention.explicit([&grouped, &keys, &seen(values, 2)], mask, None)?;
        Ok(attended.reshape([s, h, d]))
    }
}
