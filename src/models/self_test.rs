//! A short test of a device: small random layers on it, beside the same in fp64 on the CPU.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::Serialize;
use tch::{Device, Kind, Tensor, no_grad};

use crate::adapters::svd;
use crate::fault::{Result, words};
use crate::nn::attention::Attention;
use crate::nn::cache::{Cache, Decode, Prefill, Shape, Span};
use crate::nn::layout::{Place, Positions, Sequence};
use crate::nn::rope::{Rope, Scaling};
use crate::nn::{Noise, Packed, Pass, RmsNorm, Sight as _};
use crate::torch::fused::{Adapted, adapted};
use crate::torch::graph::Graph;
use crate::torch::stream::Stream;
use crate::torch::{Devices, allow_tf32, failure, unforeseen};

/// Lengths of the sequences in a batch, heads of queries, heads of keys, and width of a head.
const LENGTHS: [usize; 4] = [24, 9, 40, 33];
const SHAPE: [i64; 3] = [4, 2, 64];

/// One comparison.
#[derive(Debug, Serialize)]
pub struct Check {
    /// The computation and its precision.
    pub name: String,
    /// Largest error relative to the largest number; `null` if it failed.
    pub error: Option<f64>,
    /// Largest error that rounding explains.
    pub limit: f64,
    /// True if the device computes it.
    pub ok: bool,
    /// The error, if it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// Compares layers on each of the devices with fp64 on the CPU, and what is copied from one to the next.
///
/// # Errors
/// When the arithmetic cannot be chosen.
pub fn run(devices: &Devices) -> Result<Vec<Check>> {
    allow_tf32(false)?;
    let all = devices.all();
    if all.len() == 1 {
        return Ok(of_device(devices.first()));
    }
    let mut checks = Vec::new();
    for device in all {
        let name = Devices::from(*device).entered()?;
        checks.extend(
            of_device(*device)
                .into_iter()
                .map(|check| Check { name: format!("{name}: {}", check.name), ..check }),
        );
    }
    let copy = |pair: &[Device]| {
        let names: Vec<String> = pair.iter().map(|device| Devices::from(*device).to_string()).collect();
        Check::new(format!("copy from {}", names.join(" to ")), 1e-6, guarded(|| copied(pair)))
    };
    checks.extend(all.windows(2).map(copy));
    Ok(checks)
}

/// Compares layers on a device with fp64 on the CPU.
fn of_device(device: Device) -> Vec<Check> {
    let mut kinds = vec![(Kind::Float, "fp32", 1e-5), (Kind::BFloat16, "bf16", 3e-2)];
    if device.is_cuda() {
        kinds.push((Kind::Half, "fp16", 5e-3));
    }
    let mut checks = Vec::new();
    for (kind, precision, limit) in kinds {
        let mut compare = |name: &str, of: &dyn Fn(Kind, Device) -> Result<Vec<f64>>| {
            let off = guarded(|| Ok(distance(&of(kind, device)?, &of(Kind::Double, Device::Cpu)?)));
            checks.push(Check::new(format!("{name}, {precision}"), limit, off));
        };
        compare("adapted layer and gradients", &layer);
        compare("norm, rotation and gradients", &normed);
        compare("attention and gradients", &|kind, device| attention(None, kind, device));
        compare("attention with a window", &|kind, device| attention(Some(7), kind, device));
        compare("token after a cache", &token);
        let off = guarded(|| dropout(kind, device));
        checks.push(Check::new(format!("dropout forward and backward, {precision}"), limit, off));
    }
    let off = guarded(|| Ok(distance(&decomposition(device)?, &decomposition(Device::Cpu)?)));
    checks.push(Check::new("decomposition".into(), 1e-5, off));
    if device.is_cuda() {
        checks.push(Check::new("recorded pass".into(), 1e-6, guarded(|| recorded(device))));
    }
    checks
}

impl Check {
    fn new(name: String, limit: f64, outcome: std::result::Result<f64, String>) -> Self {
        let ok = outcome.as_ref().is_ok_and(|error| *error < limit);
        let (error, failure) = match outcome {
            Ok(error) => (Some(error), None),
            Err(failure) => (None, Some(failure)),
        };
        Self { name, error, limit, ok, failure }
    }
}

/// Returns the error as one line, libtorch's also where an operator panics with it.
fn guarded(body: impl FnOnce() -> Result<f64>) -> std::result::Result<f64, String> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(outcome) => outcome.map_err(|error| format!("{error:#}")),
        Err(payload) => Err(failure(words(payload.as_ref())).to_string()),
    }
}

