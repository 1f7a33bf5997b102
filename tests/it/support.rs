//! What the tests share: the built command in a place of its own, fixtures, and numbers read back from its files.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use loraxs::models::HeadShape;
use loraxs::spec::Problem;
use loraxs::torch::Devices;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::forked;

/// A folder for one test, with a cache of its own and a catalog.
pub struct Place {
    folder: tempfile::TempDir,
    catalog: PathBuf,
}

/// A line of `metrics.jsonl` or of a fixture's losses; the parts that do not depend on the clock.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Point {
    /// Optimiser steps done.
    pub step: u64,
    /// Mean loss since the last point; absent in evaluations.
    pub loss: Option<f64>,
    /// Norm of the gradient before clipping.
    pub grad_norm: Option<f64>,
    /// Learning rate of the adapter.
    pub learning_rate: Option<f64>,
    /// Metrics of an evaluation.
    pub metrics: Option<std::collections::BTreeMap<String, Option<f64>>>,
}

/// The folder of the quick start.
pub fn quickstart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart")
}

impl Place {
    /// A new empty folder, with the catalog of the encoders' fixtures.
    pub fn new() -> Self {
        Self::with(encoders().join("data/datasets.toml"))
    }

    /// A new folder with this catalog in its `datasets.toml`.
    pub fn with_own(catalog: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("datasets.toml");
        fs::write(&path, catalog).unwrap();
        Self { folder, catalog: path }
    }

    fn with(catalog: PathBuf) -> Self {
        Self { folder: tempfile::tempdir().unwrap(), catalog }
    }

    /// A new empty folder, with the catalog of the quick start.
    pub fn of_quickstart() -> Self {
        Self::with(quickstart().join("datasets.toml"))
    }

    /// A new empty folder, with the catalog of the decoders' fixtures.
    pub fn of_decoders() -> Self {
        Self::with(fixture("decoders/data/datasets.toml"))
    }

    /// A path inside it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The built command with these arguments, the place's catalog, no network and this place's cache.
    pub fn command(&self, args: &[&str]) -> Command {
        self.command_on(&device_name(), args)
    }

    /// As [`Place::command`], on this device.
    pub fn command_on(&self, device: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
        command.args(args).arg("--datasets").arg(&self.catalog);
        command
            .env("LORAXS_CACHE", self.path("cache"))
            .env("HF_HUB_OFFLINE", "1")
            .current_dir(self.folder.path());
        // What a test compares, it compares in fp32 unless it says otherwise.
        if device != "cpu" && args.first() == Some(&"train") && !self.chooses_precision(args) {
            command.args(["--set", "train.precision=fp32"]);
        }
        // Tests run side by side.
        command.args(["--device", device, "--threads", "1"]);
        command
    }

    /// Returns true if the arguments or the recipe that they name choose a precision.
    fn chooses_precision(&self, args: &[&str]) -> bool {
        let recipe = args.iter().skip_while(|&&arg| arg != "--recipe").nth(1);
        let text = recipe.and_then(|recipe| fs::read_to_string(self.path(recipe)).ok()).unwrap_or_default();
        text.contains("precision") || args.iter().any(|arg| arg.contains("precision"))
    }

    /// Runs the command, which must end with this exit code.
    pub fn run(&self, args: &[&str], code: i32) -> Output {
        let output = forked::output(&self.command(args));
        assert_eq!(output.status.code(), Some(code), "loraxs {}\n{}", args.join(" "), errors(&output));
        output
    }

    /// The same command as `count` processes that work on it together, in the order of their ranks.
    pub fn processes(&self, count: usize, args: &[&str]) -> Vec<Command> {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let of_rank = |rank: usize| {
            let mut command = self.command(args);
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            command.env("WORLD_SIZE", count.to_string()).env("GLOO_SOCKET_IFNAME", "lo");
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            command
        };
        (0..count).map(of_rank).collect()
    }

