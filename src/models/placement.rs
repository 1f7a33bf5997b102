//! Which device each part of a model lies on.

use std::ops::Range;

use tch::Device;

use crate::fault::{Result, fault, usage};
use crate::torch::{Devices, free_bytes};

/// The layers of a model on the devices of a process, in order: the embedding on the first device, and what follows the layers on the last.
#[derive(Debug, Clone)]
pub struct Placement {
    devices: Devices,
    /// The first layer of each device but the first.
    starts: Vec<usize>,
}

/// Bytes of a model's parts.
#[derive(Debug, Clone, Default)]
pub struct Sizes {
    embedding: usize,
    layers: Vec<usize>,
    rest: usize,
}

/// The part of a model that a tensor or layer of this canonical name belongs to.
enum Part {
    Embedding,
    Layer(usize),
    Rest,
}

impl Part {
    fn of(name: &str) -> Self {
        match name.split('.').find_map(|part| part.parse().ok()) {
            Some(layer) => Self::Layer(layer),
            None if name.contains("embed") => Self::Embedding,
            None => Self::Rest,
        }
    }
}

impl Sizes {
    /// Adds up the bytes of tensors by their canonical names.
    pub fn new(layers: usize, tensors: impl Iterator<Item = (String, usize)>) -> Self {
        let mut sizes = Self { layers: vec![0; layers], ..Self::default() };
        for (name, bytes) in tensors {
            match Part::of(&name) {
                Part::Embedding => sizes.embedding += bytes,
                Part::Layer(layer) => {
                    sizes.layers.iter_mut().skip(layer).take(1).for_each(|own| *own += bytes);
                }
                Part::Rest => sizes.rest += bytes,
            }
        }
        sizes
    }

    /// Returns the bytes of all.
    pub fn all(&self) -> usize {
        self.of(0..self.layers.len())
    }

    /// Returns the bytes of these layers and, with the first and the last, of what is before and after all.
    pub fn of(&self, layers: Range<usize>) -> usize {
        let before = if layers.start == 0 { self.embedding } else { 0 };
        let after = if layers.end == self.layers.len() { self.rest } else { 0 };
        before + after + self.layers.get(layers).map_or(0, |own| own.iter().sum())
    }
}

impl Placement {
    /// Divides the layers by free memory: the largest share of a device's that they take is as small as can be.
    ///
    /// # Errors
    /// When there are more devices than layers, or several that the base does not fit into.
    pub fn new(devices: &Devices, sizes: &Sizes) -> Result<Self> {
        let free: Vec<Option<usize>> = devices.all().iter().map(|device| free_bytes(*device)).collect();
        let (placement, most) = Self::planned(devices, sizes, &free)?;
        if placement.is_divided() && most > 1.0 {
            let gib = |bytes: usize| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
            let free: Vec<String> = free.iter().flatten().map(|free| gib(*free)).collect();
            let (all, free) = (gib(sizes.all()), free.join(" and "));
            return Err(fault(format!("the base takes {all}, but `{devices}` have {free} free"))
                .hint("name more devices with `--device`, or use a precision of 16 bits")
                .into());
        }
        Ok(placement)
    }

    /// Divides the layers among devices with so many free bytes, whether or not they fit; returns also the largest share of a
    /// device's that they take.
    ///
    /// # Errors
    /// When there are more devices than layers.
    pub fn planned(devices: &Devices, sizes: &Sizes, free: &[Option<usize>]) -> Result<(Self, f64)> {
        let (count, layers) = (devices.all().len(), sizes.layers.len());
        if count > layers.max(1) {
            let message = format!("`--device` names {count} devices, more than the model has layers");
            return Err(usage(message).hint(format!("name at most {layers}")).into());
        }
        let (starts, most) = divided(sizes, free);
        Ok((Self { devices: devices.clone(), starts }, most))
    }

    /// Puts all on one device.
    pub fn on(device: Device) -> Self {
        Self { devices: device.into(), starts: Vec::new() }
    }

    /// Returns the devices, in order.
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// Returns the device that gets a model's inputs.
    pub fn first(&self) -> Device {
        self.devices.first()
    }

    /// Returns the device of what follows the layers.
    pub fn last(&self) -> Device {
        self.devices.all().last().copied().unwrap_or(Device::Cpu)
    }

    /// Returns true if there are several devices.
    pub fn is_divided(&self) -> bool {
        !self.starts.is_empty()
    }

    /// Returns the device of a layer.
    pub fn layer(&self, layer: usize) -> Device {
        let before = self.starts.iter().filter(|start| **start <= layer).count();
        self.devices.all().get(before).copied().unwrap_or(Device::Cpu)
    }

