//! CUDA graphs: what a pass launches, recorded once and repeated by the GPU alone.
//!
//! A pass of a large decoder launches a thousand kernels, which takes a CPU longer than a GPU needs to run them.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Device;

use super::{checked, unforeseen};
use crate::fault::Result;

unsafe extern "C" {
    fn lx_graph_new(out: *mut *mut c_void, index: c_int) -> c_int;
    fn lx_graph_begin(graph: *mut c_void, sharing: *mut c_void) -> c_int;
    fn lx_graph_end(graph: *mut c_void) -> c_int;
    fn lx_graph_leave(graph: *mut c_void);
    fn lx_graph_replay(graph: *mut c_void) -> c_int;
    fn lx_graph_free(graph: *mut c_void);
}

/// True once a recording could not be ended, after which libtorch must not begin another.
static BROKEN: AtomicBool = AtomicBool::new(false);

/// A recorded pass.
#[derive(Debug)]
pub struct Graph(*mut c_void);

impl Graph {
    /// Runs `body` once, then records what it launches on a GPU. Tensors that it makes then are written by each replay. Recordings that
    /// never run at the same time may share their memory: with `sharing`, its own.
    ///
    /// # Errors
    /// When something fails or cannot be recorded, such as a copy to or from the host.
    pub fn record<T>(
        device: Device,
        sharing: Option<&Self>,
        body: impl Fn() -> Result<T>,
    ) -> Result<(Self, T)> {
        let Device::Cuda(index) = device else { return Err(unforeseen("only a GPU records").into()) };
        if BROKEN.load(Ordering::Relaxed) {
            return Err(unforeseen("a recording failed before").into());
        }
        let mut graph = std::ptr::null_mut();
        // SAFETY: on success `graph` is a new one that we own.
        checked(unsafe { lx_graph_new(&raw mut graph, c_int::try_from(index).unwrap_or(0)) })?;
        let graph = Self(graph);
        // What fails panics in tch; the recording must end nevertheless, or nothing can run any more.
        let guarded = || match catch_unwind(AssertUnwindSafe(&body)) {
            Ok(made) => made,
            Err(_) => Err(unforeseen("a step cannot be recorded").into()),
        };
        let recorded = || -> Result<T> {
            // Libraries set themselves up for the stream, which a recording must not hold.
            guarded()?;
            // SAFETY: a live graph, on the stream that was made current with it.
            checked(unsafe {
                lx_graph_begin(graph.0, sharing.map_or(std::ptr::null_mut(), |graph| graph.0))
            })?;
            let made = guarded();
            // SAFETY: it was begun just now.
            let ended = checked(unsafe { lx_graph_end(graph.0) });
            if ended.is_err() {
                BROKEN.store(true, Ordering::Relaxed);
            }
            ended.and(made)
        };
        let made = recorded();
        // SAFETY: a live graph, made on this thread.
        unsafe { lx_graph_leave(graph.0) };
        if BROKEN.load(Ordering::Relaxed) {
            // libtorch still refers to it.
            std::mem::forget(graph);
            return Err(made.err().unwrap_or_else(|| unforeseen("a recording failed").into()));
        }
        Ok((graph, made?))
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
