//! Classification heads of checkpoints: whole ones are scored, parts are refused by the names of their tensors, and a training
//! says what it draws anew.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bench::{Bench, Stored, edit, rewrite};
use crate::support::{Place, encoders, errors, fixture, json_lines};

/// A change of a checkpoint's tensors, and what a refusal must say.
type Case = (&'static str, fn(&mut Stored), &'static [&'static str]);

fn rename(stored: &mut Stored, from: &str, to: &str) {
    let tensor = stored.remove(from).unwrap_or_else(|| panic!("no {from}"));
    stored.insert(to.to_owned(), tensor);
}

/// Keeps the first rows of a tensor.
fn shorten(stored: &mut Stored, name: &str, rows: usize) {
    let (_, shape, data) = stored.get_mut(name).unwrap();
    data.truncate(data.len() / shape[0] * rows);
    shape[0] = rows;
}

const BERT: [Case; 9] = [
    (
        "pooler without the prefix of the others",
        |s| {
            for part in ["weight", "bias"] {
                rename(s, &format!("bert.pooler.dense.{part}"), &format!("pooler.dense.{part}"));
            }
        },
        &["missing tensor `bert.pooler.dense.weight` [36, 36]"],
    ),
    ("no bias", |s| drop(s.remove("classifier.bias")), &["missing tensor `classifier.bias` [3]"]),
    ("no weight", |s| drop(s.remove("classifier.weight")), &["missing tensor `classifier.weight` [3, 36]"]),
    (
        "bias renamed",
        |s| rename(s, "classifier.bias", "classifier.beta"),
        &["missing tensor `classifier.bias` [3]", "unexpected tensor `classifier.beta`"],
    ),
    (
        "both renamed",
        |s| {
            rename(s, "classifier.bias", "classifier.last.bias");
            rename(s, "classifier.weight", "classifier.last.weight");
        },
        &["missing tensor `classifier.weight` [classes, 36]", "unexpected tensor `classifier.last.weight`"],
    ),
    (
        "bias shorter",
        |s| shorten(s, "classifier.bias", 2),
        &["tensor `classifier.bias` has shape [2], expected [3]"],
    ),
    (
        "weight of another width",
        |s| s.get_mut("classifier.weight").unwrap().1 = vec![36, 3],
        &["tensor `classifier.weight` has shape [36, 3], expected [36, 36]"],
    ),
    (
        "no pooler",
        |s| s.retain(|name, _| !name.contains("pooler")),
        &[
            "missing tensor `bert.pooler.dense.weight` [36, 36]",
            "missing tensor `bert.pooler.dense.bias` [36]",
        ],
    ),
    (
        "pooler renamed",
        |s| rename(s, "bert.pooler.dense.weight", "bert.pooler.weight"),
        &["missing tensor `bert.pooler.dense.weight` [36, 36]"],
    ),
];

const ROBERTA: [Case; 4] = [
    (
        "dense without bias",
        |s| drop(s.remove("classifier.dense.bias")),
        &["missing tensor `classifier.dense.bias` [36]"],
    ),
    (
        "dense renamed",
        |s| rename(s, "classifier.dense.weight", "classifier.hidden.weight"),
        &["missing tensor `classifier.dense.weight`", "unexpected tensor `classifier.hidden.weight`"],
    ),
    (
        "last layer without weight",
        |s| drop(s.remove("classifier.out_proj.weight")),
        &["missing tensor `classifier.out_proj.weight` [3, 36]"],
    ),
    (
        "a head of one layer, for tokens",
        |s| {
            s.retain(|name, _| !name.starts_with("classifier.dense"));
            rename(s, "classifier.out_proj.weight", "classifier.weight");
            rename(s, "classifier.out_proj.bias", "classifier.bias");
        },
        &["missing tensor `classifier.dense.weight`", "unexpected tensor `classifier.weight`"],
    ),
];

/// What PEFT's adapter holds, but its head.
fn without_head(bench: &Bench) {
    let adapter = crate::bench::copied(&fixture("peft/bert-gelu/lora"), &bench.path("adapter"));
    rewrite(&adapter.join("adapter_model.safetensors"), |s| s.retain(|name, _| !name.contains("classifier")));
    edit(&adapter.join("adapter_config.json"), |config| config["modules_to_save"] = Value::Null);
}

#[test]
fn a_head_that_is_there_in_part_is_neither_scored_nor_merged() {
    let bench = Bench::new();
    without_head(&bench);
    for (from, cases) in [("bert-gelu", &BERT[..]), ("roberta-gelu", &ROBERTA[..])] {
        for (case, change, words) in cases {
            println!("{from}: {case}");
            let model = bench.model("model", from);
            rewrite(&model.join("model.safetensors"), change);
            let words = [words, &["only a part of a classification head", "hint: "][..]].concat();
            bench.refuses_model(&model, &words);
            if from == "bert-gelu" {
                bench.refuses(
                    &["eval", "--task", "tiny/pairs", "--model", "model", "--adapter", "adapter"],
                    1,
                    &words,
                );
                bench.refuses(
                    &["merge", "--model", "model", "--adapter", "adapter", "--out", "merged"],
                    1,
                    &words,
                );
            }
        }
    }
}

#[test]
fn a_training_says_which_layers_of_a_head_it_draws() {
    let bench = Bench::new();
    for (from, cases) in [("bert-gelu", &BERT[..]), ("roberta-gelu", &ROBERTA[..])] {
        for (case, change, words) in cases.iter().filter(|(case, ..)| *case != "pooler renamed") {
            let model = bench.model("model", from);
            rewrite(&model.join("model.safetensors"), change);
            bench.recipe(&model, "tiny/pairs");
            let _ = fs::remove_dir_all(bench.path("run"));
            let said = errors(&bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0));
            let line = said
                .lines()
                .find(|line| line.contains("initialised at random: "))
                .unwrap_or_else(|| panic!("{case}: {said}"));
            assert!(line.contains("WARN") && words.iter().all(|word| line.contains(word)), "{case}: {said}");
        }
    }
    // Of another task, and of none.
    let said = train(&bench, "bert-gelu", "tiny/score");
    assert!(
        said.contains("initialised at random: `classifier` (the checkpoint's head has 3 outputs, not 1)"),
        "{said}"
    );
    let said = train(&bench, "bert-relu-trunk", "tiny/pairs");
    assert!(
        said.contains("INFO initialised at random: `classifier` (the checkpoint has no classification head)"),
        "{said}"
    );
    let said = train(&bench, "bert-gelu", "tiny/pairs");
    assert!(!said.contains("initialised at random"), "{said}");
}

/// What is said beside a training.
fn train(bench: &Bench, model: &str, dataset: &str) -> String {
    bench.recipe(&encoders().join(model), dataset);
    let _ = fs::remove_dir_all(bench.path("run"));
    errors(&bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0))
}

