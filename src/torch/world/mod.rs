//! The processes that work on one command together: their ranks, sums and messages.
//!
//! A world of one is the path of a single process: each call returns at once. Otherwise the processes meet at a store
//! (`c10d::TCPStore`) and exchange tensors by Gloo, both of libtorch's CPU library, as PyTorch's `init_process_group("gloo")` does.

mod gloo;
mod meet;
mod question;
mod store;
mod watch;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor};

use crate::fault::Result;
use crate::torch::unforeseen;
use gloo::{Gloo, Work};
pub use meet::Rendezvous;
use meet::{Hello, hellos, no_store, own_address, own_host, refuse_interfaces};
use question::Question;
use store::{Role, Store};
use watch::{Failure, HANGS, LOOK, Watch};

/// Least time after which an operation fails that a living process does not take part in.
const PATIENCE: Duration = Duration::from_secs(1800);

/// The processes of a command, as one of them sees them.
#[derive(Debug, Clone, Default)]
pub struct World(Option<Arc<Members>>);

#[derive(Debug)]
struct Members {
    rendezvous: Rendezvous,
    /// Processes on this host.
    local_size: usize,
    gloo: Gloo,
    store: Arc<Store>,
    watch: Arc<Watch>,
    /// Microseconds in sums.
    summing: AtomicU64,
}

static CURRENT: OnceLock<World> = OnceLock::new();

impl World {
    /// Returns the world of a single process.
    pub fn alone() -> Self {
        Self::default()
    }

    /// Returns the world that this process has joined.
    pub fn current() -> Self {
        CURRENT.get().cloned().unwrap_or_default()
    }

    /// Meets all other processes, which must be of the same `version` and do the same `work`. Silence of one for longer than `timeout` ends all.
    ///
    /// # Errors
    /// When one does not come in time, or was started otherwise.
    pub fn join(rendezvous: Rendezvous, version: &str, work: &str, timeout: Duration) -> Result<Self> {
        let members = Members::meet(rendezvous, version, work, timeout)?;
        Ok(CURRENT.get_or_init(|| Self(Some(Arc::new(members)))).clone())
    }

    /// Returns this process's number, from 0.
    pub fn rank(&self) -> usize {
        self.0.as_ref().map_or(0, |members| members.rendezvous.rank)
    }

    /// Returns the number of processes.
    pub fn size(&self) -> usize {
        self.0.as_ref().map_or(1, |members| members.rendezvous.size)
    }

    /// Returns this process's number among those of its host, and their number.
    pub fn local(&self) -> [usize; 2] {
        self.0.as_ref().map_or([0, 1], |members| [members.rendezvous.local_rank, members.local_size])
    }

    /// Returns true if there is no other process.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Returns true for the process that writes all files.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Replaces tensors by their sums over all processes: contiguous, on the CPU, fp32, fp64 or int64, of the same shapes everywhere.
    /// All get the same bits.
    ///
    /// # Errors
    /// When another process failed or is lost.
    pub fn all_reduce(&self, sums: &[&Tensor]) -> Result<()> {
        let Some(members) = &self.0 else { return Ok(()) };
        let start = Instant::now();
        let started: Vec<Result<Work>> = sums.iter().map(|sum| members.gloo.all_reduce(sum)).collect();
        started.into_iter().try_for_each(|work| members.done(work))?;
        let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        members.summing.fetch_add(micros, Ordering::Relaxed);
        Ok(())
    }

