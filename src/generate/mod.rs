//! Generation: prompts to completions, many at a time over one key-value cache.
//!
//! A prompt is read whole in a packed pass (*prefill*), then all running prompts get their next token in one
//! pass (*decode*). A finished prompt gives its place in the cache, its *slot*, to the next in the queue. The
//! [`Scheduler`] does this for requests that come and go at any time, in tokens; [`Engine`] makes requests of
//! the prompts of a data set, and texts of what comes out.

mod beams;
mod candidates;
mod choice;
pub mod config;
mod decoding;
pub mod engine;
mod entry;
mod feed;
mod memory;
pub mod penalties;
mod request;
mod scheduler;
mod slots;
mod stream;
mod text;
mod workers;

use serde::{Deserialize, Serialize};

use crate::fault::Result;
pub use engine::Engine;
pub use entry::{Event, Id};
pub use feed::{NextPrompt, PromptShare, PromptSource};
pub use penalties::Penalties;
pub use request::{Request, StopRule};
pub use scheduler::Scheduler;
pub use slots::Limits;
pub use stream::TextStream;
pub use text::stop_rule;

/// Choice of the next token.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Sampling {
    /// The most probable token.
    Greedy,
    /// Drawn by probability after temperature, `top_k` and `top_p`, in this order, as in Transformers.
    Random {
        /// Divides the logits; above 0.
        temperature: f64,
        /// Number of most probable tokens to keep; 0 = all.
        top_k: usize,
        /// Keeps the most probable tokens until their probabilities sum to this; 1 = all.
        top_p: f64,
    },
}

/// Condition that ends a beam search: `early_stopping` of Transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EarlyStopping {
    /// `false`: when the best running hypothesis, at its current length, does not beat the worst finished.
    #[serde(rename = "false")]
    Unlikely,
    /// `true`: when as many hypotheses are finished as there are beams.
    #[serde(rename = "true")]
    Full,
    /// `"never"`: when no running hypothesis can become better.
    #[serde(rename = "never")]
    Impossible,
}

/// Beam search, as in Transformers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BeamSearch {
    /// Hypotheses kept per prompt; 1 = no search.
    pub beams: usize,
    /// Exponent p: a finished hypothesis of n tokens scores its log-probability divided by nᵖ.
    pub length_penalty: f64,
    /// Condition that ends the search.
    pub early_stopping: EarlyStopping,
}

impl BeamSearch {
    /// Returns Transformers' default search.
    pub fn plain(beams: usize) -> Self {
        Self { beams, length_penalty: 1.0, early_stopping: EarlyStopping::Unlikely }
    }
}

/// How a prompt is continued.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Maximum number of new tokens.
    pub max_new_tokens: usize,
    /// Choice of tokens.
    pub sampling: Sampling,
    /// Beam search.
    pub search: BeamSearch,
    /// Changes to the scores of tokens before one is chosen.
    pub penalties: Penalties,
    /// Tokens that end a completion.
    pub ends: Vec<u32>,
    /// Seed of sampling: draws depend on it, the request's index and the token's position.
    pub seed: u64,
}

impl SamplingParams {
    /// Returns greedy settings: up to `max_new_tokens`, ended by `ends`.
    pub fn greedy(max_new_tokens: usize, ends: &[u32]) -> Self {
        Self {
            max_new_tokens,
            sampling: Sampling::Greedy,
            search: BeamSearch::plain(1),
            penalties: Penalties::default(),
            ends: ends.to_vec(),
            seed: 0,
        }
    }
}

/// How the prompts of a data set are continued.
#[derive(Debug, Clone)]
pub struct GenerationSettings {
    /// How each is continued.
    pub params: SamplingParams,
    /// Texts that end a completion; cut off with all that follows.
    pub stop: Vec<String>,
    /// Maximum number of prompts at a time; 0 = as memory allows, up to [`engine::MOST_SLOTS`].
    pub max_slots: usize,
    /// Checked between passes; once true, the run ends early.
    pub interrupted: fn() -> bool,
}

impl GenerationSettings {
    /// Returns settings without stop texts, for as many prompts at a time as memory allows.
    pub fn new(params: SamplingParams) -> Self {
        Self { params, stop: Vec::new(), max_slots: 0, interrupted: || false }
    }
}

/// Reason why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Finish {
    /// By one of [`SamplingParams::ends`].
    End,
    /// By the request's stop rule: a stop text.
    Stop,
    /// It has [`SamplingParams::max_new_tokens`].
    Length,
}

/// The continuation of a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The new tokens, without the token that ended them.
    pub ids: Vec<u32>,
    /// Their text without special tokens, cut before a stop text.
    pub text: String,
    /// Reason why it ended.
    pub finish: Finish,
}

/// Receives each completion as it ends, with its prompt's index; an error ends the run.
pub type OnDone<'a> = dyn FnMut(usize, Completion) -> Result<()> + 'a;

/// Receives the same of prompts that come one by one, and nothing for what cannot be continued.
pub type OnNews<'a> = dyn FnMut(usize, Option<Completion>) -> Result<()> + 'a;
