//! Checkpoints that Transformers reads although their tensors lie otherwise than usual: the same numbers, or a refusal that
//! names the tensor.

use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::Trained;
use loraxs::models::{Base, Build, Model};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tch::{Device, Kind};

use crate::bench::{Bench, QUERY, check, copied, edit, rewrite};

use crate::decoders::{checkpoints, logits, model};
use crate::forked;
use crate::support::{Place, alone, classes, errors, fixture, json, numbers};

const WORDS: &str = "model.embed_tokens.weight";
const OUTPUT: &str = "lm_head.weight";

/// The safetensors files of a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")).collect()
}

/// Takes the output layer out of all files of a tied decoder, and stores the embedding under `name`.
fn keep_one_as(folder: &Path, name: &str) {
    edit(&folder.join("config.json"), |config| {
        drop(config.insert("tie_word_embeddings".into(), json!(true)))
    });
    for file in files(folder) {
        rewrite(&file, |stored| {
            stored.remove(OUTPUT);
            if let Some(words) = stored.remove(WORDS) {
                stored.insert(name.to_owned(), words);
            }
        });
    }
    let index = folder.join("model.safetensors.index.json");
    if index.exists() {
        edit(&index, |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            map.remove(OUTPUT);
            let file = map.remove(WORDS).unwrap();
            map.insert(name.to_owned(), file);
        });
    }
}

#[test]
fn a_tied_decoder_is_the_same_whichever_of_its_two_names_is_stored() {
    let _alone = alone();
    let place = tempfile::tempdir().unwrap();
    for (name, from) in checkpoints() {
        let [words, output] = [WORDS, OUTPUT].map(|kept| {
            let folder = copied(&from, &place.path().join(&name).join(kept));
            keep_one_as(&folder, kept);
            folder
        });
        let ids: &[u32] = &[5, 17, 40, 9, 33, 21];
        let found = [&words, &output].map(|folder| numbers(&logits(&model(folder), &[ids])[0]));
        assert_eq!(found[0], found[1], "{name}");
        // So that adapters and bases of the one serve the other.
        let hashes = [&words, &output].map(|folder| Base::open(folder).unwrap().hash());
        assert_eq!(hashes[0], hashes[1], "{name}");
    }
}

/// A recipe for a decoder.
fn recipe(model: &Path, method: &str) -> String {
    format!(
        "[model]\nname = {model:?}\n[adapter]\nmethod = {method:?}\nrank = 4\n[data]\ndataset = \"tiny/instructions\"\n\
         max_length = 84\n[train]\nmax_steps = 2\nbatch_size = 4\nlearning_rate = 0.01\n[eval]\nevery = \"never\"\n"
    )
}

/// The held-out loss of a decoder, and what the command said beside it.
fn loss(place: &Place, subject: &[&str]) -> (f64, String) {
    let args = ["eval", "--task", "tiny/instructions", "--max-length", "84", "--out", "scored"];
    let said = errors(&place.run(&[&args, subject].concat(), 0));
    let results: Value = json(&place.path("scored/results.json"));
    (results["tiny/instructions"]["metrics"]["loss"]["value"].as_f64().unwrap(), said)
}

#[test]
fn a_decoder_that_stores_its_head_alone_is_trained_and_merged_like_any_other() {
    for method in ["lora-xs", "full"] {
        let place = Place::of_decoders();
        let base = copied(&fixture("decoders/qwen3-normed"), &place.path("base"));
        keep_one_as(&base, OUTPUT);
        place.train(&recipe(&base, method), "run", &[]);
        place.run(&["merge", "--run", "run", "--out", "merged", "--dtype", "fp32"], 0);
        let bytes = fs::read(place.path("merged/model.safetensors")).unwrap();
        let merged = SafeTensors::deserialize(&bytes).unwrap();
        assert!(merged.tensor(WORDS).is_ok() && merged.tensor(OUTPUT).is_err(), "{method}");
        let [(run, _), (merged, _)] = [["--run", "run"], ["--model", "merged"]].map(|s| loss(&place, &s));
        assert!((merged / run - 1.0).abs() < 1e-6, "{method}: {merged} for {run}");
    }
}

#[test]
fn the_config_of_a_merged_decoder_says_whether_its_output_layer_is_its_own() {
    // The base's own words: tied although an output layer is stored beside, tied, not tied.
    for (name, tied, own) in
        [("llama-biased", true, true), ("qwen3-normed", true, false), ("llama-biased", false, true)]
    {
        let place = Place::of_decoders();
        let base = copied(&fixture("decoders").join(name), &place.path("base"));
        edit(&base.join("config.json"), |config| {
            drop(config.insert("tie_word_embeddings".into(), json!(tied)))
        });
        place.train(&recipe(&base, "lora"), "run", &[]);
        place.run(&["merge", "--run", "run", "--out", "merged", "--dtype", "fp32"], 0);
        let config: Value = json(&place.path("merged/config.json"));
        assert_eq!(config["tie_word_embeddings"], json!(!own), "{name}, {tied}");
        let bytes = fs::read(place.path("merged/model.safetensors")).unwrap();
        assert_eq!(SafeTensors::deserialize(&bytes).unwrap().tensor(OUTPUT).is_ok(), own, "{name}, {tied}");
        let [(run, _), (merged, _)] = [["--run", "run"], ["--model", "merged"]].map(|s| loss(&place, &s));
        assert!((merged / run - 1.0).abs() < 1e-6, "{name}, {tied}: {merged} for {run}");
        place.run(&["merge", "--run", "run", "--out", "lora", "--format", "peft"], 0);
        let (lora, _) = loss(&place, &["--model", "base", "--adapter", "lora"]);
        assert!((lora / run - 1.0).abs() < 1e-6, "{name}, {tied}: {lora} for {run}");
    }
}

