//! The shape and switches that every trunk has, and checks of the fields of `config.json` that they are read from.

use serde::Deserialize;
use serde_json::{Map, Value};
use tch::Tensor;

use crate::fault::{Result, beginning, fault};
use crate::nn::layout::Positions;
use crate::spec::Problem;

/// The part of a config that does not depend on the architecture.
#[derive(Debug, Clone)]
pub struct TrunkConfig {
    /// Prefix of the trunk's tensors in a saved model, such as `bert`.
    pub prefix: &'static str,
    /// Beginnings of their names after the prefix.
    pub parts: [&'static str; 3],
    /// Beginning of the names of the family's classes in Transformers, such as `Bert`.
    pub class: &'static str,
    /// d.
    pub width: i64,
    /// Number of layers.
    pub layers: usize,
    /// h.
    pub heads: i64,
    /// Width between the feed-forward layers.
    pub intermediate: i64,
    /// v.
    pub vocabulary: i64,
    /// Positions that the model was made for, unused ones included.
    pub positions: i64,
    /// Numbering of positions.
    pub position_rule: Positions,
    /// Activation of the feed-forward layers.
    pub activation: Activation,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// Dropout on the outputs of attention and feed-forward layers, and on an encoder's embeddings.
    pub dropout: f64,
    /// Dropout on attention probabilities.
    pub attention_dropout: f64,
    /// Dropout before a head.
    pub head_dropout: f64,
    /// Standard deviation with which Transformers draws new weights.
    pub initializer_range: f64,
    /// Names of the classes, in order, if the file has them.
    pub labels: Vec<String>,
    /// Number of the head's outputs, if the file gives it.
    pub outputs: Option<i64>,
    /// The whole file, for writing it back.
    pub raw: Map<String, Value>,
}

impl TrunkConfig {
    /// Returns what the checkpoint's head answers, by its architecture or `problem_type`, if the file says either.
    pub fn stated_problem(&self) -> Option<Problem> {
        let first = self.raw.get("architectures").and_then(|names| names.get(0)).and_then(Value::as_str);
        if first.is_some_and(|name| name.ends_with(Problem::class(Some(Problem::Tokens)))) {
            return Some(Problem::Tokens);
        }
        self.raw.get("problem_type").and_then(|stated| Problem::deserialize(stated).ok())
    }

    /// Returns the longest sequence that the model can number or was made for.
    pub fn longest_sequence(&self) -> i64 {
        match self.position_rule {
            Positions::FromZero => self.positions,
            Positions::AfterPadding(pad) => self.positions - i64::from(pad) - 1,
        }
    }
}

/// An activation between the two feed-forward layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Exact GELU.
    Gelu,
    /// Tanh approximation of GELU.
    GeluTanh,
    /// max(x, 0).
    Relu,
    /// x · sigmoid(x).
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// Applies the activation to every element.
    pub fn apply(self, x: &Tensor) -> Tensor {
        match self {
            Self::Gelu => x.gelu("none"),
            Self::GeluTanh => x.gelu("tanh"),
            Self::Relu => x.relu(),
            Self::Silu => x.silu(),
            Self::Tanh => x.tanh(),
        }
    }
}

/// Returns the activation that Transformers calls `name`.
pub fn activation(name: &str) -> Result<Activation> {
    Ok(match name {
        "gelu" | "gelu_python" => Activation::Gelu,
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        "silu" | "swish" => Activation::Silu,
        "tanh" => Activation::Tanh,
        other => {
            return Err(fault(format!("`hidden_act` `{other}` is not supported"))
                .hint("supported are gelu, gelu_new, gelu_pytorch_tanh, relu, silu and tanh")
                .into());
        }
    })
}

/// More layers than any model has: a larger number is a mistake, better reported once than layer by layer.
const MOST_LAYERS: i64 = 1000;
/// A longer side than any weight has; products of two sides and the number of layers do not overflow.
pub const MOST_SIDE: i64 = 1 << 24;

/// Rejects sizes that no model has. A decoder's positions have no tensor, so any number of them is fine.
pub fn check_positive(sizes: &[(&str, i64)]) -> Result<()> {
    for &(name, found) in sizes {
        let most = match name {
            "num_hidden_layers" => MOST_LAYERS,
            "max_position_embeddings" | "sliding_window" => i64::MAX,
            _ => MOST_SIDE,
        };
        if found <= 0 {
            return Err(fault(format!("`{name}` must be positive, found {found}")).into());
        }
        if found > most {
            return Err(fault(format!("`{name}` must be at most {most}, found {found}")).into());
        }
    }
    Ok(())
}

/// Returns the beginning of a config value, for an error message.
pub fn cut(value: &Value) -> String {
    beginning(&value.to_string(), 100).into_owned()
}

/// Returns the probability that a field gives, 0 if it is absent.
///
/// # Errors
/// When it is not in [0, 1).
pub fn probability(name: &str, value: Option<f64>) -> Result<f64> {
    let p = value.unwrap_or(0.0);
    if (0.0..1.0).contains(&p) {
        return Ok(p);
    }
    Err(fault(format!("`{name}` must be at least 0 and below 1, found {p}")).into())
}

/// Returns class names in the order of their ids. Numbers and booleans are names too, as in Transformers.
pub fn labels(id2label: Option<&Value>) -> Result<Vec<String>> {
    let named = match id2label {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(named)) => named,
        Some(other) => {
            return Err(fault(format!("`id2label` must be an object, found {}", cut(other))).into());
        }
    };
    let mut numbered = Vec::with_capacity(named.len());
    for (id, name) in named {
        let Ok(number) = id.trim().parse::<i64>() else {
            return Err(fault(format!("`id2label` has the key `{id}`, expected numbers from 0")).into());
        };
        let name = match name {
            Value::String(name) => name.clone(),
            Value::Number(_) | Value::Bool(_) => name.to_string(),
            other => {
                return Err(fault(format!("`id2label.{id}` must be a name, found {}", cut(other))).into());
            }
        };
        numbered.push((number, name));
    }
    numbered.sort();
    Ok(numbered.into_iter().map(|(_, name)| name).collect())
}
