//! Labels: from a column of a row to the target that is trained on.

use std::borrow::Cow;

use serde::{Serialize, Serializer};
use serde_json::Value;

use super::odd::{self, Odd};
use super::row::{Columns, Refusal, kind};
use super::task::Task;
use crate::fault::{fault, short, which};
use crate::spec::Problem;

/// The target of a labelled example, or a prediction of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// Class 0..n-1, the place among the catalog's `labels`.
    Class(u32),
    /// Value of a regression.
    Value(f32),
    /// The labels that hold, ascending.
    Set(Vec<u32>),
    /// The tag of each word of which the model sees a token.
    Tags(Vec<u32>),
}

impl Label {
    /// Returns the label of a task that was stored as these numbers.
    pub(super) fn stored(task: &Task, numbers: &[f32]) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "they were written from classes"
        )]
        let classes = || numbers.iter().map(|number| *number as u32);
        match task.problem()? {
            Problem::SingleLabel => classes().next().map(Self::Class),
            Problem::Regression => numbers.first().copied().map(Self::Value),
            Problem::MultiLabel => Some(Self::Set(classes().collect())),
            Problem::Tokens => Some(Self::Tags(classes().collect())),
        }
    }

    /// Returns its classes or its value as numbers.
    pub fn numbers(&self) -> Vec<f32> {
        match self {
            Self::Class(class) => vec![*class as f32],
            Self::Value(value) => vec![*value],
            Self::Set(classes) | Self::Tags(classes) => classes.iter().map(|class| *class as f32).collect(),
        }
    }
}

/// Writes the bare number or a list, a value with the digits of an `f64`, so that every reader recovers the `f32` exactly.
impl Serialize for Label {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Class(class) => serializer.serialize_u32(*class),
            Self::Value(value) => serializer.serialize_f64(f64::from(*value)),
            Self::Set(classes) | Self::Tags(classes) => classes.serialize(serializer),
        }
    }
}

/// Reads the label of one row; `None` if it holds nothing, or the hub's -1.
///
/// # Errors
/// When the row is unusable, or shows that the catalog's labels are not those of the file; dropping such rows would hide
/// it.
pub(super) fn read(task: &Task, row: &Columns) -> Result<Option<Label>, Refusal> {
    let columns = task.labelled().map(|(_, label)| label).unwrap_or_default();
    let labels = task.labels();
    if let (Task::MultiLabel(_), [_, _, ..]) = (task, columns) {
        return flags(columns, row);
    }
    let value = columns.first().and_then(|column| row.get(column));
    if is_missing(value)? {
        return Ok(None);
    }
    let Some(value) = value else { return Ok(None) };
    match task {
        Task::Classification(_) => Ok(class(labels, value)?.map(Label::Class)),
        Task::MultiLabel(_) => set(labels, value).map(Some),
        Task::TokenClassification(_) => {
            let tag = |value| class(labels, value)?.ok_or_else(|| "a word has no tag".to_owned().into());
            let tags: Result<_, Refusal> = list(value)?.iter().map(tag).collect();
            tags.map(|tags| Some(Label::Tags(tags)))
        }
        _ => number(value),
    }
}

/// Returns true if a column holds no label.
fn is_missing(value: Option<&Value>) -> Result<bool, Refusal> {
    Ok(match (value, value.and_then(odd::of)) {
        (_, Some(Odd::Nan)) => true,
        (_, Some(Odd::Unusable(words))) => return Err(format!("the label is {words}").into()),
        (None | Some(Value::Null), _) => true,
        (Some(Value::String(text)), _) => text.is_empty(),
        _ => false,
    })
}

/// Reads a column of 0 and 1 for each label.
fn flags(columns: &[String], row: &Columns) -> Result<Option<Label>, Refusal> {
    let mut set = Vec::new();
    let mut missing = 0;
    for (place, column) in (0..).zip(columns) {
        let value = row.get(column);
        let number = match value {
            Some(Value::Bool(holds)) => Some(f64::from(u8::from(*holds))),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            _ if is_missing(value)? => missing += 1,
            Some(1.0) => set.push(place),
            Some(0.0) => {}
            // The hub's mark of a test split.
            Some(-1.0) => missing += 1,
            _ => {
                let found = value.map(described).unwrap_or_default();
                return Err(format!("column `{column}`: expected 0 or 1, found {found}").into());
            }
        }
    }
    match missing {
        0 => Ok(Some(Label::Set(set))),
        _ if missing == columns.len() => Ok(None),
        _ => Err(format!("{missing} of its {} label columns hold nothing", columns.len()).into()),
    }
}

