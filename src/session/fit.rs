//! Checks that base, tokenizer and data set fit each other.

use std::collections::BTreeSet;

use crate::data::dataset::Dataset;
use crate::data::tokenize::Tokenizer;
use crate::fault::{Result, usage};
use crate::models::{Base, HeadShape};

/// Refuses lengths and vocabularies that the base cannot take.
/// The error says which and what the limit is.
pub fn check_fit(base: &Base, tokenizer: &Tokenizer, max_length: usize) -> Result<()> {
    let longest = base.config.longest_sequence();
    if max_length as i64 > longest {
        return Err(usage(format!(
            "`data.max_length` is {max_length}, but the model has {longest} positions"
        ))
        .hint(format!("set `data.max_length` to {longest} or less"))
        .into());
    }
    let (tokens, rows) = (tokenizer.own_size(), base.config.vocabulary);
    if tokens as i64 > rows {
        return Err(usage(format!(
            "the tokenizer has {tokens} tokens, but the base has only {rows} embeddings"
        ))
        .hint("tokenizer.json and config.json belong to different models")
        .into());
    }
    if tokenizer.vocab_size() as i64 > rows {
        tracing::warn!(
            "added tokens go up to {}, but the base has only {rows} embeddings: rows with tokens beyond are left out",
            tokenizer.vocab_size()
        );
    }
    if let Some(eos) = tokenizer.eos().ok().filter(|&eos| i64::from(eos) >= rows) {
        return Err(usage(format!(
            "the end-of-text token is {eos}, but the base has only {rows} embeddings"
        ))
        .hint("correct `eos_token_id` in generation_config.json and config.json")
        .into());
    }
    Ok(())
}

/// Returns the head that a data set needs: an output for each of its classes, or 1 for a number.
/// Fails when the data set is for a language model.
pub fn head_for(dataset: &Dataset) -> Result<HeadShape> {
    let of = |problem| {
        let outputs = (dataset.task.labels().len() as i64).max(1);
        HeadShape { problem, outputs }
    };
    dataset.task.problem().map(of).ok_or_else(|| {
        let (name, task) = (&dataset.name, dataset.task.name());
        usage(format!("data set `{name}` is for `{task}`, not for classification"))
            .hint("encoders need a data set for `classification`, `regression`, `multi-label` or `token-classification`")
            .into()
    })
}

/// Returns the data set, and the order that maps the outputs of `head` with these `labels` to it.
/// Fails when the head has not as many outputs as the data set needs, or answers something else.
pub fn fitting(dataset: Dataset, head: HeadShape, labels: &[String]) -> Result<(Dataset, Vec<usize>)> {
    let task = dataset.name.clone();
    let wanted = head_for(&dataset)?;
    let hint = "score the task that the head was trained on";
    if wanted.outputs != head.outputs {
        let (wanted, outputs) = (wanted.outputs, head.outputs);
        return Err(usage(format!(
            "`{task}` has {wanted} classes, but the model's head has {outputs} outputs"
        ))
        .hint(hint)
        .into());
    }
    if wanted.problem != head.problem {
        let (wanted, found) = (wanted.problem.words(), head.problem.words());
        return Err(usage(format!("`{task}` needs a head for {wanted}, but the model's is for {found}"))
            .hint(hint)
            .into());
    }
    let order = output_order(labels, dataset.task.labels());
    if order.as_ref().is_some_and(|order| !order.is_sorted()) {
        tracing::info!("the head's classes are {labels:?}: its outputs are reordered to those of `{task}`");
    }
    let nameless = || labels.iter().enumerate().all(|(class, name)| *name == format!("LABEL_{class}"));
    if order.is_none() && !nameless() {
        let wanted = dataset.task.labels();
        tracing::warn!(
            "the head's classes {labels:?} are taken to be those of `{task}`, {wanted:?}, in this order"
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
