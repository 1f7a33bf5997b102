//! Labels: from a column of a row to the target that is trained on.

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::odd::{self, Odd};
use super::row::{Refusal, kind};
use super::task::Task;
use crate::fault::{fault, short, which};

/// The target of a labelled example, or a prediction of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Label {
    /// Class 0..n-1, the place among the catalog's `labels`.
    Class(u32),
    /// Value of a regression.
    Value(f32),
}

impl Label {
    /// Returns the label of a task that was stored as a number.
    pub(super) fn stored(task: &Task, number: f32) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it was written from a class"
        )]
        match task {
            Task::Classification(_) => Self::Class(number as u32),
            _ => Self::Value(number),
        }
    }

    /// Returns class or value as a number.
    pub fn number(self) -> f64 {
        match self {
            Self::Class(class) => f64::from(class),
            Self::Value(value) => f64::from(value),
        }
    }
}

/// Writes the bare number, a value with the digits of an `f64`, so that every reader recovers the `f32` exactly.
impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Class(class) => serializer.serialize_u32(*class),
            Self::Value(value) => serializer.serialize_f64(f64::from(*value)),
        }
    }
}

/// Reads the label of one row; `None` if it holds nothing, or the hub's -1.
///
/// # Errors
/// When the row is unusable, or shows that the catalog's labels are not those of the file; dropping such rows would hide
/// it.
pub(super) fn read(task: &Task, value: Option<&Value>) -> Result<Option<Label>, Refusal> {
    match value.and_then(odd::of) {
        Some(Odd::Nan) => return Ok(None),
        Some(Odd::Unusable(words)) => return Err(format!("the label is {words}").into()),
        // Labels cannot be told apart by a number of this size, so its digits are read as a text.
        Some(Odd::Number(digits)) => return read(task, Some(&Value::String(digits.to_owned()))),
        None => {}
    }
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(value) => match task {
            Task::Classification(task) => class(&task.labels, value),
            _ => number(value),
        },
    }
}

fn number(value: &Value) -> Result<Option<Label>, Refusal> {
    let parsed = match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    match parsed.map(|x| x as f32) {
        Some(x) if x.is_finite() => Ok(Some(Label::Value(x))),
        Some(_) => Err(format!("label `{}` is not a finite number", shown(value)).into()),
        None => Err(format!("expected a number as label, found {}", described(value)).into()),
    }
}

/// Finds the class by name, else by number.
fn class(labels: &[String], value: &Value) -> Result<Option<Label>, Refusal> {
    let (name, n) = match value {
        Value::String(text) => (text.clone(), text.trim().parse().ok()),
        Value::Bool(b) => (b.to_string(), Some(f64::from(u8::from(*b)))),
        Value::Number(n) => (n.to_string(), n.as_f64()),
        _ => return Err(format!("expected a label, found {}", described(value)).into()),
    };
    match (labels.iter().position(|label| *label == name), n) {
        (Some(class), _) => Ok(at(class)),
        (None, Some(n)) => numbered(labels, n, value),
        (None, None) => unknown(labels, value),
    }
}

/// Returns the class of a number: the label equal to it if any label is a number, since any other reading
/// would depend on how the file writes numbers; else the class at this place.
fn numbered(labels: &[String], n: f64, value: &Value) -> Result<Option<Label>, Refusal> {
    let numbers: Vec<Option<f64>> = labels.iter().map(|label| finite(label)).collect();
    let places = if numbers.iter().all(Option::is_none) { labels.len() } else { 0 };
    if let Some(class) = numbers.iter().position(|number| *number == Some(n)) {
        Ok(at(class))
    } else if n == -1.0 {
        Ok(None)
    } else if let Some(class) = (0..places).find(|class| *class as f64 == n) {
        Ok(at(class))
    } else {
        unknown(labels, value)
    }
}

fn at(class: usize) -> Option<Label> {
    u32::try_from(class).ok().map(Label::Class)
}

