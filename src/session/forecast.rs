//! Cost of a training, estimated before its model is loaded (`--dry-run`).

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use tch::Kind;

use super::counts::Counts;
use super::environment::kind_of;
use crate::adapters::rules::Kept;
use crate::models::Config;
use crate::recipe::TrainRecipe;
use crate::report::table;
use crate::spec::Precision;

const MIB: f64 = 1_048_576.0;

/// Inputs of the estimate.
pub struct Forecast<'a> {
    /// The base.
    pub config: &'a Config,
    /// Counts of trainable parameters.
    pub counts: Counts,
    /// Tokens of each training example.
    pub lengths: Vec<usize>,
    /// The recipe's settings of the training.
    pub train: TrainRecipe,
    /// What autograd keeps of the base's layers.
    pub kept: Kept,
    /// True if the adapters' inputs have dropout.
    pub drops: bool,
    /// Optimiser steps.
    pub steps: u64,
    /// What lies on each device.
    pub parts: Vec<DevicePart>,
    /// Free bytes on the disk of the run, if known.
    pub free_on_disk: Option<u64>,
}

/// The part of a model that lies on one device.
pub struct DevicePart {
    /// The device's name.
    pub device: String,
    /// The layers.
    pub layers: Range<usize>,
    /// Share of the weights.
    pub share: f64,
    /// True if logits are computed there.
    pub has_logits: bool,
    /// Free bytes, if known.
    pub free: Option<usize>,
}

impl DevicePart {
    /// Returns the part of all bytes that is here.
    fn of(&self, all: &Memory, layers: usize) -> Memory {
        Memory {
            weights: all.weights * self.share,
            trained: all.trained * self.share,
            activations: all.activations * self.layers.len() as f64 / layers.max(1) as f64,
            logits: if self.has_logits { all.logits } else { 0.0 },
        }
    }

    /// Returns the lines of the device, with the bytes estimated there if it is one of several.
    fn rows(&self, estimated: f64, several: bool) -> Vec<(Cow<'static, str>, String)> {
        let Self { device, layers, free, .. } = self;
        let mut rows = Vec::new();
        let mib = |bytes: f64| format!("{:.1}", bytes / MIB);
        if several {
            let layers = match layers.len() {
                1 => format!("layer {}", layers.start),
                _ => format!("layers {} to {}", layers.start, layers.end.saturating_sub(1)),
            };
            rows.push((format!("{device}, {layers} (MiB, estimated)").into(), mib(estimated)));
        }
        if let Some(free) = free {
            let name =
                if several { format!("free on {device} (MiB)") } else { "free on the device (MiB)".into() };
            rows.push((name.into(), mib(*free as f64)));
        }
        rows
    }
}

/// Bytes by purpose.
struct Memory {
    weights: f64,
    trained: f64,
    activations: f64,
    logits: f64,
}

impl Memory {
    fn all(&self) -> f64 {
        self.weights + self.trained + self.activations + self.logits
    }
}

