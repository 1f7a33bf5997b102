//! AdamW over flat buffers, and fp16's dynamic loss scale.
//!
//! All trained tensors of a group on one device are in one buffer `[k, p]`, their gradients in another: clipping and update
//! take a few kernels, however many layers are adapted, and each run has its own norm and learning rate.

mod ahead;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault};
use crate::torch::world::World;
use crate::torch::{Devices, cast, dims2, set_grad};
use ahead::Ahead;
pub use ahead::Terms;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;
/// Most numbers of a run that are updated at once: on a CPU so many for each of its threads that all passes over them find them in its cache,
/// and not fewer than libtorch gives a thread.
const PIECE: i64 = 1 << 24;
const PIECE_OF_THREAD: i64 = 1 << 15;
/// What a checkpoint holds of each group.
const PARTS: [&str; 3] = ["values", "mean", "square"];

/// AdamW (arXiv 1711.05101) as `torch.optim.AdamW` computes it: decoupled decay on every trained tensor,
/// betas 0.9 and 0.999, epsilon 1e-8.
#[derive(Debug)]
pub struct AdamW {
    buffers: Vec<Buffer>,
    /// Updates done of each run.
    updates: Vec<i64>,
    /// What decides on a GPU.
    ahead: Ahead,
}

/// One run's settings of an update.
#[derive(Debug, Clone, Copy)]
pub struct Rates {
    /// Learning rate of adapter or base.
    pub adapter: f64,
    /// Learning rate of the head.
    pub head: f64,
    /// Decoupled decay.
    pub weight_decay: f64,
}

impl Rates {
    /// Returns the learning rate of a group.
    fn of(&self, group: Group) -> f64 {
        if group == Group::Head { self.head } else { self.adapter }
    }
}

/// One group's tensors on one device, flat, `[k, p]`; on a CPU, gradients in fp64, all else in fp32.
#[derive(Debug)]
struct Buffer {
    group: Group,
    /// Numbers of the tensors among those of the group, and the width of each.
    places: Vec<(usize, i64)>,
    values: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
}

impl AdamW {
    /// Moves the trained tensors into flat buffers; layers keep computing with the same leaves.
    ///
    /// # Errors
    /// When libtorch refuses to share the memory, or several runs would train weights of the base, which have no axis of runs.
    pub fn new(trained: &Trained) -> Result<Self> {
        let mut buffers = Vec::new();
        for group in [Group::Adapter, Group::Base, Group::Head] {
            let entries = trained.entries().iter().filter(|e| e.group == group).map(|e| &e.tensor);
            let mut by_device: Vec<(Device, Vec<(usize, &Tensor)>)> = Vec::new();
            for (number, tensor) in entries.enumerate() {
                match by_device.iter_mut().find(|(device, _)| *device == tensor.device()) {
                    Some((_, tensors)) => tensors.push((number, tensor)),
                    None => by_device.push((tensor.device(), vec![(number, tensor)])),
                }
            }
            for (_, tensors) in by_device {
                if group == Group::Base && trained.runs() > 1 {
                    let message = format!("{} runs cannot train one base together", trained.runs());
                    return Err(fault(message).hint("train each of them alone").into());
                }
                buffers.push(Buffer::new(group, trained.runs(), &tensors)?);
            }
        }
        Ok(Self {
            buffers,
            updates: vec![0; usize::try_from(trained.runs()).unwrap_or(1)],
            ahead: Ahead::default(),
        })
    }

    /// Returns the device of the first trained tensors.
    pub fn device(&self) -> Device {
        self.buffers.first().map_or(Device::Cpu, Buffer::device)
    }

    /// Returns the devices of the trained tensors.
    pub fn devices(&self) -> Devices {
        self.buffers.iter().map(Buffer::device).collect()
    }