#[test]
fn tensors_of_any_type_that_are_not_needed_are_named_and_left_out() {
    let types = ["F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "I4", "U16", "C64", "I8", "NF4"];
    let place = Place::of_decoders();
    let (expected, _) = loss(&place, &["--model", fixture("decoders/llama-linear").to_str().unwrap()]);
    let base = copied(&fixture("decoders/llama-linear"), &place.path("base"));
    rewrite(&base.join("model.safetensors"), |stored| {
        for (i, dtype) in types.iter().enumerate() {
            // One beside the layers, one among them; eight bytes are whole numbers of every type but one.
            let count = [8, 8, 16, 32, 16, 4, 1, 8, 5][i];
            let name =
                if i % 2 == 0 { format!("model.extra_{i}") } else { format!("model.layers.0.extra_{i}") };
            let bytes = vec![0; if *dtype == "F6_E2M3" { 24 } else { 8 }];
            stored.insert(name, ((*dtype).to_owned(), vec![count], bytes));
        }
    });
    let (found, said) = loss(&place, &["--model", "base"]);
    assert_eq!(found.to_bits(), expected.to_bits());
    assert!(
        said.contains("unused tensors in the checkpoint: `model.extra_0`") && said.contains("and 1 more"),
        "{said}"
    );
    place.train(&recipe(&base, "lora-xs"), "run", &[]);
    place.run(&["merge", "--run", "run", "--out", "merged"], 0);
    let (_, said) = loss(&place, &["--model", "merged"]);
    assert!(!said.contains("not used"), "{said}");
}

#[test]
fn a_needed_tensor_of_another_type_is_refused_by_name() {
    let bench = Bench::new();
    for (dtype, bits) in [("F8_E4M3", 8), ("F4", 4), ("C64", 64), ("I4", 4), ("U8", 8)] {
        let model = bench.model("model", "bert-gelu");
        rewrite(&model.join("model.safetensors"), |stored| {
            let (kind, _, data) = stored.get_mut(QUERY).unwrap();
            *kind = dtype.to_owned();
            data.resize(36 * 36 * bits / 8, 0);
        });
        bench.refuses_model(&model, &[QUERY, "expected floats", "hint: "]);
    }
    let decoder = copied(&fixture("decoders/qwen3-normed"), &bench.path("decoder"));
    rewrite(&decoder.join("model.safetensors"), |stored| {
        let words = stored[WORDS].clone();
        stored.insert(
            OUTPUT.to_owned(),
            ("F8_E5M2".to_owned(), words.1, words.2[..words.2.len() / 2].to_vec()),
        );
    });
    let data = bench.data(
        "data",
        "{\"q\": \"a\", \"a\": \"b\"}\n",
        "task = \"instruction\"\nprompt = \"{q}\"\nresponse = \"{a}\"\n",
    );
    let args = [
        "eval",
        "--task",
        "my/data",
        "--model",
        "decoder",
        "--device",
        "cpu",
        "--datasets",
        data.to_str().unwrap(),
    ];
    check(&args, &forked::output(&bench.bare(&args)), 1, &[OUTPUT, "F8_E5M2"]);
}

#[test]
fn sizes_of_a_config_are_refused_by_name_before_anything_of_them_is_made() {
    let place = tempfile::tempdir().unwrap();
    let huge = [1_i64 << 25, 1 << 31, 1 << 40, 1 << 62, i64::MAX].map(|size| json!(size));
    let decoder =
        ["hidden_size", "intermediate_size", "vocab_size", "num_attention_heads", "num_key_value_heads"];
    let encoder =
        ["hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings", "type_vocab_size"];
    let cases = [
        ("decoders/llama-biased", &[&decoder[..], &["head_dim", "num_hidden_layers"]].concat()),
        ("encoders/bert-gelu", &[&encoder[..], &["num_attention_heads", "num_hidden_layers"]].concat()),
    ];
    for (from, keys) in cases {
        for (key, value) in keys.iter().flat_map(|key| huge.iter().map(move |value| (key, value))) {
            let folder = copied(&fixture(from), &place.path().join("model"));
            edit(&folder.join("config.json"), |config| drop(config.insert((*key).to_owned(), value.clone())));
            let error = Base::open(&folder).and_then(|base| load(&base)).unwrap_err();
            let error = format!("{error:#}");
            // Positions have no bound of their own: their tensor is named.
            let tensor = error.contains("position_embeddings.weight` has shape");
            assert!(error.contains(&format!("`{key}`")) || tensor, "{key} {value}: {error}");
        }
    }
    // Within the bounds of each, and as their product.
    let folder = copied(&fixture("decoders/llama-biased"), &place.path().join("model"));
    for (heads, width, words) in
        [(1 << 12, 1 << 13, "`num_attention_heads` times `head_dim`"), (6, 1 << 20, "has shape")]
    {
        edit(&folder.join("config.json"), |config| {
            config.insert("num_attention_heads".into(), json!(heads));
            drop(config.insert("head_dim".into(), json!(width)));
        });
        let error = format!("{:#}", Base::open(&folder).and_then(|base| load(&base)).unwrap_err());
        assert!(error.contains(words), "{heads} of {width}: {error}");
    }
}

/// Builds the model.
fn load(base: &Base) -> loraxs::fault::Result<()> {
    let build = Build {
        devices: Device::Cpu.into(),
        kind: Kind::Float,
        head: Some(classes(3)),
        seeds: vec![0],
        train_base: false,
    };
    Model::load(base, &build, &mut Trained::new(1)).map(drop)
}

#[test]
fn lists_and_depths_of_a_config_have_a_bound() {
    let place = tempfile::tempdir().unwrap();
    let folder = copied(&fixture("decoders/qwen2-window-old"), &place.path().join("model"));
    let refused = |text: String, words: &str| {
        fs::write(folder.join("config.json"), text).unwrap();
        let error = format!("{:#}", Base::open(&folder).unwrap_err());
        assert!(error.contains("config.json`") && error.contains(words) && error.len() < 1000, "{error}");
    };
    let text = fs::read_to_string(folder.join("config.json")).unwrap();
    let with = |key: &str, value: &str| text.replacen('{', &format!("{{\"{key}\": {value},"), 1);
    refused(
        with("layer_types", &serde_json::to_string(&vec!["full_attention"; 100_000]).unwrap()),
        "names 100000 layers",
    );
    refused(with("x", &format!("\"{}\"", "x".repeat(65 << 20))), "expected fewer than 67108864");
    refused(with("x", &"[".repeat(100_000)), "recursion limit");
    refused(with("rope_parameters", &serde_json::to_string(&vec![1; 100_000]).unwrap()), "must be an object");
}

#[test]
fn a_config_may_begin_with_a_byte_order_mark() {
    let place = tempfile::tempdir().unwrap();
    let folder = copied(&fixture("decoders/qwen2-window-old"), &place.path().join("model"));
    let path = folder.join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("\u{feff}{text}")).unwrap();
    Base::open(&folder).unwrap();
}

