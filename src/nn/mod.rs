//! Layers over packed batches.
//!
//! Axes, everywhere: `k` runs trained together, `n` tokens packed in one run's batch, `m` = k·n, `s` sequences, `t`
//! positions in a sequence, `h` heads, `d` width (of a head inside attention), `r` rank, `v` vocabulary, `c` classes.

pub mod attention;
pub mod linear;
pub mod norm;
pub mod packed;
pub mod pass;

pub use linear::Linear;
pub use norm::LayerNorm;
pub use packed::Packed;
pub use pass::Pass;
