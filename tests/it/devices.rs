//! Attention, caches and products on the device that `LORAXS_TEST_DEVICE` names, else on the CPU, against plain products in fp64.

use loraxs::nn::attention::Attention;
use loraxs::nn::cache::{Cache, Decode, Prefill, Shape, Span};
use loraxs::nn::layout::{Positions, Sequence};
use loraxs::nn::rope::{Rope, Scaling};
use loraxs::nn::{Noise, Packed, Pass, RmsNorm, Sight as _};
use loraxs::torch::free_bytes;
use loraxs::torch::fused::{self, Adapted};
use loraxs::torch::own_cuda::{self, attends_newest};
use loraxs::torch::stream::Stream;
use loraxs::torch::tensor_file::{self, TensorFile};
use tch::{Device, Kind, Tensor, no_grad};

use crate::support::{alone, device, distance, numbers, worse};

/// Largest error relative to the largest number: bf16 rounds at 2⁻⁹ and fp16 at 2⁻¹², scores and results several times.
const KINDS: [(Kind, f64); 3] = [(Kind::Float, 4e-6), (Kind::BFloat16, 2e-2), (Kind::Half, 3e-3)];

fn attention(causal: bool, window: Option<i64>, cap: Option<f64>, dropout: f64) -> Attention {
    Attention { causal, window, scale: 0.3, cap, dropout }
}

/// Runs of sequences of these lengths.
fn batch(runs: &[&[usize]]) -> Packed {
    let ids = [1; 200];
    let sequence = |&length: &usize| Sequence { ids: &ids[..length], types: &[] };
    let runs: Vec<Vec<Sequence>> = runs.iter().map(|run| run.iter().map(sequence).collect()).collect();
    Packed::new(&runs, Positions::FromZero, device())
}

/// Random queries, keys and values `[m, heads, d]` that take gradients, and the gradient of what becomes of them.
fn drawn(m: i64, [heads, kv, d]: [i64; 3], kind: Kind) -> ([Tensor; 3], Tensor) {
    let draw = |heads: i64| {
        Tensor::randn([m, heads, d], (Kind::Float, Device::Cpu)).to_kind(kind).to_device(device())
    };
    ([heads, kv, kv].map(|heads| draw(heads).set_requires_grad(true)), draw(heads))
}

fn parts(x: &Tensor, lengths: &[i64]) -> Vec<Tensor> {
    x.split_with_sizes(lengths, 0)
}

/// The same attention step by step in fp64 on the CPU, sequence by sequence.
fn plain(attention: &Attention, [q, k, v]: [&Tensor; 3], lengths: &[i64]) -> Tensor {
    let heads = q.size()[1];
    let wide = |x: &Tensor| {
        x.to_device(Device::Cpu).to_kind(Kind::Double).repeat_interleave_self_int(
            heads / x.size()[1],
            1,
            None,
        )
    };
    let [q, k, v] = [wide(q), wide(k), wide(v)].map(|x| parts(&x, lengths));
    let sequence = |i: usize| {
        let [q, k, v] = [&q[i], &k[i], &v[i]].map(|x| x.transpose(0, 1)); // [h, t, d]
        let mut scores = q.matmul(&k.transpose(1, 2)) * attention.scale;
        if let Some(cap) = attention.cap {
            scores = (scores / cap).tanh() * cap;
        }
        if attention.causal {
            let t = lengths[i];
            let seen = Tensor::ones([t, t], (Kind::Bool, Device::Cpu)).tril(0);
            let seen = seen.logical_and(
                &Tensor::ones([t, t], (Kind::Bool, Device::Cpu)).triu(1 - attention.window.unwrap_or(t)),
            );
            scores = scores.masked_fill(&seen.logical_not(), f64::NEG_INFINITY);
        }
        scores.softmax(-1, Kind::Double).matmul(&v).transpose(0, 1)
    };
    Tensor::cat(&(0..lengths.len()).map(sequence).collect::<Vec<_>>(), 0)
}