    /// Replaces a tensor by that of process `from`: contiguous, on the CPU, of one shape.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn broadcast(&self, values: &Tensor, from: usize) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |members| members.done(members.gloo.broadcast(values, from)))
    }

    /// Returns the values of all processes, in the order of their ranks.
    ///
    /// # Errors
    /// As [`World::all_reduce`]; when a value cannot be written as JSON.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        let Some(members) = &self.0 else { return Ok(vec![own]) };
        let all = members.gather(&serde_json::to_vec(&own)?)?;
        all.iter().map(|bytes| Ok(serde_json::from_slice(bytes)?)).collect()
    }

    /// As [`World::gather`], of numbers, which need not be finite.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn gather_numbers(&self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        let Some(members) = &self.0 else { return Ok(vec![own.to_vec()]) };
        let bytes: Vec<u8> = own.iter().flat_map(|number| number.to_le_bytes()).collect();
        let number = |bytes: &[u8]| f64::from_le_bytes(bytes.try_into().unwrap_or_default());
        let of = |bytes: Vec<u8>| bytes.chunks_exact(8).map(number).collect();
        Ok(members.gather(&bytes)?.into_iter().map(of).collect())
    }

    /// Computes a value on the first process, and returns it, or its error, on every one.
    ///
    /// # Errors
    /// As `body` and [`World::gather`].
    pub fn on_first<T: Serialize + DeserializeOwned>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(members) = &self.0 else { return body() };
        if self.is_first() {
            let found = body();
            let told = found.as_ref().map_err(|error| Failure::of(0, error));
            members.tell(Some(serde_json::to_vec(&told)?))?;
            return found;
        }
        let told: std::result::Result<T, Failure> = serde_json::from_slice(&members.tell(None)?)?;
        told.map_err(|failure| failure.error(None))
    }

    /// As [`World::on_first`], of what may take longer than the others can wait for a message. `name` is as in [`World::claim`].
    ///
    /// # Errors
    /// As [`World::on_first`].
    pub fn on_first_slowly<T: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        body: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        while !self.is_first() && self.claimed(name)? == 0 {
            thread::sleep(LOOK);
        }
        self.on_first(|| {
            let found = body();
            if !self.is_alone() {
                self.claim(name)?;
            }
            found
        })
    }

    /// Returns this process's value once all have one.
    ///
    /// # Errors
    /// That of the first process with one, on each.
    pub fn agreed<T>(&self, own: Result<T>) -> Result<T> {
        let Some(members) = &self.0 else { return own };
        let failed = own.as_ref().err().map(|error| Failure::of(self.rank(), error));
        let Some(failure) = self.gather(failed)?.into_iter().flatten().next() else { return own };
        match own {
            Err(error) if failure.rank == self.rank() => Err(error),
            _ => Err(failure.error(Some(members.watch.name(failure.rank)))),
        }
    }

    /// Returns 0, 1, 2, … to whichever process asks next; `name` tells counters apart.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn claim(&self, name: &str) -> Result<u64> {
        let Some(members) = &self.0 else { return Err(unforeseen("a claim of one process").into()) };
        let key = format!("claims/{name}");
        Ok(u64::try_from(members.asked(move |store| store.add(&key, 1))? - 1)?)
    }

    /// Returns how often this counter was claimed.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn claimed(&self, name: &str) -> Result<u64> {
        let Some(members) = &self.0 else { return Ok(0) };
        let key = format!("claims/{name}");
        Ok(u64::try_from(members.asked(move |store| store.add(&key, 0))?)?)
    }

    /// Looks whether another process failed or is lost, which is known without a message.
    ///
    /// # Errors
    /// Then.
    pub fn check(&self) -> Result<()> {
        self.0.as_ref().map_or(Ok(()), |members| members.watch.check())
    }

    /// Sends a message to the first process; does not wait.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn send(&self, message: Vec<u8>) -> Result<()> {
        let Some(members) = &self.0 else { return Ok(()) };
        let rank = self.rank();
        members.asked(move |store| {
            let number = store.add(&format!("sent/{rank}"), 1)?;
            store.set(&format!("sent/{rank}/{number}"), &message)
        })
    }

    /// Returns the messages that have come to the first process since, each with its sender, in the order of each; does not wait.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn received(&self) -> Result<Vec<(usize, Vec<u8>)>> {
        let Some(members) = &self.0 else { return Ok(Vec::new()) };
        let size = self.size();
        members.asked(move |store| {
            let mut found = Vec::new();
            for rank in 0..size {
                // What was taken is counted down, so that a number is that of what is left.
                let sent = store.add(&format!("sent/{rank}"), 0)?;
                let mut taken = store.add(&format!("taken/{rank}"), 0)?;
                while taken < sent {
                    taken += 1;
                    let key = format!("sent/{rank}/{taken}");
                    // A number is drawn before its message is set.
                    found.push((rank, store.get(&key, PATIENCE)?));
                    store.remove(&key)?;
                    store.add(&format!("taken/{rank}"), 1)?;
                }
            }
            Ok(found)
        })
    }

    /// Waits for all at the end of the work.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn finish(&self) -> Result<()> {
        let Some(members) = &self.0 else { return Ok(()) };
        let one = Tensor::ones([1], (Kind::Float, Device::Cpu));
        let seconds = Duration::from_micros(members.summing.load(Ordering::Relaxed)).as_secs_f64();
        tracing::debug!("sums took {seconds:.3} s, with the time in which others were waited for");
        members.watch.close();
        self.all_reduce(&[&one])
    }

    /// Tells all others that this process failed, and gives them time to read it. Returns true if all end for this failure, or for the
    /// loss of a process and this is the first.
    pub fn fail(&self, error: &anyhow::Error) -> bool {
        let Some(members) = &self.0 else { return true };
        let Members { watch, store, .. } = &**members;
        let failure = watch.failure().unwrap_or_else(|| watch.post(store, Failure::of(self.rank(), error)));
        if self.is_first() && !members.rendezvous.is_served {
            watch.linger();
        }
        failure.rank == self.rank() || failure.is_lost() && self.is_first()
    }
}

