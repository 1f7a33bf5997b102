//! A basis on disk: `basis.safetensors` in a user's folder, or in the cache under a hash of its inputs.
//!
//! | tensor | shape |
//! |---|---|
//! | `<module>.A` | [r, in] |
//! | `<module>.B` | [out, r] |
//! | `<module>.S` | `[r]` |
//!
//! Metadata: `format`, `base_hash`, the fields of [`BasisSpec`], `captured_energy` (one number per module, as
//! JSON), `checksum` (BLAKE3 of the values) and `header_checksum` (of the rest). Modules are in target order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::adapters::basis::{Basis, BasisSpec, ModuleReport, Weights};
use crate::adapters::basis_shared::Reported;
use crate::adapters::rules::Layer;
use crate::adapters::svd::Factors;
use crate::fault::{Result, fault, reading};
use crate::files;
use crate::spec::Sigma;
use crate::torch::tensor_file::{self, TensorFile};
use crate::torch::world::World;

/// Name of the file in its folder.
pub const FILE_NAME: &str = "basis.safetensors";

/// Version of the format, changed whenever old files would be misread.
const FORMAT: &str = "loraxs-basis-1";

impl Basis {
    /// Writes `basis.safetensors` into `folder`, which is created if needed.
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
        let energies: Vec<f64> = self.modules.iter().map(|(_, factors)| factors.captured_energy).collect();
        let BasisSpec { rank, init, spectrum, sigma, method, iterations, seed } = &self.spec;
        let mut metadata = vec![
            ("format", FORMAT.to_owned()),
            ("base_hash", self.base_hash.clone()),
            ("rank", rank.to_string()),
            ("init", init.to_string()),
            ("spectrum", spectrum.to_string()),
            ("sigma", sigma.to_string()),
            ("method", method.to_string()),
            ("iterations", iterations.to_string()),
            ("seed", seed.to_string()),
            ("captured_energy", serde_json::to_string(&energies)?),
            ("checksum", self.checksum()?),
        ];
        let said = metadata.iter().map(|(key, value)| (*key, value.as_str()));
        let header =
            header_checksum(said, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
        metadata.push((HEADER_CHECKSUM, header));
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
            let message = format!("no basis at `{}`", path.display());
            return Err(fault(message).hint("make one with `loraxs init-svd --out DIR`").into());
        }
        let _reading = reading(&path);
        let file = TensorFile::open(&path)?;
        read(&file, device).with_context(|| format!("cannot use the basis `{}`", path.display()))
    }

    /// Returns the basis of [`Basis::compute`], from the cache if it was computed before. A damaged entry is
    /// made again, and a cache that cannot be written only costs time; both are logged as warnings.
    ///
    /// # Errors
    /// As [`Basis::compute`].
    pub fn cached_or_compute(
        world: &World,
        spec: &BasisSpec,
        base_hash: &str,
        weights: Weights,
        progress: &dyn Fn(usize, &str),
    ) -> Result<Reported> {
        let folder = cache_entry(spec, base_hash, weights.layers)?;
        cached_in(world, &folder, (spec, base_hash), weights, progress)
    }

    /// Returns true if the cache holds the basis of these layers.
    pub fn is_cached(spec: &BasisSpec, base_hash: &str, layers: &[Layer]) -> bool {
        cache_entry(spec, base_hash, layers).is_ok_and(|folder| folder.join(FILE_NAME).exists())
    }
}

/// Metadata key of the checksum of everything but the values.
const HEADER_CHECKSUM: &str = "header_checksum";

/// Computes BLAKE3 of the metadata and of the tensors' names and shapes, in the order of their values.
fn header_checksum<'a>(
    metadata: impl Iterator<Item = (&'a str, &'a str)>,
    tensors: impl Iterator<Item = (&'a str, Vec<i64>)>,
) -> String {
    let metadata: BTreeMap<&str, &str> = metadata.filter(|(key, _)| *key != HEADER_CHECKSUM).collect();
    let tensors: Vec<(&str, Vec<i64>)> = tensors.collect();
    blake3::hash(format!("{metadata:?} {tensors:?}").as_bytes()).to_hex().to_string()
}

