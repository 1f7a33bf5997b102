//! A base over two devices of one process computes what one does: on the stand-in for a GPU (`scripts/standin.sh`), or on the two that
//! `LORAXS_TEST_DEVICE` names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::Value;

use crate::bench::check;
use crate::forked;
use crate::standin::{counts, standin};
use crate::support::{Place, device_name, encoders, errors, fixture, json, json_lines, losses, strays};

const ONE: &str = "cuda:0";
const TWO: &str = "cuda:0,cuda:1";
const ENCODER: &str = r#"["query", "value", "attention.output.dense", "output.dense"]"#;
const DECODER: &str = r#"["q_proj", "v_proj", "o_proj", "down_proj"]"#;

/// Skips by name where there are no two devices.
fn has_two() -> bool {
    device_name() == TWO || standin()
}

/// What rounding may do: sums on a GPU depend on more than the numbers.
fn room(on_the_standin: f64) -> f64 {
    if std::env::var_os("LORAXS_STANDIN").is_some() { on_the_standin } else { 1e-3 }
}

/// A recipe with dropout and accumulation.
fn recipe(model: &Path, targets: &str) -> String {
    let (dataset, longest, drops) = match targets {
        ENCODER => ("tiny/pairs", 24, "dropout = 0.2\n[adapter]\n"),
        _ => ("tiny/instructions", 84, "[adapter]\ndropout = 0.2\n"),
    };
    format!(
        "[model]\nname = {model:?}\n{drops}rank = 4\nalpha = 8.0\ntargets = {targets}\n\
         [data]\ndataset = \"{dataset}\"\nmax_length = {longest}\n\
         [train]\nmax_steps = 8\nbatch_size = 6\nmicro_batch_size = 4\nlearning_rate = 1e-2\nmax_grad_norm = 0.0\n\
         log_every = 1\nprecision = \"fp32\"\n[eval]\nevery = \"never\"\n"
    )
}

fn run_on(place: &Place, device: &str, args: &[&str], code: i32) -> Output {
    let output = forked::output(&place.command_on(device, args));
    assert_eq!(output.status.code(), Some(code), "{device} {args:?}\n{}", errors(&output));
    output
}

/// Trains into `out` on a device; returns the losses of all steps, and what was counted.
fn train(place: &Place, device: &str, out: &str, sets: &[&str]) -> (Vec<f64>, BTreeMap<String, i64>) {
    let counted = place.path(&format!("{out}.counts"));
    let mut args = vec!["train", "--recipe", "recipe.toml", "--out", out];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let output = forked::output(place.command_on(device, &args).env("STANDIN_COUNTS", &counted));
    assert_eq!(output.status.code(), Some(0), "{device} {sets:?}\n{}", errors(&output));
    (losses(&place.path(out)), counts(&counted))
}

/// The largest difference of the numbers of two adapters, relative to the largest number.
fn apart(found: &Path, expected: &Path) -> f64 {
    let numbers = |run: &Path| -> Vec<f64> {
        let bytes = fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let mut names = file.names();
        names.sort();
        let of = |name: &&str| file.tensor(name).unwrap().data().to_vec();
        let bytes: Vec<u8> = names.iter().flat_map(of).collect();
        bytes.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
    };
    crate::support::distance(&numbers(found), &numbers(expected))
}

fn compare(place: &Place, name: &str, sets: &[&str]) {
    let [one, two] = ["one", "two"].map(|end| format!("{name}-{end}"));
    let (expected, plain) = train(place, ONE, &one, sets);
    let (found, counted) = train(place, TWO, &two, sets);
    assert_eq!(found.len(), 8);
    let off = strays(&found, &expected);
    let adapters = apart(&place.path(&two), &place.path(&one));
    println!("{name} {sets:?}: losses {off:.1e}, adapters {adapters:.1e}");
    // The norm of all gradients is a sum of each device's: clipping rounds elsewhere. All else is the same to the bit.
    let clips = sets.iter().any(|set| set.starts_with("train.max_grad_norm"));
    let [most, most_apart] = if clips { [1e-6, 1e-5] } else { [0.0, 0.0] };
    assert!(
        off <= room(most) && adapters <= room(most_apart),
        "{name} {sets:?}: losses {off:e}, adapters {adapters:e}"
    );
    if plain.is_empty() {
        return; // counted by the stand-in alone
    }
    assert!(plain.keys().all(|name| !name.ends_with("@1")), "{name}: one device is two");
    let products = |end: &str| -> i64 {
        let is_product = |name: &str| {
            ["aten::addmm.out", "aten::mm.out"].iter().any(|start| *name == format!("{start}{end}"))
        };
        counted.iter().filter(|(name, _)| is_product(name)).map(|(_, count)| count).sum()
    };
    let (first, second) = (products(""), products("@1"));
    assert!(first > 0 && second > 0, "{name}: {first} and {second} products\n{counted:?}");
    let copies = counted.get("device to device@1").copied().unwrap_or(0);
    assert!(copies > 0, "{name}: nothing is copied");
}

