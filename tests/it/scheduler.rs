//! Requests that come, differ, leave and run out of memory while others run: each gets what it gets alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use loraxs::fault::fault;
use loraxs::generate::{
    BeamSearch, Event, Finish, Id, Limits, Penalties, Request, Sampling, SamplingParams, Scheduler, StopRule,
};
use loraxs::models::CausalLm;
use tch::Kind;

use crate::decoders::model_of;
use crate::support::{alone, fixture};

const LIMITS: Limits = Limits { slots: 8, tokens: 96 };

fn model() -> CausalLm {
    let mut model = model_of(&fixture("decoders/qwen3-normed"), Kind::Float);
    model.pack();
    model
}

/// A prompt of `length` tokens below the fixture's 101, other ones for each index.
fn request<'a>(index: usize, length: usize, params: SamplingParams) -> Request<'a> {
    let ids = (0..length).map(|at| ((index * 31 + at * 7) % 90 + 5) as u32).collect();
    Request { index, ids, params: Arc::new(params), stop: None }
}

/// Requests of every kind.
fn mixed<'a>() -> Vec<Request<'a>> {
    let greedy = || SamplingParams::greedy(12, &[]);
    let random = Sampling::Random { temperature: 1.1, top_k: 30, top_p: 0.9 };
    let flat = Sampling::Random { temperature: 1.0, top_k: 0, top_p: 1.0 };
    let penalties = Penalties { repetition_penalty: 1.5, no_repeat_ngram_size: 2, ..Penalties::default() };
    let forced = Penalties { forced_eos_token_id: vec![7], ..Penalties::default() };
    let params = [
        greedy(),
        SamplingParams::greedy(30, &[9, 23, 40, 61]),
        SamplingParams { sampling: random, seed: 1, ..greedy() },
        SamplingParams { search: BeamSearch::plain(3), ..greedy() },
        SamplingParams { sampling: random, seed: 2, ..greedy() },
        SamplingParams { penalties: penalties.clone(), ..SamplingParams::greedy(20, &[]) },
        SamplingParams { search: BeamSearch::plain(2), penalties, ..SamplingParams::greedy(7, &[5]) },
        SamplingParams { penalties: forced.clone(), ..SamplingParams::greedy(3, &[]) },
        SamplingParams { penalties: forced, ..SamplingParams::greedy(9, &[]) },
        SamplingParams { sampling: flat, search: BeamSearch::plain(3), ..greedy() },
        SamplingParams { sampling: flat, ..SamplingParams::greedy(5, &[]) },
        greedy(),
    ];
    let requests = params.into_iter().enumerate();
    let mut requests: Vec<Request> = requests.map(|(i, params)| request(i, 1 + i * 5 % 23, params)).collect();
    requests[11].stop = Some(Arc::new(|new: &[u32]| Ok(new.len() == 4)));
    requests
}

/// The tokens of all requests and why they ended, checked against the tokens told one by one.
#[derive(Default)]
struct Heard {
    told: BTreeMap<Id, Vec<u32>>,
    ended: BTreeMap<Id, (Vec<u32>, Finish)>,
}

impl Heard {
    fn hear(&mut self, events: Vec<Event>) {
        for event in events {
            match event {
                Event::Token(id, token) => {
                    assert!(!self.ended.contains_key(&id), "a token after the end");
                    self.told.entry(id).or_default().push(token);
                }
                Event::Finished(id, ids, finish) => {
                    assert!(self.told.get(&id).is_none_or(|told| *told == ids));
                    assert!(self.ended.insert(id, (ids, finish)).is_none(), "it ends twice");
                }
            }
        }
    }

    fn until_idle(mut self, scheduler: &mut Scheduler<'_>) -> Self {
        while !scheduler.is_idle() {
            self.hear(scheduler.step().unwrap());
        }
        self
    }
}

fn by_itself(model: &CausalLm, request: &Request<'_>) -> (Vec<u32>, Finish) {
    let mut scheduler = Scheduler::new(model, LIMITS);
    let id = scheduler.submit(request.clone()).unwrap();
    Heard::default().until_idle(&mut scheduler).ended.remove(&id).unwrap()
}

#[test]
fn requests_with_different_settings_run_together_as_alone() {
    let _alone = alone();
    let (model, requests) = (model(), mixed());
    let wanted: Vec<_> = requests.iter().map(|request| by_itself(&model, request)).collect();
    for finish in [Finish::End, Finish::Stop, Finish::Length] {
        assert!(wanted.iter().any(|(_, found)| *found == finish), "{finish:?}");
    }
    assert_ne!(wanted[2].0, wanted[4].0);
    for slots in [3, 8, 40] {
        let mut scheduler = Scheduler::new(&model, Limits { slots, ..LIMITS });
        let ids: Vec<Id> = requests.iter().map(|r| scheduler.submit(r.clone()).unwrap()).collect();
        let mut heard = Heard::default().until_idle(&mut scheduler);
        for ((request, id), wanted) in requests.iter().zip(ids).zip(&wanted) {
            let found = heard.ended.remove(&id).unwrap();
            assert_eq!(found, *wanted, "{slots} slots: prompt {}", request.index);
            let streams = request.params.search.beams == 1;
            assert_eq!(heard.told.contains_key(&id), streams && !found.0.is_empty());
        }
    }
}

