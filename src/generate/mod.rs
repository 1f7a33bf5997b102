//! Generation: prompts to completions, many at a time over one key-value cache.
//!
//! A prompt is read whole in a packed pass (*prefill*), then all prompts under way get their next token in one pass
//! (*decode*). A prompt that has ended gives its place in the cache, its *slot*, to the next in the queue.

mod beams;
mod candidates;
pub mod config;
pub mod engine;
mod memory;
pub mod penalties;
mod session;
mod stopping;
mod workers;

use serde::Serialize;

pub use engine::Engine;
pub use penalties::Penalties;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The most probable one.
    Greedy,
    /// Drawn by its probability, after temperature, `top_k`, and `top_p`, in this order, as Transformers applies them.
    Random {
        /// Divides the logits; above 0.
        temperature: f64,
        /// How many of the most probable tokens stay; 0 = all.
        top_k: usize,
        /// The most probable tokens stay until their probabilities sum up to this; 1 = all.
        top_p: f64,
    },
}

/// When a beam search ends: `early_stopping` of Transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EarlyStopping {
    /// `false`: when the best that goes on, as long as it is, is no better than the worst finished one.
    #[serde(rename = "false")]
    Unlikely,
    /// `true`: when as many hypotheses are finished as there are beams.
    #[serde(rename = "true")]
    Full,
    /// `"never"`: when nothing that goes on can become better.
    #[serde(rename = "never")]
    Impossible,
}

/// Beam search, as Transformers does it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BeamSearch {
    /// Hypotheses kept of each prompt; 1 = no search.
    pub beams: usize,
    /// A finished hypothesis of n tokens counts its log-probability divided by n to the power of this.
    pub length_penalty: f64,
    /// When it ends.
    pub early_stopping: EarlyStopping,
}

impl BeamSearch {
    /// As Transformers searches where nothing else is said.
    pub fn plain(beams: usize) -> Self {
        Self { beams, length_penalty: 1.0, early_stopping: EarlyStopping::Unlikely }
    }
}

/// What generation depends on besides model and prompts.
#[derive(Debug, Clone)]
pub struct Settings {
    /// At most so many prompts under way at a time; 0 = what memory allows, up to [`engine::MOST_SLOTS`].
    pub max_slots: usize,
    /// At most so many new tokens for each prompt.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Beam search.
    pub search: BeamSearch,
    /// What changes the scores of tokens before one is chosen.
    pub penalties: Penalties,
    /// Tokens that end a completion.
    pub ends: Vec<u32>,
    /// Texts that end a completion, and are cut off with all that follows.
    pub stop: Vec<String>,
    /// What is drawn is a function of this seed, the prompt's index, and the number of the token.
    pub seed: u64,
    /// Asked between passes; once true, the run ends early.
    pub interrupted: fn() -> bool,
}

impl Settings {
    /// Greedy, up to `max_new_tokens`, ended by `ends`; as many slots as memory allows.
    pub fn greedy(max_new_tokens: usize, ends: &[u32]) -> Self {
        Self {
            max_slots: 0,
            max_new_tokens,
            sampling: Sampling::Greedy,
            search: BeamSearch::plain(1),
            penalties: Penalties::default(),
            ends: ends.to_vec(),
            stop: Vec::new(),
            seed: 0,
            interrupted: || false,
        }
    }
}

/// A prompt to be continued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// Its name in the results, and in what is drawn.
    pub index: usize,
    /// Its tokens, special ones included; at least one.
    pub ids: Vec<u32>,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// By one of [`Settings::ends`].
    End,
    /// By one of [`Settings::stop`].
    Stop,
    /// It has [`Settings::max_new_tokens`].
    Length,
}

/// What a prompt was continued by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The new tokens, without the token that ended them.
    pub ids: Vec<u32>,
    /// Their text without special tokens, cut before a stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}
