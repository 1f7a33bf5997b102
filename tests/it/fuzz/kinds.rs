//! The kinds of inputs: what is there before something is changed, what is changed, and what is run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::dice::Dice;
use super::{JUDGE, data, json as json_text, place, tensors, text, words};
use crate::forked;
use crate::support::{Point, encoders, errors, fixture, json, log};

/// One kind of inputs.
pub struct Kind {
    pub name: &'static str,
    /// Inputs of the short form.
    pub inputs: u64,
    /// Makes the unchanged folder.
    pub prepare: fn(&Path),
    /// What is run there while nothing is changed; it succeeds.
    pub plain: &'static [&'static str],
    /// Changes a copy of the folder and says what is run in it.
    pub change: fn(&mut Dice, &Path) -> Vec<String>,
    /// What must come of it, the input changed or not, where it is accepted.
    pub outcome: Option<fn(&Path) -> Value>,
}

const EVAL: [&str; 5] = ["eval", "--model", "model", "--datasets", "datasets.toml"];
const EVAL_PAIRS: [&str; 9] =
    ["eval", "--model", "model", "--datasets", "datasets.toml", "--task", "tiny/pairs", "--limit", "8"];
const EVAL_SUMS: [&str; 7] = ["eval", "--model", "model", "--datasets", "datasets.toml", "--task", "sums"];
const TRAIN: [&str; 7] = ["train", "--recipe", "recipe.toml", "--out", "run", "--datasets", "datasets.toml"];
const RESUME: [&str; 8] =
    ["train", "--recipe", "recipe.toml", "--out", "run", "--datasets", "datasets.toml", "--resume"];
const DRY: [&str; 8] =
    ["train", "--recipe", "recipe.toml", "--out", "run", "--datasets", "datasets.toml", "--dry-run"];
const MERGE: [&str; 7] = ["merge", "--model", "model", "--adapter", "adapter", "--out", "merged"];
const ADAPTED: [&str; 11] = [
    "eval",
    "--model",
    "model",
    "--adapter",
    "adapter",
    "--datasets",
    "datasets.toml",
    "--task",
    "tiny/pairs",
    "--limit",
    "8",
];

pub const KINDS: [Kind; 18] = [
    Kind {
        name: "config-encoder",
        inputs: 400,
        prepare: encoder,
        plain: &EVAL_PAIRS,
        change: config_encoder,
        outcome: None,
    },
    Kind {
        name: "config-decoder",
        inputs: 500,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: config_decoder,
        outcome: None,
    },
    Kind {
        name: "generation-config",
        inputs: 250,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: generation_config,
        outcome: None,
    },
    Kind {
        name: "tokenizer-config",
        inputs: 250,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: tokenizer_config,
        outcome: None,
    },
    Kind {
        name: "tokenizer",
        inputs: 400,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: tokenizer,
        outcome: None,
    },
    Kind { name: "template", inputs: 500, prepare: chats, plain: &DRY, change: template, outcome: None },
    Kind {
        name: "weights",
        inputs: 300,
        prepare: encoder,
        plain: &EVAL_PAIRS,
        change: weights,
        outcome: None,
    },
    Kind { name: "adapter", inputs: 300, prepare: adapters, plain: &ADAPTED, change: adapter, outcome: None },
    Kind { name: "peft", inputs: 250, prepare: peft_plain, plain: &ADAPTED, change: peft, outcome: None },
    Kind { name: "recipe", inputs: 300, prepare: encoder, plain: &DRY, change: recipe, outcome: None },
    Kind {
        name: "catalog",
        inputs: 250,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: catalog,
        outcome: None,
    },
    Kind {
        name: "rows",
        inputs: 500,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: data::rows,
        outcome: None,
    },
    Kind {
        name: "checkpoint",
        inputs: 150,
        prepare: interrupted,
        plain: &RESUME,
        change: checkpoint,
        outcome: Some(trained),
    },
    Kind {
        name: "run",
        inputs: 150,
        prepare: finished,
        plain: &["eval", "--run", "run", "--datasets", "datasets.toml"],
        change: run,
        outcome: None,
    },
    Kind {
        name: "cache",
        inputs: 150,
        prepare: cached,
        plain: &TRAIN,
        change: cache,
        outcome: Some(trained),
    },
    Kind {
        name: "predictions",
        inputs: 150,
        prepare: answered,
        plain: &["eval", "--model", "model", "--datasets", "datasets.toml", "--task", "sums", "--out", "out"],
        change: predictions,
        outcome: Some(scored),
    },
    Kind {
        name: "flags",
        inputs: 200,
        prepare: decoder_adapted,
        plain: &EVAL_SUMS,
        change: flags,
        outcome: None,
    },
    Kind {
        name: "scoring",
        inputs: 250,
        prepare: pairs,
        plain: &[JUDGE, "pairs.json"],
        change: answers,
        outcome: None,
    },
];

