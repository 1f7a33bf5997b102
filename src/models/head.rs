//! The head on a trunk: trained, in fp32, one per run.

use tch::{Device, Kind, Tensor};

use super::checkpoint::Base;
use super::config::Config;
use super::head_layer::{HeadLayer, HeadShape};
use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault};
use crate::nn::Pass;
use crate::spec::Problem;
use crate::torch::cast;
use crate::torch::fused::wide;
use crate::torch::stream::words_of_normal;
use crate::torch::tensors::Tensors;

/// Turns vectors into logits.
#[derive(Debug)]
pub struct Head {
    layers: Vec<Dense>,
    dropout: f64,
    /// True if dropout also precedes the first layer, which it does unless that layer is a pooler.
    drop_first: bool,
    /// Number of words of a run's stream consumed by drawing its layers.
    pub drawn: usize,
    /// Paths of the layers that were drawn.
    names: Vec<String>,
}

/// `y = x Wᵀ + b` with one W and b per run; b may be absent.
#[derive(Debug)]
struct Dense {
    /// `[k, out, in]`.
    weight: Tensor,
    /// `[k, out]`.
    bias: Option<Tensor>,
}

/// Source of a head's tensors.
#[derive(Debug, Clone, Copy)]
pub struct HeadSource<'a> {
    /// A checkpoint that may hold a head, used if its shape fits.
    pub checkpoint: &'a Tensors,
    /// One seed per run, for tensors that are drawn.
    pub seeds: &'a [u64],
    /// Device that the head computes on.
    pub device: Device,
}

/// The part of its family's head that a checkpoint holds, a pooler included.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stored {
    /// No tensor of the head's own.
    Nothing,
    /// All of it, with this number of outputs.
    Whole(i64),
    /// A part of it, with the faults: missing, mis-shaped and unexpected tensors.
    Part(Vec<String>),
}

/// Prefixes of the heads of other tasks, and of other families.
const OTHER_HEADS: [&str; 7] =
    ["cls.", "lm_head.", "qa_outputs.", "seq_relationship.", "score.", "classifier.", "classification_head."];

/// Returns how much of a head for `problem` `checkpoint` holds.
fn stored(config: &Config, problem: Problem, checkpoint: &Tensors) -> Stored {
    let mut layers = config.head_layers(HeadShape { problem, outputs: 0 });
    let last = layers.last().map(|layer| layer.name.clone()).unwrap_or_default();
    // Prefix of all tensors of the head except its pooler.
    let own = format!("{}.", last.split('.').next().unwrap_or_default());
    let other = || checkpoint.names().filter(|name| name.starts_with(&own));
    if other().next().is_none() {
        return Stored::Nothing;
    }
    let rows = |part: &str| checkpoint.shape(&format!("{last}.{part}"))?.first().copied();
    let outputs = rows("weight").or(rows("bias"));
    if config.pools(problem) {
        layers.insert(0, pooler(config, checkpoint));
    }
    let mut known = Vec::new();
    let mut faults = Vec::new();
    for layer in &layers {
        for (name, sides) in layer.tensors() {
            let mut sides: Vec<Option<i64>> = sides.into_iter().map(Some).collect();
            if layer.name == last {
                sides[0] = outputs;
            }
            faults.extend(fault_of(&name, &sides, checkpoint.shape(&name)));
            known.push(name);
        }
    }
    match outputs {
        Some(outputs) if faults.is_empty() => Stored::Whole(outputs),
        _ => {
            let unknown = other().filter(|name| !known.iter().any(|known| known == name));
            faults.extend(unknown.take(4).map(|name| format!("unexpected tensor `{name}`")));
            Stored::Part(faults)
        }
    }
}

/// Describes the fault of a tensor of this shape, if any; an unknown side is shown as "classes".
fn fault_of(name: &str, sides: &[Option<i64>], found: Option<&[i64]>) -> Option<String> {
    let text = |side: &Option<i64>| side.map_or("classes".to_owned(), |side| side.to_string());
    let expected = sides.iter().map(text).collect::<Vec<_>>().join(", ");
    match found {
        None => Some(format!("missing tensor `{name}` [{expected}]")),
        Some(found) if found.iter().map(|&side| Some(side)).eq(sides.iter().copied()) => None,
        Some(found) => Some(format!("tensor `{name}` has shape {found:?}, expected [{expected}]")),
    }
}

