//! Options of `loraxs eval` for generation tasks.

use clap::Args;

use crate::limits::{BEAMS, NEW_TOKENS, SHOTS, TOP_K};

/// Settings of generation; each defaults to the catalog's.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// Largest number of new tokens per prompt [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| NEW_TOKENS.read(text, 1))]
    pub max_new_tokens: Option<usize>,
    /// Number of solved examples before each prompt
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = |text: &str| SHOTS.read(text, 0))]
    pub shots: usize,
    /// Sampling temperature; 0 decodes greedily. The checkpoint's `generation_config.json` does not turn
    /// sampling on [default: the catalog's]
    #[arg(long, value_name = "X", value_parser = not_negative)]
    pub temperature: Option<f64>,
    /// Sample from the N likeliest tokens; 0 samples from all [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| TOP_K.read(text, 0))]
    pub top_k: Option<usize>,
    /// Sample from the likeliest tokens whose probabilities add up to P [default: the catalog's]
    #[arg(long, value_name = "P", value_parser = share)]
    pub top_p: Option<f64>,
    /// Number of beams; 1 disables beam search [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| BEAMS.read(text, 1))]
    pub beams: Option<usize>,
    /// Penalty on tokens that already occur in the prompt or completion; 1 disables it [default: from the
    /// checkpoint's `generation_config.json`, whose other penalties, bans, minimum lengths and forced tokens
    /// always apply]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub repetition_penalty: Option<f64>,
    /// Random seed for sampling
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|x| x.is_finite() && *x >= 0.0).ok_or("expected a number of at least 0".to_owned())
}

fn positive(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|x| x.is_finite() && *x > 0.0).ok_or("expected a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|x| *x > 0.0 && *x <= 1.0).ok_or("expected a number above 0 and up to 1".to_owned())
}
