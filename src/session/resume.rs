//! Guards of a run folder: one process at a time, and only with the recipe and the weights of the run, but for what changes no
//! number of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::course::{Course, GroupPlan};
use super::facts::{agree_on_recipe, agree_on_values};
use super::inputs::TrainInputs;
use super::lasting::{FREE, LENGTH, ROUNDING, warmup};
use super::run_folder::{ADAPTER, CHECKPOINTS, LOCK, RECIPE, RESULTS, recipe_of};
use super::training::Training;
use crate::fault::{Result, fault, usage};
use crate::files::{self, Held};
use crate::recipe::{AdapterRecipe, Recipe, SWEEP, flat};
use crate::spec::request::TrainRequest;
use crate::spec::{Precision, Schedule};
use crate::torch::world::World;
use crate::train::TrainPlan;
use crate::train::checkpoint::Loaded;

/// Returns the folder of what is to be trained, if it is named.
/// Fails when two are.
pub fn folder(request: &TrainRequest) -> Result<Option<&PathBuf>> {
    let resumed = request.resume.as_ref().and_then(Option::as_ref);
    if let (Some(resumed), Some(out)) = (resumed, &request.out)
        && resumed != out
    {
        let message =
            format!("`--resume {}` and `--out {}` name two folders", resumed.display(), out.display());
        return Err(usage(message).hint("leave out `--out`").into());
    }
    Ok(resumed.or(request.out.as_ref()))
}

/// Returns the recipe that `train` is asked for, and the folder of its run: with `--resume` alone, the run's own.
/// Fails when there is no such recipe or run.
pub fn asked(request: &TrainRequest) -> Result<(Recipe, PathBuf)> {
    let (mut recipe, out) = match (&request.recipe, folder(request)?.cloned()) {
        (Some(name), out) => {
            let (recipe, origin) = Recipe::load(name, &request.set)?;
            (recipe, out.unwrap_or_else(|| Path::new("runs").join(origin.stem())))
        }
        (None, Some(out)) => (recipe_of(&out, &request.set)?, out),
        (None, None) => {
            let message = "`--resume` alone does not say which run goes on";
            return Err(usage(message).hint("name its folder: `--resume DIR`").into());
        }
    };
    if let Some(basis) = &request.basis {
        recipe.adapter.basis = basis.display().to_string();
    }
    if request.resume.is_some() {
        keep_revision(&mut recipe, &out.join(RECIPE))?;
    }
    Ok((recipe, out))
}

/// As [`asked`], for all processes of `world`, which must be asked for the same: the first alone need see the run's folder.
/// Fails as [`asked`], and where one is asked for another recipe.
pub fn asked_by_all(world: &World, request: &TrainRequest) -> Result<(Recipe, PathBuf)> {
    if world.is_alone() {
        return asked(request);
    }
    let own = request.recipe.as_ref().map(|name| Recipe::load(name, &request.set)).transpose();
    let own = world.agreed(own)?;
    agree_on_recipe(world, own.as_ref().map(|(recipe, _)| recipe))?;
    // What changes the recipe of a run that only the first can see.
    let sets = request.set.iter().filter(|_| own.is_none()).filter_map(|set| set.split_once('='));
    agree_on_values(
        world,
        "other settings",
        &sets.map(|(key, value)| (key.to_owned(), serde_json::Value::from(value))).collect(),
    )?;
    let of_first = || asked(request).and_then(|(recipe, out)| Ok((recipe.to_toml()?, out)));
    let (text, out) = world.on_first(of_first)?;
    Ok((Recipe::parse(&text, RECIPE, &[])?, out))
}

/// Refuses a folder that holds a run, unless the command goes on with it or writes nothing (`may_be_used`).
/// The error names what the folder holds.
pub fn refuse_used(out: &Path, may_be_used: bool) -> Result<()> {
    let used = [RESULTS, RECIPE, CHECKPOINTS].into_iter().find(|name| out.join(name).exists());
    files::refuse_file(out)?;
    if out.join(SWEEP).exists() {
        let message = format!("`{}` is the folder of a sweep, and the recipe is one run", out.display());
        return Err(fault(message).hint("choose another folder with `--out`").into());
    }
    match used {
        Some(name) if !may_be_used => {
            Err(fault(format!("`{}` already has a run: found `{name}`", out.display()))
                .hint("resume it with `--resume`, or choose another folder with `--out`")
                .into())
        }
        _ => Ok(()),
    }
}

/// Locks the folder against other processes, and keeps it in place, while the returned values live.
/// Fails when another process holds the folder, or it cannot be written.
pub fn lock(out: &Path) -> Result<(File, Held)> {
    try_lock(out)?.ok_or_else(|| {
        fault(format!("another process is training into `{}`", out.display()))
            .hint("wait until it ends, or train into another folder with `--out`")
            .into()
    })
}