fn lengths(batch: &Packed) -> Vec<i64> {
    let repeat = |s: &loraxs::nn::layout::Stretch| std::iter::repeat_n(s.length, s.count as usize);
    batch.stretches.iter().flat_map(repeat).collect()
}

#[test]
fn attention_and_its_gradients_are_those_of_plain_products() {
    let _alone = alone();
    tch::manual_seed(1);
    let shapes = [[4, 2, 64], [3, 3, 12], [6, 2, 8], [2, 1, 128], [4, 4, 32]];
    let forms = [
        (false, None, None),
        (true, None, None),
        (true, Some(7), None),
        (true, Some(5), Some(2.0)),
        (true, Some(1), None),
    ];
    for (runs, (kind, tolerance)) in [&[&[5_usize, 33, 1, 17, 33][..]][..], &[&[40, 3][..], &[9, 21]]]
        .into_iter()
        .flat_map(|runs| KINDS.map(|kind| (runs, kind)))
    {
        let batch = batch(runs);
        let lengths = lengths(&batch);
        for (shape, (causal, window, cap)) in
            shapes.into_iter().flat_map(|shape| forms.map(|form| (shape, form)))
        {
            let attention = attention(causal, window, cap, 0.0);
            let ([q, k, v], gradient) = drawn(lengths.iter().sum(), shape, kind);
            let found = attention.forward([&q, &k, &v], &batch, &Pass::evaluation()).unwrap();
            (&found * &gradient).sum(Kind::Float).backward();
            let mirrors = [&q, &k, &v]
                .map(|x| x.detach().to_device(Device::Cpu).to_kind(Kind::Double).set_requires_grad(true));
            let expected = plain(&attention, mirrors.each_ref(), &lengths);
            (&expected * gradient.to_device(Device::Cpu).to_kind(Kind::Double)).sum(Kind::Double).backward();
            let name = format!("{kind:?}, {shape:?}, causal {causal}, window {window:?}, cap {cap:?}");
            assert_eq!(found.kind(), kind);
            let off = distance(&numbers(&found), &numbers(&expected));
            println!("{name}: {off:.1e}");
            assert!(off < tolerance, "{name}: {off:e}");
            for (part, (x, mirror)) in ["q", "k", "v"].into_iter().zip([&q, &k, &v].into_iter().zip(&mirrors))
            {
                // Relative to the largest gradient of values: a window of one token leaves queries and keys none.
                let largest =
                    numbers(&mirrors[2].grad()).into_iter().fold(0.0, |most: f64, x| most.max(x.abs()));
                let off = (x.grad().to_device(Device::Cpu).to_kind(Kind::Double) - mirror.grad())
                    .abs()
                    .max()
                    .double_value(&[])
                    / largest;
                assert!(off < 2.0 * tolerance, "{name}: gradient of {part} {off:e}");
            }
        }
    }
}

#[test]
fn attention_over_padding_keeps_nothing_of_the_padding() {
    if !device().is_cuda() {
        return;
    }
    let _alone = alone();
    // Padded, 32 sequences of 96 tokens.
    let batch = batch(&[&[&[96][..], &[3; 31]].concat()]);
    let ([q, k, v], _) = drawn(189, [2, 2, 64], Kind::Float);
    let pass = Pass::training(&Noise::new(vec![Stream::seeded(3)]), &batch);
    let attention = attention(false, None, None, 0.1);
    let attended = || attention.forward([&q, &k, &v], &batch, &pass).unwrap();
    // The mask is made once for all layers.
    drop(attended());
    let before = free_bytes(device()).unwrap();
    let found = attended();
    let kept = before.saturating_sub(free_bytes(device()).unwrap());
    let own = found.numel() * 4;
    println!("{kept} bytes, {own} of them the result");
    assert!(kept < own + (60 << 10), "{kept} bytes, {own} of them the result");
}

