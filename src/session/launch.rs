//! Starts the processes of a command on this host, and looks after them.

use std::net::TcpListener;
use std::os::fd::AsRawFd as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::io::dup;
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};

use crate::fault::{Fault, LOST, Result};
use crate::train::interrupt;

/// Tells a process that its parent is [`run`], by the parent's number.
const LAUNCHED: &str = "LORAXS_LAUNCHED";
/// Tells the first one of its socket that listens.
pub const LISTENER: &str = "LORAXS_LISTENER";
/// Time between looks.
const LOOK: Duration = Duration::from_millis(50);
/// Time after the end of one process in which the others end by themselves, beyond that of silence.
const GRACE: Duration = Duration::from_secs(30);

/// Returns true if this process was started by [`run`].
pub fn is_launched() -> bool {
    std::env::var_os(LAUNCHED).is_some()
}

/// Lets a process that [`run`] started end with its parent.
pub fn end_with_parent() {
    if is_launched() {
        // Without it, the others still notice the silence.
        let _ = set_parent_process_death_signal(Some(Signal::TERM));
        // It may have ended before.
        let parent = getppid().map(|parent| parent.as_raw_nonzero().to_string());
        if std::env::var(LAUNCHED).ok() != parent {
            std::process::exit(130);
        }
    }
}

/// Runs this command as so many processes, and returns its exit code.
/// Fails when a process cannot be started, or the first one was killed.
pub fn run(processes: usize, timeout: Duration) -> Result<u8> {
    // The first process gets it open, so that nobody can take its port.
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen at a port")?;
    let port = listener.local_addr()?.port();
    let mut listener = Some(listener);
    let _awaited = interrupt::awaited();
    let mut children = Vec::new();
    for rank in 0..processes {
        match start(rank, processes, port, listener.take()) {
            Ok(child) => children.push(child),
            Err(error) => {
                end(&mut children, Signal::KILL);
                return Err(error);
            }
        }
    }
    let ends = wait(&mut children, timeout)?;
    if let Some(signal) = ends.iter().find(|(rank, _)| *rank == 0).and_then(|(_, status)| status.signal()) {
        let message = format!("rank 0 is lost: signal {signal} ended it");
        let hint = "with `--resume`, a training goes on from its newest checkpoint".to_owned();
        return Err(Fault::with_code(message, Some(hint), LOST).into());
    }
    let code = |status: &ExitStatus| status.code().map_or(LOST, |code| u8::try_from(code).unwrap_or(1));
    // The first that failed is the cause of the others' ends.
    Ok(ends.iter().map(|(_, status)| code(status)).find(|code| *code != 0).unwrap_or(0))
}

/// Starts a process, which gets `listener`, if there is one.
fn start(rank: usize, processes: usize, port: u16, listener: Option<TcpListener>) -> Result<Child> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(program);
    command
        .args(std::env::args_os().skip(1))
        .env(LAUNCHED, std::process::id().to_string())
        .env("RANK", rank.to_string())
        .env("LOCAL_RANK", rank.to_string())
        .env("WORLD_SIZE", processes.to_string())
        .env("MASTER_ADDR", "127.0.0.1")
        .env("MASTER_PORT", port.to_string())
        .env_remove("TORCHELASTIC_USE_AGENT_STORE")
        .env_remove(LISTENER)
        .stdin(Stdio::null())
        // Ctrl-C comes here alone, and is passed on once.
        .process_group(0);
    // A copy that outlives the start of the new program, unlike sockets of `std`.
    let inherited = listener.map(dup).transpose().context("cannot pass on a socket")?;
    if let Some(socket) = &inherited {
        command.env(LISTENER, socket.as_raw_fd().to_string());
    }
    if std::env::var_os("GLOO_SOCKET_IFNAME").is_none() {
        command.env("GLOO_SOCKET_IFNAME", "lo");
    }
    command.spawn().context("cannot start a process")
}

/// Waits for all; returns their ends in order. A signal is passed on.
fn wait(children: &mut [Child], timeout: Duration) -> Result<Vec<(usize, ExitStatus)>> {
    let mut ends: Vec<(usize, ExitStatus)> = Vec::new();
    let (mut told, mut failed) = (false, None);
    while ends.len() < children.len() {
        for (rank, child) in children.iter_mut().enumerate() {
            if ends.iter().any(|(ended, _)| *ended == rank) {
                continue;
            }
            if let Some(status) = child.try_wait()? {
                if !status.success() {
                    failed.get_or_insert_with(Instant::now);
                }
                ends.push((rank, status));
            }
        }
        if interrupt::requested() && !std::mem::replace(&mut told, true) {
            end(children, Signal::TERM);
        }
        if failed.is_some_and(|since| since.elapsed() > timeout + GRACE) {
            end(children, Signal::KILL);
        }
        std::thread::sleep(LOOK);
    }
    Ok(ends)
}

fn end(children: &mut [Child], signal: Signal) {
    for child in children.iter_mut().filter_map(|child| matches!(child.try_wait(), Ok(None)).then_some(child))
    {
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        // One that has just ended needs no signal.
        let _ = pid.map(|pid| kill_process(pid, signal));
    }
}

/// Returns the CPU threads of a process that shares its host with others; `None` if somebody has chosen them.
pub fn threads(local_size: usize) -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?.trim().to_owned();
    let is_bound = allowed != read("/sys/devices/system/cpu/online").trim();
    if local_size < 2 || is_bound || std::env::var_os("OMP_NUM_THREADS").is_some() {
        return None;
    }
    Some((std::thread::available_parallelism().map_or(1, Into::into) / local_size).max(1))
}
