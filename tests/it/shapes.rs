//! Rows of every shape that people hold, recognised by their columns: token ids and loss masks against TRL, and what is wrong.

use std::fs;
use std::path::PathBuf;

use loraxs::data::catalog::Catalog;
use loraxs::data::dataset::Dataset;
use loraxs::data::examples::load_in;
use loraxs::data::recognise::complete;
use loraxs::data::split::Split;
use loraxs::data::tokenize::Tokenizer;
use loraxs::data::{Examples, Truncation};
use loraxs::fault::Result;
use serde_json::Value;

use crate::support::{fixture, json};

/// A data set `mine` of one file of JSON lines, and a cache.
struct Mine(tempfile::TempDir);

impl Mine {
    fn new(entry: &str, rows: &[Value]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(folder.path().join("rows.jsonl"), lines).unwrap();
        let text = format!("[mine]\n{entry}files = {{ train = \"rows.jsonl\" }}\n");
        fs::write(folder.path().join("datasets.toml"), text).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn examples(&self, length: usize) -> Result<(&'static str, Examples)> {
        let tokenizer = Tokenizer::load(&fixture("shapes"))?;
        let catalog = Catalog::builtin()?.with_file(&self.path("datasets.toml"))?;
        let dataset = match catalog.entry("mine") {
            Some((keys, folder)) => complete("mine", keys, &folder, &Dataset::local_files)?,
            None => catalog.get("mine")?.clone(),
        };
        let files = dataset.local_files("train")?;
        let split = Split { dataset: &dataset, name: "train", files: &files, limit: 0 };
        Ok((dataset.task.name(), load_in(&self.path("cache"), &split, &tokenizer, length)?))
    }
}

/// CRC-32 of numbers as little-endian 32-bit words.
fn crc(numbers: impl Iterator<Item = u32>) -> u32 {
    let mut sum = flate2::Crc::new();
    numbers.for_each(|number| sum.update(&number.to_le_bytes()));
    sum.sum()
}

#[test]
fn every_shape_has_the_tokens_and_masks_of_trl() {
    let shapes: serde_json::Map<String, Value> = json(&fixture("shapes/rows.json"));
    let tasks = ["chat", "chat", "chat", "instruction", "text", "instruction"];
    assert_eq!(shapes.len(), tasks.len());
    for ((name, shape), task) in shapes.iter().zip(tasks) {
        let rows = shape["rows"].as_array().unwrap();
        let mine = Mine::new("", rows);
        let (_, whole) = mine.examples(4096).unwrap();
        let lengths = shape.as_object().unwrap().iter().filter_map(|(k, v)| Some((k.parse().ok()?, v)));
        for (length, expected) in lengths.collect::<Vec<(usize, &Value)>>() {
            let (found, Examples { examples, truncation, .. }) = mine.examples(length).unwrap();
            assert_eq!(found, task, "{name}");
            let made = serde_json::json!({
                "rows": examples.len(),
                "tokens": examples.iter().map(|e| e.ids.len()).sum::<usize>(),
                "targets": examples.iter().flat_map(|e| &e.trained).map(|t| usize::from(*t)).sum::<usize>(),
                "ids": crc(examples.iter().flat_map(|e| e.ids.clone())),
                "mask": crc(examples.iter().flat_map(|e| &e.trained).map(|t| u32::from(*t))),
            });
            assert_eq!(made, *expected, "{name} at {length}");
            // What is cut off is counted by the rows as they were.
            let of_rows =
                || examples.iter().map(|e| &whole.examples[e.index]).filter(|e| e.ids.len() > length);
            let lost = of_rows().filter(|e| e.trained[length..].contains(&1)).count();
            let longest = examples.iter().map(|e| whole.examples[e.index].ids.len()).max().unwrap();
            assert_eq!(
                truncation,
                Truncation { rows: of_rows().count(), longest, without_end: lost },
                "{name}"
            );
        }
        assert_eq!(whole.truncation.longest as u64, shape["longest"].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn rows_of_a_wrong_shape_are_told() {
    let said = serde_json::json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    for (entry, row, words) in [
        ("", serde_json::json!({"body": "a"}), "`mine` does not say its `task`, nor do its columns `body`"),
        (
            "",
            serde_json::json!({"conversations": [{"from": "narrator", "value": "a"}]}),
            "unknown `from`: `narrator`; known are `human`",
        ),
        (
            "",
            serde_json::json!({"messages": said, "tools": "no list"}),
            "column `tools` holds a text that is not JSON",
        ),
        (
            "",
            serde_json::json!({"messages": said, "tools": "{\"name\": 3}"}),
            "column `tools`: expected a list of objects, found an object",
        ),
        (
            "",
            serde_json::json!({"text": "", "label": 1}),
            "data set: `mine.labels`: expected at least two labels, found 1",
        ),
        (
            "task = \"text\"\ntext = \"{body} {other}\"\n",
            serde_json::json!({"body": "a"}),
            "has no column `other`",
        ),
        (
            "text = \"{[body: x\"\n",
            serde_json::json!({"body": "a"}),
            "the optional part at character 1 has no end",
        ),
        (
            "prompt = \"{q}\"\nresponse = \"{a}\"\n",
            serde_json::json!({"q": "a", "b": "c"}),
            "has no column `a`",
        ),
        (
            "task = \"chat\"\nprompt = \"before\"\n",
            serde_json::json!({"messages": said}),
            "has no column `before`",
        ),
        ("task = \"text\"\n", serde_json::json!({"text": " "}), "the text is empty"),
    ] {
        let error = format!("{:#}", Mine::new(entry, &[row]).examples(64).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
}
