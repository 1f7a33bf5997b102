//! Keys and values of a decoder: a fixed slot for each sequence, filled by prefill, read by decoding.

mod prefill;

use std::cell::OnceCell;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::attention::Attention;
use super::rope::Angles;
use super::{Pass, Sight};
use crate::fault::Result;
use crate::torch::coming::sent;
pub use crate::torch::kernels::Span;
use crate::torch::kernels::{LANES, Look, attend};
use crate::torch::own_cuda::{CachedLayer, NewestRules, attend_newest, store};
use crate::torch::{Bounds, Copies, Kernel, cast, dims3, has_flash, packed_attention, zeros_on_demand};
pub use prefill::Prefill;

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
    /// Keys `[slots, capacity, kv, d]`; on the CPU, for kernels of our own, `[slots, kv, capacity / 16, d, 16]`.
    keys: Vec<Tensor>,
    /// Values, likewise.
    values: Vec<Tensor>,
    /// Counts of a kernel on a GPU, zeros between its launches: int32 `[slots, kv]`; none on the CPU.
    arrived: Vec<Tensor>,
    capacity: i64,
    /// True if our own kernels are used: on the CPU, with keys and values in fp32.
    own: bool,
}

impl Cache {
    /// Creates an empty cache, with each layer's part on the device that `layer` names. Its memory is zeroed, since masked entries must
    /// still be finite.
    ///
    /// # Errors
    /// When a device has no memory for it.
    pub fn new(shape: Shape, slots: i64, capacity: i64, layer: impl Fn(usize) -> Device) -> Result<Self> {
        let own = layer(0) == Device::Cpu;
        let blocks = (capacity + LANES - 1) / LANES;
        let (kv, d) = (shape.kv_heads, shape.width);
        let part = || -> Result<Vec<Tensor>> {
            // On the CPU, memory is taken on demand: few answers reach their maximum length.
            let part = |index| match own {
                true => zeros_on_demand(&[slots, kv, blocks, d, LANES]),
                false => Ok(Tensor::f_zeros([slots, capacity, kv, d], (shape.kind, layer(index)))?),
            };
            (0..shape.layers).map(part).collect()
        };
        let counts = |index| Ok(Tensor::f_zeros([slots, kv], (Kind::Int, layer(index)))?);
        let arrived = if own { Vec::new() } else { (0..shape.layers).map(counts).collect::<Result<_>>()? };
        Ok(Self { keys: part()?, values: part()?, arrived, capacity, own })
    }

    /// Returns the token axis of keys and values, and the number of steps along it for `length` tokens.
    fn axis(&self, length: i64) -> (i64, i64) {
        if self.own { (2, (length + LANES - 1) / LANES) } else { (1, length) }
    }

    /// Stores keys and values `[m, kv, d]` of a layer at the flat places `[m]`, slot · capacity + position.
    fn store(&self, layer: usize, at: &Tensor, [k, v]: [&Tensor; 2]) {
        let (keys, values) = (&self.keys[layer], &self.values[layer]);
        if k.device().is_cuda() && store([k, v], [keys, values], at) {
            return;
        }
        for (cache, new) in [(keys, k), (values, v)] {
            let _ = cache.flatten(0, 1).index_copy_(0, at, &cast(new, cache.kind()));
        }
    }

    /// Attends on a GPU by FlashAttention, where sequences end with their queries; `bounds`: where the queries of each begin, int32 `[s + 1]`,
    /// where its slot does, likewise, and how many tokens that holds, int32 `[s]`; `longest`: most queries, and most tokens.
    fn attend_by_flash(
        &self,
        layer: usize,
        attention: &Attention,
        q: &Tensor,
        [queries, keys, used]: [&Tensor; 3],
        longest: [i64; 2],
    ) -> Result<Tensor> {
        let bounds = Bounds { queries, keys, used: Some(used), longest, flash: true };
        let window = attention.window.filter(|&window| window < longest[1]);
        let kernel =
            Kernel { longest: longest[1], dropout: 0.0, causal: true, window, scale: attention.scale };
        let [keys, values] = [&self.keys, &self.values].map(|all| all[layer].flatten(0, 1));
        packed_attention([q, &keys, &values], bounds, kernel)
    }

