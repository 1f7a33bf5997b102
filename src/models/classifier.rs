//! A classifier: a trunk and a head on the vectors of sequences or of their tokens.

use tch::{Device, Kind, Tensor};

use super::checkpoint::{Base, Build, OUTPUT, WORDS};
use super::config::Config;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::head::{Head, HeadSource};
use super::head_layer::HeadShape;
use super::loader::Loader;
use super::placement::Placement;
use super::trunk::{Tape, Trunk};
use crate::adapters::Trained;
use crate::fault::{Result, fault, reading};
use crate::nn::{Linear, Packed, Pass};
use crate::spec::Problem;

/// A trunk and a head.
#[derive(Debug)]
pub struct Classifier {
    /// Shape and switches.
    pub config: Config,
    /// The trunk.
    pub trunk: Backbone,
    /// The head.
    pub head: Head,
    /// What the head answers, and with how many outputs.
    pub shape: HeadShape,
    /// Where its parts lie.
    pub placement: Placement,
    /// k, the number of runs trained together.
    pub runs: usize,
}

/// The trunk below a head.
#[derive(Debug)]
pub enum Backbone {
    /// An encoder's: the head reads the first token.
    Encoder(Encoder),
    /// A decoder's: the head reads the last token.
    Decoder(Decoder),
}

impl Backbone {
    /// Returns every linear layer that can take an adapter, in the order of the checkpoint's layers.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        match self {
            Self::Encoder(trunk) => trunk.linears_mut(),
            Self::Decoder(trunk) => trunk.linears_mut(),
        }
    }

    /// Returns the layers of [`Self::linears_mut`], shared.
    pub fn linears(&self) -> Vec<&Linear> {
        match self {
            Self::Encoder(trunk) => trunk.linears(),
            Self::Decoder(trunk) => trunk.linears(),
        }
    }

    /// Returns hidden states `[m, d]`, a decoder's after its last norm.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(&self, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        match self {
            Self::Encoder(trunk) => trunk.forward(batch, pass),
            Self::Decoder(trunk) => trunk.forward(&batch.ids, &batch.positions, batch, pass),
        }
    }

    /// Like [`Backbone::forward`], but keeps only each layer's input; the tape runs the backward pass.
    fn forward_recomputed<'a>(&'a self, batch: &'a Packed, pass: &Pass) -> Result<(Tensor, Tape<'a>)> {
        let trunk: &dyn Trunk = match self {
            Self::Encoder(trunk) => trunk,
            Self::Decoder(trunk) => trunk,
        };
        let tape = Tape::record(trunk, batch, pass)?;
        let hidden = match self {
            Self::Encoder(_) => tape.hidden().shallow_clone(),
            Self::Decoder(trunk) => trunk.normed(tape.hidden()),
        };
        Ok((hidden, tape))
    }
}

impl Classifier {
    /// Loads the trunk and the head; their trained tensors go into `trained`.
    ///
    /// # Errors
    /// Names every missing and mis-shaped tensor at once, or says that no head was asked for.
    pub fn load(base: &Base, build: &Build, trained: &mut Trained) -> Result<Self> {
        let placement = build.placement(base)?;
        let _reading = reading(&base.folder);
        let config = base.config.clone();
        let shape = build.head.ok_or_else(|| fault("a classifier needs a head with a number of outputs"))?;
        let store = if build.train_base { Some(&mut *trained) } else { None };
        let mut loader = Loader::new(&base.tensors, config.prefix, build.kind, placement.clone(), store);
        let pooled = config.pools(shape.problem);
        let pooler_stored = loader.contains(&format!("{}.pooler.dense.weight", config.prefix));
        let trunk = match &config {
            Config::Encoder(config) => {
                Backbone::Encoder(Encoder::load(config, &mut loader, pooled && pooler_stored)?)
            }
            Config::Decoder(config) => {
                loader.alias(WORDS, base.stored_words());
                Backbone::Decoder(Decoder::load(config, &mut loader)?)
            }
        };
        let own: Vec<String> = config.head_layers(shape).into_iter().map(|layer| layer.name).collect();
        loader.finish(|name| {
            // Heads of other tasks, a pooler that this head does not use, and buffers of old versions.
            name.contains("pooler.")
                || name.ends_with("position_ids")
                || name.ends_with("rotary_emb.inv_freq")
                || name == OUTPUT
                || ["cls.", "lm_head.", "qa_outputs.", "seq_relationship."]
                    .iter()
                    .any(|p| name.starts_with(p))
                || name.rsplit_once('.').is_some_and(|(layer, part)| {
                    ["weight", "bias"].contains(&part) && own.iter().any(|own| own == layer)
                })
        })?;
        let source = HeadSource { checkpoint: &base.tensors, seeds: &build.seeds, device: placement.last() };
        let head = Head::load(&config, shape, pooled && !pooler_stored, source, trained)?;
        Ok(Self { config, trunk, head, shape, placement, runs: build.seeds.len() })
    }

