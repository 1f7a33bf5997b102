//! The command as a user meets it: help, exit codes, and one clear message for every wrong input.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::support::{Place, encoders, errors, json_lines};

/// A place with copies of fixtures to break.
struct Bench(Place);

/// The first layer that adapters of the fixtures go on.
const QUERY: &str = "bert.encoder.layer.1.attention.self.query.weight";

impl Bench {
    /// A place with `recipe.toml` for a small BERT.
    fn new() -> Self {
        let bench = Self(Place::new());
        bench.recipe(&encoders().join("bert-gelu"), "tiny/pairs");
        bench
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn recipe(&self, model: &Path, dataset: &str) {
        let text = format!(
            "[model]\nname = {model:?}\n[adapter]\nrank = 4\nalpha = 4\n[data]\ndataset = {dataset:?}\n\
             max_length = 24\n[train]\nmax_steps = 2\nbatch_size = 8\n"
        );
        fs::write(self.path("recipe.toml"), text).unwrap();
    }

    /// The command without the options that `Place` gives it.
    fn bare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
        command.args(args).env("LORAXS_CACHE", self.path("cache")).env("HF_HUB_OFFLINE", "1");
        command.env("HF_HOME", self.path("hub")).env("RUST_BACKTRACE", "1").current_dir(self.path("."));
        command
    }

    /// The command with the catalog of the fixtures ends with `code` and one error that holds all `words`.
    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        let output =
            self.0.command(args).env("RUST_BACKTRACE", "1").env("HF_HOME", self.path("hub")).output();
        check(args, &output.unwrap(), code, words);
    }

    /// As [`Bench::refuses`], for a training with `set`.
    fn refuses_set(&self, set: &str, code: i32, words: &[&str]) {
        self.refuses(&["train", "--recipe", "recipe.toml", "--out", "run", "--set", set], code, words);
    }

    /// As [`Bench::refuses`], for an evaluation of a checkpoint.
    fn refuses_model(&self, model: &Path, words: &[&str]) {
        self.refuses(&["eval", "--task", "tiny/pairs", "--model", model.to_str().unwrap()], 1, words);
    }

    /// A copy of a checkpoint of the fixtures.
    fn model(&self, name: &str, from: &str) -> PathBuf {
        copied(&encoders().join(from), &self.path(name))
    }

    /// A catalog with one data set, of JSON lines.
    fn data(&self, name: &str, rows: &str, entry: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("rows.jsonl"), rows).unwrap();
        let files = "files = { train = \"rows.jsonl\", validation = \"rows.jsonl\" }\n";
        let catalog = folder.join("datasets.toml");
        fs::write(&catalog, format!("[\"my/data\"]\n{files}{entry}")).unwrap();
        catalog
    }

    /// Training on a data set of its own is refused.
    fn refuses_data(&self, catalog: &Path, code: i32, words: &[&str]) {
        let catalog = catalog.to_str().unwrap();
        let args = ["train", "--recipe", "recipe.toml", "--out", "run", "--set", "data.dataset=my/data"];
        let args = [&args[..], &["--datasets", catalog]].concat();
        check(&args, &self.bare(&args).output().unwrap(), code, words);
    }
}

/// One error, with all `words`, and nothing that only a programmer reads.
pub fn check(args: &[&str], output: &Output, code: i32, words: &[&str]) {
    let text = errors(output);
    let shown = format!("loraxs {}\n{text}", args.join(" "));
    assert_eq!(output.status.code(), Some(code), "{shown}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{shown}");
    for trace in ["panicked", "stack backtrace", "frame #", "c10::", ".rs:", "report it"] {
        assert!(!text.contains(trace), "`{trace}` in {shown}");
    }
    for word in words {
        assert!(text.contains(word), "no `{word}` in {shown}");
    }
}

pub fn copied(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    to.to_owned()
}

/// Changes a JSON file.
pub fn edit(path: &Path, change: impl Fn(&mut Map<String, Value>)) {
    let mut value: Map<String, Value> = crate::support::json(path);
    change(&mut value);
    fs::write(path, serde_json::to_string_pretty(&value).unwrap()).unwrap();
}

/// Changes header and data of a safetensors file.
pub fn edit_tensors(path: &Path, change: impl Fn(&mut Map<String, Value>, &mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut data = bytes.split_off(8 + length);
    let mut header = serde_json::from_slice(&bytes[8..]).unwrap();
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], &header, &data].concat()).unwrap();
}

