//! `tokenizer.json`, read as Transformers' `AutoTokenizer` reads it.
//!
//! Transformers (5.x, `tokenization_auto.py`, `tokenization_bert.py`, `tokenization_roberta.py`,
//! `tokenization_llama.py`) takes vocabulary and special tokens from `tokenizer.json`, but a BERT tokenizer gets its
//! normaliser, and a RoBERTa or Llama tokenizer its leading space, from `tokenizer_config.json`; `add_bos_token` and
//! `add_eos_token` do not count beside a `tokenizer.json`, whose own template of special tokens does. Truncation
//! and padding stored there do not count when a call asks for its own. Token types are passed to the model only where
//! `model_input_names` lists them. For tokens in the files beside it, see `added_tokens.rs`.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;
use tokenizers::{
    PostProcessor as _, Token, TruncationDirection, TruncationParams, TruncationStrategy, truncate_encodings,
};

use super::Example;
use super::special::Special;
use super::tokenizer_class::{Class, class_of, configure, enclose, fitting};
use super::tokenizer_file::{failed, guarded, optional_json, parse};
use super::{added_tokens, long_texts};
use crate::fault::{Fault, Result, fault, reading, usage};

/// Files that make up a tokenizer; those that exist are copied next to a saved model.
pub const FILES: [&str; 12] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// A tokenizer with the settings that its folder gives it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    pub(super) inner: tokenizers::Tokenizer,
    pub(super) direction: TruncationDirection,
    /// Number of token types that the model knows; `None` if it always gets type 0.
    types: Option<u64>,
    /// Tokens that the template of special tokens puts before a text.
    before: Vec<u32>,
    /// Number of tokens that the model embeds, if the tokenizer knows more.
    embedded: Option<u32>,
    special: Special,
    pub(super) is_roberta: bool,
    hash: String,
    files: Vec<PathBuf>,
}

/// A text as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Token type of each id.
    pub types: Vec<u8>,
    /// Number of them before any were cut off to fit.
    pub whole: usize,
    /// True if tokens were cut off.
    pub truncated: bool,
}

