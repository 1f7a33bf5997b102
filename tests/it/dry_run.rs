//! `--dry-run` of a language model: no weight is read as a number, nothing is decomposed, and the counts are those of
//! the training.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::bench::{Bench, copied, edit, edit_tensors, rewrite};
use crate::support::{Place, encoders, errors, fixture, json};

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

/// What is the same from moment to moment.
fn steady(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.contains("free on")).collect()
}

#[test]
fn a_config_alone_tells_what_the_whole_base_tells() {
    let decoders = ["llama-biased", "phi3-window", "gemma2-capped", "qwen3-normed"]
        .map(|name| fixture("decoders").join(name));
    for whole in &decoders {
        let place = place(whole);
        let expected = dry(&place, &[]);
        let alone = copied(whole, &place.path("alone"));
        fs::remove_file(alone.join("model.safetensors")).unwrap();
        let found = dry(&place, &[&format!("model.name={}", alone.display())]);
        assert!(steady(&found).ends_with(&steady(&expected)), "{}\n{expected}\n{found}", whole.display());
        assert!(found.contains("trainable parameters, without head"), "{found}");
    }
    let bench = Bench::new();
    let dry = |model: &Path| {
        bench.recipe(model, "tiny/pairs");
        String::from_utf8(
            bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"], 0).stdout,
        )
        .unwrap()
    };
    for name in ["bert-gelu", "roberta-gelu"] {
        let whole = encoders().join(name);
        let alone = bench.model(&format!("{name}-alone"), name);
        let (expected, found) = (dry(&whole), {
            fs::remove_file(alone.join("model.safetensors")).unwrap();
            dry(&alone)
        });
        assert!(steady(&found).ends_with(&steady(&expected)), "{name}\n{expected}\n{found}");
    }
}

#[test]
fn a_config_alone_says_what_it_lacks_to_count_more() {
    let whole = fixture("decoders/llama-biased");
    let place = place(&whole);
    let alone = place.path("alone");
    fs::create_dir(&alone).unwrap();
    fs::copy(whole.join("config.json"), alone.join("config.json")).unwrap();
    let set = format!("model.name={}", alone.display());
    let found = dry(&place, &[&set]);
    assert!(found.contains("trainable parameters, without head"), "{found}");
    assert!(
        found.contains("tokens, steps and memory cannot be counted: ") && found.contains("tokenizer"),
        "{found}"
    );
    let args = ["train", "--recipe", "recipe.toml", "--out", "run", "--set", &set];
    assert!(errors(&place.run(&args, 1)).contains("has no weights"), "a training needs them");
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of wrong inputs")]
fn a_dry_run_refuses_what_the_training_refuses() {
    let bench = Bench::new();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    let refuses =
        |more: &[&str], code, words: &[&str]| bench.refuses(&[&train[..], more].concat(), code, words);
    let of_model = |change: &dyn Fn(&Path), code, words: &[&str]| {
        let _ = fs::remove_dir_all(bench.path("model"));
        change(&bench.model("model", "bert-gelu"));
        refuses(&["--set", "model.name=model"], code, words);
    };
    const OUTPUT: &str = "bert.encoder.layer.0.output.dense.weight";
    // Tensors that are missing, of another shape or type, or cut.
    fn weights(change: impl Fn(&mut crate::bench::Stored)) -> impl Fn(&Path) {
        move |folder: &Path| rewrite(&folder.join("model.safetensors"), |stored| change(stored))
    }
    of_model(&weights(|stored| drop(stored.remove(OUTPUT))), 1, &["missing tensor", OUTPUT]);
    of_model(
        &weights(|stored| drop(stored.remove("bert.embeddings.LayerNorm.bias"))),
        1,
        &["missing tensor"],
    );
    of_model(&weights(|stored| stored.get_mut(OUTPUT).unwrap().1.reverse()), 1, &["has shape"]);
    of_model(&weights(|stored| stored.get_mut(OUTPUT).unwrap().0 = "I32".into()), 1, &["expected floats"]);
    of_model(
        &|folder| crate::bench::cut(&folder.join("model.safetensors"), |length| length / 2),
        1,
        &["truncated"],
    );
    // A pickle only, weights of another program, another kind of model.
    of_model(
        &|folder| fs::rename(folder.join("model.safetensors"), folder.join("pytorch_model.bin")).unwrap(),
        1,
        &["as a pickle only"],
    );
    of_model(
        &|folder| fs::rename(folder.join("model.safetensors"), folder.join("flax_model.msgpack")).unwrap(),
        1,
        &["has no weights"],
    );
    of_model(
        &|folder| {
            edit(&folder.join("config.json"), |config| drop(config.insert("model_type".into(), "t5".into())))
        },
        1,
        &["`t5` is not supported"],
    );
    of_model(
        &|folder| {
            edit(&folder.join("config.json"), |config| drop(config.insert("hidden_size".into(), 48.into())))
        },
        1,
        &["does not fit its config.json"],
    );
    of_model(&|folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(), 1, &["tokenizer"]);
    // Recipes that do not fit the base, the data or the machine.
    for (set, code, words) in [
        ("adapter.targets=q_proj", 2, "matches no layer"),
        ("adapter.rank=37", 2, "does not fit"),
        ("data.max_length=41", 2, "has 40 positions"),
        ("data.train=trian", 2, "no split `trian`"),
        ("eval.metric=pearson", 2, "has no metric"),
        ("adapter.basis=nowhere", 1, "no basis at `nowhere"),
        ("train.init_from=nowhere", 1, "is not an adapter"),
        ("train.init_from=other/adapter", 1, "belongs to another base"),
    ] {
        if set.contains("other/") {
            bench.recipe(&encoders().join("bert-relu-trunk"), "tiny/pairs");
            bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "other"], 0);
            bench.recipe(&encoders().join("bert-gelu"), "tiny/pairs");
        }
        refuses(&["--set", set], code, &[words]);
    }
}

