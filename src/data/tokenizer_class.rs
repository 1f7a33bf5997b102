//! Changes that the tokenizer classes of Transformers make to the `tokenizer.json` that they read.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokenizers::AddedToken;

use super::tokenizer_file::failed;
use crate::fault::Result;

/// Class of Transformers that would read the folder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Class {
    Bert,
    Roberta,
    Llama,
    /// Byte-level byte pairs: the file unchanged, except for the space before a text.
    Gpt2,
    /// `tokenizer.json` unchanged.
    Plain,
}

/// Model types for which Transformers ignores `LlamaTokenizer` and uses `tokenizer.json` unchanged, because the files of
/// these families name the wrong class (`tokenization_auto.py`, 5.23).
const NOT_LLAMA: [&str; 8] =
    ["mistral", "mistral3", "ministral", "ministral3", "mixtral", "phi3", "qwen2", "qwen3_5"];

impl Class {
    /// Returns the named tokens that the class assumes if no file names others.
    pub(super) fn tokens(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Plain | Self::Gpt2 => &[],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Roberta => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
        }
    }
}

/// Returns the class that a folder names, or that of its model type if it names none.
pub(super) fn class_of(settings: &Value, config: &Value) -> Class {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    let named = text(settings, "tokenizer_class").or_else(|| text(config, "tokenizer_class"));
    let model = text(config, "model_type").unwrap_or_default();
    if let Some(name) = named {
        return match name.strip_suffix("Fast").unwrap_or(&name) {
            "BertTokenizer" | "DistilBertTokenizer" | "ElectraTokenizer" => Class::Bert,
            "RobertaTokenizer" => Class::Roberta,
            "GPT2Tokenizer" | "Qwen2Tokenizer" => Class::Gpt2,
            "LlamaTokenizer" if !NOT_LLAMA.contains(&model.as_str()) => Class::Llama,
            _ => Class::Plain,
        };
    }
    match model.as_str() {
        "bert" | "distilbert" | "electra" => Class::Bert,
        "roberta" => Class::Roberta,
        _ => Class::Plain,
    }
}

/// Returns the class if it is made for a model like the file's; otherwise the file is used unchanged,
/// since the pipeline of the class would read most of a text as unknown tokens.
pub(super) fn fitting(class: Class, inner: &tokenizers::Tokenizer) -> Class {
    let is_pairs = matches!(inner.get_model(), tokenizers::ModelWrapper::BPE(_));
    let json = |part: Option<String>| part.unwrap_or_default();
    let parts = json(inner.get_pre_tokenizer().and_then(|p| serde_json::to_string(p).ok()))
        + &json(inner.get_decoder().and_then(|d| serde_json::to_string(d).ok()));
    let is_bytes = parts.contains("\"ByteLevel\"");
    let fits = match class {
        Class::Plain => true,
        Class::Bert => matches!(inner.get_model(), tokenizers::ModelWrapper::WordPiece(_)),
        Class::Roberta | Class::Gpt2 => is_pairs && (is_bytes || inner.token_to_id("Ġ").is_some()),
        // Byte pairs over texts whose spaces are `▁`, and not over bytes as in Llama 3.
        Class::Llama => is_pairs && !is_bytes && (parts.contains('▁') || inner.token_to_id("▁").is_some()),
    };
    if fits { class } else { Class::Plain }
}

/// Applies what the class takes from its settings, and returns it in writing.
pub(super) fn configure(inner: &mut tokenizers::Tokenizer, class: Class, settings: &Value) -> Result<String> {
    inner.with_truncation(None).map_err(failed)?;
    inner.with_padding(None);
    let (normalizer, pre_tokenizer) = match class {
        Class::Plain => return Ok(String::new()),
        Class::Gpt2 => return spaced(inner, settings),
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
    if settings.get("added_tokens_decoder").is_some() {
        // The class builds its tokenizer anew, with the added tokens of that list alone.
        let mut anew = tokenizers::Tokenizer::new(inner.get_model().clone());
        anew.with_decoder(inner.get_decoder().cloned())
            .with_post_processor(inner.get_post_processor().cloned());
        *inner = anew;
    }
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
    Ok(changes)
}

/// Puts the special tokens of the class around texts, named as in the files, and returns that in writing. For
/// other classes, and if the tokens are not known, the file's own template stays.
pub(super) fn enclose(
    inner: &mut tokenizers::Tokenizer,
    class: Class,
    named: &BTreeMap<&'static str, AddedToken>,
) -> Result<String> {
    let Some(frame) = frame(inner, class, named) else { return Ok(String::new()) };
    let processor: tokenizers::PostProcessorWrapper = serde_json::from_str(&frame.to_string())?;
    inner.with_post_processor(Some(processor));
    Ok(frame.to_string())
}

/// Turns the space before texts on or off, if the settings say so.
fn spaced(inner: &mut tokenizers::Tokenizer, settings: &Value) -> Result<String> {
    match settings.get("add_prefix_space").filter(|prefix| prefix.is_boolean()) {
        Some(prefix) => with_space(inner, prefix),
        None => Ok(String::new()),
    }
}

/// Turns the space before texts of a byte-level tokenizer on or off, and returns that in writing.
pub(super) fn with_space(inner: &mut tokenizers::Tokenizer, prefix: &Value) -> Result<String> {
    let Some(own) = inner.get_pre_tokenizer() else { return Ok(String::new()) };
    let mut made = serde_json::to_value(own)?;
    let parts = match made.get_mut("pretokenizers") {
        Some(Value::Array(parts)) => parts.iter_mut().collect(),
        _ => vec![&mut made],
    };
    for part in parts.into_iter().filter(|part| part["type"] == "ByteLevel") {
        part["add_prefix_space"] = prefix.clone();
    }
    let pre_tokenizer: tokenizers::PreTokenizerWrapper = serde_json::from_value(made)?;
    inner.with_pre_tokenizer(Some(pre_tokenizer));
    Ok(format!("prefix {prefix}"))
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

/// Returns the pre-tokenizer that `tokenization_llama.py` uses instead of the file's normaliser; they differ
/// if a text begins with spaces or continues after a special token.
fn metaspace(settings: &Value) -> Value {
    let scheme = match (flag(settings, "add_prefix_space", true), flag(settings, "legacy", false)) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false })
}

/// Returns the decoder that undoes [`metaspace`].
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

/// Returns the frame of special tokens that both encoder classes put around texts.
fn frame(
    inner: &tokenizers::Tokenizer,
    class: Class,
    named: &BTreeMap<&'static str, AddedToken>,
) -> Option<Value> {
    let token = |key: &str, default: &str| -> Option<(String, u32)> {
        let name = named.get(key).map_or(default, |token| token.content.as_str()).to_owned();
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
        Class::Llama | Class::Gpt2 | Class::Plain => None,
    }
}
