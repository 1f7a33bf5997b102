//! The `loraxs` command: parses, runs one subcommand, prints one error chain.

use loraxs::{cli, commands, torch};

fn main() {
    if commands::completions::run(None).unwrap_or(true) {
        torch::leave(0);
    }
    torch::leave(commands::run(cli::parse(std::env::args_os(), commands::VERSION)))
}
