//! Quantised checkpoints: detection, and a hint at what to use instead.

use std::path::Path;

use serde_json::{Map, Value};

/// Config keys that describe a quantisation.
const KEYS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];

/// Names of methods in configs and in prose.
const METHODS: [(&str, &str); 12] = [
    ("aqlm", "AQLM"),
    ("auto-round", "AutoRound"),
    ("awq", "AWQ"),
    ("bitsandbytes", "bitsandbytes"),
    ("compressed-tensors", "compressed-tensors"),
    ("fbgemm_fp8", "FP8"),
    ("fp8", "FP8"),
    ("gptq", "GPTQ"),
    ("hqq", "HQQ"),
    ("mxfp4", "MXFP4"),
    ("quanto", "quanto"),
    ("torchao", "torchao"),
];

/// Suffixes of a method's tensors after a layer's path; the most certain first.
const TENSORS: [(&str, &str); 22] = [
    (".absmax", "bitsandbytes"),
    (".quant_map", "bitsandbytes"),
    (".SCB", "bitsandbytes"),
    (".g_idx", "GPTQ"),
    (".weight_packed", "compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_zero_point", "compressed-tensors"),
    (".codebooks", "AQLM"),
    (".W_q", "HQQ"),
    (".q_invperm", "EXL2"),
    (".q_groups", "EXL2"),
    (".trellis", "EXL3"),
    ("_blocks", "MXFP4"),
    (".biases", "MLX"),
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".weight._data", "quanto"),
    (".weight_scale", "FP8"),
    (".input_scale", "FP8"),
    (".q_weight", "EXL2"),
    (".weight_scale_2", "NVFP4"),
    (".scales", "GPTQ, AWQ or MLX"),
];

/// Words in names that indicate a method, and those that only accompany one.
const WORDS: [(&str, &str); 17] = [
    ("gguf", "GGUF"),
    ("ggml", "GGML"),
    ("gptq", "GPTQ"),
    ("awq", "AWQ"),
    ("bnb", "bitsandbytes"),
    ("mlx", "MLX"),
    ("exl2", "EXL2"),
    ("exl3", "EXL3"),
    ("hqq", "HQQ"),
    ("aqlm", "AQLM"),
    ("fp8", "FP8"),
    ("nf4", "bitsandbytes"),
    ("nvfp4", "NVFP4"),
    ("mxfp4", "MXFP4"),
    ("quantized", "a quantisation"),
    ("quantised", "a quantisation"),
    ("autoround", "AutoRound"),
];
const BESIDE: [&str; 12] =
    ["dynamic", "unsloth", "marlin", "asym", "sym", "gemm", "gemv", "q", "k", "m", "s", "imatrix"];

/// Returns the config key that marks the weights as quantised, and the method.
pub fn of_config(config: &Map<String, Value>) -> Option<(&'static str, String)> {
    let (key, settings) = KEYS
        .iter()
        .find_map(|key| Some((*key, config.get(*key)?.as_object().filter(|map| !map.is_empty())?)))?;
    let text = |name: &str| settings.get(name).and_then(Value::as_str);
    let flag = |name: &str| settings.get(name).and_then(Value::as_bool) == Some(true);
    let method = match text("quant_method").or(text("quant_algo")) {
        Some(name) => METHODS.iter().find(|(known, _)| *known == name).map_or(name, |(_, shown)| shown),
        None if flag("load_in_4bit") || flag("load_in_8bit") => "bitsandbytes",
        None if key == "compression_config" => "compressed-tensors",
        None if settings.contains_key("group_size") && key == "quantization" => "MLX",
        None => "an unknown method",
    };
    let given = ["bits", "w_bit", "nbits"].into_iter().find_map(|name| settings.get(name)?.as_u64());
    let bits = given.or(flag("load_in_4bit").then_some(4)).or(flag("load_in_8bit").then_some(8));
    let method: String = method.chars().take(40).collect();
    Some((key, bits.map_or(method.clone(), |bits| format!("{method}, {bits} bits"))))
}

/// Returns the method indicated by the names of tensors, and one of them.
pub fn of_tensors<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<(&'static str, &'a str)> {
    TENSORS.iter().find_map(|(ending, method)| {
        let state = |name: &str| *method == "bitsandbytes" && name.contains(".quant_state.");
        names.clone().find(|name| name.ends_with(ending) || state(name)).map(|name| (*method, name))
    })
}

/// Returns the method indicated by the names of files, and one of them.
pub fn of_files<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Option<(&'static str, &'a str)> {
    let settings = [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ"), ("qmodel.pt", "HQQ")];
    let by_settings = settings
        .into_iter()
        .find_map(|(file, method)| Some((method, names.clone().find(|name| *name == file)?)));
    let weights = [".gguf", ".safetensors", ".bin", ".npz"];
    let by_weights = || {
        let mut names = names.clone().filter(|name| weights.iter().any(|ending| name.ends_with(ending)));
        names.find_map(|name| Some((of_word(name)?, name)))
    };
    by_settings.or_else(by_weights)
}

/// Returns the method that a word of a name indicates.
fn of_word(name: &str) -> Option<&'static str> {
    let name = name.to_lowercase();
    let known = name
        .split(['-', '_', '.', '/'])
        .find_map(|word| WORDS.iter().find(|(known, _)| *known == word).map(|(_, method)| *method));
    known.or(name.split(['-', '_', '.', '/']).any(is_bits).then_some("a quantisation"))
}

