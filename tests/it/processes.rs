//! Several processes train as one: by every launcher, with the losses and adapters of one process; each end of one ends all, and is
//! told by name.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use safetensors::SafeTensors;

use crate::forked::{self, Run};
use crate::resume::{Outcome, logged_step, outcome};
use crate::support::{
    Place, device_name, encoders, errors, fixture, json, log, losses, quickstart, strays, worse,
};

/// The longest that any run may take, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(120);

/// Arguments that train the recipe of the place.
const TRAIN: [&str; 4] = ["train", "--recipe", "recipe.toml", "--resume"];

/// A recipe for an encoder with dropout in its layers and in the adapter, and batches that most numbers do not divide.
fn encoder() -> Place {
    of_recipe(Place::new(), &encoders().join("bert-gelu"), "tiny/pairs", "")
}

/// As [`encoder`], for a language model.
fn decoder() -> Place {
    of_recipe(Place::of_decoders(), &fixture("decoders/llama-biased"), "tiny/instructions", "")
}

fn of_recipe(place: Place, base: &Path, dataset: &str, train: &str) -> Place {
    let recipe = format!(
        "[model]\nname = {base:?}\n[adapter]\nrank = 4\nalpha = 8.0\ndropout = 0.1\n[data]\ndataset = {dataset:?}\nmax_length = 24\n\
         [train]\nmax_steps = 50\nbatch_size = 5\nlearning_rate = 1e-3\nseed = 5\nlog_every = 1\ncheckpoint_every = 10\n{train}\n\
         [eval]\nevery = 25\n"
    );
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    place
}

/// A port that nothing listens at, none of those that the system gives to connections, as tests beside this one need them.
fn free_port() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 10_000 + std::process::id() % 200 * 100;
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, Ordering::Relaxed));
    ports.find(|port| TcpListener::bind(("0.0.0.0", *port as u16)).is_ok()).unwrap().to_string()
}

/// The command of process `rank`, as `torchrun` would start it.
fn of_rank(place: &Place, args: &[&str], rank: usize, size: usize, port: &str) -> Command {
    let mut command = place.command(args);
    command
        .env("RANK", rank.to_string())
        .env("WORLD_SIZE", size.to_string())
        .env("LOCAL_RANK", rank.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port);
    command
}

/// Starts processes, each with arguments of its own.
fn start_each(place: &Place, args: &[Vec<&str>]) -> Vec<Run> {
    let port = free_port();
    let size = args.len();
    args.iter()
        .enumerate()
        .map(|(rank, args)| forked::start(&of_rank(place, args, rank, size, &port)))
        .collect()
}

/// Starts so many processes of one training into `out`.
fn start(place: &Place, size: usize, out: &str, more: &[&str]) -> Vec<Run> {
    start_each(place, &vec![[&TRAIN[..], &["--out", out], more].concat(); size])
}

/// Waits for all, each of which must end with this code.
fn ends(runs: Vec<Run>, code: i32) -> Vec<Output> {
    let outputs: Vec<Output> = runs.into_iter().map(|run| run.within(PATIENCE).0).collect();
    let said: Vec<String> = outputs.iter().map(errors).collect();
    assert!(!said.iter().any(|said| said.contains("[c10d]")), "{}", said.join("\n--\n"));
    let codes: Vec<_> = outputs.iter().map(|output| output.status.code()).collect();
    assert_eq!(codes, vec![Some(code); codes.len()], "{}", said.join("\n--\n"));
    outputs
}

/// What the one error of a process says.
fn error_of(output: &Output) -> String {
    let said = errors(output);
    let told: Vec<&str> = said.lines().filter(|line| line.starts_with("error")).collect();
    assert_eq!(told.len(), 1, "{said}");
    told[0].to_owned()
}

/// Trains by so many processes into `out`.
fn train(place: &Place, size: usize, out: &str, more: &[&str]) -> PathBuf {
    ends(start(place, size, out, more), 0);
    place.path(out)
}

/// Trains by one process into `one`.
fn alone(place: &Place, more: &[&str]) -> PathBuf {
    place.run(&[&TRAIN[..], &["--out", "one"], more].concat(), 0);
    place.path("one")
}

