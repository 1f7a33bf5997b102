//! Folders of runs: full disks, two processes, finished runs, results of several tasks.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bench::{Bench, check, edit};
use crate::forked::{self, Run};
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
    assert_eq!(logits(["yes", "no", "reversed"], "are taken to be those of `tiny/pairs`"), own);
    assert_eq!(logits(["same", "same", "reversed"], "are taken to be those of `tiny/pairs`"), own);
    let turned: Vec<Vec<f64>> = own.iter().map(|row| vec![row[1], row[2], row[0]]).collect();
    assert_eq!(logits(["REVERSED", "Same", "other"], "are reordered to those of `tiny/pairs`"), turned);
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
        &["already has a run", "`--resume`"],
    );
    bench.refuses(
        &["eval", "--run", "run", "--task", "tiny/score"],
        2,
        &["has 1 classes, but the model's head has 3 outputs"],
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
    bench.refuses(&["merge", "--run", "run", "--out", "run"], 1, &["already exists", "hint:"]);
    bench.refuses(
        &["merge", "--run", "run", "--out", "recipe.toml/x"],
        1,
        &["cannot create the folder `recipe.toml/x`", "hint:"],
    );
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let bench = Bench::new();
    for out in ["recipe.toml", "recipe.toml/run", "/proc/run"] {
        let hint = "hint: choose a writable folder";
        bench.refuses(&["train", "--recipe", "recipe.toml", "--out", out], 1, &["cannot write `", out, hint]);
    }
    let model = encoders().join("bert-gelu");
    let svd = ["init-svd", "--rank", "4", "--out", "recipe.toml", "--model", model.to_str().unwrap()];
    bench.refuses(&svd, 1, &["cannot write `recipe.toml`"]);
    bench.refuses(
        &["eval", "--out", "/proc/x", "--task", "tiny/pairs", "--model", model.to_str().unwrap()],
        1,
        &["cannot write `/proc/x`"],
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
        let hint = "hint: free some disk space, or write to another folder";
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
    bench.refuses(&second, 1, &["another process is training into `run`", "hint: wait until it ends"]);
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
    check(&svd, &output, 1, &["the basis was not saved", "hint: write it to a folder with `--out`"]);
    let mut command = bench.0.command(&["train", "--recipe", "recipe.toml", "--out", "run"]);
    let output = forked::output(command.env("LORAXS_CACHE", bench.path("recipe.toml")));
    assert!(output.status.success(), "{}", errors(&output));
    for word in ["cannot cache the tokenised data", "cannot cache the basis"] {
        assert!(errors(&output).contains(word), "{}", errors(&output));
    }
}

/// What is in a folder, temporary names apart, and how many of those there are.
fn listed(folder: &Path) -> (Vec<String>, usize) {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let (partial, mut rest): (Vec<String>, Vec<String>) =
        names.partition(|name| name.starts_with(".partial"));
    rest.sort();
    (rest, partial.len())
}

#[test]
fn of_merges_into_one_folder_the_first_wins_and_the_others_say_so() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    fs::create_dir(bench.path("place")).unwrap();
    bench.0.run(&["merge", "--run", "run", "--out", "whole", "--max-shard-size", "100KB"], 0);
    for is_there in [false, true] {
        let out = bench.path("place/out");
        let _ = fs::remove_dir_all(&out);
        if is_there {
            fs::create_dir(&out).unwrap();
        }
        let args = ["merge", "--run", "run", "--out", "place/out", "--max-shard-size", "100KB"];
        let merges: Vec<Run> = (0..4).map(|_| forked::start(&bench.0.command(&args))).collect();
        let ends: Vec<Output> = merges.into_iter().map(Run::wait).collect();
        let (won, lost): (Vec<&Output>, Vec<&Output>) =
            ends.iter().partition(|output| output.status.success());
        assert_eq!((won.len(), lost.len()), (1, 3));
        lost.iter().for_each(|output| {
            check(&args, output, 1, &["`place/out` already exists", "hint: choose another folder"]);
        });
        assert_eq!(listed(&bench.path("place")), (vec!["out".to_owned()], 0));
        assert_eq!(listed(&out), listed(&bench.path("whole")), "{is_there}");
    }
}

