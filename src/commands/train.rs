//! `loraxs train`: a run folder from a recipe.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use super::{Outcome, eval};
use crate::cli::{self, EvalArgs, Global, TrainArgs};
use crate::fault::Result;
use crate::files;
use crate::models::Model;
use crate::recipe::{Origin, Recipe};
use crate::report::say;
use crate::session::Session;
use crate::session::counts::from_config;
use crate::session::opened::Opened;
use crate::session::results::Results;
use crate::session::resume::{
    keep_revision, lock, refuse_another_recipe, refuse_another_than_done, refuse_half_done, refuse_used,
};
use crate::session::run_folder::RunFolder;
use crate::session::workplace::Workplace;
use crate::train::checkpoint::Loaded;
use crate::train::language::LanguageModelling;
use crate::train::objective::Classification;
use crate::train::recorded::Passes;
use crate::train::{Ending, Objective, Trainer, interrupt};

/// Trains a recipe, or with `--dry-run` only reports what would be trained.
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
        refuse_half_done(&out)?;
        say(&format!("{} is finished", out.display()));
        return score_tasks(global, &recipe.eval.tasks, &out);
    }
    refuse_used(&out, args)?;
    if let Some(counts) = args.dry_run.then(|| from_config(&recipe)).transpose()?.flatten() {
        say(&counts);
        say("the base has no weights here: counting from its `config.json`");
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
    let _lock = lock(&out)?;
    // Another process may have begun since.
    refuse_used(&out, args)?;
    let outcome = train(&session, &out, args.resume, start)?;
    drop(session);
    if outcome == Outcome::Done { score_tasks(global, &recipe_tasks, &out) } else { Ok(outcome) }
}

/// Scores the recipe's generation tasks with the best adapter, unless all were scored before.
fn score_tasks(global: &Global, tasks: &[String], out: &Path) -> Result<Outcome> {
    let results = out.join("eval/results.json");
    let found: serde_json::Value =
        if results.exists() { files::read_json(&results)? } else { serde_json::Value::Null };
    if tasks.iter().all(|task| found.get(task).is_some()) {
        return Ok(Outcome::Done);
    }
    if interrupt::requested() {
        say(&format!("interrupted: score the recipe's tasks with `eval --run {}`", out.display()));
        return Ok(Outcome::Interrupted);
    }
    let subject = cli::Subject { run: Some(out.to_owned()), ..cli::Subject::default() };
    eval::run(global, &EvalArgs { subject, task: tasks.to_vec(), ..EvalArgs::default() })
}

/// Returns `runs/` and the recipe's name.
fn default_folder(origin: &Origin) -> PathBuf {
    Path::new("runs").join(origin.stem())
}

fn train(session: &Session, out: &Path, resume: bool, start: Instant) -> Result<Outcome> {
    let plan = session.plan(out)?;
    let recipe = out.join("recipe.toml");
    if recipe.exists() {
        refuse_another_recipe(&recipe, &session.opened.recipe)?;
    } else {
        files::write_bytes(&recipe, session.opened.recipe.to_toml()?.as_bytes())?;
    }
    let loaded = if resume { Loaded::newest(&plan.checkpoints) } else { None };
    if let Some(loaded) = &loaded {
        loaded.check(&plan)?;
        say(&format!("resuming after step {}", loaded.state().step));
    }
    let objective = objective(session);
    let before = loaded.as_ref().map_or(0.0, |loaded| loaded.state().seconds);
    let mut folder = RunFolder::open(session, out, loaded.as_ref())?;
    let _awaited = interrupt::awaited();
    let (ending, state) =
        Trainer::new(plan, objective.as_ref(), &session.trained, &mut folder, loaded)?.run()?;
    if ending == Ending::Interrupted {
        say(&format!("interrupted after step {}; continue with `--resume`", state.step));
        return Ok(Outcome::Interrupted);
    }
    folder.finish(&state)?;
    let results = Results::new(session, &state, before + start.elapsed().as_secs_f64(), out);
    let written = results.and_then(|results| results.write(out).map(|()| results));
    say(&written.context("training ended, but its results could not be saved")?.summary());
    say(&format!("wrote {}", out.display()));
    Ok(Outcome::Done)
}

fn objective(session: &Session) -> Box<dyn Objective + '_> {
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
            passes: Passes::default(),
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