    /// Returns the device of the tensor or layer of this canonical name.
    pub fn of(&self, name: &str) -> Device {
        match Part::of(name) {
            Part::Embedding => self.first(),
            Part::Layer(layer) => self.layer(layer),
            Part::Rest => self.last(),
        }
    }

    /// Returns the layers of each device.
    pub fn ranges(&self, layers: usize) -> Vec<(Device, Range<usize>)> {
        let ends = self.starts.iter().copied().chain([layers]);
        let starts = std::iter::once(0).chain(self.starts.iter().copied());
        self.devices.all().iter().copied().zip(starts.zip(ends).map(|(start, end)| start..end)).collect()
    }
}

/// Returns the first layer of each device but the first, and the largest share of a device's free bytes that is taken then.
fn divided(sizes: &Sizes, free: &[Option<usize>]) -> (Vec<usize>, f64) {
    let layers = sizes.layers.len();
    // Of unknown memory, all devices have as much as would hold the base twice.
    let unknown = 2 * sizes.all();
    let share = |device: usize, own: Range<usize>| {
        let free = free.get(device).copied().flatten().unwrap_or(unknown);
        sizes.of(own) as f64 / free.max(1) as f64
    };
    // best[end]: the least largest share with the layers before `end` on the devices so far, and where these begin.
    let mut best: Vec<Option<(f64, Vec<usize>)>> =
        (0..=layers).map(|end| (end > 0).then(|| (share(0, 0..end), Vec::new()))).collect();
    for device in 1..free.len() {
        let ending = |end: usize| {
            let with = |start: usize| {
                let (before, starts) = best[start].as_ref()?;
                Some((before.max(share(device, start..end)), [starts.as_slice(), &[start]].concat()))
            };
            (1..end).filter_map(with).min_by(|(a, _), (b, _)| a.total_cmp(b))
        };
        best = (0..=layers).map(ending).collect();
    }
    let (most, starts) = best.pop().flatten().unwrap_or((f64::INFINITY, Vec::new()));
    (starts, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(embedding: usize, layers: &[usize], rest: usize) -> Sizes {
        Sizes { embedding, layers: layers.to_vec(), rest }
    }

    #[test]
    fn layers_are_divided_by_free_memory() {
        let alike = sizes(0, &[1; 8], 0);
        assert_eq!(divided(&alike, &[Some(10), Some(10)]), (vec![4], 0.4));
        assert_eq!(divided(&alike, &[Some(30), Some(10)]), (vec![6], 0.2));
        assert_eq!(divided(&alike, &[None, None, None, None]).0, [2, 4, 6]);
        // A large embedding leaves fewer layers to the first device, a large head fewer to the last.
        assert_eq!(divided(&sizes(2, &[1; 8], 0), &[Some(10), Some(10)]).0, [3]);
        assert_eq!(divided(&sizes(0, &[1; 8], 4), &[Some(10), Some(10)]).0, [6]);
        // Each device gets a layer, and none more than it must.
        assert_eq!(divided(&sizes(0, &[1, 1], 0), &[Some(1000), Some(1)]), (vec![1], 1.0));
        assert!(divided(&sizes(0, &[3, 1], 0), &[Some(2), Some(2)]).1 > 1.0);
    }

    #[test]
    fn a_70b_base_in_bf16_fits_on_two_cards_of_80_gb() {
        // Llama 2 70B: 80 layers of 1.711 GB, and two tables of 0.524 GB.
        let sizes = sizes(524_288_000, &[1_711_308_800; 80], 524_304_384);
        let (starts, most) = divided(&sizes, &[Some(79 << 30), Some(79 << 30)]);
        assert_eq!(starts, [40]);
        assert!(most < 0.83, "{most}");
    }

    #[test]
    fn names_tell_the_part() {
        let [first, last] = [Device::Cuda(0), Device::Cuda(1)];
        let placement = Placement { devices: [first, last].into_iter().collect(), starts: vec![2] };
        for (name, device) in [
            ("bert.embeddings.LayerNorm.weight", first),
            ("bert.encoder.layer.1.output.dense.weight", first),
            ("bert.encoder.layer.2.attention.self.query", last),
            ("bert.pooler.dense", last),
            ("model.embed_tokens.weight", first),
            ("model.layers.0.mlp.down_proj.weight", first),
            ("model.layers.13.input_layernorm.weight", last),
            ("model.norm.weight", last),
            ("lm_head.weight", last),
        ] {
            assert_eq!(placement.of(name), device, "{name}");
        }
        assert_eq!(placement.ranges(5), [(first, 0..2), (last, 2..5)]);
    }
}
