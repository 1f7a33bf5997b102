//! Changes to the next token's scores before one is chosen: penalties, bans and forced tokens.
//!
//! The formulas and their order are those of Transformers 5.24 (`generation/logits_process.py`;
//! `_get_logits_processor` of `generation/utils.py`), for a single prompt without padding. Scores are logits,
//! or log-probabilities in a beam search.

use std::collections::BTreeMap;

use serde::Serialize;
use tch::{Kind, Tensor};

use super::SamplingParams;
use crate::torch::{cast, dims2};

/// Settings of `generation_config.json` under its names; with all at their defaults, nothing is done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Penalties {
    /// Added to the score of a sequence's last token if the text ends with the tokens before it.
    pub sequence_bias: Vec<(Vec<u32>, f32)>,
    /// Factor for tokens of the prompt: multiplies positive scores, divides negative ones.
    pub encoder_repetition_penalty: f64,
    /// Divisor for tokens of prompt and completion: divides positive scores, multiplies negative ones.
    pub repetition_penalty: f64,
    /// No sequence of this many tokens occurs twice in prompt and completion; 0 = no limit.
    pub no_repeat_ngram_size: usize,
    /// No sequence of this many tokens of the prompt occurs again; 0 = no limit.
    pub encoder_no_repeat_ngram_size: usize,
    /// Banned sequences of tokens.
    pub bad_words_ids: Vec<Vec<u32>>,
    /// Minimum number of tokens of prompt and completion together.
    pub min_length: usize,
    /// Minimum number of tokens of the completion.
    pub min_new_tokens: usize,
    /// Forced first token after a prompt of one token.
    pub forced_bos_token_id: Option<u32>,
    /// Forced choice for the last token when the completion reaches its maximum length.
    pub forced_eos_token_id: Vec<u32>,
    /// Replaces NaN scores by 0, infinite ones by the largest or smallest number.
    pub remove_invalid_values: bool,
    /// After this many tokens, the scores of ending tokens grow by this factor per token.
    pub exponential_decay_length_penalty: Option<(usize, f64)>,
    /// Banned tokens.
    pub suppress_tokens: Vec<u32>,
    /// Tokens banned as the first one.
    pub begin_suppress_tokens: Vec<u32>,
    /// True if scores are turned into log-probabilities again at the end.
    pub renormalize_logits: bool,
}

impl Default for Penalties {
    fn default() -> Self {
        Self {
            sequence_bias: Vec::new(),
            encoder_repetition_penalty: 1.0,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            encoder_no_repeat_ngram_size: 0,
            bad_words_ids: Vec::new(),
            min_length: 0,
            min_new_tokens: 0,
            forced_bos_token_id: None,
            forced_eos_token_id: Vec::new(),
            remove_invalid_values: false,
            exponential_decay_length_penalty: None,
            suppress_tokens: Vec::new(),
            begin_suppress_tokens: Vec::new(),
            renormalize_logits: false,
        }
    }
}

/// The text that a row of scores follows.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The tokens of the prompt.
    pub prompt: &'a [u32],
    /// The new tokens so far.
    pub new: &'a [u32],
    /// How the prompt is continued.
    pub params: &'a SamplingParams,
}

impl Context<'_> {
    fn length(&self) -> usize {
        self.prompt.len() + self.new.len()
    }

    /// Returns the last `count` tokens, if there are that many.
    fn tail(&self, count: usize) -> Option<Vec<u32>> {
        let start = self.length().checked_sub(count)?;
        Some(self.tokens().skip(start).collect())
    }

    fn tokens(&self) -> impl Iterator<Item = u32> {
        self.prompt.iter().chain(self.new).copied()
    }
}