    /// Returns the device of its inputs.
    pub fn device(&self) -> Device {
        self.placement.first()
    }

    /// Returns fp32 logits of every sequence, in the order in which they were packed, or of every token.
    ///
    /// # Shapes
    /// `batch` of s sequences and m tokens to `[s, c]`, or `[m, c]` with a head for tokens.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(&self, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        Ok(self.logits(&self.trunk.forward(batch, pass)?, batch, pass))
    }

    /// Like [`Classifier::forward`], but keeps only each layer's input; the tape runs the backward pass.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward_recomputed<'a>(&'a self, batch: &'a Packed, pass: &Pass) -> Result<(Tensor, Tape<'a>)> {
        let (hidden, tape) = self.trunk.forward_recomputed(batch, pass)?;
        Ok((self.logits(&hidden, batch, pass), tape))
    }

    /// Applies the head to every token, or to the one that stands for its sequence: `[m, d]` to `[m, c]` or `[s, c]`.
    fn logits(&self, hidden: &Tensor, batch: &Packed, pass: &Pass) -> Tensor {
        let batch = batch.on(hidden.device());
        if self.shape.problem == Problem::Tokens {
            return self.head.forward(hidden, pass);
        }
        let after = pass.per_sequence(batch);
        let vectors = match &self.trunk {
            Backbone::Encoder(encoder) => {
                let first = hidden.index_select(0, &batch.first); // [s, d]
                match &encoder.pooler {
                    Some(pooler) => pooler.forward(&first, &after).tanh(),
                    None => first,
                }
            }
            Backbone::Decoder(_) => hidden.index_select(0, &last_tokens(batch, self.config.padding())),
        };
        self.head.forward(&vectors, &after)
    }
}

/// Returns the row of each sequence's last token that is not `padding`, the first one if all are: int64 `[s]`.
///
/// So `GenericForSequenceClassification` of Transformers finds a text's end; a text may hold the padding token itself.
fn last_tokens(batch: &Packed, padding: Option<i64>) -> Tensor {
    let rows = Tensor::arange(batch.ids.numel() as i64, (Kind::Int64, batch.ids.device()));
    let count = batch.bounds.numel() as i64 - 1;
    let ends = batch.bounds.narrow(0, 1, count).to_kind(Kind::Int64);
    // The sequence of each row, from left to right, and its first row.
    let sequences = Tensor::bucketize(&rows, &ends, false, true); // [m]
    let starts = batch.bounds.narrow(0, 0, count).to_kind(Kind::Int64).index_select(0, &sequences);
    let candidates = match padding {
        Some(padding) => rows.where_self(&batch.ids.ne(padding), &starts),
        None => rows,
    };
    // Rows only grow, so the largest one up to a sequence's end lies in it.
    let last = candidates.cummax(0).0.index_select(0, &(ends - 1));
    last.index_select(0, &sequences.index_select(0, &batch.first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::layout::{Positions, Sequence};

    #[test]
    fn a_text_ends_at_its_last_token_that_is_not_padding() {
        let texts: [&[u32]; 5] = [&[5, 9, 0, 7], &[4, 0, 0], &[0, 0], &[3], &[0, 6, 8, 0, 0]];
        let sequences = texts.iter().map(|ids| Sequence { ids, types: &[] }).collect();
        let batch = Packed::new(&[sequences], Positions::FromZero, Device::Cpu);
        let ends = |padding| -> Vec<usize> {
            let rows: Vec<i64> = Vec::try_from(last_tokens(&batch, padding)).unwrap();
            rows.iter().zip(&batch.places[0]).map(|(row, place)| *row as usize - place.start).collect()
        };
        assert_eq!(ends(Some(0)), [3, 0, 0, 0, 2]);
        assert_eq!(ends(None), [3, 2, 1, 0, 4]);
    }
}
