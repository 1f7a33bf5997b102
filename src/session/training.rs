//! A training before its first step: the model with its adapter, and the settings of the loop.

use std::path::Path;

use super::adapter_setup::AdapterSetup;
use super::counts::Counts;
use super::environment::{Environment, OpenBase, use_precision};
use super::inputs::TrainInputs;
use super::lasting::{lasting, warmup};
use super::run_folder::{CHECKPOINTS, RECIPE};
use crate::adapters::basis::BasisSpec;
use crate::adapters::file::{AdapterConfig, WEIGHTS};
use crate::adapters::{Group, Method, Named, Trained};
use crate::fault::Result;
use crate::files;
use crate::models::adapt::attach;
use crate::models::{Build, Model};
use crate::recipe::Recipe;
use crate::spec::Precision;
use crate::train::language::LanguageModelling;
use crate::train::objective::LabelPrediction;
use crate::train::recorded::Passes;
use crate::train::{Objective, RunPlan, TrainPlan};

/// Everything that a training needs.
pub struct Training {
    /// Recipe, base and data.
    pub inputs: TrainInputs,
    /// The model with its adapter.
    pub model: Model,
    /// The trainable parameters.
    pub trained: Trained,
    /// The frozen tensors that the adapter file holds.
    pub kept: Named,
    /// Config of the adapter file.
    pub adapter: AdapterConfig,
    /// Words of the seed's stream that PyTorch's way of making head and adapter takes.
    drawn: usize,
}

impl Training {
    /// Loads the model and puts the recipe's adapter on it.
    /// Fails when a tensor, a basis or the adapter to start from does not fit.
    pub fn new(place: &Environment, mut inputs: TrainInputs) -> Result<Self> {
        let TrainInputs { recipe, base, dataset, head, .. } = &inputs;
        let seeds = [recipe.train.seed];
        let build = Build {
            device: place.device,
            kind: use_precision(recipe.train.precision)?,
            head: *head,
            seeds: seeds.to_vec(),
            // A rehearsal has no numbers to train.
            train_base: recipe.adapter.method == Method::Full && !place.rehearsal,
        };
        // A basis reads every weight: before the model, so that the device need not hold them twice.
        let setup = AdapterSetup::new(place, recipe, base, *head)?;
        let mut trained = Trained::new(1);
        let mut model = Model::load(&base.base, &build, &mut trained)?;
        let drawn_by_head = model.classifier().map_or(0, |model| model.head.drawn);
        let (device, plan) = (model.device(), setup.plan(&recipe.adapter, drawn_by_head));
        let shapes: Vec<[i64; 2]> = plan.layers.iter().map(|(_, shape)| *shape).collect();
        let [lora, cores] = plan.method.words_drawn(&shapes, plan.frozen.is_random());
        let drawn = drawn_by_head + lora + cores;
        let mut kept = attach(model.linears_mut(), device, plan, &seeds, &mut trained)?;
        kept.extend(setup.stored_basis(&recipe.adapter));
        let of_base = place.rehearsal && recipe.adapter.method == Method::Full;
        let mut of_head = 0;
        if let Some(start) = setup.start.as_ref().filter(|_| !of_base) {
            let loaded = start.load_into(&trained, true)?;
            of_head = loaded;
            tracing::info!("started from `{}`, with {loaded} tensors of its head", recipe.train.init_from);
        }
        if let (0, Ok(model), Some(head)) = (of_head, model.classifier(), *head) {
            model.head.say_drawn(&base.base.config, head, &base.base.tensors);
        }
        let mut adapter = setup.config(recipe, base, *head, &trained)?;
        adapter.dataset.clone_from(&dataset.name);
        adapter.labels = dataset.task.labels().to_vec();
        let spec = adapter.basis.as_ref().map(|record| &record.spec);
        if let Some(BasisSpec { method, iterations, seed, .. }) = spec.filter(|_| setup.knows_basis()) {
            // The recipe records how the basis was made, even if it came from a folder or an adapter.
            let recipe = &mut inputs.recipe.adapter;
            (recipe.svd, recipe.svd_iterations, recipe.svd_seed) = (*method, *iterations, *seed);
        }
        Ok(Self { inputs, model, trained, kept, adapter, drawn })
    }

