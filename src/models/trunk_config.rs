//! The shape and switches that every trunk has, and checks of the fields of `config.json` that they are read from.

use serde_json::{Map, Value};
use tch::Tensor;

use crate::fault::{Result, fault};
use crate::nn::layout::Positions;

/// The part of a config that does not depend on the architecture.
#[derive(Debug, Clone)]
pub struct TrunkConfig {
    /// Prefix of the trunk's tensors in a saved model, such as `bert`.
    pub prefix: &'static str,
    /// Beginnings of their names after the prefix.
    pub parts: [&'static str; 3],
    /// Architecture that Transformers loads a merged checkpoint as.
    pub architecture: String,
    /// PEFT's name of the model's task.
    pub task_type: &'static str,
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
    /// The whole file, for writing it back.
    pub raw: Map<String, Value>,
}

impl TrunkConfig {
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
    let text = value.to_string();
    match text.char_indices().nth(100) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
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
