//! What a training will cost, estimated before it starts (`--dry-run`).

use std::path::Path;

use tch::Kind;

use crate::adapters::{Group, Trained};
use crate::models::Base;
use crate::report::table;

const MIB: f64 = 1_048_576.0;

/// What the estimate depends on.
pub struct Forecast<'a> {
    /// The base.
    pub base: &'a Base,
    /// What is trained.
    pub trained: &'a Trained,
    /// Tokens of each training example.
    pub lengths: &'a [usize],
    /// Examples in one forward pass.
    pub micro_batch_size: usize,
    /// Kind of weights and hidden states.
    pub kind: Kind,
    /// Whether activations are computed again.
    pub recompute: bool,
    /// Optimiser steps.
    pub steps: u64,
}

impl Forecast<'_> {
    /// Mebibytes of weights, of trained tensors with gradient and two moments, and of activations.
    ///
    /// Activations are counted for the longest micro batch: what autograd keeps of a layer is about 16 values of the
    /// model's width and 3 of the feed-forward width a token, and the attention probabilities (twice, with dropout).
    fn memory(&self) -> [f64; 3] {
        let c = self.base.config.extent();
        let size = self.kind.elt_size_in_bytes() as f64;
        let (d, wide, layers) = (c.width as f64, c.intermediate as f64, c.layers as f64);
        let weights = self.base.trunk_numbers() as f64;
        let trained: usize =
            [Group::Adapter, Group::Base, Group::Head].iter().map(|&g| self.trained.count(g)).sum();
        let mut lengths = self.lengths.to_vec();
        lengths.sort_unstable();
        let longest = lengths.iter().rev().take(self.micro_batch_size).map(|&t| t as f64);
        let (tokens, squares) = longest.fold((0.0, 0.0), |(sum, squares), t| (sum + t, squares + t * t));
        let layer = tokens * (16.0 * d + 3.0 * wide) + 2.0 * squares * c.heads as f64;
        let kept = if self.recompute { layer + layers * tokens * d } else { layers * layer };
        [weights * size / MIB, trained as f64 * 16.0 / MIB, kept * size / MIB]
    }

    /// The forecast as text, with the files that a run in `out` would write.
    pub fn text(&self, out: &Path) -> String {
        let tokens: usize = self.lengths.iter().sum();
        let [weights, trained, activations] = self.memory();
        let rows = [
            ("training examples", self.lengths.len().to_string()),
            ("tokens in an epoch", tokens.to_string()),
            ("optimiser steps", self.steps.to_string()),
            ("memory of weights (MiB, estimated)", format!("{weights:.0}")),
            ("memory of trained tensors (MiB, estimated)", format!("{trained:.1}")),
            ("memory of activations (MiB, estimated)", format!("{activations:.0}")),
            ("memory in all (MiB, estimated)", format!("{:.0}", weights + trained + activations)),
        ]
        .map(|(name, value)| vec![name.to_owned(), value]);
        let files = [
            "recipe.toml",
            "metrics.jsonl",
            "events.out.tfevents.*",
            "results.json",
            "adapter/adapter_model.safetensors",
            "adapter/adapter_config.json",
            "checkpoints/step-N/",
        ]
        .map(|file| format!("  {}", out.join(file).display()));
        format!("{}\nwould write\n{}", table(&["forecast", ""], &rows), files.join("\n"))
    }
}
