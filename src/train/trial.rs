//! How long a pass of several runs takes on a device.

use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::Objective;
use crate::fault::Result;
use crate::nn::{Noise, Sites};
use crate::torch::stream::Stream;

/// Passes of a trial: what is slow only once is not counted.
const PASSES: usize = 3;

/// Returns the seconds of a pass, forward and backward, over the longest examples for `runs` of the objective's k runs, in micro
/// batches of so many examples, or of so many tokens where these are not 0. Leaves gradients behind.
///
/// # Errors
/// When libtorch fails, as without enough memory.
pub fn seconds(
    objective: &dyn Objective,
    k: usize,
    runs: usize,
    [micro_batch_size, micro_batch_tokens]: [usize; 2],
) -> Result<f64> {
    let lengths = objective.lengths();
    let mut longest: Vec<usize> = (0..lengths.len()).collect();
    longest.sort_by_key(|example| std::cmp::Reverse(lengths[*example]));
    let mut tokens = 0;
    let fits = |example: &&usize| {
        tokens += lengths[**example];
        tokens <= micro_batch_tokens
    };
    let count = match micro_batch_tokens {
        0 => micro_batch_size,
        _ => longest.iter().take_while(fits).count().max(1),
    };
    longest.truncate(count);
    let batch: Vec<Vec<usize>> =
        (0..k).map(|run| if run < runs { longest.clone() } else { Vec::new() }).collect();
    let noise = Noise::new(vec![Stream::seeded(0); k]);
    let ones = vec![1.0; k];
    let mut least = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        // The copy waits for the device.
        let _losses = objective.backward(&batch, &ones, &ones, &noise)?.f_to_device(Device::Cpu)?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(least)
}

/// Returns what a pass of one run draws for on a CPU. Leaves gradients behind.
///
/// # Errors
/// When libtorch fails.
pub fn sites(objective: &dyn Objective, k: usize) -> Result<Sites> {
    let noise = Noise::new(vec![Stream::seeded(0); k]);
    let mut batch = vec![Vec::new(); k];
    let lengths = objective.lengths();
    batch[0].extend((0..lengths.len()).min_by_key(|example| lengths[*example]));
    let ones = vec![1.0; k];
    let _losses = objective.backward(&batch, &ones, &ones, &noise)?;
    Ok(noise.sites())
}

/// Returns the operations a second of a large matrix product on a device.
///
/// # Errors
/// When libtorch fails.
pub fn operations_per_second(kind: Kind, device: Device) -> Result<f64> {
    const SIDE: i64 = 1024;
    let x = Tensor::f_ones([SIDE, SIDE], (kind, device))?;
    let mut least = f64::INFINITY;
    for _ in 0..PASSES {
        let start = Instant::now();
        let _one = x.f_matmul(&x)?.f_narrow(0, 0, 1)?.f_to_device(Device::Cpu)?;
        least = least.min(start.elapsed().as_secs_f64());
    }
    Ok(2.0 * (SIDE as f64).powi(3) / least)
}
