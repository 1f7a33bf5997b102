//! Recipes: everything about a training run, as typed values read from TOML.
//!
//! [`Recipe::load`] finds a recipe by path or name, `parse` turns its text and the `--set` overrides into a
//! [`Recipe`] and reports all faults at once, and [`Recipe::to_toml`] writes it back with every default filled in.
//! The defaults are the published LoRA-XS settings (Bałazy et al., arXiv 2405.17604, and its code).

mod find;
mod parse;
mod reader;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::fault::{Result, usage};
use crate::spec::{Every, Init, Precision, Schedule, Sigma, Spectrum, SvdMethod, Tying};
pub use find::Origin;

/// A training run: which base, which adapter, which data, how to train and how to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct Recipe {
    /// The base checkpoint.
    pub model: ModelRecipe,
    /// What is trained on top of it.
    pub adapter: AdapterRecipe,
    /// The data set and its limits.
    pub data: DataRecipe,
    /// The optimisation.
    pub train: TrainRecipe,
    /// When and how to evaluate.
    pub eval: EvalRecipe,
}

/// `[model]`: the base checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelRecipe {
    /// Hub id, or folder relative to the current one, else to the recipe's. Required.
    pub name: String,
    /// Branch, tag or commit of a hub id; default `main`.
    pub revision: String,
    /// Probability, in [0, 1), that replaces every dropout of the base; default: as in its `config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
}

/// `[adapter]`: what is trained on top of the base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AdapterRecipe {
    /// The method; default `lora-xs`.
    pub method: Method,
    /// Rank r, at least 1; default 16 for `lora-xs`, 8 for `lora` and `lora-mini`, 256 for `vera`, 2 for `tiny-lora`.
    pub rank: i64,
    /// Numerator of the scale alpha / r of `lora-xs`, `lora` and `lora-mini`, above 0; default 16.
    pub alpha: f64,
    /// Ends of the paths of the adapted linear layers. Default, as in the published code: `query`, `value`,
    /// `attention.output.dense`, `output.dense` of an encoder; every linear layer of a decoder's layers.
    pub targets: Vec<String>,
    /// Where the frozen A and B come from; default `svd`, for `lora-mini` `random`.
    pub init: Init,
    /// Algorithm of the decomposition; default `randomized`.
    pub svd: SvdMethod,
    /// Which singular directions make the basis; default `top`.
    pub spectrum: Spectrum,
    /// Where the singular values go; default `a`, for `tiny-lora` `split`.
    pub sigma: Sigma,
    /// Power iterations of the randomized decomposition; default 10.
    pub svd_iterations: u32,
    /// Seed of the randomized decomposition, of `spectrum = "random"` and of `init = "random"`; default 42.
    pub svd_seed: u64,
    /// Folder of an `init-svd` result to use; default `""`: taken from the cache or computed.
    pub basis: String,
    /// Whether the adapter file also stores A and B; default false.
    pub with_basis: bool,
    /// Standard deviation of R at the start, at least 0 (0: R = 0); default 1e-5.
    pub init_std: f64,
    /// Dropout probability of the adapter's input, in [0, 1); default 0.
    pub dropout: f64,
    /// `lora`: whether the scale is alpha / √r; default false.
    pub rslora: bool,
    /// `vera`: λ_d at the start; default 0.1.
    pub d_initial: f64,
    /// Seed of the shared pair of `vera` and of P of `tiny-lora`; default 0.
    pub projection_seed: u64,
    /// `vera`: whether the adapter file holds the shared pair; default true. Without it, it is drawn again.
    pub save_projection: bool,
    /// `lora-mini`: columns a of A_aux, at least 1; default 32.
    pub rank_a: i64,
    /// `lora-mini`: rows b of B_aux, at least 1; default 32.
    pub rank_b: i64,
    /// `tiny-lora`: trained numbers u of a group of layers, at least 1; default 64.
    pub u: i64,
    /// `tiny-lora`: layers that share their trained numbers; 0 = all; default 1.
    pub tie: u64,
    /// `tiny-lora`: which layers share, where `tie` is not 1; default `depth`.
    pub tying: Tying,
}

/// `[data]`: the data set and its limits.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataRecipe {
    /// A key of the catalog. Required.
    pub dataset: String,
    /// Split to train on; default `train`.
    pub train: String,
    /// Split to evaluate on; default `validation`.
    pub validation: String,
    /// Longest sequence in tokens, special tokens included, at least 1; default 128.
    pub max_length: usize,
    /// Number of training examples to use, from the first; 0 = all, the default.
    pub limit: usize,
    /// Number of evaluation examples to use, from the first; 0 = all, the default.
    pub eval_limit: usize,
}

