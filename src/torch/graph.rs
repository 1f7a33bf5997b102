//! CUDA graphs: what a pass launches, recorded once and repeated by the GPU alone.
//!
//! A pass of a large decoder launches a thousand kernels, which takes a CPU longer than a GPU needs to run them.

use std::ffi::{c_int, c_void};
use std::panic::resume_unwind;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Device;

use super::{caught, checked, empty_cache, failure, plain, ran_out, unforeseen};
use crate::fault::{Result, words};

unsafe extern "C" {
    fn lx_graph_new(out: *mut *mut c_void, index: c_int) -> c_int;
    fn lx_graph_begin(graph: *mut c_void, sharing: *mut c_void) -> c_int;
    fn lx_graph_end(graph: *mut c_void) -> c_int;
    fn lx_graph_leave(graph: *mut c_void);
    fn lx_graph_replay(graph: *mut c_void) -> c_int;
    fn lx_graph_free(graph: *mut c_void);
}

/// Returns true if passes are to be recorded on this device.
pub fn records(device: Device) -> bool {
    device.is_cuda() && std::env::var_os("LORAXS_CUDA_GRAPHS").is_none_or(|value| value != "0")
}

/// True once a recording could not be ended, after which libtorch must not begin another.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// Says why a pass is not recorded; the first time for all, if it costs speed.
fn say_unrecorded(error: anyhow::Error) {
    static SAID: Once = Once::new();
    let text = format!("{:#}", plain(error));
    match BROKEN.load(Ordering::Relaxed) || ran_out(&text) {
        true => SAID.call_once(|| {
            tracing::warn!("short passes will be slower, since one could not be recorded: {text}")
        }),
        false => tracing::debug!("a pass is not recorded: {text}"),
    }
}

/// A recorded pass.
#[derive(Debug)]
pub struct Graph(*mut c_void);

impl Graph {
    /// Runs `body`, then records what it launches on a GPU the next time; returns what it made first, and the recording with the
    /// tensors that each replay writes, or none where something cannot be recorded, such as a copy to or from the host. Recordings
    /// that never run at the same time may share their memory: with `sharing`, its own.
    ///
    /// # Errors
    /// When `body` fails the first time.
    pub fn record<T>(
        device: Device,
        sharing: Option<&Self>,
        body: impl Fn() -> Result<T>,
    ) -> Result<(T, Option<(Self, T)>)> {
        let Device::Cuda(index) = device else { return Err(unforeseen("only a GPU records").into()) };
        if BROKEN.load(Ordering::Relaxed) {
            return Ok((body()?, None));
        }
        // What fails panics in tch; the stream must be left nevertheless, or nothing can run any more.
        let guarded = || caught(&body);
        let captured = |graph: &Self| {
            graph.capture(sharing, || {
                guarded().unwrap_or_else(|panic| Err(failure(words(panic.as_ref())).into()))
            })
        };
        // Libraries set themselves up for the stream, which a recording must not hold.
        let (graph, (first, made)) = Self::beside(index, |graph| {
            let first = guarded();
            let made = matches!(first, Ok(Ok(_))).then(|| captured(graph));
            (first, made)
        })?;
        let first = first.unwrap_or_else(|panic| resume_unwind(panic))?;
        let (graph, made) = match made {
            // libtorch gives nothing back while it records.
            Some(Err(error)) if ran_out(&format!("{error:#}")) => {
                drop(graph);
                empty_cache(device)?;
                Self::beside(index, captured)?
            }
            Some(made) => (graph, made),
            None => return Ok((first, None)),
        };
        match made {
            Ok(made) => return Ok((first, Some((graph, made)))),
            Err(error) => say_unrecorded(error),
        }
        if BROKEN.load(Ordering::Relaxed) {
            // libtorch still refers to it.
            std::mem::forget(graph);
        }
        Ok((first, None))
    }

    /// Creates a graph, and runs `body` with it on the stream of recordings.
    fn beside<T>(index: usize, body: impl FnOnce(&Self) -> T) -> Result<(Self, T)> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: on success `graph` is a new one that we own.
        checked(unsafe { lx_graph_new(&raw mut graph, c_int::try_from(index).unwrap_or(0)) })?;
        let graph = Self(graph);
        let made = body(&graph);
        // SAFETY: a live graph, made on this thread.
        unsafe { lx_graph_leave(graph.0) };
        Ok((graph, made))
    }

    /// Records what `body` launches on the current stream.
    fn capture<T>(&self, sharing: Option<&Self>, body: impl Fn() -> Result<T>) -> Result<T> {
        // SAFETY: a live graph, on the stream that was made current with it.
        checked(unsafe { lx_graph_begin(self.0, sharing.map_or(std::ptr::null_mut(), |graph| graph.0)) })?;
        let made = body();
        // SAFETY: it was begun just now.
        let ended = checked(unsafe { lx_graph_end(self.0) });
        // Without memory it is the last part that fails, after which libtorch is as before.
        if ended.as_ref().is_err_and(|error| !ran_out(&format!("{error:#}"))) {
            BROKEN.store(true, Ordering::Relaxed);
        }
        ended.and(made)
    }

    /// Runs the pass on the current stream.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn replay(&self) -> Result<()> {
        // SAFETY: a live graph whose recording has ended.
        checked(unsafe { lx_graph_replay(self.0) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: ours alone, and not used after this.
        unsafe { lx_graph_free(self.0) }
    }
}
