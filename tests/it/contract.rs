//! The contract of every adapter: what ΔW is at the start, that merging changes nothing, where gradients go, what is
//! saved, and that runs trained together are the runs trained alone.

use std::fs;
use std::path::Path;

use loraxs::adapters::basis::{Basis, BasisSpec, Init};
use loraxs::adapters::file::{self, AdapterConfig, AdapterFile, CoresConfig};
use loraxs::adapters::lora_xs::LoraXs;
use loraxs::adapters::{Adapter, Group, Trained, witness};
use loraxs::data::Example;
use loraxs::eval::Evaluation;
use loraxs::eval::metrics::Metric;
use loraxs::fault::Result;
use loraxs::models::adapt::{Plan as AdapterPlan, Spec, attach, targeted};
use loraxs::models::{Base, Build, Classifier};
use loraxs::nn::packed::Sequence;
use loraxs::nn::{Linear, Packed, Pass};
use loraxs::recipe::Schedule;
use loraxs::report::metrics_log::TrainPoint;
use loraxs::train::task::{Classification, Task as _};
use loraxs::train::{Interval, Plan, Recorder, RunPlan, Trainer};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};

use crate::support::{alone, distance, encoders, json, numbers};

const TARGETS: [&str; 4] = ["query", "value", "attention.output.dense", "output.dense"];
const RANK: i64 = 4;
/// Not the rank, so that a forgotten scale shows.
const ALPHA: f64 = 6.0;

fn targets() -> Vec<String> {
    TARGETS.map(str::to_owned).into()
}

fn spec(init_std: f64, dropout: f64) -> Spec {
    Spec { rank: RANK, alpha: ALPHA, init_std, dropout }
}

fn basis(base: &Base, init: Init) -> Basis {
    let layers = targeted(&base.linear_layers(), &targets()).unwrap();
    let weights = base.weights(&layers, Device::Cpu).unwrap();
    let spec = BasisSpec { rank: RANK, init, ..BasisSpec::default() };
    Basis::compute(&spec, &base.hash(), &weights, &|_, _| ()).unwrap().0
}

/// A checkpoint of the fixtures with LoRA-XS on it, one run for each seed.
struct Adapted {
    base: Base,
    basis: Basis,
    model: Classifier,
    trained: Trained,
}

fn adapted(checkpoint: &str, kind: Kind, seeds: &[u64], spec: Spec) -> Adapted {
    let base = Base::open(&encoders().join(checkpoint)).unwrap();
    let build = Build { device: Device::Cpu, kind, classes: 3, seeds: seeds.to_vec(), train_base: false };
    let mut trained = Trained::new(seeds.len() as i64);
    let mut model = Classifier::load(&base, &build, &mut trained).unwrap();
    let basis = basis(&base, Init::Svd);
    let plan = AdapterPlan::LoraXs { basis: &basis, spec };
    attach(model.encoder.linears_mut(), Device::Cpu, plan, seeds, &mut trained).unwrap();
    Adapted { base, basis, model, trained }
}

#[derive(Deserialize)]
struct Row {
    input_ids: Vec<u32>,
    token_type_ids: Vec<u8>,
}

/// Tokens of the fixture's rows; labels go round.
fn examples(checkpoint: &str) -> Vec<Example> {
    #[derive(Deserialize)]
    struct Expected {
        #[serde(rename = "tiny/pairs")]
        pairs: Vec<Row>,
        #[serde(rename = "tiny/sentences")]
        sentences: Vec<Row>,
    }
    let expected: Expected = json(&encoders().join(checkpoint).join("expected.json"));
    let rows = expected.pairs.into_iter().chain(expected.sentences).enumerate();
    rows.map(|(index, row)| Example {
        index,
        ids: row.input_ids,
        types: row.token_type_ids,
        trained: Vec::new(),
        label: Some((index % 3) as f32),
    })
    .collect()
}

fn task<'a>(model: &'a Classifier, examples: &'a [Example]) -> Classification<'a> {
    Classification {
        model,
        train: examples,
        validation: examples,
        metrics: vec![Metric::Accuracy],
        eval_batch_size: 7,
        recompute: false,
    }
}

