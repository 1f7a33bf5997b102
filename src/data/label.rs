//! Labels: from a column of a row to the number that is trained on.

use serde_json::Value;

use super::TaskKind;
use super::dataset::Dataset;
use super::odd::{self, Odd};
use super::row::kind;
use crate::fault::{Fault, fault, short, which};

/// Value of a label column.
#[derive(Debug, Clone)]
pub enum Label {
    /// A class 0..n-1, or a number.
    Is(f32),
    /// Nothing, or the hub's -1: not labelled.
    Missing,
    /// Value that makes this row unusable, with the reason.
    Unusable(String),
    /// Something that shows that the catalog's labels are not those of the file; dropping such rows would hide it.
    Wrong(Fault),
}

/// Reads the label of one row.
pub fn read(dataset: &Dataset, value: Option<&Value>) -> Label {
    match value.and_then(odd::of) {
        Some(Odd::Nan) => return Label::Missing,
        Some(Odd::Unusable(words)) => return Label::Unusable(format!("the label is {words}")),
        // Labels cannot be told apart by a number of this size, so its digits are read as a text.
        Some(Odd::Number(digits)) => return read(dataset, Some(&Value::String(digits.to_owned()))),
        None => {}
    }
    match value {
        None | Some(Value::Null) => Label::Missing,
        Some(Value::String(text)) if text.is_empty() => Label::Missing,
        Some(value) if dataset.task == TaskKind::Regression => number(value),
        Some(value) => class(&dataset.labels, value),
    }
}

fn number(value: &Value) -> Label {
    let parsed = match value {
        Value::Number(n) => n.as_f64(),
        Value::String(text) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    match parsed.map(|x| x as f32) {
        Some(x) if x.is_finite() => Label::Is(x),
        Some(_) => Label::Unusable(format!("label `{}` is not a finite number", shown(value))),
        None => Label::Unusable(format!("expected a number as label, found {}", described(value))),
    }
}

/// Finds the class by name, else by number.
fn class(labels: &[String], value: &Value) -> Label {
    let (name, n) = match value {
        Value::String(text) => (text.clone(), text.trim().parse().ok()),
        Value::Bool(b) => (b.to_string(), Some(f64::from(u8::from(*b)))),
        Value::Number(n) => (n.to_string(), n.as_f64()),
        _ => return Label::Unusable(format!("expected a label, found {}", described(value))),
    };
    match (labels.iter().position(|label| *label == name), n) {
        (Some(class), _) => Label::Is(class as f32),
        (None, Some(n)) => numbered(labels, n, value),
        (None, None) => unknown(labels, value),
    }
}

/// Returns the class of a number: the label equal to it if any label is a number, since any other reading
/// would depend on how the file writes numbers; else the class at this place.
fn numbered(labels: &[String], n: f64, value: &Value) -> Label {
    let numbers: Vec<Option<f64>> = labels.iter().map(|label| finite(label)).collect();
    if let Some(class) = numbers.iter().position(|number| *number == Some(n)) {
        Label::Is(class as f32)
    } else if n == -1.0 {
        Label::Missing
    } else if numbers.iter().all(Option::is_none) && n >= 0.0 && n < labels.len() as f64 && n.fract() == 0.0 {
        Label::Is(n as f32)
    } else {
        unknown(labels, value)
    }
}

fn finite(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

fn unknown(labels: &[String], value: &Value) -> Label {
    let found = shown(value);
    let hint = which("labels", &found, labels.iter().map(String::as_str));
    let message = format!("label `{found}` is none of the {} labels in the catalog", labels.len());
    let by_place = !labels.iter().any(|label| finite(label).is_some());
    let places = if by_place { ", or their numbers from 0" } else { "" };
    Label::Wrong(fault(message).hint(format!("{hint}{places}")))
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
        told(Catalog::builtin().unwrap().get(dataset).unwrap(), value)
    }

    fn told(dataset: &Dataset, value: &Value) -> String {
        match read(dataset, Some(value)) {
            Label::Is(x) => format!("{x}"),
            Label::Missing => "missing".to_owned(),
            Label::Unusable(why) => format!("unusable: {why}"),
            Label::Wrong(fault) => format!("wrong: {fault}"),
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
        let mut dataset = Catalog::builtin().unwrap().get("glue/rte").unwrap().clone();
        dataset.labels = ["2", "1", "-1"].map(str::to_owned).to_vec();
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
            assert_eq!(told(&dataset, &value), expected, "{value}");
        }
        dataset.labels.truncate(2);
        assert_eq!(told(&dataset, &json!(-1)), "missing");
        let Label::Wrong(fault) = read(&dataset, Some(&json!(0))) else { panic!("0 is a label") };
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
