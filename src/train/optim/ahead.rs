//! Updates on a GPU, which decides by itself whether a step counts, so that the CPU goes ahead to the next step and looks at losses and norms
//! later.

use tch::{Kind, Tensor, no_grad};

use super::{AdamW, BETA1, BETA2, EPSILON, PIECE, Rates};
use crate::fault::Result;
use crate::torch::graph::{self, Graph};
use crate::torch::{cast, dims2};

/// Updates after which they are recorded.
const RECORDED_AFTER: usize = 3;
/// Numbers of a run before those of its buffers.
const OF_RUN: i64 = 3;

/// What an update of one run depends on, besides its loss and gradient.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Rates of the step.
    pub rates: Rates,
    /// Largest norm of the gradient; 0 = no limit.
    pub max_norm: f64,
    /// Factor of the loss.
    pub scale: f64,
}

/// What a GPU keeps between updates.
#[derive(Debug, Default)]
pub struct Ahead {
    /// Updates of each run, fp64 `[k, 1]`.
    counts: Option<Tensor>,
    /// Updates since the start.
    taken: usize,
    recorded: Option<Recorded>,
}

/// An update that the GPU repeats alone.
#[derive(Debug)]
struct Recorded {
    graph: Graph,
    terms: Tensor,
    losses: Tensor,
    outcome: Tensor,
}

impl Ahead {
    /// Takes the numbers of updates anew, which were restored.
    pub(super) fn forget_counts(&mut self) {
        (self.counts, self.recorded) = (None, None);
    }
}

impl AdamW {
    /// Returns what [`AdamW::step_ahead`] takes, `[k, 3 + 2 b]` in fp32 on the CPU; `None` for a run without a step.
    pub fn terms(&self, runs: &[Option<Terms>]) -> Vec<f32> {
        let width = OF_RUN as usize + 2 * self.buffers.len();
        let of_run = |terms: &Option<Terms>| match terms {
            None => [&[0.0, 0.0, 1.0], vec![0.0; width - 3].as_slice()].concat(),
            Some(Terms { rates, max_norm, scale }) => {
                let most = if *max_norm > 0.0 { *max_norm } else { f64::INFINITY };
                let of_buffers =
                    self.buffers.iter().flat_map(|buffer| [rates.of(buffer.group), rates.weight_decay]);
                [1.0, most, *scale].into_iter().chain(of_buffers).map(|number| number as f32).collect()
            }
        };
        runs.iter().flat_map(of_run).collect()
    }

    /// Clips and updates every run that has a step and whose `losses` `[k]` and gradient are finite, then clears the gradients of all.
    /// Returns each run's loss and norm `[k, 2]` in fp64, all on the GPU.
    ///
    /// # Errors
    /// When the GPU fails.
    pub fn step_ahead(&mut self, terms: &Tensor, losses: &Tensor) -> Result<Tensor> {
        let (device, runs) = (self.device(), self.runs());
        let [terms, losses] = [&terms.view([runs, -1]), losses].map(|tensor| tensor.to_device(device));
        if let Some(recorded) = &self.ahead.recorded {
            recorded.terms.shallow_clone().copy_(&terms);
            recorded.losses.shallow_clone().copy_(&losses);
            recorded.graph.replay()?;
            return Ok(recorded.outcome.copy());
        }
        let updates = &self.updates;
        let counts = self.ahead.counts.get_or_insert_with(|| {
            Tensor::from_slice(updates).to_kind(Kind::Double).view([runs, 1]).to_device(device)
        });
        let counts = counts.shallow_clone();
        self.ahead.taken += 1;
        let one_device = self.devices() == device.into();
        if self.ahead.taken != RECORDED_AFTER || !one_device || !graph::records(device) {
            return Ok(self.update_ahead(&terms, &losses, &counts));
        }
        let (outcome, made) =
            Graph::record(device, None, || Ok(self.update_ahead(&terms, &losses, &counts)))?;
        self.ahead.recorded = made.map(|(graph, outcome)| Recorded { graph, terms, losses, outcome });
        Ok(outcome)
    }

