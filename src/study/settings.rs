//! Runs that differ only in their seed are one setting: its numbers over the seeds, and which setting is the best of its kind.

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};

use indexmap::{IndexMap, IndexSet};
use serde::Serialize;
use serde_json::Value;

use super::record::{Record, SEED, Status};

/// Keys in which runs of one setting may differ: the seed, what changes no number, and data set and metric, which are the
/// task's.
const APART: [&str; 8] = [
    SEED,
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.gradient_checkpointing",
    "eval.tasks",
    "eval.metric",
    "data.dataset",
];
/// Keys that tell what kind of adapter a run trains.
pub const METHOD: &str = "adapter.method";
/// The rank.
pub const RANK: &str = "adapter.rank";
/// Keys that are searched for the best of a kind, besides those of `[train]`.
const SEARCHED: [&str; 3] = ["adapter.alpha", "adapter.dropout", "adapter.init_std"];

/// Runs that differ only in their seed.
#[derive(Debug, Serialize)]
pub struct Setting {
    /// What sets it apart from others of its task, in a few words.
    pub label: String,
    /// The data set.
    pub task: String,
    /// Its metric.
    pub metric: String,
    /// True if more of it is better.
    pub higher_is_better: bool,
    /// A value for each varied key; `null` where a run has no such key.
    pub values: Vec<Value>,
    /// Places of its runs among all records, by seed.
    pub runs: Vec<usize>,
    /// The metric at each run's best evaluation.
    pub best: Spread,
    /// The standard error of a single run's best, where an evaluation tells it.
    pub stderr: Option<f64>,
    /// At its last.
    pub last: Spread,
    /// Epochs to the best evaluation.
    pub best_epoch: Spread,
    /// Trainable parameters without the head.
    pub parameters: Option<u64>,
    /// Those of the head.
    pub head_parameters: Option<u64>,
    /// Size of the adapter's file.
    pub adapter_bytes: Option<u64>,
    /// Seconds from start to end.
    pub seconds: Spread,
    /// Training examples per second.
    pub examples_per_second: Spread,
    /// Peak memory in MiB, the largest.
    pub peak_memory_mib: Option<f64>,
    /// True for the best of the settings that differ from it only in what is searched.
    pub is_best: bool,
}

/// Median and sample standard deviation of a number over the runs of a setting.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Spread {
    /// The middle one, or the mean of the two in the middle.
    pub median: Option<f64>,
    /// With n − 1; `None` for fewer than two numbers.
    pub deviation: Option<f64>,
    /// How many runs have the number.
    pub count: usize,
}

impl Spread {
    /// Returns median and deviation of the numbers that are there.
    pub fn of(numbers: impl Iterator<Item = Option<f64>>) -> Self {
        let mut found: Vec<f64> = numbers.flatten().filter(|number| number.is_finite()).collect();
        found.sort_by(f64::total_cmp);
        let count = found.len();
        let middle = |at: usize| found.get(at).copied();
        let median = match count % 2 {
            1 => middle(count / 2),
            _ => middle(count / 2).zip(middle((count / 2).wrapping_sub(1))).map(|(a, b)| f64::midpoint(a, b)),
        };
        let mean = found.iter().sum::<f64>() / count as f64;
        let squares: f64 = found.iter().map(|number| (number - mean).powi(2)).sum();
        let deviation = (count > 1).then(|| (squares / (count - 1) as f64).sqrt());
        Self { median, deviation, count }
    }
}

/// Returns the keys in which runs of different settings differ, in the order of the recipe. Keys that follow from method and rank,
/// as alpha does where it equals the rank, and columns that follow from the data set are left out.
pub fn varied(records: &[Record]) -> Vec<String> {
    let mut found: IndexMap<&str, IndexSet<String>> = IndexMap::new();
    for (key, value) in records.iter().flat_map(|record| &record.settings) {
        found.entry(key).or_default().insert(value.to_string());
    }
    let mut keys: Vec<&str> = (found.into_iter())
        .filter(|(key, values)| values.len() > 1 && !APART.contains(key))
        .map(|(key, _)| key)
        .filter(|key| [METHOD, RANK].contains(key) || !follows(records, key))
        .collect();
    // The method first, as tables of papers have it.
    keys.sort_by_key(|key| ![METHOD, RANK].contains(key));
    keys.into_iter().map(str::to_owned).collect()
}