#[test]
fn an_encoder_over_two_devices_trains_as_on_one() {
    if !has_two() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("recipe.toml"), recipe(&encoders().join("bert-gelu"), ENCODER)).unwrap();
    compare(&place, "plain", &[]);
    compare(&place, "clipped", &["train.max_grad_norm=0.5"]);
    compare(&place, "recomputed", &["train.gradient_checkpointing=true"]);
    compare(&place, "bf16", &["train.precision=bf16"]);
    compare(&place, "lora", &["adapter.method=lora", "adapter.dropout=0.1"]);
    fs::write(place.path("recipe.toml"), recipe(&encoders().join("roberta-gelu"), ENCODER)).unwrap();
    compare(&place, "roberta", &[]);
}

#[test]
fn a_decoder_over_two_devices_trains_as_on_one() {
    if !has_two() {
        return;
    }
    let place = Place::of_decoders();
    // Untied; tied with windows; tied with caps, whose scores go over a padded batch.
    for model in ["llama-biased", "qwen3-normed", "gemma2-capped"] {
        fs::write(place.path("recipe.toml"), recipe(&fixture("decoders").join(model), DECODER)).unwrap();
        compare(&place, model, &[]);
        compare(&place, &format!("{model}-recomputed"), &["train.gradient_checkpointing=true"]);
        compare(&place, &format!("{model}-bf16"), &["train.precision=bf16"]);
    }
}

#[test]
fn every_tensor_of_a_base_over_two_devices_is_trained_as_on_one() {
    if !has_two() {
        return;
    }
    let full = ["adapter.method=full", "adapter.dropout=0", "train.learning_rate=1e-3"];
    let place = Place::new();
    let text = recipe(&encoders().join("bert-gelu"), ENCODER).replace("rank = 4\nalpha = 8.0\n", "");
    let text = text.replace(&format!("targets = {ENCODER}\n"), "");
    fs::write(place.path("recipe.toml"), text).unwrap();
    compare(&place, "bert", &full);
    let place = Place::of_decoders();
    // With a tied embedding, whose gradient comes from both ends.
    for model in ["llama-biased", "qwen3-normed"] {
        let text = recipe(&fixture("decoders").join(model), DECODER).replace("rank = 4\nalpha = 8.0\n", "");
        let text = text.replace(&format!("targets = {DECODER}\n"), "");
        fs::write(place.path("recipe.toml"), text).unwrap();
        compare(&place, model, &full);
        compare(
            &place,
            &format!("{model}-recomputed"),
            &[&full[..], &["train.gradient_checkpointing=true"]].concat(),
        );
    }
}

#[test]
fn vectors_that_layers_of_two_devices_share_are_trained_as_on_one() {
    if !has_two() {
        return;
    }
    let place = Place::new();
    let text =
        recipe(&encoders().join("bert-gelu"), ENCODER).replace("alpha = 8.0\n", "method = \"tiny-lora\"\n");
    fs::write(place.path("recipe.toml"), text).unwrap();
    compare(&place, "all", &["adapter.tie=0"]);
    compare(&place, "kinds", &["adapter.tie=0", "adapter.tying=kind"]);
    let text = recipe(&encoders().join("bert-gelu"), ENCODER).replace("alpha = 8.0\n", "method = \"vera\"\n");
    fs::write(place.path("recipe.toml"), text).unwrap();
    compare(&place, "pair", &[]);
}

#[test]
fn runs_together_over_two_devices_draw_as_on_one() {
    if !has_two() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("recipe.toml"), recipe(&encoders().join("bert-gelu"), ENCODER)).unwrap();
    let sweep = |device: &str, out: &str| -> Vec<Vec<f64>> {
        let args = [
            "train", "--recipe", "recipe.toml", "--out", out, "--sweep", "train.seed=1,2,3", "--sweep",
            "together=3",
        ];
        run_on(&place, device, &args, 0);
        let runs = fs::read_dir(place.path(out)).unwrap().map(|entry| entry.unwrap().path());
        let mut runs: Vec<PathBuf> = runs.filter(|path| path.join("results.json").exists()).collect();
        runs.sort();
        runs.iter().map(|run| losses(run)).collect()
    };
    let (one, two) = (sweep(ONE, "one"), sweep(TWO, "two"));
    assert_eq!((one.len(), two.len()), (3, 3));
    for (found, expected) in two.iter().zip(&one) {
        let off = strays(found, expected);
        assert!(off <= room(0.0) && found.len() == 8, "{off:e}");
    }
    assert!(strays(&one[0], &one[1]) > 1e-4, "runs are alike");
}

