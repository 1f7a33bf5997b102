//! One module for each subcommand, and the code that they share.

mod chat;
pub mod completions;
mod doctor;
mod eval;
mod init_svd;
mod merge;
mod predict;
mod processes;
mod rebase;
mod recipe;
mod report;
mod sweep;
mod train;

use std::any::Any;
use std::path::{Path, PathBuf};

use crate::cli::{Cli, Command, Global, LogFormat};
use crate::fault::{Result, exit_code, fault, in_hand, reading, words};
use crate::report::{init_logging, report_error};
use crate::session::environment::Environment;
use crate::session::run_folder::DATASETS;
use crate::session::{launch, rendezvous};
use crate::spec::request::SubjectSource;
use crate::torch;
use crate::torch::world::World;
use crate::train::{Ending, interrupt};

/// Text that `--version` prints.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nlibtorch ", "2.11.0, CUDA 13.0");

/// End of a command that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
    /// Finished; a problem was reported.
    Failed,
    /// Processes that this one started ended so.
    Launched(u8),
}

impl From<Ending> for Outcome {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Finished => Self::Done,
            Ending::Interrupted => Self::Interrupted,
        }
    }
}

/// Opens what the global options name; the data sets of `run` are known, unless `--datasets` replaces them.
fn environment(global: &Global, run: Option<&Path>) -> Result<Environment> {
    let of_run = run.map(|run| run.join(DATASETS)).filter(|path| path.exists());
    let datasets: Vec<&Path> = of_run.as_deref().into_iter().chain(global.datasets.as_deref()).collect();
    Environment::open(&global.device, global.threads, &datasets, global.offline)
}