impl Forecast<'_> {
    /// Returns the tokens of the longest micro batch, and the sum of the squares of its lengths.
    fn longest_micro_batch(&self) -> (f64, f64) {
        let mut lengths = self.lengths.clone();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let mut tokens = 0;
        let fits = |length: &&usize| {
            tokens += **length;
            tokens <= self.train.micro_batch_tokens
        };
        let count = match self.train.micro_batch_tokens {
            0 => self.train.micro_batch_size,
            _ => lengths.iter().take_while(fits).count().max(1),
        };
        let longest = lengths.iter().take(count).map(|&t| t as f64);
        longest.fold((0.0, 0.0), |(sum, squares), t| (sum + t, squares + t * t))
    }

    /// Estimates weights and trained tensors (value, gradient, two moments in fp32; on a CPU the gradient in fp64), the memory that autograd
    /// keeps of the longest micro batch, and the largest chunk of logits with its gradient.
    ///
    /// Of an encoder's layer autograd keeps on a CPU about 16 values of the model's width and 3 of the feed-forward width a token, and the
    /// attention probabilities twice; on a GPU, as measured on the stand-in for one, 6 values of the model's width, 1 of the feed-forward width
    /// and the masks of dropout, and works with about 1.5 layers more. Of a decoder's layer as measured there and on an H100: 3 values of the
    /// model's width (4 in fp32), queries, keys, values and attention's output, and 2 values of the feed-forward width; where layers keep
    /// their inputs, 2 and 1 more; a byte for each number with dropout; capped scores. The backward pass works with about 3 layers more. A CPU
    /// without kernels of one pass keeps 1.6 times as much.
    fn memory(&self) -> Memory {
        let size = kind_of(self.train.precision).elt_size_in_bytes() as f64;
        let config = self.config;
        let (d, wide, layers) = (config.width as f64, config.intermediate as f64, config.layers as f64);
        let (tokens, squares) = self.longest_micro_batch();
        let on_cpu = self.parts.iter().all(|part| part.device == "cpu");
        let inputs = if self.kept == Kept::Inputs { 2.0 * d + wide } else { 0.0 };
        let masks = if self.drops { 6.0 * d + wide } else { 0.0 };
        let (layer, logits) = match self.config {
            // Heads of other widths have no kernel there.
            Config::Encoder(c) if !on_cpu && c.width / c.heads % 8 == 0 => {
                // GPUs without FlashAttention, for which fp16 is, keep scores, masks and probabilities.
                let scores = if self.train.precision == Precision::Fp16 {
                    16.0 * squares * c.heads as f64
                } else {
                    0.0
                };
                (tokens * ((6.0 * d + wide + inputs) * size + 2.0 * d + masks) + scores, 0.0)
            }
            Config::Encoder(c) => {
                (tokens * (16.0 * d + 3.0 * wide) * size + 2.0 * squares * c.heads as f64 * size, 0.0)
            }
            Config::Decoder(c) => {
                let heads = ((2 * c.heads + 2 * c.kv_heads) * c.head_width) as f64;
                // Capped scores have no kernel that computes them anew: their tanh, softmax, and that rounded.
                let scores = if c.score_cap.is_some() { 8.0 * squares * c.heads as f64 } else { 0.0 };
                let rows = if size > 2.0 { 4.0 } else { 3.0 };
                let layer = tokens * ((rows * d + heads + 2.0 * wide + inputs) * size + masks) + scores;
                let chunk = (tokens * c.vocabulary as f64).min(f64::from(1 << 24));
                (layer, chunk * (2.0 * 4.0 + size))
            }
        };
        let working = match self.config {
            Config::Decoder(_) => 3.0,
            Config::Encoder(_) if on_cpu => 0.0,
            Config::Encoder(_) => 1.5,
        };
        let layer = if on_cpu && self.config.is_decoder() { 1.6 * layer } else { layer };
        let activations =
            if self.kept == Kept::Nothing {
                layer
            } else if self.train.gradient_checkpointing {
                let working = if self.config.is_decoder() { 0.0 } else { working };
                (1.0 + working) * layer + layers * tokens * d * size
            } else {
                (layers + working) * layer
            } + if on_cpu || self.train.precision != Precision::Fp32 { 0.0 } else { halves(tokens, d, wide) };
        let Counts { all, adapter, full, head } = self.counts;
        let weights = if full > 0 { 0.0 } else { all as f64 * size };
        // Of the embeddings, a CPU makes whole gradients in fp64.
        let [each, of_base] = if on_cpu { [20.0, 24.0] } else { [16.0, 16.0] };
        let trained = (adapter + head) as f64 * each + full as f64 * of_base;
        Memory { weights, trained, activations, logits }
    }

    /// Estimates the bytes of the adapter and of the checkpoints, one of which is being written: value and two moments,
    /// the adapter of its step and the best one.
    fn bytes_of_files(&self) -> f64 {
        let Counts { adapter, full, head, .. } = self.counts;
        let adapter = 4.0 * (adapter + full + head) as f64;
        adapter + (self.train.keep_checkpoints + 1) as f64 * 5.0 * adapter
    }

    /// Estimates the bytes of so many runs, computed in one pass if `joined`, else one after another.
    pub fn bytes(&self, runs: usize, joined: bool) -> f64 {
        let Memory { weights, trained, activations, logits } = self.memory();
        let of_pass = if joined { runs as f64 } else { 1.0 };
        weights + trained * runs as f64 + (activations + logits) * of_pass
    }

    /// Suggests what to change if the memory does not suffice.
    fn advice(&self, memory: &Memory, free: f64) -> String {
        let mut advice = Vec::new();
        if !self.train.gradient_checkpointing {
            advice.push("`train.gradient_checkpointing=true`".to_owned());
        }
        let (tokens, _) = self.longest_micro_batch();
        let left = free - memory.weights - memory.trained - memory.logits;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "clamped to what is positive"
        )]
        let fitting = (0.9 * left / memory.activations * tokens).max(0.0) as usize;
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        if fitting >= longest {
            advice.push(format!("`train.micro_batch_tokens={fitting}`"));
        }
        if kind_of(self.train.precision) == Kind::Float {
            advice.push("`train.precision=bf16`".to_owned());
        }
        advice.push("a smaller `data.max_length`".to_owned());
        format!("does not fit: change {}, or use devices with more memory", advice.join(", or "))
    }

    /// Formats the forecast, with the files that a run in `out` would write.
    pub fn text(&self, out: &Path) -> String {
        let tokens: usize = self.lengths.iter().sum();
        let memory = self.memory();
        let mib = |bytes: f64| format!("{:.1}", bytes / MIB);
        let mut rows: Vec<(Cow<'_, str>, String)> = [
            ("training examples", self.lengths.len().to_string()),
            ("tokens per epoch", tokens.to_string()),
            ("optimiser steps", self.steps.to_string()),
            ("memory of weights (MiB, estimated)", mib(memory.weights)),
            ("memory of trainable tensors (MiB, estimated)", mib(memory.trained)),
            ("memory of activations (MiB, estimated)", mib(memory.activations)),
        ]
        .map(|(name, value)| (name.into(), value))
        .into();
        if let Config::Decoder(config) = self.config {
            rows.push(("memory of logits (MiB, estimated)".into(), mib(memory.logits)));
            let cache = 2 * config.layers as i64 * config.kv_heads * config.head_width;
            let bytes = 1000.0 * cache as f64 * kind_of(self.train.precision).elt_size_in_bytes() as f64;
            rows.push(("cache of 1000 generated tokens (MiB)".into(), mib(bytes)));
        }
        rows.push(("total memory (MiB, estimated)".into(), mib(memory.all())));
        let mut verdict = String::new();
        for part in &self.parts {
            let own = part.of(&memory, self.config.layers);
            rows.extend(part.rows(own.all(), self.parts.len() > 1));
            if let Some(free) = part.free.filter(|free| own.all() > *free as f64 && verdict.is_empty()) {
                verdict = format!("\n{}", self.advice(&own, free as f64));
            }
        }
        let files = self.bytes_of_files();
        rows.push(("files of the run at most (MiB, estimated)".into(), mib(files)));
        if let Some(free) = self.free_on_disk.map(|free| free as f64) {
            rows.push(("free on the disk (MiB)".into(), mib(free)));
            if files > free {
                verdict += "\nthe disk has too little space: keep fewer checkpoints, or choose another folder with `--out`";
            }
        }
        let rows: Vec<Vec<String>> =
            rows.into_iter().map(|(name, value)| vec![name.into_owned(), value]).collect();
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
        format!("{}{verdict}\nwould write\n{}", table(&["forecast", ""], &rows), files.join("\n"))
    }
}

