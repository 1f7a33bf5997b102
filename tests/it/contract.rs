//! The contract of every adapter: what ΔW is at the start, that merging changes nothing, where gradients go, what is
//! saved, and that runs trained together are the runs trained alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::basis::{Basis, BasisSpec, Weights};
use loraxs::adapters::file::{self, AdapterConfig, AdapterFile, BasisRecord};
use loraxs::adapters::layout::Layout;
use loraxs::adapters::lora::LoraConfig;
use loraxs::adapters::lora_mini::LoraMiniConfig;
use loraxs::adapters::lora_xs::LoraXsConfig;
use loraxs::adapters::rules::Layer;
use loraxs::adapters::tiny_lora::TinyLoraConfig;
use loraxs::adapters::vera::VeraConfig;
use loraxs::adapters::{Adapter, Frozen, Group, Method, Named, Route, Site, Trained, witness};
use loraxs::data::{Example, Label};
use loraxs::eval::Evaluation;
use loraxs::fault::Result;
use loraxs::models::adapt::{self, Plan, attach, targeted};
use loraxs::models::{Base, Build, Classifier};
use loraxs::nn::layout::{Positions, Sequence};
use loraxs::nn::{Linear, Noise, Packed, Pass};
use loraxs::report::metrics_log::TrainPoint;
use loraxs::spec::{Every, Init, Metric, Problem, Schedule, Sigma, Tying};
use loraxs::torch::stream::Stream;
use loraxs::torch::world::World;
use loraxs::train::objective::{LabelPrediction, Objective as _};
use loraxs::train::order::Order;
use loraxs::train::recorded::Passes;
use loraxs::train::{Recorder, RunPlan, TrainPlan, Trainer};
use serde::Deserialize;
use tch::{Device, Kind, Tensor, no_grad};

use crate::bench::{copied, edit};
use crate::support::{alone, classes, device, devices, distance, encoders, json, numbers, room};

const TARGETS: [&str; 4] = ["query", "value", "attention.output.dense", "output.dense"];
const RANK: i64 = 4;
/// Not the rank, so that a forgotten scale shows.
const ALPHA: f64 = 6.0;
const LORA_XS: Method = Method::LoraXs(LoraXsConfig { r: RANK, lora_alpha: ALPHA });

fn targets() -> Vec<String> {
    TARGETS.map(str::to_owned).into()
}

/// Every method that puts adapters on layers, in each of its forms.
fn methods() -> Vec<Method> {
    let lora = |use_rslora| Method::Lora(LoraConfig { r: RANK, lora_alpha: ALPHA, use_rslora });
    let vera = |save_projection| {
        Method::Vera(VeraConfig { r: 12, d_initial: 0.1, projection_prng_key: 3, save_projection })
    };
    let tiny =
        |untied, tying| Method::TinyLora(TinyLoraConfig { r: 2, u: 5, untied, tying, projection_seed: 7 });
    vec![
        LORA_XS,
        lora(false),
        lora(true),
        vera(true),
        vera(false),
        Method::LoraMini(LoraMiniConfig { rank_a: 6, rank_b: 5, r: 3, lora_alpha: ALPHA }),
        tiny(1.0, Tying::Depth),
        tiny(0.5, Tying::Depth),
        tiny(0.0, Tying::Kind),
    ]
}

/// What the documentation of a method promises.
struct Promise {
    /// Trainable parameters of the eight layers of `bert-gelu` (width 36, inner width 52) for the settings of [`methods`].
    count: usize,
    /// Trained tensors whose gradient is zero at the start, because what they are multiplied with is.
    still: &'static [&'static str],
}

/// A new method does not compile without a promise, and `every_method_is_in_the_list` fails without a place above.
fn promise(method: &Method) -> Promise {
    let (count, still): (usize, &'static [&'static str]) = match *method {
        Method::LoraXs(_) => (8 * 16, &[]),
        Method::Lora(_) => (4 * (6 * 72 + 2 * 88), &["lora_A.weight"]),
        Method::Vera(_) => (8 * (36 + 12), &["vera_lambda_d"]),
        Method::LoraMini(_) => (8 * 3 * 11, &["lora_mini_B"]),
        Method::TinyLora(TinyLoraConfig { tying: Tying::Kind, .. }) => (4 * 5, &[]),
        Method::TinyLora(TinyLoraConfig { untied, .. }) => (if untied < 1.0 { 4 * 5 } else { 8 * 5 }, &[]),
        Method::Full | Method::Head => (0, &[]),
    };
    Promise { count, still }
}

#[test]
fn every_method_is_in_the_list() {
    let mut names: Vec<&str> = methods().iter().map(|method| method.name()).collect();
    names.extend([Method::Full, Method::Head].iter().map(|method| method.name()));
    let names: BTreeSet<&str> = names.into_iter().collect();
    let known: BTreeSet<&str> = Method::all().each_ref().map(|method| method.name()).into();
    assert_eq!(names, known);
}

fn frozen(base: &Base, layers: &[Layer], method: &Method, init: Init) -> Frozen {
    let basis = method.basis_rank().map(|rank| {
        let read = |layer: &str| base.weight(layer, Device::Cpu);
        let weights = Weights { layers, device: Device::Cpu, read: &read };
        let sigma = if method.is_of_peft() { Sigma::Split } else { Sigma::A };
        let spec = BasisSpec { rank, init, sigma, ..BasisSpec::default() };
        Basis::compute(&spec, &base.hash(), weights, &|_, _| ()).unwrap().0
    });
    Frozen { basis, ..Frozen::default() }
}

