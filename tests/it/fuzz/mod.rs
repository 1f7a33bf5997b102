//! Inputs changed at random. Whatever is read, the command ends with 0, 1 or 2 and one error that a person understands, in
//! bounded time and memory; and where damaged state is accepted, the answer is that of the whole one.
//!
//! An input is a function of its kind and its seed. One that fails is printed and kept, and tried again by
//! `LORAXS_FUZZ_KIND=KIND LORAXS_FUZZ_SEED=SEED scripts/test.sh fuzz::one`. `scripts/fuzz.sh` goes on with fresh seeds.

mod checkpoints;
mod data;
mod dice;
mod json;
mod kinds;
mod settings;
mod state;
mod tensors;
mod text;
mod words;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use std::{env, fs, io, thread};

use loraxs::scoring::{Rule, equivalent};

use crate::forked::{self, Limits, Taken};
use crate::support::errors;
use dice::Dice;
use kinds::{KINDS, Kind};

/// Names the program that judges pairs of texts, in the place of the command.
pub const JUDGE: &str = "judge";

/// Seconds of computing that an input may cost.
const SECONDS: u64 = 10;
/// Bytes that it may cost, beyond what the input cost before it was changed.
const BYTES: u64 = 1_500_000_000;
/// Time that it may take on a machine that is busy with other tests, until it counts as waiting for ever.
const PATIENCE: Duration = Duration::from_secs(90);
/// Longest that a command may say on standard error: an input that is quoted is quoted in part.
const WORDS: usize = 64 << 10;

/// What only a programmer reads, or only a fault of the program brings about.
const TRACES: [&str; 13] = [
    "panicked",
    "stack backtrace",
    "frame #",
    "c10::",
    "at::",
    "libtorch:",
    "Exception raised from",
    "please report",
    "report it",
    "oneMKL",
    "terminate called",
    "memory allocation of",
    "stack overflow",
];

/// A folder with a changed input in it, and what is run there.
struct Input {
    folder: tempfile::TempDir,
    args: Vec<String>,
}

/// A kind with its unchanged folder, and what came of it.
struct Stage {
    kind: &'static Kind,
    folder: tempfile::TempDir,
    outcome: Option<serde_json::Value>,
    /// Bytes that the unchanged input took.
    bytes: u64,
}

/// How an input ended.
struct Ended {
    code: Option<i32>,
    taken: Taken,
    /// What is wrong with that.
    fault: Option<String>,
}

impl Stage {
    fn new(kind: &'static Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        (kind.prepare)(folder.path());
        let mut stage = Self { kind, folder, outcome: None, bytes: 0 };
        let input =
            Input { folder: stage.copy(), args: kind.plain.iter().map(|arg| (*arg).to_owned()).collect() };
        let (output, taken) = input.run();
        assert_eq!(output.status.code(), Some(0), "{}, unchanged: {}", kind.name, errors(&output));
        (stage.outcome, stage.bytes) = (kind.outcome.map(|of| of(input.folder.path())), taken.bytes);
        stage
    }

    fn copy(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        kinds::copy_all(self.folder.path(), folder.path());
        folder
    }

    fn input(&self, seed: u64) -> Input {
        let mut dice = Dice::new(self.kind.name, seed);
        let folder = self.copy();
        let args = (self.kind.change)(&mut dice, folder.path());
        Input { folder, args }
    }

    /// Runs one input; what fails is kept.
    fn try_one(&self, seed: u64) -> Ended {
        let input = self.input(seed);
        let (output, taken) = input.run();
        let code = output.status.code();
        let fault = self.fault(&input, &output, taken).map(|fault| {
            let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(format!("{}-{seed}", self.kind.name));
            let _ = fs::remove_dir_all(&place);
            // Made again: the run may have changed it
            kinds::copy_all(self.input(seed).folder.path(), &place);
            fs::write(place.join("said.txt"), &output.stderr).unwrap();
            let said: String = errors(&output).chars().take(600).collect();
            format!(
                "{fault}\n  LORAXS_FUZZ_KIND={} LORAXS_FUZZ_SEED={seed} scripts/test.sh fuzz::one\n  cd {}; {}\n  {said}",
                self.kind.name,
                place.display(),
                input.line(),
            )
        });
        Ended { code, taken, fault }
    }

