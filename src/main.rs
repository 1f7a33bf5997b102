//! The `loraxs` command: parses, runs one subcommand, prints one error chain.

use loraxs::{cli, commands, torch};

fn main() {
    torch::leave(commands::run(cli::parse(std::env::args_os(), commands::VERSION)))
}
