//! Files of earlier releases, of `scripts/reference/earlier_run.sh` and `earlier_answers.sh`: they still mean what they meant.

use std::fs;
use std::path::Path;
use std::process::Command;

use safetensors::SafeTensors;

use crate::bench::copied;
use crate::forked;
use crate::support::{Place, encoders, errors, fixture, json, json_lines, worse};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A place with the base in the hub's cache, and the recipe that the earlier release was given.
fn place() -> Place {
    let place = Place::new();
    let model = place.path("hub/hub/models--owner--tiny");
    copied(&encoders().join("bert-gelu"), &model.join("snapshots").join(COMMIT));
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    let recipe = "[model]\nname = \"owner/tiny\"\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 24\n\
                  [train]\nbatch_size = 8\nlog_every = 1\n";
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    place
}

fn run(place: &Place, args: &[&str]) {
    let mut command = place.command(args);
    command.env("HF_HOME", place.path("hub")).env("HF_HUB_OFFLINE", "1");
    let output = forked::output(&command);
    assert_eq!(output.status.code(), Some(0), "{args:?}\n{}", errors(&output));
}

/// Names, shapes and numbers of an adapter.
fn tensors(adapter: &Path) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let bytes = fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let number = |four: &[u8]| f32::from_le_bytes(four.try_into().unwrap());
    let mut found: Vec<_> = file
        .iter()
        .map(|(name, view)| {
            (name.to_owned(), view.shape().to_vec(), view.data().chunks(4).map(number).collect())
        })
        .collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

#[test]
fn a_run_that_an_earlier_release_began_ends_as_it_would_have_there() {
    for method in ["lora-xs", "tiny-lora", "vera"] {
        let place = place();
        let begun = fixture("earlier").join(method);
        for folder in ["", "checkpoints/step-4"] {
            let to = place.path("run").join(folder);
            fs::create_dir_all(&to).unwrap();
            for entry in fs::read_dir(begun.join(folder)).unwrap().map(Result::unwrap) {
                if entry.file_type().unwrap().is_file() {
                    fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
                }
            }
        }
        let method = format!("adapter.method={method}");
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "run", "--resume"];
        let mut sets =
            vec![method.as_str(), "adapter.rank=4", "train.max_steps=8", "train.checkpoint_every=4"];
        sets.extend(["train.keep_checkpoints=2", "eval.every=4"]);
        if method.ends_with("tiny-lora") {
            sets.extend(["adapter.u=5", "adapter.tie=2", "adapter.tying=kind"]);
        }
        sets.iter().for_each(|set| args.extend(["--set", set]));
        run(&place, &args);
        let log = fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
        assert!(log.starts_with(&fs::read_to_string(begun.join("metrics.jsonl")).unwrap()[..200]));
        let results: serde_json::Value = json(&place.path("run/results.json"));
        assert_eq!(results["steps"], 8);
        let (found, expected) = (tensors(&place.path("run/adapter")), tensors(&begun.join("ended")));
        assert_eq!(found.len(), expected.len(), "{method}");
        for ((name, shape, found), (wanted, sides, expected)) in found.iter().zip(&expected) {
            assert_eq!((name, shape), (wanted, sides), "{method}");
            let apart = found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, worse);
            let largest = f64::from(expected.iter().fold(0.0, |largest: f32, x| largest.max(x.abs())));
            assert!(apart <= 1e-4 * largest, "{method}: `{name}` is {apart} apart of {largest}");
        }
    }
}

#[test]
fn answers_that_an_earlier_release_began_are_kept_and_go_on() {
    let place = place();
    let begun = fixture("earlier/answers");
    for (from, to) in [
        ("sums.jsonl", "sums.jsonl"),
        ("sums.toml", "sums.toml"),
        ("answers.jsonl", "out/predictions/sums.jsonl"),
        ("settings.json", "out/predictions/sums.settings.json"),
    ] {
        fs::create_dir_all(place.path(to).parent().unwrap()).unwrap();
        fs::copy(begun.join(from), place.path(to)).unwrap();
    }
    let eval = |temperature: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
        command.args(["eval", "--task", "sums", "--datasets", "sums.toml", "--out", "out", "--top-k", "20"]);
        command.arg("--model").arg(fixture("decoders/llama-linear"));
        command.arg("--adapter").arg(fixture("peft/llama-linear/lora"));
        command.args(["--temperature", temperature, "--device", "cpu", "--threads", "1"]);
        command.env("LORAXS_CACHE", place.path("cache")).env("HF_HUB_OFFLINE", "1");
        forked::output(command.current_dir(place.path("")))
    };
    let answers = || -> Vec<serde_json::Value> { json_lines(&place.path("out/predictions/sums.jsonl")) };
    let earlier = answers();
    for _ in 0..2 {
        let output = eval("0.5");
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_eq!(answers().len(), 5);
        for (found, kept) in answers().iter().zip(&earlier) {
            assert_eq!(found["completion"], kept["completion"]);
            assert_ne!(found["check"], kept["check"], "it is hashed under the new names");
        }
        let settings: serde_json::Value = json(&place.path("out/predictions/sums.settings.json"));
        assert_eq!(settings["precision"], "fp32");
        assert_eq!(settings["sampling"]["random"]["top_k"], 20);
    }
    assert!(errors(&eval("0.6")).contains("has completions of another model or other settings"));
}

#[test]
fn an_adapter_of_an_earlier_release_is_scored_and_merged() {
    for method in ["lora-xs", "tiny-lora", "vera"] {
        let place = place();
        let adapter = fixture("earlier").join(method).join("ended");
        let adapter = adapter.to_str().unwrap();
        let subject = ["--model", "owner/tiny", "--adapter", adapter];
        run(&place, &[&["eval", "--task", "tiny/pairs"], &subject[..]].concat());
        run(&place, &[&["merge", "--out", "merged"], &subject[..]].concat());
    }
}
