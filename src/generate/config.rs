//! A checkpoint's `generation_config.json`, and how each of its settings is treated.
//!
//! Transformers uses them for whatever a call leaves open. Here command line and catalog always decide how
//! tokens are chosen and how many (greedily by default, as in lm-evaluation-harness), so such settings are
//! left to them; those that change the text of a greedy or a beam search are applied. A checkpoint without the
//! file may have them in its `config.json`, where older versions wrote them.

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::{BeamSearch, EarlyStopping, Penalties};
use crate::fault::{Result, beginning, fault};
use crate::files;

/// Treatment of a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Has the same effect as in Transformers.
    Heeded,
    /// Decided by command line and catalog; reported if it differs from them.
    Left,
    /// Affects sampling only; reported if the checkpoint asks for sampling.
    Drawn,
    /// Does not change the text.
    Idle,
    /// Would change the text but is not supported here; reported.
    Missing,
}

/// Every setting of Transformers 5.24 (`generation/configuration_utils.py`) by its verdict.
const SETTINGS: [(Support, &str); 5] = [
    (
        Support::Heeded,
        "bad_words_ids begin_suppress_tokens early_stopping encoder_no_repeat_ngram_size \
         encoder_repetition_penalty eos_token_id exponential_decay_length_penalty forced_bos_token_id \
         forced_eos_token_id length_penalty min_length min_new_tokens no_repeat_ngram_size \
         remove_invalid_values renormalize_logits repetition_penalty sequence_bias stop_strings \
         suppress_tokens",
    ),
    (Support::Left, "do_sample max_length max_new_tokens num_beams num_return_sequences"),
    (Support::Drawn, "epsilon_cutoff eta_cutoff min_p temperature top_h top_k top_p typical_p"),
    (
        Support::Missing,
        "assistant_ensemble_weight cache_implementation constraints diversity_penalty dola_layers \
         force_words_ids guidance_scale max_time num_beam_groups penalty_alpha token_healing \
         watermarking_config",
    ),
    (
        Support::Idle,
        "_from_model_config assistant_confidence_threshold assistant_early_exit assistant_lookbehind \
         bos_token_id cache_config compile_config continuous_batching_config decoder_start_token_id \
         disable_compile is_assistant low_memory max_cache_len max_matching_ngram_size \
         num_assistant_tokens num_assistant_tokens_schedule output_attentions output_hidden_states \
         output_logits output_scores pad_token_id prefill_chunk_size prompt_lookup_num_tokens \
         return_dict_in_generate speculation_type target_lookbehind transformers_version use_cache \
         use_mtp",
    ),
];

/// Values, in JSON, at which some settings have no effect, besides `null`.
const NEUTRAL: [(&str, &str); 5] = [
    ("do_sample token_healing", "false"),
    ("epsilon_cutoff eta_cutoff min_p top_k diversity_penalty penalty_alpha", "0"),
    ("num_beams num_return_sequences temperature top_p typical_p guidance_scale num_beam_groups", "1"),
    ("max_length", "20"),
    ("cache_implementation", r#""dynamic" "static" "offloaded" "offloaded_static" "hybrid" "paged""#),
];

/// Returns every known setting with its verdict.
pub fn settings() -> impl Iterator<Item = (&'static str, Support)> {
    SETTINGS
        .into_iter()
        .flat_map(|(verdict, names)| names.split_whitespace().map(move |name| (name, verdict)))
}

/// A checkpoint's settings for generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The file that was read.
    path: PathBuf,
    /// Penalties, bans and forced tokens.
    pub penalties: Penalties,
    /// Exponent of the length in a beam search.
    pub length_penalty: f64,
    /// Condition that ends a beam search.
    pub early_stopping: EarlyStopping,
    /// Texts that end a completion.
    pub stop_strings: Vec<String>,
    /// Settings left to command line and catalog, each with its value.
    left: Vec<(String, Value)>,
    /// Settings that would change the text but are not supported here.
    missing: Vec<(String, Value)>,
}

