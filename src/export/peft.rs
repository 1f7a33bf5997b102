//! A plain LoRA adapter in PEFT's layout: `lora_A = A`, `lora_B = B·R`, same rank, same alpha.
//!
//! Exact in real arithmetic; multiplied and stored in fp32. Key names as PEFT strips them of the adapter's name
//! (github.com/huggingface/peft at 5d602fd, `utils/save_and_load.py`).

use std::path::Path;

use serde_json::json;
use tch::{Tensor, no_grad};

use super::{Source, relative_difference};
use crate::adapters::file::{AdapterConfig, CONFIG, CoresConfig, WEIGHTS};
use crate::adapters::{Adapter, Group};
use crate::fault::{Result, fault};
use crate::files;
use crate::models::adapt::{Layer, targeted};
use crate::torch::tensor_file::{self, TensorFile};

const ROOT: &str = "base_model.model";

/// Writes the adapter into `folder`; returns the largest relative difference of any ΔW from the adapter's own.
///
/// # Errors
/// When the method has no low-rank form, or a file cannot be written.
pub fn write(folder: &Path, source: &Source, adapter: &AdapterConfig) -> Result<f64> {
    let Some(cores) = &adapter.cores else {
        return Err(fault(format!("the method `{}` has no form as a LoRA", adapter.method))
            .hint("write a merged checkpoint by `--format hf`")
            .into());
    };
    let mut tensors = Vec::new();
    for (name, adapter) in adapted(source) {
        let Some((a, b)) = adapter.lora_factors(0) else {
            return Err(fault(format!("the adapter of `{name}` has no low-rank form")).into());
        };
        tensors.push((format!("{ROOT}.{name}.lora_A.weight"), a));
        tensors.push((format!("{ROOT}.{name}.lora_B.weight"), b));
    }
    let head = source.trained_tensors(&[Group::Head]);
    let saved = head_modules(&head);
    tensors.extend(head.into_iter().map(|(name, tensor)| (format!("{ROOT}.{name}"), tensor)));
    let views: Vec<(String, &Tensor)> = tensors.iter().map(|(name, tensor)| (name.clone(), tensor)).collect();
    tensor_file::write(&folder.join(WEIGHTS), &[("format", "pt".into())], &views)?;
    let config = json!({
        "base_model_name_or_path": adapter.base_model_name_or_path,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": cores.lora_alpha,
        "lora_dropout": 0.0,
        "modules_to_save": saved,
        "peft_type": "LORA",
        "r": cores.r,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": target_modules(source, cores),
        "task_type": adapter.task_type,
        "use_dora": false,
        "use_rslora": false,
    });
    files::write_json(&folder.join(CONFIG), &config)?;
    difference(&folder.join(WEIGHTS), source, cores)
}

/// The adapted layers.
fn adapted<'a>(source: &'a Source) -> Vec<(&'a str, &'a dyn Adapter)> {
    let linears = source.model.encoder.linears();
    linears.into_iter().filter_map(|linear| Some((linear.name(), linear.adapter()?))).collect()
}

/// The modules that PEFT must restore whole: the first part of a head's path, or all of it below the trunk.
fn head_modules(head: &[(String, Tensor)]) -> Vec<String> {
    let module = |name: &str| {
        if name.contains(".pooler.") {
            "pooler".to_owned()
        } else {
            name.split('.').next().unwrap_or(name).to_owned()
        }
    };
    let mut modules: Vec<String> = head.iter().map(|(name, _)| module(name)).collect();
    modules.sort();
    modules.dedup();
    modules
}

/// The targets as the recipe named them where PEFT finds the same layers by them, else every layer's path.
fn target_modules(source: &Source, cores: &CoresConfig) -> Vec<String> {
    let mut all: Vec<Layer> = source.base.linear_layers();
    let heads = source.trained_tensors(&[Group::Head]);
    all.extend(heads.iter().filter_map(|(name, _)| Some((name.strip_suffix(".weight")?.to_owned(), [0, 0]))));
    match targeted(&all, &cores.target_modules) {
        Ok(found) if found.iter().map(|(name, _)| name).eq(cores.modules.iter()) => {
            cores.target_modules.clone()
        }
        _ => cores.modules.clone(),
    }
}

/// Reads the file back and compares each scaled product with the adapter's ΔW.
fn difference(path: &Path, source: &Source, cores: &CoresConfig) -> Result<f64> {
    let file = TensorFile::open(path)?;
    let mut largest: f64 = 0.0;
    for (name, adapter) in adapted(source) {
        let a = file.tensor(&format!("{ROOT}.{name}.lora_A.weight"))?;
        let b = file.tensor(&format!("{ROOT}.{name}.lora_B.weight"))?;
        let product = b.matmul(&a) * (cores.lora_alpha / cores.r as f64);
        let delta = no_grad(|| adapter.delta().get(0).to_device(tch::Device::Cpu));
        largest = largest.max(relative_difference(&delta, &product));
    }
    Ok(largest)
}