/// Runs the command and turns its end into an exit code: 0 done, 1 failed, 2 wrong usage, 75 another process was lost, 130 interrupted.
pub fn run(cli: Cli) -> u8 {
    let global = &cli.global;
    let others = rendezvous::found().ok().flatten();
    // What all processes would tell is told by the first.
    let is_quiet =
        global.quiet || global.verbose == 0 && others.as_ref().is_some_and(|others| others.rank > 0);
    let loudness = if is_quiet { -1 } else { i8::try_from(global.verbose).unwrap_or(2) };
    init_logging(loudness, global.log_format == LogFormat::Json);
    // Panic messages are shown as errors.
    std::panic::set_hook(Box::new(|_| {}));
    torch::keep_memory();
    interrupt::outlive_file_limits();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(&cli)));
    interrupt::await_end();
    match outcome.unwrap_or_else(|payload| Err(from_panic(payload.as_ref()))) {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::Interrupted) => interrupt::EXIT_CODE,
        Ok(Outcome::Failed) => 1,
        Ok(Outcome::Launched(code)) => code,
        Err(error) => {
            let error = torch::plain(error);
            let is_cause = World::current().fail(&error);
            if is_cause || !launch::is_launched() {
                let rank = World::current().rank();
                let whose = (rank > 0 && !launch::is_launched()).then(|| format!("rank {rank}"));
                report_error(whose.as_deref(), &error, global.log_format == LogFormat::Json);
            }
            exit_code(&error)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Outcome> {
    interrupt::handle()?;
    if torch::started_nowhere() {
        let hint = "change to an existing folder";
        return Err(fault("the current folder was removed").hint(hint).into());
    }
    let _reading = opened(&cli.command).map(reading);
    processes::run(cli, work)
}

fn work(cli: &Cli) -> Result<Outcome> {
    match &cli.command {
        Command::InitSvd(args) => init_svd::run(&cli.global, args).map(|()| Outcome::Done),
        Command::Train(args) => train::run(&cli.global, args),
        Command::Eval { request, .. } => eval::run(&cli.global, request),
        Command::Predict(request) => predict::run(&cli.global, request),
        Command::Chat(request) => chat::run(&cli.global, request),
        Command::Merge(args) => merge::run(&cli.global, args).map(|()| Outcome::Done),
        Command::Report(args) => report::run(args),
        Command::Recipe(args) => recipe::run(args).map(|()| Outcome::Done),
        Command::Doctor(args) => doctor::run(&cli.global, args),
        Command::Completions { shell } => completions::run(Some(*shell)).map(|_| Outcome::Done),
    }
}

/// Returns the path that a command works on.
fn opened(command: &Command) -> Option<&Path> {
    match command {
        Command::InitSvd(args) => Some(Path::new(&args.model)),
        Command::Train(args) => args.request.recipe.as_deref().map(Path::new),
        Command::Eval { request, .. } => of_subject(&request.subject),
        Command::Predict(request) => of_subject(&request.subject),
        Command::Chat(request) => of_subject(&request.subject),
        Command::Merge(args) => of_subject(&args.subject),
        Command::Report(_) | Command::Recipe(_) | Command::Doctor(_) | Command::Completions { .. } => None,
    }
}

fn of_subject(subject: &SubjectSource) -> Option<&Path> {
    subject.run.as_deref().or(subject.model.as_deref().map(Path::new))
}

/// Returns the error behind a panic, with the path that was being read.
fn from_panic(payload: &(dyn Any + Send)) -> anyhow::Error {
    let text = words(payload);
    // libtorch's plain operators panic with the error that they return.
    let is_libtorch = text.contains("Torch(\"") || torch::ran_out(text);
    let fault = if is_libtorch { torch::failure(text) } else { torch::unforeseen(text) };
    // What a whole command works on, a recipe or a folder, is not what fills the memory.
    let fills = |path: &PathBuf| path.extension().is_some_and(|extension| extension != "toml");
    match in_hand().filter(|path| !torch::ran_out(text) || fills(path)) {
        Some(path) => anyhow::Error::new(fault).context(format!("while reading `{}`", path.display())),
        None => fault.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::hint_of;

    #[test]
    fn a_panic_tells_what_was_being_read_and_nothing_of_its_trace() {
        let told = |text: &str| {
            let error = from_panic(&text.to_owned());
            (format!("{error:#}"), hint_of(&error).unwrap_or_default().to_owned())
        };
        let reading = reading(Path::new("model/config.json"));
        let wrapped = "called `Result::unwrap()` on an `Err` value: Torch(\"index out of range in self\\nException raised from \
                       embedding at x.cpp:3\\nframe #0: c10::Error\")";
        let (message, hint) = told(wrapped);
        assert_eq!(message, "while reading `model/config.json`: libtorch: index out of range in self");
        assert!(hint.contains("report"), "{hint}");
        let wrapped = wrapped.replace("index out of range in self", "[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: \
                                       can't allocate memory: you tried to allocate 4398046511104 bytes. Error code 12");
        let (message, hint) = told(&wrapped);
        assert_eq!(
            message,
            "while reading `model/config.json`: out of memory: an allocation of 4194304 MiB failed"
        );
        assert!(hint.starts_with("lower `train.micro_batch_size`"), "{hint}");
        drop(reading);
        assert_eq!(told("index out of bounds").0, "index out of bounds");
        let _of_command = super::reading(Path::new("recipe.toml"));
        let (message, hint) = told("out of memory: an allocation of 3 MiB failed");
        assert!(told(&wrapped).0.starts_with("out of memory"), "{}", told(&wrapped).0);
        assert!(message.starts_with("out of memory") && hint.starts_with("lower"), "{message}, {hint}");
    }

    #[test]
    fn an_error_of_libtorch_is_told_without_its_trace() {
        let error = tch::Tensor::from_slice(&[1_i64]).f_reshape([2]).map(drop).unwrap_err();
        let error = anyhow::Error::from(error).context("cannot use `x`");
        assert!(format!("{error:#}").contains("frame #"), "{error:#}");
        let told = format!("{:#}", torch::plain(error));
        assert!(
            told.starts_with("cannot use `x`: libtorch: shape '[2]' is invalid for input of size 1"),
            "{told}"
        );
        assert_eq!(told.lines().count(), 1, "{told}");
        assert_eq!(format!("{:#}", torch::plain(fault("a").into())), "a");
    }
}
