//! The command line: arguments are checked for form only; the commands act on them.

mod processes;
mod report;
mod values;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::{ArgAction, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use crate::fault::readable;
use crate::spec::request::{
    ChatRequest, MergeFormat, PredictRequest, ScoreRequest, SubjectSource, TrainRequest, path,
};
use crate::spec::values::NOT_NEGATIVE;
use crate::spec::{DeviceChoice, Sigma, Spectrum, SvdMethod};
pub use processes::ProcessArgs;
pub use report::{ReportArgs, StudyFormat};
use values::{bytes, threads};

/// Fine-tune, score and export language models with very small adapters.
#[derive(Debug, Parser)]
#[command(name = "loraxs", version, arg_required_else_help = true, propagate_version = true, after_help = EXAMPLES)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Device to compute on: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:N`, or several GPUs that share the model's layers,
    /// as `cuda:0,cuda:1`
    #[arg(long, global = true, value_name = "DEVICE", default_value = "auto")]
    pub device: DeviceChoice,
    /// TOML file with data sets of your own; an entry replaces the built-in one of the same name
    #[arg(long, global = true, value_name = "FILE", value_parser = path())]
    pub datasets: Option<PathBuf>,
    /// Use cached files only, never the network (also set by `HF_HUB_OFFLINE=1`)
    #[arg(long, global = true)]
    pub offline: bool,
    /// Number of CPU threads; 0 uses all cores
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = threads)]
    pub threads: usize,
    /// Log more; -vv logs everything
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Log errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Format of the log on standard error
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// A subcommand with its arguments.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Decompose the weights of a base model into the frozen basis of LoRA-XS
    InitSvd(InitSvdArgs),
    /// Train an adapter from a recipe
    Train(TrainArgs),
    /// Score a run, or a base model with or without an adapter
    #[command(after_help = EVAL_EXAMPLES)]
    Eval {
        /// The subject, and what it is scored on.
        #[command(flatten)]
        request: ScoreRequest,
        /// The processes that share the examples or prompts.
        #[command(flatten)]
        processes: ProcessArgs,
    },
    /// Answer new rows or texts: labels with probabilities, numbers, or completions
    #[command(after_help = PREDICT_EXAMPLES)]
    Predict(PredictRequest),
    /// Talk with a language model by its chat template
    #[command(after_help = CHAT_EXAMPLES)]
    Chat(ChatRequest),
    /// Merge an adapter into its base model, or export it as a plain PEFT LoRA
    Merge(MergeArgs),
    /// Compare runs: tables as papers print them, and a page with plots
    Report(ReportArgs),
    /// List the built-in recipes, print one, or explain every key
    Recipe(RecipeArgs),
    /// Report on this machine and test its device
    Doctor(DoctorArgs),
    /// Print a shell completion script, which knows recipes and keys, too
    #[command(
        after_help = "Example:\n  loraxs completions bash > ~/.local/share/bash-completion/completions/loraxs"
    )]
    Completions {
        /// Shell to complete for
        shell: clap_complete::Shell,
    },
}

/// `loraxs recipe`.
#[derive(Debug, Clone, Args)]
#[command(after_help = RECIPE_EXAMPLES)]
pub struct RecipeArgs {
    /// Recipe to print: a file, a file in `recipes/`, or the name of a built-in recipe [default: a list of the
    /// built-in ones]
    pub name: Option<String>,
    /// Print every key that the recipe may have, with its default, the values that it takes and its meaning
    #[arg(long, requires = "name")]
    pub all: bool,
    /// Print the reference of all keys, of recipes and of catalog entries, as in `docs/keys.md`
    #[arg(long, conflicts_with = "name")]
    pub keys: bool,
}

