//! LoRA-XS on decoders against PyTorch: gradients at random cores and twenty steps of training
//! (`scripts/reference/decoder_training.py`), also on a real small Llama (`scripts/reference/stories.py`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::basis::{Basis, BasisSpec, Weights};
use loraxs::adapters::lora_xs::LoraXsConfig;
use loraxs::adapters::{Frozen, Method, Trained};
use loraxs::data::Example;
use loraxs::data::catalog::Catalog;
use loraxs::data::examples::load_in;
use loraxs::data::split::Split;
use loraxs::data::tokenize::Tokenizer;
use loraxs::models::adapt::{Plan, Start, attach, targeted};
use loraxs::models::{Base, Build, CausalLm};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use tch::{Kind, Tensor, no_grad};

use crate::decoders::{log_probabilities, logits};
use crate::support::{
    Place, Point, alone, device, device_name, distance, fixture, json, log, losses, numbers, real, strays,
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
    init_std: f64,
    dropout: f64,
    max_length: usize,
    batch_size: usize,
    max_steps: u64,
    learning_rate: f64,
    schedule: String,
    warmup_ratio: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    shuffle: bool,
}

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    targets: Vec<String>,
    validation_before: f64,
    validation_after: f64,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
    cores: BTreeMap<String, Vec<Vec<f64>>>,
    random_loss: f64,
    random_cores: BTreeMap<String, Vec<Vec<f64>>>,
    random_gradients: BTreeMap<String, Vec<Vec<f64>>>,
}

#[derive(Deserialize)]
struct Modules {
    modules: Vec<String>,
}

#[derive(Deserialize)]
struct Stories {
    settings: StorySettings,
    training: Story,
}

#[derive(Deserialize)]
struct StorySettings {
    #[serde(flatten)]
    settings: Settings,
    targets: Vec<String>,
    prompt: String,
    response: String,
    train_rows: usize,
    held_out_rows: usize,
}

#[derive(Deserialize)]
struct Story {
    held_out_before: f64,
    held_out_after: f64,
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
    learning_rates: Vec<f64>,
}

/// What a training must give.
struct Wanted<'a> {
    losses: &'a [f64],
    grad_norms: &'a [f64],
    learning_rates: &'a [f64],
    held_out: f64,
}

impl Settings {
    fn recipe(&self, model: &Path, targets: &[String], dataset: &str) -> String {
        let Self { rank, alpha, init_std, dropout, max_length, batch_size, max_steps, learning_rate, .. } =
            self;
        let Self { schedule, warmup_ratio, weight_decay, max_grad_norm, shuffle, .. } = self;
        format!(
            "[model]\nname = {model:?}\n\
             [adapter]\nmethod = \"lora-xs\"\nrank = {rank}\nalpha = {alpha:?}\ntargets = {targets:?}\n\
             svd = \"randomized\"\ninit_std = {init_std:?}\ndropout = {dropout:?}\n\
             [data]\ndataset = {dataset:?}\nmax_length = {max_length}\n\
             [train]\nmax_steps = {max_steps}\nbatch_size = {batch_size}\nlearning_rate = {learning_rate:?}\n\
             schedule = {schedule:?}\nwarmup_ratio = {warmup_ratio:?}\nweight_decay = {weight_decay:?}\n\
             max_grad_norm = {max_grad_norm:?}\nshuffle = {shuffle}\nlog_every = 1\n\
             [eval]\nevery = {max_steps}\n"
        )
    }
}

impl Case {
    fn recipe(&self, settings: &Settings) -> String {
        let model = fixture("decoders").join(&self.checkpoint);
        settings.recipe(&model, &self.targets, "tiny/instructions")
    }
}

fn catalog() -> PathBuf {
    fixture("decoders/data/datasets.toml")
}

/// The held-out loss at the end of a run.
fn held_out(run: &Path) -> f64 {
    log(run).iter().rev().find_map(|point| point.metrics.as_ref()?["loss"]).unwrap()
}

