//! Layers over packed batches.
//!
//! Axes, everywhere: `m` tokens packed in a batch, those of all runs; `k` runs trained together, `s` sequences, `t`
//! positions in a sequence, `h` heads, `d` width (of a head inside attention), `r` rank, `v` vocabulary, `c` classes.
//! Hidden states are `[m, d]`: a pass's [`crate::adapters::Route`] says which run a row belongs to.

pub mod attention;
pub mod cache;
pub mod layout;
pub mod linear;
pub mod norm;
pub mod packed;
pub mod pass;
pub mod rope;
pub mod weight;

pub use linear::Linear;
pub use norm::{LayerNorm, RmsNorm};
pub use packed::Packed;
pub use pass::{Around, Noise, Pass, Sites};
pub use weight::Weight;

use tch::Tensor;

use crate::fault::Result;
use attention::Attention;
use rope::Angles;

/// Source of the tokens that a pass attends to: the packed batch itself, or a cache of earlier tokens.
pub trait Sight {
    /// Computes the attention of layer `layer`; shapes as in [`Attention::forward`].
    ///
    /// # Errors
    /// When the device's kernel refuses the shape.
    fn attend(&self, layer: usize, attention: &Attention, qkv: [&Tensor; 3], pass: &Pass) -> Result<Tensor>;

    /// As [`Sight::attend`] with queries and keys that are yet to be rotated; `None` where that is not one kernel.
    fn attend_rotating(
        &self,
        _layer: usize,
        _attention: &Attention,
        _qkv: [&Tensor; 3],
        _angles: &Angles,
    ) -> Option<Tensor> {
        None
    }
}

impl Sight for Packed {
    fn attend(&self, _layer: usize, attention: &Attention, qkv: [&Tensor; 3], pass: &Pass) -> Result<Tensor> {
        attention.forward(qkv, self, pass)
    }
}
