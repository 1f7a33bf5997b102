//! One clear message for every checkpoint, tokenizer, data set, adapter and basis that cannot be used.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bench::{Bench, QUERY, copied, cut, edit, edit_tensors, rewrite};
use crate::support::encoders;

#[test]
fn a_wrong_config_names_the_field() {
    let bench = Bench::new();
    let cases: [(&str, Value, &str); 16] = [
        ("model_type", json!("gpt2"), "the model type `gpt2` is not supported"),
        ("model_type", json!(3), "`model_type`: invalid type: integer `3`, expected a string at line"),
        ("hidden_act", json!("mish"), "`hidden_act` `mish` is not supported"),
        ("position_embedding_type", json!("relative_key"), "only `absolute`"),
        ("num_attention_heads", json!(5), "`hidden_size` 36 is not a multiple of `num_attention_heads` 5"),
        ("num_attention_heads", json!("3"), "`num_attention_heads`: invalid type: string \"3\""),
        ("num_attention_heads", json!(0), "must be positive, found 0"),
        ("hidden_size", json!(1e30), "`hidden_size`: invalid type"),
        ("num_hidden_layers", json!(0), "`num_hidden_layers` must be positive, found 0"),
        ("num_hidden_layers", json!(1_000_000_000_000_u64), "`num_hidden_layers` must be at most 1000"),
        ("num_hidden_layers", json!(5), "missing tensor `bert.encoder.layer.2.attention.self.query.weight`"),
        ("intermediate_size", json!(-1), "`intermediate_size` must be positive"),
        ("layer_norm_eps", json!(-1.0), "`layer_norm_eps` must not be negative"),
        (
            "hidden_dropout_prob",
            json!(1.5),
            "`hidden_dropout_prob` must be at least 0 and below 1, found 1.5",
        ),
        ("id2label", json!({"a": "b"}), "`id2label` has the key `a`"),
        ("is_decoder", json!(true), "not supported for an encoder"),
    ];
    for (key, value, words) in cases {
        let model = bench.model("model", "bert-gelu");
        edit(&model.join("config.json"), |config| drop(config.insert(key.to_owned(), value.clone())));
        bench.refuses_model(&model, &[words]);
    }
    let model = bench.model("roberta", "roberta-gelu");
    let pad = |id: u32| {
        edit(&model.join("config.json"), |config| drop(config.insert("pad_token_id".to_owned(), json!(id))));
    };
    pad(50);
    bench.refuses_model(&model, &["`max_position_embeddings` is 40, expected more than `pad_token_id` = 50"]);
    pad(397);
    bench.refuses_model(&model, &["`pad_token_id` is 397, but `vocab_size` is 397"]);
    fs::write(model.join("config.json"), "[]").unwrap();
    bench.refuses_model(&model, &["config.json`", "invalid type: sequence, expected a map"]);
    fs::write(model.join("config.json"), "{\"model_type\":").unwrap();
    bench.refuses_model(&model, &["config.json`", "line 1 column 14"]);
    fs::remove_file(model.join("config.json")).unwrap();
    bench.refuses_model(&model, &["has no `config.json`", "hint: a checkpoint has"]);
}

