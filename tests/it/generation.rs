//! Generation against Transformers (`scripts/reference/decoder_parity.py`, `generation.py`), and its independence of
//! how prompts are put together.

use std::collections::BTreeMap;
use std::path::Path;

use loraxs::data::tokenize::Tokenizer;
use loraxs::generate::{
    BeamSearch, Completion, Engine, Finish, GenerationSettings, Sampling, SamplingParams,
};
use loraxs::models::CausalLm;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tch::Kind;

use crate::decoders::{checkpoints, logits, model_of};
use crate::support::{alone, fixture, json, numbers, real, worse};

#[derive(Deserialize)]
struct Expected {
    prompts: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    ids: Vec<u32>,
    continuation: Vec<u32>,
    stops_after: usize,
}

#[derive(Deserialize)]
struct Generation {
    beams: BTreeMap<String, Vec<Searched>>,
    stories: Vec<Story>,
}

#[derive(Deserialize)]
struct Searched {
    prompt: Vec<u32>,
    length_penalty: f64,
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct Story {
    ids: Vec<u32>,
    text: String,
    continuation: Vec<u32>,
}

#[derive(Deserialize)]
struct Stories {
    stories: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    prompt: String,
    ids: Vec<u32>,
    continuation: Vec<u32>,
    sha256: String,
}

/// As `eval` prepares it.
fn model(folder: &Path) -> CausalLm {
    let mut model = model_of(folder, Kind::Float);
    model.pack();
    model
}

fn rows(folder: &Path) -> Vec<Row> {
    json::<Expected>(&folder.join("expected.json")).prompts
}

fn prompts<'a>(ids: impl IntoIterator<Item = &'a [u32]>) -> Vec<(usize, &'a [u32])> {
    ids.into_iter().enumerate().collect()
}

/// Greedy settings for so many prompts at a time.
fn greedy(max_slots: usize, max_new_tokens: usize, ends: &[u32]) -> GenerationSettings {
    GenerationSettings { max_slots, ..GenerationSettings::new(SamplingParams::greedy(max_new_tokens, ends)) }
}

/// Completions in the order of their indices.
fn complete(
    folder: &Path,
    model: &CausalLm,
    settings: &GenerationSettings,
    prompts: &[(usize, &[u32])],
) -> Vec<Completion> {
    let tokenizer = Tokenizer::load(folder).unwrap();
    let mut found = BTreeMap::new();
    let all = Engine::new(model, &tokenizer, settings).run(prompts, &mut |index, completion| {
        assert!(found.insert(index, completion).is_none(), "{index} came twice");
        Ok(())
    });
    assert!(all.unwrap());
    assert_eq!(found.len(), prompts.len());
    found.into_values().collect()
}

fn ids(completions: &[Completion]) -> Vec<&[u32]> {
    completions.iter().map(|completion| &completion.ids[..]).collect()
}

#[test]
fn greedy_continuations_are_those_of_transformers_in_any_number_of_slots() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (model, rows) = (model(&folder), rows(&folder));
        // Each prompt twice, so that a slot is used again while others go on.
        let twice = prompts(rows.iter().chain(rows.iter().rev()).map(|row| &row.ids[..]));
        let wanted: Vec<&[u32]> =
            rows.iter().chain(rows.iter().rev()).map(|row| &row.continuation[..]).collect();
        for slots in [1, 3, 64] {
            let settings = greedy(slots, 64, &[]);
            let found = complete(&folder, &model, &settings, &twice);
            assert_eq!(ids(&found), wanted, "{name} with {slots} slots");
            assert!(found.iter().all(|completion| completion.finish == Finish::Length));
        }
    }
}

#[test]
fn what_all_prompts_begin_with_is_read_once_and_changes_nothing() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (model, rows) = (model(&folder), rows(&folder));
        let same: Vec<u32> = rows.iter().flat_map(|row| &row.ids).copied().take(40).collect();
        let texts: Vec<Vec<u32>> = rows.iter().map(|row| [&same[..], &row.ids[..]].concat()).collect();
        let together = prompts(texts.iter().chain([&same]).map(|ids| &ids[..]));
        let settings = greedy(4, 32, &[]);
        let found = complete(&folder, &model, &settings, &together);
        for (prompt, found) in together.iter().zip(&found) {
            let alone = complete(&folder, &model, &settings, std::slice::from_ref(prompt));
            assert_eq!(alone[0].ids, found.ids, "{name}, prompt {}", prompt.0);
        }
    }
}

#[test]
fn attention_in_other_precisions_takes_the_way_of_every_device() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (model, rows) = (model_of(&folder, Kind::Double), rows(&folder));
        let settings = greedy(3, 64, &[]);
        let found = complete(&folder, &model, &settings, &prompts(rows.iter().map(|row| &row.ids[..])));
        let wanted: Vec<&[u32]> = rows.iter().map(|row| &row.continuation[..]).collect();
        assert_eq!(ids(&found), wanted, "{name}");
    }
}

