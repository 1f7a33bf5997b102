//! What is told of a row: the columns that an answer adds to it, for each kind of answer.

use serde_json::{Number, Value, json};

use crate::data::row::Columns;
use crate::eval::predictions::argmax;
use crate::generate::Completion;

/// The main column of a classifier's answer.
const PREDICTION: &str = "prediction";
/// Probabilities by label; in flat formats, a column `p_LABEL` for each.
const PROBABILITIES: &str = "probabilities";
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
            Self::Number | Self::Text => {
                let value = logits.first().map(|&value| number(value.into()));
                answer.insert(PREDICTION.into(), value.into());
            }
        }
        Ok(answer)
    }
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
