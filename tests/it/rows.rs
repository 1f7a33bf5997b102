//! Files of rows: which rows they hold, what of them is text, and how much memory they take.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use loraxs::data::row::{Columns, Wanted};
use loraxs::data::rows::Rows;
use loraxs::data::template::cell;
use serde_json::Value;

use crate::bench::Bench;
use crate::support::{fixture, json};

/// All readable rows of a file.
fn rows(path: &Path) -> Vec<Columns> {
    Rows::open(path, &Wanted::default())
        .unwrap()
        .next(100)
        .unwrap()
        .into_iter()
        .map(|r| r.columns.unwrap())
        .collect()
}

/// `scripts/reference/parquet_types.py` wrote the file and what Python prints.
#[test]
fn values_of_parquet_are_the_texts_that_python_prints() {
    let expected: serde_json::Map<String, Value> = json(&fixture("rows/types.json"));
    let rows = rows(&fixture("rows/types.parquet"));
    assert_eq!((expected.len(), rows.len()), (36, 2));
    for (column, texts) in &expected {
        for (row, text) in rows.iter().zip(texts.as_array().unwrap()) {
            let found = cell(column, row.get(column)).map_or(Value::Null, Value::String);
            assert_eq!(found, *text, "{column}");
        }
    }
    let refused = |column: &str| cell(column, rows[0].get(column)).unwrap_err();
    assert_eq!(refused("nan64"), "column `nan64` holds `NaN`, which is no value");
    assert_eq!(refused("list_of_nan"), "column `list_of_nan` holds `NaN`, which is no value");
    assert_eq!(refused("bytes"), "column `bytes` holds bytes that are not UTF-8 text");
    assert_eq!(refused("list"), "column `list`: expected a text, found a list");
}

/// The most memory that a training's start takes with one file of data, in bytes, and what it says.
fn start(bench: &Bench, name: &str, sets: &[&str]) -> (usize, String) {
    let entry = "task = \"classification\"\ntext = [\"one\"]\nlabel = \"gold\"\nlabels = [\"no\", \"yes\"]\n";
    let files = format!("files = {{ train = {name:?}, validation = \"few.jsonl\" }}\n");
    fs::write(bench.path("few.jsonl"), "{\"one\": \"a\", \"gold\": 1}\n".repeat(4)).unwrap();
    fs::write(bench.path("my.toml"), format!("[\"my/data\"]\n{entry}{files}")).unwrap();
    let mut args =
        vec!["train", "--recipe", "recipe.toml", "--datasets", "my.toml", "--out", "run", "--dry-run"];
    args.extend(["--threads", "1", "--set", "data.dataset=my/data"]);
    sets.iter().for_each(|set| args.extend(["--set", set]));
    let errors = bench.path("errors");
    let mut command = bench.bare(&args);
    let mut child = command.stdout(Stdio::null()).stderr(fs::File::create(&errors).unwrap()).spawn().unwrap();
    // What the system tells at the end counts the memory of this process too, which the child shared before it began.
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let kib = text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        peak = peak.max(kib.map_or(0, |kib| kib.parse::<usize>().unwrap() * 1024));
        std::thread::sleep(Duration::from_millis(2));
    }
    let said = fs::read_to_string(errors).unwrap();
    // The base's head has three outputs.
    let other =
        said.split_inclusive('\n').filter(|line| !line.contains("initialised at random: `classifier`"));
    (peak, other.collect())
}

#[test]
fn memory_is_a_small_multiple_of_what_is_read() {
    let bench = Bench::new();
    let text = "some words and others, and more of them, which a tokenizer cuts into pieces of its own";
    let lines = format!("{{\"one\": \"{text}\", \"gold\": 1}}\n").repeat(60_000);
    fs::write(bench.path("many.jsonl"), &lines).unwrap();
    let list = format!("[{}{{\"one\": \"b\", \"gold\": 0}}]", lines.replace('\n', ",\n"));
    fs::write(bench.path("many.json"), &list).unwrap();
    let csv = format!("one,gold\n{}", format!("\"{text}\",1\n").repeat(60_000));
    fs::write(bench.path("many.csv"), &csv).unwrap();
    // A start ends between two looks, so that one of a few rows may seem smaller than it is.
    let few = (0..4).map(|_| start(&bench, "few.jsonl", &[]).0).max().unwrap();
    for name in ["many.jsonl", "many.json", "many.csv"] {
        let size = fs::metadata(bench.path(name)).unwrap().len() as usize;
        // Of two, since what the C library keeps for its threads differs from start to start.
        let all = (0..2).map(|_| start(&bench, name, &[]).0).min().unwrap();
        assert!(all < few + 4 * size, "{name}: {few} and {all} for {size}");
        let (first, _) = start(&bench, name, &["data.limit=100"]);
        assert!(first < few + size, "{name}: {few} and {first} for the first rows of {size}");
    }
}

#[test]
fn what_no_key_names_takes_no_memory() {
    let bench = Bench::new();
    let (few, _) = start(&bench, "few.jsonl", &[]);
    for other in ["NaN,".repeat(600_000), "[1,".repeat(3) + &"1,".repeat(1_200_000)] {
        let closed = "]".repeat(other.matches('[').count());
        let row = format!("{{\"one\": \"a\", \"other\": [{other}1]{closed}, \"gold\": 1}}\n");
        fs::write(bench.path("other.jsonl"), row).unwrap();
        let (peak, said) = start(&bench, "other.jsonl", &[]);
        assert!(said.is_empty() && peak < few + (100 << 20), "{few} and {peak}: {said}");
    }
}

#[test]
fn a_file_that_unpacks_without_end_is_refused_early() {
    let bench = Bench::new();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(b"{\"one\": \"").unwrap();
    let piece = vec![b'a'; 1 << 20];
    (0..400).for_each(|_| packed.write_all(&piece).unwrap());
    fs::write(bench.path("bomb.jsonl.gz"), packed.finish().unwrap()).unwrap();
    let (few, _) = start(&bench, "few.jsonl", &[]);
    let (peak, said) = start(&bench, "bomb.jsonl.gz", &[]);
    assert!(said.contains("bomb.jsonl.gz` line 1: a row of more than 64 MiB"), "{said}");
    assert!(peak < few + (200 << 20), "{few} and {peak}");
}

#[test]
fn a_file_of_very_many_columns_is_read_in_time_that_grows_with_it() {
    let bench = Bench::new();
    let names: Vec<String> = (0..100_000).map(|i| format!("column{i}")).collect();
    let wide = format!("one,gold,{}\na,1{}\n", names.join(","), ",x".repeat(names.len()));
    fs::write(bench.path("wide.csv"), wide).unwrap();
    let begun = Instant::now();
    let (_, said) = start(&bench, "wide.csv", &[]);
    assert_eq!(said, "");
    let wrong = format!("two,gold,{}\na,1{}\n", names.join(","), ",x".repeat(names.len()));
    fs::write(bench.path("wide.csv"), wrong).unwrap();
    let (_, said) = start(&bench, "wide.csv", &[]);
    assert!(said.contains("wide.csv` has no column `one`") && said.len() < 2000, "{said}");
    assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
}