/// out = M V is linear in V, so that ⟨dO, M V⟩ = ⟨Mᵀ dO, V⟩ if the backward pass has the masks of the forward pass.
#[test]
fn attention_drops_the_same_probabilities_forward_and_backward_and_each_run_its_own() {
    let _alone = alone();
    tch::manual_seed(2);
    let lengths: &[usize] = &[24, 9, 40, 1, 33];
    for (kind, tolerance) in KINDS {
        for (shape, (causal, window, cap)) in [[4, 2, 64], [3, 3, 12]].into_iter().flat_map(|shape| {
            [(false, None, None), (true, None, None), (true, Some(6), None), (true, None, Some(2.0))]
                .map(|form| (shape, form))
        }) {
            let attention = attention(causal, window, cap, 0.4);
            let name = format!("{kind:?}, {shape:?}, causal {causal}, window {window:?}, cap {cap:?}");
            let ([q, k, v], gradient) = drawn(107, shape, kind);
            let batch = batch(&[lengths]);
            let forward = |seed| {
                attention
                    .forward(
                        [&q, &k, &v],
                        &batch,
                        &Pass::training(&Noise::new(vec![Stream::seeded(seed)]), &batch),
                    )
                    .unwrap()
            };
            let (found, again, other) = (forward(3), forward(3), forward(4));
            assert_eq!(numbers(&found), numbers(&again), "{name}");
            assert!(distance(&numbers(&found), &numbers(&other)) > 0.1, "{name}: dropout does nothing");
            (&found * &gradient).sum(Kind::Float).backward();
            let product = |a: &Tensor, b: &Tensor| -> f64 {
                numbers(a).into_iter().zip(numbers(b)).map(|(a, b)| a * b).sum()
            };
            let size = product(&found, &found).sqrt() * product(&gradient, &gradient).sqrt();
            let off = (product(&found, &gradient) - product(&v.grad(), &v)).abs() / size;
            println!("{name}: {off:.1e}");
            assert!(off < tolerance, "{name}: {off:e}");

            // Two runs with these seeds, each as alone.
            let both = self::batch(&[lengths, lengths]);
            let noise = Noise::new(vec![Stream::seeded(3), Stream::seeded(4)]);
            let doubled = [&q, &k, &v].map(|x| no_grad(|| Tensor::cat(&[x, x], 0)));
            let together =
                attention.forward(doubled.each_ref(), &both, &Pass::training(&noise, &both)).unwrap();
            let alone = Tensor::cat(&[&found, &other], 0);
            let off = distance(&numbers(&together), &numbers(&alone));
            assert!(off < tolerance, "{name}: runs {off:e}");
        }
    }
}

/// Tokens of each sequence, before a step of decoding and with it.
type Tokens = [Vec<Tensor>; 3];

/// Attends from the newest token of each sequence, step by step in fp64.
fn plain_newest(attention: &Attention, [queries, keys, values]: &Tokens) -> Tensor {
    let one = |((q, k), v): ((&Tensor, &Tensor), &Tensor)| {
        let (t, heads) = (k.size()[0], q.size()[1]);
        let from = (t - attention.window.unwrap_or(t)).max(0);
        let seen = |x: &Tensor, from| {
            let wide = x.narrow(0, from, t - from).to_device(Device::Cpu).to_kind(Kind::Double);
            wide.repeat_interleave_self_int(heads / x.size()[1], 1, None).transpose(0, 1)
        };
        let mut scores = seen(q, t - 1).matmul(&seen(k, from).transpose(1, 2)) * attention.scale;
        if let Some(cap) = attention.cap {
            scores = (scores / cap).tanh() * cap;
        }
        scores.softmax(-1, Kind::Double).matmul(&seen(v, from)).transpose(0, 1)
    };
    Tensor::cat(&queries.iter().zip(keys).zip(values).map(one).collect::<Vec<_>>(), 0)
}

