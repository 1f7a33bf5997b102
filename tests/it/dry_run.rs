//! `--dry-run` of a language model: no weight is read as a number, nothing is decomposed, and the counts are those of
//! the training.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bench::{copied, edit_tensors};
use crate::support::{Place, errors, fixture, json};

/// A place with a recipe for a checkpoint.
fn place(model: &Path) -> Place {
    let place = Place::of_decoders();
    let recipe = format!(
        "[model]\nname = {model:?}\n[adapter]\nrank = 4\nalpha = 4\n[data]\ndataset = \"tiny/instructions\"\n\
         max_length = 84\n[train]\nmax_steps = 1\nbatch_size = 4\n[eval]\nevery = \"never\"\n"
    );
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    place
}

/// What a dry run says.
fn dry(place: &Place, sets: &[&str]) -> String {
    let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"];
    sets.iter().for_each(|set| args.extend(["--set", set]));
    String::from_utf8(place.run(&args, 0).stdout).unwrap()
}

/// Trainable parameters by part of the model.
fn trained(text: &str) -> BTreeMap<&str, u64> {
    let parts = ["base", "adapter", "head"];
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = rows.filter(|cells| cells.len() == 5 && parts.contains(&cells[0]));
    rows.map(|cells| (cells[0], cells[3].parse().unwrap())).collect()
}

#[test]
fn a_dry_run_needs_no_number_of_the_base() {
    let whole = fixture("decoders/llama-biased");
    let place = place(&whole);
    let expected = dry(&place, &[]);
    let broken = copied(&whole, &place.path("broken"));
    edit_tensors(&broken.join("model.safetensors"), |_, data| data.fill(0xff));
    let set = format!("model.name={}", broken.display());
    // What is free changes from moment to moment.
    let lines =
        |text: &str| text.lines().filter(|l| !l.contains("free on")).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(lines(&dry(&place, &[&set])), lines(&expected));
    assert!(!place.path("cache/basis").exists(), "a dry run decomposes nothing");
    let args = ["train", "--recipe", "recipe.toml", "--out", "run", "--set", &set];
    let refused = errors(&place.run(&args, 1));
    assert!(refused.contains("has NaN or infinite values"), "the training reads them: {refused}");
    let table: Vec<Vec<&str>> =
        expected.lines().map(|line| line.split_whitespace().take(4).collect()).collect();
    for part in ["adapter", "head"] {
        let row = table.iter().find(|row| row.first() == Some(&part) && row.len() == 4).unwrap();
        assert!(row[2] == "0" && row[1] == row[3], "what is added is trained: {row:?}");
    }
    for word in ["optimiser steps", "memory of logits", "total memory", "cache of 1000 generated tokens", "⟦"]
    {
        assert!(expected.contains(word), "no `{word}` in {expected}");
    }
}

#[test]
fn a_dry_run_refuses_a_rank_that_does_not_fit() {
    let place = place(&fixture("decoders/llama-biased"));
    let args = ["train", "--recipe", "recipe.toml", "--dry-run", "--set", "adapter.rank=31"];
    let refused = errors(&place.run(&args, 2));
    assert!(
        refused.contains("rank 31 does not fit a weight of shape [30, 41]: expected 1 to 30"),
        "{refused}"
    );
}

#[test]
fn a_dry_run_counts_what_the_training_trains() {
    for (checkpoint, methods) in [
        ("llama-biased", &["lora-xs", "lora", "vera", "lora-mini", "tiny-lora", "full"][..]),
        ("llama-llama3-old", &["lora-xs", "full"]),
        ("phi3-window", &["lora-xs", "lora", "vera"]),
    ] {
        let place = place(&fixture("decoders").join(checkpoint));
        for method in methods {
            let set = format!("adapter.method={method}");
            // Ranks of its own, so that no formula is right by chance.
            let own: &[&str] = match *method {
                "lora-mini" => &["adapter.rank_a=4", "adapter.rank_b=5"],
                _ => &[],
            };
            let sets = [&[set.as_str()], own].concat();
            let text = dry(&place, &sets);
            let run = place.path(method);
            let mut args = vec!["train", "--recipe", "recipe.toml", "--out", run.to_str().unwrap()];
            sets.iter().for_each(|set| args.extend(["--set", set]));
            place.run(&args, 0);
            let parameters = json::<Value>(&run.join("results.json"))["parameters"].clone();
            let counts = trained(&text);
            assert_eq!(counts.len(), 3, "{text}");
            for (part, count) in counts {
                assert_eq!(parameters[part], count, "{checkpoint}, {method}: {part}");
            }
        }
    }
}
