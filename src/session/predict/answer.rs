//! What is told of a row: the columns that an answer adds to it, for each kind of answer.

use serde_json::{Number, Value, json};

use crate::data::row::Columns;
use crate::data::words::Sentence;
use crate::eval::entities::entities;
use crate::eval::predictions::argmax;
use crate::generate::Completion;

/// The main column of a classifier's answer.
const PREDICTION: &str = "prediction";
/// Probabilities by label; in flat formats, a column `p_LABEL` for each.
const PROBABILITIES: &str = "probabilities";
/// Runs of words whose tags are of one kind.
const ENTITIES: &str = "entities";
/// The text by which a language model continues a prompt, and why it ends.
const COMPLETION: [&str; 2] = ["completion", "finish"];
/// Why a row has no answer.
pub const ERROR: &str = "error";

/// Kinds of answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// One of these labels.
    Class(Vec<String>),
    /// Any number of these labels.
    Set(Vec<String>),
    /// Tags of words, which make up entities.
    Tags(Vec<String>),
    /// A number.
    Number,
    /// A completion.
    Text,
}

impl Kind {
    /// Returns the columns of an answer.
    pub fn columns(&self) -> &'static [&'static str] {
        match self {
            Self::Class(_) | Self::Set(_) => &[PREDICTION, PROBABILITIES, ERROR],
            Self::Tags(_) => &[PREDICTION, ENTITIES, ERROR],
            Self::Number => &[PREDICTION, ERROR],
            Self::Text => &[COMPLETION[0], COMPLETION[1], ERROR],
        }
    }

    /// Returns the columns of an answer in a flat format, that of errors last.
    pub fn flat_columns(&self) -> Vec<String> {
        let own = self.columns().iter().map(|name| (*name).to_owned());
        match self {
            Self::Class(labels) | Self::Set(labels) => own
                .flat_map(|name| match name.as_str() {
                    PROBABILITIES => labels.iter().map(|label| format!("p_{label}")).collect(),
                    _ => vec![name],
                })
                .collect(),
            _ => own.collect(),
        }
    }

    /// Returns the answer that the outputs of a head stand for.
    ///
    /// # Errors
    /// When they are not finite.
    pub fn of_logits(&self, logits: &[f32]) -> std::result::Result<Columns, String> {
        if logits.iter().any(|logit| !logit.is_finite()) {
            return Err(format!("the logits are not finite: {logits:?}"));
        }
        let mut answer = Columns::new();
        match self {
            Self::Class(labels) => {
                let best = labels.get(argmax(logits) as usize).cloned();
                let probabilities = softmax(logits).into_iter().map(number);
                let named: Columns = labels.iter().cloned().zip(probabilities).collect();
                answer.insert(PREDICTION.into(), best.into());
                answer.insert(PROBABILITIES.into(), named.into());
            }
            Self::Set(labels) => {
                // Of probability one half or more.
                let held = labels.iter().zip(logits).filter(|(_, logit)| **logit >= 0.0);
                let held: Vec<Value> = held.map(|(label, _)| label.as_str().into()).collect();
                let probability = |logit: &f32| number(1.0 / (1.0 + f64::from(-logit).exp()));
                let named: Columns = labels.iter().cloned().zip(logits.iter().map(probability)).collect();
                answer.insert(PREDICTION.into(), held.into());
                answer.insert(PROBABILITIES.into(), named.into());
            }
            Self::Number | Self::Text | Self::Tags(_) => {
                let value = logits.first().map(|&value| number(value.into()));
                answer.insert(PREDICTION.into(), value.into());
            }
        }
        Ok(answer)
    }
}

