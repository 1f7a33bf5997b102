//! The choice of next tokens for requests that are treated alike, from the scores of all their rows.

use tch::{Kind, Tensor};

use super::beams;
use super::candidates::{best, candidates, draw, draw_on_device, likeliest, tokens, unit, warp};
use super::entry::{Event, State, Submitted};
use super::request::Request;
use super::{Finish, Sampling, SamplingParams};
use crate::fault::Result;
use crate::torch::coming::{Coming, sent};
use crate::torch::draw::mix;

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
        tokens(&best(scores))?;
    }
    let rows: Vec<_> = entries.iter().flat_map(|entry| entry.contexts()).collect();
    Ok(Some(params.penalties.apply(scores, &rows)))
}

/// Chooses the next token of each request.
fn chosen(entries: &[&mut Submitted<'_>], params: &SamplingParams, logits: &Tensor) -> Result<Tensor> {
    let penalised = penalised(entries, params, logits)?;
    let Sampling::Random { top_k, .. } = params.sampling else {
        return Ok(penalised.as_ref().map_or_else(|| best(logits), likeliest));
    };
    let scores = penalised.as_ref().unwrap_or(logits).log_softmax(1, Kind::Float);
    let wanted = entries.iter().map(|entry| {
        let Request { params, index, .. } = &entry.request;
        unit(mix(&[params.seed, *index as u64, entry.made().len() as u64]))
    });
    let wanted: Vec<f64> = wanted.collect();
    if scores.device().is_cuda() {
        let wanted = sent(&Tensor::from_slice(&wanted), scores.device());
        return Ok(draw_on_device(&scores, params.sampling, &wanted));
    }
    let draw_one = |(mut found, wanted): (Vec<_>, &f64)| {
        warp(&mut found, params.sampling, 1);
        i64::from(draw(&found, *wanted))
    };
    Ok(Tensor::from_slice(&candidates(&scores, top_k)?.zip(&wanted).map(draw_one).collect::<Vec<i64>>()))
}

/// Gives each request its next token, and tells of it; `logits` `[s, v]` has a row for each. `meanwhile` gets the tokens, int64 `[s]`, while
/// they are copied to the host.
///
/// # Errors
/// When logits are not finite, `meanwhile` or a stop rule fails.
pub fn choose(
    entries: &mut [&mut Submitted<'_>],
    logits: &Tensor,
    meanwhile: impl FnOnce(&Tensor) -> Result<()>,
    events: &mut Vec<Event>,
) -> Result<()> {
    let Some(params) = entries.first().map(|entry| entry.request.params.clone()) else { return Ok(()) };
    let ids = chosen(entries, &params, logits)?;
    let coming = Coming::of(&ids)?;
    meanwhile(&ids)?;
    for (entry, id) in entries.iter_mut().zip(tokens(&coming.wait()?)?) {
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
