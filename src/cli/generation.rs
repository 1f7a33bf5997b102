//! Options of `loraxs eval` for data sets whose prompts are continued.

use clap::Args;

use crate::limits::{BEAMS, NEW_TOKENS, SHOTS, TOP_K};

/// How prompts are continued; without an option, as the catalog says.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerationArgs {
    /// New tokens for each prompt at most [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| NEW_TOKENS.read(text, 1))]
    pub max_new_tokens: Option<usize>,
    /// Solved examples before each prompt
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = |text: &str| SHOTS.read(text, 0))]
    pub shots: usize,
    /// 0 takes the likeliest token, more draws with the logits divided by it; that the checkpoint's `generation_config.json`
    /// may ask for drawing does not count [default: the catalog's]
    #[arg(long, value_name = "X", value_parser = not_negative)]
    pub temperature: Option<f64>,
    /// Draw among the N likeliest tokens, 0 = all [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| TOP_K.read(text, 0))]
    pub top_k: Option<usize>,
    /// Draw among the likeliest tokens that sum up to this probability [default: the catalog's]
    #[arg(long, value_name = "P", value_parser = share)]
    pub top_p: Option<f64>,
    /// Hypotheses of a beam search, 1 = none [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| BEAMS.read(text, 1))]
    pub beams: Option<usize>,
    /// Divides the scores of tokens that prompt and completion hold already, 1 = none [default: that of the checkpoint's
    /// `generation_config.json`, whose other penalties, bans, minimum lengths and forced tokens are heeded too]
    #[arg(long, value_name = "X", value_parser = positive)]
    pub repetition_penalty: Option<f64>,
    /// Seed of what is drawn
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