/// A checkpoint of the fixtures with adapters on it, one run for each seed.
struct Adapted {
    base: Base,
    method: Method,
    layers: Vec<Layer>,
    frozen: Frozen,
    kept: Named,
    model: Classifier,
    trained: Trained,
}

impl Adapted {
    fn basis(&self) -> &Basis {
        self.frozen.basis.as_ref().unwrap()
    }
}

/// Standard deviation of a LoRA-XS core at the start, and dropout on what adapters read.
type Start = (f64, f64);

fn adapted(checkpoint: &str, method: &Method, kind: Kind, seeds: &[u64], start: Start) -> Adapted {
    adapted_with(checkpoint, method, kind, (seeds, start, &[]))
}

/// As [`adapted`], with an α of each run.
fn adapted_with(checkpoint: &str, method: &Method, kind: Kind, runs: (&[u64], Start, &[f64])) -> Adapted {
    let base = Base::open(&encoders().join(checkpoint)).unwrap();
    let layers = targeted(&base.linear_layers(), &targets()).unwrap();
    let frozen = frozen(&base, &layers, method, Init::Svd);
    put(base, method, layers, frozen, kind, runs)
}

fn put(
    base: Base,
    method: &Method,
    layers: Vec<Layer>,
    frozen: Frozen,
    kind: Kind,
    (seeds, (init_std, dropout), alphas): (&[u64], Start, &[f64]),
) -> Adapted {
    let build = Build {
        devices: devices().clone(),
        kind,
        head: Some(classes(3)),
        seeds: seeds.to_vec(),
        train_base: false,
    };
    let mut trained = Trained::new(seeds.len() as i64);
    let mut model = Classifier::load(&base, &build, &mut trained).unwrap();
    let start = adapt::Start { init_std, drawn: 0 };
    let plan = Plan { method, layers: &layers, frozen: &frozen, start, dropout, alphas, init_stds: &[] };
    let kept = attach(model.trunk.linears_mut(), plan, seeds, &mut trained).unwrap();
    Adapted { base, method: method.clone(), layers, frozen, kept, model, trained }
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
        label: Some(Label::Class((index % 3) as u32)),
    })
    .collect()
}

fn task<'a>(model: &'a Classifier, examples: &'a [Example]) -> LabelPrediction<'a> {
    LabelPrediction {
        model,
        train: examples,
        validation: examples,
        labels: &[],
        metrics: vec![Metric::Accuracy],
        class_weights: Vec::new(),
        eval_batch_size: 7,
        recompute: false,
        world: World::alone(),
        passes: Passes::default(),
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
    model.trunk.linears().into_iter().filter_map(|linear| Some((linear, linear.adapter()?))).collect()
}

/// Trained tensors of the adapters.
fn factors(trained: &Trained) -> impl Iterator<Item = (&str, &Tensor)> {
    let of_adapters = trained.entries().iter().filter(|entry| entry.group == Group::Adapter);
    of_adapters.map(|entry| (entry.name.as_str(), &entry.tensor))
}

#[test]
fn delta_is_zero_at_the_start_and_the_count_is_the_formula() {
    let _alone = alone();
    for method in methods() {
        let still = adapted("bert-gelu", &method, Kind::Float, &[1, 2], (0.0, 0.0));
        assert_eq!(adapted_layers(&still.model).len(), 8, "{method:?}");
        for (linear, adapter) in adapted_layers(&still.model) {
            let [out, inputs] = linear.shape();
            assert_eq!(adapter.delta().size(), [2, out, inputs], "{method:?}");
            assert!(numbers(&adapter.delta()).iter().all(|&x| x == 0.0), "{method:?}, {}", linear.name());
        }
        let count = still.trained.count(Group::Adapter);
        assert_eq!(
            (count, method.count(&still.layers)),
            (promise(&method).count, count as i64),
            "{method:?}"
        );
    }
}

#[test]
fn a_core_starts_small_where_it_does_not_start_at_zero() {
    let _alone = alone();
    let moving = adapted("bert-gelu", &LORA_XS, Kind::Float, &[1, 2], (1e-5, 0.0));
    let cores: Vec<f64> = factors(&moving.trained).flat_map(|(_, core)| numbers(core)).collect();
    let std = (cores.iter().map(|x| x * x).sum::<f64>() / cores.len() as f64).sqrt();
    // 256 draws know a standard deviation to 4.4 %.
    assert!((0.8e-5..1.2e-5).contains(&std), "{std:e}");
}

#[test]
fn what_is_drawn_is_drawn_from_each_runs_own_seed() {
    let _alone = alone();
    for method in methods() {
        let two = adapted("bert-gelu", &method, Kind::Float, &[1, 2], (1e-5, 0.0));
        for (name, factor) in factors(&two.trained) {
            let [first, second] = [numbers(&factor.get(0)), numbers(&factor.get(1))];
            let constant = first.iter().all(|x| *x == first[0]);
            assert_eq!(first == second, constant, "{method:?}, {name}");
        }
    }
}

/// One layer whose adapter holds random factors for k runs, and these factors. The runs may have an α each.
fn layer(method: &Method, kind: Kind, runs: u64, alphas: &[f64]) -> (Linear, Trained) {
    tch::manual_seed(3);
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, device()));
    let (out, inputs) = (22, 14);
    // Before the factors, of which there are as many as runs.
    let (weight, bias) = (draw(&[out, inputs]), draw(&[out]).to_kind(kind));
    let layers = [("layer".to_owned(), [out, inputs])];
    let drawn = std::sync::Mutex::new(weight.shallow_clone());
    let read = |_: &str| Ok(drawn.lock().unwrap().shallow_clone());
    let basis = method.basis_rank().map(|rank| {
        let spec = BasisSpec { rank, ..BasisSpec::default() };
        let weights = Weights { layers: &layers, device: device(), read: &read };
        Basis::compute(&spec, "hash", weights, &|_, _| ()).unwrap().0
    });
    let frozen = Frozen { basis, ..Frozen::default() };
    let seeds: Vec<u64> = (0..runs).collect();
    let site = Site {
        name: "layer",
        shape: [out, inputs],
        place: 0,
        kind,
        device: device(),
        seeds: &seeds,
        alphas,
        init_stds: &[],
    };
    let mut trained = Trained::new(runs as i64);
    let (mut adapters, _) = method.build(&[site], &frozen, adapt::Start::default(), &mut trained).unwrap();
    randomise(&trained, 23);
    let mut linear = Linear::new("layer".into(), weight.to_kind(kind), Some(bias));
    linear.attach(adapters.pop().unwrap(), 0.0);
    (linear, trained)
}

