//! Beam search over the hypotheses of one prompt.
//!
//! Follows `GenerationMixin._beam_search` of Transformers 5: candidates are the best `max(2, 1 + ends)` times
//! `beams` continuations; those ending among the first `beams` compete to be finished; the best `beams`
//! others continue, until their best can no longer beat the worst finished, or as `early_stopping` says.

use super::candidates::{unit, warp};
use super::request::Request;
use super::{EarlyStopping, Finish, Sampling, SamplingParams};
use crate::fault::Result;
use crate::torch::draw::mix;

/// Log-probability of a hypothesis that does not count.
const NEVER: f32 = -1e9;

/// Returns the number of continuations considered in each step.
fn kept(params: &SamplingParams) -> usize {
    params.search.beams * (1 + params.ends.len()).max(2)
}

/// Returns the number of tokens that top-k and top-p must keep, so that one does not end the text.
fn least(params: &SamplingParams) -> usize {
    1 + params.ends.len()
}

/// Returns the number of candidates per row that can matter; 0 = all.
pub fn candidates(params: &SamplingParams) -> usize {
    match params.sampling {
        Sampling::Greedy => kept(params),
        Sampling::Random { top_k: 0, .. } => 0,
        Sampling::Random { top_k, .. } => top_k.max(least(params)),
    }
}

/// The tokens of a finished hypothesis, and why it ended.
type Hypothesis = (Vec<u32>, Finish);

/// The hypotheses of one prompt.
#[derive(Debug)]
pub struct Beams {
    running: Vec<(Vec<u32>, f32)>,
    /// Best first; `None` until a hypothesis is finished.
    finished: Vec<(Option<Hypothesis>, f32)>,
    /// True if a running hypothesis can still beat a finished one.
    improvable: bool,
    /// True if every continuation of the last step had to end.
    exhausted: bool,
    /// True if the search ends because enough hypotheses are finished.
    closed: bool,
}

/// A continuation: the beam that it extends, its tokens, its score, and why it ends.
struct Continuation {
    parent: usize,
    ids: Vec<u32>,
    score: f32,
    finish: Option<Finish>,
}

impl Beams {
    /// Creates `width` empty hypotheses, of which only the first counts.
    pub fn new(width: usize) -> Self {
        let running = (0..width).map(|beam| (Vec::new(), if beam == 0 { 0.0 } else { NEVER })).collect();
        let finished = (0..width).map(|_| (None, NEVER)).collect();
        Self { running, finished, improvable: true, exhausted: false, closed: false }
    }

    /// Returns the tokens of the running hypotheses.
    pub fn running(&self) -> impl Iterator<Item = &[u32]> {
        self.running.iter().map(|(ids, _)| ids.as_slice())
    }

    /// Returns the best finished hypothesis once the search is over.
    pub fn ended(&mut self) -> Option<(Vec<u32>, Finish)> {
        if self.improvable && !self.exhausted && !self.closed {
            return None;
        }
        self.finished.first_mut().and_then(|(found, _)| found.take())
    }

    /// Takes one step; `found` has the candidates of each beam. Returns the beam that each new one extends.
    ///
    /// # Errors
    /// As the request's stop rule.
    pub fn advance(&mut self, found: Vec<Vec<(u32, f32)>>, request: &Request<'_>) -> Result<Vec<usize>> {
        let search = request.params.search;
        let penalised =
            |score: f32, length: usize| score / (length as f32).powf(search.length_penalty as f32);
        let width = self.running.len();
        let length = 1 + self.running.first().map_or(0, |(ids, _)| ids.len());
        let continuations = self.continuations(found, request, length)?;
        self.exhausted = continuations.iter().all(|c| c.finish.is_some());
        let mut next: Vec<(usize, f32)> = continuations
            .iter()
            .map(|c| if c.finish.is_some() { c.score + NEVER } else { c.score })
            .enumerate()
            .collect();
        next.sort_by(|a, b| b.1.total_cmp(&a.1));
        // Filters may leave fewer candidates than beams: copies of the best fill the rest, and do not count.
        while let (true, Some(&(best, _))) = (next.len() < width, next.first()) {
            next.push((best, NEVER));
        }
        next.truncate(width);
        let running = next.iter().map(|&(place, score)| (continuations[place].ids.clone(), score)).collect();
        let parents = next.iter().map(|&(place, _)| continuations[place].parent).collect();
        if self.improvable {
            for continuation in continuations.into_iter().take(width) {
                if let Some(finish) = continuation.finish {
                    let score = penalised(continuation.score, length);
                    self.finished.push((Some((continuation.ids, finish)), score));
                }
            }
            self.finished.sort_by(|a, b| b.1.total_cmp(&a.1));
            self.finished.truncate(width);
        }
        self.running = running;
        let never = search.early_stopping == EarlyStopping::Impossible && search.length_penalty > 0.0;
        let longest = if never { request.params.max_new_tokens } else { length };
        let possible = penalised(self.running.first().map_or(NEVER, |(_, score)| *score), longest);
        let full = self.finished.iter().all(|(found, _)| found.is_some());
        let worst = self.finished.last().filter(|_| full).map_or(NEVER, |(_, score)| *score);
        self.improvable &= possible > worst;
        self.closed = full && search.early_stopping == EarlyStopping::Full;
        Ok(parents)
    }

    /// Returns the continuations to consider, best first.
    fn continuations(
        &self,
        found: Vec<Vec<(u32, f32)>>,
        request: &Request<'_>,
        length: usize,
    ) -> Result<Vec<Continuation>> {
        let (params, sampling) = (&request.params, request.params.sampling);
        let mut all: Vec<(usize, u32, f32)> = Vec::new();
        for (parent, mut candidates) in found.into_iter().enumerate() {
            warp(&mut candidates, sampling, least(params));
            let before = self.running[parent].1;
            all.extend(candidates.into_iter().map(|(id, score)| (parent, id, score + before)));
        }
        let key = |&(parent, id, score): &(usize, u32, f32)| match sampling {
            Sampling::Greedy => f64::from(score),
            // Ordering by keys with Gumbel noise equals drawing without replacement.
            Sampling::Random { .. } => {
                let numbers = [request.index, length, parent, id as usize].map(|number| number as u64);
                let noise = unit(mix(&[params.seed, mix(&numbers)])).max(f64::MIN_POSITIVE);
                f64::from(score) - (-noise.ln()).ln()
            }
        };
        // Forced tokens have equal scores: ties keep their order.
        all.sort_by(|a, b| key(b).total_cmp(&key(a)).then_with(|| (a.0, a.1).cmp(&(b.0, b.1))));
        all.truncate(kept(params));
        all.into_iter()
            .map(|(parent, id, score)| {
                let mut ids = self.running[parent].0.clone();
                ids.push(id);
                let finish = request.finish(&ids)?;
                Ok(Continuation { parent, ids, score, finish })
            })
            .collect()
    }
}
