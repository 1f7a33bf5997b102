//! Projections that share an input, apart or joined into one product.

use tch::Tensor;

use crate::models::trunk_config::Activation;
use crate::nn::{Linear, Pass};
use crate::torch::{dims2, fused, kernels};

/// Queries, keys and values.
#[derive(Debug)]
pub(super) enum Inputs {
    Apart([Linear; 3]),
    /// A single layer, and the widths of its three parts.
    Fused(Linear, [i64; 3]),
}

/// Gate and value of the feed-forward layer.
#[derive(Debug)]
pub(super) enum Gate {
    Apart([Linear; 2]),
    Fused(Linear),
}

impl Inputs {
    /// Maps `[m, d]` to queries, keys and values `[m, ..]`.
    pub(super) fn forward(&self, x: &Tensor, pass: &Pass) -> [Tensor; 3] {
        match self {
            Self::Apart(apart) => Linear::forward_all(apart.each_ref(), x, pass),
            Self::Fused(fused, widths) => {
                let all = fused.forward(x, pass);
                let [q, k, v] = *widths;
                [(0, q), (q, k), (q + k, v)].map(|(start, width)| {
                    let part = all.narrow(1, start, width);
                    // A GPU's kernels take heads that are not adjacent.
                    if part.device().is_cuda() { part } else { part.contiguous() }
                })
            }
        }
    }
}

impl Gate {
    /// Maps `[m, d]` to the gated `[m, intermediate]`.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        activation: Activation,
        (pass, packed): (&Pass, bool),
    ) -> Tensor {
        match self {
            Self::Apart([gate, up]) => {
                let [gate, up] = Linear::forward_all([gate, up], x, pass);
                match activation {
                    Activation::Silu if packed => kernels::gate(gate, &up),
                    Activation::Silu if gate.device().is_cuda() || fused::serves(&gate) => {
                        fused::swiglu(&gate, &up)
                    }
                    _ => activation.apply(&gate) * up,
                }
            }
            Self::Fused(fused) => {
                let both = fused.forward(x, pass);
                let [_m, width] = dims2(&both);
                let [gate, up] = [0, width / 2].map(|start| both.narrow(1, start, width / 2));
                match activation {
                    Activation::Silu if both.device().is_cuda() => fused::swiglu(&gate, &up),
                    _ => activation.apply(&gate) * up,
                }
            }
        }
    }
}
