//! Recipes: everything about a training run, as typed values read from TOML.
//!
//! [`Recipe::load`] finds a recipe by path or name, `parse` turns its text and the `--set` overrides into a
//! [`Recipe`] and reports all faults at once, and [`Recipe::to_toml`] writes it back with every default filled in.
//! The defaults are the published LoRA-XS settings (Bałazy et al., arXiv 2405.17604, and its code).

mod find;
mod parse;
mod sweep;

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};
use toml::Value;

use crate::adapters::Method;
use crate::adapters::basis::BasisSpec;
use crate::fault::{Result, usage};
use crate::files::is_data_place;
use crate::limits::{BATCH_SIZE, EPOCHS, ITERATIONS, LENGTH, SEED, STEPS, TOKENS};
use crate::spec::values::{FRACTION, NOT_NEGATIVE};
use crate::spec::{
    ClassWeights, Every, Init, Precision, Schedule, Sigma, Spectrum, SvdMethod, Validation, keys,
};
pub use find::Origin;
pub use sweep::{Halving, SWEEP, Sweep, SweepRun, SweepSettings, Together};

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

keys! {
    /// `[model]`: the base checkpoint.
    #[derive(Debug, Clone, PartialEq, Serialize)]
    pub struct ModelRecipe in "model." {
        /// Hub id, or folder relative to the current one, else to the recipe's.
        name: String = required();
        /// Branch, tag or commit of a hub id.
        revision: String = text("main");
        /// Probability that replaces every dropout of the base; without it, as in its `config.json`.
        #[serde(skip_serializing_if = "Option::is_none")]
        dropout: Option<f64> = optional_number(FRACTION);
    }
}

keys! {
    /// `[adapter]`: the adapter on top of the base.
    #[derive(Debug, Clone, PartialEq)]
    pub struct AdapterRecipe in "adapter." {
        /// The method, with the keys of its own below.
        method: Method = method();
        /// Ends of the paths of the adapted linear layers; empty = `query`, `value`, `attention.output.dense` and
        /// `output.dense` of an encoder, as in the published code, and every linear layer of a decoder's layers.
        targets: Vec<String> = list(&[]);
        /// Source of the frozen A and B.
        init: Init = choice(method.basis_defaults().0);
        /// Algorithm of the decomposition.
        svd: SvdMethod = choice(SvdMethod::Randomized);
        /// Singular directions that make the basis.
        spectrum: Spectrum = choice(Spectrum::Top);
        /// Place of the singular values.
        sigma: Sigma = choice(method.basis_defaults().1);
        /// Power iterations of the randomized decomposition.
        svd_iterations: u32 = whole(10, 0, ITERATIONS);
        /// Seed of the randomized decomposition, of `spectrum = "random"` and of `init = "random"`.
        svd_seed: u64 = whole(42, 0, SEED);
        /// Folder of an `init-svd` result to use; empty = taken from the cache or computed.
        basis: String = text("");
        /// True if the adapter file also stores A and B.
        with_basis: bool = flag(false);
        /// Standard deviation of R at the start; 0 = R starts at 0.
        init_std: f64 = number(1e-5, NOT_NEGATIVE);
        /// Dropout probability of the adapter's input.
        dropout: f64 = number(0.0, FRACTION);
    }
}

impl AdapterRecipe {
    /// Returns the specification of a basis of this rank.
    pub fn basis_spec(&self, rank: i64) -> BasisSpec {
        let Self { init, svd: method, spectrum, sigma, svd_iterations: iterations, svd_seed: seed, .. } =
            *self;
        BasisSpec { rank, init, method, spectrum, sigma, iterations, seed }
    }
}

impl Serialize for AdapterRecipe {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let name = [("adapter.method", Value::from(self.method.name()))];
        let shared = self.values().into_iter().filter(|(key, _)| *key != "adapter.method");
        let all = name.into_iter().chain(self.method.keys()).chain(shared);
        serializer.collect_map(all.map(|(key, value)| (key.trim_start_matches("adapter."), value)))
    }
}