/// As [`lock`], by the first process, and if no other has begun there since ([`refuse_used`]).
/// Fails on every process when it fails there.
pub fn lock_unused(world: &World, out: &Path, may_be_used: bool) -> Result<Option<(File, Held)>> {
    let locked = || lock(out).and_then(|lock| refuse_used(out, may_be_used).map(|()| lock));
    world.agreed(world.is_first().then(locked).transpose())
}

/// As [`lock`]; `None` if another process holds the folder.
/// Fails when it cannot be written.
pub fn try_lock(out: &Path) -> Result<Option<(File, Held)>> {
    let path = out.join(LOCK);
    let open = || -> io::Result<File> {
        fs::create_dir_all(out)?;
        OpenOptions::new().write(true).create(true).truncate(false).open(&path)
    };
    let file = open().map_err(|error| files::cannot_write(&path, &error))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Ok(None),
        // Some file systems have no locks.
        _ => Ok(Some((file, files::hold(out, out)?))),
    }
}

/// Pins a run that began with the `main` of a repository to the commit that this was then.
/// Fails when the run's recipe cannot be read.
fn keep_revision(recipe: &mut Recipe, begun: &Path) -> Result<()> {
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

/// Returns true if the run that is finished in `out` is what `recipe`, whose base was not opened, asks for; false if it is
/// asked to take longer.
/// Fails as [`refuse_another_recipe`].
pub fn is_done(out: &Path, mut recipe: Recipe) -> Result<bool> {
    let path = &out.join(RECIPE);
    if !out.join(RESULTS).exists() {
        return Ok(false);
    }
    if !path.exists() {
        return Ok(true);
    }
    // One that halving stopped goes on.
    let results: serde_json::Value = files::read_json(&out.join(RESULTS)).unwrap_or_default();
    if results["ended"] == "halving" {
        return Ok(false);
    }
    let (done, _) = Recipe::load(&path.to_string_lossy(), &[])?;
    recipe.settle_folders()?;
    if recipe.adapter.targets.is_empty() {
        recipe.adapter.targets = done.adapter.targets;
    }
    if !recipe.adapter.basis.is_empty() || !recipe.train.init_from.is_empty() {
        let AdapterRecipe { svd, svd_iterations, svd_seed, .. } = done.adapter;
        recipe.adapter = AdapterRecipe { svd, svd_iterations, svd_seed, ..recipe.adapter };
    }
    // A branch or tag: only the opened base would tell its commit.
    let is_commit = recipe.model.revision.len() == 40;
    if !is_commit {
        recipe.model.revision = done.model.revision;
    }
    let changes = Changes::find(path, &recipe)?;
    if changes.keys().any(|key| LENGTH.contains(&key)) {
        return Ok(false);
    }
    changes.refuse(path).map(|()| true)
}

/// Keys in which a recipe differs from that of the run it resumes, with both values.
struct Changes {
    begun: Recipe,
    found: BTreeMap<String, [String; 2]>,
}

impl Changes {
    /// Compares a recipe with that of the run, in the file `path`.
    /// Fails when the run's recipe is broken.
    fn find(path: &Path, recipe: &Recipe) -> Result<Self> {
        let name = path.display().to_string();
        let begun =
            Recipe::parse(&files::read_text(path)?, &name, &[]).context("the run's recipe is damaged")?;
        let values = |recipe: &Recipe| -> Result<_> { Ok(flat(&toml::from_str(&recipe.to_toml()?)?, "")) };
        let (old, new) = (values(&begun)?, values(recipe)?);
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        let value =
            |table: &BTreeMap<String, String>, key| table.get(key).cloned().unwrap_or("absent".into());
        let differing = keys.into_iter().filter(|key| old.get(*key) != new.get(*key));
        let found = differing.map(|key| (key.clone(), [value(&old, key), value(&new, key)])).collect();
        Ok(Self { begun, found })
    }

    fn keys(&self) -> impl Iterator<Item = &str> {
        self.found.keys().map(String::as_str)
    }

    /// Refuses changes of other keys than those that a resumed run may change.
    /// The error names each.
    fn refuse(&self, path: &Path) -> Result<()> {
        let free = |key: &&str| FREE.contains(key) || ROUNDING.contains(key);
        let refused: Vec<&str> = self.keys().filter(|key| !free(key)).collect();
        if refused.is_empty() {
            return Ok(());
        }
        let moved = refused == ["model.revision"];
        let line =
            |key: &&str| self.found.get(*key).map(|[old, new]| format!("`{key}` was {old}, now {new}"));
        let lines: Vec<String> = refused.iter().filter_map(line).collect();
        Err(usage(format!("`{}` is a run of a different recipe: {}", path.display(), lines.join("; ")))
            .hint(match self.found.get("model.revision").filter(|_| moved) {
                Some([old, _]) => {
                    format!(
                        "continue with the weights that it started from with `--set model.revision={old}`"
                    )
                }
                None => "resume with the same recipe, or train into another folder with `--out`".to_owned(),
            })
            .into())
    }
}

/// What a training begins with.
pub struct Beginning {
    /// The settings of the loop.
    pub plan: TrainPlan,
    /// The checkpoint that each run goes on from.
    pub loaded: Vec<Option<Loaded>>,
    /// Of each run, true if the folder has no recipe yet, or one that has changed since.
    pub writes_recipe: Vec<bool>,
}

/// Finds where the training of a group begins; if its runs go on, with what their recipes keep of the runs'.
/// Fails when recipe or checkpoint belong to another run, or a finished run is to take longer and has no checkpoint.
pub fn begin(training: &mut Training, group: &GroupPlan) -> Result<Beginning> {
    let GroupPlan { courses, fewest, resume, world, rescale, .. } = *group;
    let Training { inputs, recipes, .. } = training;
    let mut writes_recipe = Vec::new();
    for (recipe, Course { out, .. }) in recipes.iter_mut().zip(courses) {
        let begun = out.join(RECIPE).exists();
        writes_recipe.push(!begun || refuse_another_recipe(out, recipe, inputs)?);
    }
    let plan = training.plan(courses, fewest, world)?;
    let newest = plan.runs.iter().map(|run| Loaded::newest(&run.checkpoints));
    let loaded = if resume { newest.collect() } else { Vec::new() };
    for (loaded, run) in
        loaded.iter().zip(&plan.runs).filter_map(|(loaded, run)| Some((loaded.as_ref()?, run)))
    {
        loaded.check(run)?;
        refuse_rescaled(loaded, world, rescale)?;
    }
    let finished = courses.iter().enumerate().filter(|(_, course)| course.out.join(RESULTS).exists());
    let mut without = finished.filter(|(run, _)| !matches!(loaded.get(*run), Some(Some(_))));
    if let Some((_, Course { out, .. })) = without.next() {
        let message =
            format!("the run in `{}` is finished and kept no checkpoint to go on from", out.display());
        let start =
            format!("start a new run from its adapter: `--set train.init_from={}/{ADAPTER}`", out.display());
        return Err(fault(message).hint(start).into());
    }
    Ok(Beginning { plan, loaded, writes_recipe })
}

/// Refuses to go on with another number of processes than a checkpoint was written by, unless that is asked for.
fn refuse_rescaled(loaded: &Loaded, world: &World, rescale: bool) -> Result<()> {
    let [before, now] = [loaded.state().processes, world.size()];
    if before == now || rescale {
        return Ok(());
    }
    let words = |count: usize| if count == 1 { "1 process".to_owned() } else { format!("{count} processes") };
    let [before, now] = [before, now].map(words);
    let message = format!(
        "the checkpoint `{}` was written by {before}, and {now} would go on from it: sums would be rounded otherwise",
        loaded.place().display()
    );
    let hint = format!("start {before}, or go on nevertheless with `--rescale`");
    Err(usage(message).hint(hint).into())
}

/// Refuses to resume the run in `out` with another recipe than its own. Of a run that is asked to take longer, the recipe keeps
/// the warm-up that it had. Returns true if anything changes.
/// The error names each key that differs, or says that the run's recipe is broken, or why it cannot take longer.
fn refuse_another_recipe(out: &Path, recipe: &mut Recipe, inputs: &TrainInputs) -> Result<bool> {
    let path = out.join(RECIPE);
    let mut changes = Changes::find(&path, recipe)?;
    let changed = !changes.found.is_empty();
    let [before, now] = [&changes.begun, recipe].map(|recipe| inputs.steps_of(&recipe.train));
    if now >= before {
        if now > before && recipe.train.schedule != Schedule::Constant {
            return Err(cannot_be_longer(out, recipe, [before, now]));
        }
        let train = &mut recipe.train;
        if now > before && !changes.keys().any(|key| key.starts_with("train.warmup")) {
            (train.warmup_steps, train.warmup_ratio) = (warmup(&changes.begun.train, before), 0.0);
        }
        changes.found.retain(|key, _| !LENGTH.contains(&key.as_str()));
    }
    changes.refuse(&path)?;
    if changes.keys().any(|key| ROUNDING.contains(&key)) {
        tracing::warn!(
            "with other batches in a forward pass, sums are rounded and dropout masks drawn differently from here on: the run \
             will not end with the bits of one that never stopped"
        );
    }
    Ok(changed)
}

/// Returns the error for a run whose learning rates depend on its number of steps.
fn cannot_be_longer(out: &Path, recipe: &Recipe, [before, now]: [u64; 2]) -> anyhow::Error {
    let (schedule, out) = (recipe.train.schedule, out.display());
    let length = match recipe.train.max_steps {
        0 => format!("train.epochs={}", recipe.train.epochs),
        steps => format!("train.max_steps={steps}"),
    };
    usage(format!(
        "the run in `{out}` was to take {before} steps and is asked to take {now}: by its schedule (`{schedule}`), the learning \
         rates of all its steps depend on their number"
    ))
    .hint(format!(
        "start a new run from its adapter: `loraxs train --recipe {out}/{RECIPE} --set {length} --set \
         train.init_from={out}/{ADAPTER} --out {out}-2`"
    ))
    .into()
}
