//! Opening an adapter folder: of this program, of PEFT, or of the published LoRA-XS code.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::basis::{Basis, BasisSpec};
use super::file::{AdapterConfig, AdapterFile, BasisRecord, CONFIG, NOTES, WEIGHTS};
use super::layout::{self, Layout, STACKS};
use super::peft_config::{self, Json};
use super::svd::Factors;
use super::{Method, lora, tiny_lora, vera};
use crate::fault::{Result, fault};
use crate::files;
use crate::torch::tensors::Tensors;

/// The published code's own settings, one folder up.
const RECONSTRUCTION: &str = "reconstr_config.json";

impl AdapterFile {
    /// Opens an adapter folder.
    ///
    /// # Errors
    /// Names the file that is missing or broken, or what the adapter has that cannot be loaded.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        if !path.exists() {
            let missing = fault(format!("`{}` is not an adapter: it holds no `{CONFIG}`", folder.display()));
            return Err(missing.hint("an adapter is the folder `adapter` of a run").into());
        }
        let json: Json = files::read_json(&path)?;
        let own = json.get("peft_type").and_then(Value::as_str) == Some("LORAXS");
        let opened = if own { open_own(folder) } else { open_foreign(folder, &json) };
        opened.with_context(|| format!("cannot use `{}`", path.display()))
    }

    /// A and B of every module where the file holds them, with the basis that they form.
    ///
    /// # Errors
    /// When the config promises factors that the file lacks.
    pub fn stored_basis(&self) -> Result<Option<Basis>> {
        let config = &self.config;
        let names = match (self.layout, &config.method) {
            (Layout::Own, _) if config.basis.as_ref().is_some_and(|basis| basis.with_basis) => ["A", "B"],
            (Layout::Peft, Method::TinyLora { .. }) => [tiny_lora::FROZEN[0], tiny_lora::FROZEN[1]],
            (Layout::Published, _) => lora::FACTORS,
            _ => return Ok(None),
        };
        let mut modules = Vec::with_capacity(config.modules.len());
        for module in &config.modules {
            let read = |part: &str| {
                let key = match self.layout {
                    Layout::Own => format!("{module}.{part}"),
                    _ => layout::peft_key(&format!("{module}.{part}")),
                };
                self.tensors.tensor(&key, Some(Kind::Float), Device::Cpu)
            };
            let rank = config.method.basis_rank().unwrap_or(0);
            let s = Tensor::zeros([rank], (Kind::Float, Device::Cpu));
            let factors = Factors { a: read(names[0])?, b: read(names[1])?, s, captured_energy: 0.0 };
            modules.push((module.clone(), factors));
        }
        let spec =
            config.basis.as_ref().map_or_else(|| only_rank(&config.method), |basis| basis.spec.clone());
        Ok(Some(Basis { spec, base_hash: config.base_hash.clone(), modules }))
    }

    /// The other frozen tensors in the file, by the names that methods give them.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn stored_frozen(&self) -> Result<std::collections::BTreeMap<String, Tensor>> {
        let keys = self.tensors.names().filter(|key| self.layout == Layout::Peft && self.is_frozen(key));
        let read = |key: &str| {
            let name = layout::peft_name(key).unwrap_or(key).to_owned();
            Ok((name, self.tensors.tensor(key, Some(Kind::Float), Device::Cpu)?))
        };
        keys.map(read).collect()
    }

    /// The key in the file of a tensor that this program calls `name`.
    pub(super) fn key(&self, name: &str) -> String {
        let core = name.strip_suffix(".R").filter(|_| self.layout == Layout::Published);
        match (self.layout, core) {
            (Layout::Own, _) => name.to_owned(),
            (_, None) => layout::peft_key(name),
            (_, Some(module)) => {
                let [saved, loaded] = layout::latent_keys(module);
                if self.tensors.contains(&loaded) { loaded } else { saved }
            }
        }
    }

    /// Whether `key` names a factor that is not trained.
    pub(super) fn is_frozen(&self, key: &str) -> bool {
        let name = layout::peft_name(key).unwrap_or(key);
        match self.config.method {
            Method::Vera { .. } => vera::PAIR.contains(&name),
            Method::TinyLora { .. } => tiny_lora::FROZEN.iter().any(|suffix| name.ends_with(suffix)),
            Method::LoraXs { .. } => lora::FACTORS.iter().any(|suffix| name.ends_with(suffix)),
            _ => false,
        }
    }
}

fn open_own(folder: &Path) -> Result<AdapterFile> {
    let path = folder.join(CONFIG);
    let json: Json = files::read_json(&path)?;
    let known = ["lora-xs", "lora-mini", "full", "head"];
    let method = json.get("method").and_then(Value::as_str).unwrap_or_default();
    if !known.contains(&method) {
        return Err(fault(format!("the unknown `method` `{method}`"))
            .hint(format!("known methods are `{}`", known.join("`, `")))
            .into());
    }
    check_types(&json)?;
    let mut config: AdapterConfig = files::read_json(&path)?;
    if config.method.basis_rank().is_some() {
        config.basis = Some(files::read_json::<BasisRecord>(&path)?);
    }
    check_numbers(&config)?;
    let tensors = Tensors::open(&[folder.join(WEIGHTS)])?;
    let count = config.modules.len() as i64;
    let expected = match config.method {
        Method::LoraXs { r, .. } => vec![(STACKS[0].0, [count, r, r])],
        Method::LoraMini { rank_a, rank_b, r, .. } => {
            vec![(STACKS[1].0, [count, rank_a, r]), (STACKS[2].0, [count, r, rank_b])]
        }
        _ => Vec::new(),
    };
    for (stack, _) in STACKS {
        let wanted = expected.iter().find(|(name, _)| *name == stack).map(|(_, shape)| shape.as_slice());
        match (tensors.shape(stack), wanted) {
            (found, wanted) if found == wanted => {}
            (Some(_), None) => {
                let method = config.method.name();
                return Err(fault(format!(
                    "it says `{method}`, but the file beside it holds cores `{stack}`"
                ))
                .into());
            }
            (found, wanted) => {
                return Err(fault(format!(
                    "`{}` holds cores of shape {:?}, its config says {:?}",
                    folder.join(WEIGHTS).display(),
                    found.unwrap_or_default(),
                    wanted.unwrap_or_default()
                ))
                .into());
            }
        }
    }
    Ok(AdapterFile { config, layout: Layout::Own, tensors })
}