keys! {
    /// `[data]`: the data set and its limits.
    #[derive(Debug, Clone, PartialEq, Serialize)]
    pub struct DataRecipe in "data." {
        /// A key of the catalog; a file, or a folder of files or of `save_to_disk`; or `hub:OWNER/NAME`, with `/CONFIG` and
        /// `@REVISION` as needed.
        dataset: String = text("");
        /// Split to train on.
        train: String = text("train");
        /// Split to evaluate on; a file of them; or a share of the training rows, which are held out, of each class alike.
        validation: Validation = validation("validation");
        /// Seed of the choice of a share.
        validation_seed: u64 = whole(0, 0, SEED);
        /// Longest sequence in tokens, special tokens included.
        max_length: usize = whole(128, 1, LENGTH);
        /// Number of training examples to use, from the first; 0 = all.
        limit: usize = whole(0, 0, STEPS);
        /// Number of evaluation examples to use, from the first; 0 = all.
        eval_limit: usize = whole(0, 0, STEPS);
        /// The key `task` of the data set, before that of its entry; without both, its columns tell.
        #[serde(skip_serializing_if = "Option::is_none")]
        task: Option<String> = optional();
        /// Its key `text`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        text: Vec<String> = texts(&[]);
        /// Its key `label`.
        #[serde(skip_serializing_if = "Option::is_none")]
        label: Option<String> = optional();
        /// Its key `labels`; without both, the sorted labels of its training rows.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        labels: Vec<String> = list(&[]);
        /// Its key `prompt`.
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt: Option<String> = optional();
        /// Its key `response`.
        #[serde(skip_serializing_if = "Option::is_none")]
        response: Option<String> = optional();
        /// Its key `messages`.
        #[serde(skip_serializing_if = "Option::is_none")]
        messages: Option<String> = optional();
        /// Its key `metrics`.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        metrics: Vec<String> = list(&[]);
        /// Data sets to mix instead of `dataset`, each with its weight: an epoch has as many examples as they have together, each
        /// has its share of every epoch by its weight, and goes on where it ended, in a new order once all of it was seen.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        mixture: BTreeMap<String, f64> = weights();
    }
}

keys! {
    /// `[train]`: the optimisation.
    #[derive(Debug, Clone, PartialEq, Serialize)]
    pub struct TrainRecipe in "train." {
        /// Optimiser steps; 0 = by `epochs`.
        max_steps: u64 = whole(0, 0, STEPS);
        /// Passes over the training data; 0 where `max_steps` is given instead.
        epochs: u64 = whole(if max_steps > 0 { 0 } else { 10 }, 0, EPOCHS);
        /// Examples in one optimiser step per process.
        batch_size: usize = whole(32, 1, BATCH_SIZE);
        /// Examples in one forward pass, at most `batch_size` and that many by default; the rest is accumulated.
        micro_batch_size: usize = whole(batch_size, 1, BATCH_SIZE);
        /// Tokens in one forward pass, in place of `micro_batch_size` where it is not 0. A longer example is computed alone; a step is split into as few passes as fit, of about equal length.
        micro_batch_tokens: usize = whole(0, 0, TOKENS);
        /// Peak learning rate of the adapter, or of the base with `full`.
        learning_rate: f64 = number(1e-3, NOT_NEGATIVE);
        /// Peak learning rate of the classification head.
        head_learning_rate: f64 = number(5e-3, NOT_NEGATIVE);
        /// Shape of the learning rate after warm-up.
        schedule: Schedule = choice(Schedule::Linear);
        /// Warm-up in optimiser steps; 0 = by `warmup_ratio`.
        warmup_steps: u64 = whole(0, 0, STEPS);
        /// Warm-up as a fraction of all optimiser steps; 0 where `warmup_steps` is given.
        warmup_ratio: f64 = number(if warmup_steps > 0 { 0.0 } else { 0.06 }, FRACTION);
        /// Decoupled weight decay of AdamW.
        weight_decay: f64 = number(0.01, NOT_NEGATIVE);
        /// Largest gradient norm over all trainable parameters; 0 = no clipping.
        max_grad_norm: f64 = number(1.0, NOT_NEGATIVE);
        /// Weight of each class in the loss of classification and of token classification, in the order of the data set's
        /// `labels`; `balanced` = by how rare each is, as in scikit-learn; empty = all alike.
        #[serde(skip_serializing_if = "ClassWeights::is_none")]
        class_weights: ClassWeights = class_weights();
        /// Arithmetic of the base; `auto` is `tf32` for an encoder and `bf16` for a decoder on a GPU with tensor cores for it,
        /// else `fp32`.
        precision: Precision = choice(Precision::Auto);
        /// Seed of R, head, order and dropout.
        seed: u64 = whole(0, 0, SEED);
        /// True if each epoch visits the data in an order of its own.
        shuffle: bool = flag(true);
        /// Optimiser steps between log points.
        log_every: u64 = whole(10, 1, STEPS);
        /// Interval of the checkpoints to resume from.
        checkpoint_every: Every = every(Every::Epoch);
        /// Checkpoints kept, the newest.
        keep_checkpoints: usize = whole(1, 1, STEPS);
        /// True if activations are recomputed in the backward pass instead of stored.
        gradient_checkpointing: bool = flag(false);
        /// Folder of an adapter to start from, whose head is kept where the shape fits; empty = none.
        init_from: String = text("");
    }
}

keys! {
    /// `[eval]`: evaluation during and after training.
    #[derive(Debug, Clone, PartialEq, Serialize)]
    pub struct EvalRecipe in "eval." {
        /// Interval of evaluations during training.
        every: Every = every(Every::Epoch);
        /// Metric that picks the best checkpoint; empty = the first of the data set's catalog entry.
        metric: String = text("");
        /// Evaluations without improvement after which training stops; 0 = off.
        patience: u64 = whole(0, 0, STEPS);
        /// Examples in one forward pass; 0 = twice `train.micro_batch_size`.
        batch_size: usize = whole(0, 0, BATCH_SIZE);
        /// Generation tasks of the catalog scored after training.
        tasks: Vec<String> = list(&[]);
    }
}

