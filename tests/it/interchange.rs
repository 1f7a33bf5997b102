//! Adapters of PEFT and of the published LoRA-XS code (`scripts/reference/peft_adapters.py`): their logits, twenty steps
//! that start from them, what goes back, and what is refused by name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::file::AdapterFile;
use loraxs::adapters::{Frozen, Trained};
use loraxs::models::adapt::{Plan, Start, attach, targeted};
use loraxs::models::{Base, Build, CausalLm};
use loraxs::nn::layout::{Positions, Sequence};
use loraxs::nn::{Packed, Pass};
use loraxs::torch::tensor_file::TensorFile;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::{Kind, no_grad};

use crate::bench::{Bench, copied, edit, rewrite};
use crate::support::{
    Place, alone, device, distance, encoders, errors, fixture, json, json_lines, losses, numbers, room,
    strays, worse,
};

const ENCODERS: [&str; 2] = ["bert-gelu", "roberta-gelu"];

#[derive(Deserialize)]
struct Fixture {
    settings: BTreeMap<String, f64>,
    cases: BTreeMap<String, Case>,
    #[serde(default)]
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Case {
    logits: Vec<Vec<f64>>,
    #[serde(default)]
    losses: Vec<f64>,
    #[serde(default)]
    parameters: u64,
}

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
}

#[derive(Deserialize)]
struct Prediction {
    logits: Vec<f64>,
}

fn of(checkpoint: &str) -> Fixture {
    json(&fixture(&format!("peft/{checkpoint}.json")))
}