#[test]
fn a_layer_with_its_adapter_is_the_merged_layer() {
    let _alone = alone();
    // bf16 rounds the result of a product to 2⁻⁹, and here there are up to four before the sum.
    let cases = [(Kind::Float, 2e-6), (Kind::BFloat16, 2e-2)];
    for method in methods() {
        for ((kind, tolerance), runs) in cases.into_iter().flat_map(|case| [(case, 1), (case, 3)]) {
            let (linear, _) = layer(&method, kind, runs, &[]);
            let x = Tensor::randn([runs as i64, 9, 14], (Kind::Float, device())).to_kind(kind);
            let pass = Pass::evaluation().along(Route::Blocks(vec![9; runs as usize]));
            let flat = x.flatten(0, 1);
            let bias = linear.forward(&flat.zeros_like(), &pass).get(0).to_kind(Kind::Float);
            let weight = linear.weight().dense().unwrap().to_kind(Kind::Float);
            let merged = &weight + linear.adapter().unwrap().delta(); // [k, out, in]
            let expected = x.to_kind(Kind::Float).matmul(&merged.transpose(1, 2)) + bias; // [k, n, out]
            let found = linear.forward(&flat, &pass);
            assert_eq!(found.kind(), kind);
            let distance = distance(&numbers(&found), &numbers(&expected));
            assert!(distance < tolerance, "{method:?}, {kind:?}, k = {runs}: {distance:e}");
            let plain = x.to_kind(Kind::Float).matmul(&weight.tr());
            let moved = crate::support::distance(&numbers(&plain), &numbers(&expected));
            assert!(moved > 0.1, "{method:?}: the adapter does nothing");
        }
    }
}

/// Output of a layer, and gradients of its input and of its factors, if `gradient` is that of the output.
fn outcome((linear, trained): &(Linear, Trained), [x, gradient]: [&Tensor; 2], route: &Route) -> Vec<Tensor> {
    trained.entries().iter().for_each(|entry| entry.tensor.shallow_clone().zero_grad());
    let x = x.detach().set_requires_grad(true);
    let y = linear.forward(&x, &Pass::evaluation().along(route.clone()));
    (&y * gradient).sum(Kind::Float).backward();
    let factors = trained.entries().iter().map(|entry| entry.tensor.grad().copy());
    [y.detach(), x.grad()].into_iter().chain(factors).collect()
}

#[test]
fn a_row_gets_what_its_run_alone_gives_it_wherever_it_lies() {
    let _alone = alone();
    let alphas = [6.0, 2.0, 9.0];
    let blocks = [[4, 9, 2], [5, 5, 5], [0, 7, 3]];
    for (method, lengths) in methods().into_iter().flat_map(|method| blocks.map(|b| (method.clone(), b))) {
        let together = layer(&method, Kind::Float, 3, &alphas);
        let m = lengths.iter().sum::<i64>();
        let [x, gradient] = [14, 22].map(|width| Tensor::randn([m, width], (Kind::Float, device())));
        let of_blocks = outcome(&together, [&x, &gradient], &Route::Blocks(lengths.to_vec()));

        // Each run alone.
        let mut alone: Vec<Vec<Tensor>> = of_blocks.iter().map(|_| Vec::new()).collect();
        let mut start = 0;
        for (run, length) in (0..).zip(lengths) {
            let one = layer(&method, Kind::Float, 1, &alphas[run as usize..=run as usize]);
            for (own, all) in one.1.entries().iter().zip(together.1.entries()) {
                no_grad(|| own.tensor.shallow_clone().copy_(&all.tensor.narrow(0, run, 1)));
            }
            let rows = [&x, &gradient].map(|x| x.narrow(0, start, length));
            let found = outcome(&one, rows.each_ref(), &Route::one_run());
            alone.iter_mut().zip(found).for_each(|(parts, part)| parts.push(part));
            start += length;
        }
        let alone: Vec<Tensor> = alone.iter().map(|parts| Tensor::cat(parts, 0)).collect();

        // All rows in another order.
        let order = Tensor::randperm(m, (Kind::Int64, device()));
        let runs: Vec<i64> =
            (0..).zip(lengths).flat_map(|(run, length)| std::iter::repeat_n(run, length as usize)).collect();
        let moved = |x: &Tensor| x.index_select(0, &order);
        let route = Route::Rows(moved(&Tensor::from_slice(&runs).to_device(device())));
        let mut of_rows = outcome(&together, [&moved(&x), &moved(&gradient)], &route);
        for rows in &mut of_rows[..2] {
            *rows = rows.zeros_like().index_copy(0, &order, rows);
        }

        for (i, expected) in alone.iter().enumerate() {
            for (way, found) in [("blocks", &of_blocks[i]), ("rows", &of_rows[i])] {
                let off = distance(&numbers(found), &numbers(expected));
                assert!(off < room(1e-6), "{method:?}, {lengths:?}, {way}, {i}: {off:e}");
            }
        }
    }
}

