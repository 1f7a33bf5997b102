//! Data as people hold them: the entry that a run keeps, files, folders and hub data sets without one, held-out rows, mixtures.

use std::fs;
use std::process::Output;

use crate::bench::{Bench, check};
use crate::forked;
use crate::support::{errors, json};

/// Runs the command without the options that `Place` gives it.
fn run(bench: &Bench, args: &[&str], code: i32) -> Output {
    let args = [args, &["--device", "cpu", "--threads", "1"]].concat();
    let output = forked::output(&bench.bare(&args));
    assert_eq!(output.status.code(), Some(code), "loraxs {}\n{}", args.join(" "), errors(&output));
    output
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
