//! Upper limits of numbers in command line, recipe and catalog: larger ones would fail later, unexplained.

/// An upper limit, and the reason for it.
#[derive(Debug, Clone, Copy)]
pub struct Most {
    /// The limit itself.
    pub number: usize,
    /// Reason why nothing needs more.
    pub reason: &'static str,
}

/// New tokens per prompt.
pub const NEW_TOKENS: Most = Most { number: 1 << 20, reason: "no model writes a longer text" };
/// Hypotheses of a beam search.
pub const BEAMS: Most = Most { number: 1024, reason: "each takes the memory of a prompt" };
/// Candidate tokens for sampling.
pub const TOP_K: Most = Most { number: u32::MAX as usize, reason: "no vocabulary is larger" };
/// Solved examples before a prompt.
pub const SHOTS: Most = Most { number: 1 << 16, reason: "every prompt holds them all" };
/// Examples in one pass.
pub const BATCH_SIZE: Most = Most { number: 1 << 20, reason: "they are in memory at once" };
/// Tokens of a sequence.
pub const LENGTH: Most = Most { number: 1 << 24, reason: "no model has more positions" };
/// Tokens in one pass.
pub const TOKENS: Most = Most { number: 1 << 30, reason: "they are in memory at once" };
/// Ranks and other sizes of adapters.
pub const RANK: Most = Most { number: 1 << 20, reason: "no layer is wider" };
/// Power iterations of a decomposition.
pub const ITERATIONS: Most = Most { number: 1 << 12, reason: "a few are enough" };
/// Passes over the data; small enough that their steps can be counted for any data.
pub const EPOCHS: Most = Most { number: 1 << 30, reason: "no training ends later" };
/// Steps, examples, and intervals counted in them.
pub const STEPS: Most = Most { number: 1 << 40, reason: "no training ends later" };
/// Runs of a sweep.
pub const RUNS: Most = Most { number: 100_000, reason: "each has a folder" };
/// Seeds.
pub const SEED: Most = Most { number: i64::MAX as usize, reason: "TOML has no larger" };

impl Most {
    /// Describes the expected number, at least `least`.
    pub fn words(&self, least: impl std::fmt::Display) -> String {
        format!("a whole number from {least} to {}, since {}", self.number, self.reason)
    }

    /// Parses a number that must be at least `least`.
    ///
    /// # Errors
    /// The expectation, for error messages.
    pub fn read(&self, text: &str, least: usize) -> Result<usize, String> {
        let number = text.parse().ok().filter(|number| (least..=self.number).contains(number));
        number.ok_or_else(|| format!("expected {}", self.words(least)))
    }
}
