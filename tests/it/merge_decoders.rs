//! Merged decoders: files, names, kinds and shards of the folder, and the held-out loss of run, merged folder and plain
//! LoRA. What Transformers and PEFT make of them is checked by `scripts/reference/decoder_export_check.py`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::bench::copied;
use crate::support::{Place, fixture, json};

/// Untied, tied in shards, extra norms and caps, fused projections.
const CHECKPOINTS: [&str; 4] = ["llama-biased", "llama-llama3-old", "gemma2-capped", "phi3-window"];

type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Every tensor of a checkpoint folder; none may stand in two files.
fn stored(folder: &Path) -> Stored {
    let mut found = Stored::new();
    for path in weight_files(folder) {
        let bytes = fs::read(&path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            assert!(found.insert(name.to_owned(), tensor).is_none(), "{name} is stored twice");
        }
    }
    found
}

fn weight_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")).collect()
}

/// A place with a run of three steps on a checkpoint.
fn trained(base: &Path) -> Place {
    let place = Place::of_decoders();
    let recipe = format!(
        "[model]\nname = {base:?}\n[adapter]\nrank = 4\nalpha = 8\n[data]\ndataset = \"tiny/instructions\"\n\
         max_length = 84\n[train]\nmax_steps = 3\nbatch_size = 4\nlearning_rate = 0.01\nwarmup_ratio = 0.0\n\
         schedule = \"constant\"\n[eval]\nevery = \"never\"\n"
    );
    place.train(&recipe, "run", &[]);
    place
}