impl Members {
    fn meet(rendezvous: Rendezvous, version: &str, work: &str, timeout: Duration) -> Result<Self> {
        let [version, work] = [version, work].map(str::to_owned);
        let hello = Hello { size: rendezvous.size, version, work, host: own_host() };
        let Rendezvous { rank, size, host, port, is_served, attempt, listener, .. } = &rendezvous;
        let (rank, size, address) = (*rank, *size, (host.as_str(), *port));
        let serves = rank == 0 && !is_served;
        let open = |role: Role, prefix: &str| {
            let end = Instant::now() + timeout;
            loop {
                let left = end.saturating_duration_since(Instant::now()).max(10 * LOOK);
                match Store::open(address, role, prefix, left) {
                    // A connection may break while it is made.
                    Err(error) if role == Role::Client && left > 10 * LOOK => {
                        tracing::debug!("{error:#}");
                        std::thread::sleep(LOOK);
                    }
                    opened => {
                        return opened.map_err(|error| no_store(&error, address, role != Role::Client));
                    }
                }
            }
        };
        if size > 1 && rank == 0 {
            tracing::info!("waiting for {size} processes at {host}:{port}");
        }
        // A launcher's store holds what earlier commands left there; the first process's own one is of this command.
        let role = match listener {
            _ if !serves => Role::Client,
            Some(socket) => Role::ServerOf(*socket),
            None => Role::Server,
        };
        let first = open(role, &format!("loraxs/{attempt}"))?;
        let lost = |error| no_store(&error, address, false);
        let number = if *is_served { first.add(&format!("starts/{rank}"), 1).map_err(lost)? } else { 1 };
        let store = open(Role::Client, &format!("loraxs/{attempt}/{number}"))?;
        let names = hellos(&store, &rendezvous, &hello, timeout)?;
        let local_size = names.iter().filter(|name| **name == hello.host).count();
        let names = (0..).zip(&names).map(|(rank, host): (usize, _)| format!("rank {rank} ({host})"));
        let watch = Watch::begin(
            rank,
            names.collect(),
            timeout,
            open(Role::Client, &format!("loraxs/{attempt}/{number}"))?,
        )?;
        let store = Arc::new(store);
        let own = own_address(address);
        let question = Question { store: &store, watch: &watch };
        let patience = PATIENCE.max(timeout * (HANGS + 2));
        let gloo = refuse_interfaces(&std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default())
            .and_then(|()| question.answer(move |store| Gloo::open(store, rank, size, patience, &own)))
            .inspect_err(|error| {
                if watch.failure().is_none() {
                    watch.post(&store, Failure::of(rank, error));
                }
                // The store ends with this process.
                if serves {
                    watch.linger();
                }
            })?;
        Ok(Self { rendezvous, local_size, gloo, store, watch, summing: AtomicU64::new(0) })
    }

    /// Waits for an operation.
    fn done(&self, work: Result<Work>) -> Result<()> {
        let (work, watch) = (work?, &self.watch);
        watch.count();
        loop {
            match work.wait(LOOK) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => return Err(watch.cause(error)),
            }
            if let Err(error) = watch.check() {
                // It still writes into the tensor.
                std::mem::forget(work);
                return Err(error);
            }
        }
    }

    /// Returns the bytes of all processes.
    fn gather(&self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        let size = self.rendezvous.size as i64;
        let sizes = Tensor::zeros([size, 1], (Kind::Int64, Device::Cpu));
        self.done(self.gloo.gather(&sizes, &Tensor::from_slice(&[own.len() as i64])))?;
        let sizes: Vec<i64> = Vec::try_from(sizes.flatten(0, 1))?;
        let longest = sizes.iter().max().copied().unwrap_or(0).max(1);
        let mut padded = own.to_vec();
        padded.resize(usize::try_from(longest)?, 0);
        let all = Tensor::zeros([size, longest], (Kind::Uint8, Device::Cpu));
        self.done(self.gloo.gather(&all, &Tensor::from_slice(&padded)))?;
        let of = |(row, own): (i64, &i64)| Ok(Vec::try_from(all.get(row).narrow(0, 0, *own))?);
        (0..).zip(&sizes).map(of).collect()
    }

    /// Returns the bytes that the first process has.
    fn tell(&self, of_first: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let bytes = of_first.unwrap_or_default();
        let size = Tensor::from_slice(&[bytes.len() as i64]);
        self.done(self.gloo.broadcast(&size, 0))?;
        let mut padded = bytes;
        padded.resize(usize::try_from(size.int64_value(&[0]))?.max(1), 0);
        let told = Tensor::from_slice(&padded);
        self.done(self.gloo.broadcast(&told, 0))?;
        Ok(Vec::try_from(told)?)
    }

    fn asked<T: Send + 'static>(&self, ask: impl FnOnce(&Store) -> Result<T> + Send + 'static) -> Result<T> {
        Question { store: &self.store, watch: &self.watch }.answer(ask)
    }
}
