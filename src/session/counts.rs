//! Counts of trainable parameters: as a table, and from a `config.json` alone if there are no weights.

use std::path::Path;

use crate::adapters::Method;
use crate::adapters::basis::check_layer;
use crate::fault::Result;
use crate::hub::is_without_weights;
use crate::models::Config;
use crate::models::adapt::{Layer, targeted};
use crate::recipe::{AdapterRecipe, Recipe};
use crate::report::table;

/// Number of parameters, and of trainable ones.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    /// Parameters of the base.
    pub all: usize,
    /// Trainable parameters of the adapter.
    pub adapter: usize,
    /// Trainable parameters of the base.
    pub full: usize,
    /// Trainable parameters of the head.
    pub head: usize,
}

impl Counts {
    /// Formats the counts as a table.
    pub fn table(&self) -> String {
        let Self { all, adapter, full, head } = *self;
        let share = |count: usize| format!("{:.4}%", 100.0 * count as f64 / all.max(1) as f64);
        let rows = [
            ("base", all, all - full.min(all), full),
            ("adapter", adapter, 0, adapter),
            ("head", head, 0, head),
            ("total", adapter + full + head, 0, adapter + full + head),
        ]
        .map(|(name, count, frozen, trained)| {
            vec![name.to_owned(), count.to_string(), frozen.to_string(), trained.to_string(), share(trained)]
        });
        table(&["part", "parameters", "frozen", "trainable", "share of base"], &rows)
    }
}

/// Returns the layers of `all` that `targets` name, each of which takes the method's rank.
/// Fails when a target names no layer, or the rank does not fit one.
pub fn adapted(adapter: &AdapterRecipe, targets: &[String], all: &[Layer]) -> Result<Vec<Layer>> {
    let layers = targeted(all, targets)?;
    if let Some(rank) = adapter.method.basis_rank() {
        layers.iter().try_for_each(|(name, shape)| check_layer(name, shape, rank))?;
    }
    Ok(layers)
}

/// Returns a table of layers, trainable parameters and bytes for a base of which only the folder and its
/// `config.json` exist; `None` for any other base, and for methods without adapters.
/// Fails when the config cannot be read, a target names no layer, or the rank does not fit one.
pub fn from_config(recipe: &Recipe) -> Result<Option<String>> {
    let folder = Path::new(&recipe.model.name);
    if !is_without_weights(folder) {
        return Ok(None);
    }
    if matches!(recipe.adapter.method, Method::Full | Method::Head) {
        return Ok(None);
    }
    let config = Config::load(folder)?;
    let default = config.default_targets();
    let targets = if recipe.adapter.targets.is_empty() { &default } else { &recipe.adapter.targets };
    let method = &recipe.adapter.method;
    let layers = adapted(&recipe.adapter, targets, &config.linear_shapes())?;
    let row = |name: &str, value: i64| vec![name.to_owned(), value.to_string()];
    let rows = [
        row("adapted layers", layers.len() as i64),
        row("trainable parameters, without head", method.count(&layers)),
        row("bytes of the adapter file in fp32, without head and header", 4 * method.stored(&layers)),
    ];
    Ok(Some(table(&[method.name(), ""], &rows)))
}
