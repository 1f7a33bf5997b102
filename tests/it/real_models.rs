//! A real language model, SmolLM2-135M-Instruct, against Transformers and PyTorch (`scripts/reference/real_model.py`), and
//! killed. Runs where `LORAXS_TEST_MODELS` names its folder, or one that holds it under whatever name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use loraxs::data::tokenize::Tokenizer;
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::decoder_training::assert_learns_as_in_pytorch;
use crate::decoders::{log_probabilities, logits, model};
use crate::forked;
use crate::generation::assert_tells_what_transformers_tells;
use crate::resume::{logged_step, outcome, wait_until};
use crate::support::{Place, alone, distance, fixture, json, numbers};

#[derive(Deserialize)]
struct Fixture {
    weights: Weights,
    logits: Vec<Scored>,
}

#[derive(Deserialize)]
struct Weights {
    layer: String,
    sha256: String,
}

#[derive(Deserialize)]
struct Scored {
    text: String,
    ids: Vec<u32>,
    largest: BTreeMap<i64, f64>,
    squares: f64,
    log_probabilities: Vec<f64>,
}

fn expected() -> PathBuf {
    fixture("real_model.json")
}

/// Whether the folder holds the model of the fixture: its shape, and the numbers of one layer.
fn holds_it(folder: &Path) -> bool {
    let config = fs::read_to_string(folder.join("config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&config).unwrap_or_default();
    if config["model_type"] != "llama" || config["hidden_size"] != 576 || config["num_hidden_layers"] != 30 {
        return false;
    }
    let Weights { layer, sha256 } = json::<Fixture>(&expected()).weights;
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let same = format!("{:x}", Sha256::digest(tensors.tensor(&layer).unwrap().data())) == sha256;
    if !same {
        println!("{} holds other weights than the fixture was made with", folder.display());
    }
    same
}

/// The folder of the model.
pub fn smollm2() -> Option<PathBuf> {
    let named = std::env::var_os("LORAXS_TEST_MODELS").map(PathBuf::from);
    let inner = named.iter().flat_map(fs::read_dir).flatten().flatten().map(|entry| entry.path());
    let found = named.iter().cloned().chain(inner).find(|folder| holds_it(folder));
    if found.is_none() {
        println!("skipped: LORAXS_TEST_MODELS names no folder with SmolLM2-135M-Instruct");
    }
    found
}

#[test]
fn logits_of_a_real_model_are_those_of_transformers() {
    let Some(folder) = smollm2() else { return };
    let _alone = alone();
    let (model, tokenizer) = (model(&folder), Tokenizer::load(&folder).unwrap());
    let rows = json::<Fixture>(&expected()).logits;
    let texts: Vec<&[u32]> = rows.iter().map(|row| &row.ids[..]).collect();
    for (row, found) in rows.iter().zip(logits(&model, &texts)) {
        assert_eq!(tokenizer.encode_whole(&row.text).unwrap(), row.ids);
        let last = numbers(&found.get(-1));
        let (largest, wanted): (Vec<f64>, Vec<f64>) =
            row.largest.iter().map(|(&id, &logit)| (last[id as usize], logit)).unzip();
        let off = distance(&largest, &wanted);
        let squares = (last.iter().map(|x| x * x).sum::<f64>() / row.squares - 1.0).abs();
        let following = match row.ids.len() {
            1 => 0.0,
            _ => distance(&numbers(&log_probabilities(&found, &row.ids)), &row.log_probabilities),
        };
        println!(
            "{} tokens: logits {off:.1e}, squares {squares:.1e}, next tokens {following:.1e}",
            row.ids.len()
        );
        assert!(off < 1e-5 && squares < 1e-5 && following < 1e-5, "{:?}", row.text);
    }
}

#[test]
fn a_real_model_answers_what_transformers_answers() {
    let Some(folder) = smollm2() else { return };
    assert_tells_what_transformers_tells(&expected(), &folder);
}

#[test]
fn lora_xs_lowers_the_held_out_loss_of_a_real_model_as_in_pytorch() {
    let Some(folder) = smollm2() else { return };
    assert_learns_as_in_pytorch(&expected(), &folder, &fixture("decoders/data/train.jsonl"));
}

#[test]
fn a_killed_training_of_a_real_model_ends_with_the_bits_of_one_that_never_stopped() {
    let Some(folder) = smollm2() else { return };
    let place = Place::of_decoders();
    let recipe = format!(
        "[model]\nname = {folder:?}\n[adapter]\nrank = 8\nalpha = 8.0\n[data]\ndataset = \"tiny/instructions\"\n\
         max_length = 64\n[train]\nmax_steps = 5\nbatch_size = 2\nlearning_rate = 1e-3\nprecision = \"bf16\"\n\
         log_every = 1\ncheckpoint_every = 1\n[eval]\nevery = \"never\"\n"
    );
    let whole = place.train(&recipe, "whole", &[]);
    let run = place.path("run");
    let resumed = ["train", "--recipe", "recipe.toml", "--out", "run", "--resume"];
    let mut killed = 0;
    for step in [1, 3] {
        let mut child = forked::start(&place.command(&resumed));
        wait_until(&mut child, || logged_step(&run) >= step);
        child.signal(libc::SIGKILL);
        killed += usize::from(child.wait().status.code().is_none());
    }
    assert!(killed >= 1, "no kill came in time");
    place.run(&resumed, 0);
    assert_eq!(outcome(&run), outcome(&whole));
}
