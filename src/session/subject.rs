//! The subject of `eval` and `merge`: a run's adapter, or a base with or without one, built into a model.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tch::Kind;

use super::results::check_subject;
use super::workplace::{OpenBase, Workplace};
use crate::adapters::basis::Basis;
use crate::adapters::file::{AdapterConfig, AdapterFile};
use crate::adapters::{Frozen, Method, Trained, witness};
use crate::cli;
use crate::fault::{Result, fault, usage};
use crate::models::adapt::{self, Layer, Plan, Start};
use crate::models::{Build, Model};
use crate::recipe::Recipe;

/// A subject, opened.
pub struct Subject {
    /// The run's recipe, if it is a run.
    pub recipe: Option<Recipe>,
    /// The base.
    pub base: OpenBase,
    /// The adapter, if there is one.
    pub adapter: Option<AdapterFile>,
    /// Folder of its basis, if the user gave one.
    basis: Option<PathBuf>,
}

impl Subject {
    /// Opens what the command line names; `sets` change the run's recipe.
    ///
    /// # Errors
    /// When a folder or file is missing or wrong, or the adapter belongs to another base.
    pub fn open(place: &Workplace, args: &cli::Subject, sets: &[String]) -> Result<Self> {
        let (recipe, name, revision, folder) = match (&args.run, &args.model) {
            (Some(run), _) => {
                let recipe = run_recipe(run, sets)?;
                let (name, revision) = (recipe.model.name.clone(), recipe.model.revision.clone());
                (Some(recipe), name, Some(revision), Some(run.join("adapter")))
            }
            (None, Some(model)) => {
                if !sets.is_empty() {
                    return Err(usage(
                        "`--set` changes the recipe of a run, and there is none without `--run`",
                    )
                    .into());
                }
                (None, model.clone(), args.revision.clone(), args.adapter.clone())
            }
            (None, None) => return Err(usage("neither `--run` nor `--model` is given").into()),
        };
        let adapter = folder.as_deref().map(AdapterFile::open).transpose()?;
        let trained_on = adapter.as_ref().map(|adapter| &adapter.config);
        let trained_on = trained_on.filter(|config| config.base_model_name_or_path == name);
        let revision = revision.or(trained_on.map(|config| config.revision.clone())).unwrap_or_default();
        let base = place.base(&name, if revision.is_empty() { "main" } else { &revision })?;
        if let Some(adapter) = &adapter {
            adapter.check_base(&name, &base.hash)?;
        }
        if let Some(run) = &args.run {
            check_subject(run, &base)?;
        }
        Ok(Self { recipe, base, adapter, basis: args.basis.clone() })
    }

    /// Builds the model with its adapter, in `kind`, with a head of `outputs` outputs.
    ///
    /// # Errors
    /// When a tensor does not fit, or the basis is not the one that the adapter was trained in.
    pub fn build(&self, place: &Workplace, kind: Kind, outputs: Option<i64>) -> Result<(Model, Trained)> {
        let mut trained = Trained::new(1);
        let train_base = self.adapter.as_ref().is_some_and(|adapter| adapter.config.method == Method::Full);
        let build = Build { device: place.device, kind, outputs, seeds: vec![0], train_base };
        let mut model = Model::load(&self.base.base, &build, &mut trained)?;
        if let Some(adapter) = &self.adapter {
            attach(place, &self.base, adapter, self.basis.as_deref(), &mut model, &mut trained)?;
            adapter.load_into(&trained, false).context("cannot load the adapter")?;
        }
        Ok((model, trained))
    }

    /// Returns the outputs of the classification head; `None` for a language model.
    ///
    /// # Errors
    /// As [`Subject::head_outputs`].
    pub fn outputs(&self) -> Result<Option<i64>> {
        if self.base.base.config.is_decoder() { Ok(None) } else { self.head_outputs().map(Some) }
    }