/// Fills every core with numbers of a trained adapter's size.
fn randomise(trained: &Trained, seed: i64) {
    tch::manual_seed(seed);
    for entry in trained.entries().iter().filter(|entry| entry.group == Group::Adapter) {
        no_grad(|| entry.tensor.shallow_clone().copy_(&(entry.tensor.randn_like() * 0.3)));
    }
}

fn adapted_layers(model: &Classifier) -> Vec<(&Linear, &dyn Adapter)> {
    model.encoder.linears().into_iter().filter_map(|linear| Some((linear, linear.adapter()?))).collect()
}

#[test]
fn delta_is_zero_at_the_start_without_init_std_and_small_with_it() {
    let _alone = alone();
    let still = adapted("bert-gelu", Kind::Float, &[1, 2], spec(0.0, 0.0));
    assert_eq!(adapted_layers(&still.model).len(), 8);
    for (linear, adapter) in adapted_layers(&still.model) {
        let [out, inputs] = linear.shape();
        assert_eq!(adapter.delta().size(), [2, out, inputs]);
        assert!(numbers(&adapter.delta()).iter().all(|&x| x == 0.0), "{}", linear.name());
    }
    let moving = adapted("bert-gelu", Kind::Float, &[1, 2], spec(1e-5, 0.0));
    let cores: Vec<f64> = moving
        .trained
        .entries()
        .iter()
        .filter(|e| e.group == Group::Adapter)
        .flat_map(|e| numbers(&e.tensor))
        .collect();
    let std = (cores.iter().map(|x| x * x).sum::<f64>() / cores.len() as f64).sqrt();
    // 256 draws know a standard deviation to 4.4 %.
    assert!((0.8e-5..1.2e-5).contains(&std), "{std:e}");
    // Each run draws from its own seed.
    let core = &moving.trained.entries().iter().find(|e| e.group == Group::Adapter).unwrap().tensor;
    assert_ne!(numbers(&core.get(0)), numbers(&core.get(1)));
}

/// One layer whose adapter holds k random cores.
fn layer(kind: Kind, runs: i64) -> Linear {
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let (out, inputs) = (22, 14);
    let cast = |x: Tensor| x.to_kind(kind);
    let mut linear = Linear::new("layer".into(), cast(draw(&[out, inputs])), Some(cast(draw(&[out]))));
    let core = draw(&[runs, RANK, RANK]) * 0.3;
    let adapter =
        LoraXs::new(cast(draw(&[RANK, inputs])), cast(draw(&[out, RANK])), core, ALPHA / RANK as f64);
    linear.attach(Box::new(adapter), 0.0);
    linear
}

#[test]
fn a_layer_with_its_adapter_is_the_merged_layer() {
    let _alone = alone();
    tch::manual_seed(3);
    // bf16 rounds the result of a product to 2⁻⁹, and here there are two before the sum.
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 2e-2)] {
        for runs in [1, 3] {
            let linear = layer(kind, runs);
            let x = Tensor::randn([runs, 9, 14], (Kind::Float, Device::Cpu)).to_kind(kind);
            let bias =
                linear.forward(&x.zeros_like(), &Pass::evaluation()).get(0).get(0).to_kind(Kind::Float);
            let merged = linear.weight().to_kind(Kind::Float) + linear.adapter().unwrap().delta(); // [k, out, in]
            let expected = x.to_kind(Kind::Float).matmul(&merged.transpose(1, 2)) + bias; // [k, n, out]
            let found = linear.forward(&x, &Pass::evaluation());
            assert_eq!(found.kind(), kind);
            let distance = distance(&numbers(&found), &numbers(&expected));
            assert!(distance < tolerance, "{kind:?}, k = {runs}: {distance:e}");
            let plain = x.to_kind(Kind::Float).matmul(&linear.weight().to_kind(Kind::Float).tr());
            let moved = crate::support::distance(&numbers(&plain), &numbers(&expected));
            assert!(moved > 0.1, "the adapter does nothing");
        }
    }
}

