//! Arguments of `loraxs chat`.

use clap::Args;

use super::SubjectArgs;
use super::generation::GenerationArgs;
use crate::spec::Precision;

/// `loraxs chat`.
#[derive(Debug, Clone, Default, Args)]
#[command(after_help = EXAMPLES)]
pub struct ChatArgs {
    /// The model that answers.
    #[command(flatten)]
    pub subject: SubjectArgs,
    /// System message [default: none, or the chat template's own]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Precision to compute in [default: the recipe's, else `auto`]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Settings of the answers.
    #[command(flatten)]
    pub generation: GenerationArgs,
}

const EXAMPLES: &str = "\
Examples:
  loraxs chat --run runs/assistant
  loraxs chat --model HuggingFaceTB/SmolLM2-135M-Instruct --temperature 0.7 --system 'Answer briefly.'
  printf 'Hello!\\nAnd now?\\n' | loraxs chat --model ./merged   # a message a line; answers go to standard output";