    fn attend(&self, layer: usize, attention: &Attention, qkv: [&Tensor; 3], spans: &[Span]) -> Tensor {
        let look = Look { window: attention.window, scale: attention.scale, cap: attention.cap };
        cast(&attend(qkv, [&self.keys[layer], &self.values[layer]], spans, look), qkv[0].kind())
    }

    /// Returns the number of tokens that a slot can hold.
    pub fn capacity(&self) -> i64 {
        self.capacity
    }

    /// Lets each slot hold `capacity` tokens, more than before; what it holds stays. For a cache on a GPU, whose old memory is freed layer by
    /// layer.
    ///
    /// # Errors
    /// When the device has no memory for it; the cache is of no use then.
    pub fn grow(&mut self, capacity: i64) -> Result<()> {
        for tensor in self.keys.iter_mut().chain(&mut self.values) {
            let mut size = tensor.size();
            size[1] = capacity;
            let grown = Tensor::f_zeros(&size, (tensor.kind(), tensor.device()))?;
            grown.narrow(1, 0, self.capacity).f_copy_(tensor)?;
            *tensor = grown;
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Copies the first `length` tokens of one slot into others.
    pub fn copy_slot(&self, from: i64, to: Range<i64>, length: i64) {
        let (axis, length) = self.axis(length);
        for tensor in self.keys.iter().chain(&self.values) {
            let part = |first, count| tensor.narrow(0, first, count).narrow(axis, 0, length);
            part(to.start, to.end - to.start).copy_(&part(from, 1));
        }
    }

    /// Copies the tokens from `start` to `end` of slot `rows[i]` into slot i, and maybe some beside them; `rows` is int64.
    pub fn reorder(&self, rows: &Tensor, [start, end]: [i64; 2]) {
        let slots = rows.size().iter().product();
        let (axis, end) = self.axis(end);
        let start = if self.own { start / LANES } else { start };
        let mut rows = rows.shallow_clone();
        for tensor in self.keys.iter().chain(&self.values) {
            let mut part = tensor.narrow(0, 0, slots).narrow(axis, start, end - start);
            rows = rows.to_device(part.device());
            let moved = part.index_select(0, &rows);
            part.copy_(&moved);
        }
    }
}

/// One new token for each of the first slots, which attends to its slot and itself.
#[derive(Debug)]
pub struct Decode<'a> {
    cache: &'a Cache,
    /// The token of each row.
    spans: Vec<Span>,
    /// Position of each row's new token, int64 `[s]`.
    positions: Tensor,
    /// Positions of the cache that any row sees, rounded up.
    longest: i64,
    /// Index of the cache's rows, for kernels of libtorch's on a GPU.
    layout: OnceCell<Layout>,
    copies: Copies<Self>,
}

/// Places of the rows' tokens in a cache on a GPU.
#[derive(Debug)]
struct Layout {
    /// Flat place of each new token, int64 `[s]`.
    at: Tensor,
    /// 0, 1, …: the start of each row's query, and the end of the last: int32 `[s + 1]`.
    queries: Tensor,
    /// Start of each row's slot, and the end of the last: int32 `[s + 1]`.
    slots: Tensor,
    /// Tokens that each row sees, its own included: int32 `[s]`.
    used: Tensor,
}

/// The used part of the cache is a multiple of this, so that masks and products seldom change their shape.
const STRIDE: i64 = 32;

impl<'a> Decode<'a> {
    /// Row i is slot i; `lengths` counts the tokens that each holds.
    pub fn new(cache: &'a Cache, lengths: &[i64], device: Device) -> Self {
        let longest = 1 + lengths.iter().max().copied().unwrap_or(0);
        let span = |(row, &held)| Span { start: row, len: 1, slot: row, held };
        let spans = (0..).zip(lengths).map(span).collect();
        Self { spans, ..Self::at(cache, sent(&Tensor::from_slice(lengths), device), longest) }
    }

    /// As [`Decode::new`], on a GPU: `positions` int64 `[s]` counts the tokens that each slot holds, fewer than `longest`.
    pub fn at(cache: &'a Cache, positions: Tensor, longest: i64) -> Self {
        let longest = ((longest + STRIDE - 1) / STRIDE * STRIDE).min(cache.capacity);
        let (layout, copies) = (OnceCell::new(), Copies::default());
        Self { cache, spans: Vec::new(), positions, longest, layout, copies }
    }

