//! Sums, copies and collections over all processes by `c10d::ProcessGroupGloo`, through the memory of the hosts.

use std::ffi::{CString, c_char, c_int, c_void};
use std::time::Duration;

use tch::Tensor;
use torch_sys::C_tensor;

use super::store::Store;
use crate::fault::Result;
use crate::torch::checked;

unsafe extern "C" {
    #[rustfmt::skip]
    fn lx_group_open(
        out: *mut *mut c_void,
        store: *const c_void,
        rank: c_int,
        size: c_int,
        millis: i64,
        interfaces: *const c_char,
        host: *const c_char,
    ) -> c_int;
    fn lx_group_all_reduce(out: *mut *mut c_void, group: *mut c_void, tensor: *const C_tensor) -> c_int;
    #[rustfmt::skip]
    fn lx_group_broadcast(
        out: *mut *mut c_void,
        group: *mut c_void,
        tensor: *const C_tensor,
        from: c_int,
    ) -> c_int;
    #[rustfmt::skip]
    fn lx_group_gather(
        out: *mut *mut c_void,
        group: *mut c_void,
        all: *const C_tensor,
        own: *const C_tensor,
    ) -> c_int;
    fn lx_work_wait(work: *mut c_void, millis: i64, done: *mut c_int) -> c_int;
    fn lx_work_free(work: *mut c_void);
}

/// Connections to all other processes. Never closed: that would wait for what is under way.
#[derive(Debug)]
pub struct Gloo(*mut c_void);

// SAFETY: `c10d::ProcessGroupGloo` may be used by any thread; `World` starts one operation at a time.
unsafe impl Send for Gloo {}
// SAFETY: as above.
unsafe impl Sync for Gloo {}

impl Gloo {
    /// Connects to all other processes through the interface with the address `host`, or through those of `GLOO_SOCKET_IFNAME`.
    ///
    /// # Errors
    /// When one cannot be reached in time.
    pub fn open(store: &Store, rank: usize, size: usize, patience: Duration, host: &str) -> Result<Self> {
        let mut group = std::ptr::null_mut();
        let interfaces = CString::new(std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default())?;
        let host = CString::new(host)?;
        // SAFETY: the strings live for the call; the group keeps the store alive.
        checked(unsafe {
            lx_group_open(
                &raw mut group,
                store.pointer(),
                c_int::try_from(rank)?,
                c_int::try_from(size)?,
                i64::try_from(patience.as_millis())?,
                interfaces.as_ptr(),
                host.as_ptr(),
            )
        })?;
        Ok(Self(group))
    }

    /// Starts to sum `tensor` over all processes, in place.
    ///
    /// # Errors
    /// As all of these: when its memory is not one block on the CPU.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<Work> {
        // SAFETY: a live tensor, whose memory the work keeps.
        Work::started(|out| unsafe { lx_group_all_reduce(out, self.0, tensor.as_ptr()) })
    }

    /// Starts to copy `tensor` of process `from` into that of all others.
    pub fn broadcast(&self, tensor: &Tensor, from: usize) -> Result<Work> {
        let from = c_int::try_from(from)?;
        // SAFETY: as above.
        Work::started(|out| unsafe { lx_group_broadcast(out, self.0, tensor.as_ptr(), from) })
    }

    /// Starts to collect `own` of all processes as the rows of `all`.
    pub fn gather(&self, all: &Tensor, own: &Tensor) -> Result<Work> {
        // SAFETY: as above.
        Work::started(|out| unsafe { lx_group_gather(out, self.0, all.as_ptr(), own.as_ptr()) })
    }
}

/// An operation under way. Dropping it does not end it.
#[derive(Debug)]
pub struct Work(*mut c_void);

impl Work {
    fn started(start: impl FnOnce(*mut *mut c_void) -> c_int) -> Result<Self> {
        let mut work = std::ptr::null_mut();
        checked(start(&raw mut work))?;
        Ok(Self(work))
    }

    /// Waits for so long; returns true if it is done.
    ///
    /// # Errors
    /// When it failed: a connection broke.
    pub fn wait(&self, patience: Duration) -> Result<bool> {
        let mut done = 0;
        let millis = i64::try_from(patience.as_millis())?;
        // SAFETY: a live operation; `done` is a live local.
        checked(unsafe { lx_work_wait(self.0, millis, &raw mut done) })?;
        Ok(done != 0)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // SAFETY: made by us, and not used any more; libtorch keeps what is under way.
        unsafe { lx_work_free(self.0) }
    }
}