#[test]
fn delta_is_alpha_over_rank_times_the_plain_lora_factors_of_each_run() {
    let _alone = alone();
    let Adapted { model, trained, .. } = adapted("roberta-gelu", Kind::Float, &[1, 2, 3], spec(0.0, 0.0));
    randomise(&trained, 5);
    for (linear, adapter) in adapted_layers(&model) {
        for run in 0..3 {
            let (a, b) = adapter.lora_factors(run).unwrap();
            let expected = b.matmul(&a) * (ALPHA / RANK as f64);
            let distance = distance(&numbers(&adapter.delta().get(run)), &numbers(&expected));
            assert!(distance < 1e-6, "{}, run {run}: {distance:e}", linear.name());
        }
    }
}

/// One backward pass over all examples.
fn backward(model: &Classifier, runs: usize, examples: &[Example]) {
    let batch: Vec<usize> = (0..examples.len()).collect();
    let divisors = vec![examples.len() as f64; runs];
    let pass = Pass::training(vec![0; runs]);
    task(model, examples).backward(&vec![batch; runs], &divisors, 1.0, &pass).unwrap();
}

fn moved(tensor: &Tensor) -> bool {
    tensor.grad().defined() && numbers(&tensor.grad()).iter().any(|&x| x != 0.0)
}

#[test]
fn gradients_reach_exactly_what_is_in_the_store() {
    let _alone = alone();
    for kind in [Kind::Float, Kind::BFloat16] {
        for checkpoint in ["bert-gelu", "roberta-gelu"] {
            let Adapted { model, trained, .. } = adapted(checkpoint, kind, &[1, 2], spec(0.0, 0.0));
            backward(&model, 2, &examples(checkpoint));
            for entry in trained.entries() {
                assert_ne!(entry.group, Group::Base);
                assert_eq!(entry.tensor.kind(), Kind::Float, "{}", entry.name);
                for run in 0..2 {
                    let gradient = entry.tensor.grad().get(run);
                    assert!(
                        numbers(&gradient).iter().any(|&x| x != 0.0),
                        "{checkpoint}, {}: run {run}",
                        entry.name
                    );
                }
            }
            for linear in model.encoder.linears() {
                assert_eq!(linear.weight().kind(), kind);
                let frozen = !linear.weight().requires_grad() && !linear.weight().grad().defined();
                assert!(frozen, "{checkpoint}, {}", linear.name());
                if let Some((a, _)) = linear.adapter().and_then(|adapter| adapter.lora_factors(0)) {
                    assert!(!a.requires_grad(), "{checkpoint}, A of {}", linear.name());
                }
            }
        }
    }
}

#[test]
fn with_the_whole_base_trained_every_weight_of_the_checkpoint_gets_a_gradient() {
    let _alone = alone();
    for checkpoint in ["bert-gelu", "roberta-gelu"] {
        let base = Base::open(&encoders().join(checkpoint)).unwrap();
        let build =
            Build { device: Device::Cpu, kind: Kind::Float, classes: 3, seeds: vec![1], train_base: true };
        let mut trained = Trained::new(1);
        let model = Classifier::load(&base, &build, &mut trained).unwrap();
        backward(&model, 1, &examples(checkpoint));
        let of_base: Vec<&str> =
            trained.entries().iter().filter(|e| e.group == Group::Base).map(|e| e.name.as_str()).collect();
        let trunk = base.trunk_tensors();
        assert_eq!(of_base.len(), trunk.len(), "{checkpoint}");
        assert!(trunk.iter().all(|(name, _)| of_base.contains(&name.as_str())), "{checkpoint}");
        for entry in trained.entries() {
            assert!(moved(&entry.tensor), "{checkpoint}, {}", entry.name);
        }
    }
}

fn config(base: &Base, basis: &Basis, with_basis: bool) -> AdapterConfig {
    AdapterConfig {
        peft_type: "LORAXS".into(),
        task_type: "SEQ_CLS".into(),
        method: "lora-xs".into(),
        base_model_name_or_path: base.folder.display().to_string(),
        revision: "main".into(),
        base_hash: base.hash(),
        dataset: "tiny/pairs".into(),
        labels: ["same", "other", "reversed"].map(str::to_owned).into(),
        max_length: 24,
        cores: Some(CoresConfig {
            r: RANK,
            lora_alpha: ALPHA,
            target_modules: targets(),
            modules: basis.modules.iter().map(|(name, _)| name.clone()).collect(),
            basis: basis.spec.clone(),
            witness: witness::witness(basis).unwrap(),
            with_basis,
        }),
    }
}

