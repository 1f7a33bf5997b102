//! The log of a run: `metrics.jsonl`, one object per line, and the same numbers for TensorBoard.
//!
//! A resumed run repeats the steps after its checkpoint, so lines that an interrupted run wrote about them
//! are removed when the log is opened again.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::fault::Result;
use crate::files::{cannot_write, check_held, read_bytes, write_bytes};
use crate::report::tensorboard::EventFile;

/// Name of the log in a run's folder.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One log point of training; a number that is not finite is written as `null`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TrainPoint {
    /// Optimiser steps done, from 1.
    pub step: u64,
    /// Passes over the data done, including the fraction of the current one.
    pub epoch: f64,
    /// The mean loss since the last log point.
    pub loss: f64,
    /// The adapter's learning rate in this step.
    pub learning_rate: f64,
    /// The head's learning rate, if it has its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_learning_rate: Option<f64>,
    /// The norm of all gradients before clipping.
    pub grad_norm: f64,
    /// Tokens per second since the last log point, padding excluded.
    pub tokens_per_second: f64,
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

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
enum Line<'a> {
    Train(&'a TrainPoint),
    Eval(&'a EvalPoint),
}

/// The field that decides whether a line is kept when a run resumes.
#[derive(Deserialize)]
struct Stepped {
    step: u64,
}

/// Position of the log's end at some time, with a checksum that detects content that the run did not write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    bytes: usize,
    /// BLAKE3 of them.
    checksum: String,
}

/// The open log of a run.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    events: EventFile,
    /// Length of the log in bytes.
    bytes: usize,
    hasher: blake3::Hasher,
}

impl MetricsLog {
    /// Opens the log in the folder `run`: empty for a fresh run; for one that resumes after step `resumed`,
    /// where the log ended at `end`, with the lines of the steps up to it.
    ///
    /// # Errors
    /// When a file of the folder cannot be read or written.
    pub fn open(run: &Path, resumed: Option<u64>, end: Option<End>) -> Result<Self> {
        let path = run.join(METRICS_FILE);
        // A run that was killed before its first checkpoint begins again.
        let taken_back = resumed.or(path.exists().then_some(0)).map(|step| step + 1);
        let kept = resumed.map_or(Ok(Vec::new()), |step| kept(&path, step, end))?;
        write_bytes(&path, &kept)?;
        let events = EventFile::create(run, taken_back)?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&kept);
        Ok(Self { path, events, bytes: kept.len(), hasher })
    }

    /// Returns the current end of the log.
    pub fn end(&self) -> End {
        End { bytes: self.bytes, checksum: self.hasher.finalize().to_hex().to_string() }
    }

    /// Adds a log point of training.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn train(&mut self, point: &TrainPoint) -> Result<()> {
        self.add(&Line::Train(point))?;
        let Value::Object(fields) = serde_json::to_value(point)? else { return Ok(()) };
        let scalars = fields.iter().filter(|(name, _)| *name != "step");
        let scalars =
            scalars.map(|(name, value)| (format!("train/{name}"), value.as_f64().unwrap_or(f64::NAN)));
        self.events.scalars(point.step, &scalars.collect::<Vec<_>>())
    }

    /// Adds the metrics of a task.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn eval(&mut self, point: &EvalPoint) -> Result<()> {
        self.add(&Line::Eval(point))?;
        let scalars =
            point.metrics.iter().map(|(name, value)| (format!("eval/{}/{name}", point.task), *value));
        self.events.scalars(point.step, &scalars.collect::<Vec<_>>())
    }

    /// Appends one line in a single write, so that a killed process tears at most the last one. The file is
    /// opened each time, so that its removal is noticed.
    fn add(&mut self, line: &Line<'_>) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        check_held(&self.path)?;
        let file = OpenOptions::new().append(true).open(&self.path);
        file.and_then(|mut file| file.write_all(&bytes)).map_err(|error| cannot_write(&self.path, &error))?;
        self.bytes += bytes.len();
        self.hasher.update(&bytes);
        Ok(())
    }
}

