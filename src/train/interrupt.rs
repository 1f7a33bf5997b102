//! Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, which batch systems send ahead of a time limit: if a command polls for them, the first asks it to stop where it can resume; otherwise,
//! and the second time, it ends at once. All have the same exit code and leave no temporary files.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, Ordering::SeqCst};
use std::sync::{Arc, OnceLock};
use std::thread;

use anyhow::Context as _;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::fault::Result;
use crate::{files, report, torch};

/// Exit code of an interrupted command.
pub const EXIT_CODE: u8 = 130;

/// No polling: a signal ends the command.
const AT_ONCE: u8 = 0;
/// The command polls for a signal.
const AWAITED: u8 = 1;
/// A signal came while polled for.
const REQUESTED: u8 = 2;
/// The command is about to end.
const ENDING: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(AT_ONCE);
/// The last signal.
static LAST: AtomicI32 = AtomicI32::new(0);

/// Lets the signals end the command, as they already do while libtorch loads. Those that the shell has set to
/// be ignored, as for background jobs, stay ignored.
///
/// # Errors
/// When the system refuses the handlers.
pub fn handle() -> Result<()> {
    static HANDLED: OnceLock<()> = OnceLock::new();
    if HANDLED.set(()).is_err() {
        return Ok(());
    }
    let ignored = ignored();
    let signals =
        [SIGINT, SIGTERM, SIGHUP, SIGUSR1].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0);
    let mut signals = Signals::new(signals).context("cannot handle signals")?;
    torch::leave_signals();
    let listen = move || signals.forever().for_each(received);
    thread::Builder::new().name("signals".into()).spawn(listen).context("cannot handle signals")?;
    Ok(())
}

/// Returns the ignored signals, the lowest bit for signal 1; none if the system does not report them.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn received(signal: i32) {
    LAST.store(signal, SeqCst);
    if STATE.compare_exchange(AWAITED, REQUESTED, SeqCst, SeqCst).is_err() {
        STATE.store(ENDING, SeqCst);
        files::remove_partial();
        report::clear_progress();
        signal_hook::low_level::exit(EXIT_CODE.into());
    }
}

/// Guard: while it lives, the command polls [`requested`].
#[derive(Debug)]
pub struct Awaited(());

/// Starts polling for signals.
pub fn awaited() -> Awaited {
    let _ = STATE.compare_exchange(AT_ONCE, AWAITED, SeqCst, SeqCst);
    Awaited(())
}

impl Drop for Awaited {
    fn drop(&mut self) {
        let _ = STATE.compare_exchange(AWAITED, AT_ONCE, SeqCst, SeqCst);
    }
}

/// Returns true if a signal came while polled for.
pub fn requested() -> bool {
    STATE.load(SeqCst) == REQUESTED
}

/// Forgets a request that Ctrl-C made and nothing polls for any more. Returns false if there is none, or another signal made it.
pub fn dismissed() -> bool {
    LAST.load(SeqCst) == SIGINT && STATE.compare_exchange(REQUESTED, AT_ONCE, SeqCst, SeqCst).is_ok()
}

/// Blocks for good if a signal is ending the command: failures meanwhile are due to that.
pub fn await_end() {
    while STATE.load(SeqCst) == ENDING {
        thread::park();
    }
}

/// Turns a write beyond the file size limit into an error to report; it would otherwise end the process.
pub fn outlive_file_limits() {
    // Without the handler the limit still holds, only its message is lost.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}
