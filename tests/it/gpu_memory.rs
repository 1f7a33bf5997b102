//! Recordings and memory of a GPU: what they share, and what happens when there is too little; on a stand-in for one
//! (`scripts/standin.sh`), whose allocator keeps memory as libtorch's does.

use std::collections::BTreeMap;
use std::fs;

use crate::forked;
use crate::own_kernels::decoder_of;
use crate::standin::{counts, recipe, standin, summed};
use crate::support::{Place, encoders, errors, losses};

/// A catalog of sentences, in `rows.jsonl`.
const SENTENCES: &str = "[\"my/sentences\"]\ntask = \"classification\"\nfiles = { train = \"rows.jsonl\" }\ntext = [\"text\"]\n\
    label = \"label\"\nlabels = [\"same\", \"other\"]\nmetrics = [\"accuracy\"]\n";

/// A place with rows of so many words, and a recipe that trains an encoder on them, 64 at a time.
fn place(rows: &[usize]) -> Place {
    let place = Place::with_own(SENTENCES);
    let row = |(i, words): (usize, &usize)| {
        format!("{{\"text\": \"{}\", \"label\": {}}}\n", "the apple is green ".repeat(words / 4), i % 2)
    };
    fs::write(place.path("rows.jsonl"), rows.iter().enumerate().map(row).collect::<String>()).unwrap();
    let recipe = recipe(&encoders().join("bert-gelu"), r#"["query", "output.dense"]"#, "my/sentences");
    fs::write(
        place.path("recipe.toml"),
        recipe.replace("max_length = 24", "max_length = 40").replace("batch_size = 4", "batch_size = 64"),
    )
    .unwrap();
    // The first run also decomposes the weights.
    let _first = trained(&place, ("first", 1), &[]);
    place
}

/// Losses, warnings, and counts of so many steps.
fn trained(
    place: &Place,
    (out, steps): (&str, u32),
    environment: &[(&str, &str)],
) -> (Vec<f64>, String, BTreeMap<String, i64>) {
    let steps = format!("train.max_steps={steps}");
    let sets = ["--set", &steps, "--set", "train.log_every=1"];
    let args = [&["train", "--recipe", "recipe.toml", "--out", out][..], &sets].concat();
    let (mut command, counted) = (place.command(&args), place.path(&format!("{out}.counts")));
    let output = forked::output(command.envs(environment.iter().copied()).env("STANDIN_COUNTS", &counted));
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    (losses(&place.path(out)), errors(&output), counts(&counted))
}

#[test]
fn a_recording_takes_the_memory_that_passes_before_it_have_left() {
    if !standin() {
        return;
    }
    let place = place(&[28; 64]);
    let (expected, _, enough) = trained(&place, ("enough", 10), &[]);
    let bytes = (enough["most bytes"] * 21 / 20).to_string();
    let (found, said, counts) = trained(&place, ("little", 10), &[("STANDIN_BYTES", &bytes)]);
    assert!(!said.contains("memory") && !said.contains("recorded"), "{said}");
    println!("{bytes} bytes, {} replays", counts["replay"]);
    assert_eq!((found, counts["replay"]), (expected, enough["replay"]));
}

#[test]
fn passes_for_which_recordings_leave_no_memory_go_on_without_them() {
    if !standin() {
        return;
    }
    // Five steps of short rows, one of long ones.
    let place = place(&[&[12; 320][..], &[36; 64]].concat());
    let (expected, silent, enough) = trained(&place, ("enough", 12), &[]);
    // On the stand-in, a recording keeps all that it has ever written.
    let bytes = (enough["most bytes"] * 39 / 40).to_string();
    let (found, said, counts) = trained(&place, ("little", 12), &[("STANDIN_BYTES", &bytes)]);
    println!("{bytes} bytes, {} and {} replays", counts["replay"], enough["replay"]);
    assert_eq!((found, said.matches("memory ran out beside recorded").count()), (expected, 1), "{said}");
    assert!(!silent.contains("memory") && counts["replay"] < enough["replay"], "{silent}");
}

#[test]
fn a_step_that_ran_out_of_memory_in_its_second_pass_begins_anew() {
    if !standin() {
        return;
    }
    // Steps of two passes, the sixth of one with short rows and one with long ones.
    let place = place(&[&[12; 352][..], &[36; 32]].concat());
    let recipe = fs::read_to_string(place.path("recipe.toml")).unwrap();
    fs::write(place.path("recipe.toml"), recipe.replace("[train]", "[train]\nmicro_batch_size = 32"))
        .unwrap();
    let (expected, _, enough) = trained(&place, ("enough", 12), &[]);
    let bytes = (enough["most bytes"] * 39 / 40).to_string();
    let (found, said, _) = trained(&place, ("little", 12), &[("STANDIN_BYTES", &bytes)]);
    assert_eq!((found, said.matches("memory ran out beside recorded").count()), (expected, 1), "{said}");
}

#[test]
fn whatever_memory_there_is_beside_what_a_training_takes_its_losses_are_the_same() {
    if !standin() {
        return;
    }
    let place = place(&[28; 64]);
    let (expected, _, plain) = trained(&place, ("plain", 12), &[("LORAXS_CUDA_GRAPHS", "0")]);
    let launches = |counts: &BTreeMap<String, i64>| summed(counts)[2];
    // With the least, it runs out in the first attempt to record the update, with gradients off.
    for parts in [10_097, 10_500, 12_000, 14_000] {
        let bytes = (plain["most bytes"] * parts / 10_000).to_string();
        let (found, said, counts) = trained(&place, (&bytes, 12), &[("STANDIN_BYTES", &bytes)]);
        println!("{bytes} bytes: {} launches, {} without recordings", launches(&counts), launches(&plain));
        assert_eq!(found, expected, "{parts}: {said}");
        // A pass that could not be recorded is not tried again and again.
        assert!(parts < 14_000 || launches(&counts) < launches(&plain), "{parts}: {counts:?}");
    }
}

#[test]
fn a_decomposition_for_which_a_gpu_has_no_room_is_made_on_the_cpu() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let model = encoders().join("bert-gelu");
    let args = ["init-svd", "--model", model.to_str().unwrap(), "--rank", "4"];
    let mut command = place.command(&args);
    let output = forked::output(command.env("STANDIN_BYTES", "28000"));
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("too little memory to decompose `"), "{text}");
}

