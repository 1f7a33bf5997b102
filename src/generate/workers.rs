//! Several threads on a CPU, each continuing separate prompts with one libtorch thread.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use tch::no_grad;

use super::engine::{Engine, OnDone};
use super::memory::unless_exhausted;
use super::{Completion, Prompt};
use crate::fault::{Result, fault};

/// The engine, shared between threads.
struct Shared<'a>(&'a Engine<'a>);

// SAFETY: the threads only read the engine's tensors, which libtorch allows; its counts of references are atomic, and
// no pass of one thread touches a tensor that another writes: caches belong to their thread.
unsafe impl Sync for Shared<'_> {}

/// Message from a thread.
enum News {
    Done(usize, Completion),
    Failed(anyhow::Error),
    /// A libtorch panic, with its message, which would be lost with the thread.
    Panicked(Box<dyn Any + Send>),
}

/// Continues the prompts in `workers` threads of `slots` slots each, dealing them out in turn so that lengths
/// are similar. Returns false when interrupted; otherwise prompts are left over only if memory ran out.
///
/// # Errors
/// As [`Engine::run`].
pub fn side_by_side(
    engine: &Engine<'_>,
    order: &[&Prompt],
    (workers, slots, capacity): (usize, usize, usize),
    on_done: &mut OnDone<'_>,
) -> Result<bool> {
    let threads = tch::get_num_threads();
    let (shared, stop, whole) = (Shared(engine), AtomicBool::new(false), AtomicBool::new(true));
    let (tell, news) = mpsc::channel();
    let outcome = thread::scope(|scope| {
        for worker in 0..workers {
            let (tell, shared, stop, whole) = (tell.clone(), &shared, &stop, &whole);
            let mut queue: VecDeque<&Prompt> = order.iter().skip(worker).step_by(workers).copied().collect();
            scope.spawn(move || {
                // This setting is per thread.
                tch::set_num_threads(1);
                let mut done = |index, completion| {
                    let told = tell.send(News::Done(index, completion)).is_ok();
                    if told && !stop.load(Ordering::Relaxed) { Ok(()) } else { Err(fault("stopped").into()) }
                };
                let serve = || {
                    unless_exhausted(|| no_grad(|| shared.0.serve(&mut queue, (slots, capacity), &mut done)))
                };
                match catch_unwind(AssertUnwindSafe(serve)) {
                    Ok(Ok(Some(false))) => whole.store(false, Ordering::Relaxed),
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => drop(tell.send(News::Failed(error))),
                    Err(payload) => drop(tell.send(News::Panicked(payload))),
                }
            });
        }
        drop(tell);
        let mut outcome = Ok(());
        for item in news {
            // After a failure, only wait for the rest.
            if outcome.is_ok() {
                outcome = match item {
                    News::Done(index, completion) => on_done(index, completion),
                    News::Failed(error) => Err(error),
                    News::Panicked(payload) => {
                        stop.store(true, Ordering::Relaxed);
                        resume_unwind(payload)
                    }
                };
                stop.store(outcome.is_err(), Ordering::Relaxed);
            }
        }
        outcome
    });
    tch::set_num_threads(threads);
    outcome.map(|()| whole.load(Ordering::Relaxed))
}