/// Estimates what fp32 products by tensor cores take at a time (`torch/halves.h`): three halves of each number of a weight and its input, and
/// sums of 256 numbers each.
fn halves(tokens: f64, d: f64, wide: f64) -> f64 {
    6.0 * wide * (d + tokens) + (4.0 * tokens * wide * (d / 256.0).ceil()).min(f64::from(1 << 28))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::reader::Reader;

    fn part(layers: Range<usize>, share: f64, free: f64) -> DevicePart {
        let device = format!("cuda:{}", layers.start);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "positive and small")]
        DevicePart { device, layers, share, has_logits: true, free: Some(free as usize) }
    }

    /// Returns the forecast of 40 examples in one pass.
    fn forecast(config: &Config, micro_batch_tokens: usize, free: f64) -> Forecast<'_> {
        let counts = Counts { all: 10_000, adapter: 200, full: 0, head: 0 };
        let defaults = TrainRecipe::read(&mut Reader::default());
        let train = TrainRecipe { micro_batch_size: 40, micro_batch_tokens, keep_checkpoints: 1, ..defaults };
        Forecast {
            config,
            counts,
            lengths: vec![64; 40],
            train,
            kept: Kept::Activations,
            drops: false,
            steps: 3,
            parts: vec![part(0..config.layers, 1.0, free)],
            free_on_disk: Some(8_800),
        }
    }

    #[test]
    fn what_does_not_fit_is_said_with_a_change_that_fits() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/decoders/llama-biased");
        let config = Config::load(&folder).unwrap();
        let memory = forecast(&config, 0, 0.0).memory();
        let text = |free: f64| forecast(&config, 0, free).text(Path::new("run"));
        assert!(!text(memory.all() + 1.0).contains("does not fit"));
        let third = memory.all() - memory.activations * 2.0 / 3.0;
        let told = text(third);
        for change in ["train.gradient_checkpointing=true", "train.precision=bf16", "data.max_length"] {
            assert!(told.contains(change), "no `{change}` in {told}");
        }
        let tokens = told.split_once("train.micro_batch_tokens=").unwrap().1.split_once('`').unwrap().0;
        let changed = forecast(&config, tokens.parse().unwrap(), third);
        assert!(changed.memory().all() <= third, "{tokens} tokens do not fit either");
        assert!(!changed.text(Path::new("run")).contains("does not fit"));
        // 200 trained numbers: an adapter of 800 bytes, and two checkpoints of five times that.
        let disk =
            |free| Forecast { free_on_disk: Some(free), ..forecast(&config, 0, 1e12) }.text(Path::new("run"));
        assert!(
            disk(8_799).contains("the disk has too little space")
                && !disk(8_800).contains("too little space")
        );
        // If not even one example fits, no number of tokens is named.
        let none = text(memory.all() - memory.activations);
        assert!(none.contains("does not fit") && !none.contains("micro_batch_tokens"), "{none}");
    }

    #[test]
    fn keys_and_values_count_once_for_all_queries_that_share_them_and_logits_with_their_gradient() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/decoders/llama-biased");
        let Config::Decoder(mut config) = Config::load(&folder).unwrap() else { panic!("a decoder") };
        let mut memory = |[heads, kv_heads]: [i64; 2]| {
            (config.trunk.heads, config.kv_heads) = (heads, kv_heads);
            forecast(&Config::Decoder(config.clone()), 0, 1e12).memory()
        };
        let (many, few) = (memory([8, 8]), memory([8, 1]));
        let (tokens, layers) = (40.0 * 64.0, config.layers as f64);
        let saved = (layers + 3.0) * tokens * (2 * 7 * config.head_width) as f64 * 4.0;
        assert!(((many.activations - few.activations) / saved - 1.0).abs() < 1e-9);
        assert!((few.logits / (tokens * config.vocabulary as f64 * 12.0) - 1.0).abs() < 1e-9);
    }

    #[test]
    fn each_device_is_told_what_lies_on_it() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/decoders/llama-biased");
        let config = Config::load(&folder).unwrap();
        assert_eq!(config.layers, 2);
        let memory = forecast(&config, 0, 0.0).memory();
        let half = memory.all() / 2.0 + memory.logits / 2.0;
        let text = |free: f64| {
            let parts = vec![part(0..1, 0.5, half + 1.0), part(1..2, 0.5, free)];
            Forecast { parts, ..forecast(&config, 0, 0.0) }.text(Path::new("run"))
        };
        let told = text(half + 1.0);
        for line in ["cuda:0, layer 0 (MiB", "cuda:1, layer 1 (MiB", "free on cuda:1 (MiB)"] {
            assert!(told.contains(line), "no `{line}` in {told}");
        }
        assert!(!told.contains("does not fit") && text(half - 1.0).contains("does not fit"));
    }
}