/// Returns true if a word gives a number of bits: `4bit`, `int8`, `w4a16`, `q4`.
fn is_bits(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let after = |begin: &str| word.strip_prefix(begin).is_some_and(digits);
    let weights_and_activations = word
        .strip_prefix('w')
        .and_then(|rest| rest.split_once('a'))
        .is_some_and(|(w, a)| digits(w) && digits(a));
    let before = ["bit", "bits", "bpw"].iter().any(|end| word.strip_suffix(end).is_some_and(digits));
    before || after("int") || after("q") || after("iq") || weights_and_activations
}

/// Suggests what to use instead of the quantised checkpoint named, or stored at, `place`.
pub fn hint(place: &Path) -> String {
    let general = "quantised checkpoints are not supported: use an unquantised one of the same model";
    let parts: Vec<&str> = place.iter().filter_map(|part| part.to_str()).collect();
    let of_hub = parts.iter().rev().find_map(|part| part.strip_prefix("models--")?.rsplit("--").next());
    let Some(name) = of_hub.or(parts.last().copied()) else { return general.to_owned() };
    let plain = unquantised(name);
    match name.get(plain.len()..) {
        Some(cut) if !cut.is_empty() && !plain.is_empty() => {
            format!("{general}, such as one named `{plain}`, without `{cut}`")
        }
        _ => format!("{general}, such as the one it was made from"),
    }
}

/// Returns a name up to the first word that indicates a quantisation.
fn unquantised(name: &str) -> &str {
    let lower = name.to_lowercase();
    let mut end = name.len();
    while let Some(start) = lower.get(..end).and_then(|text| text.rfind(['-', '_', '.'])) {
        let Some(word) = lower.get(start + 1..end) else { break };
        let group = word.strip_suffix('g').is_some_and(|size| size.bytes().all(|byte| byte.is_ascii_digit()));
        // `Q4_0`, but not the number of a `phi-2-GPTQ`.
        let before = lower.get(..start).and_then(|text| text.rsplit(['-', '_', '.']).next());
        let half = word.bytes().all(|byte| byte.is_ascii_digit()) && before.is_some_and(is_bits);
        if !(of_word(word).is_some() || BESIDE.contains(&word) || group || half) {
            break;
        }
        end = start;
    }
    // Words such as `dynamic` occur in other names too: some word must indicate a quantisation.
    match name.get(end..).is_some_and(|cut| of_word(cut).is_some()) {
        true => &name[..end],
        false => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_where_they_tell_of_a_quantisation() {
        let cases = [
            ("Llama-2-7B-Chat-GPTQ", "Llama-2-7B-Chat"),
            ("Qwen2.5-7B-Instruct-AWQ", "Qwen2.5-7B-Instruct"),
            ("Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen2.5-7B-Instruct"),
            ("Meta-Llama-3.1-8B-Instruct-bnb-4bit", "Meta-Llama-3.1-8B-Instruct"),
            ("gemma-2-9b-it-unsloth-bnb-4bit", "gemma-2-9b-it"),
            ("Mistral-7B-Instruct-v0.3-GGUF", "Mistral-7B-Instruct-v0.3"),
            ("mistral-7b-v0.1.Q4_K_M.gguf", "mistral-7b-v0.1"),
            ("phi-2.Q5_1.gguf", "phi-2"),
            ("phi-2-GPTQ", "phi-2"),
            ("Llama-3.2-1B-Instruct-FP8-dynamic", "Llama-3.2-1B-Instruct"),
            ("Meta-Llama-3-8B-quantized.w4a16", "Meta-Llama-3-8B"),
            ("Qwen3-0.6B-MLX-4bit", "Qwen3-0.6B"),
            ("Llama-2-7b-4.0bpw-exl2", "Llama-2-7b-4"),
            ("gpt2-GPTQ-4bit-128g", "gpt2"),
            ("roberta-large", "roberta-large"),
            ("some-dynamic", "some-dynamic"),
            ("quantum-bert", "quantum-bert"),
        ];
        for (name, plain) in cases {
            assert_eq!(unquantised(name), plain, "{name}");
        }
        let snapshot = Path::new("/hub/models--TheBloke--Llama-2-7B-AWQ/snapshots/0123");
        assert!(
            hint(snapshot).ends_with("such as one named `Llama-2-7B`, without `-AWQ`"),
            "{}",
            hint(snapshot)
        );
        assert!(hint(Path::new("bert")).ends_with("the one it was made from"));
    }
}
