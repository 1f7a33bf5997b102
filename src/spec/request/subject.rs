//! The name of a model.

use std::path::PathBuf;

use clap::Args;

use super::path;

/// The model that `eval`, `predict` and `merge` work on: a run, or a base with or without an adapter.
#[derive(Debug, Clone, Default, Args)]
pub struct SubjectSource {
    /// Folder of a run: use its base model and its best adapter
    #[arg(long, value_name = "DIR", conflicts_with_all = ["adapter", "revision"], required_unless_present = "model", value_parser = path())]
    pub run: Option<PathBuf>,
    /// Checkpoint of the run to use instead of its best adapter, such as `step-40` [default for a run without an
    /// adapter yet: the newest]
    #[arg(long, value_name = "STEP", requires = "run")]
    pub checkpoint: Option<String>,
    /// Base model: hub id or folder; with `--run`, the place where the run's base is now
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Branch, tag or commit of a hub id [default: the adapter's, else main]
    #[arg(long, value_name = "REV")]
    pub revision: Option<String>,
    /// Folder of an adapter to load on `--model`
    #[arg(long, value_name = "DIR", requires = "model", value_parser = path())]
    pub adapter: Option<PathBuf>,
    /// Folder of the basis that the adapter was trained in [default: taken from the cache, or computed]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub basis: Option<PathBuf>,
}