impl Penalties {
    /// Returns true if nothing is changed.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Returns new scores, in fp32.
    ///
    /// # Shapes
    /// `scores` `[s, v]`, for each row its context.
    pub fn apply(&self, scores: &Tensor, rows: &[Context<'_>]) -> Tensor {
        let [_, vocabulary] = dims2(scores);
        let mut scores = Scores { flat: cast(scores, Kind::Float).flatten(0, 1), vocabulary };
        scores.add(&self.biases(rows));
        let prompts = |row: &Context<'_>| row.prompt.to_vec();
        scores.penalise(rows, 1.0 / self.encoder_repetition_penalty, prompts);
        scores.penalise(rows, self.repetition_penalty, |row| row.tokens().collect());
        scores.ban(rows, |row| self.banned(row));
        scores.force(rows, |row| self.forced(row));
        if self.remove_invalid_values {
            scores.flat = scores.flat.nan_to_num(0.0, f64::from(f32::MAX), f64::from(f32::MIN));
        }
        if let Some((start, factor)) = self.exponential_decay_length_penalty {
            scores.lengthen(rows, (start, factor));
        }
        scores.ban(rows, |row| self.suppressed(row));
        let scores = scores.flat.view([-1, vocabulary]);
        if self.renormalize_logits { scores.log_softmax(1, Kind::Float) } else { scores }
    }

    /// Returns the biases to add to each row's tokens.
    fn biases(&self, rows: &[Context<'_>]) -> Vec<BTreeMap<u32, f32>> {
        let of = |row: &Context<'_>| {
            let mut biases = BTreeMap::new();
            for (ids, bias) in &self.sequence_bias {
                if let Some(last) = completed(row, ids) {
                    *biases.entry(last).or_insert(0.0) += *bias;
                }
            }
            biases
        };
        rows.iter().map(of).collect()
    }

    /// Returns tokens that would repeat a banned n-gram, complete a bad word, or end too early.
    fn banned(&self, row: &Context<'_>) -> Vec<u32> {
        let ends = &row.params.ends;
        let mut banned = Vec::new();
        let whole: Vec<u32> = if self.no_repeat_ngram_size > 0 { row.tokens().collect() } else { Vec::new() };
        banned.extend(repeating(&whole, row, self.no_repeat_ngram_size));
        banned.extend(repeating(row.prompt, row, self.encoder_no_repeat_ngram_size));
        let is_end = |ids: &[u32]| matches!(ids, [id] if ends.contains(id));
        let words = self.bad_words_ids.iter().filter(|ids| !is_end(ids));
        banned.extend(words.filter_map(|ids| completed(row, ids)));
        if row.length() < self.min_length || row.new.len() < self.min_new_tokens {
            banned.extend(ends);
        }
        banned
    }

    /// Returns the only tokens allowed next, if any are forced.
    fn forced(&self, row: &Context<'_>) -> Option<Vec<u32>> {
        let last = row.new.len() + 1 == row.params.max_new_tokens && !self.forced_eos_token_id.is_empty();
        if last {
            return Some(self.forced_eos_token_id.clone());
        }
        self.forced_bos_token_id.filter(|_| row.length() == 1).map(|id| vec![id])
    }

    fn suppressed(&self, row: &Context<'_>) -> Vec<u32> {
        // After a forced first token, the second counts as the first.
        let first = usize::from(row.prompt.len() == 1 && self.forced_bos_token_id.is_some());
        let begins: &[u32] = if row.new.len() == first { &self.begin_suppress_tokens } else { &[] };
        self.suppress_tokens.iter().chain(begins).copied().collect()
    }
}

/// Returns the last token of a sequence if the text ends with the tokens before it.
fn completed(row: &Context<'_>, ids: &[u32]) -> Option<u32> {
    let (last, before) = ids.split_last()?;
    (before.is_empty() || row.tail(before.len())? == before).then_some(*last)
}

/// Returns the tokens that would repeat a sequence of `size` tokens of `text`; none if `size` is 0.
fn repeating(text: &[u32], row: &Context<'_>, size: usize) -> Vec<u32> {
    let tail = size.checked_sub(1).and_then(|before| row.tail(before));
    let (Some(tail), true) = (tail, size > 0) else { return Vec::new() };
    text.windows(size).filter_map(|ids| ids.strip_prefix(&tail[..])?.first().copied()).collect()
}

/// Scores of all rows, one after another: `[s * v]`.
struct Scores {
    flat: Tensor,
    vocabulary: i64,
}

impl Scores {
    /// Returns the indices of some tokens of each row; duplicates get the same value twice.
    fn places<I: IntoIterator<Item = u32>>(
        &self,
        rows: &[Context<'_>],
        tokens: impl Fn(&Context<'_>) -> I,
    ) -> Option<Tensor> {
        let mut places: Vec<i64> = Vec::new();
        for (row, context) in (0..).zip(rows) {
            let known = tokens(context).into_iter().map(i64::from).filter(|id| *id < self.vocabulary);
            places.extend(known.map(|id| row * self.vocabulary + id));
        }
        (!places.is_empty()).then(|| Tensor::from_slice(&places).to_device(self.flat.device()))
    }

    fn add(&mut self, biases: &[BTreeMap<u32, f32>]) {
        let vocabulary = self.vocabulary;
        let pairs = (0..).zip(biases).flat_map(|(row, biases)| {
            biases.iter().map(move |(id, bias)| (row * vocabulary + i64::from(*id), *bias))
        });
        let (places, values): (Vec<i64>, Vec<f32>) = pairs.unzip();
        if !places.is_empty() {
            let [places, values] = [Tensor::from_slice(&places), Tensor::from_slice(&values)]
                .map(|tensor| tensor.to_device(self.flat.device()));
            self.flat = self.flat.index_add(0, &places, &values);
        }
    }

    /// Divides the scores of these tokens by `penalty`, or multiplies them if negative.
    fn penalise(&mut self, rows: &[Context<'_>], penalty: f64, tokens: impl Fn(&Context<'_>) -> Vec<u32>) {
        if penalty == 1.0 {
            return;
        }
        if let Some(places) = self.places(rows, tokens) {
            let scores = self.flat.index_select(0, &places);
            let scores = (&scores * penalty).where_self(&scores.lt(0.0), &(&scores / penalty));
            self.flat = self.flat.index_copy(0, &places, &scores);
        }
    }

    fn ban(&mut self, rows: &[Context<'_>], tokens: impl Fn(&Context<'_>) -> Vec<u32>) {
        if let Some(places) = self.places(rows, tokens) {
            self.flat = self.flat.index_fill(0, &places, f64::NEG_INFINITY);
        }
    }

    fn force(&mut self, rows: &[Context<'_>], tokens: impl Fn(&Context<'_>) -> Option<Vec<u32>>) {
        let all = (0..rows.len()).filter(|row| tokens(&rows[*row]).is_some()).map(|row| row as i64);
        let forced: Vec<i64> = all.collect();
        if let Some(places) = self.places(rows, |row| tokens(row).unwrap_or_default()) {
            let forced = Tensor::from_slice(&forced).to_device(self.flat.device());
            let others = self.flat.view([-1, self.vocabulary]).index_fill(0, &forced, f64::NEG_INFINITY);
            self.flat = others.flatten(0, 1).index_fill(0, &places, 0.0);
        }
    }

    /// Lets the scores of ending tokens grow by `factor` for each token after the first `start`.
    fn lengthen(&mut self, rows: &[Context<'_>], (start, factor): (usize, f64)) {
        for (row, context) in (0..).zip(rows) {
            let beyond = context.new.len().saturating_sub(start);
            let one = std::slice::from_ref(context);
            let Some(places) = self.places(one, |row| row.params.ends.clone()).filter(|_| beyond > 0) else {
                continue;
            };
            let places = places + row * self.vocabulary;
            let scores = self.flat.index_select(0, &places);
            let growth = scores.abs() * (factor.powf(beyond as f64) - 1.0);
            let growth =
                growth.where_self(&scores.isfinite(), &Tensor::from(0.0_f32).to_device(scores.device()));
            self.flat = self.flat.index_copy(0, &places, &(scores + growth));
        }
    }
}
