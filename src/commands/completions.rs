//! `loraxs completions`, and the answers to the shell's questions that its scripts ask.

use std::ffi::OsStr;
use std::io::{self, ErrorKind, Write as _};

use clap_complete::Shell;
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _};
use clap_complete::env::{CompleteEnv, Shells};

use super::VERSION;
use crate::cli;
use crate::fault::{Result, fault};
use crate::recipe::Recipe;
use crate::session::reference::recipe_keys;

/// Variable by which a script asks the binary, instead of running a command.
const VARIABLE: &str = "LORAXS_COMPLETE";

/// Writes the completion script of `shell`; without one, answers the script that asks, if one does. A closed pipe is no error.
/// Returns true if there was something to write. Fails when standard output cannot be written.
pub fn run(shell: Option<Shell>) -> Result<bool> {
    let Some(shell) = shell else {
        let asked = CompleteEnv::with_factory(completed).var(VARIABLE);
        return Ok(asked.try_complete(std::env::args_os(), std::env::current_dir().ok().as_deref())?);
    };
    let name = shell.to_string();
    let shells = Shells::builtins();
    let script = shells.completer(&name).ok_or_else(|| fault(format!("no completions for `{name}`")))?;
    let mut text = Vec::new();
    script.write_registration(VARIABLE, "loraxs", "loraxs", "loraxs", &mut text)?;
    let mut out = io::stdout().lock();
    match out.write_all(&text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(true),
    }
}

/// Returns the command whose recipes and keys are known.
fn completed() -> clap::Command {
    let recipes = |arg: clap::Arg| arg.add(ArgValueCompleter::new(recipes));
    let keys = |arg: clap::Arg| arg.add(ArgValueCompleter::new(assignments));
    cli::command(VERSION)
        .mut_subcommand("train", |train| {
            train.mut_arg("recipe", recipes).mut_arg("set", keys).mut_arg("sweep", keys)
        })
        .mut_subcommand("eval", |eval| eval.mut_arg("set", keys))
        .mut_subcommand("recipe", |recipe| recipe.mut_arg("name", recipes))
}

/// Returns the built-in recipes and the files that begin so.
fn recipes(begun: &OsStr) -> Vec<CompletionCandidate> {
    let begins = |name: &String| begun.to_str().is_some_and(|begun| name.starts_with(begun));
    let built_in = Recipe::built_in().filter(|(name, _)| begins(name));
    let mut found: Vec<_> =
        built_in.map(|(name, about)| CompletionCandidate::new(name).help(Some(about.into()))).collect();
    found.extend(PathCompleter::any().complete(begun));
    found
}

/// Returns the keys that begin so, or behind `key=` the words that it may be.
fn assignments(begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_str().unwrap_or_default();
    let of = |(key, words): (String, Vec<String>)| match begun.split_once('=') {
        Some((asked, _)) if asked == key => words.iter().map(|word| format!("{key}={word}")).collect(),
        Some(_) => Vec::new(),
        None => vec![format!("{key}=")],
    };
    let all = recipe_keys().into_iter().flat_map(of);
    all.filter(|candidate| candidate.starts_with(begun)).map(CompletionCandidate::new).collect()
}
