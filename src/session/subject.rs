//! The subject of `eval` and `merge`: a run's adapter, or a base with or without one, built into a model.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tch::Kind;

use super::environment::{Environment, OpenBase};
use super::finished::check_subject;
use super::run_folder::{ADAPTER, CHECKPOINTS, recipe_of};
use crate::adapters::basis::Basis;
use crate::adapters::file::{AdapterConfig, AdapterFile, BasisRecord, WEIGHTS};
use crate::adapters::{Frozen, Method, Trained, witness};
use crate::fault::{Result, fault, usage, which};
use crate::models::adapt::{self, Layer, Plan, Start};
use crate::models::{Build, HeadShape, Model};
use crate::recipe::Recipe;
use crate::spec::Problem;
use crate::spec::request::SubjectSource;
use crate::train::checkpoint::steps as checkpoints;

/// A subject, opened.
pub struct Subject {
    /// The run's folder and recipe, if it is a run.
    pub run: Option<(PathBuf, Recipe)>,
    /// The checkpoint whose adapter it has, if not the run's best.
    pub checkpoint: Option<String>,
    /// The base.
    pub base: OpenBase,
    /// The adapter, if there is one.
    pub adapter: Option<AdapterFile>,
    /// Folder of its basis, if the user gave one.
    basis: Option<PathBuf>,
}

impl Subject {
    /// Opens what the command line names; `sets` change the run's recipe.
    /// Fails when a folder or file is missing or wrong, or the adapter belongs to another base.
    pub fn open(place: &Environment, source: &SubjectSource, sets: &[String]) -> Result<Self> {
        let opened = |name: &str, revision: &str| {
            place.base(name, if revision.is_empty() { "main" } else { revision })
        };
        if let Some(run) = &source.run {
            let open = |recipe: &Recipe| match &source.model {
                Some(moved) => opened(moved, ""),
                None if Path::new(&recipe.model.name).is_absolute()
                    && !Path::new(&recipe.model.name).exists() =>
                {
                    let (run, place) = (run.display(), &recipe.model.name);
                    Err(fault(format!(
                        "the base of `{run}` was the folder `{place}`, which is not there any more"
                    ))
                    .hint(format!("say where it is now: `--run {run} --model DIR`"))
                    .into())
                }
                None => opened(&recipe.model.name, &recipe.model.revision),
            };
            let recipe = recipe_of(run, sets)?;
            let (adapter, checkpoint) = adapter_of(run, source.checkpoint.as_deref())?;
            let subject = Self::opened(run, &adapter, recipe, open)?;
            return Ok(Self { basis: source.basis.clone(), checkpoint, ..subject });
        }
        let Some(name) = &source.model else {
            return Err(usage("expected `--run` or `--model`").into());
        };
        if !sets.is_empty() {
            let message = "`--set` changes the recipe of a run and needs `--run`";
            return Err(usage(message).into());
        }
        let adapter = source.adapter.as_deref().map(AdapterFile::open).transpose()?;
        let trained_on = adapter.as_ref().map(|adapter| &adapter.config);
        let trained_on = trained_on.filter(|config| config.base_model_name_or_path == *name);
        let revision = source.revision.clone().or(trained_on.map(|config| config.revision.clone()));
        let base = opened(name, &revision.unwrap_or_default())?;
        if let Some(adapter) = &adapter {
            adapter.check_base(name, &base.hash)?;
        }
        Ok(Self { run: None, checkpoint: None, base, adapter, basis: source.basis.clone() })
    }

    /// Opens the adapter of the run in `folder`, and its base through `base`.
    /// Fails when a file is missing or wrong, or the base is not the run's.
    pub fn of_run(
        folder: &Path,
        recipe: Recipe,
        base: impl FnOnce(&Recipe) -> Result<OpenBase>,
    ) -> Result<Self> {
        Self::opened(folder, &folder.join(ADAPTER), recipe, base)
    }

