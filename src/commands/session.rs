//! A training session: a recipe turned into base, data, model and adapter, and what can be said of it beforehand.

use std::path::Path;

use tch::Kind;

use super::adapter::Prepared;
use super::forecast::Forecast;
use super::open::{OpenBase, Workplace, check_fit, classes, kind, metrics};
use crate::adapters::file::AdapterConfig;
use crate::adapters::{Group, Named, Trained};
use crate::data::catalog::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, TaskKind};
use crate::eval::metrics::Metric;
use crate::fault::{Result, usage};
use crate::models::adapt::attach;
use crate::models::{Build, Config, Model};
use crate::recipe::{Every, Method, Precision, Recipe};
use crate::report::table;
use crate::train::order::steps_per_epoch;
use crate::train::{Interval, Plan, RunPlan, schedule};

/// Everything that a training needs, opened.
pub struct Session {
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
    /// Examples to score; absent where the recipe never evaluates.
    pub validation: Option<Examples>,
    /// The data set's metrics, the one that picks the best checkpoint among them.
    pub metrics: Vec<Metric>,
    /// The model with its adapter.
    pub model: Model,
    /// What is trained.
    pub trained: Trained,
    /// The frozen tensors that the adapter file holds.
    pub kept: Named,
    /// What the adapter file will say.
    pub adapter: AdapterConfig,
}

impl Session {
    /// Opens everything that the recipe names.
    ///
    /// # Errors
    /// When something is missing or does not fit.
    pub fn open(place: &Workplace, mut recipe: Recipe) -> Result<Self> {
        let dataset = place.catalog.get(&recipe.data.dataset)?.clone();
        let mut base = place.base(&recipe.model.name, &recipe.model.revision)?;
        let outputs = outputs(&base, &dataset)?;
        let metrics = chosen_metrics(&recipe, &dataset)?;
        recipe.model.name.clone_from(&base.name);
        // Saved with the run, which must mean the same from any other folder.
        for folder in [&mut recipe.adapter.basis, &mut recipe.train.init_from] {
            if let Some(path) = Path::new(&*folder).canonicalize().ok().filter(|_| !folder.is_empty()) {
                *folder = path.display().to_string();
            }
        }
        if recipe.adapter.targets.is_empty() {
            recipe.adapter.targets = base.base.config.default_targets();
        }
        if let Some(p) = recipe.model.dropout {
            base.base.config.set_dropout(p);
        }
        let tokenizer = Tokenizer::load(&base.base.folder)?;
        let data = recipe.data.clone();
        check_fit(&base.base, &tokenizer, data.max_length)?;
        let train = place.split(&dataset, &data.train, &tokenizer, data.max_length, data.limit)?;
        let validation = match recipe.eval.every {
            Every::Never => None,
            _ => {
                Some(place.split(&dataset, &data.validation, &tokenizer, data.max_length, data.eval_limit)?)
            }
        };
        let seeds = [recipe.train.seed];
        let build = Build {
            device: place.device,
            kind: kind(recipe.train.precision)?,
            classes: outputs,
            seeds: seeds.to_vec(),
            train_base: recipe.adapter.method == Method::Full,
        };
        let mut trained = Trained::new(1);
        let mut model = Model::load(&base.base, &build, &mut trained)?;
        let prepared = Prepared::new(place, &recipe, &base)?;
        let (device, plan) = (model.device(), prepared.plan(&recipe.adapter));
        let mut kept = attach(model.linears_mut(), device, plan, &seeds, &mut trained)?;
        kept.extend(prepared.stored_basis(&recipe.adapter));
        if let Some(start) = &prepared.start {
            let head = start.load_into(&trained, true)?;
            tracing::info!("started from `{}`, {head} tensors of its head kept", recipe.train.init_from);
        }
        let mut adapter = prepared.config(&recipe, &base, &trained)?;
        adapter.dataset.clone_from(&dataset.name);
        adapter.labels.clone_from(&dataset.labels);
        Ok(Self {
            recipe,
            base,
            dataset,
            tokenizer,
            train,
            validation,
            metrics,
            model,
            trained,
            kept,
            adapter,
        })
    }

    /// Examples in one pass of an evaluation.
    pub fn eval_batch_size(&self) -> usize {
        match self.recipe.eval.batch_size {
            0 => 2 * self.recipe.train.micro_batch_size,
            given => given,
        }
    }

    /// Optimiser steps of the whole training.
    pub fn steps(&self) -> u64 {
        let train = &self.recipe.train;
        match train.max_steps {
            0 => train.epochs * steps_per_epoch(self.train.examples.len(), train.batch_size),
            given => given,
        }
    }