    /// Writes a recipe for a checkpoint of the fixtures, and runs it into `out` with further overrides.
    pub fn train(&self, recipe: &str, out: &str, sets: &[&str]) -> PathBuf {
        fs::write(self.path("recipe.toml"), recipe).unwrap();
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", out];
        for set in sets {
            args.extend(["--set", set]);
        }
        self.run(&args, 0);
        self.path(out)
    }
}

/// The devices that tests run on: the CPU, or those that `LORAXS_TEST_DEVICE` names.
pub fn device_name() -> String {
    std::env::var("LORAXS_TEST_DEVICE").unwrap_or_else(|_| "cpu".into())
}

/// The devices of [`device_name`], opened.
pub fn devices() -> &'static Devices {
    static OPENED: OnceLock<Devices> = OnceLock::new();
    OPENED.get_or_init(|| Devices::open(&device_name().parse().unwrap(), [0, 1]).unwrap())
}

/// The first of them.
pub fn device() -> Device {
    devices().first()
}

/// What rounding may do to results on the tests' device: ten times this on a GPU, which sums in orders that depend on shapes.
pub fn room(on_a_cpu: f64) -> f64 {
    if device_name() == "cpu" { on_a_cpu } else { 10.0 * on_a_cpu }
}

/// A folder of real checkpoints or data, where `LORAXS_TEST_DATA` names a place that has it.
pub fn real(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("LORAXS_TEST_DATA").map(|data| PathBuf::from(data).join(name));
    let found = found.filter(|path| path.exists());
    if found.is_none() {
        println!("skipped: LORAXS_TEST_DATA names no folder with {name}");
    }
    found
}

/// What the command said on standard error.
pub fn errors(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The fixtures' folder of checkpoints.
pub fn encoders() -> PathBuf {
    fixture("encoders")
}

/// A path among the fixtures.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
}

/// A head for so many classes.
pub fn classes(outputs: i64) -> HeadShape {
    HeadShape { problem: Problem::SingleLabel, outputs }
}

/// Reads a JSON file.
pub fn json<T: DeserializeOwned>(path: &Path) -> T {
    serde_json::from_str(&fs::read_to_string(path).unwrap())
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Reads a file of JSON lines.
pub fn json_lines<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The log of a run.
pub fn log(run: &Path) -> Vec<Point> {
    json_lines(&run.join("metrics.jsonl"))
}

/// The losses of a run's log.
pub fn losses(run: &Path) -> Vec<f64> {
    log(run).iter().filter_map(|point| point.loss).collect()
}

/// The larger of both; what is no number is infinitely large, so that no bound holds for it.
pub fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::INFINITY } else { a.max(b) }
}

/// The largest of |found − expected| / |expected|.
pub fn strays(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let apart = |(a, b): (&f64, &f64)| if a == b { 0.0 } else { ((a - b) / b).abs() };
    found.iter().zip(expected).map(apart).fold(0.0, worse)
}

/// The largest difference relative to the largest expected value.
pub fn distance(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, worse);
    difference / expected.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()))
}

/// Every number of a tensor.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.detach().to_kind(Kind::Double).to_device(Device::Cpu).contiguous().flatten(0, -1))
        .unwrap()
}

/// Keeps other tests from drawing: libtorch has one generator for all threads of the process. One thread computes: for
/// matrices as small as the fixtures', more only wait for each other.
pub fn alone() -> MutexGuard<'static, ()> {
    static DRAWING: Mutex<()> = Mutex::new(());
    // Before anything that asks libtorch about CUDA, which keeps its first answer.
    device();
    tch::set_num_threads(1);
    DRAWING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts commands together and waits for their ends.
pub fn together(commands: &[Command]) -> Vec<Output> {
    let started: Vec<forked::Run> = commands.iter().map(forked::start).collect();
    started.into_iter().map(|run| run.within(Duration::from_secs(300)).0).collect()
}
