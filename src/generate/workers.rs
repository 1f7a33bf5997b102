//! Several threads on a CPU, each continuing prompts of its own with one libtorch thread.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use super::{Completion, OnNews};
use crate::fault::{Result, fault};
use crate::models::CausalLm;
use crate::torch::unless_exhausted;

/// The model, shared between threads.
struct Shared<'a>(&'a CausalLm);

// SAFETY: the threads only read the model's tensors, which libtorch allows; its counts of references are atomic, and
// no pass of one thread touches a tensor that another writes: caches belong to their thread.
unsafe impl Sync for Shared<'_> {}

/// Message from a thread.
enum News {
    /// A completion, or that there is none to a prompt.
    Done(usize, Option<Completion>),
    Failed(anyhow::Error),
    /// A libtorch panic, with its message, which would be lost with the thread.
    Panicked(Box<dyn Any + Send>),
}

/// Calls `serve` with each share on a thread of its own; its flag is set once the others are to stop. Returns false when one
/// was interrupted, as `serve` says; otherwise something of a share is left over only if memory ran out.
///
/// # Errors
/// As `serve` and `on_news`.
pub fn side_by_side<T: Send>(
    model: &CausalLm,
    shares: Vec<T>,
    serve: impl Fn(&CausalLm, T, &mut OnNews<'_>, &AtomicBool) -> Result<bool> + Sync,
    on_news: &mut OnNews<'_>,
) -> Result<bool> {
    let threads = tch::get_num_threads();
    let (shared, stop, whole) = (Shared(model), AtomicBool::new(false), AtomicBool::new(true));
    let (tell, news) = mpsc::channel();
    let outcome = thread::scope(|scope| {
        for share in shares {
            let (tell, shared, stop, whole, serve) = (tell.clone(), &shared, &stop, &whole, &serve);
            scope.spawn(move || {
                // This setting is per thread.
                tch::set_num_threads(1);
                let mut done = |index, found| {
                    let told = tell.send(News::Done(index, found)).is_ok();
                    if told && !stop.load(Ordering::Relaxed) { Ok(()) } else { Err(fault("stopped").into()) }
                };
                let serve = || unless_exhausted(|| serve(shared.0, share, &mut done, stop));
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
                    News::Done(index, found) => on_news(index, found),
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
