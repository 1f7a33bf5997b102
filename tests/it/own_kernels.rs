//! Decoders whose shapes our kernels for a GPU serve, on the stand-in for one: the tokens of a CPU, and how much is launched.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use loraxs::torch::stream::Stream;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::forked;
use crate::standin::{PROMPTS, counts, standin};
use crate::support::{Place, errors, fixture, json, json_lines};

/// Layers, width, width of the feed-forward layers, heads of queries and of keys, width of a head.
const SHAPE: [i64; 6] = [2, 128, 96, 4, 2, 32];

/// Names and shapes of a decoder's tensors, of a fixture's family and a shape as [`SHAPE`].
fn shapes(of: &str, config: &Value, shape: [i64; 6]) -> Vec<(String, Vec<i64>)> {
    let [layers, width, wide, heads, kv, head] = shape;
    let (vocabulary, tied) = (config["vocab_size"].as_i64().unwrap(), config["tie_word_embeddings"] == true);
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![vocabulary, width])];
    let mut add = |name: String, shape: &[i64]| all.push((name, shape.to_vec()));
    add("model.norm.weight".into(), &[width]);
    if !tied {
        add("lm_head.weight".into(), &[vocabulary, width]);
    }
    for layer in 0..layers {
        let mut linear = |name: &str, [out, input]: [i64; 2], bias: bool| {
            add(format!("model.layers.{layer}.{name}.weight"), &[out, input]);
            if bias {
                add(format!("model.layers.{layer}.{name}.bias"), &[out]);
            }
        };
        let (attention, wide_ones) = (config["attention_bias"] == true, config["mlp_bias"] == true);
        let [q, k] = [heads * head, kv * head];
        for (name, out) in [("q_proj", q), ("k_proj", k), ("v_proj", k)] {
            linear(&format!("self_attn.{name}"), [out, width], attention);
        }
        linear("self_attn.o_proj", [width, q], attention);
        for (name, shape) in
            [("gate_proj", [wide, width]), ("up_proj", [wide, width]), ("down_proj", [width, wide])]
        {
            linear(&format!("mlp.{name}"), shape, wide_ones);
        }
        let mut norms = vec![("input_layernorm", width), ("post_attention_layernorm", width)];
        if of.starts_with("gemma") {
            norms.extend([("pre_feedforward_layernorm", width), ("post_feedforward_layernorm", width)]);
        }
        if of.starts_with("qwen3") {
            norms.extend([("self_attn.q_norm", head), ("self_attn.k_norm", head)]);
        }
        for (name, width) in norms {
            add(format!("model.layers.{layer}.{name}.weight"), &[width]);
        }
    }
    all
}

/// A decoder of a fixture's family with random weights, which fp16 holds exactly, and heads of 32 numbers.
pub fn decoder(place: &Place, of: &str) -> PathBuf {
    decoder_of(place, of, SHAPE)
}

/// As [`decoder`], of another shape.
pub fn decoder_of(place: &Place, of: &str, shape: [i64; 6]) -> PathBuf {
    let (from, to) = (fixture(&format!("decoders/{of}")), place.path(of));
    fs::create_dir_all(&to).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
    let [layers, width, wide, heads, kv, head] = shape;
    let mut config: Value = json(&from.join("config.json"));
    for (key, value) in [
        ("hidden_size", width),
        ("intermediate_size", wide),
        ("num_attention_heads", heads),
        ("num_key_value_heads", kv),
        ("head_dim", head),
        ("num_hidden_layers", layers),
    ] {
        config[key] = json!(value);
    }
    if let Some(types) = config.get_mut("layer_types").and_then(Value::as_array_mut) {
        types.truncate(layers as usize);
    }
    let is_gemma = of.starts_with("gemma");
    let mut stream = Stream::seeded(3);
    let drawn = |(name, shape): (String, Vec<i64>)| {
        let count = usize::try_from(shape.iter().product::<i64>()).unwrap();
        let x = Tensor::from_slice(&stream.normals(count)).view(shape.as_slice());
        let x = match shape.len() {
            _ if name.contains("norm") => x * 0.2 + f64::from(u8::from(!is_gemma)),
            2 if !name.contains("embed") => x * (2.0 / (shape[1] as f64).sqrt()),
            _ => x * 0.5,
        };
        (name, x.to_kind(Kind::Half))
    };
    let tensors: Vec<(String, Tensor)> = shapes(of, &config, shape).into_iter().map(drawn).collect();
    Tensor::write_safetensors(&tensors, to.join("model.safetensors")).unwrap();
    fs::write(to.join("config.json"), config.to_string()).unwrap();
    to
}

/// The tokens that a decoder adds to some prompts, and what that counts.
pub fn answers(
    place: &Place,
    model: &Path,
    (out, tokens): (&str, &str),
    how: &[&str],
    environment: &[(&str, &str)],
) -> (Vec<String>, BTreeMap<String, i64>) {
    let task = [
        "eval",
        "--model",
        model.to_str().unwrap(),
        "--task",
        "my/prompts",
        "--max-new-tokens",
        tokens,
        "--out",
        out,
    ];
    let device = environment.iter().find(|(name, _)| *name == "LORAXS_TEST_DEVICE");
    let device = device.map_or("cuda:0", |(_, device)| device);
    let (mut command, file) =
        (place.command_on(device, &[&task[..], how].concat()), place.path(&format!("{out}.counts")));
    let output = forked::output(command.envs(environment.iter().copied()).env("STANDIN_COUNTS", &file));
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    assert!(!errors(&output).contains("Warning: "), "{}", errors(&output));
    let mut rows = json_lines::<Value>(&place.path(out).join("predictions/my/prompts.jsonl"));
    rows.sort_by_key(|row| row["index"].as_u64());
    (rows.iter().map(|row| row["completion"].as_str().unwrap().to_owned()).collect(), counts(&file))
}