/// Returns true if a key of the adapter says no more than method and rank do, or one of the data no more than the data set.
fn follows(records: &[Record], key: &str) -> bool {
    let is_of_adapter = key.starts_with("adapter.") || key == "train.init_from";
    if !is_of_adapter && !key.starts_with("data.") {
        return false;
    }
    let mut known: HashMap<(&str, [Option<&Value>; 2]), &Value> = HashMap::new();
    records.iter().all(|record| {
        let from = match is_of_adapter {
            true => ("", [METHOD, RANK].map(|key| record.settings.get(key))),
            false => (&*record.task, [None, None]),
        };
        record.settings.get(key).is_none_or(|value| *known.entry(from).or_insert(value) == value)
    })
}

/// Returns the settings of the runs that have ended, in the order of their values; those that halving stopped are apart from those that
/// went to their end. Each seed counts once.
pub fn settings(records: &[Record], keys: &[String]) -> Vec<Setting> {
    // Task, tool, values, and the step at which halving stopped them.
    let mut groups: IndexMap<_, Vec<usize>> = IndexMap::new();
    let mut seen = HashSet::new();
    for (place, record) in records.iter().enumerate() {
        if !matches!(record.status, Status::Finished | Status::Stopped) {
            continue;
        }
        let values = keys.iter().map(|key| record.settings.get(key).unwrap_or(&Value::Null).to_string());
        let stopped = record.steps.filter(|_| record.status == Status::Stopped);
        let source = (record.task.clone(), record.source.clone(), values.collect::<Vec<String>>(), stopped);
        let seed = record.settings.get(SEED).map(Value::to_string);
        if seed.is_some_and(|seed| !seen.insert((source.clone(), seed))) {
            tracing::warn!(
                "`{}` has a recipe and a seed that another run has, and is left out of its row",
                record.name
            );
            continue;
        }
        groups.entry(source).or_default().push(place);
    }
    let mut found: Vec<Setting> =
        groups.into_values().filter_map(|runs| setting(records, keys, runs)).collect();
    found.sort_by(|a, b| {
        let by_value = || a.values.iter().zip(&b.values).map(|(a, b)| compare(a, b));
        a.task.cmp(&b.task).then_with(|| by_value().find(|order| order.is_ne()).unwrap_or(Ordering::Equal))
    });
    mark_best(&mut found, keys);
    label(&mut found, keys);
    found
}

fn setting(records: &[Record], keys: &[String], mut runs: Vec<usize>) -> Option<Setting> {
    runs.sort_by(|&a, &b| {
        let seed = |place: usize| records[place].settings.get(SEED).unwrap_or(&Value::Null);
        compare(seed(a), seed(b))
    });
    let first = &records[*runs.first()?];
    let spread = |of: &dyn Fn(&Record) -> Option<f64>| Spread::of(runs.iter().map(|&run| of(&records[run])));
    let most = |of: &dyn Fn(&Record) -> Option<u64>| runs.iter().filter_map(|&run| of(&records[run])).max();
    Some(Setting {
        label: String::new(),
        task: first.task.clone(),
        metric: first.metric.clone(),
        higher_is_better: first.higher_is_better,
        values: keys.iter().map(|key| first.settings.get(key).cloned().unwrap_or_default()).collect(),
        best: spread(&Record::best_value),
        stderr: first.stderr.filter(|_| runs.len() == 1),
        last: spread(&Record::last_value),
        best_epoch: spread(&|run| run.best.as_ref()?.epoch),
        parameters: most(&Record::trained),
        head_parameters: most(&|run| run.head_parameters),
        adapter_bytes: most(&|run| run.adapter_bytes),
        seconds: spread(&|run| run.seconds),
        examples_per_second: spread(&|run| run.examples_per_second),
        peak_memory_mib: runs.iter().filter_map(|&run| records[run].peak_memory_mib).reduce(f64::max),
        is_best: false,
        runs,
    })
}

