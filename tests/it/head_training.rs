//! Heads for classes, sets of labels, numbers and words on encoders and decoders against Transformers, scikit-learn and seqeval
//! (`scripts/reference/heads.py`): twenty losses, logits, metrics, merged folders; and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use loraxs::adapters::Trained;
use loraxs::data::{Example, Label};
use loraxs::models::{Base, Build, Classifier, HeadShape};
use loraxs::nn::Noise;
use loraxs::spec::Problem;
use loraxs::torch::stream::Stream;
use loraxs::torch::world::World;
use loraxs::train::objective::{LabelPrediction, Objective as _};
use loraxs::train::recorded::Passes;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::Kind;

use crate::bench::{Bench, copied, edit};
use crate::support::{
    Place, alone, device, distance, fixture, json, json_lines, log, losses, numbers, room, strays,
};

#[derive(Deserialize)]
struct Fixture {
    settings: Settings,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Settings {
    rank: i64,
    alpha: f64,
    seed: u64,
    max_length: usize,
    batch_size: usize,
    max_steps: u64,
    learning_rate: f64,
    head_learning_rate: f64,
    warmup_ratio: f64,
    weight_decay: f64,
    max_grad_norm: f64,
}

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    dataset: String,
    targets: Vec<String>,
    class_weights: Value,
    losses: Vec<f64>,
    metrics: BTreeMap<String, f64>,
    logits: Vec<f64>,
}

impl Case {
    fn name(&self) -> String {
        format!("{} {}", self.checkpoint, self.dataset)
    }

    fn recipe(&self, settings: &Settings) -> String {
        let Settings { rank, alpha, seed, max_length, batch_size, max_steps, learning_rate, .. } = settings;
        let Settings { head_learning_rate, warmup_ratio, weight_decay, max_grad_norm, .. } = settings;
        let weights = match &self.class_weights {
            Value::Null => String::new(),
            weights => format!("class_weights = {weights}\n"),
        };
        format!(
            "[model]\nname = {:?}\ndropout = 0.0\n\
             [adapter]\nrank = {rank}\nalpha = {alpha:?}\ntargets = {:?}\ninit_std = 0.0\n\
             [data]\ndataset = {:?}\nmax_length = {max_length}\n\
             [train]\nseed = {seed}\nmax_steps = {max_steps}\nbatch_size = {batch_size}\nmicro_batch_size = 3\n\
             learning_rate = {learning_rate:?}\nhead_learning_rate = {head_learning_rate:?}\n\
             warmup_ratio = {warmup_ratio:?}\nweight_decay = {weight_decay:?}\nmax_grad_norm = {max_grad_norm:?}\n\
             shuffle = false\nlog_every = 1\n{weights}\
             [eval]\nevery = {max_steps}\n",
            fixture(&self.checkpoint),
            self.targets,
            self.dataset,
        )
    }
}

fn place() -> Place {
    Place::with_own(&catalog())
}

/// The fixture's catalog, with its files named from anywhere.
fn catalog() -> String {
    let folder = fixture("heads/data");
    let text = fs::read_to_string(folder.join("datasets.toml")).unwrap();
    text.replace("\nfiles ", &format!("\ndir     = {folder:?}\nfiles "))
}

/// Every number of the predictions' logits.
fn logits(path: &Path) -> Vec<f64> {
    fn numbers(value: &Value) -> Vec<f64> {
        value
            .as_array()
            .map_or_else(|| vec![value.as_f64().unwrap()], |list| list.iter().flat_map(numbers).collect())
    }
    json_lines::<Value>(path).iter().flat_map(|line| numbers(&line["logits"])).collect()
}

fn assert_folder_says(name: &str, case: &Case, folder: &Path) {
    let config: Value = json(&folder.join("config.json"));
    let class = config["architectures"][0].as_str().unwrap();
    let (end, problem) = match case.dataset.as_str() {
        "heads/classes" => ("ForSequenceClassification", json!("single_label_classification")),
        "heads/sets" => ("ForSequenceClassification", json!("multi_label_classification")),
        "heads/score" => ("ForSequenceClassification", json!("regression")),
        _ => ("ForTokenClassification", Value::Null),
    };
    assert!(class.ends_with(end) && config["problem_type"] == problem, "{name}: {config}");
    if case.dataset != "heads/score" {
        let labels = config["id2label"].as_object().unwrap().len();
        assert_eq!(labels, if case.dataset == "heads/classes" { 4 } else { 5 }, "{name}");
    }
    let known = config["pad_token_id"].is_number() || case.dataset == "heads/words";
    assert!(known || case.checkpoint.starts_with("encoders"), "{name}: {config}");
}

