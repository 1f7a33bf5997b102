//! A recipe's adapter: the method, its frozen factors, the adapter it starts from, and its file's config.

use std::path::Path;

use super::environment::{Environment, OpenBase};
use super::subject::adapter_basis;
use crate::adapters::basis::{Basis, BasisSpec};
use crate::adapters::file::{AdapterConfig, AdapterFile, BasisRecord};
use crate::adapters::{Frozen, Group, Method, Named, Trained, witness};
use crate::fault::{Result, usage};
use crate::models::HeadShape;
use crate::models::adapt::{Layer, targeted};
use crate::recipe::{AdapterRecipe, Recipe};
use crate::spec::{Init, Problem};

/// The adapter of a training, ready to be put on a model.
pub struct AdapterSetup {
    /// The method with its settings.
    pub method: Method,
    /// The adapted layers.
    pub layers: Vec<Layer>,
    /// Frozen factors.
    pub frozen: Frozen,
    /// The adapter that training starts from.
    pub start: Option<AdapterFile>,
}

impl AdapterSetup {
    /// Prepares the adapter of `recipe` on `base`, with frozen factors from the adapter that training starts
    /// from, from a basis folder, from the cache, or from a decomposition.
    /// Fails when the adapter to start from, or the basis, does not fit the recipe.
    pub fn new(
        place: &Environment,
        recipe: &Recipe,
        base: &OpenBase,
        head: Option<HeadShape>,
    ) -> Result<Self> {
        let method = &recipe.adapter.method;
        if *method == Method::Head && head.is_none() {
            let message = format!(
                "`adapter.method`: `head` trains a classification head, and `{}` has none",
                base.name
            );
            return Err(usage(message).hint("it is a language model: choose an adapter, or `full`").into());
        }
        let start = start(recipe, base)?;
        let method = start.as_ref().map_or_else(|| Ok(method.clone()), |start| continued(method, start))?;
        let layers = match method {
            Method::Full | Method::Head => Vec::new(),
            _ => targeted(&base.base.linear_layers(), &recipe.adapter.targets)?,
        };
        let mut frozen = Frozen::default();
        if let Some(rank) = method.basis_rank() {
            frozen.basis = Some(basis(place, recipe, base, start.as_ref(), &layers, rank)?);
        }
        if let Some(start) = &start {
            frozen.tensors = start.stored_frozen()?;
        }
        Ok(Self { method, layers, frozen, start })
    }

    /// Returns the method of one of the runs, which may have an α of its own.
    /// Fails as [`AdapterSetup::new`].
    pub fn method_of(&self, recipe: &Recipe) -> Result<Method> {
        let method = &recipe.adapter.method;
        self.start.as_ref().map_or_else(|| Ok(method.clone()), |start| continued(method, start))
    }

    /// Builds the config of the adapter file, except for the parts that the data decide.
    /// Fails when libtorch fails.
    pub fn config(
        &self,
        recipe: &Recipe,
        base: &OpenBase,
        head: Option<HeadShape>,
        trained: &Trained,
    ) -> Result<AdapterConfig> {
        let problem = head.map(|head| head.problem);
        let basis = self.frozen.basis.as_ref().filter(|_| !self.method.is_of_peft());
        let record = |basis: &Basis| -> Result<BasisRecord> {
            let with_basis = self.stores_basis(&recipe.adapter);
            Ok(BasisRecord { spec: basis.spec.clone(), witness: witness::witness(basis)?, with_basis })
        };
        let heads = trained.entries().iter().filter(|entry| entry.group == Group::Head);
        let heads: Vec<&str> = heads.filter_map(|entry| entry.name.strip_suffix(".weight")).collect();
        Ok(AdapterConfig {
            task_type: Problem::task_type(problem).into(),
            problem_type: problem,
            method: self.method.clone(),
            base_model_name_or_path: base.name.clone(),
            revision: base.commit.clone().unwrap_or_else(|| recipe.model.revision.clone()),
            base_hash: base.hash.clone(),
            dataset: String::new(),
            labels: Vec::new(),
            max_length: recipe.data.max_length,
            target_modules: peft_targets(base, &heads, &recipe.adapter.targets, &self.layers),
            modules: self.layers.iter().map(|(name, _)| name.clone()).collect(),
            basis: basis.map(record).transpose()?,
        })
    }

    /// Returns true if A and B can be recomputed from their recorded settings.
    pub fn knows_basis(&self) -> bool {
        self.start.as_ref().is_none_or(|start| start.layout.knows_basis())
    }