/// Reads sequences into a cache, then decodes two more tokens of each, once with angles that the layers turn them by themselves; returns the largest
/// distance from plain products.
fn decoded(attention: &Attention, [h, kv, d]: [i64; 3], kind: Kind, rotates: bool) -> f64 {
    let before: &[usize] = &[3, 17, 64, 8, 150];
    let packed = batch(&[before]);
    let starts: Vec<i64> = packed.places[0].iter().map(|place| place.start as i64).collect();
    let cache = Cache::new(Shape::new(1, [kv, d], kind, device()), 7, 160, |_| device()).unwrap();
    let spans: Vec<Span> = (0..)
        .zip(before)
        .zip(&starts)
        .map(|((slot, &length), &start)| Span { start, len: length as i64, slot, held: 0 })
        .collect();
    let pass = Pass::evaluation();
    let (all, _) = drawn(packed.ids.numel() as i64, [h, kv, d], kind);
    let all = all.map(|x| x.detach());
    let _read = Prefill::new(&cache, &packed, &spans).attend(0, attention, all.each_ref(), &pass).unwrap();
    let part = |x: &Tensor| (0..5).map(|i| x.narrow(0, starts[i], before[i] as i64)).collect();
    let mut tokens: Tokens = all.each_ref().map(part);
    let rope = Rope { theta: 100.0, width: d / 2, scaling: Scaling::None };
    let frequencies = rope.frequencies(device());
    let mut off: f64 = 0.0;
    for step in 0..2 {
        let lengths: Vec<i64> = before.iter().map(|&length| length as i64 + step).collect();
        let ([q, k, v], _) = drawn(5, [h, kv, d], kind);
        let [q, k, v] = [q, k, v].map(|x| x.detach());
        let sight = Decode::new(&cache, &lengths, device());
        let angles = Rope::angles(sight.positions(), &frequencies, kind);
        let turned = [&q, &k].map(|x| if rotates { angles.rotate(x) } else { x.shallow_clone() });
        let serves = attends_newest(kind, device(), [h, kv, d]);
        assert_eq!(serves, device().is_cuda() && kind != Kind::Float && d % 32 == 0, "{kind:?}, {d}");
        let found = rotates.then(|| sight.attend_rotating(0, attention, [&q, &k, &v], &angles)).flatten();
        let newest = [&turned[0], &turned[1], &v];
        let found = found.unwrap_or_else(|| sight.attend(0, attention, newest, &pass).unwrap());
        for (all, newest) in tokens.iter_mut().zip(newest) {
            for (i, sequence) in all.iter_mut().enumerate() {
                *sequence = Tensor::cat(&[&*sequence, &newest.narrow(0, i as i64, 1)], 0);
            }
        }
        assert_eq!(found.kind(), kind);
        off = worse(off, distance(&numbers(&found), &numbers(&plain_newest(attention, &tokens))));
    }
    off
}

#[test]
fn a_token_decoded_from_the_cache_sees_what_it_would_in_a_whole_sequence() {
    let _alone = alone();
    tch::manual_seed(5);
    let shapes =
        [[4, 2, 64], [4, 4, 32], [3, 3, 12], [8, 1, 128], [20, 2, 128], [16, 1, 64], [6, 2, 96], [2, 1, 256]];
    let forms = [(None, None), (Some(9), None), (Some(70), None), (None, Some(2.0))];
    for (kind, tolerance) in KINDS {
        for (shape, (window, cap)) in shapes.into_iter().flat_map(|shape| forms.map(|form| (shape, form))) {
            for rotates in [false, true] {
                let off = no_grad(|| decoded(&attention(true, window, cap, 0.0), shape, kind, rotates));
                let name = format!("{kind:?}, {shape:?}, window {window:?}, cap {cap:?}, rotates {rotates}");
                println!("{name}: {off:.1e}");
                assert!(off < tolerance, "{name}: {off:e}");
            }
        }
    }
}

/// Rows of numbers from 1e-15 to 1e15.
fn spread(x: &Tensor) -> Tensor {
    let exponents = Tensor::arange(x.size()[0], (Kind::Float, Device::Cpu)).remainder(31.0) - 15.0;
    x * Tensor::from(10.0).pow(&exponents).unsqueeze(1)
}

