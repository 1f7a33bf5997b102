//! The runs of a sweep: trained group after group, each in a folder of its own, beside other processes that work on the same sweep.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde_json::{Value, json};

use super::claim::{Claim, Claims};
use super::work::SweepTraining;
use super::{halving, together};
use crate::fault::{Result, hint_of};
use crate::files::{self, Held};
use crate::recipe::{Recipe, SWEEP, SweepRun};
use crate::report::say;
use crate::session::adapter_setup;
use crate::session::course::{Course, GroupPlan};
use crate::session::group;
use crate::session::resume::{refuse_used, try_lock};
use crate::session::run_folder::{FAILED, RESULTS};
use crate::session::score::{has_scores, score};
use crate::session::subject::Subject;
use crate::session::training::Training;
use crate::spec::request::{ScoreRequest, SubjectSource};
use crate::torch::plain;
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
    /// Begins the sweep in its folder, or checks that it goes on there.
    /// Fails when a run could not be trained, or the folder is another's.
    pub fn begin(&mut self) -> Result<()> {
        self.check()?;
        let unused = refuse_used(self.out, false);
        // Another process may begin it at any time.
        if !self.out.join(SWEEP).exists() {
            unused?;
            files::write_new(&self.out.join(SWEEP), self.sweep.text.as_bytes())?;
        }
        // Another process may have begun another one meanwhile.
        self.sweep.check_same(self.out)
    }

    /// Trains what is left of the sweep; returns how it ended, and the number of runs that failed.
    /// Fails when a run cannot begin, or a file cannot be written.
    pub fn run(&mut self) -> Result<(Ending, usize)> {
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
        (0..runs).try_for_each(|run| self.repair(run))?;
        let finished = (0..runs).filter(|run| self.folder(*run).join(RESULTS).exists()).count();
        if finished > 0 {
            say(&format!("{finished} of {runs} runs are finished"));
        }
        for kind in 0..self.kinds.len() {
            let open = self.kinds[kind].iter().find(|run| !self.is_done(**run, 1));
            let Some(run) = open.copied() else { continue };
            self.check_kind(kind, run).with_context(|| format!("run `{}`", self.sweep.runs[run].name))?;
        }
        Ok(())
    }

    /// Looks at the data, the targets and the adapter that a run of a kind starts from, and at the rungs of all its runs.
    fn check_kind(&mut self, kind: usize, run: usize) -> Result<()> {
        let recipe = &self.sweep.runs[run].recipe;
        let inputs = self.inputs(recipe)?;
        inputs.counts()?;
        adapter_setup::check_start(&inputs.recipe, &inputs.base)?;
        self.check_rungs(kind, &inputs)?;
        self.keep(recipe.clone(), inputs);
        Ok(())
    }

    /// Removes results that somebody damaged: the run goes on from its newest checkpoint.
    fn repair(&self, run: usize) -> Result<()> {
        let rungs = self.sweep.settings.halving.map_or(1, |halving| halving.rungs);
        for name in (1..rungs).map(halving::file).chain([RESULTS.to_owned()]) {
            let path = self.folder(run).join(name);
            if !path.exists() {
                continue;
            }
            let found = files::read_json::<Value>(&path);
            if !found.as_ref().is_ok_and(|found| found["steps"].is_u64() && found["metric"].is_string()) {
                tracing::warn!("`{}` is damaged: the run goes on from its newest checkpoint", path.display());
                fs::remove_file(&path).map_err(|error| files::cannot_write(&path, &error))?;
            }
        }
        Ok(())
    }

    /// Scores the generation tasks of a run that are not scored.
    fn score(&self, claims: &Claims, run: usize) -> Result<Ending> {
        let SweepRun { recipe, name, .. } = &self.sweep.runs[run];
        let (out, tasks) = (self.folder(run), recipe.eval.tasks.clone());
        let is_finished = || {
            let results: Value = files::read_json(&out.join(RESULTS))?;
            Ok::<_, anyhow::Error>(results["ended"] != "halving")
        };
        if tasks.is_empty() || !out.join(RESULTS).exists() || !is_finished()? || has_scores(&out, &tasks)? {
            return Ok(Ending::Finished);
        }
        let Some(_claim) = claims.take(name)? else { return Ok(Ending::Finished) };
        let source = SubjectSource { run: Some(out.clone()), ..SubjectSource::default() };
        let subject = Subject::open(self.place, &source, &[])?;
        score(self.place, &subject, &ScoreRequest { task: tasks, ..ScoreRequest::default() })
    }

    /// Returns the number of runs that have no results, because they diverged or could not be trained.
    fn failed(&self) -> usize {
        let has = |run: usize, name: &str| self.folder(run).join(name).exists();
        let failed = |run: &usize| self.broken.contains(run) || has(*run, FAILED);
        (0..self.sweep.runs.len()).filter(|run| failed(run) && !has(*run, RESULTS)).count()
    }

    /// Trains these runs up to a rung, or waits for the processes that do.
    fn train_to(&mut self, claims: &Claims, rung: u64, contenders: &[usize]) -> Result<Ending> {
        let mut told = false;
        loop {
            let open: Vec<usize> =
                contenders.iter().copied().filter(|run| !self.is_over(*run, rung)).collect();
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
            for &run in &groups[group] {
                if self.is_over(run, rung) {
                    continue;
                }
                match self.claim(claims, run) {
                    // Another process may have ended it in between.
                    Ok(Some((claim, lock))) if !self.is_done(run, rung) => claimed.push((run, claim, lock)),
                    Ok(_) => {}
                    Err(error) => self.give_up(&[run], error),
                }
            }
            if claimed.is_empty() {
                continue;
            }
            // Places are worth something where all runs are computed in one pass, and others wait for them.
            let others = open.len() > groups[group].len();
            let fewest = if others && self.place.devices.is_cuda() { claimed.len().div_ceil(2) } else { 0 };
            round = match self.train_group(rung, &claimed, fewest) {
                Err(error) if interrupt::requested() => return Err(error),
                Err(error) => {
                    // Those that another process has taken over are left to it.
                    let (held, lost): (Vec<_>, Vec<_>) =
                        claimed.iter().partition(|(_, claim, _)| claim.check().is_ok());
                    let held: Vec<usize> = held.into_iter().map(|(run, ..)| *run).collect();
                    match lost.is_empty() {
                        true => self.give_up(&held, error),
                        false => tracing::warn!("{error:#}"),
                    }
                    Round::Yielded
                }
                round => round?,
            };
            if round != Round::Trained {
                break;
            }
        }
        Ok(round)
    }

    /// Claims a run, and locks its folder: first the lock, which a process of this host that is only suspended still holds. `None` if
    /// another process has it, or somebody resumed it by itself.
    fn claim(&self, claims: &Claims, run: usize) -> Result<Option<(Claim, (File, Held))>> {
        let Some(lock) = try_lock(&self.folder(run))? else { return Ok(None) };
        Ok(claims.take(&self.sweep.runs[run].name)?.map(|claim| (claim, lock)))
    }

    /// Returns true if nothing is left to do of a run, or nothing can be done.
    fn is_over(&self, run: usize, rung: u64) -> bool {
        self.broken.contains(&run) || self.is_done(run, rung)
    }

    /// Notes runs that could not be trained: several are tried one by one, and one alone is left out.
    fn give_up(&mut self, runs: &[usize], error: anyhow::Error) {
        let error = plain(error);
        if let [run] = runs {
            let hint = hint_of(&error).map(|hint| format!(" ({hint})")).unwrap_or_default();
            tracing::error!("run `{}`: {error:#}{hint}", self.sweep.runs[*run].name);
            self.broken.insert(*run);
        } else {
            let count = runs.len();
            tracing::warn!("{count} runs could not be trained together and are trained alone: {error:#}");
            self.alone.extend(runs);
        }
    }

    /// Trains claimed runs of one group up to a rung.
    fn train_group(&mut self, rung: u64, claimed: &[Claimed], fewest: usize) -> Result<Round> {
        let start = Instant::now();
        let runs: Vec<&SweepRun> = claimed.iter().map(|(run, ..)| &self.sweep.runs[*run]).collect();
        let inputs = self.inputs(&runs[0].recipe)?;
        let others: Vec<Recipe> = runs[1..].iter().map(|run| run.recipe.clone()).collect();
        let mut training = Training::new(self.place, inputs, &others)?;
        let pauses = halving::pauses(self.sweep.settings.halving.as_ref(), rung, &training)?;
        let course = |(run, pause): (&SweepRun, u64)| Course {
            name: run.name.clone(),
            out: self.out.join(&run.name),
            pause,
        };
        let courses: Vec<Course> = runs.iter().copied().zip(pauses).map(course).collect();
        let check = |run: usize| claimed[run].1.check();
        let asked = GroupPlan {
            courses: &courses,
            fewest,
            paused: &halving::file(rung),
            resume: true,
            start,
            check: &check,
            world: &self.place.world,
            rescale: false,
        };
        say(&match runs.as_slice() {
            [run] => format!("training {}", run.name),
            [first, ..] => format!("training {} runs together, the first {}", runs.len(), first.name),
            [] => String::new(),
        });
        let mut round = Round::Trained;
        let ends = group::train(&mut training, &asked)?;
        for (((state, end), Course { out, .. }), (_, claim, _)) in ends.into_iter().zip(&courses).zip(claimed)
        {
            match end {
                RunEnd::Interrupted => round = Round::Interrupted,
                RunEnd::Failed(error) => {
                    let (message, hint) = (format!("{error:#}"), hint_of(&error));
                    tracing::warn!("{}: {message}", out.display());
                    claim.check()?;
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