#[test]
fn a_checkpoint_without_a_head_for_classes_is_not_scored() {
    let bench = Bench::new();
    for name in ["bert-relu-trunk", "roberta-masked-lm"] {
        bench.refuses_model(&encoders().join(name), &["has no classification head", "hint: give a run"]);
    }
    let model = bench.model("model", "bert-gelu");
    rewrite(&model.join("model.safetensors"), |s| {
        drop(s.remove("classifier.bias"));
        rename(s, "classifier.weight", "score.weight");
    });
    bench.refuses_model(&model, &["has no classification head", "it has `score.`"]);
}

/// The names of the classes that were predicted.
fn predicted(place: &Place, model: &Path) -> Vec<Value> {
    let model = model.to_str().unwrap();
    place.run(&["eval", "--task", "tiny/pairs", "--model", model, "--max-length", "24", "--out", "eval"], 0);
    json_lines(&place.path("eval/predictions/tiny/pairs.jsonl"))
}

#[test]
fn names_of_classes_are_read_as_transformers_reads_them() {
    let bench = Bench::new();
    let expected = predicted(&bench.0, &encoders().join("bert-gelu"));
    let set = |key: &str, value: Value| {
        let model = bench.model("model", "bert-gelu");
        edit(&model.join("config.json"), |config| drop(config.insert(key.to_owned(), value.clone())));
        model
    };
    for value in
        [json!({"0": 1, "1": 2.5, "2": true}), json!({" 1": "a", "3": "b", "7": "c"}), json!({}), json!(null)]
    {
        assert_eq!(predicted(&bench.0, &set("id2label", value.clone())), expected, "{value}");
    }
    for value in [json!(["a"]), json!({"a": "0"}), json!({"a": 0.5}), json!(7)] {
        assert_eq!(predicted(&bench.0, &set("label2id", value.clone())), expected, "{value}");
    }
    for (value, words) in [
        (json!(["a", "b", "c"]), "`id2label` must be an object, found [\"a\",\"b\",\"c\"]"),
        (json!({"0": "a", "1": null, "2": "c"}), "`id2label.1` must be a name, found null"),
        (json!({"0": "a", "1": ["b"], "2": "c"}), "`id2label.1` must be a name, found [\"b\"]"),
        (
            json!({"0": "a", "1": "b"}),
            "has 3 outputs, but by `id2label` and `num_labels` in its config.json 2",
        ),
    ] {
        bench.refuses_model(&set("id2label", value), &[words]);
    }
}