#[test]
fn broken_weights_name_file_and_tensor() {
    let bench = Bench::new();
    let svd = |words: &[&str]| {
        bench.refuses(&["init-svd", "--rank", "4", "--model", "model"], 1, words);
    };
    let fresh = || bench.model("model", "bert-gelu").join("model.safetensors");
    let lengths: [fn(usize) -> usize; 4] = [|_| 0, |_| 100, |all| all / 2, |all| all - 1];
    for length in lengths {
        cut(&fresh(), length);
        svd(&[
            "model/model.safetensors` is truncated or not a safetensors file",
            "hint: download or copy it again",
        ]);
    }
    edit_tensors(&fresh(), |header, data| {
        let start = header[QUERY]["data_offsets"][0].as_u64().unwrap() as usize;
        data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    svd(&[QUERY, "has NaN or infinite values"]);
    bench.refuses_model(&bench.path("model"), &[QUERY, "has NaN or infinite values"]);
    edit_tensors(&fresh(), |header, _| header[QUERY]["dtype"] = json!("I32"));
    svd(&[QUERY, "holds Int, expected floats", "quantised"]);
    edit_tensors(&fresh(), |header, _| header[QUERY]["shape"] = json!([18, 72]));
    svd(&[QUERY, "has shape [18, 72], expected [36, 36]"]);
    edit_tensors(&fresh(), |header, _| {
        let tensor = header.remove(QUERY).unwrap();
        header.insert("bert.other".to_owned(), tensor);
    });
    svd(&["missing tensor", QUERY]);
    rewrite(&fresh(), |stored| {
        let (kind, shape, bytes) = stored.get_mut(QUERY).unwrap();
        *kind = "F64".to_owned();
        *bytes = 1e300_f64.to_le_bytes().repeat(shape.iter().product());
    });
    svd(&[QUERY.strip_suffix(".weight").unwrap(), "holds NaN, or a value beyond fp32's range"]);
    fs::rename(fresh(), bench.path("model/pytorch_model.bin")).unwrap();
    svd(&["as a pickle only", "save_pretrained"]);
}

#[test]
fn what_stands_in_the_place_of_a_file_of_a_checkpoint_is_told() {
    let bench = Bench::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n";
    let page = "\n<!doctype html>\n<HTML>\n";
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let model = bench.model("model", "bert-gelu");
        fs::write(model.join(name), pointer).unwrap();
        let what = format!("model/{name}` is a Git LFS pointer, not the file itself");
        bench.refuses_model(
            &model,
            &[&what, "hint: fetch it with `git lfs pull`, or download it from the hub"],
        );
        fs::write(model.join(name), page).unwrap();
        let what = format!("model/{name}` is an HTML page");
        bench.refuses_model(&model, &[&what, "hint: download the file itself"]);
    }
}

#[test]
fn a_shard_that_is_missing_is_named() {
    let bench = Bench::new();
    let model = bench.model("model", "bert-silu-sharded");
    fs::remove_file(model.join("model-00002-of-00003.safetensors")).unwrap();
    bench.refuses_model(&model, &["has no `model-00002-of-00003.safetensors`"]);
    let model = bench.model("model", "bert-silu-sharded");
    edit(&model.join("model.safetensors.index.json"), |index| {
        index["weight_map"]["bert.other"] = json!("model-00001-of-00003.safetensors");
    });
    bench.refuses_model(&model, &["names tensor `bert.other`, which no shard holds"]);
}

#[test]
fn a_tokenizer_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let model = bench.model("model", "bert-gelu");
    fs::copy(encoders().join("roberta-gelu/tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let eval = ["eval", "--task", "tiny/pairs", "--model", "model"];
    bench.refuses(&eval, 2, &["the base has only 167 embeddings", "hint: tokenizer.json and config.json"]);
    fs::write(model.join("tokenizer_config.json"), "[1]").unwrap();
    bench.refuses_model(&model, &["tokenizer_config.json` is not valid: expected an object"]);
    fs::write(model.join("tokenizer.json"), "{}").unwrap();
    bench.refuses_model(&model, &["tokenizer.json` is not a tokenizer"]);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    bench.refuses_model(&model, &["no `tokenizer.json`", "hint: create it once in Python"]);
}

#[test]
fn data_that_cannot_be_used_names_file_and_row() {
    let bench = Bench::new();
    let entry = "task = \"classification\"\ntext = \"t\"\nlabel = \"y\"\nlabels = [\"no\", \"yes\"]\n";
    let good = "{\"t\": \"a cat\", \"y\": 1}\n";
    let cases: [(String, &[&str]); 7] = [
        (String::new(), &["rows.jsonl` holds no row"]),
        (
            format!("{good}{{\"t\": \"a\", \"y\": 2}}\n"),
            &["line 2: label `2` is none of the 2 labels", "`yes`"],
        ),
        (format!("{good}{{\"t\": \"a\", \"y\": \"maybe\"}}\n"), &["line 2: label `maybe`", "hint: labels:"]),
        ("{\"t\": \"a\", \"y\": null}\n".to_owned(), &["no row of `my/data` train can be used", "line 1"]),
        ("{\"t\": [1, 2], \"y\": 0}\n".to_owned(), &["column `t`: expected a text, found a list"]),
        ("{\"t\": \"a\", \"x\": 0}\n".to_owned(), &["has no column `y`", "columns: `t`, `x`"]),
        ("{\"t\": \n".to_owned(), &["line 1: not valid JSON", "hint: each line must be one JSON object"]),
    ];
    for (rows, words) in cases {
        bench.refuses_data(&bench.data("data", &rows, entry), 1, words);
    }
    let scores = "task = \"regression\"\ntext = \"t\"\nlabel = \"y\"\n";
    let rows = "{\"t\": \"a\", \"y\": \"NaN\"}\n";
    bench.refuses_data(&bench.data("data", rows, scores), 1, &["label `NaN` is not a finite number"]);
    let gone = bench.data("data", good, entry);
    fs::remove_file(bench.path("data/rows.jsonl")).unwrap();
    bench.refuses_data(&gone, 1, &["no file `rows.jsonl` in", "hint: split `train` of data set `my/data`"]);
}

#[test]
fn a_wrong_catalog_names_the_key() {
    let bench = Bench::new();
    let entry = "task = \"classification\"\ntext = \"t\"\nlabel = \"y\"\n";
    let cases = [
        (
            "labels = [\"a\", \"b\"]\nlable = \"y\"\n",
            "line 7: unknown key `my/data.lable`; did you mean `my/data.label`?",
        ),
        ("", "line 1: missing key `my/data.labels`"),
        ("labels = [\"a\"]\n", "expected at least two labels, found 1"),
        ("labels = [\"a\", \"b\"]\nmetrics = [\"acuracy\"]\n", "did you mean `accuracy`?"),
        ("labels = [\"a\", \"b\"]\nhub = \"a/b\"\ndir = \".\"\n", "cannot be combined"),
    ];
    for (more, words) in cases {
        bench.refuses_data(&bench.data("data", "", &format!("{entry}{more}")), 2, &[words]);
    }
    bench.refuses_data(&bench.path("nope.toml"), 1, &["cannot read", "nope.toml"]);
    fs::write(bench.path("empty.toml"), "").unwrap();
    bench.refuses_data(&bench.path("empty.toml"), 2, &["no data set `my/data`", "`--datasets FILE`"]);
}

#[test]
fn an_adapter_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    let base = encoders().join("bert-gelu");
    let load = |words: &[&str]| {
        let args = ["eval", "--adapter", "adapter", "--task", "tiny/pairs", "--model"];
        bench.refuses(&[&args[..], &[base.to_str().unwrap()]].concat(), 1, words);
    };
    let fresh = || copied(&bench.path("run/adapter"), &bench.path("adapter"));
    let cases: [(&str, Value, &[&str]); 9] = [
        ("r", json!(5), &["holds cores of shape [8, 4, 4], its config says [8, 5, 5]"]),
        ("r", json!("4"), &["`r`: expected a whole number, found \"4\""]),
        ("lora_alpha", Value::Null, &["`lora_alpha`: expected a number, found null"]),
        ("method", json!("lora"), &["unknown `method` `lora`"]),
        ("method", json!("head"), &["says `head`, but the file beside it holds cores"]),
        ("peft_type", json!("LORA"), &["holds no `lora_A.weight` of any layer"]),
        ("base_hash", json!("0".repeat(64)), &["belongs to another base", "(hash 000000000000)"]),
        ("witness", json!([[0.0, 0.0]]), &["expected a witness for each module, found 1 for 8"]),
        ("modules", json!(["x"]), &["expected a witness for each module, found 8 for 1"]),
    ];
    for (key, value, words) in cases {
        edit(&fresh().join("adapter_config.json"), |config| {
            drop(config.insert(key.to_owned(), value.clone()))
        });
        load(words);
    }
    edit(&fresh().join("adapter_config.json"), |config| {
        config["modules"].as_array_mut().unwrap().reverse();
    });
    load(&["the basis is not the one that the adapter was trained in", "hint: check that base"]);
    edit(&fresh().join("adapter_config.json"), |config| config["basis"]["spectrum"] = json!("bottom"));
    load(&["the basis is not the one that the adapter was trained in"]);
    for (key, value, words) in [
        ("rank", json!(1_u64 << 40), "`basis.rank` is 1099511627776, expected 4"),
        ("iterations", json!(u32::MAX), "at most 10000 power iterations"),
    ] {
        edit(&fresh().join("adapter_config.json"), |config| config["basis"][key] = value.clone());
        let args =
            ["eval", "--adapter", "adapter", "--task", "tiny/pairs", "--model", base.to_str().unwrap()];
        bench.refuses(&args, if key == "rank" { 1 } else { 2 }, &[words]);
    }
    edit(&fresh().join("adapter_config.json"), |config| {
        config["labels"] = json!((0..1_000_000).map(|i| i.to_string()).collect::<Vec<_>>());
    });
    load(&["its head has 3 outputs, but `labels` names 1000000"]);
    edit(&fresh().join("adapter_config.json"), |config| drop(config.remove("basis")));
    load(&["missing field `basis`"]);
    cut(&fresh().join("adapter_model.safetensors"), |all| all - 10);
    load(&["adapter/adapter_model.safetensors` is truncated"]);
    fs::remove_file(fresh().join("adapter_config.json")).unwrap();
    load(&["is not an adapter: it has no `adapter_config.json`", "hint: an adapter is a folder"]);
}

#[test]
fn an_adapter_without_its_head_is_refused() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    // In part, then as a whole
    for name in ["classifier.bias", "classifier.weight"] {
        edit_tensors(&bench.path("run/adapter/adapter_model.safetensors"), |header, _| {
            let tensor = header.remove(name).unwrap();
            header.insert(format!("other.{name}"), tensor);
        });
        let words = [format!("there is no tensor `{name}` in `run/adapter/adapter_model.safetensors`")];
        let model = encoders().join("bert-gelu");
        let eval = ["eval", "--adapter", "run/adapter", "--task", "tiny/pairs", "--model"];
        bench.refuses(
            &[&eval[..], &[model.to_str().unwrap()]].concat(),
            1,
            &words.each_ref().map(String::as_str),
        );
    }
}

