//! Decoders of the Llama line: rotary attention and a gated feed-forward, norms before the sums.
//!
//! All families share one wiring; [`DecoderConfig`] holds the differences. Source: the `modeling_*.py` of
//! Llama, Mistral, Gemma, Gemma 2, Qwen2, Qwen3 and Phi-3 in Transformers 5.

pub mod causal;
pub mod config;
pub(super) mod fields;
mod projections;
mod rope_fields;

use tch::{Device, Kind, Tensor};

use super::loader::Loader;
use super::trunk::Trunk;
use super::trunk_config::Activation;
use crate::fault::Result;
use crate::nn::attention::Attention;
use crate::nn::rope::{Angles, Rope};
use crate::nn::{Linear, Packed, Pass, RmsNorm, Sight};
use crate::torch::{cast, dims2, fused};
use config::DecoderConfig;
use projections::{Gate, Inputs};

/// The trunk of a decoder.
#[derive(Debug)]
pub struct Decoder {
    words: Tensor,
    /// Factor applied to the embeddings, rounded to their kind as in Transformers.
    scale: Option<Tensor>,
    /// Id whose embedding gets no gradient, -1 for none.
    padding: i64,
    blocks: Vec<Block>,
    norm: RmsNorm,
    frequencies: Tensor,
    kind: Kind,
}

/// One layer: attention, then feed-forward, each with a norm before it and a residual sum after it.
#[derive(Debug)]
struct Block {
    inputs: Inputs,
    output: Linear,
    gate: Gate,
    down: Linear,
    attention_norm: RmsNorm,
    feed_forward_norm: RmsNorm,
    /// Norms of the outputs of attention and feed-forward.
    output_norms: Option<[RmsNorm; 2]>,
    /// Norms of each head of queries and keys.
    head_norms: Option<[RmsNorm; 2]>,
    attention: Attention,
    activation: Activation,
    /// Width of a head.
    head_width: i64,
    dropout: f64,
    /// True if our own kernels are used, which have no gradients.
    packed: bool,
}

impl Decoder {
    /// Builds the trunk from the loader's tensors.
    ///
    /// # Errors
    /// Collected by the loader: missing and mis-shaped tensors.
    pub fn load(config: &DecoderConfig, loader: &mut Loader) -> Result<Self> {
        let words = loader.tensor("model.embed_tokens.weight", &[config.vocabulary, config.width])?;
        let blocks = (0..config.layers).map(|i| Block::load(config, loader, i)).collect::<Result<_>>()?;
        let norm = loader.rms_norm("model.norm", config.width, config.norm_offset, config.norm_eps)?;
        let (kind, device) = (loader.kind(), loader.placement().first());
        let scale = |scale: f64| Tensor::from(scale).to_kind(kind).to_device(device);
        Ok(Self {
            words,
            scale: config.embedding_scale.map(scale),
            padding: config.padding.unwrap_or(-1),
            blocks,
            norm,
            frequencies: config.rope.frequencies(device),
            kind,
        })
    }

    /// Returns the embedding, `[v, d]`.
    pub fn words(&self) -> &Tensor {
        &self.words
    }

    /// Returns the kind in which the layers compute.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns hidden states after the last norm.
    ///
    /// # Shapes
    /// `ids` and `positions` int64 `[m]` to `[m, d]`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(
        &self,
        ids: &Tensor,
        positions: &Tensor,
        sight: &dyn Sight,
        pass: &Pass,
    ) -> Result<Tensor> {
        let mut angles = Rope::angles(positions, &self.frequencies, self.kind);
        let mut hidden = Hidden { x: self.look_up(ids), add: None };
        for (i, block) in self.blocks.iter().enumerate() {
            let device = block.device();
            if hidden.x.device() != device {
                (hidden, angles) = (hidden.moved_to(device), angles.to_device(device));
            }
            hidden = block.forward(hidden, &angles, (i, sight), pass)?;
        }
        Ok(hidden.normed(&self.norm).1)
    }

    /// Applies the last norm.
    pub fn normed(&self, x: &Tensor) -> Tensor {
        self.norm.forward(x)
    }

    fn look_up(&self, ids: &Tensor) -> Tensor {
        let x = cast(&fused::look_up(&self.words, ids, self.padding), self.kind);
        match &self.scale {
            Some(scale) => x * scale,
            None => x,
        }
    }

    /// Switches to our own kernels for all later passes: on the CPU, without gradients.
    pub fn pack(&mut self) {
        if self.kind == Kind::Float {
            self.norm.pack();
            self.blocks.iter_mut().for_each(Block::pack);
        } else {
            self.linears_mut().into_iter().for_each(Linear::pack);
        }
    }

    /// Returns true if FlashAttention serves every layer on this GPU, for heads of width `d`, if it `drops` also with dropout.
    pub fn attends_in_one_kernel(&self, device: Device, of: (i64, bool)) -> bool {
        self.blocks.iter().all(|block| block.attention.by_flash(self.kind, device, of))
    }

    /// Joins layers that share an input into one product, if no adapter is attached.
    pub fn join(&mut self) {
        self.blocks.iter_mut().for_each(Block::join);
    }

    /// Returns every linear layer that can take an adapter, in the order of the checkpoint's layers.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).collect()
    }

    /// Returns the layers of [`Self::linears_mut`], shared.
    pub fn linears(&self) -> Vec<&Linear> {
        self.blocks.iter().flat_map(Block::linears).collect()
    }
}

