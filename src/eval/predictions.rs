//! A model's answers, example by example: JSON lines to read, and TSV files to submit to GLUE.

use std::path::{Path, PathBuf};

use serde::ser::SerializeStruct as _;
use serde::{Serialize, Serializer};

use crate::data::dataset::Dataset;
use crate::data::{Label, Task};
use crate::fault::{Result, fault, usage};
use crate::files::write_atomically;
use crate::models::HeadShape;
use crate::spec::Problem;

/// One line of `OUT/predictions/TASK.jsonl`.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The example's row in its split, from 0.
    pub index: usize,
    /// The model's answer.
    pub prediction: Label,
    /// The right answer; `None` (`null`) if the split has no labels.
    pub label: Option<Label>,
    /// The model's output, one number per class or a single one; of words, those of one word after the other. Written with the
    /// digits of an `f64`, so that every reader recovers each `f32` exactly, and `null` if not finite.
    pub logits: Vec<f32>,
    /// Numbers of each word.
    width: usize,
}

impl Prediction {
    /// Predicts what a head of this shape answers: its number, the class with the largest logit, the first of equals, of the
    /// sequence or of each word, or every label whose probability is at least one half.
    pub fn new(head: HeadShape, index: usize, logits: Vec<f32>, label: Option<Label>) -> Self {
        let width = usize::try_from(head.outputs).unwrap_or_default().max(1);
        let prediction = match head.problem {
            Problem::Regression => Label::Value(logits.first().copied().unwrap_or(f32::NAN)),
            Problem::SingleLabel => Label::Class(argmax(&logits)),
            Problem::MultiLabel => {
                Label::Set((0..).zip(&logits).filter(|(_, x)| **x >= 0.0).map(|(class, _)| class).collect())
            }
            Problem::Tokens => Label::Tags(logits.chunks(width).map(argmax).collect()),
        };
        Self { index, prediction, label, logits, width }
    }
}

impl Serialize for Prediction {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let wide = |logits: &[f32]| -> Vec<f64> { logits.iter().map(|logit| f64::from(*logit)).collect() };
        let mut line = serializer.serialize_struct("Prediction", 4)?;
        line.serialize_field("index", &self.index)?;
        line.serialize_field("prediction", &self.prediction)?;
        line.serialize_field("label", &self.label)?;
        match self.prediction {
            Label::Tags(_) => {
                line.serialize_field(
                    "logits",
                    &self.logits.chunks(self.width).map(wide).collect::<Vec<_>>(),
                )?;
            }
            _ => line.serialize_field("logits", &wide(&self.logits))?,
        }
        line.end()
    }
}

/// Returns the index of the largest value, the first of equals; NaN is never the largest; 0 if there is none.
pub fn argmax(values: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (place, &value) in (0..).zip(values) {
        if value > best.1 {
            best = (place, value);
        }
    }
    best.0
}

/// Format of a submission's second column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Submission<'a> {
    /// The number of the class.
    Classes,
    /// The name of the class, taken from these.
    Names(&'a [String]),
    /// The number, clipped to this range, with three decimals.
    Numbers {
        /// The task's smallest score.
        low: f64,
        /// The task's largest score.
        high: f64,
    },
}

/// Returns the name of the data set's submission file for a split.
///
/// # Errors
/// When the data set has none.
pub fn submission_name<'a>(dataset: &'a Dataset, split: &str) -> Result<&'a str> {
    let name = dataset.task.submission().find(|(known, _)| *known == split).map(|(_, name)| name);
    name.ok_or_else(|| {
        let known: Vec<String> = dataset.task.submission().map(|(split, _)| format!("`{split}`")).collect();
        usage(format!("`{}` has no submission file for the split `{split}`", dataset.name))
            .hint(if known.is_empty() {
                "only data sets with `submission` in the catalog have one".to_owned()
            } else {
                format!("choose a `--split` among {}", known.join(", "))
            })
            .into()
    })
}

/// Writes the predictions of a split into `out` in GLUE's format; returns the file's path.
///
/// # Errors
/// As [`submission_name`] and [`write_submission`].
pub fn submit(dataset: &Dataset, split: &str, predictions: &[Prediction], out: &Path) -> Result<PathBuf> {
    let name = submission_name(dataset, split)?;
    let style = match &dataset.task {
        Task::Regression(_) => Submission::Numbers { low: 0.0, high: 5.0 },
        Task::Classification(task) if task.submission_names => Submission::Names(&task.labels),
        _ => Submission::Classes,
    };
    let path = out.join(name);
    write_submission(&path, predictions, style)?;
    Ok(path)
}

/// Writes a GLUE submission: the header `index`, tab, `prediction`, then a line for each example.
///
/// # Errors
/// When a class has no name, a number is NaN, an answer is of the wrong kind, or `path` cannot be written.
pub fn write_submission(path: &Path, predictions: &[Prediction], style: Submission<'_>) -> Result<()> {
    write_atomically(path, |out| {
        writeln!(out, "index\tprediction")?;
        for prediction in predictions {
            writeln!(out, "{}\t{}", prediction.index, submitted(prediction, style)?)?;
        }
        Ok(())
    })
}

