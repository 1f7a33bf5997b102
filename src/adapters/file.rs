//! The adapter folder: trained tensors in `adapter_model.safetensors`, described by `adapter_config.json`.
//!
//! LoRA, VeRA and TinyLoRA are written as PEFT writes them, and what PEFT's config cannot hold goes into `loraxs.json`
//! beside them. LoRA-XS stores its M cores as one tensor `lora_xs_R` `[M, r, r]`, in the order of `modules`, so that a
//! file is 4·r²·M bytes, a header and the head; LoRA-Mini likewise. They mean nothing without their basis: the config
//! holds a witness of it.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::basis::BasisSpec;
use super::layout::{self, Layout, STACKS};
use super::peft_config::{self, About};
use super::tiny_lora::{self, TinyLoraConfig};
use super::{Group, Method, Named, Trained};
use crate::fault::{Result, fault};
use crate::files;
use crate::spec::{Problem, Tying};
use crate::torch::tensor_file::write;
use crate::torch::tensors::Tensors;

/// Name of the file of tensors.
pub const WEIGHTS: &str = "adapter_model.safetensors";
/// Name of the file that describes them.
pub const CONFIG: &str = "adapter_config.json";
/// Name of the file beside a PEFT config for everything that PEFT does not record.
pub const NOTES: &str = "loraxs.json";
/// `peft_type` of this program's own layout: a type that PEFT does not know, so that it refuses the file by name
/// instead of misreading it.
pub(super) const OWN: &str = "LORAXS";

/// Description of an adapter, as in `adapter_config.json` of this program's own layout.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct AdapterConfig {
    /// `SEQ_CLS`, `TOKEN_CLS` or `CAUSAL_LM`.
    pub task_type: String,
    /// What the head answers; earlier releases did not record it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem_type: Option<Problem>,
    /// The method with its settings.
    #[serde(flatten)]
    pub method: Method,
    /// Hub id or folder of the base.
    pub base_model_name_or_path: String,
    /// Revision of the base.
    #[serde(default)]
    pub revision: String,
    /// Hash of the base's trunk; empty if unknown.
    #[serde(default)]
    pub base_hash: String,
    /// Data set that it was trained on; empty if unknown.
    #[serde(default)]
    pub dataset: String,
    /// Names of the classes, labels or tags; empty for a regression, or if unknown.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Longest sequence in tokens that it was trained on; 0 if unknown.
    #[serde(default)]
    pub max_length: usize,
    /// Names by which PEFT finds exactly the adapted layers.
    #[serde(default)]
    pub target_modules: Vec<String>,
    /// The adapted layers, in the order of the stacked tensors.
    #[serde(default)]
    pub modules: Vec<String>,
    /// The basis that the trained tensors belong to. Read separately, since serde turns a wrong field in a
    /// flattened option into `None`.
    #[serde(flatten, skip_deserializing)]
    pub basis: Option<BasisRecord>,
}

/// The part of the config that identifies the basis of the trained tensors.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct BasisRecord {
    /// Settings that the basis was computed with.
    #[serde(rename = "basis")]
    pub spec: BasisSpec,
    /// Two numbers for each module that any flip or rotation of the basis changes.
    pub witness: Vec<[f64; 2]>,
    /// True if A and B are in the file.
    pub with_basis: bool,
}

/// An adapter folder, opened.
#[derive(Debug)]
pub struct AdapterFile {
    /// Its config.
    pub config: AdapterConfig,
    /// Naming scheme of its tensors.
    pub layout: Layout,
    pub(super) tensors: Tensors,
}

/// Writes run `run` of `trained` as an adapter folder, with the frozen tensors `kept`.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save(folder: &Path, config: &AdapterConfig, trained: &Trained, run: i64, kept: &Named) -> Result<()> {
    let of_run = |tensor: &Tensor, group: Group| match group {
        Group::Base => tensor.detach(),
        Group::Adapter | Group::Head => tensor.detach().get(run),
    };
    let entries: Named =
        trained.entries().iter().map(|e| (e.name.clone(), of_run(&e.tensor, e.group))).collect();
    let mut tensors = if config.method.is_of_peft() {
        let head = trained.entries().iter().filter(|e| e.group == Group::Head).map(|e| e.name.as_str());
        let about = About {
            task_type: &config.task_type,
            base: &config.base_model_name_or_path,
            targets: &config.target_modules,
            saved: layout::saved_modules(head),
            layers: config.modules.len(),
        };
        files::write_json(&folder.join(CONFIG), &peft_config::write(&config.method, &about)?)?;
        files::write_json(&folder.join(NOTES), config)?;
        untied(config, entries)
    } else {
        let mut json = serde_json::to_value(config)?;
        if let Some(object) = json.as_object_mut() {
            object.insert("peft_type".into(), OWN.into());
        }
        files::write_json(&folder.join(CONFIG), &json)?;
        stacked(trained, entries)
    };
    tensors.extend(kept.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())));
    if config.method.is_of_peft() {
        tensors.iter_mut().for_each(|(name, _)| *name = layout::peft_key(name));
    }
    write(&folder.join(WEIGHTS), &[("format", "pt".into())], &tensors)
}

