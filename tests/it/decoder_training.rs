//! LoRA-XS on decoders against PyTorch: gradients at random cores and twenty steps of training
//! (`scripts/reference/decoder_training.py`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loraxs::adapters::basis::{Basis, BasisSpec};
use loraxs::adapters::{Frozen, Method, Trained};
use loraxs::data::Example;
use loraxs::data::catalog::Catalog;
use loraxs::data::examples::{Split, load_in};
use loraxs::data::tokenize::Tokenizer;
use loraxs::models::adapt::{Plan, attach, targeted};
use loraxs::models::{Base, Build, CausalLm};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};

use crate::decoders::{log_probabilities, logits};
use crate::support::{Place, alone, distance, fixture, json, numbers};

#[derive(Deserialize)]
struct Fixture {
    settings: Settings,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Settings {
    rank: i64,
    alpha: f64,
    max_length: usize,
    batch_size: usize,
}

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    targets: Vec<String>,
    random_loss: f64,
    random_cores: BTreeMap<String, Vec<Vec<f64>>>,
    random_gradients: BTreeMap<String, Vec<Vec<f64>>>,
}

fn catalog() -> PathBuf {
    fixture("decoders/data/datasets.toml")
}

/// The checkpoint of a case with LoRA-XS on it.
fn adapted(case: &Case, settings: &Settings) -> (CausalLm, Trained) {
    let base = Base::open(&fixture("decoders").join(&case.checkpoint)).unwrap();
    let layers = targeted(&base.linear_layers(), &case.targets).unwrap();
    let weights = base.weights(&layers, Device::Cpu).unwrap();
    let spec = BasisSpec { rank: settings.rank, ..BasisSpec::default() };
    let basis = Basis::compute(&spec, &base.hash(), &weights, &|_, _| ()).unwrap().0;
    let frozen = Frozen { basis: Some(basis), ..Frozen::default() };
    let method = Method::LoraXs { r: settings.rank, lora_alpha: settings.alpha };
    let build =
        Build { device: Device::Cpu, kind: Kind::Float, classes: 0, seeds: vec![0], train_base: false };
    let mut trained = Trained::new(1);
    let mut model = CausalLm::load(&base, &build, &mut trained).unwrap();
    let plan = Plan { method: &method, layers: &layers, frozen: &frozen, init_std: 0.0, dropout: 0.0 };
    attach(model.decoder.linears_mut(), Device::Cpu, plan, &[0], &mut trained).unwrap();
    (model, trained)
}

/// The rows of the first step.
fn first_examples(folder: &Path, cache: &Path, settings: &Settings) -> Vec<Example> {
    let sets = Catalog::builtin().unwrap().with_file(&catalog()).unwrap();
    let dataset = sets.get("tiny/instructions").unwrap();
    let files = dataset.local_files("train").unwrap();
    let split = Split { dataset, name: "train", files: &files, limit: settings.batch_size };
    load_in(cache, &split, &Tokenizer::load(folder).unwrap(), settings.max_length).unwrap().examples
}

/// The mean negative log-likelihood of all targets.
fn loss(model: &CausalLm, examples: &[Example]) -> Tensor {
    let views: Vec<&[u32]> = examples.iter().map(|example| &example.ids[..]).collect();
    let (mut all, mut targets) = (vec![], vec![]);
    for (example, logits) in examples.iter().zip(logits(model, &views)) {
        all.push(log_probabilities(&logits, &example.ids));
        targets.extend(example.trained[1..].iter().map(|&trained| f32::from(trained)));
    }
    let targets = Tensor::from_slice(&targets);
    -(Tensor::cat(&all, 0) * &targets).sum(Kind::Float) / targets.sum(Kind::Float)
}

#[test]
fn gradients_at_random_cores_are_those_of_pytorch() {
    let _alone = alone();
    let Fixture { settings, cases } = json(&fixture("decoders/training.json"));
    assert_eq!(cases.len(), 4);
    for case in &cases {
        let (name, place) = (&case.checkpoint, Place::new());
        let (model, trained) = adapted(case, &settings);
        let entries = trained.entries();
        assert_eq!(entries.len(), case.random_cores.len(), "{name}");
        let module = |entry: &str| entry.strip_suffix(".R").unwrap().to_owned();
        for entry in entries {
            let core = Tensor::from_slice(&case.random_cores[&module(&entry.name)].concat());
            no_grad(|| entry.tensor.shallow_clone().copy_(&core.view_as(&entry.tensor)));
        }
        let examples = first_examples(&fixture("decoders").join(name), &place.path("cache"), &settings);
        let loss = loss(&model, &examples);
        let stray = (loss.double_value(&[]) / case.random_loss - 1.0).abs();
        assert!(stray < 1e-5, "{name}: the loss strays by {stray:e}");
        loss.backward();
        let found: Vec<f64> = entries.iter().flat_map(|entry| numbers(&entry.tensor.grad())).collect();
        let wanted: Vec<f64> =
            entries.iter().flat_map(|entry| case.random_gradients[&module(&entry.name)].concat()).collect();
        let off = distance(&found, &wanted);
        println!("{name}: loss {stray:.1e}, gradients {off:.1e}");
        assert!(off < 1e-5, "{name}: gradients are off by {off:e}");
    }
}
