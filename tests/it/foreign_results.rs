//! Results of other tools beside ours, and ours for other tools: PEFT's `method_comparison`, lm-evaluation-harness, MLflow.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Place, errors, fixture, json, json_lines};

/// A place with two short runs, which differ in their seed; the first was scored on GSM8K, too.
fn place() -> Place {
    let place = Place::new();
    let recipe = format!(
        "[model]\nname = \"{}\"\n[adapter]\nrank = 4\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 40\n[train]\nepochs = 2\nbatch_size = 16\nlog_every = 1\n",
        fixture("encoders/bert-gelu").display()
    );
    for seed in [0, 1] {
        place.train(&recipe, &format!("runs/seed={seed}"), &[&format!("train.seed={seed}")]);
    }
    let scored = place.path("runs/seed=0/eval/test");
    fs::create_dir_all(&scored).unwrap();
    let scores = json!({"gsm8k/peft": {"split": "test", "count": 4, "metrics": {
        "gsm8k/flexible": {"value": 0.75, "stderr": 0.25}, "gsm8k/metamath": {"value": 0.5, "stderr": 0.2887},
    }}});
    fs::write(scored.join("results.json"), scores.to_string()).unwrap();
    place
}

fn report(place: &Place, args: &[&str]) -> String {
    String::from_utf8(place.run(&[&["report"], args].concat(), 0).stdout).unwrap()
}

fn refused(place: &Place, args: &[&str], code: i32) -> String {
    errors(&place.run(&[&["report"], args].concat(), code))
}

/// A row of PEFT's table, with made-up numbers.
fn row(name: &str, accuracy: f64) -> Value {
    json!({
        "run_info": {
            "created_at": "2026-01-01T00:00:00+00:00", "total_time": 120.0, "experiment_name": name, "peft_branch": "main",
            "train_config": {
                "model_id": "example/model", "dtype": "bfloat16", "batch_size": 4, "max_steps": 20, "seed": 0,
                "optimizer_kwargs": {"lr": 1e-4}, "lr_scheduler": "cosine",
            },
            "peft_config": {"peft_type": "LORA", "r": 32, "lora_alpha": 64, "target_modules": ["q_proj", "v_proj"]},
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": 1, "accelerator_memory_max": 3_145_728, "accelerator_memory_reserved_99th": 2,
            "train_time": 80.0, "file_size": 4096, "num_trainable_params": 1024, "num_total_params": 1_000_000,
            "status": "success",
            "metrics": [
                {"step": 10, "valid accuracy": 0.25, "train loss": 1.5, "train samples": 40, "train time": 40.0},
                {
                    "step": 20, "test accuracy": accuracy, "train loss": 1.25, "train samples": 80,
                    "train total tokens": 8000, "forgetting": 0.1,
                },
            ],
        },
        "meta_info": {
            "model_info": {"sha": null}, "dataset_info": {"metamath": {}, "gsm8k": {}},
            "package_info": {"peft-version": "0.19"}, "system_info": {"accelerator": "Example GPU"},
        },
    })
}

#[test]
fn a_row_for_peft_has_every_key_that_its_loader_demands() {
    let place = place();
    let row: Value = serde_json::from_str(&report(&place, &["runs/seed=0", "--format", "peft"])).unwrap();
    let demands: BTreeMap<String, Value> = json(&fixture("peft_rows.json"));
    assert!(demands.len() > 50, "{}", demands.len());
    for (path, demand) in &demands {
        let mut parts = path.split('.');
        let found = parts.try_fold(&row, |at, key| match key {
            "last" => at.as_array()?.last(),
            key => at.get(key),
        });
        let Some(found) = found else {
            assert_eq!(demand["absent"], true, "{path} is absent");
            continue;
        };
        let kind = match found {
            Value::Null => "NoneType",
            Value::Bool(_) => "bool",
            Value::Number(number) if number.is_f64() => "float",
            Value::Number(_) => "int",
            Value::String(_) => "str",
            Value::Array(_) => "list",
            Value::Object(_) => "dict",
        };
        let is_known = demand["types"].as_array().unwrap().contains(&json!(kind));
        assert!(
            is_known || kind == "NoneType" && demand["null"] == true,
            "{path}: {found}, expected {demand}"
        );
    }

    let results: Value = json(&place.path("runs/seed=0/results.json"));
    let of_results = &results["parameters"];
    let trained = of_results["adapter"].as_u64().unwrap() + of_results["head"].as_u64().unwrap();
    let size = fs::metadata(place.path("runs/seed=0/adapter/adapter_model.safetensors")).unwrap().len();
    let (run, train) = (&row["run_info"], &row["train_info"]);
    assert_eq!(run["experiment_name"], "lora-xs/seed=0");
    assert_eq!(run["peft_config"]["peft_type"], "LORAXS");
    assert_eq!((run["peft_config"]["r"].as_u64(), run["train_config"]["seed"].as_u64()), (Some(4), Some(0)));
    assert_eq!(
        (train["num_trainable_params"].as_u64(), train["file_size"].as_u64()),
        (Some(trained), Some(size))
    );
    assert_eq!(train["train_time"], results["train_seconds"]);
    let metrics = train["metrics"].as_array().unwrap();
    // 96 rows in batches of 16, twice; an evaluation after each epoch, and the test.
    assert_eq!(
        (metrics.len(), &metrics[2]["train samples"], &metrics[2]["test accuracy"]),
        (3, &json!(192), &json!(0.5))
    );
    let lines: Vec<Value> = json_lines(&place.path("runs/seed=0/metrics.jsonl"));
    let logged = lines.iter().find(|line| line["kind"] == "eval" && line["step"] == 6).unwrap();
    assert_eq!(metrics[0]["valid accuracy"], logged["metrics"]["accuracy"]);
}