/// Returns what to keep of a log whose run resumes after step `last`, where it ended at `end`.
fn kept(path: &Path, last: u64, end: Option<End>) -> Result<Vec<u8>> {
    let name = path.display();
    let mut bytes = match path.exists() {
        true => read_bytes(path)?,
        false => Vec::new(),
    };
    if let Some(End { bytes: length, checksum }) = end {
        let written = bytes.get(..length);
        if written.is_some_and(|written| blake3::hash(written).to_hex().as_str() == checksum) {
            bytes.truncate(length);
            return Ok(bytes);
        }
        tracing::warn!(
            "`{name}` is not what the run wrote up to step {last}: its lines are kept as they are"
        );
    }
    Ok(lines_up_to(&bytes, last, path))
}

/// Returns the whole lines of steps up to `last`, without torn and damaged lines.
fn lines_up_to(bytes: &[u8], last: u64, path: &Path) -> Vec<u8> {
    let (mut kept, mut damaged) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        match serde_json::from_slice::<Stepped>(line) {
            Ok(point) if point.step > last => {}
            Ok(_) if line.ends_with(b"\n") => kept.extend_from_slice(line),
            _ => damaged.push(number),
        }
    }
    if let Some(first) = damaged.first() {
        let (name, count) = (path.display(), damaged.len());
        tracing::warn!("`{name}`: {count} damaged lines are left out, the first is line {first}");
    }
    kept
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
        let mut log = MetricsLog::open(folder.path(), None, None).unwrap();
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
        let mut log = MetricsLog::open(folder.path(), None, None).unwrap();
        for step in [10, 20, 30] {
            log.train(&point(step)).unwrap();
        }
        let mut lines = OpenOptions::new().append(true).open(folder.path().join(METRICS_FILE)).unwrap();
        lines.write_all(br#"{"kind":"train","step":1"#).unwrap();
        let mut log = MetricsLog::open(folder.path(), Some(20), None).unwrap();
        assert_eq!(steps(folder.path()), [10, 20]);
        log.train(&point(30)).unwrap();
        assert_eq!(steps(folder.path()), [10, 20, 30]);
    }

    #[test]
    fn a_log_that_is_what_was_written_is_cut_where_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None, None).unwrap();
        log.train(&point(10)).unwrap();
        let end = log.end();
        // Steps after the checkpoint may even have been logged under an earlier number.
        log.train(&point(5)).unwrap();
        let log = MetricsLog::open(folder.path(), Some(10), Some(end.clone())).unwrap();
        assert_eq!((steps(folder.path()), log.end()), (vec![10], end.clone()));
        let path = folder.path().join(METRICS_FILE);
        std::fs::write(&path, read_text(&path).unwrap().replace("0.25", "0.35")).unwrap();
        assert_ne!(MetricsLog::open(folder.path(), Some(10), Some(end)).unwrap().end(), log.end());
    }

    #[test]
    fn a_log_that_was_removed_is_not_begun_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None, None).unwrap();
        std::fs::remove_file(folder.path().join(METRICS_FILE)).unwrap();
        let error = log.train(&point(1)).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl`: No such file"), "{error}");
    }

    #[test]
    fn a_last_line_without_its_end_counts_as_torn() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METRICS_FILE), "{\"step\":1}\n{\"step\":2}").unwrap();
        MetricsLog::open(folder.path(), Some(5), None).unwrap();
        assert_eq!(steps(folder.path()), [1]);
    }

    #[test]
    fn a_fresh_run_starts_an_empty_log_and_resuming_without_one_is_fine() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(METRICS_FILE), "{\"step\":1}\n").unwrap();
        MetricsLog::open(folder.path(), None, None).unwrap();
        assert_eq!(steps(folder.path()), [0_u64; 0]);
        let empty = tempfile::tempdir().unwrap();
        MetricsLog::open(empty.path(), Some(3), None).unwrap();
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
        assert!(!takes_back(&MetricsLog::open(folder.path(), None, None).unwrap()));
        assert!(takes_back(&MetricsLog::open(folder.path(), None, None).unwrap()));
    }

    #[test]
    fn event_files_carry_a_tag_per_number() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = MetricsLog::open(folder.path(), None, None).unwrap();
        log.train(&point(1)).unwrap();
        let bytes = std::fs::read(log.events.path()).unwrap();
        let has = |tag: &str| bytes.windows(tag.len()).any(|window| window == tag.as_bytes());
        assert!(has("train/loss") && has("train/grad_norm") && !has("train/head_learning_rate"));
    }
}
