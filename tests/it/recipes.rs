//! Recipes as users meet them: the shipped ones, faults, and overrides.

use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::Method;
use loraxs::adapters::lora_xs::LoraXsConfig;
use loraxs::fault::exit_code;
use loraxs::recipe::Recipe;
use loraxs::spec::Every;

fn shipped(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            shipped(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "toml") {
            found.push(path);
        }
    }
}

fn written(text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mine.toml");
    fs::write(&path, text).unwrap();
    let name = path.to_str().unwrap().to_owned();
    (folder, name)
}

#[test]
fn every_shipped_recipe_loads_round_trips_and_opens_with_its_command() {
    let mut paths = Vec::new();
    shipped(&Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes"), &mut paths);
    paths.sort();
    for path in &paths {
        let (recipe, origin) = Recipe::load(path.to_str().unwrap(), &[]).unwrap();
        let again = Recipe::parse(&recipe.to_toml().unwrap(), "again", &[]).unwrap();
        assert_eq!(again, recipe, "{}", path.display());
        let text = fs::read_to_string(path).unwrap();
        assert!(
            text.contains(&format!("loraxs train --recipe {}.toml", origin.stem())),
            "{}",
            path.display()
        );
        if recipe.adapter.method.name() == "lora-xs" && recipe.model.name == "roberta-large" {
            assert!(text.contains("24,576 at rank 16"), "{}", path.display());
        }
    }
    println!("{} recipes load", paths.len());
    assert!(paths.len() >= 9);
}

#[test]
fn the_glue_recipes_hold_the_published_settings() {
    for task in ["cola", "sst2", "qnli", "mrpc", "rte", "stsb", "mnli", "qqp", "wnli"] {
        let (recipe, _) = Recipe::load(&format!("glue-{task}"), &[]).unwrap();
        assert_eq!(recipe.data.dataset, format!("glue/{task}"));
        let expected = Method::LoraXs(LoraXsConfig { r: 16, lora_alpha: 16.0 });
        assert_eq!((&recipe.adapter.method, recipe.data.max_length), (&expected, 128));
        assert_eq!(recipe.adapter.targets, ["query", "value", "attention.output.dense", "output.dense"]);
        let from_mnli = ["mrpc", "rte", "stsb"].contains(&task);
        let expected = if from_mnli { (50, 0.0) } else { (10, 0.06) };
        assert_eq!((recipe.train.epochs, recipe.train.warmup_ratio), expected, "{task}");
    }
}

#[test]
fn three_faults_come_in_one_message() {
    let (_folder, name) = written(
        "[model]\nname = \"m\"\n[data]\ndataset = \"d\"\n[train]\nepoch = 3\nbatch_size = \"32\"\nwarmup_ratio = 1.5\n",
    );
    let error = Recipe::load(&name, &[]).unwrap_err();
    let expected = format!(
        "recipe `{name}` has 3 faults:\n  \
         line 6: unknown key `train.epoch`; did you mean `train.epochs`?\n  \
         line 7: `train.batch_size`: expected a whole number from 1 to 1048576, since they are in memory at once, \
         found the string `32`\n  \
         line 8: `train.warmup_ratio`: expected a number from 0 up to, not including, 1, found `1.5`"
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(exit_code(&error), 2);
}

#[test]
fn overrides_change_any_key_and_their_faults_join_those_of_the_file() {
    let sets = |sets: &[&str]| sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>();
    let (recipe, _) = Recipe::load(
        "glue-qnli.toml",
        &sets(&["model.name=org/base", "train.learning_rate=5e-4", "eval.every=50", "train.max_steps=200"]),
    )
    .unwrap();
    assert_eq!((recipe.model.name.as_str(), recipe.train.learning_rate), ("org/base", 5e-4));
    assert_eq!((recipe.eval.every, recipe.train.max_steps, recipe.train.epochs), (Every::Steps(50), 200, 0));

    let (_folder, name) = written("[model]\nname = \"m\"\n[adapter]\nrank = 0\n");
    let error =
        Recipe::load(&name, &sets(&["data.dataset=d", "train.lerning_rate=1", "nonsense"])).unwrap_err();
    let text = error.to_string();
    for part in [
        "has 3 faults",
        "line 4: `adapter.rank`: expected a whole number from 1 to 1048576, since no layer is wider, found `0`",
        "`--set train.lerning_rate=1`: unknown key `train.lerning_rate`; did you mean `train.learning_rate`?",
        "`--set nonsense`: expected `key.path=value`",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
}
