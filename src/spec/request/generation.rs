//! Options of the commands that generate.

use clap::{Args, Command, FromArgMatches as _};

use crate::fault::{Result, unknown, usage};
use crate::limits::{BEAMS, NEW_TOKENS, TOP_K};
use crate::spec::values::{NOT_NEGATIVE, POSITIVE, SHARE};

/// Settings of generation; each defaults to the catalog's.
#[derive(Debug, Clone, Default, PartialEq, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerationOptions {
    /// Largest number of new tokens per prompt [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| NEW_TOKENS.read(text, 1))]
    pub max_new_tokens: Option<usize>,
    /// Sampling temperature; 0 decodes greedily. The checkpoint's `generation_config.json` does not turn
    /// sampling on [default: the catalog's]
    #[arg(long, value_name = "X", value_parser = |text: &str| NOT_NEGATIVE.parse(text))]
    pub temperature: Option<f64>,
    /// Sample from the N likeliest tokens; 0 samples from all [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| TOP_K.read(text, 0))]
    pub top_k: Option<usize>,
    /// Sample from the likeliest tokens whose probabilities add up to P [default: the catalog's]
    #[arg(long, value_name = "P", value_parser = |text: &str| SHARE.parse(text))]
    pub top_p: Option<f64>,
    /// Number of beams; 1 disables beam search [default: the catalog's]
    #[arg(long, value_name = "N", value_parser = |text: &str| BEAMS.read(text, 1))]
    pub beams: Option<usize>,
    /// Penalty on tokens that already occur in the prompt or completion; 1 disables it [default: from the
    /// checkpoint's `generation_config.json`, whose other penalties, bans, minimum lengths and forced tokens
    /// always apply]
    #[arg(long, value_name = "X", value_parser = |text: &str| POSITIVE.parse(text))]
    pub repetition_penalty: Option<f64>,
    /// Random seed for sampling [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

impl GenerationOptions {
    /// Returns the options by their names, each with its value where it is given.
    fn given(&self) -> [(&'static str, Option<String>); 7] {
        let text = |number: Option<f64>| number.map(|number| number.to_string());
        [
            ("max-new-tokens", self.max_new_tokens.map(|count| count.to_string())),
            ("temperature", text(self.temperature)),
            ("top-k", self.top_k.map(|count| count.to_string())),
            ("top-p", text(self.top_p)),
            ("beams", self.beams.map(|count| count.to_string())),
            ("repetition-penalty", text(self.repetition_penalty)),
            ("seed", self.seed.map(|seed| seed.to_string())),
        ]
    }

    /// Returns the options with one changed, or left to its default if the value is `default`.
    ///
    /// # Errors
    /// When there is no such option, or the value is none of its.
    pub fn with(&self, name: &str, value: &str) -> Result<Self> {
        let mut given = self.given();
        let wanted = name.replace('_', "-");
        let names = given.each_ref().map(|(name, _)| *name);
        let Some((_, place)) = given.iter_mut().find(|(name, _)| *name == wanted) else {
            return Err(unknown("setting", name, &names).into());
        };
        *place = (value != "default").then(|| value.to_owned());
        let options = given.iter().filter_map(|(name, value)| Some(format!("--{name}={}", value.as_ref()?)));
        let command = Self::augment_args(Command::new("set").no_binary_name(true));
        let found = command.try_get_matches_from(options).and_then(|found| Self::from_arg_matches(&found));
        found.map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            usage(line.trim_start_matches("error: ").to_owned()).into()
        })
    }
}