/// Returns the entities of a sentence, and the tag of each word if it is a list, from the logits of the words that the model
/// sees, each in the order of `labels`. As in the pipelines of Transformers, an entity's score is the mean of its words'.
///
/// # Errors
/// When they are not finite.
pub fn of_words(
    labels: &[String],
    logits: &[Vec<f32>],
    sentence: &Sentence,
) -> std::result::Result<Columns, String> {
    let Sentence { words, seen, text, .. } = sentence;
    let (mut tags, mut scores) = (vec![None; words.len()], vec![0.0; words.len()]);
    for (&at, row) in seen.iter().zip(logits) {
        if row.iter().any(|logit| !logit.is_finite()) {
            return Err(format!("the logits of the word `{}` are not finite", words[at].0));
        }
        let best = argmax(row) as usize;
        tags[at] = labels.get(best).map(String::as_str);
        scores[at] = softmax(row).get(best).copied().unwrap_or_default();
    }
    let of_all: Vec<&str> = tags.iter().map(|tag| tag.unwrap_or("O")).collect();
    let entity = |(group, first, last): (&str, usize, usize)| {
        let score = scores[first..=last].iter().sum::<f64>() / (last + 1 - first) as f64;
        let [start, end] = [words[first].1.start, words[last].1.end];
        let word = match text {
            Some(text) => text.chars().skip(start).take(end - start).collect(),
            None => words[first..=last].iter().map(|(word, _)| word.as_str()).collect::<Vec<_>>().join(" "),
        };
        json!({"entity_group": group, "score": number(score), "word": word, "start": start, "end": end})
    };
    let found: Vec<Value> = entities(&of_all).into_iter().map(entity).collect();
    let mut answer = Columns::new();
    if text.is_none() {
        answer.insert(PREDICTION.to_owned(), json!(tags));
    }
    answer.insert(ENTITIES.to_owned(), found.into());
    Ok(answer)
}

/// Returns the answer that a completion is.
pub fn of_completion(completion: &Completion) -> Columns {
    let Completion { text, finish, .. } = completion;
    COMPLETION.map(str::to_owned).into_iter().zip([json!(text), json!(finish)]).collect()
}

/// Returns an answer with its probabilities as columns of their own, as [`Kind::flat_columns`] names them.
pub fn flattened(mut answer: Columns) -> Columns {
    if let Some(Value::Object(named)) = answer.shift_remove(PROBABILITIES) {
        answer.extend(named.into_iter().map(|(label, p)| (format!("p_{label}"), p)));
    }
    answer
}

/// Returns the probabilities of classes with these logits.
fn softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.into_iter().map(|power| power / sum).collect()
}

/// Returns a number with the digits that an `f32` needs.
fn number(value: f64) -> Value {
    let short = (value as f32).to_string().parse().ok();
    short.and_then(Number::from_f64).map_or(Value::Null, Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn logits_become_a_label_and_probabilities() {
        let kind = Kind::Class(vec!["no".into(), "yes".into()]);
        let answer = kind.of_logits(&[0.0, 3.0f32.ln()]).unwrap();
        let expected = json!({"prediction": "yes", "probabilities": {"no": 0.25, "yes": 0.75}});
        assert_eq!(Value::from(answer.clone()), expected);
        assert_eq!(Value::from(flattened(answer)), json!({"prediction": "yes", "p_no": 0.25, "p_yes": 0.75}));
        let far = kind.of_logits(&[-200.0, 700.0]).unwrap();
        assert_eq!(far["probabilities"], json!({"no": 0.0, "yes": 1.0}));
        assert_eq!(Value::from(Kind::Number.of_logits(&[0.1]).unwrap()), json!({"prediction": 0.1}));
        let kind = Kind::Set(vec!["no".into(), "yes".into()]);
        let expected = json!({"prediction": ["no"], "probabilities": {"no": 0.5, "yes": 0.25}});
        assert_eq!(Value::from(kind.of_logits(&[0.0, -(3.0f32.ln())]).unwrap()), expected);
        assert!(kind.of_logits(&[f32::NAN, 1.0]).unwrap_err().contains("not finite"));
    }
}