#[test]
fn losses_logits_metrics_and_merged_folders_are_those_of_transformers() {
    let Fixture { settings, cases } = json(&fixture("heads/training.json"));
    assert_eq!(cases.len(), 14);
    for case in &cases {
        let (place, name) = (place(), case.name());
        let run = place.train(&case.recipe(&settings), "run", &[]);
        let off = strays(&losses(&run), &case.losses);
        let last = log(&run).into_iter().rev().find_map(|point| point.metrics).unwrap();
        place.run(&["eval", "--run", "run", "--out", "scored"], 0);
        let predictions = format!("predictions/{}.jsonl", case.dataset);
        let found = logits(&place.path("scored").join(&predictions));
        let off_logits = distance(&found, &case.logits);
        println!("{name}: losses {off:.1e}, logits {off_logits:.1e}");
        assert!(off < room(2e-5), "{name}: losses are off by {off:e}");
        assert!(off_logits < room(1e-4), "{name}: logits are off by {off_logits:e}");
        let results: Value = json(&place.path("scored/results.json"));
        for (metric, expected) in &case.metrics {
            let scored = results[&case.dataset]["metrics"][metric]["value"].as_f64().unwrap();
            let trained = last[metric].unwrap();
            // Counts are equal; means of logits stray with these.
            let limit = if ["loss", "mse", "mae", "r2"].contains(&metric.as_str()) { 2e-4 } else { 1e-12 };
            for found in [scored, trained] {
                assert!((found - expected).abs() < limit, "{name}, {metric}: {found} for {expected}");
            }
        }
        place.run(&["merge", "--run", "run", "--out", "merged", "--dtype", "fp32"], 0);
        assert_folder_says(&name, case, &place.path("merged"));
        let length = settings.max_length.to_string();
        let merged = ["eval", "--model", "merged", "--task", &case.dataset, "--max-length", &length];
        place.run(&[&merged[..], &["--out", "again"]].concat(), 0);
        let off = distance(&logits(&place.path("again").join(&predictions)), &found);
        assert!(off < 1e-5, "{name}: the merged folder's logits are off by {off:e}");
    }
}

/// A bench whose recipe trains a checkpoint on one of the fixture's data sets.
fn bench(checkpoint: &str, dataset: &str) -> Bench {
    let bench = Bench(place());
    bench.recipe(&fixture(checkpoint), dataset);
    bench
}

#[test]
fn a_column_for_each_label_is_the_same_as_a_list() {
    let bench = bench("encoders/bert-relu-trunk", "heads/sets");
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "one"], 0);
    bench
        .0
        .run(&["train", "--recipe", "recipe.toml", "--out", "two", "--set", "data.dataset=heads/columns"], 0);
    assert_eq!(losses(&bench.path("one")), losses(&bench.path("two")));
}

#[test]
fn the_loss_picks_the_best_checkpoint_if_it_is_asked_for() {
    let bench = bench("encoders/bert-relu-trunk", "heads/classes");
    let sets =
        ["--set", "eval.metric=loss", "--set", "eval.every=1", "--set", "train.head_learning_rate=0.5"];
    bench.0.run(&[&["train", "--recipe", "recipe.toml", "--out", "run"], &sets[..]].concat(), 0);
    let results: Value = json(&bench.path("run/results.json"));
    let of = |which: &str| results[which]["metrics"]["loss"].as_f64().unwrap();
    let all: Vec<f64> =
        log(&bench.path("run")).into_iter().filter_map(|point| point.metrics?["loss"]).collect();
    assert_eq!(all.len(), 2);
    assert_eq!((results["metric"].as_str(), of("best")), (Some("loss"), all[0].min(all[1])));
}