/// Keeps the first bytes of a file.
fn cut(path: &Path, length: impl Fn(usize) -> usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..length(bytes.len())]).unwrap();
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn help_version_and_completions_are_there() {
    let bench = Bench::new();
    for command in ["init-svd", "train", "eval", "merge", "completions"] {
        let output = bench.bare(&[command, "--help"]).output().unwrap();
        assert!(output.status.success() && text(&output).contains("Example"), "{command}");
        assert!(text(&output).contains("--log-format"), "{command}");
    }
    let version = text(&bench.bare(&["--version"]).output().unwrap());
    assert!(version.contains("libtorch 2.11.0") && version.contains("CUDA"), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        assert!(text(&bench.bare(&["completions", shell]).output().unwrap()).contains("init-svd"), "{shell}");
    }
    check(&["trian"], &bench.bare(&["trian"]).output().unwrap(), 2, &["'train'"]);
    check(&["train"], &bench.bare(&["train"]).output().unwrap(), 2, &["--recipe"]);
}

#[test]
fn a_dry_run_opens_everything_and_writes_nothing() {
    let bench = Bench::new();
    let output = bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"], 0);
    for word in ["adapter", "128", "optimiser steps", "memory in all", "run/recipe.toml", "first example"] {
        assert!(text(&output).contains(word), "{word}");
    }
    assert!(!bench.path("run").exists());
    bench.refuses(
        &["train", "--recipe", "recipe.toml", "--dry-run", "--set", "model.name=./nope"],
        1,
        &["no model `./nope`", "hint: a hub id is"],
    );
}

#[test]
fn all_faults_of_a_recipe_are_told_at_once() {
    let bench = Bench::new();
    let text = "[model]\nname = 3\n[adapter]\nrank = \"four\"\nalhpa = 2\n[train]\nbatch_size = 0\n";
    fs::write(bench.path("recipe.toml"), text).unwrap();
    bench.refuses(
        &["train", "--recipe", "recipe.toml"],
        2,
        &[
            "recipe `recipe.toml` has 5 faults",
            "line 2: `model.name`",
            "line 4: `adapter.rank`: expected a whole number of at least 1, found the string `four`",
            "line 5: unknown key `adapter.alhpa`; did you mean `adapter.alpha`?",
            "line 7: `train.batch_size`",
            "missing key `data.dataset`",
        ],
    );
    fs::write(bench.path("recipe.toml"), "[model\n").unwrap();
    bench.refuses(&["train", "--recipe", "recipe.toml"], 2, &["not valid TOML", "line 1"]);
    bench.refuses(
        &["train", "--recipe", "glue-qnly"],
        2,
        &["cannot find the recipe", "did you mean `glue-qnli`?"],
    );
}

#[test]
fn a_recipe_that_is_no_text_is_a_usage_error() {
    let bench = Bench::new();
    fs::write(bench.path("recipe.toml"), b"[model]\nname = \"\xe9\"\n").unwrap();
    let hint = "hint: a recipe is a TOML file";
    bench.refuses(&["train", "--recipe", "recipe.toml"], 2, &["cannot read `recipe.toml`", "UTF-8", hint]);
}