#[test]
fn several_rows_go_into_a_folder_that_reads_back_to_the_same_numbers() {
    let place = place();
    let words = refused(&place, &["runs", "--format", "peft"], 2);
    assert!(words.contains("one row of `--format peft`, found 2") && words.contains("`--out`"), "{words}");
    refused(&place, &["runs", "--format", "peft", "--out", "one.json"], 2);
    let said = report(&place, &["runs", "--format", "peft", "--out", "rows"]);
    assert!(said.contains("wrote 2 rows into rows"), "{said}");
    let mut names: Vec<String> = fs::read_dir(place.path("rows"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["lora-xs--seed=0.json", "lora-xs--seed=1.json"]);
    report(&place, &["runs/seed=1", "--format", "peft", "--out", "one.json"]);
    let [one, of_folder]: [Value; 2] =
        ["one.json", "rows/lora-xs--seed=1.json"].map(|name| json(&place.path(name)));
    assert_eq!(one, of_folder);
    // Two runs of one name, below folders of one name.
    for place_of in ["a", "b"] {
        fs::create_dir_all(place.path(&format!("{place_of}/runs/x"))).unwrap();
        for name in ["recipe.toml", "results.json", "metrics.jsonl"] {
            let to = place.path(&format!("{place_of}/runs/x/{name}"));
            fs::copy(place.path("runs/seed=0").join(name), to).unwrap();
        }
    }
    let words = refused(&place, &["a/runs", "b/runs", "--format", "peft", "--out", "twice"], 2);
    assert!(words.contains("two runs would be written to `lora-xs--runs-x.json`"), "{words}");
    assert!(!place.path("twice").exists());
    // Not scored on GSM8K.
    assert_eq!(one["train_info"]["metrics"][2]["test accuracy"], Value::Null);
    let again = report(&place, &["rows/lora-xs--seed=0.json", "--format", "json"]);
    let again: Value = serde_json::from_str(&again).unwrap();
    let results: Value = json(&place.path("runs/seed=0/results.json"));
    let record = &again["runs"][0];
    assert_eq!(record["adapter_bytes"], of_file(&place.path("runs/seed=0")));
    assert_eq!(
        (&record["train_seconds"], &record["best"]["metrics"]["accuracy"]),
        (&results["train_seconds"], &json!(0.5))
    );
}

fn of_file(run: &Path) -> Value {
    json!(fs::metadata(run.join("adapter/adapter_model.safetensors")).unwrap().len())
}

#[test]
fn rows_of_peft_stand_beside_runs_and_are_never_taken_for_seeds_of_each_other() {
    let place = place();
    fs::create_dir(place.path("results")).unwrap();
    for (name, accuracy) in [("lora/rank32", 0.4375), ("lora/rank32-dora", 0.46875)] {
        let file = place.path("results").join(format!("{}.json", name.replace('/', "--")));
        fs::write(file, row(name, accuracy).to_string()).unwrap();
    }
    // As Python writes what is not finite.
    let undefined = row("vera/nan", 0.25).to_string().replace("1.25", "NaN").replace("0.1}", "-Infinity}");
    fs::write(place.path("results/nan.json"), undefined).unwrap();
    let mut failed = row("lora/failed", 0.9);
    failed["train_info"]["status"] = json!("canceled");
    failed["run_info"]["error_msg"] = json!("out of memory");
    fs::write(place.path("results/canceled.json"), failed.to_string()).unwrap();
    // What is no result is passed over in a folder.
    fs::write(place.path("results/notes.json"), "{\"a\": 1}").unwrap();
    fs::write(place.path("results/torn.json"), "{\"run_info\": {").unwrap();
    let text = report(&place, &["runs", "results"]);
    let line = |word: &str| {
        text.lines().find(|line| line.contains(word)).unwrap_or_else(|| panic!("{word}: {text}"))
    };
    for (name, words) in [
        ("lora/rank32 ", ["PEFT", "gsm8k/peft", "0.4375", "1,024"]),
        ("lora/rank32-dora", ["PEFT", "gsm8k/peft", "0.4688", "4.1 kB"]),
        ("vera/nan", ["PEFT", "lora ", "0.2500", "example"]),
        ("0.7500 (s.e. 0.2500)", ["loraxs", "gsm8k/peft", "gsm8k/flexible", "lora-xs"]),
    ] {
        assert!(words.iter().all(|word| line(name).contains(word)), "{name}: {words:?} in {text}");
    }
    assert!(line("lora/failed: failed").contains("out of memory"), "{text}");
    assert!(!text.contains("notes") && !text.contains("torn"), "{text}");
}

#[test]
fn results_of_the_harness_old_and_new_are_rows_of_the_table() {
    let place = Place::new();
    let new = fixture("harness/results_2026-11-26T12-00-00.000000.json");
    let old = json!({
        "results": {"boolq": {"acc": 0.625, "acc_stderr": 0.0085}, "wikitext": {"word_perplexity": 12.5, "word_perplexity_stderr": "N/A"}},
        "versions": {"boolq": 1},
        "config": {"model": "hf-causal", "model_args": "pretrained=example/older,dtype=float16", "num_fewshot": 5},
    });
    fs::write(place.path("results.json"), old.to_string()).unwrap();
    let text = report(&place, &[new.to_str().unwrap(), "results.json", "--format", "json"]);
    let all: Value = serde_json::from_str(&text).unwrap();
    let runs = all["runs"].as_array().unwrap();
    let get = |task: &str| {
        runs.iter().find(|run| run["task"] == task).unwrap_or_else(|| panic!("{task} in {text}"))
    };
    let files: Value = json(&new);
    for (task, metric, key) in
        [("sums", "exact_match,strict-match", "exact_match,strict-match"), ("sums_choice", "acc", "acc,none")]
    {
        let run = get(task);
        assert_eq!((&run["name"], &run["metric"]), (&json!("example/model"), &json!(metric)));
        assert_eq!(run["best"]["metrics"][metric], files["results"][task][key]);
        assert_eq!(run["stderr"], files["results"][task][key.replacen(',', "_stderr,", 1)]);
        assert_eq!(run["settings"]["num_fewshot"], files["n-shot"][task]);
    }
    assert_eq!(get("sums")["best"]["metrics"]["exact_match,flexible-extract"], json!(0.6));
    let boolq = get("boolq");
    assert_eq!((&boolq["name"], &boolq["stderr"]), (&json!("example/older"), &json!(0.0085)));
    assert_eq!((&boolq["settings"]["num_fewshot"], &boolq["higher_is_better"]), (&json!(5), &json!(true)));
    let wikitext = get("wikitext");
    assert_eq!((&wikitext["stderr"], &wikitext["higher_is_better"]), (&Value::Null, &json!(false)));
    assert!(report(&place, &[new.to_str().unwrap()]).contains("0.4000 (s.e. 0.2449)"));
}

#[test]
fn a_file_without_results_is_refused_by_name() {
    let place = Place::new();
    for (name, text) in
        [("a.json", "{}"), ("b.json", "{\"run_info\": {"), ("c.txt", "{\"results\": {}}"), ("d.json", "[]")]
    {
        fs::write(place.path(name), text).unwrap();
        for format in [&[][..], &["--format", "peft"], &["--format", "mlflow"]] {
            let words = refused(&place, &[&[name], format].concat(), 1);
            let expected = format!("`{name}` holds no results that can be read");
            assert!(words.contains(&expected) && words.contains("lm-evaluation-harness"), "{words}");
        }
    }
    assert!(!place.path("mlruns").exists());
}

/// Every file below a folder with its text; links with their targets.
fn files(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match fs::read_link(&path) {
            Ok(target) => drop(found.insert(path, target.display().to_string())),
            Err(_) if path.is_dir() => found.extend(files(&path)),
            Err(_) => drop(found.insert(path.clone(), fs::read_to_string(&path).unwrap())),
        }
    }
    found
}