/// On a GPU most of these passes are recorded ones.
#[test]
fn every_token_in_bf16_is_among_the_best_of_a_pass_over_the_whole_text() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (mut model, rows) = (model_of(&folder, Kind::BFloat16), rows(&folder));
        let many: Vec<&[u32]> = rows.iter().cycle().take(11).map(|row| &row.ids[..]).collect();
        let whole = |model: &CausalLm, found: &[Completion]| {
            let texts: Vec<Vec<u32>> =
                many.iter().zip(found).map(|(prompt, found)| [prompt, &found.ids[..]].concat()).collect();
            logits(model, &texts.iter().map(Vec::as_slice).collect::<Vec<_>>())
        };
        for slots in [1, 5, 11] {
            let settings = greedy(slots, 24, &[]);
            model.pack();
            let found = complete(&folder, &model, &settings, &prompts(many.iter().copied()));
            let mut off: f64 = 0.0;
            for ((prompt, found), logits) in
                many.iter().zip(&found).zip(whole(&model_of(&folder, Kind::BFloat16), &found))
            {
                for (at, &id) in found.ids.iter().enumerate() {
                    let row = numbers(&logits.get((prompt.len() + at) as i64 - 1));
                    let (most, least) =
                        row.iter().fold((f64::MIN, f64::MAX), |(a, b), &x| (a.max(x), b.min(x)));
                    off = worse(off, (most - row[id as usize]) / (most - least));
                }
            }
            println!("{name}, {slots} slots: {off:.1e}");
            // Two roundings of the same logits to eight bits, after a few layers.
            assert!(off < 3e-2, "{name}, {slots} slots: a token is {off:e} of the range below the best");
        }
    }
}

#[test]
fn a_completion_ends_before_any_of_the_tokens_that_end_a_text() {
    let _alone = alone();
    let mut ended = 0;
    for (name, folder) in checkpoints() {
        let (model, rows) = (model(&folder), rows(&folder));
        let ends = Tokenizer::load(&folder).unwrap().ends().to_vec();
        let settings = greedy(2, 64, &ends);
        let found = complete(&folder, &model, &settings, &prompts(rows.iter().map(|row| &row.ids[..])));
        for (completion, row) in found.iter().zip(&rows) {
            let wanted = &row.continuation[..row.stops_after];
            if wanted.last().is_some_and(|id| ends.contains(id)) {
                assert_eq!(completion.ids, wanted[..wanted.len() - 1], "{name}");
                assert_eq!(completion.finish, Finish::End, "{name}");
                ended += 1;
            } else {
                assert_eq!(completion.ids, wanted, "{name}");
                assert_eq!(completion.finish, Finish::Length, "{name}");
            }
        }
    }
    assert!(ended >= 18, "{ended} of the references end early");
}

#[test]
fn beam_search_finds_what_transformers_finds() {
    let _alone = alone();
    let expected: Generation = json(&fixture("generation.json"));
    assert_eq!(expected.beams.len(), 18);
    for (name, searched) in expected.beams {
        let folder = fixture("decoders").join(&name);
        let (model, ends) = (model(&folder), Tokenizer::load(&folder).unwrap().ends().to_vec());
        for penalty in [1.0, 0.3] {
            let rows: Vec<&Searched> = searched.iter().filter(|row| row.length_penalty == penalty).collect();
            assert!(rows.len() > 3);
            let mut settings = greedy(3, 24, &ends);
            settings.params.search = BeamSearch { length_penalty: penalty, ..BeamSearch::plain(4) };
            let found =
                complete(&folder, &model, &settings, &prompts(rows.iter().map(|row| &row.prompt[..])));
            let wanted: Vec<&[u32]> = rows.iter().map(|row| &row.tokens[..]).collect();
            assert_eq!(ids(&found), wanted, "{name}, length penalty {penalty}");
        }
    }
}

#[test]
fn beams_of_few_candidates_are_what_they_are_alone() {
    let _alone = alone();
    for name in ["llama-biased", "qwen3-window"] {
        let folder = fixture("decoders").join(name);
        let (model, rows) = (model(&folder), rows(&folder));
        let prompts = prompts(rows.iter().chain(rows.iter().rev()).map(|row| &row.ids[..]));
        for (beams, top_k, top_p) in [(4, 1, 1.0), (4, 2, 1.0), (3, 0, 0.2)] {
            let search = BeamSearch::plain(beams);
            let sampling = Sampling::Random { temperature: 1.0, top_k, top_p };
            // A first token has fewer candidates than there are beams, so that others begin with beams of no weight.
            let draw = |slots, prompts: &[(usize, &[u32])]| {
                let params = SamplingParams { sampling, seed: 1, search, ..SamplingParams::greedy(16, &[]) };
                let settings = GenerationSettings { max_slots: slots, ..GenerationSettings::new(params) };
                complete(&folder, &model, &settings, prompts)
            };
            let together = draw(2, &prompts);
            for (prompt, found) in prompts.iter().zip(&together) {
                assert_eq!(
                    draw(1, std::slice::from_ref(prompt))[0],
                    *found,
                    "{name}, {beams} beams, top {top_k}"
                );
            }
        }
    }
}

