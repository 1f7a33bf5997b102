//! The basis of LoRA-XS: frozen factors A and B for every target, computed from the base's own weights.
//!
//! The basis is part of the meaning of the trained cores, so it is a function of the weights and of a
//! [`BasisSpec`] alone: neither the number of threads nor the order of the work changes a bit of it.
//! `basis_file` keeps it on disk, `witness` recognises it.

use std::sync::{Mutex, Once, mpsc};
use std::time::Instant;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::adapters::rules::Layer;
use crate::adapters::svd::{self, Factors};
use crate::fault::{Result, fault, locked, usage};
use crate::spec::{Init, Sigma, Spectrum, SvdMethod};
use crate::torch::tensors::zeros;
use crate::torch::unless_exhausted;

/// Everything besides the weights that a basis depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasisSpec {
    /// Rank r of every module.
    pub rank: i64,
    /// Singular directions or random factors.
    pub init: Init,
    /// Choice of singular directions; all but `top` need a full decomposition, whatever `method` says.
    pub spectrum: Spectrum,
    /// Placement of the singular values. The default is not written, so that older bases keep their key.
    #[serde(default, skip_serializing_if = "Sigma::is_default")]
    pub sigma: Sigma,
    /// Method that finds the top directions.
    pub method: SvdMethod,
    /// Power iterations of the randomised method.
    pub iterations: u32,
    /// Seed of the randomised method, of `spectrum = random` and of `init = random`.
    pub seed: u64,
}

impl Default for BasisSpec {
    fn default() -> Self {
        Self {
            rank: 16,
            init: Init::Svd,
            spectrum: Spectrum::Top,
            sigma: Sigma::A,
            method: SvdMethod::Randomized,
            iterations: 10,
            seed: 42,
        }
    }
}

impl BasisSpec {
    /// Computes the factors of the module `name` with weight [out, in].
    fn factors(&self, name: &str, weight: &Tensor) -> Result<Factors> {
        let Self { rank, seed, .. } = *self;
        let factors = match (self.init, self.method, self.spectrum) {
            (Init::Random, ..) => {
                return svd::kaiming(weight.size2()?.into(), rank, seed, name, weight.device());
            }
            (Init::Svd, SvdMethod::Randomized, Spectrum::Top) => {
                svd::randomized(weight, rank, self.iterations, seed)
            }
            (Init::Svd, _, spectrum) => svd::exact(weight, rank, spectrum, seed),
        };
        self.sigma.moved(factors?)
    }
}

/// Frozen factors for every target of one base.
#[derive(Debug)]
pub struct Basis {
    /// Settings that it was computed with.
    pub spec: BasisSpec,
    /// Hash of the base that it was made from.
    pub base_hash: String,
    /// Module name and factors, in the order of the targets.
    pub modules: Vec<(String, Factors)>,
}

/// Upper limit of power iterations, more than any spectrum needs.
const MOST_ITERATIONS: u32 = 10_000;

/// One line of the report of `init-svd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Module name.
    pub name: String,
    /// Shape [out, in].
    pub shape: [i64; 2],
    /// Share of the squared Frobenius norm of W that the basis carries, 0 to 1.
    pub captured_energy: f64,
    /// Seconds that the decomposition took; 0 for a basis from the cache.
    pub seconds: f64,
}

/// The layers of a base, whose weights are read only if their basis is not in the cache.
#[derive(Clone, Copy)]
pub struct Weights<'a> {
    /// Paths and shapes.
    pub layers: &'a [Layer],
    /// Device for their basis.
    pub device: Device,
    /// Reads the weight `[out, in]` of a layer, of any float kind, to that device.
    pub read: &'a (dyn Fn(&str) -> Result<Tensor> + Sync),
}

impl Basis {
    /// Returns factors of the right shapes without numbers, for what does not compute with them.
    ///
    /// # Errors
    /// As [`check_layer`].
    pub fn imagined(spec: &BasisSpec, layers: &[Layer]) -> Result<Self> {
        let zeros = |shape: &[i64]| zeros(shape, Kind::Float, Device::Cpu);
        let module = |(name, shape): &Layer| -> Result<_> {
            check_layer(name, shape, spec.rank)?;
            let [out, inputs] = *shape;
            let (a, b) = (zeros(&[spec.rank, inputs]), zeros(&[out, spec.rank]));
            Ok((name.clone(), Factors { a, b, s: zeros(&[spec.rank]), captured_energy: 0.0 }))
        };
        let modules = layers.iter().map(module).collect::<Result<_>>()?;
        Ok(Self { spec: spec.clone(), base_hash: String::new(), modules })
    }