#[test]
fn a_merge_goes_wherever_a_folder_can_be() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    let merge = |out: &str| bench.0.run(&["merge", "--run", "run", "--out", out, "--format", "peft"], 0);
    let long = "n".repeat(255);
    merge(&long);
    for folder in ["real", "empty", "readable"] {
        fs::create_dir(bench.path(folder)).unwrap();
    }
    symlink("real", bench.path("link")).unwrap();
    merge("link");
    merge("empty");
    assert!(bench.path("link").is_symlink());
    for out in ["real", "empty"] {
        assert_eq!(listed(&bench.path(out)), listed(&bench.path(&long)), "{out}");
    }
    // As readable as any other folder.
    fs::create_dir(bench.path("other")).unwrap();
    let mode = |name: &str| fs::metadata(bench.path(name)).unwrap().permissions().mode();
    assert_eq!(mode(&long), mode("other"));
    symlink("nowhere", bench.path("dangling")).unwrap();
    for (out, words) in
        [("link", "`link` already exists"), ("dangling", "`dangling`"), ("x/../..", "`x/../..`")]
    {
        bench.refuses(&["merge", "--run", "run", "--out", out], 1, &[words]);
    }
    let other = bench.0.command(&["merge", "--run", "../run", "--out", ".", "--format", "peft"]);
    let output = forked::output({ other }.current_dir(bench.path("readable")));
    assert!(output.status.success(), "{}", errors(&output));
    assert_eq!(listed(&bench.path("readable")), listed(&bench.path("real")));
}

#[test]
fn what_a_killed_command_left_is_cleared_by_the_next() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    fs::create_dir(bench.path("place")).unwrap();
    let place = bench.path("place");
    let args = ["merge", "--run", "run", "--out", "place/out", "--max-shard-size", "1KB"];
    let started = || {
        let mut merge = forked::start(&bench.0.command(&args));
        let filled = || {
            let inside = |entry: fs::DirEntry| {
                fs::read_dir(entry.path()).is_ok_and(|mut inside| inside.next().is_some())
            };
            fs::read_dir(&place).unwrap().flatten().any(inside)
        };
        while !filled() {
            assert!(!merge.is_over(), "the merge ended");
            std::thread::sleep(Duration::from_micros(200));
        }
        merge
    };
    let mut killed = started();
    killed.signal(libc::SIGKILL);
    killed.wait();
    assert_eq!(listed(&place), (vec![], 1));
    // A file that was being written, and what others call so.
    fs::write(place.join(".partial-loraxs-file"), "half").unwrap();
    fs::write(place.join(".partial-of-others"), "theirs").unwrap();
    bench.0.run(&args, 0);
    assert_eq!(listed(&place), (vec!["out".to_owned()], 1));
    fs::remove_file(place.join(".partial-of-others")).unwrap();
    fs::remove_dir_all(place.join("out")).unwrap();
    // The parent that goes away.
    let merge = started();
    fs::rename(&place, bench.path("moved")).unwrap();
    let output = merge.wait();
    check(
        &args,
        &output,
        1,
        &[
            "`place/out` was removed or moved while being written",
            "hint: run the command again, and leave it",
        ],
    );
    assert!(!errors(&output).contains(".partial") && !place.exists());
}

#[test]
fn what_cannot_be_written_of_a_merge_is_named_as_the_user_named_it() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    let mut command = Command::new("sh");
    let merge = bench.0.command(&["merge", "--run", "run", "--out", "merged"]);
    command.args(["-c", "ulimit -f 16; exec \"$@\"", "sh"]).arg(merge.get_program()).args(merge.get_args());
    command
        .envs(merge.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .current_dir(bench.path("."));
    let output = command.output().unwrap();
    check(&["merge"], &output, 1, &["cannot write `merged/model.safetensors`", "hint: free some disk space"]);
    assert_eq!(listed(&bench.path(".")).1, 0);
}