    /// Counts the trainable parameters in the store.
    pub fn counts(&self) -> Counts {
        let [adapter, full, head] = [Group::Adapter, Group::Base, Group::Head].map(|g| self.trained.count(g));
        Counts { all: self.inputs.base.base.trunk_numbers(), adapter, full, head }
    }

    /// Returns the objective of its data set.
    pub fn objective(&self) -> Box<dyn Objective + '_> {
        let TrainInputs { recipe, dataset, train, validation, metrics, class_weights, .. } = &self.inputs;
        let train = train.examples.as_slice();
        let validation = validation.as_ref().map(|found| found.examples.as_slice()).unwrap_or_default();
        let recompute = recipe.train.gradient_checkpointing;
        let eval_batch_size = match recipe.eval.batch_size {
            0 => 2 * recipe.train.micro_batch_size,
            given => given,
        };
        match &self.model {
            Model::Classifier(model) => Box::new(LabelPrediction {
                model,
                train,
                validation,
                labels: dataset.task.labels(),
                metrics: metrics.clone(),
                class_weights: class_weights.clone(),
                eval_batch_size,
                recompute,
                passes: Passes::default(),
            }),
            Model::Language(model) => {
                let eval_batch_tokens = eval_batch_size * recipe.data.max_length;
                let longest = recipe.data.max_length as i64;
                let passes = Passes::default();
                Box::new(LanguageModelling {
                    model,
                    train,
                    validation,
                    eval_batch_tokens,
                    recompute,
                    longest,
                    passes,
                })
            }
        }
    }

    /// Returns base and recipe, which outlive the model.
    pub fn into_base(self) -> (OpenBase, Recipe) {
        (self.inputs.base, self.inputs.recipe)
    }

    /// Builds the settings of the training loop for a run in `out`.
    /// Fails when the recipe cannot be written as text, or the adapter that it starts from cannot be read.
    pub fn plan(&self, out: &Path) -> Result<TrainPlan> {
        let Self { inputs, .. } = self;
        let train = &inputs.recipe.train;
        let steps = inputs.steps();
        let run = RunPlan {
            seed: train.seed,
            drawn: self.drawn,
            learning_rate: train.learning_rate,
            head_learning_rate: train.head_learning_rate,
            steps,
            warmup: warmup(train, steps),
            schedule: train.schedule,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            patience: inputs.recipe.eval.patience,
        };
        let [fingerprint, _] = self.fingerprints(&lasting(&inputs.recipe, steps).to_toml()?)?;
        let mut earlier = self.fingerprints(&inputs.recipe.to_toml()?)?.to_vec();
        let begun = out.join(RECIPE);
        if begun.exists() {
            earlier.extend(self.fingerprints(&files::read_text(&begun)?)?);
        }
        Ok(TrainPlan {
            runs: vec![run],
            batch_size: train.batch_size,
            micro_batch_size: train.micro_batch_size,
            micro_batch_tokens: train.micro_batch_tokens,
            loss_scaling: train.precision == Precision::Fp16,
            shuffle: train.shuffle,
            mixture: inputs.mixture.clone(),
            log_every: train.log_every,
            evaluate: inputs.recipe.eval.every,
            metric: inputs.metrics[0],
            checkpoint: train.checkpoint_every,
            keep_checkpoints: train.keep_checkpoints,
            checkpoints: out.join(CHECKPOINTS),
            fingerprint,
            earlier,
        })
    }

    /// Returns the fingerprint of a run whose recipe was written so, and the one of before the base's
    /// `config.json` counted.
    fn fingerprints(&self, recipe: &str) -> Result<[String; 2]> {
        let Self { inputs, .. } = self;
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(recipe.as_bytes());
        fingerprint.update(inputs.base.hash.as_bytes()).update(inputs.train.hash.as_bytes());
        fingerprint.update(inputs.validation.as_ref().map(|v| v.hash.as_bytes()).unwrap_or_default());
        let init_from = &inputs.recipe.train.init_from;
        let start = Path::new(init_from).join(WEIGHTS);
        if !init_from.is_empty() && start.exists() {
            fingerprint.update(files::checksum(&start)?.as_bytes());
        }
        let without_config = fingerprint.finalize().to_hex().to_string();
        fingerprint.update(inputs.base.config_hash.as_bytes());
        Ok([fingerprint.finalize().to_hex().to_string(), without_config])
    }
}