    /// Returns the norm of each run's whole gradient, over all groups: `[k]`, on [`AdamW::device`].
    pub fn gradient_norms(&self) -> Tensor {
        let norms = |first: i64, runs: i64| {
            let squares = |b: &Buffer| {
                let of_piece = |[_, gradient, ..]: [Tensor; 4]| {
                    let squares = gradient.narrow(0, first, runs).square();
                    squares.sum_dim_intlist(1, false, squares.kind())
                };
                let pieces = b.pieces().into_iter().map(of_piece);
                let sum = pieces.reduce(|a, b| a + b).unwrap_or_default();
                cast(&sum, Kind::Float).to_device(self.device())
            };
            let squares: Vec<Tensor> = self.buffers.iter().map(squares).collect();
            Tensor::stack(&squares, 0).sum_dim_intlist(0, false, Kind::Float).sqrt()
        };
        // On a CPU run by run, with the bits of a run alone.
        no_grad(|| match self.device() {
            Device::Cpu => Tensor::cat(&(0..self.runs()).map(|run| norms(run, 1)).collect::<Vec<_>>(), 0),
            _ => norms(0, self.runs()),
        })
    }

    /// Sums the gradients over all processes, and with them `beside`, numbers on the CPU.
    ///
    /// # Errors
    /// When another process failed or is lost.
    pub fn all_reduce(&self, world: &World, beside: &Tensor) -> Result<()> {
        no_grad(|| {
            let gradient = |buffer: &Buffer| buffer.gradient.shallow_clone();
            let part = |group| joined(group, gradient).flatten(0, -1).to_device(Device::Cpu);
            let parts: Vec<Tensor> = self.groups().map(part).chain([beside.shallow_clone()]).collect();
            // One sum of each kind of numbers.
            for kind in [Kind::Float, Kind::Double] {
                let own: Vec<&Tensor> = parts.iter().filter(|part| part.kind() == kind).collect();
                if own.is_empty() {
                    continue;
                }
                let flat = Tensor::cat(&own, 0);
                world.all_reduce(&[&flat])?;
                let lengths: Vec<i64> = own.iter().map(|part| part.numel() as i64).collect();
                for (part, sum) in own.into_iter().zip(flat.split_with_sizes(&lengths, 0)) {
                    part.shallow_clone().copy_(&sum);
                }
            }
            for (group, sum) in self.groups().zip(&parts) {
                divide(group, gradient, &sum.view([self.runs(), -1]))?;
            }
            Ok(())
        })
    }

    fn runs(&self) -> i64 {
        self.updates.len() as i64
    }

    /// Returns the buffers of each group.
    fn groups(&self) -> impl Iterator<Item = &[Buffer]> {
        self.buffers.chunk_by(|a, b| a.group == b.group)
    }

    /// Multiplies the gradient of each run by its factor, performs one update of the runs that have rates, then clears the gradients of
    /// all; on a CPU.
    pub fn step(&mut self, rates: &[Option<Rates>], factors: &[f64]) {
        for (run, rates) in rates.iter().enumerate().filter_map(|(run, rates)| Some((run, (*rates)?))) {
            self.updates[run] += 1;
            self.update(run, rates, factors[run]);
        }
        self.clear_gradients();
    }

    /// Updates run `run`, with settings in fp32, as a GPU does.
    fn update(&self, run: usize, rates: Rates, factor: f64) {
        let bias = |beta: f64| 1.0 - beta.powi(i32::try_from(self.updates[run]).unwrap_or(i32::MAX));
        let [bias1, root2, decay, factor] =
            [bias(BETA1), bias(BETA2).sqrt(), rates.weight_decay, factor].map(|number| number as f32);
        no_grad(|| {
            for buffer in &self.buffers {
                let rate = rates.of(buffer.group) as f32;
                for piece in buffer.pieces() {
                    let [mut values, mut gradient, mut mean, mut square] =
                        piece.map(|tensor| tensor.narrow(0, run as i64, 1));
                    if (factor - 1.0).abs() > 0.0 {
                        gradient *= f64::from(factor);
                    }
                    let gradient = cast(&gradient, Kind::Float);
                    values *= f64::from(1.0 - rate * decay);
                    let _ = mean.lerp_(&gradient, 1.0 - BETA1);
                    square *= BETA2;
                    square += &gradient * &gradient * (1.0 - BETA2);
                    let denominator = square.sqrt() / f64::from(root2) + EPSILON;
                    values -= mean / denominator * f64::from(rate / bias1);
                }
            }
        });
    }