/// The adapter folder of a case.
fn adapter(checkpoint: &str, name: &str) -> PathBuf {
    let folder = fixture("peft").join(checkpoint).join(name);
    if name == "published" { folder.join("adapter") } else { folder }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Logits that `eval` writes for a model, with an adapter where one is given.
fn evaluated(place: &Place, model: &Path, adapter: Option<&Path>) -> Vec<f64> {
    let mut args =
        vec!["eval", "--model", text(model), "--task", "tiny/pairs", "--max-length", "24", "--out", "eval"];
    if let Some(adapter) = adapter {
        args.extend(["--adapter", text(adapter)]);
    }
    place.run(&args, 0);
    let rows: Vec<Prediction> = json_lines(&place.path("eval/predictions/tiny/pairs.jsonl"));
    rows.into_iter().flat_map(|row| row.logits).collect()
}

#[test]
fn saved_adapters_give_their_own_logits_here() {
    for checkpoint in ENCODERS {
        for (name, case) in of(checkpoint).cases {
            let place = Place::new();
            let found = evaluated(&place, &encoders().join(checkpoint), Some(&adapter(checkpoint, &name)));
            let distance = distance(&found, &case.logits.concat());
            println!("{checkpoint} {name}: {distance:.1e}");
            assert!(distance < 1e-5, "{checkpoint} {name}: logits are off by {distance:e}");
        }
    }
}

/// What keys are called, and how they come to be called so.
type Form = (&'static str, fn(&str) -> String);

/// A key of an adapter file as it is called in memory, where the adapter has a name.
fn in_memory(key: &str, name: &str) -> String {
    let parameters = ["lora_A", "lora_B", "tinylora_v"];
    let ending =
        ["vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d", "tinylora_A", "tinylora_B", "tinylora_P"];
    if let Some((head, rest)) = key.split_once("classifier.") {
        return format!("{head}classifier.modules_to_save.{name}.{rest}");
    }
    for part in parameters {
        if let Some((before, after)) = key.split_once(&format!("{part}.")) {
            return format!("{before}{part}.{name}.{after}");
        }
    }
    assert!(ending.iter().any(|part| key.ends_with(part)), "{key}");
    format!("{key}.{name}")
}

/// Writes an adapter's tensors under other names.
fn rename(folder: &Path, rename: impl Fn(&str) -> String) {
    rewrite(&folder.join("adapter_model.safetensors"), |stored| {
        *stored = std::mem::take(stored).into_iter().map(|(key, tensor)| (rename(&key), tensor)).collect();
    });
}

#[test]
fn adapters_load_whatever_name_their_tensors_carry() {
    let place = Place::new();
    let base = encoders().join("bert-gelu");
    let forms: [Form; 4] = [
        ("default", |key| in_memory(key, "default")),
        ("weight", |key| in_memory(key, "weight")),
        ("no root", |key| key.trim_start_matches("base_model.").trim_start_matches("model.").to_owned()),
        ("neither", |key| {
            in_memory(key.trim_start_matches("base_model.").trim_start_matches("model."), "mine")
        }),
    ];
    for (name, case) in of("bert-gelu").cases.into_iter().filter(|(name, _)| name != "published") {
        for (form, renamed) in forms {
            let changed = copied(&adapter("bert-gelu", &name), &place.path("changed"));
            rename(&changed, renamed);
            let distance = distance(&evaluated(&place, &base, Some(&changed)), &case.logits.concat());
            assert!(distance < 1e-5, "{name}, {form}: logits are off by {distance:e}");
        }
    }
}

#[test]
fn a_file_of_several_adapters_is_refused_with_their_names() {
    let bench = Bench::new();
    let base = encoders().join("bert-gelu");
    let changed = copied(&adapter("bert-gelu", "lora"), &bench.path("changed"));
    let path = changed.join("adapter_model.safetensors");
    let args = ["eval", "--task", "tiny/pairs", "--adapter", "changed", "--model", text(&base)];
    rewrite(&path, |stored| {
        let both = |(key, tensor): (String, _)| {
            ["a", "b"].map(|name| (in_memory(&key, name), Clone::clone(&tensor)))
        };
        *stored = std::mem::take(stored).into_iter().flat_map(both).collect();
    });
    bench.refuses(&args, 1, &["holds several adapters: `a`, `b`", "hint: save one of them alone"]);
    copied(&adapter("bert-gelu", "lora"), &changed);
    rewrite(&path, |stored| {
        let (key, tensor) = stored.iter().next().map(|(key, tensor)| (key.clone(), tensor.clone())).unwrap();
        stored.insert(in_memory(&key, "default"), tensor);
    });
    bench.refuses(&args, 1, &["are the same tensor under two names"]);
}

#[test]
fn an_export_has_the_type_that_was_asked_for() {
    let (checkpoint, base) = ("bert-gelu", encoders().join("bert-gelu"));
    let (name, case) = of(checkpoint).cases.into_iter().next().unwrap();
    let place = Place::new();
    let adapter = adapter(checkpoint, &name);
    let args = ["merge", "--model", text(&base), "--adapter", text(&adapter), "--format", "peft"];
    place.run(&[&args[..], &["--out", "out", "--dtype", "bf16"]].concat(), 0);
    let file = TensorFile::open(&place.path("out/adapter_model.safetensors")).unwrap();
    let kinds: Vec<Kind> = file.names().iter().map(|name| file.view(name).unwrap().kind).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == Kind::BFloat16), "{kinds:?}");
    let distance = distance(&evaluated(&place, &base, Some(&place.path("out"))), &case.logits.concat());
    assert!(distance > 1e-5 && distance < 1e-1, "logits are off by {distance:e}");
}

#[test]
fn merged_and_exported_they_still_give_their_logits() {
    let checkpoint = "bert-gelu";
    let base = encoders().join(checkpoint);
    for (name, case) in of(checkpoint).cases {
        let place = Place::new();
        let adapter = adapter(checkpoint, &name);
        for format in ["hf", "peft"] {
            let out = place.path(format);
            let args = ["--adapter", text(&adapter), "--out", text(&out), "--format", format];
            place.run(&[&["merge", "--model", text(&base)], &args[..]].concat(), 0);
            let found = if format == "hf" {
                evaluated(&place, &out, None)
            } else {
                evaluated(&place, &base, Some(&out))
            };
            let distance = distance(&found, &case.logits.concat());
            println!("{name} as {format}: {distance:.1e}");
            assert!(distance < 1e-5, "{name} as {format}: logits are off by {distance:e}");
        }
    }
}