/// What changes take from; copies of a folder have a link to it.
const STORE: &str = "store";

/// Copies a folder with all that is in it.
pub fn copy_all(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_name() == STORE {
            symlink(entry.path(), target).unwrap();
        } else if entry.path().is_dir() {
            copy_all(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(drop).unwrap()
        }
    }
}

fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Changes a file by what `change` makes of its bytes.
fn edit(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let bytes = fs::read(path).unwrap_or_default();
    fs::write(path, change(bytes)).unwrap();
}

/// Puts another fixture in the place of `model`.
pub fn put_model(folder: &Path, from: &Path) {
    let _ = fs::remove_dir_all(folder.join("model"));
    copy_all(from, &folder.join("model"));
    let _ = fs::remove_file(folder.join("model/expected.json"));
}

const SUMS: &str = "[\"sums\"]\ntask = \"generation\"\nfiles = { train = \"sums.jsonl\", test = \"sums.jsonl\" }\n\
    prompt = \"Question: {question}\\nAnswer:\"\nanswer = \"{answer}\"\nscorers = [\"gsm8k/flexible\", \"math/equivalence\"]\n\
    max_new_tokens = 6\nstop = [\"Question:\"]\ngroup_by = [\"kind\"]\n";
const CHATS: &str =
    "[\"chats\"]\ntask = \"chat\"\nfiles = { train = \"chats.jsonl\", validation = \"chats.jsonl\" }\n";
const TURNS: &str = "{\"messages\": [{\"role\": \"system\", \"content\": \"be kind\"}, {\"role\": \"user\", \"content\": \"hi Ann\"}, \
    {\"role\": \"assistant\", \"content\": \"has 3\"}]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"2+1?\"}, {\"role\": \"assistant\", \
    \"content\": \"3\"}], \"tools\": [{\"name\": \"f\"}]}\n";
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}</s>\n{% endfor %}\
    {%- if add_generation_prompt %}[assistant]{% endif %}";

/// Catalog, rows and recipe of all kinds.
pub fn common(folder: &Path, dataset: &str, steps: usize) {
    let of = |kind: &str| {
        let data = fixture(kind).join("data");
        let text = fs::read_to_string(data.join("datasets.toml")).unwrap();
        let lines = text
            .lines()
            .map(|line| if line.starts_with("dir ") { format!("dir = {data:?}") } else { line.to_owned() });
        lines.collect::<Vec<_>>().join("\n")
    };
    let catalog = format!("{}\n{}\n{SUMS}{CHATS}", of("encoders"), of("decoders"));
    fs::write(folder.join("datasets.toml"), catalog).unwrap();
    let row = |i: usize| {
        format!("{{\"question\": \"{i}+2?\", \"answer\": \"#### {}\", \"kind\": \"k{}\"}}\n", i + 2, i % 2)
    };
    fs::write(folder.join("sums.jsonl"), (0..4).map(row).collect::<String>()).unwrap();
    fs::write(folder.join("chats.jsonl"), TURNS.repeat(3)).unwrap();
    let length = if dataset == "tiny/pairs" { 40 } else { 96 };
    let recipe = format!(
        "[model]\nname = \"model\"\n[adapter]\nrank = 4\nalpha = 4\n[data]\ndataset = {dataset:?}\nmax_length = {length}\nlimit = 16\n\
         eval_limit = 8\n[train]\nmax_steps = {steps}\nbatch_size = 8\n"
    );
    fs::write(folder.join("recipe.toml"), recipe).unwrap();
}

fn encoder(folder: &Path) {
    common(folder, "tiny/pairs", 2);
    put_model(folder, &encoders().join("bert-gelu"));
}

fn decoder(folder: &Path) {
    common(folder, "tiny/instructions", 2);
    put_model(folder, &fixture("decoders/llama-biased"));
}

fn decoder_adapted(folder: &Path) {
    decoder(folder);
    put_model(folder, &fixture("decoders/llama-linear"));
    copy_all(&fixture("peft/llama-linear/lora"), &folder.join("adapter"));
}

fn chats(folder: &Path) {
    decoder(folder);
    common(folder, "chats", 2);
    fs::write(folder.join("model/chat_template.jinja"), TEMPLATE).unwrap();
}

