//! Wrong inputs to a language model: configs, weights, tokenizers, data, templates and adapters, one clear message each.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bench::{check_with_rehearsal, copied, edit, edit_tensors};
use crate::support::{Place, encoders, errors, fixture};

const ROW: &str = "{\"q\": \"Ann has 3\", \"a\": \"3\"}\n";
const INSTRUCTION: &str = "task = \"instruction\"\nprompt = \"Q: {q}\\nA: \"\nresponse = \"{a}\"\n";
const GENERATION: &str = "task = \"generation\"\nprompt = \"{q}\"\nanswer = \"{a}\"\nmax_new_tokens = 4\n";
const SCORERS: &str = "scorers = [\"gsm8k/flexible\"]\n";
const CHAT: &str = "task = \"chat\"\n";
const TURNS: &str = "{\"messages\": [{\"role\": \"user\", \"content\": \"hi Ann\"}, \
                     {\"role\": \"assistant\", \"content\": \"has 3\"}]}\n";
const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}\
                        {% if add_generation_prompt %}[assistant]{% endif %}";

/// A place with a data set `my/data` of its own and copies of fixtures to break.
struct Bench(Place);

impl Bench {
    fn new() -> Self {
        let bench = Self(Place::with_own(""));
        bench.data(INSTRUCTION, &ROW.repeat(8));
        bench
    }

    /// Makes `my/data` these rows, read as `entry` says.
    fn data(&self, entry: &str, rows: &str) {
        let files = "files = { train = \"rows.jsonl\", validation = \"rows.jsonl\", test = \"rows.jsonl\" }";
        let pairs = "task = \"classification\"\ntext = \"q\"\nlabel = \"a\"\nlabels = [\"2\", \"3\"]\n";
        let catalog = format!(
            "[\"my/data\"]\ndir = \".\"\n{files}\n{entry}[\"my/pairs\"]\ndir = \".\"\n{files}\n{pairs}"
        );
        fs::write(self.0.path("rows.jsonl"), rows).unwrap();
        fs::write(self.0.path("datasets.toml"), catalog).unwrap();
    }

    /// A copy of a checkpoint of the fixtures.
    fn model(&self, from: &str) -> PathBuf {
        let folder = self.0.path("model");
        if folder.exists() {
            fs::remove_dir_all(&folder).unwrap();
        }
        copied(&fixture("decoders").join(from), &folder)
    }

    fn refuses(&self, args: &[&str], code: i32, words: &[&str]) {
        check_with_rehearsal(args, code, words, &|args| {
            let mut command = self.0.command(args);
            command.env("RUST_BACKTRACE", "1").env("HF_HOME", self.0.path("hub"));
            command
        });
    }

    fn refuses_eval(&self, model: &Path, more: &[&str], code: i32, words: &[&str]) {
        let out = self.0.path("out");
        let args = ["eval", "--model", model.to_str().unwrap(), "--out", out.to_str().unwrap()];
        let task = if more.contains(&"--task") { &[][..] } else { &["--task", "my/data"] };
        self.refuses(&[&args, task, more].concat(), code, words);
        assert!(!out.exists(), "a refused evaluation must leave nothing behind");
    }

    fn recipe(&self, model: &Path) {
        let text = format!(
            "[model]\nname = {model:?}\n[adapter]\nrank = 4\nalpha = 4\n[data]\ndataset = \"my/data\"\n\
             max_length = 64\n[train]\nmax_steps = 2\nbatch_size = 4\n"
        );
        fs::write(self.0.path("recipe.toml"), text).unwrap();
    }

    fn refuses_train(&self, model: &Path, sets: &[&str], code: i32, words: &[&str]) {
        self.recipe(model);
        let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "run"];
        sets.iter().for_each(|set| args.extend(["--set", set]));
        self.refuses(&args, code, words);
        assert!(!self.0.path("run").exists(), "a refused training must leave nothing behind");
    }

    /// An evaluation that goes on, but says this.
    fn warns_eval(&self, model: &Path, out: &str, words: &str) {
        let args = ["eval", "--model", model.to_str().unwrap(), "--task", "my/data", "--out", out];
        let text = errors(&self.0.run(&args, 0));
        assert!(text.contains(words), "no `{words}` in {text}");
    }
}

