//! Choosing devices, and loading libtorch's CUDA library if there is a GPU.

use std::cell::OnceCell;
use std::error::Error as _;
use std::fmt;
use std::path::Path;

use tch::Device;

use super::{LIBTORCH_VERSION, checked};
use crate::fault::{Result, fault, usage};
use crate::spec::DeviceChoice;

/// The devices of a process, at least one: the layers of a model lie on them in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Devices(Vec<Device>);

impl Devices {
    /// Chooses the devices of process `local_rank` of the `local_size` on this host, and loads libtorch's CUDA library when a GPU may be
    /// used. `auto` gives each process one GPU; of a list see [`Devices::of_process`].
    ///
    /// Must precede any other call that queries libtorch about CUDA, since libtorch caches its first answer.
    ///
    /// # Errors
    /// When a GPU was requested explicitly and cannot be used, or a list cannot be divided.
    pub fn open(wanted: &DeviceChoice, [local_rank, local_size]: [usize; 2]) -> Result<Self> {
        if *wanted == DeviceChoice::Cpu {
            return Ok(Device::Cpu.into());
        }
        let gpu_present = Path::new("/dev/nvidiactl").exists() || Path::new("/proc/driver/nvidia").exists();
        let loaded = if gpu_present || *wanted != DeviceChoice::Auto {
            load_cuda()
        } else {
            Err("no GPU found".into())
        };
        let count = loaded.as_ref().map_or(0, |(count, _)| *count);
        let (driver, has_library) = (driver(), loaded.is_ok());
        let old = driver.as_ref().filter(|(_, major)| count == 0 && has_library && *major < OLDEST_DRIVER);
        let missing = match (&old, loaded) {
            (Some((version, _)), Ok(_)) => format!("the driver {version} is too old for CUDA 13.0"),
            (_, Ok((_, warning))) if warning.is_empty() => format!("libtorch sees {count} CUDA devices"),
            (_, Ok((_, warning))) => format!("libtorch sees {count} CUDA devices: {warning}"),
            (_, Err(reason)) => reason,
        };
        let hint = match old {
            Some(_) => format!("install driver {OLDEST_DRIVER} or later"),
            None if count > 0 => format!("the last one is `cuda:{}`", count - 1),
            None if has_library && driver.is_none() => {
                format!("install NVIDIA's driver {OLDEST_DRIVER} or later: there is none")
            }
            None if has_library => "see whether `nvidia-smi` lists a GPU, and CUDA_VISIBLE_DEVICES".to_owned(),
            None => {
                "install libtorch with `scripts/setup.sh --cuda`, or put the folders of libtorch_cuda.so and of \
                 NVIDIA's libraries on LD_LIBRARY_PATH"
                    .to_owned()
            }
        };
        if let DeviceChoice::Cuda(numbers) = wanted {
            if let Some(unknown) = numbers.iter().find(|number| **number >= count) {
                return Err(fault(format!("cannot use `cuda:{unknown}`: {missing}")).hint(hint).into());
            }
            let all = Self(numbers.iter().map(|number| Device::Cuda(*number)).collect());
            return all.of_process(local_rank, local_size)?.entered();
        }
        if count > 0 {
            return Self::from(Device::Cuda(local_rank % count)).entered();
        }
        if gpu_present {
            tracing::warn!("the GPU cannot be used ({missing}); running on the CPU\nhint: {hint}");
        }
        Ok(Device::Cpu.into())
    }

    /// Returns the devices of one of `local_size` processes that share a host: each gets as many of several, and all share a
    /// single one.
    ///
    /// # Errors
    /// When they cannot be divided equally.
    pub fn of_process(&self, local_rank: usize, local_size: usize) -> Result<Self> {
        let count = self.0.len();
        if count == 1 || local_size <= 1 {
            return Ok(self.clone());
        }
        if !count.is_multiple_of(local_size) {
            return Err(usage(format!(
                "`--device` names {count} devices for the {local_size} processes of this host"
            ))
            .hint(format!("name {local_size} devices, or a multiple of them: each process gets as many"))
            .into());
        }
        let each = count / local_size;
        Ok(Self(self.0.iter().copied().skip(local_rank % local_size * each).take(each).collect()))
    }

