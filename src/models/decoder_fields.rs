//! The fields of a decoder's `config.json`: which are read, what each family makes of them, and which are refused.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::MOST_LAYERS;
use crate::fault::{Result, fault};
use crate::nn::rope::{Rope, Scaling};

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
    #[serde(default)]
    pub attention_bias: bool,
    #[serde(default)]
    pub mlp_bias: bool,
    pub attention_dropout: Option<f64>,
    pub resid_pdrop: Option<f64>,
    pub sliding_window: Option<i64>,
    pub use_sliding_window: Option<bool>,
    pub max_window_layers: Option<i64>,
    pub layer_types: Option<Vec<String>>,
    pub query_pre_attn_scalar: Option<f64>,
    pub attn_logit_softcapping: Option<f64>,
    pub final_logit_softcapping: Option<f64>,
    pub rope_theta: Option<f64>,
    pub rope_scaling: Option<Value>,
    pub rope_parameters: Option<Value>,
    pub partial_rotary_factor: Option<f64>,
    pub original_max_position_embeddings: Option<i64>,
}

/// What differs between families.
pub struct Family {
    pub class: &'static str,
    /// `head_dim` where the file gives none and the width does not decide.
    pub head_width: Option<i64>,
    pub kv_heads: Option<i64>,
    pub norm_eps: f64,
    pub tied: bool,
    /// Gemma: norms count from 1, embeddings are scaled by √d, the gate is GELU.
    pub gemma: bool,
    pub output_norms: bool,
    pub head_norms: bool,
    pub fused: bool,
    pub qkv_bias: Option<bool>,
    /// Whether `attention_bias` also gives the output layer a bias.
    pub attention_bias: bool,
    pub mlp_bias: bool,
    pub windows: Windows,
}

/// How a family decides which layers see a window only.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None does.
    Never,
    /// Every layer, where `sliding_window` is given.
    Always(Option<i64>),
    /// As `layer_types` says, or every second layer from the first.
    Alternating,
    /// As `layer_types` says, or from `max_window_layers` on, where `use_sliding_window` is true.
    Upper,
}

const PLAIN: Family = Family {
    class: "Llama",
    head_width: None,
    kv_heads: None,
    norm_eps: 1e-6,
    tied: false,
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

/// The family of a `model_type`.
pub fn family(model_type: &str) -> Option<Family> {
    let gemma = Family {
        class: "Gemma",
        head_width: Some(256),
        kv_heads: Some(16),
        tied: true,
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
            fused: true,
            attention_bias: false,
            windows: Windows::Always(None),
            ..PLAIN
        },
        _ => return None,
    })
}

/// Fields of other architectures that change the numbers; here only their neutral values are right.
const FOREIGN: [&str; 18] = [
    "quantization_config",
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
    if let Some((name, value)) = positive.into_iter().find(|(_, value)| *value <= 0) {
        return Err(fault(format!("`{name}` must be positive, found {value}")).into());
    }
    if raw.num_hidden_layers > MOST_LAYERS {
        let found = raw.num_hidden_layers;
        return Err(fault(format!("`num_hidden_layers` must be at most {MOST_LAYERS}, found {found}")).into());
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

/// Refuses what would be ignored although it changes the numbers.
pub fn refuse_foreign(json: &Map<String, Value>, raw: &Raw, family: &Family) -> Result<()> {
    let active = |key: &&str| {
        json.get(*key).is_some_and(|value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Number(n) => n.as_f64().is_none_or(|x| !(x == 0.0 || x == 1.0)),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        })
    };
    let mut found: Vec<&str> = FOREIGN.into_iter().filter(|key| active(key)).collect();
    let elsewhere = [
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
            json.get(*key).unwrap_or(&Value::Null),
            family.class
        ))
        .hint("take a checkpoint without it")
        .into()),
    }
}

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
    let slides = |i: usize| -> Result<bool> {
        let listed = match raw.layer_types.as_ref().map(|types| types.get(i).map(String::as_str)) {
            None => None,
            Some(Some("sliding_attention")) => Some(true),
            Some(Some("full_attention")) => Some(false),
            Some(other) => {
                let found = other.unwrap_or("nothing");
                return Err(fault(format!("`layer_types` says `{found}` for layer {i}"))
                    .hint("expected `full_attention` or `sliding_attention` for each layer")
                    .into());
            }
        };
        match rule {
            Windows::Never | Windows::Always(_)
                if listed.is_some_and(|slides| slides != window.is_some()) =>
            {
                Err(fault(format!("`layer_types` disagrees with `sliding_window` for layer {i}")).into())
            }
            Windows::Never => Ok(false),
            Windows::Always(_) => Ok(true),
            Windows::Alternating => Ok(listed.unwrap_or(i.is_multiple_of(2))),
            Windows::Upper => Ok(listed.unwrap_or(i64::try_from(i)? >= first_upper)),
        }
    };
    (0..layers).map(|i| Ok(if slides(i)? { window } else { None })).collect()
}

