//! Memory of the devices: what is free, what was used at most, and what to do when it runs out.

use std::ffi::c_int;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::{Device, Kind, Tensor};

use super::checked;
use crate::fault::{Result, words};

unsafe extern "C" {
    fn lx_cuda_peak_bytes(index: c_int, reset: c_int, bytes: *mut i64) -> c_int;
    fn lx_cuda_memory(index: c_int, bytes: *mut i64) -> c_int;
    fn lx_empty_cache(index: c_int) -> c_int;
}

/// Returns the peak memory in MiB: device memory on CUDA, resident memory on a CPU.
pub fn peak_memory_mib(device: Device) -> f64 {
    let Device::Cuda(index) = device else { return crate::report::peak_rss_mib().unwrap_or(f64::NAN) };
    let mut bytes = 0;
    // SAFETY: `bytes` is a live local; the allocator exists because a tensor was placed on the device.
    let status = unsafe { lx_cuda_peak_bytes(c_int::try_from(index).unwrap_or(0), 0, &raw mut bytes) };
    if checked(status).is_err() { f64::NAN } else { bytes as f64 / f64::from(1 << 20) }
}

/// Returns the free memory in bytes: of the device on CUDA, of the machine on a CPU; `None` if unknown.
pub fn free_bytes(device: Device) -> Option<usize> {
    let Device::Cuda(index) = device else {
        let text = std::fs::read_to_string("/proc/meminfo").ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        return line.trim().trim_end_matches(" kB").parse::<usize>().ok().map(|kib| kib * 1024);
    };
    gpu_memory(index).map(|[free, _]| free)
}

/// Returns the free memory and all memory of a GPU in bytes; `None` if unknown.
pub fn gpu_memory(index: usize) -> Option<[usize; 2]> {
    // The allocator of a device begins with its first tensor.
    let _first = Tensor::f_zeros([1], (Kind::Uint8, Device::Cuda(index))).ok()?;
    let mut bytes = [0; 2];
    // SAFETY: room for two numbers; the allocator exists because a tensor was placed on the device.
    checked(unsafe { lx_cuda_memory(c_int::try_from(index).ok()?, bytes.as_mut_ptr()) }).ok()?;
    let [free, all] = bytes.map(|bytes| usize::try_from(bytes).ok());
    Some([free?, all?])
}

/// Gives the memory that libtorch keeps for reuse back to the driver of a GPU, the only one in use, after waiting for it.
///
/// # Errors
/// When the GPU fails.
pub fn empty_cache(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else { return Ok(()) };
    // SAFETY: frees what no tensor occupies.
    checked(unsafe { lx_empty_cache(c_int::try_from(index).unwrap_or(0)) })
}

/// Returns true if a libtorch message reports that memory ran out.
pub fn ran_out(message: &str) -> bool {
    message.contains("out of memory") || message.contains("can't allocate memory")
}

/// Returns what `body` returns, or the panic that ended it; gradients are then as wanted or not as before, which [`tch::no_grad`] does not see to.
pub fn caught<T>(body: impl FnOnce() -> T) -> std::thread::Result<T> {
    // SAFETY: sets a flag of this thread, and returns what it was.
    let set = |wanted| unsafe { torch_sys::at_grad_set_enabled(wanted) };
    let before = set(0);
    set(before);
    catch_unwind(AssertUnwindSafe(body)).inspect_err(|_| {
        set(before);
    })
}

/// Returns true if what [`caught`] returned is a lack of memory.
pub fn lacks_memory<T>(ended: &std::thread::Result<Result<T>>) -> bool {
    match ended {
        Ok(Ok(_)) => false,
        Ok(Err(error)) => ran_out(&format!("{error:#}")),
        Err(panic) => ran_out(words(panic.as_ref())),
    }
}

/// Returns what `body` returns, or `None` if the device ran out of memory.
pub fn unless_exhausted<T>(body: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    // libtorch's plain operators panic: the whole pass is then discarded, so nothing half-done is seen again.
    let ended = caught(body);
    if lacks_memory(&ended) {
        return Ok(None);
    }
    ended.unwrap_or_else(|panic| resume_unwind(panic)).map(Some)
}