/// `loraxs doctor`.
#[derive(Debug, Clone, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub struct DoctorArgs {
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// `loraxs init-svd`.
#[derive(Debug, Clone, Args)]
#[command(after_help = INIT_SVD_EXAMPLES)]
pub struct InitSvdArgs {
    /// Base model: hub id or folder
    #[arg(long, value_name = "MODEL")]
    pub model: String,
    /// Branch, tag or commit of a hub id
    #[arg(long, value_name = "REV", default_value = "main")]
    pub revision: String,
    /// Rank of the basis
    #[arg(long, value_name = "R", value_parser = clap::value_parser!(i64).range(1..))]
    pub rank: i64,
    /// Names of the linear layers to decompose, or the ends of their names [default: the layers that `train`
    /// adapts]
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub targets: Vec<String>,
    /// Singular directions that form the basis
    #[arg(long, default_value = "top")]
    pub spectrum: Spectrum,
    /// Factor that carries the singular values
    #[arg(long, default_value = "a")]
    pub sigma: Sigma,
    /// Decomposition algorithm
    #[arg(long, default_value = "randomized")]
    pub method: SvdMethod,
    /// Power iterations of the randomized decomposition
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub iterations: u32,
    /// Seed of the randomized decomposition
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    /// Folder to write the basis and `report.json` to [default: the cache, where `train` finds it]
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: Option<PathBuf>,
    /// The processes that share the modules.
    #[command(flatten)]
    pub processes: ProcessArgs,
}

/// `loraxs train`.
#[derive(Debug, Clone, Args)]
#[command(after_help = TRAIN_EXAMPLES)]
pub struct TrainArgs {
    /// The run or the sweep.
    #[command(flatten)]
    pub request: TrainRequest,
    /// Make every check of the training but those of the base's numbers, print what would be trained and written,
    /// and stop; `config.json` alone, without weights, will do
    #[arg(long)]
    pub dry_run: bool,
    /// The processes that train together.
    #[command(flatten)]
    pub processes: ProcessArgs,
    /// Go on with another number of processes than the run was trained by, which rounds sums differently
    #[arg(long, requires = "resume", help_heading = "Several processes")]
    pub rescale: bool,
}

/// `loraxs merge`.
#[derive(Debug, Clone, Args)]
#[command(after_help = MERGE_EXAMPLES)]
pub struct MergeArgs {
    /// The model to merge.
    #[command(flatten)]
    pub subject: SubjectSource,
    /// Folder to write
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub out: PathBuf,
    /// Output format
    #[arg(long, default_value = "hf")]
    pub format: MergeFormat,
    /// Express a `lora-xs` adapter in the basis in this folder (see `init-svd --out`), of the same or a
    /// larger rank, and write the adapter alone
    #[arg(long, value_name = "DIR", conflicts_with_all = ["format", "dtype"], value_parser = path())]
    pub rebase: Option<PathBuf>,
    /// Data type of the written weights [default: the base's; fp32 for `--format peft`]
    #[arg(long)]
    pub dtype: Option<Dtype>,
    /// Largest allowed difference between the logits before and after, relative to the largest logit
    /// [default: 1e-5 in fp32, 2e-2 in fp16, 1e-1 in bf16]; with `--rebase`, of ΔW relative to its norm
    /// [default: 1e-4]
    #[arg(long, value_name = "X", value_parser = |text: &str| NOT_NEGATIVE.parse(text))]
    pub tolerance: Option<f64>,
    /// Largest size of a weight file, such as 500MB, 5GB or 2GiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = bytes)]
    pub max_shard_size: u64,
}

/// Format of the log on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Plain text
    Text,
    /// One JSON object per line
    Json,
}

/// Data type of stored weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    /// 32-bit floats
    Fp32,
    /// 16-bit floats
    Fp16,
    /// bfloat16
    Bf16,
}

/// Builds the whole command; `--version` prints `version`, `-V` the crate's version alone.
pub fn command(version: &'static str) -> clap::Command {
    // Answers made elsewhere need no model.
    let command = Cli::command()
        .mut_subcommand("eval", |eval| eval.mut_arg("run", |run| run.required_unless_present("completions")));
    values::with_negative_numbers(command).long_version(version)
}

