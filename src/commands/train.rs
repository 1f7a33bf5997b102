//! `loraxs train`: a run folder from a recipe.

use std::path::Path;
use std::time::Instant;

use super::{Outcome, environment, sweep};
use crate::cli::{Global, TrainArgs};
use crate::fault::Result;
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
use crate::session::run_folder::{ADAPTER, LOCK};
use crate::session::score::{has_scores, score};
use crate::session::subject::Subject;
use crate::session::sweep::asked_sweep;
use crate::session::training::Training;
use crate::spec::request::{ScoreRequest, SubjectSource};
use crate::torch::world::World;
use crate::train::{Ending, RunEnd, interrupt};

/// Trains a recipe, or with `--dry-run` only reports what would be trained.
/// Fails when recipe, base, data or folder cannot be used, or training fails.
pub fn run(global: &Global, args: &TrainArgs) -> Result<Outcome> {
    let start = Instant::now();
    let world = &World::current();
    let sweep = world.agreed(asked_sweep(&args.request))?;
    agree_on_sweep(world, sweep.as_ref().map(|asked| &asked.sweep))?;
    if let Some(asked) = sweep {
        return sweep::run(global, &asked, args.dry_run);
    }
    let (recipe, out) = asked_by_all(world, &args.request)?;
    let resume = args.request.resume.is_some();
    let check = || {
        let is_done = resume && is_done(&out, recipe.clone())?;
        if is_done { refuse_half_done(&out) } else { refuse_used(&out, resume) }.map(|()| is_done)
    };
    if world.on_first(check)? {
        say(&format!("{} is finished", out.display()));
        let tasks = if args.dry_run { &[] } else { recipe.eval.tasks.as_slice() };
        return score_tasks(tasks, &out, || {
            let place = environment(global, Some(&out))?;
            let run = SubjectSource { run: Some(out.clone()), ..SubjectSource::default() };
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
    if world.on_first(|| has_scores(out, tasks))? {
        return Ok(Outcome::Done);
    }
    if world.gather(interrupt::requested())?.contains(&true) {
        say(&format!("interrupted: score the recipe's tasks with `eval --run {}`", out.display()));
        return Ok(Outcome::Interrupted);
    }
    let request = ScoreRequest { task: tasks.to_vec(), ..ScoreRequest::default() };
    // The folder may lie on the host of the first process alone.
    if !world.gather(out.join(ADAPTER).is_dir())?.contains(&false) {
        let (place, subject) = open()?;
        return Ok(score(&place, &subject, &request)?.into());
    }
    tracing::warn!("not every process can read `{}`: rank 0 alone scores the recipe's tasks", out.display());
    let is_whole = world.on_first_slowly("scores", || {
        let (place, subject) = open()?;
        Ok(score(&Environment { world: World::alone(), ..place }, &subject, &request)? == Ending::Finished)
    })?;
    Ok(if is_whole { Outcome::Done } else { Outcome::Interrupted })
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