/// A recipe that goes on from the adapter of a case with the settings of the reference.
fn recipe(checkpoint: &str, name: &str, settings: &BTreeMap<String, f64>) -> String {
    let method = match name {
        "lora" => "method = \"lora\"\nrank = 4\nalpha = 6.0",
        "rslora" => "method = \"lora\"\nrank = 4\nalpha = 6.0\nrslora = true",
        "vera" | "vera-seed" => "method = \"vera\"\nrank = 12",
        "tiny-lora" => "method = \"tiny-lora\"\nrank = 2\nu = 5\ntie = 2",
        _ => "method = \"lora-xs\"\nrank = 4\nalpha = 6.0",
    };
    let train: Vec<String> = settings
        .iter()
        .filter(|(key, _)| *key != "max_length")
        .map(|(key, value)| {
            format!(
                "{key} = {}",
                if value.fract() == 0.0 && *value > 1.0 { format!("{value}") } else { format!("{value:?}") }
            )
        })
        .collect();
    let (model, start) = (encoders().join(checkpoint), adapter(checkpoint, name));
    format!(
        "[model]\nname = {model:?}\ndropout = 0.0\n[adapter]\n{method}\n[data]\ndataset = \"tiny/pairs\"\n\
         max_length = 24\n[train]\n{}\nshuffle = false\nlog_every = 1\ninit_from = {start:?}\n\
         [eval]\nevery = \"never\"\n",
        train.join("\n")
    )
}

#[test]
fn twenty_steps_from_a_saved_adapter_are_those_of_peft() {
    for checkpoint in ENCODERS {
        let Fixture { settings, cases, .. } = of(checkpoint);
        for (name, case) in cases.into_iter().filter(|(_, case)| !case.losses.is_empty()) {
            let place = Place::new();
            let run = place.train(&recipe(checkpoint, &name, &settings), "run", &[]);
            let stray = strays(&losses(&run), &case.losses);
            println!("{checkpoint} {name}: losses {stray:.1e}");
            assert!(stray < room(1e-5), "{checkpoint} {name}: losses stray by {stray:e}");
            let results: Value = json(&run.join("results.json"));
            assert_eq!(results["parameters"]["adapter"], case.parameters, "{checkpoint} {name}");
        }
    }
}

#[test]
fn what_was_trained_further_is_read_again_with_its_frozen_factors() {
    for name in ["lora", "vera", "vera-seed", "tiny-lora", "published"] {
        let place = Place::new();
        let settings = of("bert-gelu").settings;
        let run = place.train(&recipe("bert-gelu", name, &settings), "run", &["train.max_steps=2"]);
        place.run(&["eval", "--run", text(&run), "--out", "eval"], 0);
        let of_run: Vec<Prediction> = json_lines(&place.path("eval/predictions/tiny/pairs.jsonl"));
        let of_run: Vec<f64> = of_run.into_iter().flat_map(|row| row.logits).collect();
        let merged = place.path("merged");
        place.run(&["merge", "--run", text(&run), "--out", text(&merged)], 0);
        let distance = distance(&evaluated(&place, &merged, None), &of_run);
        assert!(distance < 1e-5, "{name}: {distance:e}");
    }
}

