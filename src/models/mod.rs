//! Models: a checkpoint folder opened ([`Base`]), and a trunk with a head built from it ([`Classifier`]).

pub mod adapt;
pub mod config;
pub mod encoder;
pub mod head;
pub mod loader;
pub mod recompute;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use crate::adapters::Trained;
use crate::fault::{Result, fault};
use crate::nn::{Packed, Pass};
use crate::torch::tensors::Tensors;
use adapt::Layer;
use config::{EncoderConfig, HeadKind};
use encoder::Encoder;
use head::{Head, HeadSource};
use loader::Loader;
use recompute::Tape;

/// A checkpoint folder, opened but not loaded.
#[derive(Debug)]
pub struct Base {
    /// The folder.
    pub folder: PathBuf,
    /// Its `config.json`.
    pub config: EncoderConfig,
    /// Its weights, memory-mapped.
    pub tensors: Tensors,
}

/// How a model is built from a base.
#[derive(Debug)]
pub struct Build {
    /// Where it computes.
    pub device: Device,
    /// Kind of the frozen weights and of the hidden states.
    pub kind: Kind,
    /// Outputs of the head.
    pub classes: i64,
    /// One seed for each run trained together.
    pub seeds: Vec<u64>,
    /// Whether every weight of the base is trained.
    pub train_base: bool,
}

