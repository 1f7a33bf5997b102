//! What a recipe would train, from a `config.json` alone: the dry run over a base whose weights are not there.

use std::path::Path;

use super::adapter::method;
use crate::fault::{Result, usage};
use crate::models::Config;
use crate::models::adapt::targeted;
use crate::recipe::{Method, Recipe};
use crate::report::table;

/// A table of layers, trained numbers and bytes for a base of which only the folder and its `config.json` exist; `None`
/// for any other base.
///
/// # Errors
/// When the config cannot be read, or a target names no layer.
pub fn from_config(recipe: &Recipe) -> Result<Option<String>> {
    let folder = Path::new(&recipe.model.name);
    let weights = ["model.safetensors", "model.safetensors.index.json"];
    if !folder.join("config.json").exists() || weights.iter().any(|name| folder.join(name).exists()) {
        return Ok(None);
    }
    if matches!(recipe.adapter.method, Method::Full | Method::Head) {
        return Ok(None);
    }
    let config = Config::load(folder)?;
    let default = config.default_targets();
    let targets = if recipe.adapter.targets.is_empty() { &default } else { &recipe.adapter.targets };
    let layers = targeted(&config.linear_shapes(), targets)?;
    let method = method(&recipe.adapter);
    let rank = method.basis_rank().unwrap_or(0);
    if let Some((name, [out, inputs])) = layers.iter().find(|(_, [out, inputs])| rank > *out.min(inputs)) {
        let message = format!("rank {rank} is larger than `{name}`, which is {out} x {inputs}");
        return Err(usage(message).hint("lower `adapter.rank`").into());
    }
    let row = |name: &str, value: i64| vec![name.to_owned(), value.to_string()];
    let rows = [
        row("adapted layers", layers.len() as i64),
        row("trained numbers, without head", method.count(&layers)),
        row("bytes of the adapter file in fp32, without head and header", 4 * method.stored(&layers)),
    ];
    Ok(Some(table(&[method.name(), ""], &rows)))
}
