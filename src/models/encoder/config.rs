//! `config.json` of an encoder, read into the values that layers need. Nothing past here knows family names.

use std::ops::Deref;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fault::{Result, fault};
use crate::files;
use crate::models::trunk_config::{TrunkConfig, activation, check_positive, labels, probability};
use crate::nn::layout::Positions;

/// Layout of the head that turns the sequence vector into logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadKind {
    /// BERT: a pooler (dense, tanh) in the trunk, then dropout and one layer.
    Pooled,
    /// RoBERTa: dropout, dense, tanh, dropout, one layer, all in the head.
    TwoLayer,
}

/// The shape and switches of an encoder.
#[derive(Debug, Clone)]
pub struct EncoderConfig {
    /// What decoders have, too.
    pub trunk: TrunkConfig,
    /// Rows of the token-type embedding.
    pub token_types: i64,
    /// Id of the padding token, if any; its embedding gets no gradient.
    pub padding: Option<u32>,
    /// The head.
    pub head: HeadKind,
}

/// The `model_type`s of encoders.
pub const FAMILIES: [&str; 4] = ["bert", "roberta", "xlm-roberta", "camembert"];

/// The layers that the published LoRA-XS code adapts.
pub const TARGETS: [&str; 4] = ["query", "value", "attention.output.dense", "output.dense"];

/// Fields of `config.json`; absent ones get the default of Transformers' configuration class.
#[derive(Deserialize)]
struct Raw {
    model_type: String,
    hidden_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    intermediate_size: i64,
    vocab_size: i64,
    max_position_embeddings: i64,
    #[serde(default = "two")]
    type_vocab_size: i64,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "tiny")]
    layer_norm_eps: f64,
    #[serde(default = "tenth")]
    hidden_dropout_prob: f64,
    #[serde(default = "tenth")]
    attention_probs_dropout_prob: f64,
    classifier_dropout: Option<f64>,
    #[serde(default = "fiftieth")]
    initializer_range: f64,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
    num_labels: Option<i64>,
}

fn two() -> i64 {
    2
}
fn gelu() -> String {
    "gelu".into()
}
fn tiny() -> f64 {
    1e-12
}
fn tenth() -> f64 {
    0.1
}
fn fiftieth() -> f64 {
    0.02
}