    /// Sets every gradient to zero.
    pub fn clear_gradients(&self) {
        no_grad(|| {
            for buffer in &self.buffers {
                let _ = buffer.gradient.shallow_clone().zero_();
            }
        });
    }

    /// Returns everything that run `run` needs to resume, by name.
    pub fn state(&self, run: usize) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for group in self.groups() {
            for (part, name) in PARTS.into_iter().enumerate() {
                let whole = joined(group, |buffer| buffer.part(part, run));
                state.push((format!("{}.{name}", group[0].group.name()), whole));
            }
        }
        state.push(("updates".into(), Tensor::from_slice(&self.updates[run..=run])));
        state
    }

    /// Restores what [`AdamW::state`] returned.
    ///
    /// # Errors
    /// When `read` lacks a name or a shape does not fit.
    pub fn restore(&mut self, run: usize, read: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for group in self.groups() {
            for (part, name) in PARTS.into_iter().enumerate() {
                let stored = read(&format!("{}.{name}", group[0].group.name()))?;
                divide(group, |buffer| buffer.part(part, run), &stored)?;
            }
        }
        self.updates[run] = read("updates")?.f_int64_value(&[0])?;
        self.ahead.forget_counts();
        Ok(())
    }
}

impl Buffer {
    fn new(group: Group, runs: i64, tensors: &[(usize, &Tensor)]) -> Result<Self> {
        let values = no_grad(|| {
            let rows: Vec<Tensor> = tensors.iter().map(|(_, t)| t.detach().reshape([runs, -1])).collect();
            Tensor::cat(&rows, 1)
        });
        // On a CPU summed in fp64: nearly the same bits however rows are divided.
        let is_wide = values.device() == Device::Cpu;
        let gradient = if is_wide { values.zeros_like().to_kind(Kind::Double) } else { values.zeros_like() };
        let (mut start, mut places) = (0, Vec::with_capacity(tensors.len()));
        for (number, tensor) in tensors {
            let width = tensor.numel() as i64 / runs;
            let mut leaf = tensor.shallow_clone();
            no_grad(|| leaf.f_set_data(&view_of(&values, start, &tensor.size())))?;
            set_grad(tensor, &view_of(&gradient, start, &tensor.size()))?;
            places.push((*number, width));
            start += width;
        }
        let (mean, square) = (values.zeros_like(), values.zeros_like());
        Ok(Self { group, places, values, gradient, mean, square })
    }

    fn device(&self) -> Device {
        self.values.device()
    }

    /// Returns values, gradient and moments in pieces `[k, ..]`, so that what an update makes beside them stays small.
    fn pieces(&self) -> Vec<[Tensor; 4]> {
        let all = [&self.values, &self.gradient, &self.mean, &self.square];
        let on_cpu = || PIECE_OF_THREAD * i64::from(tch::get_num_threads().max(2));
        let most = if self.device() == Device::Cpu { on_cpu() } else { PIECE };
        let pieces = all.map(|tensor| tensor.split(most, 1));
        let [values, gradients, means, squares] = pieces.map(Vec::into_iter);
        let moments = means.zip(squares);
        values.zip(gradients).zip(moments).map(|((a, b), (c, d))| [a, b, c, d]).collect()
    }

    /// Returns one of the [`PARTS`] of run `run`, `[1, p]`.
    fn part(&self, part: usize, run: usize) -> Tensor {
        [&self.values, &self.mean, &self.square][part].narrow(0, run as i64, 1)
    }
}