#[test]
fn a_run_goes_on_with_another_number_of_devices() {
    if !has_two() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("recipe.toml"), recipe(&encoders().join("bert-gelu"), ENCODER)).unwrap();
    let sets = ["train.checkpoint_every=3"];
    let (expected, _) = train(&place, ONE, "whole", &sets);
    for (first, then, out) in [(ONE, TWO, "more"), (TWO, ONE, "fewer")] {
        train(&place, first, out, &sets);
        let run = place.path(out);
        // As if it had been killed after its sixth step.
        fs::remove_file(run.join("results.json")).unwrap();
        fs::remove_dir_all(run.join("adapter")).unwrap();
        assert!(run.join("checkpoints/step-6").exists());
        let output = run_on(&place, then, &["train", "--resume", out], 0);
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("resuming after step 6"), "{told}");
        let off = strays(&losses(&run), &expected);
        let adapters = apart(&run, &place.path("whole"));
        assert!(off <= room(0.0) && adapters <= room(0.0), "{out}: losses {off:e}, adapters {adapters:e}");
    }
}

/// The bytes of the files of a folder by their names.
fn files(folder: &Path, ending: &str) -> BTreeMap<String, Vec<u8>> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let paths = paths.filter(|path| path.to_str().unwrap().ends_with(ending));
    paths
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap()))
        .collect()
}

#[test]
fn a_model_over_two_devices_is_scored_merged_and_asked_as_on_one() {
    if !has_two() {
        return;
    }
    for (place, model, targets, task) in [
        (Place::new(), encoders().join("bert-gelu"), ENCODER, "tiny/pairs"),
        (Place::of_decoders(), fixture("decoders/qwen3-normed"), DECODER, "tiny/instructions"),
    ] {
        fs::write(place.path("recipe.toml"), recipe(&model, targets)).unwrap();
        train(&place, TWO, "run", &[]);
        let outputs = [("one", ONE), ("two", TWO)].map(|(name, device)| {
            let out = |what: &str| format!("{name}-{what}");
            run_on(&place, device, &["eval", "--run", "run", "--out", &out("eval")], 0);
            run_on(&place, device, &["merge", "--run", "run", "--out", &out("hf")], 0);
            run_on(&place, device, &["merge", "--run", "run", "--out", &out("peft"), "--format", "peft"], 0);
            let ask = ["predict", "--run", "run", "--text", "one two"];
            let answer = match task {
                "tiny/pairs" => Vec::new(),
                _ => run_on(&place, device, &ask, 0).stdout,
            };
            let results: Value = json(&place.path(&out("eval")).join("results.json"));
            let folder = |what: &str, ending: &str| files(&place.path(&out(what)), ending);
            (
                results[task]["metrics"].clone(),
                folder("hf", ".safetensors"),
                folder("peft", ".safetensors"),
                answer,
            )
        });
        let [one, two] = &outputs;
        assert!(!one.1.is_empty() && !one.2.is_empty(), "{task}");
        assert!(one == two, "{task}: {:?} and {:?}", one.0, two.0);
    }
}

#[test]
fn a_decoder_over_two_devices_continues_prompts_as_on_one() {
    if !has_two() {
        return;
    }
    let place = Place::with_own(crate::standin::PROMPTS);
    let rows = ["one five", "one six", "two two", "three", "four nine one two", "seven"];
    // They begin alike.
    let same = "one two three four five ".repeat(4);
    fs::write(
        place.path("rows.jsonl"),
        rows.map(|text| format!("{{\"text\": \"{same}{text}\"}}\n")).concat(),
    )
    .unwrap();
    let ways: [&[&str]; 3] = [&[], &["--beams", "3"], &["--temperature", "0.8", "--batch-size", "2"]];
    for (model, precision) in [
        ("llama-biased", "fp32"),
        ("llama-biased", "bf16"),
        ("gemma2-capped", "fp32"),
        ("qwen3-normed", "bf16"),
    ] {
        let model = fixture("decoders").join(model);
        for (number, way) in ways.into_iter().enumerate() {
            let answers = [ONE, TWO].map(|device| {
                let out = format!("{precision}-{number}-{}", device.len());
                let _ = fs::remove_dir_all(place.path(&out));
                let args = [
                    "eval",
                    "--model",
                    model.to_str().unwrap(),
                    "--task",
                    "my/prompts",
                    "--precision",
                    precision,
                ];
                let args = [&args[..], &["--max-new-tokens", "12", "--out", &out], way].concat();
                run_on(&place, device, &args, 0);
                let rows: Vec<Value> = json_lines(&place.path(&out).join("predictions/my/prompts.jsonl"));
                rows.iter().map(|row| row["completion"].clone()).collect::<Vec<_>>()
            });
            assert_eq!(answers[0].len(), rows.len());
            assert_eq!(answers[0], answers[1], "{model:?} {precision} {way:?}");
        }
    }
}