/// The largest and the mean of |found − expected| / scale.
fn errors(found: &Tensor, expected: &Tensor, scale: &Tensor) -> [f64; 2] {
    let off = (found.to_device(Device::Cpu).to_kind(Kind::Double) - expected).abs();
    let off = off / (scale + f64::MIN_POSITIVE);
    [off.max(), off.mean(Kind::Double)].map(|off| off.double_value(&[]))
}

#[test]
fn each_number_of_an_fp32_product_is_right_to_its_own_rows_and_columns() {
    let _alone = alone();
    tch::manual_seed(6);
    let draw = |shape: [i64; 2]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    let wide = |x: &Tensor| x.to_kind(Kind::Double);
    // The last one's sums are so long that a tensor core alone would be off by 1e-7 in the mean.
    for ([m, i, o], most) in [
        ([300, 256, 512], 6e-8),
        ([257, 1032, 72], 6e-8),
        ([40, 64, 64], 6e-8),
        ([300, 100, 76], 6e-8),
        ([260, 4096, 64], 3e-8),
    ] {
        let name = format!("{m} rows, {i} to {o}");
        let (x, weight, bias) = (spread(&draw([m, i])), spread(&draw([o, i])), draw([1, o]).squeeze());
        let _zeros = (x.get(7).zero_(), weight.get(3).zero_());
        let here = [&x, &weight, &bias].map(|x| x.to_device(device()));
        let leaf = here[0].set_requires_grad(true);
        let y = fused::linear(&leaf, &here[1], Some(&here[2]), &[m]);
        let expected = wide(&x).matmul(&wide(&weight).tr()) + wide(&bias);
        let scale = wide(&x).abs().matmul(&wide(&weight).abs().tr()) + wide(&bias).abs();
        let [off, mean] = errors(&y, &expected, &scale);
        println!("{name}: {off:.1e}, mean {mean:.1e}");
        assert!(off < 2e-6 && mean < most, "{name}: {off:e}, {mean:e}");

        let dy = spread(&draw([m, o])) * 1e-6;
        (&y * dy.to_device(device())).sum(Kind::Float).backward();
        let expected = wide(&dy).matmul(&wide(&weight));
        let [off, mean] = errors(&leaf.grad(), &expected, &wide(&dy).abs().matmul(&wide(&weight).abs()));
        println!("{name}, gradient: {off:.1e}, mean {mean:.1e}");
        assert!(off < 2e-6, "{name}, gradient: {off:e}");

        // What is no number stays in its row.
        let broken = here[0].detach().copy();
        let _inf = broken.get(5).narrow(0, 2, 1).fill_(f64::INFINITY);
        let found = no_grad(|| fused::linear(&broken, &here[1], Some(&here[2]), &[m]));
        let finite = found.isfinite().to_kind(Kind::Int64).sum_dim_intlist([1].as_slice(), false, None);
        let rows: Vec<i64> = Vec::try_from(finite.to_device(Device::Cpu)).unwrap();
        assert!(
            rows.iter().enumerate().all(|(row, &count)| if row == 5 { count < o } else { count == o }),
            "{name}"
        );
    }
}