/// Puts a fixture of encoders or decoders in the place of `model`, with what belongs to it; says what it can read.
fn put_any(dice: &mut Dice, folder: &Path, kind: &str) -> &'static str {
    let mut found: Vec<PathBuf> =
        fs::read_dir(fixture(kind)).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| path.join("config.json").exists());
    found.sort();
    let model = found.swap_remove(dice.below(found.len()));
    let dataset = match kind {
        "decoders" => "tiny/instructions",
        _ if model.ends_with("roberta-regression") => "tiny/score",
        _ => "tiny/pairs",
    };
    common(folder, dataset, 2);
    put_model(folder, &model);
    dataset
}

/// Puts any of the fixtures there.
fn put_either(dice: &mut Dice, folder: &Path) -> &'static str {
    let kind = dice.word("encoders¦decoders");
    put_any(dice, folder, kind)
}

/// What is done with the checkpoint in `model`.
fn uses(dice: &mut Dice, dataset: &str) -> Vec<String> {
    match dice.below(10) {
        0..4 if dataset == "tiny/instructions" => owned(&EVAL_SUMS),
        0..5 => owned(&[&EVAL[..], &["--task", dataset, "--limit", "8"]].concat()),
        5..8 => owned(&TRAIN),
        8 => owned(&DRY),
        _ => owned(&["init-svd", "--model", "model", "--rank", "4"]),
    }
}

const CONFIG_KEYS: &str = "model_type¦architectures¦vocab_size¦hidden_size¦head_dim¦num_hidden_layers¦num_attention_heads¦\
    num_key_value_heads¦intermediate_size¦hidden_act¦hidden_activation¦max_position_embeddings¦\
    rms_norm_eps¦layer_norm_eps¦tie_word_embeddings¦attention_bias¦mlp_bias¦use_bias¦\
    attention_dropout¦hidden_dropout_prob¦attention_probs_dropout_prob¦classifier_dropout¦resid_pdrop¦\
    embd_pdrop¦sliding_window¦use_sliding_window¦max_window_layers¦layer_types¦sliding_window_pattern¦\
    query_pre_attn_scalar¦attn_logit_softcapping¦final_logit_softcapping¦rope_theta¦rope_scaling¦\
    rope_parameters¦partial_rotary_factor¦original_max_position_embeddings¦is_causal¦is_decoder¦\
    add_cross_attention¦use_bidirectional_attention¦bos_token_id¦eos_token_id¦pad_token_id¦\
    type_vocab_size¦position_embedding_type¦id2label¦label2id¦num_labels¦problem_type¦dtype¦\
    torch_dtype¦quantization_config¦transformers_version¦pruned_heads¦chunk_size_feed_forward¦\
    initializer_range¦output_attentions¦use_cache¦pretraining_tp¦text_config¦vision_config¦auto_map¦\
    max_length¦repetition_penalty¦logit_scale";

fn config_encoder(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_any(dice, folder, "encoders");
    edit(&folder.join("model/config.json"), |bytes| json_text::changed(dice, &bytes, CONFIG_KEYS));
    uses(dice, dataset)
}

fn config_decoder(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_any(dice, folder, "decoders");
    edit(&folder.join("model/config.json"), |bytes| json_text::changed(dice, &bytes, CONFIG_KEYS));
    uses(dice, dataset)
}

const GENERATION_KEYS: &str = "bos_token_id¦eos_token_id¦pad_token_id¦decoder_start_token_id¦max_length¦max_new_tokens¦\
    min_length¦min_new_tokens¦early_stopping¦max_time¦stop_strings¦do_sample¦num_beams¦\
    num_beam_groups¦penalty_alpha¦use_cache¦temperature¦top_k¦top_p¦min_p¦top_h¦typical_p¦\
    epsilon_cutoff¦eta_cutoff¦diversity_penalty¦repetition_penalty¦encoder_repetition_penalty¦\
    length_penalty¦no_repeat_ngram_size¦bad_words_ids¦force_words_ids¦renormalize_logits¦constraints¦\
    forced_bos_token_id¦forced_eos_token_id¦remove_invalid_values¦exponential_decay_length_penalty¦\
    suppress_tokens¦begin_suppress_tokens¦sequence_bias¦token_healing¦guidance_scale¦\
    watermarking_config¦num_return_sequences";

fn generation_config(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let path = folder.join("model/generation_config.json");
    edit(&path, |bytes| {
        let mut whole: Value = serde_json::from_slice(&bytes).unwrap();
        for _ in 0..dice.few() {
            let key = dice.word(GENERATION_KEYS);
            whole[key] = match dice.below(6) {
                0 => json!(1 + dice.below(120)),
                1 => json!(dice.below(40) as f64 / 10.0),
                2 => json!([dice.below(120), dice.below(120)]),
                3 => json!([[dice.below(120)], [dice.below(120), dice.below(120)]]),
                _ => json_text::extreme(dice),
            };
        }
        if dice.chance(30) {
            json_text::change(dice, &mut whole, GENERATION_KEYS)
        }
        json_text::written(&whole).into_bytes()
    });
    match dice.below(4) {
        0 => owned(&[&EVAL_SUMS[..], &["--beams", "3"]].concat()),
        1 => owned(&[&EVAL_SUMS[..], &["--temperature", "0.7"]].concat()),
        _ => owned(&EVAL_SUMS),
    }
}

