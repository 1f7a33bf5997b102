//! A training before its first step: the model with its adapter, and the settings of the loop.

use std::path::Path;

use super::adapter_setup::AdapterSetup;
use super::counts::Counts;
use super::course::Course;
use super::environment::{Environment, use_precision};
use super::inputs::TrainInputs;
use super::lasting::{lasting, warmup};
use super::run_folder::{CHECKPOINTS, RECIPE};
use crate::adapters::basis::BasisSpec;
use crate::adapters::file::{AdapterConfig, WEIGHTS};
use crate::adapters::{Group, Method, Named, Trained};
use crate::fault::Result;
use crate::files;
use crate::models::adapt::{Plan, Start, attach};
use crate::models::{Build, Model};
use crate::recipe::Recipe;
use crate::spec::Precision;
use crate::torch::world::World;
use crate::train::language::LanguageModelling;
use crate::train::objective::LabelPrediction;
use crate::train::recorded::Passes;
use crate::train::{Objective, RunPlan, TrainPlan};

/// Everything that a training of one run, or of several together, needs.
pub struct Training {
    /// Recipe of the first run, base and data.
    pub inputs: TrainInputs,
    /// The recipe of each run.
    pub recipes: Vec<Recipe>,
    /// The model with its adapters.
    pub model: Model,
    /// The trainable parameters.
    pub trained: Trained,
    /// The frozen tensors that the adapter file holds.
    pub kept: Named,
    /// Config of each run's adapter file.
    pub adapters: Vec<AdapterConfig>,
    /// Words of the seed's stream that PyTorch's way of making head and adapter takes.
    drawn: usize,
}

impl Training {
    /// Loads the model and puts the adapter of each run on it: of the inputs' recipe, and of `others`, which differ from it only in
    /// keys of their own ([`Recipe::with_own_keys`]).
    /// Fails when a tensor, a basis or the adapter to start from does not fit.
    pub fn new(place: &Environment, mut inputs: TrainInputs, others: &[Recipe]) -> Result<Self> {
        let TrainInputs { recipe, base, head, .. } = &inputs;
        let all = std::iter::once(recipe).chain(others);
        let seeds: Vec<u64> = all.clone().map(|recipe| recipe.train.seed).collect();
        let init_stds: Vec<f64> = all.map(|recipe| recipe.adapter.init_std).collect();
        let build = Build {
            // A rehearsal has nothing to divide.
            devices: if place.rehearsal { place.devices.first().into() } else { place.devices.clone() },
            kind: use_precision(recipe.train.precision)?,
            head: *head,
            seeds: seeds.clone(),
            // A rehearsal has no numbers to train.
            train_base: recipe.adapter.method == Method::Full && !place.rehearsal,
        };
        // A basis reads every weight: before the model, so that the device need not hold them twice.
        let setup = AdapterSetup::new(place, recipe, base, *head)?;
        let mut trained = Trained::new(seeds.len() as i64);
        let mut model = Model::load(&base.base, &build, &mut trained)?;
        let drawn_by_head = model.classifier().map_or(0, |model| model.head.drawn);
        let recorded = setup.frozen.basis.as_ref().map(|basis| basis.spec.clone());
        if let Some(BasisSpec { method, iterations, seed, .. }) = recorded.filter(|_| setup.knows_basis()) {
            // The recipe records how the basis was made, even if it came from a folder or an adapter.
            let recipe = &mut inputs.recipe.adapter;
            (recipe.svd, recipe.svd_iterations, recipe.svd_seed) = (method, iterations, seed);
        }
        let TrainInputs { recipe, base, dataset, head, .. } = &inputs;
        let others = others.iter().map(|other| recipe.with_own_keys(other));
        let recipes: Vec<Recipe> =
            std::iter::once(Ok(recipe.clone())).chain(others).collect::<Result<_>>()?;
        let methods: Vec<Method> =
            recipes.iter().map(|recipe| setup.method_of(recipe)).collect::<Result<_>>()?;
        let alphas: Vec<f64> = methods.iter().filter_map(Method::alpha).collect();
        let plan = Plan {
            method: &setup.method,
            layers: &setup.layers,
            frozen: &setup.frozen,
            start: Start { drawn: drawn_by_head, init_std: recipe.adapter.init_std },
            dropout: recipe.adapter.dropout,
            alphas: if alphas.iter().all(|alpha| *alpha == alphas[0]) { &[] } else { &alphas },
            init_stds: &init_stds,
        };
        let shapes: Vec<[i64; 2]> = plan.layers.iter().map(|(_, shape)| *shape).collect();
        let [lora, cores] = plan.method.words_drawn(&shapes, plan.frozen.is_random());
        let mut kept = attach(model.linears_mut(), plan, &seeds, &mut trained)?;
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
        let of_data = AdapterConfig {
            dataset: dataset.name.clone(),
            labels: dataset.task.labels().to_vec(),
            ..setup.config(recipe, base, *head, &trained)?
        };
        let config = |method| AdapterConfig { method, ..of_data.clone() };
        let adapters = methods.into_iter().map(config).collect();
        Ok(Self { inputs, recipes, model, trained, kept, adapters, drawn: drawn_by_head + lora + cores })
    }

    /// Counts the trainable parameters in the store.
    pub fn counts(&self) -> Counts {
        let [adapter, full, head] = [Group::Adapter, Group::Base, Group::Head].map(|g| self.trained.count(g));
        Counts { all: self.inputs.base.base.trunk_numbers(), adapter, full, head }
    }

    /// Returns the objective of its data set; the processes of `world` share evaluations.
    pub fn objective(&self, world: &World) -> Box<dyn Objective + '_> {
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
                world: world.clone(),
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
                    world: world.clone(),
                    longest,
                    passes,
                })
            }
        }
    }

    /// Returns the inputs, which outlive the model.
    pub fn into_inputs(self) -> TrainInputs {
        self.inputs
    }

    /// Builds the settings of the training loop for runs that take these courses, and yield if fewer than `fewest` are left; the
    /// processes of `world` train together.
    /// Fails when a recipe cannot be written as text, or the adapter that it starts from cannot be read.
    pub fn plan(&self, courses: &[Course], fewest: usize, world: &World) -> Result<TrainPlan> {
        let Self { inputs, .. } = self;
        let train = &inputs.recipe.train;
        let runs = self.recipes.iter().zip(courses).map(|(recipe, course)| self.run_plan(recipe, course));
        Ok(TrainPlan {
            runs: runs.collect::<Result<_>>()?,
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
            joined: self.model.device().is_cuda(),
            world: world.clone(),
            fewest,
        })
    }

    fn run_plan(&self, recipe: &Recipe, Course { name, out, pause }: &Course) -> Result<RunPlan> {
        let train = &recipe.train;
        let steps = self.inputs.steps_of(train);
        let [fingerprint, _] = self.fingerprints(&lasting(recipe, steps).to_toml()?)?;
        let mut earlier = self.fingerprints(&recipe.to_toml()?)?.to_vec();
        let begun = out.join(RECIPE);
        if begun.exists() {
            earlier.extend(self.fingerprints(&files::read_text(&begun)?)?);
        }
        Ok(RunPlan {
            name: name.clone(),
            seed: train.seed,
            drawn: self.drawn,
            learning_rate: train.learning_rate,
            head_learning_rate: train.head_learning_rate,
            steps,
            warmup: warmup(train, steps),
            schedule: train.schedule,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            patience: recipe.eval.patience,
            pause: *pause,
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
