//! A merged checkpoint: `W + ΔW` in fp32, one cast, and the rest of the base unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::AdaptedModel;
use crate::adapters::Group;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, fault};
use crate::files;
use crate::models::checkpoint::OUTPUT;
use crate::models::{Base, Classifier, Config, Model};
use crate::nn::Linear;
use crate::spec::Problem;
use crate::torch::{tensor_file, unforeseen};

/// Name prefixes of other files that are copied unchanged.
const COPIED: [&str; 4] = ["LICENSE", "NOTICE", "README.md", "USE_POLICY"];

/// Writes the merged checkpoint into `folder`; `kind`, if given, replaces the base's own.
/// Fails when a tensor cannot be read or a file cannot be written.
pub fn write(folder: &Path, source: &AdaptedModel, kind: Option<Kind>, shard_size: u64) -> Result<()> {
    write_shards(folder, source, &entries(source, kind), shard_size)?;
    files::write_json(&folder.join("config.json"), &config(source, kind))?;
    let base = &source.base.folder;
    for name in names(base, "")?.into_iter().chain(names(base, files::TEMPLATES)?) {
        if files::is_companion(&name) || COPIED.iter().any(|begin| name.starts_with(begin)) {
            files::write_bytes(&folder.join(&name), &files::read_bytes(&base.join(&name))?)?;
        }
    }
    Ok(())
}

/// Returns the sorted paths in `base` of the files of one of its folders; none if it does not exist.
fn names(base: &Path, folder: &str) -> Result<Vec<String>> {
    let place = base.join(folder);
    let mut found = Vec::new();
    for entry in place.is_dir().then(|| fs::read_dir(&place)).transpose()?.into_iter().flatten() {
        let entry = entry?;
        let name = Path::new(folder).join(entry.file_name());
        if let Some(name) = name.to_str().filter(|_| entry.path().is_file()) {
            found.push(name.to_owned());
        }
    }
    found.sort();
    Ok(found)
}

/// A tensor of the merged checkpoint, not yet computed.
struct Entry<'a> {
    kind: Kind,
    numbers: usize,
    part: Part<'a>,
}

/// Source of a tensor's numbers.
enum Part<'a> {
    /// The base, under this name.
    Stored(String),
    /// W + ΔW.
    Merged(&'a Linear),
    /// The trained tensors.
    Trained(Tensor),
}

impl Entry<'_> {
    fn bytes(&self) -> u64 {
        (self.numbers * self.kind.elt_size_in_bytes()) as u64
    }

    fn compute(&self, source: &AdaptedModel) -> Result<Tensor> {
        let value = match &self.part {
            Part::Stored(name) => source.base.tensors.tensor(name, None, source.model.device())?,
            Part::Merged(linear) => {
                linear.merged().ok_or_else(|| unforeseen(&format!("`{}` cannot be merged", linear.name())))?
            }
            Part::Trained(tensor) => tensor.shallow_clone(),
        };
        Ok(value.to_kind(self.kind))
    }
}

/// Returns trunk and head by canonical name, sorted.
fn entries<'a>(source: &AdaptedModel<'a>, kind: Option<Kind>) -> BTreeMap<String, Entry<'a>> {
    let tensors = &source.base.tensors;
    let mut found: BTreeMap<String, Entry> = BTreeMap::new();
    let mut head_kind = kind.unwrap_or(Kind::Float);
    for (canonical, name) in source.base.trunk_tensors() {
        // A head without a pooler has none in the trunk, and no head is a language model's; Transformers would call them unexpected.
        let superfluous = match source.model {
            Model::Classifier(model) => {
                canonical == OUTPUT
                    || canonical.contains(".pooler.") && !model.config.pools(model.shape.problem)
            }
            Model::Language(_) => false,
        };
        // Nor does any layer read integers or types that libtorch lacks: loading the model warned about them.
        if superfluous || !tensors.is_float(&name) {
            continue;
        }
        let shape = tensors.shape(&name).unwrap_or_default();
        let target = kind.or(tensors.kind(&name)).unwrap_or(head_kind);
        head_kind = target;
        let canonical = canonical
            .replace("LayerNorm.gamma", "LayerNorm.weight")
            .replace("LayerNorm.beta", "LayerNorm.bias");
        let numbers = usize::try_from(shape.iter().product::<i64>()).unwrap_or(0);
        found.insert(canonical, Entry { kind: target, numbers, part: Part::Stored(name) });
    }
    let kind_of = |found: &BTreeMap<String, Entry>, name: &str| found.get(name).map_or(head_kind, |e| e.kind);
    for linear in source.model.linears().into_iter().filter(|linear| linear.adapter().is_some()) {
        let name = format!("{}.weight", linear.name());
        let (kind, numbers) =
            (kind_of(&found, &name), usize::try_from(linear.shape().iter().product::<i64>()).unwrap_or(0));
        found.insert(name, Entry { kind, numbers, part: Part::Merged(linear) });
    }
    for (name, tensor) in source.trained_tensors(&[Group::Base, Group::Head]) {
        let (kind, numbers) = (kind_of(&found, &name), tensor.numel());
        found.insert(name, Entry { kind, numbers, part: Part::Trained(tensor) });
    }
    found
}