    /// Makes the first device this thread's own, for what names none.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn entered(self) -> Result<Self> {
        if let Device::Cuda(index) = self.first() {
            // SAFETY: one of libtorch's devices becomes this thread's.
            checked(unsafe { super::lx_use_device(std::ffi::c_int::try_from(index).unwrap_or(0)) })?;
        }
        Ok(self)
    }

    /// Returns the first device, which gets a model's inputs.
    pub fn first(&self) -> Device {
        self.0.first().copied().unwrap_or(Device::Cpu)
    }

    /// Returns all of them, in order.
    pub fn all(&self) -> &[Device] {
        &self.0
    }

    /// Returns true if they are GPUs.
    pub fn is_cuda(&self) -> bool {
        self.first().is_cuda()
    }

    /// Returns the peak memory in MiB of all together.
    pub fn peak_memory_mib(&self) -> f64 {
        self.0.iter().map(|device| super::peak_memory_mib(*device)).sum()
    }
}

/// Of each device the first mention.
impl FromIterator<Device> for Devices {
    fn from_iter<T: IntoIterator<Item = Device>>(all: T) -> Self {
        let mut devices = Vec::new();
        for device in all {
            if !devices.contains(&device) {
                devices.push(device);
            }
        }
        Self(devices)
    }
}

impl From<Device> for Devices {
    fn from(device: Device) -> Self {
        Self(vec![device])
    }
}

/// As the command line takes them.
impl fmt::Display for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |device: &Device| if let Device::Cuda(index) = device { Some(*index) } else { None };
        match self.0.iter().map(number).collect::<Option<Vec<usize>>>() {
            Some(numbers) => DeviceChoice::Cuda(numbers).fmt(f),
            None => DeviceChoice::Cpu.fmt(f),
        }
    }
}

/// Copies of a value on further devices, made when first asked for.
#[derive(Debug)]
pub struct Copies<T>(OnceCell<Box<(Device, T, Copies<T>)>>);

impl<T> Default for Copies<T> {
    fn default() -> Self {
        Self(OnceCell::new())
    }
}

impl<T> Copies<T> {
    /// Returns the copy on `device`, which `make` makes the first time.
    pub fn on(&self, device: Device, make: &dyn Fn() -> T) -> &T {
        let (own, value, others) = &**self.0.get_or_init(|| Box::new((device, make(), Self::default())));
        if *own == device { value } else { others.on(device, make) }
    }
}

/// Loads `libtorch_cuda.so` for the life of the process; its static initialisers register the CUDA back-end. Returns the number of GPUs
/// that it sees, and what it says of that.
fn load_cuda() -> std::result::Result<(usize, String), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the library is libtorch's own and its initialisers only register kernels.
    let library = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_GLOBAL) };
    library.map(std::mem::forget).map_err(|e| {
        let told = e.source().map_or_else(|| e.to_string(), ToString::to_string);
        match told.contains("undefined symbol") {
            true => format!("{told}: it is of another version than libtorch {LIBTORCH_VERSION}"),
            false => told,
        }
    })?;
    // SAFETY: sets flags of libtorch's allocator.
    if let Err(error) = checked(unsafe { super::lx_grow_segments() }) {
        tracing::debug!("segments of fixed sizes: {error:#}");
    }
    // SAFETY: sets a flag of libtorch's global context.
    let chosen = checked(unsafe { super::lx_prefer_cusolver() });
    chosen.and_then(|()| super::cuda_devices()).map_err(|e| e.to_string())
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
    fn a_list_is_divided_among_the_processes_of_a_host() {
        let list =
            |numbers: &[usize]| numbers.iter().map(|number| Device::Cuda(*number)).collect::<Devices>();
        let all = list(&[4, 5, 6, 7]);
        assert_eq!(all.of_process(0, 1).unwrap(), all);
        assert_eq!(all.of_process(1, 2).unwrap(), list(&[6, 7]));
        assert_eq!(all.of_process(2, 4).unwrap(), list(&[6]));
        assert_eq!(list(&[3]).of_process(5, 8).unwrap(), list(&[3]));
        let error = all.of_process(0, 3).unwrap_err();
        assert_eq!(error.to_string(), "`--device` names 4 devices for the 3 processes of this host");
        assert_eq!(crate::fault::exit_code(&error), 2);
    }

    #[test]
    fn the_drivers_version_is_found_in_either_file() {
        let told = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023\n\
                    GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";
        assert_eq!(version_in(told), Some(("535.104.05".into(), 535)));
        assert_eq!(version_in("580.159.04\n"), Some(("580.159.04".into(), 580)));
        assert_eq!(version_in("NVRM version: unknown"), None);
    }
}
