//! A study for other programs: one CSV line a run, and everything as JSON.

use serde_json::{Value, json};

use super::Study;
use super::record::{Record, SEED};
use super::settings::short_names;
use crate::fault::Result;

impl Study {
    /// Returns one line a run, with every varied key and number, as CSV.
    /// Fails where a value has no form there.
    pub fn csv(&self) -> Result<String> {
        let mut writer = csv::Writer::from_writer(Vec::new());
        let fixed = ["name", "source", "state", "task", "metric"];
        let numbers = [
            "best",
            "last",
            "best_step",
            "best_epoch",
            "steps",
            "adapter_parameters",
            "head_parameters",
            "base_parameters",
            "adapter_bytes",
            "train_seconds",
            "seconds",
            "examples_per_second",
            "tokens_per_second",
            "peak_memory_mib",
        ];
        let names = short_names(&self.keys);
        let names = names.iter().map(String::as_str);
        writer.write_record(
            fixed.into_iter().chain(names).chain(["seed"]).chain(numbers).chain(["device", "folder"]),
        )?;
        for record in &self.records {
            let text = |value: Option<&Value>| match value {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
            };
            let fixed = [&*record.name, &record.source, record.status.word(), &record.task, &record.metric]
                .map(str::to_owned);
            let values = self.keys.iter().map(|key| text(record.settings.get(key)));
            let seed = [text(record.settings.get(SEED))];
            let end = [record.device.clone(), record.folder.display().to_string()];
            writer.write_record(
                fixed.into_iter().chain(values).chain(seed).chain(numbers_of(record)).chain(end),
            )?;
        }
        writer.flush()?;
        Ok(String::from_utf8(writer.into_inner()?)?)
    }

    /// Returns everything that is known: settings, and runs with all their evaluations and log points, as JSON.
    /// Fails where a value has no form there.
    pub fn json(&self) -> Result<String> {
        let all = json!({
            "title": self.title,
            "method": self.method(),
            "varied": self.keys,
            "settings": self.settings,
            "runs": self.records,
        });
        Ok(serde_json::to_string_pretty(&all)?)
    }
}

fn numbers_of(record: &Record) -> [String; 14] {
    let whole = |value: Option<u64>| value.map(|value| value.to_string()).unwrap_or_default();
    // As in JSON, so that a number is the same everywhere.
    let float = |value: Option<f64>| value.map(|value| json!(value).to_string()).unwrap_or_default();
    let best = record.best.as_ref();
    [
        float(record.best_value()),
        float(record.last_value()),
        whole(best.map(|best| best.step)),
        float(best.and_then(|best| best.epoch)),
        whole(record.steps),
        whole(record.adapter_parameters),
        whole(record.head_parameters),
        whole(record.base_parameters),
        whole(record.adapter_bytes),
        float(record.train_seconds),
        float(record.seconds),
        float(record.examples_per_second),
        float(record.tokens_per_second),
        float(record.peak_memory_mib),
    ]
}
