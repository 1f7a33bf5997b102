//! What the commands share: opening hub, catalog, device, bases, splits and bases' decompositions.

use std::path::{Path, PathBuf};

use tch::{Device, Kind};

use crate::adapters::basis::{Basis, BasisSpec, Init, ModuleReport, Sigma};
use crate::adapters::basis_file::Source;
use crate::adapters::file::short;
use crate::adapters::svd;
use crate::cli::{self, Global};
use crate::data::catalog::{Catalog, Dataset};
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, TaskKind, examples};
use crate::eval::metrics::Metric;
use crate::fault::{Result, fault, usage};
use crate::hub::Hub;
use crate::models::adapt::Layer;
use crate::models::{Base, Config};
use crate::recipe::{self, AdapterRecipe, Precision};
use crate::report::progress::Progress;
use crate::torch::{self, Wanted};

/// Everything that the global options decide.
pub struct Workplace {
    /// The hub.
    pub hub: Hub,
    /// All known data sets.
    pub catalog: Catalog,
    /// Where to compute.
    pub device: Device,
}

/// A base that was fetched and opened.
pub struct OpenBase {
    /// The checkpoint.
    pub base: Base,
    /// As the user named it.
    pub name: String,
    /// Commit on the hub, or nothing for a folder.
    pub commit: Option<String>,
    /// Hash of the trunk.
    pub hash: String,
}

impl Workplace {
    /// Opens hub, catalog and device.
    ///
    /// # Errors
    /// When the catalog is wrong or the device cannot be used.
    pub fn open(global: &Global) -> Result<Self> {
        let wanted = match global.device {
            cli::Device::Auto => Wanted::Auto,
            cli::Device::Cpu => Wanted::Cpu,
            cli::Device::Cuda(index) => Wanted::Cuda(index),
        };
        let device = torch::open_device(wanted)?;
        if global.threads > 0 {
            tch::set_num_threads(i32::try_from(global.threads).unwrap_or(i32::MAX));
            // An error means that its threads run already, in a test.
            let _ = rayon::ThreadPoolBuilder::new().num_threads(global.threads).build_global();
        }
        let mut catalog = Catalog::builtin()?;
        if let Some(path) = &global.datasets {
            catalog = catalog.with_file(path)?;
        }
        Ok(Self { hub: Hub::new(global.offline)?, catalog, device })
    }

    /// Fetches and opens a base.
    ///
    /// # Errors
    /// When it cannot be had or read.
    pub fn base(&self, name: &str, revision: &str) -> Result<OpenBase> {
        if let Some(folder) = self.hub.config(name, revision)? {
            Config::load(&folder)?;
        }
        let snapshot = self.hub.model(name, revision)?;
        let base = Base::open(&snapshot.folder)?;
        let hash = base.hash();
        // A folder is remembered by its whole path, so that a run can be used from any other folder.
        let name = match Path::new(name).canonicalize() {
            Ok(path) if snapshot.commit.is_none() => path.display().to_string(),
            _ => name.to_owned(),
        };
        Ok(OpenBase { base, name, commit: snapshot.commit, hash })
    }

    /// Fetches and tokenises a split of a data set.
    ///
    /// # Errors
    /// When it cannot be had, or no row can be used.
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

    /// The files of a split of a data set, fetched where they are not local.
    ///
    /// # Errors
    /// When they cannot be had.
    pub fn files(&self, dataset: &Dataset, split: &str) -> Result<Vec<PathBuf>> {
        let Some(repository) = &dataset.hub else { return dataset.local_files(split) };
        let revision = dataset.revision.as_deref().unwrap_or("main");
        let mut files = Vec::new();
        for pattern in dataset.patterns(split)? {
            files.extend(self.hub.dataset(repository, revision, pattern)?);
        }
        Ok(files)
    }

    /// The basis of these layers: from `folder` where one is given, else from the cache, else computed.
    ///
    /// # Errors
    /// When it does not fit, or cannot be computed.
    pub fn basis(
        &self,
        base: &OpenBase,
        layers: &[Layer],
        spec: &BasisSpec,
        folder: Option<&Path>,
    ) -> Result<(Basis, Vec<ModuleReport>)> {
        if let Some(folder) = folder {
            let basis = Basis::load(folder, self.device)?;
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
            return Ok((basis.select(layers)?, Vec::new()));
        }
        let weights = || base.base.weights(layers, self.device);
        let source = Source { layers, device: self.device, weights: &weights };
        let progress = Progress::new(layers.len() as u64, "svd", "modules");
        let found = Basis::cached_or_compute(spec, &base.hash, source, &|done, name| {
            progress.tick(done as u64, name);
        })?;
        progress.finish();
        Ok(found)
    }
}