/// Removes keys from a JSON file.
fn without(path: &Path, keys: &[&str]) {
    edit(path, |file| keys.iter().for_each(|key| drop(file.remove(*key))));
}

#[test]
fn a_wrong_config_of_a_decoder_names_the_field() {
    let bench = Bench::new();
    let scaled = |kind: &str| json!({"rope_type": kind, "factor": 2.0, "rope_theta": 1e4});
    let cases: [(&str, &str, Value, &str); 19] = [
        ("llama-biased", "rope_parameters", scaled("yarn"), "the rotary scaling `yarn` is not supported"),
        (
            "phi3-window",
            "rope_parameters",
            scaled("longrope"),
            "the rotary scaling `longrope` is not supported",
        ),
        ("llama-linear-old", "rope_scaling", json!({"type": "dynamic", "factor": 2.0}), "scaling `dynamic`"),
        ("llama-linear-old", "rope_scaling", json!({"type": "linear"}), "`rope_scaling` lacks `factor`"),
        (
            "llama-linear-old",
            "rope_scaling",
            json!({"type": 3}),
            "`rope_scaling.rope_type` must be a text, found 3",
        ),
        ("llama-linear-old", "rope_scaling", json!([1]), "`rope_scaling` must be an object, found [1]"),
        ("llama-biased", "logit_scale", json!(0.5), "`logit_scale` = 0.5 changes the model's numbers"),
        ("llama-biased", "clip_qkv", json!(8.0), "`clip_qkv` = 8.0 changes the model's numbers"),
        ("llama-biased", "sliding_window", json!(4), "not supported for Llama"),
        ("llama-biased", "quantization_config", json!({"bits": 4}), "`quantization_config`"),
        ("llama-biased", "num_key_value_heads", json!(5), "6 is not a multiple of `num_key_value_heads` 5"),
        ("llama-biased", "num_key_value_heads", json!(0), "6 is not a multiple of `num_key_value_heads` 0"),
        ("llama-biased", "hidden_act", json!("mish"), "`hidden_act` `mish` is not supported"),
        ("llama-biased", "head_dim", json!(7), "the rotated part of a head must be even"),
        ("llama-biased", "model_type", json!("mixtral"), "the model type `mixtral` is not supported"),
        (
            "llama-biased",
            "num_hidden_layers",
            json!(9),
            "missing tensor `model.layers.2.self_attn.q_proj.weight`",
        ),
        ("llama-biased", "intermediate_size", json!(40), "has shape [41, 30], expected [40, 30]"),
        (
            "qwen3-window",
            "layer_types",
            json!(["full_attention"]),
            "`layer_types` says `nothing` for layer 1",
        ),
        (
            "gemma2-capped",
            "layer_types",
            json!(["chunked_attention"]),
            "says `chunked_attention` for layer 0",
        ),
    ];
    for (from, key, value, words) in cases {
        let model = bench.model(from);
        edit(&model.join("config.json"), |config| drop(config.insert(key.to_owned(), value.clone())));
        bench.refuses_eval(&model, &[], 1, &[words]);
    }
}