/// Seeded normal numbers.
fn drawn(shape: &[i64], seed: u64, kind: Kind, device: Device) -> Tensor {
    let count = usize::try_from(shape.iter().product::<i64>()).unwrap_or(0);
    let numbers = Stream::seeded(seed).normals(count);
    // Rounded to bf16, which every kind holds exactly.
    Tensor::from_slice(&numbers).view(shape).to_kind(Kind::BFloat16).to_kind(kind).to_device(device)
}

fn numbers(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let flat = tensors.iter().map(|x| x.detach().to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1));
    Ok(Vec::try_from(Tensor::cat(&flat.collect::<Vec<_>>(), 0))?)
}

/// The largest difference relative to the largest expected number; infinite if one is no number.
fn distance(found: &[f64], expected: &[f64]) -> f64 {
    let largest = expected.iter().fold(f64::MIN_POSITIVE, |most, x| most.max(x.abs()));
    let apart = |(a, b): (&f64, &f64)| if a.is_finite() { (a - b).abs() } else { f64::INFINITY };
    found.iter().zip(expected).map(apart).fold(0.0, f64::max) / largest
}

fn layer(kind: Kind, device: Device) -> Result<Vec<f64>> {
    let [input, out, rank] = [96, 64, 8];
    let draw = |shape: &[i64], seed| drawn(shape, seed, kind, device) * 0.1;
    let core = drawn(&[1, rank, rank], 4, Kind::Float, device).set_requires_grad(true);
    // Enough rows for the products of halves (`halves.h`).
    let rows = 288;
    let x = drawn(&[rows, input], 5, kind, device).set_requires_grad(true);
    let factors = [draw(&[rank, input], 2), core.shallow_clone(), draw(&[out, rank], 3)];
    let [y] = adapted(
        &x,
        &[Adapted { weight: &draw(&[out, input], 1), bias: None, factors: Some(factors), scale: 0.5 }],
        &[rows],
    );
    (&y * drawn(&[rows, out], 6, kind, device)).sum(Kind::Float).f_backward()?;
    numbers(&[&y, &x.grad(), &core.grad()])
}

fn normed(kind: Kind, device: Device) -> Result<Vec<f64>> {
    let [tokens, heads, d] = [20, 3, 64];
    let [x, add] =
        [70, 71].map(|seed| drawn(&[tokens, heads * d], seed, kind, device).set_requires_grad(true));
    let norm = RmsNorm::new(drawn(&[heads * d], 72, kind, device), 1.0, 1e-5);
    let (sum, y) = norm.add_forward(&x, &add);
    let rope = Rope { theta: 1e4, width: d, scaling: Scaling::None };
    let positions = Tensor::arange(tokens, (Kind::Int64, device));
    let y = Rope::angles(&positions, &rope.frequencies(device), kind).rotate(&y.view([tokens, heads, d]));
    let all = Tensor::cat(&[sum, y.view([tokens, -1])], 1);
    (&all * drawn(&all.size(), 73, kind, device)).sum(Kind::Float).f_backward()?;
    numbers(&[&all, &x.grad(), &add.grad()])
}

fn batch(device: Device) -> Packed {
    let ids = [0; 40];
    let sequences = LENGTHS.map(|length| Sequence { ids: &ids[..length], types: &[] });
    Packed::new(&[sequences.to_vec()], Positions::FromZero, device)
}

fn settings(window: Option<i64>, dropout: f64) -> Attention {
    Attention { causal: true, window, scale: 0.125, cap: None, dropout }
}

fn heads(seed: u64, kind: Kind, device: Device) -> [Tensor; 3] {
    let tokens = LENGTHS.iter().sum::<usize>() as i64;
    let [h, kv, d] = SHAPE;
    [(h, 0), (kv, 1), (kv, 2)].map(|(heads, part)| drawn(&[tokens, heads, d], seed + part, kind, device))
}

fn attention(window: Option<i64>, kind: Kind, device: Device) -> Result<Vec<f64>> {
    let qkv = heads(10, kind, device).map(|x| x.set_requires_grad(true));
    let y = settings(window, 0.0).forward(qkv.each_ref(), &batch(device), &Pass::evaluation())?;
    (&y * drawn(&y.size(), 13, kind, device)).sum(Kind::Float).f_backward()?;
    numbers(&[&y, &qkv[0].grad(), &qkv[1].grad(), &qkv[2].grad()])
}

