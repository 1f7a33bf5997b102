//! What `eval` and `merge` work on: a run's adapter, or a base with or without an adapter, built into a model.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tch::Kind;

use super::open::{OpenBase, Workplace};
use crate::adapters::basis::Basis;
use crate::adapters::file::AdapterFile;
use crate::adapters::{Trained, witness};
use crate::cli;
use crate::fault::{Result, fault, usage};
use crate::models::adapt::{self, Plan, Spec, targeted};
use crate::models::{Build, Classifier};
use crate::recipe::Recipe;

/// A subject, opened.
pub struct Subject {
    /// The run's recipe, where it is a run.
    pub recipe: Option<Recipe>,
    /// The base.
    pub base: OpenBase,
    /// The adapter, where there is one.
    pub adapter: Option<AdapterFile>,
    /// Where its basis lies, where the user said so.
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
                (Some(recipe), name, revision, Some(run.join("adapter")))
            }
            (None, Some(model)) => {
                if !sets.is_empty() {
                    return Err(usage(
                        "`--set` changes the recipe of a run, and there is none without `--run`",
                    )
                    .into());
                }
                let revision = args.revision.clone().unwrap_or_else(|| "main".into());
                (None, model.clone(), revision, args.adapter.clone())
            }
            (None, None) => return Err(usage("neither `--run` nor `--model` is given").into()),
        };
        let base = place.base(&name, &revision)?;
        let adapter = folder.as_deref().map(AdapterFile::open).transpose()?;
        if let Some(adapter) = &adapter {
            adapter.check_base(&name, &base.hash)?;
        }
        Ok(Self { recipe, base, adapter, basis: args.basis.clone() })
    }

    /// Builds the model with its adapter, in `kind`, with `classes` outputs.
    ///
    /// # Errors
    /// When a tensor does not fit, or the basis is not the one that the adapter was trained in.
    pub fn build(&self, place: &Workplace, kind: Kind, classes: i64) -> Result<(Classifier, Trained)> {
        let mut trained = Trained::new(1);
        let train_base = self.adapter.as_ref().is_some_and(|adapter| adapter.config.method == "full");
        let build = Build { device: place.device, kind, classes, seeds: vec![0], train_base };
        let mut model = Classifier::load(&self.base.base, &build, &mut trained)?;
        if let Some(adapter) = &self.adapter {
            attach(place, &self.base, adapter, self.basis.as_deref(), &mut model, &mut trained)?;
            adapter.load_into(&trained, false).context("cannot load the adapter")?;
        }
        Ok((model, trained))
    }

    /// Outputs of the head: the adapter's classes, else those in the checkpoint.
    ///
    /// # Errors
    /// When there is no trained head.
    pub fn classes(&self) -> Result<i64> {
        if let Some(adapter) = &self.adapter {
            return Ok(adapter.config.labels.len().max(1) as i64);
        }
        self.base.base.classes().ok_or_else(|| {
            fault(format!("`{}` has no classification head", self.base.name))
                .hint("give a run (`--run`) or an adapter (`--adapter`) that was trained on it")
                .into()
        })
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
    model: &mut Classifier,
    trained: &mut Trained,
) -> Result<()> {
    let Some(cores) = &adapter.config.cores else { return Ok(()) };
    let basis = adapter_basis(place, base, adapter, basis_folder)?;
    let spec = Spec { rank: cores.r, alpha: cores.lora_alpha, init_std: 0.0, dropout: 0.0 };
    let (plan, device) = (Plan::LoraXs { basis: &basis, spec }, model.device());
    adapt::attach(model.encoder.linears_mut(), device, plan, &[0], trained)
}

/// The basis that an adapter was trained in: from its own file, from `folder`, from the cache, or computed again.
///
/// # Errors
/// When it cannot be had, or its witness differs from the adapter's.
pub fn adapter_basis(
    place: &Workplace,
    base: &OpenBase,
    adapter: &AdapterFile,
    folder: Option<&Path>,
) -> Result<Basis> {
    let Some(cores) = &adapter.config.cores else { return Err(fault("the adapter has no basis").into()) };
    let basis = match adapter.stored_basis()? {
        Some(basis) if folder.is_none() => basis,
        _ => {
            let mut layers = targeted(&base.base.linear_layers(), &cores.modules)?;
            // Cores and witness follow the adapter's own order.
            layers.sort_by_key(|(name, _)| cores.modules.iter().position(|module| module == name));
            place.basis(base, &layers, &cores.basis, folder)?.0
        }
    };
    if basis.spec.rank != cores.r {
        return Err(fault(format!("the basis has rank {}, the adapter rank {}", basis.spec.rank, cores.r))
            .hint("give the basis that the adapter was trained in by `--basis DIR`")
            .into());
    }
    witness::check(&basis, &cores.witness)?;
    basis.to_device(place.device)
}