    /// Fails where a GPU has no room for an update, which cannot be taken back half done.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn require_room(&self) -> Result<()> {
        for buffer in self.buffers.iter().filter(|buffer| buffer.device().is_cuda()) {
            let [runs, numbers] = dims2(&buffer.values);
            // Those of the gradient, of its square, of the denominator and of the step, and the results of the operations between.
            let _room = Tensor::f_empty([6, runs, numbers.min(PIECE)], (Kind::Float, buffer.device()))?;
        }
        Ok(())
    }

    /// Counts an update that a GPU has decided on.
    pub fn count(&mut self, run: usize) {
        self.updates[run] += 1;
    }

    fn update_ahead(&self, terms: &Tensor, losses: &Tensor, counts: &Tensor) -> Tensor {
        no_grad(|| {
            let [has_step, most, scale] = [0, 1, 2].map(|at| terms.narrow(1, at, 1)); // [k, 1]
            let losses = losses.view([-1, 1]).to_kind(Kind::Double);
            let norms = self.gradient_norms().view([-1, 1]).to_kind(Kind::Double) / &scale;
            let counted = (&losses + &norms).isfinite().logical_and(&has_step.to_kind(Kind::Bool));
            let one = counted.to_kind(Kind::Double);
            let _ = counts.shallow_clone().g_add_(&one);
            let factor = ((most / (&norms + 1e-6)).clamp_max(1.0) / scale).to_kind(Kind::Float);
            // A run without an update has none to correct for.
            let updates = counts.clamp_min(1.0);
            let bias = |beta: f64| (-(&updates * beta.ln()).expm1()).to_kind(Kind::Float);
            let (bias1, root2, one) = (bias(BETA1), bias(BETA2).sqrt(), one.to_kind(Kind::Float));
            for (buffer, start) in self.buffers.iter().zip((OF_RUN..).step_by(2)) {
                let on = |tensor: &Tensor| tensor.to_device(buffer.device());
                let [counted, one, factor, bias1, root2] = [&counted, &one, &factor, &bias1, &root2].map(on);
                let rates = on(&terms.narrow(1, start, 1)) * &one;
                let decay = &rates * on(&terms.narrow(1, start + 1, 1));
                for [mut values, gradient, mut mean, mut square] in buffer.pieces() {
                    let gradient = cast(&gradient, Kind::Float) * &factor;
                    let gradient = gradient.masked_fill(&counted.logical_not(), 0.0);
                    let _ = values.g_mul_(&(1.0 - &decay));
                    let _ = mean.lerp_tensor_(&gradient, &(&one * (1.0 - BETA1)));
                    let _ = square.g_mul_(&(1.0 - &one * (1.0 - BETA2)));
                    square += &gradient * &gradient * (1.0 - BETA2);
                    let denominator = square.sqrt() / &root2 + EPSILON;
                    values -= mean / denominator * (&rates / &bias1);
                }
            }
            self.clear_gradients();
            Tensor::cat(&[losses, norms], 1)
        })
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::{AdamW, Rates, Terms};
    use crate::adapters::{Group, Trained};

    const RUNS: usize = 4;

    fn optimizer() -> AdamW {
        let mut trained = Trained::new(RUNS as i64);
        for (name, group) in [("core", Group::Adapter), ("head", Group::Head)] {
            let initial = Tensor::arange(RUNS as i64 * 6, (Kind::Float, Device::Cpu)).view([-1, 2, 3]).cos();
            let _leaf = trained.add(name, group, &initial);
        }
        AdamW::new(&trained).unwrap()
    }

    #[test]
    fn a_step_that_the_device_decides_on_is_that_of_the_host() {
        let (mut host, mut device) = (optimizer(), optimizer());
        for step in 0..6 {
            for (at, (a, b)) in host.buffers.iter().zip(&device.buffers).enumerate() {
                let numbers = Tensor::arange(a.gradient.numel() as i64, (Kind::Double, Device::Cpu));
                let noise = ((numbers + (10 * step + at) as i64).sin() * 5.0).view_as(&a.gradient);
                // The third run has no finite gradient in one step, the second no finite loss in another.
                if step == 2 {
                    let _ = noise.get(2).get(1).fill_(f64::INFINITY);
                }
                for buffer in [a, b] {
                    buffer.gradient.shallow_clone().copy_(&noise);
                }
            }
            let rates = Rates { adapter: 0.01 * (step + 1) as f64, head: 0.02, weight_decay: 0.1 };
            let scale = if step == 3 { 4.0 } else { 1.0 };
            let losses = [1.0, if step == 4 { f64::NAN } else { 2.0 }, 3.0, 4.0];
            // The last run ends early; the first is not clipped.
            let terms = |run: usize| {
                let max_norm = if run == 0 { 0.0 } else { 0.5 };
                (run < 3 || step < 3).then_some(Terms { rates, max_norm, scale })
            };
            let terms: Vec<Option<Terms>> = (0..RUNS).map(terms).collect();
            let norms: Vec<f64> = Vec::try_from(host.gradient_norms().to_kind(Kind::Double)).unwrap();
            let numbers = Tensor::from_slice(&device.terms(&terms));
            let outcome = device.step_ahead(&numbers, &Tensor::from_slice(&losses)).unwrap();
            let mut factors = [1.0; RUNS];
            let mut own = [None; RUNS];
            for run in (0..RUNS).filter(|run| terms[*run].is_some()) {
                let norm = norms[run] / scale;
                let found: Vec<f64> = Vec::try_from(outcome.get(run as i64)).unwrap();
                assert_eq!(format!("{found:?}"), format!("{:?}", [losses[run], norm]));
                if losses[run].is_finite() && norm.is_finite() {
                    own[run] = Some(rates);
                    factors[run] = if run == 0 { 1.0 } else { (0.5 / (norm + 1e-6)).min(1.0) } / scale;
                    device.count(run);
                }
            }
            host.step(&own, &factors);
        }
        assert_eq!((&host.updates, &host.updates), (&device.updates, &vec![6, 5, 5, 3]));
        let counts: Vec<f64> = Vec::try_from(device.ahead.counts.as_ref().unwrap().view([-1])).unwrap();
        assert_eq!(counts, [6.0, 5.0, 5.0, 3.0]);
        for (a, b) in host.buffers.iter().zip(&device.buffers) {
            assert_eq!(f64::try_from(b.gradient.abs().max()).unwrap(), 0.0);
            for (a, b) in [(&a.values, &b.values), (&a.mean, &b.mean), (&a.square, &b.square)] {
                let apart = f64::try_from((a - b).abs().max()).unwrap();
                assert!(apart < 1e-6, "{apart}");
            }
        }
    }
}
