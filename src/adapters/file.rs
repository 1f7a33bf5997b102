//! The adapter folder: `adapter_model.safetensors` with what was trained, and `adapter_config.json` with what it means.
//!
//! LoRA-XS stores its M cores as one tensor `lora_xs_R` `[M, r, r]`, in the order of `modules`, so that a file is
//! 4·r²·M bytes, a header and the head. R means nothing without its basis: the config holds a witness of it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::basis::{Basis, BasisSpec};
use super::svd::Factors;
use super::{Group, Trained};
use crate::fault::{Result, fault};
use crate::files;
use crate::torch::tensor_file::write;
use crate::torch::tensors::Tensors;

/// The file of tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// The file that says what they mean.
pub const CONFIG: &str = "adapter_config.json";
const CORES: &str = "lora_xs_R";

/// `adapter_config.json`.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct AdapterConfig {
    /// Always `LORAXS`: a type that PEFT does not know, so that it refuses the file by name instead of misreading it.
    pub peft_type: String,
    /// `SEQ_CLS`.
    pub task_type: String,
    /// `lora-xs`, `full` or `head`.
    pub method: String,
    /// Hub id or folder of the base.
    pub base_model_name_or_path: String,
    /// Revision of the base.
    pub revision: String,
    /// Hash of the base's trunk.
    pub base_hash: String,
    /// The data set that was trained on.
    pub dataset: String,
    /// Names of the classes; empty for a regression.
    pub labels: Vec<String>,
    /// Longest sequence in tokens that was trained on.
    pub max_length: usize,
    /// What is special to LoRA-XS. Read by itself, since serde takes a wrong field in a flattened option for none.
    #[serde(flatten, skip_deserializing)]
    pub cores: Option<CoresConfig>,
}

/// The part of the config that belongs to LoRA-XS.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct CoresConfig {
    /// r.
    pub r: i64,
    /// ΔW is scaled by alpha / r.
    pub lora_alpha: f64,
    /// The targets as the recipe named them.
    pub target_modules: Vec<String>,
    /// The layers, in the order of the cores.
    pub modules: Vec<String>,
    /// How the basis was made.
    pub basis: BasisSpec,
    /// Two numbers for each module that any flip or rotation of the basis changes.
    pub witness: Vec<[f64; 2]>,
    /// Whether A and B are in the file.
    pub with_basis: bool,
}

/// An adapter folder, opened.
#[derive(Debug)]
pub struct AdapterFile {
    /// Its config.
    pub config: AdapterConfig,
    tensors: Tensors,
}

/// Writes run `run` of `trained` as an adapter folder, and A and B too where a basis is given.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save(
    folder: &Path,
    config: &AdapterConfig,
    trained: &Trained,
    run: i64,
    basis: Option<&Basis>,
) -> Result<()> {
    let of_run = |tensor: &Tensor, group: Group| match group {
        Group::Base => tensor.detach(),
        Group::Adapter | Group::Head => tensor.detach().get(run),
    };
    let mut tensors = Vec::new();
    let cores: Vec<Tensor> = trained
        .entries()
        .iter()
        .filter(|entry| entry.group == Group::Adapter)
        .map(|entry| of_run(&entry.tensor, entry.group))
        .collect();
    if !cores.is_empty() {
        tensors.push((CORES.to_owned(), Tensor::stack(&cores, 0)));
    }
    for entry in trained.entries().iter().filter(|entry| entry.group != Group::Adapter) {
        tensors.push((entry.name.clone(), of_run(&entry.tensor, entry.group)));
    }
    for (name, factors) in basis.map(|basis| basis.modules.as_slice()).unwrap_or_default() {
        tensors.push((format!("{name}.A"), factors.a.shallow_clone()));
        tensors.push((format!("{name}.B"), factors.b.shallow_clone()));
    }
    files::write_json(&folder.join(CONFIG), config)?;
    let tensors: Vec<(String, &Tensor)> =
        tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    write(&folder.join(WEIGHTS), &[("format", "pt".into())], &tensors)
}

impl CoresConfig {
    /// Refuses numbers that no training writes.
    fn check(&self) -> Result<()> {
        let Self { r, lora_alpha, modules, witness, .. } = self;
        if *r < 1 || !(lora_alpha.is_finite() && *lora_alpha > 0.0) {
            let message =
                format!("expected `r` of at least 1 and `lora_alpha` above 0, found {r} and {lora_alpha}");
            return Err(fault(message).into());
        }
        if modules.is_empty() || modules.len() != witness.len() {
            let [modules, witness] = [modules.len(), witness.len()];
            return Err(
                fault(format!("expected a witness for each module, found {witness} for {modules}")).into()
            );
        }
        Ok(())
    }
}

