//! The runs of a sweep: trained group after group, each in a folder of its own, beside other processes that work on the same sweep.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::claim::{Claim, Claims};
use super::work::SweepTraining;
use super::{halving, plan, together};
use crate::cli::{EvalArgs, SubjectArgs};
use crate::fault::{Result, hint_of};
use crate::files::{self, Held};
use crate::recipe::{Recipe, SWEEP, SweepRun};
use crate::report::say;
use crate::session::group::{self, Way};
use crate::session::resume::{refuse_used, try_lock};
use crate::session::run_folder::{EVAL, FAILED, RESULTS};
use crate::session::score::score;
use crate::session::subject::Subject;
use crate::session::training::{Course, Training};
use crate::train::{Ending, RunEnd, interrupt};

/// Interval at which runs that other processes train are looked at.
const WAIT: Duration = Duration::from_secs(2);

/// How a round over the groups of a sweep went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    /// Other processes train all that is left.
    Idle,
    /// Some runs were trained.
    Trained,
    /// Some runs yielded their places: groups are to be made anew.
    Yielded,
    /// A signal came.
    Interrupted,
}

/// A run that this process trains, with what keeps it from others.
type Claimed = (usize, Claim, (File, Held));

impl SweepTraining<'_> {
    /// Trains what is left of the sweep; returns how it ended, and the number of runs that failed.
    /// Fails when a run cannot begin, or a file cannot be written.
    pub fn run(&mut self) -> Result<(Ending, usize)> {
        self.check()?;
        if !self.out.join(SWEEP).exists() {
            refuse_used(self.out, false)?;
            files::write_bytes(&self.out.join(SWEEP), self.sweep.text.as_bytes())?;
        }
        let claims = Claims::open(self.out)?;
        let rungs = self.sweep.settings.halving.as_ref().map_or(1, |halving| halving.rungs);
        let mut contenders: Vec<usize> = (0..self.sweep.runs.len()).collect();
        for rung in 1..=rungs {
            if self.train_to(&claims, rung, &contenders)? == Ending::Interrupted {
                return Ok((Ending::Interrupted, self.failed()));
            }
            if let Some(halving) = self.sweep.settings.halving.as_ref().filter(|_| rung < rungs) {
                contenders = halving::survivors(|run| self.folder(run), halving, rung, &contenders)?;
            }
        }
        let runs: Vec<usize> = self.shard.order(self.sweep.runs.len()).collect();
        for run in runs {
            if self.score(&claims, run)? == Ending::Interrupted {
                return Ok((Ending::Interrupted, self.failed()));
            }
        }
        Ok((Ending::Finished, self.failed()))
    }

    /// Tells what is finished, and looks at one run of each kind that is not: after days of training is no time to miss a file, or that
    /// a rank is too large.
    fn check(&mut self) -> Result<()> {
        let runs = self.sweep.runs.len();
        let finished = (0..runs).filter(|run| self.folder(*run).join(RESULTS).exists()).count();
        if finished > 0 {
            say(&format!("{finished} of {runs} runs are finished"));
        }
        for of_kind in plan::groups(self.sweep)? {
            let Some(run) = of_kind.into_iter().find(|run| !self.is_done(*run, 1)) else { continue };
            let SweepRun { recipe, name, .. } = &self.sweep.runs[run];
            let inputs = self.inputs(recipe).with_context(|| format!("run `{name}`"))?;
            inputs.counts().with_context(|| format!("run `{name}`"))?;
            self.keep(recipe.clone(), inputs);
        }
        Ok(())
    }

    /// Scores the generation tasks of a run that are not scored.
    fn score(&self, claims: &Claims, run: usize) -> Result<Ending> {
        let SweepRun { recipe, name, .. } = &self.sweep.runs[run];
        let (out, tasks) = (self.folder(run), recipe.eval.tasks.clone());
        let is_scored = || {
            let found = out.join(EVAL).join(RESULTS);
            let found: Value = if found.exists() { files::read_json(&found)? } else { Value::Null };
            Ok::<_, anyhow::Error>(tasks.iter().all(|task| found.get(task).is_some()))
        };
        if !out.join(RESULTS).exists() || is_scored()? {
            return Ok(Ending::Finished);
        }
        let Some(_claim) = claims.take(name)? else { return Ok(Ending::Finished) };
        let args = SubjectArgs { run: Some(out.clone()), ..SubjectArgs::default() };
        let subject = Subject::open(self.place, &args, &[])?;
        score(self.place, &subject, &EvalArgs { task: tasks, ..EvalArgs::default() })
    }

    /// Returns the number of runs that diverged.
    fn failed(&self) -> usize {
        (0..self.sweep.runs.len()).filter(|run| self.folder(*run).join(FAILED).exists()).count()
    }

    /// Trains these runs up to a rung, or waits for the processes that do.
    fn train_to(&mut self, claims: &Claims, rung: u64, contenders: &[usize]) -> Result<Ending> {
        let mut told = false;
        loop {
            let open: Vec<usize> =
                contenders.iter().copied().filter(|run| !self.is_done(*run, rung)).collect();
            let Some(first) = open.first() else { return Ok(Ending::Finished) };
            let first = &self.sweep.runs[*first].name;
            match self.train_open(claims, rung, &open)? {
                Round::Interrupted => return Ok(Ending::Interrupted),
                Round::Trained | Round::Yielded => continue,
                Round::Idle => {}
            }
            if !std::mem::replace(&mut told, true) {
                let by = claims.holder(first).map(|by| format!(" by process {} on {}", by.pid, by.host));
                let by = by.unwrap_or_default();
                say(&format!("waiting for {} runs of other processes, such as {first}{by}", open.len()));
            }
            let until = Instant::now() + WAIT;
            while Instant::now() < until {
                if interrupt::requested() {
                    return Ok(Ending::Interrupted);
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }

    /// Trains those of these runs that no other process does, until all have ended or some yielded their places.
    fn train_open(&mut self, claims: &Claims, rung: u64, open: &[usize]) -> Result<Round> {
        let groups = together::groups(self, open)?;
        let mut round = Round::Idle;
        for group in self.shard.order(groups.len()) {
            let mut claimed = Vec::new();
            for &run in groups[group].iter().filter(|run| !self.is_done(**run, rung)) {
                let Some(claim) = claims.take(&self.sweep.runs[run].name)? else { continue };
                // Another process may have ended it in between, or somebody resumed it by itself.
                let lock = try_lock(&self.folder(run))?;
                if let Some(lock) = lock.filter(|_| !self.is_done(run, rung)) {
                    claimed.push((run, claim, lock));
                }
            }
            if claimed.is_empty() {
                continue;
            }
            // Places are worth something where all runs are computed in one pass, and others wait for them.
            let others = open.len() > groups[group].len();
            let fewest = if others && self.place.device.is_cuda() { claimed.len().div_ceil(2) } else { 0 };
            round = self.train_group(rung, &claimed, fewest)?;
            if round != Round::Trained {
                break;
            }
        }
        Ok(round)
    }

    /// Trains claimed runs of one group up to a rung.
    fn train_group(&mut self, rung: u64, claimed: &[Claimed], fewest: usize) -> Result<Round> {
        let start = Instant::now();
        let runs: Vec<&SweepRun> = claimed.iter().map(|(run, ..)| &self.sweep.runs[*run]).collect();
        let inputs = self.inputs(&runs[0].recipe)?;
        let others: Vec<Recipe> = runs[1..].iter().map(|run| run.recipe.clone()).collect();
        let of_first = || format!("run `{}`", runs[0].name);
        let mut training = Training::new(self.place, inputs, &others).with_context(of_first)?;
        let pauses = halving::pauses(self.sweep.settings.halving.as_ref(), rung, &training)?;
        let course = |(run, pause): (&SweepRun, u64)| Course {
            name: run.name.clone(),
            out: self.out.join(&run.name),
            pause,
        };
        let courses: Vec<Course> = runs.iter().copied().zip(pauses).map(course).collect();
        let check = |run: usize| claimed[run].1.check();
        let way = Way {
            courses: &courses,
            fewest,
            paused: &halving::file(rung),
            resume: true,
            start,
            check: &check,
        };
        say(&match runs.as_slice() {
            [run] => format!("training {}", run.name),
            [first, ..] => format!("training {} runs together, the first {}", runs.len(), first.name),
            [] => String::new(),
        });
        let mut round = Round::Trained;
        for ((state, end), Course { out, .. }) in
            group::train(&mut training, &way).with_context(of_first)?.into_iter().zip(&courses)
        {
            match end {
                RunEnd::Interrupted => round = Round::Interrupted,
                RunEnd::Failed(error) => {
                    let (message, hint) = (format!("{error:#}"), hint_of(&error));
                    tracing::warn!("{}: {message}", out.display());
                    let failed: Value = json!({"error": message, "hint": hint, "step": state.step});
                    files::write_json(&out.join(FAILED), &failed)?;
                }
                RunEnd::Finished | RunEnd::StoppedEarly | RunEnd::Paused => {}
                RunEnd::Yielded => round = Round::Yielded,
            }
        }
        self.keep(runs[0].recipe.clone(), training.into_inputs());
        Ok(round)
    }
}
