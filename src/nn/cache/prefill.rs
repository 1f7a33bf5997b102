//! Prompts being read into a cache.

use tch::{Device, Kind, Tensor};

use super::{Cache, Span};
use crate::fault::Result;
use crate::nn::attention::Attention;
use crate::nn::{Packed, Pass, Sight};
use crate::torch::Copies;
use crate::torch::coming::sent;

/// Prompts being read into a cache: each attends to itself and to what its slot holds, and stores its keys and values there.
#[derive(Debug)]
pub struct Prefill<'a> {
    cache: &'a Cache,
    batch: &'a Packed,
    /// The tokens of each prompt.
    spans: &'a [Span],
    /// Places in a cache on a GPU.
    places: Option<PromptPlaces>,
    copies: Copies<PromptPlaces>,
}

/// Where the tokens of prompts lie in a cache on a GPU.
#[derive(Debug)]
struct PromptPlaces {
    /// Flat place of each token of the batch, int64 `[m]`.
    at: Tensor,
    /// Where a slot held tokens before: the start of each prompt's slot, int32 `[s + 1]`, and its tokens then, int32 `[s]`.
    slots: Option<[Tensor; 2]>,
    /// Tokens of the fullest slot then.
    longest: i64,
}

impl PromptPlaces {
    fn new(capacity: i64, batch: &Packed, spans: &[Span]) -> Self {
        let mut at = vec![0; batch.ids.numel()];
        for span in spans {
            for i in 0..span.len {
                at[(span.start + i) as usize] = span.slot * capacity + span.held + i;
            }
        }
        let device = batch.ids.device();
        let longest = spans.iter().map(|span| span.held + span.len).max().unwrap_or(0);
        let slots = spans.iter().any(|span| span.held > 0).then(|| {
            // As the sequences lie in the batch.
            let mut spans: Vec<&Span> = spans.iter().collect();
            spans.sort_by_key(|span| span.start);
            let starts: Vec<i64> = spans.iter().map(|span| span.slot * capacity).chain([0]).collect();
            let used: Vec<i64> = spans.iter().map(|span| span.held + span.len).collect();
            [starts, used].map(|numbers| sent(&Tensor::from_slice(&numbers).to_kind(Kind::Int), device))
        });
        Self { at: sent(&Tensor::from_slice(&at), device), slots, longest }
    }

    fn to_device(&self, device: Device) -> Self {
        let slots = self.slots.as_ref().map(|both| both.each_ref().map(|x| x.to_device(device)));
        Self { at: self.at.to_device(device), slots, longest: self.longest }
    }
}

impl<'a> Prefill<'a> {
    /// `batch` has one run, `spans` its prompts; their slots are empty, unless the model [reads in
    /// parts](crate::models::CausalLm::reads_in_parts).
    pub fn new(cache: &'a Cache, batch: &'a Packed, spans: &'a [Span]) -> Self {
        let places = (!cache.own).then(|| PromptPlaces::new(cache.capacity, batch, spans));
        Self { cache, batch, spans, places, copies: Copies::default() }
    }
}

impl Sight for Prefill<'_> {
    fn attend(
        &self,
        layer: usize,
        attention: &Attention,
        [q, k, v]: [&Tensor; 3],
        pass: &Pass,
    ) -> Result<Tensor> {
        let Some(places) = &self.places else {
            return Ok(self.cache.attend(layer, attention, [q, k, v], self.spans));
        };
        let places = match k.device() {
            device if device == places.at.device() => places,
            device => self.copies.on(device, &|| places.to_device(device)),
        };
        self.cache.store(layer, &places.at, [k, v]);
        match &places.slots {
            None => attention.forward([q, k, v], self.batch, pass),
            Some([starts, used]) => {
                let batch = self.batch.on(q.device());
                let longest = [batch.longest, places.longest];
                self.cache.attend_by_flash(layer, attention, q, [&batch.bounds, starts, used], longest)
            }
        }
    }
}
