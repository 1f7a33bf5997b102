//! The processes of a command: joined, or started.

use std::time::Duration;

use super::Outcome;
use crate::cli::{Cli, Command, ProcessArgs};
use crate::fault::{Result, usage};
use crate::session::{launch, rendezvous};
use crate::torch::world::World;

/// Lets `work` be done by this process, together with those that a launcher has started, or by processes that this one starts.
/// Fails as `work`, and when the processes cannot meet.
pub fn run(cli: &Cli, work: impl FnOnce(&Cli) -> Result<Outcome>) -> Result<Outcome> {
    launch::end_with_parent();
    let others = rendezvous::found();
    let Some((name, ProcessArgs { processes, timeout })) = shared(&cli.command) else {
        // Nothing is gained by doing it twice.
        let is_first = others.ok().flatten().is_none_or(|others| others.rank == 0);
        return if is_first { work(cli) } else { Ok(Outcome::Done) };
    };
    let timeout = Duration::from_secs(*timeout);
    match (others?, processes) {
        (None, Some(count)) if *count > 1 => {
            return launch::run((*count).into(), timeout).map(Outcome::Launched);
        }
        (Some(others), Some(count)) if !launch::is_launched() => {
            let message =
                format!("`--processes {count}`: a launcher has started this process, of {}", others.size);
            return Err(usage(message).hint("leave out `--processes`").into());
        }
        (others, _) => rendezvous::join(others, name, timeout)?,
    };
    let outcome = work(cli)?;
    World::current().finish()?;
    Ok(outcome)
}

/// Returns name and settings of a command whose work several processes can share.
fn shared(command: &Command) -> Option<(&'static str, &ProcessArgs)> {
    match command {
        Command::Train(args) if !args.dry_run => Some(("train", &args.processes)),
        // Answers made elsewhere are only read.
        Command::Eval { request, processes } if request.completions.is_none() => Some(("eval", processes)),
        Command::InitSvd(args) => Some(("init-svd", &args.processes)),
        _ => None,
    }
}
