//! The classification head: trained, in fp32, one per run.

use tch::{Device, Kind, Tensor};

use super::config::{EncoderConfig, HeadKind};
use crate::adapters::{Group, Trained};
use crate::fault::{Result, fault};
use crate::models::checkpoint::Base;
use crate::nn::Pass;
use crate::torch::cast;
use crate::torch::stream::words_of_normal;
use crate::torch::tensors::Tensors;

/// Turns sequence vectors into logits.
#[derive(Debug)]
pub struct Head {
    layers: Vec<Dense>,
    dropout: f64,
    /// True if dropout also precedes the first layer, which it does unless that layer is a pooler.
    drop_first: bool,
    /// Number of words of a run's stream consumed by drawing its layers.
    pub drawn: usize,
}

/// `y = x Wᵀ + b` with one W and b per run.
#[derive(Debug)]
struct Dense {
    /// `[k, out, in]`.
    weight: Tensor,
    /// `[k, out]`.
    bias: Tensor,
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

/// A layer of a head: path in the checkpoint, outputs, inputs.
type Layer = (String, i64, i64);

/// Returns the head's layers after the pooler.
pub fn layer_shapes(config: &EncoderConfig, classes: i64) -> Vec<Layer> {
    let d = config.width;
    match config.head {
        HeadKind::Pooled => vec![("classifier".into(), classes, d)],
        HeadKind::TwoLayer => {
            vec![("classifier.dense".into(), d, d), ("classifier.out_proj".into(), classes, d)]
        }
    }
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

/// Prefix of all tensors of a head except its pooler.
const HEAD: &str = "classifier.";

/// Prefixes of the heads of other tasks.
const OTHER_HEADS: [&str; 6] =
    ["cls.", "lm_head.", "qa_outputs.", "seq_relationship.", "score.", "classification_head."];

/// Returns how much of a head `checkpoint` holds.
fn stored(config: &EncoderConfig, checkpoint: &Tensors) -> Stored {
    let other = || checkpoint.names().filter(|name| name.starts_with(HEAD));
    if other().next().is_none() {
        return Stored::Nothing;
    }
    let mut layers = layer_shapes(config, 0);
    let last = layers.last().map(|(name, ..)| name.clone()).unwrap_or_default();
    let rows = |part: &str| checkpoint.shape(&format!("{last}.{part}"))?.first().copied();
    let outputs = rows("weight").or(rows("bias"));
    if config.head == HeadKind::Pooled {
        layers.insert(0, (pooler(config, checkpoint), config.width, config.width));
    }
    let mut known = Vec::new();
    let mut faults = Vec::new();
    for (name, out, inputs) in &layers {
        let out = if *name == last { outputs } else { Some(*out) };
        for (part, sides) in [("weight", vec![out, Some(*inputs)]), ("bias", vec![out])] {
            let name = format!("{name}.{part}");
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

/// Returns the pooler's path in this checkpoint: with the family's prefix if any tensor has it.
fn pooler(config: &EncoderConfig, checkpoint: &Tensors) -> String {
    let prefix = format!("{}.", config.prefix);
    let prefixed = checkpoint.names().any(|name| name.starts_with(&prefix));
    if prefixed { format!("{prefix}pooler.dense") } else { "pooler.dense".to_owned() }
}

/// Returns the number of trained parameters of a head of `classes` outputs, plus a pooler if not stored.
pub fn count_of(config: &EncoderConfig, classes: i64, checkpoint: &Tensors) -> usize {
    let mut layers = layer_shapes(config, classes);
    let path = pooler(config, checkpoint);
    if config.head == HeadKind::Pooled && !checkpoint.contains(&format!("{path}.weight")) {
        layers.push((path, config.width, config.width));
    }
    usize::try_from(layers.iter().map(|(_, out, inputs)| out * (inputs + 1)).sum::<i64>()).unwrap_or(0)
}

impl Base {
    /// Returns the outputs of the checkpoint's complete classification head; the user calls it `name`.
    ///
    /// # Errors
    /// Names what is missing of the head, or the number of classes in `config.json` that is another.
    pub fn head_outputs(&self, name: &str) -> Result<i64> {
        let config = self.config.encoder()?;
        let message = match stored(config, &self.tensors) {
            Stored::Whole(outputs) => match config.outputs.filter(|said| *said != outputs) {
                None => return Ok(outputs),
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
        let holds = |prefix: &&str| self.tensors.names().any(|name| name.starts_with(prefix));
        let others: Vec<&str> = OTHER_HEADS.into_iter().filter(|prefix| holds(prefix)).collect();
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
        config: &EncoderConfig,
        classes: i64,
        draw_pooler: bool,
        source: HeadSource,
        trained: &mut Trained,
    ) -> Result<Self> {
        let mut shapes = layer_shapes(config, classes);
        let stored = shapes.iter().all(|layer| source.holds(layer));
        if draw_pooler {
            shapes.insert(0, (format!("{}.pooler.dense", config.prefix), config.width, config.width));
        }
        let drawn_layers = if stored { usize::from(draw_pooler) } else { shapes.len() };
        say_drawn(config, classes, source.checkpoint, &shapes[..drawn_layers]);
        let numbers = |(_, out, inputs): &Layer| usize::try_from(out * inputs).unwrap_or(0);
        let drawn = shapes[..drawn_layers].iter().map(numbers).map(words_of_normal).sum();
        let mut weights = source.draw(&shapes[..drawn_layers], config.initializer_range).into_iter();
        let mut layers = Vec::with_capacity(shapes.len());
        for (name, out, _) in &shapes {
            let [weight, bias] = match weights.next() {
                Some(weight) => [weight, Tensor::zeros([source.runs(), *out], (Kind::Float, source.device))],
                None => [source.read(&format!("{name}.weight"))?, source.read(&format!("{name}.bias"))?],
            };
            let mut add = |part, start| trained.add(format!("{name}.{part}"), Group::Head, start);
            layers.push(Dense { weight: add("weight", &weight), bias: add("bias", &bias) });
        }
        Ok(Self { layers, dropout: config.head_dropout, drop_first: !draw_pooler, drawn })
    }

    /// Applies the layers: dropout before each, tanh between two.
    ///
    /// # Shapes
    /// `[s, d]` of any kind to logits `[s, c]` in fp32.
    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Tensor {
        let mut x = cast(x, Kind::Float);
        for (i, layer) in self.layers.iter().enumerate() {
            if i > 0 {
                x = x.tanh();
            }
            let dropout = if i > 0 || self.drop_first { self.dropout } else { 0.0 };
            x = pass.route().affine(&pass.dropout(&x, dropout), &layer.weight, &layer.bias);
        }
        x
    }
}

/// Logs the layers that are drawn: a warning if the checkpoint holds a head, expected if it has none.
fn say_drawn(config: &EncoderConfig, classes: i64, checkpoint: &Tensors, drawn: &[Layer]) {
    let names: Vec<String> = drawn.iter().map(|(name, ..)| format!("`{name}`")).collect();
    let names = names.join(", ");
    match stored(config, checkpoint) {
        _ if drawn.is_empty() => {}
        Stored::Nothing => tracing::info!("drawn anew: {names} (the checkpoint has no classification head)"),
        Stored::Whole(outputs) => {
            tracing::warn!(
                "drawn anew: {names} (the checkpoint's head has {outputs} outputs, not {classes})"
            );
        }
        Stored::Part(faults) => {
            tracing::warn!(
                "drawn anew: {names} (of a head, the checkpoint has a part: {})",
                faults.join(", ")
            );
        }
    }
}

impl HeadSource<'_> {
    fn holds(&self, (name, out, inputs): &Layer) -> bool {
        self.checkpoint.shape(&format!("{name}.weight")) == Some(&[*out, *inputs])
            && self.checkpoint.shape(&format!("{name}.bias")) == Some(&[*out])
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
    fn draw(&self, layers: &[Layer], std: f64) -> Vec<Tensor> {
        let run = |&seed: &u64| -> Vec<Tensor> {
            tch::manual_seed(seed.cast_signed());
            // On the CPU, so that every device starts with the same numbers.
            let empty = |out, inputs| Tensor::empty([out, inputs], (Kind::Float, Device::Cpu));
            layers.iter().map(|&(_, out, inputs)| empty(out, inputs).normal_(0.0, std)).collect()
        };
        let runs: Vec<Vec<Tensor>> = self.seeds.iter().map(run).collect();
        let stacked = |i| Tensor::stack(&runs.iter().map(|run| &run[i]).collect::<Vec<_>>(), 0);
        (0..layers.len()).map(|i| stacked(i).to_device(self.device)).collect()
    }
}