/// Parses arguments, the program's name first; if needed, prints help or an error and exits (2: wrong usage).
pub fn parse(args: impl IntoIterator<Item = impl Into<OsString> + Clone>, version: &'static str) -> Cli {
    let found = command(version).try_get_matches_from(args);
    found.and_then(|matches| Cli::from_arg_matches(&matches)).unwrap_or_else(|error| {
        // The error quotes the arguments, whatever they hold and however long they are
        let (text, code) = (error.to_string(), error.exit_code());
        let shown = readable(&text);
        if error.use_stderr() && shown.trim_end() != text.trim_end() {
            let _ = writeln!(io::stderr(), "{shown}");
            std::process::exit(code)
        }
        error.exit()
    })
}

const EXAMPLES: &str = "\
Examples:
  loraxs train --recipe glue-qnli --out runs/qnli   train a built-in recipe
  loraxs eval --run runs/qnli                       score the best adapter of the run
  loraxs predict --run runs/qnli --input new.csv    answer new rows
  loraxs merge --run runs/qnli --out qnli-merged    write a checkpoint that Transformers loads";

const RECIPE_EXAMPLES: &str = "\
Examples:
  loraxs recipe                            list the built-in recipes
  loraxs recipe glue-qnli > mine.toml      start your own recipe from one
  loraxs recipe glue-qnli --all            the same with every key and what it means
  loraxs recipe --keys | grep -i learning  look for a key";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  loraxs doctor                  test the first GPU, or the CPU if there is none
  loraxs doctor --device cuda:1  test another GPU
  loraxs doctor --json           for a bug report";

const INIT_SVD_EXAMPLES: &str = "\
Examples:
  loraxs init-svd --model roberta-large --rank 16
  loraxs init-svd --model ./base --rank 25 --targets query,value --method exact --out basis";

const TRAIN_EXAMPLES: &str = "\
Examples:
  loraxs train --recipe glue-qnli.toml
  loraxs train --recipe glue-cola --set adapter.rank=25 --set train.seed=3 --out runs/cola-25-3
  loraxs train --recipe mine.toml --datasets mine-datasets.toml --dry-run
  loraxs train --recipe glue-rte --sweep adapter.rank=4,8,16 --sweep train.seed=0,1,2 --out runs/rte-ranks
  loraxs train --resume runs/qnli
  loraxs train --resume runs/qnli --set train.micro_batch_size=8";

const EVAL_EXAMPLES: &str = "\
Examples:
  loraxs eval --run runs/qnli
  loraxs eval --run runs/mnli --task glue/mnli --split validation_mismatched
  loraxs eval --run runs/qnli --split test --predict --out submission
  loraxs eval --model ./qnli-merged --task glue/qnli
  loraxs eval --model ./mistral-merged --task gsm8k --task math
  loraxs eval --completions answers.jsonl --task gsm8k --split test";

const PREDICT_EXAMPLES: &str = "\
Examples:
  loraxs predict --run runs/reviews --text 'A fine film.'
  loraxs predict --run runs/reviews --input new.csv --out answers.csv
  cat new.txt | loraxs predict --run runs/reviews | jq -r .prediction
  loraxs predict --model ./qnli-merged --columns question,sentence --input pairs.jsonl
  loraxs predict --run runs/metamath --text 'What is 3 + 4?' --max-new-tokens 200";

const CHAT_EXAMPLES: &str = "\
Examples:
  loraxs chat --run runs/assistant
  loraxs chat --model HuggingFaceTB/SmolLM2-135M-Instruct --temperature 0.7 --system 'Answer briefly.'
  printf 'Hello!\\nAnd now?\\n' | loraxs chat --model ./merged   # a message a line; answers go to standard output";