    fn layout(&self) -> &Layout {
        self.layout.get_or_init(|| {
            let rows = self.positions.numel() as i64;
            let queries = Tensor::arange(rows + 1, (Kind::Int64, self.positions.device()));
            let slots = &queries * self.cache.capacity;
            Layout {
                at: slots.narrow(0, 0, rows) + &self.positions,
                queries: queries.to_kind(Kind::Int),
                slots: slots.to_kind(Kind::Int),
                used: (&self.positions + 1).to_kind(Kind::Int),
            }
        })
    }

    /// Returns the same tokens for a layer on another GPU.
    fn on(&self, device: Device) -> &Self {
        match !self.cache.own && device != self.positions.device() {
            true => self
                .copies
                .on(device, &|| Self::at(self.cache, self.positions.to_device(device), self.longest)),
            false => self,
        }
    }

    /// Returns the positions of the new tokens, int64 `[s]`.
    pub fn positions(&self) -> &Tensor {
        &self.positions
    }

    /// Attends by a kernel of our own on a GPU, which rotates by cosines and sines, if any, and stores keys and values, too.
    fn by_own_kernel(
        &self,
        layer: usize,
        attention: &Attention,
        qkv: [&Tensor; 3],
        angles: Option<[&Tensor; 2]>,
    ) -> Option<Tensor> {
        let device = qkv[0].device();
        if !device.is_cuda() {
            return None;
        }
        let cache = self.cache;
        let (keys, values) = (&cache.keys[layer], &cache.values[layer]);
        let rules = NewestRules { window: attention.window, scale: attention.scale, cap: attention.cap };
        let cached = CachedLayer { keys, values, arrived: &cache.arrived[layer] };
        attend_newest(qkv, cached, angles, &self.on(device).positions, rules)
    }

    /// Returns a mask `[s, 1, 1, used]` that is true where a position is not after the row's own, and not before its window.
    fn mask(&self, used: i64, window: Option<i64>) -> Tensor {
        let own = self.positions.unsqueeze(1); // [s, 1]
        let all = Tensor::arange(used, (Kind::Int64, self.positions.device())); // [used]
        let seen = all.less_equal_tensor(&own);
        let seen = match window {
            Some(window) => seen.logical_and(&all.greater_tensor(&(own - window))),
            None => seen,
        };
        seen.unsqueeze(1).unsqueeze(1)
    }
}

impl Sight for Decode<'_> {
    fn attend_rotating(
        &self,
        layer: usize,
        attention: &Attention,
        qkv: [&Tensor; 3],
        angles: &Angles,
    ) -> Option<Tensor> {
        self.by_own_kernel(layer, attention, qkv, Some(angles.parts()))
    }

    fn attend(
        &self,
        layer: usize,
        attention: &Attention,
        [q, k, v]: [&Tensor; 3],
        _pass: &Pass,
    ) -> Result<Tensor> {
        if let Some(attended) = self.by_own_kernel(layer, attention, [q, k, v], None) {
            return Ok(attended);
        }
        let [s, h, d] = dims3(q);
        let [_s, kv, _d] = dims3(k);
        if self.cache.own {
            return Ok(self.cache.attend(layer, attention, [q, k, v], &self.spans));
        }
        let own = self.on(q.device());
        let (layout, longest) = (own.layout(), own.longest);
        self.cache.store(layer, &layout.at, [k, v]);
        if attention.in_one_kernel(q.kind(), d) && has_flash(q.kind(), q.device()) {
            let bounds = [&layout.queries, &layout.slots, &layout.used];
            return self.cache.attend_by_flash(layer, attention, q, bounds, [1, longest]);
        }
        let window = attention.window.filter(|&window| window < longest);
        let (keys, values) = (&self.cache.keys[layer], &self.cache.values[layer]);
        let seen = |x: &Tensor| x.narrow(0, 0, s).narrow(1, 0, longest).transpose(1, 2); // [s, kv, used, d]
        let mask = own.mask(longest, window);
        // The queries that share a head of keys are rows of one product: nothing is repeated.
        let grouped = q.view([s, kv, h / kv, d]);
        let attended = attention.explicit([&grouped, &seen(keys), &seen(values)], Some(&mask), None)?;
        Ok(attended.reshape([s, h, d]))
    }
}
