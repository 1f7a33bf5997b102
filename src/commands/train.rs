//! `loraxs train`: a recipe to a run folder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use super::counts::from_config;
use super::open::Workplace;
use super::opened::Opened;
use super::results::{Results, write_results};
use super::run_folder::RunFolder;
use super::session::Session;
use super::{Outcome, eval};
use crate::cli::{self, EvalArgs, Global, TrainArgs};
use crate::fault::{Result, fault, usage};
use crate::files;
use crate::models::Model;
use crate::recipe::{AdapterRecipe, Origin, Recipe};
use crate::report::say;
use crate::train::checkpoint::Loaded;
use crate::train::language::LanguageModelling;
use crate::train::task::Classification;
use crate::train::{Ending, Task, Trainer, interrupt};

/// Trains as the recipe says, or with `--dry-run` only says what would be trained.
///
/// # Errors
/// When recipe, base, data or folder cannot be used, or training fails.
pub fn run(global: &Global, args: &TrainArgs) -> Result<Outcome> {
    let start = Instant::now();
    let (mut recipe, origin) = Recipe::load(&args.recipe, &args.set)?;
    if let Some(basis) = &args.basis {
        recipe.adapter.basis = basis.display().to_string();
    }
    let out = args.out.clone().unwrap_or_else(|| default_folder(&origin));
    if args.resume {
        keep_revision(&mut recipe, &out.join("recipe.toml"))?;
    }
    if out.join("results.json").exists() && args.resume {
        refuse_another_than_done(&out.join("recipe.toml"), recipe.clone())?;
        say(&format!("{} is finished", out.display()));
        return score_tasks(global, &recipe.eval.tasks, &out);
    }
    refuse_used(&out, args)?;
    if let Some(counts) = args.dry_run.then(|| from_config(&recipe)).transpose()?.flatten() {
        say(&counts);
        say("the base's weights are not there: counted from its `config.json` alone");
        return Ok(Outcome::Done);
    }
    let place = Workplace::open(global)?;
    let recipe_tasks = recipe.eval.tasks.clone();
    let opened = Opened::open(&place, recipe)?;
    if args.dry_run {
        say(&opened.forecast(&place, &out)?);
        return Ok(Outcome::Done);
    }
    let session = Session::new(&place, opened)?;
    say(&session.counts().table());
    say(&session.opened.shown_example()?);
    interrupt::listen()?;
    let _lock = lock(&out)?;
    // Another process may have begun since.
    refuse_used(&out, args)?;
    let outcome = train(&session, &out, args.resume, start)?;
    drop(session);
    if outcome == Outcome::Done { score_tasks(global, &recipe_tasks, &out) } else { Ok(outcome) }
}

/// Scores the recipe's generation tasks with the best adapter, where that was not done before.
fn score_tasks(global: &Global, tasks: &[String], out: &Path) -> Result<Outcome> {
    let results = out.join("eval/results.json");
    let found: serde_json::Value =
        if results.exists() { files::read_json(&results)? } else { serde_json::Value::Null };
    if tasks.iter().all(|task| found.get(task).is_some()) {
        return Ok(Outcome::Done);
    }
    let subject = cli::Subject { run: Some(out.to_owned()), ..cli::Subject::default() };
    eval::run(global, &EvalArgs { subject, task: tasks.to_vec(), ..EvalArgs::default() })
}

/// `runs/` and the recipe's name.
fn default_folder(origin: &Origin) -> PathBuf {
    Path::new("runs").join(origin.stem())
}

/// A folder that holds a run is only touched by `--resume`.
fn refuse_used(out: &Path, args: &TrainArgs) -> Result<()> {
    let used =
        ["results.json", "recipe.toml", "checkpoints"].into_iter().find(|name| out.join(name).exists());
    match used {
        Some(name) if !args.resume && !args.dry_run => {
            Err(fault(format!("`{}` already holds a run: there is a `{name}`", out.display()))
                .hint("go on with it by `--resume`, or choose another folder by `--out`")
                .into())
        }
        _ => Ok(()),
    }
}

