//! BERT and RoBERTa: embeddings, layers with norms after the sums, and BERT's pooler.

pub mod config;

use tch::Tensor;

use super::loader::Loader;
use super::trunk::Trunk;
use super::trunk_config::Activation;
use crate::fault::Result;
use crate::nn::attention::Attention;
use crate::nn::layout::Positions;
use crate::nn::{LayerNorm, Linear, Packed, Pass};
use crate::torch::fused::look_up;
use crate::torch::{cast, dims2};
use config::EncoderConfig;

/// The trunk of an encoder.
///
/// Source of the wiring: `modeling_bert.py` and `modeling_roberta.py` of Transformers.
#[derive(Debug)]
pub struct Encoder {
    words: Tensor,
    positions: Tensor,
    types: Tensor,
    embedding_norm: LayerNorm,
    /// Id whose embedding gets no gradient.
    padding: i64,
    /// Position whose embedding gets no gradient, -1 for none.
    position_padding: i64,
    dropout: f64,
    blocks: Vec<Block>,
    /// Dense and tanh on the first token; absent if the head has its own.
    pub pooler: Option<Linear>,
    /// Kind in which the layers compute.
    kind: tch::Kind,
}

/// One layer: attention, then feed-forward, each with a residual sum and a norm after it.
#[derive(Debug)]
struct Block {
    query: Linear,
    key: Linear,
    value: Linear,
    attention_output: Linear,
    attention_norm: LayerNorm,
    intermediate: Linear,
    output: Linear,
    output_norm: LayerNorm,
    activation: Activation,
    heads: i64,
    dropout: f64,
    attention: Attention,
}

impl Encoder {
    /// Builds the trunk from the loader's tensors.
    ///
    /// # Errors
    /// Collected by the loader: missing and mis-shaped tensors.
    pub fn load(config: &EncoderConfig, loader: &mut Loader, with_pooler: bool) -> Result<Self> {
        let d = config.width;
        let at = |name: &str| format!("{}.embeddings.{name}", config.prefix);
        let mut encoder = Self {
            words: loader.tensor(&at("word_embeddings.weight"), &[config.vocabulary, d])?,
            positions: loader.tensor(&at("position_embeddings.weight"), &[config.positions, d])?,
            types: loader.tensor(&at("token_type_embeddings.weight"), &[config.token_types, d])?,
            embedding_norm: loader.norm(&at("LayerNorm"), d, config.norm_eps)?,
            padding: config.padding.map_or(-1, i64::from),
            position_padding: match config.position_rule {
                Positions::FromZero => -1,
                Positions::AfterPadding(pad) => i64::from(pad),
            },
            dropout: config.dropout,
            blocks: Vec::with_capacity(config.layers),
            pooler: None,
            kind: loader.kind(),
        };
        for i in 0..config.layers {
            encoder.blocks.push(Block::load(
                config,
                loader,
                &format!("{}.encoder.layer.{i}", config.prefix),
            )?);
        }
        if with_pooler {
            encoder.pooler = Some(loader.linear(&format!("{}.pooler.dense", config.prefix), d, d)?);
        }
        Ok(encoder)
    }

    /// # Shapes
    /// `batch` of m tokens to hidden states `[m, d]`.
    pub fn forward(&self, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        let mut x = self.embed(batch, pass);
        for block in &self.blocks {
            x = block.forward(&x, batch, pass)?;
        }
        Ok(x)
    }

    /// Returns every linear layer that can take an adapter, in the order of the checkpoint's layers.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).chain(self.pooler.as_mut()).collect()
    }

    /// Returns the layers of [`Self::linears_mut`], shared.
    pub fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).chain(self.pooler.as_ref()).collect()
    }
}

impl Trunk for Encoder {
    fn depth(&self) -> usize {
        self.blocks.len()
    }

    /// Returns the normed sum of the three embeddings.
    fn embed(&self, batch: &Packed, pass: &Pass) -> Tensor {
        let sum = look_up(&self.words, &batch.ids, self.padding)
            + look_up(&self.types, &batch.types, -1)
            + look_up(&self.positions, &batch.positions, self.position_padding);
        pass.dropout(&self.embedding_norm.forward(&cast(&sum, self.kind)), self.dropout)
    }

    fn layer(&self, index: usize, x: &Tensor, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        match self.blocks.get(index) {
            Some(block) => block.forward(x, batch, pass),
            None => Ok(x.shallow_clone()),
        }
    }
}

impl Block {
    fn load(config: &EncoderConfig, loader: &mut Loader, at: &str) -> Result<Self> {
        let (d, wide) = (config.width, config.intermediate);
        Ok(Self {
            query: loader.linear(&format!("{at}.attention.self.query"), d, d)?,
            // A query's scores all move by the same number, which softmax does not see.
            key: loader.linear(&format!("{at}.attention.self.key"), d, d)?.with_idle_bias(),
            value: loader.linear(&format!("{at}.attention.self.value"), d, d)?,
            attention_output: loader.linear(&format!("{at}.attention.output.dense"), d, d)?,
            attention_norm: loader.norm(&format!("{at}.attention.output.LayerNorm"), d, config.norm_eps)?,
            intermediate: loader.linear(&format!("{at}.intermediate.dense"), wide, d)?,
            output: loader.linear(&format!("{at}.output.dense"), d, wide)?,
            output_norm: loader.norm(&format!("{at}.output.LayerNorm"), d, config.norm_eps)?,
            activation: config.activation,
            heads: config.heads,
            dropout: config.dropout,
            attention: Attention {
                causal: false,
                window: None,
                scale: ((d / config.heads) as f64).sqrt().recip(),
                cap: None,
                dropout: config.attention_dropout,
            },
        })
    }

    /// # Shapes
    /// `x` `[m, d]` on any device to the same on that of the layer.
    fn forward(&self, x: &Tensor, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        let [m, d] = dims2(x);
        let x = &x.to_device(self.output.weight().device());
        let inputs = Linear::forward_all([&self.query, &self.key, &self.value], x, pass);
        let [q, key, v] = inputs.map(|y| y.view([m, self.heads, d / self.heads])); // [m, h, d]
        let attended = self.attention.forward([&q, &key, &v], batch, pass)?.view([m, d]);
        let attended = pass.dropout(&self.attention_output.forward(&attended, pass), self.dropout);
        let x = self.attention_norm.forward(&(attended + x));
        let wide = self.activation.apply(&self.intermediate.forward(&x, pass));
        let narrow = pass.dropout(&self.output.forward(&wide, pass), self.dropout);
        Ok(self.output_norm.forward(&(narrow + x)))
    }

    fn linears(&self) -> [&Linear; 6] {
        [&self.query, &self.key, &self.value, &self.attention_output, &self.intermediate, &self.output]
    }

    fn linears_mut(&mut self) -> [&mut Linear; 6] {
        [
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.attention_output,
            &mut self.intermediate,
            &mut self.output,
        ]
    }
}
