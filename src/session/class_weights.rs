//! The weights of classes in the loss of a training: listed, or balanced by how often each is a label.

use crate::data::dataset::Dataset;
use crate::data::{Example, Label, Task};
use crate::fault::{Result, usage};
use crate::spec::ClassWeights;

/// Returns the weight of each class of a data set; none if all are alike.
/// Fails when it has no classes, there are not as many weights, or a class to be balanced has no example.
pub fn class_weights(asked: &ClassWeights, dataset: &Dataset, examples: &[Example]) -> Result<Vec<f64>> {
    let labels = dataset.task.labels();
    let key = "`train.class_weights`";
    if !asked.is_none() && !matches!(dataset.task, Task::Classification(_) | Task::TokenClassification(_)) {
        let task = dataset.task.name();
        return Err(usage(format!("{key} is for classes, but `{}` is for `{task}`", dataset.name))
            .hint("leave it out; it belongs to `classification` and `token-classification`")
            .into());
    }
    match asked {
        ClassWeights::Listed(weights) if !weights.is_empty() && weights.len() != labels.len() => {
            let (found, names) = (weights.len(), labels.join("`, `"));
            Err(usage(format!(
                "{key} lists {found} weights, but `{}` has {} classes",
                dataset.name,
                labels.len()
            ))
            .hint(format!("list one for each of `{names}`, in this order"))
            .into())
        }
        ClassWeights::Listed(weights) => Ok(weights.clone()),
        ClassWeights::Balanced => {
            let counts = counts(labels.len(), examples);
            if let Some((label, _)) = labels.iter().zip(&counts).find(|(_, count)| **count == 0) {
                return Err(usage(format!(
                    "{key} cannot be balanced: no training example has the label `{label}`"
                ))
                .hint("list the weights")
                .into());
            }
            let all: usize = counts.iter().sum();
            Ok(counts.iter().map(|count| all as f64 / (counts.len() * count) as f64).collect())
        }
    }
}

/// Counts how often each class is a label.
fn counts(classes: usize, examples: &[Example]) -> Vec<usize> {
    let mut counts = vec![0; classes];
    for label in examples.iter().filter_map(|example| example.label.as_ref()) {
        let found = match label {
            Label::Class(class) => std::slice::from_ref(class),
            Label::Set(classes) | Label::Tags(classes) => classes,
            Label::Value(_) => &[],
        };
        for class in found {
            if let Some(count) = counts.get_mut(*class as usize) {
                *count += 1;
            }
        }
    }
    counts
}