const TOKENIZER_KEYS: &str = "bos_token¦eos_token¦pad_token¦unk_token¦cls_token¦sep_token¦mask_token¦additional_special_tokens¦\
    extra_special_tokens¦add_bos_token¦add_eos_token¦add_prefix_space¦add_special_tokens¦legacy¦\
    use_default_system_prompt¦clean_up_tokenization_spaces¦split_special_tokens¦\
    spaces_between_special_tokens¦tokenizer_class¦model_max_length¦truncation_side¦padding_side¦\
    model_input_names¦chat_template¦added_tokens_decoder¦do_lower_case¦strip_accents¦\
    tokenize_chinese_chars¦do_basic_tokenize¦never_split¦trim_offsets¦errors¦from_slow¦normalization¦\
    backend¦auto_map";

fn tokenizer_config(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_either(dice, folder);
    let file =
        ["tokenizer_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]
            [dice.below(4)];
    edit(&folder.join("model").join(file), |bytes| {
        let bytes = match file {
            _ if !bytes.is_empty() => bytes,
            "added_tokens.json" => b"{\"<one>\": 101, \"<two>\": 102}".to_vec(),
            _ => b"{\"eos_token\": \"</s>\", \"bos_token\": {\"content\": \"<s>\"}}".to_vec(),
        };
        json_text::changed(dice, &bytes, TOKENIZER_KEYS)
    });
    uses(dice, dataset)
}

const TOKENIZER_PARTS: &str = "type¦vocab¦merges¦model¦normalizer¦pre_tokenizer¦post_processor¦decoder¦added_tokens¦truncation¦\
    padding¦dropout¦unk_token¦continuing_subword_prefix¦end_of_word_suffix¦fuse_unk¦byte_fallback¦\
    ignore_merges¦pattern¦behavior¦id¦content¦special¦max_input_chars_per_word";

fn tokenizer(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_either(dice, folder);
    edit(&folder.join("model/tokenizer.json"), |bytes| {
        let Ok(mut whole) = serde_json::from_slice::<Value>(&bytes) else { return bytes };
        match dice.below(5) {
            0 => return text::changed(dice, bytes, "null¦\"Regex\"¦{}"),
            1 => {
                let parts = [
                    json!({"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": false}),
                    json!({"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": false}),
                    json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaaaaaaaaaaaaaaaa"}),
                    json!({"type": "Replace", "pattern": {"String": ""}, "content": "a"}),
                    json!({"type": "Sequence", "normalizers": [], "pretokenizers": [], "decoders": [], "processors": []}),
                    json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
                    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
                    json!({"type": "BertProcessing", "sep": ["x", 4_000_000_000_u64], "cls": ["y", 7]}),
                    json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 9}}], "pair": [], "special_tokens": {}}),
                    json!({"type": "Strip", "content": " ", "start": 1_000_000, "stop": 1_000_000}),
                    json!({"type": "Fuse"}),
                    json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
                ];
                let part = dice.word("normalizer¦pre_tokenizer¦post_processor¦decoder");
                whole[part] = parts[dice.below(parts.len())].clone();
            }
            2 => {
                let part = dice.word(
                    "normalizer¦pre_tokenizer¦post_processor¦decoder¦model¦added_tokens¦truncation¦padding",
                );
                json_text::change(dice, &mut whole[part], TOKENIZER_PARTS);
            }
            _ => return json_text::changed(dice, &bytes, TOKENIZER_PARTS),
        }
        json_text::written(&whole).into_bytes()
    });
    uses(dice, dataset)
}

fn template(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let source = words::template(dice, TEMPLATE);
    if dice.chance(70) {
        fs::write(folder.join("model/chat_template.jinja"), source).unwrap();
    } else {
        fs::remove_file(folder.join("model/chat_template.jinja")).unwrap();
        crate::bench::edit(&folder.join("model/tokenizer_config.json"), |config| {
            drop(config.insert("chat_template".to_owned(), Value::String(source.clone())));
        });
    }
    if dice.chance(20) {
        edit(&folder.join("chats.jsonl"), |bytes| {
            json_text::lines_changed(dice, &bytes, "role¦content¦tools¦tool_calls")
        });
    }
    if dice.chance(80) { owned(&DRY) } else { owned(&[&EVAL[..], &["--task", "chats"]].concat()) }
}