#[test]
fn wrong_values_in_a_recipe_are_usage_errors() {
    let bench = Bench::new();
    let cases: [(&str, &[&str]); 14] = [
        ("train.learning_rte=1", &["unknown key", "did you mean `train.learning_rate`?"]),
        ("train.learning_rate=nan", &["expected a number of at least 0, found `NaN`"]),
        ("train.learning_rate", &["expected `key.path=value`"]),
        ("train.micro_batch_size=9", &["expected at most `train.batch_size` = 8, found 9"]),
        ("train.precision=int8", &["expected one of `fp32`, `tf32`, `bf16`, `fp16`"]),
        ("adapter.u=9", &["belongs to `tiny-lora`, not to"]),
        ("adapter.targets=q_proj", &["`q_proj` names no layer", "attention.self.query", "output.dense"]),
        ("data.dataset=tiny/pair", &["no data set `tiny/pair`", "did you mean `tiny/pairs`?"]),
        ("data.train=trian", &["no split `trian`", "did you mean `train`?"]),
        ("data.max_length=2", &["`max_length` is 2, but the special tokens alone are 3"]),
        ("data.max_length=41", &["positions end at 40", "hint: set `data.max_length=40` or less"]),
        ("eval.metric=pearson", &["`tiny/pairs` has no metric `pearson`", "its metrics are accuracy"]),
        ("eval.tasks=gsm8k", &["`eval.tasks`", "hint: leave"]),
        ("adapter.rank=37", &["rank 37 does not fit", "[36, 36]: expected 1 to 36", "hint: choose"]),
    ];
    for (set, words) in cases {
        bench.refuses_set(set, 2, words);
    }
    bench.refuses_set(
        "model.name=nobody/nothing",
        1,
        &["offline, and `nobody/nothing`", "hint: run once without"],
    );
    assert!(!bench.path("run").exists(), "a refused training must leave nothing behind");
}

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
    svd(&[QUERY, "holds NaN or infinite numbers"]);
    bench.refuses_model(&bench.path("model"), &[QUERY, "holds NaN or infinite numbers"]);
    edit_tensors(&fresh(), |header, _| header[QUERY]["dtype"] = json!("I32"));
    svd(&[QUERY, "holds Int, expected floats", "quantised"]);
    edit_tensors(&fresh(), |header, _| header[QUERY]["shape"] = json!([18, 72]));
    svd(&[QUERY, "has shape [18, 72], expected [36, 36]"]);
    edit_tensors(&fresh(), |header, _| {
        let tensor = header.remove(QUERY).unwrap();
        header.insert("bert.other".to_owned(), tensor);
    });
    svd(&["missing tensor", QUERY]);
    fs::rename(fresh(), bench.path("model/pytorch_model.bin")).unwrap();
    svd(&["as a pickle only", "save_pretrained"]);
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
    bench.refuses(&eval, 2, &["the base embeds only 167", "hint: tokenizer.json and config.json"]);
    fs::write(model.join("tokenizer_config.json"), "[1]").unwrap();
    bench.refuses_model(&model, &["tokenizer_config.json` is not valid: expected an object"]);
    fs::write(model.join("tokenizer.json"), "{}").unwrap();
    bench.refuses_model(&model, &["tokenizer.json` is not a tokenizer"]);
    fs::remove_file(model.join("tokenizer.json")).unwrap();
    bench.refuses_model(&model, &["no `tokenizer.json`", "hint: make it once in Python"]);
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
        ("{\"t\": \n".to_owned(), &["line 1: not valid JSON"]),
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
        ("labels = [\"a\", \"b\"]\nlable = \"y\"\n", "`my/data.lable`: unknown key; did you mean `label`?"),
        ("", "`my/data.labels`: required here and missing"),
        ("labels = [\"a\"]\n", "expected at least two labels, found 1"),
        ("labels = [\"a\", \"b\"]\nmetrics = [\"acuracy\"]\n", "did you mean `accuracy`?"),
        ("labels = [\"a\", \"b\"]\nhub = \"a/b\"\ndir = \".\"\n", "exclude each other"),
    ];
    for (more, words) in cases {
        bench.refuses_data(&bench.data("data", "", &format!("{entry}{more}")), 2, &[words]);
    }
    bench.refuses_data(&bench.path("nope.toml"), 1, &["cannot read", "nope.toml"]);
    fs::write(bench.path("empty.toml"), "").unwrap();
    bench.refuses_data(&bench.path("empty.toml"), 2, &["no data set `my/data`", "`glue/cola`"]);
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
        ("base_hash", json!("0".repeat(64)), &["belongs to another base", "with hash 000000000000"]),
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
    edit(&fresh().join("adapter_config.json"), |config| drop(config.remove("basis")));
    load(&["missing field `basis`"]);
    cut(&fresh().join("adapter_model.safetensors"), |all| all - 10);
    load(&["adapter/adapter_model.safetensors` is truncated"]);
    fs::remove_file(fresh().join("adapter_config.json")).unwrap();
    load(&["is not an adapter: it holds no `adapter_config.json`", "hint: an adapter is the folder"]);
}

#[test]
fn an_adapter_without_its_head_is_refused() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    edit_tensors(&bench.path("run/adapter/adapter_model.safetensors"), |header, _| {
        let bias = header.remove("classifier.bias").unwrap();
        header.insert("bias".to_owned(), bias);
    });
    let words = ["there is no tensor `classifier.bias` in `run/adapter/adapter_model.safetensors`"];
    bench.refuses(&["eval", "--run", "run"], 1, &words);
}

