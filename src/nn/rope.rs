//! Rotary position embedding (Su et al., arXiv 2104.09864), with the scalings of long-context checkpoints.

use std::f64::consts::PI;

use tch::{Device, Kind, Tensor};

use crate::torch::{dims3, fused, kernels};

/// Rotation of a model's queries and keys.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Number of leading elements of each head that are rotated; even.
    pub width: i64,
    /// Scaling of the frequencies.
    pub scaling: Scaling,
}

/// Scaling of frequencies for sequences longer than in pretraining.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// No scaling.
    None,
    /// All divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Low ones divided by `factor`, high ones kept, smoothly between (Llama 3.1).
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// `low_freq_factor`: wavelengths above `original / low` are low frequencies.
        low: f64,
        /// `high_freq_factor`: wavelengths below `original / high` are high frequencies.
        high: f64,
        /// Positions of the pretraining.
        original: f64,
    },
}

/// Cosine and sine of each token's rotation.
#[derive(Debug)]
pub struct Angles {
    /// `[m, 1, width / 2]`.
    cos: Tensor,
    /// `[m, 1, width / 2]`.
    sin: Tensor,
}

impl Rope {
    /// Returns each pair's angle per position, fp32 `[width / 2]`, computed in fp32 as in Transformers
    /// (`modeling_rope_utils.py`) and, as there, on the CPU: the last bits of an angle matter at position 10,000.
    pub fn frequencies(&self, device: Device) -> Tensor {
        self.frequencies_on_cpu().to_device(device)
    }

    fn frequencies_on_cpu(&self) -> Tensor {
        let steps =
            Tensor::arange_start_step(0, self.width, 2, (Kind::Float, Device::Cpu)) / self.width as f64;
        let plain = Tensor::pow_scalar(self.theta, &steps).reciprocal();
        match self.scaling {
            Scaling::None => plain,
            Scaling::Linear { factor } => plain / factor,
            Scaling::Llama3 { factor, low, high, original } => {
                let wavelength = plain.reciprocal() * (2.0 * PI);
                let long = wavelength.gt(original / low);
                let scaled = (&plain / factor).where_self(&long, &plain);
                let smooth = (wavelength.reciprocal() * original - low) / (high - low);
                let smoothed: Tensor = (1.0 - &smooth) * &scaled / factor + &smooth * &scaled;
                let medium = wavelength.lt(original / high).logical_or(&long).logical_not();
                smoothed.where_self(&medium, &scaled)
            }
        }
    }

    /// Returns the angles of these positions, cast to `kind`.
    ///
    /// # Shapes
    /// `positions` int64 `[m]`; `frequencies` as [`Rope::frequencies`] gives them.
    pub fn angles(positions: &Tensor, frequencies: &Tensor, kind: Kind) -> Angles {
        let angles = positions.to_kind(Kind::Float).outer(frequencies).unsqueeze(1); // [m, 1, d/2]
        Angles { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }
}

impl Angles {
    /// Returns the same angles on another device.
    pub fn to_device(&self, device: Device) -> Self {
        Self { cos: self.cos.to_device(device), sin: self.sin.to_device(device) }
    }

    /// Returns cosines and sines, each `[m, 1, width / 2]`.
    pub fn parts(&self) -> [&Tensor; 2] {
        [&self.cos, &self.sin]
    }

    /// Like [`Angles::rotate`], but in place: `x` is fp32 on the CPU, contiguous, and needs no gradient.
    pub fn rotate_in_place(&self, x: Tensor) -> Tensor {
        kernels::rotate(&x, &self.cos, &self.sin);
        x
    }

    /// Rotates the leading elements of each head: the pair (i, i + width/2) by its angle.
    ///
    /// # Shapes
    /// `x` `[m, h, d]` to the same.
    pub fn rotate(&self, x: &Tensor) -> Tensor {
        let [_m, _h, d] = dims3(x);
        if x.device().is_cuda() || fused::serves_row(x) {
            return fused::rotation(x, &self.cos, &self.sin);
        }
        let half = self.cos.size().last().copied().unwrap_or(0);
        let (a, b) = (x.narrow(2, 0, half), x.narrow(2, half, half));
        let (first, second) = (&a * &self.cos - &b * &self.sin, &b * &self.cos + &a * &self.sin);
        if 2 * half == d {
            return Tensor::cat(&[first, second], 2);
        }
        Tensor::cat(&[first, second, x.narrow(2, 2 * half, d - 2 * half)], 2)
    }
}
