//! A basis on disk: `basis.safetensors` in a folder of the user's, or in the cache under a key of its content.
//!
//! | tensor | shape |
//! |---|---|
//! | `<module>.A` | [r, in] |
//! | `<module>.B` | [out, r] |
//! | `<module>.S` | [r] |
//!
//! Metadata: `format`, `base_hash`, the fields of [`BasisSpec`], `captured_energy` (one number a module, as
//! JSON) and `checksum` (BLAKE3 of the values). Modules lie in the order of the targets.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::adapters::basis::{Basis, BasisSpec, ModuleReport};
use crate::adapters::svd::Factors;
use crate::adapters::tensor_file::{self, TensorFile};
use crate::fault::{Result, fault};
use crate::files;

/// The name of the file in its folder.
pub const FILE_NAME: &str = "basis.safetensors";

/// Changes whenever old files would be misread.
const FORMAT: &str = "loraxs-basis-1";

impl Basis {
    /// Writes `basis.safetensors` into `folder`, which is made if need be.
    ///
    /// # Errors
    /// Names the file when it cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let mut tensors: Vec<(String, &Tensor)> = Vec::new();
        for (name, factors) in &self.modules {
            for (suffix, tensor) in [("A", &factors.a), ("B", &factors.b), ("S", &factors.s)] {
                tensors.push((format!("{name}.{suffix}"), tensor));
            }
        }
        let mut hash = blake3::Hasher::new();
        for (_, tensor) in &tensors {
            hash.update(&tensor_file::bytes_of(tensor)?);
        }
        let energies: Vec<f64> = self.modules.iter().map(|(_, factors)| factors.captured_energy).collect();
        let BasisSpec { rank, init, spectrum, method, iterations, seed } = &self.spec;
        let metadata = [
            ("format", FORMAT.to_owned()),
            ("base_hash", self.base_hash.clone()),
            ("rank", rank.to_string()),
            ("init", init.to_string()),
            ("spectrum", spectrum.to_string()),
            ("method", method.to_string()),
            ("iterations", iterations.to_string()),
            ("seed", seed.to_string()),
            ("captured_energy", serde_json::to_string(&energies)?),
            ("checksum", hash.finalize().to_hex().to_string()),
        ];
        tensor_file::write(&folder.join(FILE_NAME), &metadata, &tensors)
    }

    /// Reads `basis.safetensors` of `folder` onto `device`.
    ///
    /// # Errors
    /// Names the file and what is wrong: absent, truncated, another format, damaged values, a factor that is
    /// missing or has the wrong shape.
    pub fn load(folder: &Path, device: Device) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        if !path.exists() {
            let message = format!("there is no basis at `{}`", path.display());
            return Err(fault(message).hint("make one with `loraxs init-svd --out DIR`").into());
        }
        let file = TensorFile::open(&path)?;
        read(&file, device).with_context(|| format!("cannot use the basis `{}`", path.display()))
    }

    /// The basis of [`Basis::compute`], from the cache where it was computed before. A damaged entry of the
    /// cache is made again, and a cache that cannot be written only costs time; both are logged as warnings.
    ///
    /// # Errors
    /// As [`Basis::compute`].
    pub fn cached_or_compute(
        spec: &BasisSpec,
        base_hash: &str,
        modules: &[(String, Tensor)],
        progress: &dyn Fn(usize, &str),
    ) -> Result<(Self, Vec<ModuleReport>)> {
        let folder = cache_entry(spec, base_hash, modules)?;
        match from_cache(&folder, spec, base_hash, modules) {
            Ok(Some(found)) => {
                tracing::debug!("basis from the cache: {}", folder.display());
                return Ok(found);
            }
            Ok(None) => {}
            Err(error) => tracing::warn!("the cached basis is computed again: {error:#}"),
        }
        let (basis, reports) = Self::compute(spec, base_hash, modules, progress)?;
        if let Err(error) = basis.save(&folder) {
            tracing::warn!("the basis is not cached: {error:#}");
        }
        Ok((basis, reports))
    }
}

/// The cache folder of what these arguments give.
fn cache_entry(spec: &BasisSpec, base_hash: &str, modules: &[(String, Tensor)]) -> Result<PathBuf> {
    let names: Vec<&str> = modules.iter().map(|(name, _)| name.as_str()).collect();
    let key = blake3::hash(&serde_json::to_vec(&(FORMAT, spec, base_hash, names))?);
    Ok(files::cache_folder().join("basis").join(key.to_hex().as_str()))
}

