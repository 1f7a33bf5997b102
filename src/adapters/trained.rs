//! The store of trained tensors. "Trained" means "in this store": the optimiser, the adapter file, the parameter count
//! and the merge all work from it, never from names.

use tch::{Kind, Tensor, no_grad};

/// Owner of a trained tensor, which decides its learning rate and its line in the table of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A factor of an adapter.
    Adapter,
    /// A weight of the base (method `full`).
    Base,
    /// A weight of the task's head.
    Head,
}

impl Group {
    /// Returns its name in the files of a checkpoint.
    pub fn name(self) -> &'static str {
        match self {
            Self::Adapter => "adapter",
            Self::Base => "base",
            Self::Head => "head",
        }
    }
}

/// One trained tensor.
#[derive(Debug)]
pub struct TrainedTensor {
    /// The tensor's path, as in the checkpoint for base and head.
    pub name: String,
    /// Owner of the tensor.
    pub group: Group,
    /// fp32 leaf, `[k, ..]`; without the leading axis in [`Group::Base`].
    pub tensor: Tensor,
}

/// All trained tensors, in the order in which they were added.
#[derive(Debug)]
pub struct Trained {
    runs: i64,
    entries: Vec<TrainedTensor>,
}

impl Trained {
    /// Creates an empty store for `runs` runs trained together.
    pub fn new(runs: i64) -> Self {
        Self { runs, entries: Vec::new() }
    }

    /// Returns k, the number of runs trained together.
    pub fn runs(&self) -> i64 {
        self.runs
    }

    /// Adds a tensor in fp32 and returns the leaf that layers compute with, which shares the store's memory.
    pub fn add(&mut self, name: impl Into<String>, group: Group, initial: &Tensor) -> Tensor {
        let tensor = no_grad(|| initial.to_kind(Kind::Float).contiguous().copy()).set_requires_grad(true);
        let shared = tensor.shallow_clone();
        self.entries.push(TrainedTensor { name: name.into(), group, tensor });
        shared
    }

    /// Returns a store of one of the runs, which shares its memory.
    pub fn of_run(&self, run: i64) -> Self {
        let of_entry = |entry: &TrainedTensor| {
            let tensor = match entry.group {
                Group::Base => entry.tensor.shallow_clone(),
                Group::Adapter | Group::Head => entry.tensor.narrow(0, run, 1),
            };
            TrainedTensor { name: entry.name.clone(), group: entry.group, tensor }
        };
        Self { runs: 1, entries: self.entries.iter().map(of_entry).collect() }
    }

    /// Returns the entries, in order.
    pub fn entries(&self) -> &[TrainedTensor] {
        &self.entries
    }

    /// Counts the trainable parameters of one run in `group`.
    pub fn count(&self, group: Group) -> usize {
        let numbers =
            self.entries.iter().filter(|e| e.group == group).map(|e| e.tensor.numel()).sum::<usize>();
        match group {
            Group::Base => numbers,
            Group::Adapter | Group::Head => numbers / usize::try_from(self.runs).unwrap_or(1).max(1),
        }
    }
}