impl AdapterFile {
    /// Opens an adapter folder.
    ///
    /// # Errors
    /// Names the file that is missing or broken, or the kind of adapter that this is not.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        if !path.exists() {
            let missing = fault(format!("`{}` is not an adapter: it holds no `{CONFIG}`", folder.display()));
            return Err(missing.hint("an adapter is the folder `adapter` of a run").into());
        }
        let json: BTreeMap<String, serde_json::Value> = files::read_json(&path)?;
        match json.get("peft_type").and_then(|kind| kind.as_str()) {
            Some("LORAXS") => {}
            other => {
                let found = other.unwrap_or("none");
                return Err(fault(format!(
                    "`{}` has `peft_type` `{found}`, expected `LORAXS`",
                    path.display()
                ))
                .hint("only adapters trained by this program can be loaded")
                .into());
            }
        }
        let mut config: AdapterConfig = files::read_json(&path)?;
        config.cores = match config.method.as_str() {
            "lora-xs" => Some(files::read_json(&path)?),
            "full" | "head" => None,
            other => {
                return Err(fault(format!("`{}` has the unknown `method` `{other}`", path.display()))
                    .hint("known methods are `lora-xs`, `full` and `head`")
                    .into());
            }
        };
        let tensors = Tensors::open(&[folder.join(WEIGHTS)])?;
        if config.cores.is_none() && tensors.contains(CORES) {
            let path = path.display();
            return Err(fault(format!(
                "`{path}` says `{}`, but the file beside it holds cores",
                config.method
            ))
            .into());
        }
        if let Some(cores) = &config.cores {
            cores.check().with_context(|| format!("cannot use `{}`", path.display()))?;
            let expected = [cores.modules.len() as i64, cores.r, cores.r];
            let found = tensors.shape(CORES).unwrap_or_default();
            if found != expected {
                return Err(fault(format!(
                    "`{}` holds cores of shape {found:?}, its config says {expected:?}",
                    folder.join(WEIGHTS).display()
                ))
                .into());
            }
        }
        Ok(Self { config, tensors })
    }

    /// Refuses a base that the adapter was not trained on.
    ///
    /// # Errors
    /// Says which base was expected and which was found.
    pub fn check_base(&self, name: &str, hash: &str) -> Result<()> {
        if self.config.base_hash == hash {
            return Ok(());
        }
        Err(fault(format!(
            "the adapter belongs to another base: it was trained on `{}` with hash {}, `{name}` has hash {}",
            self.config.base_model_name_or_path,
            short(&self.config.base_hash),
            short(hash)
        ))
        .hint("load it on the base that it was trained on")
        .into())
    }

    /// A and B of every module where the file holds them, with the basis that they form.
    ///
    /// # Errors
    /// When the config promises factors that the file lacks.
    pub fn stored_basis(&self) -> Result<Option<Basis>> {
        let Some(cores) = self.config.cores.as_ref().filter(|cores| cores.with_basis) else {
            return Ok(None);
        };
        let mut modules = Vec::with_capacity(cores.modules.len());
        for name in &cores.modules {
            let read = |part: &str| self.tensors.tensor(&format!("{name}.{part}"), None, Device::Cpu);
            let s = Tensor::zeros([cores.r], (Kind::Float, Device::Cpu));
            modules.push((name.clone(), Factors { a: read("A")?, b: read("B")?, s, captured_energy: 0.0 }));
        }
        Ok(Some(Basis { spec: cores.basis.clone(), base_hash: self.config.base_hash.clone(), modules }))
    }

    /// Copies the stored tensors into every run of `trained`. A head tensor that the file lacks, or holds in another
    /// shape, keeps its start where `head_optional`; the number of head tensors copied is returned.
    ///
    /// # Errors
    /// Names the tensor that is missing or of another shape.
    pub fn load_into(&self, trained: &Trained, head_optional: bool) -> Result<usize> {
        let cores = self.config.cores.as_ref();
        let stacked =
            cores.map(|_| self.tensors.tensor(CORES, Some(Kind::Float), Device::Cpu)).transpose()?;
        let head_fits = trained
            .entries()
            .iter()
            .filter(|e| e.group == Group::Head)
            .all(|entry| self.tensors.shape(&entry.name) == Some(&entry.tensor.size()[1..]));
        let mut head_tensors = 0;
        for entry in trained.entries() {
            let stored = match entry.group {
                Group::Head if head_optional && !head_fits => continue,
                Group::Head | Group::Base => {
                    head_tensors += usize::from(entry.group == Group::Head);
                    self.tensors.tensor(&entry.name, Some(Kind::Float), Device::Cpu)?
                }
                Group::Adapter => {
                    let module = entry.name.strip_suffix(".R").unwrap_or(&entry.name);
                    let index = cores.and_then(|cores| cores.modules.iter().position(|m| m == module));
                    match (index, &stacked) {
                        (Some(index), Some(stacked)) => stacked.get(index as i64),
                        _ => return Err(self.lacks(module)),
                    }
                }
            };
            copy_into(&entry.tensor, &stored, &entry.name)?;
        }
        Ok(head_tensors)
    }

    fn lacks(&self, module: &str) -> anyhow::Error {
        let targets =
            self.config.cores.as_ref().map(|cores| cores.target_modules.join(", ")).unwrap_or_default();
        fault(format!("the adapter has no core for `{module}`; its targets are: {targets}")).into()
    }
}

/// Fills a trained leaf with `stored`, repeated along k where the leaf has that axis and `stored` does not.
fn copy_into(leaf: &Tensor, stored: &Tensor, name: &str) -> Result<()> {
    let (expected, found) = (leaf.size(), stored.size());
    if expected != found && expected.get(1..) != Some(found.as_slice()) {
        return Err(fault(format!(
            "the adapter's `{name}` has shape {found:?}, expected {:?}",
            &expected[1..]
        ))
        .into());
    }
    no_grad(|| leaf.shallow_clone().f_copy_(stored))?;
    Ok(())
}

/// The first twelve digits of a hash.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