/// Writes one file if everything fits, else numbered shards with an index. Holds one shard at a time.
fn write_shards(
    folder: &Path,
    source: &AdaptedModel,
    entries: &BTreeMap<String, Entry>,
    shard_size: u64,
) -> Result<()> {
    let mut shards: Vec<Vec<&String>> = vec![Vec::new()];
    let mut filled = 0;
    for (name, entry) in entries {
        if filled > 0 && filled + entry.bytes() > shard_size {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += entry.bytes();
        if let Some(shard) = shards.last_mut() {
            shard.push(name);
        }
    }
    let metadata = [("format", "pt".to_owned())];
    let write = |file: &str, names: &[&String]| -> Result<()> {
        let computed: Vec<(String, Tensor)> = names
            .iter()
            .filter_map(|name| entries.get(*name).map(|entry| (name, entry)))
            .map(|(name, entry)| Ok(((*name).clone(), entry.compute(source)?)))
            .collect::<Result<_>>()?;
        tensor_file::write(&folder.join(file), &metadata, &computed)
    };
    if let [only] = shards.as_slice() {
        return write("model.safetensors", only);
    }
    let mut weight_map = BTreeMap::new();
    for (i, shard) in shards.iter().enumerate() {
        let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
        write(&file, shard)?;
        weight_map.extend(shard.iter().map(|name| ((*name).clone(), file.clone())));
    }
    let total: u64 = entries.values().map(Entry::bytes).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    files::write_json(&folder.join("model.safetensors.index.json"), &index)
}

/// Returns the base's `config.json`; for a classifier, with its architecture and labels.
pub(super) fn config(source: &AdaptedModel, kind: Option<Kind>) -> Map<String, Value> {
    let (of_base, problem) = match source.model {
        Model::Classifier(model) => (&model.config, Some(model.shape.problem)),
        Model::Language(_) => (&source.base.config, None),
    };
    let mut config = of_base.raw.clone();
    config.insert("architectures".into(), json!([format!("{}{}", of_base.class, Problem::class(problem))]));
    match (problem, of_base) {
        (Some(problem), _) => describe_classifier(&mut config, problem, source.labels),
        (None, Config::Decoder(decoder)) if source.base.has_output_layer() && decoder.tied => {
            // As the weights have it: readers that trust the config would leave out the output layer.
            config.insert("tie_word_embeddings".into(), json!(false));
        }
        (None, _) => {}
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

/// Gives a classifier on a decoder whose config has none a padding token, by which Transformers finds the ends of padded texts: the
/// tokenizer's, else a special token that does not end every text.
/// Fails when there is no such token.
pub fn settle_padding(base: &Base, model: &mut Classifier) -> Result<()> {
    if !base.config.is_decoder() || base.config.padding().is_some() {
        return Ok(());
    }
    let tokenizer = Tokenizer::load(&base.folder)?;
    let last = tokenizer.encode_whole("")?.last().copied();
    let named = |wanted: &str| tokenizer.token_id(wanted);
    let candidates = [named("pad_token"), tokenizer.eos().ok(), named("unk_token"), named("bos_token")];
    let fits = |id: &u32| Some(*id) != last && i64::from(*id) < base.config.vocabulary;
    let found = candidates.into_iter().flatten().find(fits).ok_or_else(|| {
        fault("the base has no token that could be the padding of a batch")
            .hint("set `pad_token_id` in its config.json")
    })?;
    model.config.set_padding(found);
    Ok(())
}

fn describe_classifier(config: &mut Map<String, Value>, problem: Problem, labels: &[String]) {
    let names: Vec<String> =
        if problem == Problem::Regression { vec!["LABEL_0".into()] } else { labels.to_vec() };
    let id2label: Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| (id.to_string(), json!(name))).collect();
    let label2id: Map<String, Value> =
        names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
    config.insert("id2label".into(), id2label.into());
    config.insert("label2id".into(), label2id.into());
    config.remove("num_labels");
    match problem {
        Problem::Tokens => drop(config.remove("problem_type")),
        _ => drop(config.insert("problem_type".into(), json!(problem))),
    }
}

/// Returns the size in bytes of the weights in a written folder.
/// Fails when the folder cannot be read.
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
