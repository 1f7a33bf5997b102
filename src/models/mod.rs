//! Models: an opened checkpoint folder ([`Base`]) and what it is built into ([`Classifier`], [`CausalLm`]).

pub mod adapt;
pub mod causal;
pub mod classifier;
pub mod config;
pub mod decoder;
pub mod decoder_config;
mod decoder_fields;
pub mod encoder;
pub mod head;
pub mod loader;
pub mod model;
pub mod recompute;
mod rope_fields;
pub mod self_test;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use crate::fault::{Result, fault, reading};
use crate::files::{self, quantised};
use crate::nn::layout::Positions;
use crate::torch::tensors::Tensors;
use adapt::Layer;
pub use causal::CausalLm;
pub use classifier::Classifier;
use config::EncoderConfig;
use decoder_config::DecoderConfig;
use decoder_fields::FAMILIES;
pub use model::Model;

/// `config.json` of a checkpoint.
#[derive(Debug, Clone)]
pub enum Config {
    /// BERT and its relatives.
    Encoder(EncoderConfig),
    /// Llama and its relatives.
    Decoder(DecoderConfig),
}

/// The sizes of a trunk that memory depends on.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// d.
    pub width: i64,
    /// Width between the feed-forward layers.
    pub intermediate: i64,
    /// Number of layers.
    pub layers: usize,
    /// h.
    pub heads: i64,
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
                name if FAMILIES.iter().chain(&config::FAMILIES).any(|known| *known == name)
                    && let Some((key, how)) = quantised =>
                {
                    Err(fault(format!(
                        "the weights are quantised ({how}) according to `{key}`, which is not supported"
                    ))
                    .hint(quantised::hint(folder))
                    .into())
                }
                name if FAMILIES.contains(&name) => Ok(Self::Decoder(DecoderConfig::from_json(name, &text)?)),
                name if config::FAMILIES.contains(&name) => {
                    Ok(Self::Encoder(EncoderConfig::from_json(&text)?))
                }
                other => {
                    let known: Vec<String> =
                        config::FAMILIES.iter().chain(&FAMILIES).map(|name| format!("`{name}`")).collect();
                    Err(fault(format!("the model type `{other}` is not supported"))
                        .hint(format!("supported are {}", known.join(", ")))
                        .into())
                }
            }
        };
        read().with_context(|| format!("cannot use `{}`", path.display()))
    }

    /// Returns the config of an encoder.
    ///
    /// # Errors
    /// When it is a decoder's.
    pub fn encoder(&self) -> Result<&EncoderConfig> {
        match self {
            Self::Encoder(config) => Ok(config),
            Self::Decoder(config) => {
                let name = &config.architecture;
                Err(fault(format!("the base is a decoder (`{name}`), expected an encoder")).into())
            }
        }
    }

    /// Returns the config of a decoder.
    ///
    /// # Errors
    /// When it is an encoder's.
    pub fn decoder(&self) -> Result<&DecoderConfig> {
        match self {
            Self::Decoder(config) => Ok(config),
            Self::Encoder(config) => {
                let name = &config.prefix;
                Err(fault(format!("the base is an encoder (`{name}`), expected a decoder")).into())
            }
        }
    }

    /// Returns the prefix of the trunk's tensors in a saved model.
    pub fn prefix(&self) -> &str {
        match self {
            Self::Encoder(config) => config.prefix,
            Self::Decoder(_) => "model",
        }
    }

    /// Returns the longest sequence that the model can number or was made for.
    pub fn longest_sequence(&self) -> i64 {
        match self {
            Self::Encoder(config) => config.longest_sequence(),
            Self::Decoder(config) => config.positions,
        }
    }

    /// Returns v.
    pub fn vocabulary(&self) -> i64 {
        match self {
            Self::Encoder(config) => config.vocabulary,
            Self::Decoder(config) => config.vocabulary,
        }
    }

    /// Returns the rule by which positions are numbered.
    pub fn position_rule(&self) -> Positions {
        match self {
            Self::Encoder(config) => config.position_rule,
            Self::Decoder(_) => Positions::FromZero,
        }
    }

    /// Replaces every dropout.
    pub fn set_dropout(&mut self, p: f64) {
        match self {
            Self::Encoder(config) => config.set_dropout(p),
            Self::Decoder(config) => config.set_dropout(p),
        }
    }

    /// Returns the whole file.
    pub fn raw(&self) -> &Map<String, Value> {
        match self {
            Self::Encoder(config) => &config.raw,
            Self::Decoder(config) => &config.raw,
        }
    }

    /// Returns the layers adapted by default, as in the published LoRA-XS code.
    pub fn default_targets(&self) -> Vec<String> {
        match self {
            Self::Encoder(_) => config::TARGETS.map(str::to_owned).into(),
            Self::Decoder(decoder) => {
                let first =
                    |name: String| Some(name.strip_prefix("model.layers.0.")?.rsplit('.').next()?.to_owned());
                decoder.linear_shapes().into_iter().filter_map(|(name, _)| first(name)).collect()
            }
        }
    }

    /// Returns PEFT's name of the model's task.
    pub fn task_type(&self) -> &'static str {
        match self {
            Self::Encoder(_) => "SEQ_CLS",
            Self::Decoder(_) => "CAUSAL_LM",
        }
    }

    /// Returns true for a language model, without a classification head.
    pub fn is_decoder(&self) -> bool {
        matches!(self, Self::Decoder(_))
    }

    /// Returns the sizes that memory depends on.
    pub fn extent(&self) -> Extent {
        match self {
            Self::Encoder(EncoderConfig { width, intermediate, layers, heads, .. }) => {
                Extent { width: *width, intermediate: *intermediate, layers: *layers, heads: *heads }
            }
            Self::Decoder(DecoderConfig { width, intermediate, layers, heads, .. }) => {
                Extent { width: *width, intermediate: *intermediate, layers: *layers, heads: *heads }
            }
        }
    }

    /// Returns the linear layers that a checkpoint of this config must hold: path and shape `[out, in]`.
    pub fn linear_shapes(&self) -> Vec<Layer> {
        match self {
            Self::Encoder(config) => config.linear_shapes(),
            Self::Decoder(config) => config.linear_shapes(),
        }
    }
}

