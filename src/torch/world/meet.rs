//! How the processes meet: by a store at an address that each was told.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::os::fd::RawFd;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::store::Store;
use super::watch::{Failure, Watch};
use crate::fault::{Fault, LOST, Result, usage};

/// Time in which others read the last that a process with the store says.
const LINGER: Duration = Duration::from_millis(1500);

/// Where the processes meet, as one of them was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Number of this process, from 0.
    pub rank: usize,
    /// Number of processes.
    pub size: usize,
    /// Number of this process on its host.
    pub local_rank: usize,
    /// Host of the store.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// True if the launcher has made the store; else the first process does.
    pub is_served: bool,
    /// A socket that listens at the port, for the first process.
    pub listener: Option<RawFd>,
    /// Tells a start from those before in the same store.
    pub attempt: String,
}

/// What each process tells of itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Number of processes.
    pub size: usize,
    /// Version of the program.
    pub version: String,
    /// The command.
    pub work: String,
    /// Name of the host.
    pub host: String,
}

/// Tells of this process, and waits for what the first one says of all; returns their hosts.
pub fn hellos(store: &Store, own: &Rendezvous, hello: &Hello, timeout: Duration) -> Result<Vec<String>> {
    let Rendezvous { rank, size, host, port, .. } = own;
    let Hello { version, work, .. } = hello;
    // The first process may end at any time, and the store with it.
    let lost = |error: anyhow::Error| {
        tracing::debug!("{error:#}");
        Fault::with_code(format!("rank 0 at {host}:{port} has not answered"), None, LOST)
    };
    if store.add(&format!("came/{rank}"), 1).map_err(lost)? > 1 {
        let message = format!("another process at {host}:{port} is rank {rank} as well");
        return Err(usage(message).hint("give each process a rank of its own, and each job a port").into());
    }
    Watch::first_sign(store, *rank).map_err(lost)?;
    store.set(&format!("hello/{rank}"), &serde_json::to_vec(hello)?).map_err(lost)?;
    let end = Instant::now() + timeout;
    if *rank > 0 {
        let answer = store.get("start", timeout + LINGER).map_err(lost)?;
        let started: std::result::Result<Vec<String>, Failure> = serde_json::from_slice(&answer)?;
        return started.map_err(|failure| failure.error(None));
    }
    let of = |other: usize| -> Result<Hello> {
        let left = end.saturating_duration_since(Instant::now()).max(LINGER);
        let hello = store.get(&format!("hello/{other}"), left).map_err(|_| {
            let message = format!("rank {other} of {size} has not come within {} s", timeout.as_secs());
            let hint = "start every process; `--timeout` sets how long they wait for one another".to_owned();
            Fault::with_code(message, Some(hint), LOST)
        })?;
        let hello: Hello = serde_json::from_slice(&hello)?;
        if hello.size != *size {
            let found = hello.size;
            let message =
                format!("rank {other} was started as one of {found} processes, rank 0 as one of {size}");
            return Err(usage(message).hint("start all with one number of processes").into());
        }
        if hello.version != *version {
            let found = hello.version;
            let message = format!("rank {other} is loraxs {found}, rank 0 is {version}");
            return Err(usage(message).hint("install one version on all hosts").into());
        }
        if hello.work != *work {
            let message = format!("rank {other} was started for `{}`, rank 0 for `{work}`", hello.work);
            return Err(usage(message).hint("start all with one command").into());
        }
        Ok(hello)
    };
    let found: Result<Vec<String>> = (0..*size).map(|other| Ok(of(other)?.host)).collect();
    let told = found.as_ref().map_err(|error| Failure::of(0, error));
    store.set("start", &serde_json::to_vec(&told)?)?;
    if found.is_err() {
        // The store ends with this process.
        thread::sleep(LINGER);
    }
    found
}

/// Returns the error of a store that cannot be opened.
pub fn no_store(error: &anyhow::Error, (host, port): (&str, u16), serves: bool) -> anyhow::Error {
    let reason = format!("{error:#}");
    tracing::debug!("{reason}");
    // How long one of several attempts took says nothing.
    let reason = if reason.contains("timed out") { String::new() } else { format!(": {reason}") };
    let (message, hint) = match serves {
        true => (
            format!("cannot listen at port {port} for the other processes"),
            "another job may use it: choose one with `MASTER_PORT`",
        ),
        false => (
            format!("rank 0 cannot be reached at {host}:{port}{reason}"),
            "`MASTER_ADDR` and `MASTER_PORT` say where: the host of the first process, and a free port on it",
        ),
    };
    Fault::with_code(message, Some(hint.to_owned()), LOST).into()
}

/// Refuses interfaces that this host does not have; `names` by commas.
pub fn refuse_interfaces(names: &str) -> Result<()> {
    let is_there = |name: &&str| std::path::Path::new("/sys/class/net").join(name).exists();
    match names.split(',').filter(|name| !name.is_empty()).find(|name| !is_there(name)) {
        Some(name) => {
            let message = format!("`GLOO_SOCKET_IFNAME`: this host has no network interface `{name}`");
            Err(usage(message).hint("`ip address` lists those that there are").into())
        }
        None => Ok(()),
    }
}

pub fn own_host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Returns the address of this host by which others reach it: that of the interface to the store, or, where that is this host by its own
/// name, of the one to everywhere.
pub fn own_address(store: (&str, u16)) -> String {
    let loopback = || IpAddr::from([127, 0, 0, 1]);
    let towards = |place: SocketAddr| -> Option<IpAddr> {
        let any: IpAddr = if place.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        // Nothing is sent.
        socket.connect(place).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    let places = || store.to_socket_addrs().into_iter().flatten();
    let found = places().find(SocketAddr::is_ipv4).or_else(|| places().next()).and_then(towards);
    let by_name = store.0 != "localhost" && store.0.parse::<IpAddr>().is_err();
    match found {
        Some(address) if address.is_loopback() && by_name => {
            towards(([192, 0, 2, 1], 9).into()).unwrap_or(address)
        }
        found => found.unwrap_or_else(loopback),
    }
    .to_string()
}
