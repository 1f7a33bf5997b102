//! Additions to tch: choosing a device, loading CUDA if there is a GPU, and the functions of `glue.cpp`.

pub mod coming;
mod device;
pub mod draw;
pub mod fused;
pub mod graph;
pub mod kernels;
mod memory;
pub mod own_cuda;
pub mod stream;
pub mod tensor_file;
pub mod tensors;
pub mod world;

use std::ffi::{CStr, c_char, c_int};
use std::io::Write as _;
use std::sync::OnceLock;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

pub use device::{Copies, Devices, driver};
pub use memory::{
    caught, empty_cache, free_bytes, gpu_memory, lacks_memory, peak_memory_mib, ran_out, unless_exhausted,
};

use crate::fault::{Fault, Result, fault};

unsafe extern "C" {
    fn lx_last_error() -> *const c_char;
    fn lx_started_nowhere() -> c_int;
    fn lx_leave_signals();
    fn lx_keep_memory();
    fn lx_zeros_on_demand(out: *mut *mut C_tensor, size: *const i64, dims: i64) -> c_int;
    fn lx_set_grad(tensor: *const C_tensor, grad: *const C_tensor) -> c_int;
    fn lx_prefer_cusolver() -> c_int;
    fn lx_grow_segments() -> c_int;
    fn lx_cuda_devices(count: *mut c_int, warning: *mut *const c_char) -> c_int;
    fn lx_use_device(index: c_int) -> c_int;
    fn lx_allow_tf32(allow: c_int) -> c_int;
    #[rustfmt::skip]
    fn lx_packed_attention(
        out: *mut *mut C_tensor,
        qkv: *const *const C_tensor,
        bounds: *const *const C_tensor,
        longest: *const i64,
        dropout: f64,
        causal: c_int,
        window: i64,
        scale: f64,
        flash: c_int,
    ) -> c_int;
}

/// Returns true if the current folder was removed before the start; it is then `/`, or oneMKL would exit.
pub fn started_nowhere() -> bool {
    // SAFETY: reads a flag that was set before `main`.
    unsafe { lx_started_nowhere() != 0 }
}

/// Disables the handler that ends the process with 130 on SIGINT and SIGTERM while libtorch is loaded.
pub fn leave_signals() {
    // SAFETY: sets a flag.
    unsafe { lx_leave_signals() }
}

/// The version of libtorch that this binary was built for, and the CUDA version it is paired with.
pub const LIBTORCH_VERSION: &str = "2.11.0 (CUDA 13.0 where a GPU is present)";

/// Returns the number of GPUs that libtorch's CUDA library sees, and what it says of that.
fn cuda_devices() -> Result<(usize, String)> {
    let (mut count, mut warning) = (0, std::ptr::null());
    // SAFETY: both are live locals; on success `warning` is a C string that lives until the next call on this thread.
    let warning = unsafe {
        checked(lx_cuda_devices(&raw mut count, &raw mut warning))?;
        CStr::from_ptr(warning).to_string_lossy()
    };
    Ok((usize::try_from(count).unwrap_or(0), warning.trim_start_matches("CUDA initialization: ").to_owned()))
}

fn checked(status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the pointer is to a thread-local C string that lives until the next failing call.
    let message = unsafe { CStr::from_ptr(lx_last_error()) }.to_string_lossy();
    Err(failure(&message).into())
}

/// Keeps the memory of freed tensors for reuse instead of returning it to the system.
pub fn keep_memory() {
    // SAFETY: sets two numbers of the C library's allocator.
    unsafe { lx_keep_memory() }
}

