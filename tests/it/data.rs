//! Local files to tokenised examples: wrong input, the cache, and token ids against Transformers.

use std::fs;
use std::path::{Path, PathBuf};

use loraxs::data::catalog::Catalog;
use loraxs::data::examples::load_in;
use loraxs::data::row::Wanted;
use loraxs::data::rows::Rows;
use loraxs::data::split::Split;
use loraxs::data::tokenize::Tokenizer;
use loraxs::data::{Examples, Label};
use loraxs::fault::{Result, hint_of};
use serde_json::{Value, json};

/// A catalog entry, its files and a cache in a folder of their own.
struct Workplace {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

const PAIRS: &str =
    "task = \"classification\"\ntext = [\"one\", \"two\"]\nlabel = \"gold\"\nlabels = [\"no\", \"yes\"]\n";
const SCORES: &str = "task = \"regression\"\ntext = \"one\"\nlabel = \"gold\"\n";

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { tokenizer: tokenizer(folder.path(), "[PAD] [UNK] [CLS] [SEP] a b c d"), folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn cached(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("cache")).unwrap().map(|e| e.unwrap().path()).collect()
    }

    /// Loads `split` of an entry whose files are written first; the length is 16.
    fn load(&self, entry: &str, split: &str, files: &[(&str, &str)], limit: usize) -> Result<Examples> {
        let names: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        for (name, text) in files {
            fs::write(self.path(name), text).unwrap();
        }
        let path = self.path("datasets.toml");
        fs::write(&path, format!("[mine]\n{entry}files = {{ {split} = {names:?} }}\n")).unwrap();
        let catalog = Catalog::builtin()?.with_file(&path)?;
        let dataset = catalog.get("mine")?;
        let files = dataset.local_files(split)?;
        let split = Split { dataset, name: split, files: &files, limit };
        load_in(&self.path("cache"), &split, &self.tokenizer, 16)
    }

    fn fails(&self, entry: &str, split: &str, file: (&str, &str)) -> (String, String) {
        let error = self.load(entry, split, &[file], 0).unwrap_err();
        let folder = self.folder.path().display().to_string();
        let message = format!("{error:#}").replace(&folder, "F");
        (message, hint_of(&error).unwrap_or_default().to_owned())
    }
}