/// Refuses settings of another type than a method has. Read through a tagged enum, they would be refused without a name.
fn check_types(json: &Json) -> Result<()> {
    for (key, value) in json {
        let expected = match key.as_str() {
            "r" | "rank_a" | "rank_b" if !value.is_i64() => "a whole number",
            "lora_alpha" if !value.is_number() => "a number",
            _ => continue,
        };
        return Err(fault(format!("`{key}`: expected {expected}, found {value}")).into());
    }
    Ok(())
}

/// Refuses numbers that no training writes.
fn check_numbers(config: &AdapterConfig) -> Result<()> {
    let (numbers, alpha) = match config.method {
        Method::LoraXs { r, lora_alpha } => (vec![r], lora_alpha),
        Method::LoraMini { rank_a, rank_b, r, lora_alpha } => (vec![r, rank_a, rank_b], lora_alpha),
        _ => return Ok(()),
    };
    if numbers.iter().any(|&r| r < 1) || !(alpha.is_finite() && alpha > 0.0) {
        let message =
            format!("expected `r` of at least 1 and `lora_alpha` above 0, found {numbers:?} and {alpha}");
        return Err(fault(message).into());
    }
    let [modules, witness] = [config.modules.len(), config.basis.as_ref().map_or(0, |b| b.witness.len())];
    if modules == 0 || modules != witness {
        return Err(
            fault(format!("expected a witness for each module, found {witness} for {modules}")).into()
        );
    }
    Ok(())
}

/// An adapter in PEFT's layout, from PEFT or from this program, or in that of the published LoRA-XS code.
fn open_foreign(folder: &Path, json: &Json) -> Result<AdapterFile> {
    let mut method = peft_config::read(json)?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() {
        return Err(fault(format!("there is no `{WEIGHTS}` beside it"))
            .hint("an `adapter_model.bin` must be saved again as safetensors (`save_pretrained` of a recent PEFT)")
            .into());
    }
    let tensors = Tensors::open(&[weights])?;
    let latent = tensors.names().any(|key| layout::latent_module(key).is_some());
    let layout = if latent || squared(folder)? { Layout::Published } else { Layout::Peft };
    if let (Layout::Published, Method::Lora { r, .. }) = (layout, &method) {
        method = Method::LoraXs { r: *r, lora_alpha: method.scale() * *r as f64 };
    }
    let mut config = AdapterConfig {
        task_type: json.get("task_type").and_then(Value::as_str).unwrap_or_default().to_owned(),
        base_model_name_or_path: text(json, "base_model_name_or_path"),
        revision: text(json, "revision"),
        base_hash: String::new(),
        dataset: String::new(),
        labels: Vec::new(),
        max_length: 0,
        target_modules: Vec::new(),
        modules: modules(&tensors, &method, layout)?,
        basis: (layout == Layout::Published).then(|| BasisRecord {
            spec: only_rank(&method),
            witness: Vec::new(),
            with_basis: true,
        }),
        method,
    };
    config.target_modules.clone_from(&config.modules);
    let notes = folder.join(NOTES);
    if notes.exists() {
        let notes: AdapterConfig = files::read_json(&notes)?;
        config =
            AdapterConfig { method: config.method, modules: config.modules, basis: config.basis, ..notes };
    }
    Ok(AdapterFile { config, layout, tensors })
}

fn text(json: &Json, key: &str) -> String {
    json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Whether the published code's settings lie beside the folder and say that there is a core between A and B.
fn squared(folder: &Path) -> Result<bool> {
    let Some(path) = folder.parent().map(|parent| parent.join(RECONSTRUCTION)).filter(|path| path.exists())
    else {
        return Ok(false);
    };
    let json: Json = files::read_json(&path)?;
    Ok(json.get("r_squared").and_then(Value::as_bool).unwrap_or(false))
}

/// A basis of which only the rank is known.
fn only_rank(method: &Method) -> BasisSpec {
    BasisSpec { rank: method.basis_rank().unwrap_or(0), ..BasisSpec::default() }
}

/// The adapted layers of a file, each named by one tensor that every layer has.
fn modules(tensors: &Tensors, method: &Method, layout: Layout) -> Result<Vec<String>> {
    let ending = match method {
        Method::Lora { .. } => lora::FACTORS[0],
        Method::Vera { .. } => vera::SCALES[0],
        _ => tiny_lora::FROZEN[0],
    };
    let module = |key: &str| match layout {
        Layout::Published => layout::latent_module(key).map(str::to_owned),
        _ => layout::peft_name(key)?.strip_suffix(ending)?.strip_suffix('.').map(str::to_owned),
    };
    let found: Vec<String> = tensors.names().filter_map(module).collect();
    if found.is_empty() {
        let what = if layout == Layout::Published { "core" } else { ending };
        return Err(fault(format!("`{WEIGHTS}` holds no `{what}` of any layer")).into());
    }
    Ok(found)
}