/// Every number of the adapter of a run.
fn adapter(run: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(run.join("adapter/adapter_model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers =
        |bytes: &[u8]| bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    file.iter().map(|(name, view)| (name.to_owned(), numbers(view.data()))).collect()
}

/// Both runs must have the same losses, metrics and adapters within these bounds of a CPU, the losses relative to their size. A GPU rounds sums otherwise
/// with every shape, and how far that leads in 50 steps is not known: there, the bounds are [`ROUGH`].
fn assert_alike(found: &Path, one: &Path, steps: usize, bounds: [f64; 2]) {
    let on_a_gpu = device_name() != "cpu";
    let [of_losses, of_adapter] = if on_a_gpu { [0, 1].map(|i| ROUGH[i].max(bounds[i])) } else { bounds };
    let [own, expected] = [found, one].map(losses);
    assert_eq!((own.len(), expected.len()), (steps, steps));
    let differs = strays(&own, &expected);
    let [own, expected] = [found, one].map(adapter);
    assert!(own.keys().eq(expected.keys()) && !own.is_empty());
    assert!(own.values().flatten().any(|value| value.abs() > 1e-3), "nothing was trained");
    let of = |(name, own): (&String, &Vec<f32>)| {
        own.iter().zip(&expected[name]).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, worse)
    };
    let moved = own.iter().map(of).fold(0.0, worse);
    println!("{}: losses differ by {differs:.1e}, adapters by {moved:.1e}", found.display());
    assert!(differs <= of_losses && moved <= of_adapter, "{differs:e}, {moved:e}");
    let evaluated = |run: &Path| -> Vec<Option<f64>> {
        let metrics = log(run).into_iter().filter_map(|point| point.metrics);
        metrics.flat_map(|metrics| metrics.into_values().collect::<Vec<_>>()).collect()
    };
    let [own, expected] = [found, one].map(evaluated);
    assert_eq!((own.len(), own.is_empty()), (expected.len(), false));
    for values in own.iter().zip(&expected) {
        match values {
            (Some(own), Some(expected)) => assert!((own - expected).abs() <= 10.0 * of_losses, "{values:?}"),
            _ => assert_eq!(values.0, values.1),
        }
    }
}

/// What rounding of sums may do.
const CLOSE: [f64; 2] = [1e-6, 1e-5];
/// What rounding in 8 bits may do.
const ROUGH: [f64; 2] = [3e-2, 2e-2];

#[test]
fn processes_train_an_encoder_as_one_does() {
    let place = encoder();
    let one = alone(&place, &[]);
    for size in [2, 3, 5] {
        let run = train(&place, size, &format!("of-{size}"), &[]);
        assert_alike(&run, &one, 50, CLOSE);
        assert_eq!(json::<serde_json::Value>(&run.join("results.json"))["steps"], 50);
    }
    // The same number of processes computes the same bits.
    let again = train(&place, 3, "again", &[]);
    assert_eq!(outcome(&again), outcome(&place.path("of-3")));
}

#[test]
fn processes_train_a_language_model_as_one_does() {
    let place = decoder();
    let one = alone(&place, &[]);
    for size in [2, 3, 5] {
        assert_alike(&train(&place, size, &format!("of-{size}"), &[]), &one, 50, CLOSE);
    }
}

#[test]
fn an_encoder_of_usual_width_is_trained_to_the_same_bits() {
    let place = Place::of_quickstart();
    let (base, more) = (quickstart().join("base"), "micro_batch_size = 3\nhead_learning_rate = 5e-3");
    let text = format!(
        "[model]\nname = {base:?}\n[adapter]\nrank = 16\nalpha = 16.0\ndropout = 0.1\n[data]\ndataset = \"quickstart/city\"\n\
         max_length = 96\neval_limit = 20\n[train]\nmax_steps = 12\nbatch_size = 7\nlearning_rate = 2e-3\nlog_every = 1\n{more}\n\
         [eval]\nevery = 12\n"
    );
    fs::write(place.path("recipe.toml"), text).unwrap();
    let one = alone(&place, &[]);
    for size in [2, 5] {
        // The bound is for CPUs whose products are rounded otherwise than on those that were tried: there, nothing differs.
        assert_alike(&train(&place, size, &format!("of-{size}"), &[]), &one, 12, [1e-7, 1e-7]);
    }
    fs::remove_dir_all(one).unwrap();
    assert_alike_with(&place, &[2, 5], &["adapter.method=full", "train.learning_rate=1e-4"], [1e-7, 1e-7]);
}

/// Trains by one process and by others with these settings.
fn assert_alike_with(place: &Place, sizes: &[usize], sets: &[&str], bounds: [f64; 2]) {
    let sets: Vec<&str> =
        ["train.max_steps=20", "eval.every=10"].iter().chain(sets).flat_map(|set| ["--set", set]).collect();
    println!("{sets:?}");
    let one = alone(place, &sets);
    for size in sizes {
        assert_alike(&train(place, *size, "several", &sets), &one, 20, bounds);
        fs::remove_dir_all(place.path("several")).unwrap();
    }
    fs::remove_dir_all(one).unwrap();
}

#[test]
fn every_way_to_split_a_step_is_shared() {
    let encoder = encoder();
    for sets in [
        &["train.batch_size=2"][..],
        &["train.batch_size=7", "train.micro_batch_size=3"],
        &["train.micro_batch_size=1"],
        &["train.gradient_checkpointing=true", "train.micro_batch_size=2"],
        &["train.class_weights=balanced"],
    ] {
        assert_alike_with(&encoder, &[3, 5], sets, CLOSE);
    }
    let decoder = decoder();
    for sets in [
        &["train.batch_size=1"][..],
        &["train.batch_size=7", "train.micro_batch_tokens=40"],
        &["train.gradient_checkpointing=true", "train.micro_batch_size=2"],
    ] {
        assert_alike_with(&decoder, &[3], sets, CLOSE);
    }
}

#[test]
fn every_method_and_precision_is_shared() {
    for place in [encoder(), decoder()] {
        assert_alike_with(&place, &[2], &["adapter.method=full", "train.learning_rate=1e-4"], CLOSE);
        assert_alike_with(&place, &[3], &["adapter.method=lora"], CLOSE);
        // As much as with micro-batches of another size in one process.
        assert_alike_with(&place, &[2], &["train.precision=bf16"], ROUGH);
    }
}

/// The program with this name on the `PATH`.
fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.exists());
    if found.is_none() {
        println!("skipped: no {name} on the PATH");
    }
    found
}

