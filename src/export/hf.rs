//! A merged checkpoint: `W + ΔW` in fp32, one cast, and everything else of the base as it was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor, no_grad};

use super::Source;
use crate::adapters::Group;
use crate::data::tokenize;
use crate::fault::Result;
use crate::files;
use crate::models::Config;
use crate::models::config::HeadKind;
use crate::torch::tensor_file;

/// Files of a checkpoint folder that are copied as they are, besides those of its tokenizer.
const COPIED: [&str; 4] = ["generation_config.json", "LICENSE", "LICENSE.txt", "README.md"];

/// Writes the merged checkpoint into `folder`; `kind` replaces the base's own where given.
///
/// # Errors
/// When a tensor cannot be read or a file cannot be written.
pub fn write(folder: &Path, source: &Source, kind: Option<Kind>, shard_size: u64) -> Result<()> {
    let tensors = merged(source, kind)?;
    write_shards(folder, &tensors, shard_size)?;
    files::write_json(&folder.join("config.json"), &config(source, kind))?;
    for name in tokenize::FILES.into_iter().chain(COPIED) {
        let from = source.base.folder.join(name);
        if from.exists() {
            files::write_bytes(&folder.join(name), &files::read_bytes(&from)?)?;
        }
    }
    Ok(())
}

/// Trunk and head by canonical name, sorted.
fn merged(source: &Source, kind: Option<Kind>) -> Result<Vec<(String, Tensor)>> {
    let tensors = &source.base.tensors;
    let mut found: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut head_kind = kind.unwrap_or(Kind::Float);
    for (canonical, name) in source.base.trunk_tensors() {
        // RoBERTa's classifier has no pooler in the trunk; Transformers would call it unexpected.
        let two_layer = matches!(&source.base.config, Config::Encoder(c) if c.head == HeadKind::TwoLayer);
        if two_layer && canonical.contains(".pooler.") {
            continue;
        }
        let stored = tensors.tensor(&name, None, source.model.device())?;
        let target = kind.unwrap_or(stored.kind());
        head_kind = target;
        let canonical = canonical
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias");
        found.insert(canonical, stored.to_kind(target));
    }
    for linear in source.model.linears() {
        let Some(adapter) = linear.adapter() else { continue };
        let name = format!("{}.weight", linear.name());
        let target = found.get(&name).map_or(head_kind, Tensor::kind);
        let sum = no_grad(|| linear.weight().to_kind(Kind::Float) + adapter.delta().get(0));
        found.insert(name, sum.to_kind(target));
    }
    for (name, tensor) in source.trained_tensors(&[Group::Base, Group::Head]) {
        let target = found.get(&name).map_or(head_kind, Tensor::kind);
        found.insert(name, tensor.to_kind(target));
    }
    Ok(found.into_iter().collect())
}

/// One file where everything fits, else numbered shards with an index.
fn write_shards(folder: &Path, tensors: &[(String, Tensor)], shard_size: u64) -> Result<()> {
    let size = |tensor: &Tensor| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
    let mut shards: Vec<Vec<(String, &Tensor)>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, tensor) in tensors {
        if filled > 0 && filled + size(tensor) > shard_size {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += size(tensor);
        if let Some(shard) = shards.last_mut() {
            shard.push((name.clone(), tensor));
        }
    }
    let metadata = [("format", "pt".to_owned())];
    if let [only] = shards.as_slice() {
        return tensor_file::write(&folder.join("model.safetensors"), &metadata, only);
    }
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        tensor_file::write(&folder.join(&file), &metadata, shard)?;
        weight_map.extend(shard.iter().map(|(name, _)| (name.clone(), file.clone())));
    }
    let total: u64 = tensors.iter().map(|(_, tensor)| size(tensor)).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    files::write_json(&folder.join("model.safetensors.index.json"), &index)
}

/// The base's `config.json`; of a classifier, with its architecture and labels.
fn config(source: &Source, kind: Option<Kind>) -> Map<String, Value> {
    let mut config = source.base.config.raw().clone();
    match &source.base.config {
        Config::Encoder(encoder) => describe_classifier(&mut config, &encoder.architecture, source.labels),
        Config::Decoder(decoder) => {
            drop(config.insert("architectures".into(), json!([decoder.architecture])))
        }
    }
    if let Some(kind) = kind {
        let name = match kind {
            Kind::Half => "float16",
            Kind::BFloat16 => "bfloat16",
            _ => "float32",
        };
        // Transformers called the key `torch_dtype` before version 5.
        let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        config.insert(key.into(), json!(name));
    }
    config
}

fn describe_classifier(config: &mut Map<String, Value>, architecture: &str, labels: &[String]) {
    config.insert("architectures".into(), json!([architecture]));
    let regression = labels.is_empty();
    let names: Vec<String> = if regression { vec!["LABEL_0".into()] } else { labels.to_vec() };
    let id2label: Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let label2id: Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    config.insert("id2label".into(), id2label.into());
    config.insert("label2id".into(), label2id.into());
    config.remove("num_labels");
    let problem = if regression { "regression" } else { "single_label_classification" };
    config.insert("problem_type".into(), json!(problem));
}

/// The bytes of the weights in a written folder.
///
/// # Errors
/// When the folder cannot be read.
pub fn weight_bytes(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "safetensors") {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}
