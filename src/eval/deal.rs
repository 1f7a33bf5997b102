//! Prompts dealt out to processes as these have room for them; the first process collects the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::answer_file::AnswerFile;
use super::generation::{AnswerRecord, Answered, PromptSet};
use crate::data::prompts::Prompt;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, locked};
use crate::generate::{Engine, GenerationSettings, PromptShare};
use crate::models::CausalLm;
use crate::torch::world::World;

/// Time between two messages of a process.
const BETWEEN: Duration = Duration::from_secs(1);
/// Time between two looks of a process that waits for the others.
const LOOK: Duration = Duration::from_millis(50);
/// Most prompts that a process takes at once.
const LARGEST: usize = 8;

/// Continues and judges every prompt, except those already answered in the file `path`, which the first process of `world` keeps.
/// Returns the records in the order of their rows, on every process, or `None` if the run was interrupted.
///
/// # Errors
/// When the file belongs to other settings or cannot be written, or generation fails.
pub fn answer(
    task: &PromptSet<'_>,
    world: &World,
    (model, tokenizer): (&CausalLm, &Tokenizer),
    settings: &GenerationSettings,
    path: &Path,
) -> Result<Option<Vec<AnswerRecord>>> {
    let by_index: BTreeMap<usize, &Prompt> =
        task.prompts.iter().map(|prompt| (prompt.index, prompt)).collect();
    let mut file = None;
    let (open, work): (BTreeSet<usize>, u64) = world.on_first(|| {
        let opened = AnswerFile::open(task, &by_index, path)?;
        let open = opened.missing();
        file = Some(opened);
        Ok((open, if world.is_alone() { 0 } else { world.claim("answers")? }))
    })?;
    let open = task.prompts.iter().filter(|prompt| open.contains(&prompt.index));
    let open: Vec<(usize, &[u32])> = open.map(|prompt| (prompt.index, &prompt.ids[..])).collect();
    let engine = Engine::new(model, tokenizer, settings);
    match file {
        Some(mut file) if world.is_alone() => {
            engine.run(&open, &mut |index, completion| file.append(Answered::new(index, completion)))?;
            file.finish()
        }
        file => Deal::new(world, work, open.len(), settings.interrupted, file).run(&engine, &open),
    }
}

/// The part of a process in answering prompts.
struct Deal<'a> {
    world: &'a World,
    /// Begins the names of this work's counters: of pieces taken, of wishes to stop, and of the end.
    name: String,
    pieces: Vec<Range<usize>>,
    interrupted: fn() -> bool,
    kept: Mutex<Kept<'a>>,
    news: Mutex<News>,
}

/// Where a process puts answers.
enum Kept<'a> {
    /// The first process, all.
    File(AnswerFile<'a>),
    /// Another, those that it has not sent yet.
    Unsent(Vec<Answered>),
}

/// What a process knows of the others.
struct News {
    /// When it last looked.
    at: Instant,
    /// True once one was interrupted.
    stopped: bool,
    /// Number of those from which the first still expects answers.
    working: usize,
}

/// Answers on their way to the first process.
#[derive(Serialize, Deserialize)]
struct Message {
    answers: Vec<Answered>,
    is_last: bool,
}

impl<'a> Deal<'a> {
    /// Shares `count` prompts out; `work` is a number of its own. The first process has the `file`.
    fn new(
        world: &'a World,
        work: u64,
        count: usize,
        interrupted: fn() -> bool,
        file: Option<AnswerFile<'a>>,
    ) -> Self {
        let news = News { at: Instant::now(), stopped: false, working: world.size() - 1 };
        Self {
            world,
            name: format!("answers/{work}"),
            pieces: pieces(count, world.size()),
            interrupted,
            kept: Mutex::new(file.map_or(Kept::Unsent(Vec::new()), Kept::File)),
            news: Mutex::new(news),
        }
    }

    /// Answers prompts until all are answered or one process is interrupted; returns the records, or `None` if some are missing.
    ///
    /// # Errors
    /// When generation fails, the file cannot be written, or another process fails.
    fn run(self, engine: &Engine<'_>, prompts: &[(usize, &[u32])]) -> Result<Option<Vec<AnswerRecord>>> {
        let share =
            PromptShare { processes: self.world.size(), claim: &mut || self.claim(), look: &|| self.look() };
        engine.run_shared(prompts, share, &mut |index, completion| {
            let answered = Answered::new(index, completion);
            match &mut *locked(&self.kept) {
                Kept::File(file) => file.append(answered),
                Kept::Unsent(answers) => {
                    answers.push(answered);
                    Ok(())
                }
            }
        })?;
        self.exchange(&mut locked(&self.news), true)?;
        let (world, end) = (self.world, format!("{}/end", self.name));
        world.on_first_slowly(&end, || {
            while locked(&self.news).working > 0 {
                sleep(LOOK);
                self.exchange(&mut locked(&self.news), false)?;
            }
            match self.kept.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Kept::File(file) => file.finish(),
                Kept::Unsent(_) => Ok(None),
            }
        })
    }

    /// Takes the next piece of the queue; `None` if there is none.
    fn claim(&self) -> Result<Option<Range<usize>>> {
        let number = usize::try_from(self.world.claim(&self.name)?)?;
        Ok(self.pieces.get(number).cloned())
    }

    /// Looks after the others now and then; returns false once this process should stop.
    fn look(&self) -> Result<bool> {
        self.world.check()?;
        // Another thread may be looking.
        let Ok(mut news) = self.news.try_lock() else { return Ok(true) };
        if news.at.elapsed() > BETWEEN {
            self.exchange(&mut news, false)?;
            news.at = Instant::now();
        }
        Ok(!news.stopped)
    }

    /// Sends answers, or receives those that have come.
    fn exchange(&self, news: &mut News, is_last: bool) -> Result<()> {
        let stops = format!("{}/stops", self.name);
        if (self.interrupted)() && !news.stopped {
            self.world.claim(&stops)?;
        }
        news.stopped |= self.world.claimed(&stops)? > 0;
        match &mut *locked(&self.kept) {
            Kept::File(file) => {
                for (_, message) in self.world.received()? {
                    let Message { answers, is_last } = serde_json::from_slice(&message)?;
                    answers.into_iter().try_for_each(|answered| file.append(answered))?;
                    news.working -= usize::from(is_last);
                }
            }
            Kept::Unsent(answers) if is_last || !answers.is_empty() => {
                let message = Message { answers: std::mem::take(answers), is_last };
                self.world.send(serde_json::to_vec(&message)?)?;
            }
            Kept::Unsent(_) => {}
        }
        Ok(())
    }
}

/// Returns the pieces in which `count` prompts are taken: ever smaller ones, so that no process has many when the others have none.
fn pieces(count: usize, processes: usize) -> Vec<Range<usize>> {
    let mut pieces = Vec::new();
    let mut start = 0;
    while start < count {
        let size = ((count - start) / (4 * processes)).clamp(1, LARGEST);
        pieces.push(start..start + size);
        start += size;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_each_prompt_once_and_become_smaller() {
        for (count, processes) in [(0, 2), (1, 2), (3, 5), (100, 3), (1319, 2), (5000, 64)] {
            let pieces = pieces(count, processes);
            assert!(pieces.iter().cloned().flatten().eq(0..count), "{count} over {processes}");
            assert!(pieces.is_sorted_by_key(|piece| std::cmp::Reverse(piece.len())));
            assert!(pieces.last().is_none_or(|last| last.len() == 1));
        }
        assert_eq!(pieces(1319, 2).len(), 184);
    }
}