#[test]
fn layers_that_share_an_input_in_fp32_are_right_with_adapters_and_without() {
    let _alone = alone();
    tch::manual_seed(8);
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    for (m, rank) in [(300, 8), (300, 5), (20, 8)] {
        let [input, out] = [256, 128];
        let tensors = [
            draw(&[m, input]),
            draw(&[out, input]),
            draw(&[out]),
            draw(&[rank, input]),
            draw(&[1, rank, rank]),
            draw(&[out, rank]),
            draw(&[out, input]),
            draw(&[m, out]),
        ];
        let run = |kind: Kind, device: Device| {
            let [x, w, bias, a, core, b, plain, dy] =
                tensors.each_ref().map(|x| x.detach().to_kind(kind).to_device(device));
            let x = x.set_requires_grad(true);
            let core =
                core.to_kind(if kind == Kind::Double { kind } else { Kind::Float }).set_requires_grad(true);
            let factors = Some([a, core.shallow_clone(), b]);
            let layers = [
                Adapted { weight: &w, bias: Some(&bias), factors, scale: 1.5 },
                Adapted { weight: &plain, bias: None, factors: None, scale: 1.0 },
            ];
            let [y, z] = fused::adapted(&x, &layers, &[m]);
            (&y * &dy + &z * &dy * 0.5).sum(Kind::Double).backward();
            [&y, &z, &x.grad(), &core.grad()].map(numbers)
        };
        let (found, expected) = (run(Kind::Float, device()), run(Kind::Double, Device::Cpu));
        for (what, (found, expected)) in
            ["first", "second", "input", "core"].iter().zip(found.iter().zip(&expected))
        {
            let off = distance(found, expected);
            println!("{m} rows, rank {rank}, {what}: {off:.1e}");
            assert!(off < 2e-6, "{m} rows, rank {rank}, {what}: {off:e}");
        }
    }
}

#[test]
fn heads_are_turned_by_their_angles_forward_and_back_wherever_they_lie() {
    let _alone = alone();
    tch::manual_seed(9);
    let [m, h, d] = [37, 3, 20];
    for (kind, tolerance) in [(Kind::Float, 1e-6), (Kind::BFloat16, 4e-3), (Kind::Half, 5e-4)] {
        if kind == Kind::Half && device() == Device::Cpu {
            continue;
        }
        for half in [d / 2, 6] {
            let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu)).to_kind(kind);
            // Heads of a wider row, as where queries, keys and values are one product.
            let (all, angles, dy) = (draw(&[m, 5 * d]), draw(&[m, 1, half]), draw(&[m, h, d]));
            let (cos, sin) = (angles.cos(), angles.sin());
            let here = all.to_device(device()).set_requires_grad(true);
            let heads = |x: &Tensor| x.narrow(1, d, h * d).view([m, h, d]);
            // On a CPU they must be adjacent.
            let given = if device() == Device::Cpu { heads(&here).contiguous() } else { heads(&here) };
            let y = fused::rotation(&given, &cos.to_device(device()), &sin.to_device(device()));
            (&y * dy.to_device(device())).sum(Kind::Float).backward();
            let wide = |x: &Tensor| x.to_kind(Kind::Double);
            let turned = |x: &Tensor, sign: f64| {
                let (a, b, c, s) =
                    (x.narrow(2, 0, half), x.narrow(2, half, half), wide(&cos), wide(&sin) * sign);
                Tensor::cat(&[&a * &c - &b * &s, &b * &c + &a * &s, x.narrow(2, 2 * half, d - 2 * half)], 2)
            };
            let forward = distance(&numbers(&y), &numbers(&turned(&heads(&wide(&all)), 1.0)));
            let back = distance(&numbers(&heads(&here.grad())), &numbers(&turned(&wide(&dy), -1.0)));
            println!("{kind:?}, half {half}: {forward:.1e}, {back:.1e}");
            assert!(forward < tolerance && back < tolerance, "{kind:?}, half {half}: {forward:e}, {back:e}");
        }
    }
}

