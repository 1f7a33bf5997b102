//! The kinds of inputs: what is there before something is changed, what is changed, and what is run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::dice::Dice;
use super::{JUDGE, checkpoints, data, json as json_text, settings, state, tensors, text, words};
use crate::forked;
use crate::support::{encoders, errors, fixture};

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

pub const EVAL: [&str; 5] = ["eval", "--model", "model", "--datasets", "datasets.toml"];
pub const EVAL_PAIRS: [&str; 9] =
    ["eval", "--model", "model", "--datasets", "datasets.toml", "--task", "tiny/pairs", "--limit", "8"];
pub const EVAL_SUMS: [&str; 7] =
    ["eval", "--model", "model", "--datasets", "datasets.toml", "--task", "sums"];
pub const TRAIN: [&str; 7] =
    ["train", "--recipe", "recipe.toml", "--out", "run", "--datasets", "datasets.toml"];
pub const RESUME: [&str; 8] =
    ["train", "--recipe", "recipe.toml", "--out", "run", "--datasets", "datasets.toml", "--resume"];
pub const DRY: [&str; 8] =
    ["train", "--recipe", "recipe.toml", "--out", "run", "--datasets", "datasets.toml", "--dry-run"];
pub const MERGE: [&str; 7] = ["merge", "--model", "model", "--adapter", "adapter", "--out", "merged"];
pub const ADAPTED: [&str; 11] = [
    "eval", "--model", "model", "--adapter", "adapter", "--datasets", "datasets.toml", "--task",
    "tiny/pairs", "--limit", "8",
];

pub const KINDS: [Kind; 19] = [
    Kind {
        name: "config-encoder",
        inputs: 400,
        prepare: encoder,
        plain: &EVAL_PAIRS,
        change: checkpoints::config_encoder,
        outcome: None,
    },
    Kind {
        name: "config-decoder",
        inputs: 500,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: checkpoints::config_decoder,
        outcome: None,
    },
    Kind {
        name: "generation-config",
        inputs: 250,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: checkpoints::generation_config,
        outcome: None,
    },
    Kind {
        name: "tokenizer-config",
        inputs: 250,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: checkpoints::tokenizer_config,
        outcome: None,
    },
    Kind {
        name: "tokenizer",
        inputs: 400,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: checkpoints::tokenizer,
        outcome: None,
    },
    Kind {
        name: "template",
        inputs: 500,
        prepare: chats,
        plain: &DRY,
        change: checkpoints::template,
        outcome: None,
    },
    Kind {
        name: "weights",
        inputs: 300,
        prepare: encoder,
        plain: &EVAL_PAIRS,
        change: checkpoints::weights,
        outcome: None,
    },
    Kind {
        name: "adapter",
        inputs: 300,
        prepare: checkpoints::adapters,
        plain: &ADAPTED,
        change: checkpoints::adapter,
        outcome: None,
    },
    Kind {
        name: "peft",
        inputs: 250,
        prepare: checkpoints::peft_plain,
        plain: &ADAPTED,
        change: checkpoints::peft,
        outcome: None,
    },
    Kind {
        name: "recipe",
        inputs: 300,
        prepare: encoder,
        plain: &DRY,
        change: settings::recipe,
        outcome: None,
    },
    Kind {
        name: "catalog",
        inputs: 250,
        prepare: decoder,
        plain: &EVAL_SUMS,
        change: settings::catalog,
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
        prepare: state::interrupted,
        plain: &RESUME,
        change: state::checkpoint,
        outcome: Some(state::trained),
    },
    Kind {
        name: "run",
        inputs: 150,
        prepare: state::finished,
        plain: &["eval", "--run", "run", "--datasets", "datasets.toml"],
        change: state::run,
        outcome: None,
    },
    Kind {
        name: "report",
        inputs: 200,
        prepare: state::compared,
        plain: &["report", "study"],
        change: state::report,
        outcome: None,
    },
    Kind {
        name: "cache",
        inputs: 150,
        prepare: state::cached,
        plain: &TRAIN,
        change: state::cache,
        outcome: Some(state::trained),
    },
    Kind {
        name: "predictions",
        inputs: 150,
        prepare: state::answered,
        plain: &["eval", "--model", "model", "--datasets", "datasets.toml", "--task", "sums", "--out", "out"],
        change: state::predictions,
        outcome: Some(state::scored),
    },
    Kind {
        name: "flags",
        inputs: 200,
        prepare: decoder_adapted,
        plain: &EVAL_SUMS,
        change: settings::flags,
        outcome: None,
    },
    Kind {
        name: "scoring",
        inputs: 250,
        prepare: settings::pairs,
        plain: &[JUDGE, "pairs.json"],
        change: settings::answers,
        outcome: None,
    },
];

