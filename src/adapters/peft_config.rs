//! PEFT's `adapter_config.json`: written for the methods that PEFT knows; reading refuses by name whatever
//! cannot be represented. Keys and defaults of github.com/huggingface/peft at 5d602fd.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Method;
use super::lora::LoraConfig;
use super::tiny_lora::TinyLoraConfig;
use super::vera::VeraConfig;
use crate::fault::{Fault, Result, fault};
use crate::spec::Tying;

/// A parsed `adapter_config.json`.
pub type Json = BTreeMap<String, Value>;

/// Switches that change what an adapter computes, and the values with which they change nothing.
const SWITCHES: [(&str, &[&str]); 19] = [
    ("bias", &["\"none\""]),
    ("use_dora", &["false"]),
    ("lora_bias", &["false"]),
    ("use_qalora", &["false"]),
    ("use_bdlora", &["false"]),
    ("rank_pattern", &["{}"]),
    ("alpha_pattern", &["{}"]),
    ("layer_replication", &["[]"]),
    ("megatron_config", &["{}"]),
    ("trainable_token_indices", &["[]", "{}"]),
    ("target_parameters", &["[]"]),
    ("alora_invocation_tokens", &["[]"]),
    ("arrow_config", &["{}"]),
    ("monteclora_config", &["{}"]),
    ("kasa_config", &["{}"]),
    ("velora_config", &["{}"]),
    ("corda_config", &["{}"]),
    ("lora_ga_config", &["{}"]),
    ("loftq_config", &["{}"]),
];
/// Prefixes of the LoRA initialisations that change the base's weights.
const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Settings of an adapter that PEFT records besides its method.
#[derive(Debug)]
pub struct About<'a> {
    /// `SEQ_CLS` or `CAUSAL_LM`.
    pub task_type: &'a str,
    /// Hub id or folder of the base.
    pub base: &'a str,
    /// Names by which PEFT finds exactly the adapted layers.
    pub targets: &'a [String],
    /// Modules that are stored whole.
    pub saved: Vec<String>,
    /// Number of adapted layers.
    pub layers: usize,
}

/// Builds the config of an adapter of `method`.
///
/// # Errors
/// When PEFT has no such method.
pub fn write(method: &Method, about: &About) -> Result<Map<String, Value>> {
    let Some(Value::Object(mut config)) = method.peft(about.layers) else {
        return Err(fault(format!("PEFT has no method `{}`", method.name())).into());
    };
    let saved = if about.saved.is_empty() { Value::Null } else { json!(about.saved) };
    let shared = [
        ("base_model_name_or_path", json!(about.base)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("modules_to_save", saved),
        ("target_modules", json!(about.targets)),
        ("task_type", json!(about.task_type)),
    ];
    config.extend(shared.map(|(key, value)| (key.to_owned(), value)));
    // Sorted, as PEFT sorts them.
    Ok(config.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
}

/// Reads the method of an adapter.
///
/// # Errors
/// Names the settings that cannot be represented here.
pub fn read(config: &Json) -> Result<Method> {
    let stated = config.get("peft_type").and_then(Value::as_str).unwrap_or("none");
    let Ok(kind) = serde_json::from_value(json!(stated)) else {
        return Err(refused("peft_type", &format!("`{stated}`"))
            .hint("supported PEFT adapters are `LORA`, `VERA` and `TINYLORA`")
            .into());
    };
    for (key, harmless) in SWITCHES {
        let value = config.get(key).filter(|value| !value.is_null()).map(ToString::to_string);
        if let Some(value) = value.filter(|value| !harmless.contains(&value.as_str())) {
            return Err(refused(key, &value).into());
        }
    }
    if let Some(start) = config.get("init_lora_weights").and_then(Value::as_str)
        && CHANGES_BASE.iter().any(|name| start.starts_with(name))
    {
        return Err(refused("init_lora_weights", start)
            .hint(
                "this initialisation changes the base's weights; convert the adapter to a plain LoRA in PEFT",
            )
            .into());
    }
    let whole = |key: &str, default: i64| match config.get(key) {
        None => Ok(default),
        Some(value) => value.as_i64().filter(|&n| n >= 0).ok_or_else(|| wrong(key, value, "a whole number")),
    };
    let positive = |key: &str, default: i64| match whole(key, default)? {
        0 => Err(wrong(key, &json!(0), "at least 1")),
        n => Ok(n),
    };
    let number = |key: &str, default: f64| match config.get(key) {
        None => Ok(default),
        Some(value) => value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| wrong(key, value, "a number")),
    };
    let flag = |key: &str, default: bool| match config.get(key) {
        None => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| wrong(key, value, "true or false")),
    };
    Ok(match kind {
        PeftType::Lora => Method::Lora(LoraConfig {
            r: positive("r", 8)?,
            lora_alpha: number("lora_alpha", 8.0)?,
            use_rslora: flag("use_rslora", false)?,
        }),
        PeftType::Vera => Method::Vera(VeraConfig {
            r: positive("r", 256)?,
            d_initial: number("d_initial", 0.1)?,
            projection_prng_key: whole("projection_prng_key", 0)?.unsigned_abs(),
            save_projection: flag("save_projection", true)?,
        }),
        PeftType::TinyLora => Method::TinyLora(TinyLoraConfig {
            r: positive("r", 2)?,
            u: positive("u", 64)?,
            untied: 1.0 - number("weight_tying", 0.0)?.clamp(0.0, 1.0),
            tying: Tying::Depth,
            projection_seed: whole("projection_seed", 42)?.unsigned_abs(),
        }),
    })
}

/// Types of adapter that can be read.
#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum PeftType {
    Lora,
    Vera,
    TinyLora,
}

fn refused(key: &str, value: &str) -> Fault {
    fault(format!("the adapter has `{key}` {value}, which is not supported"))
}

fn wrong(key: &str, found: &Value, expected: &str) -> Fault {
    fault(format!("`{key}`: expected {expected}, found {found}"))
}