/// Returns the pooler as this checkpoint names it: with the family's prefix if any tensor has it.
fn pooler(config: &Config, checkpoint: &Tensors) -> HeadLayer {
    let prefix = format!("{}.", config.prefix);
    let prefixed = checkpoint.names().any(|name| name.starts_with(&prefix));
    let name = if prefixed { format!("{prefix}pooler.dense") } else { "pooler.dense".to_owned() };
    HeadLayer::new(name, [config.width; 2], true)
}

/// Returns the number of trained parameters of a head, plus a pooler if not stored.
pub fn count_of(config: &Config, head: HeadShape, checkpoint: &Tensors) -> usize {
    let mut layers = config.head_layers(head);
    let pooler = pooler(config, checkpoint);
    if config.pools(head.problem) && !checkpoint.contains(&format!("{}.weight", pooler.name)) {
        layers.push(pooler);
    }
    usize::try_from(layers.iter().map(HeadLayer::numbers).sum::<i64>()).unwrap_or(0)
}

impl Base {
    /// Returns true if the checkpoint holds a head: a decoder without one is a language model.
    pub fn has_head(&self) -> bool {
        !self.config.is_decoder() || self.tensors.names().any(|name| name.starts_with("score."))
    }

    /// Returns the checkpoint's complete head, whose kind its `config.json` says; the user calls it `name`.
    ///
    /// # Errors
    /// Names what is missing of the head, or the number of classes in `config.json` that is another.
    pub fn head(&self, name: &str) -> Result<HeadShape> {
        let config = &self.config;
        let problem = config.stated_problem().unwrap_or(Problem::SingleLabel);
        let message = match stored(config, problem, &self.tensors) {
            Stored::Whole(outputs) => match config.outputs.filter(|said| *said != outputs) {
                None if outputs == 1 && config.stated_problem().is_none() => {
                    return Ok(HeadShape { problem: Problem::Regression, outputs });
                }
                None => return Ok(HeadShape { problem, outputs }),
                Some(said) => format!(
                    "the head of `{name}` has {outputs} outputs, but by `id2label` and `num_labels` in its \
                     config.json {said}"
                ),
            },
            Stored::Nothing => format!("`{name}` has no classification head"),
            Stored::Part(faults) => {
                format!("`{name}` has only a part of a classification head:\n  {}", faults.join("\n  "))
            }
        };
        let layers = config.head_layers(HeadShape { problem, outputs: 0 });
        let own = |prefix: &str| {
            layers.iter().any(|layer| layer.name.starts_with(prefix) || *prefix == format!("{}.", layer.name))
        };
        let holds = |prefix: &&str| !own(prefix) && self.tensors.names().any(|name| name.starts_with(prefix));
        let others: Vec<&str> = OTHER_HEADS.into_iter().filter(holds).collect();
        let others =
            if others.is_empty() { String::new() } else { format!("; it has `{}`", others.join("`, `")) };
        Err(fault(format!("{message}{others}"))
            .hint("give a run (`--run`) or an adapter (`--adapter`) that was trained on it")
            .into())
    }
}

