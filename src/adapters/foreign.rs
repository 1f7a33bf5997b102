//! Adapters of other programs: of PEFT, or of the published LoRA-XS code.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::Method;
use super::basis::BasisSpec;
use super::file::{AdapterConfig, AdapterFile, BasisRecord, CONFIG, NOTES, WEIGHTS};
use super::layout::{self, Layout};
use super::lora_xs::LoraXsConfig;
use super::peft_config::{self, Json};
use super::tiny_lora::TinyLoraConfig;
use crate::fault::{Result, fault};
use crate::files;
use crate::torch::tensors::Tensors;

/// Name of the published code's settings file, one folder up.
const RECONSTRUCTION: &str = "reconstr_config.json";

/// Opens an adapter in PEFT's layout, from PEFT or this program, or in that of the published LoRA-XS code.
pub(super) fn open(folder: &Path, json: &Json) -> Result<AdapterFile> {
    let mut method = peft_config::read(json)?;
    let weights = folder.join(WEIGHTS);
    if !weights.exists() {
        return Err(fault(format!("there is no `{WEIGHTS}` beside it"))
            .hint("save an `adapter_model.bin` again as safetensors (`save_pretrained` in a recent PEFT)")
            .into());
    }
    let tensors = Tensors::open(&[weights])?;
    let latent = tensors.names().any(|key| layout::latent_module(key).is_some());
    refuse_several(&tensors)?;
    let tensors = tensors.renamed(|key| layout::plain_name(key).0)?;
    let layout = if latent || squared(folder)? { Layout::Published } else { Layout::Peft };
    if let (Layout::Published, Method::Lora(lora)) = (layout, &method) {
        method = Method::LoraXs(LoraXsConfig { r: lora.r, lora_alpha: method.scale() * lora.r as f64 });
    }
    let mut config = AdapterConfig {
        task_type: json.get("task_type").and_then(Value::as_str).unwrap_or_default().to_owned(),
        problem_type: None,
        base_model_name_or_path: text(json, "base_model_name_or_path"),
        revision: text(json, "revision"),
        base_hash: String::new(),
        dataset: String::new(),
        labels: Vec::new(),
        max_length: 0,
        target_modules: Vec::new(),
        modules: modules(&tensors, &method)?,
        basis: (layout == Layout::Published).then(|| BasisRecord {
            spec: only_rank(&method),
            witness: Vec::new(),
            with_basis: true,
        }),
        method,
    };
    check_shapes(&config, &tensors)?;
    config.target_modules.clone_from(&config.modules);
    let notes = folder.join(NOTES);
    if notes.exists() {
        config = with_notes(config, files::read_json(&notes)?)?;
    }
    check_head(json, &tensors)?;
    Ok(AdapterFile { config, layout, tensors })
}

/// Refuses sizes in the config that differ from the tensors', before anything of those sizes is made.
fn check_shapes(config: &AdapterConfig, tensors: &Tensors) -> Result<()> {
    for module in &config.modules {
        for (ending, sides) in config.method.shapes() {
            check_shape(tensors, &format!("{module}.{ending}"), &sides)?;
        }
    }
    for (start, sides) in config.method.model_shapes()? {
        let named = tensors.names().filter(|name| name.starts_with(start));
        named.into_iter().try_for_each(|name| check_shape(tensors, name, &sides))?;
    }
    Ok(())
}

/// Refuses a tensor that is present with sides other than these.
fn check_shape(tensors: &Tensors, name: &str, sides: &[Option<i64>]) -> Result<()> {
    let Some(found) = tensors.shape(name) else { return Ok(()) };
    let fits = |(found, side): (&i64, &Option<i64>)| side.is_none_or(|side| side == *found);
    if found.len() == sides.len() && found.iter().zip(sides).all(fits) {
        return Ok(());
    }
    let side = |side: &Option<i64>| side.map_or("any".to_owned(), |side| side.to_string());
    let expected: Vec<String> = sides.iter().map(side).collect();
    let expected = expected.join(", ");
    Err(fault(format!("`{name}` of `{WEIGHTS}` has shape {found:?}, by `{CONFIG}` it is [{expected}]"))
        .hint("the two files belong to different adapters")
        .into())
}

/// Refuses a file of several adapters, which PEFT distinguishes by name.
fn refuse_several(tensors: &Tensors) -> Result<()> {
    let names: BTreeSet<&str> = tensors.names().filter_map(|key| layout::plain_name(key).1).collect();
    if names.len() < 2 {
        return Ok(());
    }
    let names: Vec<&str> = names.into_iter().collect();
    Err(fault(format!("`{WEIGHTS}` holds several adapters: `{}`", names.join("`, `")))
        .hint("save one of them alone: `save_pretrained(folder, selected_adapters=[name])` in PEFT")
        .into())
}

/// Adds to PEFT's config what only this program's notes record, such as the layers' order and tying.
fn with_notes(config: AdapterConfig, notes: AdapterConfig) -> Result<AdapterConfig> {
    let sorted = |modules: &[String]| {
        let mut names = modules.to_vec();
        names.sort_unstable();
        names
    };
    if sorted(&config.modules) != sorted(&notes.modules) {
        return Err(fault(format!("`{WEIGHTS}` has other layers than `{NOTES}` lists")).into());
    }
    let method = match (config.method, &notes.method) {
        (Method::TinyLora(peft), Method::TinyLora(own)) => {
            Method::TinyLora(TinyLoraConfig { untied: own.untied, tying: own.tying, ..peft })
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
        tensors.names().any(|key| {
            key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
                || key.contains(&format!(".{name}."))
        })
    };
    if saved.is_empty() || saved.iter().any(holds) {
        return Ok(());
    }
    let message =
        format!("`modules_to_save` lists `{}`, which `{WEIGHTS}` does not have", saved.join("`, `"));
    Err(fault(message).into())
}

fn text(json: &Json, key: &str) -> String {
    json.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// Returns true if the published code's settings are beside the folder and put a core between A and B.
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

/// Returns the spec of a basis of which only the rank is known.
pub(super) fn only_rank(method: &Method) -> BasisSpec {
    BasisSpec { rank: method.basis_rank().unwrap_or(0), ..BasisSpec::default() }
}

/// Returns the layers that any adapter tensor names, so that a layer with another missing is found out.
fn modules(tensors: &Tensors, method: &Method) -> Result<Vec<String>> {
    let endings: Vec<&str> = method.shapes().into_iter().map(|(ending, _)| ending).collect();
    let module = |name: &str| {
        let ending = endings.iter();
        ending.filter_map(|ending| name.strip_suffix(ending)?.strip_suffix('.')).next().map(str::to_owned)
    };
    // Each once, in the order of the tensors.
    let mut seen = BTreeSet::new();
    let found: Vec<String> =
        tensors.names().filter_map(module).filter(|name| seen.insert(name.clone())).collect();
    if found.is_empty() {
        return Err(fault(format!("`{WEIGHTS}` holds no `{}` of any layer", endings[0])).into());
    }
    Ok(found)
}