#[test]
fn adapters_of_a_decoder_give_their_own_logits_here() {
    let _alone = alone();
    let fixture = of("llama-linear");
    let base = Base::open(&self::fixture("decoders").join("llama-linear")).unwrap();
    for (name, case) in fixture.cases {
        let build = Build {
            devices: device().into(),
            kind: Kind::Float,
            head: None,
            seeds: vec![0],
            train_base: false,
        };
        let mut trained = Trained::new(1);
        let mut model = CausalLm::load(&base, &build, &mut trained).unwrap();
        let file = AdapterFile::open(&adapter("llama-linear", &name)).unwrap();
        let layers = targeted(&base.linear_layers(), &file.config.modules).unwrap();
        let frozen = Frozen { basis: file.stored_basis().unwrap(), tensors: file.stored_frozen().unwrap() };
        let plan = Plan {
            method: &file.config.method,
            layers: &layers,
            frozen: &frozen,
            start: Start::default(),
            dropout: 0.0,
            alphas: &[],
            init_stds: &[],
        };
        attach(model.decoder.linears_mut(), plan, &[0], &mut trained).unwrap();
        file.load_into(&trained, false).unwrap();
        let distance = last_logits(&model, &fixture.rows, &case.logits);
        assert!(distance < 1e-5, "{name}: logits are off by {distance:e}");

        let (place, folder) = (Place::new(), self::fixture("decoders").join("llama-linear"));
        let (adapter, merged) = (adapter("llama-linear", &name), place.path("merged"));
        let args = ["--adapter", text(&adapter), "--out", text(&merged), "--dtype", "fp32"];
        place.run(&[&["merge", "--model", text(&folder)], &args[..]].concat(), 0);
        let merged = Base::open(&merged).unwrap();
        let model = CausalLm::load(&merged, &build, &mut Trained::new(1)).unwrap();
        let distance = last_logits(&model, &fixture.rows, &case.logits);
        assert!(distance < 1e-5, "{name}, merged: logits are off by {distance:e}");
    }
}

/// How far the logits after each row are from the expected ones.
fn last_logits(model: &CausalLm, rows: &[Row], expected: &[Vec<f64>]) -> f64 {
    let of_row = |row: &Row| {
        let batch = vec![vec![Sequence { ids: &row.input_ids, types: &[] }]];
        let batch = Packed::new(&batch, Positions::FromZero, device());
        let logits = no_grad(|| model.logits(&model.hidden(&batch, &Pass::evaluation()).unwrap()));
        numbers(&logits.get(row.input_ids.len() as i64 - 1))
    };
    rows.iter().zip(expected).map(|(row, expected)| distance(&of_row(row), expected)).fold(0.0, worse)
}

/// Makes a basis of a fixture's checkpoint.
fn basis(place: &Place, rank: &str, more: &[&str]) -> PathBuf {
    let out = place.path(&format!("basis-{rank}{}", more.concat()));
    let model = encoders().join("bert-gelu");
    place.run(
        &[&["init-svd", "--model", text(&model), "--rank", rank, "--out", text(&out)], more].concat(),
        0,
    );
    out
}

#[test]
fn an_adapter_moves_to_another_basis_of_the_same_span_and_to_no_other() {
    let place = Place::new();
    let (base, adapter) = (encoders().join("bert-gelu"), adapter("bert-gelu", "published"));
    let expected = of("bert-gelu").cases["published"].logits.concat();
    let merge = |basis: &Path, out: &Path, code: i32| {
        let args = ["--adapter", text(&adapter), "--rebase", text(basis), "--out", text(out)];
        place.run(&[&["merge", "--model", text(&base)], &args[..]].concat(), code)
    };
    // The adapter's own span, the singular values elsewhere, and more directions.
    let cases: [(&str, &[&str]); 3] =
        [("4", &["--method", "exact"]), ("4", &["--method", "exact", "--sigma", "split"]), ("9", &[])];
    for (rank, more) in cases {
        let basis = basis(&place, rank, more);
        let out = place.path(&format!("moved-{rank}{}", more.concat()));
        merge(&basis, &out, 0);
        let distance = distance(&evaluated(&place, &base, Some(&out)), &expected);
        println!("rank {rank} {more:?}: {distance:.1e}");
        assert!(distance < 1e-5, "rank {rank} {more:?}: logits are off by {distance:e}");
    }
    let (smaller, other) = (basis(&place, "3", &[]), basis(&place, "4", &["--spectrum", "bottom"]));
    assert!(errors(&merge(&smaller, &place.path("none"), 2)).contains("has rank 3, the adapter rank 4"));
    let found = errors(&merge(&other, &place.path("none"), 1));
    assert!(found.contains("residual") && found.contains("nothing was written"), "{found}");
    assert!(!place.path("none").exists());
}

