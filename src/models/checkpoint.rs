//! A checkpoint folder, opened: its config, its tensors by their canonical names, and how a model is built from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::config::Config;
use super::decoder::Decoder;
use super::encoder::Encoder;
use super::encoder::config::HeadKind;
use super::head_layer::HeadShape;
use super::loader::Loader;
use super::placement::{Placement, Sizes};
use crate::adapters::rules::Layer;
use crate::fault::{Result, fault, reading};
use crate::torch::Devices;
use crate::torch::tensors::Tensors;

/// Canonical name of a decoder's embedding.
pub(super) const WORDS: &str = "model.embed_tokens.weight";
/// Canonical name of a decoder's output layer.
pub const OUTPUT: &str = "lm_head.weight";

/// Bytes of a trained number: its value, its gradient and two moments.
const TRAINED: usize = 16;

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
    /// Devices to compute on, among which layers are divided.
    pub devices: Devices,
    /// Kind of the frozen weights and of the hidden states.
    pub kind: Kind,
    /// The head; `None` for a language model.
    pub head: Option<HeadShape>,
    /// One seed per run trained together.
    pub seeds: Vec<u64>,
    /// True if every weight of the base is trained.
    pub train_base: bool,
}

impl Build {
    /// Divides the layers of a base among the devices.
    ///
    /// # Errors
    /// As [`Placement::new`].
    pub fn placement(&self, base: &Base) -> Result<Placement> {
        Placement::new(&self.devices, &base.sizes(self.kind, self.train_base))
    }
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

    /// Opens `config.json` alone: the tensors that a model of it has, without numbers.
    ///
    /// # Errors
    /// Names the field that is wrong.
    pub fn of_config(folder: &Path) -> Result<Self> {
        let config = Config::load(folder)?;
        let kind = config.raw.get("torch_dtype").or(config.raw.get("dtype")).and_then(|kind| kind.as_str());
        let kind = match kind {
            Some("float16") => Kind::Half,
            Some("bfloat16") => Kind::BFloat16,
            _ => Kind::Float,
        };
        let tensors = Tensors::imagined();
        let loader = |prefix| Loader::new(&tensors, prefix, kind, Placement::on(Device::Cpu), None);
        match &config {
            Config::Encoder(encoder) => {
                let pooled = encoder.head == HeadKind::Pooled;
                Encoder::load(encoder, &mut loader(encoder.prefix), pooled)?;
            }
            Config::Decoder(decoder) => {
                let mut loader = loader("model");
                Decoder::load(decoder, &mut loader)?;
                if !decoder.tied {
                    let _ = loader.tensor(OUTPUT, &[decoder.vocabulary, decoder.width])?;
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), config, tensors: tensors.asked_for(kind) })
    }

    /// Returns the trunk's tensors, sorted: canonical name, name in the checkpoint.
    pub fn trunk_tensors(&self) -> Vec<(String, String)> {
        let prefix = format!("{}.", self.config.prefix);
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
                let of_trunk = self.config.parts.iter().any(|part| inner.starts_with(part));
                let buffer = ["position_ids", "rotary_emb.inv_freq"].iter().any(|end| inner.ends_with(end));
                (of_trunk && !buffer).then(|| (format!("{prefix}{inner}"), name.to_owned()))
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
        let Ok(config) = self.config.decoder() else { return false };
        let bytes = |name: &str| self.tensors.bytes(name);
        let differ = |words| bytes(OUTPUT).is_some_and(|head| Some(head) != bytes(words));
        !config.tied || self.words().is_some_and(differ)
    }

    /// Returns the stored name of a decoder's embedding: its own, or that of the output layer tied to it.
    pub(super) fn stored_words(&self) -> &'static str {
        let own = self.has_output_layer() || !self.tensors.contains(OUTPUT);
        self.words().unwrap_or(if own { WORDS } else { OUTPUT })
    }

    /// Returns the sizes of the trunk's parts if its numbers are of this kind, or all trained.
    pub fn sizes(&self, kind: Kind, trained: bool) -> Sizes {
        let each = if trained { TRAINED } else { kind.elt_size_in_bytes() };
        let bytes = |(canonical, stored): (String, String)| {
            let numbers = self.tensors.shape(&stored).map_or(0, |shape| shape.iter().product::<i64>());
            (canonical, usize::try_from(numbers).unwrap_or(0).saturating_mul(each))
        };
        Sizes::new(self.config.layers, self.trunk_tensors().into_iter().map(bytes))
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
