//! Differences between methods: the questions that each method's settings answer.

use serde_json::Value;
use tch::Tensor;

use super::svd::Factors;
use super::{Adapter, Frozen, Named, Site, Trained};
use crate::fault::{Result, fault};
use crate::spec::reader::Reader;
use crate::spec::{Init, Sigma};

/// Starting point of the cores of LoRA-XS.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    /// Standard deviation of the cores.
    pub init_std: f64,
    /// Words of each run's stream that are drawn before the adapter.
    pub drawn: usize,
}

/// A layer's path and its shape `[out, in]`.
pub type Layer = (String, [i64; 2]);

/// Adapters in the order of their sites, and the frozen tensors that their file must hold.
pub type Built = (Vec<Box<dyn Adapter>>, Named);

/// Tensors of a layer in a file of PEFT's: the ending of the name, and the sides; `None` where the base decides.
pub type Shapes = Vec<(&'static str, Vec<Option<i64>>)>;

/// What autograd keeps of the layers of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Nothing: no gradient reaches them.
    Nothing,
    /// What the gradients of their inputs take.
    Activations,
    /// The inputs of linear layers, too.
    Inputs,
}

/// Properties of a method; the defaults are those of most.
pub trait Rules {
    /// Returns the method's name in recipes.
    fn name(&self) -> &'static str;

    /// Returns the method's keys of a recipe's `[adapter]`, with their values.
    fn keys(&self) -> Vec<(&'static str, toml::Value)> {
        Vec::new()
    }

    /// Refuses settings that are valid one by one but not together.
    fn check(&self, _recipe: &mut Reader) {}

    /// Returns those of the keys that a training from an adapter takes from the adapter's file: they matter at its start
    /// alone, or in the file alone, or are compared by the groups that they make.
    fn taken_from_start(&self) -> &'static [&'static str] {
        &[]
    }

    /// Returns the source of A and B, and the place of their singular values, that a recipe need not give.
    fn basis_defaults(&self) -> (Init, Sigma) {
        (Init::Svd, Sigma::A)
    }

    /// Returns the factor of ΔW.
    fn scale(&self) -> f64 {
        1.0
    }

    /// Returns what autograd keeps of a base's layers.
    fn kept(&self) -> Kept {
        Kept::Activations
    }

    /// Returns the rank of each layer's own frozen pair A, B; `None` for methods without one.
    fn basis_rank(&self) -> Option<i64> {
        None
    }

    /// Counts the trainable parameters of the adapters on `layers`, by the formula of the method.
    fn count(&self, layers: &[Layer]) -> i64;

    /// Counts the numbers in one run's adapter file, head excluded: trainable parameters and frozen factors.
    fn stored(&self, layers: &[Layer]) -> i64 {
        self.count(layers)
    }

    /// Counts the words of PyTorch's stream that a program over PEFT takes to make the adapters on layers of
    /// these shapes: first all of LoRA, then the cores of LoRA-XS, with the factors where these are `random`.
    /// Methods that do not build on LoRA take none.
    fn words_drawn(&self, _shapes: &[[i64; 2]], _random: bool) -> [usize; 2] {
        [0, 0]
    }

    /// Returns the group, numbered from 0, of each of `names`, which are in the order of the model. Layers
    /// of a group share their trainable parameters. Without tying, each has its own.
    fn groups(&self, names: &[&str]) -> Vec<usize> {
        (0..names.len()).collect()
    }

    /// Returns true if layers are grouped in the order of the model instead of that of the file.
    fn ties(&self) -> bool {
        false
    }

    /// Builds the adapters of `sites`, with the frozen tensors that their file must hold.
    ///
    /// # Errors
    /// When a frozen factor is missing or has another shape.
    fn build(&self, sites: &[Site], frozen: &Frozen, start: Start, trained: &mut Trained) -> Result<Built>;

    /// Returns the keys of PEFT's config of an adapter on `layers` layers; `None` if PEFT has no such method.
    fn peft(&self, _layers: usize) -> Option<Value> {
        None
    }

    /// Returns true if adapters of this method are written as PEFT writes them.
    fn is_of_peft(&self) -> bool {
        self.peft(1).is_some()
    }

    /// Returns the stacked tensors of this program's own layout, with the shape of a layer's part.
    fn stacks(&self) -> Vec<(&'static str, Vec<i64>)> {
        Vec::new()
    }

    /// Returns the tensors that PEFT, or the published code, stores for each layer.
    fn shapes(&self) -> Shapes {
        Vec::new()
    }

    /// Returns further tensors of the whole model, after checking the sizes that any are drawn with.
    ///
    /// # Errors
    /// Names the number that no adapter of this method has.
    fn model_shapes(&self) -> Result<Shapes> {
        Ok(Vec::new())
    }

    /// Returns true if `name` is a frozen tensor in a file of PEFT's.
    fn is_frozen(&self, _name: &str) -> bool {
        false
    }
}

/// Builds one adapter for each site, with no frozen tensors for the file.
pub(super) fn each<A: Adapter + 'static>(
    sites: &[Site],
    mut build: impl FnMut(&Site) -> Result<A>,
) -> Result<Built> {
    let adapters = sites.iter().map(|site| Ok(Box::new(build(site)?) as Box<dyn Adapter>));
    Ok((adapters.collect::<Result<_>>()?, Vec::new()))
}

impl Frozen {
    /// Returns true if the basis was drawn, not decomposed.
    pub fn is_random(&self) -> bool {
        self.basis.as_ref().is_some_and(|basis| basis.spec.init == Init::Random)
    }

    /// Returns A and B of a layer, of rank `rank`.
    pub(super) fn factors(&self, site: &Site, rank: i64) -> Result<&Factors> {
        let ([out, inputs], name) = (site.shape, site.name);
        let found = self.basis.iter().flat_map(|basis| &basis.modules).find(|(module, _)| module == name);
        let Some((_, factors)) = found else {
            return Err(fault(format!("there are no frozen factors for the layer `{name}`")).into());
        };
        if factors.a.size() != [rank, inputs] || factors.b.size() != [out, rank] {
            let (a, b) = (factors.a.size(), factors.b.size());
            return Err(fault(format!(
                "the frozen factors of `{name}` are A {a:?} and B {b:?}, expected [{rank}, {inputs}] and [{out}, {rank}]"
            ))
            .into());
        }
        Ok(factors)
    }

    /// Returns the stored tensor `name`, if the adapter's file held it.
    pub(super) fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }
}
