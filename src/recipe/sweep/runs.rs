//! The runs of a sweep: every combination of its values, or draws, each through the checks of a recipe by itself.

use std::collections::HashSet;
use std::path::Path;

use rand::SeedableRng as _;
use rand::seq::SliceRandom as _;
use rand_chacha::ChaCha8Rng;

use toml::Table;

use super::super::{Recipe, parse};
use super::axes::{Assignment, Group, settled};
use super::settings::{Halving, SweepSettings};
use crate::fault::Result;
use crate::limits::RUNS;
use crate::spec::Every;
use crate::spec::reader::Reader;

/// Draws that may end in runs drawn before, one after the other, before there are taken to be no others.
const MOST_TRIES: usize = 1000;
/// Keys of folders and files.
const FOLDERS: [&str; 5] =
    ["model.name", "adapter.basis", "train.init_from", "data.dataset", "data.validation"];
/// Faults after which no more runs are checked.
const MOST_FAULTS: usize = 60;

/// A run's recipe, and the keys that vary with what they are given, in the order of the sweep.
pub(super) type Run = (Recipe, Vec<Assignment>);

/// Makes the runs of all `groups`; faults are recorded in `section`, each once.
pub(super) fn runs(
    section: &mut Reader,
    base: &Reader,
    groups: &[Group],
    settings: &SweepSettings,
) -> Vec<Run> {
    let found = match settings.random {
        Some(wanted) => drawn(section, base, groups, (wanted, settings.seed)),
        None => product(section, base, groups),
    };
    if let Some(halving) = settings.halving.filter(|_| section.failed() == 0) {
        enough_evaluations(section, &found, halving);
    }
    found
}

/// Reads every value once, with the first ones of the other keys, and gives it the form that a recipe has, in which relative
/// folders are whole paths: taken from `beside`, the folder of the recipe, where they are not in the current one. So do the
/// values of `base`. Faults are recorded in `section`.
///
/// # Errors
/// When the path of a folder is not valid UTF-8.
pub(super) fn settle(
    section: &mut Reader,
    base: &mut Reader,
    groups: &mut [Group],
    beside: Option<&Path>,
) -> Result<()> {
    let first: Vec<_> = groups.iter().map(|group| group.at(0)).collect();
    let mut read = |base: &Reader, values| -> Result<Option<Table>> {
        let Some((mut recipe, _)) = run(base, values, section) else { return Ok(None) };
        if let Some(beside) = beside {
            recipe.prefer_existing_folders(beside);
        }
        recipe.settle_folders()?;
        Ok(Some(recipe.to_toml()?.parse()?))
    };
    for (number, group) in groups.iter_mut().enumerate() {
        for place in 0..group.len().unwrap_or(2) {
            let mut values = first.clone();
            values.splice(number..=number, [group.at(place)]);
            let Some(table) = read(base, values)? else { continue };
            group.0.iter_mut().for_each(|axis| axis.settle(place, &table));
        }
    }
    if let Some(table) = read(base, first)? {
        let keys: Vec<String> = base.given().map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(given) = base.get(&key) else { continue };
            if given.set().is_some() || FOLDERS.contains(&key.as_str()) {
                base.put(&key, settled(given, &key, &table));
            }
        }
    }
    Ok(())
}

/// Returns the number of combinations; `None` if there are ranges, or more than can be counted.
fn combinations(groups: &[Group]) -> Option<usize> {
    groups.iter().try_fold(1_usize, |product, group| product.checked_mul(group.len()?))
}

/// Returns the values of a combination by its number, the last group's changing fastest.
fn combination(groups: &[Group], mut number: usize) -> Vec<Vec<Assignment>> {
    let mut found: Vec<Vec<Assignment>> = Vec::new();
    for group in groups.iter().rev() {
        let len = group.len().unwrap_or(1);
        found.push(group.at(number % len));
        number /= len;
    }
    found.reverse();
    found
}