/// Hidden states `[m, d]`: a sum that is yet to be computed, if there is something to add.
#[derive(Debug)]
struct Hidden {
    x: Tensor,
    add: Option<Tensor>,
}

impl Hidden {
    /// Returns `x + add`; on a GPU the next norm computes it.
    fn added(x: Tensor, add: Tensor) -> Self {
        if x.device().is_cuda() { Self { x, add: Some(add) } } else { Self { x: x + add, add: None } }
    }

    fn sum(self) -> Tensor {
        match self.add {
            Some(add) => self.x + add,
            None => self.x,
        }
    }

    /// Returns the sum, and its norm.
    fn normed(self, norm: &RmsNorm) -> (Tensor, Tensor) {
        match self.add {
            Some(add) => norm.add_forward(&self.x, &add),
            None => {
                let normed = norm.forward(&self.x);
                (self.x, normed)
            }
        }
    }

    fn moved_to(self, device: Device) -> Self {
        Self { x: self.sum().to_device(device), add: None }
    }
}

impl Trunk for Decoder {
    fn depth(&self) -> usize {
        self.blocks.len()
    }

    fn embed(&self, batch: &Packed, _pass: &Pass) -> Tensor {
        self.look_up(&batch.ids)
    }

    fn layer(&self, index: usize, x: &Tensor, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        let angles = Rope::angles(&batch.positions, &self.frequencies, self.kind);
        match self.blocks.get(index) {
            Some(block) => {
                let device = block.device();
                let hidden = Hidden { x: x.to_device(device), add: None };
                Ok(block.forward(hidden, &angles.to_device(device), (index, batch), pass)?.sum())
            }
            None => Ok(x.shallow_clone()),
        }
    }
}

impl Block {
    fn load(config: &DecoderConfig, loader: &mut Loader, index: usize) -> Result<Self> {
        let at = |end: &str| format!("model.layers.{index}.{end}");
        let (d, wide, head) = (config.width, config.intermediate, config.head_width);
        let [q, kv] = [config.heads * head, config.kv_heads * head];
        let mut linear = |end: &str, out, inputs, bias| loader.linear_with(&at(end), out, inputs, bias);
        let (inputs, gate) = if config.fused {
            let qkv = linear("self_attn.qkv_proj", q + 2 * kv, d, config.qkv_bias)?;
            let gate_up = linear("mlp.gate_up_proj", 2 * wide, d, config.mlp_bias)?;
            (Inputs::Fused(qkv, [q, kv, kv]), Gate::Fused(gate_up))
        } else {
            let inputs = [
                linear("self_attn.q_proj", q, d, config.qkv_bias)?,
                linear("self_attn.k_proj", kv, d, config.qkv_bias)?,
                linear("self_attn.v_proj", kv, d, config.qkv_bias)?,
            ];
            let gate = [
                linear("mlp.gate_proj", wide, d, config.mlp_bias)?,
                linear("mlp.up_proj", wide, d, config.mlp_bias)?,
            ];
            (Inputs::Apart(inputs), Gate::Apart(gate))
        };
        let output = linear("self_attn.o_proj", d, q, config.output_bias)?;
        let down = linear("mlp.down_proj", d, wide, config.mlp_bias)?;
        let mut norm =
            |end: &str, width| loader.rms_norm(&at(end), width, config.norm_offset, config.norm_eps);
        let attention_norm = norm("input_layernorm", d)?;
        // Gemma 2 renames the norm before the feed-forward layers, and reuses its name after attention.
        let (feed_forward_norm, output_norms) = if config.output_norms {
            let outputs = [norm("post_attention_layernorm", d)?, norm("post_feedforward_layernorm", d)?];
            (norm("pre_feedforward_layernorm", d)?, Some(outputs))
        } else {
            (norm("post_attention_layernorm", d)?, None)
        };
        let head_norms = if config.head_norms {
            Some([norm("self_attn.q_norm", head)?, norm("self_attn.k_norm", head)?])
        } else {
            None
        };
        let attention = Attention {
            causal: true,
            window: config.windows.get(index).copied().flatten(),
            scale: config.score_scale,
            cap: config.score_cap,
            dropout: config.attention_dropout,
        };
        Ok(Self {
            inputs,
            output,
            gate,
            down,
            attention_norm,
            feed_forward_norm,
            output_norms,
            head_norms,
            attention,
            activation: config.activation,
            head_width: head,
            dropout: config.dropout,
            packed: false,
        })
    }

