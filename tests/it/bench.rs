//! A place with copies of fixtures to break, and what an error must look like.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Map, Value, json};

use crate::forked;
use crate::support::{Place, encoders, errors};

/// A place with copies of fixtures to break.
pub struct Bench(pub Place);

/// The first layer that adapters of the fixtures go on.
pub const QUERY: &str = "bert.encoder.layer.1.attention.self.query.weight";

impl Bench {
    /// A place with `recipe.toml` for a small BERT.
    pub fn new() -> Self {
        let bench = Self(Place::new());
        bench.recipe(&encoders().join("bert-gelu"), "tiny/pairs");
        bench
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    pub fn recipe(&self, model: &Path, dataset: &str) {
        let text = format!(
            "[model]\nname = {model:?}\n[adapter]\nrank = 4\nalpha = 4\n[data]\ndataset = {dataset:?}\n\
             max_length = 24\n[train]\nmax_steps = 2\nbatch_size = 8\n"
        );
        fs::write(self.path("recipe.toml"), text).unwrap();
    }

    /// The command without the options that `Place` gives it.
    pub fn bare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
        command.args(args).env("LORAXS_CACHE", self.path("cache")).env("HF_HUB_OFFLINE", "1");
        command.env("HF_HOME", self.path("hub")).env("RUST_BACKTRACE", "1").current_dir(self.path("."));
        command
    }

    /// The command with the catalog of the fixtures ends with `code` and one error that holds all `words`.
    pub fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        check_with_rehearsal(args, code, words, &|args| {
            let mut command = self.0.command(args);
            command.env("RUST_BACKTRACE", "1").env("HF_HOME", self.path("hub"));
            command
        });
    }

    /// As [`Bench::refuses`], for a training with `set`.
    pub fn refuses_set(&self, set: &str, code: i32, words: &[&str]) {
        self.refuses(&["train", "--recipe", "recipe.toml", "--out", "run", "--set", set], code, words);
    }

    /// As [`Bench::refuses`], for an evaluation of a checkpoint.
    pub fn refuses_model(&self, model: &Path, words: &[&str]) {
        self.refuses(&["eval", "--task", "tiny/pairs", "--model", model.to_str().unwrap()], 1, words);
    }

    /// A copy of a checkpoint of the fixtures.
    pub fn model(&self, name: &str, from: &str) -> PathBuf {
        copied(&encoders().join(from), &self.path(name))
    }

    /// A catalog with one data set, of JSON lines.
    pub fn data(&self, name: &str, rows: &str, entry: &str) -> PathBuf {
        let folder = self.path(name);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("rows.jsonl"), rows).unwrap();
        let files = "files = { train = \"rows.jsonl\", validation = \"rows.jsonl\" }\n";
        let catalog = folder.join("datasets.toml");
        fs::write(&catalog, format!("[\"my/data\"]\n{files}{entry}")).unwrap();
        catalog
    }

    /// Training on a data set of its own is refused.
    pub fn refuses_data(&self, catalog: &Path, code: i32, words: &[&str]) {
        let catalog = catalog.to_str().unwrap();
        let args = ["train", "--recipe", "recipe.toml", "--out", "run", "--set", "data.dataset=my/data"];
        let args = [&args[..], &["--datasets", catalog]].concat();
        check_with_rehearsal(&args, code, words, &|args| self.bare(args));
    }
}

/// One error, with all `words`, and nothing that only a programmer reads.
pub fn check(args: &[&str], output: &Output, code: i32, words: &[&str]) {
    let text = errors(output);
    let shown = format!("loraxs {}\n{text}", args.join(" "));
    assert_eq!(output.status.code(), Some(code), "{shown}");
    assert_eq!(text.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{shown}");
    for trace in ["panicked", "stack backtrace", "frame #", "c10::", ".rs:", "report it"] {
        assert!(!text.contains(trace), "`{trace}` in {shown}");
    }
    for word in words {
        assert!(text.contains(word), "no `{word}` in {shown}");
    }
}

/// What only a training finds out: it reads the base's numbers, computes with them, and writes.
const ONLY_TRAINED: [&str; 4] = [
    "has NaN or infinite values",
    "no finite gradient",
    "cannot write `/proc/run",
    "is not what the run wrote",
];

/// As [`check`], and a dry run of a training says the same.
pub fn check_with_rehearsal(args: &[&str], code: i32, words: &[&str], command: &dyn Fn(&[&str]) -> Command) {
    let found = forked::output(&command(args));
    check(args, &found, code, words);
    let told = errors(&found);
    if args[0] != "train"
        || args.contains(&"--dry-run")
        || ONLY_TRAINED.iter().any(|words| told.contains(words))
    {
        return;
    }
    let args = [args, &["--dry-run"]].concat();
    let rehearsed = forked::output(&command(&args));
    let error = |text: &str| text.find("error: ").map(|at| text[at..].to_owned());
    let shown = errors(&rehearsed);
    assert_eq!(error(&shown), error(&told), "loraxs {}\n{shown}", args.join(" "));
    assert_eq!(rehearsed.status.code(), found.status.code(), "loraxs {}", args.join(" "));
}

pub fn copied(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    to.to_owned()
}

/// Changes a JSON file.
pub fn edit(path: &Path, change: impl Fn(&mut Map<String, Value>)) {
    let mut value: Map<String, Value> = crate::support::json(path);
    change(&mut value);
    fs::write(path, serde_json::to_string_pretty(&value).unwrap()).unwrap();
}

/// Changes header and data of a safetensors file.
pub fn edit_tensors(path: &Path, change: impl Fn(&mut Map<String, Value>, &mut [u8])) {
    let mut bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut data = bytes.split_off(8 + length);
    let mut header = serde_json::from_slice(&bytes[8..]).unwrap();
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let length = (header.len() as u64).to_le_bytes();
    fs::write(path, [&length[..], &header, &data].concat()).unwrap();
}

/// Tensors by name: the file's name of their type, shape and bytes.
pub type Stored = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// Writes a safetensors file anew, with other tensors; any name of a type will do.
pub fn rewrite(path: &Path, change: impl Fn(&mut Stored)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut stored = Stored::new();
    for (name, entry) in header.into_iter().filter(|(name, _)| name != "__metadata__") {
        let [start, end]: [usize; 2] = serde_json::from_value(entry["data_offsets"].clone()).unwrap();
        let shape = serde_json::from_value(entry["shape"].clone()).unwrap();
        let data = bytes[8 + length..][start..end].to_vec();
        stored.insert(name, (entry["dtype"].as_str().unwrap().to_owned(), shape, data));
    }
    change(&mut stored);
    let (mut header, mut data) = (Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    for (name, (dtype, shape, bytes)) in stored {
        let offsets = [data.len(), data.len() + bytes.len()];
        header.insert(name, json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        data.extend(bytes);
    }
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// Keeps the first bytes of a file.
pub fn cut(path: &Path, length: impl Fn(usize) -> usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..length(bytes.len())]).unwrap();
}

pub fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