const MERGE_EXAMPLES: &str = "\
Examples:
  loraxs merge --run runs/qnli --out qnli-merged
  loraxs merge --model roberta-large --adapter runs/qnli/adapter --out qnli-lora --format peft";

#[cfg(test)]
mod tests {
    use super::*;
    use clap::error::ErrorKind;

    fn parse_line(line: &str) -> std::result::Result<Cli, clap::Error> {
        Cli::from_arg_matches(&command("long").try_get_matches_from(line.split(' '))?)
    }

    fn kind(line: &str) -> ErrorKind {
        parse_line(line).unwrap_err().kind()
    }

    #[test]
    fn the_definition_is_consistent() {
        command("long").debug_assert();
    }

    #[test]
    fn global_options_may_follow_the_command() {
        let cli = parse_line("loraxs train --recipe r --set a.b=1 --set c.d=2 --device cuda:3 -vv --offline")
            .unwrap();
        assert_eq!(cli.global.device, DeviceChoice::Cuda(vec![3]));
        assert_eq!((cli.global.verbose, cli.global.offline, cli.global.threads), (2, true, 0));
        let Command::Train(train) = cli.command else { panic!("not train") };
        assert_eq!(train.request.set, ["a.b=1", "c.d=2"]);
    }

    #[test]
    fn a_path_that_is_no_text_is_refused_by_every_option() {
        use std::os::unix::ffi::OsStringExt as _;
        let lines = [
            "loraxs train --recipe r --out",
            "loraxs train --recipe r --basis",
            "loraxs train --recipe r --datasets",
            "loraxs train --recipe",
            "loraxs eval --run",
            "loraxs eval --model m --task t --adapter",
            "loraxs eval --run r --basis",
            "loraxs eval --run r --out",
            "loraxs predict --run r --input",
            "loraxs predict --run r --out",
            "loraxs chat --model m --adapter",
            "loraxs merge --run r --out",
            "loraxs merge --run r --out o --rebase",
            "loraxs init-svd --model m --rank 4 --out",
        ];
        for line in lines {
            let last = |text: &[u8]| {
                let args = line.split(' ').map(OsString::from).chain([OsString::from_vec(text.to_vec())]);
                command("long").try_get_matches_from(args)
            };
            assert!(last(b"folder").is_ok(), "{line}");
            let error = last(b"folder\xff").unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains("UTF-8"), "{line}: {error}");
        }
    }

    #[test]
    fn resume_takes_the_folder_or_leaves_it_to_out() {
        let resumed = |line: &str| match parse_line(line).unwrap().command {
            Command::Train(args) => (
                args.request.recipe,
                args.request.resume.map(|folder| folder.map(|f| f.display().to_string())),
            ),
            other => panic!("{other:?}"),
        };
        assert_eq!(resumed("loraxs train --resume runs/x"), (None, Some(Some("runs/x".into()))));
        assert_eq!(resumed("loraxs train --resume --out o --recipe r"), (Some("r".into()), Some(None)));
        assert_eq!(kind("loraxs train --out o"), ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn eval_and_merge_work_on_a_run_or_a_base_but_not_both() {
        assert!(parse_line("loraxs eval --run r").is_ok());
        assert!(parse_line("loraxs eval --model m --adapter a --task glue/rte --task glue/wnli").is_ok());
        assert!(parse_line("loraxs merge --model m --adapter a --out o --format peft").is_ok());
        assert_eq!(kind("loraxs eval"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind("loraxs eval --model m"), ErrorKind::MissingRequiredArgument);
        assert!(parse_line("loraxs eval --run r --model m --checkpoint step-3").is_ok());
        assert_eq!(
            kind("loraxs eval --model m --task t --checkpoint step-3"),
            ErrorKind::MissingRequiredArgument
        );
        assert_eq!(kind("loraxs eval --run r --adapter a"), ErrorKind::ArgumentConflict);
        assert_eq!(kind("loraxs merge --run r"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind("loraxs merge --adapter a --out o"), ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn wrong_values_are_wrong_usage() {
        for line in [
            "loraxs merge --run r --out o --max-shard-size 5XB",
            "loraxs merge --run r --out o --tolerance small",
            "loraxs init-svd --model m --rank 0",
            "loraxs eval --run r --batch-size 0",
            "loraxs eval --run r --batch-size 1048577",
            "loraxs eval --run r --max-length 0",
            "loraxs eval --run r --max-length 99999999999999999999",
            "loraxs eval --run r --max-new-tokens 0",
            "loraxs eval --run r --max-new-tokens 4611686018427387904",
            "loraxs eval --run r --max-new-tokens 18446744073709551615",
            "loraxs eval --run r --beams 0",
            "loraxs eval --run r --beams 1025",
            "loraxs eval --run r --top-k 9223372036854775808",
            "loraxs eval --run r --shots 18446744073709551615",
            "loraxs eval --run r --temperature nan",
            "loraxs eval --run r --temperature inf",
            "loraxs eval --run r --temperature=-0.5",
            "loraxs eval --run r --top-p 0",
            "loraxs eval --run r --top-p nan",
            "loraxs eval --run r --repetition-penalty 0",
            "loraxs eval --run r --repetition-penalty inf",
            "loraxs eval --run r --seed=-1",
            "loraxs eval --run r --limit -1",
            "loraxs eval --run r --temperature -0.5",
            "loraxs eval --run r --temperature -1e-3",
            "loraxs eval --run r --top-p -1",
            "loraxs eval --run r --batch-size -8",
            "loraxs merge --run r --out o --tolerance -1",
            "loraxs merge --run r --out o --tolerance -2.5e-05",
            "loraxs merge --run r --out o --max-shard-size -5",
            "loraxs merge --run r --out o --threads -1",
            "loraxs init-svd --model m --rank -4",
            "loraxs init-svd --model m --rank 4 --iterations -1",
        ] {
            let error = parse_line(line).unwrap_err();
            assert_eq!((error.kind(), error.exit_code()), (ErrorKind::ValueValidation, 2), "{line}");
        }
        assert_eq!(kind("loraxs init-svd --model m --rank 4 --spectrum upper"), ErrorKind::InvalidValue);
        assert_eq!(kind("loraxs merge --run r --out -1"), ErrorKind::UnknownArgument);
        assert_eq!(kind("loraxs trian"), ErrorKind::InvalidSubcommand);
    }

    #[test]
    fn targets_are_split_at_commas_and_left_to_the_family_otherwise() {
        let targets = |line: &str| match parse_line(line).unwrap().command {
            Command::InitSvd(args) => args.targets,
            other => panic!("{other:?}"),
        };
        assert_eq!(targets("loraxs init-svd --model m --rank 4 --targets query,value"), ["query", "value"]);
        assert!(targets("loraxs init-svd --model m --rank 4").is_empty(), "those of the family");
    }

    #[test]
    fn sizes_are_decimal_or_binary() {
        assert_eq!(bytes("5GB"), Ok(5_000_000_000));
        assert_eq!(bytes("2GiB"), Ok(1 << 31));
        assert_eq!(bytes("12"), Ok(12));
        for wrong in ["", "0", "GB", "-1MB", "99999999999999999999", "99999999999999GB", "1TB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn both_versions_are_printed() {
        let long = parse_line("loraxs --version").unwrap_err();
        assert_eq!((long.kind(), long.to_string().as_str()), (ErrorKind::DisplayVersion, "loraxs long\n"));
        let short = parse_line("loraxs -V").unwrap_err().to_string();
        assert_eq!(short, format!("loraxs {}\n", env!("CARGO_PKG_VERSION")));
    }

    #[test]
    fn every_command_but_completions_shows_examples() {
        for command in Cli::command().get_subcommands() {
            assert!(command.get_after_help().is_some(), "{}", command.get_name());
        }
    }
}