    fn device(&self) -> Device {
        self.output.weight().device()
    }

    /// # Shapes
    /// `hidden` `[m, d]` to the same.
    fn forward(
        &self,
        hidden: Hidden,
        angles: &Angles,
        sight: (usize, &dyn Sight),
        pass: &Pass,
    ) -> Result<Hidden> {
        let [m, _d] = dims2(&hidden.x);
        let (x, normed) = hidden.normed(&self.attention_norm);
        let [q, key, v] = self.inputs.forward(&normed, pass).map(|y| y.view([m, -1, self.head_width]));
        let [q, key] = match &self.head_norms {
            Some([q_norm, k_norm]) => [q_norm.forward(&q), k_norm.forward(&key)],
            None => [q, key],
        };
        let (layer, sight) = sight;
        let attended = match sight.attend_rotating(layer, &self.attention, [&q, &key, &v], angles) {
            Some(attended) => attended,
            None => {
                let rotated = |x| if self.packed { angles.rotate_in_place(x) } else { angles.rotate(&x) };
                let [q, key] = [q, key].map(rotated);
                sight.attend(layer, &self.attention, [&q, &key, &v], pass)?
            }
        };
        let attended = self.after(0, self.output.forward(&attended.view([m, -1]), pass), pass);
        let (x, normed) = self.feed_forward_norm.add_forward(&x, &attended);
        let wide = self.gate.forward(&normed, self.activation, (pass, self.packed));
        let narrow = self.after(1, self.down.forward(&wide, pass), pass);
        Ok(Hidden::added(x, narrow))
    }

    fn pack(&mut self) {
        self.packed = true;
        self.linears_mut().into_iter().for_each(Linear::pack);
        let norms = [&mut self.attention_norm, &mut self.feed_forward_norm].into_iter();
        norms
            .chain(self.output_norms.iter_mut().chain(&mut self.head_norms).flatten())
            .for_each(RmsNorm::pack);
    }

    fn join(&mut self) {
        if let Inputs::Apart(apart) = &self.inputs
            && let Some(joined) = Linear::joined(apart.each_ref())
        {
            self.inputs = Inputs::Fused(joined, apart.each_ref().map(|linear| linear.shape()[0]));
        }
        if let Gate::Apart(apart) = &self.gate
            && let Some(joined) = Linear::joined(apart.each_ref())
        {
            self.gate = Gate::Fused(joined);
        }
    }

    /// Applies norm and dropout to the output of attention (0) or feed-forward (1).
    fn after(&self, part: usize, y: Tensor, pass: &Pass) -> Tensor {
        let y = match &self.output_norms {
            Some(norms) => norms[part].forward(&y),
            None => y,
        };
        pass.dropout(&y, self.dropout)
    }

    fn linears(&self) -> Vec<&Linear> {
        // In Transformers' order of registration, in which PEFT numbers layers.
        let mut linears: Vec<&Linear> = match &self.inputs {
            Inputs::Apart(apart) => apart.iter().chain([&self.output]).collect(),
            Inputs::Fused(fused, _) => vec![&self.output, fused],
        };
        match &self.gate {
            Gate::Apart(apart) => linears.extend(apart),
            Gate::Fused(fused) => linears.push(fused),
        }
        linears.push(&self.down);
        linears
    }

    fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut linears: Vec<&mut Linear> = match &mut self.inputs {
            Inputs::Apart(apart) => apart.iter_mut().chain([&mut self.output]).collect(),
            Inputs::Fused(fused, _) => vec![&mut self.output, fused],
        };
        match &mut self.gate {
            Gate::Apart(apart) => linears.extend(apart),
            Gate::Fused(fused) => linears.push(fused),
        }
        linears.push(&mut self.down);
        linears
    }
}
