//! AdamW over flat buffers, gradient clipping, and fp16's dynamic loss scale.
//!
//! All trained tensors of a group lie in one buffer `[k, p]`, their gradients in another: clipping and update
//! take a few kernels, however many layers are adapted, and each run has its own norm and learning rate.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use crate::adapters::{Group, Trained};
use crate::fault::Result;
use crate::torch::set_grad;

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

/// AdamW (arXiv 1711.05101) as `torch.optim.AdamW` computes it: decoupled decay on every trained tensor,
/// betas 0.9 and 0.999, epsilon 1e-8.
#[derive(Debug)]
pub struct AdamW {
    buffers: Vec<Buffer>,
    weight_decay: f64,
    /// Updates done.
    updates: i64,
}

/// One group's tensors, flat, `[k, p]` in fp32.
#[derive(Debug)]
struct Buffer {
    group: Group,
    values: Tensor,
    gradient: Tensor,
    mean: Tensor,
    square: Tensor,
}

impl AdamW {
    /// Moves the trained tensors into flat buffers; layers keep computing with the same leaves.
    ///
    /// # Errors
    /// When libtorch refuses to share the memory.
    pub fn new(trained: &Trained, weight_decay: f64) -> Result<Self> {
        let mut buffers = Vec::new();
        for group in [Group::Adapter, Group::Base, Group::Head] {
            let entries: Vec<&Tensor> =
                trained.entries().iter().filter(|e| e.group == group).map(|e| &e.tensor).collect();
            if !entries.is_empty() {
                buffers.push(Buffer::new(group, trained.runs(), &entries)?);
            }
        }
        Ok(Self { buffers, weight_decay, updates: 0 })
    }

    /// Returns the device of the trained tensors.
    pub fn device(&self) -> Device {
        self.buffers.first().map_or(Device::Cpu, |buffer| buffer.values.device())
    }

    /// Returns the norm of each run's whole gradient, over all groups, divided by `divisor`: `[k]`.
    pub fn gradient_norm(&self, divisor: f64) -> Tensor {
        no_grad(|| {
            let squares: Vec<Tensor> = self
                .buffers
                .iter()
                .map(|b| b.gradient.square().sum_dim_intlist(1, false, Kind::Float))
                .collect();
            Tensor::stack(&squares, 0).sum_dim_intlist(0, false, Kind::Float).sqrt() / divisor
        })
    }

    /// Multiplies the gradient of each of the k runs by its factor.
    pub fn scale_gradients(&mut self, factors: &[f64]) {
        let factors = Tensor::from_slice(factors).to_kind(Kind::Float).unsqueeze(1); // [k, 1]
        no_grad(|| {
            for buffer in &mut self.buffers {
                let factors = factors.to_device(buffer.gradient.device());
                let _ = buffer.gradient.g_mul_(&factors);
            }
        });
    }

    /// Performs one update with each run's learning rates, then clears the gradients.
    ///
    /// `rates(group)` gives k learning rates.
    pub fn step(&mut self, rates: impl Fn(Group) -> Vec<f64>) {
        self.updates += 1;
        let t = i32::try_from(self.updates).unwrap_or(i32::MAX);
        let (bias1, bias2) = (1.0 - BETA1.powi(t), 1.0 - BETA2.powi(t));
        for buffer in &mut self.buffers {
            buffer.update(&rates(buffer.group), self.weight_decay, bias1, bias2);
        }
        self.clear_gradients();
    }

    /// Sets every gradient to zero.
    pub fn clear_gradients(&mut self) {
        no_grad(|| {
            for buffer in &mut self.buffers {
                let _ = buffer.gradient.zero_();
            }
        });
    }

    /// Returns everything that a resumed run needs, by name.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for buffer in &self.buffers {
            for (part, tensor) in buffer.parts() {
                state.push((format!("{:?}.{part}", buffer.group).to_lowercase(), tensor.shallow_clone()));
            }
        }
        state.push(("updates".into(), Tensor::from_slice(&[self.updates])));
        state
    }

    /// Restores what [`AdamW::state`] returned.
    ///
    /// # Errors
    /// When `read` lacks a name or a shape does not fit.
    pub fn restore(&mut self, read: impl Fn(&str) -> Result<Tensor>) -> Result<()> {
        for buffer in &self.buffers {
            for (part, tensor) in buffer.parts() {
                let stored = read(&format!("{:?}.{part}", buffer.group).to_lowercase())?;
                no_grad(|| tensor.shallow_clone().f_copy_(&stored))?;
            }
        }
        self.updates = read("updates")?.int64_value(&[0]);
        Ok(())
    }
}

impl Buffer {
    fn new(group: Group, runs: i64, tensors: &[&Tensor]) -> Result<Self> {
        let values = no_grad(|| {
            let rows: Vec<Tensor> = tensors.iter().map(|t| t.detach().reshape([runs, -1])).collect();
            Tensor::cat(&rows, 1)
        });
        let gradient = values.zeros_like();
        let mut start = 0;
        for tensor in tensors {
            let width = tensor.numel() as i64 / runs;
            let mut leaf = tensor.shallow_clone();
            no_grad(|| leaf.f_set_data(&view_of(&values, start, &tensor.size())))?;
            set_grad(tensor, &view_of(&gradient, start, &tensor.size()))?;
            start += width;
        }
        let (mean, square) = (values.zeros_like(), values.zeros_like());
        Ok(Self { group, values, gradient, mean, square })
    }

    fn parts(&self) -> [(&'static str, &Tensor); 3] {
        [("values", &self.values), ("mean", &self.mean), ("square", &self.square)]
    }

    fn update(&mut self, rates: &[f64], weight_decay: f64, bias1: f64, bias2: f64) {
        no_grad(|| {
            let rates =
                Tensor::from_slice(rates).to_kind(Kind::Float).to_device(self.values.device()).unsqueeze(1);
            let _ = self.values.g_mul_(&(1.0 - &rates * weight_decay));
            let _ = self.mean.lerp_(&self.gradient, 1.0 - BETA1);
            self.square *= BETA2;
            self.square += &self.gradient * &self.gradient * (1.0 - BETA2);
            let denominator = self.square.sqrt() / bias2.sqrt() + EPSILON;
            let step = &self.mean / denominator * (rates / bias1);
            self.values -= step;
        });
    }
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
