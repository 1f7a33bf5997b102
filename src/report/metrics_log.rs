//! The log of a run: `metrics.jsonl`, one object per line, and the same numbers for TensorBoard.
//!
//! A resumed run repeats the steps after its checkpoint, so what an interrupted run wrote about them is taken
//! back when the log is opened again.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::fault::Result;
use crate::files::{cannot_write, write_bytes};
use crate::report::tensorboard::EventFile;

/// The name of the log in the folder of a run.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One log point of training; a number that is not finite is written as `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainPoint {
    /// Optimiser steps done, from 1.
    pub step: u64,
    /// Passes over the data done, with the fraction of the present one.
    pub epoch: f64,
    /// The mean loss since the last log point.
    pub loss: f64,
    /// The adapter's learning rate in this step.
    pub learning_rate: f64,
    /// The head's learning rate, where it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    /// The norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens a second since the last log point, padding not counted.
    pub tokens_per_second: f64,
}

impl TrainPoint {
    fn scalars(&self) -> Vec<(String, f64)> {
        let named = [
            ("epoch", Some(self.epoch)),
            ("loss", Some(self.loss)),
            ("learning_rate", Some(self.learning_rate)),
            ("head_learning_rate", self.head_learning_rate),
            ("grad_norm", Some(self.grad_norm)),
            ("tokens_per_second", Some(self.tokens_per_second)),
        ];
        named.into_iter().filter_map(|(name, value)| Some((format!("train/{name}"), value?))).collect()
    }
}

/// The metrics of one task after some step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalPoint {
    /// Optimiser steps done.
    pub step: u64,
    /// The task, as the catalog names it.
    pub task: String,
    /// Metrics by name.
    pub metrics: BTreeMap<String, f64>,
}

impl EvalPoint {
    fn scalars(&self) -> Vec<(String, f64)> {
        self.metrics.iter().map(|(name, &value)| (format!("eval/{}/{name}", self.task), value)).collect()
    }
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Train(&'a TrainPoint),
    Eval(&'a EvalPoint),
}

/// What decides whether a line stays when a run resumes.
#[derive(Deserialize)]
struct Stepped {
    step: u64,
}

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    lines: File,
    path: PathBuf,
    events: EventFile,
}

impl MetricsLog {
    /// Opens the log in the folder `run`: empty for a fresh run, and for one that resumes after step `resumed`
    /// with the lines of the steps up to it.
    ///
    /// # Errors
    /// When a file of the folder cannot be read or written.
    pub fn open(run: &Path, resumed: Option<u64>) -> Result<Self> {
        let path = run.join(METRICS_FILE);
        // A run that was killed before its first checkpoint begins again.
        let taken_back = resumed.or(path.exists().then_some(0)).map(|step| step + 1);
        let kept = match resumed {
            Some(step) if path.exists() => lines_up_to(&path, step)?,
            _ => Vec::new(),
        };
        write_bytes(&path, &kept)?;
        let lines =
            OpenOptions::new().append(true).open(&path).map_err(|error| cannot_write(&path, &error))?;
        let events = EventFile::create(run, taken_back)?;
        Ok(Self { lines, path, events })
    }

    /// Adds a log point of training.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn train(&mut self, point: &TrainPoint) -> Result<()> {
        self.add(&Line::Train(point))?;
        self.events.scalars(point.step, &point.scalars())
    }

    /// Adds the metrics of a task.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn eval(&mut self, point: &EvalPoint) -> Result<()> {
        self.add(&Line::Eval(point))?;
        self.events.scalars(point.step, &point.scalars())
    }

    /// One line, handed to the system in one piece, so that a killed process tears the last one at most.
    fn add(&mut self, line: &Line<'_>) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.lines.write_all(&bytes).map_err(|error| cannot_write(&self.path, &error))
    }
}

