//! `config.json` of a decoder, read into the values that layers need. Nothing past here knows family names.
//!
//! Fields, their defaults and their meaning in each family follow the configuration and model classes of
//! Transformers 5 (`models/{llama,mistral,gemma,gemma2,qwen2,qwen3,phi3}`). A field that would change the
//! numbers in a way that the layers do not compute is rejected, whatever its name.

use std::ops::Deref;

use serde_json::{Map, Value};

use super::fields::{FAMILIES, Family, Raw, check_sizes, family, padding, refuse_foreign, windows};
use super::rope_fields::rope;
use crate::fault::{Result, fault};
use crate::files;
use crate::models::trunk_config::{Activation, TrunkConfig, activation, labels, probability};
use crate::nn::layout::Positions;
use crate::nn::rope::Rope;

/// The shape and switches of a decoder.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// What encoders have, too.
    pub trunk: TrunkConfig,
    /// kv, heads of keys and values; a divisor of h.
    pub kv_heads: i64,
    /// Width of a head; h times this need not be d.
    pub head_width: i64,
    /// Offset added to every norm's stored weight.
    pub norm_offset: f64,
    /// True if attention and feed-forward have a second norm, on their output.
    pub output_norms: bool,
    /// True if each head of queries and keys is normed before rotation.
    pub head_norms: bool,
    /// Factor applied to the embeddings.
    pub embedding_scale: Option<f64>,
    /// Factor applied to the attention scores.
    pub score_scale: f64,
    /// Soft cap c of the attention scores: c·tanh(x / c).
    pub score_cap: Option<f64>,
    /// Soft cap of the logits.
    pub logit_cap: Option<f64>,
    /// Number of positions back a token sees in each layer, itself included; `None` = all.
    pub windows: Vec<Option<i64>>,
    /// True if queries, keys and values have a bias.
    pub qkv_bias: bool,
    /// True if attention's output has a bias.
    pub output_bias: bool,
    /// True if the feed-forward layers have a bias.
    pub mlp_bias: bool,
    /// True if q, k and v are one layer, and gate and up another.
    pub fused: bool,
    /// Rotary embedding.
    pub rope: Rope,
    /// True if the output layer is the embedding.
    pub tied: bool,
    /// Id whose embedding gets no gradient.
    pub padding: Option<i64>,
}

impl DecoderConfig {
    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// Names the field that is missing, of the wrong type, or of a value that this program does not compute with.
    pub fn from_json(model_type: &str, text: &str) -> Result<Self> {
        let json: Map<String, Value> = files::parse_json(text)?;
        let raw: Raw = files::parse_json(text)?;
        let Some(family) = family(model_type) else {
            return Err(fault(format!(
                "the model type `{model_type}` is not a decoder's: {}",
                FAMILIES.join(", ")
            ))
            .into());
        };
        check_sizes(&raw)?;
        refuse_foreign(&json, &raw, &family)?;
        let heads = raw.num_attention_heads;
        // Null is not absent: only an absent field gets the class's default.
        let given = |key: &str| json.contains_key(key);
        let head_width = raw.head_dim.or(if given("head_dim") { None } else { family.head_width });
        let head_width = head_width.unwrap_or(raw.hidden_size / heads);
        let kv_heads = raw.num_key_value_heads;
        let kv_heads =
            kv_heads.or(if given("num_key_value_heads") { None } else { family.kv_heads }).unwrap_or(heads);
        if kv_heads < 1 || heads % kv_heads != 0 {
            return Err(fault(format!(
                "`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}"
            ))
            .into());
        }
        let cap = |key: &str, value: Option<f64>, default| {
            if family.output_norms { value.or(if given(key) { None } else { Some(default) }) } else { None }
        };
        let query_scalar =
            if family.output_norms { raw.query_pre_attn_scalar.unwrap_or(256.0) } else { head_width as f64 };
        let activation = gate(&raw, &json, &family)?;
        let windows = windows(&raw, &json, family.windows)?;
        let rope = rope(&raw, &json, head_width, family.fused)?;
        let padding = padding(&raw, &json, &family)?;
        let [score_cap, logit_cap] = [
            cap("attn_logit_softcapping", raw.attn_logit_softcapping, 50.0),
            cap("final_logit_softcapping", raw.final_logit_softcapping, 30.0),
        ];
        Ok(Self {
            trunk: trunk(&raw, json, &family, activation)?,
            kv_heads,
            head_width,
            norm_offset: if family.gemma { 1.0 } else { 0.0 },
            output_norms: family.output_norms,
            head_norms: family.head_norms,
            embedding_scale: family.gemma.then(|| (raw.hidden_size as f64).sqrt()),
            score_scale: query_scalar.sqrt().recip(),
            score_cap,
            logit_cap,
            windows,
            qkv_bias: family.qkv_bias.unwrap_or(raw.attention_bias),
            output_bias: family.attention_bias && raw.attention_bias,
            mlp_bias: family.mlp_bias && raw.mlp_bias,
            fused: family.fused,
            rope,
            tied: raw.tie_word_embeddings.unwrap_or(family.tied),
            padding,
        })
    }

