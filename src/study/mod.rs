//! Runs side by side: what they have in common, what differs, and what came of it.

mod export;
mod foreign;
mod harness;
pub mod mlflow;
mod page;
pub mod peft;
mod plot;
mod read;
pub mod record;
mod settings;
mod spectra;
mod table;
mod times;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::fault::{Result, fault};
use crate::recipe::Sweep;
use read::{FAILED, RECIPE};
pub use read::{last_change, records};
use record::{Record, Status};
use settings::{Setting, settings, short_names, shown, varied};
use table::SettingTable;

/// Runs to compare.
#[derive(Debug)]
pub struct Study {
    /// What it is called: the names of the folders.
    pub title: String,
    /// Every run.
    pub records: Vec<Record>,
    /// The keys in which settings differ.
    pub keys: Vec<String>,
    /// The runs that have ended, those that differ only in their seed together.
    pub settings: Vec<Setting>,
    /// Runs of a sweep that have not begun.
    pub waiting: usize,
}

impl Study {
    /// Reads the runs in `paths`, each a run or a folder of runs.
    /// Fails where there is no run.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let name = |path: &PathBuf| {
            let whole = path.canonicalize().unwrap_or_else(|_| path.clone());
            whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
        };
        let title = paths.iter().map(name).collect::<Vec<_>>().join(", ");
        let waiting = paths.iter().map(|path| waiting(path)).sum();
        Ok(Self { waiting, ..Self::of(title, records(paths)?) })
    }

    /// Fails where no run has finished.
    pub fn check(&self) -> Result<()> {
        if !self.settings.is_empty() {
            return Ok(());
        }
        let (count, failed) = (self.records.len(), self.count("failed"));
        Err(fault(format!("no finished run: {count} found, of which {failed} failed"))
            .hint("a run is finished when it has a `results.json`; wait, or continue with `loraxs train --resume`")
            .into())
    }

    /// Compares records.
    pub fn of(title: String, records: Vec<Record>) -> Self {
        let keys = varied(&records);
        let settings = settings(&records, &keys);
        Self { title, records, keys, settings, waiting: 0 }
    }

    /// Returns the table for a terminal.
    pub fn text(&self) -> String {
        SettingTable::of(self).text()
    }

    /// Returns the table in Markdown.
    pub fn markdown(&self) -> String {
        SettingTable::of(self).markdown(&self.title)
    }

    /// Returns the number of runs in a state.
    pub fn count(&self, state: &str) -> usize {
        self.records.iter().filter(|record| record.status.word() == state).count()
    }

    /// Returns true if no run goes on or is still to begin.
    pub fn is_over(&self) -> bool {
        self.waiting == 0 && self.records.iter().all(|record| record.status.is_end())
    }

    /// Returns what all settings have in common, with its name.
    pub fn constants(&self) -> Vec<(String, String)> {
        const TOLD: [&str; 14] = [
            "model.name",
            "adapter.method",
            "adapter.rank",
            "adapter.alpha",
            "adapter.targets",
            "data.max_length",
            "data.limit",
            "train.epochs",
            "train.max_steps",
            "train.batch_size",
            "train.learning_rate",
            "train.head_learning_rate",
            "train.schedule",
            "train.precision",
        ];
        let one = |values: Vec<String>| {
            let first = values.first()?.clone();
            (!first.is_empty() && values.iter().all(|value| *value == first)).then_some(first)
        };
        let of = |get: &dyn Fn(&Record) -> String| one(self.records.iter().map(get).collect());
        let mut found: Vec<(String, String)> = Vec::new();
        found.extend(of(&|record| record.task.clone()).map(|task| ("task".to_owned(), task)));
        found.extend(of(&|record| record.metric.clone()).map(|metric| ("metric".to_owned(), metric)));
        let told: Vec<String> = TOLD.iter().map(|key| (*key).to_owned()).collect();
        for (key, name) in told.iter().zip(short_names(&told)) {
            let first = self.records.iter().find_map(|record| record.settings.get(key));
            let same = |value: &Value| {
                self.records.iter().all(|record| record.settings.get(key).is_none_or(|other| other == value))
            };
            let is_set = |value: &&Value| shown(value) != "–" && value.as_f64() != Some(0.0);
            found.extend(first.filter(is_set).filter(|value| same(value)).map(|value| (name, shown(value))));
        }
        found.extend(of(&|record| record.device.clone()).map(|device| ("device".to_owned(), device)));
        found
    }

    /// Returns how the table's numbers come about, in a sentence.
    pub fn method(&self) -> &'static str {
        "median ± sample standard deviation over seeds, each run at its best epoch, selected by the validation metric that is \
         reported, as in the papers; beside it the last epoch"
    }

    /// Returns the runs that are not in the table: failed and unfinished ones, with why.
    pub fn left_out(&self) -> Vec<(&str, String)> {
        let why = |record: &Record| match &record.status {
            Status::Failed { error, step: Some(step) } => format!("failed at step {step}: {error}"),
            Status::Failed { error, step: None } => format!("failed: {error}"),
            Status::Unfinished => {
                let steps = record.steps.map(|steps| format!(" after step {steps}")).unwrap_or_default();
                format!("unfinished{steps}")
            }
            Status::Stopped => format!("stopped by halving after step {}", record.steps.unwrap_or(0)),
            Status::Finished => String::new(),
        };
        self.records
            .iter()
            .map(|record| (&*record.name, why(record)))
            .filter(|(_, why)| !why.is_empty())
            .collect()
    }
}

/// Returns how many runs of the sweep in `folder` have not begun; none where it is no sweep.
fn waiting(folder: &Path) -> usize {
    let Ok(sweep) = Sweep::of_folder(folder) else { return 0 };
    let has_begun = |name: &str| [RECIPE, FAILED].iter().any(|file| folder.join(name).join(file).exists());
    sweep.runs.iter().filter(|run| !has_begun(&run.name)).count()
}