/// Returns the columns of each tensor of a group in what `of` takes of its buffers, in the order in which these were added.
fn columns(group: &[Buffer], of: impl Fn(&Buffer) -> Tensor) -> Vec<Tensor> {
    let of_buffer = |buffer: &Buffer| {
        let (numbers, widths): (Vec<usize>, Vec<i64>) = buffer.places.iter().copied().unzip();
        numbers.into_iter().zip(of(buffer).split_with_sizes(&widths, 1)).collect::<Vec<_>>()
    };
    let mut columns: Vec<(usize, Tensor)> = group.iter().flat_map(of_buffer).collect();
    columns.sort_by_key(|(number, _)| *number);
    columns.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Returns what `of` takes of a group's buffers as if it had one; of several devices, on the CPU.
fn joined(group: &[Buffer], of: impl Fn(&Buffer) -> Tensor) -> Tensor {
    if let [only] = group {
        return of(only);
    }
    let columns = columns(group, of);
    no_grad(|| Tensor::cat(&columns.iter().map(|x| x.to_device(Device::Cpu)).collect::<Vec<_>>(), 1))
}

/// Writes what [`joined`] returned into what `of` takes of a group's buffers.
fn divide(group: &[Buffer], of: impl Fn(&Buffer) -> Tensor, whole: &Tensor) -> Result<()> {
    if let [only] = group {
        return no_grad(|| Ok(of(only).f_copy_(whole)?));
    }
    let mut columns = columns(group, of);
    let widths: Vec<i64> = columns.iter().map(|x| dims2(x)[1]).collect();
    for (own, stored) in columns.iter_mut().zip(whole.f_split_with_sizes(&widths, 1)?) {
        no_grad(|| own.f_copy_(&stored))?;
    }
    Ok(())
}

/// Returns the columns of a flat buffer `[k, p]` from `start` on, shaped like a trained tensor.
fn view_of(flat: &Tensor, start: i64, shape: &[i64]) -> Tensor {
    // Row-major strides within a run; between runs, the width of the whole buffer.
    let mut strides = vec![1; shape.len()];
    for axis in (0..shape.len().saturating_sub(1)).rev() {
        strides[axis] = strides[axis + 1] * shape[axis + 1];
    }
    let runs = flat.size()[0];
    if runs > 1 {
        strides[0] = flat.size()[1];
    }
    no_grad(|| flat.as_strided(shape, strides, start))
}

/// fp16's loss scale: halved when a gradient overflows, doubled after many steps without one.
///
/// Source: `torch.amp.GradScaler` (start 65,536, factor 2, interval 2,000).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// Factor of the loss.
    pub value: f64,
    /// Steps since the last change.
    pub steps: u64,
    dynamic: bool,
}

impl LossScale {
    /// Creates a dynamic scale for fp16, or a constant 1.
    pub fn new(dynamic: bool) -> Self {
        Self { value: if dynamic { 65_536.0 } else { 1.0 }, steps: 0, dynamic }
    }

    /// Adjusts the scale after a step whose gradient was finite or not.
    pub fn update(&mut self, finite: bool) {
        if !self.dynamic {
            return;
        }
        self.steps += 1;
        if !finite {
            (self.value, self.steps) = (self.value / 2.0, 0);
        } else if self.steps == 2_000 {
            (self.value, self.steps) = (self.value * 2.0, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_trained_by_one_run() {
        let optimizer = |runs, group| {
            let mut trained = Trained::new(runs);
            let _leaf = trained.add("weight", group, &Tensor::zeros([2, 3], (Kind::Float, Device::Cpu)));
            AdamW::new(&trained)
        };
        assert!(optimizer(1, Group::Base).is_ok() && optimizer(2, Group::Head).is_ok());
        let error = optimizer(2, Group::Base).unwrap_err();
        assert_eq!(error.to_string(), "2 runs cannot train one base together");
    }
}
