//! Watches over the processes: each tells the store twice a second that it lives, and one that fails or falls silent ends all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::store::Store;
use crate::fault::{Fault, LOST, Result, exit_code, hint_of};

/// Time between looks for a failure while an operation is under way.
pub const LOOK: Duration = Duration::from_millis(100);
/// Time between signs of life.
const INTERVAL: Duration = Duration::from_millis(500);
/// Silence that counts once a connection has broken.
const BROKEN: Duration = Duration::from_secs(3);
/// Time in which a cause of a broken connection is looked for.
const SEARCH: Duration = Duration::from_secs(10);
/// A process that others wait for hangs after this many times the limit of silence: some work of one takes long.
pub const HANGS: u32 = 6;
/// A look that comes so late was not possible earlier: this process was suspended, and maybe all.
const SUSPENDED: Duration = Duration::from_secs(5);
/// Key of the failure that ends all.
const FAILED: &str = "failed";
/// Key of a process's wish that the cause of a broken connection be found.
const SUSPECTED: &str = "suspected";

/// Why all processes end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failure {
    /// The process that failed or is lost.
    pub rank: usize,
    message: String,
    hint: Option<String>,
    code: u8,
    /// True if it could not tell this itself.
    lost: bool,
}

impl Failure {
    /// Returns what process `rank` tells of its error.
    pub fn of(rank: usize, error: &anyhow::Error) -> Self {
        let (message, hint) = (format!("{error:#}"), hint_of(error).map(str::to_owned));
        Self { rank, message, hint, code: exit_code(error), lost: false }
    }

    fn lost(rank: usize, message: String) -> Self {
        let hint =
            "start all processes again: with `--resume`, a training goes on from its newest checkpoint";
        Self { rank, message, hint: Some(hint.to_owned()), code: LOST, lost: true }
    }

    /// Returns true if the process could not tell it itself.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Returns the error as the process itself tells it, or with its name before it.
    pub fn error(&self, name: Option<&str>) -> anyhow::Error {
        let message = match name.filter(|_| !self.lost) {
            Some(name) => format!("{name} failed: {}", self.message),
            None => self.message.clone(),
        };
        Fault::with_code(message, self.hint.clone(), self.code).into()
    }
}

/// What the threads of one process know of all.
#[derive(Debug)]
pub struct Watch {
    rank: usize,
    /// Names in messages: `rank 1 (host)`.
    names: Vec<String>,
    timeout: Duration,
    /// Operations that this process has begun.
    operations: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    failure: Option<Failure>,
    /// When the store last answered.
    contact: Instant,
    /// When this was last asked for.
    asked: Instant,
    /// True once a connection has broken.
    suspects: bool,
    /// True once the work is done.
    closing: bool,
}

impl Watch {
    /// Begins to watch, with a connection of its own to the store, in which all have told of themselves ([`Watch::first_sign`]).
    pub fn begin(rank: usize, names: Vec<String>, timeout: Duration, store: Store) -> Result<Arc<Self>> {
        let now = Instant::now();
        let state = State { failure: None, contact: now, asked: now, suspects: false, closing: false };
        let operations = AtomicU64::new(0);
        let watch = Arc::new(Self { rank, names, timeout, operations, state: Mutex::new(state) });
        let own = Arc::clone(&watch);
        thread::Builder::new().name("watch".into()).spawn(move || own.run(&store))?;
        Ok(watch)
    }

    /// Tells the store for the first time that this process lives.
    ///
    /// # Errors
    /// When the store is lost.
    pub fn first_sign(store: &Store, rank: usize) -> Result<()> {
        store.set(&sign_of(rank), b"0 0")
    }

    /// Returns the name of a process in messages.
    pub fn name(&self, rank: usize) -> &str {
        self.names.get(rank).map_or("a process", String::as_str)
    }

