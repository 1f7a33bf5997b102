//! The `loraxs` command: parses, runs one subcommand, prints one error chain.

use std::process::ExitCode;

use loraxs::{cli, commands};

fn main() -> ExitCode {
    commands::run(cli::parse(commands::VERSION))
}
