//! Sweeps: every run is the run that it would be alone, whatever its neighbours, kills and other processes do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::forked;
use crate::resume::{Outcome, outcome, wait_until};
use crate::standin::counts;
use crate::support::{Place, device_name, encoders, errors, json};

/// A place with a recipe: dropout, shuffling, accumulation and evaluations all on.
fn place() -> Place {
    let place = Place::new();
    let recipe = format!(
        "[model]\nname = {:?}\n[adapter]\nrank = 4\nalpha = 8.0\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 24\n\
         [train]\nmax_steps = 24\nbatch_size = 4\nmicro_batch_size = 3\nlearning_rate = 1e-2\n\
         log_every = 2\ncheckpoint_every = 3\n[eval]\nevery = 4\n",
        encoders().join("bert-gelu")
    );
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    place
}

/// Arguments that train a sweep into `out`.
fn sweep<'a>(out: &'a str, sweeps: &[&'a str]) -> Vec<&'a str> {
    let varied = sweeps.iter().flat_map(|sweep| ["--sweep", sweep]);
    ["train", "--recipe", "recipe.toml", "--out", out].into_iter().chain(varied).collect()
}

/// The runs of a sweep's folder, by name.
fn runs(folder: &Path) -> BTreeMap<String, PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let runs = entries.filter(|path| path.join("recipe.toml").exists());
    runs.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path)).collect()
}

fn outcomes(folder: &Path) -> BTreeMap<String, Outcome> {
    let finished = runs(folder).into_iter().filter(|(_, run)| run.join("results.json").exists());
    finished.map(|(name, run)| (name, outcome(&run))).collect()
}

#[test]
fn a_run_of_a_group_is_the_run_alone_also_beside_one_that_diverges_and_one_that_stops_early() {
    let place = place();
    let keys = [
        "train.seed=0,1,2,3,4,5,6,7",
        "train.learning_rate=1e-2,3e-3,1e38,1e-3,0.0,2e-2,5e-3,1e-2",
        "train.head_learning_rate=5e-3,5e-3,1e38,1e-3,0.0,5e-3,2e-3,5e-3",
        "train.schedule=linear,cosine,constant,linear,linear,constant,cosine,linear",
        "train.max_steps=24,24,24,13,24,24,24,20",
        "train.weight_decay=0.01,0.3,0.01,0.0,0.01,0.01,0.2,0.01",
        "adapter.alpha=8,2,8,16,8,4,1,8",
        "adapter.init_std=1e-5,1e-3,1e-5,0.1,1e-5,0.0,1e-5,1e-5",
        "eval.patience=0,0,0,0,2,0,3,0",
    ];
    let zip: Vec<&str> = keys.iter().map(|key| key.split_once('=').unwrap().0).collect();
    let zip = format!("zip={}", zip.join("+"));
    let all: Vec<&str> = keys.iter().copied().chain([zip.as_str(), "together=8"]).collect();
    // One has failed, of which the exit code tells.
    let output = place.run(&sweep("sweep", &all), 1);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(told.contains("training 8 runs together"), "{told}");
    assert!(told.contains("1 of 8 runs failed"), "{told}");
    assert!(!errors(&output).contains("gradient layout contract"), "{}", errors(&output));
    let (found, ended) =
        (runs(&place.path("sweep")), |run: &Path| -> Value { json(&run.join("results.json")) });
    assert_eq!(found.len(), 8);
    for (run, path) in found.values().map(|path| (seed_of(path), path)) {
        let sets: Vec<String> = keys
            .iter()
            .map(|key| {
                let (key, values) = key.split_once('=').unwrap();
                format!("{key}={}", values.split(',').nth(run).unwrap())
            })
            .collect();
        let alone = format!("alone-{run}");
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", &alone];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        if run == 2 {
            let failed: Value = json(&path.join("failed.json"));
            assert!(!path.join("results.json").exists());
            let output = place.run(&args, 1);
            let message = failed["error"].as_str().unwrap().split(';').next().unwrap();
            assert!(errors(&output).contains(message), "{message}\n{}", errors(&output));
            continue;
        }
        place.run(&args, 0);
        let alone = place.path(&alone);
        agree(path, &alone);
        let (together, alone) = (ended(path), ended(&alone));
        let on_a_cpu = if device_name() == "cpu" { &["delta_norm", "adapter"][..] } else { &[] };
        for key in ["ended", "seed", "recipe", "parameters"].iter().chain(on_a_cpu) {
            assert_eq!(together[key], alone[key], "run {run}, {key}");
        }
        assert_eq!((&together["together"], &alone["together"]), (&8.into(), &1.into()));
        let ended = match run {
            4 | 6 => "patience",
            _ => "finished",
        };
        assert_eq!(together["ended"], ended, "run {run}");
    }
}

