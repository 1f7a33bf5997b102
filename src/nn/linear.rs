//! The linear layer: a base weight and optionally an adapter. The only place where the two meet.

use tch::{Kind, Tensor, no_grad};

use super::Pass;
use crate::adapters::Adapter;
use crate::torch::fused::{self, Adapted};
use crate::torch::kernels::Panels;
use crate::torch::{cast, dims3};

/// `y = W x + b + ΔW x`.
#[derive(Debug)]
pub struct Linear {
    name: String,
    weight: Tensor,
    bias: Option<Tensor>,
    adapter: Option<Attached>,
    /// The weight packed for our own products, if no gradients are needed.
    panels: Option<Panels>,
}

#[derive(Debug)]
struct Attached {
    adapter: Box<dyn Adapter>,
    /// Dropout on the adapter's input.
    dropout: f64,
}

impl Linear {
    /// `name` is the layer's path as in the checkpoint; `weight` is `[out, in]`, `bias` `[out]`.
    pub fn new(name: String, weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { name, weight, bias, adapter: None, panels: None }
    }

    /// Returns the layer's path as in the checkpoint, without `.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the base weight, `[out, in]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Returns `[out, in]`.
    pub fn shape(&self) -> [i64; 2] {
        let size = self.weight.size();
        [size[0], size[1]]
    }

    /// Puts an adapter on this layer, with dropout probability `dropout` on its input.
    pub fn attach(&mut self, adapter: Box<dyn Adapter>, dropout: f64) {
        self.adapter = Some(Attached { adapter, dropout });
    }

    /// Returns the layer's adapter.
    pub fn adapter(&self) -> Option<&dyn Adapter> {
        self.adapter.as_ref().map(|attached| attached.adapter.as_ref())
    }

    /// Replaces the weight by the first run's `W + ΔW`, summed in fp32 and rounded once.
    pub fn merge(&mut self) {
        if let Some(attached) = self.adapter.take() {
            let merged = no_grad(|| cast(&self.weight, Kind::Float) + attached.adapter.delta().get(0));
            self.weight = cast(&merged, self.weight.kind()).detach();
        }
    }

    /// Returns one layer with the outputs of these, one after another; `None` if one has an adapter, or only some a bias.
    pub fn joined<const N: usize>(layers: [&Self; N]) -> Option<Self> {
        let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias.as_ref()).collect();
        let plain = layers.iter().all(|layer| layer.adapter.is_none() && !layer.weight.requires_grad());
        (plain && [0, N].contains(&biases.len())).then(|| {
            let weight = Tensor::cat(&layers.map(|layer| &layer.weight), 0);
            let bias = (!biases.is_empty()).then(|| Tensor::cat(&biases, 0));
            Self::new(layers[0].name.clone(), weight, bias)
        })
    }

    /// Speeds up products without gradients; the weight is on the CPU and must not change after this.
    pub fn pack(&mut self) {
        self.panels = Some(Panels::new(&self.weight, self.bias.as_ref()));
    }

    /// Like [`Linear::forward`], for layers that share one input; common work is done once.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: &Tensor, pass: &Pass) -> [Tensor; N] {
        let [k, n, _in] = dims3(x);
        let adapted = layers.iter().any(|layer| layer.adapter.is_some());
        let found: Option<Vec<Adapted>> = layers.iter().map(|layer| layer.through_core(x, pass)).collect();
        match found.filter(|_| adapted).map(<[Adapted; N]>::try_from) {
            Some(Ok(adapted)) => fused::adapted(&x.flatten(0, 1), &adapted).map(|y| y.view([k, n, -1])),
            _ => layers.map(|layer| layer.forward(x, pass)),
        }
    }

    /// Returns the layer for [`fused::adapted`], if it qualifies: with an adapter through a core, or with none.
    fn through_core(&self, x: &Tensor, pass: &Pass) -> Option<Adapted<'_>> {
        let frozen = self.panels.is_none() && !self.weight.requires_grad();
        if !(frozen && fused::serves_products(x) && self.weight.kind() == x.kind()) {
            return None;
        }
        let factors = match &self.adapter {
            None => None,
            Some(attached) if pass.drops(attached.dropout) => return None,
            Some(attached) => Some(attached.adapter.through_core()?),
        };
        Some(Adapted { weight: &self.weight, bias: self.bias.as_ref(), factors })
    }

    /// # Shapes
    /// `[k, n, in]` to `[k, n, out]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let [k, n, _in] = dims3(x);
        if let Some(adapted) = self.through_core(x, pass).filter(|_| self.adapter.is_some()) {
            let [y] = fused::adapted(&x.flatten(0, 1), &[adapted]);
            return y.view([k, n, -1]);
        }
        // Flat, so that `y` is no view and an adapter can add to it in place.
        let flat = x.flatten(0, 1);
        let mut y = match &self.panels {
            Some(panels) => panels.multiply(&flat),
            None => {
                let bias = self.bias.as_ref().map(|bias| cast(bias, x.kind()));
                flat.linear(&cast(&self.weight, x.kind()), bias.as_ref())
            }
        }; // [k·n, out]
        if let Some(attached) = &self.adapter {
            y = attached.adapter.add_to(y, &pass.dropout(x, attached.dropout));
        }
        y.view([k, n, -1])
    }
}
