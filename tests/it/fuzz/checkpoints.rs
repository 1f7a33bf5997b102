//! Changed checkpoints and adapters, and what is done with them.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::dice::Dice;
use super::kinds::{
    DRY, EVAL, EVAL_SUMS, STORE, TEMPLATE, TRAIN, change_one, common, copy_all, decoder, edit, encoder,
    owned, put_model, runs,
};
use super::{json as json_text, text, words};
use crate::support::fixture;

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

pub const CONFIG_KEYS: &str = "model_type¦architectures¦vocab_size¦hidden_size¦head_dim¦num_hidden_layers¦num_attention_heads¦\
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

pub fn config_encoder(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_any(dice, folder, "encoders");
    edit(&folder.join("model/config.json"), |bytes| json_text::changed(dice, &bytes, CONFIG_KEYS));
    uses(dice, dataset)
}

pub fn config_decoder(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_any(dice, folder, "decoders");
    edit(&folder.join("model/config.json"), |bytes| json_text::changed(dice, &bytes, CONFIG_KEYS));
    uses(dice, dataset)
}

pub const GENERATION_KEYS: &str = "bos_token_id¦eos_token_id¦pad_token_id¦decoder_start_token_id¦max_length¦max_new_tokens¦\
    min_length¦min_new_tokens¦early_stopping¦max_time¦stop_strings¦do_sample¦num_beams¦\
    num_beam_groups¦penalty_alpha¦use_cache¦temperature¦top_k¦top_p¦min_p¦top_h¦typical_p¦\
    epsilon_cutoff¦eta_cutoff¦diversity_penalty¦repetition_penalty¦encoder_repetition_penalty¦\
    length_penalty¦no_repeat_ngram_size¦bad_words_ids¦force_words_ids¦renormalize_logits¦constraints¦\
    forced_bos_token_id¦forced_eos_token_id¦remove_invalid_values¦exponential_decay_length_penalty¦\
    suppress_tokens¦begin_suppress_tokens¦sequence_bias¦token_healing¦guidance_scale¦\
    watermarking_config¦num_return_sequences";

pub fn generation_config(dice: &mut Dice, folder: &Path) -> Vec<String> {
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

pub const TOKENIZER_KEYS: &str = "bos_token¦eos_token¦pad_token¦unk_token¦cls_token¦sep_token¦mask_token¦additional_special_tokens¦\
    extra_special_tokens¦add_bos_token¦add_eos_token¦add_prefix_space¦add_special_tokens¦legacy¦\
    use_default_system_prompt¦clean_up_tokenization_spaces¦split_special_tokens¦\
    spaces_between_special_tokens¦tokenizer_class¦model_max_length¦truncation_side¦padding_side¦\
    model_input_names¦chat_template¦added_tokens_decoder¦do_lower_case¦strip_accents¦\
    tokenize_chinese_chars¦do_basic_tokenize¦never_split¦trim_offsets¦errors¦from_slow¦normalization¦\
    backend¦auto_map";

pub fn tokenizer_config(dice: &mut Dice, folder: &Path) -> Vec<String> {
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

pub fn tokenizer(dice: &mut Dice, folder: &Path) -> Vec<String> {
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

pub fn template(dice: &mut Dice, folder: &Path) -> Vec<String> {
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

pub fn weights(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let dataset = put_either(dice, folder);
    change_one(dice, &folder.join("model"), &["safetensors", "index.json"]);
    uses(dice, dataset)
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
pub fn adapters(folder: &Path) {
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

pub fn adapter(dice: &mut Dice, folder: &Path) -> Vec<String> {
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

pub fn peft_plain(folder: &Path) {
    encoder(folder);
    copy_all(&fixture("peft/bert-gelu/lora"), &folder.join("adapter"));
}

pub fn peft(dice: &mut Dice, folder: &Path) -> Vec<String> {
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