    /// Returns true if A and B go into the file: if the recipe asks for it, or they cannot be recomputed.
    fn stores_basis(&self, adapter: &AdapterRecipe) -> bool {
        adapter.with_basis || !self.knows_basis()
    }

    /// Returns A and B of every layer if they go into the file.
    pub fn stored_basis(&self, adapter: &AdapterRecipe) -> Named {
        let basis =
            self.frozen.basis.as_ref().filter(|_| self.stores_basis(adapter) && !self.method.is_of_peft());
        let pair = |(name, factors): &(String, crate::adapters::svd::Factors)| {
            [
                (format!("{name}.A"), factors.a.shallow_clone()),
                (format!("{name}.B"), factors.b.shallow_clone()),
            ]
        };
        basis.map(|basis| basis.modules.iter().flat_map(pair).collect()).unwrap_or_default()
    }
}

/// Returns the recipe's targets if PEFT finds the same layers by them, else every layer's path.
fn peft_targets(base: &OpenBase, heads: &[&str], targets: &[String], layers: &[Layer]) -> Vec<String> {
    let mut all = base.base.linear_layers();
    all.extend(heads.iter().map(|name| ((*name).to_owned(), [0, 0])));
    match targeted(&all, targets) {
        Ok(found) if found.iter().map(|(name, _)| name).eq(layers.iter().map(|(name, _)| name)) => {
            targets.to_vec()
        }
        _ => layers.iter().map(|(name, _)| name.clone()).collect(),
    }
}

/// Checks that the adapter that a recipe starts from is there and fits.
/// Fails when it does not.
pub fn check_start(recipe: &Recipe, base: &OpenBase) -> Result<()> {
    start(recipe, base)?.iter().try_for_each(|start| continued(&recipe.adapter.method, start).map(drop))
}

/// Returns a method with the settings that only the file of the adapter that it starts from records.
fn continued(method: &Method, start: &AdapterFile) -> Result<Method> {
    let names: Vec<&str> = start.config.modules.iter().map(String::as_str).collect();
    method.continues(&start.config.method, &names)
}

/// Opens the adapter that the recipe starts from.
fn start(recipe: &Recipe, base: &OpenBase) -> Result<Option<AdapterFile>> {
    let folder = &recipe.train.init_from;
    if folder.is_empty() {
        return Ok(None);
    }
    let file = AdapterFile::open(Path::new(folder))?;
    file.check_base(&base.name, &base.hash)?;
    Ok(Some(file))
}

/// Returns the basis of these layers: of the adapter that training starts from, else the recipe's.
fn basis(
    place: &Environment,
    recipe: &Recipe,
    base: &OpenBase,
    start: Option<&AdapterFile>,
    layers: &[Layer],
    rank: i64,
) -> Result<Basis> {
    let adapter = &recipe.adapter;
    let folder = (!adapter.basis.is_empty()).then(|| Path::new(&adapter.basis));
    let wanted = adapter.basis_spec(rank);
    if let Some(start) = start {
        let basis = adapter_basis(place, base, start, folder)?.select(layers)?;
        return if start.layout.knows_basis() { of_kind(basis, &wanted) } else { Ok(basis) };
    }
    let basis = place.basis(base, layers, &wanted, folder)?.0;
    if basis.spec.rank != rank {
        let message = format!("the basis in `{}` has rank {}", adapter.basis, basis.spec.rank);
        return Err(usage(message).hint(format!("`adapter.rank` is {rank}")).into());
    }
    of_kind(basis, &wanted)
}

/// Refuses a basis of another kind than the recipe's.
fn of_kind(basis: Basis, wanted: &BasisSpec) -> Result<Basis> {
    let made = &basis.spec;
    let svd = made.init == Init::Svd;
    if made.init != wanted.init || svd && (made.spectrum, made.sigma) != (wanted.spectrum, wanted.sigma) {
        let words = |spec: &BasisSpec| match made.sigma == wanted.sigma {
            true => format!("{}, {}", spec.init, spec.spectrum),
            false => format!("{}, {}, sigma {}", spec.init, spec.spectrum, spec.sigma),
        };
        let message = format!(
            "the basis was made differently: it is `{}`, the recipe's `{}`",
            words(made),
            words(wanted)
        );
        return Err(usage(message)
            .hint("set `adapter.init`, `adapter.spectrum` and `adapter.sigma` as the basis was made")
            .into());
    }
    Ok(basis)
}