/// The held-out loss that `eval` gives of what `subject` names.
fn scored(place: &Place, task: &str, subject: &[&str]) -> f64 {
    place.run(&[&["eval", "--task", task, "--out", "scored"], subject].concat(), 0);
    let results: Value = json(&place.path("scored/results.json"));
    results[task]["metrics"]["loss"]["value"].as_f64().unwrap()
}

fn assert_run_agrees(name: &str, run: &Path, wanted: &Wanted<'_>) {
    let points = log(run);
    let column = |pick: fn(&Point) -> Option<f64>| -> Vec<f64> { points.iter().filter_map(pick).collect() };
    let loss = strays(&column(|point| point.loss), wanted.losses);
    let norm = strays(&column(|point| point.grad_norm), wanted.grad_norms);
    let rate = distance(&column(|point| point.learning_rate), wanted.learning_rates);
    let after = (held_out(run) / wanted.held_out - 1.0).abs();
    println!("{name}: losses {loss:.1e}, gradient norms {norm:.1e}, held out {after:.1e}");
    assert!(loss < 1e-5, "{name}: losses stray by {loss:e}");
    assert!(norm < 1e-4, "{name}: gradient norms stray by {norm:e}");
    assert!(rate < 1e-12, "{name}: learning rates stray by {rate:e}");
    assert!(after < 1e-5, "{name}: the held-out loss strays by {after:e}");
}

/// The cores of a run in the order of the fixture's names.
fn assert_cores_agree(name: &str, run: &Path, case: &Case) {
    let order: Modules = json(&run.join("adapter/adapter_config.json"));
    assert_eq!(order.modules.len(), case.cores.len(), "{name}");
    let bytes = fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor("lora_xs_R").unwrap();
    let shape: Vec<i64> = view.shape().iter().map(|&n| n as i64).collect();
    let found = numbers(&Tensor::f_from_data_size(view.data(), &shape, Kind::Float).unwrap());
    let expected: Vec<f64> = order.modules.iter().flat_map(|module| case.cores[module].concat()).collect();
    let off = distance(&found, &expected);
    // Looser than losses: AdamW divides by the size of the gradient, so an entry whose gradient is nearly zero moves by
    // rounding errors.
    assert!(off < 1e-3, "{name}: cores are off by {off:e}");
}

