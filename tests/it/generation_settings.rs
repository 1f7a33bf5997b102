//! The settings of `generation_config.json`: texts against Transformers (`scripts/reference/generation_settings.py`), and
//! what is said of those that have no effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use loraxs::data::tokenize::Tokenizer;
use loraxs::generate::config::{Asked, Support, settings as known_settings};
use loraxs::generate::{Engine, GenerationSettings, Sampling, SamplingParams};
use loraxs::models::CausalLm;
use serde::Deserialize;
use serde_json::{Value, json};
use tch::Kind;

use crate::decoders::model_of;
use crate::support::{alone, fixture, json, real};

#[derive(Deserialize)]
struct Fixture {
    settings: Vec<String>,
    cases: Vec<Case>,
    stories: Vec<Story>,
}

#[derive(Deserialize)]
struct Case {
    checkpoint: String,
    name: String,
    beams: usize,
    changed: usize,
    config: Value,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    prompt: Vec<u32>,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Story {
    config: Value,
    ids: Vec<u32>,
    tokens: Vec<u32>,
}

fn reference() -> Fixture {
    json(&fixture("generation_settings.json"))
}

/// What a checkpoint of 101 tokens with this `generation_config.json` asks for.
fn asked(config: &Value) -> loraxs::fault::Result<Asked> {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("generation_config.json"), config.to_string()).unwrap();
    Asked::read(folder.path(), 101)
}

fn remarks(config: &Value) -> Vec<String> {
    asked(config).unwrap().remarks(|_, _| false)
}

/// Greedy settings, or those of a beam search, as the checkpoint wants them.
fn params(config: &Value, beams: usize, new_tokens: usize) -> SamplingParams {
    let asked = asked(config).unwrap();
    let ends: Vec<u32> = match &config["eos_token_id"] {
        Value::Array(ids) => ids.iter().map(|id| id.as_u64().unwrap() as u32).collect(),
        _ => vec![2],
    };
    let search = asked.search(beams);
    SamplingParams { penalties: asked.penalties, search, ..SamplingParams::greedy(new_tokens, &ends) }
}

fn complete(
    folder: &Path,
    model: &CausalLm,
    (params, max_slots): (&SamplingParams, usize),
    prompts: &[Vec<u32>],
) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::load(folder).unwrap();
    let settings = GenerationSettings { max_slots, ..GenerationSettings::new(params.clone()) };
    let prompts: Vec<(usize, &[u32])> = prompts.iter().map(Vec::as_slice).enumerate().collect();
    let mut found = BTreeMap::new();
    let all = Engine::new(model, &tokenizer, &settings).run(&prompts, &mut |index, completion| {
        found.insert(index, completion.ids);
        Ok(())
    });
    assert!(all.unwrap());
    found.into_values().collect()
}

fn packed(folder: &Path) -> CausalLm {
    let mut model = model_of(folder, Kind::Float);
    model.pack();
    model
}

#[test]
fn texts_under_settings_of_the_checkpoint_are_those_of_transformers_in_any_number_of_slots() {
    let _alone = alone();
    let cases = reference().cases;
    assert_eq!(cases.len(), 3 * 24 * 2);
    let mut models: BTreeMap<String, CausalLm> = BTreeMap::new();
    let mut changed: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases {
        let folder = fixture("decoders").join(&case.checkpoint);
        let model = models.entry(case.checkpoint.clone()).or_insert_with(|| packed(&folder));
        let params = params(&case.config, case.beams, 24);
        let prompts: Vec<Vec<u32>> = case.rows.iter().map(|row| row.prompt.clone()).collect();
        let wanted: Vec<Vec<u32>> = case.rows.iter().map(|row| row.tokens.clone()).collect();
        let place = format!("{} of {}, {} beams", case.name, case.checkpoint, case.beams);
        for slots in [1, 3] {
            assert_eq!(
                complete(&folder, model, (&params, slots), &prompts),
                wanted,
                "{place}, {slots} slots"
            );
        }
        *changed.entry(case.name).or_default() += case.changed;
    }
    assert!(changed.values().all(|count| *count > 0), "a setting changes no text: {changed:?}");
}

#[test]
fn a_real_llama_does_not_repeat_itself_as_in_transformers() {
    let Some(folder) = real("models/stories260k") else { return };
    let _alone = alone();
    let model = packed(&folder);
    let stories = reference().stories;
    assert_eq!(stories.len(), 12);
    for story in stories {
        let params = params(&story.config, 1, 64);
        assert_eq!(complete(&folder, &model, (&params, 0), &[story.ids]), [story.tokens], "{}", story.config);
    }
}

#[test]
fn every_setting_of_transformers_has_its_verdict() {
    let known: BTreeSet<&str> = known_settings().map(|(name, _)| name).collect();
    let theirs = reference().settings;
    assert_eq!(known.len(), known_settings().count(), "none stands there twice");
    assert_eq!(known, theirs.iter().map(String::as_str).collect());
    for (name, verdict) in known_settings() {
        // Something that no setting has as its neutral value.
        let odd = json!({"x": 7});
        let alone = asked(&json!({name: odd}));
        let drawn = asked(&json!({name: odd, "do_sample": true}));
        let says = |asked: &loraxs::fault::Result<Asked>| {
            asked
                .as_ref()
                .is_ok_and(|asked| asked.remarks(|_, _| false).concat().contains(&format!("`{name}` ")))
        };
        match verdict {
            Support::Heeded => {
                let message = alone.unwrap_err().to_string();
                assert!(
                    message.contains(&format!("generation_config.json`: `{name}`: expected ")),
                    "{message}"
                );
            }
            Support::Left | Support::Missing => assert!(says(&alone), "{name}"),
            Support::Drawn => assert!(!says(&alone) && says(&drawn), "{name}"),
            Support::Idle => assert_eq!(remarks(&json!({name: odd})), Vec::<String>::new(), "{name}"),
        }
    }
    let [line] = &remarks(&json!({"novel_penalty": 2}))[..] else { panic!("one line") };
    assert!(line.contains("ignored, so completions") && line.ends_with("`novel_penalty` 2"), "{line}");
}