#[test]
fn a_head_of_a_decoder_is_trained_by_every_method_and_exported_for_peft() {
    for method in ["head", "lora", "full"] {
        let bench = bench("decoders/llama-biased", "heads/classes");
        let method = format!("adapter.method={method}");
        let sets = ["--set", &method, "--set", "train.gradient_checkpointing=true"];
        bench.0.run(&[&["train", "--recipe", "recipe.toml", "--out", "run"], &sets[..]].concat(), 0);
        bench.0.run(&["merge", "--run", "run", "--out", "merged"], 0);
        if method.ends_with("lora") {
            bench.0.run(&["merge", "--run", "run", "--out", "peft", "--format", "peft"], 0);
            let config: Value = json(&bench.path("peft/adapter_config.json"));
            assert_eq!(
                (&config["task_type"], &config["modules_to_save"]),
                (&json!("SEQ_CLS"), &json!(["score"]))
            );
            let model = fixture("decoders/llama-biased");
            let args =
                ["eval", "--model", model.to_str().unwrap(), "--adapter", "peft", "--task", "heads/classes"];
            bench.0.run(&[&args[..], &["--max-length", "24", "--out", "peft-eval"]].concat(), 0);
            bench.0.run(&["eval", "--run", "run", "--out", "eval"], 0);
            let [own, peft] = ["eval", "peft-eval"]
                .map(|folder| logits(&bench.path(folder).join("predictions/heads/classes.jsonl")));
            assert!(distance(&peft, &own) < 1e-5);
        }
    }
}

#[test]
fn a_decoder_without_padding_gets_some_when_it_is_merged() {
    let bench = bench("decoders/llama-biased", "heads/classes");
    let model = copied(&fixture("decoders/llama-biased"), &bench.path("model"));
    edit(&model.join("config.json"), |config| drop(config.insert("pad_token_id".into(), Value::Null)));
    edit(&model.join("tokenizer_config.json"), |config| drop(config.remove("pad_token")));
    bench.recipe(&model, "heads/classes");
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    bench.0.run(&["merge", "--run", "run", "--out", "merged"], 0);
    let [before, after] =
        [&model, &bench.path("merged")].map(|folder| json::<Value>(&folder.join("config.json")));
    assert!(before["pad_token_id"].is_null() && after["pad_token_id"].is_number(), "{after}");
    assert_eq!(after["architectures"], json!(["LlamaForSequenceClassification"]));
    let stored = fs::read(bench.path("merged/model.safetensors")).unwrap();
    let names = SafeTensors::deserialize(&stored).unwrap().names().join(" ");
    assert!(names.contains("score.weight") && !names.contains("lm_head"), "{names}");
}

#[test]
fn what_does_not_fit_a_head_is_refused() {
    let bench = bench("encoders/bert-relu-trunk", "heads/classes");
    let weights =
        |set: &str, words: &[&str]| bench.refuses_set(&format!("train.class_weights={set}"), 2, words);
    weights("[1, 2]", &["lists 2 weights, but `heads/classes` has 4 classes", "`weather`, `people`"]);
    weights("[1, -2]", &["expected `balanced` or a list of numbers of at least 0"]);
    weights("even", &["expected `balanced` or a list of numbers of at least 0, found the string `even`"]);
    let sets = ["--set", "data.dataset=heads/sets", "--set", "train.class_weights=balanced"];
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    bench.refuses(
        &[&train[..], &sets].concat(),
        2,
        &["`train.class_weights` is for classes, but `heads/sets` is for `multi-label`"],
    );
    let sets = ["--set", "data.limit=2", "--set", "train.class_weights=balanced"];
    bench.refuses(
        &[&train[..], &sets].concat(),
        2,
        &["cannot be balanced: no training example has the label"],
    );
    // A head for sets of five labels is none for the five tags of words.
    bench.0.run(&[&train[..], &["--set", "data.dataset=heads/sets"]].concat(), 0);
    let words =
        ["`heads/words` needs a head for the classes of words, but the model's is for any number of labels"];
    bench.refuses(&["eval", "--run", "run", "--task", "heads/words"], 2, &words);
    bench.refuses(&["eval", "--run", "run", "--task", "heads/classes"], 2, &["has 4 classes", "5 outputs"]);
    bench.0.run(&["merge", "--run", "run", "--out", "merged"], 0);
    bench.refuses(&["eval", "--model", "merged", "--task", "heads/words"], 2, &words);
    edit(&bench.path("merged/config.json"), |config| drop(config.remove("problem_type")));
    bench.refuses(
        &["eval", "--model", "merged", "--task", "heads/sets"],
        2,
        &["`heads/sets` needs a head for any number of labels, but the model's is for one class"],
    );
}