#[test]
fn a_dry_run_refuses_a_basis_and_an_adapter_that_do_not_fit() {
    let bench = Bench::new();
    let model = encoders().join("bert-gelu");
    let train = |out: &str, sets: &[&str]| {
        let mut args =
            vec!["train".to_owned(), "--recipe".into(), "recipe.toml".into(), "--out".into(), out.into()];
        sets.iter().for_each(|set| args.extend(["--set".to_owned(), (*set).to_owned()]));
        args
    };
    let refuses = |sets: &[&str], code, told: &[&str]| {
        let args = train("next", sets);
        bench.refuses(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, told);
    };
    let svd = ["init-svd", "--rank", "5", "--out", "basis", "--model", model.to_str().unwrap()];
    bench.0.run(&svd, 0);
    refuses(&["adapter.basis=basis"], 2, &["has rank 5"]);
    refuses(
        &["adapter.basis=basis", "adapter.rank=5", "adapter.spectrum=bottom"],
        2,
        &["was made differently"],
    );
    refuses(&["adapter.basis=basis", "adapter.rank=5", "adapter.targets=dense"], 1, &["basis"]);
    let args = train("run", &[]);
    bench.0.run(&args.iter().map(String::as_str).collect::<Vec<_>>(), 0);
    refuses(&["train.init_from=run/adapter", "adapter.rank=5"], 2, &["the adapter's rank is 4"]);
    refuses(&["train.init_from=run/adapter", "adapter.method=lora"], 2, &["the adapter's method is lora-xs"]);
    refuses(&["train.init_from=run/adapter", "adapter.targets=query"], 1, &["not adapted"]);
    let weights = bench.path("run/adapter/adapter_model.safetensors");
    rewrite(&weights, |stored| {
        let (_, shape, bytes) = stored.get_mut("lora_xs_R").unwrap();
        shape[0] -= 1;
        bytes.truncate(shape.iter().product::<usize>() * 4);
    });
    refuses(&["train.init_from=run/adapter"], 1, &["run/adapter"]);
    assert!(!bench.path("next").exists());
}

#[test]
fn a_dry_run_refuses_a_folder_and_a_resumption_that_the_training_refuses() {
    let bench = Bench::new();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    let refuses =
        |more: &[&str], code, words: &[&str]| bench.refuses(&[&train[..], more].concat(), code, words);
    bench.refuses(
        &["train", "--recipe", "recipe.toml", "--out", "recipe.toml/run"],
        1,
        &["cannot write `recipe.toml/run`"],
    );
    bench.refuses(&["train", "--resume", "nowhere"], 1, &["`nowhere` is not a run"]);
    bench.refuses(&["train", "--resume"], 2, &["does not say which run"]);
    bench.refuses(&["train", "--resume", "a", "--out", "b"], 2, &["name two folders"]);
    bench.0.run(&train, 0);
    refuses(&[], 1, &["already has a run"]);
    refuses(
        &["--resume", "--set", "train.seed=9"],
        2,
        &["is a run of a different recipe", "`train.seed` was 0, now 9"],
    );
    refuses(&["--resume", "--set", "train.max_steps=9"], 2, &["`linear`", "train.init_from=run/adapter"]);
    fs::remove_file(bench.path("run/results.json")).unwrap();
    refuses(&["--resume", "--set", "adapter.rank=5"], 2, &["is a run of a different recipe"]);
    fs::write(bench.path("run/recipe.toml"), "[model\n").unwrap();
    refuses(&["--resume"], 2, &["is not valid TOML"]);
}
