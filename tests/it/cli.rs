//! The command as a user meets it: help, recipes, options, exit codes.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, check, text};
use crate::forked;
use crate::support::{encoders, errors};

#[test]
fn help_version_and_completions_are_there() {
    let bench = Bench::new();
    for command in
        ["init-svd", "train", "eval", "predict", "chat", "merge", "report", "recipe", "completions"]
    {
        let output = forked::output(&bench.bare(&[command, "--help"]));
        assert!(output.status.success() && text(&output).contains("Example"), "{command}");
        assert!(text(&output).contains("--log-format"), "{command}");
    }
    let version = text(&forked::output(&bench.bare(&["--version"])));
    assert!(version.contains("libtorch 2.11.0") && version.contains("CUDA"), "{version}");
    for shell in ["bash", "zsh", "fish"] {
        let script = text(&forked::output(&bench.bare(&["completions", shell])));
        assert!(script.contains("LORAXS_COMPLETE"), "{shell}: {script}");
    }
    check(&["trian"], &forked::output(&bench.bare(&["trian"])), 2, &["'train'"]);
    check(&["train"], &forked::output(&bench.bare(&["train"])), 2, &["--recipe"]);
    // What was typed is quoted in part, and never takes hold of the terminal
    for rank in [format!("--rank={}", "0".repeat(100_000)), "--rank=\u{1b}[31m".to_owned()] {
        let output = forked::output(&bench.bare(&["init-svd", "--model", "m", &rank]));
        check(&["init-svd"], &output, 2, &["invalid value"]);
        assert!(output.stderr.len() < 4_000 && !errors(&output).contains('\u{1b}'), "{}", errors(&output));
    }
}

/// What the completion script is told of the last of `words`.
fn completed(bench: &Bench, words: &[&str]) -> Vec<String> {
    let mut command = bench.bare(&[&["--", "loraxs"], words].concat());
    command.env("LORAXS_COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", words.len().to_string());
    // Asked before anything else: a process of its own.
    text(&command.output().unwrap()).lines().map(str::to_owned).collect()
}

#[test]
fn completion_knows_commands_recipes_and_keys() {
    let bench = Bench::new();
    assert_eq!(completed(&bench, &["init"]), ["init-svd"]);
    assert_eq!(completed(&bench, &["train", "--recipe", "glue-q"]), ["glue-qnli", "glue-qqp"]);
    assert_eq!(completed(&bench, &["recipe", "lora-st"]), ["lora-stsb"]);
    assert_eq!(completed(&bench, &["train", "--recipe", "reci"]), ["recipe.toml"], "files, too");
    assert_eq!(completed(&bench, &["train", "--set", "train.lear"]), ["train.learning_rate="]);
    let schedules = ["linear", "cosine", "constant"].map(|word| format!("train.schedule={word}"));
    assert_eq!(completed(&bench, &["train", "--set", "train.schedule="]), schedules);
    assert_eq!(completed(&bench, &["eval", "--set", "adapter.meth"]), ["adapter.method="]);
    assert_eq!(completed(&bench, &["train", "--set", "adapter.project"]), ["adapter.projection_seed="]);
}

#[test]
fn a_dry_run_opens_everything_and_writes_nothing() {
    let bench = Bench::new();
    let output = bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"], 0);
    for word in ["adapter", "128", "optimiser steps", "total memory", "run/recipe.toml", "first example"] {
        assert!(text(&output).contains(word), "{word}");
    }
    assert!(!bench.path("run").exists());
    bench.refuses(
        &["train", "--recipe", "recipe.toml", "--dry-run", "--set", "model.name=./nope"],
        1,
        &["no model `./nope`: no such folder here", "hint: a hub id is"],
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
            "line 4: `adapter.rank`: expected a whole number from 1 to 1048576, since no layer is wider, found the string `four`",
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
    let cases: [(&str, &[&str]); 17] = [
        ("train.learning_rte=1", &["unknown key", "did you mean `train.learning_rate`?"]),
        ("lr=1", &["unknown key `lr`; did you mean `train.learning_rate`?"]),
        ("train.bf16=true", &["did you mean `train.precision = \"bf16\"`?"]),
        ("train.output_dir=x", &["did you mean the option `--out`?"]),
        ("train.learning_rate=nan", &["expected a number of at least 0, found `NaN`"]),
        ("train.learning_rate", &["expected `key.path=value`"]),
        ("train.micro_batch_size=9", &["expected at most `train.batch_size` = 8, found 9"]),
        ("train.precision=int8", &["expected one of `auto`, `fp32`, `tf32`, `bf16`, `fp16`"]),
        ("adapter.u=9", &["belongs to `tiny-lora`, not to"]),
        ("adapter.targets=q_proj", &["`q_proj` matches no layer", "attention.self.query", "output.dense"]),
        ("data.dataset=tiny/pair", &["no data set `tiny/pair`", "did you mean `tiny/pairs`?"]),
        ("data.train=trian", &["no split `trian`", "did you mean `train`?"]),
        ("data.max_length=2", &["`max_length` is 2, but the special tokens alone are 3"]),
        ("data.max_length=41", &["has 40 positions", "hint: set `data.max_length` to 40 or less"]),
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
        &["has 40 positions"],
    );
    bench.refuses(&["eval", "--run", "nope"], 1, &["`nope` is not a run: it has no `recipe.toml`", "hint:"]);
    bench.refuses(&["merge", "--model", model, "--out", "out"], 2, &["nothing to merge"]);
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
        check(&args, &forked::output(&bench.bare(&args)), code, words);
    };
    refuses(&["--device", "gpu"], 2, &["expected `auto`, `cpu`, `cuda`, `cuda:N` or a list"]);
    refuses(&["--device", "cuda:99"], 1, &["cannot use `cuda:99`", "hint: install libtorch with"]);
    refuses(&["--threads", "100000"], 2, &["expected a whole number from 0 to 1024"]);
    refuses(&["--verbose", "--quiet"], 2, &["cannot be used with"]);
    let args = ["train", "--recipe", "nope", "--log-format", "json"];
    let output = forked::output(&bench.bare(&args));
    let line: Value = serde_json::from_str(errors(&output).trim()).unwrap();
    assert_eq!((output.status.code(), &line["level"]), (Some(2), &json!("ERROR")));
    assert!(line["message"].as_str().unwrap().contains("`nope`") && line["hint"].is_string(), "{line}");
}