/// A BERT tokenizer that knows these words.
fn tokenizer(folder: &Path, words: &str) -> Tokenizer {
    let vocab: serde_json::Map<String, Value> =
        words.split(' ').enumerate().map(|(i, word)| (word.to_owned(), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(folder.join("config.json"), "{\"model_type\": \"bert\"}").unwrap();
    Tokenizer::load(folder).unwrap()
}

#[test]
fn files_of_a_split_follow_each_other_and_unusable_rows_keep_their_index() {
    let place = Workplace::new();
    let lines = "{\"one\": \"a\", \"two\": \"b\", \"gold\": 1}\n{\"one\": null, \"two\": \"b\", \"gold\": 1}\nnot json\n\
                 {\"one\": \"a b\", \"two\": \"c\", \"gold\": \"no\"}\n{\"one\": \"a\", \"two\": \"b\", \"gold\": -1}\n";
    let table = "gold,one,two\n1,d,\"a,b\"\n0,a\n0,5,\n";
    let files = [("a.jsonl", lines), ("b.csv", table)];
    let found = place.load(PAIRS, "train", &files, 0).unwrap();
    let rows: Vec<(usize, &[u32], Option<Label>)> =
        found.examples.iter().map(|e| (e.index, e.ids.as_slice(), e.label.clone())).collect();
    assert_eq!(
        rows,
        [
            (0, &[2, 4, 3, 5, 3][..], Some(Label::Class(1))),
            // Of a pair with one empty cell, the other text is used.
            (1, &[2, 3, 5, 3][..], Some(Label::Class(1))),
            (3, &[2, 4, 5, 3, 6, 3][..], Some(Label::Class(0))),
            (5, &[2, 7, 3, 4, 1, 5, 3][..], Some(Label::Class(1))),
            (7, &[2, 1, 3, 3][..], Some(Label::Class(0))),
        ]
    );
    assert_eq!(found.examples[0].types, [0, 0, 0, 1, 1]);
    assert_eq!((found.skipped.count, found.skipped.first.len(), found.truncation.rows), (3, 3, 0));
    let first = found.skipped.first.join("|").replace(&place.folder.path().display().to_string(), "F");
    assert_eq!(
        first,
        "`F/a.jsonl` line 3: not valid JSON: expected ident at column 2|`F/a.jsonl` line 5: column `gold` holds no label|\
         `F/b.csv` line 3: expected 3 columns, found 2"
    );
    let two = place.load(PAIRS, "train", &files, 2).unwrap();
    assert_eq!(two.examples, found.examples[..2]);
    assert_ne!(two.hash, found.hash);
}

#[test]
fn numbers_that_are_none_are_skipped_and_counted() {
    let place = Workplace::new();
    let file = (
        "a.jsonl",
        "{\"one\": NaN, \"gold\": 1}\n{\"one\": 1e400, \"gold\": 1}\n{\"one\": \"a\", \"gold\": NaN}\n",
    );
    let (message, _) = place.fails(SCORES, "train", file);
    let rows = [
        "line 1: column `one` holds `NaN`, which is no value",
        "line 2: column `one` holds `1e400`, which is no finite number",
        "line 3: column `gold` holds no label",
    ];
    rows.iter().for_each(|row| assert!(message.contains(row), "{message}"));
    let used = "{\"one\": \"a\", \"gold\": 2, \"other\": [NaN, Infinity]}\n{\"one\": null, \"gold\": 1}\n";
    let found = place.load(SCORES, "train", &[("b.jsonl", used), ("c.csv", "one,gold\nNaN,1\n")], 0).unwrap();
    assert_eq!((found.examples.len(), found.skipped.count), (2, 1));
    // What is not used may be of any size and depth.
    let deep =
        format!("{{\"one\": \"a\", \"other\": {}{}, \"gold\": 2}}\n", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(place.load(SCORES, "train", &[("deep.jsonl", &deep)], 0).unwrap().skipped.count, 0);
    // A label without a value is that of a test split.
    let tests = place.load(SCORES, "test", &[("d.jsonl", "{\"one\": \"a\", \"gold\": NaN}\n")], 0).unwrap();
    assert_eq!(tests.examples[0].label, None);
}

#[test]
fn a_label_outside_the_catalog_stops_with_file_row_value_and_labels() {
    let place = Workplace::new();
    let (message, hint) = place.fails(PAIRS, "train", ("a.csv", "one,two,gold\na,b,1\na,b,2\n"));
    assert_eq!(message, "`F/a.csv` line 3: label `2` is none of the 2 labels in the catalog");
    assert_eq!(hint, "labels: `no`, `yes`, or their numbers from 0");
    let (message, hint) = place.fails(PAIRS, "train", ("b.json", r#"[{"one":"a","two":"b","gold":"yess"}]"#));
    assert_eq!(message, "`F/b.json` row 1: label `yess` is none of the 2 labels in the catalog");
    assert!(hint.starts_with("did you mean `yes`? "), "{hint}");
}

#[test]
fn a_missing_column_is_answered_with_those_that_exist() {
    let place = Workplace::new();
    let (message, hint) = place.fails(PAIRS, "train", ("a.tsv", "one\ttoo\tgold\na\tb\t1\n"));
    assert_eq!(message, "`F/a.tsv` has no column `two`");
    assert_eq!(hint, "did you mean `too`? columns: `gold`, `one`, `too`");
    let (message, _) = place.fails(SCORES, "train", ("a.tsv", "one\tscore\na\t1\n"));
    assert_eq!(message, "`F/a.tsv` has no column `gold`");
}

#[test]
fn a_split_without_one_usable_row_is_an_error_that_says_why() {
    let place = Workplace::new();
    let (message, _) = place.fails(SCORES, "train", ("a.csv", "one,gold\na,NaN\nb,high\nc,\n"));
    assert_eq!(
        message,
        "no row of `mine` train can be used: `F/a.csv` line 2: label `NaN` is not a finite number; \
         `F/a.csv` line 3: expected a number as label, found `high`; \
         `F/a.csv` line 4: column `gold` holds no label"
    );
    let (message, hint) = place.fails(SCORES, "train", ("b.jsonl", "x\n[1]\n"));
    assert!(
        message.starts_with("no row of `mine` train can be used: `F/b.jsonl` line 1: not valid JSON"),
        "{message}"
    );
    assert_eq!(hint, "each line must be one JSON object");
    let (_, hint) = place.fails(SCORES, "train", ("b.jsonl", "{\"one\": null, \"gold\": 1}\nx\n"));
    assert_eq!(hint, "see `text`, `label` and `labels` of its catalog entry");
}

#[test]
fn a_file_of_another_form_than_its_name_says_is_refused_before_its_rows() {
    let place = Workplace::new();
    // The last element of the list would be a line of its own.
    let rows = "[\n{\"one\": \"a\", \"gold\": 1},\n{\"one\": \"b\", \"gold\": 2}\n]\n";
    let (message, hint) = place.fails(SCORES, "train", ("a.jsonl", rows));
    assert_eq!(message, "`F/a.jsonl` has JSON, but not one object per line");
    assert_eq!(hint, "name it `a.json`");
    assert_eq!(place.load(SCORES, "train", &[("a.json", rows)], 0).unwrap().examples.len(), 2);
    let (message, hint) = place.fails(SCORES, "train", ("a.csv", "{\"one\":\"a\",\"gold\":1}\n"));
    assert_eq!(message, "`F/a.csv` line 1: expected the column names, found JSON");
    assert_eq!(hint, "JSON lines are named `.jsonl`, other JSON `.json`");
    let (message, hint) = place.fails(SCORES, "train", ("b.csv", "one;gold\na, b;1,5\n"));
    assert_eq!(message, "`F/b.csv` has no column `one`");
    assert!(
        hint.starts_with("columns are separated by commas in a `.csv` file, by tabs in a `.tsv`"),
        "{hint}"
    );
}

#[test]
fn what_stands_in_the_place_of_a_data_file_is_told() {
    let place = Workplace::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132735\n";
    let page = "\u{feff}\n<!DOCTYPE html>\n<html lang=\"en\">\n";
    for name in ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.parquet.gz"] {
        let (message, hint) = place.fails(SCORES, "train", (name, pointer));
        assert_eq!(message, format!("`F/{name}` is a Git LFS pointer, not the file itself"));
        assert_eq!(hint, "fetch it with `git lfs pull`, or download it from the hub");
        let (message, hint) = place.fails(SCORES, "train", (name, page));
        assert_eq!(message, format!("`F/{name}` is an HTML page"));
        assert!(hint.starts_with("download the file itself; "), "{hint}");
    }
}

#[test]
fn test_splits_need_no_labels() {
    let place = Workplace::new();
    let labels = |entry: &str, text: &str| -> Vec<Option<Label>> {
        let found = place.load(entry, "test_matched", &[("t.csv", text)], 0).unwrap();
        found.examples.iter().map(|e| e.label.clone()).collect()
    };
    assert_eq!(labels(PAIRS, "one,two,gold\na,b,-1\na,b,1\n"), [None, Some(Label::Class(1))]);
    assert_eq!(labels(PAIRS, "one,two\na,b\n"), [None]);
    assert_eq!(labels(SCORES, "one,gold\na,-1.0\nb,-1.0\n"), [None, None]);
    assert_eq!(
        labels(SCORES, "one,gold\na,-1.0\nb,2\n"),
        [Some(Label::Value(-1.0)), Some(Label::Value(2.0))]
    );
}

#[test]
fn the_cache_follows_files_and_settings_and_heals() {
    let mut place = Workplace::new();
    let file = ("a.csv", "one,gold\na b,1\nc,2\n");
    let first = place.load(SCORES, "train", &[file], 0).unwrap();
    let cached = place.cached();
    assert_eq!(cached.len(), 1);
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    let written = modified(&cached[0]);
    assert_eq!(place.load(SCORES, "train", &[file], 0).unwrap(), first);
    assert_eq!((place.cached().len(), modified(&cached[0])), (1, written));

    fs::write(&cached[0], b"lxstok01 and then nothing that makes sense").unwrap();
    assert_eq!(place.load(SCORES, "train", &[file], 0).unwrap(), first);
    assert!(fs::metadata(&cached[0]).unwrap().len() > 60, "the damaged file stays");

    let other = place.load(SCORES, "train", &[("a.csv", "one,gold\na b,1\nd,2\n")], 0).unwrap();
    assert_eq!(other.examples[1].ids, [2, 7, 3]);
    place.tokenizer = tokenizer(place.folder.path(), "[PAD] [UNK] [CLS] [SEP] d c b a");
    let other = place.load(SCORES, "train", &[file], 0).unwrap();
    assert_eq!(other.examples[0].ids, [2, 7, 6, 3]);
    assert_eq!(place.cached().len(), 3);
}

#[test]
fn a_cache_that_cannot_be_written_does_not_stop_the_work() {
    let place = Workplace::new();
    fs::write(place.path("cache"), "a file where the folder would be").unwrap();
    assert_eq!(place.load(SCORES, "train", &[("a.csv", "one,gold\na,1\n")], 0).unwrap().examples.len(), 1);
}

#[test]
fn a_missing_file_and_a_length_too_short_are_told() {
    let place = Workplace::new();
    fs::write(place.path("datasets.toml"), format!("[mine]\n{PAIRS}files = {{ train = \"no.csv\" }}\n"))
        .unwrap();
    let catalog = Catalog::builtin().unwrap().with_file(&place.path("datasets.toml")).unwrap();
    let dataset = catalog.get("mine").unwrap();
    assert!(dataset.local_files("train").unwrap_err().to_string().starts_with("no file `no.csv` in `/"));
    let files = [place.path("no.csv")];
    let split = Split { dataset, name: "train", files: &files, limit: 0 };
    let error = load_in(&place.path("cache"), &split, &place.tokenizer, 16).unwrap_err();
    assert!(format!("{error:#}").contains("no.csv`: No such file"), "{error:#}");
    fs::write(&files[0], "one,two,gold\na,b,1\n").unwrap();
    let error = load_in(&place.path("cache"), &split, &place.tokenizer, 2).unwrap_err().to_string();
    assert_eq!(error, "`max_length` is 2, but the special tokens alone are 3");
}

/// Folder of checkpoints, tokenizers and data that the repository does not carry.
pub fn test_data() -> Option<PathBuf> {
    let folder = std::env::var_os("LORAXS_TEST_DATA").map(PathBuf::from);
    if folder.is_none() {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("skipped: LORAXS_TEST_DATA names no folder");
        }
    }
    folder
}

pub fn crc(rows: impl Iterator<Item = Vec<u32>>) -> u32 {
    let mut crc = flate2::Crc::new();
    for row in rows {
        let bytes: Vec<u8> = row.into_iter().flat_map(u32::to_le_bytes).collect();
        crc.update(&bytes);
    }
    crc.sum()
}

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).unwrap()
}

/// `scripts/reference/encoder_parity.py` wrote the folders and the tokens that Transformers makes of their data.
#[test]
fn examples_of_the_tiny_checkpoints_are_those_of_transformers() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/encoders");
    let catalog = Catalog::builtin().unwrap().with_file(&fixtures.join("data/datasets.toml")).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for entry in fs::read_dir(&fixtures).unwrap() {
        let folder = entry.unwrap().path();
        let Ok(text) = fs::read_to_string(folder.join("expected.json")) else { continue };
        let expected: Value = serde_json::from_str(&text).unwrap();
        let tokenizer = Tokenizer::load(&folder).unwrap();
        let length = expected["max_length"].as_u64().unwrap() as usize;
        for name in catalog.names().filter(|name| expected[*name].is_array()) {
            let dataset = catalog.get(name).unwrap();
            let files = dataset.local_files("validation").unwrap();
            let split = Split { dataset, name: "validation", files: &files, limit: 0 };
            let found = load_in(cache.path(), &split, &tokenizer, length).unwrap();
            let list = expected[name].as_array().unwrap();
            assert_eq!(found.examples.len(), list.len(), "{name} {}", folder.display());
            for (example, expected) in found.examples.iter().zip(list) {
                assert_eq!(json!(example.ids), expected["input_ids"], "{name} {}", folder.display());
                let types =
                    if example.types.is_empty() { vec![0; example.ids.len()] } else { example.types.clone() };
                assert_eq!(json!(types), expected["token_type_ids"], "{name} {}", folder.display());
                compared += 1;
            }
        }
    }
    assert!(compared > 50, "{compared}");
}