/// What changes take from; copies of a folder have a link to it.
pub const STORE: &str = "store";

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

pub fn owned(args: &[&str]) -> Vec<String> {
    args.iter().map(|arg| (*arg).to_owned()).collect()
}

/// Changes a file by what `change` makes of its bytes.
pub fn edit(path: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) {
    let bytes = fs::read(path).unwrap_or_default();
    fs::write(path, change(bytes)).unwrap();
}

/// Puts another fixture in the place of `model`.
pub fn put_model(folder: &Path, from: &Path) {
    let _ = fs::remove_dir_all(folder.join("model"));
    copy_all(from, &folder.join("model"));
    let _ = fs::remove_file(folder.join("model/expected.json"));
}

pub const SUMS: &str = "[\"sums\"]\ntask = \"generation\"\nfiles = { train = \"sums.jsonl\", test = \"sums.jsonl\" }\n\
    prompt = \"Question: {question}\\nAnswer:\"\nanswer = \"{answer}\"\nscorers = [\"gsm8k/flexible\", \"math/equivalence\"]\n\
    max_new_tokens = 6\nstop = [\"Question:\"]\ngroup_by = [\"kind\"]\n";
pub const CHATS: &str =
    "[\"chats\"]\ntask = \"chat\"\nfiles = { train = \"chats.jsonl\", validation = \"chats.jsonl\" }\n";
pub const TURNS: &str = "{\"messages\": [{\"role\": \"system\", \"content\": \"be kind\"}, {\"role\": \"user\", \"content\": \"hi Ann\"}, \
    {\"role\": \"assistant\", \"content\": \"has 3\"}]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"2+1?\"}, {\"role\": \"assistant\", \
    \"content\": \"3\"}], \"tools\": [{\"name\": \"f\"}]}\n";
pub const TEMPLATE: &str = "{% for m in messages %}[{{ m.role }}]{{ m['content'] | trim }}</s>\n{% endfor %}\
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

pub fn encoder(folder: &Path) {
    common(folder, "tiny/pairs", 2);
    put_model(folder, &encoders().join("bert-gelu"));
}

pub fn decoder(folder: &Path) {
    common(folder, "tiny/instructions", 2);
    put_model(folder, &fixture("decoders/llama-biased"));
}

pub fn decoder_adapted(folder: &Path) {
    decoder(folder);
    put_model(folder, &fixture("decoders/llama-linear"));
    copy_all(&fixture("peft/llama-linear/lora"), &folder.join("adapter"));
}

pub fn chats(folder: &Path) {
    decoder(folder);
    common(folder, "chats", 2);
    fs::write(folder.join("model/chat_template.jinja"), TEMPLATE).unwrap();
}

/// Changes one file of a folder whose name ends in one of `endings`, as its format is.
pub fn change_one(dice: &mut Dice, folder: &Path, endings: &[&str]) {
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
        Some("toml") => words::toml(dice, &String::from_utf8_lossy(&bytes), settings::RECIPE_KEYS),
        _ => text::changed(dice, bytes, ""),
    });
}

pub fn files_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.path().is_dir() { files_below(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

pub const ADAPTER_KEYS: &str = "peft_type¦task_type¦base_model_name_or_path¦revision¦r¦lora_alpha¦use_rslora¦use_dora¦\
    lora_dropout¦bias¦target_modules¦modules_to_save¦rank_pattern¦alpha_pattern¦layers_to_transform¦\
    layers_pattern¦layer_replication¦exclude_modules¦init_lora_weights¦fan_in_fan_out¦d_initial¦\
    projection_prng_key¦save_projection¦projection_seed¦u¦weight_tying¦inference_mode¦\
    trainable_token_indices¦method¦rank¦alpha¦modules¦witness¦base_hash¦format¦labels¦weight_map¦\
    ensure_weight_tying";

/// Runs the command in a folder; it succeeds.
pub fn runs(folder: &Path, args: &[&str]) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command
        .args(args)
        .args(["--datasets", "datasets.toml", "--device", "cpu", "--threads", "1"])
        .current_dir(folder);
    command.env("LORAXS_CACHE", folder.join("cache")).env("HF_HUB_OFFLINE", "1");
    let output = forked::output(&command);
    assert!(output.status.success(), "{args:?}: {}", errors(&output));
}