#[test]
fn a_request_that_comes_while_others_run_gets_what_it_gets_alone() {
    let _alone = alone();
    let (model, requests) = (model(), mixed());
    let mut scheduler = Scheduler::new(&model, LIMITS);
    let (mut heard, mut ids) = (Heard::default(), Vec::new());
    for request in &requests {
        ids.push(scheduler.submit(request.clone()).unwrap());
        heard.hear(scheduler.step().unwrap());
    }
    assert!(heard.ended.len() < requests.len(), "all have ended before the last one comes");
    heard = heard.until_idle(&mut scheduler);
    // Idle, and used again: prompts with a common beginning.
    let begun: Vec<Request> = (0..4)
        .map(|i| {
            let end = request(i, 5, SamplingParams::greedy(8, &[])).ids;
            Request {
                ids: [requests[4].ids.repeat(2), end].concat(),
                ..request(i, 1, SamplingParams::greedy(8, &[]))
            }
        })
        .collect();
    ids.extend(begun.iter().map(|request| scheduler.submit(request.clone()).unwrap()));
    heard = heard.until_idle(&mut scheduler);
    for (request, id) in requests.iter().chain(&begun).zip(ids) {
        assert_eq!(heard.ended.remove(&id).unwrap(), by_itself(&model, request), "prompt {}", request.index);
    }
}

#[test]
fn a_cancelled_request_is_told_of_no_more_and_makes_room() {
    let _alone = alone();
    let (model, requests) = (model(), mixed());
    for cancelled in [0, 3, 9, 11] {
        let mut scheduler = Scheduler::new(&model, LIMITS);
        let ids: Vec<Id> = requests.iter().map(|r| scheduler.submit(r.clone()).unwrap()).collect();
        let mut heard = Heard::default();
        heard.hear(scheduler.step().unwrap());
        assert!(scheduler.cancel(ids[cancelled]), "{cancelled}");
        assert!(!scheduler.cancel(ids[cancelled]), "it is cancelled twice");
        let before = heard.told.get(&ids[cancelled]).cloned();
        let mut heard = heard.until_idle(&mut scheduler);
        assert_eq!(heard.told.get(&ids[cancelled]).cloned(), before);
        for (i, (request, id)) in requests.iter().zip(&ids).enumerate() {
            let found = heard.ended.remove(id);
            assert_eq!(
                found,
                (i != cancelled).then(|| by_itself(&model, request)),
                "{cancelled}: prompt {}",
                request.index
            );
            assert!(!scheduler.cancel(*id), "it has ended");
        }
    }
}

/// Fails in the calls with these numbers, as libtorch does without memory.
fn exhausted<'a>(fails: impl Fn(usize) -> bool + Send + Sync + 'a) -> StopRule<'a> {
    let calls = AtomicUsize::new(0);
    Arc::new(move |_: &[u32]| match fails(calls.fetch_add(1, Ordering::Relaxed)) {
        true => Err(fault("DefaultCPUAllocator: can't allocate memory").into()),
        false => Ok(false),
    })
}

#[test]
fn requests_go_on_in_fewer_slots_when_memory_runs_out() {
    let _alone = alone();
    let (model, mut requests) = (model(), mixed());
    let wanted: Vec<_> = requests.iter().map(|request| by_itself(&model, request)).collect();
    requests[0].stop = Some(exhausted(|call| call == 5));
    let mut scheduler = Scheduler::new(&model, LIMITS);
    let ids: Vec<Id> = requests.iter().map(|r| scheduler.submit(r.clone()).unwrap()).collect();
    let mut heard = Heard::default().until_idle(&mut scheduler);
    for ((request, id), wanted) in requests.iter().zip(ids).zip(wanted) {
        assert_eq!(heard.ended.remove(&id).unwrap(), wanted, "prompt {}", request.index);
    }

    requests[0].stop = Some(exhausted(|_| true));
    let mut scheduler = Scheduler::new(&model, LIMITS);
    scheduler.submit(requests[0].clone()).unwrap();
    let error = scheduler.step().unwrap_err();
    assert_eq!(format!("{error:#}"), "out of memory even for one prompt of 1 tokens");
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let model = model();
    let mut scheduler = Scheduler::new(&model, Limits { slots: 2, tokens: 32 });
    let mut refused = |request| format!("{:#}", scheduler.submit(request).unwrap_err());
    let long = SamplingParams::greedy(30, &[]);
    assert_eq!(
        refused(request(4, 3, long)),
        "prompt 4 may take 1 slots of 33 tokens, and the cache has 2 of 32"
    );
    let wide = SamplingParams { search: BeamSearch::plain(3), ..SamplingParams::greedy(4, &[]) };
    assert!(refused(request(4, 3, wide)).contains("3 slots of 7 tokens"));
    assert!(refused(request(0, 0, SamplingParams::greedy(4, &[]))).contains("is empty"));
    assert!(scheduler.is_idle() && scheduler.step().unwrap().is_empty());
}
