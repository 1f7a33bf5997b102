//! The fields of a decoder's `config.json`: those read, their meaning in each family, and those rejected.

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::fault::{Result, fault};
use crate::models::trunk_config::{MOST_SIDE, check_positive, cut};

/// The fields that several families share.
#[derive(Deserialize)]
pub struct Raw {
    pub hidden_size: i64,
    pub num_hidden_layers: i64,
    pub num_attention_heads: i64,
    pub num_key_value_heads: Option<i64>,
    pub head_dim: Option<i64>,
    pub intermediate_size: i64,
    pub vocab_size: i64,
    pub max_position_embeddings: i64,
    pub hidden_act: Option<String>,
    pub hidden_activation: Option<String>,
    pub rms_norm_eps: Option<f64>,
    pub tie_word_embeddings: Option<bool>,
    pub pad_token_id: Option<i64>,
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    pub attention_dropout: Option<f64>,
    pub classifier_dropout: Option<f64>,
    pub hidden_dropout: Option<f64>,
    pub initializer_range: Option<f64>,
    pub num_labels: Option<i64>,
    pub resid_pdrop: Option<f64>,
    pub sliding_window: Option<i64>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<i64>,
    pub layer_types: Option<Vec<String>>,
    pub query_pre_attn_scalar: Option<f64>,
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
    pub rope_theta: Option<f64>,
    pub partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<i64>,
}

/// The differences between families.
pub struct Family {
    pub class: &'static str,
    /// Default of `head_dim` if it does not follow from the width.
    pub head_width: Option<i64>,
    pub kv_heads: Option<i64>,
    pub norm_eps: f64,
    pub tied: bool,
    pub padding: Option<i64>,
    /// Gemma: norms count from 1, embeddings are scaled by √d, the gate is GELU.
    pub gemma: bool,
    pub output_norms: bool,
    pub head_norms: bool,
    pub fused: bool,
    pub qkv_bias: Option<bool>,
    /// True if `attention_bias` also gives the output layer a bias.
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub windows: Windows,
}

/// A family's rule for which layers see only a window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// No layer.
    Never,
    /// Every layer, if `sliding_window` is given.
    Always(Option<i64>),
    /// As `layer_types` says, or every second layer from the first.
    Alternating,
    /// As `layer_types` says, or from `max_window_layers` on, if `use_sliding_window` is true.
    Upper,
}

const PLAIN: Family = Family {
    class: "Llama",
    head_width: None,
    kv_heads: None,
    norm_eps: 1e-6,
    tied: false,
    padding: None,
    gemma: false,
    output_norms: false,
    head_norms: false,
    fused: false,
    qkv_bias: None,
    attention_bias: true,
    mlp_bias: false,
    windows: Windows::Never,
};

/// The `model_type`s of decoders.
pub const FAMILIES: [&str; 7] = ["llama", "mistral", "gemma", "gemma2", "qwen2", "qwen3", "phi3"];

/// Returns the family of a `model_type`.
pub fn family(model_type: &str) -> Option<Family> {
    let gemma = Family {
        class: "Gemma",
        head_width: Some(256),
        kv_heads: Some(16),
        tied: true,
        padding: Some(0),
        gemma: true,
        ..PLAIN
    };
    let qwen = Family { kv_heads: Some(32), windows: Windows::Upper, ..PLAIN };
    Some(match model_type {
        "llama" => Family { mlp_bias: true, ..PLAIN },
        "mistral" => Family {
            class: "Mistral",
            kv_heads: Some(8),
            attention_bias: false,
            windows: Windows::Always(Some(4096)),
            ..PLAIN
        },
        "gemma" => gemma,
        "gemma2" => Family {
            class: "Gemma2",
            kv_heads: Some(4),
            output_norms: true,
            windows: Windows::Alternating,
            ..gemma
        },
        "qwen2" => Family { class: "Qwen2", qkv_bias: Some(true), attention_bias: false, ..qwen },
        "qwen3" => Family { class: "Qwen3", head_width: Some(128), head_norms: true, ..qwen },
        "phi3" => Family {
            class: "Phi3",
            norm_eps: 1e-5,
            padding: Some(32_000),
            fused: true,
            attention_bias: false,
            windows: Windows::Always(None),
            ..PLAIN
        },
        _ => return None,
    })
}