/// Compares two runs: to the bit on a CPU; a GPU sums several runs in other shapes, so that losses differ by rounding.
fn agree(found: &Path, expected: &Path) {
    if device_name() == "cpu" {
        assert_eq!(outcome(found), outcome(expected), "{found:?}");
        return;
    }
    let [found_log, expected_log] = [found, expected].map(crate::support::log);
    assert_eq!(found_log.len(), expected_log.len(), "{found:?}");
    for (found, expected) in found_log.iter().zip(&expected_log).filter_map(|(a, b)| Some((a.loss?, b.loss?)))
    {
        assert!((found - expected).abs() < 1e-4 * expected.abs().max(1.0), "{found} and {expected}");
    }
}

#[test]
fn on_a_gpu_runs_train_together_as_far_as_memory_goes() {
    if device_name() == "cpu" {
        println!("skipped: scripts/standin.sh runs this");
        return;
    }
    let place = place();
    let keys = ["train.seed=0,1,2,3,4,5", "train.max_steps=6", "train.batch_size=32", "eval.every=never"];
    let run = |out: &str, together: &str, bytes: &str| {
        let keys = [&keys[..], &["train.micro_batch_size=32", together]].concat();
        let mut command = place.command(&sweep(out, &keys));
        let file = place.path(&format!("{out}.counts"));
        command.env("LORAXS_CUDA_GRAPHS", "0").env("STANDIN_BYTES", bytes).env("STANDIN_COUNTS", &file);
        let output = forked::output(&command);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        (errors(&output), counts(&file)["most bytes"])
    };
    let enough = "1000000000";
    // The first run also decomposes the weights.
    let _first = run("first", "together=1", enough);
    let [alone, two] = ["together=1", "together=2"].map(|together| run(together, together, enough).1);
    let (said, taken) = run("auto", "together=auto", &(alone + (two - alone) / 2).to_string());
    assert!(said.contains("one run alone is fastest"), "{said}");
    assert!(alone < taken && taken < two, "{alone}, {taken} and {two} bytes");
}

#[test]
fn on_a_gpu_runs_yield_their_places_when_few_are_left() {
    if device_name() == "cpu" {
        println!("skipped: scripts/standin.sh runs this");
        return;
    }
    let place = place();
    // Three of the first four stop after two evaluations, because nothing improves without a rate.
    let keys = [
        "train.seed=0,1,2,3,4,5",
        "train.learning_rate=0.0,0.0,0.0,1e-2,1e-2,3e-3",
        "train.head_learning_rate=0.0,0.0,0.0,5e-3,5e-3,5e-3",
        "eval.patience=1,1,1,0,0,0",
        "zip=train.seed+train.learning_rate+train.head_learning_rate+eval.patience",
        "together=4",
    ];
    let output = place.run(&sweep("sweep", &keys), 0);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let groups: Vec<&str> = told.lines().filter(|line| line.starts_with("training ")).collect();
    assert!(groups.len() == 2 && groups[0].contains("4 runs") && groups[1].contains("3 runs"), "{told}");
    for path in runs(&place.path("sweep")).values() {
        let recipe = path.join("recipe.toml");
        let alone = format!("alone-{}", seed_of(path));
        place.run(&["train", "--recipe", recipe.to_str().unwrap(), "--out", &alone], 0);
        agree(path, &place.path(&alone));
    }
}

fn seed_of(run: &Path) -> usize {
    let recipe: toml::Table = fs::read_to_string(run.join("recipe.toml")).unwrap().parse().unwrap();
    usize::try_from(recipe["train"]["seed"].as_integer().unwrap()).unwrap()
}

const GRID: [&str; 4] =
    ["adapter.rank=2,4", "train.learning_rate=1e-2,3e-3", "train.seed=0,1,2", "together=4"];

