//! `loraxs train`: a run folder from a recipe.

use std::path::Path;
use std::time::Instant;

use super::{Outcome, environment, sweep};
use crate::cli::{EvalArgs, Global, SubjectArgs, TrainArgs};
use crate::fault::Result;
use crate::files;
use crate::recipe::Recipe;
use crate::report::say;
use crate::session::counts::from_config;
use crate::session::course::{Course, GroupPlan};
use crate::session::environment::Environment;
use crate::session::facts::{agree_on_inputs, agree_on_sweep};
use crate::session::finished::refuse_half_done;
use crate::session::group;
use crate::session::inputs::TrainInputs;
use crate::session::next;
use crate::session::resume::{asked_by_all, begin, is_done, lock, lock_unused, refuse_used};
use crate::session::run_folder::{ADAPTER, EVAL, LOCK, RESULTS};
use crate::session::score::score;
use crate::session::subject::Subject;
use crate::session::sweep::asked_sweep;
use crate::session::training::Training;
use crate::torch::world::World;
use crate::train::{RunEnd, interrupt};

/// Trains a recipe, or with `--dry-run` only reports what would be trained.
/// Fails when recipe, base, data or folder cannot be used, or training fails.
pub fn run(global: &Global, args: &TrainArgs) -> Result<Outcome> {
    let start = Instant::now();
    let world = &World::current();
    let sweep = world.agreed(asked_sweep(args))?;
    agree_on_sweep(world, sweep.as_ref().map(|asked| &asked.sweep))?;
    if let Some(asked) = sweep {
        return sweep::run(global, &asked, args.dry_run);
    }
    let (recipe, out) = asked_by_all(world, args)?;
    let resume = args.resume.is_some();
    let check = || {
        let is_done = resume && is_done(&out, recipe.clone())?;
        if is_done { refuse_half_done(&out) } else { refuse_used(&out, resume) }.map(|()| is_done)
    };
    if world.on_first(check)? {
        say(&format!("{} is finished", out.display()));
        let tasks = if args.dry_run { &[] } else { recipe.eval.tasks.as_slice() };
        return score_tasks(tasks, &out, || {
            let place = environment(global, Some(&out))?;
            let run = SubjectArgs { run: Some(out.clone()), ..SubjectArgs::default() };
            let subject = Subject::open(&place, &run, &[])?;
            Ok((place, subject))
        });
    }
    let place = Environment { rehearsal: args.dry_run, ..environment(global, resume.then_some(&*out))? };
    let courses = [Course::of_only(&out)];
    let group = GroupPlan { rescale: args.rescale, ..GroupPlan::of_one(&courses, resume, start, world) };
    if args.dry_run {
        return rehearse(&place, recipe, &group);
    }
    let inputs = world.agreed(TrainInputs::open(&place, recipe))?;
    agree_on_inputs(world, &inputs)?;
    let mut training = Training::new(&place, inputs, &[])?;
    say(&training.counts().table());
    say(&training.inputs.shown_example()?);
    let _lock = lock_unused(world, &out, resume)?;
    let outcome = train(&mut training, &group)?;
    if outcome != Outcome::Done {
        return Ok(outcome);
    }
    let next = next::after_training(&training, &out);
    let TrainInputs { base, recipe, .. } = training.into_inputs();
    let outcome = score_tasks(&recipe.eval.tasks.clone(), &out, || {
        Ok((place, Subject::of_run(&out, recipe, |_| Ok(base))?))
    })?;
    say(&next);
    Ok(outcome)
}

/// Reports what would be trained.
fn rehearse(place: &Environment, recipe: Recipe, group: &GroupPlan) -> Result<Outcome> {
    let out = &group.courses[0].out;
    let counts = from_config(&recipe)?;
    counts.iter().for_each(|counts| say(counts));
    let inputs = match TrainInputs::open(place, recipe) {
        Err(error) if counts.is_some() => {
            say(&format!(
                "the base has no weights here, and tokens, steps and memory cannot be counted: {error:#}"
            ));
            return Ok(Outcome::Done);
        }
        inputs => inputs?,
    };
    let mut training = Training::new(place, inputs, &[])?;
    if counts.is_some() {
        say("the base has no weights here, which a training needs: counted from its `config.json`");
    }
    let _lock = out.join(LOCK).exists().then(|| lock(out)).transpose()?;
    begin(&mut training, group)?;
    say(&training.inputs.forecast(place, out)?);
    Ok(Outcome::Done)
}

/// Scores the recipe's generation tasks with the best adapter, unless all were scored before.
fn score_tasks(
    tasks: &[String],
    out: &Path,
    open: impl FnOnce() -> Result<(Environment, Subject)>,
) -> Result<Outcome> {
    let world = World::current();
    let is_scored = || {
        let results = out.join(EVAL).join(RESULTS);
        let found: serde_json::Value =
            if results.exists() { files::read_json(&results)? } else { serde_json::Value::Null };
        Ok(tasks.iter().all(|task| found.get(task).is_some()))
    };
    if world.on_first(is_scored)? {
        return Ok(Outcome::Done);
    }
    if world.gather(interrupt::requested())?.contains(&true) {
        say(&format!("interrupted: score the recipe's tasks with `eval --run {}`", out.display()));
        return Ok(Outcome::Interrupted);
    }
    // The folder may lie on the host of the first process alone.
    if world.gather(world.is_first() || out.join(ADAPTER).exists())?.contains(&false) {
        tracing::warn!(
            "not every process can read `{0}`: score the recipe's tasks with `eval --run {0}`",
            out.display()
        );
        return Ok(Outcome::Done);
    }
    let (place, subject) = open()?;
    Ok(score(&place, &subject, &EvalArgs { task: tasks.to_vec(), ..EvalArgs::default() })?.into())
}

fn train(training: &mut Training, group: &GroupPlan) -> Result<Outcome> {
    let out = &group.courses[0].out;
    for (state, end) in group::train(training, group)? {
        match end {
            RunEnd::Interrupted => {
                let run = next::quoted(out);
                let step = state.step;
                say(&format!("interrupted after step {step}; continue with `loraxs train --resume {run}`"));
                return Ok(Outcome::Interrupted);
            }
            RunEnd::Failed(error) => return Err(error),
            RunEnd::Finished | RunEnd::StoppedEarly | RunEnd::Paused | RunEnd::Yielded => {}
        }
    }
    say(&format!("wrote {}", out.display()));
    Ok(Outcome::Done)
}