    /// Computes the factors of these layers, which stay on its device. `progress` receives the number of
    /// modules done and the name of the last one.
    ///
    /// On the CPU as many workers as libtorch has threads take one module at a time; a weight is read when it is its turn.
    ///
    /// # Errors
    /// Names the module whose weight is not a matrix, is too small for the rank or holds a number beyond fp32.
    ///
    /// ```
    /// use loraxs::adapters::basis::{Basis, BasisSpec, Weights};
    /// use tch::{Device, Kind, Tensor};
    ///
    /// let layers = [("query".into(), [48, 32])];
    /// let read = |_: &str| Ok(Tensor::randn([48, 32], (Kind::Float, Device::Cpu)));
    /// let weights = Weights { layers: &layers, device: Device::Cpu, read: &read };
    /// let spec = BasisSpec { rank: 4, ..BasisSpec::default() };
    /// let (basis, _) = Basis::compute(&spec, "", weights, &|_, _| ())?;
    /// let (_, factors) = &basis.modules[0];
    /// assert_eq!((factors.a.size(), factors.b.size()), (vec![4, 32], vec![48, 4]));
    /// # anyhow::Ok(())
    /// ```
    pub fn compute(
        spec: &BasisSpec,
        base_hash: &str,
        weights: Weights,
        progress: &dyn Fn(usize, &str),
    ) -> Result<(Self, Vec<ModuleReport>)> {
        if spec.iterations > MOST_ITERATIONS {
            let found = spec.iterations;
            let message = format!("a basis takes at most {MOST_ITERATIONS} power iterations, found {found}");
            return Err(usage(message).into());
        }
        for (name, shape) in weights.layers {
            check_layer(name, shape, spec.rank)?;
        }
        let (mut factors, mut reports) = (Vec::new(), Vec::new());
        for ((name, shape), (found, seconds)) in
            weights.layers.iter().zip(in_parallel(spec, weights, progress)?)
        {
            let captured_energy = found.captured_energy;
            reports.push(ModuleReport { name: name.clone(), shape: *shape, captured_energy, seconds });
            factors.push((name.clone(), found));
        }
        Ok((Self { spec: spec.clone(), base_hash: base_hash.to_owned(), modules: factors }, reports))
    }

    /// Selects the factors of exactly these modules, in this order, for weights of these shapes [out, in].
    ///
    /// # Errors
    /// Names a module that the basis lacks or whose factors have other shapes.
    pub fn select(mut self, wanted: &[(String, [i64; 2])]) -> Result<Self> {
        let mut modules = Vec::with_capacity(wanted.len());
        for (name, [out, input]) in wanted {
            let Some(position) = self.modules.iter().position(|(known, _)| known == name) else {
                let hint = "make a basis for these targets with `loraxs init-svd`";
                return Err(fault(format!("the basis has no module `{name}`")).hint(hint).into());
            };
            let found = self.modules.remove(position);
            let expected = (vec![self.spec.rank, *input], vec![*out, self.spec.rank]);
            let shapes = (found.1.a.size(), found.1.b.size());
            if shapes != expected {
                return Err(fault(format!(
                    "the basis does not fit module `{name}`: expected A {:?} and B {:?}, found A {:?} and B {:?}",
                    expected.0, expected.1, shapes.0, shapes.1
                ))
                .hint("the basis belongs to another base model")
                .into());
            }
            modules.push(found);
        }
        Ok(Self { modules, ..self })
    }

    /// Returns the basis of a smaller rank of a full decomposition by its top directions, which this one begins with.
    ///
    /// # Errors
    /// When libtorch fails.
    pub fn first(&self, rank: i64) -> Result<Self> {
        let module = |(name, factors): &(String, Factors)| -> Result<_> {
            let Factors { a, b, s, captured_energy } = factors;
            let first = s.f_narrow(0, 0, rank)?;
            let [part, all] = [&first, s].map(|s| s.square().sum(Kind::Double).double_value(&[]));
            let (a, b) = (a.f_narrow(0, 0, rank)?.copy(), b.f_narrow(1, 0, rank)?.contiguous());
            let captured_energy = if all > 0.0 { captured_energy * part / all } else { *captured_energy };
            Ok((name.clone(), Factors { a, b, s: first, captured_energy }))
        };
        let modules = self.modules.iter().map(module).collect::<Result<_>>()?;
        let spec = BasisSpec { rank, ..self.spec.clone() };
        Ok(Self { spec, base_hash: self.base_hash.clone(), modules })
    }

