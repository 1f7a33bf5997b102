//! Sweeps: many runs from one recipe, whose section `[sweep]`, or `train --sweep`, gives keys several values.
//!
//! | part | content |
//! |---|---|
//! | `settings` | the keys of `[sweep]` itself |
//! | `axes` | the keys that vary: lists, ranges, and groups in step |
//! | `runs` | combinations or draws, checked |
//! | `names` | folders of the runs |
//! | `together` | which runs can be trained in one pass |
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
        let varied: Vec<(&str, String)> =
            run.varied.iter().map(|(key, value)| (key.as_str(), value.to_string())).collect();
        let found = message("[sweep]\ntrain.sed = [0]\n", &[], &["adapter.rank=0,4", "data.limit="]);
        for part in
            ["has 3 faults", "line 4: unknown key `sweep.train.sed`; did you mean `sweep.train.seed`?"]
        {
            assert!(found.contains(part), "{found}");
        }
        assert_eq!(
            varied,
            [
                ("train.seed", "0".into()),
                ("adapter.rank", "8".into()),
                ("train.learning_rate", "0.0001".into())
            ]
        );
    }
}
