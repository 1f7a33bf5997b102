//! `loraxs train`: a run folder from a recipe.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context as _;

use super::{Outcome, environment};
use crate::cli::{EvalArgs, Global, SubjectArgs, TrainArgs};
use crate::fault::Result;
use crate::files;
use crate::recipe::{Origin, Recipe};
use crate::report::say;
use crate::session::counts::from_config;
use crate::session::environment::Environment;
use crate::session::finished::refuse_half_done;
use crate::session::inputs::TrainInputs;
use crate::session::recorder::RunRecorder;
use crate::session::results::Results;
use crate::session::resume::{
    keep_revision, lock, refuse_another_recipe, refuse_another_than_done, refuse_used,
};
use crate::session::run_folder::{EVAL, RECIPE, RESULTS};
use crate::session::score::score;
use crate::session::subject::Subject;
use crate::session::training::Training;
use crate::train::checkpoint::Loaded;
use crate::train::{Ending, Trainer, interrupt};

/// Trains a recipe, or with `--dry-run` only reports what would be trained.
/// Fails when recipe, base, data or folder cannot be used, or training fails.
pub fn run(global: &Global, args: &TrainArgs) -> Result<Outcome> {
    let start = Instant::now();
    let (mut recipe, origin) = Recipe::load(&args.recipe, &args.set)?;
    if let Some(basis) = &args.basis {
        recipe.adapter.basis = basis.display().to_string();
    }
    let out = args.out.clone().unwrap_or_else(|| default_folder(&origin));
    if args.resume {
        keep_revision(&mut recipe, &out.join(RECIPE))?;
    }
    if out.join(RESULTS).exists() && args.resume {
        refuse_another_than_done(&out.join(RECIPE), recipe.clone())?;
        refuse_half_done(&out)?;
        say(&format!("{} is finished", out.display()));
        return score_tasks(&recipe.eval.tasks, &out, || {
            let place = environment(global, Some(&out))?;
            let run = SubjectArgs { run: Some(out.clone()), ..SubjectArgs::default() };
            let subject = Subject::open(&place, &run, &[])?;
            Ok((place, subject))
        });
    }
    let may_be_used = args.resume || args.dry_run;
    refuse_used(&out, may_be_used)?;
    if let Some(counts) = args.dry_run.then(|| from_config(&recipe)).transpose()?.flatten() {
        say(&counts);
        say("the base has no weights here: counting from its `config.json`");
        return Ok(Outcome::Done);
    }
    let place = environment(global, args.resume.then_some(&*out))?;
    let inputs = TrainInputs::open(&place, recipe)?;
    if args.dry_run {
        say(&inputs.forecast(&place, &out)?);
        return Ok(Outcome::Done);
    }
    let training = Training::new(&place, inputs)?;
    say(&training.counts().table());
    say(&training.inputs.shown_example()?);
    let _lock = lock(&out)?;
    // Another process may have begun since.
    refuse_used(&out, may_be_used)?;
    let outcome = train(&training, &out, args.resume, start)?;
    if outcome != Outcome::Done {
        return Ok(outcome);
    }
    let (base, recipe) = training.into_base();
    score_tasks(&recipe.eval.tasks.clone(), &out, || {
        Ok((place, Subject::of_run(&out, recipe, |_| Ok(base))?))
    })
}

/// Scores the recipe's generation tasks with the best adapter, unless all were scored before.
fn score_tasks(
    tasks: &[String],
    out: &Path,
    open: impl FnOnce() -> Result<(Environment, Subject)>,
) -> Result<Outcome> {
    let results = out.join(EVAL).join(RESULTS);
    let found: serde_json::Value =
        if results.exists() { files::read_json(&results)? } else { serde_json::Value::Null };
    if tasks.iter().all(|task| found.get(task).is_some()) {
        return Ok(Outcome::Done);
    }
    if interrupt::requested() {
        say(&format!("interrupted: score the recipe's tasks with `eval --run {}`", out.display()));
        return Ok(Outcome::Interrupted);
    }
    let (place, subject) = open()?;
    Ok(score(&place, &subject, &EvalArgs { task: tasks.to_vec(), ..EvalArgs::default() })?.into())
}

/// Returns `runs/` and the recipe's name.
fn default_folder(origin: &Origin) -> PathBuf {
    Path::new("runs").join(origin.stem())
}

fn train(training: &Training, out: &Path, resume: bool, start: Instant) -> Result<Outcome> {
    let plan = training.plan(out)?;
    let recipe = out.join(RECIPE);
    if recipe.exists() {
        refuse_another_recipe(&recipe, &training.inputs.recipe)?;
    } else {
        files::write_bytes(&recipe, training.inputs.recipe.to_toml()?.as_bytes())?;
    }
    let loaded = if resume { Loaded::newest(&plan.checkpoints) } else { None };
    if let Some(loaded) = &loaded {
        loaded.check(&plan)?;
        say(&format!("resuming after step {}", loaded.state().step));
    }
    let objective = training.objective();
    let before = loaded.as_ref().map_or(0.0, |loaded| loaded.state().seconds);
    let mut folder = RunRecorder::open(training, out, loaded.as_ref())?;
    let _awaited = interrupt::awaited();
    let (ending, state) =
        Trainer::new(plan, objective.as_ref(), &training.trained, &mut folder, loaded)?.run()?;
    if ending == Ending::Interrupted {
        say(&format!("interrupted after step {}; continue with `--resume`", state.step));
        return Ok(Outcome::Interrupted);
    }
    folder.finish(&state)?;
    let results = Results::new(training, &state, before + start.elapsed().as_secs_f64());
    results.write(out).context("training ended, but its results could not be saved")?;
    say(&results.summary());
    say(&format!("wrote {}", out.display()));
    Ok(Outcome::Done)
}