fn finite(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

fn unknown(labels: &[String], value: &Value) -> Result<Option<Label>, Refusal> {
    let found = shown(value);
    let hint = which("labels", &found, labels.iter().map(String::as_str));
    let message = format!("label `{found}` is none of the {} labels in the catalog", labels.len());
    let by_place = !labels.iter().any(|label| finite(label).is_some());
    let places = if by_place { ", or their numbers from 0" } else { "" };
    Err(Refusal::All(fault(message).hint(format!("{hint}{places}"))))
}

/// Returns the start of a value: of a text without its quotes, of anything else as JSON.
fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| short(&value.to_string()).into_owned(), |text| short(text).into_owned())
}

fn described(value: &Value) -> String {
    match value {
        Value::Array(_) | Value::Object(_) => kind(value).to_owned(),
        _ => format!("`{}`", shown(value)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::catalog::Catalog;
    use super::*;
    use crate::fault::hint_of;

    fn outcome(dataset: &str, value: &Value) -> String {
        told(&Catalog::builtin().unwrap().get(dataset).unwrap().task, value)
    }

    fn told(task: &Task, value: &Value) -> String {
        match read(task, Some(value)) {
            Ok(Some(label)) => format!("{}", label.number() as f32),
            Ok(None) => "missing".to_owned(),
            Err(Refusal::Row(why)) => format!("unusable: {why}"),
            Err(Refusal::All(fault)) => format!("wrong: {fault}"),
        }
    }

    #[test]
    fn classes_are_numbers_or_names() {
        for (value, expected) in [
            (json!(0), "0"),
            (json!(1.0), "1"),
            (json!("1"), "1"),
            (json!("entailment"), "0"),
            (json!(true), "1"),
            (json!(-1), "missing"),
            (json!("-1"), "missing"),
            (json!(null), "missing"),
            (json!(""), "missing"),
            (json!(2), "wrong: label `2` is none of the 2 labels in the catalog"),
            (json!(-2), "wrong: label `-2` is none of the 2 labels in the catalog"),
            (json!(0.5), "wrong: label `0.5` is none of the 2 labels in the catalog"),
            (json!("NaN"), "wrong: label `NaN` is none of the 2 labels in the catalog"),
            (json!("Entailment"), "wrong: label `Entailment` is none of the 2 labels in the catalog"),
            (json!([1]), "unusable: expected a label, found a list"),
        ] {
            assert_eq!(outcome("glue/rte", &value), expected, "{value}");
        }
    }

    #[test]
    fn names_that_are_numbers_mean_the_same_in_every_format() {
        let task = |labels: &[&str]| {
            let mut task = Catalog::builtin().unwrap().get("glue/rte").unwrap().task.clone();
            let Task::Classification(keys) = &mut task else { panic!("not of classes") };
            keys.labels = labels.iter().map(|label| (*label).to_owned()).collect();
            task
        };
        for (value, expected) in [
            (json!(1), "1"),
            (json!("1"), "1"),
            (json!(2.0), "0"),
            (json!("2.0"), "0"),
            (json!(-1), "2"),
            (json!(true), "1"),
            (json!(0), "wrong: label `0` is none of the 3 labels in the catalog"),
            (json!("0"), "wrong: label `0` is none of the 3 labels in the catalog"),
        ] {
            assert_eq!(told(&task(&["2", "1", "-1"]), &value), expected, "{value}");
        }
        let task = task(&["2", "1"]);
        assert_eq!(told(&task, &json!(-1)), "missing");
        let Err(Refusal::All(fault)) = read(&task, Some(&json!(0))) else { panic!("0 is a label") };
        assert_eq!(hint_of(&fault.into()), Some("labels: `2`, `1`"));
    }

    #[test]
    fn regression_takes_finite_numbers_only() {
        for (value, expected) in [
            (json!(3.8), "3.8"),
            (json!("4.25"), "4.25"),
            (json!(-1), "-1"),
            (json!("NaN"), "unusable: label `NaN` is not a finite number"),
            (json!(1e300), "unusable: label `1e+300` is not a finite number"),
            (json!("high"), "unusable: expected a number as label, found `high`"),
            (json!({"a": 1}), "unusable: expected a number as label, found an object"),
        ] {
            assert_eq!(outcome("glue/stsb", &value), expected, "{value}");
        }
    }
}