/// Runs the command through a launcher with these arguments of its own; all must end well.
fn launched(place: &Place, launcher: &Path, own: &[&str], args: &[&str]) -> Output {
    let command = place.command(args);
    let mut whole = Command::new(launcher);
    whole
        .args(own)
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap());
    for (name, value) in command.get_envs() {
        whole.env(name, value.unwrap());
    }
    whole.stdin(Stdio::null()).output().unwrap()
}

#[test]
fn every_launcher_starts_a_training() {
    let place = encoder();
    let one = alone(&place, &[]);
    let into = |out| [&TRAIN[..], &["--out", out]].concat();
    let torchrun: &[&str] = &["--no-python", "--standalone", "--nproc-per-node", "2"];
    // As root, in a container, and beyond the cores; others ignore what only some versions know.
    let mpirun: &[&str] = &["--allow-run-as-root", "--oversubscribe", "-np", "2"];
    for (name, own) in [("torchrun", torchrun), ("mpirun", mpirun)] {
        let Some(launcher) = installed(name) else { continue };
        let output = launched(&place, &launcher, own, &into(name));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_alike(&place.path(name), &one, 50, CLOSE);
    }
    // Slurm's variables, on one node.
    let job = std::process::id().to_string();
    let of_slurm = |rank: usize| {
        let mut command = place.command(&into("slurm"));
        let rank = rank.to_string();
        for (name, value) in [
            ("PROCID", &*rank),
            ("LOCALID", &rank),
            ("NTASKS", "2"),
            ("STEP_NUM_TASKS", "2"),
            ("JOB_ID", &job),
        ] {
            command.env(format!("SLURM_{name}"), value);
        }
        command.env("SLURM_STEP_ID", "0").env("SLURM_STEP_NODELIST", "localhost");
        forked::start(&command)
    };
    ends(vec![of_slurm(0), of_slurm(1)], 0);
    assert_alike(&place.path("slurm"), &one, 50, CLOSE);
}

