//! Inputs of a training before its model: recipe, base, data and their settings, with counts and a forecast.

use std::ops::Range;
use std::path::Path;

use tch::Device;

use super::class_weights::class_weights;
use super::counts::{Counts, adapted};
use super::environment::{Environment, OpenBase, kind_of, settled};
use super::fit::{check_fit, head_for};
use super::forecast::{DevicePart, Forecast};
use super::precedence::prompt_split;
use super::sources;
use super::training_data::{self, Sets, TrainingData};
use crate::adapters::Method;
use crate::data::dataset::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, Label, Task};
use crate::fault::{Result, usage};
use crate::files;
use crate::models::HeadShape;
use crate::models::head::count_of;
use crate::models::placement::Placement;
use crate::recipe::{EvalRecipe, Recipe, TrainRecipe};
use crate::spec::Metric;
use crate::torch::{Devices, free_bytes};
use crate::train::mixture::Part;
use crate::train::order::steps_per_epoch;

/// Everything that a training needs except its model.
pub struct TrainInputs {
    /// The resolved recipe.
    pub recipe: Recipe,
    /// The base.
    pub base: OpenBase,
    /// The data set.
    pub dataset: Dataset,
    /// The base's tokenizer.
    pub tokenizer: Tokenizer,
    /// Examples to train on.
    pub train: Examples,
    /// Examples to score; `None` if the recipe never evaluates.
    pub validation: Option<Examples>,
    /// The data sets of a mixture; none if there is one.
    pub mixture: Vec<Part>,
    /// The data set's metrics, the one that picks the best checkpoint first.
    pub metrics: Vec<Metric>,
    /// The head; `None` for a language model.
    pub head: Option<HeadShape>,
    /// The weight of each class in the loss; empty = all alike.
    pub class_weights: Vec<f64>,
    /// A catalog of its data sets, which the run keeps.
    pub catalog: String,
}

impl TrainInputs {
    /// Opens everything that the recipe names, and fills in what it leaves to the base.
    /// Fails when something is missing or does not fit.
    pub fn open(place: &Environment, mut recipe: Recipe) -> Result<Self> {
        recipe.settle_data()?;
        let (sets, dataset) = training_data::open(place, &recipe.data)?;
        let mut base = place.base(&recipe.model.name, &recipe.model.revision)?;
        let head = head(&base, &dataset)?;
        let metrics = chosen_metrics(&recipe, &dataset)?;
        check_tasks(place, &recipe, head)?;
        let catalog = kept(place, &recipe, &sets)?;
        recipe.settle_folders()?;
        // A branch moves; the saved recipe must name the weights that the run was trained on.
        if let Some(commit) = &base.commit {
            recipe.model.revision.clone_from(commit);
        }
        recipe.train.precision = settled(recipe.train.precision, &place.devices, &base.base.config)?;
        if recipe.adapter.targets.is_empty() {
            recipe.adapter.targets = base.base.config.default_targets();
        }
        if let Some(p) = recipe.model.dropout {
            base.base.config.set_dropout(p);
        }
        let tokenizer = Tokenizer::load(&base.base.folder)?;
        let data = recipe.data.clone();
        check_fit(&base.base, &tokenizer, data.max_length)?;
        warn_of_template(&dataset, &tokenizer);
        let TrainingData { train, validation, mixture } =
            training_data::load(place, &sets, &recipe, &tokenizer)?;
        if head.is_some() && train.examples.iter().any(|example| example.label.is_none()) {
            let message =
                format!("data set `{}`: split `{}` has rows without a label", dataset.name, data.train);
            return Err(usage(message).hint("train on a labelled split: set `data.train`").into());
        }
        let class_weights = class_weights(&recipe.train.class_weights, &dataset, &train.examples)?;
        Ok(Self {
            recipe,
            base,
            dataset,
            tokenizer,
            train,
            validation,
            mixture,
            metrics,
            head,
            class_weights,
            catalog,
        })
    }

    /// Returns true if inputs that were opened for one recipe serve another: with the same base, data, evaluations and arithmetic.
    pub fn serves(&self, opened: &Recipe, other: &Recipe) -> bool {
        let of_eval = |recipe: &Recipe| EvalRecipe { patience: 0, ..recipe.eval.clone() };
        (&opened.model, &opened.data, of_eval(opened)) == (&other.model, &other.data, of_eval(other))
            && opened.train.precision == other.train.precision
            && opened.train.class_weights == other.train.class_weights
    }