/// `scripts/reference/tokenizer_parity.py` wrote the numbers.
#[test]
fn token_ids_of_real_sentences_and_pairs_are_those_of_transformers() {
    let Some(data) = test_data() else { return };
    let fixture: Value = serde_json::from_str(include_str!("fixtures/tokenizer_parity.json")).unwrap();
    let mut total = 0;
    for name in ["models/minilm-l6", "tokenizers/roberta-base"] {
        let tokenizer = Tokenizer::load(&data.join(name)).unwrap();
        let of_this = |list: &'static str| {
            fixture[list].as_array().unwrap().iter().filter(move |e| e["tokenizer"] == name)
        };
        for entry in of_this("unusual") {
            let length = entry["max_length"].as_u64().unwrap() as usize;
            let made =
                tokenizer.encode(entry["text"].as_str().unwrap(), entry["pair"].as_str(), length).unwrap();
            assert_eq!(json!(made.ids), entry["ids"], "{entry}");
            assert_eq!(json!(made.types), entry["types"], "{entry}");
        }
        for entry in of_this("files") {
            let mut file =
                Rows::open(&data.join(entry["file"].as_str().unwrap()), &Wanted::default()).unwrap();
            let columns = strings(&entry["columns"]);
            let limit = entry["rows"].as_u64().unwrap() as usize;
            let mut rows = Vec::new();
            while rows.len() < limit {
                rows.extend(file.next(limit - rows.len()).unwrap());
            }
            let texts: Vec<Vec<String>> = rows
                .iter()
                .map(|row| {
                    let row = row.columns.as_ref().unwrap();
                    columns.iter().map(|c| row[c].as_str().unwrap().to_owned()).collect()
                })
                .collect();
            let texts: Vec<(&str, Option<&str>)> =
                texts.iter().map(|t| (t[0].as_str(), t.get(1).map(String::as_str))).collect();
            let length = entry["max_length"].as_u64().unwrap() as usize;
            let encode = |(text, pair): &(&str, Option<&str>)| tokenizer.encode(text, *pair, length).unwrap();
            let made: Vec<_> = texts.iter().map(encode).collect();
            assert_eq!(json!(made.len()), entry["rows"], "{entry}");
            assert_eq!(json!(made.iter().map(|e| e.ids.len()).sum::<usize>()), entry["tokens"], "{entry}");
            assert_eq!(json!(crc(made.iter().map(|e| e.ids.clone()))), entry["ids"], "{entry}");
            let types = made.iter().map(|e| e.types.iter().map(|t| u32::from(*t)).collect());
            assert_eq!(json!(crc(types)), entry["types"], "{entry}");
            total += made.len();
        }
    }
    assert_eq!(total, 39_016);
}
