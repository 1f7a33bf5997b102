//! Checkpoints: everything that makes a resumed run repeat the interrupted one bit for bit.
//!
//! The order is a function of seed and step; the noise continues from the saved state of its stream.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::RunPlan;
use super::optim::{AdamW, LossScale};
use crate::fault::{Result, fault};
use crate::files;
use crate::torch::stream::Stream;
use crate::torch::tensor_file::{TensorFile, write};

/// Consecutive steps without a finite gradient after which a run ends.
pub const MOST_BAD_STEPS: u64 = 10;

/// The counters of one run's training.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainState {
    /// Fingerprint of everything that the run depends on.
    pub fingerprint: String,
    /// Optimiser steps done, skipped ones included.
    pub step: u64,
    /// Skipped steps, as earlier versions wrote them: all, and those since the last good one.
    #[serde(default, skip_serializing)]
    skipped: u64,
    #[serde(default, skip_serializing)]
    bad_in_a_row: u64,
    /// Seconds of training, evaluations excluded; beside other runs, its share by tokens.
    pub seconds: f64,
    /// Examples trained on.
    pub examples: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// fp16's loss scale.
    pub scale: LossScale,
    /// Processes that train together.
    #[serde(default = "one")]
    pub processes: usize,
    /// What depends on its gradients and evaluations; a list in the file.
    #[serde(rename = "runs", with = "list_of_one")]
    pub run: RunState,
}

fn one() -> usize {
    1
}

/// A value as a list of it alone.
mod list_of_one {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub fn serialize<T: Serialize, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        [value].serialize(to)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        <[T; 1]>::deserialize(from).map(|[value]| value)
    }
}

/// What a run's gradients and evaluations decide.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunState {
    /// State of the dropout stream.
    pub noise: Stream,
    /// The best evaluation.
    pub best: Option<EvalRecord>,
    /// Its value of the metric that picks the best.
    pub best_value: Option<f64>,
    /// The latest evaluation.
    pub last: Option<EvalRecord>,
    /// Evaluations since the best one.
    pub without_improvement: u64,
    /// Sum of the losses since the last log point.
    pub loss_sum: f64,
    /// Their number.
    pub losses: u64,
    /// Steps skipped because a number was not finite.
    #[serde(default)]
    pub skipped: u64,
    /// Skipped steps since the last good one.
    #[serde(default)]
    pub bad_in_a_row: u64,
}

/// One evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Optimiser steps done.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// Metrics by name; `null` where undefined.
    #[serde(deserialize_with = "null_as_nan")]
    pub metrics: BTreeMap<String, f64>,
}