/// Replaces vectors tied in a way that PEFT does not know by one copy for each layer.
fn untied(config: &AdapterConfig, entries: Named) -> Named {
    let Method::TinyLora(TinyLoraConfig { tying: Tying::Kind, .. }) = config.method else { return entries };
    let names: Vec<&str> = config.modules.iter().map(String::as_str).collect();
    let of_group =
        |group: usize| entries.iter().find(|(name, _)| *name == format!("{}{group}", tiny_lora::VECTOR));
    let mut found: Named = Vec::new();
    for (index, group) in config.method.groups(&names).into_iter().enumerate() {
        let vector =
            of_group(group).map(|(_, vector)| (format!("{}{index}", tiny_lora::VECTOR), vector.copy()));
        found.extend(vector);
    }
    found.extend(entries.into_iter().filter(|(name, _)| !name.starts_with(tiny_lora::VECTOR)));
    found
}

/// Stacks the trained tensors of all layers and leaves the others as they are.
fn stacked(trained: &Trained, entries: Named) -> Named {
    let mut parts: [Vec<Tensor>; STACKS.len()] = Default::default();
    let mut rest = Vec::new();
    for (entry, (name, tensor)) in trained.entries().iter().zip(entries) {
        let suffix = name.rsplit('.').next().unwrap_or_default();
        match STACKS.iter().position(|(_, part)| entry.group == Group::Adapter && *part == suffix) {
            Some(stack) => {
                // Layers may lie on several devices.
                let device = parts[stack].first().unwrap_or(&tensor).device();
                parts[stack].push(tensor.to_device(device));
            }
            None => rest.push((name, tensor)),
        }
    }
    let stacks = STACKS.iter().zip(&parts).filter(|(_, parts)| !parts.is_empty());
    let mut found: Named =
        stacks.map(|((key, _), parts)| ((*key).to_owned(), Tensor::stack(parts, 0))).collect();
    found.extend(rest);
    found
}

impl AdapterConfig {
    /// Returns what the head answers; `None` for a language model, and if it is unknown.
    pub fn problem(&self) -> Option<Problem> {
        match (self.problem_type, self.task_type.as_str()) {
            (Some(problem), _) => Some(problem),
            (None, "CAUSAL_LM") => None,
            (None, "TOKEN_CLS") => Some(Problem::Tokens),
            _ if self.dataset.is_empty() => None,
            _ if self.labels.is_empty() => Some(Problem::Regression),
            _ => Some(Problem::SingleLabel),
        }
    }
}

impl AdapterFile {
    /// Returns a hash of settings and tensors.
    ///
    /// # Errors
    /// When the settings have no form in JSON, which no file's have.
    pub fn hash(&self) -> Result<String> {
        Ok(self.hash_with(&serde_json::to_string(&self.config)?))
    }

    /// Returns the hash of earlier releases, over the settings as Rust prints them.
    pub fn earlier_hash(&self) -> String {
        // They did not know this field.
        self.hash_with(&format!("{:?}", self.config).replacen("problem_type: None, ", "", 1))
    }

    fn hash_with(&self, settings: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{settings}\n").as_bytes());
        let mut names: Vec<&str> = self.tensors.names().collect();
        names.sort_unstable();
        for name in names {
            hasher.update(
                format!("{name} {:?} {:?}\n", self.tensors.kind(name), self.tensors.shape(name)).as_bytes(),
            );
            hasher.update(self.tensors.view(name).map(|view| view.bytes).unwrap_or_default());
        }
        hasher.finalize().to_hex().to_string()
    }