/// Fields of other architectures that change the numbers; only their neutral values are accepted here.
const FOREIGN: [&str; 20] = [
    "attention_chunk_size",
    "is_encoder_decoder",
    "per_layer_config",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "clip_qkv",
    "logit_scale",
    "logits_scaling",
    "embedding_multiplier",
    "residual_multiplier",
    "attention_multiplier",
    "use_bidirectional_attention",
    "add_cross_attention",
    "alibi",
    "use_parallel_residual",
    "parallel_attn",
    "no_rope_layers",
    "use_qk_norm",
    "qk_layernorm",
];

pub fn check_sizes(raw: &Raw) -> Result<()> {
    let positive = [
        ("hidden_size", raw.hidden_size),
        ("num_hidden_layers", raw.num_hidden_layers),
        ("num_attention_heads", raw.num_attention_heads),
        ("intermediate_size", raw.intermediate_size),
        ("vocab_size", raw.vocab_size),
        ("max_position_embeddings", raw.max_position_embeddings),
        ("head_dim", raw.head_dim.unwrap_or(2)),
        ("sliding_window", raw.sliding_window.unwrap_or(1)),
    ];
    check_positive(&positive)?;
    let heads = raw.num_attention_heads.saturating_mul(raw.head_dim.unwrap_or(1));
    if heads > MOST_SIDE {
        let message =
            format!("`num_attention_heads` times `head_dim` must be at most {MOST_SIDE}, found {heads}");
        return Err(fault(message).into());
    }
    if raw.head_dim.is_none() && raw.hidden_size % raw.num_attention_heads != 0 {
        let (d, h) = (raw.hidden_size, raw.num_attention_heads);
        return Err(fault(format!("`hidden_size` {d} is not a multiple of `num_attention_heads` {h}")).into());
    }
    let scales = [
        ("rms_norm_eps", raw.rms_norm_eps),
        ("query_pre_attn_scalar", raw.query_pre_attn_scalar),
        ("attn_logit_softcapping", raw.attn_logit_softcapping),
        ("final_logit_softcapping", raw.final_logit_softcapping),
        ("rope_theta", raw.rope_theta),
    ];
    match scales.into_iter().find(|(_, value)| value.is_some_and(|x| x <= 0.0)) {
        Some((name, value)) => {
            Err(fault(format!("`{name}` must be above 0, found {}", value.unwrap_or_default())).into())
        }
        None => Ok(()),
    }
}

/// Rejects fields that change the numbers but would be ignored.
pub fn refuse_foreign(json: &Map<String, Value>, raw: &Raw, family: &Family) -> Result<()> {
    let active = |key: &&str| {
        json.get(*key).is_some_and(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Number(n) => n.as_f64().is_none_or(|x| !(x == 0.0 || x == 1.0)),
            Value::Array(list) => !list.is_empty(),
            Value::Object(map) => !map.is_empty(),
            _ => true,
        })
    };
    let mut found: Vec<&str> = FOREIGN.into_iter().filter(|key| active(key)).collect();
    // If present, any value that is falsy in Python lets every token see all others.
    let sees_all = json.get("is_causal").is_some_and(|value| match value {
        Value::Null => true,
        Value::Bool(causal) => !causal,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    });
    let elsewhere = [
        ("is_causal", sees_all),
        ("attention_bias", raw.attention_bias && !family.attention_bias && family.qkv_bias.is_none()),
        ("mlp_bias", raw.mlp_bias && !family.mlp_bias),
        ("attn_logit_softcapping", raw.attn_logit_softcapping.is_some() && !family.output_norms),
        ("final_logit_softcapping", raw.final_logit_softcapping.is_some() && !family.output_norms),
        ("sliding_window", raw.sliding_window.is_some() && family.windows == Windows::Never),
    ];
    found.extend(elsewhere.into_iter().filter(|(_, wrong)| *wrong).map(|(key, _)| key));
    match found.first() {
        None => Ok(()),
        Some(key) => Err(fault(format!(
            "`{key}` = {} changes the model's numbers and is not supported for {}",
            cut(json.get(*key).unwrap_or(&Value::Null)),
            family.class
        ))
        .hint("use a checkpoint without it")
        .into()),
    }
}