#[test]
fn mlflow_gets_each_run_once_however_often_it_is_written() {
    let place = place();
    // An experiment of this name that MLflow made.
    let made = place.path("mlruns/123");
    fs::create_dir_all(&made).unwrap();
    fs::write(made.join("meta.yaml"), "experiment_id: '123'\nlifecycle_stage: active\nname: runs\n").unwrap();
    let said = report(&place, &["runs", "--format", "mlflow"]);
    assert!(said.contains("wrote 2 runs into mlruns"), "{said}");
    let first = files(&place.path("mlruns"));
    let run =
        first.keys().find(|path| path.ends_with("tags/loraxs.folder") && first[*path].ends_with("seed=0"));
    let run = run.unwrap().parent().unwrap().parent().unwrap().to_owned();
    assert_eq!(run.parent(), Some(made.as_path()));
    let get = |name: &str| &*first[&run.join(name)];
    assert_eq!((get("params/train.seed"), get("params/adapter.method")), ("0", "lora-xs"));
    assert_eq!((get("tags/mlflow.runName"), get("tags/loraxs.state")), ("seed=0", "finished"));
    assert_eq!(get("artifacts"), place.path("runs/seed=0").canonicalize().unwrap().to_str().unwrap());
    let lines: Vec<Value> = json_lines(&place.path("runs/seed=0/metrics.jsonl"));
    let parse = |line: &str| {
        let parts: Vec<&str> = line.split(' ').collect();
        (parts[2].parse::<u64>().unwrap(), parts[1].parse::<f64>().unwrap())
    };
    let points = |name: &str| get(name).lines().map(parse).collect::<Vec<_>>();
    let logged = |kind: &str, value: &dyn Fn(&Value) -> f64| {
        let lines = lines.iter().filter(|line| line["kind"] == kind);
        lines.map(|line| (line["step"].as_u64().unwrap(), value(line))).collect::<Vec<_>>()
    };
    assert_eq!(points("metrics/train/loss"), logged("train", &|line| line["loss"].as_f64().unwrap()));
    let accuracy = logged("eval", &|line| line["metrics"]["accuracy"].as_f64().unwrap());
    assert_eq!((points("metrics/eval/tiny/pairs/accuracy"), accuracy.len()), (accuracy, 2));
    let results: Value = json(&place.path("runs/seed=0/results.json"));
    let best = results["best"]["step"].as_u64().unwrap();
    assert_eq!(points("metrics/best/gsm8k/peft/gsm8k/metamath"), [(best, 0.5)]);
    let meta = yaml_rust2::YamlLoader::load_from_str(get("meta.yaml")).unwrap();
    let time = |key: &str| meta[0][key].as_i64().unwrap();
    let seconds = (time("end_time") - time("start_time")) as f64 / 1000.0;
    assert!((seconds - results["seconds"].as_f64().unwrap()).abs() < 0.01, "{seconds}");
    assert_eq!((meta[0]["status"].as_i64(), meta[0]["experiment_id"].as_str()), (Some(3), Some("123")));

    let note = run.join("tags/mlflow.note.content");
    fs::write(&note, "the best").unwrap();
    report(&place, &["runs", "--format", "mlflow", "--out", "mlruns"]);
    let mut second = files(&place.path("mlruns"));
    assert_eq!(second.remove(&note).as_deref(), Some("the best"));
    assert_eq!(second, first);
}