fn bits(trained: &Trained, run: i64) -> Vec<(String, Vec<u32>)> {
    let bits = |tensor: &Tensor| -> Vec<u32> {
        numbers(&tensor.get(run)).iter().map(|&x| (x as f32).to_bits()).collect()
    };
    trained.entries().iter().map(|entry| (entry.name.clone(), bits(&entry.tensor))).collect()
}

#[test]
fn what_is_saved_loads_bit_for_bit_and_is_small() {
    let _alone = alone();
    for (checkpoint, kind) in [("bert-gelu", Kind::Float), ("roberta-gelu", Kind::BFloat16)] {
        let (modules, r) = (8, usize::try_from(RANK).unwrap());
        let saved = adapted(checkpoint, kind, &[1, 2], spec(0.0, 0.0));
        randomise(&saved.trained, 11);
        assert_eq!(saved.trained.count(Group::Adapter), modules * r * r);
        for run in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let config = config(&saved.base, &saved.basis, false);
            file::save(folder.path(), &config, &saved.trained, run, None).unwrap();
            let size = fs::metadata(folder.path().join(file::WEIGHTS)).unwrap().len();
            let head = 4 * saved.trained.count(Group::Head);
            let most = 4 * r * r * modules + head + 4096;
            assert!(size <= most as u64, "{size} bytes, at most {most}");

            let opened = AdapterFile::open(folder.path()).unwrap();
            assert_eq!(opened.config, config);
            opened.check_base("base", &saved.base.hash()).unwrap();
            let loaded = adapted(checkpoint, kind, &[7], spec(1.0, 0.0));
            assert_ne!(bits(&loaded.trained, 0), bits(&saved.trained, run));
            opened.load_into(&loaded.trained, false).unwrap();
            assert_eq!(bits(&loaded.trained, 0), bits(&saved.trained, run));
        }
    }
}

#[test]
fn a_stored_basis_comes_back_bit_for_bit_and_passes_its_witness() {
    let _alone = alone();
    let saved = adapted("bert-gelu", Kind::Float, &[1], spec(1e-5, 0.0));
    let folder = tempfile::tempdir().unwrap();
    let config = config(&saved.base, &saved.basis, true);
    file::save(folder.path(), &config, &saved.trained, 0, Some(&saved.basis)).unwrap();
    let stored = AdapterFile::open(folder.path()).unwrap().stored_basis().unwrap().unwrap();
    for ((name, found), (_, expected)) in stored.modules.iter().zip(&saved.basis.modules) {
        assert_eq!((&found.a, &found.b), (&expected.a, &expected.b), "{name}");
    }
    let wanted = &config.cores.unwrap().witness;
    witness::check(&stored, wanted).unwrap();
    let random = basis(&saved.base, Init::Random);
    assert!(witness::check(&random, wanted).is_err());
}

/// What the loop said: `(run, step, loss)` and the last logits of each run.
#[derive(Default)]
struct Heard {
    losses: Vec<Vec<f64>>,
    logits: Vec<Vec<f64>>,
}

impl Recorder for Heard {
    fn logged(&mut self, run: usize, point: &TrainPoint) -> Result<()> {
        self.losses.resize(self.losses.len().max(run + 1), Vec::new());
        self.losses[run].push(point.loss);
        Ok(())
    }

    fn evaluated(&mut self, run: usize, _step: u64, evaluation: &Evaluation, _best: bool) -> Result<()> {
        self.logits.resize(self.logits.len().max(run + 1), Vec::new());
        self.logits[run] =
            evaluation.predictions.iter().flat_map(|p| &p.logits).map(|&x| f64::from(x)).collect();
        Ok(())
    }
}

fn plan(runs: &[RunPlan], folder: &Path) -> Plan {
    Plan {
        runs: runs.to_vec(),
        steps: 12,
        warmup: 2,
        batch_size: 6,
        micro_batch_size: 4,
        schedule: Schedule::Linear,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        loss_scaling: false,
        shuffle: true,
        log_every: 1,
        evaluate: Interval::Steps(12),
        metric: Metric::Accuracy,
        patience: 0,
        checkpoint: Interval::Never,
        keep_checkpoints: 1,
        checkpoints: folder.join("checkpoints"),
        fingerprint: "test".into(),
    }
}