#[test]
fn outputs_are_taken_by_the_names_of_their_classes() {
    let bench = Bench::new();
    let logits = |names: [&str; 3], words: &str| -> Vec<Vec<f64>> {
        let model = bench.model("model", "bert-gelu");
        let names = json!({"0": names[0], "1": names[1], "2": names[2]});
        edit(&model.join("config.json"), |config| drop(config.insert("id2label".to_owned(), names.clone())));
        let args = ["eval", "--model", "model", "--task", "tiny/pairs", "--out", "eval"];
        let output = bench.0.run(&args, 0);
        assert_eq!(errors(&output).contains("the head's classes"), !words.is_empty(), "{}", errors(&output));
        assert!(errors(&output).contains(words), "{}", errors(&output));
        let rows: Vec<Value> = json_lines(&bench.path("eval/predictions/tiny/pairs.jsonl"));
        rows.iter().map(|row| serde_json::from_value(row["logits"].clone()).unwrap()).collect()
    };
    let own = logits(["same", "other", "reversed"], "");
    assert_eq!(logits(["LABEL_0", "LABEL_1", "LABEL_2"], ""), own);
    assert_eq!(logits(["yes", "no", "reversed"], "are taken as those of `tiny/pairs`"), own);
    assert_eq!(logits(["same", "same", "reversed"], "are taken as those of `tiny/pairs`"), own);
    let turned: Vec<Vec<f64>> = own.iter().map(|row| vec![row[1], row[2], row[0]]).collect();
    assert_eq!(logits(["REVERSED", "Same", "other"], "are put into the order of `tiny/pairs`"), turned);
}