#[test]
fn broken_weights_of_a_decoder_name_shard_and_tensor() {
    let bench = Bench::new();
    let sharded = || bench.model("llama-llama3-old");
    let shard = "model-00002-of-00003.safetensors";
    fs::remove_file(sharded().join(shard)).unwrap();
    let model = bench.0.path("model");
    bench.refuses_eval(&model, &[], 1, &[shard, "which `model.safetensors.index.json` names"]);
    edit(&sharded().join("model.safetensors.index.json"), |index| {
        index["weight_map"].as_object_mut().unwrap().retain(|_, file| file != shard);
    });
    bench.refuses_eval(
        &model,
        &[],
        1,
        &["missing tensor `model.layers.", "or a shard is missing from the index"],
    );
    let query = "model.layers.1.self_attn.q_proj.weight";
    edit_tensors(&bench.model("llama-biased").join("model.safetensors"), |header, _| {
        let [rows, columns] = [0, 1].map(|axis| header[query]["shape"][axis].as_u64().unwrap());
        header[query]["shape"] = json!([columns, rows]);
    });
    bench.refuses_eval(&model, &[], 1, &[query, "has shape [30, 48], expected [48, 30]"]);
    edit_tensors(&bench.model("llama-biased").join("model.safetensors"), |header, _| {
        let tensor = header.remove(query).unwrap();
        header.insert("model.other".to_owned(), tensor);
    });
    bench.refuses_eval(
        &model,
        &[],
        1,
        &[&format!("missing tensor `{query}`"), "unexpected tensors: `model.other`"],
    );
    edit_tensors(&bench.model("llama-biased").join("model.safetensors"), |header, _| {
        let tensor = header.remove("lm_head.weight").unwrap();
        header.insert("other".to_owned(), tensor);
    });
    bench.refuses_eval(&model, &[], 1, &["missing tensor `lm_head.weight`"]);
}

#[test]
fn a_tokenizer_that_does_not_fit_a_decoder_is_refused() {
    let bench = Bench::new();
    let model = bench.model("llama-biased");
    edit(&model.join("config.json"), |config| drop(config.insert("vocab_size".to_owned(), json!(90))));
    bench.refuses_eval(
        &model,
        &[],
        2,
        &["the tokenizer has 96 tokens, but the base has only 90 embeddings", "hint:"],
    );
    let endless = || {
        let model = bench.model("llama-biased");
        for file in ["config.json", "generation_config.json", "tokenizer_config.json"] {
            without(&model.join(file), &["eos_token_id", "eos_token"]);
        }
        model
    };
    let model = endless();
    let unknown = "no end-of-text token is known";
    bench.refuses_train(&model, &[], 1, &[unknown, "hint: set `eos_token`"]);
    bench.refuses_eval(&model, &[], 1, &[unknown]);
    bench.data(&format!("{GENERATION}{SCORERS}"), ROW);
    bench.warns_eval(&model, "endless", "completions end at a stop text or after 4 tokens");
    edit(&model.join("tokenizer_config.json"), |file| {
        drop(file.insert("eos_token".to_owned(), json!("<nope>")))
    });
    bench.data(&format!("{GENERATION}{SCORERS}"), ROW);
    bench.warns_eval(&model, "nope", "`eos_token` `<nope>` is not in tokenizer.json: it becomes token 96");
    bench.data(INSTRUCTION, ROW);
    let model = endless();
    edit(&model.join("config.json"), |file| drop(file.insert("eos_token_id".to_owned(), json!(5000))));
    bench.refuses_train(
        &model,
        &[],
        2,
        &["the end-of-text token is 5000, but the base has only 101 embeddings"],
    );
}

#[test]
fn data_of_another_kind_than_the_base_is_refused() {
    let bench = Bench::new();
    let (decoder, encoder) = (fixture("decoders/llama-biased"), encoders().join("bert-gelu"));
    let classes = ["is for `classification`, but the base is a language model", "hint:"];
    bench.refuses_eval(&decoder, &["--task", "my/pairs"], 2, &classes);
    bench.refuses_eval(&decoder, &["--predict"], 2, &["`--predict` writes GLUE submissions"]);
    bench.refuses_train(
        &decoder,
        &["eval.metric=accuracy"],
        2,
        &["has no metric `accuracy`", "metrics are loss"],
    );
    bench.refuses_train(
        &decoder,
        &["adapter.targets=query"],
        2,
        &["`query` matches no layer", "self_attn.q_proj"],
    );
    let texts = ["is for `instruction`, not for classification", "hint: encoders need"];
    bench.refuses_eval(&encoder, &[], 2, &texts);
    bench.refuses_train(&encoder, &["data.max_length=24"], 2, &texts);
    bench.data(&format!("{GENERATION}{SCORERS}"), ROW);
    bench.refuses_eval(&encoder, &[], 2, &["is for `generation`, not for classification"]);
    bench.refuses_train(&decoder, &[], 2, &["is for `generation`", "those for `generation` are for `eval`"]);
}