/// The whole lines of steps up to `last`; a torn or damaged line is left out.
fn lines_up_to(path: &Path, last: u64) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    let mut kept = Vec::new();
    for (number, line) in (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        match serde_json::from_slice::<Stepped>(line) {
            Ok(point) if point.step > last => {}
            Ok(_) if line.ends_with(b"\n") => kept.extend_from_slice(line),
            _ => tracing::warn!("`{}`: left out line {number}, which is damaged", path.display()),
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::read_text;

    fn point(step: u64) -> TrainPoint {
        TrainPoint {
            step,
            epoch: 0.5,
            loss: 0.25,
            learning_rate: 1e-3,
            head_learning_rate: None,
            grad_norm: 1.5,
            tokens_per_second: 100.0,
        }
    }

    fn steps(folder: &Path) -> Vec<u64> {
        read_text(&folder.join(METRICS_FILE))
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<Stepped>(line).unwrap().step)
            .collect()
    }

    #[test]
    fn lines_have_the_layout_of_the_contract() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None).unwrap();
        log.train(&TrainPoint { loss: f64::NAN, ..point(10) }).unwrap();
        log.train(&TrainPoint { head_learning_rate: Some(5e-3), grad_norm: f64::INFINITY, ..point(20) })
            .unwrap();
        let metrics = BTreeMap::from([("f1".to_owned(), f64::NAN), ("accuracy".to_owned(), 0.75)]);
        log.eval(&EvalPoint { step: 20, task: "glue/mrpc".to_owned(), metrics }).unwrap();
        let expected = [
            r#"{"kind":"train","step":10,"epoch":0.5,"loss":null,"learning_rate":0.001,"grad_norm":1.5,"tokens_per_second":100.0}"#,
            r#"{"kind":"train","step":20,"epoch":0.5,"loss":0.25,"learning_rate":0.001,"head_learning_rate":0.005,"grad_norm":null,"tokens_per_second":100.0}"#,
            r#"{"kind":"eval","step":20,"task":"glue/mrpc","metrics":{"accuracy":0.75,"f1":null}}"#,
        ];
        let text = read_text(&folder.path().join(METRICS_FILE)).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_resumed_log_forgets_later_steps_and_the_torn_line() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None).unwrap();
        for step in [10, 20, 30] {
            log.train(&point(step)).unwrap();
        }
        log.lines.write_all(br#"{"kind":"train","step":1"#).unwrap();
        let mut log = MetricsLog::open(folder.path(), Some(20)).unwrap();
        assert_eq!(steps(folder.path()), [10, 20]);
        log.train(&point(30)).unwrap();
        assert_eq!(steps(folder.path()), [10, 20, 30]);
    }

    #[test]
    fn a_last_line_without_its_end_counts_as_torn() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METRICS_FILE), "{\"step\":1}\n{\"step\":2}").unwrap();
        MetricsLog::open(folder.path(), Some(5)).unwrap();
        assert_eq!(steps(folder.path()), [1]);
    }

    #[test]
    fn a_fresh_run_starts_an_empty_log_and_resuming_without_one_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METRICS_FILE), "{\"step\":1}\n").unwrap();
        MetricsLog::open(folder.path(), None).unwrap();
        assert_eq!(steps(folder.path()), [0_u64; 0]);
        let empty = tempfile::tempdir().unwrap();
        MetricsLog::open(empty.path(), Some(3)).unwrap();
        assert_eq!(steps(empty.path()), [0_u64; 0]);
    }

    #[test]
    fn a_run_that_begins_again_takes_back_what_tensorboard_shows_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let takes_back = |log: &MetricsLog| {
            // `step: 1` and `SessionLog { status: START }` of an `Event`.
            let bytes = std::fs::read(log.events.path()).unwrap();
            bytes.windows(6).any(|window| window == b"\x10\x01\x3a\x02\x08\x01")
        };
        assert!(!takes_back(&MetricsLog::open(folder.path(), None).unwrap()));
        assert!(takes_back(&MetricsLog::open(folder.path(), None).unwrap()));
    }

    #[test]
    fn event_files_carry_a_tag_per_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None).unwrap();
        log.train(&point(1)).unwrap();
        let bytes = std::fs::read(log.events.path()).unwrap();
        let has = |tag: &str| bytes.windows(tag.len()).any(|window| window == tag.as_bytes());
        assert!(has("train/loss") && has("train/grad_norm") && !has("train/head_learning_rate"));
    }
}