    /// Returns the outputs of the classification head: the adapter's, else the checkpoint's.
    ///
    /// # Errors
    /// When there is no trained head.
    pub fn head_outputs(&self) -> Result<i64> {
        // From another program, the head of an adapter tells the number.
        let of_adapter = self.adapter.as_ref().and_then(|adapter| match adapter.config.dataset.is_empty() {
            false => Some(adapter.config.labels.len().max(1) as i64),
            true => adapter.head_outputs(),
        });
        of_adapter.map_or_else(|| self.base.base.head_outputs(&self.base.name), Ok)
    }

    /// Returns the names of the head's `outputs`: the adapter's, else those of the base's `config.json` if they are
    /// as many, else numbered; none for a regression.
    pub fn labels(&self, outputs: Option<i64>) -> Vec<String> {
        let known = self.adapter.as_ref().map(|adapter| adapter.config.labels.clone()).unwrap_or_default();
        let Some(classes) = outputs.filter(|&outputs| known.is_empty() && outputs != 1) else { return known };
        let names = self.base.base.config.encoder().map(|config| config.labels.clone()).unwrap_or_default();
        if names.len() as i64 == classes {
            return names;
        }
        (0..classes).map(|id| format!("LABEL_{id}")).collect()
    }
}

fn run_recipe(run: &Path, sets: &[String]) -> Result<Recipe> {
    let path = run.join("recipe.toml");
    if !path.exists() {
        let missing = fault(format!("`{}` is not a run: it holds no `recipe.toml`", run.display()));
        return Err(missing.hint("a run is the folder that `loraxs train --out` wrote").into());
    }
    Ok(Recipe::load(&path.to_string_lossy(), sets)?.0)
}

/// Puts the adapter's layers on the model, after checking that their basis is the adapter's own.
///
/// # Errors
/// When the basis cannot be had or differs.
pub fn attach(
    place: &Workplace,
    base: &OpenBase,
    adapter: &AdapterFile,
    basis_folder: Option<&Path>,
    model: &mut Model,
    trained: &mut Trained,
) -> Result<()> {
    let AdapterConfig { method, modules, .. } = &adapter.config;
    let mut layers = if modules.is_empty() { Vec::new() } else { adapted(base, modules)? };
    // Stacked tensors and their witness follow the adapter's own order.
    layers.sort_by_key(|(name, _)| modules.iter().position(|module| module == name));
    let mut frozen = Frozen { basis: None, tensors: adapter.stored_frozen()? };
    if method.basis_rank().is_some() {
        frozen.basis = Some(adapter_basis(place, base, adapter, basis_folder)?);
    }
    let plan =
        Plan { method, layers: &layers, frozen: &frozen, start: Start::default(), dropout: 0.0, alphas: &[] };
    let device = model.device();
    adapt::attach(model.linears_mut(), device, plan, &[0], trained).map(drop)
}

/// Returns the layers that an adapter names; each must exist.
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
///
/// # Errors
/// When it cannot be had, or its witness differs from the adapter's.
pub fn adapter_basis(
    place: &Workplace,
    base: &OpenBase,
    adapter: &AdapterFile,
    folder: Option<&Path>,
) -> Result<Basis> {
    let AdapterConfig { method, modules, basis: record, .. } = &adapter.config;
    let rank = method.basis_rank().unwrap_or(0);
    let basis = match (adapter.stored_basis()?, record) {
        (Some(basis), _) if folder.is_none() || !adapter.layout.knows_basis() => basis,
        (_, Some(record)) => {
            let mut layers = adapted(base, modules)?;
            layers.sort_by_key(|(name, _)| modules.iter().position(|module| module == name));
            place.basis(base, &layers, &record.spec, folder)?.0
        }
        _ => return Err(fault("the adapter does not say which basis it was trained in").into()),
    };
    if basis.spec.rank != rank && adapter.layout.knows_basis() {
        return Err(fault(format!("the basis has rank {}, the adapter rank {rank}", basis.spec.rank))
            .hint("give the basis that the adapter was trained in by `--basis DIR`")
            .into());
    }
    if let Some(record) = record.as_ref().filter(|_| adapter.layout.knows_basis()) {
        witness::check(&basis, &record.witness)?;
    }
    basis.to_device(place.device)
}