/// The last token of each sequence: in fp64 with the whole sequence, else after a cache of those before.
fn token(kind: Kind, device: Device) -> Result<Vec<f64>> {
    let _guard = tch::no_grad_guard();
    let (batch, attention, [q, k, v]) = (batch(device), settings(None, 0.0), heads(20, kind, device));
    let rope = Rope { theta: 1e4, width: SHAPE[2], scaling: Scaling::None };
    let angles = |positions: &Tensor| Rope::angles(positions, &rope.frequencies(device), kind);
    let [turned_q, turned_k] = [&q, &k].map(|x| angles(&batch.positions).rotate(x));
    let ends: Vec<i64> =
        batch.places[0].iter().map(|place| (place.start + place.length) as i64 - 1).collect();
    let last = Tensor::from_slice(&ends).to_device(device);
    if kind == Kind::Double {
        let y = attention.forward([&turned_q, &turned_k, &v], &batch, &Pass::evaluation())?;
        return numbers(&[&y.index_select(0, &last)]);
    }
    let [_, kv, d] = SHAPE;
    let cache = Cache::new(Shape::new(1, [kv, d], kind, device), LENGTHS.len() as i64, 64, |_| device)?;
    let span = |(slot, place): (i64, &Place)| Span {
        start: place.start as i64,
        len: place.length as i64,
        slot,
        held: 0,
    };
    let spans: Vec<Span> = (0..).zip(&batch.places[0]).map(span).collect();
    let pass = Pass::evaluation();
    let _read =
        Prefill::new(&cache, &batch, &spans).attend(0, &attention, [&turned_q, &turned_k, &v], &pass)?;
    let before = LENGTHS.map(|length| length as i64 - 1);
    let [newest_q, newest_k, newest_v] = [&q, &k, &v].map(|x| x.index_select(0, &last));
    let sight = Decode::new(&cache, &before, device);
    let own = angles(sight.positions());
    let y = match sight.attend_rotating(0, &attention, [&newest_q, &newest_k, &newest_v], &own) {
        Some(attended) => attended,
        None => {
            sight.attend(0, &attention, [&own.rotate(&newest_q), &own.rotate(&newest_k), &newest_v], &pass)?
        }
    };
    numbers(&[&y])
}

/// With masks M, out = M V and dV = Mᵀ dO, so that ⟨dO, out⟩ = ⟨dV, V⟩ if both passes have the same.
fn dropout(kind: Kind, device: Device) -> Result<f64> {
    let [q, k, v] = heads(30, kind, device);
    let v = v.set_requires_grad(true);
    let batch = batch(device);
    let pass = Pass::training(&Noise::new(vec![Stream::seeded(7)]), &batch);
    let y = settings(None, 0.4).forward([&q, &k, &v], &batch, &pass)?;
    let gradient = drawn(&y.size(), 33, kind, device);
    (&y * &gradient).sum(Kind::Float).f_backward()?;
    let product = |a: &Tensor, b: &Tensor| -> Result<f64> {
        Ok(numbers(&[a])?.iter().zip(numbers(&[b])?).map(|(a, b)| a * b).sum())
    };
    let size = (product(&y, &y)? * product(&gradient, &gradient)?).sqrt();
    Ok((product(&y, &gradient)? - product(&v.grad(), &v)?).abs() / size)
}

fn decomposition(device: Device) -> Result<Vec<f64>> {
    let decay = (Tensor::arange(80, (Kind::Float, device)) * -0.1).exp();
    let factors = svd::randomized(&(drawn(&[60, 80], 40, Kind::Float, device) * decay), 6, 10, 42)?;
    numbers(&[&factors.a, &factors.b])
}

/// Copies numbers along the devices.
fn copied(devices: &[Device]) -> Result<f64> {
    let x = drawn(&[1 << 18], 60, Kind::Float, Device::Cpu);
    let y = devices.iter().try_fold(x.shallow_clone(), |x, device| x.f_to_device(*device))?;
    Ok(distance(&numbers(&[&y])?, &numbers(&[&x])?))
}

fn recorded(device: Device) -> Result<f64> {
    no_grad(|| {
        let x = drawn(&[64], 50, Kind::Float, device);
        let (_, made) = Graph::record(device, None, || Ok(&x * 2.0 + 1.0))?;
        let (graph, y) = made.ok_or_else(|| unforeseen("a pass cannot be recorded"))?;
        x.shallow_clone().copy_(&drawn(&[64], 51, Kind::Float, device));
        graph.replay()?;
        Ok(distance(&numbers(&[&y])?, &numbers(&[&(&x * 2.0 + 1.0)])?))
    })
}
