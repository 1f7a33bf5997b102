//! The files of a checkpoint, and the faults of a folder or repository that lacks them.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Context as _;

use crate::fault::{Fault, Result, fault};
use crate::files::{self, quantised};

pub(super) const CONFIG: &str = "config.json";
pub(super) const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// Checks that `folder` holds a checkpoint; `name` is the user's name for it.
pub(super) fn check_folder(folder: &Path, name: &str) -> Result<()> {
    let mut names = BTreeSet::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        // A cache link whose blob is gone is not a file.
        if entry.path().is_file() {
            names.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    let shown = format!("the folder `{}`", folder.display());
    check_config(&names, &shown, name)?;
    if weights(&names, name, &folder.join(CONFIG))? == INDEX {
        check_shards(&shards(&folder.join(INDEX))?, &names, &shown)?;
    }
    Ok(())
}

/// Returns true for a folder with `config.json` and no file of weights, of any program.
pub fn is_without_weights(folder: &Path) -> bool {
    let names: BTreeSet<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let of_weights = |name: &String| {
        name.ends_with(".safetensors")
            || name == INDEX
            || is_pickle(name)
            || FOREIGN.iter().any(|end| name.ends_with(end))
    };
    names.contains(CONFIG) && quantised_files(&names, "").is_none() && !names.iter().any(of_weights)
}

/// Rejects a listing without `config.json`; `shown` describes its owner, `name` is the user's name for it.
pub(super) fn check_config(names: &BTreeSet<String>, shown: &str, name: &str) -> Result<()> {
    if names.contains(CONFIG) {
        return Ok(());
    }
    let missing = fault(format!("{shown} has no `{CONFIG}`"));
    if names.contains("adapter_config.json") {
        return Err(missing
            .hint("this is an adapter: pass its base as the model and this as the adapter")
            .into());
    }
    Err(missing
        .hint(match quantised_files(names, name) {
            Some(hint) => hint,
            None => "a checkpoint has `config.json`, `*.safetensors` and `tokenizer.json`".to_owned(),
        })
        .into())
}

/// Returns the file that holds the weights or lists their shards; `name` is the user's for the checkpoint.
pub(super) fn weights(names: &BTreeSet<String>, name: &str, config: &Path) -> Result<&'static str> {
    if names.contains(SINGLE) {
        return Ok(SINGLE);
    }
    if names.contains(INDEX) {
        return Ok(INDEX);
    }
    let without = || fault(format!("`{name}` has no weights: found neither `{SINGLE}` nor `{INDEX}`"));
    if let Some(hint) = quantised_files(names, name) {
        return Err(without().hint(hint).into());
    }
    if let Some(pickle) = names.iter().find(|file| is_pickle(file)) {
        return Err(pickle_only(name, pickle, config).into());
    }
    let hint = match names.iter().find(|file| file.ends_with(".safetensors")) {
        Some(other) => format!("it has `{other}`, which is not a name that Transformers loads"),
        None => match names.iter().find(|file| FOREIGN.iter().any(|ending| file.ends_with(ending))) {
            Some(other) => format!("weights are read only from safetensors files, and it has `{other}`"),
            None => "weights are read only from safetensors files".to_owned(),
        },
    };
    Err(without().hint(hint).into())
}

/// Extensions of other frameworks' weights.
const FOREIGN: [&str; 7] = [".h5", ".msgpack", ".onnx", ".ot", ".npz", ".mlmodel", ".tflite"];

/// Returns a hint if the file names are those of a quantised checkpoint.
fn quantised_files(names: &BTreeSet<String>, name: &str) -> Option<String> {
    let (method, file) = quantised::of_files(names.iter().map(String::as_str))?;
    Some(format!("`{file}` is of {method}: {}", quantised::hint(Path::new(name))))
}

/// Returns true for pickled PyTorch weights; other pickles, such as `training_args.bin`, do not count.
fn is_pickle(file: &str) -> bool {
    let begins = ["pytorch_model", "consolidated", "model"].iter().any(|begin| file.starts_with(begin));
    begins && [".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"].iter().any(|end| file.ends_with(end))
}