#[test]
fn names_that_mlflow_would_refuse_are_made_plain() {
    let place = Place::new();
    fs::create_dir(place.path("odd name")).unwrap();
    let mut odd = row("lora/../../x", 0.5);
    odd["run_info"]["experiment_name"] = json!("\"quoted\": #1\n");
    odd["run_info"]["peft_config"]["target_modules"] = json!("m".repeat(9000));
    fs::write(place.path("odd name/a.json"), odd.to_string()).unwrap();
    let harness =
        json!({"versions": {}, "results": {"../../up": {"acc,none": 0.5}, "hub:a/b@c": {"acc,none": 0.25}}});
    fs::write(place.path("odd name/b.json"), harness.to_string()).unwrap();
    report(&place, &["odd name", "--format", "mlflow", "--out", "store"]);
    let found = files(&place.path("store"));
    let name = |end: &str| {
        found.keys().find(|path| path.ends_with(end)).unwrap_or_else(|| panic!("{end} in {found:?}"))
    };
    name("metrics/eval/up/acc");
    name("metrics/eval/hub:a/b_c/acc");
    assert_eq!(found[name("params/adapter.targets")].len(), 6000);
    for (path, text) in found.iter().filter(|(path, _)| path.ends_with("meta.yaml")) {
        let read = yaml_rust2::YamlLoader::load_from_str(text).unwrap();
        let is_run = read[0]["run_id"].as_str().is_some();
        let uri = read[0][if is_run { "artifact_uri" } else { "artifact_location" }].as_str().unwrap();
        assert!(uri.starts_with("file:///") && !uri.contains(' '), "{}: {uri}", path.display());
    }
    assert!(!place.path("up").exists() && !place.path("store/up").exists());
}