impl EncoderConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, of the wrong type, or of a value that this program does not compute with.
    pub fn from_json(text: &str) -> Result<Self> {
        let json: Map<String, Value> = files::parse_json(text)?;
        let raw: Raw = files::parse_json(text)?;
        let (prefix, class, head, padded) = match raw.model_type.as_str() {
            "bert" => ("bert", "Bert", HeadKind::Pooled, false),
            "roberta" => ("roberta", "Roberta", HeadKind::TwoLayer, true),
            "xlm-roberta" => ("roberta", "XLMRoberta", HeadKind::TwoLayer, true),
            "camembert" => ("roberta", "Camembert", HeadKind::TwoLayer, true),
            other => {
                return Err(fault(format!("the model type `{other}` is not supported")).into());
            }
        };
        refuse_unsupported(&raw)?;
        let per_layer = json.get("per_layer_config").and_then(Value::as_object);
        if per_layer.is_some_and(|layers| !layers.is_empty()) {
            return Err(fault("`per_layer_config` is not supported: all layers are alike").into());
        }
        if padded && json.get("pad_token_id").is_some_and(Value::is_null) {
            return Err(fault("`pad_token_id` is null, but positions are counted from it").into());
        }
        let pad = raw.pad_token_id.unwrap_or(u32::from(padded));
        let first = if padded { i64::from(pad) + 1 } else { 0 };
        if raw.max_position_embeddings <= first {
            let (found, pad) = (raw.max_position_embeddings, first - 1);
            return Err(fault(format!(
                "`max_position_embeddings` is {found}, expected more than `pad_token_id` = {pad}, \
                 after which positions are counted"
            ))
            .into());
        }
        let labels = labels(json.get("id2label"))?;
        let trunk = TrunkConfig {
            prefix,
            parts: ["embeddings.", "encoder.", "pooler."],
            class,
            width: raw.hidden_size,
            layers: usize::try_from(raw.num_hidden_layers).unwrap_or_default(),
            heads: raw.num_attention_heads,
            intermediate: raw.intermediate_size,
            vocabulary: raw.vocab_size,
            positions: raw.max_position_embeddings,
            position_rule: if padded { Positions::AfterPadding(pad) } else { Positions::FromZero },
            activation: activation(&raw.hidden_act)?,
            norm_eps: raw.layer_norm_eps,
            dropout: raw.hidden_dropout_prob,
            attention_dropout: raw.attention_probs_dropout_prob,
            head_dropout: raw.classifier_dropout.unwrap_or(raw.hidden_dropout_prob),
            initializer_range: raw.initializer_range,
            outputs: raw.num_labels.or(Some(labels.len() as i64).filter(|&count| count > 0)),
            labels,
            raw: json,
        };
        Ok(Self {
            token_types: raw.type_vocab_size,
            padding: Some(pad).filter(|_| !trunk.raw.get("pad_token_id").is_some_and(Value::is_null)),
            head,
            trunk,
        })
    }

    /// Returns the error of a command that needs a decoder.
    pub(in crate::models) fn not_a_decoder(&self) -> anyhow::Error {
        fault(format!("the base is an encoder (`{}`), expected a decoder", self.prefix)).into()
    }

    /// Returns the trunk's linear layers, path and shape `[out, in]`, in the order of the layers.
    pub fn linear_shapes(&self) -> Vec<(String, [i64; 2])> {
        let (d, wide) = (self.width, self.intermediate);
        let ends = [
            ("attention.self.query", [d, d]),
            ("attention.self.key", [d, d]),
            ("attention.self.value", [d, d]),
            ("attention.output.dense", [d, d]),
            ("intermediate.dense", [wide, d]),
            ("output.dense", [d, wide]),
        ];
        let at =
            |i: usize| ends.map(|(end, shape)| (format!("{}.encoder.layer.{i}.{end}", self.prefix), shape));
        (0..self.layers).flat_map(at).collect()
    }
}

impl Deref for EncoderConfig {
    type Target = TrunkConfig;

    fn deref(&self) -> &TrunkConfig {
        &self.trunk
    }
}

/// Rejects fields whose values would change the numbers in ways that the layers do not compute.
fn refuse_unsupported(raw: &Raw) -> Result<()> {
    let positive = [
        ("hidden_size", raw.hidden_size),
        ("num_hidden_layers", raw.num_hidden_layers),
        ("num_attention_heads", raw.num_attention_heads),
        ("intermediate_size", raw.intermediate_size),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", raw.max_position_embeddings),
        ("type_vocab_size", raw.type_vocab_size),
    ];
    check_positive(&positive)?;
    if raw.layer_norm_eps < 0.0 {
        return Err(
            fault(format!("`layer_norm_eps` must not be negative, found {}", raw.layer_norm_eps)).into()
        );
    }
    if raw.initializer_range < 0.0 {
        let found = raw.initializer_range;
        return Err(fault(format!("`initializer_range` must not be negative, found {found}")).into());
    }
    if raw.hidden_size % raw.num_attention_heads != 0 {
        let (d, h) = (raw.hidden_size, raw.num_attention_heads);
        return Err(fault(format!("`hidden_size` {d} is not a multiple of `num_attention_heads` {h}")).into());
    }
    if let Some(pad) = raw.pad_token_id.filter(|&pad| i64::from(pad) >= raw.vocab_size) {
        let v = raw.vocab_size;
        return Err(fault(format!("`pad_token_id` is {pad}, but `vocab_size` is {v}")).into());
    }
    match raw.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(fault(format!(
                "`position_embedding_type` `{other}` is not supported, only `absolute`"
            ))
            .into());
        }
    }
    if raw.is_decoder || raw.add_cross_attention {
        return Err(fault("`is_decoder` and `add_cross_attention` are not supported for an encoder").into());
    }
    probability("hidden_dropout_prob", Some(raw.hidden_dropout_prob))?;
    probability("attention_probs_dropout_prob", Some(raw.attention_probs_dropout_prob))?;
    probability("classifier_dropout", raw.classifier_dropout)?;
    Ok(())
}