#[test]
fn a_sweep_killed_again_and_again_ends_as_one_that_never_stopped() {
    let place = place();
    place.run(&sweep("whole", &GRID), 0);
    let whole = outcomes(&place.path("whole"));
    assert_eq!(whole.len(), 12);
    let mut killed = 0;
    for (kill, delay) in [0, 13, 3, 29, 7, 41, 17, 1, 23, 5].into_iter().enumerate() {
        let mut child = forked::start(&place.command(&sweep("killed", &GRID)));
        let folder = place.path("killed");
        // The longer, the more is done: a line of the log for each two steps.
        let logged = |folder: &Path| -> usize {
            let lines = |run: &PathBuf| {
                fs::read_to_string(run.join("metrics.jsonl")).unwrap_or_default().lines().count()
            };
            if folder.exists() { runs(folder).values().map(lines).sum() } else { 0 }
        };
        if wait_until(&mut child, || logged(&folder) >= 22 * kill) {
            std::thread::sleep(Duration::from_millis(delay));
        }
        child.signal(libc::SIGKILL);
        killed += usize::from(child.wait().status.code().is_none());
    }
    assert!(killed >= 5, "only {killed} kills came in time");
    let before = stamps(&place.path("killed"));
    place.run(&sweep("killed", &GRID), 0);
    assert_eq!(outcomes(&place.path("killed")), whole);
    // What was finished is left alone, and once more.
    let after = stamps(&place.path("killed"));
    assert!(before.iter().all(|stamp| after.contains(stamp)));
    place.run(&["train", "--resume", "killed"], 0);
    assert_eq!(stamps(&place.path("killed")), after);
}

/// The finished runs, with the time and the number of their results.
fn stamps(folder: &Path) -> BTreeSet<String> {
    let results = runs(folder).into_values().map(|run| run.join("results.json")).filter(|path| path.exists());
    results.map(|path| format!("{path:?} {:?}", fs::metadata(&path).unwrap().modified().unwrap())).collect()
}

#[test]
fn three_processes_share_a_sweep_and_two_end_it_if_one_is_killed() {
    let place = place();
    place.run(&sweep("whole", &GRID), 0);
    let whole = outcomes(&place.path("whole"));
    for kills in [false, true] {
        let out = if kills { "killed" } else { "shared" };
        let command = |shard: &str| -> Command {
            let args = [&sweep(out, &GRID)[..], &["--shard", shard]].concat();
            place.command(&args)
        };
        let mut processes: Vec<_> = ["1/3", "2/3", "3/3"].map(|shard| forked::start(&command(shard))).into();
        if kills {
            let folder = place.path(out);
            let begun =
                || folder.exists() && runs(&folder).values().any(|run| run.join("checkpoints").exists());
            assert!(wait_until(&mut processes[0], begun), "ended at once");
            processes[1].signal(libc::SIGKILL);
        }
        for (number, process) in processes.into_iter().enumerate() {
            let output = process.wait();
            let killed = kills && number == 1;
            assert_eq!(output.status.code(), if killed { None } else { Some(0) }, "{}", errors(&output));
        }
        assert_eq!(outcomes(&place.path(out)), whole);
        assert_eq!(reported(&place, out), reported(&place, "whole"));
        // Done once each: a run that two train has the log points of both.
        for run in runs(&place.path(out)).values() {
            let points = crate::support::log(run);
            let steps: Vec<u64> =
                points.iter().filter(|point| point.loss.is_some()).map(|point| point.step).collect();
            assert!(steps.windows(2).all(|pair| pair[0] < pair[1]), "{steps:?}");
        }
    }
}

/// The report of a sweep as one line for each run, without its clock, memory and place.
fn reported(place: &Place, out: &str) -> Vec<Vec<String>> {
    let csv = place.run(&["report", out, "--format", "csv"], 0).stdout;
    let mut lines = csv::Reader::from_reader(csv.as_slice());
    let of_place = ["seconds", "per_second", "peak_memory_mib", "folder"];
    let headers = lines.headers().unwrap().clone();
    let kept: Vec<usize> =
        (0..headers.len()).filter(|&i| !of_place.iter().any(|end| headers[i].ends_with(end))).collect();
    assert!(kept.len() > 10 && lines.headers().unwrap().iter().any(|name| name == "best"), "{headers:?}");
    let cells = |line: csv::StringRecord| kept.iter().map(|&i| line[i].to_owned()).collect();
    let rows: Vec<Vec<String>> = lines.records().map(|line| cells(line.unwrap())).collect();
    assert_eq!(rows.len(), 12);
    rows
}

