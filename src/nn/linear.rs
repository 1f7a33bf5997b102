//! The linear layer: a base weight and optionally an adapter. The only place where the two meet.

use tch::{Kind, Tensor, no_grad};

use super::{Pass, Weight};
use crate::adapters::Adapter;
use crate::torch::fused::{self, Adapted};
use crate::torch::{cast, dims2};

/// `y = W x + b + ΔW x`.
#[derive(Debug)]
pub struct Linear {
    name: String,
    weight: Weight,
    /// `None` also if the weight holds it.
    bias: Option<Tensor>,
    /// True if the model's outputs do not depend on the bias.
    bias_is_idle: bool,
    adapter: Option<Attached>,
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
        Self { name, weight: Weight::Dense(weight), bias, bias_is_idle: false, adapter: None }
    }

    /// Makes the gradient of the bias exactly zero, for a layer whose bias the model's outputs do not depend on. Of such a gradient, rounding
    /// leaves noise, and AdamW would make whole steps of it.
    pub fn with_idle_bias(mut self) -> Self {
        self.bias_is_idle = true;
        self
    }

    /// Returns the layer's path as in the checkpoint, without `.weight`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the base weight.
    pub fn weight(&self) -> &Weight {
        &self.weight
    }

    /// Returns `[out, in]`.
    pub fn shape(&self) -> [i64; 2] {
        self.weight.shape()
    }

    /// Puts an adapter on this layer, with dropout probability `dropout` on its input.
    pub fn attach(&mut self, adapter: Box<dyn Adapter>, dropout: f64) {
        self.adapter = Some(Attached { adapter, dropout });
    }

    /// Returns the layer's adapter.
    pub fn adapter(&self) -> Option<&dyn Adapter> {
        self.adapter.as_ref().map(|attached| attached.adapter.as_ref())
    }

    /// Returns the first run's `W + ΔW` in fp32; `None` without an adapter or on a packed weight.
    pub fn merged(&self) -> Option<Tensor> {
        let (weight, adapter) = (self.weight.dense()?, self.adapter()?);
        Some(no_grad(|| cast(weight, Kind::Float) + adapter.delta().get(0)))
    }

    /// Replaces the weight by [`Linear::merged`], rounded once.
    pub fn merge(&mut self) {
        if let Some(merged) = self.merged() {
            self.weight = Weight::Dense(cast(&merged, self.weight.kind()).detach());
            self.adapter = None;
        }
    }

    /// Returns one layer with the outputs of these, one after another; `None` if one has an adapter, or only some a bias.
    pub fn joined<const N: usize>(layers: [&Self; N]) -> Option<Self> {
        let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias.as_ref()).collect();
        let plain = layers.iter().filter(|layer| layer.adapter.is_none());
        let weights: Vec<&Tensor> = plain.filter_map(|layer| layer.weight.frozen()).collect();
        (weights.len() == N && [0, N].contains(&biases.len())).then(|| {
            let weight = Tensor::cat(&weights, 0);
            let bias = (!biases.is_empty()).then(|| Tensor::cat(&biases, 0));
            Self::new(layers[0].name.clone(), weight, bias)
        })
    }

    /// Packs the weight, which is on the CPU, for faster products without gradients.
    pub fn pack(&mut self) {
        self.weight.pack(self.bias.take());
    }

    /// # Shapes
    /// `[m, in]` to `[m, out]`.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        if let Some([y]) = Self::through_cores([self], x, pass) {
            return y;
        }
        let bias = self.bias.as_ref();
        let idle = bias.filter(|bias| self.bias_is_idle && bias.requires_grad()).map(Tensor::detach);
        let y = self.weight.multiply(x, idle.as_ref().or(bias), &pass.sequences(x));
        match &self.adapter {
            Some(Attached { adapter, dropout }) => {
                adapter.add_to(y, &pass.dropout(x, *dropout), pass.route())
            }
            None => y,
        }
    }

    /// Like [`Linear::forward`], for layers that share one input; common work is done once.
    pub fn forward_all<const N: usize>(layers: [&Self; N], x: &Tensor, pass: &Pass) -> [Tensor; N] {
        Self::through_cores(layers, x, pass).unwrap_or_else(|| layers.map(|layer| layer.forward(x, pass)))
    }

    /// Applies layers by [`fused::adapted`], if that serves all of them and one has an adapter.
    fn through_cores<const N: usize>(layers: [&Self; N], x: &Tensor, pass: &Pass) -> Option<[Tensor; N]> {
        if layers.iter().all(|layer| layer.adapter.is_none()) {
            return None;
        }
        let adapted: Option<Vec<Adapted>> = layers.iter().map(|layer| layer.through_core(x, pass)).collect();
        let adapted: [Adapted; N] = adapted?.try_into().ok()?;
        let [m, _in] = dims2(x);
        Some(fused::adapted(x, &adapted, &pass.route().blocks(m)?))
    }

    /// Returns the layer for [`fused::adapted`], if it qualifies: with an adapter through a core, or with none.
    fn through_core(&self, x: &Tensor, pass: &Pass) -> Option<Adapted<'_>> {
        let serves = fused::serves_products(x) && self.weight.kind() == x.kind();
        let weight = self.weight.frozen().filter(|_| serves)?;
        let factors = match &self.adapter {
            None => None,
            Some(attached) if pass.drops(attached.dropout) => return None,
            Some(attached) => {
                let ([a, core, b], scale) = attached.adapter.through_core()?;
                Some(([a, pass.route().own(&core), b], scale))
            }
        };
        let (factors, scale) = factors.unzip();
        Some(Adapted { weight, bias: self.bias.as_ref(), factors, scale: scale.unwrap_or(1.0) })
    }
}