#[test]
fn a_finished_run_is_used_with_care() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    let start = |sets: &[&str], code, words: &[&str]| {
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "next"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        bench.refuses(&args, code, words);
    };
    start(
        &["train.init_from=run/adapter", "adapter.rank=5"],
        2,
        &["the adapter's rank is 4, the recipe's 5"],
    );
    start(&["train.init_from=run/adapter", "adapter.method=head"], 2, &["the adapter's method is lora-xs"]);
    start(&["train.init_from=run/adapter", "adapter.spectrum=bottom"], 2, &["`svd, top`", "`svd, bottom`"]);
    start(&["train.init_from=run"], 1, &["run` is not an adapter"]);
    bench.refuses(
        &["train", "--recipe", "recipe.toml", "--out", "run"],
        1,
        &["already holds a run", "`--resume`"],
    );
    bench.refuses(
        &["eval", "--run", "run", "--task", "tiny/score"],
        2,
        &["has 1 outputs, the model's head has 3"],
    );
    bench.refuses(
        &["eval", "--run", "run", "--split", "tset"],
        2,
        &["no split `tset`", "did you mean `test`?"],
    );
    bench.refuses(
        &["eval", "--run", "run", "--predict"],
        2,
        &["no submission file for the split `validation`"],
    );
    assert!(!bench.path("run/eval").exists());
    bench.refuses(&["merge", "--run", "run", "--out", "run"], 1, &["is there already", "hint:"]);
    bench.refuses(
        &["merge", "--run", "run", "--out", "recipe.toml/x"],
        1,
        &["cannot make the folder `recipe.toml/x`", "hint:"],
    );
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
    bench.refuses_set(
        "adapter.basis=nope",
        1,
        &["there is no basis at `", "hint: make one with `loraxs init-svd"],
    );
    cut(&bench.path("rank/basis.safetensors"), |all| all - 10);
    bench.refuses_set("adapter.basis=rank", 1, &["rank/basis.safetensors` is truncated"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let bench = Bench::new();
    for out in ["recipe.toml", "recipe.toml/run", "/proc/run"] {
        let hint = "hint: choose a folder that can be made and written";
        bench.refuses(&["train", "--recipe", "recipe.toml", "--out", out], 1, &["cannot write `", out, hint]);
    }
    let model = encoders().join("bert-gelu");
    let svd = ["init-svd", "--rank", "4", "--out", "recipe.toml", "--model", model.to_str().unwrap()];
    bench.refuses(&svd, 1, &["cannot write `recipe.toml/basis.safetensors`"]);
    bench.refuses(
        &["eval", "--out", "/proc/x", "--task", "tiny/pairs", "--model", model.to_str().unwrap()],
        1,
        &["cannot write `/proc/x/predictions/tiny/pairs.jsonl`"],
    );
}

#[test]
fn a_full_disk_is_told_with_the_file() {
    let bench = Bench::new();
    let model = encoders().join("bert-gelu");
    let svd = ["init-svd", "--rank", "4", "--out", "basis", "--model", model.to_str().unwrap()];
    // A limit on the size of files fails where a full disk fails, and needs no disk of its own.
    let limited = |kib: u32, args: &[&str], words: &str| {
        let mut command = Command::new("sh");
        let script = format!("ulimit -f {kib}; exec \"$@\"");
        command
            .args(["-c", &script, "sh", env!("CARGO_BIN_EXE_loraxs")])
            .args(args)
            .current_dir(bench.path("."));
        command.arg("--datasets").arg(encoders().join("data/datasets.toml"));
        command.env("LORAXS_CACHE", bench.path("cache")).env("HF_HUB_OFFLINE", "1");
        let hint = "hint: make room on the disk, or write to another folder";
        check(args, &command.output().unwrap(), 1, &[words, hint]);
    };
    limited(4, &svd, "cannot write `basis/basis.safetensors`");
    assert_eq!(fs::read_dir(bench.path("basis")).unwrap().count(), 0, "a part of a file is left behind");
    // Its logs outgrow the limit, which is larger than an adapter and a checkpoint.
    let sets = ["train.log_every=1", "train.max_steps=400", "eval.every=never"];
    let mut train = vec!["train", "--recipe", "recipe.toml", "--out", "run"];
    sets.iter().for_each(|set| train.extend(["--set", set]));
    limited(64, &train, "cannot write `run/");
}

#[test]
fn two_processes_do_not_train_into_one_folder() {
    let bench = Bench::new();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    let mut first = bench.0.command(&[&train[..], &["--set", "train.max_steps=1000000"]].concat());
    let mut first = first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !bench.path("run/metrics.jsonl").exists() {
        assert!(first.try_wait().unwrap().is_none(), "the training ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = [&train[..], &["--resume", "--set", "train.max_steps=1000000"]].concat();
    bench.refuses(&second, 1, &["another process trains into `run`", "hint: wait until it is done"]);
    first.kill().unwrap();
    first.wait().unwrap();
    bench.refuses(&[&train[..], &["--resume"]].concat(), 2, &["`train.max_steps` was 1000000, now 2"]);
}

#[test]
fn a_finished_run_is_finished_for_its_own_recipe_only() {
    let bench = Bench::new();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    bench.0.run(&train, 0);
    let again = |sets: &[&str]| {
        let mut args = [&train[..], &["--resume"]].concat();
        sets.iter().for_each(|set| args.extend(["--set", set]));
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let same = again(&[]);
    let output = bench.0.run(&same.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "run is finished\n");
    let other = again(&["adapter.rank=5", "train.seed=1"]);
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    bench.refuses(&other, 2, &["`adapter.rank` was 4, now 5; `train.seed` was 0, now 1"]);
}

#[test]
fn a_run_from_an_adapter_says_how_its_basis_was_made() {
    let bench = Bench::new();
    let train = |out: &str, sets: &[&str]| {
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", out];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        bench.0.run(&args, 0);
        fs::read_to_string(bench.path(out).join("recipe.toml")).unwrap()
    };
    let first = train("first", &["adapter.svd=exact"]);
    assert!(first.contains("svd = \"exact\""), "{first}");
    let second = train("second", &["train.init_from=first/adapter"]);
    assert!(second.contains("svd = \"exact\""), "{second}");
    let args = ["train", "--recipe", "recipe.toml", "--out", "second", "--resume"];
    bench.0.run(&[&args[..], &["--set", "train.init_from=first/adapter"]].concat(), 0);
}

#[test]
fn results_of_one_split_or_task_do_not_take_the_place_of_anothers() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    let keys = |path: &str| -> Vec<(String, Value)> {
        let results: Map<String, Value> = crate::support::json(&bench.path(path));
        results.into_iter().map(|(task, result)| (task, result["split"].clone())).collect()
    };
    bench.0.run(&["eval", "--run", "run"], 0);
    bench.0.run(&["eval", "--run", "run", "--split", "test"], 0);
    bench.0.run(&["eval", "--run", "run", "--task", "tiny/sentences"], 0);
    let own = |task: &str| (task.to_owned(), json!("validation"));
    assert_eq!(keys("run/eval/results.json"), [own("tiny/pairs"), own("tiny/sentences")]);
    assert_eq!(keys("run/eval/test/results.json"), [("tiny/pairs".to_owned(), json!("test"))]);
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let bench = Bench::new();
    let model = encoders().join("bert-gelu");
    let svd = ["init-svd", "--rank", "4", "--model", model.to_str().unwrap()];
    let output = bench.0.command(&svd).env("LORAXS_CACHE", bench.path("recipe.toml")).output().unwrap();
    check(&svd, &output, 1, &["the basis is lost", "hint: write it to a folder by `--out`"]);
    let mut command = bench.0.command(&["train", "--recipe", "recipe.toml", "--out", "run"]);
    let output = command.env("LORAXS_CACHE", bench.path("recipe.toml")).output().unwrap();
    assert!(output.status.success(), "{}", errors(&output));
    for word in ["tokenised data is not cached", "the basis is not cached"] {
        assert!(errors(&output).contains(word), "{}", errors(&output));
    }
}

#[test]
fn a_training_that_diverges_stops_with_a_hint() {
    let bench = Bench::new();
    let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "run"];
    let rates = ["train.learning_rate=1e30", "train.head_learning_rate=1e30", "train.max_grad_norm=0"];
    for set in rates.into_iter().chain(["train.max_steps=40", "eval.every=never"]) {
        args.extend(["--set", set]);
    }
    bench.refuses(&args, 1, &["no finite gradient in 10 steps", "hint: lower the learning rates"]);
    assert!(!bench.path("run/results.json").exists());
}

#[test]
fn eval_and_merge_say_what_they_need() {
    let bench = Bench::new();
    let model = encoders().join("bert-gelu");
    let model = model.to_str().unwrap();
    let trunk = encoders().join("bert-relu-trunk");
    bench.refuses_model(&trunk, &["has no classification head", "hint: give a run (`--run`) or an adapter"]);
    bench.refuses(&["eval", "--task", "tiny/pairs"], 2, &["--run <DIR>"]);
    bench.refuses(&["eval", "--model", model, "--task", "glue/qnly"], 2, &["did you mean `glue/qnli`?"]);
    bench.refuses(&["eval", "--model", model, "--task", "tiny/pairs", "--set", "a=1"], 2, &["`--run`"]);
    bench.refuses(
        &["eval", "--model", model, "--task", "tiny/pairs", "--max-length", "99"],
        2,
        &["end at 40"],
    );
    bench.refuses(
        &["eval", "--run", "nope"],
        1,
        &["`nope` is not a run: it holds no `recipe.toml`", "hint:"],
    );
    bench.refuses(&["merge", "--model", model, "--out", "out"], 2, &["there is nothing to merge"]);
    bench.refuses(
        &["merge", "--model", model, "--adapter", "nope", "--out", "out"],
        1,
        &["is not an adapter"],
    );
    assert!(!bench.path("out").exists());
}

#[test]
fn global_options_are_checked() {
    let bench = Bench::new();
    let refuses = |more: &[&str], code, words: &[&str]| {
        let args = [&["train", "--recipe", "glue-rte", "--dry-run"], more].concat();
        check(&args, &bench.bare(&args).output().unwrap(), code, words);
    };
    refuses(&["--device", "gpu"], 2, &["expected `auto`, `cpu`, `cuda` or `cuda:N`"]);
    refuses(&["--device", "cuda:99"], 1, &["cannot use `cuda:99`", "hint: install libtorch with"]);
    refuses(&["--threads", "100000"], 2, &["expected a whole number from 0 to 1024"]);
    refuses(&["--verbose", "--quiet"], 2, &["cannot be used with"]);
    let args = ["train", "--recipe", "nope", "--log-format", "json"];
    let output = bench.bare(&args).output().unwrap();
    let line: Value = serde_json::from_str(errors(&output).trim()).unwrap();
    assert_eq!((output.status.code(), &line["level"]), (Some(2), &json!("ERROR")));
    assert!(line["message"].as_str().unwrap().contains("`nope`") && line["hint"].is_string(), "{line}");
}
