//! Loads a trunk's tensors from a checkpoint by their canonical names, whatever their saved prefix, and
//! collects everything that is missing or mis-shaped into one error.

use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor};

use super::placement::Placement;
use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault};
use crate::nn::{LayerNorm, Linear, RmsNorm};
use crate::torch::tensors::{Doubt, Tensors, zeros};

/// Reads tensors for a trunk; canonical names carry the family's prefix (`bert.encoder.layer.0…`).
#[derive(Debug)]
pub struct Loader<'a> {
    tensors: &'a Tensors,
    prefix: String,
    /// True if the checkpoint's names carry the prefix too.
    prefixed: bool,
    kind: Kind,
    placement: Placement,
    /// Receives every tensor if the whole base is trained.
    trained: Option<&'a mut Trained>,
    /// Canonical names of tensors that are stored under others.
    aliases: BTreeMap<&'static str, &'static str>,
    used: BTreeSet<String>,
    faults: Vec<String>,
    /// Tensors of which a GPU has yet to tell whether they are finite, and their bytes.
    doubts: (Vec<Doubt>, usize),
}

/// Bytes of tensors after which a GPU is waited for: until it has them, they lie in pinned memory as well.
const MOST_UNSETTLED: usize = 1 << 30;

impl<'a> Loader<'a> {
    /// Reads from `tensors` into `kind`, each to its device. With `trained`, every tensor is trained, in fp32.
    pub fn new(
        tensors: &'a Tensors,
        prefix: &str,
        kind: Kind,
        placement: Placement,
        trained: Option<&'a mut Trained>,
    ) -> Self {
        let prefixed =
            tensors.names().any(|name| name.starts_with(&format!("{prefix}."))) || tensors.contains(prefix);
        let (aliases, used) = (BTreeMap::new(), BTreeSet::new());
        Self {
            tensors,
            prefix: format!("{prefix}."),
            prefixed,
            kind,
            placement,
            trained,
            aliases,
            used,
            faults: Vec::new(),
            doubts: (Vec::new(), 0),
        }
    }

    /// Uses `stored` as the tensor of this canonical name.
    pub fn alias(&mut self, canonical: &'static str, stored: &'static str) {
        self.aliases.insert(canonical, stored);
    }

    /// Returns the kind in which layers compute.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the devices that tensors are loaded to.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Returns the checkpoint's name for a canonical name. Old TensorFlow conversions call a norm's weight
    /// `gamma` and its bias `beta`.
    pub fn stored_name(&self, canonical: &str) -> String {
        if let Some(stored) = self.aliases.get(canonical) {
            return (*stored).to_owned();
        }
        let name =
            if self.prefixed { canonical } else { canonical.strip_prefix(&self.prefix).unwrap_or(canonical) };
        if self.tensors.contains(name) {
            return name.to_owned();
        }
        let old =
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        if self.tensors.contains(&old) { old } else { name.to_owned() }
    }

    /// Returns true if the checkpoint holds this canonical name.
    pub fn contains(&self, canonical: &str) -> bool {
        self.tensors.contains(&self.stored_name(canonical))
    }

    /// Loads one tensor of the given shape; faults are collected and reported by [`Loader::finish`].
    ///
    /// # Errors
    /// When the tensor holds numbers that are not finite, or one before it on a GPU does.
    pub fn tensor(&mut self, canonical: &str, shape: &[i64]) -> Result<Tensor> {
        let name = self.stored_name(canonical);
        self.used.insert(name.clone());
        let device = self.placement.of(canonical);
        if self.tensors.imagine(&name, shape) {
            return Ok(zeros(shape, self.kind, device));
        }
        match self.tensors.shape(&name) {
            None => {
                self.faults.push(format!("missing tensor `{name}` {shape:?}"));
                return Ok(Tensor::new());
            }
            Some(found) if found != shape => {
                self.faults.push(format!("tensor `{name}` has shape {found:?}, expected {shape:?}"));
                return Ok(Tensor::new());
            }
            Some(_) => {}
        }
        let kind = if self.trained.is_some() { Kind::Float } else { self.kind };
        let (doubts, bytes) = &mut self.doubts;
        let tensor = self.tensors.tensor_ahead(&name, Some(kind), device, doubts)?;
        let size = |kind: Kind| kind.elt_size_in_bytes();
        *bytes += tensor.numel() * self.tensors.kind(&name).map_or(0, size).max(size(kind));
        if !device.is_cuda() || *bytes > MOST_UNSETTLED {
            *bytes = 0;
            self.tensors.settle(doubts)?;
        }
        Ok(match &mut self.trained {
            None => tensor,
            Some(trained) => trained.add(canonical, Group::Base, &tensor),
        })
    }