/// A copy of the LoRA fixture with some keys of its config replaced; what `eval` says of it.
fn refused(change: &[(&str, Value)]) -> String {
    let place = Place::new();
    let (from, to) = (adapter("bert-gelu", "lora"), place.path("changed"));
    fs::create_dir(&to).unwrap();
    fs::copy(from.join("adapter_model.safetensors"), to.join("adapter_model.safetensors")).unwrap();
    let mut config: Value = json(&from.join("adapter_config.json"));
    for (key, value) in change {
        config[key] = value.clone();
    }
    fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
    let model = encoders().join("bert-gelu");
    let args = ["eval", "--model", text(&model), "--task", "tiny/pairs", "--adapter", text(&to)];
    errors(&place.run(&args, 1))
}

#[test]
fn what_cannot_be_represented_is_refused_by_name() {
    let cases = [
        ("use_dora", json!(true), "`use_dora` true"),
        ("bias", json!("lora_only"), "`bias` \"lora_only\""),
        ("lora_bias", json!(true), "`lora_bias` true"),
        ("rank_pattern", json!({"query": 2}), "`rank_pattern`"),
        ("peft_type", json!("IA3"), "`peft_type` `IA3`"),
        ("init_lora_weights", json!("pissa_niter_4"), "`init_lora_weights` pissa_niter_4"),
        ("trainable_token_indices", json!([1, 2]), "`trainable_token_indices`"),
        ("use_rslora", json!("true"), "`use_rslora`: expected true or false"),
        ("r", json!(5), "shape"),
        ("r", json!(1_u64 << 40), "has shape [4, 36], by `adapter_config.json` it is [1099511627776, any]"),
        ("r", json!(0), "expected at least 1"),
    ];
    for (key, value, expected) in cases {
        let found = refused(&[(key, value)]);
        assert!(found.contains(expected), "{key}: {found}");
        assert!(!found.contains("panicked"), "{found}");
    }
}

#[test]
fn numbers_that_the_tensors_do_not_have_are_refused_before_anything_is_made_of_them() {
    let bench = Bench::new();
    let base = encoders().join("bert-gelu");
    let huge = json!(1_u64 << 40);
    let cases = [
        ("rslora", "r", "lora_A.weight` of `adapter_model.safetensors` has shape [4, 36]"),
        ("vera", "r", "vera_lambda_d` of `adapter_model.safetensors` has shape [12]"),
        ("vera-seed", "r", "vera_lambda_d` of `adapter_model.safetensors` has shape [12]"),
        ("tiny-lora", "r", "tinylora_A` of `adapter_model.safetensors` has shape [2, 36]"),
        ("tiny-lora", "u", "tinylora_P` of `adapter_model.safetensors` has shape [5, 2, 2]"),
    ];
    let args = ["eval", "--task", "tiny/pairs", "--adapter", "changed", "--model", text(&base)];
    for (name, key, words) in cases {
        let changed = copied(&adapter("bert-gelu", name), &bench.path("changed"));
        edit(&changed.join("adapter_config.json"), |config| {
            drop(config.insert(key.to_owned(), huge.clone()))
        });
        bench.refuses(&args, 1, &[words, "by `adapter_config.json` it is [", "hint: "]);
    }
    // Without P in the file it is drawn: as many numbers as the config says.
    let changed = copied(&adapter("bert-gelu", "tiny-lora"), &bench.path("changed"));
    edit(&changed.join("adapter_config.json"), |config| drop(config.insert("u".into(), json!(1 << 30))));
    rewrite(&changed.join("adapter_model.safetensors"), |stored| {
        stored.retain(|key, _| !key.contains("tinylora_P") && !key.contains("tinylora_v"));
    });
    bench.refuses(&args, 1, &["`u` 1073741824 and `r` 2 make projections of more than"]);
    for (u, rank, words) in [
        (
            "4611686018427387904",
            "2",
            "`--set adapter.u=4611686018427387904`: expected a whole number from 1 to 1048576",
        ),
        ("1048576", "36", "1048576 projections of rank 36 are more than 67108864 numbers a layer"),
    ] {
        let sets =
            [format!("adapter.u={u}"), format!("adapter.rank={rank}"), "adapter.method=tiny-lora".into()];
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        bench.refuses(&args, 2, &[words]);
    }
}

