//! Trunks layer by layer, for gradient checkpointing: each layer's input is kept, and the layer computed again in the backward pass.
//!
//! A layer redraws its noise from the same start ([`Pass::repetition`]), so both computations are equal.

use tch::{Tensor, no_grad};

use crate::fault::{Result, fault};
use crate::nn::{Packed, Pass};

/// A stack of layers over embeddings.
pub trait Trunk: std::fmt::Debug {
    /// Returns the number of layers.
    fn depth(&self) -> usize;

    /// Returns the input of the first layer, `[m, d]`.
    fn embed(&self, batch: &Packed, pass: &Pass) -> Tensor;

    /// Applies layer `index` alone: hidden states `[m, d]` to the same.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    fn layer(&self, index: usize, x: &Tensor, batch: &Packed, pass: &Pass) -> Result<Tensor>;
}

/// The inputs of all layers of one forward pass.
#[derive(Debug)]
pub struct Tape<'a> {
    trunk: &'a dyn Trunk,
    batch: &'a Packed,
    /// The pass of the embeddings, good for one use.
    start: Pass,
    /// Input of each layer, `[m, d]`, and its pass, good for one use.
    layers: Vec<(Tensor, Pass)>,
    /// Output of the last layer: a leaf, which receives the loss's gradient.
    hidden: Tensor,
}

impl<'a> Tape<'a> {
    /// Runs the trunk without a graph.
    pub fn record(trunk: &'a dyn Trunk, batch: &'a Packed, pass: &Pass) -> Result<Self> {
        let start = pass.repetition();
        let mut layers = Vec::with_capacity(trunk.depth());
        let hidden = no_grad(|| -> Result<Tensor> {
            let mut x = trunk.embed(batch, pass);
            for i in 0..trunk.depth() {
                let again = pass.repetition();
                let next = trunk.layer(i, &x, batch, pass)?;
                layers.push((std::mem::replace(&mut x, next), again));
            }
            Ok(x)
        })?;
        Ok(Self { trunk, batch, start, layers, hidden: hidden.detach().set_requires_grad(true) })
    }

    /// Returns hidden states `[m, d]`.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Finishes the backward pass that a loss over [`Tape::hidden`] began.
    pub fn backward(self) -> Result<()> {
        let mut gradient = self.hidden.grad();
        for (i, (input, pass)) in self.layers.into_iter().enumerate().rev() {
            if !gradient.defined() {
                return Err(fault("the loss does not depend on the trunk").into());
            }
            let x = input.detach().set_requires_grad(true);
            let y = self.trunk.layer(i, &x, self.batch, &pass)?;
            // d(sum(y · g))/dy = g: a backward pass from y with the gradient g.
            (y * gradient).sum(None).f_backward()?;
            gradient = x.grad();
        }
        let embedded = self.trunk.embed(self.batch, &self.start);
        if embedded.requires_grad() {
            (embedded * gradient).sum(None).f_backward()?;
        }
        Ok(())
    }
}