impl Asked {
    /// Reads the settings of the checkpoint in `folder`, whose vocabulary has `vocabulary` tokens.
    ///
    /// # Errors
    /// When the file is not JSON, or a setting that applies has a wrong value.
    pub fn read(folder: &Path, vocabulary: i64) -> Result<Self> {
        let own = folder.join("generation_config.json");
        let is_own = own.is_file();
        let path = if is_own { own } else { folder.join("config.json") };
        let fields: Map<String, Value> = if path.is_file() { files::read_json(&path)? } else { Map::new() };
        let fields: Map<String, Value> = fields.into_iter().filter(|(_, value)| !value.is_null()).collect();
        let reader = Reader { path: &path, fields: &fields, vocabulary };
        let mut asked = Self {
            penalties: reader.penalties()?,
            length_penalty: reader.number("length_penalty", 1.0, |_| true)?,
            early_stopping: reader.early_stopping()?,
            stop_strings: reader.texts("stop_strings")?,
            left: Vec::new(),
            missing: Vec::new(),
            path: path.clone(),
        };
        reader.ids("eos_token_id")?;
        let draws = fields.get("do_sample").is_some_and(|draws| draws == true);
        for (key, value) in &fields {
            let named = (key.clone(), value.clone());
            match settings().find(|(name, _)| name == key) {
                _ if does_nothing(key, value) => {}
                Some((_, Support::Left)) => asked.left.push(named),
                Some((_, Support::Drawn)) if draws => asked.left.push(named),
                Some((_, Support::Missing)) => asked.missing.push(named),
                Some(_) => {}
                // `config.json` has many unrelated fields.
                None if is_own && !key.starts_with('_') => asked.missing.push(named),
                None => {}
            }
        }
        Ok(asked)
    }

    /// Returns a line on settings left to command line and catalog, except those `decided` there the same
    /// way, and a line on settings without effect; each only if there are any.
    pub fn remarks(&self, decided: impl Fn(&str, &Value) -> bool) -> Vec<String> {
        let names = |list: &[(String, Value)]| {
            let open = list.iter().filter(|(key, value)| !decided(key, value));
            open.map(|(key, value)| format!("`{key}` {}", beginning(&value.to_string(), 40)))
                .collect::<Vec<_>>()
                .join(", ")
        };
        let left = (names(&self.left), "set by the command line and the catalog instead");
        let missing = (names(&self.missing), "ignored, so completions may differ from Transformers'");
        let told = [left, missing].into_iter().filter(|(names, _)| !names.is_empty());
        told.map(|(names, fate)| format!("`{}`: {fate}: {names}", self.path.display())).collect()
    }

    /// Returns a beam search of `beams` beams with the checkpoint's settings.
    pub fn search(&self, beams: usize) -> BeamSearch {
        BeamSearch { beams, length_penalty: self.length_penalty, early_stopping: self.early_stopping }
    }
}

/// Returns true if `value` is one of those at which a setting has no effect.
fn does_nothing(key: &str, value: &Value) -> bool {
    let of = NEUTRAL.iter().filter(|(keys, _)| keys.split(' ').any(|known| known == key));
    let mut idle =
        of.flat_map(|(_, values)| serde_json::Deserializer::from_str(values).into_iter::<Value>().flatten());
    idle.any(|idle| idle == *value || (value.is_number() && idle.as_f64() == value.as_f64()))
}

/// Reads settings one by one.
struct Reader<'a> {
    path: &'a Path,
    fields: &'a Map<String, Value>,
    vocabulary: i64,
}