    /// The loop's settings for a run in `out`.
    ///
    /// # Errors
    /// When the recipe cannot be written as text.
    pub fn plan(&self, out: &Path) -> Result<Plan> {
        let train = &self.recipe.train;
        let steps = self.steps();
        let run = RunPlan {
            seed: train.seed,
            learning_rate: train.learning_rate,
            head_learning_rate: train.head_learning_rate,
        };
        let warmup = match train.warmup_steps {
            0 => schedule::warmup_steps(train.warmup_ratio, steps),
            given => given,
        };
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(self.recipe.to_toml()?.as_bytes());
        fingerprint.update(self.base.hash.as_bytes()).update(self.train.hash.as_bytes());
        fingerprint.update(self.validation.as_ref().map(|v| v.hash.as_bytes()).unwrap_or_default());
        Ok(Plan {
            runs: vec![run],
            steps,
            warmup,
            batch_size: train.batch_size,
            micro_batch_size: train.micro_batch_size,
            micro_batch_tokens: train.micro_batch_tokens,
            schedule: train.schedule,
            weight_decay: train.weight_decay,
            max_grad_norm: train.max_grad_norm,
            loss_scaling: train.precision == Precision::Fp16,
            shuffle: train.shuffle,
            log_every: train.log_every,
            evaluate: interval(self.recipe.eval.every),
            metric: self.metrics[0],
            patience: self.recipe.eval.patience,
            checkpoint: interval(train.checkpoint_every),
            keep_checkpoints: train.keep_checkpoints,
            checkpoints: out.join("checkpoints"),
            fingerprint: fingerprint.finalize().to_hex().to_string(),
        })
    }

    /// The table of what is trained.
    pub fn table(&self) -> String {
        let base = self.base.base.trunk_numbers();
        let [adapter, full, head] = [Group::Adapter, Group::Base, Group::Head].map(|g| self.trained.count(g));
        let share = |count: usize| format!("{:.4}%", 100.0 * count as f64 / base.max(1) as f64);
        let rows = [
            ("base", base, base - full.min(base)),
            ("adapter", adapter, 0),
            ("head", head, 0),
            ("trained", adapter + full + head, 0),
        ]
        .map(|(name, count, frozen)| {
            let trained = if name == "base" { full } else { count };
            vec![name.to_owned(), count.to_string(), frozen.to_string(), trained.to_string(), share(trained)]
        });
        table(&["part", "numbers", "frozen", "trained", "of the base"], &rows)
    }

    /// The first training example as the model sees it.
    ///
    /// # Errors
    /// When the tokenizer cannot decode.
    pub fn shown_example(&self) -> Result<String> {
        let Some(example) = self.train.examples.first() else { return Ok(String::new()) };
        let text = self.tokenizer.decode(&example.ids, false)?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small whole numbers")]
        let label = match (example.label, self.dataset.labels.is_empty()) {
            (Some(label), true) => label.to_string(),
            (Some(label), false) => self.dataset.labels[label as usize].clone(),
            (None, _) => "none".into(),
        };
        Ok(format!("first example, {} tokens, label {label}: {text}", example.ids.len()))
    }

    /// What `--dry-run` says.
    pub fn forecast(&self, out: &Path) -> String {
        let kind = match self.recipe.train.precision {
            Precision::Fp32 | Precision::Tf32 => Kind::Float,
            Precision::Bf16 | Precision::Fp16 => Kind::Half,
        };
        let lengths: Vec<usize> = self.train.examples.iter().map(|example| example.ids.len()).collect();
        Forecast {
            base: &self.base.base,
            trained: &self.trained,
            lengths: &lengths,
            micro_batch_size: self.recipe.train.micro_batch_size,
            kind,
            recompute: self.recipe.train.gradient_checkpointing,
            steps: self.steps(),
        }
        .text(out)
    }
}

/// Outputs of the head: none of a decoder, which is trained on responses and conversations.
fn outputs(base: &OpenBase, dataset: &Dataset) -> Result<i64> {
    let language = matches!(dataset.task, TaskKind::Instruction | TaskKind::Chat);
    match (&base.base.config, language) {
        (Config::Encoder(_), _) => classes(dataset),
        (Config::Decoder(_), true) => Ok(0),
        (Config::Decoder(config), false) => {
            let task = format!("{:?}", dataset.task).to_lowercase();
            let (name, model) = (&dataset.name, &config.architecture);
            Err(usage(format!(
                "data set `{name}` is for `{task}`, and the base is a language model (`{model}`)"
            ))
            .hint("train it on a data set for `instruction` or `chat`; one for `generation` is for `eval`")
            .into())
        }
    }
}

fn interval(every: Every) -> Interval {
    match every {
        Every::Epoch => Interval::Epoch,
        Every::Steps(steps) => Interval::Steps(steps),
        Every::Never => Interval::Never,
    }
}

/// The data set's metrics, with the recipe's choice first.
fn chosen_metrics(recipe: &Recipe, dataset: &Dataset) -> Result<Vec<Metric>> {
    if !recipe.eval.tasks.is_empty() {
        return Err(usage("`eval.tasks` names generation tasks, which an encoder cannot do")
            .hint("leave `eval.tasks` empty; the data set of the run is scored in any case")
            .into());
    }
    let mut metrics = match dataset.task {
        TaskKind::Instruction | TaskKind::Chat => vec![Metric::Loss],
        _ => metrics(dataset)?,
    };
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
