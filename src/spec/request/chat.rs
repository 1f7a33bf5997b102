//! What is asked of a chat.

use clap::Args;

use super::{GenerationOptions, SubjectSource};
use crate::spec::Precision;

/// A language model to talk with.
#[derive(Debug, Clone, Default, Args)]
pub struct ChatRequest {
    /// The model that answers.
    #[command(flatten)]
    pub subject: SubjectSource,
    /// System message [default: none, or the chat template's own]
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Precision to compute in [default: the recipe's, else `auto`]
    #[arg(long)]
    pub precision: Option<Precision>,
    /// Settings of the answers.
    #[command(flatten)]
    pub generation: GenerationOptions,
}
