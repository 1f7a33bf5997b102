//! Choosing a device, and loading libtorch's CUDA library if there is a GPU.

use std::error::Error as _;
use std::path::Path;

use tch::{Cuda, Device};

use super::checked;
use crate::fault::{Result, fault};
use crate::spec::DeviceChoice;

/// Chooses the device and loads libtorch's CUDA library when a GPU may be used.
///
/// Must precede any other call that asks libtorch about CUDA, since libtorch keeps its first answer for good.
///
/// # Errors
/// When a GPU was asked for by name and cannot be used.
pub fn open_device(wanted: DeviceChoice) -> Result<Device> {
    if wanted == DeviceChoice::Cpu {
        return Ok(Device::Cpu);
    }
    let gpu_present = Path::new("/dev/nvidiactl").exists() || Path::new("/proc/driver/nvidia").exists();
    let loaded = if gpu_present || wanted != DeviceChoice::Auto {
        load_cuda()
    } else {
        Err("no GPU was found".into())
    };
    let count = loaded.as_ref().map_or(0, |()| usize::try_from(Cuda::device_count()).unwrap_or(0));
    let old = driver().filter(|(_, major)| count == 0 && *major < OLDEST_DRIVER);
    let missing = match (&old, loaded) {
        (Some((version, _)), Ok(())) => format!("the driver {version} is too old for CUDA 13.0"),
        (_, Ok(())) => format!("libtorch sees {count} CUDA devices"),
        (_, Err(reason)) => reason,
    };
    let hint = match old {
        Some(_) => format!("install a driver of version {OLDEST_DRIVER} or newer"),
        None => {
            "install libtorch with `scripts/setup.sh --cuda`, or put the folders of libtorch_cuda.so and of \
                 NVIDIA's libraries on LD_LIBRARY_PATH"
                .to_owned()
        }
    };
    match wanted {
        DeviceChoice::Cuda(index) if index < count => {
            // SAFETY: one of libtorch's devices becomes this thread's.
            checked(unsafe { super::lx_use_device(std::ffi::c_int::try_from(index).unwrap_or(0)) })?;
            Ok(Device::Cuda(index))
        }
        DeviceChoice::Cuda(index) => {
            Err(fault(format!("cannot use `cuda:{index}`: {missing}")).hint(hint).into())
        }
        _ if count > 0 => Ok(Device::Cuda(0)),
        _ => {
            if gpu_present {
                tracing::warn!(
                    "there is a GPU but it cannot be used ({missing}); running on the CPU\nhint: {hint}"
                );
            }
            Ok(Device::Cpu)
        }
    }
}

/// Returns a device's name, as the command line takes it.
pub fn name_of(device: Device) -> String {
    match device {
        Device::Cuda(index) => DeviceChoice::Cuda(index).to_string(),
        _ => DeviceChoice::Cpu.to_string(),
    }
}

/// Loads `libtorch_cuda.so` for the life of the process; its static initialisers register the CUDA back-end.
fn load_cuda() -> std::result::Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library is libtorch's own and its initialisers only register kernels.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    library
        .map(std::mem::forget)
        .map_err(|e| e.source().map_or_else(|| e.to_string(), ToString::to_string))?;
    // SAFETY: sets a flag of libtorch's global context.
    checked(unsafe { super::lx_prefer_cusolver() }).map_err(|e| e.to_string())
}

/// Oldest major version of NVIDIA's driver that runs CUDA 13.0 (CUDA's release notes, "CUDA Driver").
const OLDEST_DRIVER: u32 = 580;

/// Returns the version of NVIDIA's driver that the kernel has loaded, and its major number.
pub fn driver() -> Option<(String, u32)> {
    let module = std::fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    let told = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    version_in(&module).or_else(|| version_in(&told))
}

/// Finds the first word of a driver's version file that is a version, such as `580.159.04`.
fn version_in(text: &str) -> Option<(String, u32)> {
    let is_version =
        |word: &&str| word.contains('.') && word.split('.').all(|part| part.parse::<u32>().is_ok());
    let word = text.split_whitespace().find(is_version)?;
    Some((word.to_owned(), word.split('.').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_version_is_found_in_either_file() {
        let told = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n\
                    GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";
        assert_eq!(version_in(told), Some(("535.104.05".into(), 535)));
        assert_eq!(version_in("580.159.04\n"), Some(("580.159.04".into(), 580)));
        assert_eq!(version_in("NVRM version: unknown"), None);
    }
}
