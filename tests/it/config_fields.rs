//! Every field of `config.json` that Transformers' configuration classes and models read (`scripts/reference/config_fields.py`):
//! what this program makes of it, by a list, and that its numbers are those of Transformers wherever it gives any.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::Trained;
use loraxs::models::{Base, Build, Config, Model};
use loraxs::nn::layout::{Positions, Sequence};
use loraxs::nn::{Packed, Pass};
use serde::Deserialize;
use serde_json::{Map, Value};
use tch::{Device, Kind, no_grad};

use crate::bench::copied;
use crate::support::{alone, distance, encoders, fixture, json, numbers};

/// What becomes of a field; the first of these that any of its cases shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// It changes the numbers as it does in Transformers; what cannot be computed is refused by name.
    Computed,
    /// What is not neutral is refused by name.
    Refused,
    /// It is read, and these logits do not depend on it: dropout, padding, names of classes, lengths.
    Read,
    /// What Transformers takes is without effect, as there.
    Ignored,
    /// Nothing else than what it is fits the tensors.
    Fits,
}
use Verdict::{Computed, Fits, Ignored, Read, Refused};

/// The verdict on each field of each family, as the cases show it.
const VERDICTS: &str = "
    add_cross_attention: Ignored encoders
    architectures: Ignored decoders encoders
    attention_bias: Computed llama
    attention_bias: Refused mistral phi3
    attention_bias: Ignored gemma gemma2 qwen2 qwen3
    attention_chunk_size: Refused decoders
    attention_dropout: Read decoders
    attention_probs_dropout_prob: Read encoders
    attn_implementation: Ignored decoders encoders
    attn_logit_softcapping: Computed gemma2
    attn_logit_softcapping: Refused gemma llama mistral phi3 qwen2 qwen3
    auto_map: Ignored decoders encoders
    bos_token_id: Ignored decoders encoders
    chunk_size_feed_forward: Ignored decoders encoders
    classifier_dropout: Read encoders
    dtype: Ignored decoders encoders
    embd_pdrop: Ignored decoders
    embedding_size: Ignored encoders
    eos_token_id: Ignored decoders encoders
    experts_implementation: Ignored decoders encoders
    final_logit_softcapping: Computed gemma2
    final_logit_softcapping: Refused gemma llama mistral phi3 qwen2 qwen3
    finetuning_task: Ignored encoders
    gradient_checkpointing: Ignored decoders encoders
    head_dim: Ignored phi3 qwen2
    head_dim: Fits gemma gemma2 llama mistral qwen3
    hidden_act: Computed encoders gemma llama mistral phi3 qwen2 qwen3
    hidden_act: Ignored gemma2
    hidden_activation: Computed gemma2
    hidden_activation: Ignored gemma llama mistral phi3 qwen2 qwen3
    hidden_dropout_prob: Read encoders
    hidden_dropout_prob: Ignored decoders
    hidden_size: Fits decoders encoders
    id2label: Read decoders encoders
    initializer_range: Read decoders encoders
    intermediate_size: Fits decoders encoders
    is_causal: Refused decoders
    is_causal: Ignored encoders
    is_decoder: Refused encoders
    is_decoder: Ignored decoders
    is_encoder_decoder: Refused decoders
    is_encoder_decoder: Ignored encoders
    label2id: Ignored decoders encoders
    layer_norm_eps: Computed encoders
    layer_types: Computed gemma2 qwen2
    layer_types: Refused mistral phi3
    layer_types: Ignored gemma llama qwen3
    max_position_embeddings: Refused decoders
    max_position_embeddings: Fits encoders
    max_window_layers: Computed qwen2
    max_window_layers: Ignored gemma gemma2 llama mistral phi3 qwen3
    mlp_bias: Computed llama
    mlp_bias: Refused gemma gemma2 mistral phi3 qwen2 qwen3
    no_rope_layers: Refused decoders
    num_attention_heads: Computed encoders
    num_attention_heads: Ignored phi3
    num_attention_heads: Fits gemma gemma2 llama mistral qwen2 qwen3
    num_hidden_layers: Computed encoders gemma llama mistral phi3 qwen2
    num_hidden_layers: Fits gemma2 qwen3
    num_key_value_heads: Ignored gemma phi3
    num_key_value_heads: Fits gemma2 llama mistral qwen2 qwen3
    num_labels: Read decoders
    num_labels: Fits encoders
    original_max_position_embeddings: Ignored decoders
    output_attentions: Ignored decoders encoders
    output_hidden_states: Ignored decoders encoders
    pad_token_id: Computed camembert roberta xlm-roberta
    pad_token_id: Refused bert
    pad_token_id: Read decoders
    partial_rotary_factor: Ignored decoders
    per_layer_config: Ignored decoders encoders
    position_embedding_type: Refused encoders
    pretraining_tp: Ignored decoders
    problem_type: Ignored decoders encoders
    pruned_heads: Ignored decoders encoders
    query_pre_attn_scalar: Computed gemma2
    query_pre_attn_scalar: Ignored gemma llama mistral phi3 qwen2 qwen3
    resid_pdrop: Read phi3
    resid_pdrop: Ignored gemma gemma2 llama mistral qwen2 qwen3
    return_dict: Ignored decoders encoders
    rms_norm_eps: Computed decoders
    rope_parameters: Computed decoders
    rope_scaling: Computed decoders
    rope_theta: Computed qwen2
    rope_theta: Ignored gemma gemma2 llama mistral phi3 qwen3
    rotary_dim: Ignored decoders
    rotary_pct: Ignored decoders
    sliding_window: Computed gemma2 mistral phi3 qwen2
    sliding_window: Refused gemma llama qwen3
    task_specific_params: Ignored decoders encoders
    tie_last_hidden_states: Ignored decoders encoders
    tie_word_embeddings: Read llama mistral phi3
    tie_word_embeddings: Ignored encoders gemma gemma2 qwen2 qwen3
    torch_dtype: Ignored decoders encoders
    torchscript: Ignored decoders encoders
    transformers_version: Ignored decoders encoders
    type_vocab_size: Ignored encoders
    use_bidirectional_attention: Refused decoders
    use_cache: Ignored decoders encoders
    use_qk_norm: Refused decoders
    use_sliding_window: Computed qwen2
    use_sliding_window: Ignored gemma gemma2 llama mistral phi3 qwen3
    vocab_size: Fits decoders encoders