/// `[train]`: the optimisation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainRecipe {
    /// Passes over the training data; default 10; 0 exactly where `max_steps` is given instead.
    pub epochs: u64,
    /// Optimiser steps; default 0: by `epochs`.
    pub max_steps: u64,
    /// Examples in one optimiser step per process, at least 1; default 32.
    pub batch_size: usize,
    /// Examples in one forward pass, at most `batch_size`, the rest is accumulated; default `batch_size`.
    pub micro_batch_size: usize,
    /// Tokens in one forward pass, in place of `micro_batch_size` where it is not 0, the default. A longer example is
    /// computed alone.
    pub micro_batch_tokens: usize,
    /// Peak learning rate of the adapter (or of the base with `full`), at least 0; default 1e-3.
    pub learning_rate: f64,
    /// Peak learning rate of the classification head, at least 0; default 5e-3.
    pub head_learning_rate: f64,
    /// Shape of the learning rate after warm-up; default `linear`.
    pub schedule: Schedule,
    /// Warm-up as a fraction of all optimiser steps, in [0, 1); default 0.06; 0 where `warmup_steps` is given.
    pub warmup_ratio: f64,
    /// Warm-up in optimiser steps; default 0: by `warmup_ratio`.
    pub warmup_steps: u64,
    /// Decoupled weight decay of AdamW, at least 0; default 0.01.
    pub weight_decay: f64,
    /// Largest norm of the gradient of all trained tensors, 0 = no clipping; default 1.
    pub max_grad_norm: f64,
    /// Arithmetic of the base; default `fp32`.
    pub precision: Precision,
    /// Seed of R, head, order and dropout; default 0.
    pub seed: u64,
    /// Whether each epoch visits the data in an order of its own; default true.
    pub shuffle: bool,
    /// Optimiser steps between log points, at least 1; default 10.
    pub log_every: u64,
    /// When to write a checkpoint to resume from; default `epoch`.
    pub checkpoint_every: Every,
    /// Checkpoints kept, the newest, at least 1; default 1.
    pub keep_checkpoints: usize,
    /// Whether activations are computed again in the backward pass instead of stored; default false.
    pub gradient_checkpointing: bool,
    /// Folder of an adapter to start from (its head is kept where the shape fits); default `""`: none.
    pub init_from: String,
}

/// `[eval]`: when and how to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalRecipe {
    /// When to evaluate during training; default `epoch`.
    pub every: Every,
    /// Metric that picks the best checkpoint; default `""`: the first of the data set's catalog entry.
    pub metric: String,
    /// Evaluations without improvement after which training stops; 0 = off, the default.
    pub patience: u64,
    /// Examples in one forward pass; default 0: twice `train.micro_batch_size`.
    pub batch_size: usize,
    /// Generation tasks of the catalog scored after training; default none.
    pub tasks: Vec<String>,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// ΔW = (α/r)·B R A with only R trained.
    LoraXs,
    /// ΔW = (α/r)·B A with both trained.
    Lora,
    /// ΔW = diag(λ_b) B diag(λ_d) A with only the two vectors trained.
    Vera,
    /// ΔW = (α/r)·A_aux A_train B_train B_aux with the inner two trained.
    LoraMini,
    /// ΔW = B (Σ v_i P_i) A with only v trained, shared by groups of layers.
    TinyLora,
    /// Every weight of the base.
    Full,
    /// The classification head alone.
    Head,
}

impl TryFrom<toml::Table> for Recipe {
    type Error = anyhow::Error;

    fn try_from(table: toml::Table) -> Result<Self> {
        Self::parse(&toml::to_string(&table)?, "recipe", &[])
    }
}

impl Recipe {
    /// Finds a recipe by path, in `recipes/` of the current folder or among the built-in ones, with or without
    /// `.toml`, and applies `sets` (`key.path=value`) to it.
    ///
    /// # Errors
    /// Where there is no such recipe (names those that exist), and as [`Recipe::parse`].
    pub fn load(name: &str, sets: &[String]) -> Result<(Self, Origin)> {
        let (text, origin) = find::find(name)?;
        let mut recipe = Self::parse(&text, &origin.to_string(), sets)?;
        if let Origin::File(path) = &origin {
            recipe.prefer_existing_folders(path);
        }
        Ok((recipe, origin))
    }

    /// Reads a recipe from TOML text and applies `sets` (`key.path=value`) to it; `name` is for messages.
    ///
    /// # Errors
    /// One usage fault that lists all faults, each with its line or `--set`, its key, and what was expected.
    pub fn parse(text: &str, name: &str, sets: &[String]) -> Result<Self> {
        parse::parse(text, name, sets)
    }

    /// The recipe as TOML with every default written out; reading it back gives an equal recipe.
    ///
    /// # Errors
    /// Where a value has no form in TOML, which no parsed recipe holds.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Names existing folders by their whole paths, which mean the same from any other folder.
    ///
    /// # Errors
    /// When such a path is not of UTF-8, as a recipe is.
    pub fn settle_folders(&mut self) -> Result<()> {
        for folder in [&mut self.model.name, &mut self.adapter.basis, &mut self.train.init_from] {
            let whole = std::path::Path::new(&*folder).canonicalize();
            if let Some(path) = whole.ok().filter(|path| !folder.is_empty() && path.is_dir()) {
                *folder = path.into_os_string().into_string().map_err(|path| {
                    usage(format!("the path of `{folder}` is not of UTF-8: `{}`", path.display()))
                        .hint("a recipe must be able to name it: move it, or give its folders other names")
                })?;
            }
        }
        Ok(())
    }

    /// Folders that exist beside the recipe and not in the current folder are taken from there.
    fn prefer_existing_folders(&mut self, recipe: &std::path::Path) {
        let Some(beside) = recipe.parent() else { return };
        for name in [&mut self.model.name, &mut self.adapter.basis, &mut self.train.init_from] {
            let there = beside.join(name.as_str());
            if !name.is_empty() && !std::path::Path::new(name.as_str()).exists() && there.is_dir() {
                *name = there.to_string_lossy().into_owned();
            }
        }
    }
}