#[test]
fn at_each_rung_of_halving_the_better_half_goes_on_as_it_would_alone() {
    let place = place();
    let grid = ["train.learning_rate=1e-2,3e-3,1e-3,3e-4", "train.seed=0,1", "together=3"];
    place.run(&sweep("whole", &grid), 0);
    let halving: Vec<&str> = grid.into_iter().chain(["halving=2x3"]).collect();
    place.run(&sweep("halved", &halving), 0);
    let [whole, halved] = ["whole", "halved"].map(|out| place.path(out));
    // Evaluations after 4, 8, …, 24 steps: the rungs are after the second and the third.
    let steps_of =
        |run: &Path| -> u64 { json::<Value>(&run.join("results.json"))["steps"].as_u64().unwrap() };
    let mut steps: Vec<u64> = runs(&halved).values().map(|run| steps_of(run)).collect();
    steps.sort_unstable();
    assert_eq!(steps, [8, 8, 8, 8, 12, 12, 24, 24]);
    // By the whole runs' own evaluations, the better half of each rung.
    let best = |name: &str, until: u64| -> f64 {
        let points = crate::support::log(&whole.join(name));
        let until = points.into_iter().filter(|point| point.step <= until).filter_map(|point| point.metrics);
        until.filter_map(|metrics| metrics["accuracy"]).fold(f64::NEG_INFINITY, f64::max)
    };
    let mut left: Vec<String> = order(&halved);
    for rung in [8, 12] {
        let half = left.len() / 2;
        left.sort_by(|a, b| best(b, rung).total_cmp(&best(a, rung)));
        for name in left.split_off(half) {
            assert_eq!(steps_of(&halved.join(&name)), rung, "{name}");
            assert_eq!(json::<Value>(&halved.join(&name).join("results.json"))["ended"], "halving");
        }
        left.sort_by_key(|name| order(&halved).iter().position(|known| known == name));
    }
    for name in left {
        assert_eq!(outcome(&halved.join(&name)), outcome(&whole.join(&name)), "{name}");
    }
}

/// The names of the runs in the order of the sweep: its learning rates, then its seeds.
fn order(folder: &Path) -> Vec<String> {
    let rates = ["0.01", "0.003", "0.001", "0.0003"];
    let names: Vec<String> = runs(folder).into_keys().collect();
    let of = |rate: &str, seed: u64| {
        let found = names.iter().find(|name| {
            name.contains(&format!("learning_rate={rate},")) && name.contains(&format!("seed={seed}"))
        });
        found.unwrap_or_else(|| panic!("{rate}, {seed}: {names:?}")).clone()
    };
    rates.iter().flat_map(|rate| [of(rate, 0), of(rate, 1)]).collect()
}

#[test]
fn runs_share_one_full_decomposition_whatever_their_rank() {
    let place = place();
    let mut args = sweep("sweep", &["adapter.rank=2,8,4"]);
    args.extend(["--set", "adapter.svd=exact", "--set", "train.max_steps=4"]);
    place.run(&args, 0);
    let bases = fs::read_dir(place.path("cache/basis")).map(|entries| entries.count()).unwrap_or_default();
    assert_eq!(bases, 1, "{:?}", fs::read_dir(place.path("cache")).unwrap().collect::<Vec<_>>());
    for rank in ["2", "4", "8"] {
        let (out, rank) = (format!("alone-{rank}"), format!("adapter.rank={rank}"));
        let args = [
            "train", "--recipe", "recipe.toml", "--out", &out, "--set", "adapter.svd=exact", "--set",
            "train.max_steps=4",
        ];
        place.run(&[&args[..], &["--set", &rank]].concat(), 0);
        let run = place.path("sweep").join(rank.replace("adapter.", ""));
        assert_eq!(outcome(&run), outcome(&place.path(&out)));
    }
}

