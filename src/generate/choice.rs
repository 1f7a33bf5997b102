//! The choice of next tokens for requests that are treated alike, from the scores of all their rows.

use tch::{Kind, Tensor};

use super::beams;
use super::candidates::{best, candidates, draw, likeliest, warp};
use super::entry::{Event, State, Submitted};
use super::{Finish, Sampling, SamplingParams};
use crate::fault::Result;

/// Returns true if the tokens of requests with these settings can be chosen together.
pub fn alike(a: &SamplingParams, b: &SamplingParams) -> bool {
    let parts = |params: &SamplingParams| (params.sampling, params.search);
    std::ptr::eq(a, b) || (parts(a) == parts(b) && a.penalties == b.penalties && a.ends == b.ends)
}

/// Returns scores with penalties applied, if there are any.
fn penalised(
    entries: &[&mut Submitted<'_>],
    params: &SamplingParams,
    scores: &Tensor,
) -> Result<Option<Tensor>> {
    if params.penalties.is_none() {
        return Ok(None);
    }
    if !params.penalties.remove_invalid_values {
        best(scores)?;
    }
    let rows: Vec<_> = entries.iter().flat_map(|entry| entry.contexts()).collect();
    Ok(Some(params.penalties.apply(scores, &rows)))
}

/// Gives each request its next token, and tells of it; `logits` `[s, v]` has a row for each.
///
/// # Errors
/// When logits are not finite, or a stop rule fails.
pub fn choose(entries: &mut [&mut Submitted<'_>], logits: &Tensor, events: &mut Vec<Event>) -> Result<()> {
    let Some(params) = entries.first().map(|entry| entry.request.params.clone()) else { return Ok(()) };
    let penalised = penalised(entries, &params, logits)?;
    let chosen = match (params.sampling, &penalised) {
        (Sampling::Greedy, None) => best(logits)?,
        (Sampling::Greedy, Some(scores)) => likeliest(scores)?,
        (Sampling::Random { top_k, .. }, _) => {
            let scores = penalised.as_ref().unwrap_or(logits).log_softmax(1, Kind::Float);
            let draw_one = |(entry, mut found): (&&mut Submitted<'_>, _)| {
                warp(&mut found, params.sampling, 1);
                draw(
                    &found,
                    &[entry.request.params.seed, entry.request.index as u64, entry.made().len() as u64],
                )
            };
            entries.iter().zip(candidates(&scores, top_k)?).map(draw_one).collect()
        }
    };
    for (entry, id) in entries.iter_mut().zip(chosen) {
        let State::One(ids) = &mut entry.state else { continue };
        ids.push(id);
        // A step that fails is taken again.
        let finish = entry.request.finish(ids).inspect_err(|_| ids.truncate(ids.len() - 1))?;
        if finish != Some(Finish::End) {
            events.push(Event::Token(entry.id, id));
        }
        if let Some(finish) = finish {
            let ids = std::mem::take(ids);
            entry.end(ids, finish, events);
        }
    }
    Ok(())
}

/// Takes a step of each request's beam search; `logits` `[s, v]` has a row for each beam. Sets in `sources` the slot
/// that each of theirs now continues.
///
/// # Errors
/// As [`choose`].
pub fn search(
    entries: &mut [&mut Submitted<'_>],
    logits: &Tensor,
    sources: &mut [i64],
    events: &mut Vec<Event>,
) -> Result<()> {
    let Some(params) = entries.first().map(|entry| entry.request.params.clone()) else { return Ok(()) };
    let scores = logits.log_softmax(1, Kind::Float);
    let scores = penalised(entries, &params, &scores)?.unwrap_or(scores);
    let mut rows = candidates(&scores, beams::candidates(&params))?;
    for entry in entries {
        let State::Beams(beams) = &mut entry.state else { continue };
        let found = rows.by_ref().take(params.search.beams).collect();
        let parents = beams.advance(found, &entry.request)?;
        for (source, parent) in sources[entry.slot..].iter_mut().zip(parents) {
            *source = (entry.slot + parent) as i64;
        }
        if let Some((ids, finish)) = beams.ended() {
            entry.end(ids, finish, events);
        }
    }
    Ok(())
}
