//! Guards of a run folder: one process at a time, and only with the recipe and the weights of the run.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;

use anyhow::Context as _;

use super::run_folder::{CHECKPOINTS, LOCK, RECIPE, RESULTS};
use crate::adapters::basis::BasisSpec;
use crate::fault::{Result, fault, usage};
use crate::files::{self, Held};
use crate::recipe::Recipe;
use crate::spec::Precision;

/// Refuses a folder that holds a run, unless the command goes on with it or writes nothing (`may_be_used`).
/// The error names what the folder holds.
pub fn refuse_used(out: &Path, may_be_used: bool) -> Result<()> {
    let used = [RESULTS, RECIPE, CHECKPOINTS].into_iter().find(|name| out.join(name).exists());
    files::refuse_file(out)?;
    match used {
        Some(name) if !may_be_used => {
            Err(fault(format!("`{}` already holds a run: there is a `{name}`", out.display()))
                .hint("go on with it by `--resume`, or choose another folder by `--out`")
                .into())
        }
        _ => Ok(()),
    }
}

/// Locks the folder against other processes, and keeps it in place, while the returned values live.
/// Fails when another process holds the folder, or it cannot be written.
pub fn lock(out: &Path) -> Result<(File, Held)> {
    let path = out.join(LOCK);
    let open = || -> io::Result<File> {
        fs::create_dir_all(out)?;
        OpenOptions::new().write(true).create(true).truncate(false).open(&path)
    };
    let file = open().map_err(|error| files::cannot_write(&path, &error))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => {
            Err(fault(format!("another process trains into `{}`", out.display()))
                .hint("wait until it is done, or train into another folder by `--out`")
                .into())
        }
        // A file system without locks cannot be asked.
        _ => Ok((file, files::hold(out, out)?)),
    }
}

/// Pins a run that began with the `main` of a repository to the commit that this was then.
/// Fails when the run's recipe cannot be read.
pub fn keep_revision(recipe: &mut Recipe, begun: &Path) -> Result<()> {
    let moves = recipe.model.revision == "main" && !Path::new(&recipe.model.name).is_dir();
    let chooses = recipe.train.precision == Precision::Auto;
    if (moves || chooses) && begun.exists() {
        let (begun, _) = Recipe::load(&begun.to_string_lossy(), &[])?;
        if moves && begun.model.name == recipe.model.name {
            recipe.model.revision = begun.model.revision;
        }
        if chooses {
            recipe.train.precision = begun.train.precision;
        }
    }
    Ok(())
}

/// As [`refuse_another_recipe`], for a recipe whose base was not opened.
/// Fails as [`refuse_another_recipe`].
pub fn refuse_another_than_done(path: &Path, mut recipe: Recipe) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let (done, _) = Recipe::load(&path.to_string_lossy(), &[])?;
    recipe.settle_folders()?;
    if recipe.adapter.targets.is_empty() {
        recipe.adapter.targets = done.adapter.targets;
    }
    if !recipe.adapter.basis.is_empty() || !recipe.train.init_from.is_empty() {
        let BasisSpec { method, iterations, seed, .. } = done.adapter.made;
        recipe.adapter.made = BasisSpec { method, iterations, seed, ..recipe.adapter.made };
    }
    // A branch or tag: only the opened base would tell its commit.
    let is_commit = recipe.model.revision.len() == 40;
    if !is_commit {
        recipe.model.revision = done.model.revision;
    }
    refuse_another_recipe(path, &recipe)
}

/// Refuses to resume a run with another recipe than its own.
/// The error names each key that differs, or says that the run's recipe is broken.
pub fn refuse_another_recipe(path: &Path, recipe: &Recipe) -> Result<()> {
    let name = path.display().to_string();
    let begun = Recipe::parse(&files::read_text(path)?, &name, &[]).context("the run's recipe is broken")?;
    let [begun, asked] =
        [&begun, recipe].map(|recipe| -> Result<_> { Ok(flat(&toml::from_str(&recipe.to_toml()?)?, "")) });
    let (begun, asked) = (begun?, asked?);
    let differing = |key: &&String| begun.get(*key) != asked.get(*key);
    let keys: BTreeSet<&String> = begun.keys().chain(asked.keys()).filter(differing).collect();
    if keys.is_empty() {
        return Ok(());
    }
    let moved = keys.iter().all(|key| *key == "model.revision");
    let value =
        |table: &BTreeMap<String, String>, key: &String| table.get(key).cloned().unwrap_or("absent".into());
    let lines: Vec<String> = keys
        .into_iter()
        .map(|key| format!("`{key}` was {}, now {}", value(&begun, key), value(&asked, key)))
        .collect();
    Err(usage(format!("`{}` is a run of another recipe: {}", path.display(), lines.join("; ")))
        .hint(if moved {
            format!(
                "go on with the weights that it began with by `--set model.revision={}`",
                value(&begun, &"model.revision".to_owned())
            )
        } else {
            "resume with the same recipe, or train into another folder by `--out`".to_owned()
        })
        .into())
}

/// Returns the values of a table by their full keys.
fn flat(table: &toml::Table, prefix: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => found.extend(flat(inner, &format!("{prefix}{key}."))),
            value => {
                found.insert(format!("{prefix}{key}"), value.to_string());
            }
        }
    }
    found
}