#[test]
fn a_folder_of_something_else_is_refused() {
    let place = place();
    let one = ["train.seed=0,1"];
    place.run(&[&sweep("sweep", &one)[..], &["--set", "train.max_steps=2"]].concat(), 0);
    let output =
        place.run(&[&sweep("sweep", &["train.seed=0,2"])[..], &["--set", "train.max_steps=2"]].concat(), 2);
    assert!(errors(&output).contains("has another sweep: `sweep.train.seed` was"), "{}", errors(&output));
    // How many train together changes nothing of them.
    place.run(
        &[&sweep("sweep", &["train.seed=0,1", "together=1"])[..], &["--set", "train.max_steps=2"]].concat(),
        0,
    );
    // The order of the keys is the folder's, whose runs keep their names.
    let [keys, swapped] = [["train.seed=0,1", "adapter.rank=2,4"], ["adapter.rank=2,4", "train.seed=0,1"]];
    for keys in [keys, swapped] {
        place.run(&[&sweep("order", &keys)[..], &["--set", "train.max_steps=2"]].concat(), 0);
    }
    assert_eq!(runs(&place.path("order")).len(), 4);
    for args in [&["--out", "sweep"][..], &["--resume", "sweep"]] {
        let output = place.run(&[&["train", "--recipe", "recipe.toml"], args].concat(), 1);
        assert!(errors(&output).contains("`sweep` is the folder of a sweep"), "{}", errors(&output));
    }
    let output = place.run(&["train", "--resume", "sweep", "--out", "other"], 2);
    assert!(errors(&output).contains("name two folders"), "{}", errors(&output));
    place.run(&["train", "--recipe", "recipe.toml", "--out", "run", "--set", "train.max_steps=2"], 0);
    let output = place.run(&sweep("run", &one), 1);
    assert!(errors(&output).contains("already has a run"), "{}", errors(&output));
}

#[test]
fn one_run_that_cannot_be_trained_keeps_no_other_from_it() {
    let place = place();
    let grid = [&sweep("sweep", &["train.seed=0,1,2,3"])[..], &["--set", "train.max_steps=4"]].concat();
    place.run(&grid, 0);
    let [file, other, damaged] = ["seed=0", "seed=1", "seed=2"].map(|name| place.path("sweep").join(name));
    for run in [&file, &other] {
        fs::remove_dir_all(run).unwrap();
    }
    fs::write(&file, "").unwrap();
    let args = ["train", "--recipe", "recipe.toml", "--out", "another", "--set", "train.seed=9"];
    place.run(&args, 0);
    fs::rename(place.path("another"), &other).unwrap();
    fs::remove_file(other.join("results.json")).unwrap();
    fs::write(damaged.join("results.json"), "{\"best\":").unwrap();
    let output = place.run(&grid, 1);
    let told = errors(&output);
    assert!(told.contains("results.json` is damaged: the run goes on"), "{told}");
    for run in ["seed=0", "seed=1"] {
        assert!(told.contains(&format!("run `{run}`: ")), "{told}");
    }
    assert!(String::from_utf8_lossy(&output.stdout).contains("2 of 4 runs failed"), "{output:?}");
    let found = outcomes(&place.path("sweep"));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["seed=2", "seed=3"]);
    let args = ["train", "--recipe", "recipe.toml", "--out", "alone", "--set", "train.seed=2"];
    place.run(&[&args[..], &["--set", "train.max_steps=4"]].concat(), 0);
    assert_eq!(found["seed=2"], outcome(&place.path("alone")));
}

#[test]
fn a_dry_run_writes_nothing_and_tells_runs_steps_memory_and_time() {
    let place = place();
    let output = place.run(&[&sweep("sweep", &GRID)[..], &["--dry-run"]].concat(), 0);
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    for words in
        ["12 runs in sweep", "adapter.rank: 2, 4", "together", "MiB", "time of the training at least"]
    {
        assert!(told.contains(words), "no `{words}` in\n{told}");
    }
    assert!(!place.path("sweep").exists());
    let mut halving = sweep("sweep", &["train.seed=0,1,2,3", "halving=2x8"]);
    // Only the data tell how long an epoch is.
    halving.extend(["--set", "eval.every=epoch", "--set", "train.max_steps=48"]);
    let [dry, wet] = [&["--dry-run"][..], &[]].map(|more| place.run(&[&halving[..], more].concat(), 2));
    assert!(errors(&dry).contains("8 rungs need more evaluations than the 2 of a run"), "{}", errors(&dry));
    assert_eq!(errors(&dry).lines().last(), errors(&wet).lines().last());
}