#[test]
fn a_recording_that_fails_is_said_once_and_not_tried_again() {
    if !standin() {
        return;
    }
    let place = place(&[28; 64]);
    let (expected, silent, plain) = trained(&place, ("plain", 12), &[("LORAXS_CUDA_GRAPHS", "0")]);
    let (found, said, counts) = trained(&place, ("spoilt", 12), &[("STANDIN_UNRECORDED", "1")]);
    let said = [silent, said].map(|text| text.matches("could not be recorded").count());
    assert_eq!((found, said), (expected, [0, 1]));
    assert_eq!(counts.get("replay"), None);
    let [with, without] = [&counts, &plain].map(|counts| summed(counts)[2]);
    println!("{with} launches with an attempt, {without} without");
    assert!(with > without && with < without * 3 / 2, "{with} and {without} launches");
}

#[test]
fn wide_heads_with_dropout_train_where_flash_attention_has_no_backward_pass() {
    if !standin() {
        return;
    }
    let place = Place::of_decoders();
    let model = decoder_of(&place, "llama-biased", [1, 32, 32, 2, 1, 208]);
    fs::write(place.path("recipe.toml"), recipe(&model, r#"["q_proj", "v_proj"]"#, "tiny/instructions"))
        .unwrap();
    for (capability, flash) in [("80", true), ("86", false), ("90", true), ("120", false)] {
        let sets =
            ["--set", "train.precision=bf16", "--set", "model.dropout=0.1", "--set", "train.max_steps=2"];
        let args = [&["train", "--recipe", "recipe.toml", "--out", capability][..], &sets].concat();
        let (mut command, counted) = (place.command(&args), place.path(&format!("{capability}.counts")));
        let output =
            forked::output(command.env("STANDIN_CAPABILITY", capability).env("STANDIN_COUNTS", &counted));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert!(!errors(&output).contains("not finite"), "{}", errors(&output));
        assert_eq!(counts(&counted).contains_key("aten::_flash_attention_backward"), flash, "{capability}");
    }
}