fn weights(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_either(dice, folder);
    change_one(dice, &folder.join("model"), &["safetensors", "index.json"]);
    uses(dice, dataset)
}

/// Changes one file of a folder whose name ends in one of `endings`, as its format is.
fn change_one(dice: &mut Dice, folder: &Path, endings: &[&str]) {
    let mut found = Vec::new();
    files_below(folder, &mut found);
    found.retain(|path| endings.iter().any(|ending| path.to_str().unwrap().ends_with(ending)));
    found.sort();
    let path = &found[dice.below(found.len())];
    if dice.chance(4) {
        fs::remove_file(path).unwrap();
        return;
    }
    if dice.chance(4) {
        let other = &found[dice.below(found.len())];
        fs::copy(other, path).map(drop).unwrap();
        return;
    }
    edit(path, |bytes| match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => tensors::changed(dice, bytes),
        Some("json") => json_text::changed(dice, &bytes, ADAPTER_KEYS),
        Some("jsonl") => json_text::lines_changed(dice, &bytes, "index¦step¦loss¦correct¦completion"),
        Some("toml") => words::toml(dice, &String::from_utf8_lossy(&bytes), RECIPE_KEYS),
        _ => text::changed(dice, bytes, ""),
    });
}

fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() { files_below(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

const ADAPTER_KEYS: &str = "peft_type¦task_type¦base_model_name_or_path¦revision¦r¦lora_alpha¦use_rslora¦use_dora¦\
    lora_dropout¦bias¦target_modules¦modules_to_save¦rank_pattern¦alpha_pattern¦layers_to_transform¦\
    layers_pattern¦layer_replication¦exclude_modules¦init_lora_weights¦fan_in_fan_out¦d_initial¦\
    projection_prng_key¦save_projection¦projection_seed¦u¦weight_tying¦inference_mode¦\
    trainable_token_indices¦method¦rank¦alpha¦modules¦witness¦base_hash¦format¦labels¦weight_map¦\
    ensure_weight_tying";

/// Runs the command in a folder; it succeeds.
fn runs(folder: &Path, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command
        .args(args)
        .args(["--datasets", "datasets.toml", "--device", "cpu", "--threads", "1"])
        .current_dir(folder);
    command.env("LORAXS_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    let output = forked::output(&command);
    assert!(output.status.success(), "{args:?}: {}", errors(&output));
}

/// Puts a method into the recipe.
fn set_method(folder: &Path, method: &str) {
    let more = match method {
        "lora-xs" => "with_basis = true\n",
        "lora-mini" => "rank_a = 8\nrank_b = 8\n",
        _ => "",
    };
    edit(&folder.join("recipe.toml"), |bytes| {
        let section = format!("[adapter]\nmethod = \"{method}\"\n{more}");
        String::from_utf8(bytes).unwrap().replace("[adapter]\n", &section).into_bytes()
    });
}

const METHODS: [&str; 7] = ["lora-xs", "lora", "vera", "lora-mini", "tiny-lora", "full", "head"];

/// An adapter of every method, for an encoder and a decoder.
fn adapters(folder: &Path) {
    for (kind, prepare) in [("encoder", encoder as fn(&Path)), ("decoder", decoder)] {
        for method in METHODS.into_iter().filter(|method| (kind, *method) != ("decoder", "head")) {
            prepare(folder);
            set_method(folder, method);
            runs(folder, &["train", "--recipe", "recipe.toml", "--out", "run"]);
            copy_all(&folder.join("run/adapter"), &folder.join(STORE).join(kind).join(method));
            fs::remove_dir_all(folder.join("run")).unwrap();
        }
    }
    encoder(folder);
    copy_all(&folder.join(STORE).join("encoder/lora-xs"), &folder.join("adapter"));
}

/// What is done with `model` and `adapter`.
fn use_adapter(dice: &mut Dice, is_encoder: bool) -> Vec<String> {
    let subject = ["--model", "model", "--adapter", "adapter", "--datasets", "datasets.toml"];
    let task = if is_encoder { "tiny/pairs" } else { "sums" };
    match dice.below(8) {
        0..4 => owned(&[&["eval"], &subject[..], &["--task", task, "--limit", "2"]].concat()),
        4 => owned(&[&["merge"], &subject[..], &["--out", "merged"]].concat()),
        5 => owned(&[&["merge"], &subject[..], &["--out", "merged", "--format", "peft"]].concat()),
        6 => owned(&[&TRAIN[..], &["--set", "train.init_from=adapter"]].concat()),
        _ => owned(&[&["merge"], &subject[..], &["--out", "rebased", "--rebase", "adapter"]].concat()),
    }
}

fn adapter(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let is_encoder = dice.chance(50);
    let method = dice.pick(if is_encoder { &METHODS } else { &METHODS[..6] });
    if !is_encoder {
        common(folder, "tiny/instructions", 2);
        put_model(folder, &fixture("decoders/llama-biased"));
    }
    fs::remove_dir_all(folder.join("adapter")).unwrap();
    let kind = if is_encoder { "encoder" } else { "decoder" };
    copy_all(&folder.join(STORE).join(kind).join(method), &folder.join("adapter"));
    set_method(folder, method);
    change_one(dice, &folder.join("adapter"), &["adapter_config.json", "safetensors"]);
    use_adapter(dice, is_encoder)
}

fn peft_plain(folder: &Path) {
    encoder(folder);
    copy_all(&fixture("peft/bert-gelu/lora"), &folder.join("adapter"));
}

fn peft(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let model = dice.word("bert-gelu¦roberta-gelu¦llama-linear");
    let is_encoder = model != "llama-linear";
    put_model(folder, &fixture(if is_encoder { "encoders" } else { "decoders" }).join(model));
    let mut found: Vec<PathBuf> =
        fs::read_dir(fixture("peft").join(model)).unwrap().map(|e| e.unwrap().path()).collect();
    found.sort();
    fs::remove_dir_all(folder.join("adapter")).unwrap();
    copy_all(&found[dice.below(found.len())], &folder.join("adapter"));
    change_one(dice, &folder.join("adapter"), &["config.json", "safetensors"]);
    let mut args = use_adapter(dice, is_encoder);
    if folder.join("adapter/adapter").exists() && dice.chance(80) {
        args.iter_mut().filter(|arg| *arg == "adapter").for_each(|arg| *arg = "adapter/adapter".to_owned());
    }
    args
}

const RECIPE_KEYS: &str = "name¦revision¦dropout¦method¦rank¦alpha¦targets¦init¦svd¦spectrum¦sigma¦svd_iterations¦svd_seed¦\
    basis¦with_basis¦init_std¦rslora¦d_initial¦projection_seed¦save_projection¦rank_a¦rank_b¦u¦tie¦\
    tying¦dataset¦train¦validation¦max_length¦limit¦eval_limit¦epochs¦max_steps¦batch_size¦\
    micro_batch_size¦micro_batch_tokens¦learning_rate¦head_learning_rate¦schedule¦warmup_ratio¦\
    warmup_steps¦weight_decay¦max_grad_norm¦precision¦seed¦shuffle¦log_every¦checkpoint_every¦\
    keep_checkpoints¦gradient_checkpointing¦init_from¦every¦metric¦patience¦eval.batch_size¦tasks";

/// Every key of a recipe with its default.
fn whole_recipe(dice: &mut Dice) -> String {
    let method = dice.word("lora-xs¦lora¦vera¦lora-mini¦tiny-lora¦full¦head");
    let text = format!(
        "[model]\nname = \"model\"\n[adapter]\nmethod = {method:?}\n[data]\ndataset = \"tiny/pairs\"\nmax_length = 40\n"
    );
    loraxs::recipe::Recipe::parse(&text, "recipe", &[]).unwrap().to_toml().unwrap()
}

fn recipe(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let whole = whole_recipe(dice);
    // How long a training is, is up to who asks for it: those that train take two steps.
    let trains = dice.chance(30);
    let steps =
        ["--set", "train.max_steps=2", "--set", "train.epochs=0", "--set", "adapter.svd_iterations=2"];
    if dice.chance(30) {
        fs::write(folder.join("recipe.toml"), &whole).unwrap();
        let table: toml::Table = toml::from_str(&whole).unwrap();
        let (section, keys) = table.iter().nth(dice.below(table.len())).unwrap();
        let key = keys.as_table().unwrap().keys().nth(dice.below(keys.as_table().unwrap().len())).cloned();
        let set = format!("{section}.{}={}", key.unwrap_or_default(), words::toml_value(dice));
        let set = set.replace('\0', "").chars().take(100_000).collect::<String>();
        let command = if trains { &TRAIN[..] } else { &DRY };
        let steps = if trains { &steps[..] } else { &[] };
        return owned(&[command, &["--set", &set], steps].concat());
    }
    fs::write(folder.join("recipe.toml"), words::toml(dice, &whole, RECIPE_KEYS)).unwrap();
    if trains { owned(&[&TRAIN[..], &steps].concat()) } else { owned(&DRY) }
}

const CATALOG_KEYS: &str = "like¦task¦hub¦revision¦dir¦files¦text¦label¦labels¦metrics¦prompt¦response¦answer¦scorers¦\
    max_new_tokens¦stop¦beams¦temperature¦top_p¦top_k¦group_by¦shot¦shot_separator¦shot_split¦\
    messages¦source¦submission¦submission_names";

fn catalog(dice: &mut Dice, folder: &Path) -> Vec<String> {
    edit(&folder.join("datasets.toml"), |bytes| {
        let whole = String::from_utf8(bytes).unwrap();
        let more = "beams = 1\ntemperature = 0.0\ntop_p = 1.0\ntop_k = 0\nshot = \"{question} {answer}\"\nshot_separator = \"\\n\"\n";
        let at = whole.find("[\"sums\"]").unwrap();
        let (others, own) = whole.split_at(at);
        let (sums, chats) = own.split_at(own.find("[\"chats\"]").unwrap());
        let mut changed = words::toml(dice, &format!("{sums}{more}"), CATALOG_KEYS);
        if dice.chance(20) {
            changed.extend(words::toml(dice, others, CATALOG_KEYS));
        } else {
            changed.extend(others.bytes());
        }
        changed.extend(chats.bytes());
        changed
    });
    match dice.below(4) {
        0 => owned(&DRY),
        1 => owned(&[&EVAL_SUMS[..], &["--shots", "2"]].concat()),
        _ => owned(&EVAL_SUMS),
    }
}

/// Names the fixture itself in the recipe, because a run remembers the folder of its base.
fn name_fixture(folder: &Path, more: &str) {
    let name = format!("{:?}", encoders().join("bert-gelu"));
    edit(&folder.join("recipe.toml"), |bytes| {
        format!("{}{more}", String::from_utf8(bytes).unwrap().replace("\"model\"", &name)).into_bytes()
    });
}

/// A run that was told to end, and has two checkpoints.
fn interrupted(folder: &Path) {
    common(folder, "tiny/pairs", 20);
    name_fixture(folder, "log_every = 1\ncheckpoint_every = 2\nkeep_checkpoints = 2\n[eval]\nevery = 3\n");
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(TRAIN).args(["--device", "cpu", "--threads", "1"]).current_dir(folder);
    command.env("LORAXS_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    let mut child = forked::start(&command);
    while !folder.join("run/checkpoints/step-6").exists() && !child.is_over() {
        std::thread::sleep(Duration::from_micros(200));
    }
    child.signal(libc::SIGTERM);
    let output = child.wait();
    assert_eq!(output.status.code(), Some(130), "{}", errors(&output));
}

/// What comes of a training, but for its clock.
fn trained(folder: &Path) -> Value {
    let results: Value = json(&folder.join("run/results.json"));
    let log: Vec<String> =
        log(&folder.join("run")).iter().map(|point: &Point| format!("{point:?}")).collect();
    let adapter = fs::read(folder.join("run/adapter/adapter_model.safetensors")).unwrap_or_default();
    json!({
        "adapter": blake3::hash(&adapter).to_hex().as_str(), "best": results["best"], "last": results["last"],
        "steps": results["steps"], "log": blake3::hash(log.join("\n").as_bytes()).to_hex().as_str(), "points": log.len(),
    })
}

fn checkpoint(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let checkpoints = folder.join("run/checkpoints");
    let mut steps: Vec<PathBuf> = fs::read_dir(&checkpoints).unwrap().map(|e| e.unwrap().path()).collect();
    steps.sort_by_key(|path| path.to_str().map(str::len));
    let newest = steps.last().unwrap();
    match dice.below(10) {
        0 => {
            let name = dice.word(
                "step-0¦step-1¦step-7¦step-19¦step-20¦step-21¦step-18446744073709551615¦step-x¦step-007",
            );
            let _ = fs::rename(newest, checkpoints.join(name));
        }
        1 => copy_all(newest, &checkpoints.join(dice.word("step-19¦step-20¦step-99¦.partial"))),
        2..7 => {
            // A digit of a counter
            edit(&newest.join("state.json"), |bytes| {
                json_text::changed(dice, &bytes, "step¦runs¦seconds¦checksum")
            });
        }
        _ => change_one(dice, &checkpoints, &[""]),
    }
    owned(&RESUME)
}

fn finished(folder: &Path) {
    encoder(folder);
    name_fixture(folder, "");
    runs(folder, &["train", "--recipe", "recipe.toml", "--out", "run"]);
    runs(folder, &["eval", "--run", "run"]);
}

fn run(dice: &mut Dice, folder: &Path) -> Vec<String> {
    change_one(dice, &folder.join("run"), &[""]);
    match dice.below(6) {
        0..2 => owned(&["eval", "--run", "run", "--datasets", "datasets.toml"]),
        2 => owned(&["merge", "--run", "run", "--out", "merged"]),
        3 => owned(&["merge", "--run", "run", "--out", "merged", "--format", "peft"]),
        _ => owned(&RESUME),
    }
}

fn cached(folder: &Path) {
    encoder(folder);
    runs(folder, &["train", "--recipe", "recipe.toml", "--out", "run"]);
    fs::remove_dir_all(folder.join("run")).unwrap();
}

fn cache(dice: &mut Dice, folder: &Path) -> Vec<String> {
    change_one(dice, &folder.join("cache"), &[""]);
    owned(&TRAIN)
}

/// A scoring that was cut short.
fn answered(folder: &Path) {
    decoder(folder);
    runs(folder, &["eval", "--model", "model", "--task", "sums", "--out", "out"]);
    fs::remove_file(folder.join("out/results.json")).unwrap();
    edit(&folder.join("out/predictions/sums.jsonl"), |bytes| {
        let lines: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
        lines[..lines.len() - 1].concat()
    });
}

/// What comes of a scoring, but for its clock.
fn scored(folder: &Path) -> Value {
    let results: Value = json(&folder.join("out/results.json"));
    let kept = ["metrics", "groups", "count"].map(|key| results["sums"][key].clone());
    let rows = fs::read_to_string(folder.join("out/predictions/sums.jsonl")).unwrap_or_default();
    let rows: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect();
    let seen: Vec<Value> = rows
        .iter()
        .map(|row| ["index", "completion", "gold", "correct"].iter().map(|key| row[*key].clone()).collect())
        .collect();
    json!({ "results": kept, "rows": seen })
}

fn predictions(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let out = folder.join("out/predictions");
    if dice.chance(70) {
        edit(&out.join("sums.jsonl"), |bytes| {
            json_text::lines_changed(dice, &bytes, "index¦correct¦verdicts¦completion")
        });
    } else {
        change_one(dice, &out, &[""]);
    }
    owned(&[&EVAL_SUMS[..], &["--out", "out"]].concat())
}

/// Options with a number, and what they belong to.
const OPTIONS: [(&str, &[&str]); 18] = [
    ("--max-new-tokens", &EVAL_SUMS),
    ("--max-new-tokens", &EVAL_SUMS),
    ("--shots", &EVAL_SUMS),
    ("--temperature", &EVAL_SUMS),
    ("--top-k", &EVAL_SUMS),
    ("--top-p", &EVAL_SUMS),
    ("--beams", &EVAL_SUMS),
    ("--seed", &EVAL_SUMS),
    ("--limit", &EVAL_SUMS),
    ("--batch-size", &EVAL_SUMS),
    ("--max-length", &EVAL_SUMS),
    ("--split", &EVAL_SUMS),
    ("--precision", &EVAL_SUMS),
    ("--tolerance", &MERGE),
    ("--max-shard-size", &MERGE),
    ("--seed", &["init-svd", "--model", "model", "--rank", "4"]),
    ("--targets", &["init-svd", "--model", "model", "--rank", "4"]),
    ("--rank", &["init-svd", "--model", "model"]),
];

fn flags(dice: &mut Dice, _: &Path) -> Vec<String> {
    let (option, command) = OPTIONS[dice.below(OPTIONS.len())];
    let mut args = owned(command);
    let value = |dice: &mut Dice| match dice.below(10) {
        0..6 => text::whole(dice).to_owned(),
        6..9 => text::number(dice).to_owned(),
        _ => text::text(dice).replace('\0', "").chars().take(100_000).collect(),
    };
    args.push(format!("{option}={}", value(dice)));
    for _ in 0..dice.below(3) {
        let (other, of) = OPTIONS[dice.below(OPTIONS.len())];
        if of == command && !args.iter().any(|arg| arg.starts_with(other)) {
            args.push(format!("{other}={}", value(dice)));
        }
    }
    if args.iter().any(|arg| arg.starts_with("--top") || arg.starts_with("--seed"))
        && command[0] == "eval"
        && !args.iter().any(|a| a.starts_with("--temp"))
    {
        args.extend(owned(&["--temperature", "0.7"]));
    }
    args
}

fn pairs(folder: &Path) {
    fs::write(place(folder, "pairs.json"), "[[\"The answer is 3\", \"#### 3\"]]").unwrap();
}

fn answers(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let pairs: Vec<[String; 2]> = (0..20)
        .map(|_| {
            let depth = 1 + dice.below(4);
            let [completion, gold] = [words::latex(dice, depth), words::latex(dice, depth)];
            let frame = dice.word("The answer is: X¦\\boxed{X}¦$X$¦#### X¦X¦So X.\n\nQuestion:");
            [frame.replace('X', &completion), if dice.chance(50) { gold } else { frame.replace('X', &gold) }]
        })
        .collect();
    fs::write(folder.join("pairs.json"), serde_json::to_vec(&pairs).unwrap()).unwrap();
    owned(&[JUDGE, "pairs.json"])
}
