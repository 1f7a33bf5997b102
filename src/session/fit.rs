//! Checks that base, tokenizer and data set fit each other.

use std::collections::BTreeSet;

use super::workplace::Workplace;
use crate::data::TaskKind;
use crate::data::dataset::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, usage};
use crate::models::Base;
use crate::spec::Metric;

/// Refuses lengths and vocabularies that the base cannot take.
///
/// # Errors
/// Says which and what the limit is.
pub fn check_fit(base: &Base, tokenizer: &Tokenizer, max_length: usize) -> Result<()> {
    let longest = base.config.longest_sequence();
    if max_length as i64 > longest {
        return Err(usage(format!(
            "`data.max_length` is {max_length}, but the model's positions end at {longest}"
        ))
        .hint(format!("set `data.max_length={longest}` or less"))
        .into());
    }
    let (tokens, rows) = (tokenizer.own_size(), base.config.vocabulary);
    if tokens as i64 > rows {
        return Err(usage(format!("the tokenizer knows {tokens} tokens, the base embeds only {rows}"))
            .hint("tokenizer.json and config.json belong to different models")
            .into());
    }
    if tokenizer.vocab_size() as i64 > rows {
        tracing::warn!(
            "added tokens go up to {}, the base embeds only {rows}: a row whose text holds one beyond is left out",
            tokenizer.vocab_size()
        );
    }
    if let Some(eos) = tokenizer.eos().ok().filter(|&eos| i64::from(eos) >= rows) {
        return Err(usage(format!("token {eos} ends a text, and the base embeds only {rows}"))
            .hint("correct `eos_token_id` in generation_config.json and config.json")
            .into());
    }
    Ok(())
}

/// Returns the outputs of the head for a data set: its classes, or 1 for a number.
///
/// # Errors
/// When the data set is not for classification or regression.
pub fn classes(dataset: &Dataset) -> Result<i64> {
    match dataset.task {
        TaskKind::Classification => Ok(dataset.labels.len() as i64),
        TaskKind::Regression => Ok(1),
        other => {
            let task = format!("{other:?}").to_lowercase();
            Err(usage(format!("data set `{}` is for `{task}`, not for classification", dataset.name))
                .hint("an encoder is trained and scored on data sets for `classification` or `regression`")
                .into())
        }
    }
}

/// Returns the data set's metrics.
///
/// # Errors
/// When a name is unknown.
pub fn metrics(dataset: &Dataset) -> Result<Vec<Metric>> {
    Ok(dataset.metrics.iter().map(|name| name.parse::<Metric>()).collect::<std::result::Result<_, _>>()?)
}

/// Returns the data set of this name, and the order that maps a head's outputs with these `labels` to it.
///
/// # Errors
/// When the head has not as many outputs as the data set needs.
pub fn fitting<'a>(
    place: &'a Workplace,
    task: &str,
    outputs: i64,
    labels: &[String],
) -> Result<(&'a Dataset, Vec<usize>)> {
    let dataset = place.catalog.get(task)?;
    let wanted = classes(dataset)?;
    if wanted != outputs {
        return Err(usage(format!("`{task}` has {wanted} outputs, the model's head has {outputs}"))
            .hint("score the task that the head was trained on")
            .into());
    }
    let order = output_order(labels, &dataset.labels);
    if order.as_ref().is_some_and(|order| !order.is_sorted()) {
        tracing::info!("the head's classes are {labels:?}: its outputs are put into the order of `{task}`");
    }
    let nameless = || labels.iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"));
    if order.is_none() && !nameless() {
        let wanted = &dataset.labels;
        tracing::warn!(
            "the head's classes {labels:?} are taken as those of `{task}`, {wanted:?}, in this order"
        );
    }
    Ok((dataset, order.unwrap_or_default()))
}

/// Returns the place in `labels` of each name of `wanted`, ignoring case; `None` unless each has its own.
fn output_order(labels: &[String], wanted: &[String]) -> Option<Vec<usize>> {
    let place = |name: &String| labels.iter().position(|label| label.to_lowercase() == name.to_lowercase());
    let order: Vec<usize> = wanted.iter().map(place).collect::<Option<_>>()?;
    let distinct: BTreeSet<&usize> = order.iter().collect();
    (distinct.len() == labels.len()).then_some(order)
}