/// Reads the recipe of a run; if it has faults, they are recorded in `section`.
fn run(base: &Reader, values: Vec<Vec<Assignment>>, section: &mut Reader) -> Option<Run> {
    let (mut reader, values) = (base.clone(), values.concat());
    for (key, given) in &values {
        reader.put(key, given.clone());
    }
    let recipe = parse::read(&mut reader);
    let sound = reader.failed() == 0;
    section.absorb(reader);
    sound.then_some((recipe, values))
}

fn product(section: &mut Reader, base: &Reader, groups: &[Group]) -> Vec<Run> {
    let Some(total) = combinations(groups).filter(|total| *total <= RUNS.number) else {
        let lengths: Vec<String> = groups.iter().filter_map(Group::len).map(|len| len.to_string()).collect();
        section.fail(
            "",
            format!(
                "expected at most {} runs, since {}, found {}",
                RUNS.number,
                RUNS.reason,
                lengths.join(" × ")
            ),
        );
        return Vec::new();
    };
    let mut found: Vec<Run> = Vec::new();
    let mut seen = HashSet::new();
    for number in 0..total {
        let Some(made) = run(base, combination(groups, number), section) else {
            if section.failed() >= MOST_FAULTS {
                break;
            }
            continue;
        };
        if !seen.insert(identity(&made.0)) {
            let same = found.iter().find(|(recipe, _)| *recipe == made.0);
            let other = same.map(|(_, values)| words(values)).unwrap_or_default();
            section.fail("", format!("two runs are the same: {other} and {}", words(&made.1)));
            break;
        }
        found.push(made);
    }
    found
}

fn drawn(section: &mut Reader, base: &Reader, groups: &[Group], (wanted, seed): (usize, u64)) -> Vec<Run> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let total = combinations(groups);
    // Of few combinations, all are there to choose from.
    let mut listed: Option<Vec<usize>> =
        total.filter(|total| *total <= 2 * wanted).map(|total| (0..total).collect());
    if let Some(numbers) = &mut listed {
        numbers.shuffle(&mut random);
    }
    let (mut found, mut seen, mut tries) = (Vec::new(), HashSet::new(), 0);
    while found.len() < wanted && tries < MOST_TRIES && section.failed() < MOST_FAULTS {
        let values = match &mut listed {
            Some(numbers) => match numbers.pop() {
                Some(number) => combination(groups, number),
                None => break,
            },
            None => groups.iter().map(|group| group.draw(&mut random)).collect(),
        };
        tries += 1;
        if let Some(made) = run(base, values, section)
            && seen.insert(identity(&made.0))
        {
            tries = 0;
            found.push(made);
        }
    }
    if found.len() < wanted && section.failed() == 0 {
        section.fail(
            "random",
            format!(
                "expected at most as many as there are different runs, found {wanted} of {}",
                found.len()
            ),
        );
    }
    found
}

/// Returns what two recipes share only if they are equal.
fn identity(recipe: &Recipe) -> blake3::Hash {
    blake3::hash(format!("{recipe:?}").as_bytes())
}

fn words(values: &[Assignment]) -> String {
    let words: Vec<String> = values.iter().map(|(key, given)| format!("{key} = {}", given.value)).collect();
    format!("`{}`", words.join(", "))
}

/// Checks that every run is evaluated at each rung, as far as its recipe tells.
fn enough_evaluations(section: &mut Reader, runs: &[Run], halving: Halving) {
    for (recipe, values) in runs {
        let (every, train) = (recipe.eval.every, &recipe.train);
        let evaluations = match every {
            Every::Never => Some(0),
            Every::Epoch if train.max_steps == 0 => Some(train.epochs),
            Every::Steps(steps) if train.max_steps > 0 => Some(train.max_steps.div_ceil(steps)),
            Every::Epoch | Every::Steps(_) => None,
        };
        if let Some(found) = evaluations.filter(|found| *found < halving.rungs) {
            let run = words(values);
            section.fail("halving", format!(
                "expected an evaluation for each of {} rungs, found {found} by `eval.every` in the run {run}",
                halving.rungs
            ));
            return;
        }
    }
}
