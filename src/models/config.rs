//! `config.json` of a checkpoint: an encoder's or a decoder's. Whoever asks which asks here.

use std::ops::Deref;
use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::decoder::config::DecoderConfig;
use super::decoder::fields::FAMILIES as DECODERS;
use super::encoder::config::{EncoderConfig, FAMILIES as ENCODERS, HeadKind, TARGETS};
use super::head_layer::{HeadLayer, HeadShape};
use super::trunk_config::TrunkConfig;
use crate::adapters::rules::Layer;
use crate::fault::{Result, fault, reading};
use crate::files::{self, quantised};
use crate::spec::Problem;

/// `config.json` of a checkpoint.
#[derive(Debug, Clone)]
pub enum Config {
    /// BERT and its relatives.
    Encoder(EncoderConfig),
    /// Llama and its relatives.
    Decoder(DecoderConfig),
}

#[derive(Deserialize)]
struct ModelType {
    model_type: String,
}

impl Config {
    /// Reads `config.json` of a checkpoint folder.
    ///
    /// # Errors
    /// Names the field that is missing, of the wrong type, or of a value that this program does not compute with.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let _reading = reading(&path);
        let text = files::read_json_text(&path)?;
        let read = || -> Result<Self> {
            let json: Map<String, Value> = files::parse_json(&text)?;
            let ModelType { model_type } = files::parse_json(&text)?;
            let quantised = quantised::of_config(&json);
            match model_type.as_str() {
                name if DECODERS.iter().chain(&ENCODERS).any(|known| *known == name)
                    && let Some((key, how)) = quantised =>
                {
                    Err(fault(format!(
                        "the weights are quantised ({how}) according to `{key}`, which is not supported"
                    ))
                    .hint(quantised::hint(folder))
                    .into())
                }
                name if DECODERS.contains(&name) => Ok(Self::Decoder(DecoderConfig::from_json(name, &text)?)),
                name if ENCODERS.contains(&name) => Ok(Self::Encoder(EncoderConfig::from_json(&text)?)),
                other => {
                    let known: Vec<String> =
                        ENCODERS.iter().chain(&DECODERS).map(|name| format!("`{name}`")).collect();
                    Err(fault(format!("the model type `{other}` is not supported"))
                        .hint(format!("supported are {}", known.join(", ")))
                        .into())
                }
            }
        };
        read().with_context(|| format!("cannot use `{}`", path.display()))
    }

    /// Returns the config of a decoder.
    ///
    /// # Errors
    /// When it is an encoder's.
    pub fn decoder(&self) -> Result<&DecoderConfig> {
        match self {
            Self::Decoder(config) => Ok(config),
            Self::Encoder(config) => Err(config.not_a_decoder()),
        }
    }

    /// Returns true for a decoder: a language model, unless a classification head is put on it.
    pub fn is_decoder(&self) -> bool {
        matches!(self, Self::Decoder(_))
    }

    /// Returns the linear layers that a checkpoint of this config must hold: path and shape `[out, in]`.
    pub fn linear_shapes(&self) -> Vec<Layer> {
        match self {
            Self::Encoder(config) => config.linear_shapes(),
            Self::Decoder(config) => config.linear_shapes(),
        }
    }

    /// Returns the layers adapted by default, as in the published LoRA-XS code.
    pub fn default_targets(&self) -> Vec<String> {
        match self {
            Self::Encoder(_) => TARGETS.map(str::to_owned).into(),
            Self::Decoder(decoder) => {
                let first =
                    |name: String| Some(name.strip_prefix("model.layers.0.")?.rsplit('.').next()?.to_owned());
                decoder.linear_shapes().into_iter().filter_map(|(name, _)| first(name)).collect()
            }
        }
    }

    /// Returns the layers of a head, after an encoder's pooler, as Transformers names and shapes them.
    pub fn head_layers(&self, HeadShape { problem, outputs }: HeadShape) -> Vec<HeadLayer> {
        let d = self.width;
        match (self, problem) {
            (Self::Encoder(EncoderConfig { head: HeadKind::TwoLayer, .. }), problem)
                if problem != Problem::Tokens =>
            {
                vec![
                    HeadLayer::new("classifier.dense", [d, d], true),
                    HeadLayer::new("classifier.out_proj", [outputs, d], true),
                ]
            }
            (Self::Encoder(_), _) => vec![HeadLayer::new("classifier", [outputs, d], true)],
            (Self::Decoder(_), problem) => {
                vec![HeadLayer::new("score", [outputs, d], problem == Problem::Tokens)]
            }
        }
    }

    /// Returns true if a head's layers come after a pooler.
    pub fn pools(&self, problem: Problem) -> bool {
        let pooled = matches!(self, Self::Encoder(config) if config.head == HeadKind::Pooled);
        pooled && problem != Problem::Tokens
    }

    /// Returns the dropout before each layer of a head; a decoder's has none for sequences.
    pub fn dropout_before_head(&self, problem: Problem) -> f64 {
        if self.is_decoder() && problem != Problem::Tokens { 0.0 } else { self.head_dropout }
    }

    /// Returns the id of the padding token by which a decoder's head finds the end of a text.
    pub fn padding(&self) -> Option<i64> {
        let Self::Decoder(config) = self else { return None };
        // An id below 0 is no token's, though it counts embeddings from the last.
        let is_negative = |id: &Value| id.as_i64().is_some_and(|id| id < 0);
        config.padding.filter(|_| !self.raw.get("pad_token_id").is_some_and(is_negative))
    }

    /// Sets the padding token of a decoder.
    pub fn set_padding(&mut self, id: u32) {
        if let Self::Decoder(config) = self {
            config.padding = Some(i64::from(id));
            config.trunk.raw.insert("pad_token_id".into(), id.into());
        }
    }

    /// Replaces every dropout.
    pub fn set_dropout(&mut self, p: f64) {
        let trunk = match self {
            Self::Encoder(config) => &mut config.trunk,
            Self::Decoder(config) => &mut config.trunk,
        };
        (trunk.dropout, trunk.attention_dropout, trunk.head_dropout) = (p, p, p);
    }
}

impl Deref for Config {
    type Target = TrunkConfig;

    fn deref(&self) -> &TrunkConfig {
        match self {
            Self::Encoder(config) => config,
            Self::Decoder(config) => config,
        }
    }
}
