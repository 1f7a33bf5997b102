//! The environment of a command: hub, catalog and device, and everything opened from them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Device, Kind};

use super::launch;
use crate::adapters::basis::{Basis, BasisSpec, ModuleReport, Weights, check_layer};
use crate::adapters::file::short;
use crate::data::catalog::Catalog;
use crate::data::dataset::{Dataset, DatasetSource};
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, examples};
use crate::fault::{Result, fault, usage};
use crate::files;
use crate::hub::{self, Hub, Snapshot};
use crate::models::adapt::Layer;
use crate::models::{Base, Config};
use crate::report::progress::Progress;
use crate::spec::{DeviceChoice, Init, Precision, Spectrum, SvdMethod};
use crate::torch::world::World;
use crate::torch::{self, Devices, own_cuda};

/// What every command works with.
pub struct Environment {
    /// The hub.
    pub hub: Hub,
    /// All known data sets.
    pub catalog: Catalog,
    /// Devices to compute on.
    pub devices: Devices,
    /// True if no number of a base is read and nothing is computed from it, but all else is as for a training.
    pub rehearsal: bool,
    /// The processes that work on the command together.
    pub world: World,
    /// Ranks of the adapters to come: a full decomposition is done once for all of them, which begin alike.
    pub ranks: Vec<i64>,
}

/// A base that was fetched and opened.
pub struct OpenBase {
    /// The checkpoint.
    pub base: Base,
    /// Name as the user gave it.
    pub name: String,
    /// Commit on the hub; `None` for a folder.
    pub commit: Option<String>,
    /// Hash of the trunk.
    pub hash: String,
    /// Hash of `config.json`.
    pub config_hash: String,
}

impl Environment {
    /// Opens hub, catalog and devices; `threads` 0 leaves the number to libtorch, each of `datasets` adds to the built-in
    /// catalog and to those before it.
    /// Fails when the catalog is wrong or a device cannot be used.
    pub fn open(wanted: &DeviceChoice, threads: usize, datasets: &[&Path], offline: bool) -> Result<Self> {
        let world = World::current();
        let threads = match threads {
            0 => launch::threads(world.local()[1]).unwrap_or(0),
            given => given,
        };
        let devices = Devices::open(wanted, world.local())?;
        if threads > 0 {
            tch::set_num_threads(i32::try_from(threads).unwrap_or(i32::MAX));
            // An error means that the pool runs already, in a test.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
        }
        let mut catalog = Catalog::builtin()?;
        for path in datasets {
            catalog = catalog.with_file(path)?;
        }
        Ok(Self { hub: Hub::new(offline)?, catalog, devices, rehearsal: false, world, ranks: Vec::new() })
    }

    /// Fetches and opens a base. For a rehearsal, a folder with `config.json` but no weights will do.
    /// Fails when it cannot be had or read.
    pub fn base(&self, name: &str, revision: &str) -> Result<OpenBase> {
        if let Some(folder) = self.hub.config(name, revision)? {
            Config::load(&folder)?;
        }
        let snapshot = match self.rehearsal && hub::is_without_weights(Path::new(name)) {
            true => Snapshot { folder: name.into(), commit: None },
            false => self.hub.model(name, revision)?,
        };
        let mut base = match snapshot.commit.is_none() && hub::is_without_weights(&snapshot.folder) {
            true => Base::of_config(&snapshot.folder)?,
            false => Base::open(&snapshot.folder)?,
        };
        if self.rehearsal {
            base.tensors.without_numbers();
        }
        let (hash, config_hash) = (base.hash(), config_hash(&snapshot.folder)?);
        // A folder is recorded by its absolute path, so that a run can be used from any other folder.
        let name = match Path::new(name).canonicalize() {
            Ok(path) if snapshot.commit.is_none() => path.display().to_string(),
            _ => name.to_owned(),
        };
        Ok(OpenBase { base, name, commit: snapshot.commit, hash, config_hash })
    }

    /// Fetches and tokenises a split of a data set.
    /// Fails when it cannot be had, or no row can be used.
    pub fn split(
        &self,
        dataset: &Dataset,
        split: &str,
        tokenizer: &Tokenizer,
        max_length: usize,
        limit: usize,
    ) -> Result<Examples> {
        examples::load(dataset, split, &self.files(dataset, split)?, tokenizer, max_length, limit)
    }

    /// Returns the files of a split of a data set, fetched if they are not local.
    /// Fails when they cannot be had.
    pub fn files(&self, dataset: &Dataset, split: &str) -> Result<Vec<PathBuf>> {
        let DatasetSource::Hub { repository, revision } = &dataset.origin else {
            return dataset.local_files(split);
        };
        let mut files = Vec::new();
        for pattern in dataset.patterns(split)? {
            files.extend(self.hub.dataset(repository, revision, pattern)?);
        }
        Ok(files)
    }