/// Marks the setting with the best median among those that differ only in what is searched.
fn mark_best(settings: &mut [Setting], keys: &[String]) {
    let is_searched = |key: &str| key.starts_with("train.") || SEARCHED.contains(&key);
    let mut best: IndexMap<(String, Vec<String>), (f64, usize)> = IndexMap::new();
    let mut sizes: HashMap<(String, Vec<String>), usize> = HashMap::new();
    for (place, setting) in settings.iter().enumerate() {
        let kept = keys.iter().zip(&setting.values).filter(|(key, _)| !is_searched(key));
        let kind = (setting.task.clone(), kept.map(|(_, value)| value.to_string()).collect());
        *sizes.entry(kind.clone()).or_default() += 1;
        let Some(median) = setting.best.median else { continue };
        let merit = if setting.higher_is_better { median } else { -median };
        let entry = best.entry(kind).or_insert((merit, place));
        if merit > entry.0 {
            *entry = (merit, place);
        }
    }
    // A mark on every row says nothing.
    best.retain(|kind, _| sizes.get(kind).is_some_and(|&size| size > 1));
    for (_, place) in best.into_values() {
        if let Some(setting) = settings.get_mut(place) {
            setting.is_best = true;
        }
    }
}

/// Labels settings by the keys in which those of the same task differ.
fn label(settings: &mut [Setting], keys: &[String]) {
    let names = short_names(keys);
    for of_task in settings.chunk_by_mut(|a, b| a.task == b.task) {
        let differs: Vec<bool> = (0..keys.len())
            .map(|key| {
                of_task.iter().any(|setting| {
                    setting.values.get(key) != of_task.first().and_then(|first| first.values.get(key))
                })
            })
            .collect();
        for setting in of_task {
            let told = names.iter().zip(&setting.values).zip(&differs).filter(|(_, differs)| **differs);
            let parts: Vec<String> = told.filter_map(|((name, value), _)| words(name, value)).collect();
            setting.label = parts.join(" · ");
        }
    }
}

/// Returns a key with its value in a few words; nothing where there is no value.
fn words(name: &str, value: &Value) -> Option<String> {
    let value = shown(value);
    match name {
        _ if value == "–" => None,
        "method" => Some(value),
        "learning_rate" => Some(format!("lr {value}")),
        "head_learning_rate" => Some(format!("head lr {value}")),
        name => Some(format!("{} {value}", plain(name))),
    }
}

/// Returns a key's name as people say it.
pub fn plain(name: &str) -> String {
    name.replace('_', " ")
}

/// Orders numbers by value and all else as text.
pub fn compare(a: &Value, b: &Value) -> Ordering {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a.total_cmp(&b),
        _ => shown(a).cmp(&shown(b)),
    }
}

/// Returns a value of a recipe as a cell of a table.
pub fn shown(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) if text.is_empty() => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(" "),
        Value::Number(number) => match number.as_f64() {
            // Drawn at random, it has more digits than anyone reads.
            Some(number) => {
                let short: f64 = format!("{number:.3e}").parse().unwrap_or(number);
                let number = if number.fract() == 0.0 { number } else { short };
                if number != 0.0 && number.abs() < 0.01 { format!("{number:e}") } else { format!("{number}") }
            }
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

/// Returns the last part of each key, or the whole key where two would be the same; that of `model.name` is the model.
pub fn short_names(keys: &[String]) -> Vec<String> {
    let last = |key: &str| {
        let key = if key == "model.name" { "model" } else { key };
        key.rsplit('.').next().unwrap_or_default().to_owned()
    };
    let is_alone = |key: &str| keys.iter().filter(|other| last(other) == last(key)).count() == 1;
    keys.iter().map(|key| if is_alone(key) { last(key) } else { key.clone() }).collect()
}