/// Trains runs together: what the loop said, and the cores and heads of each run.
fn trained_together(checkpoint: &str, runs: &[RunPlan]) -> (Heard, Vec<Vec<f64>>) {
    let seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    // Dropout of the base, of attention, of the head and of the adapter: all must be the run's own.
    let Adapted { model, trained, .. } = adapted(checkpoint, Kind::Float, &seeds, spec(1e-2, 0.1));
    let (examples, folder) = (examples(checkpoint), tempfile::tempdir().unwrap());
    let mut heard = Heard::default();
    let task = task(&model, &examples);
    Trainer::new(plan(runs, folder.path()), &task, &trained, &mut heard, None).unwrap().run().unwrap();
    let of_run =
        |run: usize| trained.entries().iter().flat_map(|e| numbers(&e.tensor.get(run as i64))).collect();
    let tensors = (0..runs.len()).map(of_run).collect();
    (heard, tensors)
}

#[test]
fn runs_trained_together_are_the_runs_trained_alone() {
    let _alone = alone();
    let run = |seed, learning_rate, head_learning_rate| RunPlan { seed, learning_rate, head_learning_rate };
    let runs = [run(0, 1e-2, 5e-3), run(1, 3e-2, 5e-3), run(2, 1e-3, 2e-2)];
    for checkpoint in ["bert-gelu", "roberta-gelu"] {
        let (together, tensors) = trained_together(checkpoint, &runs);
        for (i, run) in runs.iter().enumerate() {
            let (alone, expected) = trained_together(checkpoint, std::slice::from_ref(run));
            let losses = distance(&together.losses[i], &alone.losses[0]);
            let logits = distance(&together.logits[i], &alone.logits[0]);
            let tensors = distance(&tensors[i], &expected[0]);
            println!(
                "{checkpoint}, run {i}: losses {losses:.1e}, logits {logits:.1e}, tensors {tensors:.1e}"
            );
            assert_eq!(together.losses[i].len(), 12);
            // The same numbers are summed in other shapes, so they differ in rounding; twelve steps of AdamW, which
            // divides by the size of the gradient, carry that on.
            assert!(losses < 1e-5, "{checkpoint}, run {i}: losses are off by {losses:e}");
            assert!(logits < 1e-4, "{checkpoint}, run {i}: logits are off by {logits:e}");
            assert!(tensors < 1e-3, "{checkpoint}, run {i}: trained tensors are off by {tensors:e}");
        }
        let differ = distance(&together.losses[1], &together.losses[0]);
        assert!(differ > 1e-2, "{checkpoint}: the runs are all the same");
    }
}

#[test]
fn a_batch_of_several_runs_gives_each_run_its_own_logits() {
    let _alone = alone();
    let examples = examples("bert-gelu");
    let Adapted { model, trained, .. } = adapted("bert-gelu", Kind::Float, &[1, 2, 3], spec(0.0, 0.0));
    randomise(&trained, 17);
    let pack = |from: usize, to: usize| -> Vec<Sequence> {
        examples[from..to].iter().map(|e| Sequence { ids: &e.ids, types: &e.types }).collect()
    };
    let logits = |runs: &[Vec<Sequence>]| {
        let batch = Packed::new(runs, model.config.position_rule, Device::Cpu);
        no_grad(|| model.forward(&batch, &Pass::evaluation()).unwrap())
    };
    // Runs of different lengths: the shorter ones are filled up, which nobody may notice.
    let together = logits(&[pack(0, 5), pack(5, 10), pack(20, 25)]);
    for (run, (from, to)) in (0i64..).zip([(0, 5), (5, 10), (20, 25)]) {
        let same = logits(&[pack(from, to), pack(from, to), pack(from, to)]);
        let found = distance(&numbers(&together.get(run)), &numbers(&same.get(run)));
        assert!(found < 1e-6, "run {run}: {found:e}");
    }
}
