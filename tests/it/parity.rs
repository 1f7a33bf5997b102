//! Logits and hidden states against Transformers, in fp32 on the CPU (`scripts/reference/encoder_parity.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use loraxs::adapters::Trained;
use loraxs::models::head::{Head, HeadSource};
use loraxs::models::{Backbone, Base, Build, Classifier};
use loraxs::nn::layout::Sequence;
use loraxs::nn::{Packed, Pass};
use serde::Deserialize;
use tch::{Kind, no_grad};

use crate::support::{
    Place, alone, classes, device, distance, encoders, fixture, json, json_lines, numbers, worse,
};

/// Relative to the largest expected value.
const TOLERANCE: f64 = 1e-5;

const WITH_HEAD: [&str; 6] = [
    "bert-gelu", "bert-gelu-new-bf16", "bert-silu-sharded", "roberta-gelu", "roberta-regression",
    "roberta-relu-fp16",
];
const TRUNKS: [&str; 3] = ["bert-relu-trunk", "bert-legacy", "roberta-masked-lm"];

#[derive(Deserialize)]
struct Expected {
    max_length: usize,
    #[serde(rename = "tiny/pairs")]
    pairs: Vec<Row>,
    #[serde(rename = "tiny/sentences")]
    sentences: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u8>,
    #[serde(default)]
    logits: Vec<f64>,
    #[serde(default)]
    first_hidden: Vec<f64>,
    #[serde(default)]
    pooled: Vec<f64>,
}

#[derive(Deserialize)]
struct Predicted {
    index: usize,
    logits: Vec<f64>,
}

/// Scores a checkpoint and returns how far the logits of each task are from the reference.
fn distances(checkpoint: &str, options: &[&str]) -> Vec<(String, f64)> {
    let place = Place::new();
    let folder = encoders().join(checkpoint);
    let expected: Expected = json(&folder.join("expected.json"));
    let length = expected.max_length.to_string();
    let tasks = match checkpoint {
        "roberta-regression" => vec![("tiny/score", &expected.pairs)],
        _ => vec![("tiny/pairs", &expected.pairs), ("tiny/sentences", &expected.sentences)],
    };
    let mut args = vec!["eval", "--model", folder.to_str().unwrap(), "--max-length", &length, "--out", "out"];
    for (task, _) in &tasks {
        args.extend(["--task", task]);
    }
    args.extend(options);
    place.run(&args, 0);
    let distance = |(task, rows): (&str, &Vec<Row>)| {
        let predicted: Vec<Predicted> = json_lines(&place.path(&format!("out/predictions/{task}.jsonl")));
        assert!(predicted.iter().enumerate().all(|(i, row)| row.index == i));
        let found: Vec<f64> = predicted.into_iter().flat_map(|row| row.logits).collect();
        let expected: Vec<f64> = rows.iter().flat_map(|row| row.logits.clone()).collect();
        (task.to_owned(), distance(&found, &expected))
    };
    tasks.into_iter().map(distance).collect()
}

fn assert_logits_agree(options: &[&str]) {
    for checkpoint in WITH_HEAD {
        for (task, distance) in distances(checkpoint, options) {
            println!("{checkpoint} {task} {options:?}: {distance:.1e}");
            assert!(distance < TOLERANCE, "{checkpoint}, {task}, {options:?}: {distance:e}");
        }
    }
}

#[test]
fn every_fixture_is_tested() {
    let mut names: Vec<String> = fs::read_dir(encoders())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "data")
        .collect();
    names.sort();
    let mut tested: Vec<&str> = WITH_HEAD.into_iter().chain(TRUNKS).collect();
    tested.sort_unstable();
    assert_eq!(names, tested);
}

#[test]
fn logits_of_batches_of_mixed_lengths_are_those_of_transformers() {
    assert_logits_agree(&[]);
}

#[test]
fn logits_of_one_sequence_at_a_time_are_those_of_transformers() {
    assert_logits_agree(&["--batch-size", "1"]);
}

#[test]
fn logits_of_uneven_batches_are_those_of_transformers() {
    assert_logits_agree(&["--batch-size", "5"]);
}

/// Only bf16 on a CPU says how wrong a wrong precision would look: the tolerance above tells them apart.
#[test]
fn logits_in_bf16_are_near_but_not_equal() {
    for checkpoint in WITH_HEAD {
        for (task, distance) in distances(checkpoint, &["--precision", "bf16"]) {
            println!("{checkpoint} {task} in bf16: {distance:.1e}");
            // Eight bits of mantissa, 2⁻⁹ a rounding, through two layers of lively weights.
            assert!((100.0 * TOLERANCE..0.1).contains(&distance), "{checkpoint}, {task}: {distance:e}");
        }
    }
}

fn trunk(folder: &Path) -> Classifier {
    let base = Base::open(folder).unwrap();
    let build = Build {
        devices: device().into(),
        kind: Kind::Float,
        head: Some(classes(3)),
        seeds: vec![0],
        train_base: false,
    };
    Classifier::load(&base, &build, &mut Trained::new(1)).unwrap()
}

