//! A language model: a decoder and the layer that turns its hidden states into logits over the vocabulary.

use tch::{Device, Kind, Tensor};

use super::Decoder;
use super::config::DecoderConfig;
use crate::adapters::Trained;
use crate::fault::{Result, reading};
use crate::models::checkpoint::{Base, Build, OUTPUT, WORDS};
use crate::models::loader::Loader;
use crate::models::placement::Placement;
use crate::models::trunk::Tape;
use crate::nn::{Packed, Pass, Weight};
use crate::torch::kernels::packs;
use crate::torch::own_cuda::attends_newest;
use crate::torch::{cast, fused, has_flash};

/// Largest weights that stay in a CPU's caches: for these, threads work best on separate prompts.
pub const MOST_PACKED_BYTES: i64 = 64 << 20;

/// Largest bf16 weights to be packed.
pub const MOST_NARROW_BYTES: i64 = 4 << 30;

/// A decoder with its output layer.
#[derive(Debug)]
pub struct CausalLm {
    /// Shape and switches.
    pub config: DecoderConfig,
    /// The trunk.
    pub decoder: Decoder,
    /// `[v, d]`; the embedding itself where they are tied, on its device: the one trained tensor of both has one gradient, and to
    /// move hidden states back costs less than a second table.
    head: Weight,
    /// Where its parts lie.
    pub placement: Placement,
    /// k, the number of runs trained together.
    pub runs: usize,
}

impl CausalLm {
    /// Loads the trunk and the output layer; with `build.train_base` every weight goes into `trained`.
    ///
    /// # Errors
    /// Names every missing and mis-shaped tensor at once.
    pub fn load(base: &Base, build: &Build, trained: &mut Trained) -> Result<Self> {
        let config = base.config.decoder()?.clone();
        let placement = build.placement(base)?;
        let _reading = reading(&base.folder);
        let store = if build.train_base { Some(trained) } else { None };
        let mut loader = Loader::new(&base.tensors, "model", build.kind, placement.clone(), store);
        loader.alias(WORDS, base.stored_words());
        let decoder = Decoder::load(&config, &mut loader)?;
        let head = if base.has_output_layer() {
            loader.tensor(OUTPUT, &[config.vocabulary, config.width])?
        } else {
            decoder.words().shallow_clone()
        };
        // A copy of the tied embedding, and a buffer of old versions.
        loader.finish(|name| name == OUTPUT || name.ends_with("rotary_emb.inv_freq"))?;
        Ok(Self { config, decoder, head: Weight::Dense(head), placement, runs: build.seeds.len() })
    }

    /// Returns the device of its inputs.
    pub fn device(&self) -> Device {
        self.placement.first()
    }

    /// Returns the device of its logits.
    pub fn logits_device(&self) -> Device {
        self.head.device()
    }

    /// Prepares for passes without gradients of one run; adapters are best merged first. On a GPU, layers that share an input are joined.
    /// Weights are packed for our own kernels on the CPU: up to [`MOST_PACKED_BYTES`] in fp32, or, if the CPU
    /// multiplies bf16, [`MOST_NARROW_BYTES`] in it.
    pub fn pack(&mut self) {
        if self.device().is_cuda() {
            self.decoder.join();
        }
        let kind = self.decoder.kind();
        let most = if kind == Kind::Float { MOST_PACKED_BYTES } else { MOST_NARROW_BYTES };
        if self.device() == Device::Cpu && packs(kind) && self.bytes() <= most {
            self.decoder.pack();
            self.head.pack(None);
        }
    }

    /// Returns true if a GPU attends inside sequences in one kernel, if it `drops` also with dropout.
    pub fn attends_in_one_kernel(&self, drops: bool) -> bool {
        self.decoder.attends_in_one_kernel(self.device(), (self.config.head_width, drops))
    }

    /// Returns true if a text can be read into a cache in parts, of which later ones attend to those before.
    pub fn reads_in_parts(&self) -> bool {
        let flash = |device: &Device| has_flash(self.decoder.kind(), *device);
        let devices = self.placement.devices().all();
        !self.device().is_cuda() || self.attends_in_one_kernel(false) && devices.iter().all(flash)
    }

    /// Returns true if a GPU attends to a cache in one kernel.
    pub fn decodes_in_one_kernel(&self) -> bool {
        let heads = [self.config.heads, self.config.kv_heads, self.config.head_width];
        attends_newest(self.decoder.kind(), self.device(), heads) || self.attends_in_one_kernel(false)
    }

    /// Returns the bytes of its weights.
    pub fn bytes(&self) -> i64 {
        let config = &self.config;
        let numbers = config.vocabulary * config.width
            + config.linear_shapes().iter().map(|(_, [out, inputs])| out * inputs).sum::<i64>();
        numbers * self.decoder.kind().elt_size_in_bytes() as i64
    }

    /// Returns hidden states after the last norm, for [`CausalLm::logits`].
    ///
    /// # Shapes
    /// `batch` of m tokens to `[m, d]`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn hidden(&self, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        self.decoder.forward(&batch.ids, &batch.positions, batch, pass)
    }

    /// Like [`CausalLm::hidden`], but keeps only each layer's input; the tape runs the backward pass.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn hidden_recomputed<'a>(&'a self, batch: &'a Packed, pass: &Pass) -> Result<(Tensor, Tape<'a>)> {
        let tape = Tape::record(&self.decoder, batch, pass)?;
        Ok((self.decoder.normed(tape.hidden()), tape))
    }

    /// Returns the output layer's weight `[v, d]` if it is frozen, alone makes logits and suits [`fused`].
    pub fn plain_head(&self, kind: Kind) -> Option<Tensor> {
        let head = self.head.frozen().filter(|_| self.config.logit_cap.is_none());
        head.map(|head| cast(head, kind)).filter(fused::serves_row)
    }

    /// Returns logits in fp32.
    ///
    /// # Shapes
    /// `hidden` `[m, d]` to `[m, v]` on [`CausalLm::logits_device`].
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        let logits = self.head.multiply(&hidden.to_device(self.logits_device()), None, &[]);
        let logits = match self.config.logit_cap {
            Some(cap) => (logits / cap).tanh() * cap,
            None => logits,
        };
        cast(&logits, Kind::Float)
    }
}