/// Returns the folder of a basis in the cache.
fn cache_entry(spec: &BasisSpec, base_hash: &str, layers: &[Layer]) -> Result<PathBuf> {
    let names: Vec<&str> = layers.iter().map(|(name, _)| name.as_str()).collect();
    let key = blake3::hash(&serde_json::to_vec(&(FORMAT, spec, base_hash, names))?);
    Ok(files::cache_folder().join("basis").join(key.to_hex().as_str()))
}

/// Returns the basis in `folder`, or computes it and saves it there; on every host, where several processes work together.
fn cached_in(
    world: &World,
    folder: &Path,
    (spec, base_hash): (&BasisSpec, &str),
    weights: Weights,
    progress: &dyn Fn(usize, &str),
) -> Result<Reported> {
    let cached = from_cache(folder, spec, base_hash, weights).unwrap_or_else(|error| {
        tracing::warn!("computing the cached basis again: {error:#}");
        None
    });
    let is_cached = cached.is_some();
    let found = match Basis::found_by_any(world, cached, (spec, base_hash), weights)? {
        Some(found) => found,
        None => Basis::compute_together(world, spec, base_hash, weights, progress)?,
    };
    if is_cached {
        tracing::debug!("basis from the cache: {}", folder.display());
    } else if world.local()[0] == 0
        && let Err(error) = found.0.save(folder)
    {
        tracing::warn!("cannot cache the basis: {error:#}");
    }
    Ok(found)
}

/// Reads the cached basis in `folder`, checked against the specification; `None` if there is none.
fn from_cache(
    folder: &Path,
    spec: &BasisSpec,
    base_hash: &str,
    weights: Weights,
) -> Result<Option<Reported>> {
    if !folder.join(FILE_NAME).exists() {
        return Ok(None);
    }
    let basis = Basis::load(folder, weights.device)?.select(weights.layers)?;
    if basis.spec != *spec || basis.base_hash != base_hash {
        return Err(fault(format!("`{}` holds another basis", folder.display())).into());
    }
    let report = |((name, shape), (_, factors)): (&Layer, &(String, Factors))| ModuleReport {
        name: name.clone(),
        shape: *shape,
        captured_energy: factors.captured_energy,
        seconds: 0.0,
    };
    let reports = weights.layers.iter().zip(&basis.modules).map(report).collect();
    Ok(Some((basis, reports)))
}

