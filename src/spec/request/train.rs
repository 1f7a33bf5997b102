//! What is asked of a training.

use std::path::PathBuf;

use clap::Args;

use super::path;
use crate::spec::Shard;

/// A run or a sweep to train.
#[derive(Debug, Clone, Args)]
pub struct TrainRequest {
    /// Recipe: a file, a file in `recipes/`, or the name of a built-in recipe [default with `--resume`: the run's]
    #[arg(long, value_name = "FILE", required_unless_present = "resume")]
    pub recipe: Option<String>,
    /// Override a recipe key; can be repeated
    #[arg(long, value_name = "KEY.PATH=VALUE")]
    pub set: Vec<String>,
    /// Train a run for each value of a key, a folder for each in `--out`: of several keys, for every combination. Also
    /// the settings of `[sweep]`, such as `halving=2x3`; can be repeated
    #[arg(long, value_name = "KEY.PATH=V1,V2,...")]
    pub sweep: Vec<String>,
    /// Begin with this share of a sweep's runs, such as `3/16`, while other processes begin with theirs in the same
    /// folder [default in a Slurm array: by its variables]
    #[arg(long, value_name = "I/N")]
    pub shard: Option<Shard>,
    /// Folder of the run [default: `runs/RECIPE`]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Basis written by `init-svd --out`; short for `--set adapter.basis=DIR`
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub basis: Option<PathBuf>,
    /// Go on from the newest checkpoint of the run in DIR [default: in `--out`], or start if there is none. `--set`
    /// may change keys that change no result, such as `train.log_every`, and with a constant schedule prolong it
    #[arg(long, value_name = "DIR", num_args = 0..=1, value_parser = path())]
    pub resume: Option<Option<PathBuf>>,
}
