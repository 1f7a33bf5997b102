//! A classifier: an encoder's trunk and a classification head.

use tch::{Device, Tensor};

use super::Encoder;
use super::config::{EncoderConfig, HeadKind};
use super::head::{Head, HeadSource, layer_shapes};
use crate::adapters::Trained;
use crate::fault::{Result, fault, reading};
use crate::models::checkpoint::{Base, Build};
use crate::models::loader::Loader;
use crate::models::trunk::Tape;
use crate::nn::{Packed, Pass};

/// A trunk and a classification head.
#[derive(Debug)]
pub struct Classifier {
    /// Shape and switches.
    pub config: EncoderConfig,
    /// The trunk.
    pub encoder: Encoder,
    /// The head.
    pub head: Head,
    device: Device,
    runs: usize,
}

impl Classifier {
    /// Loads the trunk and the head; their trained tensors go into `trained`.
    ///
    /// # Errors
    /// Names every missing and mis-shaped tensor at once, or says that no head was asked for.
    pub fn load(base: &Base, build: &Build, trained: &mut Trained) -> Result<Self> {
        let Build { device, kind, .. } = *build;
        let _reading = reading(&base.folder);
        let config = base.config.encoder()?.clone();
        let outputs =
            build.outputs.ok_or_else(|| fault("a classifier needs a head with a number of outputs"))?;
        let mut loader = Loader::new(
            &base.tensors,
            config.prefix,
            kind,
            device,
            if build.train_base { Some(trained) } else { None },
        );
        let pooled = config.head == HeadKind::Pooled;
        let pooler_stored = loader.contains(&format!("{}.pooler.dense.weight", config.prefix));
        let encoder = Encoder::load(&config, &mut loader, pooled && pooler_stored)?;
        let own: Vec<String> = layer_shapes(&config, outputs).into_iter().map(|(name, ..)| name).collect();
        loader.finish(|name| {
            // Heads of other tasks, a pooler that this head does not use, and a buffer of old versions.
            name.contains("pooler.")
                || name.ends_with("position_ids")
                || ["cls.", "lm_head.", "qa_outputs.", "seq_relationship."]
                    .iter()
                    .any(|p| name.starts_with(p))
                || name.rsplit_once('.').is_some_and(|(layer, part)| {
                    ["weight", "bias"].contains(&part) && own.iter().any(|own| own == layer)
                })
        })?;
        let source = HeadSource { checkpoint: &base.tensors, seeds: &build.seeds, device };
        let head = Head::load(&config, outputs, pooled && !pooler_stored, source, trained)?;
        Ok(Self { config, encoder, head, device, runs: build.seeds.len() })
    }

    /// Returns the device that the model computes on.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Returns k, the number of runs trained together.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Returns fp32 logits of every sequence, in the order in which they were packed.
    ///
    /// # Shapes
    /// `batch` of s sequences to `[s, c]`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(&self, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        Ok(self.logits(&self.encoder.forward(batch, pass)?, batch, pass))
    }

    /// Like [`Classifier::forward`], but keeps only each layer's input; the tape runs the backward pass.
    pub fn forward_recomputed<'a>(&'a self, batch: &'a Packed, pass: &Pass) -> Result<(Tensor, Tape<'a>)> {
        let tape = Tape::record(&self.encoder, batch, pass)?;
        Ok((self.logits(tape.hidden(), batch, pass), tape))
    }

    /// Applies the head to the first token of each sequence: `[m, d]` to `[s, c]`.
    fn logits(&self, hidden: &Tensor, batch: &Packed, pass: &Pass) -> Tensor {
        let mut first = hidden.index_select(0, &batch.first); // [s, d]
        let after = pass.per_sequence(batch);
        if let Some(pooler) = &self.encoder.pooler {
            first = pooler.forward(&first, &after).tanh();
        }
        self.head.forward(&first, &after)
    }
}
