//! The request of an evaluation: data sets, split, arithmetic, sizes, and where results go.

use std::path::PathBuf;

use tch::Device;

use super::settled;
use super::subject::Subject;
use crate::cli::EvalArgs;
use crate::spec::Precision;

/// Default number of examples in one pass.
const BATCH_SIZE: usize = 64;
/// Default number of tokens in a sequence.
const MAX_LENGTH: usize = 128;

/// Data sets and settings of an evaluation, as the command line, the run or a default decides.
pub struct Request {
    /// The data sets to score.
    pub tasks: Vec<String>,
    /// Their split.
    pub split: String,
    /// Arithmetic of the base.
    pub precision: Precision,
    /// Examples in one pass.
    pub batch_size: usize,
    /// Tokens of a sequence.
    pub max_length: usize,
    /// Folder of the results.
    pub out: PathBuf,
    /// True if that is the run's own folder.
    pub of_run: bool,
}

impl Request {
    /// Creates the request of a command line for a subject.
    pub fn new(args: &EvalArgs, subject: &Subject, device: Device) -> Self {
        let recipe = subject.recipe.as_ref();
        let trained_length =
            subject.adapter.as_ref().map(|a| a.config.max_length).filter(|&length| length > 0);
        let longest = usize::try_from(subject.base.base.config.longest_sequence()).unwrap_or(MAX_LENGTH);
        // Each split has its own folder, so that one does not overwrite another.
        let other = |split: &&String| recipe.is_none_or(|recipe| recipe.data.validation != **split);
        let own_out = args.subject.run.as_ref().map(|run| match args.split.as_ref().filter(other) {
            Some(split) => run.join("eval").join(split),
            None => run.join("eval"),
        });
        Self {
            of_run: args.out.is_none() && own_out.is_some(),
            tasks: match (&recipe, args.task.as_slice()) {
                (Some(recipe), []) => vec![recipe.data.dataset.clone()],
                (_, tasks) => tasks.to_vec(),
            },
            split: args
                .split
                .clone()
                .or(recipe.map(|recipe| recipe.data.validation.clone()))
                .unwrap_or_else(|| "validation".into()),
            precision: settled(
                args.precision.or(recipe.map(|recipe| recipe.train.precision)).unwrap_or(Precision::Fp32),
                device,
                &subject.base.base.config,
            ),
            batch_size: args.batch_size.unwrap_or(BATCH_SIZE),
            max_length: args
                .max_length
                .or(recipe.map(|recipe| recipe.data.max_length))
                .or(trained_length)
                .unwrap_or(MAX_LENGTH.min(longest)),
            out: args.out.clone().or(own_out).unwrap_or_else(|| PathBuf::from("eval")),
        }
    }
}
