//! Settings of a sweep besides the keys that it varies.

use serde::{Serialize, Serializer};
use toml::Value;

use crate::limits::{BATCH_SIZE, RUNS, SEED};
use crate::spec::keys;
use crate::spec::reader::Reader;

keys! {
    /// `[sweep]`: what is not a key of the runs.
    #[derive(Debug, Clone, PartialEq, Eq)]
    pub struct SweepSettings in "" {
        /// Groups of keys whose lists go in step, the first values together, then the second, instead of all with all.
        zip: Vec<Vec<String>> = zip();
        /// Number of runs to draw from lists and ranges, instead of every combination.
        random: Option<usize> = optional_whole(1, RUNS);
        /// Seed of the draws.
        seed: u64 = whole(0, 0, SEED);
        /// Successive halving: at each rung only the best runs by their metric go on, one of `factor`; `true` for a factor of 2
        /// and 3 rungs.
        halving: Option<Halving> = halving();
        /// Runs trained together, of those that can be; `auto` = as many as are fastest and fit.
        together: Together = together();
    }
}

/// Runs trained together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Together {
    /// As many as are fastest and fit.
    Auto,
    /// At most so many.
    Runs(usize),
}

impl Serialize for Together {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Runs(runs) => runs.serialize(serializer),
        }
    }
}

/// Successive halving (Jamieson and Talwalkar, arXiv 1502.07943).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Halving {
    /// One of so many runs goes on at a rung, at least 2.
    pub factor: u64,
    /// Points where runs end, the last one being the end of the training; at least 1.
    pub rungs: u64,
}

/// Most rungs: with two runs or more for each at the next, there are no more runs.
const MOST_RUNGS: u64 = 16;
/// Largest factor.
const MOST_FACTOR: u64 = 1000;

impl Reader {
    /// Reads groups of keys, or one group; after `--sweep` also `a+b,c+d`.
    pub(super) fn zip(&mut self, key: &'static str) -> Vec<Vec<String>> {
        self.read(key, Vec::new(), Value::Array(Vec::new()), |value, raw| {
            let names = |list: &Value| -> Option<Vec<String>> {
                list.as_array()?.iter().map(|name| name.as_str().map(str::to_owned)).collect()
            };
            let typed = |text: &str| text.split('+').map(|name| name.trim().to_owned()).collect();
            let groups: Option<Vec<Vec<String>>> = match (value, raw) {
                (Value::Array(groups), _) => {
                    names(value).map(|group| vec![group]).or_else(|| groups.iter().map(names).collect())
                }
                (Value::String(_), Some(raw)) => Some(raw.split(',').map(typed).collect()),
                _ => None,
            };
            groups.filter(|groups| groups.iter().all(|group| group.len() > 1)).ok_or(
                "a list of groups of two or more keys such as `[[\"train.learning_rate\", \"train.head_learning_rate\"]]`"
                    .to_owned(),
            )
        })
    }

    /// Reads `true`, `false`, or a table of factor and rungs; after `--sweep` also `2x3`.
    pub(super) fn halving(&mut self, key: &'static str) -> Option<Halving> {
        let published = Halving { factor: 2, rungs: 3 };
        self.read(key, None, Value::Boolean(false), |value, raw| {
            let within = |number: i64, least: u64, most: u64| {
                u64::try_from(number).ok().filter(|number| (least..=most).contains(number))
            };
            let of = |factor: i64, rungs: i64| {
                let (factor, rungs) = (within(factor, 2, MOST_FACTOR)?, within(rungs, 1, MOST_RUNGS)?);
                Some(Some(Halving { factor, rungs }))
            };
            let read = match (value, raw) {
                (Value::Boolean(wanted), _) => Some(wanted.then_some(published)),
                (Value::Table(table), _) => {
                    let known = table.keys().all(|key| ["factor", "rungs"].contains(&key.as_str()));
                    let part = |key: &str, default: u64| {
                        table.get(key).map_or(Some(default as i64), Value::as_integer)
                    };
                    let parts = part("factor", published.factor).zip(part("rungs", published.rungs));
                    parts.filter(|_| known).and_then(|(factor, rungs)| of(factor, rungs))
                }
                (_, Some(raw)) => raw
                    .split_once('x')
                    .and_then(|(factor, rungs)| of(factor.parse().ok()?, rungs.parse().ok()?)),
                _ => None,
            };
            read.ok_or_else(|| {
                format!(
                    "`true`, `false` or `{{ factor = 2, rungs = 3 }}` (`2x3` after `--sweep`) with a factor from 2 to \
                     {MOST_FACTOR} and 1 to {MOST_RUNGS} rungs"
                )
            })
        })
    }

    /// Reads `"auto"` or a number of runs.
    pub(super) fn together(&mut self, key: &'static str) -> Together {
        self.read(key, Together::Auto, Value::from("auto"), |value, _| {
            let number = value.as_integer().and_then(|number| usize::try_from(number).ok());
            match (value.as_str(), number) {
                (Some("auto"), _) => Ok(Together::Auto),
                (_, Some(runs)) if (1..=BATCH_SIZE.number).contains(&runs) => Ok(Together::Runs(runs)),
                _ => Err("`auto` or a number of runs of at least 1".to_owned()),
            }
        })
    }
}
