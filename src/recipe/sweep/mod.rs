//! Sweeps: many runs from one recipe, whose section `[sweep]`, or `train --sweep`, gives keys several values.
//!
//! | part | content |
//! |---|---|
//! | `settings` | the keys of `[sweep]` itself |
//! | `axes` | the keys that vary: lists, ranges, and groups in step |
//! | `runs` | combinations or draws, checked |
//! | `names` | folders of the runs |
//! | `together` | which runs can be trained together |
//! | `written` | `sweep.toml`, and what differs from another |

mod axes;
mod names;
mod runs;
mod settings;
mod together;
mod written;

use std::path::Path;

use toml::{Table, Value};

use self::axes::Assignment;
use self::runs::Run;
use super::{Origin, Recipe, find, parse};
use crate::fault::{Result, fault, usage};
use crate::files::read_text;
use crate::spec::reader::{Reader, refuse};
pub use settings::{Halving, SweepSettings, Together};

/// File of a sweep in its folder: the whole recipe with its section `[sweep]`.
pub const SWEEP: &str = "sweep.toml";

/// Many runs from one recipe.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// What `sweep.toml` holds, from which the same runs are made again in any folder.
    pub text: String,
    /// The runs: the last key changes fastest; draws in their order.
    pub runs: Vec<SweepRun>,
    /// How they are trained.
    pub settings: SweepSettings,
}

/// A run of a sweep.
#[derive(Debug, Clone)]
pub struct SweepRun {
    /// Its folder in that of the sweep, such as `rank=4,seed=0`.
    pub name: String,
    /// Its recipe, as of a run alone.
    pub recipe: Recipe,
    /// The keys that vary, in the order of the sweep, with their values in this run.
    pub varied: Vec<(String, Value)>,
}

impl Sweep {
    /// Finds a recipe as [`Recipe::load`] does, and makes the runs of its sweep, with `sets` and `sweeps` (`key.path=v1,v2` or
    /// `setting=value`) from the command line. `None` if neither the recipe nor `sweeps` asks for a sweep.
    ///
    /// # Errors
    /// When there is no such recipe; one usage fault that lists all faults of the sweep and of its runs, each once, with line
    /// or option.
    pub fn load(name: &str, sets: &[String], sweeps: &[String]) -> Result<Option<(Self, Origin)>> {
        let (text, origin) = find::find(name)?;
        let sweep = Self::parse(&text, (&origin.to_string(), origin.folder()), sets, sweeps)?;
        Ok(sweep.map(|sweep| (sweep, origin)))
    }

    /// Reads the sweep in `folder` from its `sweep.toml`.
    ///
    /// # Errors
    /// When the folder has none, or a broken one.
    pub fn of_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(SWEEP);
        if !path.is_file() {
            let missing = fault(format!("`{}` is not a sweep: it has no `{SWEEP}`", folder.display()));
            return Err(missing
                .hint("a sweep is a folder written by `loraxs train` with `[sweep]` or `--sweep`")
                .into());
        }
        let name = path.display().to_string();
        let sweep = Self::parse(&read_text(&path)?, (&name, None), &[], &[])?;
        sweep.ok_or_else(|| fault(format!("`{name}` is damaged: it has no section `[sweep]`")).into())
    }

    /// Refuses a folder of another sweep. How many runs are trained together may differ: it changes no result.
    ///
    /// # Errors
    /// One that names the keys that differ, with both values.
    pub fn check_same(&self, folder: &Path) -> Result<()> {
        let path = folder.join(SWEEP);
        let differing = written::differing(&read_text(&path)?, &self.text)?;
        if differing.is_empty() {
            return Ok(());
        }
        let message = format!("`{}` has another sweep: {}", folder.display(), differing.join("; "));
        Err(usage(message)
            .hint("continue it with its own recipe and options, or choose another folder with `--out`")
            .into())
    }

    fn parse(
        text: &str,
        (name, beside): (&str, Option<&Path>),
        sets: &[String],
        sweeps: &[String],
    ) -> Result<Option<Self>> {
        let (mut base, section) = Reader::open_apart(text, name, parse::SWEEP)?;
        if section.is_none() && sweeps.is_empty() {
            return Ok(None);
        }
        let mut section = section.unwrap_or_else(|| Reader::of_entry(parse::SWEEP.0, Table::new()));
        for set in sets {
            base.set(set);
            if let Some(setting) = set.strip_prefix("sweep.") {
                return Err(usage(format!("`--set {set}`: expected `--sweep {setting}`")).into());
            }
        }
        sweeps.iter().for_each(|sweep| section.sweep(sweep));
        parse::displace(&mut base);
        let settings = SweepSettings::read(&mut section);
        let mut keys = Reader::default();
        parse::read(&mut keys);
        keys.known().keys().for_each(|key| section.know(key));
        section.refuse_unknown();
        let mut groups = axes::groups(&mut section, &base, &settings);
        if groups.is_empty() && section.failed() == 0 {
            section.fail("", "a sweep varies at least one key, found none: give it a list of values");
        }
        let mut found = Vec::new();
        runs::settle(&mut section, &mut base, &mut groups, beside)?;
        if section.failed() == 0 {
            found = runs::runs(&mut section, &base, &groups, &settings);
        }
        refuse(&format!("recipe `{name}`"), &section.faults())?;
        let text = written::text(&base, &groups, &settings)?;
        Ok(Some(Self { text, runs: named(found), settings }))
    }
}