fn place() -> Place {
    let place = Place::with_own(PROMPTS);
    let row = |i: usize| format!("{{\"text\": \"What is {i}{}?\"}}\n", " + 2".repeat(i % 9));
    fs::write(place.path("rows.jsonl"), (0..12).map(row).collect::<String>()).unwrap();
    place
}

#[test]
fn without_our_kernels_a_further_token_repeats_no_heads_and_reads_the_cache_where_it_lies() {
    if !standin() {
        return;
    }
    let place = place();
    for (of, layers, most) in [("llama-biased", 2, [65, 82]), ("qwen3-window", 3, [91, 118])] {
        for (precision, most) in ["bf16", "fp32"].into_iter().zip(most) {
            let run = |tokens: &str| {
                let how = ["--precision", precision, "--limit", "3"];
                let environment = [("LORAXS_CUDA_GRAPHS", "0"), ("LORAXS_CUDA_KERNELS", "0")];
                let out = format!("{of}-{precision}-{tokens}");
                answers(&place, &fixture(&format!("decoders/{of}")), (&out, tokens), &how, &environment).1
            };
            let (before, mut found) = (run("6"), run("7"));
            for (name, count) in before {
                *found.entry(name).or_default() -= count;
            }
            let of_name = |name: &str| found.get(name).copied().unwrap_or(0);
            let launches =
                found.iter().filter(|(name, _)| !name.contains(' ')).map(|(_, count)| count).sum::<i64>();
            let attended = [of_name("aten::_flash_attention_forward"), of_name("aten::_softmax")];
            println!("{of} {precision}: {launches} launches");
            assert_eq!(attended, if precision == "bf16" { [layers, 0] } else { [0, layers] }, "{found:?}");
            assert!(launches <= most, "{of} {precision}: {launches} launches: {found:?}");
        }
    }
}

#[test]
fn decoders_whose_heads_our_kernels_serve_tell_what_they_tell_on_a_cpu() {
    if !standin() {
        return;
    }
    let place = place();
    for of in ["llama-biased", "gemma2-capped", "qwen3-window"] {
        let model = decoder(&place, of);
        let (expected, _) = answers(
            &place,
            &model,
            (&format!("{of}-cpu"), "20"),
            &["--precision", "fp32"],
            &[("LORAXS_TEST_DEVICE", "cpu")],
        );
        for (kernels, graphs) in [("1", "0"), ("1", "1"), ("0", "0")] {
            let how = ["--precision", "fp16", "--batch-size", "5"];
            let environment = [("LORAXS_CUDA_KERNELS", kernels), ("LORAXS_CUDA_GRAPHS", graphs)];
            let out = format!("{of}-{kernels}-{graphs}");
            let (found, counts) = answers(&place, &model, (&out, "20"), &how, &environment);
            // Where two tokens are as likely, fp16 decides between them.
            let apart = found.iter().zip(&expected).filter(|(found, expected)| found != expected).count();
            println!("{out}: {apart} of {} apart", expected.len());
            assert!(found.len() == expected.len() && apart <= 1, "{out}: {found:?}, {expected:?}");
            let launched = counts.get("lx_attend").copied().unwrap_or(0);
            assert_eq!(launched > 0, kernels == "1", "{out}: {launched} launches");
            // Frequencies of rotations are computed on the CPU, as in Transformers: a GPU's last bits are others.
            assert!(counts.keys().all(|name| !name.starts_with("aten::pow")), "{out}: {counts:?}");
            assert_eq!(counts.get("replay").is_some_and(|replays| *replays > 5), graphs == "1", "{out}");
        }
    }
}

#[test]
fn a_further_token_launches_few_kernels_a_layer() {
    if !standin() {
        return;
    }
    let place = place();
    let model = decoder(&place, "llama-biased");
    let run = |tokens: &str| {
        let how = ["--precision", "bf16", "--limit", "3"];
        let graphs = [("LORAXS_CUDA_GRAPHS", "0")];
        answers(&place, &model, (&format!("tokens-{tokens}"), tokens), &how, &graphs).1
    };
    let (before, mut after) = (run("6"), run("7"));
    for (name, count) in before {
        *after.entry(name).or_default() -= count;
    }
    after.retain(|name, count| *count != 0 && !name.contains(' '));
    println!("{after:?}");
    let of = |name: &str| after.get(name).copied().unwrap_or(0);
    assert_eq!((of("lx_attend"), of("lx_norm_bf16"), of("lx_swiglu")), (2, 5, 2));
    // In each layer, four products, their biases and what is counted above; then what is around the layers.
    let launches: i64 = after.values().sum();
    println!("{launches} launches");
    assert!(launches <= 34 && of("aten::addmm.out") == 8, "{after:?}");
}