fn pickle_only(name: &str, pickle: &str, config: &Path) -> Fault {
    let class = architecture(config).unwrap_or_else(|| "AutoModel".to_owned());
    let out = format!("{}-safetensors", name.trim_end_matches('/').rsplit('/').next().unwrap_or("model"));
    fault(format!("`{name}` has its weights as a pickle only (`{pickle}`), and a pickle can run any code"))
        .hint(format!(
            "if you trust it, convert it once in Python, then use the folder `{out}`:\n\
             from transformers import AutoTokenizer, {class}\n\
             for kind in (AutoTokenizer, {class}): \
             kind.from_pretrained({name:?}).save_pretrained({out:?}, safe_serialization=True)"
        ))
}

/// Returns the class that wrote the checkpoint, so that converting it keeps its head.
fn architecture(config: &Path) -> Option<String> {
    let config: serde_json::Value = files::read_json(config).ok()?;
    let class = config.get("architectures")?.get(0)?.as_str()?;
    let is_plain =
        !class.is_empty() && class.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_plain.then(|| class.to_owned())
}

/// Returns the shards that an index names.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>> {
    let wrong = |what: String| fault(format!("`{}` {what}", index.display()));
    let value: serde_json::Value = files::read_json(index)?;
    let map = value
        .get("weight_map")
        .and_then(serde_json::Value::as_object)
        .filter(|map| !map.is_empty())
        .ok_or_else(|| wrong("names no shards under `weight_map`".to_owned()))?;
    let mut shards = BTreeSet::new();
    for (tensor, shard) in map {
        let shard = shard.as_str().ok_or_else(|| wrong(format!("gives `{tensor}` no file name")))?;
        super::id::check_file_name(shard).with_context(|| format!("in `{}`", index.display()))?;
        shards.insert(shard.to_owned());
    }
    Ok(shards)
}

/// Rejects shards that are not among `names`.
pub(super) fn check_shards(shards: &BTreeSet<String>, names: &BTreeSet<String>, shown: &str) -> Result<()> {
    match shards.iter().find(|shard| !names.contains(*shard)) {
        None => Ok(()),
        Some(missing) => Err(fault(format!("{shown} has no `{missing}`, which `{INDEX}` names")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::hint_of;

    fn folder(entries: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in entries {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    fn refused(entries: &[(&str, &str)]) -> anyhow::Error {
        let folder = folder(entries);
        check_folder(folder.path(), "mine/model").unwrap_err()
    }

    #[test]
    fn single_and_sharded_weights_are_accepted() {
        check_folder(folder(&[("config.json", "{}"), ("model.safetensors", "")]).path(), "m").unwrap();
        let index = r#"{"weight_map":{"a":"s-1.safetensors","b":"s-2.safetensors","c":"s-1.safetensors"}}"#;
        let sharded =
            [("config.json", "{}"), (INDEX, index), ("s-1.safetensors", ""), ("s-2.safetensors", "")];
        check_folder(folder(&sharded).path(), "m").unwrap();
        let missing = refused(&sharded[..3]);
        assert!(missing.to_string().contains("has no `s-2.safetensors`"), "{missing}");
    }

    #[test]
    fn an_index_that_leads_elsewhere_is_refused() {
        let index = r#"{"weight_map":{"a":"../../secret"}}"#;
        assert!(
            format!("{:#}", refused(&[("config.json", "{}"), (INDEX, index)]))
                .contains("not a safe file name")
        );
        let empty = refused(&[("config.json", "{}"), (INDEX, r#"{"weight_map":{}}"#)]);
        assert!(empty.to_string().ends_with("names no shards under `weight_map`"), "{empty}");
    }

    #[test]
    fn a_pickle_is_refused_with_the_way_out() {
        let config = r#"{"architectures":["RobertaForMaskedLM"]}"#;
        let error = refused(&[("config.json", config), ("pytorch_model.bin", "")]);
        assert!(error.to_string().contains("pickle only (`pytorch_model.bin`)"), "{error}");
        let hint = hint_of(&error).unwrap();
        assert!(hint.contains("from transformers import AutoTokenizer, RobertaForMaskedLM"), "{hint}");
        assert!(hint.contains("save_pretrained(\"model-safetensors\", safe_serialization=True)"), "{hint}");
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(refused(&[]).to_string().ends_with("has no `config.json`"));
        let adapter = refused(&[("adapter_config.json", "{}")]);
        assert!(hint_of(&adapter).unwrap().contains("adapter"));
        let bare = refused(&[("config.json", "{}"), ("training_args.bin", "")]);
        assert!(bare.to_string().contains("has no weights"), "{bare}");
    }
}
