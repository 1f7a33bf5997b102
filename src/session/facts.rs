//! What processes that work together must agree on.

use std::collections::BTreeMap;

use serde_json::Value;

use super::inputs::TrainInputs;
use crate::fault::{Result, usage};
use crate::files;
use crate::recipe::{Recipe, Sweep, flat};
use crate::torch::world::World;

/// Keys of paths, which may differ between hosts that hold the same: hashes tell.
const PATHS: [&str; 3] = ["model.name", "adapter.basis", "train.init_from"];

/// Facts by name.
type Facts = BTreeMap<String, String>;

/// Refuses processes with different recipes.
/// The error names each key, on every process.
pub fn agree_on_recipe(world: &World, recipe: Option<&Recipe>) -> Result<()> {
    let values = |recipe: &Recipe| -> Result<Facts> { Ok(flat(&toml::from_str(&recipe.to_toml()?)?, "")) };
    agree(world, "another recipe", recipe.map(values).transpose()?)
}

/// Refuses processes that are asked for different sweeps, or only some for one.
/// The error names each key, on every process.
pub fn agree_on_sweep(world: &World, sweep: Option<&Sweep>) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    let what =
        sweep.map_or_else(|| "one run".to_owned(), |sweep| format!("a sweep of {} runs", sweep.runs.len()));
    agree(world, "another task", Some(Facts::from([("train".to_owned(), what)])))?;
    let keys = |sweep: &Sweep| -> Result<Facts> { Ok(flat(&toml::from_str(&sweep.text)?, "")) };
    agree(world, "another sweep", sweep.map(keys).transpose()?)
}

/// Refuses processes with different bases, data, or adapters to start from.
/// The error names each, on every process.
pub fn agree_on_inputs(world: &World, inputs: &TrainInputs) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    let TrainInputs { base, recipe, train, validation, .. } = inputs;
    let mut facts = Facts::from([
        ("base".to_owned(), base.hash.clone()),
        ("config.json of the base".to_owned(), base.config_hash.clone()),
        ("training data".to_owned(), train.hash.clone()),
        (
            "validation data".to_owned(),
            validation.as_ref().map(|found| found.hash.clone()).unwrap_or_default(),
        ),
    ]);
    // As far as the base and the device have settled it.
    let mut settled = flat(&toml::from_str(&recipe.to_toml()?)?, "");
    settled.retain(|key, _| !PATHS.contains(&key.as_str()));
    facts.extend(settled);
    let start = std::path::Path::new(&recipe.train.init_from).join(crate::adapters::file::WEIGHTS);
    if !recipe.train.init_from.is_empty() && start.exists() {
        facts.insert("adapter in `train.init_from`".into(), files::checksum(&start)?);
    }
    agree(world, "other inputs", Some(facts))
}

/// Refuses processes that do `what` with other `values`, an object.
/// The error names each value, on every process.
pub fn agree_on_values(world: &World, what: &str, values: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fields = values.as_object().into_iter().flatten();
    agree(world, what, Some(fields.map(|(name, value)| (name.clone(), text(value))).collect()))
}

/// Refuses processes whose facts differ from those of the first one; a process without any has none of its own.
fn agree(world: &World, what: &str, own: Option<Facts>) -> Result<()> {
    let all = world.gather(own)?;
    let Some((Some(first), others)) = all.split_first() else { return Ok(()) };
    let value = |facts: &Facts, name: &str| facts.get(name).cloned().unwrap_or_else(|| "absent".into());
    let differing = (1..).zip(others).filter_map(|(rank, facts): (usize, _)| Some((rank, facts.as_ref()?)));
    for (rank, facts) in differing {
        let names = first.keys().chain(facts.keys().filter(|name| !first.contains_key(*name)));
        let lines: Vec<String> = names
            .filter(|name| first.get(*name) != facts.get(*name))
            .map(|name| format!("`{name}` is {}, on rank 0 {}", value(facts, name), value(first, name)))
            .collect();
        if !lines.is_empty() {
            let message = format!("rank {rank} has {what} than rank 0: {}", lines.join("; "));
            return Err(usage(message).hint("give all processes the same").into());
        }
    }
    Ok(())
}