    /// Returns the inputs of another recipe that these serve.
    /// Fails when the path of a folder is not valid UTF-8.
    pub fn with_recipe(self, mut recipe: Recipe) -> Result<Self> {
        recipe.settle_folders()?;
        recipe.model = self.recipe.model;
        recipe.data = self.recipe.data;
        recipe.train.precision = self.recipe.train.precision;
        if recipe.adapter.targets.is_empty() {
            recipe.adapter.targets = self.base.base.config.default_targets();
        }
        Ok(Self { recipe, ..self })
    }

    /// Returns the optimiser steps of an epoch.
    pub fn steps_per_epoch(&self, train: &TrainRecipe) -> u64 {
        steps_per_epoch(self.train.examples.len(), train.batch_size)
    }

    /// Returns the optimiser steps of the whole training.
    pub fn steps(&self) -> u64 {
        self.steps_of(&self.recipe.train)
    }

    /// Returns the optimiser steps of a training with other settings.
    pub fn steps_of(&self, train: &TrainRecipe) -> u64 {
        match train.max_steps {
            0 => train.epochs.saturating_mul(self.steps_per_epoch(train)),
            given => given,
        }
    }

    /// Shows the first training example as the model sees it, the trained part between `⟦` and `⟧`.
    /// Fails when the tokenizer cannot decode.
    pub fn shown_example(&self) -> Result<String> {
        let Some(example) = self.train.examples.first() else { return Ok(String::new()) };
        let count = example.ids.len();
        if self.dataset.task.problem().is_none() {
            let text = self.tokenizer.show(example)?;
            return Ok(format!("first example, {count} tokens, trained on the part in ⟦⟧:\n{text}"));
        }
        let text = self.tokenizer.decode(&example.ids, false)?;
        let named = |classes: &[u32]| {
            let names: Vec<&str> = classes.iter().filter_map(|class| self.label_name(*class)).collect();
            if names.is_empty() { "none".to_owned() } else { names.join(" ") }
        };
        let label = match &example.label {
            Some(Label::Value(value)) => value.to_string(),
            Some(Label::Class(class)) => named(&[*class]),
            Some(Label::Set(classes) | Label::Tags(classes)) => named(classes),
            None => "none".into(),
        };
        Ok(format!("first example, {count} tokens, label {label}: {text}"))
    }

    fn label_name(&self, class: u32) -> Option<&str> {
        self.dataset.task.labels().get(class as usize).map(String::as_str)
    }

    /// Counts the trainable parameters of adapter, base and head, by the formulas of method and head.
    /// Fails when a target names no layer, or the rank does not fit one.
    pub fn counts(&self) -> Result<Counts> {
        let base = &self.base.base;
        let adapter = &self.recipe.adapter;
        let (trained, full) = match adapter.method {
            Method::Head => (0, 0),
            Method::Full => (0, base.trunk_numbers()),
            _ => {
                let layers = adapted(adapter, &adapter.targets, &base.linear_layers())?;
                (usize::try_from(adapter.method.count(&layers))?, 0)
            }
        };
        let head = self.head.map_or(0, |head| count_of(&base.config, head, &base.tensors));
        Ok(Counts { all: base.trunk_numbers(), adapter: trained, full, head })
    }

    /// Returns the text that `--dry-run` prints for a run in `out`.
    /// Fails when a target names no layer.
    pub fn forecast(&self, place: &Environment, out: &Path) -> Result<String> {
        let forecast = self.costs(place, out)?;
        Ok(format!("{}\n{}\n{}", forecast.counts.table(), self.shown_example()?, forecast.text(out)))
    }

