//! Decoders against Transformers, in fp32 on the CPU (`scripts/reference/decoder_parity.py`): logits and greedy
//! continuations of every family.

use std::fs;
use std::path::PathBuf;

use loraxs::adapters::Trained;
use loraxs::models::{Base, Build, CausalLm};
use loraxs::nn::layout::{Positions, Sequence};
use loraxs::nn::{Packed, Pass};
use serde::Deserialize;
use tch::{Kind, Tensor};

use crate::support::{alone, device, distance, fixture, json, numbers};

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<Scored>,
    prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
struct Scored {
    ids: Vec<u32>,
    log_probabilities: Vec<f64>,
    logits: Vec<f64>,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    continuation: Vec<u32>,
}

/// The fixtures' folders of decoders, by name.
pub fn checkpoints() -> Vec<(String, PathBuf)> {
    let mut found: Vec<(String, PathBuf)> = fs::read_dir(fixture("decoders"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .filter(|(_, path)| path.join("config.json").exists())
        .collect();
    found.sort();
    assert_eq!(found.len(), 18, "{found:?}");
    found
}

pub fn model(folder: &std::path::Path) -> CausalLm {
    model_of(folder, Kind::Float)
}

pub fn model_of(folder: &std::path::Path, kind: Kind) -> CausalLm {
    let base = Base::open(folder).unwrap();
    let build = Build { devices: device().into(), kind, head: None, seeds: vec![0], train_base: false };
    CausalLm::load(&base, &build, &mut Trained::new(1)).unwrap()
}

/// Logits of each sequence `[t, v]`, from all of them in one packed batch.
pub fn logits(model: &CausalLm, sequences: &[&[u32]]) -> Vec<Tensor> {
    let packed = sequences.iter().map(|ids| Sequence { ids, types: &[] }).collect();
    let batch = Packed::new(&[packed], Positions::FromZero, device());
    let all = model.logits(&model.hidden(&batch, &Pass::evaluation()).unwrap());
    let starts = Vec::<i64>::try_from(&batch.first).unwrap();
    starts.iter().zip(sequences).map(|(&start, ids)| all.narrow(0, start, ids.len() as i64)).collect()
}

/// Log-probabilities of each id after the first, given those before it: `[t - 1]`.
pub fn log_probabilities(logits: &Tensor, ids: &[u32]) -> Tensor {
    let following: Vec<i64> = ids[1..].iter().map(|&id| i64::from(id)).collect();
    let count = following.len() as i64;
    let all = logits.narrow(0, 0, count).log_softmax(-1, Kind::Float);
    all.gather(1, &Tensor::from_slice(&following).view([count, 1]).to_device(all.device()), false)
        .squeeze_dim(1)
}

#[test]
fn logits_are_those_of_transformers() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (model, expected) = (model(&folder), json::<Expected>(&folder.join("expected.json")));
        let (mut found, mut wanted) = ((vec![], vec![]), (vec![], vec![]));
        for row in &expected.sequences {
            let logits = logits(&model, &[&row.ids]).remove(0);
            found.0.extend(numbers(&logits.get(-1)));
            found.1.extend(numbers(&log_probabilities(&logits, &row.ids)));
            wanted.0.extend(&row.logits);
            wanted.1.extend(&row.log_probabilities);
        }
        let (last, all) = (distance(&found.0, &wanted.0), distance(&found.1, &wanted.1));
        println!("{name}: logits {last:.1e}, log-probabilities {all:.1e}");
        assert!(last < 1e-5, "{name}: logits are off by {last:e}");
        assert!(all < 1e-5, "{name}: log-probabilities are off by {all:e}");
    }
}

#[test]
fn packed_sequences_never_see_each_other() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (model, expected) = (model(&folder), json::<Expected>(&folder.join("expected.json")));
        // Equal lengths, too: they are computed side by side.
        let rows: Vec<&[u32]> =
            expected.sequences.iter().chain(&expected.sequences).map(|r| &r.ids[..]).collect();
        let prompts = expected.prompts.iter().map(|row| &row.ids[..]);
        let rows: Vec<&[u32]> = rows.into_iter().chain(prompts).collect();
        let found: Vec<f64> = logits(&model, &rows).iter().flat_map(numbers).collect();
        let apart: Vec<f64> = rows.iter().flat_map(|ids| numbers(&logits(&model, &[ids])[0])).collect();
        let off = distance(&found, &apart);
        assert!(off < 3e-6, "{name}: {off:e}");
    }
}

#[test]
fn the_most_probable_tokens_are_those_of_transformers() {
    let _alone = alone();
    for (name, folder) in checkpoints() {
        let (model, expected) = (model(&folder), json::<Expected>(&folder.join("expected.json")));
        // One pass over prompt and continuation tells what would be chosen at every step.
        let texts: Vec<Vec<u32>> =
            expected.prompts.iter().map(|row| [&row.ids[..], &row.continuation].concat()).collect();
        let views: Vec<&[u32]> = texts.iter().map(|ids| &ids[..]).collect();
        for (row, logits) in expected.prompts.iter().zip(logits(&model, &views)) {
            let best = Vec::<i64>::try_from(logits.argmax(-1, false)).unwrap();
            let chosen: Vec<u32> = best[row.ids.len() - 1..][..64].iter().map(|&id| id as u32).collect();
            assert_eq!(chosen, row.continuation, "{name}: after {} tokens", row.ids.len());
        }
    }
}