    /// Returns the same factors on another device.
    ///
    /// # Errors
    /// When the device cannot hold them.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        let mut modules = Vec::with_capacity(self.modules.len());
        for (name, factors) in &self.modules {
            let Factors { a, b, s, captured_energy } = factors;
            let [a, b, s] = [a.f_to_device(device)?, b.f_to_device(device)?, s.f_to_device(device)?];
            modules.push((name.clone(), Factors { a, b, s, captured_energy: *captured_energy }));
        }
        Ok(Self { spec: self.spec.clone(), base_hash: self.base_hash.clone(), modules })
    }
}

/// Checks that a layer `[out, in]` can have a basis of this rank.
///
/// # Errors
/// When the rank exceeds one of its sides.
pub fn check_layer(name: &str, shape: &[i64], rank: i64) -> Result<()> {
    svd::check_rank(shape, rank).with_context(|| format!("cannot make a basis for module `{name}`"))?;
    Ok(())
}

fn check_weight(spec: &BasisSpec, name: &str, weight: &Tensor) -> Result<()> {
    check_layer(name, &weight.size(), spec.rank)?;
    if weight.f_to_kind(Kind::Float)?.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(fault(format!(
            "the weight of module `{name}` holds NaN, or a value beyond fp32's range"
        ))
        .hint("the checkpoint is damaged: download it again")
        .into());
    }
    Ok(())
}

/// Computes the factors of every module, with the seconds taken, in order.
fn in_parallel(
    spec: &BasisSpec,
    weights: Weights,
    progress: &dyn Fn(usize, &str),
) -> Result<Vec<(Factors, f64)>> {
    let layers = weights.layers;
    let threads = tch::get_num_threads();
    // A GPU is kept busy by one module; on a CPU one thread per module scales best (docs/measurements.md)
    // and lets no number depend on how a product is split over threads.
    let on_cpu = weights.device == Device::Cpu;
    let workers =
        if on_cpu { usize::try_from(threads).unwrap_or(1).clamp(1, layers.len().max(1)) } else { 1 };
    let mut queue: Vec<usize> = (0..layers.len()).collect();
    // Taken from the back: the largest first, so that no worker is left alone with one at the end.
    queue.sort_by_key(|&index| (layers[index].1.iter().product::<i64>(), usize::MAX - index));
    let queue = Mutex::new(queue);
    let (sender, receiver) = mpsc::channel();
    let mut found: Vec<Option<(Factors, f64)>> = layers.iter().map(|_| None).collect();
    let outcome = std::thread::scope(|scope| {
        for _ in 0..workers {
            let (queue, sender) = (&queue, sender.clone());
            scope.spawn(move || work(spec, weights, queue, &sender));
        }
        drop(sender);
        for (done, (index, name, result)) in (1..).zip(receiver) {
            // An early return closes the channel, and the workers stop.
            let factors: (Factors, f64) = result?;
            if let Some(slot) = found.get_mut(index) {
                *slot = Some(factors);
            }
            progress(done, name);
        }
        Ok(())
    });
    // The workers' setting also became the default of threads that start later.
    tch::set_num_threads(threads);
    outcome.and_then(|()| {
        found.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| fault("a decomposition was lost").into())
    })
}

type Outcome<'a> = (usize, &'a str, Result<(Factors, f64)>);

/// Decomposes modules from the queue until it is empty or the receiver is gone.
fn work<'a>(
    spec: &BasisSpec,
    weights: Weights<'a>,
    queue: &Mutex<Vec<usize>>,
    sender: &mpsc::Sender<Outcome<'a>>,
) {
    tch::set_num_threads(1);
    loop {
        let next = locked(queue).pop();
        let Some((index, (name, _))) = next.and_then(|index| Some((index, weights.layers.get(index)?)))
        else {
            return;
        };
        let result = factors(spec, weights, name);
        if sender.send((index, name, result)).is_err() {
            return;
        }
    }
}

