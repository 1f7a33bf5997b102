//! Folders of runs: full disks, two processes, finished runs, results of several tasks.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bench::{Bench, check, edit};
use crate::forked;
use crate::support::{encoders, errors, json_lines};

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
    let sets = ["train.log_every=1", "train.max_steps=150", "eval.every=never"];
    let mut train = vec!["train", "--recipe", "recipe.toml", "--out", "run"];
    sets.iter().for_each(|set| train.extend(["--set", set]));
    limited(24, &train, "cannot write `run/");
}

#[test]
fn two_processes_do_not_train_into_one_folder() {
    let bench = Bench::new();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    let long = bench.0.command(&[&train[..], &["--set", "train.max_steps=1000000"]].concat());
    let mut first = forked::start(&long);
    while !bench.path("run/metrics.jsonl").exists() {
        assert!(!first.is_over(), "the training ended");
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = [&train[..], &["--resume", "--set", "train.max_steps=1000000"]].concat();
    bench.refuses(&second, 1, &["another process trains into `run`", "hint: wait until it is done"]);
    first.signal(libc::SIGKILL);
    first.wait();
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
    let output = forked::output(bench.0.command(&svd).env("LORAXS_CACHE", bench.path("recipe.toml")));
    check(&svd, &output, 1, &["the basis is lost", "hint: write it to a folder by `--out`"]);
    let mut command = bench.0.command(&["train", "--recipe", "recipe.toml", "--out", "run"]);
    let output = forked::output(command.env("LORAXS_CACHE", bench.path("recipe.toml")));
    assert!(output.status.success(), "{}", errors(&output));
    for word in ["tokenised data is not cached", "the basis is not cached"] {
        assert!(errors(&output).contains(word), "{}", errors(&output));
    }
}
