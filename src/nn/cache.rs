//! Keys and values of what a decoder has read: a fixed place for each sequence, filled by prefill, read by decoding.

use tch::{Device, IndexOp as _, Kind, Tensor};

use super::attention::Attention;
use super::{Packed, Pass, Sight};
use crate::fault::Result;
use crate::torch::kernels::{LANES, Look, attend};
use crate::torch::{cast, dims3, zeros_on_demand};

/// What a cache must hold of each token.
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
    /// What layers that compute in `kind` on `device` keep.
    pub fn new(layers: usize, [kv_heads, width]: [i64; 2], kind: Kind, device: Device) -> Self {
        Self { layers, kv_heads, width, kind: if device == Device::Cpu { Kind::Float } else { kind } }
    }

    /// Bytes of one token in all layers.
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
    /// Whether our own kernels serve: on the CPU, where keys and values are kept in fp32.
    own: bool,
}

impl Cache {
    /// An empty cache. Its memory is zeroed: what is masked must still be finite.
    ///
    /// # Errors
    /// When the device has no memory for it.
    pub fn new(shape: Shape, slots: i64, capacity: i64, device: Device) -> Result<Self> {
        let own = device == Device::Cpu;
        let blocks = (capacity + LANES - 1) / LANES;
        let (kv, d) = (shape.kv_heads, shape.width);
        let part = |size: &[i64]| -> Result<Vec<Tensor>> {
            // On the CPU no answer is as long as it may become: most of the places are never filled
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

    /// Axes of the tokens in keys and values, and how many steps along them `length` tokens take.
    fn axes(&self, length: i64) -> ([i64; 2], i64) {
        if self.own { ([2, 2], (length + LANES - 1) / LANES) } else { ([3, 2], length) }
    }

    fn attend(&self, layer: usize, attention: &Attention, qkv: [&Tensor; 3], places: &[[i64; 4]]) -> Tensor {
        let look = Look { window: attention.window, scale: attention.scale, cap: attention.cap };
        cast(&attend(qkv, [&self.keys[layer], &self.values[layer]], places, look), qkv[0].kind())
    }

    /// Whether a prompt can be read on from where its slot ends.
    pub fn continues(&self) -> bool {
        self.own
    }

    /// Tokens that a slot can hold.
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

    /// Gives slot i what slot `rows[i]` holds, of the first `length` tokens; `rows` int64 on the device.
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

/// Prompts on their way into a cache: each sees itself, and leaves its keys and values in its slot.
#[derive(Debug)]
pub struct Prefill<'a> {
    cache: &'a Cache,
    batch: &'a Packed,
    /// Of each prompt: first token in the batch, number of tokens, slot, tokens that the slot holds of it already.
    places: &'a [[i64; 4]],
}

impl<'a> Prefill<'a> {
    /// `batch` is of one run; `places` gives each prompt's first token in it, its number of tokens, its slot, and what
    /// the slot holds of it already: nothing, unless [`Cache::continues`].
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

/// One new token of each of the first slots, which sees what its slot holds and itself.
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
    /// For each window of the model, which positions each row sees: `[s, 1, 1, used]`; none where a kernel of our own
    /// computes each row over its own positions.
    masks: Vec<(Option<i64>, Tensor)>,
}

/// The used part of the cache is a multiple of this, so that masks and products seldom change their shape.
const STRIDE: i64 = 32;

impl<'a> Decode<'a> {
    /// Row i is slot i; `lengths` says how many tokens each holds already, `windows` which windows layers have.
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

    /// Positions of the new tokens, int64 `[1, s]`.
    pub fn positions(&self) -> Tensor {
        self.positions.unsqueeze(0)
    }
}

/// True where a position is not after the row's own, and not before its window.
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