/// Keeps other processes from training into the folder, for as long as what is returned lives.
fn lock(out: &Path) -> Result<File> {
    let path = out.join(".lock");
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
        // Where a file system has no locks, there is nothing to ask.
        _ => Ok(file),
    }
}

/// A run that began with the `main` of a repository goes on with the commit that this was then.
fn keep_revision(recipe: &mut Recipe, begun: &Path) -> Result<()> {
    let moves = recipe.model.revision == "main" && !Path::new(&recipe.model.name).is_dir();
    if moves && begun.exists() {
        let (begun, _) = Recipe::load(&begun.to_string_lossy(), &[])?;
        if begun.model.name == recipe.model.name {
            recipe.model.revision = begun.model.revision;
        }
    }
    Ok(())
}

/// As [`refuse_another_recipe`], of a recipe whose base was not opened.
fn refuse_another_than_done(path: &Path, mut recipe: Recipe) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let (done, _) = Recipe::load(&path.to_string_lossy(), &[])?;
    recipe.settle_folders();
    if recipe.adapter.targets.is_empty() {
        recipe.adapter.targets = done.adapter.targets;
    }
    if !recipe.adapter.basis.is_empty() || !recipe.train.init_from.is_empty() {
        let AdapterRecipe { svd, svd_iterations, svd_seed, .. } = done.adapter;
        recipe.adapter = AdapterRecipe { svd, svd_iterations, svd_seed, ..recipe.adapter };
    }
    // A branch or tag, of which only the base would say which commit it is.
    let is_commit = recipe.model.revision.len() == 40;
    if !is_commit {
        recipe.model.revision = done.model.revision;
    }
    refuse_another_recipe(path, &recipe)
}

/// A run goes on with its own recipe only.
fn refuse_another_recipe(path: &Path, recipe: &Recipe) -> Result<()> {
    let begun = flat(&toml::from_str(&files::read_text(path)?).context("the run's recipe is broken")?, "");
    let asked = flat(&toml::from_str(&recipe.to_toml()?)?, "");
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

/// The values of a table by their whole keys.
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

fn train(session: &Session, out: &Path, resume: bool, start: Instant) -> Result<Outcome> {
    let plan = session.plan(out)?;
    let recipe = out.join("recipe.toml");
    if recipe.exists() {
        refuse_another_recipe(&recipe, &session.opened.recipe)?;
    }
    files::write_bytes(&recipe, session.opened.recipe.to_toml()?.as_bytes())?;
    let loaded = if resume { Loaded::newest(&plan.checkpoints) } else { None };
    if let Some(loaded) = &loaded {
        say(&format!("resuming after step {}", loaded.step()));
    }
    let task = task(session);
    let before = loaded.as_ref().map_or(0.0, Loaded::seconds);
    let mut folder = RunFolder::open(session, out, loaded.as_ref().map(Loaded::step))?;
    let (ending, state) = Trainer::new(plan, task.as_ref(), &session.trained, &mut folder, loaded)?.run()?;
    if ending == Ending::Interrupted {
        say(&format!("interrupted after step {}; go on with `--resume`", state.step));
        return Ok(Outcome::Interrupted);
    }
    folder.finish(&state)?;
    let results = Results::new(session, &state, before + start.elapsed().as_secs_f64());
    write_results(out, &results).context("the run is done, but its results are lost")?;
    say(&results.summary());
    say(&format!("wrote {}", out.display()));
    Ok(Outcome::Done)
}

fn task(session: &Session) -> Box<dyn Task + '_> {
    let train = session.opened.train.examples.as_slice();
    let validation = session.opened.validation.as_ref().map(|v| v.examples.as_slice()).unwrap_or_default();
    let recompute = session.opened.recipe.train.gradient_checkpointing;
    match &session.model {
        Model::Classifier(model) => Box::new(Classification {
            model,
            train,
            validation,
            metrics: session.opened.metrics.clone(),
            eval_batch_size: session.eval_batch_size(),
            recompute,
        }),
        Model::Language(model) => Box::new(LanguageModelling {
            model,
            train,
            validation,
            eval_batch_tokens: session.eval_batch_size() * session.opened.recipe.data.max_length,
            recompute,
        }),
    }
}