#[test]
fn lengths_beyond_the_model_are_told() {
    let bench = Bench::new();
    let model = fixture("decoders/llama-biased");
    let positions = "but the model has 128 positions";
    bench.refuses_train(
        &model,
        &["data.max_length=129"],
        2,
        &[positions, "hint: set `data.max_length` to 128 or less"],
    );
    bench.refuses_eval(&model, &["--max-length", "129"], 2, &[positions]);
    let long = format!("{{\"q\": \"{}\", \"a\": \"3\"}}\n", "Ann has 3 ".repeat(50));
    bench.data(INSTRUCTION, &long);
    bench.refuses_train(&model, &[], 1, &["no row of `my/data` train", "leaves nothing of `max_length` 64"]);
    let near = format!("{{\"q\": \"{}Ann has\", \"a\": \"3\"}}\n", "Ann has 3 ".repeat(15));
    bench.data(&format!("{GENERATION}{SCORERS}"), &format!("{near}{ROW}"));
    bench.warns_eval(&model, "near", "1 of 2 prompts with 4 new tokens go beyond the 128 positions");
    bench.data(&format!("{GENERATION}{SCORERS}"), &format!("{long}{ROW}"));
    bench.warns_eval(
        &model,
        "long",
        "line 1: the prompt has 401 tokens, more than the 128 that the model has positions for",
    );
}

#[test]
fn instructions_that_cannot_be_used_name_column_and_row() {
    let bench = Bench::new();
    let model = fixture("decoders/llama-biased");
    let cases: [(&str, &str, &str, i32, &[&str]); 6] = [
        ("{q}", "{question}", ROW, 1, &["rows.jsonl` has no column `question`", "hint: columns: `a`, `q`"]),
        (
            "{q}",
            "{q",
            ROW,
            2,
            &["`my/data.prompt`: `{` at character 4 is unmatched", "`{{` for a literal brace"],
        ),
        ("{q}", "{}", ROW, 2, &["`my/data.prompt`: `{}` at character 4 names no column"]),
        (
            "response",
            "answer",
            ROW,
            2,
            &["missing key `my/data.response`", "`my/data.answer`: belongs to `generation`"],
        ),
        (
            "",
            "",
            "{\"q\": \"Ann\", \"a\": \" \"}\n",
            1,
            &["can be used", "line 1: the response is empty", "hint:"],
        ),
        ("", "", "{\"q\": [1, 2], \"a\": \"3\"}\n", 1, &["column `q`: expected a text, found a list"]),
    ];
    for (from, to, rows, code, words) in cases {
        bench.data(&INSTRUCTION.replacen(from, to, 1), rows);
        bench.refuses_train(&model, &[], code, words);
    }
    bench.data("", ROW);
    bench.refuses_train(&model, &[], 2, &["`my/data` does not say its `task`"]);
}

#[test]
fn chat_templates_and_conversations_are_checked() {
    let bench = Bench::new();
    bench.data(CHAT, TURNS);
    let model = bench.model("llama-biased");
    let template = |value: Value| {
        edit(&model.join("tokenizer_config.json"), |file| {
            drop(file.insert("chat_template".to_owned(), value.clone()))
        });
    };
    bench.refuses_train(&model, &[], 1, &["the tokenizer has no chat template", "`chat_template.jinja`"]);
    template(json!(3));
    bench.refuses_train(
        &model,
        &[],
        1,
        &["tokenizer_config.json`: `chat_template` is neither a text nor a list"],
    );
    let wrong: [(&str, &[&str]); 4] = [
        (
            "a\n{% for m in messages %}{{ m.content }",
            &["chat template, line 2: unexpected `}`", "hint: correct it"],
        ),
        (
            "{{ nothing() }}",
            &["line 1: chat template, line 1: 'nothing' is undefined", "see the tokenizer's chat"],
        ),
        ("{{ raise_exception('no roles here') }}", &["chat template, line 1: no roles here"]),
        ("always the same", &["writes no turn of the assistant"]),
    ];
    for (source, words) in wrong {
        template(json!(source));
        bench.refuses_train(&model, &[], 1, words);
    }
    template(json!(TEMPLATE));
    let turns: [(&str, &str, &str); 3] = [
        ("messages", "dialogue", "has no column `messages`"),
        ("\"assistant\"", "\"user\"", "no message with the role `assistant`"),
        ("hi Ann", &"hi Ann ".repeat(40), "beyond `max_length` 64"),
    ];
    for (from, to, words) in turns {
        bench.data(CHAT, &TURNS.replace(from, to));
        bench.refuses_train(&model, &[], 1, &[words]);
    }
    // What all of these were changed from is right.
    bench.data(CHAT, TURNS);
    bench.recipe(&model);
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"], 0);
}

