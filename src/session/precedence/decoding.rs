//! Decoding settings of a data set: from the command line, else its catalog entry, else the checkpoint.

use serde_json::{Map, Value, json};

use crate::data::task::Generation;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, usage};
use crate::generate::config::Asked;
use crate::generate::{GenerationSettings, Penalties, Sampling, SamplingParams};
use crate::spec::request::GenerationOptions;
use crate::train::interrupt;

/// Default number of new tokens, where neither catalog nor command line gives one.
const MAX_NEW_TOKENS: usize = 256;

/// Returns the settings, and remarks on those of the checkpoint that they overrule or that have no effect.
/// Fails when options contradict each other.
pub fn decoding(
    options: &GenerationOptions,
    task: &Generation,
    tokenizer: &Tokenizer,
    asked: &Asked,
) -> Result<(GenerationSettings, Vec<String>)> {
    let given = options.max_new_tokens.or(task.max_new_tokens);
    let temperature = options.temperature.unwrap_or(task.temperature);
    let (top_k, top_p) = (options.top_k.unwrap_or(task.top_k), options.top_p.unwrap_or(task.top_p));
    if temperature == 0.0 && (options.top_k.is_some() || options.top_p.is_some()) {
        return Err(usage("`--top-k` and `--top-p` have no effect on greedy decoding")
            .hint("pass a `--temperature` above 0")
            .into());
    }
    let mut penalties = asked.penalties.clone();
    penalties.repetition_penalty = options.repetition_penalty.unwrap_or(penalties.repetition_penalty);
    let mut stop = task.stop.clone();
    stop.extend(asked.stop_strings.iter().filter(|text| !task.stop.contains(text)).cloned());
    let beams = options.beams.unwrap_or(task.beams);
    let decided = |key: &str, value: &Value| match key {
        "do_sample" => *value == json!(temperature > 0.0),
        "num_beams" => *value == json!(beams),
        "max_new_tokens" | "max_length" => given.is_some(),
        _ => false,
    };
    let params = SamplingParams {
        sampling: match temperature {
            0.0 => Sampling::Greedy,
            temperature => Sampling::Random { temperature, top_k, top_p },
        },
        search: asked.search(beams),
        penalties,
        seed: options.seed.unwrap_or(0),
        ..SamplingParams::greedy(given.unwrap_or(MAX_NEW_TOKENS), tokenizer.ends())
    };
    let settings =
        GenerationSettings { stop, interrupted: interrupt::requested, ..GenerationSettings::new(params) };
    Ok((settings, asked.remarks(decided)))
}

/// Returns the settings as lm-evaluation-harness and Transformers name them, without those that do nothing.
pub fn arguments(GenerationSettings { params, stop, .. }: &GenerationSettings) -> Value {
    let mut found = json!({
        "until": stop,
        "max_gen_toks": params.max_new_tokens,
        "do_sample": params.sampling != Sampling::Greedy,
    });
    let (own, none) = (json!(params.penalties), json!(Penalties::default()));
    let mut more = Map::new();
    for (key, value) in own.as_object().into_iter().flatten().filter(|(key, value)| none[*key] != **value) {
        more.insert(key.clone(), value.clone());
    }
    if let Sampling::Random { temperature, top_k, top_p } = params.sampling {
        more.extend([
            ("temperature".into(), json!(temperature)),
            ("top_k".into(), json!(top_k)),
            ("top_p".into(), json!(top_p)),
        ]);
    }
    if params.search.beams > 1 {
        more.insert("num_beams".into(), json!(params.search.beams));
        more.insert("length_penalty".into(), json!(params.search.length_penalty));
        more.insert("early_stopping".into(), json!(params.search.early_stopping));
    }
    if let Some(found) = found.as_object_mut() {
        found.extend(more);
    }
    found
}