/// Reads and decomposes one module, on the CPU where a GPU has no memory for that; returns the seconds that the decomposition took.
fn factors(spec: &BasisSpec, weights: Weights, name: &str) -> Result<(Factors, f64)> {
    let lacks = || fault(format!("out of memory while decomposing module `{name}`"));
    let weight = unless_exhausted(|| (weights.read)(name))?.ok_or_else(lacks)?;
    let start = Instant::now();
    let decomposed = |weight: &Tensor| {
        check_weight(spec, name, weight)?;
        spec.factors(name, weight).with_context(|| format!("cannot decompose module `{name}`"))
    };
    let found = match unless_exhausted(|| decomposed(&weight))? {
        Some(found) => found,
        None if weight.device() == Device::Cpu => return Err(lacks().into()),
        None => {
            static SAID: Once = Once::new();
            SAID.call_once(|| {
                tracing::warn!(
                    "the GPU has too little memory to decompose `{name}`: the CPU does so, more slowly"
                )
            });
            let Factors { a, b, s, captured_energy } = decomposed(&weight.f_to_device(Device::Cpu)?)?;
            let [a, b, s] = [
                a.f_to_device(weights.device)?,
                b.f_to_device(weights.device)?,
                s.f_to_device(weights.device)?,
            ];
            Factors { a, b, s, captured_energy }
        }
    };
    Ok((found, start.elapsed().as_secs_f64()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use tch::Kind;

    /// Returns a seeded matrix with decaying singular values.
    pub(crate) fn weight(out: i64, input: i64, seed: u64) -> Tensor {
        let draw = |rows, columns, name| svd::kaiming([rows, columns], 1, seed, name, Device::Cpu).unwrap();
        let scale = (Tensor::arange(input, (Kind::Float, Device::Cpu)) * -0.1).exp();
        let dense = draw(1, out, "u").a.reshape([out, 1]).matmul(&draw(1, input, "v").a.reshape([1, input]));
        dense + draw(1, out * input, "noise").a.reshape([out, input]) * scale * 10.0
    }

    pub(crate) fn modules() -> Vec<(String, Tensor)> {
        let shapes = [(24, 40), (40, 24), (32, 32), (20, 48), (64, 64)];
        let named =
            |(index, (out, input))| (format!("layer.{index}.dense"), weight(out, input, index as u64));
        shapes.into_iter().enumerate().map(named).collect()
    }

    /// Calls `body` with these weights.
    pub(crate) fn reading<T>(modules: &[(String, Tensor)], body: impl FnOnce(Weights) -> T) -> T {
        let shape = |weight: &Tensor| weight.size2().map_or([64; 2], Into::into);
        let layers: Vec<Layer> = modules.iter().map(|(name, weight)| (name.clone(), shape(weight))).collect();
        let copies: Vec<(String, Tensor)> =
            modules.iter().map(|(name, weight)| (name.clone(), weight.shallow_clone())).collect();
        let copies = Mutex::new(copies);
        let read = |wanted: &str| {
            let copies = copies.lock().unwrap();
            Ok(copies.iter().find(|(name, _)| name == wanted).unwrap().1.shallow_clone())
        };
        body(Weights { layers: &layers, device: Device::Cpu, read: &read })
    }

    fn computed(
        spec: &BasisSpec,
        modules: &[(String, Tensor)],
        progress: &dyn Fn(usize, &str),
    ) -> Result<(Basis, Vec<ModuleReport>)> {
        reading(modules, |weights| Basis::compute(spec, "hash", weights, progress))
    }

    pub(crate) fn basis_of(spec: &BasisSpec) -> Basis {
        computed(spec, &modules(), &|_, _| {}).unwrap().0
    }

    fn same(left: &Factors, right: &Factors) -> bool {
        left.a == right.a && left.b == right.b && left.s == right.s
    }

    fn message(spec: &BasisSpec, weight: Tensor) -> String {
        let modules = [("good".into(), weight_of_any()), ("bad".to_owned(), weight)];
        format!("{:#}", computed(spec, &modules, &|_, _| {}).unwrap_err())
    }

    fn weight_of_any() -> Tensor {
        weight(32, 32, 9)
    }

    #[test]
    fn neither_threads_nor_the_order_of_modules_change_a_bit() {
        let spec = BasisSpec { rank: 4, ..BasisSpec::default() };
        let threads = tch::get_num_threads();
        tch::set_num_threads(1);
        let one = basis_of(&spec);
        tch::set_num_threads(4);
        let mut reversed = modules();
        reversed.reverse();
        let (four, _) = computed(&spec, &reversed, &|_, _| {}).unwrap();
        assert_eq!(tch::get_num_threads(), 4);
        tch::set_num_threads(threads);
        for ((name, left), (other, right)) in one.modules.iter().zip(four.modules.iter().rev()) {
            assert!(name == other && same(left, right), "{name}");
        }
    }

    #[test]
    fn the_report_lists_modules_in_order_and_progress_counts_them() {
        let heard = std::cell::RefCell::new(Vec::new());
        let spec = BasisSpec { rank: 4, ..BasisSpec::default() };
        let progress = |done: usize, name: &str| heard.borrow_mut().push((done, name.to_owned()));
        let (_, reports) = computed(&spec, &modules(), &progress).unwrap();
        assert_eq!(heard.borrow().iter().map(|(done, _)| *done).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        assert_eq!(reports[1].shape, [40, 24]);
        assert_eq!(reports[4].name, "layer.4.dense");
        assert!(reports.iter().all(|report| report.captured_energy > 0.1 && report.captured_energy < 1.0));
    }

    #[test]
    fn a_rank_above_a_side_names_module_and_shape() {
        let spec = BasisSpec { rank: 21, ..BasisSpec::default() };
        for init in [Init::Svd, Init::Random] {
            let message = message(&BasisSpec { init, ..spec.clone() }, weight(20, 48, 0));
            assert!(message.contains("`bad`") && message.contains("[20, 48]") && message.contains("1 to 20"));
        }
        assert!(message(&BasisSpec { rank: 0, ..spec.clone() }, weight_of_any()).contains("rank 0"));
        assert!(message(&spec, Tensor::from_slice(&[1f32])).contains("[1]"));
    }

    #[test]
    fn a_weight_with_nan_names_the_module() {
        for value in [f64::NAN, f64::INFINITY] {
            let weight = weight_of_any();
            let _ = weight.get(3).get(4).fill_(value);
            assert!(message(&BasisSpec::default(), weight).contains("`bad` holds NaN"));
        }
    }

    #[test]
    fn a_seed_beyond_numpys_is_refused_where_numpys_stream_is_used() {
        let spec = BasisSpec { rank: 2, seed: 1 << 32, ..BasisSpec::default() };
        assert!(message(&spec, weight_of_any()).contains("below 2^32"));
        basis_of(&BasisSpec { method: SvdMethod::Exact, ..spec });
    }

    #[test]
    fn a_smaller_rank_is_the_beginning_of_a_full_decomposition() {
        let spec = BasisSpec { method: SvdMethod::Exact, ..BasisSpec::default() };
        for sigma in [Sigma::A, Sigma::Split] {
            let [small, large] = [2, 4].map(|rank| basis_of(&BasisSpec { rank, sigma, ..spec.clone() }));
            let first = large.first(2).unwrap();
            assert_eq!(first.spec, small.spec);
            for ((_, found), (_, expected)) in first.modules.iter().zip(&small.modules) {
                assert!(same(found, expected));
                assert!((found.captured_energy - expected.captured_energy).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn selected_modules_come_in_the_order_asked_for() {
        let spec = BasisSpec { rank: 4, ..BasisSpec::default() };
        let wanted = [("layer.3.dense".to_owned(), [20, 48]), ("layer.0.dense".to_owned(), [24, 40])];
        let selected = basis_of(&spec).select(&wanted).unwrap();
        let names: Vec<_> = selected.modules.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["layer.3.dense", "layer.0.dense"]);
        let absent = [("layer.9.dense".to_owned(), [20, 48])];
        assert!(format!("{:#}", basis_of(&spec).select(&absent).unwrap_err()).contains("`layer.9.dense`"));
        let other = [("layer.0.dense".to_owned(), [24, 41])];
        assert!(format!("{:#}", basis_of(&spec).select(&other).unwrap_err()).contains("A [4, 41]"));
    }
}