/// The checkpoint of a case with LoRA-XS on it.
fn adapted(case: &Case, settings: &Settings) -> (CausalLm, Trained) {
    let base = Base::open(&fixture("decoders").join(&case.checkpoint)).unwrap();
    let layers = targeted(&base.linear_layers(), &case.targets).unwrap();
    let read = |layer: &str| base.weight(layer, device());
    let weights = Weights { layers: &layers, device: device(), read: &read };
    let spec = BasisSpec { rank: settings.rank, ..BasisSpec::default() };
    let basis = Basis::compute(&spec, &base.hash(), weights, &|_, _| ()).unwrap().0;
    let frozen = Frozen { basis: Some(basis), ..Frozen::default() };
    let method = Method::LoraXs(LoraXsConfig { r: settings.rank, lora_alpha: settings.alpha });
    let build =
        Build { devices: device().into(), kind: Kind::Float, head: None, seeds: vec![0], train_base: false };
    let mut trained = Trained::new(1);
    let mut model = CausalLm::load(&base, &build, &mut trained).unwrap();
    let plan = Plan {
        method: &method,
        layers: &layers,
        frozen: &frozen,
        start: Start::default(),
        dropout: 0.0,
        alphas: &[],
        init_stds: &[],
    };
    attach(model.decoder.linears_mut(), plan, &[0], &mut trained).unwrap();
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
    let targets = Tensor::from_slice(&targets).to_device(device());
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

#[test]
fn twenty_steps_are_those_of_pytorch() {
    let Fixture { settings, cases } = json(&fixture("decoders/training.json"));
    for case in &cases {
        let (place, name) = (Place::of_decoders(), &case.checkpoint);
        let folder = fixture("decoders").join(name);
        let length = settings.max_length.to_string();
        let base = ["--model", folder.to_str().unwrap(), "--max-length", &length];
        let before = scored(&place, "tiny/instructions", &base);
        let stray = (before / case.validation_before - 1.0).abs();
        assert!(stray < 1e-5, "{name}: the first held-out loss strays by {stray:e}");
        let run = place.train(&case.recipe(&settings), "run", &[]);
        let Case { losses, grad_norms, learning_rates, validation_after, .. } = case;
        let wanted = Wanted { losses, grad_norms, learning_rates, held_out: *validation_after };
        assert_run_agrees(name, &run, &wanted);
        assert_cores_agree(name, &run, case);
    }
}

#[test]
fn losses_of_language_models_do_not_depend_on_the_split_into_micro_batches() {
    let Fixture { mut settings, cases } = json(&fixture("decoders/training.json"));
    settings.max_steps = 5;
    let splits = ["train.micro_batch_size=1", "train.micro_batch_size=3", "train.micro_batch_tokens=90"];
    let recomputed = [splits[2], "train.gradient_checkpointing=true"];
    for case in &cases {
        let (place, recipe) = (Place::of_decoders(), case.recipe(&settings));
        let whole = place.train(&recipe, "whole", &[]);
        for split in splits {
            let parts = place.train(&recipe, split, &[split]);
            let first = (losses(&parts)[0] / losses(&whole)[0] - 1.0).abs();
            let all = strays(&losses(&parts), &losses(&whole));
            println!("{} {split}: first {first:.1e}, all {all:.1e}", case.checkpoint);
            assert!(first < 1e-6, "{} {split}: the first loss strays by {first:e}", case.checkpoint);
            assert!(all < 1e-6, "{} {split}: losses stray by {all:e}", case.checkpoint);
        }
        let again = place.train(&recipe, "again", &recomputed);
        let (again, kept) = (losses(&again), losses(&place.path(splits[2])));
        if device_name() == "cpu" {
            assert_eq!(again, kept, "{}", case.checkpoint);
        }
        // Backward passes of a GPU's attention add up in no fixed order.
        assert!(strays(&again, &kept) < 1e-6, "{}", case.checkpoint);
    }
}

/// Trains on the first rows of a file as a fixture of `stories.py` says: losses and the held-out loss, which falls, are
/// PyTorch's.
pub fn assert_learns_as_in_pytorch(expected: &Path, model: &Path, rows: &Path) {
    let Stories { settings, training } = json(expected);
    let Story { losses, grad_norms, learning_rates, held_out_before, held_out_after } = training;
    let text = fs::read_to_string(rows).unwrap();
    let part = |start, count| text.split_inclusive('\n').skip(start).take(count).collect::<String>();
    let entry = format!(
        "[rows]\ntask = \"instruction\"\ndir = \".\"\nprompt = {:?}\nresponse = {:?}\n\
         files = {{ train = \"train.jsonl\", validation = \"held_out.jsonl\" }}\n",
        settings.prompt, settings.response
    );
    let place = Place::with_own(&entry);
    fs::write(place.path("train.jsonl"), part(0, settings.train_rows)).unwrap();
    fs::write(place.path("held_out.jsonl"), part(settings.train_rows, settings.held_out_rows)).unwrap();
    let length = settings.settings.max_length.to_string();
    let base = ["--model", model.to_str().unwrap(), "--max-length", &length];
    let before = scored(&place, "rows", &base);
    assert!((before / held_out_before - 1.0).abs() < 1e-5, "{before} before training");
    let run = place.train(&settings.settings.recipe(model, &settings.targets, "rows"), "run", &[]);
    let wanted = Wanted {
        losses: &losses,
        grad_norms: &grad_norms,
        learning_rates: &learning_rates,
        held_out: held_out_after,
    };
    assert_run_agrees(&model.display().to_string(), &run, &wanted);
    assert!(held_out(&run) < 0.95 * before, "{before} before, {} after", held_out(&run));
}

#[test]
fn lora_xs_lowers_the_held_out_loss_of_a_real_llama_as_in_pytorch() {
    let (Some(model), Some(rows)) =
        (real("models/stories260k"), real("data/metamath/surrogate_gsm8k_math_train.jsonl"))
    else {
        return;
    };
    assert_learns_as_in_pytorch(&fixture("stories.json"), &model, &rows);
}
