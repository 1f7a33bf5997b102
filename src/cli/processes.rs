//! Arguments of commands whose work several processes share.

use clap::Args;

/// Other processes that work on the same command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Several processes")]
pub struct ProcessArgs {
    /// Start N processes on this host, which share the work. On several hosts, `torchrun --no-python`, `srun` and `mpirun`
    /// start them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub processes: Option<u16>,
    /// Time without a sign of life after which a process is given up and all end, and in which all must have come
    #[arg(long, value_name = "SECONDS", env = "LORAXS_TIMEOUT", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..))]
    pub timeout: u64,
}