#[test]
fn what_is_drawn_depends_on_seed_and_index_alone() {
    let _alone = alone();
    let folder = fixture("decoders/gemma2-capped");
    let (model, rows) = (model(&folder), rows(&folder));
    let prompts = prompts(rows.iter().chain(&rows).map(|row| &row.ids[..]));
    let sampling = Sampling::Random { temperature: 0.9, top_k: 40, top_p: 0.95 };
    for beams in [1, 3] {
        let search = BeamSearch::plain(beams);
        let draw = |seed, slots, prompts: &[(usize, &[u32])]| {
            let params = SamplingParams { sampling, seed, search, ..SamplingParams::greedy(20, &[]) };
            let settings = GenerationSettings { max_slots: slots, ..GenerationSettings::new(params) };
            complete(&folder, &model, &settings, prompts)
        };
        let (first, reversed) = (draw(7, 2, &prompts), prompts.iter().rev().copied().collect::<Vec<_>>());
        assert_eq!(first, draw(7, 5, &reversed), "{beams} beams");
        assert_ne!(first, draw(8, 2, &prompts), "{beams} beams");
        let half = prompts.len() / 2;
        assert_ne!(first[..half], first[half..], "equal prompts draw apart");
    }
}

#[test]
fn a_text_is_cut_before_the_first_stop() {
    let _alone = alone();
    let folder = fixture("decoders/llama-biased");
    let (model, rows) = (model(&folder), rows(&folder));
    let prompts = prompts(rows.iter().map(|row| &row.ids[..]));
    let whole = complete(&folder, &model, &greedy(0, 64, &[]), &prompts);
    let stop: String = whole[0].text.chars().skip(20).take(3).collect();
    let settings = GenerationSettings { stop: vec!["\u{2603}".into(), stop.clone()], ..greedy(0, 64, &[]) };
    let cut = complete(&folder, &model, &settings, &prompts);
    for (cut, whole) in cut.iter().zip(&whole) {
        let wanted = whole.text.find(&stop).map_or(whole.text.as_str(), |at| &whole.text[..at]);
        assert_eq!(cut.text, wanted);
        assert_eq!(cut.finish == Finish::Stop, whole.text.contains(&stop));
    }
    assert_eq!(cut[0].finish, Finish::Stop);
    assert!(cut[0].ids.len() < 64);
}

#[test]
fn wrong_prompts_are_refused() {
    let folder = fixture("decoders/llama-biased");
    let (model, tokenizer) = (model(&folder), Tokenizer::load(&folder).unwrap());
    let settings = greedy(0, 4, &[]);
    let refused = |ids: &[u32]| {
        let error =
            Engine::new(&model, &tokenizer, &settings).run(&[(3, ids)], &mut |_, _| Ok(())).unwrap_err();
        format!("{error:#}")
    };
    assert_eq!(refused(&[]), "prompt 3 is empty: it has no tokens");
    assert_eq!(refused(&[5, 101]), "prompt 3 has token 101, the model's vocabulary 101");
}

#[test]
fn a_real_llama_continues_stories_as_in_transformers() {
    let Some(folder) = real("models/stories260k") else { return };
    let _alone = alone();
    let stories = json::<Generation>(&fixture("generation.json")).stories;
    let (model, tokenizer) = (model(&folder), Tokenizer::load(&folder).unwrap());
    for story in &stories {
        assert_eq!(tokenizer.encode_whole(&story.text).unwrap(), story.ids);
    }
    for slots in [1, 3, 64] {
        let settings = greedy(slots, 64, &[]);
        let found = complete(&folder, &model, &settings, &prompts(stories.iter().map(|s| &s.ids[..])));
        let wanted: Vec<&[u32]> = stories.iter().map(|story| &story.continuation[..]).collect();
        assert_eq!(ids(&found), wanted, "{slots} slots");
    }
}

/// Continues the prompts of a fixture as it says, ids and text.
pub fn assert_tells_what_transformers_tells(expected: &Path, folder: &Path) {
    let _alone = alone();
    let Stories { stories } = json(expected);
    let (model, tokenizer) = (model(folder), Tokenizer::load(folder).unwrap());
    let ids_of = stories.iter().map(|story| tokenizer.encode_whole(&story.prompt).unwrap());
    assert!(ids_of.eq(stories.iter().map(|story| story.ids.clone())));
    let settings = greedy(2, stories[0].continuation.len(), &[]);
    let found = complete(folder, &model, &settings, &prompts(stories.iter().map(|s| &s.ids[..])));
    for (told, story) in found.iter().zip(&stories) {
        assert_eq!(told.ids, story.continuation, "{}", story.prompt);
        let digest = Sha256::digest(tokenizer.decode(&told.ids, false).unwrap());
        assert_eq!(format!("{digest:x}"), story.sha256, "{}", story.prompt);
    }
}

#[test]
fn a_real_llama_tells_the_stories_that_transformers_tells() {
    let Some(folder) = real("models/stories260k") else { return };
    assert_tells_what_transformers_tells(&fixture("stories.json"), &folder);
}