#[test]
fn a_shape_that_nothing_can_have_names_its_tensor() {
    let bench = Bench::new();
    let model = bench.model("model", "bert-gelu");
    rewrite(&model.join("model.safetensors"), |stored| {
        stored.insert("bert.other".to_owned(), ("F32".to_owned(), vec![0, usize::MAX], Vec::new()));
    });
    bench.refuses_model(&model, &["tensor `bert.other` of `", "has the shape [0, 18446744073709551615]"]);
}

#[test]
fn what_is_longer_than_the_positions_of_a_model_is_cut_with_a_word() {
    let bench = Bench::new();
    let eval = |folder: &str, more: &[&str]| {
        errors(&bench.0.run(
            &[&["eval", "--task", "tiny/pairs", "--model", folder, "--out", "scored"], more].concat(),
            0,
        ))
    };
    let model = bench.model("short", "bert-gelu");
    assert!(eval("short", &[]).contains("have more than 40 tokens (`data.max_length`) and are truncated"));
    edit(&model.join("config.json"), |config| {
        drop(config.insert("max_position_embeddings".into(), json!(12)))
    });
    rewrite(&model.join("model.safetensors"), |stored| {
        let (_, shape, data) = stored.get_mut("bert.embeddings.position_embeddings.weight").unwrap();
        data.truncate(data.len() / shape[0] * 12);
        shape[0] = 12;
    });
    let expected: Value = json(&fixture("encoders/bert-gelu/expected.json"));
    let rows = expected["tiny/pairs"].as_array().unwrap();
    let long = rows.iter().filter(|row| row["input_ids"].as_array().unwrap().len() > 12).count();
    assert!(long > 0);
    let words = format!(
        "`tiny/pairs` validation: {long} of 13 rows have more than 12 tokens (`data.max_length`) and are truncated"
    );
    for more in [&[][..], &["--max-length", "12"]] {
        let said = eval("short", more);
        assert!(said.contains(&words), "{said}");
    }
    let place = Place::of_decoders();
    let base = copied(&fixture("decoders/llama-linear"), &place.path("base"));
    edit(&base.join("config.json"), |config| {
        drop(config.insert("max_position_embeddings".into(), json!(60)))
    });
    let args = ["eval", "--task", "tiny/instructions", "--model", "base", "--out", "scored"];
    let said = errors(&place.run(&args, 0));
    assert!(said.contains("rows have more than 60 tokens (`data.max_length`) and are truncated"), "{said}");
}