impl Base {
    /// Opens `config.json` and the weights.
    ///
    /// # Errors
    /// Names the file and the field or tensor that is wrong.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = EncoderConfig::load(folder)?;
        Ok(Self { folder: folder.to_owned(), config, tensors: Tensors::open_checkpoint(folder)? })
    }

    /// The trunk's tensors: canonical name, name in the checkpoint; sorted.
    pub fn trunk_tensors(&self) -> Vec<(String, String)> {
        let prefix = format!("{}.", self.config.prefix);
        let prefixed = self.tensors.names().any(|name| name.starts_with(&prefix));
        let mut found: Vec<(String, String)> = self
            .tensors
            .names()
            .filter_map(|name| {
                let inner = if prefixed { name.strip_prefix(&prefix)? } else { name };
                let of_trunk =
                    ["embeddings.", "encoder.", "pooler."].iter().any(|part| inner.starts_with(part));
                (of_trunk && !inner.ends_with("position_ids"))
                    .then(|| (format!("{prefix}{inner}"), name.to_owned()))
            })
            .collect();
        found.sort();
        found
    }

    /// The trunk's linear layers, which an adapter may go on, in the order of the layers.
    pub fn linear_layers(&self) -> Vec<Layer> {
        let mut layers: Vec<Layer> = self
            .trunk_tensors()
            .into_iter()
            .filter_map(|(canonical, name)| {
                let path = canonical.strip_suffix(".weight")?;
                let &[out, inputs] = self.tensors.shape(&name)? else { return None };
                (!path.contains(".embeddings.")).then(|| (path.to_owned(), [out, inputs]))
            })
            .collect();
        // Layer 10 comes after layer 9: numbers are compared as numbers.
        let key = |path: &str| -> Vec<(u64, String)> {
            path.split('.').map(|part| (part.parse().unwrap_or(0), part.to_owned())).collect()
        };
        layers.sort_by_cached_key(|(path, _)| key(path));
        layers
    }

    /// Refuses a checkpoint that lacks linear layers of its `config.json`, or holds them in another shape.
    ///
    /// # Errors
    /// Names the first tensor that does not fit.
    pub fn check_layers(&self) -> Result<()> {
        let EncoderConfig { prefix, width: d, intermediate: wide, layers, .. } = self.config;
        let found: BTreeMap<String, [i64; 2]> = self.linear_layers().into_iter().collect();
        for i in 0..layers {
            let shapes = [
                ("attention.self.query", [d, d]),
                ("attention.self.key", [d, d]),
                ("attention.self.value", [d, d]),
                ("attention.output.dense", [d, d]),
                ("intermediate.dense", [wide, d]),
                ("output.dense", [d, wide]),
            ];
            for (end, expected) in shapes {
                let path = format!("{prefix}.encoder.layer.{i}.{end}");
                let problem = match found.get(&path) {
                    Some(shape) if *shape == expected => continue,
                    Some(shape) => {
                        format!("tensor `{path}.weight` has shape {shape:?}, expected {expected:?}")
                    }
                    None => format!("missing tensor `{path}.weight` {expected:?}"),
                };
                return Err(fault(format!("the checkpoint does not fit its config.json: {problem}"))
                    .hint("config.json and the weights belong to different models")
                    .into());
            }
        }
        Ok(())
    }

    /// Weights `[out, in]` of these layers, as stored, on `device`.
    ///
    /// # Errors
    /// When one is missing or not finite.
    pub fn weights(&self, layers: &[Layer], device: Device) -> Result<Vec<(String, Tensor)>> {
        let stored: BTreeMap<String, String> = self.trunk_tensors().into_iter().collect();
        let read = |(path, _): &Layer| {
            let canonical = format!("{path}.weight");
            let name = stored.get(&canonical).unwrap_or(&canonical);
            Ok((path.clone(), self.tensors.tensor(name, None, device)?))
        };
        layers.iter().map(read).collect()
    }

    /// A hash of the trunk: of names, types, shapes and bytes, whatever the prefix and the sharding.
    pub fn hash(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        for (canonical, name) in self.trunk_tensors() {
            let (kind, shape) = (self.tensors.kind(&name), self.tensors.shape(&name));
            hasher.update(format!("{canonical} {kind:?} {shape:?}\n").as_bytes());
            hasher.update_rayon(self.tensors.view(&name).map(|view| view.bytes).unwrap_or_default());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// The number of outputs of the head in the checkpoint.
    pub fn classes(&self) -> Option<i64> {
        head::classes_in(&self.config, &self.tensors)
    }
}

/// A trunk and a classification head.
#[derive(Debug)]
pub struct Classifier {
    /// Shape and switches.
    pub config: EncoderConfig,
    /// The trunk.
    pub encoder: Encoder,
    head: Head,
    device: Device,
    runs: usize,
}

impl Classifier {
    /// Loads the trunk and the head; what is trained of them goes into `trained`.
    ///
    /// # Errors
    /// Names every missing and mis-shaped tensor at once.
    pub fn load(base: &Base, build: &Build, trained: &mut Trained) -> Result<Self> {
        let Build { device, kind, .. } = *build;
        let config = base.config.clone();
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
        loader.finish(|name| {
            // Heads of other tasks, a pooler that this head does not use, and a buffer of old versions.
            let other = ["cls.", "lm_head.", "classifier.", "qa_outputs.", "seq_relationship."];
            name.contains("pooler.")
                || name.ends_with("position_ids")
                || other.iter().any(|p| name.starts_with(p))
        })?;
        let source = HeadSource { checkpoint: &base.tensors, seeds: &build.seeds, device };
        let head = Head::load(&config, build.classes, pooled && !pooler_stored, source, trained)?;
        Ok(Self { config, encoder, head, device, runs: build.seeds.len() })
    }

    /// Where the model computes.
    pub fn device(&self) -> Device {
        self.device
    }

    /// k, the number of runs trained together.
    pub fn runs(&self) -> usize {
        self.runs
    }

    /// Logits in fp32 of every sequence, in the order in which they were packed.
    ///
    /// # Shapes
    /// `batch` of `[k, n]` tokens and s sequences a run to `[k, s, c]`.
    ///
    /// # Errors
    /// When libtorch refuses an operation.
    pub fn forward(&self, batch: &Packed, pass: &Pass) -> Result<Tensor> {
        Ok(self.logits(&self.encoder.forward(batch, pass)?, batch, pass))
    }

    /// As [`Classifier::forward`], but keeps only each layer's input; the tape makes the backward pass.
    pub fn forward_recomputed<'a>(&'a self, batch: &'a Packed, pass: &'a Pass) -> Result<(Tensor, Tape<'a>)> {
        let tape = Tape::record(&self.encoder, batch, pass)?;
        Ok((self.logits(tape.hidden(), batch, pass), tape))
    }

    /// The head over the first token of each sequence: `[k, n, d]` to `[k, s, c]`.
    fn logits(&self, hidden: &Tensor, batch: &Packed, pass: &Pass) -> Tensor {
        let d = hidden.size().last().copied().unwrap_or(0);
        let [k, s] = [batch.first.size()[0], batch.first.size()[1]];
        let index = batch.first.unsqueeze(-1).expand([k, s, d], false);
        let mut first = hidden.gather(1, &index, false); // [k, s, d]
        let after = pass.layer(self.encoder.depth());
        if let Some(pooler) = &self.encoder.pooler {
            first = pooler.forward(&first, &after).tanh();
        }
        self.head.forward(&first, &after)
    }
}
