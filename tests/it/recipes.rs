//! Recipes as users meet them: the shipped ones, faults, and overrides.

use std::fs;
use std::path::{Path, PathBuf};

use loraxs::adapters::Method;
use loraxs::adapters::lora_xs::LoraXsConfig;
use loraxs::fault::exit_code;
use loraxs::recipe::{Recipe, Sweep, SweepRun};
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
        let text = fs::read_to_string(path).unwrap();
        let name = path.to_str().unwrap();
        let (recipe, origin) = match Sweep::load(name, &[], &[]).unwrap() {
            Some((sweep, origin)) => (sweep.runs[0].recipe.clone(), origin),
            None => Recipe::load(name, &[]).unwrap(),
        };
        let again = Recipe::parse(&recipe.to_toml().unwrap(), "again", &[]).unwrap();
        assert_eq!(again, recipe, "{}", path.display());
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

fn sweep(name: &str) -> Vec<SweepRun> {
    Sweep::load(name, &[], &[]).unwrap().unwrap().0.runs
}

/// A run's value of a key, as `--set` takes it.
fn value(run: &SweepRun, key: &str) -> String {
    let (_, value) = run.varied.iter().find(|(varied, _)| varied == key).unwrap();
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[test]
fn the_sweeps_on_glue_are_the_published_grids_of_the_recipes() {
    const VARIED: [&str; 4] =
        ["adapter.rank", "train.learning_rate", "train.head_learning_rate", "train.seed"];
    for (name, tasks, count) in [
        ("sweep-glue-from-scratch", ["cola", "sst2", "qnli"], 3 * 6 * 9 * 5),
        ("sweep-glue-from-mnli", ["mrpc", "rte", "stsb"], 3 * 6 * 4 * 5),
    ] {
        let runs = sweep(name);
        assert_eq!(runs.len(), count, "{name}");
        for run in &runs {
            let task = run.recipe.data.dataset.strip_prefix("glue/").unwrap();
            assert!(tasks.contains(&task), "{task}");
            let mut sets: Vec<String> = VARIED.map(|key| format!("{key}={}", value(run, key))).to_vec();
            if name.ends_with("mnli") {
                let rank = value(run, "adapter.rank");
                sets.push(format!("train.init_from=runs/glue-mnli-ranks/rank={rank}/adapter"));
            }
            let (mut alone, _) = Recipe::load(&format!("glue-{task}"), &sets).unwrap();
            // The task's first metric, which the recipe names.
            alone.eval.metric.clear();
            assert_eq!(run.recipe, alone, "{}", run.name);
        }
    }
}

#[test]
fn the_sweep_in_the_documentation_is_one() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/sweeps.md")).unwrap();
    let section = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let (_folder, name) = written(&format!("[model]\nname = \"m\"\n[data]\ndataset = \"d\"\n{section}"));
    assert_eq!(sweep(&name).len(), 3 * 3 * 3);
}

#[test]
fn the_sweep_of_methods_is_what_the_measurements_were_made_with() {
    const METHODS: [&[&str]; 9] = [
        &["adapter.method=lora-xs"],
        &["adapter.method=lora-xs", "adapter.init=random"],
        &[
            "adapter.method=vera",
            "adapter.rank=128",
            "adapter.targets=query,value",
            "train.learning_rate=2e-2",
        ],
        &["adapter.method=lora-mini", "adapter.rank=4", "adapter.alpha=4"],
        &[
            "adapter.method=lora",
            "adapter.rank=1",
            "adapter.alpha=2",
            "adapter.targets=query,value",
            "train.learning_rate=2e-3",
        ],
        &["adapter.method=lora", "adapter.rank=1", "adapter.alpha=2", "train.learning_rate=2e-3"],
        &["adapter.method=tiny-lora"],
        &["adapter.method=head"],
        &["adapter.method=full", "train.learning_rate=1e-4", "train.head_learning_rate=1e-3"],
    ];
    let mut expected = Vec::new();
    for (dataset, limit) in [("glue/sst2", 8000), ("glue/stsb", 3000)] {
        for method in METHODS {
            for seed in 0..3 {
                let own = [
                    format!("data.dataset={dataset}"),
                    format!("data.limit={limit}"),
                    format!("train.seed={seed}"),
                ];
                let sets: Vec<String> =
                    own.into_iter().chain(method.iter().map(|set| (*set).to_owned())).collect();
                expected.push(Recipe::load("compare-methods", &sets).unwrap().0);
            }
        }
    }
    let found: Vec<Recipe> = sweep("sweep-methods").into_iter().map(|run| run.recipe).collect();
    assert_eq!(found, expected);
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