/// Reads a list of labels: names, numbers, or `true`, `false`, 1.0 or 0.0 for every label.
fn set(labels: &[String], value: &Value) -> Result<Label, Refusal> {
    let items = list(value)?;
    let flag = |item: &Value| match item {
        Value::Bool(holds) => Some(*holds),
        Value::Number(number) if number.is_f64() => {
            Some(number.as_f64() == Some(1.0)).filter(|holds| *holds || number.as_f64() == Some(0.0))
        }
        _ => None,
    };
    let flags: Option<Vec<bool>> = items.iter().map(flag).collect();
    if let Some(flags) = flags.filter(|flags| flags.len() == labels.len()) {
        return Ok(Label::Set(
            (0..).zip(flags).filter(|(_, holds)| *holds).map(|(place, _)| place).collect(),
        ));
    }
    let mut set = Vec::with_capacity(items.len());
    for item in items.iter() {
        let class = class(labels, item)?.ok_or_else(|| format!("the label {} is none", described(item)))?;
        if set.contains(&class) {
            return Err(format!("the label {} is there twice", described(item)).into());
        }
        set.push(class);
    }
    set.sort_unstable();
    Ok(Label::Set(set))
}

/// Returns the elements of a list, which a flat file holds as JSON in a text.
pub(super) fn list(value: &Value) -> Result<Cow<'_, [Value]>, String> {
    let parsed = || match value {
        Value::String(text) if text.trim_start().starts_with('[') => serde_json::from_str(text).ok(),
        _ => None,
    };
    match value {
        Value::Array(list) => Ok(Cow::Borrowed(list)),
        _ => parsed()
            .map(Cow::Owned)
            .ok_or_else(|| format!("expected a list such as `[\"a\", \"b\"]`, found {}", described(value))),
    }
}

fn number(value: &Value) -> Result<Option<Label>, Refusal> {
    let parsed = match (odd::of(value), value) {
        (Some(Odd::Number(digits)), _) => digits.parse().ok(),
        (_, Value::Number(n)) => n.as_f64(),
        (_, Value::String(text)) => text.trim().parse::<f64>().ok(),
        _ => None,
    };
    match parsed.map(|x| x as f32) {
        Some(x) if x.is_finite() => Ok(Some(Label::Value(x))),
        Some(_) => Err(format!("label `{}` is not a finite number", shown(value)).into()),
        None => Err(format!("expected a number as label, found {}", described(value)).into()),
    }
}

/// Finds the class by name, else by number; `None` for the hub's -1.
fn class(labels: &[String], value: &Value) -> Result<Option<u32>, Refusal> {
    let (name, n) = match (odd::of(value), value) {
        // Labels cannot be told apart by a number of this size, so its digits are read as a text.
        (Some(Odd::Number(digits)), _) => (digits.to_owned(), digits.parse().ok()),
        (_, Value::String(text)) => (text.clone(), text.trim().parse().ok()),
        (_, Value::Bool(b)) => (b.to_string(), Some(f64::from(u8::from(*b)))),
        (_, Value::Number(n)) => (n.to_string(), n.as_f64()),
        _ => return Err(format!("expected a label, found {}", described(value)).into()),
    };
    match (labels.iter().position(|label| *label == name), n) {
        (Some(class), _) => Ok(u32::try_from(class).ok()),
        (None, Some(n)) => numbered(labels, n, &name),
        (None, None) => unknown(labels, &name),
    }
}

/// Returns the class of a number: the label equal to it if any label is a number, since any other reading
/// would depend on how the file writes numbers; else the class at this place.
fn numbered(labels: &[String], n: f64, found: &str) -> Result<Option<u32>, Refusal> {
    let numbers: Vec<Option<f64>> = labels.iter().map(|label| finite(label)).collect();
    let places = if numbers.iter().all(Option::is_none) { labels.len() } else { 0 };
    if let Some(class) = numbers.iter().position(|number| *number == Some(n)) {
        Ok(u32::try_from(class).ok())
    } else if n == -1.0 {
        Ok(None)
    } else if let Some(class) = (0..places).find(|class| *class as f64 == n) {
        Ok(u32::try_from(class).ok())
    } else {
        unknown(labels, found)
    }
}