#[test]
fn delta_is_the_scale_times_the_plain_lora_factors_of_each_run() {
    let _alone = alone();
    for method in methods() {
        let Adapted { model, trained, .. } =
            adapted("roberta-gelu", &method, Kind::Float, &[1, 2, 3], (0.0, 0.0));
        randomise(&trained, 5);
        for (linear, adapter) in adapted_layers(&model) {
            for run in 0..3 {
                let (a, b) = adapter.lora_factors(run).unwrap();
                let expected = b.matmul(&a) * method.scale();
                let distance = distance(&numbers(&adapter.delta().get(run)), &numbers(&expected));
                assert!(distance < 1e-6, "{method:?}, {}, run {run}: {distance:e}", linear.name());
            }
        }
    }
    let scales: Vec<f64> = methods().iter().map(|method| method.scale()).collect();
    assert_eq!(scales, [1.5, 1.5, 3.0, 1.0, 1.0, 2.0, 1.0, 1.0, 1.0]);
}

fn noise(seed: u64, runs: usize) -> Noise {
    Noise::new(vec![Stream::seeded(seed); runs])
}

/// One backward pass over all examples.
fn backward(model: &Classifier, runs: usize, examples: &[Example]) {
    let batch: Vec<usize> = (0..examples.len()).collect();
    let divisors = vec![examples.len() as f64; runs];
    let _ = task(model, examples)
        .backward(&vec![batch; runs], &divisors, &vec![1.0; runs], &noise(0, runs))
        .unwrap();
}

fn moved(tensor: &Tensor) -> bool {
    tensor.grad().defined() && numbers(&tensor.grad()).iter().any(|&x| x != 0.0)
}

#[test]
fn gradients_reach_exactly_what_is_in_the_store() {
    let _alone = alone();
    for (kind, checkpoint) in [(Kind::Float, "bert-gelu"), (Kind::BFloat16, "roberta-gelu")] {
        for (method, runs) in methods().into_iter().flat_map(|m| [(m.clone(), 1), (m, 3)]) {
            let seeds: Vec<u64> = (0..runs).collect();
            let Adapted { model, trained, kept, .. } = adapted(checkpoint, &method, kind, &seeds, (0.0, 0.0));
            backward(&model, seeds.len(), &examples(checkpoint));
            for entry in trained.entries() {
                assert_ne!(entry.group, Group::Base);
                assert_eq!(entry.tensor.kind(), Kind::Float, "{}", entry.name);
                let still = promise(&method).still.iter().any(|suffix| entry.name.ends_with(suffix));
                for run in 0..runs {
                    let gradient = numbers(&entry.tensor.grad().get(run as i64));
                    let moves = gradient.iter().any(|&x| x != 0.0);
                    assert_eq!(moves, !still, "{method:?}, {checkpoint}, {}: run {run}", entry.name);
                }
            }
            for (name, tensor) in &kept {
                assert!(!tensor.requires_grad() && !tensor.grad().defined(), "{method:?}, {name}");
            }
            for linear in model.trunk.linears() {
                assert_eq!(linear.weight().kind(), kind);
                let frozen = linear.weight().frozen().is_some_and(|weight| !weight.grad().defined());
                assert!(frozen, "{checkpoint}, {}", linear.name());
            }
        }
    }
}