    fn fault(&self, input: &Input, output: &Output, taken: Taken) -> Option<String> {
        let text = errors(output);
        let shown = text.lines().filter(|line| line.starts_with("error: ")).count();
        let Some(code) = output.status.code() else { return Some(format!("ended by {}", output.status)) };
        if !(0..=2).contains(&code) {
            return Some(format!("exit code {code}"));
        }
        if shown != usize::from(code != 0) {
            return Some(format!("exit code {code} with {shown} errors"));
        }
        if let Some(trace) = TRACES.iter().find(|trace| text.contains(*trace)) {
            return Some(format!("says `{trace}`"));
        }
        if text.len() > WORDS {
            return Some(format!("says {} bytes", text.len()));
        }
        if taken.seconds > SECONDS as f64 {
            return Some(format!("took {:.1} s", taken.seconds));
        }
        if taken.bytes > self.bytes + BYTES {
            return Some(format!("took {} MB", taken.bytes / 1_000_000));
        }
        let found = self.kind.outcome.filter(|_| code == 0).map(|of| of(input.folder.path()))?;
        (Some(&found) != self.outcome.as_ref())
            .then(|| format!("accepted, but gives {found}\n  instead of {:?}", self.outcome))
    }
}

impl Input {
    fn run(&self) -> (Output, Taken) {
        let mut command =
            Command::new(if self.args[0] == JUDGE { JUDGE } else { env!("CARGO_BIN_EXE_loraxs") });
        command.current_dir(self.folder.path());
        match self.args[0] == JUDGE {
            true => command.args(&self.args[1..]),
            false => command.args(&self.args).args(["--device", "cpu", "--threads", "1"]),
        };
        command.env("LORAXS_CACHE", self.folder.path().join("cache")).env("HF_HUB_OFFLINE", "1");
        command.env("HF_HOME", self.folder.path().join("hub")).env("RUST_BACKTRACE", "1");
        // Addresses may be more than memory: what is taken of them is measured
        let limits = Limits { seconds: SECONDS + 1, bytes: 2 * BYTES };
        forked::start_within(&command, Some(limits)).within(PATIENCE)
    }

    /// The command to type in the folder.
    fn line(&self) -> String {
        let quoted =
            |arg: &String| match arg.chars().all(|c| c.is_ascii_alphanumeric() || "-_./=".contains(c)) {
                true => arg.clone(),
                false => format!("'{}'", arg.replace('\'', "'\\''").chars().take(300).collect::<String>()),
            };
        let args: Vec<String> = self.args.iter().map(quoted).collect();
        format!("LORAXS_CACHE=cache HF_HUB_OFFLINE=1 loraxs {} --device cpu --threads 1", args.join(" "))
    }
}

/// What [`JUDGE`] does: every rule on every pair of a file.
pub fn judge(file: &str) -> u8 {
    let pairs: Vec<[String; 2]> = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    for [completion, gold] in &pairs {
        let judged = catch_unwind(AssertUnwindSafe(|| {
            Rule::ALL.into_iter().for_each(|rule| drop(rule.judge(completion, gold)));
            let is_answer = gold.contains(char::is_alphanumeric);
            assert!(!is_answer || equivalent(gold, gold), "an answer that is not equivalent to itself");
        }));
        if judged.is_err() {
            let _ = writeln!(io::stderr(), "of the pair {:?}", [completion, gold]);
            return 101;
        }
    }
    0
}

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap()
}

/// The inputs of a kind with the first seeds: all, as in CI, where `LORAXS_FUZZ` is set, and one in ten elsewhere.
fn short(name: &str) {
    let stage = Stage::new(kind(name));
    let step = if env::var_os("LORAXS_FUZZ").is_some() { 1 } else { 10 };
    let seeds = (0..stage.kind.inputs).step_by(step);
    let faults: Vec<String> = seeds.filter_map(|seed| stage.try_one(seed).fault).take(8).collect();
    assert!(faults.is_empty(), "{name}:\n\n{}", faults.join("\n\n"));
}