    /// Returns false for a basis that would have to be computed, where nothing is.
    pub fn knows_basis(
        &self,
        base: &OpenBase,
        layers: &[Layer],
        spec: &BasisSpec,
        folder: Option<&Path>,
    ) -> bool {
        !self.rehearsal || folder.is_some() || Basis::is_cached(spec, &base.hash, layers)
    }

    /// Returns the basis of these layers: from `folder` if given, else from the cache, else computed.
    /// Fails when it does not fit, or cannot be computed.
    pub fn basis(
        &self,
        base: &OpenBase,
        layers: &[Layer],
        spec: &BasisSpec,
        folder: Option<&Path>,
    ) -> Result<(Basis, Vec<ModuleReport>)> {
        if let Some(folder) = folder {
            let basis = Basis::load(folder, self.devices.first())?;
            if basis.base_hash != base.hash {
                let [made, found] = [short(&basis.base_hash), short(&base.hash)];
                let place = folder.display();
                return Err(fault(format!("the basis in `{place}` belongs to another base"))
                    .hint(format!(
                        "it was made from a base with hash {made}, `{}` has hash {found}",
                        base.name
                    ))
                    .into());
            }
            let basis = basis.select(layers)?;
            basis.check_alike(&self.world)?;
            return Ok((basis, Vec::new()));
        }
        if !self.knows_basis(base, layers, spec, None) {
            return Ok((Basis::imagined(spec, layers)?, Vec::new()));
        }
        let is_full = (spec.init, spec.method, spec.spectrum) == (Init::Svd, SvdMethod::Exact, Spectrum::Top);
        let fits = |rank: &i64| layers.iter().all(|(name, shape)| check_layer(name, shape, *rank).is_ok());
        let largest = self.ranks.iter().filter(|rank| is_full && **rank > spec.rank && fits(rank)).max();
        if let Some(&rank) = largest {
            let (basis, reports) = self.basis(base, layers, &BasisSpec { rank, ..spec.clone() }, None)?;
            return Ok((basis.first(spec.rank)?, reports));
        }
        let device = self.devices.first();
        let read = |layer: &str| base.base.weight(layer, device);
        let weights = Weights { layers, device, read: &read };
        let progress = Progress::new(layers.len() as u64, "svd", "modules");
        let found = Basis::cached_or_compute(&self.world, spec, &base.hash, weights, &|done, name| {
            progress.tick(done as u64, name);
        })?;
        progress.finish();
        Ok(found)
    }
}

/// Returns the arithmetic, or what `auto` stands for on these devices, which it says.
///
/// # Errors
/// When a GPU does not have it.
pub fn settled(precision: Precision, devices: &Devices, config: &Config) -> Result<Precision> {
    if !devices.is_cuda() {
        return Ok(if precision == Precision::Auto { Precision::Fp32 } else { precision });
    }
    let is_old = devices.all().iter().any(|device| {
        let Device::Cuda(index) = device else { return false };
        own_cuda::capability(*index).is_some_and(|found| found < 80)
    });
    match (precision, config) {
        (Precision::Bf16, _) if is_old => Err(usage(format!("`{devices}` cannot compute in bf16"))
            .hint("set `train.precision` or `--precision` to `fp16` or `fp32`: bf16 is for GPUs of compute capability 8.0 and more")
            .into()),
        (Precision::Auto, _) if is_old => {
            tracing::info!("precision on this GPU: fp32; it has no bf16 and no tf32, and `fp16` is faster");
            Ok(Precision::Fp32)
        }
        (Precision::Auto, Config::Encoder(_)) => {
            tracing::info!("precision on this GPU: tf32; `fp32` is slower and exact");
            Ok(Precision::Tf32)
        }
        (Precision::Auto, Config::Decoder(_)) => {
            tracing::info!("precision on this GPU: bf16; `fp32` is slower and exact");
            Ok(Precision::Bf16)
        }
        _ => Ok(precision),
    }
}

/// Switches libtorch to this arithmetic, and returns the kind in which the base computes.
/// Fails when libtorch refuses.
pub fn use_precision(precision: Precision) -> Result<Kind> {
    torch::allow_tf32(precision == Precision::Tf32)?;
    Ok(kind_of(precision))
}

/// Returns the kind in which a base computes.
pub fn kind_of(precision: Precision) -> Kind {
    match precision {
        Precision::Auto | Precision::Fp32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    }
}

/// Keys of a `config.json` that change no result: its origin, and how it is run.
const IDLE_KEYS: [&str; 8] = [
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

/// Hashes the keys of a `config.json` that affect the computation.
fn config_hash(folder: &Path) -> Result<String> {
    let mut config: BTreeMap<String, Value> = files::read_json(&folder.join("config.json"))?;
    config.retain(|key, _| !IDLE_KEYS.contains(&key.as_str()));
    Ok(blake3::hash(&serde_json::to_vec(&config)?).to_hex().to_string())
}
