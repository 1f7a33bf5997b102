//! Parsing of a recipe's text and its overrides into a [`Recipe`].

use super::{AdapterRecipe, DataRecipe, EvalRecipe, ModelRecipe, Recipe, TrainRecipe};
use crate::adapters::Method;
use crate::fault::{Result, usage};
use crate::limits::RANK;
use crate::spec::reader::{Reader, refuse};
use crate::spec::values::POSITIVE;
use crate::spec::{Every, Init, Spectrum};

/// The section of a sweep, and its key whose value is a table.
pub(super) const SWEEP: (&str, &str) = ("sweep", "halving");
/// Keys of `[adapter]` that belong to the methods with a basis, and their defaults for those without.
const OF_BASIS: [(&str, &str); 4] =
    [("adapter.init", "svd"), ("adapter.spectrum", "top"), ("adapter.sigma", "a"), ("adapter.basis", "")];
/// Keys of most methods, which the others check and pass over, so that one recipe serves for all.
const SHARED: [&str; 2] = ["adapter.rank", "adapter.alpha"];

/// Reads `text`, applies `sets`, and reports all faults at once.
pub(super) fn parse(text: &str, name: &str, sets: &[String]) -> Result<Recipe> {
    let (mut reader, sweep) = Reader::open_apart(text, name, SWEEP)?;
    if sweep.is_some() {
        let hint = "train it with `loraxs train --recipe`; everything else works on one of its runs";
        return Err(usage(format!("recipe `{name}` is a sweep of many runs, expected one run"))
            .hint(hint)
            .into());
    }
    for assignment in sets {
        reader.set(assignment);
    }
    let recipe = read(&mut reader);
    refuse(&format!("recipe `{name}`"), &reader.faults())?;
    Ok(recipe)
}

/// Reads a recipe and records its faults.
pub(super) fn read(reader: &mut Reader) -> Recipe {
    displace(reader);
    let recipe = Recipe {
        model: ModelRecipe::read(reader),
        adapter: AdapterRecipe::read(reader),
        data: DataRecipe::read(reader),
        train: TrainRecipe::read(reader),
        eval: EvalRecipe::read(reader),
    };
    refuse_foreign_keys(&recipe.adapter.method, &Method::all(), reader);
    contradictions(&recipe, reader);
    reader.refuse_unknown();
    recipe
}

/// Removes keys of the file that an override excludes.
pub(super) fn displace(reader: &mut Reader) {
    reader.displace("train.epochs", "train.max_steps");
    reader.displace("train.warmup_ratio", "train.warmup_steps");
}

impl Reader {
    /// Reads the name of a method, and its settings.
    pub(super) fn method(&mut self, key: &'static str) -> Method {
        let all = Method::all();
        let name = self.name(key, &all.each_ref().map(|method| method.name()));
        let method = all.iter().find(|method| method.name() == name);
        method.map_or(Method::Head, |method| method.read(self))
    }
}

/// Refuses a key of another method, unless it only repeats its default, as a resolved recipe may.
fn refuse_foreign_keys(chosen: &Method, all: &[Method], reader: &mut Reader) {
    let keys = |method: &Method| {
        let mut keys = method.keys();
        if method.basis_rank().is_some() {
            keys.extend(OF_BASIS.map(|(key, default)| (key, default.into())));
        }
        keys
    };
    let mut own: Vec<&str> = keys(chosen).into_iter().map(|(key, _)| key).collect();
    if !own.contains(&"adapter.rank") {
        reader.whole::<i64>("adapter.rank", 1, 1, RANK);
    }
    if !own.contains(&"adapter.alpha") {
        reader.number("adapter.alpha", 1.0, POSITIVE);
    }
    own.extend(SHARED);
    for (key, default) in all.iter().flat_map(keys) {
        reader.know(key);
        if own.contains(&key) || !reader.sound(&[key]) || !reader.differs(key, &default) {
            continue;
        }
        let owners = all.iter().filter(|method| keys(method).iter().any(|(known, _)| *known == key));
        let names: Vec<String> = owners.map(|method| format!("`{}`", method.name())).collect();
        reader.fail(key, format!("belongs to {}, not to `{}`", names.join(", "), chosen.name()));
    }
}