/// What the cache holds, checked against what is asked for; nothing where it holds nothing.
fn from_cache(
    folder: &Path,
    spec: &BasisSpec,
    base_hash: &str,
    modules: &[(String, Tensor)],
) -> Result<Option<(Basis, Vec<ModuleReport>)>> {
    if !folder.join(FILE_NAME).exists() {
        return Ok(None);
    }
    let device = modules.first().map_or(Device::Cpu, |(_, weight)| weight.device());
    let mut wanted = Vec::new();
    for (name, weight) in modules {
        wanted.push((name.clone(), weight.size2()?.into()));
    }
    let basis = Basis::load(folder, device)?.select(&wanted)?;
    if basis.spec != *spec || basis.base_hash != base_hash {
        return Err(fault(format!("`{}` holds another basis", folder.display())).into());
    }
    let report = |((name, shape), (_, factors)): ((String, [i64; 2]), &(String, Factors))| ModuleReport {
        name,
        shape,
        captured_energy: factors.captured_energy,
        seconds: 0.0,
    };
    let reports = wanted.into_iter().zip(&basis.modules).map(report).collect();
    Ok(Some((basis, reports)))
}

/// The basis in `file`.
fn read(file: &TensorFile, device: Device) -> Result<Basis> {
    let format = file.metadata("format")?;
    if format != FORMAT {
        return Err(fault(format!("expected the format `{FORMAT}`, found `{format}`"))
            .hint("make the basis again with `loraxs init-svd`")
            .into());
    }
    if file.metadata("checksum")? != blake3::hash(file.values()).to_hex().as_str() {
        return Err(fault("its values are damaged: the checksum differs")
            .hint("make the basis again with `loraxs init-svd`")
            .into());
    }
    let spec = BasisSpec {
        rank: field(file, "rank")?,
        init: field(file, "init")?,
        spectrum: field(file, "spectrum")?,
        method: field(file, "method")?,
        iterations: field(file, "iterations")?,
        seed: field(file, "seed")?,
    };
    let energies: Vec<f64> = field(file, "captured_energy")?;
    let names = file.names();
    let names: Vec<&str> = names.iter().filter_map(|name| name.strip_suffix(".A")).collect();
    if energies.len() != names.len() {
        let message = format!("expected {} modules, found {}", energies.len(), names.len());
        return Err(fault(message).into());
    }
    let mut modules = Vec::with_capacity(names.len());
    for (name, captured_energy) in names.into_iter().zip(energies) {
        modules.push((name.to_owned(), factors(file, name, spec.rank, captured_energy, device)?));
    }
    Ok(Basis { spec, base_hash: file.metadata("base_hash")?.to_owned(), modules })
}

/// The metadata `key`: a number, a JSON list, or the name of a choice.
fn field<T: DeserializeOwned>(file: &TensorFile, key: &str) -> Result<T> {
    let text = file.metadata(key)?;
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    serde_json::from_value(value).with_context(|| format!("metadata `{key}` is wrong: found `{text}`"))
}

fn factors(
    file: &TensorFile,
    name: &str,
    rank: i64,
    captured_energy: f64,
    device: Device,
) -> Result<Factors> {
    let read = |suffix: &str| -> Result<Tensor> { Ok(file.tensor(&format!("{name}.{suffix}"))?) };
    let (a, b, s) = (read("A")?, read("B")?, read("S")?);
    let fits = matches!(a.size().as_slice(), &[r, _] if r == rank)
        && matches!(b.size().as_slice(), &[_, r] if r == rank)
        && s.size() == [rank]
        && [&a, &b, &s].iter().all(|tensor| tensor.kind() == Kind::Float);
    if !fits {
        let shapes = [&a, &b, &s].map(|tensor| format!("{:?} {:?}", tensor.size(), tensor.kind()));
        return Err(fault(format!(
            "module `{name}`: expected A, B, S of rank {rank} in fp32, found {}",
            shapes.join(", ")
        ))
        .into());
    }
    let [a, b, s] = [a.f_to_device(device)?, b.f_to_device(device)?, s.f_to_device(device)?];
    Ok(Factors { a, b, s, captured_energy })
}