#[test]
fn an_adapter_without_one_of_its_tensors_is_refused() {
    let cases = [
        ("lora", ".query.lora_A.weight", "no core for"),
        ("lora", "classifier.", "`modules_to_save`"),
        ("vera", "base_model.vera_A", "`vera_A`"),
        ("vera", ".query.vera_lambda_b", "no core for"),
        ("tiny-lora", ".query.tinylora_A", "tinylora_A"),
        ("published", ".query_lora_latent_mapping.weight", "no core for"),
    ];
    for (name, missing, expected) in cases {
        let place = Place::new();
        let changed = copied(&adapter("bert-gelu", name), &place.path("changed"));
        let path = changed.join("adapter_model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        // One layer's tensor, or all of a name that no layer begins.
        let (count, mut gone) = (tensors.len(), false);
        tensors.retain(|(key, _)| {
            let drop = key.contains(missing) && !(gone && missing.starts_with('.'));
            gone |= drop;
            !drop
        });
        assert!(tensors.len() < count, "{name} {missing}");
        fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let model = encoders().join("bert-gelu");
        let args = ["eval", "--model", text(&model), "--task", "tiny/pairs", "--adapter", text(&changed)];
        let found = errors(&place.run(&args, 1));
        assert!(found.contains(expected), "{name} {missing}: {found}");
    }
}

#[test]
fn a_start_for_more_layers_than_are_adapted_is_refused() {
    let place = Place::new();
    let settings = of("bert-gelu").settings;
    let text_of = recipe("bert-gelu", "published", &settings);
    let run = place.train(&text_of, "run", &["train.init_from=", "train.max_steps=2"]);
    let start = format!("train.init_from={}", text(&run.join("adapter")));
    let args = ["train", "--recipe", "recipe.toml", "--out", "fewer", "--set", &start];
    let found = errors(&place.run(&[&args[..], &["--set", "adapter.targets=query"]].concat(), 1));
    assert!(found.contains("which is not adapted"), "{found}");
}

#[test]
fn tied_vectors_go_on_with_the_recipe_that_tied_them() {
    for tying in ["depth", "kind"] {
        for tie in [0, 1, 2, 3, 5] {
            let place = Place::new();
            let settings = of("bert-gelu").settings;
            let sets = [format!("adapter.tie={tie}"), format!("adapter.tying={tying}")];
            let sets = |more: [String; 2]| [&sets[..], &more].concat();
            let run = |out: &str, more: [String; 2]| {
                let sets = sets(more);
                let sets: Vec<&str> = sets.iter().map(String::as_str).collect();
                place.train(&recipe("bert-gelu", "tiny-lora", &settings), out, &sets)
            };
            let first = run("first", ["train.init_from=".into(), "train.max_steps=3".into()]);
            let start = format!("train.init_from={}", text(&first.join("adapter")));
            let second = run("second", [start, "train.learning_rate=0".into()]);
            let read = |run: &Path| fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
            let vectors = |bytes: &[u8]| {
                let file = SafeTensors::deserialize(bytes).unwrap();
                let mut found: Vec<(String, Vec<u8>)> = file
                    .tensors()
                    .into_iter()
                    .filter(|(name, _)| name.contains("tinylora_v"))
                    .map(|(name, view)| (name, view.data().to_vec()))
                    .collect();
                found.sort();
                found
            };
            assert_eq!(vectors(&read(&first)), vectors(&read(&second)), "{tying}, {tie}");
        }
    }
}
