//! Data as people hold them: the entry that a run keeps, files, folders and hub data sets without one, held-out rows, mixtures.

use std::fs;
use std::process::Output;

use crate::bench::{Bench, check};
use crate::forked;
use crate::support::{errors, fixture, json, json_lines, losses};

/// Runs the command without the options that `Place` gives it.
fn run(bench: &Bench, args: &[&str], code: i32) -> Output {
    let args = [args, &["--device", "cpu", "--threads", "1"]].concat();
    let output = forked::output(&bench.bare(&args));
    assert_eq!(output.status.code(), Some(code), "loraxs {}\n{}", args.join(" "), errors(&output));
    output
}

fn said_by(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

const TRAIN: [&str; 5] = ["train", "--recipe", "recipe.toml", "--out", "run"];
const ROWS: &str =
    "{\"a\": \"one two\", \"b\": \"x\", \"y\": \"no\"}\n{\"a\": \"three\", \"b\": \"z\", \"y\": \"yes\"}\n";
const ENTRY: &str =
    "task = \"classification\"\ntext = [\"a\", \"b\"]\nlabel = \"y\"\nlabels = [\"no\", \"yes\"]\n";

#[test]
fn a_run_knows_its_data_set_without_the_catalog() {
    let bench = Bench::new();
    let catalog = bench.data("data", ROWS, ENTRY);
    let like = "\n[mine]\nlike = \"my/data\"\nfiles = { train = \"rows.jsonl\", validation = \"rows.jsonl\" }\n\
                [broken]\ntask = \"chta\"\n";
    fs::write(&catalog, fs::read_to_string(&catalog).unwrap() + like).unwrap();
    let set = ["--set", "data.dataset=mine"];
    run(&bench, &[&TRAIN[..], &set, &["--datasets", "data/datasets.toml"]].concat(), 0);
    let kept: toml::Table =
        toml::from_str(&fs::read_to_string(bench.path("run/datasets.toml")).unwrap()).unwrap();
    let folder = bench.path("data").canonicalize().unwrap();
    assert_eq!(kept["mine"]["dir"].as_str(), folder.to_str());
    assert_eq!(kept["mine"]["label"].as_str(), Some("y"));
    assert!(kept["mine"].get("like").is_none() && kept.len() == 1);
    // Whatever opens the run knows it, from any folder.
    fs::remove_file(&catalog).unwrap();
    run(&bench, &["eval", "--run", "run"], 0);
    assert_eq!(json::<serde_json::Value>(&bench.path("run/eval/results.json"))["mine"]["count"], 2);
    run(&bench, &["merge", "--run", "run", "--out", "merged"], 0);
    fs::remove_file(bench.path("run/results.json")).unwrap();
    run(&bench, &[&TRAIN[..], &set, &["--resume"]].concat(), 0);
    // One given goes before it.
    let other = bench.data("other", "{\"a\": \"four\", \"b\": \"v\", \"y\": \"no\"}\n", ENTRY);
    let text = fs::read_to_string(&other).unwrap().replace("my/data", "mine");
    fs::write(&other, text).unwrap();
    run(&bench, &["eval", "--run", "run", "--datasets", "other/datasets.toml", "--out", "eval"], 0);
    assert_eq!(json::<serde_json::Value>(&bench.path("eval/results.json"))["mine"]["count"], 1);
    // A file that is gone is told with its place.
    fs::remove_file(bench.path("data/rows.jsonl")).unwrap();
    let args = ["eval", "--run", "run"];
    check(&args, &forked::output(&bench.bare(&args)), 1, &["no file `rows.jsonl` in `", "data set `mine`"]);
}

/// Rows of a table of reviews: a third each of three classes.
fn reviews(count: usize) -> String {
    let row = |i: usize| format!("{i},\"word {i}\",body {},{}\n", i % 7, ["bad", "good", "fair"][i % 3]);
    "id,title,body,stars\n".to_owned() + &(0..count).map(row).collect::<String>()
}

#[test]
fn a_table_by_its_path_is_trained_on_and_a_share_of_it_is_held_out() {
    let bench = Bench::new();
    fs::create_dir(bench.path("mine")).unwrap();
    fs::write(bench.path("mine/train.csv"), reviews(60)).unwrap();
    fs::rename(bench.path("recipe.toml"), bench.path("mine/recipe.toml")).unwrap();
    let sets = [
        "data.dataset=train.csv",
        "data.text=\"{title}: {body}\"",
        "data.label=stars",
        "data.validation=0.2",
    ];
    let args: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    // The file lies beside the recipe.
    let recipe = ["train", "--recipe", "mine/recipe.toml", "--out", "run"];
    let said = errors(&run(&bench, &[&recipe[..], &args].concat(), 0));
    assert!(
        said.contains(
            "the columns tell `task = \"classification\"`, `labels = [\"bad\", \"fair\", \"good\"]`"
        ),
        "{said}"
    );
    let results: serde_json::Value = json(&bench.path("run/results.json"));
    assert_eq!(results["task"], "train");
    let whole = bench.path("mine/train.csv").canonicalize().unwrap();
    assert_eq!(results["recipe"]["data"]["dataset"].as_str(), whole.to_str());
    // `eval` scores the rows that were held out, from any folder.
    let elsewhere = bench.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let args = ["eval", "--run", "../run", "--out", "scored", "--device", "cpu", "--threads", "1"];
    let mut command = bench.bare(&args);
    let output = forked::output(command.current_dir(&elsewhere));
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let scored: serde_json::Value = json(&elsewhere.join("scored/results.json"));
    assert_eq!(scored["train"]["count"], 12);
    let found = scored["train"]["metrics"]["accuracy"]["value"].as_f64().unwrap();
    assert!((found - results["best"]["metrics"]["accuracy"].as_f64().unwrap()).abs() < 1e-9);
    let held: Vec<serde_json::Value> = json_lines(&elsewhere.join("scored/predictions/train.jsonl"));
    for class in 0..3 {
        assert_eq!(held.iter().filter(|row| row["label"] == class).count(), 4, "of each class alike");
    }
    // The training split is what is left.
    run(&bench, &["eval", "--run", "run", "--split", "train", "--out", "rest"], 0);
    let rest: Vec<serde_json::Value> = json_lines(&bench.path("rest/predictions/train.jsonl"));
    assert_eq!(rest.len(), 48);
    assert!(rest.iter().all(|row| held.iter().all(|other| other["index"] != row["index"])));
    // A file of its own, and resuming by the same words.
    fs::write(bench.path("mine/dev.csv"), reviews(9)).unwrap();
    let with = |end: &[&'static str]| {
        let mut args = vec!["train", "--recipe", "mine/recipe.toml", "--out", "second"];
        ["data.dataset=train.csv", "data.text=title", "data.label=stars", "data.validation=mine/dev.csv"]
            .iter()
            .for_each(|set| args.extend(["--set", set]));
        args.extend(end);
        args
    };
    run(&bench, &with(&[]), 0);
    assert!(said_by(&run(&bench, &with(&["--resume"]), 0)).contains("is finished"));
    run(&bench, &["eval", "--run", "second"], 0);
    assert_eq!(json::<serde_json::Value>(&bench.path("second/eval/results.json"))["train"]["count"], 9);
}

#[test]
fn a_saved_folder_and_parquet_know_the_names_of_their_classes() {
    let bench = Bench::new();
    let [saved, parquet] =
        ["saved/reviews", "saved/train.parquet"].map(|name| fixture(name).display().to_string());
    let labels = |out: &str, dataset: &str, sets: &[&str]| -> Vec<i64> {
        let set = format!("data.dataset={dataset}");
        let mut args = vec![
            "train", "--recipe", "recipe.toml", "--out", out, "--set", &set, "--set", "data.label=stars",
        ];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        run(&bench, &args, 0);
        run(&bench, &["eval", "--run", out, "--split", "train"], 0);
        let name = if dataset.ends_with("parquet") { "train" } else { "reviews" };
        let file = bench.path(out).join(format!("eval/train/predictions/{name}.jsonl"));
        let rows: Vec<serde_json::Value> = json_lines(&file);
        rows.iter().map(|row| row["label"].as_i64().unwrap()).collect()
    };
    let (own, never) = ([0, 1, 2, 0, 2], "eval.every=never");
    assert_eq!(labels("a", &saved, &["data.validation=test"]), own);
    let kept: toml::Table =
        toml::from_str(&fs::read_to_string(bench.path("a/datasets.toml")).unwrap()).unwrap();
    assert_eq!(kept[&saved]["labels"].to_string(), "[\"good\", \"bad\", \"fair\"]");
    assert_eq!(labels("b", &parquet, &[never]), own);
    // In another order they are told by their names; other names are those of the numbers.
    assert_eq!(labels("c", &parquet, &[never, "data.labels=bad,fair,good"]), [2, 0, 1, 2, 1]);
    assert_eq!(labels("d", &saved, &[never, "data.labels=x,y,z"]), own);
}

#[test]
fn a_mixture_resumes_to_the_same_bits_and_scores_each_data_set() {
    let bench = Bench::new();
    fs::write(bench.path("a.jsonl"), "{\"prompt\": \"one \", \"completion\": \"two\"}\n".repeat(9)).unwrap();
    let texts: String = (0..5).map(|i| format!("{{\"text\": \"some text {i}\"}}\n")).collect();
    fs::write(bench.path("b.jsonl"), texts).unwrap();
    let entry = |name: &str| {
        format!("[{name}]\nfiles = {{ train = \"{name}.jsonl\", validation = \"{name}.jsonl\" }}\n")
    };
    fs::write(bench.path("mine.toml"), entry("a") + &entry("b")).unwrap();
    let model = fixture("decoders/llama-linear");
    let recipe = format!(
        "[model]\nname = {model:?}\n[adapter]\nrank = 4\n[data]\nmixture = {{ a = 3, b = 1.5 }}\nvalidation = 0.3\n[train]\n\
         max_steps = 6\nbatch_size = 4\ncheckpoint_every = 2\nkeep_checkpoints = 9\nlog_every = 1\n"
    );
    fs::write(bench.path("recipe.toml"), recipe).unwrap();
    let args = [&TRAIN[..], &["--datasets", "mine.toml"]].concat();
    let said = errors(&run(&bench, &args, 0));
    // Of 9 and 5 rows, 3 and 2 are held out; the other 9 are two thirds and one third of an epoch.
    assert!(said.contains("mixture: 6 of the 6 examples of `a` an epoch"), "{said}");
    assert!(said.contains("mixture: 3 of the 3 examples of `b` an epoch"), "{said}");
    let adapter = || fs::read(bench.path("run/adapter/adapter_model.safetensors")).unwrap();
    let (whole, log) = (adapter(), losses(&bench.path("run")));
    fs::remove_file(bench.path("run/results.json")).unwrap();
    let checkpoints = fs::read_dir(bench.path("run/checkpoints")).unwrap().map(|entry| entry.unwrap());
    let later: Vec<_> = checkpoints.filter(|entry| entry.file_name() != "step-2").collect();
    assert!(!later.is_empty());
    later.iter().for_each(|entry| fs::remove_dir_all(entry.path()).unwrap());
    assert!(said_by(&run(&bench, &[&args[..], &["--resume"]].concat(), 0)).contains("resuming after step 2"));
    assert_eq!((adapter(), losses(&bench.path("run"))), (whole, log));
    run(&bench, &["eval", "--run", "run"], 0);
    let scored: serde_json::Value = json(&bench.path("run/eval/results.json"));
    assert_eq!((&scored["a"]["count"], &scored["b"]["count"]), (&3.into(), &2.into()));
}

/// The cache of the hub with this data set.
fn in_cache(bench: &Bench, files: &[(&str, &str)]) {
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let place = bench.path("hub/hub/datasets--owner--reviews");
    for (name, text) in files {
        let path = place.join("snapshots").join(commit).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::create_dir_all(place.join("refs")).unwrap();
    fs::write(place.join("refs/main"), commit).unwrap();
}

#[test]
fn a_data_set_of_the_hub_needs_no_entry() {
    let bench = Bench::new();
    let readme = "---\nconfigs:\n- config_name: plain\n  data_files:\n  - split: train\n    path: plain/a-*\n  - split: validation\n    \
                  path: plain/b.csv\n- config_name: other\n  data_files: other.jsonl\n---\n";
    let rows = reviews(12);
    in_cache(
        &bench,
        &[("README.md", readme), ("plain/a-1.csv", &rows), ("plain/b.csv", &rows), ("other.jsonl", "{}")],
    );
    let train = |dataset: &str| {
        let set = format!("data.dataset={dataset}");
        let args =
            [&TRAIN[..], &["--set", &set, "--set", "data.text=title", "--set", "data.label=stars"]].concat();
        args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>()
    };
    let refused = |dataset: &str, code, words: &[&str]| {
        let args = train(dataset);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        check(&args, &forked::output(&bench.bare(&args)), code, words);
    };
    refused("hub:owner/reviews", 2, &["has several configs", "`plain`, `other`"]);
    refused("hub:owner/reviews/plian", 2, &["has no config `plian`", "did you mean `plain`?"]);
    refused("hub:owner/absent", 1, &["offline, and `owner/absent`", "run once without `--offline`"]);
    refused("hub:ow ner", 1, &["is not a data set's hub id"]);
    let args = train("hub:owner/reviews/plain");
    run(&bench, &args.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    run(&bench, &["eval", "--run", "run"], 0);
    let scored: serde_json::Value = json(&bench.path("run/eval/results.json"));
    assert_eq!(scored["owner/reviews/plain"]["count"], 12);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of wrong inputs")]
fn wrong_data_is_told_with_what_to_do() {
    let bench = Bench::new();
    fs::write(bench.path("rows.csv"), reviews(6)).unwrap();
    fs::write(bench.path("one.jsonl"), "{\"text\": \"a\", \"label\": \"x\"}\n").unwrap();
    fs::write(
        bench.path("mixed.jsonl"),
        "{\"text\": \"a\", \"label\": 1}\n{\"body\": \"a\", \"label\": 0}\n",
    )
    .unwrap();
    fs::create_dir(bench.path("empty")).unwrap();
    let refused = |sets: &[&str], code, words: &[&str]| {
        let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let args = [&TRAIN[..], &sets].concat();
        check(&args, &forked::output(&bench.bare(&args)), code, words);
    };
    let rows = "data.dataset=rows.csv";
    let named = [rows, "data.text=title", "data.label=stars"];
    refused(&["data.dataset=absent.csv"], 1, &["no file or folder `/", "absent.csv`", "hub:OWNER/NAME"]);
    refused(
        &["data.dataset=./empty"],
        2,
        &["`./empty` has no data file".trim_start_matches("`./"), "`.parquet`"],
    );
    refused(&["data.dataset=absent"], 2, &["no data set `absent` in the catalog"]);
    refused(
        &[rows],
        2,
        &["does not say its `task`, nor do its columns `body`, `id`, `stars`, `title`", "`text` and `label`"],
    );
    refused(&named, 2, &["data set `rows` has no split `validation`", "`data.validation = 0.1`"]);
    refused(
        &[rows, "data.text=titel", "data.label=stars", "data.validation=0.5"],
        1,
        &["has no column `titel`", "did you mean `title`?"],
    );
    refused(
        &[rows, "data.text={title", "data.label=stars"],
        2,
        &["`rows.text`".trim_start_matches("`rows."), "is unmatched"],
    );
    for share in ["0.0", "1.0", "1.5", "-0.1", "1"] {
        let set = format!("data.validation={share}");
        refused(&[rows, &set], 2, &["a share of the training rows above 0 and below 1"]);
    }
    refused(
        &["data.dataset=one.jsonl", "data.validation=0.5"],
        2,
        &["expected at least two labels, found 1"],
    );
    refused(&["data.dataset=mixed.jsonl", "data.validation=0.5"], 1, &["one row: none can be held out"]);
    refused(
        &["data.dataset=", "data.mixture={a=0}"],
        2,
        &["`--set data.mixture={a=0}`: expected a number above 0"],
    );
    refused(&["data.mixture={\"glue/rte\"=1}"], 2, &["data.mixture={", "excludes `data.dataset`"]);
    refused(
        &["data.dataset=", "data.mixture={x=1}", "data.text=a"],
        2,
        &["expected none with `data.mixture`"],
    );
    refused(
        &["data.dataset=", "data.mixture={\"glue/rte\"=1,\"glue/sst2\"=1}"],
        2,
        &["cannot be mixed", "the same `labels`"],
    );
    refused(
        &["data.dataset=", "data.mixture={\"glue/rte\"=1,metamathqa=1}"],
        2,
        &["`glue/rte` is for `classification`, `metamathqa` for `instruction`"],
    );
    refused(&["data.dataset="], 2, &["missing key `data.dataset`"]);
}