#[test]
fn the_command_starts_its_own_processes() {
    let place = encoder();
    let one = alone(&place, &[]);
    for size in ["2", "5"] {
        let output =
            place.command(&[&TRAIN[..], &["--out", size, "--processes", size]].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert_alike(&place.path(size), &one, 50, CLOSE);
        // One speaks for all.
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &errors(&output);
        assert_eq!(said.matches("\nwrote ").count(), 1, "{said}");
    }
    let output = of_rank(&place, &[&TRAIN[..], &["--out", "two", "--processes", "2"]].concat(), 0, 2, "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(error_of(&output).contains("a launcher has started this process, of 2"), "{}", errors(&output));
}

#[test]
fn processes_that_were_asked_for_different_work_are_refused_by_name() {
    let place = encoder();
    let text = fs::read_to_string(place.path("recipe.toml")).unwrap();
    fs::write(place.path("other.toml"), text.replace("rank = 4", "rank = 3")).unwrap();
    let train = [&TRAIN[..], &["--out", "run"]].concat();
    let refused = |other: &[&'static str], expected: &str| {
        for output in ends(start_each(&place, &[train.clone(), train.clone(), other.to_vec()]), 2) {
            let error = error_of(&output);
            assert!(error.contains("rank 2") && error.contains(expected), "{error}");
        }
    };
    refused(&[&train[..], &["--set", "train.seed=6"]].concat(), "`train.seed` is 6, on rank 0 5");
    refused(&["train", "--recipe", "other.toml", "--out", "run"], "`adapter.rank` is 3, on rank 0 4");
    refused(&[&train[..], &["--sweep", "train.seed=1,2"]].concat(), "a sweep of 2 runs, on rank 0 one run");
    refused(
        &["init-svd", "--model", "base", "--rank", "4"],
        "rank 2 was started for `init-svd`, rank 0 for `train`",
    );
    refused(&[&train[..], &["--set", "train.sede=1"]].concat(), "`train.seed`");
    // Of a run that goes on by its folder alone.
    alone(&place, &["--set", "train.max_steps=2"]);
    let resumed = |set| vec!["train", "--resume", "one", "--set", set];
    for output in ends(start_each(&place, &[resumed("train.log_every=2"), resumed("train.log_every=3")]), 2) {
        let error = error_of(&output);
        assert!(
            error.contains("rank 1 has other settings")
                && error.contains("`train.log_every` is 3, on rank 0 2"),
            "{error}"
        );
    }
}

/// Each of two processes has a folder of its own, with the same names in it.
fn refused_for(places: &[Place; 2], expected: &str) {
    let port = free_port();
    let start = |(rank, place)| forked::start(&of_rank(place, &TRAIN[..3], rank, 2, &port));
    for output in ends(places.iter().enumerate().map(start).collect(), 2) {
        let error = error_of(&output);
        assert!(error.contains("rank 1 has other inputs than rank 0") && error.contains(expected), "{error}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn processes_with_another_base_are_refused_by_name() {
    let places = [encoder(), encoder()];
    for (place, from) in places.iter().zip(["bert-gelu", "bert-relu-trunk"]) {
        let text = fs::read_to_string(place.path("recipe.toml")).unwrap();
        let named = text.replace(&format!("{:?}", encoders().join("bert-gelu")), "\"base\"");
        assert_ne!(named, text);
        fs::write(place.path("recipe.toml"), named).unwrap();
        copy(&encoders().join(from), &place.path("base"));
    }
    refused_for(&places, "`base` is");
}

#[test]
fn processes_with_other_data_are_refused_by_name() {
    let data = encoders().join("data");
    let places = [0, 1].map(|skipped| {
        let place = Place::with_own(&fs::read_to_string(data.join("datasets.toml")).unwrap());
        copy(&data, &place.path(""));
        let rows = fs::read_to_string(data.join("train.jsonl")).unwrap();
        let rows: Vec<&str> = rows.lines().skip(skipped).collect();
        fs::write(place.path("train.jsonl"), rows.join("\n") + "\n").unwrap();
        of_recipe(place, &encoders().join("bert-gelu"), "tiny/pairs", "")
    });
    refused_for(&places, "`training data` is");
}

#[test]
fn processes_that_do_not_fit_together_are_refused_by_name() {
    let place = encoder();
    let args = [&TRAIN[..], &["--out", "run", "--timeout", "30"]].concat();
    let port = free_port();
    let start = |rank, size| forked::start(&of_rank(&place, &args, rank, size, &port));
    for output in ends(vec![start(0, 2), start(1, 3)], 2) {
        let error = error_of(&output);
        assert!(error.contains("rank 1 was started as one of 3 processes, rank 0 as one of 2"), "{error}");
    }
    // An interface that one does not have.
    let port = free_port();
    let mut other = of_rank(&place, &args, 1, 2, &port);
    other.env("GLOO_SOCKET_IFNAME", "nowhere0");
    let first = of_rank(&place, &args, 0, 2, &port);
    for output in ends(vec![forked::start(&first), forked::start(&other)], 2) {
        let error = error_of(&output);
        assert!(error.contains("no network interface `nowhere0`"), "{error}");
    }
    // One that does not come.
    let args = [&TRAIN[..], &["--out", "run", "--timeout", "3"]].concat();
    let port = free_port();
    let start = |rank| forked::start(&of_rank(&place, &args, rank, 2, &port));
    let output = ends(vec![start(0)], 75).remove(0);
    assert!(error_of(&output).contains("rank 1 of 2 has not come within 3 s"), "{}", errors(&output));
    let output = ends(vec![start(1)], 75).remove(0);
    assert!(error_of(&output).contains("rank 0 cannot be reached at 127.0.0.1"), "{}", errors(&output));
    // A port that is taken.
    let taken = TcpListener::bind(("0.0.0.0", 0)).unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = forked::output(&of_rank(&place, &args, 0, 2, &port));
    assert_eq!(output.status.code(), Some(75), "{}", errors(&output));
    assert!(error_of(&output).contains(&format!("cannot listen at port {port}")), "{}", errors(&output));
}

#[test]
fn a_rank_that_comes_twice_is_refused() {
    let place = encoder();
    let args = [&TRAIN[..], &["--out", "run", "--timeout", "60"]].concat();
    let port = free_port();
    let start = |rank| forked::start(&of_rank(&place, &args, rank, 3, &port));
    let (first, mut twice) = (start(0), vec![start(1), start(1)]);
    let since = Instant::now();
    let second = loop {
        if let Some(over) = twice.iter_mut().position(Run::is_over) {
            break twice.remove(over).wait();
        }
        assert!(since.elapsed() < PATIENCE);
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(errors(&second).contains("rank 1"), "{}", errors(&second));
    assert_eq!(second.status.code(), Some(2), "{}", errors(&second));
    // The others go on once all have come.
    twice.extend([first, start(2)]);
    ends(twice, 0);
}

/// What three processes come to without a stop.
static WHOLE: LazyLock<Outcome> = LazyLock::new(|| outcome(&train(&encoder(), 3, "whole", &[])));

#[test]
fn a_run_goes_on_by_as_many_processes_as_before() {
    let place = encoder();
    interrupted(&place, 3, 1, libc::SIGTERM);
    for size in [2, 1] {
        for output in ends(start(&place, size, "run", &[]), 2) {
            let error = error_of(&output);
            assert!(error.contains("was written by 3 processes"), "{error}");
        }
    }
    ends(start(&place, 3, "run", &[]), 0);
    assert_eq!(outcome(&place.path("run")), *WHOLE);
}

/// Starts a training by so many processes and sends one of them a signal that asks it to end.
fn interrupted(place: &Place, size: usize, rank: usize, signal: i32) {
    let run = place.path("run");
    let mut runs = start(place, size, "run", &[]);
    reaches(&mut runs, &run, 12);
    runs[rank].signal(signal);
    ends(runs, 130);
    assert!(logged_step(&run) < 50, "the run ended before the signal");
}

/// Waits until the first process has logged this step.
fn reaches(runs: &mut Vec<Run>, run: &Path, step: u64) {
    if !crate::resume::wait_until(&mut runs[0], || logged_step(run) >= step) {
        let said = runs.drain(..).map(|run| errors(&run.within(PATIENCE).0)).collect::<Vec<_>>();
        panic!("the run ended before: {}", said.join("\n--\n"));
    }
}

#[test]
fn a_run_goes_on_by_another_number_of_processes_if_asked() {
    let place = encoder();
    let one = alone(&place, &[]);
    interrupted(&place, 3, 2, libc::SIGUSR1);
    ends(start(&place, 2, "run", &["--rescale"]), 0);
    assert_alike(&place.path("run"), &one, 50, CLOSE);
}

#[test]
fn a_signal_to_any_process_ends_all_with_one_checkpoint() {
    let place = encoder();
    for (rank, signal) in [(0, libc::SIGINT), (1, libc::SIGTERM), (2, libc::SIGUSR1)] {
        interrupted(&place, 3, rank, signal);
        ends(start(&place, 3, "run", &[]), 0);
        assert_eq!(outcome(&place.path("run")), *WHOLE);
        fs::remove_dir_all(place.path("run")).unwrap();
    }
}

/// One of three processes gets this signal at a step; the others must end, and the run go on to the same bits.
fn survives_the_loss_of(victim: usize, signal: i32) {
    let place = encoder();
    let mut runs = start(&place, 3, "run", &["--timeout", "15"]);
    reaches(&mut runs, &place.path("run"), 12);
    runs[victim].signal(signal);
    let mut lost = runs.remove(victim);
    for output in ends(runs, 75) {
        let error = error_of(&output);
        assert!(error.contains(&format!("rank {victim} (")), "{error}");
    }
    lost.signal(libc::SIGKILL);
    assert_eq!(lost.wait().status.code(), None);
    ends(start(&place, 3, "run", &[]), 0);
    assert_eq!(outcome(&place.path("run")), *WHOLE);
}

#[test]
fn the_first_process_may_be_killed() {
    survives_the_loss_of(0, libc::SIGKILL);
}

#[test]
fn another_process_may_be_killed() {
    survives_the_loss_of(1, libc::SIGKILL);
}

#[test]
fn a_process_that_hangs_ends_all() {
    survives_the_loss_of(2, libc::SIGSTOP);
}

#[test]
fn a_failure_of_one_process_is_told_by_all() {
    let place = encoder();
    // The folder cannot be made: a file is in its place. Only the first process tries.
    fs::write(place.path("run"), "").unwrap();
    for output in ends(start(&place, 2, "run", &[]), 1) {
        assert!(error_of(&output).contains("run"), "{}", errors(&output));
    }
}

#[test]
fn a_command_that_is_not_shared_is_done_once() {
    let place = encoder();
    alone(&place, &["--set", "train.max_steps=2"]);
    let port = free_port();
    let args = ["merge", "--run", "one", "--out", "merged"];
    let outputs =
        ends((0..2).map(|rank| forked::start(&of_rank(&place, &args, rank, 2, &port))).collect(), 0);
    assert!(place.path("merged/model.safetensors").exists());
    assert!(outputs[1].stdout.is_empty() && outputs[1].stderr.is_empty(), "{}", errors(&outputs[1]));
}

/// The processes that this one has started, in their order.
fn children(parent: u32) -> Vec<i32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let is_child = |process: &i32| {
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        fields.split_whitespace().nth(1) == Some(&parent.to_string())
    };
    let mut found: Vec<i32> = numbers.filter(is_child).collect();
    found.sort_unstable();
    found
}

/// Starts a training with `--processes 3`.
fn launcher(place: &Place) -> std::process::Child {
    let args = [
        &TRAIN[..],
        &["--out", "run", "--processes", "3", "--timeout", "30", "--set", "train.max_steps=100000"],
    ]
    .concat();
    let mut command = place.command(&args);
    let said = fs::File::create(place.path("launcher.log")).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn().unwrap()
}

/// As [`launcher`], and waits until it trains.
fn own_processes(place: &Place) -> std::process::Child {
    let mut parent = launcher(place);
    let since = Instant::now();
    while logged_step(&place.path("run")) < 12 {
        let is_over = parent.try_wait().unwrap().is_some() || since.elapsed() > PATIENCE;
        let said = || fs::read_to_string(place.path("launcher.log")).unwrap();
        assert!(!is_over, "the run does not come to the point: {}", said());
        std::thread::sleep(Duration::from_millis(20));
    }
    parent
}

fn signal(process: i32, signal: i32) {
    // SAFETY: sends a signal to a process that this test has started.
    assert_eq!(unsafe { libc::kill(process, signal) }, 0);
}

/// Waits until these processes are gone.
fn are_gone(processes: &[i32]) {
    let since = Instant::now();
    let is_there = |process: &i32| {
        // One that nobody waits for any more is gone as well.
        let status = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
        status.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    };
    while processes.iter().any(is_there) {
        assert!(since.elapsed() < Duration::from_secs(40), "{processes:?} stay");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_launched_training_ends_with_its_parent_and_with_any_process() {
    let place = encoder();
    // A signal to the parent asks all to end; after its loss nothing stays.
    for (to_parent, code) in [(libc::SIGTERM, Some(130)), (libc::SIGUSR1, Some(130)), (libc::SIGKILL, None)] {
        let mut parent = own_processes(&place);
        let started = children(parent.id());
        assert_eq!(started.len(), 3);
        signal(parent.id() as i32, to_parent);
        assert_eq!(parent.wait().unwrap().code(), code);
        are_gone(&started);
        assert!(fs::read_dir(place.path("run/checkpoints")).unwrap().count() > 0);
        fs::remove_dir_all(place.path("run")).unwrap();
    }
    for victim in [0, 2] {
        let mut parent = own_processes(&place);
        let started = children(parent.id());
        signal(started[victim], libc::SIGKILL);
        assert_eq!(parent.wait().unwrap().code(), Some(75));
        are_gone(&started);
        fs::remove_dir_all(place.path("run")).unwrap();
    }
}

#[test]
fn processes_that_have_just_been_started_end_with_their_parent() {
    let place = encoder();
    for millis in [0, 20, 60, 120] {
        let mut parent = launcher(&place);
        let since = Instant::now();
        let started = loop {
            let started = children(parent.id());
            if started.len() == 3 {
                break started;
            }
            assert!(since.elapsed() < PATIENCE, "the processes do not start");
        };
        // Before they can ask for a signal at its end, or after.
        std::thread::sleep(Duration::from_millis(millis));
        signal(parent.id() as i32, libc::SIGKILL);
        parent.wait().unwrap();
        are_gone(&started);
    }
}

#[test]
fn a_sweep_is_shared_by_its_runs() {
    let place = encoder();
    let sweep =
        ["train", "--recipe", "recipe.toml", "--set", "train.max_steps=10", "--sweep", "train.seed=0,1,2"];
    place.run(&[&sweep[..], &["--out", "one"]].concat(), 0);
    let args = [&sweep[..], &["--out", "several"]].concat();
    ends(start_each(&place, &[args.clone(), args]), 0);
    for seed in ["seed=0", "seed=1", "seed=2"] {
        assert_eq!(outcome(&place.path("several").join(seed)), outcome(&place.path("one").join(seed)));
    }
}

#[test]
fn the_declarations_of_gloo_are_those_of_the_libtorch_that_is_linked() {
    // `src/torch/gloo/` declares what the headers of PyTorch 2.11 include and its wheels leave out. With another version: compare
    // these declarations with the gloo that PyTorch's third_party folder names, then change the number here.
    let header = PathBuf::from(env!("LIBTORCH")).join("include/torch/headeronly/version.h");
    let text = fs::read_to_string(&header).unwrap();
    for line in ["#define TORCH_VERSION_MAJOR 2", "#define TORCH_VERSION_MINOR 11"] {
        assert!(text.lines().any(|found| found == line), "{}: {line}", header.display());
    }
}