/// Canonical name of a decoder's embedding.
const WORDS: &str = "model.embed_tokens.weight";
/// Canonical name of a decoder's output layer.
const OUTPUT: &str = "lm_head.weight";

/// A checkpoint folder, opened but not loaded.
#[derive(Debug)]
pub struct Base {
    /// The folder.
    pub folder: PathBuf,
    /// Its `config.json`.
    pub config: Config,
    /// Its weights, memory-mapped.
    pub tensors: Tensors,
}

/// Options for building a model from a base.
#[derive(Debug)]
pub struct Build {
    /// Device to compute on.
    pub device: Device,
    /// Kind of the frozen weights and of the hidden states.
    pub kind: Kind,
    /// Outputs of the head.
    pub classes: i64,
    /// One seed per run trained together.
    pub seeds: Vec<u64>,
    /// True if every weight of the base is trained.
    pub train_base: bool,
}

impl Base {
    /// Opens `config.json` and the weights.
    ///
    /// # Errors
    /// Names the file and the field or tensor that is wrong.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = Config::load(folder)?;
        let _reading = reading(folder);
        Ok(Self { folder: folder.to_owned(), config, tensors: Tensors::open_checkpoint(folder)? })
    }

    /// Returns the trunk's tensors, sorted: canonical name, name in the checkpoint.
    pub fn trunk_tensors(&self) -> Vec<(String, String)> {
        let prefix = format!("{}.", self.config.prefix());
        let prefixed = self.tensors.names().any(|name| name.starts_with(&prefix));
        let mut found: Vec<(String, String)> = self
            .tensors
            .names()
            .filter_map(|name| {
                if name == OUTPUT && self.config.is_decoder() {
                    let canonical = if self.has_output_layer() { OUTPUT } else { WORDS };
                    let needed = canonical == OUTPUT || self.stored_words() == OUTPUT;
                    return needed.then(|| (canonical.to_owned(), name.to_owned()));
                }
                let inner = if prefixed { name.strip_prefix(&prefix)? } else { name };
                let of_trunk = match &self.config {
                    Config::Encoder(_) => ["embeddings.", "encoder.", "pooler."].as_slice(),
                    Config::Decoder(_) => ["embed_tokens.", "layers.", "norm."].as_slice(),
                };
                let buffer = ["position_ids", "rotary_emb.inv_freq"].iter().any(|end| inner.ends_with(end));
                (of_trunk.iter().any(|part| inner.starts_with(part)) && !buffer)
                    .then(|| (format!("{prefix}{inner}"), name.to_owned()))
            })
            .collect();
        found.sort();
        found
    }

    /// Returns the embedding's name in a decoder's checkpoint.
    fn words(&self) -> Option<&'static str> {
        [WORDS, "embed_tokens.weight"].into_iter().find(|name| self.tensors.contains(name))
    }

    /// Returns true if a decoder's output layer is a separate tensor: not tied to the embedding, or stored
    /// with other numbers, as in Transformers. If only one of two tied tensors is stored, it serves as both.
    pub fn has_output_layer(&self) -> bool {
        let Config::Decoder(config) = &self.config else { return false };
        let bytes = |name: &str| self.tensors.bytes(name);
        let differ = |words| bytes(OUTPUT).is_some_and(|head| Some(head) != bytes(words));
        !config.tied || self.words().is_some_and(differ)
    }

    /// Returns the stored name of a decoder's embedding: its own, or that of the output layer tied to it.
    fn stored_words(&self) -> &'static str {
        let own = self.has_output_layer() || !self.tensors.contains(OUTPUT);
        self.words().unwrap_or(if own { WORDS } else { OUTPUT })
    }

    /// Returns the number of parameters in the trunk.
    pub fn trunk_numbers(&self) -> usize {
        let shapes = self.trunk_tensors().into_iter().filter_map(|(_, name)| self.tensors.shape(&name));
        shapes.map(|shape| usize::try_from(shape.iter().product::<i64>()).unwrap_or(0)).sum()
    }

    /// Returns the trunk's linear layers, which can take an adapter, in the order of the layers.
    pub fn linear_layers(&self) -> Vec<Layer> {
        let mut layers: Vec<Layer> = self
            .trunk_tensors()
            .into_iter()
            .filter_map(|(canonical, name)| {
                let path = canonical.strip_suffix(".weight")?;
                let &[out, inputs] = self.tensors.shape(&name)? else { return None };
                let table =
                    path == "lm_head" || path.contains(".embeddings.") || path.ends_with(".embed_tokens");
                (!table).then(|| (path.to_owned(), [out, inputs]))
            })
            .collect();
        // Numbers compare as numbers: layer 10 comes after layer 9.
        let key = |path: &str| -> Vec<(u64, String)> {
            path.split('.').map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
        };
        layers.sort_by_cached_key(|(path, _)| key(path));
        layers
    }

    /// Rejects a checkpoint that lacks linear layers of its `config.json`, or holds them in another shape.
    ///
    /// # Errors
    /// Names the first tensor that does not fit.
    pub fn check_layers(&self) -> Result<()> {
        let found: BTreeMap<String, [i64; 2]> = self.linear_layers().into_iter().collect();
        for (path, expected) in self.config.linear_shapes() {
            let problem = match found.get(&path) {
                Some(shape) if *shape == expected => continue,
                Some(shape) => {
                    format!("tensor `{path}.weight` has shape {shape:?}, expected {expected:?}")
                }
                None => format!("missing tensor `{path}.weight` {expected:?}"),
            };
            let other = || "config.json and the weights belong to different models".to_owned();
            return Err(fault(format!("the checkpoint does not fit its config.json: {problem}"))
                .hint(self.tensors.quantised().unwrap_or_else(other))
                .into());
        }
        Ok(())
    }

    /// Reads the weight `[out, in]` of a layer, as stored, to `device`.
    ///
    /// # Errors
    /// When it is missing or not finite.
    pub fn weight(&self, layer: &str, device: Device) -> Result<Tensor> {
        let canonical = format!("{layer}.weight");
        let stored = self.trunk_tensors().into_iter().find(|(known, _)| *known == canonical);
        self.tensors.tensor(&stored.map_or(canonical, |(_, name)| name), None, device)
    }

    /// Hashes the trunk: names, types, shapes and bytes, independent of prefix and sharding.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (canonical, name) in self.trunk_tensors() {
            let (kind, shape) = (self.tensors.kind(&name), self.tensors.shape(&name));
            hasher.update(format!("{canonical} {kind:?} {shape:?}\n").as_bytes());
            hasher.update_rayon(self.tensors.bytes(&name).unwrap_or_default());
            self.tensors.release(&name);
        }
        hasher.finalize().to_hex().to_string()
    }
}