    /// Returns every linear layer that can take an adapter: path and shape `[out, in]`, in layer order.
    pub fn linear_shapes(&self) -> Vec<(String, [i64; 2])> {
        let (d, wide) = (self.width, self.intermediate);
        let (q, kv) = (self.heads * self.head_width, self.kv_heads * self.head_width);
        let ends: Vec<(&str, [i64; 2])> = if self.fused {
            vec![
                ("self_attn.qkv_proj", [q + 2 * kv, d]),
                ("self_attn.o_proj", [d, q]),
                ("mlp.gate_up_proj", [2 * wide, d]),
                ("mlp.down_proj", [d, wide]),
            ]
        } else {
            vec![
                ("self_attn.q_proj", [q, d]),
                ("self_attn.k_proj", [kv, d]),
                ("self_attn.v_proj", [kv, d]),
                ("self_attn.o_proj", [d, q]),
                ("mlp.gate_proj", [wide, d]),
                ("mlp.up_proj", [wide, d]),
                ("mlp.down_proj", [d, wide]),
            ]
        };
        let at = |i: usize| ends.iter().map(move |(end, shape)| (format!("model.layers.{i}.{end}"), *shape));
        (0..self.layers).flat_map(at).collect()
    }
}

impl Deref for DecoderConfig {
    type Target = TrunkConfig;

    fn deref(&self) -> &TrunkConfig {
        &self.trunk
    }
}

fn trunk(
    raw: &Raw,
    json: Map<String, Value>,
    family: &Family,
    activation: Activation,
) -> Result<TrunkConfig> {
    let labels = labels(json.get("id2label"))?;
    Ok(TrunkConfig {
        prefix: "model",
        parts: ["embed_tokens.", "layers.", "norm."],
        class: family.class,
        width: raw.hidden_size,
        layers: usize::try_from(raw.num_hidden_layers).unwrap_or_default(),
        heads: raw.num_attention_heads,
        intermediate: raw.intermediate_size,
        vocabulary: raw.vocab_size,
        positions: raw.max_position_embeddings,
        position_rule: Positions::FromZero,
        activation,
        norm_eps: raw.rms_norm_eps.unwrap_or(family.norm_eps),
        attention_dropout: probability("attention_dropout", raw.attention_dropout)?,
        dropout: if family.fused { probability("resid_pdrop", raw.resid_pdrop)? } else { 0.0 },
        head_dropout: probability(
            "classifier_dropout",
            raw.classifier_dropout.or(raw.hidden_dropout).or(Some(0.1)),
        )?,
        initializer_range: raw.initializer_range.unwrap_or(0.02),
        outputs: raw.num_labels.or(Some(labels.len() as i64).filter(|&count| count > 0)),
        labels,
        raw: json,
    })
}

fn gate(raw: &Raw, json: &Map<String, Value>, family: &Family) -> Result<Activation> {
    let (key, name) = match family.output_norms {
        true => ("hidden_activation", raw.hidden_activation.as_deref()),
        false => ("hidden_act", raw.hidden_act.as_deref()),
    };
    match (name, family.gemma) {
        (None, _) if json.contains_key(key) => {
            Err(fault(format!("`{key}` must be a name, found null")).into())
        }
        (None, true) => Ok(Activation::GeluTanh),
        (None, false) => Ok(Activation::Silu),
        // The official releases of the first Gemma say `gelu` and mean its tanh approximation.
        (Some("gelu"), true) if !family.output_norms => Ok(Activation::GeluTanh),
        (Some(name), _) => activation(name),
    }
}