    /// Loads a linear layer with a bias.
    ///
    /// # Errors
    /// As [`Loader::tensor`].
    pub fn linear(&mut self, at: &str, out: i64, inputs: i64) -> Result<Linear> {
        self.linear_with(at, out, inputs, true)
    }

    /// Loads a linear layer, with or without a bias.
    ///
    /// # Errors
    /// As [`Loader::tensor`].
    pub fn linear_with(&mut self, at: &str, out: i64, inputs: i64, biased: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{at}.weight"), &[out, inputs])?;
        let bias = if biased { Some(self.tensor(&format!("{at}.bias"), &[out])?) } else { None };
        Ok(Linear::new(at.to_owned(), weight, bias))
    }

    /// Loads a root-mean-square norm; `offset` is added to its stored weight.
    ///
    /// # Errors
    /// As [`Loader::tensor`].
    pub fn rms_norm(&mut self, at: &str, width: i64, offset: f64, eps: f64) -> Result<RmsNorm> {
        Ok(RmsNorm::new(self.tensor(&format!("{at}.weight"), &[width])?, offset, eps))
    }

    /// Loads a layer norm.
    pub fn norm(&mut self, at: &str, width: i64, eps: f64) -> Result<LayerNorm> {
        let weight = self.tensor(&format!("{at}.weight"), &[width])?;
        let bias = self.tensor(&format!("{at}.bias"), &[width])?;
        Ok(LayerNorm::new(weight, bias, eps))
    }

    /// Reports all faults at once, and unexpected tensors (except those that `known` accepts).
    ///
    /// # Errors
    /// When a tensor was missing, mis-shaped or not finite.
    pub fn finish(mut self, known: impl Fn(&str) -> bool) -> Result<()> {
        self.tensors.settle(&mut self.doubts.0)?;
        let unexpected: Vec<&str> =
            self.tensors.names().filter(|name| !self.used.contains(*name) && !known(name)).collect();
        if !self.faults.is_empty() {
            let shown =
                self.faults.iter().take(SHOWN).map(|fault| format!("\n  {fault}")).collect::<String>();
            let mut message = format!("the checkpoint does not fit its config.json:{shown}");
            if let more @ 1.. = self.faults.len().saturating_sub(SHOWN) {
                message += &format!("\n  and {more} more");
            }
            if !unexpected.is_empty() {
                message += &format!("\nunexpected tensors: {}", listed(&unexpected));
            }
            let other = || {
                "config.json and the weights belong to different models, or a shard is missing from the index"
                    .to_owned()
            };
            return Err(fault(message).hint(self.tensors.quantised().unwrap_or_else(other)).into());
        }
        if !unexpected.is_empty() {
            tracing::warn!("unused tensors in the checkpoint: {}", listed(&unexpected));
        }
        Ok(())
    }
}

/// Maximum number of a checkpoint's faults shown.
const SHOWN: usize = 12;

/// Lists the first eight names.
fn listed(names: &[&str]) -> String {
    let first: Vec<String> = names.iter().take(8).map(|name| format!("`{name}`")).collect();
    match names.len().saturating_sub(8) {
        0 => first.join(", "),
        more => format!("{} and {more} more", first.join(", ")),
    }
}
