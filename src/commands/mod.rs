//! One module for each subcommand, and what they share.

mod decoding;
mod eval;
mod eval_generation;
mod eval_language;
mod init_svd;
mod merge;
mod rebase;
mod train;

use std::any::Any;
use std::io::Write as _;

use crate::cli::{Cli, Command, LogFormat};
use crate::fault::{Result, exit_code, fault, hint_of, readable};
use crate::{cli, report, torch, train::interrupt};

/// What `--version` prints.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), "\nlibtorch ", "2.11.0, CUDA 13.0");

/// How a command ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
}

/// Runs the command and turns its end into an exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
pub fn run(cli: Cli) -> u8 {
    let global = &cli.global;
    let loudness = if global.quiet { -1 } else { i8::try_from(global.verbose).unwrap_or(2) };
    report::init_logging(loudness, global.log_format == LogFormat::Json);
    // libtorch's plain operators panic with a C++ trace; people get its first line instead.
    std::panic::set_hook(Box::new(|_| {}));
    torch::keep_memory();
    interrupt::outlive_file_limits();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| dispatch(&cli)));
    interrupt::await_end();
    match outcome.unwrap_or_else(|payload| Err(from_panic(payload.as_ref()))) {
        Ok(Outcome::Done) => 0,
        Ok(Outcome::Interrupted) => interrupt::EXIT_CODE,
        Err(error) => {
            report_error(&error, global.log_format);
            exit_code(&error)
        }
    }
}

fn dispatch(cli: &Cli) -> Result<Outcome> {
    interrupt::handle()?;
    if torch::started_nowhere() {
        let hint = "change to a folder that is there";
        return Err(fault("the current folder was removed").hint(hint).into());
    }
    match &cli.command {
        Command::InitSvd(args) => init_svd::run(&cli.global, args).map(|()| Outcome::Done),
        Command::Train(args) => train::run(&cli.global, args),
        Command::Eval(args) => eval::run(&cli.global, args),
        Command::Merge(args) => merge::run(&cli.global, args).map(|()| Outcome::Done),
        Command::Completions { shell } => {
            cli::write_completions(*shell, &mut std::io::stdout().lock()).map(|()| Outcome::Done)
        }
    }
}

/// The error behind a panic of libtorch, without its trace.
fn from_panic(payload: &(dyn Any + Send)) -> anyhow::Error {
    let text = payload
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("unknown fault");
    let line = torch::first_line(text);
    let hint = if line.contains("out of memory") || line.contains("can't allocate memory") {
        "lower `train.micro_batch_size` or `data.max_length`, or set `train.gradient_checkpointing=true`"
    } else {
        "this is a fault of the program: please report it with the command that shows it"
    };
    fault(format!("libtorch: {line}")).hint(hint).into()
}

fn report_error(error: &anyhow::Error, format: LogFormat) {
    let told = |text: &str| readable(&report::redacted(text));
    let (message, hint) = (told(&format!("{error:#}")), hint_of(error).map(told));
    let text = match (format, &hint) {
        (LogFormat::Json, _) => {
            serde_json::json!({"level": "ERROR", "message": message, "hint": hint}).to_string()
        }
        (LogFormat::Text, None) => format!("error: {message}"),
        (LogFormat::Text, Some(hint)) => format!("error: {message}\nhint: {hint}"),
    };
    // Where standard error is closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{text}");
}