impl Tokenizer {
    /// Loads `tokenizer.json` of a folder, and what `tokenizer_config.json` and `config.json` say about it.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing, with a hint how to make it, or is not a tokenizer.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.is_file() {
            return Err(missing(folder).into());
        }
        let _reading = reading(&path);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read `{}`", path.display()))?;
        let mut inner = parse(&path, &bytes)?;
        let settings = optional_json(&folder.join("tokenizer_config.json"))?;
        let config = optional_json(&folder.join("config.json"))?;
        let stored = inner.get_truncation().map(|truncation| truncation.direction);
        let named = class_of(&settings, &config);
        let class = fitting(named, &inner);
        if class != named {
            tracing::warn!(
                "`{}` is used as it is: its model is not that of a {named:?}Tokenizer, the class that it names",
                path.display()
            );
        }
        let mut changes = configure(&mut inner, class, &settings)
            .with_context(|| format!("cannot use `{}`", path.display()))?;
        let added = added_tokens::complete(&mut inner, folder, class, &settings)?;
        changes += &enclose(&mut inner, class, &added.named)?;
        if !added.tokens.is_empty() {
            changes += &serde_json::to_string(&added.tokens)?;
        }
        let split = settings.get("split_special_tokens").is_some_and(|split| split == true);
        inner.set_encode_special_tokens(split);
        let has_types = match settings.get("model_input_names").and_then(Value::as_array) {
            Some(names) => names.iter().any(|name| name == "token_type_ids"),
            None => named == Class::Bert,
        };
        let types = has_types.then(|| config.get("type_vocab_size").and_then(Value::as_u64).unwrap_or(2));
        let direction = match settings.get("truncation_side") {
            Some(side) if side == "left" => TruncationDirection::Left,
            Some(_) => TruncationDirection::Right,
            None => stored.unwrap_or(TruncationDirection::Right),
        };
        let special = Special::read(folder, &inner, class, (&settings, &config))?;
        let before = before(&inner).with_context(|| format!("cannot use `{}`", path.display()))?;
        let mut hasher = blake3::Hasher::new();
        let is_left = matches!(direction, TruncationDirection::Left);
        hasher.update(&bytes).update(format!("{changes}|{types:?}|{is_left}").as_bytes());
        if split {
            hasher.update(b"|split");
        }
        let files = FILES.iter().map(|name| folder.join(name)).filter(|p| p.is_file()).collect();
        let hash = hasher.finalize().to_hex().to_string();
        let is_roberta = config.get("model_type").is_some_and(|name| name == "roberta");
        let mut read =
            Self { inner, direction, types, before, embedded: None, special, is_roberta, hash, files };
        let embedded =
            config.get("vocab_size").and_then(Value::as_u64).and_then(|size| u32::try_from(size).ok());
        read.embedded = embedded.filter(|size| read.vocab_size() > *size as usize);
        Ok(read)
    }

    /// Encodes a text, or a pair, with special tokens; of a pair the longer text is cut first.
    ///
    /// # Errors
    /// When the special tokens alone exceed `max_length`, or the model does not know a token or its type.
    ///
    /// ```
    /// let tokenizer = loraxs::data::tokenize::Tokenizer::load("quickstart/base".as_ref())?;
    /// let ids = tokenizer.encode("the key is in oslo.", None, 96)?.ids;
    /// assert_eq!(tokenizer.decode(&ids, false)?, "[CLS] the key is in oslo. [SEP]");
    /// # anyhow::Ok(())
    /// ```
    pub fn encode(&self, text: &str, pair: Option<&str>, max_length: usize) -> Result<Encoding> {
        let added = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(pair.is_some()));
        if max_length < added {
            let message = format!("`max_length` is {max_length}, but the special tokens alone are {added}");
            return Err(usage(message).into());
        }
        let max_length = max_length - added;
        let ((first, cut), second) =
            (self.part(text, max_length)?, pair.map(|pair| self.part(pair, max_length)));
        let (second, cut_too) =
            second.transpose()?.map_or((None, false), |(second, cut)| (Some(second), cut));
        let whole = first.len() + second.as_ref().map_or(0, tokenizers::Encoding::len);
        let params = TruncationParams {
            direction: self.direction,
            max_length,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        let encoding = guarded(|| {
            let (first, second) = truncate_encodings(first, second, &params)?;
            self.inner.post_process(first, second, true)
        });
        let encoding = encoding.map_err(failed)?;
        let types = self.types_of(&encoding)?;
        let ids = self.embeddable(encoding.get_ids().to_vec())?;
        Ok(Encoding { ids, types, whole: whole + added, truncated: cut || cut_too || whole > max_length })
    }

    /// Returns the tokens of a text without special ones, and whether some of a very long text are left out
    /// beyond `enough`, which are counted from the side that truncation keeps.
    fn part(&self, text: &str, enough: usize) -> Result<(tokenizers::Encoding, bool)> {
        let is_left = matches!(self.direction, TruncationDirection::Left);
        let encode = |part: &str| guarded(|| self.inner.encode_fast(part, false)).map_err(failed);
        long_texts::first(text, enough, is_left, encode, tokenizers::Encoding::len)
    }

    /// Refuses tokens that the model does not embed.
    pub(super) fn embeddable(&self, ids: Vec<u32>) -> Result<Vec<u32>> {
        let Some(beyond) = self.embedded.and_then(|size| ids.iter().find(|id| **id >= size)) else {
            return Ok(ids);
        };
        let text = self.inner.id_to_token(*beyond).unwrap_or_default();
        let size = self.embedded.unwrap_or_default();
        Err(fault(format!("token `{text}` has the id {beyond}, but the model's vocabulary ends at {size}"))
            .hint("remove the token from the text, or use a base with an embedding for it")
            .into())
    }

    pub(super) fn types_of(&self, encoding: &tokenizers::Encoding) -> Result<Vec<u8>> {
        let Some(known) = self.types else { return Ok(vec![0; encoding.len()]) };
        let types = encoding.get_type_ids();
        match types.iter().find(|&&t| u64::from(t) >= known || t > u32::from(u8::MAX)) {
            Some(found) => {
                let message = format!(
                    "the tokenizer gives token type {found}, but the `type_vocab_size` of config.json is {known}"
                );
                let hint = "use a base that supports pairs of texts, or list `model_input_names` without \
                            `token_type_ids` in tokenizer_config.json";
                Err(usage(message).hint(hint).into())
            }
            #[expect(clippy::cast_possible_truncation, reason = "compared above")]
            None => Ok(types.iter().map(|&t| t as u8).collect()),
        }
    }

    /// Returns the token ids of a whole text with the special tokens that the tokenizer adds.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, or the model does not know a token.
    pub fn encode_whole(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, true)).map_err(failed)?;
        self.embeddable(encoding.get_ids().to_vec())
    }

    /// Returns the token ids of a text to be continued: with the special tokens that the tokenizer puts
    /// before a text, unless the text begins with them itself, and without those that it puts after one. Of a
    /// text of more than `enough` tokens, returns at least that many, and whether some are left out.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, or the model does not know a token.
    pub fn encode_open(&self, text: &str, enough: usize) -> Result<(Vec<u32>, bool)> {
        let encode = |part: &str| guarded(|| self.inner.encode_fast(part, false)).map_err(failed);
        let (encoding, cut) = long_texts::first(text, enough, false, encode, tokenizers::Encoding::len)?;
        let ids = encoding.get_ids();
        // Special tokens that the text itself begins with are not added again.
        let own =
            (0..=self.before.len()).find(|own| ids.starts_with(&self.before[*own..])).unwrap_or_default();
        Ok((self.embeddable([&self.before[..own], ids].concat())?, cut))
    }

    /// Returns the token ids of a text that already holds its special tokens, and the bytes each stands for.
    /// Of a text of more than `enough` tokens, returns at least that many, and whether some are left out.
    ///
    /// # Errors
    /// When the tokenizer refuses the text, or the model does not know a token.
    pub fn encode_plain(&self, text: &str, enough: usize) -> Result<(Vec<u32>, Vec<Range<usize>>, bool)> {
        let encode = |part: &str| guarded(|| self.inner.encode(part, false)).map_err(failed);
        let (encoding, cut) = long_texts::first(text, enough, false, encode, tokenizers::Encoding::len)?;
        let places = encoding.get_offsets().iter().map(|(start, end)| *start..*end).collect();
        Ok((self.embeddable(encoding.get_ids().to_vec())?, places, cut))
    }

    /// The token that ends a text: `eos_token` of the tokenizer, else the first `eos_token_id` of
    /// `generation_config.json` or `config.json`.
    ///
    /// # Errors
    /// When none of them names one.
    pub fn eos(&self) -> Result<u32> {
        self.special.eos.ok_or_else(|| {
            let named = self.special.tokens.iter().find(|(name, _)| *name == "eos_token");
            let unknown = named.map(|(_, text)| format!(": `eos_token` `{text}` is not in tokenizer.json"));
            fault(format!("no end-of-text token is known{}", unknown.unwrap_or_default()))
                .hint("set `eos_token` in tokenizer_config.json, or `eos_token_id` in config.json")
                .into()
        })
    }

    /// Every token that ends a generation: those of `generation_config.json`, else of `config.json`, and `eos_token`.
    pub fn ends(&self) -> &[u32] {
        &self.special.ends
    }

    /// Returns the folder's own chat template, in Jinja.
    pub fn chat_template(&self) -> Option<&str> {
        self.special.chat_template.as_deref()
    }

    /// Returns the folder's chat template of conversations with tools, if they have their own.
    pub fn tool_template(&self) -> Option<&str> {
        self.special.tool_template.as_deref()
    }

    /// Returns special tokens by their names in chat templates, such as `bos_token`.
    pub fn named_tokens(&self) -> &[(&'static str, String)] {
        &self.special.tokens
    }

    /// Returns the id of a special token by its name in chat templates, if the vocabulary has it.
    pub fn token_id(&self, name: &str) -> Option<u32> {
        let (_, text) = self.special.tokens.iter().find(|(known, _)| *known == name)?;
        self.inner.token_to_id(text)
    }

    /// Returns the texts of all special tokens, such as `<s>`.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> {
        self.special.texts.iter().map(String::as_str)
    }

    /// Decodes token ids to text.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special)).map_err(failed)
    }

    /// Returns an example as text, with trained tokens between `⟦` and `⟧` and special tokens written out.
    ///
    /// # Errors
    /// When the tokenizer's decoder refuses the tokens.
    pub fn show(&self, example: &Example) -> Result<String> {
        let is_trained = |i: usize| example.trained.get(i).is_some_and(|t| *t == 1);
        let decoded = |end: usize| self.decode(example.ids.get(..end).unwrap_or_default(), false);
        let (mut text, mut start) = (String::new(), 0);
        while start < example.ids.len() {
            let rest = start..example.ids.len();
            let end = start + rest.take_while(|i| is_trained(*i) == is_trained(start)).count();
            // Decode the preceding tokens too: some decoders strip the space off the start of a text
            let (before, with) = (decoded(start)?, decoded(end)?);
            let added = with.strip_prefix(&before).unwrap_or(&with);
            text += &if is_trained(start) { format!("⟦{added}⟧") } else { added.to_owned() };
            start = end;
        }
        Ok(text)
    }

    /// Returns the hex digest of `tokenizer.json` and of the settings that change what it yields.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Returns one more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        size(&self.inner, true)
    }

    /// Like [`Self::vocab_size`], without added tokens.
    pub fn own_size(&self) -> usize {
        size(&self.inner, false)
    }

    /// Returns the files that make up this tokenizer, to be copied next to a saved model.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

