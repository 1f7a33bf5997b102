//! The processes that work on one command together: their ranks, sums and messages.
//!
//! A world of one is the path of a single process: each call returns at once.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use crate::fault::Result;

/// The processes of a command, as one of them sees them.
#[derive(Debug, Clone, Default)]
pub struct World {}

impl World {
    /// Returns the world of a single process.
    pub fn alone() -> Self {
        Self::default()
    }

    /// Returns this process's number, from 0.
    pub fn rank(&self) -> usize {
        0
    }

    /// Returns the number of processes.
    pub fn size(&self) -> usize {
        1
    }

    /// Returns true if there is no other process.
    pub fn is_alone(&self) -> bool {
        self.size() == 1
    }

    /// Returns true for the process that writes all files.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// Replaces a tensor by its sum over all processes: contiguous, on the CPU, fp32, fp64 or int64, of one shape.
    ///
    /// # Errors
    /// When another process failed or is lost.
    pub fn all_reduce(&self, _sum: &Tensor) -> Result<()> {
        Ok(())
    }

    /// Replaces a tensor by that of process `from`: contiguous, on the CPU, of one shape.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn broadcast(&self, _values: &Tensor, _from: usize) -> Result<()> {
        Ok(())
    }

    /// Returns the values of all processes, in the order of their ranks.
    ///
    /// # Errors
    /// As [`World::all_reduce`]; when a value cannot be written as JSON.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        Ok(vec![own])
    }

    /// Computes a value on the first process, and returns it, or its error, on every one.
    ///
    /// # Errors
    /// As `body` and [`World::gather`].
    pub fn on_first<T: Serialize + DeserializeOwned>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        body()
    }

    /// Returns this process's value once all have one.
    ///
    /// # Errors
    /// That of any process, on each.
    pub fn agreed<T>(&self, own: Result<T>) -> Result<T> {
        own
    }

    /// Returns 0, 1, 2, … to whichever process asks next; `name` tells counters apart.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn claim(&self, _name: &str) -> Result<u64> {
        Ok(0)
    }

    /// Sends a message to the first process; does not wait.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn send(&self, _message: Vec<u8>) -> Result<()> {
        Ok(())
    }

    /// Returns the messages that have come to the first process since, each with its sender; does not wait.
    ///
    /// # Errors
    /// As [`World::all_reduce`].
    pub fn received(&self) -> Result<Vec<(usize, Vec<u8>)>> {
        Ok(Vec::new())
    }
}