/// Reads `null` as NaN: JSON has no NaN, so an undefined metric is written as `null`.
fn null_as_nan<'de, D: serde::Deserializer<'de>>(
    input: D,
) -> std::result::Result<BTreeMap<String, f64>, D::Error> {
    let read: BTreeMap<String, Option<f64>> = Deserialize::deserialize(input)?;
    Ok(read.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

impl TrainState {
    /// Returns the state before the first step.
    pub fn new(fingerprint: &str, noise: Stream, loss_scaling: bool) -> Self {
        Self {
            fingerprint: fingerprint.to_owned(),
            step: 0,
            skipped: 0,
            bad_in_a_row: 0,
            seconds: 0.0,
            examples: 0,
            tokens: 0,
            scale: LossScale::new(loss_scaling),
            processes: 1,
            run: RunState::new(noise),
        }
    }

    /// Returns examples per second of training so far.
    pub fn examples_per_second(&self) -> f64 {
        self.examples as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

impl RunState {
    fn new(noise: Stream) -> Self {
        Self {
            noise,
            best: None,
            best_value: None,
            last: None,
            without_improvement: 0,
            loss_sum: 0.0,
            losses: 0,
            skipped: 0,
            bad_in_a_row: 0,
        }
    }

    /// Returns true if it went `patience` evaluations without improvement.
    pub fn stopped_early(&self, patience: u64) -> bool {
        patience > 0 && self.without_improvement >= patience
    }

    /// Returns true if it went too many steps without a finite gradient.
    pub fn has_diverged(&self) -> bool {
        self.bad_in_a_row >= MOST_BAD_STEPS
    }

    /// Records a step's loss.
    pub fn add_loss(&mut self, loss: f64) {
        self.loss_sum += loss;
        self.losses += 1;
    }

    /// Returns the mean loss since the last call; NaN if there was none.
    pub fn take_mean_loss(&mut self) -> f64 {
        let mean = self.loss_sum / self.losses as f64;
        (self.loss_sum, self.losses) = (0.0, 0);
        mean
    }

    /// Records an evaluation whose metric is `value`; returns true if it is the best so far.
    pub fn note(&mut self, record: EvalRecord, value: f64) -> bool {
        let better = match self.best_value {
            None => true,
            Some(best) => value > best,
        };
        self.last = Some(record.clone());
        if better {
            self.best = Some(record);
            // An undefined first value must not block a defined later one.
            self.best_value = value.is_finite().then_some(value);
            self.without_improvement = 0;
        } else {
            self.without_improvement += 1;
        }
        better
    }
}

const TENSORS: &str = "state.safetensors";
const COUNTERS: &str = "state.json";

/// Content of the sealed file of counters.
#[derive(Serialize, Deserialize)]
struct Counters {
    /// BLAKE3 of the other files.
    #[serde(default)]
    files: BTreeMap<String, String>,
    /// BLAKE3 of the file of tensors alone, as older versions wrote it.
    #[serde(default, skip_serializing)]
    checksum: Option<String>,
    state: TrainState,
}

/// Writes a run's checkpoint as `step-N`, with what `optimizer` ([`AdamW::state`]) holds of the run, and removes the oldest, so that
/// `keep` are left. `beside` adds further files to its folder.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save(
    folder: &Path,
    state: &TrainState,
    optimizer: &[(String, Tensor)],
    keep: usize,
    beside: &dyn Fn(&Path) -> Result<()>,
) -> Result<()> {
    files::replace_folder(&folder.join(format!("step-{}", state.step)), |partial| {
        write(&partial.join(TENSORS), &[], optimizer)?;
        beside(partial)?;
        let counters = Counters { files: files::checksums(partial)?, checksum: None, state: state.clone() };
        files::write_sealed(&partial.join(COUNTERS), &counters)
    })?;
    // Any newer ones were broken when the run resumed: they must not count.
    let (newer, older): (Vec<_>, Vec<_>) =
        found(folder).into_iter().partition(|(step, _)| *step > state.step);
    for (_, old) in newer.into_iter().chain(older.into_iter().skip(keep.max(1))) {
        // A checkpoint left behind only costs disk space.
        let _ = fs::remove_dir_all(old);
    }
    Ok(())
}

/// Returns the steps of the checkpoints in a folder, the newest first.
pub fn steps(folder: &Path) -> Vec<u64> {
    found(folder).into_iter().map(|(step, _)| step).collect()
}

/// Returns the checkpoints of a folder, newest first.
fn found(folder: &Path) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut steps: Vec<(u64, PathBuf)> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            Some((name.to_str()?.strip_prefix("step-")?.parse().ok()?, entry.path()))
        })
        .collect();
    steps.sort_by(|a, b| b.cmp(a));
    steps
}

/// A checkpoint read from disk.
#[derive(Debug)]
pub struct Loaded {
    state: TrainState,
    tensors: TensorFile,
    place: PathBuf,
}

impl Loaded {
    /// Reads the newest intact checkpoint in `folder`; broken ones are skipped with a warning.
    pub fn newest(folder: &Path) -> Option<Self> {
        found(folder).into_iter().find_map(|(_, place)| match Self::read(&place) {
            Ok(loaded) => Some(loaded),
            Err(error) => {
                tracing::warn!("skipping the damaged checkpoint `{}`: {error:#}", place.display());
                None
            }
        })
    }