/// Returns fp32 zeros on the CPU that take memory only where they are read or written.
///
/// # Errors
/// When there are not as many addresses.
pub fn zeros_on_demand(size: &[i64]) -> Result<Tensor> {
    let mut out = std::ptr::null_mut();
    // SAFETY: as many sizes as are told; on success `out` is a new tensor that we own.
    unsafe {
        checked(lx_zeros_on_demand(&raw mut out, size.as_ptr(), size.len() as i64))?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Returns the tensors that `call` writes.
fn made<const N: usize>(call: impl FnOnce(*mut *mut C_tensor) -> c_int) -> [Tensor; N] {
    let mut out = [std::ptr::null_mut(); N];
    unless_failed(call(out.as_mut_ptr()));
    // SAFETY: on success each is a new tensor that we own.
    out.map(|tensor| unsafe { Tensor::from_ptr(tensor) })
}

/// Panics on failure: only memory can run out, since shapes were checked before.
#[expect(clippy::panic, reason = "as tch's own operators")]
fn unless_failed(status: c_int) {
    if let Err(error) = checked(status) {
        panic!("{error}");
    }
}

/// Makes `grad` the buffer that backward passes add `tensor`'s gradient to. Both have the same shape; the buffer may be in fp64.
pub fn set_grad(tensor: &Tensor, grad: &Tensor) -> Result<()> {
    // SAFETY: both pointers are live tensors for the length of the call.
    checked(unsafe { lx_set_grad(tensor.as_ptr(), grad.as_ptr()) })
}

/// Allows or forbids TF32 in fp32 matrix products on CUDA; without effect on a CPU.
pub fn allow_tf32(allow: bool) -> Result<()> {
    // SAFETY: sets a flag of libtorch's global context.
    checked(unsafe { lx_allow_tf32(c_int::from(allow)) })
}

/// Settings of the packed attention kernel.
#[derive(Debug, Clone, Copy)]
pub struct Kernel {
    /// Tokens of the longest sequence.
    pub longest: i64,
    /// Dropout on the probabilities.
    pub dropout: f64,
    /// True if a token sees only itself and earlier tokens.
    pub causal: bool,
    /// Number of positions back that a token sees, itself included.
    pub window: Option<i64>,
    /// Factor applied to the scores.
    pub scale: f64,
}

/// Boundaries of packed sequences, int32 tensors on the device of what they bound.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// Start of each sequence of queries, and the end of the last: `[s + 1]`.
    pub queries: &'a Tensor,
    /// The same of keys.
    pub keys: &'a Tensor,
    /// Number of keys of each sequence that are seen, from its start on, `[s]`; rules out gradients.
    pub used: Option<&'a Tensor>,
    /// Most queries, and most keys, of a sequence.
    pub longest: [i64; 2],
    /// True if [`has_flash`].
    pub flash: bool,
}

/// Computes attention within packed sequences on CUDA in one kernel.
///
/// # Shapes
/// `q` and the result `[m, h, d]`, `k` and `v` `[n, kv, d]`, with kv = h without FlashAttention; d is a multiple of 8.
///
/// # Errors
/// When libtorch fails; without FlashAttention also with a window or dropout.
pub fn packed_attention(qkv: [&Tensor; 3], bounds: Bounds<'_>, kernel: Kernel) -> Result<Tensor> {
    let mut out: *mut C_tensor = std::ptr::null_mut();
    let qkv = qkv.map(Tensor::as_ptr);
    let used = bounds.used.map_or(std::ptr::null(), Tensor::as_ptr);
    let starts = [bounds.queries.as_ptr(), bounds.keys.as_ptr(), used];
    // SAFETY: all pointers are live for the call, null where it is allowed; on success `out` is a new tensor that we own.
    unsafe {
        let status = lx_packed_attention(
            &raw mut out,
            qkv.as_ptr(),
            starts.as_ptr(),
            bounds.longest.as_ptr(),
            kernel.dropout,
            c_int::from(kernel.causal),
            kernel.window.unwrap_or(0),
            kernel.scale,
            c_int::from(bounds.flash),
        );
        checked(status)?;
        Ok(Tensor::from_ptr(out))
    }
}

/// Most GPUs of a process: libtorch's own limit.
const MOST_DEVICES: usize = 120;

/// Returns true if FlashAttention serves: for 16-bit kinds, on a GPU from Ampere on.
pub fn has_flash(kind: Kind, device: Device) -> bool {
    static FOUND: [OnceLock<bool>; MOST_DEVICES] = [const { OnceLock::new() }; MOST_DEVICES];
    let Device::Cuda(index) = device else { return false };
    matches!(kind, Kind::BFloat16 | Kind::Half)
        && *FOUND[index % MOST_DEVICES].get_or_init(|| {
            let x = Tensor::zeros([1, 1, 8], (Kind::Half, device));
            let one = Tensor::from_slice(&[0_i32, 1]).to_device(device);
            let bounds = Bounds { queries: &one, keys: &one, used: None, longest: [1, 1], flash: true };
            let kernel = Kernel { longest: 1, dropout: 0.0, causal: false, window: None, scale: 1.0 };
            packed_attention([&x, &x, &x], bounds, kernel).is_ok()
        })
}

/// Ends the process with this exit code, skipping libtorch's destructors: unregistering every operator
/// takes longer than many commands.
pub fn leave(code: u8) -> ! {
    // If standard output is closed, nobody is left to read it.
    let _ = std::io::stdout().flush();
    signal_hook::low_level::exit(code.into())
}

/// Makes a libtorch failure readable: drops its trace, and names the memory that could not be allocated.
pub fn failure(message: &str) -> Fault {
    let message = message.strip_prefix("called `Result::unwrap()` on an `Err` value: ").unwrap_or(message);
    let message = message.strip_prefix("Torch(\"").unwrap_or(message);
    let line = message.split("\\n").next().and_then(|text| text.lines().next()).unwrap_or("unknown error");
    if !ran_out(line) {
        return unforeseen(&format!("libtorch: {line}"));
    }
    let asked = line.rsplit("allocate ").next().and_then(|asked| asked.split(' ').next()).unwrap_or_default();
    let asked = match asked.parse::<u64>() {
        Ok(bytes) => format!(": an allocation of {} MiB failed", bytes >> 20),
        Err(_) => String::new(),
    };
    fault(format!("out of memory{asked}")).hint(
        "lower `train.micro_batch_size`, `data.max_length` or `--batch-size`, or set `train.gradient_checkpointing=true`",
    )
}

/// Creates a fault that no input should cause.
pub fn unforeseen(what: &str) -> Fault {
    fault(what).hint("this is a bug in loraxs: please report it with the command that triggers it")
}

/// Returns the error unchanged, or in the words of [`failure`] if it is libtorch's.
pub fn plain(error: anyhow::Error) -> anyhow::Error {
    let Some(TchError::Torch(message)) = error.downcast_ref::<TchError>() else { return error };
    let failure = failure(message);
    let message = message.clone();
    let before: Vec<String> =
        error.chain().map(ToString::to_string).take_while(|text| !text.contains(&message)).collect();
    before.into_iter().rev().fold(failure.into(), anyhow::Error::context)
}

/// Returns the rows of all parts, one after another.
pub fn joined(mut parts: Vec<Tensor>) -> Tensor {
    if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0) }
}

/// Converts `tensor` to `kind`; returns the same tensor if it already has it.
pub fn cast(tensor: &Tensor, kind: Kind) -> Tensor {
    if tensor.kind() == kind { tensor.shallow_clone() } else { tensor.to_kind(kind) }
}

/// Returns the two axes of a tensor.
pub fn dims2(tensor: &Tensor) -> [i64; 2] {
    dims(tensor)
}

/// Returns the three axes of a tensor.
pub fn dims3(tensor: &Tensor) -> [i64; 3] {
    dims(tensor)
}

/// Returns the four axes of a tensor.
pub fn dims4(tensor: &Tensor) -> [i64; 4] {
    dims(tensor)
}

/// The one sanctioned panic of the layers: tch's operators return no `Result`, and shapes were checked on loading.
#[expect(clippy::panic, reason = "a wrong number of axes here is a bug, not bad input")]
fn dims<const N: usize>(tensor: &Tensor) -> [i64; N] {
    tensor.size().try_into().unwrap_or_else(|found| panic!("expected a tensor of {N} axes, found {found:?}"))
}