/// Returns, for each layer, the number of positions back a token sees; `None` = all.
pub fn windows(raw: &Raw, json: &Map<String, Value>, rule: Windows) -> Result<Vec<Option<i64>>> {
    let layers = usize::try_from(raw.num_hidden_layers).unwrap_or_default();
    let given = json.contains_key("sliding_window");
    let or_default = |default: Option<i64>| raw.sliding_window.or(if given { None } else { default });
    let window = match rule {
        Windows::Never => None,
        Windows::Always(default) => or_default(default),
        Windows::Alternating => or_default(Some(4096)),
        Windows::Upper if raw.use_sliding_window == Some(true) => or_default(Some(4096)),
        Windows::Upper => None,
    };
    let first_upper = raw.max_window_layers.unwrap_or(28);
    let listed = raw.layer_types.as_ref().map(|types| listed_windows(types, layers)).transpose()?;
    let slides = |i: usize| -> bool {
        let listed = listed.as_ref().and_then(|listed| listed.get(i).copied());
        match rule {
            Windows::Never => listed.unwrap_or(false),
            Windows::Always(_) => listed.unwrap_or(window.is_some()),
            Windows::Alternating => listed.unwrap_or(i.is_multiple_of(2)),
            Windows::Upper => {
                let upper = window.is_some() && i64::try_from(i).is_ok_and(|i| i >= first_upper);
                listed.unwrap_or(upper)
            }
        }
    };
    let of_layer = |i: usize| -> Result<Option<i64>> {
        match (slides(i), window, rule) {
            (true, None, _) => Err(fault(format!(
                "layer {i} has sliding attention, but `sliding_window` is not given or not used"
            ))
            .hint("see `layer_types`, `sliding_window` and `use_sliding_window` in config.json")
            .into()),
            (false, Some(_), Windows::Always(_)) => {
                Err(fault(format!("`layer_types` disagrees with `sliding_window` for layer {i}")).into())
            }
            (false, None, Windows::Alternating) => {
                Err(fault("`sliding_window` is null, expected a number of positions").into())
            }
            (slides, window, _) => Ok(window.filter(|_| slides)),
        }
    };
    (0..layers).map(of_layer).collect()
}

/// Returns true for each listed layer that has a window by `layer_types`.
fn listed_windows(types: &[String], layers: usize) -> Result<Vec<bool>> {
    if types.len() > layers {
        let found = types.len();
        let message = format!("`layer_types` names {found} layers, `num_hidden_layers` is {layers}");
        return Err(fault(message).into());
    }
    let slides = |i: usize| match types.get(i).map_or("nothing", String::as_str) {
        "sliding_attention" => Ok(true),
        // Older files use the second name.
        "full_attention" | "attention" => Ok(false),
        found => {
            let found = found.chars().take(100).collect::<String>();
            Err(fault(format!("`layer_types` says `{found}` for layer {i}"))
                .hint("expected `full_attention` or `sliding_attention` for each layer")
                .into())
        }
    };
    (0..layers).map(slides).collect()
}

/// Returns the id whose embedding gets no gradient; a negative one counts from the end.
pub fn padding(raw: &Raw, json: &Map<String, Value>, family: &Family) -> Result<Option<i64>> {
    let v = raw.vocab_size;
    let default = family.padding.filter(|&id| id < v && !json.contains_key("pad_token_id"));
    match raw.pad_token_id.or(default) {
        None => Ok(None),
        Some(id) if (-v..v).contains(&id) => Ok(Some(id.rem_euclid(v))),
        Some(id) => Err(fault(format!("`pad_token_id` is {id}, but `vocab_size` is {v}")).into()),
    }
}
