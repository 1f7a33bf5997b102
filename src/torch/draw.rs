//! Random tensors as functions of a seed and a name.

use std::ffi::c_int;

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use super::{made, unless_failed};

unsafe extern "C" {
    fn lx_generator_state(out: *mut *mut C_tensor, index: c_int) -> c_int;
    fn lx_restore_generator(state: *const C_tensor, index: c_int) -> c_int;
}

/// Seeds libtorch's generators, on every device.
pub fn seed_torch(seed: u64) {
    tch::manual_seed((seed >> 1).cast_signed());
}

fn index(device: Device) -> c_int {
    let Device::Cuda(index) = device else { return 0 };
    c_int::try_from(index).unwrap_or(0)
}

/// Returns the state of a GPU's generator; not while a graph is recorded.
pub fn generator_state(device: Device) -> Tensor {
    // SAFETY: `out` receives a new tensor.
    let [state] = made(|out| unsafe { lx_generator_state(out, index(device)) });
    state
}

/// Lets a GPU's generator go on from a state; not while a graph is recorded.
pub fn restore_generator(device: Device, state: &Tensor) {
    // SAFETY: a live tensor for the length of the call.
    unless_failed(unsafe { lx_restore_generator(state.as_ptr(), index(device)) });
}

/// Mixes numbers into one well-spread seed (the finaliser of SplitMix64, applied along the list).
pub fn mix(parts: &[u64]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |state: u64, &part| {
        let mut z = (state ^ part).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// Mixes a seed with a name, for draws that belong to a named tensor.
pub fn mix_name(seed: u64, name: &str) -> u64 {
    let words: Vec<u64> = name.bytes().map(u64::from).collect();
    mix(&[seed, mix(&words)])
}

/// Draws U(-bound, bound) from (seed, name), on the CPU so that every device starts with the same numbers.
pub fn uniform(seed: u64, name: &str, shape: &[i64], bound: f64) -> Tensor {
    seed_torch(mix_name(seed, name));
    Tensor::empty(shape, (Kind::Float, Device::Cpu)).uniform_(-bound, bound)
}