#[test]
fn settings_that_do_nothing_are_not_told() {
    for config in [
        json!({}),
        json!({"do_sample": false, "temperature": 0.6, "top_p": 0.9, "top_k": 50, "num_beams": 1, "max_length": 20}),
        json!({"guidance_scale": null, "penalty_alpha": 0.0, "num_beam_groups": 1, "token_healing": false}),
        json!({"cache_implementation": "hybrid", "use_cache": true, "transformers_version": "5.24.0", "_own": 1}),
        json!({"repetition_penalty": 1.0, "bad_words_ids": null, "no_repeat_ngram_size": 0, "length_penalty": 1.0}),
    ] {
        assert_eq!(remarks(&config), Vec::<String>::new(), "{config}");
        assert!(asked(&config).unwrap().penalties.is_none(), "{config}");
    }
    let [line] =
        &remarks(&json!({"do_sample": true, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}))[..]
    else {
        panic!("one line")
    };
    for part in [
        "set by the command line and the catalog instead: ",
        "`do_sample` true",
        "`temperature` 0.6",
        "`max_length` 4096",
    ] {
        assert!(line.contains(part), "{line}");
    }
}

#[test]
fn wrong_settings_are_refused_by_name() {
    for (config, words) in [
        (json!({"repetition_penalty": 0}), "`repetition_penalty`: expected a number above 0, found `0`"),
        (json!({"repetition_penalty": "1.3"}), "`repetition_penalty`: expected a number"),
        (
            json!({"encoder_repetition_penalty": -1.5}),
            "`encoder_repetition_penalty`: expected a number above 0",
        ),
        (json!({"no_repeat_ngram_size": -2}), "`no_repeat_ngram_size`: expected a whole number from 0"),
        (json!({"bad_words_ids": [3]}), "`bad_words_ids`: expected a list of lists of token ids"),
        (
            json!({"bad_words_ids": [[3, 101]]}),
            "`bad_words_ids`: expected a token below the vocabulary's 101, found `101`",
        ),
        (json!({"sequence_bias": {"(3,)": 1.0}}), "`sequence_bias`: expected a list of pairs"),
        (
            json!({"eos_token_id": "2"}),
            "`eos_token_id`: expected a token id or a list of them, found `\"2\"`",
        ),
        (json!({"forced_eos_token_id": [-1]}), "`forced_eos_token_id`: expected token ids"),
        (
            json!({"exponential_decay_length_penalty": 3}),
            "`exponential_decay_length_penalty`: expected a number of tokens",
        ),
        (json!({"early_stopping": "always"}), "`early_stopping`: expected `true`, `false` or `\"never\"`"),
        (json!({"stop_strings": ["", "x"]}), "`stop_strings`: expected texts that are not empty"),
    ] {
        let message = asked(&config).unwrap_err().to_string();
        assert!(message.contains(words), "{words}: {message}");
    }
    // Tokens that are there to say that there is none.
    assert!(asked(&json!({"suppress_tokens": [-1, 5000]})).unwrap().penalties.is_none());
}

#[test]
fn an_older_checkpoint_has_its_settings_in_its_config() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        json!({"repetition_penalty": 1.2, "hidden_size": 8, "torch_dtype": "float16", "use_cache": true});
    fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let asked = Asked::read(folder.path(), 101).unwrap();
    assert_eq!(asked.penalties.repetition_penalty, 1.2);
    assert_eq!(asked.remarks(|_, _| false), Vec::<String>::new());
    fs::write(folder.path().join("generation_config.json"), "{}").unwrap();
    assert!(Asked::read(folder.path(), 101).unwrap().penalties.is_none());
}

#[test]
fn where_every_token_is_banned_the_first_one_comes() {
    let _alone = alone();
    let folder = fixture("decoders/llama-biased");
    let model = packed(&folder);
    let all = json!({"suppress_tokens": (0..101).collect::<Vec<u32>>()});
    assert_eq!(complete(&folder, &model, (&params(&all, 1, 3), 0), &[vec![1, 20]]), [[0, 0, 0]]);
}

#[test]
fn drawn_texts_keep_to_the_bans_and_do_not_depend_on_the_slots() {
    let _alone = alone();
    let folder = fixture("decoders/qwen3-normed");
    let model = packed(&folder);
    let prompts: Vec<Vec<u32>> = (5..25).map(|id| vec![id, id + 1, id + 2]).collect();
    let config =
        json!({"no_repeat_ngram_size": 1, "suppress_tokens": [9, 10, 11], "repetition_penalty": 1.4});
    for beams in [1, 3] {
        let drawn = SamplingParams {
            sampling: Sampling::Random { temperature: 1.2, top_k: 0, top_p: 0.9 },
            ..params(&config, beams, 16)
        };
        let texts = |slots| complete(&folder, &model, (&drawn, slots), &prompts);
        let found = texts(2);
        assert_eq!(found, texts(7), "{beams} beams");
        for (prompt, new) in prompts.iter().zip(&found) {
            let whole: Vec<u32> = prompt.iter().chain(new).copied().collect();
            assert_eq!(whole.iter().collect::<BTreeSet<_>>().len(), whole.len(), "{whole:?}");
            assert!(new.iter().all(|id| !(9..12).contains(id)), "{new:?}");
        }
    }
}