    /// Notes that an operation of all begins.
    pub fn count(&self) {
        self.operations.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that this process ends soon: what it cannot reach from now on does not matter.
    pub fn close(&self) {
        self.state().closing = true;
    }

    /// Returns the reason for which all end, if there is one.
    pub fn failure(&self) -> Option<Failure> {
        let mut state = self.state();
        let asked = std::mem::replace(&mut state.asked, Instant::now());
        if asked.elapsed() > SUSPENDED {
            state.contact = Instant::now();
        }
        let silence = state.contact.elapsed();
        if state.failure.is_none() && silence > self.timeout {
            let message = format!("{} has not answered for {} s", self.name(0), silence.as_secs());
            state.failure = Some(Failure::lost(0, message));
        }
        state.failure.clone()
    }

    /// Returns the error of [`Watch::failure`] as this process tells it.
    ///
    /// # Errors
    /// That one.
    pub fn check(&self) -> Result<()> {
        self.failure().map_or(Ok(()), |failure| Err(self.told(&failure)))
    }

    fn told(&self, failure: &Failure) -> anyhow::Error {
        failure.error(Some(self.name(failure.rank)).filter(|_| failure.rank != self.rank))
    }

    /// Returns why a connection broke: by the process that failed or fell silent, or else `error` itself.
    pub fn cause(&self, error: anyhow::Error) -> anyhow::Error {
        self.state().suspects = true;
        let start = Instant::now();
        while start.elapsed() < SEARCH {
            if let Some(failure) = self.failure() {
                return self.told(&failure);
            }
            thread::sleep(INTERVAL / 10);
        }
        let hint = "start all processes again; `GLOO_SOCKET_IFNAME` chooses the network interface";
        let message = format!("a connection to another process broke: {error:#}");
        Fault::with_code(message, Some(hint.to_owned()), LOST).into()
    }

    /// Tells all of a failure; returns the first one of all.
    pub fn post(&self, store: &Arc<Store>, own: Failure) -> Failure {
        let (sender, receiver) = mpsc::channel();
        let (told, store) = (serde_json::to_vec(&own).unwrap_or_default(), Arc::clone(store));
        thread::spawn(move || sender.send(store.set_first(FAILED, &told)));
        let first = receiver.recv_timeout(BROKEN).ok().and_then(Result::ok);
        first.and_then(|first| serde_json::from_slice(&first).ok()).unwrap_or(own)
    }

    /// Waits until the others have read what ends all.
    pub fn linger(&self) {
        thread::sleep(3 * INTERVAL);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread of the watch.
    fn run(&self, store: &Store) {
        let watched: Vec<usize> = if self.rank == 0 { (0..self.names.len()).collect() } else { vec![0] };
        let mut heard = vec![Heard::new(); watched.len()];
        let mut before = Instant::now();
        for sign in 1_u64.. {
            if before.elapsed() > SUSPENDED {
                heard = vec![Heard::new(); watched.len()];
            }
            before = Instant::now();
            let failure = match self.look(store, sign, &watched, &mut heard) {
                Ok(failure) => failure,
                // The first process, with the store, may end before the others.
                Err(_) if self.state().closing => return,
                // What fails at once is gone.
                Err(_) if self.rank > 0 => Some(Failure::lost(0, format!("{} is gone", self.name(0)))),
                Err(error) => {
                    Some(Failure::lost(0, format!("the store of the processes cannot be reached: {error:#}")))
                }
            };
            let mut state = self.state();
            state.contact = Instant::now();
            if failure.is_some() {
                // The first one counts.
                state.failure = state.failure.take().or(failure);
                return;
            }
            drop(state);
            thread::sleep(INTERVAL);
        }
    }

    /// Gives a sign of life, and looks for those of others and for a failure.
    fn look(
        &self,
        store: &Store,
        sign: u64,
        watched: &[usize],
        heard: &mut [Heard],
    ) -> Result<Option<Failure>> {
        let operations = self.operations.load(Ordering::Relaxed);
        store.set(&sign_of(self.rank), format!("{sign} {operations}").as_bytes())?;
        if let Some(failed) = store.find(FAILED)? {
            return Ok(Some(serde_json::from_slice(&failed)?));
        }
        let suspects = self.state().suspects;
        if suspects {
            store.set(SUSPECTED, b"1")?;
        }
        let suspects = suspects || store.find(SUSPECTED)?.is_some();
        let keys: Vec<String> = watched.iter().map(|&rank| sign_of(rank)).collect();
        heard.iter_mut().zip(store.get_many(&keys)?).for_each(|(last, sign)| last.note(sign));
        let most = heard.iter().map(|heard| heard.operations).max().unwrap_or(0);
        let behind = watched.iter().zip(heard.iter()).filter(|(_, heard)| heard.operations < most);
        let behind = behind.map(|(&rank, heard)| (heard.moved.elapsed(), rank)).max();
        if let Some((waited, rank)) = behind.filter(|(waited, _)| *waited > self.timeout * HANGS) {
            let (name, seconds) = (self.name(rank), waited.as_secs());
            let message = format!(
                "{name} hangs: others wait for it, and for {seconds} s it has done nothing with them"
            );
            return self.lost(store, rank, message);
        }
        let silences = watched.iter().zip(heard.iter()).map(|(&rank, heard)| (heard.alive.elapsed(), rank));
        let Some((silence, rank)) = silences.max() else { return Ok(None) };
        // The first process decides while it lives: it hears of all.
        let limit = match (suspects, rank == 0) {
            (true, false) => BROKEN.min(self.timeout),
            (true, true) => (2 * BROKEN).min(self.timeout),
            (false, _) => self.timeout,
        };
        if silence <= limit {
            return Ok(None);
        }
        let message = format!("{} is lost: no sign of life for {} s", self.name(rank), silence.as_secs());
        self.lost(store, rank, message)
    }

    /// Tells all that a process is lost; returns the first failure of all.
    fn lost(&self, store: &Store, rank: usize, message: String) -> Result<Option<Failure>> {
        let lost = serde_json::to_vec(&Failure::lost(rank, message))?;
        Ok(Some(serde_json::from_slice(&store.set_first(FAILED, &lost)?)?))
    }
}

/// What was last heard of a process.
#[derive(Debug, Clone)]
struct Heard {
    sign: Vec<u8>,
    /// When its sign changed.
    alive: Instant,
    operations: u64,
    /// When its number of operations changed.
    moved: Instant,
}

impl Heard {
    fn new() -> Self {
        Self { sign: Vec::new(), alive: Instant::now(), operations: 0, moved: Instant::now() }
    }

    fn note(&mut self, sign: Vec<u8>) {
        if sign == self.sign {
            return;
        }
        let now = Instant::now();
        let text = String::from_utf8_lossy(&sign);
        let operations = text.split_once(' ').and_then(|(_, count)| count.parse().ok()).unwrap_or(0);
        if operations != self.operations {
            (self.operations, self.moved) = (operations, now);
        }
        (self.sign, self.alive) = (sign, now);
    }
}

fn sign_of(rank: usize) -> String {
    format!("alive/{rank}")
}
