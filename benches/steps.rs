//! A training step and a decoding step on a small random Llama, in fp32 on one CPU thread.
//!
//!     just bench

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run should stop")]
#![allow(missing_docs, reason = "criterion_group! makes an undocumented function")]

use std::fs;
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use loraxs::adapters::basis::{Basis, BasisSpec, Weights};
use loraxs::adapters::lora_xs::LoraXsConfig;
use loraxs::adapters::{Frozen, Method, Trained};
use loraxs::data::Example;
use loraxs::data::tokenize::Tokenizer;
use loraxs::eval::Evaluation;
use loraxs::fault::Result;
use loraxs::generate::{Engine, GenerationSettings, SamplingParams};
use loraxs::models::adapt::{self, attach};
use loraxs::models::{Base, Build, CausalLm, Config};
use loraxs::report::metrics_log::TrainPoint;
use loraxs::spec::{Every, Init, Metric, Schedule};
use loraxs::torch::world::World;
use loraxs::train::language::LanguageModelling;
use loraxs::train::recorded::Passes;
use loraxs::train::{Recorder, RunPlan, TrainPlan, Trainer};
use serde_json::json;
use tch::{Device, Kind, Tensor};

/// Optimiser steps in a measured training, each of `BATCH` sequences of `LENGTH` tokens.
const STEPS: u64 = 4;
const BATCH: usize = 8;
const LENGTH: usize = 64;
/// Prompts decoded side by side, and their new tokens.
const PROMPTS: usize = 16;
const NEW_TOKENS: usize = 32;
const VOCABULARY: u32 = 4096;
const RANK: i64 = 16;

/// Writes a Llama of 4 layers and 3.7 million random weights, with the quick start's tokenizer.
fn write_checkpoint(folder: &Path) {
    let config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": VOCABULARY,
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": true,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "torch_dtype": "float32",
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new("quickstart/base").join(file), folder.join(file)).unwrap();
    }
    tch::set_num_threads(1);
    tch::manual_seed(0);
    let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)) * 0.02;
    let ones = || Tensor::ones([256], (Kind::Float, Device::Cpu));
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), random(&[VOCABULARY.into(), 256])),
        ("model.norm.weight".to_owned(), ones()),
    ];
    for (name, shape) in Config::load(folder).unwrap().linear_shapes() {
        tensors.push((format!("{name}.weight"), random(&shape)));
    }
    for layer in 0..4 {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("model.layers.{layer}.{norm}.weight"), ones()));
        }
    }
    Tensor::write_safetensors(&tensors, folder.join("model.safetensors")).unwrap();
}

fn load(folder: &Path, trained: &mut Trained) -> (Base, CausalLm) {
    let base = Base::open(folder).unwrap();
    let build = Build {
        devices: Device::Cpu.into(),
        kind: Kind::Float,
        head: None,
        seeds: vec![0],
        train_base: false,
    };
    let model = CausalLm::load(&base, &build, trained).unwrap();
    (base, model)
}

/// Puts LoRA-XS on every linear layer, in a random basis.
fn adapt(base: &Base, model: &mut CausalLm, trained: &mut Trained) {
    let layers = base.linear_layers();
    let spec = BasisSpec { rank: RANK, init: Init::Random, ..BasisSpec::default() };
    let read = |path: &str| base.weight(path, Device::Cpu);
    let weights = Weights { layers: &layers, device: Device::Cpu, read: &read };
    let basis = Basis::compute(&spec, "", weights, &|_, _| ()).unwrap().0;
    let plan = adapt::Plan {
        method: &Method::LoraXs(LoraXsConfig { r: RANK, lora_alpha: 16.0 }),
        layers: &layers,
        frozen: &Frozen { basis: Some(basis), ..Frozen::default() },
        start: adapt::Start { init_std: 1e-5, drawn: 0 },
        alphas: &[],
        init_stds: &[],
        dropout: 0.0,
    };
    attach(model.decoder.linears_mut(), plan, &[0], trained).unwrap();
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|position| 8 + (position * 37) % (VOCABULARY - 8)).collect()
}

/// Receives training events and drops them.
struct Nothing;

impl Recorder for Nothing {
    fn logged(&mut self, _run: usize, _point: &TrainPoint) -> Result<()> {
        Ok(())
    }

    fn evaluated(&mut self, _run: usize, _step: u64, _of: &Evaluation, _best: bool) -> Result<()> {
        Ok(())
    }
}

fn plan(folder: &Path) -> TrainPlan {
    let run = RunPlan {
        name: String::new(),
        seed: 0,
        drawn: 0,
        learning_rate: 1e-3,
        head_learning_rate: 1e-3,
        steps: STEPS,
        warmup: 0,
        schedule: Schedule::Constant,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        patience: 0,
        pause: u64::MAX,
        checkpoints: folder.join("checkpoints"),
        fingerprint: String::new(),
        earlier: Vec::new(),
    };
    TrainPlan {
        world: World::alone(),
        runs: vec![run],
        batch_size: BATCH,
        micro_batch_size: BATCH,
        micro_batch_tokens: 0,
        loss_scaling: false,
        shuffle: false,
        log_every: STEPS,
        evaluate: Every::Never,
        metric: Metric::Loss,
        checkpoint: Every::Never,
        keep_checkpoints: 1,
        mixture: Vec::new(),
        joined: false,
        fewest: 0,
    }
}

fn training_step(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let mut trained = Trained::new(1);
    let (base, mut model) = load(folder.path(), &mut trained);
    adapt(&base, &mut model, &mut trained);
    let example = |index| Example {
        index,
        ids: tokens(LENGTH),
        types: Vec::new(),
        trained: [0].into_iter().chain([1; LENGTH - 1]).collect(),
        label: None,
    };
    let examples: Vec<Example> = (0..BATCH).map(example).collect();
    let objective = LanguageModelling {
        model: &model,
        train: &examples,
        validation: &examples,
        eval_batch_tokens: BATCH * LENGTH,
        recompute: false,
        world: World::alone(),
        longest: LENGTH as i64,
        passes: Passes::default(),
    };
    let mut group = criterion.benchmark_group("training");
    group.throughput(Throughput::Elements(STEPS));
    group.sample_size(20).bench_function("steps", |bencher| {
        bencher.iter_batched(
            || plan(folder.path()),
            |plan| Trainer::new(plan, &objective, &trained, &mut Nothing, Vec::new()).unwrap().run().unwrap(),
            BatchSize::SmallInput,
        );
    });
}

fn decoding_step(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path());
    let (_, mut model) = load(folder.path(), &mut Trained::new(1));
    model.pack();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let settings = GenerationSettings::new(SamplingParams::greedy(NEW_TOKENS, &[]));
    let ids = tokens(4);
    let prompts: Vec<(usize, &[u32])> = (0..PROMPTS).map(|index| (index, ids.as_slice())).collect();
    let mut group = criterion.benchmark_group("decoding");
    group.throughput(Throughput::Elements(NEW_TOKENS as u64));
    group.sample_size(20).bench_function("steps", |bencher| {
        bencher
            .iter(|| Engine::new(&model, &tokenizer, &settings).run(&prompts, &mut |_, _| Ok(())).unwrap());
    });
}

criterion_group!(benches, training_step, decoding_step);
criterion_main!(benches);