#[test]
fn dropout_on_a_cpu_is_that_of_libtorch_over_the_padded_batch() {
    let _alone = alone();
    let (texts, types) = ([[7_u32; 5].as_slice(), &[7; 2], &[7; 5], &[7; 3]], [0; 5]);
    let sequences: Vec<Sequence> = texts.map(|ids| Sequence { ids, types: &types[..ids.len()] }).into();
    let batch = Packed::new(&[sequences], Positions::FromZero, Device::Cpu);
    let pass = Pass::training(&noise(11, 1), &batch);
    let (p, width, heads) = (0.3, 6, 2);
    tch::manual_seed(11);
    let padded = |shape: &[i64]| Tensor::ones(shape, (Kind::Float, Device::Cpu)).dropout(p, true);
    let row = |mask: &Tensor, at: &[i64]| at.iter().fold(mask.shallow_clone(), |x, &i| x.get(i));
    for _ in 0..2 {
        let tokens = pass.dropout(&Tensor::ones([15, width], (Kind::Float, Device::Cpu)), p);
        let expected = padded(&[4, 5, width]);
        for (sequence, place) in (0i64..).zip(&batch.places[0]) {
            for i in 0..place.length {
                let found = tokens.get((place.start + i) as i64);
                assert_eq!(found, row(&expected, &[sequence, i as i64]), "token {i} of {sequence}");
            }
        }
        let found = pass.attention_masks(&batch, heads, p).unwrap();
        let expected = padded(&[4, heads, 5, 5]);
        // From left to right: the sequences of 2, of 3 and of twice 5 tokens.
        for (stretch, within, sequence, t) in [(0, 0, 1, 2), (1, 0, 3, 3), (2, 0, 0, 5), (2, 1, 2, 5)] {
            let expected = expected.get(sequence).narrow(1, 0, t).narrow(2, 0, t);
            assert_eq!(row(&found[stretch], &[within]), expected, "attention of {sequence}");
        }
        let vectors = Tensor::ones([4, width], (Kind::Float, Device::Cpu));
        assert_eq!(pass.per_sequence(&batch).dropout(&vectors, p), padded(&[4, width]));
    }
}

/// A part of a BERT, with heads of 16 numbers: those of the fixtures, of 12, have no kernel on a GPU.
fn of_even_heads(folder: &Path) -> PathBuf {
    let part = copied(&encoders().join("bert-gelu"), &folder.join("even"));
    edit(&part.join("config.json"), |config| {
        (config["hidden_size"], config["num_attention_heads"]) = (32.into(), 2.into());
    });
    let narrow = |(name, tensor): (String, Tensor)| {
        let axes = (0..).zip(tensor.size()).filter(|(_, length)| *length == 36);
        let narrowed = axes.fold(tensor.shallow_clone(), |tensor, (axis, _)| tensor.narrow(axis, 0, 32));
        (name, narrowed.contiguous())
    };
    let file = part.join("model.safetensors");
    let tensors: Vec<(String, Tensor)> =
        Tensor::read_safetensors(&file).unwrap().into_iter().map(narrow).collect();
    Tensor::write_safetensors(&tensors, &file).unwrap();
    part
}

/// The masks of the backward pass must be those of the forward pass, in every layer that drops.
#[test]
fn a_gradient_under_dropout_is_the_slope_of_the_loss_under_the_same_masks() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let even = of_even_heads(folder.path());
    for checkpoint in ["bert-gelu", "roberta-gelu", even.to_str().unwrap()] {
        let examples = examples(checkpoint);
        let Adapted { model, trained, .. } = adapted(checkpoint, &LORA_XS, Kind::Float, &[1], (0.0, 0.2));
        randomise(&trained, 23);
        let batch: Vec<usize> = (0..examples.len()).collect();
        let loss = |seed: u64| -> f64 {
            let divisors = [examples.len() as f64];
            let (batches, noise) = (std::slice::from_ref(&batch), noise(seed, 1));
            let losses = task(&model, &examples).backward(batches, &divisors, &[1.0], &noise);
            losses.unwrap().double_value(&[0])
        };
        let start = loss(7);
        let direction: Vec<Tensor> = trained.entries().iter().map(|e| e.tensor.grad().copy()).collect();
        let length =
            direction.iter().map(|g| g.square().sum(Kind::Double).double_value(&[])).sum::<f64>().sqrt();
        let step = |size: f64| {
            for (entry, gradient) in trained.entries().iter().zip(&direction) {
                let _ = no_grad(|| entry.tensor.shallow_clone().g_add_(&(gradient * (size / length))));
            }
        };
        step(0.004);
        let above = loss(7);
        step(-0.008);
        let slope = (above - loss(7)) / 0.008;
        println!("{checkpoint}: slope {slope:.5}, gradient {length:.5}");
        assert!((slope / length - 1.0).abs() < 1e-2, "{checkpoint}: slope {slope}, gradient {length}");
        step(0.004);
        assert!((loss(8) - start).abs() > 1e-3, "{checkpoint}: dropout does nothing");
    }
}

#[test]
fn with_the_whole_base_trained_every_weight_of_the_checkpoint_gets_a_gradient() {
    let _alone = alone();
    for checkpoint in ["bert-gelu", "roberta-gelu"] {
        let base = Base::open(&encoders().join(checkpoint)).unwrap();
        let build = Build {
            devices: devices().clone(),
            kind: Kind::Float,
            head: Some(classes(3)),
            seeds: vec![1, 2],
            train_base: true,
        };
        let mut trained = Trained::new(2);
        let model = Classifier::load(&base, &build, &mut trained).unwrap();
        backward(&model, 2, &examples(checkpoint));
        let of_base: Vec<&str> =
            trained.entries().iter().filter(|e| e.group == Group::Base).map(|e| e.name.as_str()).collect();
        let trunk = base.trunk_tensors();
        assert_eq!(of_base.len(), trunk.len(), "{checkpoint}");
        assert!(trunk.iter().all(|(name, _)| of_base.contains(&name.as_str())), "{checkpoint}");
        // The base has no axis of runs.
        assert_eq!(trained.count(Group::Base), base.trunk_numbers(), "{checkpoint}");
        for entry in trained.entries() {
            // Softmax does not see a key's bias.
            let is_idle = entry.name.ends_with("attention.self.key.bias");
            assert_eq!(moved(&entry.tensor), !is_idle, "{checkpoint}, {}", entry.name);
        }
    }
}