    /// As [`Subject::of_run`], with the adapter in another folder.
    fn opened(
        folder: &Path,
        adapter: &Path,
        recipe: Recipe,
        base: impl FnOnce(&Recipe) -> Result<OpenBase>,
    ) -> Result<Self> {
        let adapter = AdapterFile::open(adapter)?;
        let base = base(&recipe)?;
        adapter.check_base(&base.name, &base.hash)?;
        check_subject(folder, &base)?;
        let run = Some((folder.to_owned(), recipe));
        Ok(Self { run, checkpoint: None, base, adapter: Some(adapter), basis: None })
    }

    /// Opens the adapter in `folder`, or in that run, for this base.
    /// Fails when there is none, or it belongs to another base.
    pub fn adapter_of(&self, folder: &Path) -> Result<AdapterFile> {
        let inner = folder.join(ADAPTER);
        let adapter = AdapterFile::open(if inner.is_dir() { &inner } else { folder })?;
        adapter.check_base(&self.base.name, &self.base.hash)?;
        Ok(adapter)
    }

    /// Builds the model with its adapter, in `kind`, with this head; without one, a language model.
    /// Fails when a tensor does not fit, or the basis is not the one that the adapter was trained in.
    pub fn build(
        &self,
        place: &Environment,
        kind: Kind,
        head: Option<HeadShape>,
    ) -> Result<(Model, Trained)> {
        let mut trained = Trained::new(1);
        let train_base = self.adapter.as_ref().is_some_and(|adapter| adapter.config.method == Method::Full);
        let build = Build { devices: place.devices.clone(), kind, head, seeds: vec![0], train_base };
        let mut model = Model::load(&self.base.base, &build, &mut trained)?;
        if let Some(adapter) = &self.adapter {
            attach(place, &self.base, adapter, self.basis.as_deref(), &mut model, &mut trained)?;
            adapter.load_into(&trained, false).context("cannot load the adapter")?;
        }
        Ok((model, trained))
    }

    /// Returns the head: the adapter's, else the checkpoint's; `None` for a language model.
    /// Fails when an encoder has no trained head.
    pub fn head(&self) -> Result<Option<HeadShape>> {
        let of_adapter = self.adapter.as_ref().and_then(|adapter| {
            let config = &adapter.config;
            // From another program, the head of an adapter tells the number.
            let outputs = match config.problem().filter(|_| !config.dataset.is_empty()) {
                Some(_) => config.labels.len().max(1) as i64,
                None => adapter.head_outputs()?,
            };
            let other = if outputs == 1 { Problem::Regression } else { Problem::SingleLabel };
            Some(HeadShape { problem: config.problem().unwrap_or(other), outputs })
        });
        match of_adapter {
            None if self.base.base.has_head() => self.base.base.head(&self.base.name).map(Some),
            of_adapter => Ok(of_adapter),
        }
    }

    /// Returns the names of the outputs of `head`: the adapter's, else those of the base's `config.json` if they are
    /// as many, else numbered; none for a regression and a language model.
    pub fn labels(&self, head: Option<HeadShape>) -> Vec<String> {
        let known = self.adapter.as_ref().map(|adapter| adapter.config.labels.clone()).unwrap_or_default();
        let unnamed = head.filter(|head| known.is_empty() && head.problem != Problem::Regression);
        let Some(HeadShape { outputs, .. }) = unnamed else { return known };
        let names = &self.base.base.config.labels;
        if names.len() as i64 == outputs {
            return names.clone();
        }
        (0..outputs).map(|id| format!("LABEL_{id}")).collect()
    }
}