#[test]
fn norms_on_a_gpu_are_those_of_their_formula_forward_and_back() {
    let _alone = alone();
    tch::manual_seed(10);
    let draw = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
    for (kind, tolerance) in [(Kind::Float, 2e-6), (Kind::BFloat16, 8e-3), (Kind::Half, 1e-3)] {
        if kind == Kind::Half && device() == Device::Cpu {
            continue;
        }
        // One of them is no whole number of vectors; the last are heads of a wider row.
        for (rows, d, offset, heads) in
            [(5, 64, 0.0, 1), (3, 4096, 1.0, 1), (4, 2304, 0.0, 1), (4, 13, 0.0, 1), (6, 64, 0.0, 3)]
        {
            let name = format!("{kind:?}, {rows} rows of {heads} × {d}, offset {offset}");
            let drawn = |shape: &[i64]| draw(shape).to_kind(kind);
            let (row, add, weight) = (drawn(&[rows, (heads + 2) * d]), drawn(&[rows, d]), draw(&[d]));
            let weights = [weight.shallow_clone(), weight.to_kind(kind)];
            for weight in weights {
                let (dy, dsum) = (drawn(&[rows, heads, d]), drawn(&[rows, d]));
                let run = |kind: Kind, device: Device| {
                    let to = |x: &Tensor| x.to_kind(kind).to_device(device);
                    let leaves = [&row, &add].map(|x| to(x).detach().copy().set_requires_grad(true));
                    let x = leaves[0].narrow(1, d, heads * d).view([rows, heads, d]);
                    let x = if device == Device::Cpu { x.contiguous() } else { x };
                    let weight = match kind {
                        Kind::Double => to(&weight),
                        _ => weight.to_device(device),
                    };
                    let norm = RmsNorm::new(weight, offset, 1e-5);
                    let y = norm.forward(&x);
                    // A gradient that begins at an odd place.
                    let behind =
                        |x: &Tensor| Tensor::cat(&[to(&add).get(0).narrow(0, 0, 3), x.flatten(0, -1)], 0);
                    (behind(&y) * behind(&to(&dy))).sum(Kind::Double).backward();
                    let mut all = vec![numbers(&y), numbers(&leaves[0].grad())];
                    if heads == 1 {
                        let leaves = [&row, &add].map(|x| to(x).detach().copy().set_requires_grad(true));
                        let x = leaves[0].narrow(1, 0, d).contiguous();
                        let (sum, y) = norm.add_forward(&x, &leaves[1]);
                        (&y * to(&dy).squeeze_dim(1) + &sum * to(&dsum)).sum(Kind::Double).backward();
                        all.extend([&sum, &y, &leaves[0].grad(), &leaves[1].grad()].map(numbers));
                    }
                    all
                };
                let (found, expected) = (run(kind, device()), run(Kind::Double, Device::Cpu));
                let worst = found.iter().zip(&expected).map(|(found, expected)| distance(found, expected));
                let worst = worst.fold(0.0, worse);
                let even = draw(&[rows, d]).to_kind(kind).to_device(device());
                let serves =
                    own_cuda::rms_norm(&even, None, &weight.to_device(device()), [1e-5, offset]).is_some();
                assert_eq!(serves, device().is_cuda() && d % 8 == 0, "{name}");
                println!("{name}, weight {:?}: {worst:.1e}", weight.kind());
                assert!(worst < tolerance, "{name}, weight {:?}: {worst:e}", weight.kind());
            }
        }
    }
}

#[test]
fn tensors_of_a_file_reach_the_device_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file.safetensors");
    let cpu = |kind| (kind, Device::Cpu);
    // The first goes to a GPU in three pieces.
    let tensors = [
        ("large", Tensor::arange(2 * 9_000_001, cpu(Kind::Float)).view([2, 9_000_001])),
        ("odd", Tensor::arange(7, cpu(Kind::Half))),
        ("one", Tensor::from(3.5).to_kind(Kind::BFloat16)),
        ("none", Tensor::zeros([0, 3], cpu(Kind::Int64))),
    ];
    let named: Vec<(String, Tensor)> = tensors.map(|(name, tensor)| (name.to_owned(), tensor)).into();
    tensor_file::write(&path, &[], &named).unwrap();
    let file = TensorFile::open(&path).unwrap();
    for (name, tensor) in named {
        let found = file.tensor_on(&name, device()).unwrap();
        file.release(&name);
        assert_eq!((found.device(), found.size(), found.kind()), (device(), tensor.size(), tensor.kind()));
        assert!(found.to_device(Device::Cpu).equal(&tensor), "{name}");
    }
}
