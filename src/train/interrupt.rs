//! Ctrl-C and SIGTERM: where a command looks for them, the first asks it to come to an end that it can go on from; elsewhere,
//! and the second time, the command ends at once. Both ends have one exit code, and leave no temporary files.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::fault::Result;
use crate::{files, torch};

/// The exit code of an interrupted command.
pub const EXIT_CODE: u8 = 130;

/// Nobody looks: a signal ends the command.
const AT_ONCE: u8 = 0;
/// Somebody looks for a signal.
const AWAITED: u8 = 1;
/// One came, and is looked for.
const REQUESTED: u8 = 2;
/// The command is about to end.
const ENDING: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(AT_ONCE);

/// Ends the command by the signals, as libtorch's loading is already. Those that the shell has set to be ignored, as it does for
/// work in the background, stay so.
///
/// # Errors
/// When the system refuses the handlers.
pub fn handle() -> Result<()> {
    static HANDLED: OnceLock<()> = OnceLock::new();
    if HANDLED.set(()).is_err() {
        return Ok(());
    }
    let ignored = ignored();
    let signals = [SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(signals).context("cannot listen to signals")?;
    torch::leave_signals();
    let listen = move || signals.forever().for_each(|_| received());
    thread::Builder::new().name("signals".into()).spawn(listen).context("cannot listen to signals")?;
    Ok(())
}

/// The signals that are ignored, the lowest bit for signal 1; none where the system does not say.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn received() {
    if STATE.compare_exchange(AWAITED, REQUESTED, SeqCst, SeqCst).is_err() {
        STATE.store(ENDING, SeqCst);
        files::remove_partial();
        signal_hook::low_level::exit(EXIT_CODE.into());
    }
}

/// As long as it lives, somebody looks whether a signal was [`requested`].
#[derive(Debug)]
pub struct Awaited(());

/// Begins to look for signals.
pub fn awaited() -> Awaited {
    let _ = STATE.compare_exchange(AT_ONCE, AWAITED, SeqCst, SeqCst);
    Awaited(())
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let _ = STATE.compare_exchange(AWAITED, AT_ONCE, SeqCst, SeqCst);
    }
}

/// Whether a signal came.
pub fn requested() -> bool {
    STATE.load(SeqCst) == REQUESTED
}

/// Does not return where a signal ends the command: what fails meanwhile fails for that.
pub fn await_end() {
    while STATE.load(SeqCst) == ENDING {
        thread::park();
    }
}

/// Makes a write beyond a limit on the size of files an error that can be told, where it would end the process.
pub fn outlive_file_limits() {
    // Without the handler the limit still holds, only its message is lost.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}