#[test]
fn training_stops_after_so_many_evaluations_without_improvement() {
    let bench = Bench::new();
    // Nothing is learnt, so the first evaluation stays the best
    let still = ["train.learning_rate=0", "train.head_learning_rate=0", "train.max_steps=12", "eval.every=2"];
    for (patience, steps) in [(0, 12), (1, 4), (3, 8), (5, 12), (6, 12)] {
        let (out, set) = (format!("run-{patience}"), format!("eval.patience={patience}"));
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", &out, "--set", &set];
        still.iter().for_each(|set| args.extend(["--set", set]));
        bench.0.run(&args, 0);
        let results: Value = crate::support::json(&bench.path(&out).join("results.json"));
        assert_eq!(
            (&results["steps"], &results["best"]["step"]),
            (&json!(steps), &json!(2)),
            "patience {patience}"
        );
        assert_eq!(results["last"]["step"], steps);
    }
}

#[test]
fn a_finished_run_is_used_as_it_was_written_or_not_at_all() {
    let bench = Bench::new();
    let model = bench.model("base", "bert-gelu");
    let set = format!("model.name={}", model.display());
    let every = "train.checkpoint_every=1";
    let train = ["train", "--recipe", "recipe.toml", "--out", "run", "--set", &set, "--set", every];
    bench.0.run(&train, 0);
    let merge = ["merge", "--run", "run", "--out", "merged"];
    let resume = [&train[..], &["--resume"]].concat();
    let changed = |path: &str, from: &str, to: &str, commands: &[&[&str]], words: &[&str]| {
        let whole = fs::read(bench.path(path)).unwrap();
        let text = String::from_utf8_lossy(&whole).into_owned();
        assert!(text.contains(from), "{path}");
        fs::write(bench.path(path), text.replace(from, to)).unwrap();
        commands.iter().for_each(|args| bench.refuses(args, 1, words));
        fs::write(bench.path(path), whole).unwrap();
    };
    let eval = ["eval", "--run", "run"];
    changed(
        "run/adapter/adapter_config.json",
        "\"lora_alpha\": ",
        "\"lora_alpha\": 1",
        &[&eval, &merge, &resume],
        &["run/adapter/adapter_config.json` has changed since the run wrote it", "hint: "],
    );
    let weights = bench.path("run/adapter/adapter_model.safetensors");
    let whole = fs::read(&weights).unwrap();
    let mut other = whole.clone();
    *other.last_mut().unwrap() ^= 2;
    fs::write(&weights, other).unwrap();
    bench.refuses(&eval, 1, &["run/adapter/adapter_model.safetensors` has changed since the run wrote it"]);
    fs::write(&weights, whole).unwrap();
    for (file, from, to) in [
        ("base/config.json", "\"layer_norm_eps\": ", "\"layer_norm_eps\": 1"),
        ("base/tokenizer.json", "\"version\": ", "\"version\":  "),
    ] {
        let words = ["` is not the one `run` was trained with", "hint: restore it"];
        changed(file, from, to, &[&eval, &merge], &words);
    }
    // What says where a checkpoint comes from is no part of it
    edit(&bench.path("base/config.json"), |config| config["transformers_version"] = json!("6"));
    bench.0.run(&eval, 0);
    // A training that was cut short goes on with the same base only
    fs::remove_file(bench.path("run/results.json")).unwrap();
    let words = ["belongs to another run: recipe, data or base differ"];
    changed("base/config.json", "\"layer_norm_eps\": ", "\"layer_norm_eps\": 1", &[&resume], &words);
    bench.0.run(&resume, 0);
}

#[test]
fn a_file_in_the_place_of_the_folder_is_told_before_anything_is_read() {
    let bench = Bench::new();
    fs::write(bench.path("file"), "").unwrap();
    let words = ["cannot write `file`: not a directory", "hint: choose a writable folder"];
    bench.refuses(&["train", "--recipe", "recipe.toml", "--out", "file"], 1, &words);
    let model = encoders().join("bert-gelu");
    let eval = ["eval", "--task", "tiny/pairs", "--out", "file", "--model", model.to_str().unwrap()];
    bench.refuses(&eval, 1, &words);
}
