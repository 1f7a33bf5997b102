//! Prompts that come while others are continued, dealt out to threads.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use crate::fault::{Result, locked};

/// Prompts that a thread may hold beyond the one with the fewest: all have work where there is some.
const AHEAD: usize = 4;

/// The next of prompts that come one by one.
#[derive(Debug)]
pub enum NextPrompt {
    /// A prompt, by its index and tokens.
    Prompt(usize, Vec<u32>),
    /// Something that has no tokens to continue, by its index.
    Refused(usize),
    /// None yet.
    Later,
    /// None will come.
    End,
}

/// A source of prompts; where it is asked to, it waits for one, but not for long.
pub type PromptSource<'a> = dyn FnMut(bool) -> Result<NextPrompt> + Send + 'a;

/// What one of several processes takes of the same prompts.
pub struct PromptShare<'s> {
    /// Number of processes.
    pub processes: usize,
    /// Returns the next places of the queue, which has the longest prompts first, that are this process's; `None` once all are taken.
    pub claim: &'s mut (dyn FnMut() -> Result<Option<Range<usize>>> + Send + 's),
    /// Called between passes; false ends the run.
    pub look: &'s (dyn Fn() -> Result<bool> + Sync + 's),
}

/// A source of prompts, shared between threads.
pub struct Feed<'f, 'p> {
    source: Mutex<&'f mut PromptSource<'p>>,
    dealt: Mutex<Dealt>,
}

/// What is with the threads.
#[derive(Default)]
struct Dealt {
    /// The prompts that are being continued, by index.
    held: BTreeMap<usize, (usize, Vec<u32>)>,
    /// Number of those of each thread; of one that has ended, the largest.
    loads: Vec<usize>,
    /// Prompts to be dealt again.
    again: Vec<(usize, Vec<u32>)>,
}

impl<'f, 'p> Feed<'f, 'p> {
    pub fn new(source: &'f mut PromptSource<'p>, threads: usize) -> Self {
        let dealt = Dealt { loads: vec![0; threads], ..Dealt::default() };
        Self { source: Mutex::new(source), dealt: Mutex::new(dealt) }
    }

    /// Returns the next prompt for a thread; one that has nothing to do may `wait` for it.
    ///
    /// # Errors
    /// As the source.
    pub fn next(&self, thread: usize, wait: bool) -> Result<NextPrompt> {
        let mut dealt = locked(&self.dealt);
        let least = dealt.loads.iter().copied().min().unwrap_or(0);
        if dealt.loads[thread] > least + AHEAD {
            return Ok(NextPrompt::Later);
        }
        let mut found = dealt.again.pop().map(|(index, ids)| NextPrompt::Prompt(index, ids));
        drop(dealt);
        if found.is_none() {
            // Whoever holds the source waits for prompts: there are none.
            let source = if wait { Some(locked(&self.source)) } else { self.source.try_lock().ok() };
            let Some(mut source) = source else { return Ok(NextPrompt::Later) };
            found = Some(source(wait)?);
        }
        if let Some(NextPrompt::Prompt(index, ids)) = &found {
            let mut dealt = locked(&self.dealt);
            dealt.held.insert(*index, (thread, ids.clone()));
            dealt.loads[thread] += 1;
        }
        Ok(found.unwrap_or(NextPrompt::Later))
    }

    /// Notes that a prompt is continued.
    pub fn done(&self, index: usize) {
        let mut dealt = locked(&self.dealt);
        if let Some((thread, _)) = dealt.held.remove(&index) {
            dealt.loads[thread] = dealt.loads[thread].saturating_sub(1);
        }
    }

    /// Notes that a thread takes no more.
    pub fn leave(&self, thread: usize) {
        locked(&self.dealt).loads[thread] = usize::MAX;
    }

    /// Takes back what the threads, which have all ended, left; the first of them may go on.
    pub fn return_all(&self) {
        let mut dealt = locked(&self.dealt);
        let held = std::mem::take(&mut dealt.held);
        dealt.again = held.into_iter().rev().map(|(index, (_, ids))| (index, ids)).collect();
        dealt.loads = vec![0];
    }
}