impl Reader<'_> {
    fn penalties(&self) -> Result<Penalties> {
        let above_0 = |number: f64| number > 0.0;
        let penalties = Penalties {
            sequence_bias: self.biases()?,
            encoder_repetition_penalty: self.number("encoder_repetition_penalty", 1.0, above_0)?,
            repetition_penalty: self.number("repetition_penalty", 1.0, above_0)?,
            no_repeat_ngram_size: self.count("no_repeat_ngram_size")?,
            encoder_no_repeat_ngram_size: self.count("encoder_no_repeat_ngram_size")?,
            bad_words_ids: self.value("bad_words_ids", "a list of lists of token ids")?.unwrap_or_default(),
            // The total length counts only if the completion's minimum is not given.
            min_length: if self.fields.contains_key("min_new_tokens") {
                0
            } else {
                self.count("min_length")?
            },
            min_new_tokens: self.count("min_new_tokens")?,
            forced_bos_token_id: self.value("forced_bos_token_id", "a token id")?,
            forced_eos_token_id: self.ids("forced_eos_token_id")?,
            remove_invalid_values: self.flag("remove_invalid_values")?,
            exponential_decay_length_penalty: self
                .value("exponential_decay_length_penalty", "a number of tokens and a factor")?,
            suppress_tokens: self.known("suppress_tokens")?,
            begin_suppress_tokens: self.known("begin_suppress_tokens")?,
            renormalize_logits: self.flag("renormalize_logits")?,
        };
        let words = penalties.sequence_bias.iter().map(|(ids, _)| ("sequence_bias", ids.as_slice()));
        let words = words.chain(penalties.bad_words_ids.iter().map(|ids| ("bad_words_ids", ids.as_slice())));
        let forced = [
            ("forced_bos_token_id", penalties.forced_bos_token_id.as_slice()),
            ("forced_eos_token_id", penalties.forced_eos_token_id.as_slice()),
        ];
        for (key, ids) in words.chain(forced) {
            if let Some(id) = ids.iter().find(|id| i64::from(**id) >= self.vocabulary) {
                return Err(self.wrong(
                    key,
                    &format!("a token below the vocabulary's {}", self.vocabulary),
                    &id.to_string(),
                ));
            }
        }
        Ok(penalties)
    }

    fn value<T: DeserializeOwned>(&self, key: &str, expected: &str) -> Result<Option<T>> {
        let Some(value) = self.fields.get(key) else { return Ok(None) };
        T::deserialize(value).map(Some).map_err(|_| self.wrong(key, expected, &value.to_string()))
    }

    fn wrong(&self, key: &str, expected: &str, found: &str) -> anyhow::Error {
        let place = self.path.display();
        fault(format!("`{place}`: `{key}`: expected {expected}, found `{}`", beginning(found, 40)))
            .hint("correct it, or remove it from the file")
            .into()
    }

    fn number(&self, key: &str, default: f64, is_right: impl Fn(f64) -> bool) -> Result<f64> {
        match self.value::<f64>(key, "a number")? {
            None => Ok(default),
            Some(number) if is_right(number) => Ok(number),
            Some(number) => Err(self.wrong(key, "a number above 0", &number.to_string())),
        }
    }

    fn count(&self, key: &str) -> Result<usize> {
        Ok(self.value(key, "a whole number from 0")?.unwrap_or(0))
    }

    fn flag(&self, key: &str) -> Result<bool> {
        Ok(self.value(key, "`true` or `false`")?.unwrap_or(false))
    }

    /// Reads one token id or several.
    fn ids(&self, key: &str) -> Result<Vec<u32>> {
        match self.fields.get(key) {
            Some(Value::Array(_)) => Ok(self.value(key, "token ids")?.unwrap_or_default()),
            _ => Ok(self.value::<u32>(key, "a token id or a list of them")?.into_iter().collect()),
        }
    }

    /// Reads the tokens of a list that the vocabulary has; files use others to mean "none".
    fn known(&self, key: &str) -> Result<Vec<u32>> {
        let ids: Vec<i64> = self.value(key, "a list of token ids")?.unwrap_or_default();
        let known = ids.into_iter().filter(|id| (0..self.vocabulary).contains(id));
        Ok(known.filter_map(|id| u32::try_from(id).ok()).collect())
    }

    /// Reads token sequences and the biases added for them.
    fn biases(&self) -> Result<Vec<(Vec<u32>, f32)>> {
        let pairs: Option<Vec<(Vec<u32>, f32)>> =
            self.value("sequence_bias", "a list of pairs, each a list of token ids and a number")?;
        let pairs = pairs.unwrap_or_default();
        // The last of equal sequences wins.
        let is_last = |i: usize| pairs.iter().skip(i + 1).all(|(ids, _)| *ids != pairs[i].0);
        Ok((0..pairs.len()).filter(|i| is_last(*i)).map(|i| pairs[i].clone()).collect())
    }

    fn texts(&self, key: &str) -> Result<Vec<String>> {
        let texts = match self.fields.get(key) {
            Some(Value::String(text)) => vec![text.clone()],
            _ => self.value(key, "a text or a list of texts")?.unwrap_or_default(),
        };
        if texts.iter().any(String::is_empty) {
            return Err(self.wrong(key, "texts that are not empty", ""));
        }
        Ok(texts)
    }

    fn early_stopping(&self) -> Result<EarlyStopping> {
        match self.fields.get("early_stopping") {
            None | Some(Value::Bool(false)) => Ok(EarlyStopping::Unlikely),
            Some(Value::Bool(true)) => Ok(EarlyStopping::Full),
            Some(Value::String(word)) if word == "never" => Ok(EarlyStopping::Impossible),
            Some(other) => {
                Err(self.wrong("early_stopping", "`true`, `false` or `\"never\"`", &other.to_string()))
            }
        }
    }
}