/// Refuses lengths and vocabularies that the base cannot take.
///
/// # Errors
/// Says which and what the limit is.
pub fn check_fit(base: &Base, tokenizer: &Tokenizer, max_length: usize) -> Result<()> {
    let longest = base.config.longest_sequence();
    if max_length as i64 > longest {
        return Err(usage(format!(
            "`data.max_length` is {max_length}, but the model's positions end at {longest}"
        ))
        .hint(format!("set `data.max_length={longest}` or less"))
        .into());
    }
    let (tokens, rows) = (tokenizer.vocab_size(), base.config.vocabulary());
    if tokens as i64 > rows {
        return Err(usage(format!("the tokenizer knows {tokens} tokens, the base embeds only {rows}"))
            .hint("tokenizer.json and config.json belong to different models")
            .into());
    }
    if let Some(eos) = tokenizer.eos().ok().filter(|&eos| i64::from(eos) >= rows) {
        return Err(usage(format!("token {eos} ends a text, and the base embeds only {rows}"))
            .hint("correct `eos_token_id` in generation_config.json and config.json")
            .into());
    }
    Ok(())
}

/// Outputs of the head for a data set: its classes, or 1 for a number.
///
/// # Errors
/// When the data set is not for classification or regression.
pub fn classes(dataset: &Dataset) -> Result<i64> {
    match dataset.task {
        TaskKind::Classification => Ok(dataset.labels.len() as i64),
        TaskKind::Regression => Ok(1),
        other => {
            let task = format!("{other:?}").to_lowercase();
            Err(usage(format!("data set `{}` is for `{task}`, not for classification", dataset.name))
                .hint("an encoder is trained and scored on data sets for `classification` or `regression`")
                .into())
        }
    }
}

/// The data set's metrics.
///
/// # Errors
/// When a name is unknown.
pub fn metrics(dataset: &Dataset) -> Result<Vec<Metric>> {
    Ok(dataset.metrics.iter().map(|name| name.parse::<Metric>()).collect::<std::result::Result<_, _>>()?)
}

/// How the recipe's basis of rank `rank` is made.
pub fn basis_spec(adapter: &AdapterRecipe, rank: i64) -> BasisSpec {
    BasisSpec {
        rank,
        init: match adapter.init {
            recipe::BasisInit::Svd => Init::Svd,
            recipe::BasisInit::Random => Init::Random,
        },
        spectrum: spectrum(adapter.spectrum),
        sigma: sigma(adapter.sigma),
        method: method(adapter.svd),
        iterations: adapter.svd_iterations,
        seed: adapter.svd_seed,
    }
}

/// The recipe's word for the place of the singular values as the decomposition knows it.
pub fn sigma(sigma: recipe::Sigma) -> Sigma {
    match sigma {
        recipe::Sigma::A => Sigma::A,
        recipe::Sigma::B => Sigma::B,
        recipe::Sigma::Split => Sigma::Split,
    }
}

/// The recipe's word for a part of the spectrum as the decomposition knows it.
pub fn spectrum(spectrum: recipe::Spectrum) -> svd::Spectrum {
    match spectrum {
        recipe::Spectrum::Top => svd::Spectrum::Top,
        recipe::Spectrum::Middle => svd::Spectrum::Middle,
        recipe::Spectrum::Bottom => svd::Spectrum::Bottom,
        recipe::Spectrum::Random => svd::Spectrum::Random,
    }
}

/// The recipe's word for an algorithm as the decomposition knows it.
pub fn method(method: recipe::SvdMethod) -> svd::Method {
    match method {
        recipe::SvdMethod::Randomized => svd::Method::Randomized,
        recipe::SvdMethod::Exact => svd::Method::Exact,
    }
}

/// The kind in which the base computes; also switches TF32.
///
/// # Errors
/// When libtorch refuses.
pub fn kind(precision: Precision) -> Result<Kind> {
    torch::allow_tf32(precision == Precision::Tf32)?;
    Ok(match precision {
        Precision::Fp32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::Fp16 => Kind::Half,
    })
}