";

/// The list, by family and field.
fn verdicts() -> BTreeMap<(String, String), String> {
    let decoders = ["gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3"];
    let encoders = ["bert", "camembert", "roberta", "xlm-roberta"];
    let mut found = BTreeMap::new();
    for line in VERDICTS.lines().filter(|line| !line.trim().is_empty()) {
        let (field, rest) = line.trim().split_once(": ").unwrap();
        let (verdict, families) = rest.split_once(' ').unwrap();
        for group in families.split(' ') {
            let families = match group {
                "decoders" => decoders.to_vec(),
                "encoders" => encoders.to_vec(),
                family => vec![family],
            };
            for family in families {
                let before = found.insert((family.to_owned(), field.to_owned()), verdict.to_owned());
                assert!(before.is_none(), "{family}, {field}: two verdicts");
            }
        }
    }
    found
}

/// Where this program takes what Transformers 5.24 fails on; beside these, null is as good as no key.
const LENIENT: [(&str, &str); 4] = [
    ("return_dict", "false is about the form of an answer in Python"),
    ("chunk_size_feed_forward", "chunks need not divide a length"),
    ("id2label", "without it there are as many classes as outputs"),
    ("pad_token_id", "the default of Phi-3 may lie beyond a small vocabulary"),
];

#[derive(Deserialize)]
struct Fixture {
    ids: Vec<u32>,
    families: BTreeMap<String, Family>,
}

#[derive(Deserialize)]
struct Family {
    checkpoint: String,
    fields: BTreeSet<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    set: Map<String, Value>,
    drop: Vec<String>,
    outcome: Outcome,
    #[serde(default)]
    cached: bool,
}

/// What Transformers makes of a case.
#[derive(Deserialize, PartialEq)]
#[serde(untagged)]
enum Outcome {
    Word(String),
    Logits(Vec<f64>),
}

/// What this program makes of it: its config without the file itself, and logits; or a refusal.
type Found = Result<(String, Vec<f64>), String>;

fn found(folder: &Path, ids: &[u32]) -> Found {
    let of = || -> loraxs::fault::Result<(String, Vec<f64>)> {
        let base = Base::open(folder)?;
        let shown = match base.config.clone() {
            Config::Encoder(mut config) => {
                config.trunk.raw.clear();
                format!("{config:?}")
            }
            Config::Decoder(mut config) => {
                config.trunk.raw.clear();
                format!("{config:?}")
            }
        };
        let head = if base.config.is_decoder() { None } else { Some(base.head("model")?) };
        let build =
            Build { devices: Device::Cpu.into(), kind: Kind::Float, head, seeds: vec![0], train_base: false };
        let batch = |rule: Positions| Packed::new(&[vec![Sequence { ids, types: &[] }]], rule, Device::Cpu);
        let pass = Pass::evaluation();
        let logits = match Model::load(&base, &build, &mut Trained::new(1))? {
            Model::Classifier(model) => no_grad(|| model.forward(&batch(base.config.position_rule), &pass))?,
            Model::Language(model) => {
                no_grad(|| Ok(model.logits(&model.hidden(&batch(Positions::FromZero), &pass)?)))
                    .map(|logits: tch::Tensor| logits.narrow(0, ids.len() as i64 - 1, 1).narrow(1, 0, 16))
                    .map_err(|error: anyhow::Error| error)?
            }
        };
        Ok((shown, numbers(&logits)))
    };
    of().map_err(|error| format!("{error:#}"))
}

