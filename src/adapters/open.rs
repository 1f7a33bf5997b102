//! Opening an adapter folder: of this program, of PEFT, or of the published LoRA-XS code.

use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::basis::{Basis, BasisSpec};
use super::file::{AdapterConfig, AdapterFile, BasisRecord, CONFIG, NOTES, OWN, WEIGHTS};
use super::layout::{self, Layout, STACKS};
use super::peft_config::{self, Json};
use super::svd::Factors;
use super::{Method, Tying, lora, tiny_lora, vera};
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
        let own = json.get("peft_type").and_then(Value::as_str) == Some(OWN);
        let opened = if own { open_own(folder) } else { open_foreign(folder, &json) };
        opened.with_context(|| format!("cannot use the adapter `{}`", folder.display()))
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
    /// When one cannot be read, or the pair that the config promises is not there.
    pub fn stored_frozen(&self) -> Result<std::collections::BTreeMap<String, Tensor>> {
        if let Method::Vera { save_projection, .. } = self.config.method {
            let [a, b] = vera::PAIR.map(|name| self.tensors.contains(&layout::peft_key(name)));
            if a != b || save_projection && !a {
                let missing = vera::PAIR[usize::from(a)];
                return Err(fault(format!("`{WEIGHTS}` lacks `{missing}`, half of the shared pair"))
                    .hint("only `save_projection` false says that the pair is drawn again from its seed")
                    .into());
            }
        }
        let keys = self.tensors.names().filter(|key| self.layout == Layout::Peft && self.is_frozen(key));
        let read = |key: &str| {
            let name = layout::peft_name(key).unwrap_or(key).to_owned();
            Ok((name, self.tensors.tensor(key, Some(Kind::Float), Device::Cpu)?))
        };
        keys.map(read).collect()
    }

    /// The key in the file of a tensor that this program calls `name`.
    pub(super) fn key(&self, name: &str) -> String {
        if let (Method::TinyLora { tying: Tying::Kind, .. }, Some(group)) =
            (&self.config.method, name.strip_prefix(tiny_lora::VECTOR))
        {
            // Any copy will do: that of the group's first layer.
            let names: Vec<&str> = self.config.modules.iter().map(String::as_str).collect();
            let groups = self.config.method.groups(&names);
            let first = groups.iter().position(|known| known.to_string() == group).unwrap_or(groups.len());
            return layout::peft_key(&format!("{}{first}", tiny_lora::VECTOR));
        }
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
        if self.layout == Layout::Own {
            let stored = self.config.basis.as_ref().is_some_and(|basis| basis.with_basis);
            let module = name.strip_suffix(".A").or_else(|| name.strip_suffix(".B"));
            return stored && module.is_some_and(|module| self.config.modules.iter().any(|m| m == module));
        }
        match self.config.method {
            Method::Vera { .. } => vera::PAIR.contains(&name),
            // Layers tied by kind have a copy each.
            Method::TinyLora { tying: Tying::Kind, .. } if name.starts_with(tiny_lora::VECTOR) => true,
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
    let mut names: Vec<&String> = config.modules.iter().collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(fault(format!("`modules` names `{}` twice", twice[0])).into());
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
        config = with_notes(config, files::read_json(&notes)?)?;
    }
    check_head(json, &tensors)?;
    Ok(AdapterFile { config, layout, tensors })
}

/// What PEFT's config says, and what only this program's notes do: the order of the layers, and how they are tied.
fn with_notes(config: AdapterConfig, notes: AdapterConfig) -> Result<AdapterConfig> {
    let sorted = |modules: &[String]| {
        let mut names = modules.to_vec();
        names.sort_unstable();
        names
    };
    if sorted(&config.modules) != sorted(&notes.modules) {
        return Err(fault(format!("`{WEIGHTS}` holds other layers than `{NOTES}` names")).into());
    }
    let method = match (config.method, &notes.method) {
        (Method::TinyLora { r, u, projection_seed, .. }, &Method::TinyLora { untied, tying, .. }) => {
            Method::TinyLora { r, u, untied, tying, projection_seed }
        }
        (method, _) => method,
    };
    Ok(AdapterConfig { method, basis: config.basis, ..notes })
}

/// Refuses a file without the head that its config promises. PEFT lists every name that a head may have.
fn check_head(json: &Json, tensors: &Tensors) -> Result<()> {
    let saved: Vec<&str> = json
        .get("modules_to_save")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let holds = |name: &&str| {
        tensors.names().filter_map(layout::peft_name).any(|key| {
            key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
                || key.contains(&format!(".{name}."))
        })
    };
    if saved.is_empty() || saved.iter().any(holds) {
        return Ok(());
    }
    let message =
        format!("`modules_to_save` lists `{}`, which `{WEIGHTS}` does not hold", saved.join("`, `"));
    Err(fault(message).into())
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
    match json.get("r_squared") {
        None => Ok(false),
        Some(Value::Bool(squared)) => Ok(*squared),
        Some(found) => {
            let message = format!("`{}`: `r_squared`: expected true or false, found {found}", path.display());
            Err(fault(message).into())
        }
    }
}

/// A basis of which only the rank is known.
fn only_rank(method: &Method) -> BasisSpec {
    BasisSpec { rank: method.basis_rank().unwrap_or(0), ..BasisSpec::default() }
}

/// The adapted layers of a file: all that one of their tensors names, so that a layer with another missing is found out.
fn modules(tensors: &Tensors, method: &Method, layout: Layout) -> Result<Vec<String>> {
    let endings: &[&str] = match method {
        Method::Vera { .. } => &vera::SCALES,
        Method::TinyLora { .. } => &tiny_lora::FROZEN,
        _ => &lora::FACTORS,
    };
    let module = |key: &str| {
        let latent = layout::latent_module(key).filter(|_| layout == Layout::Published);
        let factor = || {
            let name = layout::peft_name(key)?;
            endings.iter().find_map(|ending| name.strip_suffix(ending)?.strip_suffix('.'))
        };
        latent.or_else(factor).map(str::to_owned)
    };
    let mut found: Vec<String> = Vec::new();
    for module in tensors.names().filter_map(module) {
        if !found.contains(&module) {
            found.push(module);
        }
    }
    if found.is_empty() {
        return Err(fault(format!("`{WEIGHTS}` holds no `{}` of any layer", endings[0])).into());
    }
    Ok(found)
}