    /// Estimates the costs of a run in `out`.
    /// Fails when a target names no layer.
    pub fn costs(&self, place: &Environment, out: &Path) -> Result<Forecast<'_>> {
        Ok(Forecast {
            config: &self.base.base.config,
            counts: self.counts()?,
            lengths: self.train.examples.iter().map(|example| example.ids.len()).collect(),
            train: self.recipe.train.clone(),
            kept: self.recipe.adapter.method.kept(),
            drops: self.recipe.adapter.dropout > 0.0,
            steps: self.steps(),
            parts: self.parts(&place.devices)?,
            free_on_disk: files::free_on_disk(out),
        })
    }

    /// Returns what would lie on each of the devices.
    fn parts(&self, devices: &Devices) -> Result<Vec<DevicePart>> {
        let (base, recipe) = (&self.base.base, &self.recipe);
        let sizes = base.sizes(kind_of(recipe.train.precision), recipe.adapter.method == Method::Full);
        let free: Vec<Option<usize>> = devices.all().iter().map(|device| free_bytes(*device)).collect();
        let (placement, _) = Placement::planned(devices, &sizes, &free)?;
        // An output layer that is the embedding computes where that lies.
        let logits = if base.has_output_layer() { placement.last() } else { placement.first() };
        let part = |((device, layers), free): ((Device, Range<usize>), _)| DevicePart {
            device: Devices::from(device).to_string(),
            share: sizes.of(layers.clone()) as f64 / sizes.all().max(1) as f64,
            layers,
            has_logits: device == logits,
            free,
        };
        Ok(placement.ranges(base.config.layers).into_iter().zip(free).map(part).collect())
    }
}

/// Returns the head that the data set needs; none for a decoder that is trained on responses or conversations.
fn head(base: &OpenBase, dataset: &Dataset) -> Result<Option<HeadShape>> {
    let config = &base.base.config;
    match dataset.task {
        Task::Instruction(_) | Task::Text(_) | Task::Chat(_) if config.is_decoder() => Ok(None),
        Task::Generation(_) if config.is_decoder() => {
            let (name, class) = (&dataset.name, config.class);
            Err(usage(format!(
                "data set `{name}` is for `generation`, but the base is a language model (`{class}ForCausalLM`)"
            ))
            .hint("train it on a data set for `instruction`, `text` or `chat`; those for `generation` are for `eval`")
            .into())
        }
        _ => head_for(dataset).map(Some),
    }
}

/// Returns a catalog of the recipe's data sets as TOML.
fn kept(place: &Environment, recipe: &Recipe, sets: &Sets) -> Result<String> {
    let mut entries = toml::Table::new();
    for (name, dataset) in sets {
        entries.insert(name.clone(), dataset.settled()?.into());
    }
    for name in &recipe.eval.tasks {
        entries.insert(name.clone(), sources::open(place, name)?.settled()?.into());
    }
    Ok(toml::to_string(&entries)?)
}

/// Warns of a base that was taught a chat format and is trained without it.
fn warn_of_template(dataset: &Dataset, tokenizer: &Tokenizer) {
    if matches!(dataset.task, Task::Instruction(_) | Task::Text(_)) && tokenizer.chat_template().is_some() {
        tracing::warn!(
            "the base has a chat template, which `{}` (`{}`) does not use: `task = \"chat\"` trains on conversations in it",
            dataset.name,
            dataset.task.name()
        );
    }
}

/// Refuses tasks that could not be scored after the training.
fn check_tasks(place: &Environment, recipe: &Recipe, head: Option<HeadShape>) -> Result<()> {
    for name in &recipe.eval.tasks {
        let dataset = sources::open(place, name)?;
        let task = &dataset.task;
        if !matches!(task, Task::Generation(_)) {
            let found = task.name();
            return Err(usage(format!(
                "`eval.tasks` names `{name}`, which is for `{found}`, not `generation`"
            ))
            .hint("the run's own data set is always scored")
            .into());
        }
        if head.is_some() {
            return Err(usage("`eval.tasks` is for generation tasks, which a classifier does not support")
                .hint("leave `eval.tasks` empty; the run's own data set is always scored")
                .into());
        }
        // After days of training is no time to miss a file.
        place.files(&dataset, prompt_split(&dataset).unwrap_or(recipe.data.validation.split()))?;
    }
    Ok(())
}

/// Returns the data set's metrics, with the recipe's choice first.
fn chosen_metrics(recipe: &Recipe, dataset: &Dataset) -> Result<Vec<Metric>> {
    let mut metrics = dataset.task.metrics();
    if !recipe.eval.metric.is_empty() {
        let chosen: Metric = recipe.eval.metric.parse()?;
        let Some(place) = metrics.iter().position(|&metric| metric == chosen) else {
            let known: Vec<&str> = metrics.iter().map(|metric| metric.name()).collect();
            return Err(usage(format!("`{}` has no metric `{chosen}`", dataset.name))
                .hint(format!("its metrics are {}", known.join(", ")))
                .into());
        };
        metrics.swap(0, place);
    }
    Ok(metrics)
}
