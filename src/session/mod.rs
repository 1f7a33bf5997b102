//! The subjects of the commands: a recipe or a run is opened ([`workplace`], [`opened`], [`subject`]), and
//! turned into a model with its adapter, which for a training is the [`Session`].

pub mod counts;
pub mod fit;
pub mod forecast;
pub mod machine;
pub mod opened;
pub mod prepared;
pub mod request;
pub mod results;
pub mod resume;
pub mod run_folder;
pub mod subject;
pub mod workplace;

use std::path::Path;

use tch::{Device, Kind};

use counts::Counts;
use opened::Opened;
use prepared::Prepared;
use workplace::Workplace;

use crate::adapters::basis::BasisSpec;
use crate::adapters::file::{AdapterConfig, WEIGHTS};
use crate::adapters::{Group, Method, Named, Trained};
use crate::fault::Result;
use crate::files;
use crate::models::adapt::attach;
use crate::models::{Build, Config, Model};
use crate::spec::Precision;
use crate::torch;
use crate::train::{RunPlan, TrainPlan, schedule};

/// Everything that a training needs.
pub struct Session {
    /// Recipe, base and data.
    pub opened: Opened,
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

impl Session {
    /// Loads the model and puts the recipe's adapter on it.
    ///
    /// # Errors
    /// When a tensor, a basis or the adapter to start from does not fit.
    pub fn new(place: &Workplace, mut opened: Opened) -> Result<Self> {
        let Opened { recipe, base, dataset, outputs, .. } = &opened;
        let seeds = [recipe.train.seed];
        let build = Build {
            device: place.device,
            kind: use_precision(recipe.train.precision)?,
            outputs: *outputs,
            seeds: seeds.to_vec(),
            train_base: recipe.adapter.method == Method::Full,
        };
        // A basis reads every weight: before the model, so that the device need not hold them twice.
        let prepared = Prepared::new(place, recipe, base)?;
        let mut trained = Trained::new(1);
        let mut model = Model::load(&base.base, &build, &mut trained)?;
        let drawn_by_head = model.classifier().map_or(0, |model| model.head.drawn);
        let (device, plan) = (model.device(), prepared.plan(&recipe.adapter, drawn_by_head));
        let shapes: Vec<[i64; 2]> = plan.layers.iter().map(|(_, shape)| *shape).collect();
        let [lora, cores] = plan.method.words_drawn(&shapes, plan.frozen.is_random());
        let drawn = drawn_by_head + lora + cores;
        let mut kept = attach(model.linears_mut(), device, plan, &seeds, &mut trained)?;
        kept.extend(prepared.stored_basis(&recipe.adapter));
        if let Some(start) = &prepared.start {
            let head = start.load_into(&trained, true)?;
            tracing::info!("started from `{}`, {head} tensors of its head kept", recipe.train.init_from);
        }
        let mut adapter = prepared.config(recipe, base, &trained)?;
        adapter.dataset.clone_from(&dataset.name);
        adapter.labels.clone_from(&dataset.labels);
        let spec = adapter.basis.as_ref().map(|record| &record.spec);
        if let Some(BasisSpec { method, iterations, seed, .. }) = spec.filter(|_| prepared.knows_basis()) {
            // The recipe says how the basis was made, also where it was taken from a folder or an adapter.
            let made = &mut opened.recipe.adapter.made;
            (made.method, made.iterations, made.seed) = (*method, *iterations, *seed);
        }
        Ok(Self { opened, model, trained, kept, adapter, drawn })
    }

    /// Counts the trainable parameters in the store.
    pub fn counts(&self) -> Counts {
        let [adapter, full, head] = [Group::Adapter, Group::Base, Group::Head].map(|g| self.trained.count(g));
        Counts { all: self.opened.base.base.trunk_numbers(), adapter, full, head }
    }

    /// Returns the number of examples in one pass of an evaluation.
    pub fn eval_batch_size(&self) -> usize {
        match self.opened.recipe.eval.batch_size {
            0 => 2 * self.opened.recipe.train.micro_batch_size,
            given => given,
        }
    }

    /// Builds the settings of the training loop for a run in `out`.
    ///
    /// # Errors
    /// When the recipe cannot be written as text, or the adapter that it starts from cannot be read.
    pub fn plan(&self, out: &Path) -> Result<TrainPlan> {
        let opened = &self.opened;
        let train = &opened.recipe.train;
        let steps = opened.steps();
        let run = RunPlan {
            seed: train.seed,
            drawn: self.drawn,
            learning_rate: train.learning_rate,
            head_learning_rate: train.head_learning_rate,
            steps,
            warmup: match train.warmup_steps {
                0 => schedule::warmup_steps(train.warmup_ratio, steps),
                given => given,
            },
            schedule: train.schedule,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            patience: opened.recipe.eval.patience,
        };
        let [fingerprint, without_config] = self.fingerprints(&opened.recipe.to_toml()?)?;
        let mut earlier = vec![without_config];
        let begun = out.join("recipe.toml");
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
            log_every: train.log_every,
            evaluate: opened.recipe.eval.every,
            metric: opened.metrics[0],
            checkpoint: train.checkpoint_every,
            keep_checkpoints: train.keep_checkpoints,
            checkpoints: out.join("checkpoints"),
            fingerprint,
            earlier,
        })
    }

    /// Returns the fingerprint of a run whose recipe was written so, and the one of before the base's
    /// `config.json` counted.
    fn fingerprints(&self, recipe: &str) -> Result<[String; 2]> {
        let opened = &self.opened;
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(recipe.as_bytes());
        fingerprint.update(opened.base.hash.as_bytes()).update(opened.train.hash.as_bytes());
        fingerprint.update(opened.validation.as_ref().map(|v| v.hash.as_bytes()).unwrap_or_default());
        let init_from = &opened.recipe.train.init_from;
        let start = Path::new(init_from).join(WEIGHTS);
        if !init_from.is_empty() && start.exists() {
            fingerprint.update(files::checksum(&start)?.as_bytes());
        }
        let without_config = fingerprint.finalize().to_hex().to_string();
        fingerprint.update(opened.base.config_hash.as_bytes());
        Ok([fingerprint.finalize().to_hex().to_string(), without_config])
    }
}

/// Returns the arithmetic that `auto` stands for on a device, and says so.
pub fn settled(precision: Precision, device: Device, config: &Config) -> Precision {
    if precision != Precision::Auto {
        return precision;
    }
    let (chosen, name) = match config {
        _ if !torch::has_flash(Kind::BFloat16, device) => return Precision::Fp32,
        Config::Encoder(_) => (Precision::Tf32, "tf32"),
        Config::Decoder(_) => (Precision::Bf16, "bf16"),
    };
    tracing::info!("precision on this GPU: {name}; `fp32` is slower and exact");
    chosen
}

/// Switches libtorch to this arithmetic, and returns the kind in which the base computes.
///
/// # Errors
/// When libtorch refuses.
pub fn use_precision(precision: Precision) -> Result<Kind> {
    torch::allow_tf32(precision == Precision::Tf32)?;
    Ok(match precision {
        Precision::Auto | Precision::Fp32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    })
}