impl Head {
    /// Loads the head if the checkpoint holds one of the right shape, else draws it as Transformers does:
    /// weights from N(0, initializer_range²), biases zero. A pooler that the checkpoint lacks (`draw_pooler`)
    /// is drawn too and becomes the head's first layer. Adds all of them to `trained`.
    ///
    /// The numbers drawn are those of `from_pretrained` after `torch.manual_seed(seed)`.
    ///
    /// # Errors
    /// When a tensor of the checkpoint cannot be read.
    pub fn load(
        config: &Config,
        head: HeadShape,
        draw_pooler: bool,
        source: HeadSource,
        trained: &mut Trained,
    ) -> Result<Self> {
        let mut layers = config.head_layers(head);
        let stored = layers.iter().all(|layer| source.holds(layer));
        if draw_pooler {
            let name = format!("{}.pooler.dense", config.prefix);
            layers.insert(0, HeadLayer::new(name, [config.width; 2], true));
        }
        let (drawn_layers, _) = layers.split_at(if stored { usize::from(draw_pooler) } else { layers.len() });
        let numbers = |layer: &HeadLayer| usize::try_from(layer.shape.iter().product::<i64>()).unwrap_or(0);
        let drawn = drawn_layers.iter().map(numbers).map(words_of_normal).sum();
        let mut weights = source.draw(drawn_layers, config.initializer_range).into_iter();
        let mut made = Vec::with_capacity(layers.len());
        for layer in &layers {
            let drawn = weights.next();
            let mut start = drawn.map(|weight| {
                [weight, Tensor::zeros([source.runs(), layer.shape[0]], (Kind::Float, source.device))]
                    .into_iter()
            });
            let mut tensors = Vec::new();
            for (name, _) in layer.tensors() {
                let value = start.as_mut().and_then(Iterator::next).map_or_else(|| source.read(&name), Ok)?;
                tensors.push(trained.add(name, Group::Head, &value));
            }
            let mut tensors = tensors.into_iter();
            if let Some(weight) = tensors.next() {
                made.push(Dense { weight, bias: tensors.next() });
            }
        }
        let dropout = config.dropout_before_head(head.problem);
        let names = drawn_layers.iter().map(|layer| layer.name.clone()).collect();
        Ok(Self { layers: made, dropout, drop_first: !draw_pooler, drawn, names })
    }

    /// Logs the layers that were drawn: a warning if the checkpoint holds a head, expected if it has none.
    pub fn say_drawn(&self, config: &Config, head: HeadShape, checkpoint: &Tensors) {
        let names: Vec<String> = self.names.iter().map(|name| format!("`{name}`")).collect();
        let (names, classes) = (names.join(", "), head.outputs);
        match stored(config, head.problem, checkpoint) {
            _ if names.is_empty() => {}
            Stored::Nothing => {
                tracing::info!("initialised at random: {names} (the checkpoint has no classification head)")
            }
            Stored::Whole(outputs) => {
                tracing::warn!(
                    "initialised at random: {names} (the checkpoint's head has {outputs} outputs, not {classes})"
                );
            }
            Stored::Part(faults) => {
                tracing::warn!(
                    "initialised at random: {names} (the checkpoint has only part of a head: {})",
                    faults.join(", ")
                );
            }
        }
    }

    /// Applies the layers: dropout before each, tanh between two.
    ///
    /// # Shapes
    /// `[n, d]` of any kind to logits `[n, c]` in fp32.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let mut x = cast(x, Kind::Float);
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = x.tanh();
            }
            let dropout = if i > 0 || self.drop_first { self.dropout } else { 0.0 };
            x = pass.dropout(&x, dropout);
            x = match &layer.bias {
                Some(bias) => pass.route().affine(&x, &wide(&layer.weight), &wide(bias)),
                None => pass.route().multiply(&x, &wide(&layer.weight)),
            };
        }
        x
    }
}

impl HeadSource<'_> {
    fn holds(&self, layer: &HeadLayer) -> bool {
        layer.tensors().all(|(name, shape)| self.checkpoint.shape(&name) == Some(&shape))
    }

    fn runs(&self) -> i64 {
        self.seeds.len() as i64
    }

    /// Reads a tensor of the checkpoint, repeated for each run: `[k, ..]`.
    fn read(&self, name: &str) -> Result<Tensor> {
        let tensor = self.checkpoint.tensor(name, Some(Kind::Float), self.device)?;
        Ok(Tensor::stack(&vec![&tensor; self.seeds.len()], 0))
    }

    /// Draws the weights `[k, out, in]` of these layers, one after the other, from each run's seed.
    fn draw(&self, layers: &[HeadLayer], std: f64) -> Vec<Tensor> {
        let run = |&seed: &u64| -> Vec<Tensor> {
            tch::manual_seed(seed.cast_signed());
            // On the CPU, so that every device starts with the same numbers.
            let empty = |shape: [i64; 2]| Tensor::empty(shape, (Kind::Float, Device::Cpu));
            layers.iter().map(|layer| empty(layer.shape).normal_(0.0, std)).collect()
        };
        let runs: Vec<Vec<Tensor>> = self.seeds.iter().map(run).collect();
        let stacked = |i| Tensor::stack(&runs.iter().map(|run| &run[i]).collect::<Vec<_>>(), 0);
        (0..layers.len()).map(|i| stacked(i).to_device(self.device)).collect()
    }
}