/// A test for each kind.
macro_rules! kinds {
    ($($test:ident $name:literal)*) => {
        $(#[test] fn $test() { short($name); })*

        #[test]
        fn every_kind_has_a_test() {
            let tested = [$($name),*];
            assert_eq!(KINDS.map(|kind| kind.name), tested);
            let inputs: u64 = KINDS.iter().map(|kind| kind.inputs).sum();
            assert!(inputs >= 5_000, "{inputs} inputs");
        }
    };
}

kinds! {
    configs_of_encoders "config-encoder"
    configs_of_decoders "config-decoder"
    settings_of_generation "generation-config"
    settings_of_tokenizers "tokenizer-config"
    tokenizers "tokenizer"
    chat_templates "template"
    weights "weights"
    adapters "adapter"
    adapters_of_peft "peft"
    recipes "recipe"
    catalogs "catalog"
    rows "rows"
    checkpoints "checkpoint"
    runs "run"
    results_to_compare "report"
    caches "cache"
    predictions "predictions"
    command_lines "flags"
    answers "scoring"
}

/// The input that the environment names.
#[test]
fn one() {
    let (Ok(name), Ok(seed)) = (env::var("LORAXS_FUZZ_KIND"), env::var("LORAXS_FUZZ_SEED")) else { return };
    let ended = Stage::new(kind(&name)).try_one(seed.parse().unwrap());
    println!(
        "exit code {:?}, {:.2} s, {} MB",
        ended.code,
        ended.taken.seconds,
        ended.taken.bytes / 1_000_000
    );
    assert!(ended.fault.is_none(), "{}", ended.fault.unwrap_or_default());
}

/// What is known of the inputs of one kind.
#[derive(Default)]
struct Tally {
    codes: BTreeMap<Option<i32>, u64>,
    seconds: f64,
    slowest: f64,
    largest: u64,
    faults: Vec<String>,
}

/// Fresh seeds for `LORAXS_FUZZ_MINUTES`, from `LORAXS_FUZZ_SEED` or the clock, of `LORAXS_FUZZ_KIND` or all kinds.
#[test]
#[ignore = "goes on for as long as it is told: scripts/fuzz.sh"]
fn long() {
    let set = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let minutes: u64 = set("LORAXS_FUZZ_MINUTES").map_or(5, |text| text.parse().unwrap());
    let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let first = set("LORAXS_FUZZ_SEED").map_or(clock * 1_000_000, |text| text.parse().unwrap());
    let names: Option<Vec<String>> =
        set("LORAXS_FUZZ_KIND").map(|names| names.split(',').map(str::to_owned).collect());
    let is_wanted =
        |kind: &&Kind| names.as_ref().is_none_or(|names| names.iter().any(|name| name == kind.name));
    let stages: Vec<Stage> = KINDS.iter().filter(is_wanted).map(Stage::new).collect();
    let (end, next) = (Instant::now() + Duration::from_secs(60 * minutes), AtomicU64::new(0));
    let tallies: Mutex<BTreeMap<&str, Tally>> = Mutex::default();
    let work = || {
        while Instant::now() < end {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let stage = &stages[(number % stages.len() as u64) as usize];
            let ended = stage.try_one(first + number / stages.len() as u64);
            let mut tallies = tallies.lock().unwrap_or_else(PoisonError::into_inner);
            let tally = tallies.entry(stage.kind.name).or_default();
            *tally.codes.entry(ended.code).or_default() += 1;
            tally.seconds += ended.taken.seconds;
            tally.slowest = tally.slowest.max(ended.taken.seconds);
            tally.largest = tally.largest.max(ended.taken.bytes.saturating_sub(stage.bytes));
            if let Some(fault) = ended.fault {
                println!("{}: {fault}\n", stage.kind.name);
                tally.faults.push(fault);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    let tallies = tallies.into_inner().unwrap();
    println!(
        "| kind | inputs | exit 0 | exit 1 | exit 2 | other | mean, s | slowest, s | largest, MB over the unchanged | faults |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for (name, tally) in &tallies {
        let [of0, of1, of2] = [0, 1, 2].map(|code| tally.codes.get(&Some(code)).copied().unwrap_or(0));
        let all: u64 = tally.codes.values().sum();
        println!(
            "| {name} | {all} | {of0} | {of1} | {of2} | {} | {:.3} | {:.1} | {} | {} |",
            all - of0 - of1 - of2,
            tally.seconds / all as f64,
            tally.slowest,
            tally.largest / 1_000_000,
            tally.faults.len(),
        );
    }
    let faults: usize = tallies.values().map(|tally| tally.faults.len()).sum();
    assert_eq!(faults, 0, "faults");
}

/// A path that an input is written to.
fn place(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    path
}