/// The rotary settings under either of their names, old and new.
fn rope_parameters(raw: &Raw) -> Result<Map<String, Value>> {
    let given = raw.rope_scaling.as_ref().filter(|value| value.as_object().is_none_or(|map| !map.is_empty()));
    let parameters = match (given, &raw.rope_parameters) {
        (Some(Value::Object(map)), _) | (None | Some(Value::Null), Some(Value::Object(map))) => map.clone(),
        (None | Some(Value::Null), None | Some(Value::Null)) => Map::new(),
        (Some(other), _) | (None, Some(other)) => {
            return Err(fault(format!("`rope_scaling` must be an object, found {other}")).into());
        }
    };
    if let Some((key, _)) = parameters.iter().find(|(_, value)| value.is_object()) {
        return Err(fault(format!(
            "rotary embeddings that differ by layer type (`{key}`) are not supported"
        ))
        .into());
    }
    Ok(parameters)
}

pub fn rope(raw: &Raw, head_width: i64, partial_allowed: bool) -> Result<Rope> {
    let parameters = rope_parameters(raw)?;
    let number = |key: &str| -> Result<Option<f64>> {
        match parameters.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|x| *x > 0.0) {
                Some(x) => Ok(Some(x)),
                None => Err(fault(format!("`rope_scaling.{key}` must be above 0, found {value}")).into()),
            },
        }
    };
    let needed = |key: &str| -> Result<f64> {
        number(key)?.ok_or_else(|| fault(format!("`rope_scaling` lacks `{key}`")).into())
    };
    let kind = match parameters.get("rope_type").or(parameters.get("type")) {
        None | Some(Value::Null) => "default",
        Some(value) => match value.as_str() {
            Some(kind) => kind,
            None => {
                return Err(fault(format!("`rope_scaling.rope_type` must be a text, found {value}")).into());
            }
        },
    };
    let scaling = match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: needed("factor")? },
        "llama3" => Scaling::Llama3 {
            factor: needed("factor")?,
            low: needed("low_freq_factor")?,
            high: needed("high_freq_factor")?,
            original: match raw.original_max_position_embeddings {
                Some(positions) => positions as f64,
                None => {
                    number("original_max_position_embeddings")?.unwrap_or(raw.max_position_embeddings as f64)
                }
            },
        },
        other => {
            return Err(fault(format!("the rotary scaling `{other}` is not supported"))
                .hint("supported are `default`, `linear` and `llama3`")
                .into());
        }
    };
    let partial = number("partial_rotary_factor")?.or(raw.partial_rotary_factor).unwrap_or(1.0);
    if !(0.0..=1.0).contains(&partial) || (!partial_allowed && partial < 1.0) {
        return Err(
            fault(format!("`partial_rotary_factor` {partial} is not supported for this model")).into()
        );
    }
    #[expect(clippy::cast_possible_truncation, reason = "a part of a head's width")]
    let width = (head_width as f64 * partial) as i64;
    if width < 2 || width % 2 != 0 {
        return Err(
            fault(format!("the rotated part of a head must be even and not empty, found {width}")).into()
        );
    }
    Ok(Rope { theta: number("rope_theta")?.or(raw.rope_theta).unwrap_or(10_000.0), width, scaling })
}

pub fn probability(name: &str, value: Option<f64>) -> Result<f64> {
    let p = value.unwrap_or(0.0);
    if (0.0..1.0).contains(&p) {
        return Ok(p);
    }
    Err(fault(format!("`{name}` must be at least 0 and below 1, found {p}")).into())
}
