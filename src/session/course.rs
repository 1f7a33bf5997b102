//! Where, how far and by whom the runs of a training are trained.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::run_folder::RESULTS;
use crate::fault::Result;
use crate::torch::world::World;

/// Where and how far a run of a training goes.
pub struct Course {
    /// Its name among others; empty = the only one.
    pub name: String,
    /// Its folder.
    pub out: PathBuf,
    /// Step at which it pauses; at or after its last = at its end.
    pub pause: u64,
}

impl Course {
    /// Returns the course of the only run of a training.
    pub fn of_only(out: &Path) -> Self {
        Self { name: String::new(), out: out.to_owned(), pause: u64::MAX }
    }
}

/// How the runs of a training are trained.
#[derive(Clone, Copy)]
pub struct GroupPlan<'a> {
    /// The course of each.
    pub courses: &'a [Course],
    /// Once others have ended and fewer than so many runs are left, these yield; 0 = never.
    pub fewest: usize,
    /// Name of the file of results of runs that pause.
    pub paused: &'a str,
    /// True if runs go on from their newest checkpoints.
    pub resume: bool,
    /// When the work on them began, loading included.
    pub start: Instant,
    /// Fails when a run may no longer be written by this process.
    pub check: &'a dyn Fn(usize) -> Result<()>,
    /// The processes that train together, of which the first writes.
    pub world: &'a World,
    /// True if runs go on with another number of processes than they began with.
    pub rescale: bool,
}

impl<'a> GroupPlan<'a> {
    /// Returns the plan of a run of its own, by these processes.
    pub fn of_one(courses: &'a [Course], resume: bool, start: Instant, world: &'a World) -> Self {
        let check = &|_| Ok(());
        Self { courses, fewest: 0, paused: RESULTS, resume, start, check, world, rescale: false }
    }
}