    /// Refuses a base that the adapter was not trained on; adapters of other programs do not record theirs.
    ///
    /// # Errors
    /// Names the expected base and the one found.
    pub fn check_base(&self, name: &str, hash: &str) -> Result<()> {
        if self.config.base_hash == hash || self.config.base_hash.is_empty() {
            return Ok(());
        }
        Err(fault(format!(
            "the adapter belongs to another base: it was trained on `{}` (hash {}), but `{name}` has hash {}",
            self.config.base_model_name_or_path,
            short(&self.config.base_hash),
            short(hash)
        ))
        .hint(match self.config.revision.as_str() {
            "" => "load it on the base that it was trained on".to_owned(),
            commit => format!("load it on the base that it was trained on, of revision `{commit}`"),
        })
        .into())
    }

    /// Copies the stored tensors into every run of `trained` and returns the number of head tensors copied.
    /// If a head tensor is missing or has another shape, the head keeps its start where `head_optional`, or
    /// where a file that is not in this program's own layout has no head at all.
    ///
    /// # Errors
    /// Names a tensor that is missing, of another shape, or has no place in the model.
    pub fn load_into(&self, trained: &Trained, head_optional: bool) -> Result<usize> {
        let heads = || trained.entries().iter().filter(|entry| entry.group == Group::Head);
        let fits = heads().all(|e| self.shape(&e.name).as_deref() == Some(&e.tensor.size()[1..]));
        let none = self.layout != Layout::Own && !heads().any(|e| self.shape(&e.name).is_some());
        let mut head_tensors = 0;
        for entry in trained.entries() {
            let stored = match entry.group {
                Group::Head if !fits && (head_optional || none) => continue,
                Group::Head | Group::Base => {
                    head_tensors += usize::from(entry.group == Group::Head);
                    self.tensors.tensor(&self.key(&entry.name), Some(Kind::Float), Device::Cpu)?
                }
                Group::Adapter => self.part(&entry.name)?,
            };
            copy_into(&entry.tensor, &stored, &entry.name)?;
        }
        self.refuse_rest(trained)?;
        Ok(head_tensors)
    }

    /// Returns the stored adapter tensor that this program calls `name`, in fp32.
    fn part(&self, name: &str) -> Result<Tensor> {
        let read = |key: &str| self.tensors.tensor(key, Some(Kind::Float), Device::Cpu);
        let (module, suffix) = name.rsplit_once('.').unwrap_or((name, ""));
        if let (Layout::Own, Some((stack, _))) =
            (self.layout, STACKS.iter().find(|(_, part)| *part == suffix))
        {
            let index = self.config.modules.iter().position(|known| known == module);
            let index = index.filter(|_| self.tensors.contains(stack)).ok_or_else(|| self.lacks(module))?;
            return Ok(read(stack)?.get(index as i64));
        }
        let key = self.key(name);
        if !self.tensors.contains(&key) {
            return Err(self.lacks(name));
        }
        read(&key)
    }

    /// Refuses an adapter with tensors that the model has no place for.
    fn refuse_rest(&self, trained: &Trained) -> Result<()> {
        let mut known: BTreeSet<String> =
            trained.entries().iter().map(|entry| self.key(&entry.name)).collect();
        let stacks = STACKS.iter().filter(|(stack, _)| self.tensors.contains(stack));
        for (stack, part) in stacks.filter(|_| self.layout == Layout::Own) {
            let placed = |module: &&String| known.contains(&format!("{module}.{part}"));
            if let Some(module) = self.config.modules.iter().find(|module| !placed(module)) {
                return Err(fault(format!("the adapter has a core for `{module}`, which is not adapted"))
                    .hint("adapt the layers that the adapter was trained on (`adapter.targets`)")
                    .into());
            }
            known.insert((*stack).to_owned());
        }
        match self.tensors.names().find(|key| !known.contains(*key) && !self.is_frozen(key)) {
            None => Ok(()),
            Some(key) => {
                Err(fault(format!("the adapter has a tensor `{key}`, which the model does not have"))
                    .hint(
                        "besides its factors, an adapter may hold a classification head (`modules_to_save`)",
                    )
                    .into())
            }
        }
    }

    /// Returns the shape of the tensor that this program calls `name`.
    fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.shape(&self.key(name)).map(<[i64]>::to_vec)
    }

    /// Returns the outputs of the stored head: the rows of its last layer.
    pub fn head_outputs(&self) -> Option<i64> {
        let last = ["classifier.out_proj.weight", "classifier.weight", "score.weight"];
        last.into_iter().find_map(|name| self.shape(name)?.first().copied())
    }

    fn lacks(&self, module: &str) -> anyhow::Error {
        let targets = self.config.target_modules.join(", ");
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
    no_grad(|| leaf.shallow_clone().f_copy_(stored)).context("cannot load a trainable tensor")?;
    Ok(())
}

/// Returns the first twelve digits of a hash.
pub fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}