fn submitted(prediction: &Prediction, style: Submission<'_>) -> Result<String> {
    let row = prediction.index;
    Ok(match (style, &prediction.prediction) {
        (Submission::Classes, Label::Class(class)) => class.to_string(),
        (Submission::Names(names), Label::Class(class)) => names
            .get(*class as usize)
            .ok_or_else(|| {
                fault(format!("row {row}: expected a class below {}, found {class}", names.len()))
            })?
            .clone(),
        (Submission::Numbers { .. }, Label::Value(number)) if number.is_nan() => {
            return Err(fault(format!("row {row}: the prediction is not a number")).into());
        }
        (Submission::Numbers { low, high }, Label::Value(number)) => {
            // Adding zero turns -0 into 0.
            format!("{:.3}", f64::from(*number).max(low).min(high) + 0.0)
        }
        (Submission::Numbers { .. }, Label::Class(class)) => {
            return Err(fault(format!("row {row}: expected a number, found class {class}")).into());
        }
        (_, Label::Set(_) | Label::Tags(_)) => {
            return Err(fault(format!("row {row}: expected one answer, found several")).into());
        }
        (Submission::Classes | Submission::Names(_), Label::Value(number)) => {
            return Err(fault(format!("row {row}: expected a class, found the number {number}")).into());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn predicted(index: usize, logits: Vec<f32>, label: Option<Label>) -> Prediction {
        let outputs = logits.len() as i64;
        let problem = if outputs == 1 { Problem::Regression } else { Problem::SingleLabel };
        Prediction::new(HeadShape { problem, outputs }, index, logits, label)
    }

    #[test]
    fn sets_hold_what_is_likelier_than_not_and_words_have_their_own_logits() {
        let of = |problem, outputs, logits: &[f32]| {
            let prediction = Prediction::new(HeadShape { problem, outputs }, 3, logits.to_vec(), None);
            serde_json::to_string(&prediction).unwrap()
        };
        let set = r#"{"index":3,"prediction":[0,2],"label":null,"logits":[0.5,-1.0,0.0]}"#;
        assert_eq!(of(Problem::MultiLabel, 3, &[0.5, -1.0, 0.0]), set);
        let tags = r#"{"index":3,"prediction":[1,0],"label":null,"logits":[[0.5,1.0],[2.0,-1.0]]}"#;
        assert_eq!(of(Problem::Tokens, 2, &[0.5, 1.0, 2.0, -1.0]), tags);
    }

    fn written(predictions: &[Prediction], style: Submission<'_>) -> Result<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("task.tsv");
        write_submission(&path, predictions, style)?;
        crate::files::read_text(&path)
    }

    #[test]
    fn lines_have_the_keys_of_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("predictions/task.jsonl");
        let of_class = predicted(0, vec![0.5, 1.25], Some(Label::Class(0)));
        let of_number = predicted(1, vec![f32::NAN], None);
        crate::files::write_json_lines(&path, [of_class, of_number]).unwrap();
        let text = crate::files::read_text(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], r#"{"index":0,"prediction":1,"label":0,"logits":[0.5,1.25]}"#);
        assert_eq!(lines[1], r#"{"index":1,"prediction":null,"label":null,"logits":[null]}"#);
    }

    #[test]
    fn logits_come_back_bit_for_bit() {
        // An `f64` reader misreads 7.038531e-26 if only the shortest `f32` digits are written.
        let logits = vec![0.1, -1.0 / 3.0, 7.038_531e-26, f32::MIN_POSITIVE, f32::MAX, 1e-45, -0.0];
        let text = serde_json::to_string(&predicted(0, logits.clone(), None)).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let back: Vec<u32> = value["logits"]
            .as_array()
            .unwrap()
            .iter()
            .map(|x| (x.as_f64().unwrap() as f32).to_bits())
            .collect();
        assert_eq!(back, logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
    }

    #[test]
    fn the_first_of_equal_logits_wins_and_nan_never_does() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert_eq!(argmax(&[f32::NAN, -2.0, -1.0]), 2);
        assert_eq!(argmax(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), 0);
        assert_eq!(argmax(&[]), 0);
    }

    #[test]
    fn submissions_hold_numbers_or_names() {
        let predictions = [predicted(0, vec![0.0, 1.0], None), predicted(1, vec![1.0, 0.0], None)];
        let names = ["entailment".to_owned(), "not_entailment".to_owned()];
        assert_eq!(written(&predictions, Submission::Classes).unwrap(), "index\tprediction\n0\t1\n1\t0\n");
        assert_eq!(
            written(&predictions, Submission::Names(&names)).unwrap(),
            "index\tprediction\n0\tnot_entailment\n1\tentailment\n"
        );
    }

    #[test]
    fn scores_are_clipped_and_have_three_decimals() {
        let predictions = [-0.25, 5.5, 2.71849, -0.0].map(|x| predicted(0, vec![x], None));
        let text = written(&predictions, Submission::Numbers { low: 0.0, high: 5.0 }).unwrap();
        let column: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split('\t').nth(1)).collect();
        assert_eq!(column, ["0.000", "5.000", "2.718", "0.000"]);
    }

    #[test]
    fn a_submission_that_cannot_be_written_names_the_row_and_leaves_no_file() {
        let one_name = ["yes".to_owned()];
        let class = predicted(7, vec![0.0, 1.0], None);
        let error = written(std::slice::from_ref(&class), Submission::Names(&one_name)).unwrap_err();
        assert_eq!(error.root_cause().to_string(), "row 7: expected a class below 1, found 1");
        let numbers = Submission::Numbers { low: 0.0, high: 5.0 };
        let error = written(&[predicted(3, vec![f32::NAN], None)], numbers).unwrap_err();
        assert_eq!(error.root_cause().to_string(), "row 3: the prediction is not a number");
        assert!(written(&[class], numbers).is_err());
    }
}