fn config(adapted: &Adapted, with_basis: bool) -> AdapterConfig {
    let basis = adapted.frozen.basis.as_ref().filter(|_| !adapted.method.is_of_peft());
    AdapterConfig {
        task_type: "SEQ_CLS".into(),
        problem_type: Some(Problem::SingleLabel),
        method: adapted.method.clone(),
        base_model_name_or_path: adapted.base.folder.display().to_string(),
        revision: "main".into(),
        base_hash: adapted.base.hash(),
        dataset: "tiny/pairs".into(),
        labels: ["same", "other", "reversed"].map(str::to_owned).into(),
        max_length: 24,
        target_modules: targets(),
        modules: adapted.layers.iter().map(|(name, _)| name.clone()).collect(),
        basis: basis.map(|basis| BasisRecord {
            spec: basis.spec.clone(),
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

/// The model that an adapter folder describes, built as a command builds it.
fn reopened(opened: &AdapterFile, saved: &Adapted, kind: Kind) -> Adapted {
    let base = Base::open(&saved.base.folder).unwrap();
    let mut layers = targeted(&base.linear_layers(), &opened.config.modules).unwrap();
    layers.sort_by_key(|(name, _)| opened.config.modules.iter().position(|module| module == name));
    let basis =
        opened.stored_basis().unwrap().or_else(|| frozen(&base, &layers, &saved.method, Init::Svd).basis);
    let frozen = Frozen { basis, tensors: opened.stored_frozen().unwrap() };
    put(base, &opened.config.method, layers, frozen, kind, (&[7], (1.0, 0.0), &[]))
}

#[test]
fn what_is_saved_loads_bit_for_bit() {
    let _alone = alone();
    for (method, kind) in methods().into_iter().flat_map(|m| [(m.clone(), Kind::Float), (m, Kind::BFloat16)])
    {
        let saved = adapted("bert-gelu", &method, kind, &[1, 2], (0.0, 0.0));
        randomise(&saved.trained, 11);
        let examples = examples("bert-gelu");
        let logits = logits(&saved.model, 2, &examples);
        for run in 0..2 {
            let folder = tempfile::tempdir().unwrap();
            let config = config(&saved, false);
            file::save(folder.path(), &config, &saved.trained, run, &saved.kept).unwrap();
            let opened = AdapterFile::open(folder.path()).unwrap();
            opened.check_base("base", &saved.base.hash()).unwrap();
            assert_eq!(opened.layout == Layout::Peft, method.is_of_peft());
            let loaded = reopened(&opened, &saved, kind);
            opened.load_into(&loaded.trained, false).unwrap();
            // Vectors that PEFT cannot tie come back once for each layer; all else is the same tensor.
            if !matches!(method, Method::TinyLora(TinyLoraConfig { tying: Tying::Kind, .. })) {
                assert_eq!(opened.config.method, method);
                assert_eq!(bits(&loaded.trained, 0), bits(&saved.trained, run), "{method:?}");
            }
            let found = numbers(&self::logits(&loaded.model, 1, &examples).get(0));
            let distance = distance(&found, &numbers(&logits.get(run)));
            // A GPU rounds products of two runs and of one in different places.
            let rounding = if device() == Device::Cpu { 2e-2 } else { 4e-2 };
            let tolerance = if kind == Kind::Float { room(1e-6) } else { rounding };
            assert!(distance < tolerance, "{method:?}, {kind:?}, run {run}: {distance:e}");
        }
    }
}

/// Logits of all examples by each of k runs, `[k, s, c]`.
fn logits(model: &Classifier, runs: usize, examples: &[Example]) -> Tensor {
    let pack = || examples.iter().map(|e| Sequence { ids: &e.ids, types: &e.types }).collect();
    let batches: Vec<Vec<Sequence>> = (0..runs).map(|_| pack()).collect();
    logits_of(model, &batches).view([runs as i64, examples.len() as i64, -1])
}

/// Logits of the sequences of each run, `[s, c]`.
fn logits_of(model: &Classifier, runs: &[Vec<Sequence>]) -> Tensor {
    let batch = Packed::new(runs, model.config.position_rule, device());
    no_grad(|| model.forward(&batch, &Pass::evaluation().over(&batch)).unwrap())
}

#[test]
fn an_adapter_in_its_basis_is_as_small_as_its_cores() {
    let _alone = alone();
    for method in methods().into_iter().filter(|method| !method.is_of_peft()) {
        let saved = adapted("bert-gelu", &method, Kind::Float, &[1], (0.0, 0.0));
        let folder = tempfile::tempdir().unwrap();
        file::save(folder.path(), &config(&saved, false), &saved.trained, 0, &saved.kept).unwrap();
        let size = fs::metadata(folder.path().join(file::WEIGHTS)).unwrap().len();
        assert_eq!(method.stored(&saved.layers), promise(&method).count as i64);
        let numbers = promise(&method).count + saved.trained.count(Group::Head);
        assert!(size <= 4 * numbers as u64 + 4096, "{method:?}: {size} bytes for {numbers} numbers");
    }
}

#[test]
fn a_stored_basis_comes_back_bit_for_bit_and_passes_its_witness() {
    let _alone = alone();
    let saved = adapted("bert-gelu", &LORA_XS, Kind::Float, &[1], (1e-5, 0.0));
    let folder = tempfile::tempdir().unwrap();
    let config = config(&saved, true);
    let mut kept = Named::new();
    for (name, factors) in &saved.basis().modules {
        kept.push((format!("{name}.A"), factors.a.shallow_clone()));
        kept.push((format!("{name}.B"), factors.b.shallow_clone()));
    }
    file::save(folder.path(), &config, &saved.trained, 0, &kept).unwrap();
    let opened = AdapterFile::open(folder.path()).unwrap();
    assert_eq!(opened.config, config);
    let stored = opened.stored_basis().unwrap().unwrap();
    for ((name, found), (_, expected)) in stored.modules.iter().zip(&saved.basis().modules) {
        assert_eq!((&found.a, &found.b), (&expected.a, &expected.b), "{name}");
    }
    let wanted = &config.basis.unwrap().witness;
    witness::check(&stored, wanted).unwrap();
    let random = frozen(&saved.base, &saved.layers, &LORA_XS, Init::Random).basis.unwrap();
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

fn plan(runs: &[RunPlan]) -> TrainPlan {
    TrainPlan {
        world: World::alone(),
        runs: runs.to_vec(),
        batch_size: 6,
        micro_batch_size: 4,
        micro_batch_tokens: 0,
        loss_scaling: false,
        shuffle: true,
        log_every: 1,
        evaluate: Every::Steps(12),
        metric: Metric::Accuracy,
        checkpoint: Every::Never,
        keep_checkpoints: 1,
        mixture: Vec::new(),
        joined: true,
        fewest: 0,
    }
}

fn run_plan(seed: u64, learning_rate: f64, head_learning_rate: f64) -> RunPlan {
    RunPlan {
        name: String::new(),
        seed,
        drawn: 0,
        learning_rate,
        head_learning_rate,
        steps: 12,
        warmup: 2,
        schedule: Schedule::Linear,
        weight_decay: 0.01,
        max_grad_norm: 1.0,
        patience: 0,
        pause: u64::MAX,
        checkpoints: PathBuf::new(),
        fingerprint: "test".into(),
        earlier: Vec::new(),
    }
}

/// Trains runs together: what the loop said, and the cores and heads of each run.
fn trained_together(
    checkpoint: &str,
    method: &Method,
    runs: &[RunPlan],
    joined: bool,
) -> (Heard, Vec<Vec<f64>>) {
    trained_with(checkpoint, method, (runs, &[]), |plan| plan.joined = joined)
}

/// As [`trained_together`], with an α of each run and other settings of the loop.
fn trained_with(
    checkpoint: &str,
    method: &Method,
    (runs, alphas): (&[RunPlan], &[f64]),
    change: impl Fn(&mut TrainPlan),
) -> (Heard, Vec<Vec<f64>>) {
    let seeds: Vec<u64> = runs.iter().map(|run| run.seed).collect();
    // Dropout of the base, of attention, of the head and of the adapter: all must be the run's own.
    let Adapted { model, trained, .. } =
        adapted_with(checkpoint, method, Kind::Float, (&seeds, (1e-2, 0.1), alphas));
    let examples = examples(checkpoint);
    let mut heard = Heard::default();
    let task = task(&model, &examples);
    let mut plan = plan(runs);
    change(&mut plan);
    Trainer::new(plan, &task, &trained, &mut heard, Vec::new()).unwrap().run().unwrap();
    let of_run =
        |run: usize| trained.entries().iter().flat_map(|e| numbers(&e.tensor.get(run as i64))).collect();
    let tensors = (0..runs.len()).map(of_run).collect();
    (heard, tensors)
}

#[test]
fn runs_trained_together_are_the_runs_trained_alone() {
    let _alone = alone();
    let runs = [run_plan(0, 1e-2, 5e-3), run_plan(1, 3e-2, 5e-3), run_plan(2, 1e-3, 2e-2)];
    // All methods on one checkpoint, and one method on the other.
    let cases = methods().into_iter().map(|method| ("bert-gelu", method)).chain([("roberta-gelu", LORA_XS)]);
    for (checkpoint, method) in cases {
        let alone: Vec<_> =
            runs.chunks(1).map(|run| trained_together(checkpoint, &method, run, false)).collect();
        for joined in [true, false] {
            let (together, tensors) = trained_together(checkpoint, &method, &runs, joined);
            for (i, (alone, expected)) in alone.iter().enumerate() {
                let losses = distance(&together.losses[i], &alone.losses[0]);
                let logits = distance(&together.logits[i], &alone.logits[0]);
                let tensors = distance(&tensors[i], &expected[0]);
                let name = format!("{checkpoint}, {method:?}, joined {joined}, run {i}");
                println!("{name}: losses {losses:.1e}, logits {logits:.1e}, tensors {tensors:.1e}");
                assert_eq!(together.losses[i].len(), 12);
                // In one pass, the same numbers are summed in other shapes, so they differ in rounding; twelve steps of AdamW, which
                // divides by the size of the gradient, carry that on. Each run's pass alone has the bits that it has alone.
                let most = if joined { [1e-5, 1e-4, 1e-3] } else { exactly() };
                assert!(losses <= most[0], "{name}: losses are off by {losses:e}");
                assert!(logits <= most[1], "{name}: logits are off by {logits:e}");
                assert!(tensors <= most[2], "{name}: trained tensors are off by {tensors:e}");
            }
            let differ = distance(&together.losses[1], &together.losses[0]);
            assert!(differ > 1e-2, "{checkpoint}, {method:?}: the runs are all the same");
        }
    }
}

/// How far losses, logits and tensors of runs whose passes are their own may be from those of each alone: not at all on a CPU.
fn exactly() -> [f64; 3] {
    if device() == Device::Cpu { [0.0; 3] } else { [1e-6, 1e-5, 1e-4] }
}

#[test]
fn runs_of_other_lengths_and_settings_train_together_as_alone_and_hurt_no_neighbour() {
    let _alone = alone();
    let long = RunPlan { schedule: Schedule::Cosine, weight_decay: 0.3, ..run_plan(0, 1e-3, 5e-3) };
    let short = RunPlan { steps: 5, warmup: 0, max_grad_norm: 0.1, ..run_plan(1, 2e-3, 5e-3) };
    // Its first step already leaves the numbers of fp32.
    let diverging = RunPlan { schedule: Schedule::Constant, warmup: 0, ..run_plan(2, f64::MAX, 1e-3) };
    // Nothing improves with a rate of 0, so that it stops after its third evaluation.
    let still = RunPlan { patience: 2, ..run_plan(3, 0.0, 0.0) };
    let runs = [long, diverging, short, still];
    let alphas = [1.0, 2.0, 16.0, 4.0];
    // In every step, the runs have different numbers of tokens.
    let lengths: Vec<usize> = examples("bert-gelu").iter().map(|example| example.ids.len()).collect();
    let mut orders = [0, 2, 1, 3].map(|seed| Order::new(lengths.len(), seed, true));
    for step in 0..12 {
        let tokens = |order: &mut Order| order.batch(step, 6).iter().map(|&i| lengths[i]).sum::<usize>();
        assert!(BTreeSet::from(orders.each_mut().map(tokens)).len() > 1, "step {step}");
    }
    let mini = Method::LoraMini(LoraMiniConfig { rank_a: 6, rank_b: 5, r: 3, lora_alpha: ALPHA });
    let lora = Method::Lora(LoraConfig { r: RANK, lora_alpha: ALPHA, use_rslora: true });
    // It ends when it is evaluated, else after ten steps.
    let cases = [(&LORA_XS, 2, [12, 2, 5, 6]), (&mini, 2, [12, 2, 5, 6]), (&lora, 12, [12, 11, 5, 12])];
    for ((method, interval, steps), joined) in
        cases.into_iter().flat_map(|case| [(case, true), (case, false)])
    {
        let settings = |plan: &mut TrainPlan| (plan.evaluate, plan.joined) = (Every::Steps(interval), joined);
        let (together, tensors) = trained_with("bert-gelu", method, (&runs, &alphas), settings);
        assert_eq!(together.losses.iter().map(Vec::len).collect::<Vec<_>>(), steps);
        assert!(together.losses[1][1..].iter().all(|loss| loss.is_nan()), "{:?}", together.losses[1]);
        for i in [0, 2, 3] {
            let (alone, expected) =
                trained_with("bert-gelu", method, (&runs[i..=i], &alphas[i..=i]), settings);
            let losses = distance(&together.losses[i], &alone.losses[0]);
            let logits = distance(&together.logits[i], &alone.logits[0]);
            let tensors = distance(&tensors[i], &expected[0]);
            println!(
                "joined {joined}, run {i}: losses {losses:.1e}, logits {logits:.1e}, tensors {tensors:.1e}"
            );
            let most = if joined { [1e-6, 1e-5, 1e-4] } else { exactly() };
            assert!(
                losses <= most[0] && logits <= most[1] && tensors <= most[2],
                "run {i}: {losses:e}, {logits:e}, {tensors:e}"
            );
        }
    }
}

#[test]
fn a_batch_of_several_runs_gives_each_run_its_own_logits() {
    let _alone = alone();
    let examples = examples("bert-gelu");
    let Adapted { model, trained, .. } = adapted("bert-gelu", &LORA_XS, Kind::Float, &[1, 2, 3], (0.0, 0.0));
    randomise(&trained, 17);
    let pack = |from: usize, to: usize| -> Vec<Sequence> {
        examples[from..to].iter().map(|e| Sequence { ids: &e.ids, types: &e.types }).collect()
    };
    // Different numbers of sequences and of tokens, or none at all; then one run's sequences in every run.
    for ranges in [[(0, 5), (5, 10), (20, 25)], [(0, 3), (5, 5), (20, 26)]] {
        let together = logits_of(&model, &ranges.map(|(from, to)| pack(from, to)));
        let counts = ranges.map(|(from, to)| (to - from) as i64);
        let parts = together.split_with_sizes(counts, 0);
        for ((run, (from, to)), part) in (0i64..).zip(ranges).zip(parts).filter(|(_, part)| part.numel() > 0)
        {
            let same = logits(&model, 3, &examples[from..to]).get(run);
            assert!(distance(&numbers(&part), &numbers(&same)) < 1e-6, "{ranges:?}, run {run}");
        }
    }
}