#[test]
fn generation_without_rules_or_columns_is_refused() {
    let bench = Bench::new();
    let model = fixture("decoders/llama-biased");
    let refuses = |entry: &str, more: &[&str], code, words: &[&str]| {
        bench.data(entry, ROW);
        bench.refuses_eval(&model, more, code, words);
    };
    let whole = format!("{GENERATION}{SCORERS}");
    let chat = format!("{GENERATION}chat = true\n");
    refuses(
        &chat,
        &[],
        1,
        &[
            "the prompts of `my/data` are a chat, but the tokenizer has no chat template",
            "hint: put a `chat_template.jinja`",
        ],
    );
    let both = format!("{GENERATION}messages = \"m\"\n");
    refuses(&both, &[], 2, &["`my/data.prompt`: `prompt` and `messages` cannot be combined"]);
    refuses(&format!("{chat}shot = \"{{q}}\"\n"), &[], 2, &["`my/data.shot`: has no effect in a chat"]);
    refuses(
        &whole.replace("ible", "ibel"),
        &[],
        2,
        &["unknown scorer `gsm8k/flexibel`", "mean `gsm8k/flexible`?"],
    );
    refuses(&whole.replace("{q}", "{question}"), &[], 1, &["has no column `question`"]);
    refuses(&whole.replace("{a}", "{gold}"), &[], 1, &["has no column `gold`"]);
    refuses(&whole, &["--shots", "1"], 2, &["1 shots were requested, but `my/data` train has 1"]);
    refuses(&whole, &["--split", "tets"], 2, &["no split `tets`", "did you mean `test`?"]);
    refuses(&whole, &["--top-p", "0"], 2, &["expected a number above 0 and up to 1"]);
    refuses(
        &whole,
        &["--top-k", "3"],
        2,
        &["no effect on greedy decoding", "hint: pass a `--temperature` above 0"],
    );
    refuses(&format!("{whole}stop = [\"\"]\n"), &[], 2, &["`my/data.stop`", "end every completion at once"]);
    refuses(
        &format!("{whole}beams = 0\n"),
        &[],
        2,
        &["`my/data.beams`", "from 1 to 1024, since each takes the memory of a prompt, found `0`"],
    );
    refuses(&format!("{whole}group_by = \"z\"\n"), &[], 2, &["`my/data.group_by`", "no column `z`"]);
    bench.data(INSTRUCTION, &ROW.repeat(8));
    let head = ["`head` trains a classification head", "has none"];
    bench.refuses_train(&model, &["adapter.method=head"], 2, &head);
}

#[test]
fn an_adapter_of_another_decoder_is_refused() {
    let bench = Bench::new();
    bench.recipe(&fixture("decoders/llama-biased"));
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    for other in [fixture("decoders/mistral-window"), encoders().join("bert-gelu")] {
        let words =
            ["the adapter belongs to another base", "llama-biased` (hash ", "hint: load it on the base"];
        bench.refuses_eval(&other, &["--adapter", "run/adapter"], 1, &words);
        let merge =
            ["merge", "--model", other.to_str().unwrap(), "--adapter", "run/adapter", "--out", "merged"];
        bench.refuses(&merge, 1, &words);
        assert!(!bench.0.path("merged").exists());
    }
}
