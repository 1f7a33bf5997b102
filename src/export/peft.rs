//! A plain LoRA adapter in PEFT's layout, for any method whose ΔW has low rank: for LoRA-XS `lora_A = A`,
//! `lora_B = B·R`, same rank, same alpha.
//!
//! Exact in real arithmetic; multiplied in fp32.

use std::path::Path;

use tch::{Kind, Tensor, no_grad};

use super::{AdaptedModel, hf, relative_difference};
use crate::adapters::file::{AdapterConfig, CONFIG, NOTES, WEIGHTS};
use crate::adapters::lora::{FACTORS, LoraConfig};
use crate::adapters::peft_config::{self, About};
use crate::adapters::{Adapter, Group, Method, layout};
use crate::fault::{Result, fault};
use crate::files;
use crate::models::Model;
use crate::torch::tensor_file::{self, TensorFile};

/// Writes the adapter into `folder` in `kind`; returns the largest relative error of any ΔW.
/// Fails when the method has no low-rank form, or a file cannot be written.
pub fn write(folder: &Path, source: &AdaptedModel, adapter: &AdapterConfig, kind: Kind) -> Result<f64> {
    let mut tensors = Vec::new();
    let mut plain = None;
    for (name, adapter) in adapted(source) {
        let Some((a, b)) = adapter.lora_factors(0) else {
            return Err(fault(format!("the adapter of `{name}` has no low-rank form")).into());
        };
        let r = a.size2()?.0;
        plain =
            Some(Method::Lora(LoraConfig { r, lora_alpha: adapter.scale(0) * r as f64, use_rslora: false }));
        for (suffix, factor) in FACTORS.into_iter().zip([a, b]) {
            tensors.push((layout::peft_key(&format!("{name}.{suffix}")), factor));
        }
    }
    let Some(plain) = plain else {
        let method = adapter.method.name();
        return Err(fault(format!("the method `{method}` cannot be written as a LoRA"))
            .hint("write a merged checkpoint with `--format hf`")
            .into());
    };
    let head = source.trained_tensors(&[Group::Head]);
    let about = About {
        task_type: &adapter.task_type,
        base: &adapter.base_model_name_or_path,
        targets: &adapter.target_modules,
        saved: layout::saved_modules(head.iter().map(|(name, _)| name.as_str())),
        layers: adapter.modules.len(),
    };
    files::write_json(&folder.join(CONFIG), &peft_config::write(&plain, &about)?)?;
    // PEFT's config has no place for labels: this program reads its notes, Transformers the base's config with labels.
    files::write_json(
        &folder.join(NOTES),
        &AdapterConfig { method: plain.clone(), basis: None, ..adapter.clone() },
    )?;
    if matches!(source.model, Model::Classifier(_)) {
        files::write_json(&folder.join("config.json"), &hf::config(source, None))?;
    }
    tensors.extend(head.into_iter().map(|(name, tensor)| (layout::peft_key(&name), tensor)));
    tensors.iter_mut().for_each(|(_, tensor)| *tensor = tensor.to_kind(kind));
    tensor_file::write(&folder.join(WEIGHTS), &[("format", "pt".into())], &tensors)?;
    difference(&folder.join(WEIGHTS), source, &plain)
}

/// Returns the adapted layers.
fn adapted<'a>(source: &'a AdaptedModel) -> Vec<(&'a str, &'a dyn Adapter)> {
    let linears = source.model.linears();
    linears.into_iter().filter_map(|linear| Some((linear.name(), linear.adapter()?))).collect()
}

/// Reads the file back and compares each scaled product with the adapter's ΔW.
fn difference(path: &Path, source: &AdaptedModel, plain: &Method) -> Result<f64> {
    let file = TensorFile::open(path)?;
    let mut largest: f64 = 0.0;
    for (name, adapter) in adapted(source) {
        let read = |suffix: &str| -> Result<Tensor> {
            Ok(file.tensor(&layout::peft_key(&format!("{name}.{suffix}")))?.to_kind(Kind::Float))
        };
        let [a, b] = FACTORS.map(read);
        let product = b?.matmul(&a?) * plain.scale();
        let delta = no_grad(|| adapter.delta().get(0).to_device(tch::Device::Cpu));
        let found = relative_difference(&delta, &product);
        largest = if found.is_nan() { found } else { largest.max(found) };
        if largest.is_nan() {
            break;
        }
    }
    Ok(largest)
}