    fn read(place: &Path) -> Result<Self> {
        let (counters, is_sealed): (Counters, bool) = files::read_sealed(&place.join(COUNTERS))?;
        let Counters { mut files, checksum, mut state } = counters;
        state.run.skipped += state.skipped;
        state.run.bad_in_a_row += state.bad_in_a_row;
        files.extend(checksum.map(|checksum| (TENSORS.to_owned(), checksum)));
        for name in files.keys().map(String::as_str).chain([TENSORS]) {
            let found = files::checksum(&place.join(name))?;
            if files.get(name) != Some(&found) {
                let expected = files.get(name).map_or("none", String::as_str);
                return Err(fault(format!("`{name}` has checksum {found}, expected {expected}")).into());
            }
        }
        if !place.ends_with(format!("step-{}", state.step)) {
            return Err(fault(format!("`{COUNTERS}` is of step {}", state.step)).into());
        }
        if !is_sealed {
            tracing::warn!(
                "`{}` has no checksum, as in older versions; its counters are used unchecked",
                place.join(COUNTERS).display()
            );
        }
        Ok(Self { state, tensors: TensorFile::open(&place.join(TENSORS))?, place: place.to_owned() })
    }

    /// Returns the counters.
    pub fn state(&self) -> &TrainState {
        &self.state
    }

    /// Returns its folder.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Checks that it belongs to the run of `plan`.
    ///
    /// # Errors
    /// When it belongs to another run.
    pub fn check(&self, plan: &RunPlan) -> Result<()> {
        let TrainState { fingerprint, step, .. } = &self.state;
        let is_known = *fingerprint == plan.fingerprint || plan.earlier.contains(fingerprint);
        if !is_known || *step > plan.steps {
            return Err(fault(format!(
                "the checkpoint `{}` belongs to another run: recipe, data or base differs",
                self.place.display()
            ))
            .hint("resume with the recipe and data of the run, or train into another folder")
            .into());
        }
        Ok(())
    }

    /// Restores the tensors of run `run` and returns its counters.
    ///
    /// # Errors
    /// When the checkpoint belongs to another run.
    pub fn restore(self, plan: &RunPlan, run: usize, optimizer: &mut AdamW) -> Result<TrainState> {
        self.check(plan)?;
        optimizer
            .restore(run, |name| self.tensors.tensor(name))
            .with_context(|| format!("cannot resume from `{}`", self.place.display()))?;
        // The one of an earlier release may have depended on what the run has changed since.
        Ok(TrainState { fingerprint: plan.fingerprint.clone(), ..self.state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(values: &[f64]) -> RunState {
        let mut run = RunState::new(Stream::seeded(0));
        for (step, value) in (1..).zip(values) {
            run.note(EvalRecord { step, epoch: 0.0, metrics: BTreeMap::new() }, *value);
        }
        run
    }

    #[test]
    fn only_a_larger_value_is_an_improvement() {
        let cases: [(&[f64], u64, Option<f64>, u64); 6] = [
            (&[0.5], 1, Some(0.5), 0),
            (&[0.5, 0.5, 0.4], 1, Some(0.5), 2),
            (&[0.5, 0.4, 0.6], 3, Some(0.6), 0),
            (&[0.5, 0.6, 0.6], 2, Some(0.6), 1),
            (&[f64::NAN, 0.1, f64::NAN], 2, Some(0.1), 1),
            (&[0.1, f64::NAN], 1, Some(0.1), 1),
        ];
        for (values, best, value, without) in cases {
            let run = noted(values);
            let best_step = run.best.as_ref().map(|record| record.step);
            assert_eq!(
                (best_step, run.best_value, run.without_improvement),
                (Some(best), value, without),
                "{values:?}"
            );
            assert_eq!(run.last.map(|record| record.step), Some(values.len() as u64));
        }
    }

    #[test]
    fn a_run_stops_when_it_went_so_many_evaluations_without_improvement() {
        let stops = |values: &[f64]| [0, 1, 2, 3].map(|patience| noted(values).stopped_early(patience));
        assert_eq!(stops(&[0.5, 0.4]), [false, true, false, false]);
        assert_eq!(stops(&[0.5, 0.4, 0.3]), [false, true, true, false]);
        assert_eq!(stops(&[0.5, 0.4, 0.3, 0.6]), [false; 4]);
    }

    #[test]
    fn the_mean_loss_is_of_the_steps_since_the_last_log_point() {
        let mut run = noted(&[]);
        run.add_loss(1.0);
        run.add_loss(4.0);
        assert_eq!((run.take_mean_loss(), run.losses), (2.5, 0));
        run.add_loss(3.0);
        assert_eq!(run.take_mean_loss(), 3.0);
        assert!(run.take_mean_loss().is_nan());
    }
}