#[test]
fn a_basis_that_does_not_fit_is_refused() {
    let bench = Bench::new();
    let own = encoders().join("bert-gelu");
    let other = encoders().join("bert-legacy");
    let make = |out: &str, model: &Path, rank: &str, more: &[&str]| {
        let args = ["init-svd", "--out", out, "--rank", rank, "--model", model.to_str().unwrap()];
        bench.0.run(&[&args[..], more].concat(), 0);
    };
    make("rank", &own, "5", &[]);
    make("other", &other, "4", &[]);
    make("targets", &own, "4", &["--targets", "key"]);
    make("spectrum", &own, "4", &["--spectrum", "bottom"]);
    bench.refuses_set("adapter.basis=rank", 2, &["has rank 5", "hint: `adapter.rank` is 4"]);
    bench.refuses_set("adapter.basis=other", 1, &["basis", "another base"]);
    bench.refuses_set("adapter.basis=targets", 1, &["the basis has no module", "hint: make a basis"]);
    bench.refuses_set("adapter.basis=spectrum", 2, &["it is `svd, bottom`, the recipe's `svd, top`"]);
    bench.refuses_set("adapter.basis=nope", 1, &["no basis at `", "hint: make one with `loraxs init-svd"]);
    cut(&bench.path("rank/basis.safetensors"), |all| all - 10);
    bench.refuses_set("adapter.basis=rank", 1, &["rank/basis.safetensors` is truncated"]);
}

#[test]
fn a_split_without_labels_is_not_trained_on() {
    let bench = Bench::new();
    let words = ["split `test` has rows without a label", "hint: train on a labelled split"];
    bench.refuses_set("data.train=test", 2, &words);
}