#[test]
fn rows_that_no_head_can_learn_from_are_told() {
    let bench = bench("encoders/bert-relu-trunk", "heads/classes");
    let words = "task = 'token-classification'\ntext = 'w'\nlabel = 't'\nlabels = ['O', 'B-X']\n";
    let sets = "task = 'multi-label'\ntext = 'w'\nlabel = 's'\nlabels = ['a', 'b']\n";
    for (rows, entry, code, told) in [
        (r#"{"w": ["a", "b"], "t": [0]}"#, words, 1, "column `w` has 2 words, but there are 1 tags"),
        (r#"{"w": "a b", "t": [0, 1]}"#, words, 1, "column `w`: expected a list such as"),
        (r#"{"w": ["a"], "t": ["B-Y"]}"#, words, 1, "label `B-Y` is none of the 2 labels in the catalog"),
        (r#"{"w": ["a"], "t": "O"}"#, words, 1, "expected a list such as `[\"a\", \"b\"]`, found `O`"),
        (r#"{"w": [], "t": []}"#, words, 1, "holds no word of which the model sees a token"),
        (r#"{"w": "a", "s": ["c"]}"#, sets, 1, "label `c` is none of the 2 labels in the catalog"),
        (r#"{"w": "a", "s": "a"}"#, sets, 1, "expected a list such as `[\"a\", \"b\"]`, found `a`"),
        (r#"{"w": "a", "s": [0, 0]}"#, sets, 1, "the label `0` is there twice"),
        (
            r#"{"w": "a", "s": 1}"#,
            "task = 'multi-label'\ntext = 'w'\nlabel = 's'\n",
            2,
            "missing key `my/data.labels`",
        ),
        (
            r#"{"w": "a", "s": ["a", "b"]}"#,
            "task = 'classification'\ntext = 'w'\nlabel = 's'\nlabels = ['a', 'b']\n",
            1,
            "expected a label, found a list",
        ),
        (
            r#"{"w": "a", "s": 1}"#,
            "task = 'classification'\ntext = 'w'\nlabel = 's'\nlabels = ['a', 'b', 'c']\nmetrics = 'recall'\n",
            2,
            "`recall` needs two labels, found 3; use `recall_macro`",
        ),
    ] {
        let catalog = bench.data("data", rows, entry);
        bench.refuses_data(&catalog, code, &[told]);
    }
}

/// The losses of one backward pass, and the gradient of each run's head, of runs over these examples trained together.
fn tagged(seeds: &[u64], batches: &[Vec<usize>], examples: &[Example]) -> (Vec<f64>, Vec<f64>) {
    let base = Base::open(&fixture("encoders/bert-relu-trunk")).unwrap();
    let head = Some(HeadShape { problem: Problem::Tokens, outputs: 3 });
    let build =
        Build { devices: device().into(), kind: Kind::Float, head, seeds: seeds.to_vec(), train_base: false };
    let mut trained = Trained::new(seeds.len() as i64);
    let model = Classifier::load(&base, &build, &mut trained).unwrap();
    let objective = LabelPrediction {
        model: &model,
        train: examples,
        validation: examples,
        labels: &[],
        metrics: Vec::new(),
        class_weights: vec![0.5, 1.0, 2.0],
        eval_batch_size: 1,
        recompute: false,
        world: World::alone(),
        passes: Passes::default(),
    };
    let divisors: Vec<f64> = batches.iter().map(|batch| objective.weight(batch)).collect();
    let noise = Noise::new(vec![Stream::seeded(0); seeds.len()]);
    let losses = objective.backward(batches, &divisors, &vec![1.0; seeds.len()], &noise).unwrap();
    let runs = 0..seeds.len() as i64;
    let of_run =
        |run: i64| trained.entries().iter().flat_map(move |entry| numbers(&entry.tensor.grad().get(run)));
    (numbers(&losses), runs.flat_map(of_run).collect())
}

#[test]
fn runs_with_other_numbers_of_words_learn_together_as_alone() {
    let _alone = alone();
    let example = |index: usize| {
        let length = 3 + 5 * index % 11;
        let trained: Vec<u8> = (0..length).map(|at| u8::from(at % 3 != 2)).collect();
        let tags = (0..trained.iter().filter(|first| **first == 1).count()).map(|at| (at + index) as u32 % 3);
        let ids = (0..length).map(|at| ((7 * at + 13 * index) % 90 + 5) as u32).collect();
        Example { index, ids, types: Vec::new(), label: Some(Label::Tags(tags.collect())), trained }
    };
    let examples: Vec<Example> = (0..6).map(example).collect();
    let batches = [vec![0, 1, 2], vec![3, 4, 5]];
    let together = tagged(&[1, 2], &batches, &examples);
    let [one, two] = [(1, 0), (2, 1)].map(|(seed, run)| tagged(&[seed], &batches[run..=run], &examples));
    assert!(distance(&together.0, &[one.0, two.0].concat()) < 1e-6);
    assert!(distance(&together.1, &[one.1, two.1].concat()) < room(1e-5));
}
