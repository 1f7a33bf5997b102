//! Recipes: everything about a training run, as typed values read from TOML.
//!
//! [`Recipe::load`] finds a recipe by path or name, `parse` turns its text and the `--set` overrides into a
//! [`Recipe`] and reports all faults at once, and [`Recipe::to_toml`] writes it back with every default filled in.
//! The defaults are the published LoRA-XS settings (Bałazy et al., arXiv 2405.17604, and its code).

mod find;
mod parse;

use serde::{Deserialize, Serialize, Serializer};
use toml::Value;

use crate::adapters::Method;
use crate::adapters::basis::BasisSpec;
use crate::fault::{Result, usage};
use crate::spec::{Every, Precision, Schedule};
pub use find::Origin;

/// A training run: which base, which adapter, which data, how to train and how to evaluate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "toml::Table")]
pub struct Recipe {
    /// The base checkpoint.
    pub model: ModelRecipe,
    /// The adapter on top of it.
    pub adapter: AdapterRecipe,
    /// The data set and its limits.
    pub data: DataRecipe,
    /// The optimisation.
    pub train: TrainRecipe,
    /// Evaluation during and after training.
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

/// `[adapter]`: the adapter on top of the base.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterRecipe {
    /// The method, default `lora-xs`, and its settings. Of `lora-xs`, `lora` and `lora-mini`: `rank`, default 16, 8 and 8,
    /// and `alpha`, numerator of the scale, default 16. The others have keys of their own ([`Method::read`]).
    pub method: Method,
    /// Ends of the paths of the adapted linear layers. Default, as in the published code: `query`, `value`,
    /// `attention.output.dense`, `output.dense` of an encoder; every linear layer of a decoder's layers.
    pub targets: Vec<String>,
    /// Settings of the frozen A and B, with defaults: `init` (`svd`, for `lora-mini` `random`), `svd`
    /// (`randomized`), `spectrum` (`top`), `sigma` (`a`, for `tiny-lora` `split`), `svd_iterations` (10), and
    /// `svd_seed` (42), of the randomized decomposition, of `spectrum = "random"` and of `init = "random"`.
    pub made: BasisSpec,
    /// Folder of an `init-svd` result to use; default `""`: taken from the cache or computed.
    pub basis: String,
    /// True if the adapter file also stores A and B; default false.
    pub with_basis: bool,
    /// Standard deviation of R at the start, at least 0 (0: R = 0); default 1e-5.
    pub init_std: f64,
    /// Dropout probability of the adapter's input, in [0, 1); default 0.
    pub dropout: f64,
}

impl Serialize for AdapterRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let shared = [
            ("targets", Value::from(self.targets.clone())),
            ("init", self.made.init.to_string().into()),
            ("svd", self.made.method.to_string().into()),
            ("spectrum", self.made.spectrum.to_string().into()),
            ("sigma", self.made.sigma.to_string().into()),
            ("svd_iterations", i64::from(self.made.iterations).into()),
            ("svd_seed", self.made.seed.cast_signed().into()),
            ("basis", self.basis.clone().into()),
            ("with_basis", self.with_basis.into()),
            ("init_std", self.init_std.into()),
            ("dropout", self.dropout.into()),
        ];
        let name = [("method", Value::from(self.method.name()))];
        let own =
            self.method.keys().into_iter().map(|(key, value)| (key.trim_start_matches("adapter."), value));
        serializer.collect_map(name.into_iter().chain(own).chain(shared))
    }
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
    /// Largest gradient norm over all trainable parameters, 0 = no clipping; default 1.
    pub max_grad_norm: f64,
    /// Arithmetic of the base; default `fp32`.
    pub precision: Precision,
    /// Seed of R, head, order and dropout; default 0.
    pub seed: u64,
    /// True if each epoch visits the data in a new order; default true.
    pub shuffle: bool,
    /// Optimiser steps between log points, at least 1; default 10.
    pub log_every: u64,
    /// Interval of the checkpoints to resume from; default `epoch`.
    pub checkpoint_every: Every,
    /// Checkpoints kept, the newest, at least 1; default 1.
    pub keep_checkpoints: usize,
    /// True if activations are recomputed in the backward pass instead of stored; default false.
    pub gradient_checkpointing: bool,
    /// Folder of an adapter to start from (its head is kept where the shape fits); default `""`: none.
    pub init_from: String,
}

/// `[eval]`: evaluation during and after training.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalRecipe {
    /// Interval of evaluations during training; default `epoch`.
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
    /// When there is no such recipe (names those that exist), and as [`Recipe::parse`].
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
    ///
    /// ```
    /// use loraxs::recipe::Recipe;
    ///
    /// let text = "model.name = 'roberta-large'\ndata.dataset = 'glue/qnli'";
    /// let recipe = Recipe::parse(text, "example", &["train.seed=1".to_owned()])?;
    /// assert_eq!((recipe.adapter.method.name(), recipe.train.seed), ("lora-xs", 1));
    /// let error = Recipe::parse(text, "example", &["train.sede=1".to_owned()]).unwrap_err();
    /// assert!(error.to_string().contains("did you mean `train.seed`?"));
    /// # anyhow::Ok(())
    /// ```
    pub fn parse(text: &str, name: &str, sets: &[String]) -> Result<Self> {
        parse::parse(text, name, sets)
    }

    /// Writes the recipe as TOML with every default; reading it back gives an equal recipe.
    ///
    /// # Errors
    /// When a value has no form in TOML, which no parsed recipe holds.
    pub fn to_toml(&self) -> Result<String> {
        Ok(toml::to_string(self)?)
    }

    /// Replaces existing folders by their absolute paths, which mean the same from any other folder.
    ///
    /// # Errors
    /// When such a path is not valid UTF-8, as a recipe is.
    pub fn settle_folders(&mut self) -> Result<()> {
        for folder in [&mut self.model.name, &mut self.adapter.basis, &mut self.train.init_from] {
            let whole = std::path::Path::new(&*folder).canonicalize();
            if let Some(path) = whole.ok().filter(|path| !folder.is_empty() && path.is_dir()) {
                *folder = path.into_os_string().into_string().map_err(|path| {
                    usage(format!("the path of `{folder}` is not valid UTF-8: `{}`", path.display()))
                        .hint("recipes name it as text: move it, or rename its folders")
                })?;
            }
        }
        Ok(())
    }

    /// Takes folders that exist beside the recipe, and not in the current folder, from there.
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