fn named(found: Vec<Run>) -> Vec<SweepRun> {
    let value = |(key, given): Assignment| (key, given.value);
    let (recipes, varied): (Vec<Recipe>, Vec<Vec<(String, Value)>>) =
        found.into_iter().map(|(recipe, values)| (recipe, values.into_iter().map(value).collect())).unzip();
    let names = names::names(&varied);
    (names.into_iter().zip(recipes).zip(varied))
        .map(|((name, recipe), varied)| SweepRun { name, recipe, varied })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "model.name = 'm'\ndata.dataset = 'd'\n";

    fn with(text: &str, sets: &[&str], sweeps: &[&str]) -> Result<Sweep> {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let sweep = Sweep::parse(&format!("{LEAST}{text}"), ("r.toml", None), &owned(sets), &owned(sweeps))?;
        let sweep = sweep.expect("a sweep");
        // What is written makes the same runs again.
        let again = Sweep::parse(&sweep.text, ("again", None), &[], &[]).unwrap().unwrap();
        assert_eq!(again.text, sweep.text);
        assert_eq!(again.settings, sweep.settings);
        for (one, other) in sweep.runs.iter().zip(&again.runs) {
            assert_eq!((&one.name, &one.recipe, &one.varied), (&other.name, &other.recipe, &other.varied));
            assert!(!one.recipe.to_toml().unwrap().contains("sweep"));
        }
        assert_eq!(again.runs.len(), sweep.runs.len());
        Ok(sweep)
    }

    fn names(text: &str, sets: &[&str], sweeps: &[&str]) -> Vec<String> {
        with(text, sets, sweeps).unwrap().runs.into_iter().map(|run| run.name).collect()
    }

    fn message(text: &str, sets: &[&str], sweeps: &[&str]) -> String {
        let error = with(text, sets, sweeps).unwrap_err();
        assert_eq!(crate::fault::exit_code(&error), 2);
        error.to_string()
    }

    #[test]
    fn lists_are_combined_and_the_last_key_changes_fastest() {
        let text = "[sweep]\ntrain.seed = [0, 1]\nadapter.rank = [4, 8]\ntrain.learning_rate = [1e-4]\n";
        let expected = [
            "seed=0,rank=4,learning_rate=0.0001",
            "seed=0,rank=8,learning_rate=0.0001",
            "seed=1,rank=4,learning_rate=0.0001",
            "seed=1,rank=8,learning_rate=0.0001",
        ];
        assert_eq!(names(text, &[], &[]), expected);
        let sweeps = ["train.seed=0,1", "adapter.rank=4,8", "train.learning_rate=1e-4"];
        assert_eq!(names("", &[], &sweeps), expected);
        let run = &with("", &[], &sweeps).unwrap().runs[1];
        assert_eq!((run.recipe.train.seed, run.recipe.train.learning_rate), (0, 1e-4));
        let varied = run.varied.iter().map(|(key, value)| (key.as_str(), value.to_string()));
        let expected = [("train.seed", "0"), ("adapter.rank", "8"), ("train.learning_rate", "0.0001")];
        assert_eq!(varied.collect::<Vec<_>>(), expected.map(|(key, value)| (key, value.to_owned())));
        assert_eq!(with("", &[], &sweeps).unwrap().settings.together, Together::Auto);
        assert!(Sweep::parse(LEAST, ("r.toml", None), &[], &[]).unwrap().is_none());
    }

    #[test]
    fn values_typed_between_commas_need_no_quotes_and_may_be_lists() {
        let recipe =
            |sweep: &str, number: usize| with("", &[], &[sweep]).unwrap().runs[number].recipe.clone();
        for (sweep, targets) in [
            ("adapter.targets=[query,value],[query]", ["query", "value"].as_slice()),
            ("adapter.targets=[\"query\", 'value'], [query]", &["query", "value"]),
            ("adapter.targets=value,query", &["value"]),
        ] {
            assert_eq!(recipe(sweep, 0).adapter.targets, targets, "{sweep}");
            assert_eq!(recipe(sweep, 1).adapter.targets, ["query"], "{sweep}");
        }
        assert_eq!(recipe("model.revision=2024,1e5", 0).model.revision, "2024");
        assert_eq!(recipe("model.revision='a,b',c", 0).model.revision, "a,b");
        assert_eq!(recipe("model.revision=it's,c", 0).model.revision, "it's");
        assert_eq!(recipe("eval.every=epoch,50", 1).eval.every, crate::spec::Every::Steps(50));
        let mixture = "data.mixture={a=1,b=2},{a=1}";
        let text = "[sweep]\nadapter.targets = [[\"query\"], []]\neval.tasks = [[\"a\", \"b\"]]\n";
        let runs = with(text, &[], &[]).unwrap().runs;
        assert_eq!((runs[1].recipe.adapter.targets.len(), runs[1].recipe.eval.tasks.len()), (0, 2));
        let sweep =
            Sweep::parse("model.name = 'm'", ("r", None), &[], &[mixture.to_owned()]).unwrap().unwrap();
        assert_eq!(sweep.runs[0].recipe.data.mixture.len(), 2);
    }

    #[test]
    fn lists_in_a_zip_go_in_step() {
        let text =
            "[sweep]\ntrain.learning_rate = [1, 2]\ntrain.seed = [0, 1]\ntrain.head_learning_rate = [3, 4]\n";
        let expected = [
            "learning_rate=1.0,head_learning_rate=3.0,seed=0",
            "learning_rate=1.0,head_learning_rate=3.0,seed=1",
            "learning_rate=2.0,head_learning_rate=4.0,seed=0",
            "learning_rate=2.0,head_learning_rate=4.0,seed=1",
        ];
        for zip in [
            "[['train.learning_rate', 'train.head_learning_rate']]",
            "['train.head_learning_rate', 'train.learning_rate']",
        ] {
            assert_eq!(names(&format!("{text}zip = {zip}\n"), &[], &[]), expected);
        }
        assert_eq!(names(text, &[], &["zip=train.learning_rate+train.head_learning_rate"]), expected);
        assert_eq!(names(text, &[], &[]).len(), 8);
        let found = message(text, &[], &["zip=train.learning_rate+train.seed", "train.seed=0,1,2"]);
        assert!(
            found.contains(
                "expected lists of one length, found 2 values of `train.learning_rate` and 3 of `train.seed`"
            ),
            "{found}"
        );
        let found = message(text, &[], &["zip=train.learning_rate+train.epochs"]);
        assert!(found.contains("expected keys that the sweep varies, found `train.epochs`"), "{found}");
        let found =
            message(text, &[], &["zip=train.learning_rate+train.seed,train.seed+train.learning_rate"]);
        assert!(found.contains("expected each key once, found `train.learning_rate` twice"), "{found}");
    }

    #[test]
    fn draws_are_within_their_ranges_by_the_seed_and_all_different() {
        let text = "[sweep]\ntrain.learning_rate = { min = 1e-5, max = 1e-1, scale = 'log' }\nadapter.rank = { min = 2, max = 5 }\n\
                    train.schedule = ['linear', 'cosine']\ntrain.weight_decay = { min = 0, max = 1 }\n";
        let draw = |settings: &[&str]| with(text, &[], settings).unwrap().runs;
        let runs = draw(&["random=400"]);
        let mut rates: Vec<f64> = runs.iter().map(|run| run.recipe.train.learning_rate).collect();
        rates.sort_by(f64::total_cmp);
        assert!(rates[0] >= 1e-5 && rates[0] < 2e-5 && rates[399] <= 1e-1 && rates[399] > 5e-2, "{rates:?}");
        // The logarithms are uniform: a half is below the geometric mean.
        assert!((6e-4..1.6e-3).contains(&rates[200]), "{}", rates[200]);
        let count = |of: &dyn Fn(&Recipe) -> bool| runs.iter().filter(|run| of(&run.recipe)).count();
        for rank in [2, 3, 4, 5] {
            assert!((60..140).contains(&count(&|recipe| recipe.adapter.method.basis_rank() == Some(rank))));
        }
        assert!(
            (150..250).contains(&count(&|recipe| recipe.train.schedule == crate::spec::Schedule::Cosine))
        );
        assert!((150..250).contains(&count(&|recipe| recipe.train.weight_decay < 0.5)));
        let names = |runs: &[SweepRun]| runs.iter().map(|run| run.name.clone()).collect::<Vec<_>>();
        let distinct: std::collections::BTreeSet<String> = names(&runs).into_iter().collect();
        assert_eq!(distinct.len(), 400);
        // More draws begin with the same ones, and another seed gives others.
        assert_eq!(names(&draw(&["random=20"])), names(&runs)[..20]);
        assert_ne!(names(&draw(&["random=20", "seed=1"])), names(&runs)[..20]);
        let typed = ["random=20", "train.learning_rate=log:1e-5..1e-1", "adapter.rank=linear:2..5"];
        assert_eq!(names(&draw(&typed)), names(&runs)[..20]);
        // All of a few combinations.
        let few = with("", &[], &["adapter.rank=1,2,3", "train.seed=0,1,2", "random=9"]).unwrap().runs;
        assert_eq!(few.len(), 9);
        let found = message("", &[], &["adapter.rank=1,2,3", "train.seed=0,1,2", "random=10"]);
        assert!(
            found.contains(
                "`--sweep random=10`: expected at most as many as there are different runs, found 10 of 9"
            ),
            "{found}"
        );
    }

    #[test]
    fn settings_are_read_in_every_form() {
        let settings =
            |setting: &str| with("[sweep]\ntrain.seed = [0, 1, 2, 3]\n", &[], &[setting]).unwrap().settings;
        let written = |setting: &str| {
            with(&format!("[sweep]\ntrain.seed = [0, 1]\n{setting}\n"), &[], &[]).unwrap().settings
        };
        let halving = Some(Halving { factor: 3, rungs: 2 });
        assert_eq!(settings("halving=3x2").halving, halving);
        assert_eq!(written("halving = { factor = 3, rungs = 2 }").halving, halving);
        assert_eq!(written("[sweep.halving]\nfactor = 3\nrungs = 2").halving, halving);
        assert_eq!(settings("halving=true").halving, Some(Halving { factor: 2, rungs: 3 }));
        assert_eq!(written("halving = { rungs = 2 }").halving, Some(Halving { factor: 2, rungs: 2 }));
        assert_eq!(written("halving = false").halving, None);
        assert_eq!(settings("together=4").together, Together::Runs(4));
        assert_eq!(written("together = 'auto'").together, Together::Auto);
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table of equal cases")]
    fn each_wrong_sweep_is_told_with_its_place_and_once() {
        let list = "[sweep]\ntrain.seed = [0, 1]\n";
        let with_line = |line: &str| format!("{list}{line}\n");
        let cases: &[(&str, &[&str], &[&str], &str)] = &[
            (
                &with_line("train.sede = [1]"),
                &[],
                &[],
                "line 5: unknown key `sweep.train.sede`; did you mean `sweep.train.seed`?",
            ),
            (
                &with_line("rank = [1]"),
                &[],
                &[],
                "line 5: unknown key `sweep.rank`; did you mean `sweep.adapter.rank`?",
            ),
            (
                &with_line("randon = 5"),
                &[],
                &[],
                "line 5: unknown key `sweep.randon`; did you mean `sweep.random`?",
            ),
            (
                list,
                &[],
                &["train.sede=1,2"],
                "`--sweep train.sede=1,2`: unknown key `train.sede`; did you mean `train.seed`?",
            ),
            (list, &[], &["train.seed"], "`--sweep train.seed`: expected `key.path=value,value,…`"),
            (list, &[], &["train.seed=1,,2"], "`--sweep train.seed=1,,2`: expected values between commas"),
            (list, &[], &["adapter.targets=[a,b"], "and brackets and quotes that are closed"),
            (list, &[], &["data.train='a,b"], "and brackets and quotes that are closed"),
            (list, &["sweep.random=3"], &[], "`--set sweep.random=3`: expected `--sweep random=3`"),
            (
                "[sweep]\ntrain.seed = []\n",
                &[],
                &[],
                "line 4: `sweep.train.seed`: expected at least one value, found an empty list",
            ),
            (
                "[sweep]\ntrain.seed = 3\n",
                &[],
                &[],
                "line 4: `sweep.train.seed`: expected a list of values of `train.seed`, or",
            ),
            ("[sweep]\n", &[], &[], "recipe `r.toml`: line 3: a sweep varies at least one key, found none"),
            ("", &[], &["random=3"], "recipe `r.toml`: a sweep varies at least one key, found none"),
            ("[[sweep]]\ntrain.seed = [0]\n", &[], &[], "line 3: `sweep`: expected the section `[sweep]`"),
            (
                list,
                &[],
                &["random=0"],
                "`--sweep random=0`: expected a whole number from 1 to 100000, since each has a folder, found `0`",
            ),
            (list, &[], &["random=100001"], "expected a whole number from 1 to 100000"),
            (
                list,
                &["train.seed=3"],
                &["train.seed=0,1"],
                "`--sweep train.seed=0,1`: expected one value or several, but `--set train.seed=3` gives one, too",
            ),
            (
                &with_line("train.learning_rate = { min = 1, max = 2 }"),
                &[],
                &[],
                "line 5: `sweep.train.learning_rate`: expected a list; a range is for draws",
            ),
            (list, &[], &["train.learning_rate=log:1..2"], "expected a list; a range is for draws"),
            (
                list,
                &[],
                &["random=2", "train.learning_rate=log:0..1"],
                "expected a range of numbers above 0 on a logarithmic scale, found 0.0 to 1.0",
            ),
            (
                list,
                &[],
                &["random=2", "train.learning_rate=linear:2..1"],
                "expected a range from a smaller number to a larger one, found 2.0 to 1.0",
            ),
            (
                list,
                &[],
                &["random=2", "train.learning_rate=linear:a..1"],
                "expected a range such as `linear:1e-5..1e-2`",
            ),
            (
                list,
                &[],
                &["random=2", "train.warmup_ratio=linear:0..2"],
                "`--sweep train.warmup_ratio=linear:0..2`: expected a number from 0 up to, not including, 1, found",
            ),
            (
                list,
                &[],
                &["random=2", "adapter.rank=linear:1.5..2"],
                "`--sweep adapter.rank=linear:1.5..2`: expected a whole number",
            ),
            (
                &with_line("adapter.rank = { min = 1 }\nrandom = 2"),
                &[],
                &[],
                "expected both `min` and `max` of a range",
            ),
            (
                &with_line("adapter.rank = { min = 1, max = 2, step = 1 }\nrandom = 2"),
                &[],
                &[],
                "found `step`",
            ),
            (
                &with_line("adapter.rank = { min = 1, max = 2, scale = 'lin' }\nrandom = 2"),
                &[],
                &[],
                "expected `log` or `linear` for `scale`",
            ),
            (
                &with_line("zip = 3"),
                &[],
                &[],
                "line 5: `sweep.zip`: expected a list of groups of two or more keys",
            ),
            (&with_line("zip = [['train.seed']]"), &[], &[], "expected a list of groups of two or more keys"),
            (list, &[], &["halving=1x3"], "`--sweep halving=1x3`: expected `true`, `false` or"),
            (
                &with_line("halving = { factors = 2 }"),
                &[],
                &[],
                "line 5: `sweep.halving`: expected `true`, `false` or",
            ),
            (
                list,
                &["eval.every=never"],
                &["halving=true"],
                "expected an evaluation for each of 3 rungs, found 0 by `eval.every`",
            ),
            (
                list,
                &["train.epochs=2"],
                &["halving=true"],
                "expected an evaluation for each of 3 rungs, found 2 by `eval.every`",
            ),
            (list, &["train.max_steps=9", "eval.every=5"], &["halving=true"], "for each of 3 rungs, found 2"),
            (
                list,
                &[],
                &["together=0"],
                "`--sweep together=0`: expected `auto` or a number of runs of at least 1, found `0`",
            ),
            (list, &[], &["train.epochs=3,3.0"], "expected a whole number"),
            (
                list,
                &[],
                &["train.learning_rate=1,1.0"],
                "two runs are the same: `train.seed = 0, train.learning_rate = 1.0` and",
            ),
            (
                "[sweep]\nadapter.method = ['full']\nadapter.rank = [1, 2]\n",
                &[],
                &[],
                "two runs are the same",
            ),
        ];
        for (text, sets, sweeps, expected) in cases {
            let found = message(text, sets, sweeps);
            assert!(found.contains(expected), "expected {expected}\nfound {found}");
            assert!(found.starts_with("recipe `r.toml`") || found.starts_with("`--set sweep"), "{found}");
        }
    }

    #[test]
    fn faults_of_many_runs_are_told_once_and_all_together() {
        let text = "[train]\nepoch = 3\n[sweep]\ntrain.learning_rate = [1, -1]\nadapter.rank = [2, 0, 'x']\ntrain.sed = [1]\n";
        let seeds: Vec<String> = (0..100).map(|seed| seed.to_string()).collect();
        let seeds = format!("train.seed={}", seeds.join(","));
        let expected = "recipe `r.toml` has 5 faults:\n  \
            line 4: unknown key `train.epoch`; did you mean `train.epochs`?\n  \
            line 6: `train.learning_rate`: expected a number of at least 0, found `-1`\n  \
            line 7: `adapter.rank`: expected a whole number from 1 to 1048576, since no layer is wider, found `0`\n  \
            line 7: `adapter.rank`: expected a whole number from 1 to 1048576, since no layer is wider, found the string `x`\n  \
            line 8: unknown key `sweep.train.sed`; did you mean `sweep.train.seed`?";
        assert_eq!(message(text, &[], &[&seeds]), expected);
        // Values that do not go together.
        let found = message("", &[], &["train.batch_size=8,16,32", "train.micro_batch_size=8,16", &seeds]);
        let expected = "recipe `r.toml`: `--sweep train.micro_batch_size=8,16`: expected at most `train.batch_size` = 8, found 16";
        assert_eq!(found, expected);
    }

    #[test]
    fn too_many_runs_are_refused_at_once() {
        let numbers: Vec<String> = (1..=400).map(|number| number.to_string()).collect();
        let keys = ["train.seed", "adapter.rank", "adapter.svd_seed", "data.limit"];
        let sweeps = keys.map(|key| format!("{key}={}", numbers.join(",")));
        let found = message("", &[], &sweeps.each_ref().map(String::as_str));
        assert!(
            found.contains(
                "expected at most 100000 runs, since each has a folder, found 400 × 400 × 400 × 400"
            ),
            "{found}"
        );
    }

    #[test]
    fn one_value_on_the_command_line_replaces_the_list_of_the_file_and_several_do_too() {
        let text = "[sweep]\ntrain.seed = [0, 1]\nadapter.rank = [4, 8]\n";
        assert_eq!(names(text, &["train.seed=5"], &[]), ["rank=4", "rank=8"]);
        assert_eq!(with(text, &["train.seed=5"], &[]).unwrap().runs[1].recipe.train.seed, 5);
        assert_eq!(names(text, &[], &["train.seed=7"]), ["seed=7,rank=4", "seed=7,rank=8"]);
        let found = message("[sweep]\ntrain.seed = [0, 1]\n", &["train.seed=5"], &[]);
        assert!(found.contains("varies at least one key, found none"), "{found}");
    }

    #[test]
    fn what_varies_displaces_what_it_excludes_and_defaults_follow_each_run() {
        let text = "[train]\nepochs = 3\n[sweep]\ntrain.max_steps = [9, 0]\n";
        let steps = |run: &SweepRun| (run.recipe.train.epochs, run.recipe.train.max_steps);
        assert_eq!(
            with(text, &[], &[]).unwrap().runs.iter().map(steps).collect::<Vec<_>>(),
            [(0, 9), (3, 0)]
        );
        let runs = with("", &[], &["adapter.method=lora-xs,lora,vera"]).unwrap().runs;
        let alone = |name: &str| Recipe::parse(LEAST, "r", &[format!("adapter.method={name}")]).unwrap();
        let found: Vec<&Recipe> = runs.iter().map(|run| &run.recipe).collect();
        assert_eq!(found, [&alone("lora-xs"), &alone("lora"), &alone("vera")]);
        let batches = with("", &[], &["train.batch_size=8,64"]).unwrap().runs;
        assert!(batches.iter().all(|run| run.recipe.train.micro_batch_size == run.recipe.train.batch_size));
        // What varies need not be in the recipe.
        let sweep = Sweep::parse("model.name = 'm'", ("r", None), &[], &["data.dataset=a/b,c".to_owned()]);
        assert_eq!(sweep.unwrap().unwrap().runs[0].name, "dataset=b");
    }

    #[test]
    fn a_sweep_means_the_same_in_its_folder_as_beside_its_recipe() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("bases/one")).unwrap();
        std::fs::write(folder.path().join("rows.jsonl"), "").unwrap();
        let path = folder.path().join("mine.toml");
        let text = "[data]\ndataset = 'rows.jsonl'\n[sweep]\nmodel.name = ['bases/one', 'org/two']\ntrain.seed = [0, 1]\n";
        std::fs::write(&path, text).unwrap();
        let load = |sets: &[&str], sweeps: &[&str]| {
            let [sets, sweeps] =
                [sets, sweeps].map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
            Sweep::load(path.to_str().unwrap(), &sets, &sweeps).unwrap().unwrap().0
        };
        let sweep = load(&["model.revision=2024"], &[]);
        let whole = folder.path().canonicalize().unwrap();
        let recipe = &sweep.runs[1].recipe;
        assert_eq!(recipe.model.name, whole.join("bases/one").to_str().unwrap());
        assert_eq!(recipe.data.dataset, whole.join("rows.jsonl").to_str().unwrap());
        assert_eq!(recipe.model.revision, "2024");
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        let error = Sweep::of_folder(&out).unwrap_err().to_string();
        assert!(error.ends_with("is not a sweep: it has no `sweep.toml`"), "{error}");
        std::fs::write(out.join(SWEEP), &sweep.text).unwrap();
        let again = Sweep::of_folder(&out).unwrap();
        let names: Vec<&str> = again.runs.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["name=one,seed=0", "name=one,seed=1", "name=two,seed=0", "name=two,seed=1"]);
        assert!(again.runs.iter().zip(&sweep.runs).all(|(one, other)| one.recipe == other.recipe));
        sweep.check_same(&out).unwrap();
        load(&["model.revision=2024"], &["together=3"]).check_same(&out).unwrap();
        let error = load(&["train.epochs=3"], &["train.seed=0,1,2"]).check_same(&out).unwrap_err();
        assert_eq!(crate::fault::exit_code(&error), 2);
        let expected = format!(
            "`{}` has another sweep: `model.revision` was `\"2024\"`, now absent; `sweep.train.seed` was `[0, 1]`, now `[0, 1, 2]`; \
             `train.epochs` was absent, now `3`",
            out.display()
        );
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn a_sweep_is_no_recipe_of_one_run() {
        let error = Recipe::parse(&format!("{LEAST}[sweep]\ntrain.seed = [0]\n"), "r.toml", &[]).unwrap_err();
        assert_eq!(error.to_string(), "recipe `r.toml` is a sweep of many runs, expected one run");
        assert!(crate::fault::hint_of(&error).unwrap().contains("loraxs train --recipe"));
    }
}