fn finite(text: &str) -> Option<f64> {
    text.trim().parse::<f64>().ok().filter(|n| n.is_finite())
}

fn unknown(labels: &[String], found: &str) -> Result<Option<u32>, Refusal> {
    let found = short(found);
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
        Value::Array(_) | Value::Object(_) | Value::Null => kind(value).to_owned(),
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
        let column = &task.labelled().unwrap().1[0];
        match read(task, &Columns::from_iter([(column.clone(), value.clone())])) {
            Ok(Some(label)) => label.numbers().iter().map(f32::to_string).collect::<Vec<_>>().join(" "),
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
        let row = Columns::from_iter([("label".to_owned(), json!(0))]);
        let Err(Refusal::All(fault)) = read(&task, &row) else { panic!("0 is a label") };
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

    fn of_kind(entry: &str) -> Task {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("datasets.toml");
        std::fs::write(&path, format!("[x]\nfiles = {{ train = \"t\" }}\n{entry}")).unwrap();
        Catalog::builtin().unwrap().with_file(&path).unwrap().get("x").unwrap().task.clone()
    }

    #[test]
    fn sets_are_lists_of_names_or_places_or_a_flag_for_each() {
        let task = of_kind("task = 'multi-label'\ntext = 't'\nlabel = 'l'\nlabels = ['a', 'b', 'c']\n");
        for (value, expected) in [
            (json!([]), ""),
            (json!(["c", "a"]), "0 2"),
            (json!([2, "1"]), "1 2"),
            (json!("[\"b\"]"), "1"),
            (json!([0.0, 1.0, 1.0]), "1 2"),
            (json!([true, false, true]), "0 2"),
            (json!([0, 1, 1]), "unusable: the label `1` is there twice"),
            (json!(["d"]), "wrong: label `d` is none of the 3 labels in the catalog"),
            (json!("a"), "unusable: expected a list such as `[\"a\", \"b\"]`, found `a`"),
            (json!(1), "unusable: expected a list such as `[\"a\", \"b\"]`, found `1`"),
            (json!([null]), "unusable: expected a label, found nothing"),
            (json!(null), "missing"),
        ] {
            assert_eq!(told(&task, &value), expected, "{value}");
        }
        let task = of_kind("task = 'multi-label'\ntext = 't'\nlabel = ['a', 'b']\n");
        assert_eq!(task.labels(), ["a", "b"]);
        for (a, b, expected) in [
            (json!(1), json!("0"), Ok(Some(Label::Set(vec![0])))),
            (json!(1.0), json!(true), Ok(Some(Label::Set(vec![0, 1])))),
            (json!(null), json!(""), Ok(None)),
            (json!(-1), json!(-1), Ok(None)),
            (json!(1), json!(null), Err("1 of its 2 label columns hold nothing")),
            (json!(1), json!(0.5), Err("column `b`: expected 0 or 1, found `0.5`")),
        ] {
            let row = Columns::from_iter([("a".to_owned(), a), ("b".to_owned(), b)]);
            let found = read(&task, &row).map_err(|refusal| match refusal {
                Refusal::Row(why) => why,
                Refusal::All(fault) => fault.to_string(),
            });
            assert_eq!(found, expected.map_err(str::to_owned), "{row:?}");
        }
    }

    #[test]
    fn tags_are_a_list_of_names_or_places() {
        let task = of_kind("task = 'token-classification'\ntext = 't'\nlabel = 'l'\nlabels = ['O', 'B-X']\n");
        for (value, expected) in [
            (json!(["O", 1, "B-X"]), "0 1 1"),
            (json!("[0, 1]"), "0 1"),
            (json!(["O", "I-X"]), "wrong: label `I-X` is none of the 2 labels in the catalog"),
            (json!(["O", null]), "unusable: expected a label, found nothing"),
            (json!([-1]), "unusable: a word has no tag"),
            (json!("O O"), "unusable: expected a list such as `[\"a\", \"b\"]`, found `O O`"),
        ] {
            assert_eq!(told(&task, &value), expected, "{value}");
        }
    }
}