fn missing(folder: &Path) -> Fault {
    let shown = folder.display();
    // The files of the cache are links to contents that others share: nothing may be saved over them.
    let cached = folder.parent().is_some_and(|parent| parent.ends_with("snapshots"));
    let (first, place) = match cached {
        true => ("download the repository with `hf download ID --local-dir DIR`, then ", "DIR".to_owned()),
        false => ("", shown.to_string()),
    };
    fault(format!("no `tokenizer.json` in `{shown}`")).hint(format!(
        "{first}create it once in Python: `from transformers import AutoTokenizer; \
         AutoTokenizer.from_pretrained(\"{place}\").save_pretrained(\"{place}\")`"
    ))
}

fn size(inner: &tokenizers::Tokenizer, with_added: bool) -> usize {
    inner.get_vocab(with_added).into_values().max().map_or(0, |id| id as usize + 1)
}

/// Returns the tokens that the template of special tokens puts before a text.
fn before(inner: &tokenizers::Tokenizer) -> Result<Vec<u32>> {
    let probe = || tokenizers::Encoding::from_tokens(vec![Token::new(0, String::new(), (0, 0))], 0);
    let framed = guarded(|| inner.post_process(probe(), None, true)).map_err(failed)?;
    let special =
        framed.get_ids().iter().zip(framed.get_special_tokens_mask()).take_while(|(_, mask)| **mask == 1);
    Ok(special.map(|(id, _)| *id).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::fault::hint_of;

    const WORDS: &str = "[PAD] [UNK] [CLS] [SEP] a b c d e f A é";

    /// A folder with a word-piece `tokenizer.json` whose stored truncation and padding must not count.
    fn folder(settings: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let vocab: serde_json::Map<String, Value> =
            WORDS.split(' ').enumerate().map(|(i, w)| (w.to_owned(), json!(i))).collect();
        let special: Vec<Value> = WORDS
            .split(' ')
            .take(4)
            .enumerate()
            .map(|(i, w)| {
                json!({"id": i, "content": w, "special": true, "normalized": false, "single_word": false,
                       "lstrip": false, "rstrip": false})
            })
            .collect();
        let tokenizer = json!({
            "version": "1.0",
            "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
            "padding": {"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
                        "pad_token": "[PAD]", "pad_to_multiple_of": null},
            "added_tokens": special, "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
            "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab},
        });
        fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        for (name, value) in settings {
            fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        folder
    }

    fn encode(settings: &[(&str, Value)], text: &str, pair: Option<&str>) -> (Vec<u32>, Vec<u8>) {
        let folder = folder(settings);
        let encoding = Tokenizer::load(folder.path()).unwrap().encode(text, pair, 20).unwrap();
        (encoding.ids, encoding.types)
    }

    #[test]
    fn longest_first_cuts_the_longer_text_and_keeps_the_frame() {
        let folder = folder(&[("config.json", json!({"model_type": "bert"}))]);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let ids = |text, pair, length| tokenizer.encode(text, pair, length).unwrap().ids;
        assert_eq!(ids("a b c d e f", None, 20), [2, 4, 5, 6, 7, 8, 9, 3]);
        assert_eq!(ids("a b c d e f", None, 4), [2, 4, 5, 3]);
        assert_eq!(ids("a b c d e", Some("f"), 7), [2, 4, 5, 6, 3, 9, 3]);
        // Both too long: halves, and the odd token goes to the longer text
        assert_eq!(ids("a b c d e", Some("f e d"), 8), [2, 4, 5, 6, 3, 9, 8, 3]);
        let encoding = tokenizer.encode("a b", Some("c d"), 7).unwrap();
        assert_eq!((encoding.types, encoding.truncated), (vec![0, 0, 0, 0, 1, 1, 1], false));
        assert!(tokenizer.encode("a b", Some("c d"), 6).unwrap().truncated);
        assert_eq!(ids("a", Some("b"), 3), [2, 3, 3]);
        let error = tokenizer.encode("a", Some("b"), 2).unwrap_err().to_string();
        assert_eq!(error, "`max_length` is 2, but the special tokens alone are 3");
        assert_eq!(ids("b", Some("c"), 20), [2, 5, 3, 6, 3]);
        assert_eq!(tokenizer.decode(&[2, 4, 5, 3], true).unwrap(), "a b");
        assert_eq!(tokenizer.vocab_size(), 12);
    }

    #[test]
    fn a_bert_tokenizer_takes_its_case_from_its_settings() {
        let bert = json!({"model_type": "bert"});
        assert_eq!(encode(&[], "A", None).0, [2, 10, 3]);
        assert_eq!(encode(&[("config.json", bert.clone())], "A É", None).0, [2, 4, 8, 3]);
        let cased = json!({"do_lower_case": false});
        assert_eq!(
            encode(&[("config.json", bert.clone()), ("tokenizer_config.json", cased)], "A é", None).0,
            [2, 10, 11, 3]
        );
        let plain = json!({"tokenizer_class": "PreTrainedTokenizerFast", "do_lower_case": true});
        assert_eq!(
            encode(&[("config.json", bert), ("tokenizer_config.json", plain)], "A", None).0,
            [2, 10, 3]
        );
    }

    #[test]
    fn nothing_is_to_be_saved_into_the_cache_of_the_hub() {
        let cache = tempfile::tempdir().unwrap();
        let snapshot = cache.path().join("snapshots/0123");
        fs::create_dir_all(&snapshot).unwrap();
        let hint = |folder: &Path| hint_of(&Tokenizer::load(folder).unwrap_err()).unwrap().to_owned();
        assert!(hint(&snapshot).contains("save_pretrained(\"DIR\")"), "{}", hint(&snapshot));
        assert!(hint(cache.path()).contains(&format!("save_pretrained(\"{}\")", cache.path().display())));
    }

    #[test]
    fn token_types_follow_the_model_input_names() {
        let types = |settings: Value| encode(&[("tokenizer_config.json", settings)], "a", Some("b")).1;
        assert_eq!(types(json!({})), [0, 0, 0, 0, 0]);
        assert_eq!(types(json!({"tokenizer_class": "BertTokenizerFast"})), [0, 0, 0, 1, 1]);
        let names = json!(["input_ids", "attention_mask"]);
        assert_eq!(types(json!({"tokenizer_class": "BertTokenizer", "model_input_names": names})), [0; 5]);
        let names = json!(["input_ids", "token_type_ids"]);
        assert_eq!(types(json!({"model_input_names": names})), [0, 0, 0, 1, 1]);
        let folder = folder(&[("config.json", json!({"model_type": "bert", "type_vocab_size": 1}))]);
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(tokenizer.encode("a", None, 20).unwrap().types, [0, 0, 0]);
        let error = tokenizer.encode("a", Some("b"), 20).unwrap_err().to_string();
        assert!(error.starts_with("the tokenizer gives token type 1, but the `type_vocab_size`"), "{error}");
    }

    #[test]
    fn the_hash_changes_with_what_changes_tokens() {
        let hash = |settings: &[(&str, Value)]| {
            let folder = folder(settings);
            Tokenizer::load(folder.path()).unwrap().hash().to_owned()
        };
        let bert = |lower: bool| {
            let settings =
                json!({"do_lower_case": lower, "tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"});
            hash(&[("tokenizer_config.json", settings)])
        };
        assert_eq!(hash(&[]), hash(&[("special_tokens_map.json", json!({}))]));
        assert_ne!(bert(true), bert(false));
        assert_ne!(hash(&[]), bert(true));
    }

    #[test]
    fn a_missing_or_broken_tokenizer_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(error.to_string().starts_with("no `tokenizer.json` in `"), "{error}");
        assert!(hint_of(&error).unwrap().contains("save_pretrained"));
        fs::write(folder.path().join("tokenizer.json"), "{\"model\": 3}").unwrap();
        let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json` is not a tokenizer: "), "{error}");
    }
}
