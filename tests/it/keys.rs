//! `loraxs recipe`: recipes, and the reference of all keys, which is also `docs/keys.md`.

use std::fs;
use std::path::Path;

use loraxs::adapters::Method;
use loraxs::recipe::Recipe;

use crate::bench::{Bench, check, text};
use crate::forked;

/// What `loraxs recipe` prints.
fn printed(args: &[&str]) -> String {
    let output = forked::output(&Bench::new().bare(&[&["recipe"], args].concat()));
    assert!(output.status.success(), "{args:?}");
    text(&output)
}

#[test]
fn the_reference_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/keys.md");
    let made = printed(&["--keys"]);
    if std::env::var_os("LORAXS_WRITE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == made,
        "docs/keys.md is out of date: `LORAXS_WRITE=1 cargo test --test it -- keys::` writes it anew"
    );
    // A few by hand, so that the words are known to be those of the readers.
    for line in [
        "- `learning_rate` = `0.001` (a number of at least 0): Peak learning rate of the adapter",
        "- `dataset` = `\"\"` (a string): A key of the catalog; a file",
        "- `dropout` (a number from 0 up to, not including, 1, none by default): Probability",
        "- `schedule` = `\"linear\"` (one of `linear`, `cosine`, `constant`): Shape",
        "- `label` (a string, required): Column of the number to predict.",
    ] {
        assert!(made.contains(line), "no `{line}`");
    }
}

#[test]
fn a_recipe_with_every_key_is_the_same_recipe() {
    let bench = Bench::new();
    for (name, sets) in [("glue-rte", ""), ("metamath-gemma-7b", "")]
        .into_iter()
        .map(|(name, sets)| (name.to_owned(), sets))
        .chain(Method::all().iter().map(|method| ("recipe.toml".to_owned(), method.name())))
    {
        let path = bench.path("recipe.toml");
        if !sets.is_empty() {
            fs::write(&path, format!("model.name = 'm'\ndata.dataset = 'd'\nadapter.method = '{sets}'\n"))
                .unwrap();
        }
        let found = if sets.is_empty() { name.clone() } else { path.display().to_string() };
        let all = printed(&[&found, "--all"]);
        let written = bench.path("all.toml");
        fs::write(&written, &all).unwrap();
        let [plain, whole] =
            [found.as_str(), written.to_str().unwrap()].map(|name| Recipe::load(name, &[]).unwrap().0);
        assert_eq!(plain, whole, "{name} {sets}");
        // Nothing is left out: a key of each section, with its words.
        for line in
            ["# Passes over the training data; ", "log_every = 10", "revision = \"main\"", "; required)"]
        {
            assert!(all.contains(line), "{name} {sets}: no `{line}` in {all}");
        }
    }
    assert_eq!(printed(&["lora-cola", "--all"]).matches("\nrank = ").count(), 1);
}

#[test]
fn recipes_are_listed_and_printed_as_they_are() {
    let list = printed(&[]);
    assert!(list.contains("glue-qnli ") && list.contains("LoRA-XS on QNLI with RoBERTa-large"), "{list}");
    let stored =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/glue-qnli.toml")).unwrap();
    assert_eq!(printed(&["glue-qnli"]).trim_end(), stored.trim_end());
    let bench = Bench::new();
    for (args, words) in
        [(&["recipe", "glue-qnly"][..], "did you mean `glue-qnli`?"), (&["recipe", "--all"], "<NAME>")]
    {
        check(args, &forked::output(&bench.bare(args)), 2, &[words]);
    }
}
