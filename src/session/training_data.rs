//! The data of a training: one data set or a mixture of several, with what is held out of it.

use super::environment::Environment;
use super::sources;
use crate::data::dataset::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, Skipped, Task, Truncation};
use crate::fault::{Result, usage};
use crate::recipe::{DataRecipe, Recipe};
use crate::spec::Every;
use crate::train::mixture::Part;

/// Data sets by their names in the recipe.
pub type Sets = Vec<(String, Dataset)>;

/// Examples to train on and to score, and the parts of a mixture.
pub struct TrainingData {
    /// Examples to train on, data set by data set.
    pub train: Examples,
    /// Examples to score; `None` if the recipe never evaluates.
    pub validation: Option<Examples>,
    /// The data sets of a mixture; none if there is one.
    pub mixture: Vec<Part>,
}

/// Opens the recipe's data sets, and returns them with what they are together.
/// Fails when one does not exist, or they cannot be mixed.
pub fn open(place: &Environment, data: &DataRecipe) -> Result<(Sets, Dataset)> {
    if data.mixture.is_empty() {
        let dataset = sources::of_recipe(place, data)?;
        return Ok((vec![(data.dataset.clone(), dataset.clone())], dataset));
    }
    let open = |name: &String| Ok((name.clone(), sources::open(place, name)?));
    let sets: Sets = data.mixture.keys().map(open).collect::<Result<_>>()?;
    let Some(((_, first), others)) = sets.split_first() else {
        return Err(usage("`data.mixture` names no data set").into());
    };
    for (_, other) in others {
        let same = match (first.task.problem(), other.task.problem()) {
            (None, None) => true,
            _ => first.task.name() == other.task.name() && first.task.labels() == other.task.labels(),
        };
        let is_prompts = [first, other].iter().any(|set| matches!(set.task, Task::Generation(_)));
        if !same || is_prompts {
            let [(one, task), (two, of)] = [first, other].map(|set| (&set.name, set.task.name()));
            let message =
                format!("`data.mixture`: `{one}` is for `{task}`, `{two}` for `{of}`: they cannot be mixed");
            return Err(usage(message)
                .hint("mix data sets for `instruction`, `text` and `chat`, or for one task with the same `labels`")
                .into());
        }
    }
    let names: Vec<&str> = sets.iter().map(|(_, set)| set.name.as_str()).collect();
    let whole = Dataset { name: names.join("+"), ..first.clone() };
    Ok((sets, whole))
}

/// Reads the examples of the recipe's data sets.
/// Fails when a split does not exist, or no row can be used.
pub fn load(
    place: &Environment,
    sets: &Sets,
    recipe: &Recipe,
    tokenizer: &Tokenizer,
) -> Result<TrainingData> {
    let data = &recipe.data;
    let read = |split: &str, limit: usize| -> Result<Vec<Examples>> {
        let of = |(_, set): &(String, Dataset)| {
            sources::examples(place, (set, split), Some(data), tokenizer, (data.max_length, limit))
        };
        sets.iter().map(of).collect()
    };
    let train = read(&data.train, data.limit)?;
    let validation = match recipe.eval.every {
        Every::Never => None,
        _ => Some(together(read(data.validation.split(), data.eval_limit)?)),
    };
    let weights: Vec<f64> = data.mixture.values().copied().collect();
    let lengths: Vec<usize> = train.iter().map(|part| part.examples.len()).collect();
    let counts = shares(&weights, lengths.iter().sum());
    let parts =
        lengths.iter().zip(&counts).map(|(examples, count)| Part { examples: *examples, count: *count });
    let mixture: Vec<Part> = parts.collect();
    for ((name, _), part) in sets.iter().zip(&mixture) {
        tracing::info!("mixture: {} of the {} examples of `{name}` an epoch", part.count, part.examples);
    }
    Ok(TrainingData { train: together(train), validation, mixture })
}

/// Joins examples in their order.
fn together(parts: Vec<Examples>) -> Examples {
    let mut parts = parts.into_iter();
    let Some(mut whole) = parts.next() else {
        let (skipped, truncation) = (Skipped::default(), Truncation::default());
        return Examples { examples: Vec::new(), skipped, truncation, hash: String::new() };
    };
    for part in parts {
        whole.examples.extend(part.examples);
        whole.skipped.count += part.skipped.count;
        whole.skipped.first.extend(part.skipped.first);
        whole.truncation = whole.truncation.and(part.truncation);
        whole.hash = format!("{}+{}", whole.hash, part.hash);
    }
    whole
}

/// Divides `total` by these weights, the largest remainders rounded up.
fn shares(weights: &[f64], total: usize) -> Vec<usize> {
    let sum: f64 = weights.iter().sum();
    let exact: Vec<f64> = weights.iter().map(|weight| weight / sum * total as f64).collect();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a part of a length")]
    let mut counts: Vec<usize> = exact.iter().map(|share| share.floor() as usize).collect();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    let left = |i: &usize| exact.get(*i).map_or(0.0, |share| share.fract());
    order.sort_by(|a, b| left(b).total_cmp(&left(a)));
    let missing = total.saturating_sub(counts.iter().sum());
    for i in order.into_iter().take(missing) {
        if let Some(count) = counts.get_mut(i) {
            *count += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up() {
        assert_eq!(shares(&[0.7, 0.3], 10), [7, 3]);
        assert_eq!(shares(&[1.0, 1.0, 1.0], 10), [4, 3, 3]);
        assert_eq!(shares(&[1e-9, 5.0], 10), [0, 10]);
        assert!(shares(&[], 10).is_empty());
    }
}