impl DataRecipe {
    /// Returns the keys of the data set's entry that are given here.
    pub fn entry(&self) -> toml::Table {
        let texts = [
            ("task", &self.task),
            ("label", &self.label),
            ("prompt", &self.prompt),
            ("response", &self.response),
            ("messages", &self.messages),
        ];
        let lists = [("text", &self.text), ("labels", &self.labels), ("metrics", &self.metrics)];
        let texts = texts.into_iter().filter_map(|(key, text)| Some((key, Value::from(text.clone()?))));
        let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
        let lists = lists.map(|(key, list)| (key, Value::from(list.clone())));
        texts.chain(lists).map(|(key, value)| (key.to_owned(), value)).collect()
    }

    /// Returns the names of its data sets.
    pub fn names(&self) -> Vec<&str> {
        match self.mixture.is_empty() {
            true => vec![&self.dataset],
            false => self.mixture.keys().map(String::as_str).collect(),
        }
    }
}

/// Returns the values of a table by their full keys.
pub fn flat(table: &toml::Table, prefix: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (key, value) in table {
        match value {
            Value::Table(inner) => found.extend(flat(inner, &format!("{prefix}{key}."))),
            value => _ = found.insert(format!("{prefix}{key}"), value.to_string()),
        }
    }
    found
}

/// Replaces the path of something that exists by its absolute path.
fn settle(path: &mut String) -> Result<()> {
    if let Ok(whole) = Path::new(&*path).canonicalize() {
        *path = whole.into_os_string().into_string().map_err(|whole| {
            usage(format!("the path of `{path}` is not valid UTF-8: `{}`", Path::new(&whole).display()))
                .hint("recipes name it as text: move it, or rename its folders")
        })?;
    }
    Ok(())
}

/// Returns the names of data that may be files or folders.
fn data_of(data: &mut DataRecipe) -> impl Iterator<Item = &mut String> {
    let validation = if let Validation::Split(name) = &mut data.validation { Some(name) } else { None };
    std::iter::once(&mut data.dataset).chain(validation)
}

impl TryFrom<toml::Table> for Recipe {
    type Error = anyhow::Error;

    fn try_from(table: toml::Table) -> Result<Self> {
        Self::parse(&toml::to_string(&table)?, "recipe", &[])
    }
}

impl Recipe {
    /// Returns the text of a recipe, found as by [`Recipe::load`], and its origin.
    ///
    /// # Errors
    /// When there is no such recipe (names those that exist).
    pub fn text(name: &str) -> Result<(String, Origin)> {
        find::find(name)
    }

    /// Returns the names of the built-in recipes, each with the first sentence of its header.
    pub fn built_in() -> impl Iterator<Item = (String, String)> {
        find::BUILT_IN.iter().map(|(name, text)| ((*name).to_owned(), find::about(text)))
    }

    /// Finds a recipe by path, in `recipes/` of the current folder or among the built-in ones, with or without
    /// `.toml`, and applies `sets` (`key.path=value`) to it.
    ///
    /// # Errors
    /// When there is no such recipe (names those that exist), and as [`Recipe::parse`].
    pub fn load(name: &str, sets: &[String]) -> Result<(Self, Origin)> {
        let (text, origin) = find::find(name)?;
        let mut recipe = Self::parse(&text, &origin.to_string(), sets)?;
        if let Some(beside) = origin.folder() {
            recipe.prefer_existing_folders(beside);
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

    /// Replaces files and folders of data by their absolute paths.
    ///
    /// # Errors
    /// As [`Recipe::settle_folders`].
    pub fn settle_data(&mut self) -> Result<()> {
        data_of(&mut self.data).filter(|name| is_data_place(name, Path::new(&**name))).try_for_each(settle)
    }

    /// Replaces existing folders by their absolute paths, which mean the same from any other folder.
    ///
    /// # Errors
    /// When such a path is not valid UTF-8, as a recipe is.
    pub fn settle_folders(&mut self) -> Result<()> {
        let folders = [&mut self.model.name, &mut self.adapter.basis, &mut self.train.init_from];
        folders.into_iter().filter(|folder| Path::new(&**folder).is_dir()).try_for_each(settle)?;
        self.settle_data()
    }

    /// Takes folders that exist `beside` the recipe, and not in the current folder, from there.
    fn prefer_existing_folders(&mut self, beside: &Path) {
        for name in [&mut self.model.name, &mut self.adapter.basis, &mut self.train.init_from] {
            let there = beside.join(name.as_str());
            if !name.is_empty() && !Path::new(name.as_str()).exists() && there.is_dir() {
                *name = there.to_string_lossy().into_owned();
            }
        }
        for name in data_of(&mut self.data) {
            let there = beside.join(name.as_str());
            if !name.is_empty() && !Path::new(name.as_str()).exists() && is_data_place(name, &there) {
                *name = there.to_string_lossy().into_owned();
            }
        }
    }
}
