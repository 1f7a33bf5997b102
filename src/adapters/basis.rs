//! The basis of LoRA-XS: frozen factors A and B for every target, computed from the base's own weights.
//!
//! The basis is part of the meaning of the trained cores, so it is a function of the weights and of a
//! [`BasisSpec`] alone: neither the number of threads nor the order of the work changes a bit of it.
//! `basis_file` keeps it on disk, `witness` recognises it.

use std::fmt;
use std::sync::{Mutex, PoisonError, mpsc};
use std::time::Instant;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::adapters::svd::{self, Factors, Method, Spectrum};
use crate::fault::{Result, fault};

/// Where the factors come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// Singular directions of the weight.
    #[default]
    Svd,
    /// Kaiming-uniform numbers.
    Random,
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Everything besides the weights that a basis depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BasisSpec {
    /// Rank r of every module.
    pub rank: i64,
    /// Singular directions or random factors.
    pub init: Init,
    /// Which singular directions; all but `top` need a full decomposition, whatever `method` says.
    pub spectrum: Spectrum,
    /// How the top directions are found.
    pub method: Method,
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
            method: Method::Randomized,
            iterations: 10,
            seed: 42,
        }
    }
}

impl BasisSpec {
    /// The factors of the module `name`, whose weight is [out, in].
    fn factors(&self, name: &str, weight: &Tensor) -> Result<Factors> {
        let Self { rank, seed, .. } = *self;
        match (self.init, self.method, self.spectrum) {
            (Init::Random, ..) => svd::kaiming(weight.size2()?.into(), rank, seed, name, weight.device()),
            (Init::Svd, Method::Randomized, Spectrum::Top) => {
                svd::randomized(weight, rank, self.iterations, seed)
            }
            (Init::Svd, _, spectrum) => svd::exact(weight, rank, spectrum, seed),
        }
    }
}

/// Frozen factors for every target of one base.
#[derive(Debug)]
pub struct Basis {
    /// How it was made.
    pub spec: BasisSpec,
    /// Hash of the base that it was made from.
    pub base_hash: String,
    /// Module name and factors, in the order of the targets.
    pub modules: Vec<(String, Factors)>,
}

/// One line of the report of `init-svd`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleReport {
    /// Module name.
    pub name: String,
    /// [out, in].
    pub shape: [i64; 2],
    /// Share of the squared Frobenius norm of W that the basis carries, 0 to 1.
    pub captured_energy: f64,
    /// Seconds that the decomposition took; 0 for a basis from the cache.
    pub seconds: f64,
}

impl Basis {
    /// Computes the factors of `modules`: name and weight [out, in] of any float kind. The factors stay on
    /// the weights' device. `progress` hears how many modules are done and the name of the last one.
    ///
    /// On the CPU every core takes one module at a time (as many as libtorch has threads).
    ///
    /// # Errors
    /// Names the module whose weight is not a matrix, is too small for the rank or holds NaN or infinity.
    pub fn compute(
        spec: &BasisSpec,
        base_hash: &str,
        modules: &[(String, Tensor)],
        progress: &dyn Fn(usize, &str),
    ) -> Result<(Self, Vec<ModuleReport>)> {
        for (name, weight) in modules {
            check_weight(spec, name, weight)?;
        }
        let (mut factors, mut reports) = (Vec::new(), Vec::new());
        for ((name, weight), (found, seconds)) in modules.iter().zip(in_parallel(spec, modules, progress)?) {
            let captured_energy = found.captured_energy;
            reports.push(ModuleReport {
                name: name.clone(),
                shape: weight.size2()?.into(),
                captured_energy,
                seconds,
            });
            factors.push((name.clone(), found));
        }
        Ok((Self { spec: spec.clone(), base_hash: base_hash.to_owned(), modules: factors }, reports))
    }

    /// The factors of exactly these modules, in this order, for weights of these shapes [out, in].
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

    /// The same factors on another device.
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

fn check_weight(spec: &BasisSpec, name: &str, weight: &Tensor) -> Result<()> {
    let (out, input) = match weight.size().as_slice() {
        &[out, input] => (out, input),
        shape => {
            let message = format!("module `{name}`: expected a weight of shape [out, in], found {shape:?}");
            return Err(fault(message).into());
        }
    };
    let most = out.min(input);
    if spec.rank < 1 || spec.rank > most {
        let message = format!(
            "rank {} does not fit module `{name}` of shape [{out}, {input}]: expected 1 to {most}",
            spec.rank
        );
        return Err(fault(message).hint("choose a smaller rank, or leave this module out of the targets").into());
    }
    if weight.f_isfinite()?.f_all()?.f_int64_value(&[])? == 0 {
        return Err(fault(format!("the weight of module `{name}` holds NaN or infinity"))
            .hint("the checkpoint is damaged: download it again")
            .into());
    }
    Ok(())
}

/// Factors and seconds of every module, in order.
fn in_parallel(
    spec: &BasisSpec,
    modules: &[(String, Tensor)],
    progress: &dyn Fn(usize, &str),
) -> Result<Vec<(Factors, f64)>> {
    let threads = tch::get_num_threads();
    // A GPU is kept busy by one module; on a CPU one thread per module scales best (docs/measurements.md)
    // and lets no number depend on how a product is split over threads.
    let on_cpu = modules.iter().all(|(_, weight)| weight.device() == Device::Cpu);
    let workers = if on_cpu { usize::try_from(threads).unwrap_or(1).clamp(1, modules.len().max(1)) } else { 1 };
    let mut queue: Vec<(usize, &str, Tensor)> =
        modules.iter().enumerate().map(|(index, (name, w))| (index, name.as_str(), w.shallow_clone())).collect();
    // Taken from the back: the largest first, so that no worker is left alone with one at the end.
    queue.sort_by_key(|(index, _, weight)| (weight.numel(), usize::MAX - index));
    let queue = Mutex::new(queue);
    let (sender, receiver) = mpsc::channel();
    let mut found: Vec<Option<(Factors, f64)>> = modules.iter().map(|_| None).collect();
    let outcome = std::thread::scope(|scope| {
        for _ in 0..workers {
            let (queue, sender) = (&queue, sender.clone());
            scope.spawn(move || work(spec, queue, &sender));
        }
        drop(sender);
        for (done, (index, name, result)) in (1..).zip(receiver) {
            // An early return closes the channel, and the workers stop.
            let factors: (Factors, f64) = result.with_context(|| format!("cannot decompose module `{name}`"))?;
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

/// Takes modules from the queue until it is empty or nobody listens.
fn work<'a>(
    spec: &BasisSpec,
    queue: &Mutex<Vec<(usize, &'a str, Tensor)>>,
    sender: &mpsc::Sender<Outcome<'a>>,
) {
    tch::set_num_threads(1);
    loop {
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let Some((index, name, weight)) = next else { return };
        let start = Instant::now();
        let result = spec.factors(name, &weight).map(|factors| (factors, start.elapsed().as_secs_f64()));
        if sender.send((index, name, result)).is_err() {
            return;
        }
    }
}
