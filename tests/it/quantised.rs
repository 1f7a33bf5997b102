//! Quantised checkpoints, told by their config, their tensors or their files: each is refused with what was found and what to
//! take instead.

use std::fs;

use serde_json::{Value, json};

use crate::bench::{Bench, copied, edit, rewrite};
use crate::support::fixture;

/// The command refuses this folder.
fn refuses(bench: &Bench, model: &str, words: &[&str]) {
    bench.refuses(&["init-svd", "--rank", "2", "--model", model, "--out", "basis"], 1, words);
}

#[test]
fn a_config_says_which_quantisation_it_is() {
    let bench = Bench::new();
    let cases: [(&str, Value, &str); 9] = [
        (
            "quantization_config",
            json!({"quant_method": "gptq", "bits": 4, "group_size": 128}),
            "(GPTQ, 4 bits)",
        ),
        ("quantization_config", json!({"quant_method": "awq", "w_bit": 4}), "(AWQ, 4 bits)"),
        (
            "quantization_config",
            json!({"load_in_4bit": true, "quant_method": "bitsandbytes"}),
            "(bitsandbytes, 4 bits)",
        ),
        ("quantization_config", json!({"load_in_8bit": true}), "(bitsandbytes, 8 bits)"),
        (
            "quantization_config",
            json!({"quant_method": "compressed-tensors", "format": "pack-quantized"}),
            "(compressed-tensors)",
        ),
        ("quantization_config", json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), "(FP8)"),
        ("quantization_config", json!({"quant_method": "some-new-one"}), "(some-new-one)"),
        ("quantization", json!({"group_size": 64, "bits": 4}), "(MLX, 4 bits)"),
        ("compression_config", json!({"format": "int-quantized"}), "(compressed-tensors)"),
    ];
    for (key, value, words) in cases {
        for (from, name) in
            [("decoders/llama-biased", "Llama-2-7B-GPTQ"), ("encoders/bert-gelu", "bert-base-4bit")]
        {
            let model = copied(&fixture(from), &bench.path(name));
            edit(&model.join("config.json"), |config| drop(config.insert(key.to_owned(), value.clone())));
            let (plain, cut) = name.rsplit_once('-').unwrap();
            let hint = format!("such as one named `{plain}`, without `-{cut}`");
            refuses(&bench, name, &[&format!("`{key}`"), words, &hint]);
        }
    }
    let model = copied(&fixture("decoders/llama-biased"), &bench.path("plain"));
    for value in [json!(null), json!({})] {
        edit(&model.join("config.json"), |config| {
            drop(config.insert("quantization_config".into(), value.clone()))
        });
        bench.0.run(&["init-svd", "--rank", "2", "--model", "plain", "--out", "basis"], 0);
    }
}

#[test]
fn tensors_say_which_quantisation_it_is() {
    let bench = Bench::new();
    let layer = "model.layers.1.self_attn.q_proj";
    let cases: [(&[&str], bool, &str); 7] = [
        (&["qweight", "qzeros", "scales", "g_idx"], true, "is a tensor of GPTQ"),
        (&["qweight", "qzeros", "scales"], true, "is a tensor of GPTQ or AWQ"),
        (&["weight.absmax", "weight.quant_state.bitsandbytes__nf4"], false, "is a tensor of bitsandbytes"),
        (&["SCB"], false, "is a tensor of bitsandbytes"),
        (&["weight_packed", "weight_scale", "weight_shape"], true, "is a tensor of compressed-tensors"),
        (&["weight_scale_inv"], false, "is a tensor of FP8"),
        (&["scales", "biases"], false, "is a tensor of MLX"),
    ];
    for (endings, without, words) in cases {
        let model = copied(&fixture("decoders/llama-biased"), &bench.path("Some-Llama-w4a16"));
        rewrite(&model.join("model.safetensors"), |stored| {
            // The weight itself is gone, or there in a type or shape of its own.
            let weight = stored.remove(&format!("{layer}.weight")).unwrap();
            if !without {
                let bytes = weight.2[..weight.2.len() / 2].to_vec();
                stored.insert(format!("{layer}.weight"), ("U8".to_owned(), vec![bytes.len(), 1], bytes));
            }
            for ending in endings {
                stored.insert(format!("{layer}.{ending}"), ("I32".to_owned(), vec![2], vec![0; 8]));
            }
        });
        refuses(&bench, "Some-Llama-w4a16", &[words, "such as one named `Some-Llama`, without `-w4a16`"]);
    }
    // Of the right shape, in eight bits.
    let model = copied(&fixture("decoders/llama-biased"), &bench.path("Some-Llama-FP8"));
    rewrite(&model.join("model.safetensors"), |stored| {
        let weight = stored.get_mut(&format!("{layer}.weight")).unwrap();
        weight.0 = "F8_E4M3".to_owned();
        weight.2.truncate(weight.1.iter().product());
    });
    refuses(
        &bench,
        "Some-Llama-FP8",
        &["q_proj.weight", "holds F8_E4M3, expected floats", "named `Some-Llama`"],
    );
}

#[test]
fn files_say_which_quantisation_it_is() {
    let bench = Bench::new();
    let cases: [(&[&str], &str); 7] = [
        (&["mistral-7b.Q4_K_M.gguf"], "`mistral-7b.Q4_K_M.gguf` is of GGUF"),
        (&["config.json", "ggml-model-q4_0.bin"], "is of GGML"),
        (&["config.json", "gptq_model-4bit-128g.safetensors", "quantize_config.json"], "is of GPTQ"),
        (&["config.json", "quant_config.json", "pytorch_model.bin"], "is of AWQ"),
        (&["config.json", "qmodel.pt"], "is of HQQ"),
        (&["config.json", "model-int8.safetensors"], "is of a quantisation"),
        (&["config.json", "weights.4bit.npz"], "is of a quantisation"),
    ];
    for (names, words) in cases {
        let _ = fs::remove_dir_all(bench.path("Mistral-7B-GGUF"));
        fs::create_dir(bench.path("Mistral-7B-GGUF")).unwrap();
        for name in names {
            fs::write(bench.path("Mistral-7B-GGUF").join(name), "{}").unwrap();
        }
        refuses(&bench, "Mistral-7B-GGUF", &[words, "such as one named `Mistral-7B`, without `-GGUF`"]);
    }
    fs::write(bench.path("Mistral-7B.Q4_0.gguf"), "GGUF").unwrap();
    let words = ["is a file", "such as one named `Mistral-7B`, without `.Q4_0.gguf`"];
    refuses(&bench, "Mistral-7B.Q4_0.gguf", &words);
    fs::create_dir(bench.path("other")).unwrap();
    for name in ["config.json", "tf_model.h5"] {
        fs::write(bench.path("other").join(name), "{}").unwrap();
    }
    refuses(&bench, "other", &["weights are read only from safetensors files, and it has `tf_model.h5`"]);
}