/// A family's checkpoint, to be changed.
struct Tried<'a> {
    family: &'a str,
    ids: &'a [u32],
    folder: PathBuf,
    config: Map<String, Value>,
}

impl Tried<'_> {
    /// What becomes of the checkpoint with these keys set and those gone.
    fn with(&self, set: &Map<String, Value>, drop: &[String]) -> Found {
        let mut config = self.config.clone();
        config.insert("model_type".into(), self.family.into());
        config.extend(set.clone());
        drop.iter().for_each(|key| std::mem::drop(config.remove(key)));
        fs::write(self.folder.join("config.json"), Value::from(config).to_string()).unwrap();
        found(&self.folder, self.ids)
    }

    /// The verdict of one case; what is wrong with it goes into `faults`.
    fn verdict(&self, case: &Case, plain: &(String, Vec<f64>), faults: &mut Vec<String>) -> Verdict {
        let Case { set, drop, outcome, cached } = case;
        let keys: Vec<&String> = set.keys().chain(drop).collect();
        let mut wrong = |what: String| {
            faults.push(format!("{} {} without {drop:?}: {what}", self.family, Value::from(set.clone())));
        };
        let unlike = |config: &String| if *config == plain.0 { Ignored } else { Read };
        match (outcome, self.with(set, drop)) {
            (Outcome::Word(word), Err(_)) if word != "same" => Fits,
            (Outcome::Word(word), Ok((config, _))) if word != "same" => {
                let lenient = keys.iter().any(|key| LENIENT.iter().any(|(lenient, _)| key == lenient));
                let null = set.values().all(Value::is_null);
                let absent = || self.with(&Map::new(), &set.keys().cloned().collect::<Vec<_>>());
                if !(lenient || null && absent().is_ok_and(|absent| absent.0 == config)) {
                    wrong(format!("accepted, and Transformers: {word}"));
                }
                unlike(&config)
            }
            (_, Err(error)) => {
                let inner = set.values().filter_map(Value::as_object).flat_map(Map::keys);
                if !keys.into_iter().chain(inner).any(|key| error.contains(&format!("`{key}"))) {
                    wrong(format!("refused without the key: {error}"));
                }
                Refused
            }
            (Outcome::Word(_), Ok((config, logits))) => {
                let off = distance(&logits, &plain.1);
                if off > 1e-5 || *cached {
                    wrong(format!("other logits by {off:e}, with a cache: {cached}"));
                }
                unlike(&config)
            }
            (Outcome::Logits(expected), Ok((_, logits))) => {
                let off = distance(&logits, expected);
                if off > 1e-5 {
                    wrong(format!("logits are off by {off:e}"));
                }
                Computed
            }
        }
    }
}

#[test]
fn every_field_has_its_verdict_and_gives_the_numbers_of_transformers() {
    let _alone = alone();
    let Fixture { ids, families } = json(&fixture("config_fields.json"));
    let place = tempfile::tempdir().unwrap();
    let mut faults = Vec::new();
    let mut seen: BTreeMap<(String, String), BTreeSet<Verdict>> = BTreeMap::new();
    for (family, Family { checkpoint, fields, cases }) in &families {
        let checkpoints = if family.contains("bert") { encoders() } else { fixture("decoders") };
        let folder = copied(&checkpoints.join(checkpoint), &place.path().join(family));
        let config = json(&folder.join("config.json"));
        let tried = Tried { family, ids: &ids, folder, config };
        let plain = tried.with(&Map::new(), &[]).unwrap();
        for case in cases {
            let verdict = tried.verdict(case, &plain, &mut faults);
            let keys: Vec<&String> = case.set.keys().chain(&case.drop).collect();
            if let [key] = keys[..] {
                seen.entry((family.clone(), key.clone())).or_default().insert(verdict);
            }
        }
        let untried = fields.iter().filter(|field| !seen.contains_key(&(family.clone(), (*field).clone())));
        faults.extend(untried.map(|field| format!("{family}: nothing is tried of `{field}`")));
    }
    let listed = verdicts();
    for key in seen.keys().chain(listed.keys()).collect::<BTreeSet<_>>() {
        let found = seen.get(key).and_then(|verdicts| verdicts.first()).map(|verdict| format!("{verdict:?}"));
        if found.as_ref() != listed.get(key) {
            faults.push(format!("{key:?} is {found:?}, the list says {:?}", listed.get(key)));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