/// Merges the run; the difference that is printed.
fn merge(place: &Place, out: &str, more: &[&str]) -> f64 {
    let output = place.run(&[&["merge", "--run", "run", "--out", out], more].concat(), 0);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .next()
        .unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .parse()
        .unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The held-out loss.
fn loss(place: &Place, subject: &[&str]) -> f64 {
    let args = ["eval", "--task", "tiny/instructions", "--max-length", "84", "--out", "scored"];
    place.run(&[&args, subject].concat(), 0);
    let results: Value = json(&place.path("scored/results.json"));
    results["tiny/instructions"]["metrics"]["loss"]["value"].as_f64().unwrap()
}

fn same(found: f64, expected: f64) -> bool {
    (found / expected - 1.0).abs() < 1e-6
}

/// `config.json` but for what a merge may change.
fn config(folder: &Path) -> Map<String, Value> {
    let mut config: Map<String, Value> = json(&folder.join("config.json"));
    config.retain(|key, _| !["dtype", "torch_dtype", "architectures"].contains(&key.as_str()));
    config
}

fn assert_folder_is_the_bases(base: &Path, merged: &Path) {
    for name in ["generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(base.join(name)).unwrap(), fs::read(merged.join(name)).unwrap(), "{name}");
    }
    assert_eq!(config(merged), config(base));
    // So that tied weights are not written twice, and nothing else is lost or added.
    let (base, merged) = (stored(base), stored(merged));
    assert_eq!(merged.keys().collect::<Vec<_>>(), base.keys().collect::<Vec<_>>());
    for (name, (_, shape, _)) in &base {
        assert_eq!(&merged[name].1, shape, "{name}");
    }
}

#[test]
fn merged_decoders_keep_files_names_and_kinds() {
    for name in CHECKPOINTS {
        let base = fixture("decoders").join(name);
        let place = trained(&base);
        let difference = merge(&place, "merged", &[]);
        let merged = place.path("merged");
        assert_folder_is_the_bases(&base, &merged);
        let (before, after) = (stored(&base), stored(&merged));
        for (tensor, (kind, _, bytes)) in &before {
            assert_eq!(after[tensor].0, *kind, "{name}: {tensor}");
            assert_eq!(&after[tensor].2 != bytes, tensor.ends_with("_proj.weight"), "{name}: {tensor}");
        }
        let kind = before.values().next().unwrap().0;
        let limit = if kind == Dtype::F32 { 1e-5 } else { 0.1 };
        assert!(difference < limit, "{name}: {difference:e} in {kind:?}");
        let [own, written] = [&base, &merged].map(|folder| json::<Value>(&folder.join("config.json")));
        for key in ["dtype", "torch_dtype"] {
            assert_eq!(own.get(key), written.get(key), "{name}");
        }
    }
}

#[test]
fn what_tokenizer_processor_and_generation_are_read_from_goes_along() {
    let place = Place::of_decoders();
    let base = copied(&fixture("decoders/qwen3-normed"), &place.path("base"));
    fs::create_dir(base.join("additional_chat_templates")).unwrap();
    let along = [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "LICENSE.txt",
        "merges.txt",
        "processor_config.json",
        "qwen.tiktoken",
        "tokenization_qwen.py",
        "tokenizer.model",
        "vocab.json",
    ];
    let behind = ["additional_chat_templates/notes.txt", "optimizer.pt", "trainer_state.json", "model.onnx"];
    for name in along.into_iter().chain(behind) {
        let text = if name.ends_with(".json") { "{}" } else { "{{ messages[0].content }}" };
        fs::write(base.join(name), text).unwrap();
    }
    let recipe = format!(
        "[model]\nname = {base:?}\n[adapter]\nrank = 2\n[data]\ndataset = \"tiny/instructions\"\n\
         max_length = 84\n[train]\nmax_steps = 1\nbatch_size = 2\n[eval]\nevery = \"never\"\n"
    );
    place.train(&recipe, "run", &[]);
    place.run(&["merge", "--run", "run", "--out", "merged"], 0);
    for name in along {
        assert_eq!(
            fs::read(base.join(name)).unwrap(),
            fs::read(place.path("merged").join(name)).unwrap(),
            "{name}"
        );
    }
    for name in behind {
        assert!(!place.path("merged").join(name).exists(), "{name}");
    }
}

#[test]
fn run_merged_folder_shards_and_plain_lora_have_one_held_out_loss() {
    for name in CHECKPOINTS {
        let base = fixture("decoders").join(name);
        let (place, base_name) = (trained(&base), base.to_str().unwrap());
        let expected = loss(&place, &["--run", "run"]);
        assert!(!same(loss(&place, &["--model", base_name]), expected), "{name}: nothing was learnt");
        let whole = merge(&place, "whole", &["--dtype", "fp32"]);
        let sharded = merge(&place, "shards", &["--dtype", "fp32", "--max-shard-size", "20KB"]);
        let lora = merge(&place, "lora", &["--format", "peft"]);
        println!("{name}: {whole:.1e} whole, {sharded:.1e} in shards, {lora:.1e} as a LoRA");
        assert!(whole < 1e-5 && sharded < 1e-5 && lora < 1e-5, "{name}: {whole:e} {sharded:e} {lora:e}");
        for folder in ["whole", "shards"] {
            assert_folder_is_the_bases(&base, &place.path(folder));
            let found = loss(&place, &["--model", folder]);
            assert!(same(found, expected), "{name}, {folder}: {found} for {expected}");
        }
        let found = loss(&place, &["--model", base_name, "--adapter", "lora"]);
        assert!(same(found, expected), "{name}, LoRA: {found} for {expected}");
        assert_shards_are_indexed(name, &place.path("shards"), &stored(&place.path("whole")));
    }
}

fn assert_shards_are_indexed(name: &str, shards: &Path, whole: &Stored) {
    assert_eq!(stored(shards), *whole, "{name}");
    let index: Value = json(&shards.join("model.safetensors.index.json"));
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.keys().collect::<BTreeSet<_>>(), whole.keys().collect(), "{name}");
    let bytes: usize = whole.values().map(|(_, _, bytes)| bytes.len()).sum();
    assert_eq!(index["metadata"]["total_size"], bytes, "{name}");
    let files = weight_files(shards);
    assert!(files.len() > 1, "{name}");
    for path in files {
        let content = fs::read(&path).unwrap();
        let tensors = SafeTensors::deserialize(&content).unwrap();
        let file = path.file_name().unwrap().to_str().unwrap();
        let own: Vec<&str> = tensors.names();
        assert!(own.iter().all(|tensor| map[*tensor] == file), "{name}: {file}");
        let size: usize = tensors.iter().map(|(_, view)| view.data().len()).sum();
        assert!(size <= 20_000 || own.len() == 1, "{name}: {file} holds {size} bytes");
    }
}
