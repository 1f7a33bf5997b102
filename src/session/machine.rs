//! Report on a machine: libraries, CPU, GPU, caches, the hub.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tch::{Device, Kind};

use crate::fault::{Result, hint_of};
use crate::files;
use crate::hub::Settings;
use crate::models::self_test::{self, Check};
use crate::report::redacted;
use crate::spec::DeviceChoice;
use crate::torch::kernels::packs;
use crate::torch::own_cuda;
use crate::torch::{self, Devices};

/// Time limit for an answer from the hub.
const PATIENCE: Duration = Duration::from_secs(5);

/// Compute capability of the first GPUs with tensor cores, Volta's, as 70 for 7.0: these take fp16.
const FIRST_TENSOR_CORES: i32 = 70;

/// All that is found.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// Files of libtorch that this process has loaded.
    pub libraries: Vec<String>,
    /// The CPU.
    pub cpu: Cpu,
    /// The GPU.
    pub gpu: Gpu,
    /// The devices that were tested.
    pub device: String,
    /// Folders that downloads and results of computations are kept in.
    pub caches: Vec<CacheFolder>,
    /// Whether the hub answers, or why it cannot be asked, in words.
    pub hub: String,
    /// Comparisons of the devices with fp64 on the CPU.
    pub self_test: Vec<Check>,
    /// True if the wanted devices are there and compute rightly, and the hub's settings can be used.
    pub ok: bool,
}

/// A CPU.
#[derive(Debug, Serialize)]
pub struct Cpu {
    /// Threads that may run at a time.
    pub threads: usize,
    /// Free memory.
    pub free_bytes: Option<usize>,
    /// True if it has instructions for products of bf16.
    pub multiplies_bf16: bool,
}

/// The GPUs.
#[derive(Debug, Serialize)]
pub struct Gpu {
    /// Version of NVIDIA's driver.
    pub driver: Option<String>,
    /// Names of the GPUs that the driver knows.
    pub models: Vec<String>,
    /// Those that are used.
    pub used: Vec<UsedGpu>,
    /// Whether our own kernels serve there, or why libtorch's do.
    pub kernels: Option<String>,
    /// The reason why none is used.
    pub problem: Option<String>,
    /// A hint on how to fix it.
    pub hint: Option<String>,
}

/// A GPU that is used.
#[derive(Debug, Serialize)]
pub struct UsedGpu {
    /// Its name for `--device`.
    pub device: String,
    /// All memory.
    pub total_bytes: Option<usize>,
    /// Free memory.
    pub free_bytes: Option<usize>,
    /// Its compute capability, such as `9.0`.
    pub capability: Option<String>,
    /// Precisions that are faster there than fp32.
    pub fast: Vec<&'static str>,
}

/// A cache.
#[derive(Debug, Serialize)]
pub struct CacheFolder {
    /// Its path.
    pub folder: String,
    /// Size of its files.
    pub bytes: u64,
    /// Free space on its disk.
    pub free_bytes: Option<u64>,
}

impl Findings {
    /// Looks at the machine, and tests the devices that the options want, or the CPU where one is not there.
    /// Fails when the arithmetic of the tests cannot be chosen.
    pub fn gather(wanted: &DeviceChoice, offline: bool) -> Result<Self> {
        let driver = torch::driver();
        let wanted = match wanted {
            DeviceChoice::Auto if driver.is_some() => &DeviceChoice::Cuda(vec![0]),
            wanted => wanted,
        };
        let opened = Devices::open(wanted, [0, 1]);
        let devices = opened.as_ref().map_or_else(|_| Device::Cpu.into(), Clone::clone);
        let problem = opened.err();
        let settings = Settings::from_environment(offline);
        let of_hub = settings.as_ref().ok().map(|settings| settings.cache.clone());
        let caches = [files::cache_folder()].into_iter().chain(of_hub);
        let self_test = self_test::run(&devices)?;
        Ok(Self {
            libraries: libraries(),
            cpu: Cpu {
                threads: std::thread::available_parallelism().map_or(1, Into::into),
                free_bytes: torch::free_bytes(Device::Cpu),
                multiplies_bf16: packs(Kind::BFloat16),
            },
            gpu: Gpu {
                driver: driver.map(|(version, _)| version),
                models: gpu_models(),
                used: devices.all().iter().filter_map(|device| used_gpu(*device)).collect(),
                kernels: own_cuda::state(devices.first()),
                problem: problem.as_ref().map(|error| format!("{error:#}")),
                hint: problem.as_ref().and_then(|error| hint_of(error)).map(str::to_owned),
            },
            device: devices.to_string(),
            caches: caches.map(|folder| cache(&folder)).collect(),
            ok: settings.is_ok() && problem.is_none() && self_test.iter().all(|check| check.ok),
            hub: settings
                .map_or_else(|error| format!("cannot be used: {error:#}"), |settings| hub(&settings)),
            self_test,
        })
    }
}

/// Returns the files of libtorch that this process has loaded.
fn libraries() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let paths = maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| format!("/{path}")));
    let mut paths: Vec<String> = paths
        .filter(|path| path.ends_with("/libtorch_cpu.so") || path.ends_with("/libtorch_cuda.so"))
        .collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Returns what a GPU is to loraxs; `None` for a CPU.
fn used_gpu(device: Device) -> Option<UsedGpu> {
    let Device::Cuda(index) = device else { return None };
    let (memory, capability) = (torch::gpu_memory(index), own_cuda::capability(index));
    // As `train.precision = "auto"` tells it: tensor cores from Ampere on take tf32 and bf16 too.
    let has_bf16 = torch::has_flash(Kind::BFloat16, device);
    let has_fp16 = has_bf16 || capability.is_some_and(|found| found >= FIRST_TENSOR_CORES);
    let all = [("tf32", has_bf16), ("bf16", has_bf16), ("fp16", has_fp16)];
    Some(UsedGpu {
        device: Devices::from(device).to_string(),
        total_bytes: memory.map(|[_, all]| all),
        free_bytes: memory.map(|[free, _]| free),
        capability: capability.map(|found| format!("{}.{}", found / 10, found % 10)),
        fast: all.into_iter().filter_map(|(name, is_fast)| is_fast.then_some(name)).collect(),
    })
}

/// Returns the names of the GPUs that NVIDIA's driver knows.
fn gpu_models() -> Vec<String> {
    let entries = fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let name = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("information")).ok()?;
        text.lines().find_map(|line| Some(line.strip_prefix("Model:")?.trim().to_owned()))
    };
    entries.filter_map(name).collect()
}

fn cache(folder: &Path) -> CacheFolder {
    CacheFolder {
        folder: folder.display().to_string(),
        bytes: size(folder),
        free_bytes: files::free_on_disk(folder),
    }
}

/// Returns the bytes of all files below a folder; links are not followed.
fn size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => size(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |about| about.len()),
        _ => 0,
    };
    entries.map(of).sum()
}

fn hub(settings: &Settings) -> String {
    let endpoint = redacted(&settings.endpoint);
    if settings.offline {
        return format!("{endpoint}: not contacted (offline)");
    }
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).build().into();
    match agent.get(&settings.endpoint).call() {
        Ok(_) | Err(ureq::Error::StatusCode(_)) => format!("{endpoint} answers"),
        Err(error) => format!("{endpoint}: no answer: {error}"),
    }
}