/// Reads the basis in `file`.
fn read(file: &TensorFile, device: Device) -> Result<Basis> {
    let format = file.metadata("format")?;
    if format != FORMAT {
        return Err(fault(format!("expected the format `{FORMAT}`, found `{format}`"))
            .hint("make the basis again with `loraxs init-svd`")
            .into());
    }
    let damaged = |what: &str| {
        fault(format!("its {what} damaged: the checksum differs"))
            .hint("make the basis again with `loraxs init-svd`")
    };
    if file.metadata("checksum")? != blake3::hash(file.values()).to_hex().as_str() {
        return Err(damaged("values are").into());
    }
    // Absent in files of older versions.
    if let Ok(expected) = file.metadata(HEADER_CHECKSUM) {
        let names = file.names();
        let shape = |name: &String| file.view(name).map(|view| view.shape).unwrap_or_default();
        let tensors = names.iter().map(|name| (name.as_str(), shape(name)));
        if header_checksum(file.all_metadata(), tensors) != expected {
            return Err(damaged("header is").into());
        }
    }
    let spec = BasisSpec {
        rank: field(file, "rank")?,
        init: field(file, "init")?,
        spectrum: field(file, "spectrum")?,
        // Absent in files written before there was a choice.
        sigma: if file.metadata("sigma").is_ok() { field(file, "sigma")? } else { Sigma::default() },
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

/// Reads the metadata `key`: a number, a JSON list, or the name of a choice.
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
    let read = |suffix: &str| file.tensor(&format!("{name}.{suffix}"));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::basis::ModuleReport;
    use crate::adapters::basis::tests::{basis_of, modules, reading};
    use crate::spec::{Init, Spectrum, SvdMethod};

    fn spec() -> BasisSpec {
        BasisSpec { rank: 4, ..BasisSpec::default() }
    }

    fn error_of(folder: &Path) -> String {
        format!("{:#}", Basis::load(folder, Device::Cpu).unwrap_err())
    }

    fn same(left: &Basis, right: &Basis) -> bool {
        left.spec == right.spec
            && left.base_hash == right.base_hash
            && left.modules.iter().zip(&right.modules).all(|((name, x), (other, y))| {
                name == other
                    && (x.a == y.a && x.b == y.b && x.s == y.s)
                    && x.captured_energy == y.captured_energy
            })
    }

    #[test]
    fn every_kind_of_basis_comes_back_bit_for_bit_and_writes_the_same_file() {
        let specs = [
            spec(),
            BasisSpec { method: SvdMethod::Exact, iterations: 3, ..spec() },
            BasisSpec { spectrum: Spectrum::Middle, seed: u64::MAX, ..spec() },
            BasisSpec { spectrum: Spectrum::Bottom, ..spec() },
            BasisSpec { init: Init::Random, spectrum: Spectrum::Random, ..spec() },
        ];
        for spec in specs {
            let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let basis = basis_of(&spec);
            basis.save(first.path()).unwrap();
            let read = Basis::load(first.path(), Device::Cpu).unwrap();
            assert!(read.modules.len() == 5 && same(&basis, &read), "{spec:?}");
            read.save(second.path()).unwrap();
            let bytes = |folder: &Path| std::fs::read(folder.join(FILE_NAME)).unwrap();
            assert_eq!(bytes(first.path()), bytes(second.path()));
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE_NAME);
        assert!(error_of(folder.path()).contains("no basis at"));
        basis_of(&spec()).save(folder.path()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        assert!(error_of(folder.path()).contains("truncated"));
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        std::fs::write(&path, &flipped).unwrap();
        assert!(error_of(folder.path()).contains("checksum"));
        let replaced = |bytes: &[u8], from: &str, to: &str| {
            assert_eq!(from.len(), to.len());
            let position = bytes.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
            let mut changed = bytes.to_vec();
            changed[position..position + from.len()].copy_from_slice(to.as_bytes());
            std::fs::write(&path, &changed).unwrap();
            changed
        };
        for (from, to) in
            [("\"rank\":\"4\"", "\"rank\":\"5\""), ("dense.B", "dense.C"), ("base_hash", "base_hush")]
        {
            replaced(&whole, from, to);
            assert!(error_of(folder.path()).contains("its header is damaged"), "{from}");
        }
        // Older files have no such checksum.
        let older = replaced(&whole, HEADER_CHECKSUM, "heading_remarks");
        let replace = |from: &str, to: &str| {
            replaced(&older, from, to);
            error_of(folder.path())
        };
        assert!(replace("loraxs-basis-1", "loraxs-basis-7").contains("`loraxs-basis-7`"));
        assert!(replace("\"rank\":\"4\"", "\"rank\":\"5\"").contains("of rank 5"));
        assert!(replace("\"rank\":\"4\"", "\"rank\":\"x\"").contains("`rank`"));
        assert!(replace("layer.0.dense.B", "layer.0.dense.C").contains("`layer.0.dense.B`"));
        assert!(replace("base_hash", "base_hush").contains("`base_hash`"));
    }

    fn cached(folder: &Path, base_hash: &str, progress: &dyn Fn(usize, &str)) -> (Basis, Vec<ModuleReport>) {
        reading(&modules(), |weights| {
            cached_in(&World::alone(), folder, (&spec(), base_hash), weights, progress)
        })
        .unwrap()
    }

    #[test]
    fn the_cache_is_used_and_a_damaged_entry_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let computed = |base_hash: &str| {
            let count = std::cell::Cell::new(0);
            let progress = |done: usize, _: &str| count.set(done);
            let (basis, reports) = cached(folder.path(), base_hash, &progress);
            assert_eq!(basis.base_hash, base_hash);
            (count.get(), reports)
        };
        let (first, reports) = computed("hash");
        let (second, cached) = computed("hash");
        assert_eq!((first, second), (5, 0));
        let timeless = |report: &ModuleReport| ModuleReport { seconds: 0.0, ..report.clone() };
        assert_eq!(reports.iter().map(timeless).collect::<Vec<_>>(), cached);
        std::fs::write(folder.path().join(FILE_NAME), b"damaged").unwrap();
        assert_eq!((computed("hash").0, computed("hash").0), (5, 0));
        assert_eq!((computed("other").0, computed("other").0), (5, 0));
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let blocked = folder.path().join("file");
        std::fs::write(&blocked, b"").unwrap();
        let (basis, _) = cached(&blocked.join("entry"), "hash", &|_, _| {});
        assert_eq!(basis.modules.len(), 5);
    }
}