/// Refuses keys that are valid one by one but not together.
fn contradictions(recipe: &Recipe, reader: &mut Reader) {
    let Recipe { adapter, data, train, eval, .. } = recipe;
    match (data.dataset.is_empty(), data.mixture.is_empty()) {
        (true, true) if reader.sound(&["data.dataset", "data.mixture"]) => reader.missing("data.dataset"),
        (false, false) => {
            reader.fail("data.mixture", "excludes `data.dataset`, expected one of them, found both");
        }
        (true, false) if !data.entry().is_empty() => {
            let key = data.entry().keys().next().cloned().unwrap_or_default();
            reader.fail(
                &format!("data.{key}"),
                "expected none with `data.mixture`, whose data sets have their own",
            );
        }
        _ => {}
    }
    if reader.sound(&["train.epochs", "train.max_steps"]) {
        match (train.epochs, train.max_steps) {
            (0, 0) => {
                reader.fail("train.epochs", "expected at least 1, or `train.max_steps`, found 0 for both")
            }
            (_, 0) | (0, _) => {}
            _ => reader.fail("train.max_steps", "excludes `train.epochs`, expected one of them, found both"),
        }
    }
    if train.warmup_ratio > 0.0 && train.warmup_steps > 0 {
        reader.fail("train.warmup_steps", "excludes `train.warmup_ratio`, expected one of them, found both");
    }
    if reader.sound(&["train.batch_size", "train.micro_batch_size"])
        && train.micro_batch_size > train.batch_size
    {
        let problem = format!(
            "expected at most `train.batch_size` = {}, found {}",
            train.batch_size, train.micro_batch_size
        );
        reader.fail("train.micro_batch_size", problem);
    }
    if adapter.init == Init::Random && !adapter.basis.is_empty() {
        reader.fail("adapter.basis", "expected none with `adapter.init = \"random\"`");
    }
    if adapter.init == Init::Random && adapter.spectrum != Spectrum::Top {
        reader.fail("adapter.spectrum", "expected none with `adapter.init = \"random\"`");
    }
    if eval.every == Every::Never && eval.patience > 0 {
        reader.fail(
            "eval.patience",
            "expected 0 with `eval.every = \"never\"`, early stopping needs evaluations",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::adapters::lora_xs::LoraXsConfig;
    use crate::spec::Sigma;

    const LEAST: &str = "[model]\nname = \"m\"\n[data]\ndataset = \"d\"\n";

    fn with(text: &str, sets: &[&str]) -> Result<Recipe> {
        parse(
            &format!("{LEAST}{text}"),
            "r.toml",
            &sets.iter().map(|set| (*set).to_owned()).collect::<Vec<_>>(),
        )
    }

    fn message(text: &str, sets: &[&str]) -> String {
        with(text, sets).unwrap_err().to_string()
    }

    #[test]
    fn two_keys_are_enough_and_the_rest_is_published() {
        let recipe = with("", &[]).unwrap();
        assert_eq!(recipe.adapter.method, Method::LoraXs(LoraXsConfig { r: 16, lora_alpha: 16.0 }));
        assert_eq!(recipe.adapter.init_std, 1e-5);
        assert!(recipe.adapter.targets.is_empty());
        assert_eq!(
            (recipe.train.epochs, recipe.train.batch_size, recipe.train.micro_batch_size),
            (10, 32, 32)
        );
        assert_eq!((recipe.train.learning_rate, recipe.train.head_learning_rate), (1e-3, 5e-3));
        assert_eq!((recipe.train.warmup_ratio, recipe.train.weight_decay), (0.06, 0.01));
        assert_eq!((recipe.model.dropout, recipe.eval.every), (None, Every::Epoch));
    }

    #[test]
    fn writing_and_reading_back_gives_the_same_recipe() {
        let odd = [
            "train.max_steps=7",
            "train.warmup_steps=3",
            "train.learning_rate=3.3e-7",
            "model.dropout=0.0",
            "eval.every=25",
            "train.checkpoint_every=never",
            "adapter.targets=q \"x\",v",
            "train.precision=bf16",
            "model.name=C:\\odd \"folder\"",
            "adapter.spectrum=bottom",
            "eval.tasks=gsm8k,math",
            "train.seed=9223372036854775807",
            "adapter.init_std=0",
        ];
        for recipe in [with("", &[]).unwrap(), with("", &odd).unwrap()] {
            let text = recipe.to_toml().unwrap();
            assert_eq!(Recipe::parse(&text, "again", &[]).unwrap(), recipe, "{text}");
        }
        assert_eq!(with("", &odd).unwrap().adapter.targets, ["q \"x\"", "v"]);
    }

    /// Returns the recipes of all methods with their defaults, as they are written.
    fn written() -> Vec<toml::Table> {
        let written = |method: &Method| {
            let sets = [format!("adapter.method={}", method.name()), "model.dropout=0.1".to_owned()];
            parse(LEAST, "r", &sets).unwrap().to_toml().unwrap().parse().unwrap()
        };
        Method::all().iter().map(written).collect()
    }

    #[test]
    fn every_key_is_written_out() {
        let mut reader = Reader::open(LEAST, "r").unwrap();
        AdapterRecipe::read(&mut reader);
        refuse_foreign_keys(&Method::Head, &Method::all(), &mut reader);
        ModelRecipe::read(&mut reader);
        DataRecipe::read(&mut reader);
        TrainRecipe::read(&mut reader);
        EvalRecipe::read(&mut reader);
        let written = written();
        for key in reader.known().keys() {
            let (section, leaf) = key.split_once('.').unwrap();
            // The data set's own keys are written where they are given.
            let is_of_entry =
                ["task", "text", "label", "labels", "prompt", "response", "messages", "metrics", "mixture"]
                    .contains(&leaf);
            let is_written = written.iter().any(|recipe| recipe[section].get(leaf).is_some());
            let is_optional = section == "data" && is_of_entry || *key == "train.class_weights";
            assert!(is_written || is_optional, "{key}");
        }
    }

    #[test]
    fn every_whole_number_has_a_range_and_says_it() {
        let mut keys: BTreeMap<String, String> = BTreeMap::new();
        for recipe in written() {
            let method = recipe["adapter"]["method"].as_str().unwrap();
            for (section, leaves) in
                recipe.iter().filter_map(|(section, keys)| Some((section, keys.as_table()?)))
            {
                for (leaf, _) in leaves.iter().filter(|(_, value)| value.is_integer()) {
                    keys.entry(format!("{section}.{leaf}"))
                        .or_insert_with(|| format!("adapter.method={method}"));
                }
            }
        }
        for key in ["train.checkpoint_every", "eval.every"] {
            keys.insert(key.to_owned(), "adapter.method=lora-xs".to_owned());
        }
        assert_eq!(keys.len(), 25, "{keys:?}");
        for (key, method) in &keys {
            let message = |set: &str| message("", &[method, set]);
            let refused = message(&format!("{key}=-1"));
            assert!(refused.contains("a whole number from ") || refused.contains("of at least"), "{key}");
            let refused = message(&format!("{key}=18446744073709551616"));
            assert!(
                refused.contains("expected a whole number from ") || refused.contains("or a number of steps"),
                "{refused}"
            );
            let largest = format!("{key}=9223372036854775807");
            if !key.ends_with("seed") {
                let refused = message(&largest);
                assert!(
                    refused.contains(&format!("`--set {largest}`: expected a whole number from ")),
                    "{refused}"
                );
                assert!(refused.contains(", since "), "{refused}");
            }
        }
        for key in ["adapter.alpha", "train.learning_rate", "train.weight_decay", "adapter.init_std"] {
            let refused = message("", &[&format!("{key}=1e39")]);
            assert!(refused.contains("and at most 3.4028235e38, found `1"), "{refused}");
            assert!(with("", &[&format!("{key}=1e38")]).is_ok());
        }
    }

    #[test]
    fn a_serialised_recipe_deserialises_with_the_same_checks() {
        let recipe = with("", &["train.max_steps=5"]).unwrap();
        let json = serde_json::to_string(&recipe).unwrap();
        assert_eq!(serde_json::from_str::<Recipe>(&json).unwrap(), recipe);
        let wrong = json.replace("\"rank\":16", "\"rank\":0");
        assert!(serde_json::from_str::<Recipe>(&wrong).unwrap_err().to_string().contains("adapter.rank"));
    }

    #[test]
    fn keys_that_exclude_each_other_are_refused_in_one_file() {
        let found =
            message("[train]\nepochs = 3\nmax_steps = 9\nwarmup_ratio = 0.1\nwarmup_steps = 2\n", &[]);
        assert!(found.contains("line 7: `train.max_steps`: excludes `train.epochs`"), "{found}");
        assert!(found.contains("line 9: `train.warmup_steps`: excludes `train.warmup_ratio`"), "{found}");
        assert!(message("", &["train.epochs=0"]).contains("found 0 for both"));
        assert!(message("", &["train.epochs=2", "train.max_steps=9"]).contains("excludes"));
        assert!(
            message("", &["train.batch_size=8", "train.micro_batch_size=16"])
                .contains("`train.batch_size` = 8")
        );
        assert!(message("", &["eval.every=never", "eval.patience=2"]).contains("early stopping"));
        assert!(message("", &["adapter.init=random", "adapter.basis=x"]).contains("adapter.init"));
    }

    #[test]
    fn an_override_displaces_what_it_excludes_in_the_file() {
        let recipe =
            with("[train]\nepochs = 3\nwarmup_ratio = 0.1\n", &["train.max_steps=9", "train.warmup_steps=2"]);
        let train = recipe.unwrap().train;
        assert_eq!((train.epochs, train.max_steps, train.warmup_ratio, train.warmup_steps), (0, 9, 0.0, 2));
        let train = with("[train]\nmax_steps = 9\n", &["train.epochs=3"]).unwrap().train;
        assert_eq!((train.epochs, train.max_steps), (3, 0));
        let train = with("[train]\nepochs = 3\n", &["train.max_steps=0"]).unwrap().train;
        assert_eq!((train.epochs, train.max_steps), (3, 0));
    }

    #[test]
    fn each_method_has_its_own_defaults_and_refuses_the_keys_of_others() {
        let adapter = |name: &str| with("", &[&format!("adapter.method={name}")]).unwrap().adapter;
        let ranks = ["lora-xs", "lora", "vera", "lora-mini", "tiny-lora"]
            .map(|name| adapter(name).method.keys())
            .map(|keys| keys.iter().find(|(key, _)| *key == "adapter.rank").unwrap().1.as_integer().unwrap());
        assert_eq!(ranks, [16, 8, 256, 8, 2]);
        assert_eq!((adapter("tiny-lora").sigma, adapter("lora-mini").init), (Sigma::Split, Init::Random));
        let with_basis: &[&str] = &["lora-xs", "lora-mini", "tiny-lora"];
        let belongs: [(&str, &[&str]); 13] = [
            ("adapter.init", with_basis),
            ("adapter.spectrum", with_basis),
            ("adapter.basis", with_basis),
            ("adapter.sigma", with_basis),
            ("adapter.rslora", &["lora"]),
            ("adapter.d_initial", &["vera"]),
            ("adapter.projection_seed", &["vera", "tiny-lora"]),
            ("adapter.save_projection", &["vera"]),
            ("adapter.rank_a", &["lora-mini"]),
            ("adapter.rank_b", &["lora-mini"]),
            ("adapter.u", &["tiny-lora"]),
            ("adapter.tie", &["tiny-lora"]),
            ("adapter.tying", &["tiny-lora"]),
        ];
        for (key, methods) in belongs {
            for method in Method::all().each_ref().map(|method| method.name()) {
                let value = match key {
                    "adapter.rslora" => "true",
                    "adapter.init" if method == "lora-mini" => "svd",
                    "adapter.init" => "random",
                    "adapter.spectrum" => "bottom",
                    "adapter.save_projection" => "false",
                    "adapter.tying" => "kind",
                    "adapter.sigma" => "b",
                    _ => "9",
                };
                let belongs = methods.contains(&method);
                let (method_set, key_set) = (format!("adapter.method={method}"), format!("{key}={value}"));
                // LoRA-Mini's factors are random unless told otherwise, and then have no decomposition.
                let of_svd = belongs && ["adapter.spectrum", "adapter.basis"].contains(&key);
                let init = if of_svd { "adapter.init=svd" } else { method_set.as_str() };
                let read = with("", &[&method_set, init, &key_set]);
                assert_eq!(read.is_ok(), belongs, "{method}, {key}");
            }
        }
        for set in ["adapter.rank=0", "adapter.alpha=-1"] {
            for method in Method::all().each_ref().map(|method| method.name()) {
                assert!(
                    message("", &[&format!("adapter.method={method}"), set]).contains("expected a"),
                    "{method}"
                );
            }
        }
        let found = message("", &["adapter.method=lora", "adapter.u=13"]);
        assert!(found.contains("belongs to `tiny-lora`, not to `lora`"), "{found}");
        assert!(
            message("", &["adapter.method=lora-xl"]).contains("expected one of `lora-xs`, `lora`, `vera`")
        );
    }

    #[test]
    fn both_required_keys_are_reported_missing() {
        let found = parse("", "r.toml", &[]).unwrap_err().to_string();
        assert_eq!(
            found,
            "recipe `r.toml` has 2 faults:\n  missing key `data.dataset`\n  missing key `model.name`"
        );
    }
}
