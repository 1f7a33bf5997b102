//! What the tokenizer classes of Transformers change in the `tokenizer.json` that they read.

use serde_json::{Value, json};

use super::tokenize::failed;
use crate::fault::Result;

/// Which class of Transformers would read the folder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Class {
    Bert,
    Roberta,
    Llama,
    /// `tokenizer.json` as it stands.
    Plain,
}

/// Model types whose `LlamaTokenizer` Transformers passes over for `tokenizer.json` as it stands, because the files of
/// these families name the wrong class (`tokenization_auto.py`, 5.23).
const NOT_LLAMA: [&str; 8] =
    ["mistral", "mistral3", "ministral", "ministral3", "mixtral", "phi3", "qwen2", "qwen3_5"];

/// The class for a folder: one that is named counts more than the model type; a name that is none of these leaves
/// `tokenizer.json` as it is.
pub(super) fn class_of(inner: &tokenizers::Tokenizer, settings: &Value, config: &Value) -> Class {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let named = text(settings, "tokenizer_class").or_else(|| text(config, "tokenizer_class"));
    let model = text(config, "model_type").unwrap_or_default();
    if let Some(name) = named {
        return match name.strip_suffix("Fast").unwrap_or(&name) {
            "BertTokenizer" => Class::Bert,
            "RobertaTokenizer" => Class::Roberta,
            "LlamaTokenizer" if !NOT_LLAMA.contains(&model.as_str()) && is_sentencepiece(inner) => {
                Class::Llama
            }
            _ => Class::Plain,
        };
    }
    match model.as_str() {
        "bert" | "distilbert" | "electra" => Class::Bert,
        "roberta" => Class::Roberta,
        _ => Class::Plain,
    }
}

/// Byte pairs over texts whose spaces are `▁`, and not over bytes as in Llama 3.
fn is_sentencepiece(inner: &tokenizers::Tokenizer) -> bool {
    let is_byte_level = |part: Option<String>| part.is_some_and(|json| json.contains("\"ByteLevel\""));
    matches!(inner.get_model(), tokenizers::ModelWrapper::BPE(_))
        && !is_byte_level(inner.get_pre_tokenizer().and_then(|p| serde_json::to_string(p).ok()))
        && !is_byte_level(inner.get_decoder().and_then(|d| serde_json::to_string(d).ok()))
}

/// Applies what the class takes from its settings, and returns it in writing.
pub(super) fn configure(inner: &mut tokenizers::Tokenizer, class: Class, settings: &Value) -> Result<String> {
    inner.with_truncation(None).map_err(failed)?;
    inner.with_padding(None);
    let (normalizer, pre_tokenizer) = match class {
        Class::Plain => return Ok(String::new()),
        Class::Bert => bert(settings),
        Class::Roberta => {
            let prefix = flag(settings, "add_prefix_space", false);
            let bytes = json!({
                "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true,
            });
            (None, bytes)
        }
        Class::Llama => (None, metaspace(settings)),
    };
    let changes = format!("{normalizer:?}{pre_tokenizer}");
    let normalizer: Option<tokenizers::NormalizerWrapper> =
        normalizer.map(|n| serde_json::from_str(&n.to_string())).transpose()?;
    inner.with_normalizer(normalizer).map_err(failed)?;
    let pre_tokenizer: tokenizers::PreTokenizerWrapper = serde_json::from_str(&pre_tokenizer.to_string())?;
    inner.with_pre_tokenizer(Some(pre_tokenizer));
    if class == Class::Llama {
        let decoder: tokenizers::DecoderWrapper =
            serde_json::from_str(&from_metaspace(settings).to_string())?;
        inner.with_decoder(Some(decoder));
    }
    if let Some(processor) = frame(inner, class, settings) {
        let processor: tokenizers::PostProcessorWrapper = serde_json::from_str(&processor.to_string())?;
        inner.with_post_processor(Some(processor));
    }
    Ok(changes)
}

fn flag(settings: &Value, key: &str, default: bool) -> bool {
    settings.get(key).and_then(Value::as_bool).unwrap_or(default)
}

fn bert(settings: &Value) -> (Option<Value>, Value) {
    let normalizer = json!({
        "type": "BertNormalizer",
        "clean_text": true,
        "handle_chinese_chars": flag(settings, "tokenize_chinese_chars", true),
        "strip_accents": settings.get("strip_accents").and_then(Value::as_bool),
        "lowercase": flag(settings, "do_lower_case", true),
    });
    (Some(normalizer), json!({ "type": "BertPreTokenizer" }))
}

/// `tokenization_llama.py` puts this in the place of the file's normaliser, which differs where a text begins with
/// spaces or goes on after a special token.
fn metaspace(settings: &Value) -> Value {
    let scheme = match (flag(settings, "add_prefix_space", true), flag(settings, "legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false })
}

/// Back from there to text.
fn from_metaspace(settings: &Value) -> Value {
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if flag(settings, "add_prefix_space", true) {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    json!({ "type": "Sequence", "decoders": decoders })
}

/// The frame of special tokens that both encoder classes put around texts; the file's own for others, and where the
/// tokens are not in it.
fn frame(inner: &tokenizers::Tokenizer, class: Class, settings: &Value) -> Option<Value> {
    let token = |key: &str, default: &str| -> Option<(String, u32)> {
        let named = settings.get(key).map(|t| t.get("content").unwrap_or(t));
        let name = named.and_then(Value::as_str).unwrap_or(default).to_owned();
        inner.token_to_id(&name).map(|id| (name, id))
    };
    match class {
        Class::Roberta => {
            let (cls, sep) = (token("cls_token", "<s>")?, token("sep_token", "</s>")?);
            Some(json!({
                "type": "RobertaProcessing", "sep": sep, "cls": cls, "trim_offsets": true, "add_prefix_space": false,
            }))
        }
        Class::Bert => {
            let (cls, sep) = (token("cls_token", "[CLS]")?, token("sep_token", "[SEP]")?);
            Some(json!({ "type": "BertProcessing", "sep": sep, "cls": cls }))
        }
        Class::Llama | Class::Plain => None,
    }
}