/// Returns the folder of a run's adapter, and the name of the checkpoint that it belongs to, if it is not the best one: the
/// one asked for, or of a run that has no adapter yet the newest.
/// Fails when there is no such checkpoint, or it holds no adapter.
fn adapter_of(run: &Path, asked: Option<&str>) -> Result<(PathBuf, Option<String>)> {
    let (best, folder) = (run.join(ADAPTER), run.join(CHECKPOINTS));
    let names: Vec<String> = checkpoints(&folder).into_iter().map(|step| format!("step-{step}")).collect();
    let Some(asked) = asked else {
        let newest = names.first().filter(|name| !best.exists() && folder.join(name).join(WEIGHTS).exists());
        let Some(newest) = newest else { return Ok((best, None)) };
        tracing::warn!(
            "`{}` has no adapter of its own yet: taking that of its newest checkpoint, {newest}",
            run.display()
        );
        return Ok((folder.join(newest), Some(newest.clone())));
    };
    if !names.iter().any(|name| name == asked) {
        let missing = usage(format!("`{}` has no checkpoint `{asked}`", run.display()));
        return Err(match names.is_empty() {
            true => missing.hint("it has none at all: leave out `--checkpoint`"),
            false => missing.hint(which("its checkpoints", asked, names.iter().map(String::as_str))),
        }
        .into());
    }
    if !folder.join(asked).join(WEIGHTS).exists() {
        let message = format!("the checkpoint `{}` holds no adapter", folder.join(asked).display());
        let hint = "an earlier release wrote it: checkpoints of a resumed run have one";
        return Err(fault(message).hint(hint).into());
    }
    Ok((folder.join(asked), Some(asked.to_owned())))
}

/// Puts the adapter's layers on the model, after checking that their basis is the adapter's own.
/// Fails when the basis cannot be had or differs.
fn attach(
    place: &Environment,
    base: &OpenBase,
    adapter: &AdapterFile,
    basis_folder: Option<&Path>,
    model: &mut Model,
    trained: &mut Trained,
) -> Result<()> {
    let AdapterConfig { method, modules, .. } = &adapter.config;
    let layers = adapted(base, modules)?;
    let mut frozen = Frozen { basis: None, tensors: adapter.stored_frozen()? };
    if method.basis_rank().is_some() {
        frozen.basis = Some(adapter_basis(place, base, adapter, basis_folder)?);
    }
    let plan = Plan {
        method,
        layers: &layers,
        frozen: &frozen,
        start: Start::default(),
        dropout: 0.0,
        alphas: &[],
        init_stds: &[],
    };
    adapt::attach(model.linears_mut(), plan, &[0], trained).map(drop)
}

/// Returns the layers that an adapter names, in its order, which stacked tensors and witnesses follow.
/// Fails when one does not exist.
fn adapted(base: &OpenBase, modules: &[String]) -> Result<Vec<Layer>> {
    let all = base.base.linear_layers();
    let find = |module: &String| {
        all.iter().find(|(name, _)| name == module).cloned().ok_or_else(|| {
            fault(format!("the adapter is for a layer `{module}`, which `{}` does not have", base.name))
                .hint("load it on the base that it was trained on; only linear layers can be adapted")
                .into()
        })
    };
    modules.iter().map(find).collect()
}

/// Returns the basis that an adapter was trained in: from its file, `folder` or the cache, or recomputed.
/// Fails when it cannot be had, or its witness differs from the adapter's.
pub fn adapter_basis(
    place: &Environment,
    base: &OpenBase,
    adapter: &AdapterFile,
    folder: Option<&Path>,
) -> Result<Basis> {
    let AdapterConfig { method, modules, basis: record, .. } = &adapter.config;
    let rank = method.basis_rank().unwrap_or(0);
    let basis = match (adapter.stored_basis()?, record) {
        (Some(basis), _) if folder.is_none() || !adapter.layout.knows_basis() => basis,
        (_, Some(record)) => place.basis(base, &adapted(base, modules)?, &record.spec, folder)?.0,
        _ => return Err(fault("the adapter does not record which basis it was trained in").into()),
    };
    if basis.spec.rank != rank && adapter.layout.knows_basis() {
        return Err(fault(format!("the basis has rank {}, the adapter rank {rank}", basis.spec.rank))
            .hint("pass the basis that the adapter was trained in with `--basis DIR`")
            .into());
    }
    let stored = adapter.stored_basis()?.is_some();
    let known = |record: &&BasisRecord| {
        adapter.layout.knows_basis()
            && (stored
                || adapted(base, modules)
                    .is_ok_and(|layers| place.knows_basis(base, &layers, &record.spec, folder)))
    };
    if let Some(record) = record.as_ref().filter(known) {
        witness::check(&basis, &record.witness)?;
    }
    basis.to_device(place.devices.first())
}
