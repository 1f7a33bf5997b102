//! A basis that several processes compute together: each decomposes some modules, and all get the factors of all.

use std::collections::BTreeMap;

use tch::{Device, Kind, Tensor};

use crate::adapters::basis::{Basis, BasisSpec, ModuleReport, Weights};
use crate::adapters::rules::Layer;
use crate::adapters::svd::Factors;
use crate::fault::{Result, usage};
use crate::torch::tensor_file::bytes_of;
use crate::torch::world::World;

/// A basis, and what `init-svd` reports of its modules.
pub type Reported = (Basis, Vec<ModuleReport>);

impl Basis {
    /// Computes the factors of these layers ([`Basis::compute`]) together with the other processes; all get the same bits, which are
    /// those of one process that computes on the same kind of device.
    ///
    /// # Errors
    /// As [`Basis::compute`], on every process, and when another is lost.
    pub fn compute_together(
        world: &World,
        spec: &BasisSpec,
        base_hash: &str,
        weights: Weights,
        progress: &dyn Fn(usize, &str),
    ) -> Result<Reported> {
        if world.is_alone() {
            return Self::compute(spec, base_hash, weights, progress);
        }
        let owners = owners(weights.layers, world.size());
        let mine = weights.layers.iter().zip(&owners).filter(|(_, owner)| **owner == world.rank());
        let mine: Vec<Layer> = mine.map(|(layer, _)| layer.clone()).collect();
        let own = Weights { layers: &mine, ..weights };
        let (basis, reports) = world.agreed(Self::compute(spec, base_hash, own, progress))?;
        let reports: Vec<ModuleReport> = world.gather(reports)?.concat();
        let reports: BTreeMap<&str, &ModuleReport> =
            reports.iter().map(|report| (report.name.as_str(), report)).collect();
        let mut computed: BTreeMap<String, Factors> = basis.modules.into_iter().collect();
        let (mut modules, mut of_all) = (Vec::new(), Vec::new());
        for ((name, shape), &owner) in weights.layers.iter().zip(&owners) {
            let report = reports.get(name.as_str()).map_or(0.0, |report| report.captured_energy);
            let factors = computed.remove(name);
            let factors = shared(world, owner, factors, (*shape, spec.rank, report), weights.device)?;
            modules.push((name.clone(), factors));
            of_all.extend(reports.get(name.as_str()).map(|report| (*report).clone()));
        }
        Ok((Self { spec: spec.clone(), base_hash: base_hash.to_owned(), modules }, of_all))
    }

    /// Gives the basis that some processes have found to all others; returns `None` if none has.
    ///
    /// # Errors
    /// When a process is lost.
    pub fn found_by_any(
        world: &World,
        found: Option<Reported>,
        (spec, base_hash): (&BasisSpec, &str),
        weights: Weights,
    ) -> Result<Option<Reported>> {
        if world.is_alone() {
            return Ok(found);
        }
        let checksum = found.as_ref().map(|(basis, _)| basis.checksum()).transpose()?;
        let all = world.gather(checksum)?;
        if all.iter().all(|one| *one == all[0]) {
            return Ok(found);
        }
        let Some(owner) = all.iter().position(Option::is_some) else { return Ok(None) };
        let energies: Vec<Vec<f64>> = world.gather(
            found
                .iter()
                .flat_map(|(basis, _)| &basis.modules)
                .map(|(_, factors)| factors.captured_energy)
                .collect(),
        )?;
        let own = found.filter(|_| owner == world.rank()).map(|(basis, _)| basis.modules);
        let mut own = own.into_iter().flatten();
        let (mut modules, mut reports) = (Vec::new(), Vec::new());
        for ((name, shape), &captured_energy) in weights.layers.iter().zip(&energies[owner]) {
            let factors = own.next().map(|(_, factors)| factors);
            let factors =
                shared(world, owner, factors, (*shape, spec.rank, captured_energy), weights.device)?;
            modules.push((name.clone(), factors));
            reports.push(ModuleReport { name: name.clone(), shape: *shape, captured_energy, seconds: 0.0 });
        }
        Ok(Some((Self { spec: spec.clone(), base_hash: base_hash.to_owned(), modules }, reports)))
    }

    /// Refuses processes that were given different bases.
    ///
    /// # Errors
    /// Names the process, on each.
    pub fn check_alike(&self, world: &World) -> Result<()> {
        if world.is_alone() {
            return Ok(());
        }
        let all = world.gather(self.checksum()?)?;
        match all.iter().position(|one| *one != all[0]) {
            None => Ok(()),
            Some(rank) => {
                let message = format!("rank {rank} has another basis than rank 0");
                Err(usage(message).hint("give all processes the same folder").into())
            }
        }
    }

    /// Returns BLAKE3 of all values.
    pub(super) fn checksum(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        for (_, Factors { a, b, s, .. }) in &self.modules {
            for tensor in [a, b, s] {
                hash.update(&bytes_of(tensor)?);
            }
        }
        Ok(hash.finalize().to_hex().to_string())
    }
}

/// Returns the process that decomposes each layer: the largest first, each by the one with the least to do.
fn owners(layers: &[Layer], size: usize) -> Vec<usize> {
    // Numbers times the smaller side, by which a decomposition's time grows.
    let cost = |(_, [out, input]): &Layer| out * input * out.min(input);
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|&layer| std::cmp::Reverse(cost(&layers[layer])));
    let (mut owners, mut busy) = (vec![0; layers.len()], vec![0_i64; size.max(1)]);
    for layer in order {
        let owner = (0..busy.len()).min_by_key(|&rank| busy[rank]).unwrap_or(0);
        busy[owner] += cost(&layers[layer]);
        owners[layer] = owner;
    }
    owners
}

/// Returns the factors of one module that `owner` has, on this process's device.
fn shared(
    world: &World,
    owner: usize,
    own: Option<Factors>,
    ([out, input], rank, captured_energy): ([i64; 2], i64, f64),
    device: Device,
) -> Result<Factors> {
    let empty = |shape: &[i64]| Tensor::f_zeros(shape, (Kind::Float, Device::Cpu));
    let [a, b, s] = match own.filter(|_| owner == world.rank()) {
        Some(Factors { a, b, s, .. }) => [a, b, s].map(|tensor| tensor.to_device(Device::Cpu).contiguous()),
        None => [empty(&[rank, input])?, empty(&[out, rank])?, empty(&[rank])?],
    };
    for tensor in [&a, &b, &s] {
        world.broadcast(tensor, owner)?;
    }
    let [a, b, s] = [a.f_to_device(device)?, b.f_to_device(device)?, s.f_to_device(device)?];
    Ok(Factors { a, b, s, captured_energy })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_divided_by_their_cost() {
        let layers: Vec<Layer> =
            [64, 64, 64, 64, 256, 1].iter().map(|side| (side.to_string(), [*side, *side])).collect();
        assert_eq!(owners(&layers, 1), [0; 6]);
        assert_eq!(owners(&layers, 2), [1, 1, 1, 1, 0, 1]);
        assert_eq!(owners(&layers[..4], 2), [0, 1, 0, 1]);
        assert_eq!(owners(&[], 2), [0_usize; 0]);
    }
}