#[test]
fn hidden_states_of_saved_trunks_are_those_of_transformers() {
    let _alone = alone();
    for checkpoint in TRUNKS {
        let folder = encoders().join(checkpoint);
        let expected: Expected = json(&folder.join("expected.json"));
        let model = trunk(&folder);
        let rows: Vec<&Row> = expected.pairs.iter().chain(&expected.sentences).collect();
        let sequences =
            rows.iter().map(|row| Sequence { ids: &row.input_ids, types: &row.token_type_ids }).collect();
        let batch = Packed::new(&[sequences], model.config.position_rule, device());
        let (first, pooled) = no_grad(|| {
            let Backbone::Encoder(encoder) = &model.trunk else { panic!("{checkpoint} is no encoder") };
            let hidden = encoder.forward(&batch, &Pass::evaluation()).unwrap(); // [m, d]
            let first = hidden.index_select(0, &batch.first); // [s, d]
            let pooler = encoder.pooler.as_ref();
            let pooled = pooler.map(|p| p.forward(&first, &Pass::evaluation()).tanh());
            (numbers(&first), pooled.map(|pooled| numbers(&pooled)))
        });
        let column = |pick: fn(&Row) -> &Vec<f64>| -> Vec<f64> {
            rows.iter().flat_map(|row| pick(row).clone()).collect()
        };
        assert!(distance(&first, &column(|row| &row.first_hidden)) < TOLERANCE, "{checkpoint}: first token");
        let expected = column(|row| &row.pooled);
        assert_eq!(pooled.is_some(), !expected.is_empty(), "{checkpoint}: pooler");
        if let Some(pooled) = pooled {
            assert!(distance(&pooled, &expected) < TOLERANCE, "{checkpoint}: pooler");
        }
    }
}

#[test]
fn packed_sequences_are_computed_as_if_each_were_alone() {
    let _alone = alone();
    for checkpoint in ["bert-gelu", "roberta-relu-fp16"] {
        let folder = encoders().join(checkpoint);
        let expected: Expected = json(&folder.join("expected.json"));
        let model = trunk(&folder);
        let logits = |rows: &[&Row]| {
            let sequences =
                rows.iter().map(|row| Sequence { ids: &row.input_ids, types: &row.token_type_ids }).collect();
            let batch = Packed::new(&[sequences], model.config.position_rule, device());
            numbers(&no_grad(|| model.forward(&batch, &Pass::evaluation()).unwrap()))
        };
        let rows: Vec<&Row> = expected.pairs.iter().chain(&expected.sentences).collect();
        let alone: Vec<f64> = rows.iter().flat_map(|row| logits(&[row])).collect();
        let found = distance(&logits(&rows), &alone);
        assert!(found < 1e-6, "{checkpoint}: {found:e}");
    }
}

/// A case of `scripts/reference/head_draws.py`.
#[derive(Deserialize)]
struct DrawnHead {
    checkpoint: String,
    without_pooler: bool,
    classes: i64,
    seed: u64,
    tensors: BTreeMap<String, DrawnTensor>,
}

#[derive(Deserialize)]
struct DrawnTensor {
    shape: Vec<i64>,
    first: Vec<f64>,
    last: Vec<f64>,
    sum: f64,
}

#[test]
fn a_drawn_head_is_the_one_that_transformers_draws_after_the_same_seed() {
    let _alone = alone();
    let cases: Vec<DrawnHead> = json(&fixture("head_draws.json"));
    for case in cases {
        let base = Base::open(&encoders().join(&case.checkpoint)).unwrap();
        // A run beside it has a seed of its own and must not disturb it.
        let source =
            HeadSource { checkpoint: &base.tensors, seeds: &[case.seed + 1, case.seed], device: device() };
        let mut trained = Trained::new(2);
        Head::load(&base.config, classes(case.classes), case.without_pooler, source, &mut trained).unwrap();
        assert_eq!(trained.entries().len(), case.tensors.len());
        for entry in trained.entries() {
            let (expected, found) = (&case.tensors[&entry.name], entry.tensor.get(1));
            assert_eq!(found.size(), expected.shape, "{}", entry.name);
            let found = numbers(&found);
            let shown =
                [&found[..expected.first.len()], &found[found.len() - expected.last.len()..]].concat();
            let off = shown.iter().zip(expected.first.iter().chain(&expected.last));
            let off = off.map(|(a, b)| (a - b).abs()).fold(0.0, worse);
            let sum = (found.iter().sum::<f64>() - expected.sum).abs();
            println!("{} {}: {off:.1e}, sum {sum:.1e}", case.checkpoint, entry.name);
            // Rounding of another processor's logarithm; the numbers are of the size of 0.02.
            assert!(off < 1e-7 && sum < 1e-5, "{}, {}: {off:e}, {sum:e}", case.checkpoint, entry.name);
        }
    }
}