#[test]
fn what_does_not_fit_on_one_device_fits_on_two() {
    if !standin() {
        return;
    }
    let place = Place::of_decoders();
    fs::write(place.path("recipe.toml"), recipe(&fixture("decoders/gemma2-capped"), DECODER)).unwrap();
    train(&place, ONE, "whole", &[]);
    let results: Value = json(&place.path("whole/results.json"));
    let peak = results["peak_memory_mib"].as_f64().unwrap() * f64::from(1 << 20);
    let limited = |device: &str, out: &str, share: f64| {
        let mut command = place.command_on(device, &["train", "--recipe", "recipe.toml", "--out", out]);
        forked::output(command.env("STANDIN_BYTES", ((peak * share) as u64).to_string()))
    };
    let alone = limited(ONE, "alone", 0.75);
    assert!(alone.status.code() == Some(1) && errors(&alone).contains("out of memory"), "{}", errors(&alone));
    let both = limited(TWO, "both", 0.75);
    assert_eq!(both.status.code(), Some(0), "{}", errors(&both));
    let results: Value = json(&place.path("both/results.json"));
    assert_eq!(results["device"], TWO);
    assert!(results["peak_memory_mib"].as_f64().unwrap() * f64::from(1 << 20) > peak * 0.75);
    assert_eq!(losses(&place.path("both")).len(), 8);
    let none = limited(TWO, "none", 0.009);
    let text = errors(&none);
    assert_eq!(none.status.code(), Some(1), "{text}");
    assert!(text.contains("the base takes") && text.contains("hint: name more devices"), "{text}");
}

#[test]
fn a_dry_run_says_what_lies_where_and_doctor_looks_at_each_device() {
    if !has_two() {
        return;
    }
    let place = Place::of_decoders();
    fs::write(place.path("recipe.toml"), recipe(&fixture("decoders/gemma2-capped"), DECODER)).unwrap();
    let output = run_on(&place, TWO, &["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"], 0);
    let told = String::from_utf8(output.stdout).unwrap();
    for line in
        ["cuda:0, layer 0 (MiB", "cuda:1, layers 1 to 2 (MiB", "free on cuda:0 (MiB)", "free on cuda:1 (MiB)"]
    {
        assert!(told.contains(line), "no `{line}` in\n{told}");
    }
    let output = forked::output(&place.command_on(TWO, &["doctor", "--json", "--offline"]));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &found["ok"]), (Some(0), &Value::Bool(true)), "{found}");
    let checks = found["self_test"].as_array().unwrap();
    let names = |start: &str| {
        checks.iter().filter(|check| check["name"].as_str().unwrap().starts_with(start)).count()
    };
    assert!(names("cuda:0: ") > 10 && names("cuda:0: ") == names("cuda:1: "), "{found}");
    assert_eq!(names("copy from cuda:0 to cuda:1"), 1, "{found}");
}

#[test]
fn a_wrong_list_of_devices_is_refused_in_one_message() {
    let place = Place::new();
    let refuses = |device: &str, code: i32, words: &[&str]| {
        let model = encoders().join("bert-gelu-new-bf16");
        let args = ["eval", "--model", model.to_str().unwrap(), "--task", "tiny/pairs", "--out", "out"];
        check(&args, &forked::output(&place.command_on(device, &args)), code, words);
    };
    for (device, words) in [
        ("cuda:0,cpu", "`cpu` stands alone: only CUDA devices share a model"),
        ("auto,cuda:1", "`auto` stands alone"),
        ("cuda:0,cuda:0", "`cuda:0` is named twice"),
        ("cuda:0,1", "expected `auto`, `cpu`, `cuda`, `cuda:N` or a list"),
    ] {
        refuses(device, 2, &[words]);
    }
    if device_name() == "cpu" {
        return;
    }
    refuses("cuda:0,cuda:7", 1, &["cannot use `cuda:7`: libtorch sees", "hint: the last one is `cuda:"]);
    if standin() {
        refuses(
            TWO,
            2,
            &["`--device` names 2 devices, more than the model has layers", "hint: name at most 1"],
        );
    }
}
