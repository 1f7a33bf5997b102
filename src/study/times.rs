//! When a run began and ended, by its files: neither its log nor its results say so.

use std::fs;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};

use super::record::Record;
use crate::report::metrics_log::METRICS_FILE;

/// Begin and end of a run.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Its end less its seconds.
    pub started: DateTime<Utc>,
    /// The last change of its results, or of its log while it goes on.
    pub ended: DateTime<Utc>,
}

impl Times {
    /// Returns the times of a run; of a foreign result, those of its file.
    pub fn of(record: &Record) -> Self {
        let names = ["results.json", "failed.json", METRICS_FILE, ""];
        let changed =
            |name: &&str| fs::metadata(record.folder.join(name)).and_then(|about| about.modified()).ok();
        let ended = names.iter().find_map(changed).unwrap_or(SystemTime::UNIX_EPOCH);
        let seconds = record.seconds.or(record.train_seconds).unwrap_or(0.0);
        let lasted = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let started = ended.checked_sub(lasted).unwrap_or(ended);
        Self { started: started.into(), ended: ended.into() }
    }
}
