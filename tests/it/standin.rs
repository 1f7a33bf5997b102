//! Counts and limits of a GPU on the stand-in for one (`scripts/standin.sh`): copies, launches, memory, a second device.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::forked;
use crate::support::{Place, encoders, errors, fixture, json, json_lines, losses, quickstart};

/// A catalog of prompts, in `rows.jsonl`.
pub const PROMPTS: &str = "[\"my/prompts\"]\ntask = \"generation\"\nfiles = { test = \"rows.jsonl\" }\nprompt = \"{text}\"\nanswer = \"#### 1\"\n\
    scorers = [\"gsm8k/strict\"]\n";

/// Skips by name where there is no stand-in.
pub fn standin() -> bool {
    let found = std::env::var_os("LORAXS_STANDIN").is_some();
    if !found {
        println!("skipped: scripts/standin.sh runs this");
    }
    found
}

/// What was counted in a file: records of a name of 120 bytes and a number.
pub fn counts(path: &Path) -> BTreeMap<String, i64> {
    let bytes = fs::read(path).unwrap_or_default();
    let name =
        |record: &[u8]| String::from_utf8(record[..120].split(|&b| b == 0).next().unwrap().to_vec()).unwrap();
    let records = bytes
        .chunks_exact(128)
        .map(|record| (name(record), i64::from_le_bytes(record[120..].try_into().unwrap())));
    records.filter(|(name, _)| !name.is_empty()).collect()
}

/// What one more step counts, in a command that `args` makes for a number of steps.
fn of_a_step(
    place: &Place,
    few: u32,
    graphs: &str,
    args: impl Fn(&str, &str) -> Vec<String>,
) -> BTreeMap<String, i64> {
    let folder = tempfile::tempdir_in(place.path("")).unwrap();
    let counted = |steps: u32, run: &str| {
        let (out, file) = (folder.path().join(run), folder.path().join(format!("{run}.counts")));
        let out = out.to_str().unwrap();
        let args = args(&steps.to_string(), out);
        let mut command = place.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
        command.env("STANDIN_COUNTS", &file).env("LORAXS_CUDA_GRAPHS", graphs);
        let output = forked::output(&command);
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        assert!(!errors(&output).contains("Warning: "), "{}", errors(&output));
        counts(&file)
    };
    // The basis, which the first of all runs decomposes, is in the cache then.
    counted(few, "first");
    let (before, mut after) = (counted(few, "few"), counted(few + 1, "more"));
    for (name, count) in before {
        *after.entry(name).or_default() -= count;
    }
    after
}

/// Copies to the device from memory that is not pinned, which are counted as copies to the device too.
const PAGEABLE: &str = "host to device, pageable";

/// How often the host waits for the device: in a copy, and before it has given the device more to do.
const WAITS: [&str; 2] = ["blocking copies", "idle waits"];

/// How often the host waits for the device.
fn waits(counts: &BTreeMap<String, i64>) -> i64 {
    WAITS.iter().filter_map(|name| counts.get(*name)).sum()
}

/// Copies to the device and from it, and launches.
pub fn summed(counts: &BTreeMap<String, i64>) -> [i64; 3] {
    let of = |name: &str| counts.get(name).copied().unwrap_or(0);
    let copies = [of("host to device"), of("device to host")];
    let is_launch = |name: &str| !name.ends_with(" bytes") && !WAITS.contains(&name);
    let launches = counts.iter().filter(|(name, _)| is_launch(name)).map(|(_, count)| count);
    [copies[0], copies[1], launches.sum::<i64>() - copies[0] - copies[1] - of(PAGEABLE)]
}

/// A recipe that trains LoRA-XS on some layers of a model.
pub fn recipe(model: &Path, targets: &str, dataset: &str) -> String {
    format!(
        "[model]\nname = {model:?}\n[adapter]\nmethod = \"lora-xs\"\nrank = 4\nalpha = 4.0\ntargets = {targets}\n\
         [data]\ndataset = \"{dataset}\"\nmax_length = 24\n[train]\nbatch_size = 4\nlog_every = 100\nshuffle = false\n\
         [eval]\nevery = \"never\"\n"
    )
}

#[test]
fn a_step_of_training_uploads_once_and_downloads_nothing() {
    if !standin() {
        return;
    }
    let encoder = (
        Place::new(),
        encoders().join("bert-gelu"),
        r#"["query", "value", "attention.output.dense", "output.dense"]"#,
        "tiny/pairs",
    );
    let decoder = (
        Place::of_decoders(),
        fixture("decoders/llama-biased"),
        r#"["q_proj", "v_proj", "o_proj", "down_proj"]"#,
        "tiny/instructions",
    );
    let capped = (
        Place::of_decoders(),
        fixture("decoders/gemma2-capped"),
        r#"["q_proj", "v_proj", "o_proj", "down_proj"]"#,
        "tiny/instructions",
    );
    // Copies up, and launches, of two layers (three where scores are capped) with what stands before and after them; then of a step that the device repeats.
    let cases = [
        (&encoder, "fp32", "0", [1, 333]),
        (&encoder, "bf16", "0", [1, 359]),
        (&decoder, "fp32", "0", [1, 219]),
        (&decoder, "bf16", "0", [1, 232]),
        (&capped, "bf16", "0", [1, 580]),
        (&encoder, "fp32", "1", [1, 10]),
        (&encoder, "bf16", "1", [1, 10]),
        (&decoder, "bf16", "1", [1, 10]),
    ];
    for ((place, model, targets, dataset), precision, graphs, [most_up, most_launches]) in cases {
        // Rows of several lengths, and a scale α/r that is not 1.
        let text = recipe(model, targets, dataset).replace("alpha = 4.0", "alpha = 6.0");
        // A step that is to be repeated has the shape of those before it.
        let longest = match (graphs, *dataset) {
            ("1", _) => "max_length = 24",
            (_, "tiny/pairs") => "max_length = 40",
            _ => "max_length = 84",
        };
        fs::write(place.path("recipe.toml"), text.replace("max_length = 24", longest)).unwrap();
        let args = |steps: &str, out: &str| -> Vec<String> {
            let sets = [format!("train.max_steps={steps}"), format!("train.precision={precision}")];
            let mut args: Vec<String> =
                ["train", "--recipe", "recipe.toml", "--out", out].map(str::to_owned).into();
            args.extend(sets.into_iter().flat_map(|set| ["--set".to_owned(), set]));
            args
        };
        let found = of_a_step(place, 3, graphs, args);
        let [up, down, launches] = summed(&found);
        println!("{dataset} {precision}, recordings {graphs}: {up} up, {down} down, {launches} launches");
        assert_eq!(waits(&found), 0, "{found:?}");
        assert!(up <= most_up && down == 0 && launches <= most_launches, "{found:?}");
        assert_eq!(found.get(PAGEABLE).copied().unwrap_or(0), 0, "an upload waits");
    }
}

#[test]
fn a_run_that_diverges_between_two_looks_fails_as_on_a_cpu() {
    if !standin() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("recipe.toml"), recipe(&encoders().join("bert-gelu"), "[\"query\"]", "tiny/pairs"))
        .unwrap();
    let ends = |device: &str, sets: &[&str]| {
        let rates = ["train.learning_rate=1e30", "train.head_learning_rate=1e30", "train.max_grad_norm=0"];
        let sets = rates.iter().chain(sets).flat_map(|set| ["--set", set]);
        let args: Vec<&str> =
            ["train", "--recipe", "recipe.toml", "--out", "run"].into_iter().chain(sets).collect();
        let output = forked::output(&place.command_on(device, &args));
        let said = errors(&output);
        let error = said.lines().find(|line| line.starts_with("error: ")).unwrap_or_default().to_owned();
        assert!(!place.path("run/results.json").exists(), "{said}");
        fs::remove_dir_all(place.path("run")).unwrap();
        assert_eq!(output.status.code(), Some(1), "{said}");
        error
    };
    for steps in ["train.max_steps=20", "train.max_steps=40"] {
        for more in [&["eval.every=never"][..], &["eval.every=15"], &["train.log_every=7"]] {
            let sets = [&[steps, "train.log_every=1000"], more].concat();
            let found = ends("cuda:0", &sets);
            assert!(found.contains("no finite gradient in 10 steps up to step"), "{found}");
            assert_eq!(found, ends("cpu", &sets), "{sets:?}");
        }
    }
}

#[test]
fn fp32_products_take_the_tensor_cores_where_these_are_exact() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let splits = |wanted: &str| {
        let (mut command, file) = (place.command(&["doctor", "--offline"]), place.path("counts"));
        let output = forked::output(command.env("LORAXS_FP32_HALVES", wanted).env("STANDIN_COUNTS", &file));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        counts(&file).get("lx_split").copied().unwrap_or(0)
    };
    // Four are for the products that are tried first.
    let [with, without] = ["1", "0"].map(splits);
    assert!(with > 4 && without == 0, "{with}, {without}");
}

#[test]
fn segments_of_memory_grow_where_they_can_and_nobody_says_otherwise() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let grow = |name: &str, value: &str| {
        let (mut command, file) = (place.command(&["doctor", "--offline"]), place.path("counts"));
        let output = forked::output(command.env(name, value).env("STANDIN_COUNTS", &file));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        counts(&file)["growing segments"] == 1
    };
    let fixed = "expandable_segments:False";
    let others =
        [("PYTORCH_CUDA_ALLOC_CONF", fixed), ("PYTORCH_ALLOC_CONF", fixed), ("STANDIN_VIRTUAL", "1")];
    assert!(grow("STANDIN_VIRTUAL_", "1"));
    for (name, value) in others {
        assert!(!grow(name, value), "{name}");
    }
}

#[test]
fn recorded_steps_of_training_are_what_they_are_without_recordings() {
    if !standin() {
        return;
    }
    let encoder =
        (Place::new(), encoders().join("bert-gelu"), r#"["query", "value", "output.dense"]"#, "tiny/pairs");
    let decoder = (
        Place::of_decoders(),
        fixture("decoders/qwen3-window"),
        r#"["q_proj", "v_proj", "down_proj"]"#,
        "tiny/instructions",
    );
    for ((place, model, targets, dataset), precision) in
        [(&encoder, "fp32"), (&encoder, "bf16"), (&decoder, "bf16")]
    {
        let dropping =
            if *dataset == "tiny/pairs" { "dropout = 0.2\n[adapter]" } else { "[adapter]\ndropout = 0.2" };
        fs::write(place.path("recipe.toml"), recipe(model, targets, dataset).replace("[adapter]", dropping))
            .unwrap();
        let run = |out: &str, graphs: &str| {
            let sets = [
                "--set",
                "train.max_steps=24",
                "--set",
                "train.log_every=1",
                "--set",
                &format!("train.precision={precision}"),
            ];
            let args = [&["train", "--recipe", "recipe.toml", "--out", out][..], &sets].concat();
            let mut command = place.command(&args);
            let counted = place.path(&format!("{out}.counts"));
            command.env("LORAXS_CUDA_GRAPHS", graphs).env("STANDIN_COUNTS", &counted);
            let output = forked::output(&command);
            assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
            (losses(&place.path(out)), counts(&counted).get("replay").copied().unwrap_or(0))
        };
        let (recorded, replays) = run(&format!("{precision}-recorded"), "1");
        let (plain, none) = run(&format!("{precision}-plain"), "0");
        assert_eq!(recorded, plain, "{dataset} {precision}");
        println!("{dataset} {precision}: {replays} replays");
        // The optimiser's updates, and the passes of shapes that return.
        assert!(none == 0 && replays > 26, "{dataset} {precision}: {replays} and {none} replays");
    }
}

#[test]
fn the_precision_of_a_gpu_is_chosen_by_the_kind_of_model() {
    if !standin() {
        return;
    }
    for (place, model, targets, dataset, precision) in [
        (Place::new(), encoders().join("bert-gelu"), r#"["query"]"#, "tiny/pairs", "tf32"),
        (
            Place::of_decoders(),
            fixture("decoders/llama-biased"),
            r#"["q_proj"]"#,
            "tiny/instructions",
            "bf16",
        ),
    ] {
        fs::write(place.path("recipe.toml"), recipe(&model, targets, dataset)).unwrap();
        for (out, precision, variable) in
            [("run", precision, "STANDIN_AMPERE"), ("old", "fp32", "STANDIN_TURING")]
        {
            let sets = ["--set", "train.max_steps=1", "--set", "train.precision=auto"];
            let mut command =
                place.command(&[&["train", "--recipe", "recipe.toml", "--out", out][..], &sets].concat());
            let output = forked::output(command.env(variable, "1"));
            assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
            let said = errors(&output);
            assert!(said.contains(&format!("precision on this GPU: {precision}")), "{said}");
            let written = fs::read_to_string(place.path(out).join("recipe.toml")).unwrap();
            assert!(written.contains(&format!("precision = \"{precision}\"")), "{written}");
        }
    }
}

#[test]
fn bf16_is_refused_where_a_gpu_has_none() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let model = encoders().join("bert-gelu");
    fs::write(place.path("recipe.toml"), recipe(&model, r#"["query"]"#, "tiny/pairs")).unwrap();
    let mut command =
        place.command(&["train", "--recipe", "recipe.toml", "--out", "run", "--set", "train.precision=bf16"]);
    let output = forked::output(command.env("STANDIN_TURING", "1"));
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("cannot compute in bf16") && text.contains("to `fp16` or `fp32`"), "{text}");
}

#[test]
fn tf32_is_turned_on_where_it_is_asked_for() {
    if !standin() {
        return;
    }
    let place = Place::of_quickstart();
    fs::write(
        place.path("recipe.toml"),
        recipe(&quickstart().join("base"), r#"["query"]"#, "quickstart/city"),
    )
    .unwrap();
    for (precision, halves) in [("tf32", false), ("fp32", true)] {
        let sets = ["--set", "train.max_steps=2", "--set", "train.batch_size=32", "--set"];
        let set = format!("train.precision={precision}");
        let args = [&["train", "--recipe", "recipe.toml", "--out", precision][..], &sets, &[&set]].concat();
        let (mut command, file) = (place.command(&args), place.path(&format!("{precision}.counts")));
        let output = forked::output(command.env("STANDIN_COUNTS", &file));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        // Tensor cores take fp32 as sums of halves, and TF32 as it is.
        assert_eq!(counts(&file).contains_key("lx_split"), halves, "{precision}");
    }
}

#[test]
fn the_memory_that_is_forecast_is_the_memory_that_is_taken() {
    if !standin() {
        return;
    }
    let place = Place::of_decoders();
    for precision in ["bf16", "fp32"] {
        let text = recipe(&fixture("decoders/gemma2-capped"), r#"["q_proj", "v_proj"]"#, "tiny/instructions");
        let text =
            text.replace("batch_size = 4", "batch_size = 32").replace("max_length = 24", "max_length = 84");
        fs::write(place.path("recipe.toml"), text).unwrap();
        let set = format!("train.precision={precision}");
        let args = [
            "train", "--recipe", "recipe.toml", "--out", precision, "--set", "train.max_steps=8", "--set",
            &set,
        ];
        let output = place.run(&[&args[..], &["--dry-run"]].concat(), 0);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = said.lines().find(|line| line.contains("total memory")).unwrap();
        let expected: f64 = line.split_whitespace().last().unwrap().parse().unwrap();
        // On the stand-in, a recording keeps all that it has ever written.
        let output = forked::output(place.command(&args).env("LORAXS_CUDA_GRAPHS", "0"));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let results: serde_json::Value = json(&place.path(precision).join("results.json"));
        let found = results["peak_memory_mib"].as_f64().unwrap();
        println!("{precision}: {expected} MiB forecast, {found:.1} taken");
        assert!((0.9..1.4).contains(&(expected / found)), "{expected} and {found} MiB");
    }
}

#[test]
fn a_token_more_is_one_copy_to_the_host_and_one_replay() {
    if !standin() {
        return;
    }
    let place = Place::with_own(PROMPTS);
    fs::write(
        place.path("rows.jsonl"),
        "{\"text\": \"one five\"}\n{\"text\": \"one six\"}\n{\"text\": \"two two\"}\n",
    )
    .unwrap();
    let model = fixture("decoders/llama-biased");
    let args = |steps: &str, out: &str, how: &[&str]| -> Vec<String> {
        let model = model.to_str().unwrap();
        let task = ["eval", "--model", model, "--task", "my/prompts", "--precision", "bf16"];
        let steps = ["--max-new-tokens", steps, "--out", out];
        task.iter().chain(&steps).chain(how).map(|&arg| arg.to_owned()).collect()
    };
    // Of one token, so that no text ends early.
    let drawn: &[&str] = &["--temperature", "1", "--top-k", "1"];
    for (how, most_up, most_launches) in [(&[][..], 0, 12), (drawn, 1, 30)] {
        let found = of_a_step(&place, 20, "1", |steps, out| args(steps, out, how));
        assert_eq!(found.get("replay"), Some(&1), "{found:?}");
        let [up, down, launches] = summed(&found);
        println!("{how:?}: {up} up, {down} down, {launches} launches");
        assert!(up <= most_up && down == 1 && launches <= most_launches, "{found:?}");
        assert_eq!(waits(&found), 0, "{found:?}");
        assert_eq!(found.get(PAGEABLE).copied().unwrap_or(0), 0, "an upload waits");
    }
    let second = args("20", "second", &[]);
    let second = place.command_on("cuda:1", &second.iter().map(String::as_str).collect::<Vec<_>>());
    let file = place.path("second.counts");
    let mut second = second;
    assert!(forked::output(second.env("STANDIN_COUNTS", &file)).status.success());
    assert!(counts(&file)["replay"] > 5, "nothing is recorded on the second device");
}

#[test]
fn passes_that_begin_before_the_last_tokens_are_known_give_the_same_completions() {
    if !standin() {
        return;
    }
    let place = Place::with_own(PROMPTS);
    let row = |i: usize| format!("{{\"text\": \"What is {i}{}?\"}}\n", " + 2".repeat(i % 5));
    fs::write(place.path("rows.jsonl"), (0..60).map(row).collect::<String>()).unwrap();
    let model = fixture("decoders/llama-biased");
    let answers = |out: &str, how: &[&str], graphs: &str| {
        let args = [
            "eval",
            "--model",
            model.to_str().unwrap(),
            "--task",
            "my/prompts",
            "--precision",
            "bf16",
            "--out",
            out,
        ];
        // Seven at a time: they end one by one, and others take their places.
        let args = [&args[..], &["--batch-size", "7", "--max-new-tokens", "50"], how].concat();
        let (mut command, file) = (place.command(&args), place.path(&format!("{out}.counts")));
        let output = forked::output(command.env("LORAXS_CUDA_GRAPHS", graphs).env("STANDIN_COUNTS", &file));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let mut rows = json_lines::<serde_json::Value>(&place.path(out).join("predictions/my/prompts.jsonl"));
        rows.sort_by_key(|row| row["index"].as_u64());
        (rows, counts(&file))
    };
    let ways: [&[&str]; 3] =
        [&[], &["--temperature", "1", "--top-p", "0.9"], &["--temperature", "1.3", "--top-k", "20"]];
    for (number, how) in ways.into_iter().enumerate() {
        let (expected, _) = answers(&format!("in-turn-{number}"), how, "0");
        let (found, counts) = answers(&format!("ahead-{number}"), how, "1");
        assert_eq!(found, expected, "{how:?}");
        assert!(counts["replay"] > 100, "{how:?}: {} passes are recorded ones", counts["replay"]);
        let ends: Vec<u64> = found.iter().map(|row| row["tokens"].as_u64().unwrap()).collect();
        assert!(ends.iter().any(|tokens| *tokens < 40) && ends.contains(&50), "{ends:?}");
    }
}

#[test]
fn without_flash_attention_fp16_trains_as_with_it() {
    if !standin() {
        return;
    }
    let place = Place::of_decoders();
    let model = fixture("decoders/qwen3-window");
    fs::write(place.path("recipe.toml"), recipe(&model, r#"["q_proj", "v_proj"]"#, "tiny/instructions"))
        .unwrap();
    let sets = ["--set", "train.max_steps=3", "--set", "train.log_every=1", "--set", "train.precision=fp16"];
    let run = |out: &str, variable: &str| {
        let args = [&["train", "--recipe", "recipe.toml", "--out", out][..], &sets].concat();
        let output = forked::output(place.command(&args).env(variable, "1"));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        losses(&place.path(out))
    };
    let (new, old) = (run("ampere", "STANDIN_AMPERE"), run("turing", "STANDIN_TURING"));
    assert!(crate::support::strays(&old, &new) < 1e-3, "{old:?}, {new:?}");
}

#[test]
fn what_does_not_fit_is_done_in_parts_or_said() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let model = encoders().join("bert-gelu");
    fs::write(place.path("recipe.toml"), recipe(&model, r#"["query"]"#, "tiny/pairs")).unwrap();
    let mut command = place.command(&["train", "--recipe", "recipe.toml", "--out", "run"]);
    command.env("STANDIN_BYTES", "600000");
    let output = forked::output(&command);
    let text = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("out of memory") && text.contains("hint: lower"), "{text}");
}

#[test]
fn the_second_gpu_computes_as_the_first() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let model = encoders().join("bert-gelu");
    fs::write(place.path("recipe.toml"), recipe(&model, r#"["query", "output.dense"]"#, "tiny/pairs"))
        .unwrap();
    let run = |device: &str| {
        let sets = ["--set", "train.max_steps=3", "--set", "train.log_every=1"];
        let args = [&["train", "--recipe", "recipe.toml", "--out", device][..], &sets].concat();
        let output = forked::output(&place.command_on(device, &args));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let found: Vec<serde_json::Value> = json_lines(&place.path(device).join("metrics.jsonl"));
        assert_eq!(found.len(), 3);
        losses(&place.path(device))
    };
    assert_eq!(run("cuda:0"), run("cuda:1"));
}

#[test]
fn free_memory_is_known_before_there_is_a_tensor() {
    if !standin() {
        return;
    }
    let place = Place::new();
    fs::write(place.path("recipe.toml"), recipe(&encoders().join("bert-gelu"), r#"["query"]"#, "tiny/pairs"))
        .unwrap();
    let output = place.run(&["train", "--recipe", "recipe.toml", "--out", "run", "--dry-run"], 0);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    // 16 GiB, less the byte that asking takes.
    let line = said.lines().find(|line| line.contains("free on the device (MiB)"));
    assert!(line.is_some_and(|line| line.contains("16384.0")), "{said}");
    // Here nothing precedes the question: a base that is divided needs the answer before it is loaded.
    let model = fixture("decoders/gemma2-capped");
    let args = ["predict", "--model", model.to_str().unwrap(), "--text", "hello", "--precision", "fp32"];
    let mut command = place.command_on("cuda:0,cuda:1", &args);
    let output = forked::output(command.env("STANDIN_BYTES", "1000"));
    let said = errors(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("the base takes") && said.contains("have 0.0 GiB and 0.0 GiB free"), "{said}");
}

#[test]
fn a_basis_that_is_not_cached_needs_no_room_beside_the_model() {
    if !standin() {
        return;
    }
    let place = Place::of_quickstart();
    let targets =
        r#"["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]"#;
    fs::write(place.path("recipe.toml"), recipe(&quickstart().join("base"), targets, "quickstart/city"))
        .unwrap();
    // In bf16, since a decomposition takes as much as ever then, but a step takes less than a decomposition.
    let sets = ["--set", "train.max_steps=1", "--set", "train.batch_size=1", "--set", "train.precision=bf16"];
    let run = |out: &str, bytes: &str| {
        let mut command =
            place.command(&[&["train", "--recipe", "recipe.toml", "--out", out][..], &sets].concat());
        let output = forked::output(command.env("STANDIN_BYTES", bytes));
        assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
        let results: serde_json::Value = json(&place.path(out).join("results.json"));
        results["peak_memory_mib"].as_f64().unwrap() * f64::from(1 << 20)
    };
    let enough = "1000000000";
    run("first", enough);
    let peak = run("cached", enough);
    fs::remove_dir_all(place.path("cache")).unwrap();
    assert!(run("again", &format!("{peak:.0}")) <= peak);
}

#[test]
fn a_model_is_loaded_through_pinned_memory() {
    if !standin() {
        return;
    }
    let place = Place::new();
    let recipe = recipe(&encoders().join("roberta-gelu"), r#"["query"]"#, "tiny/pairs");
    let recipe = recipe.replace("\"lora-xs\"\nrank = 4\nalpha = 4.0\ntargets = [\"query\"]", "\"head\"");
    fs::write(place.path("recipe.toml"), recipe).unwrap();
    let args = ["train", "--recipe", "recipe.toml", "--out", "run", "--set", "train.max_steps=1"];
    let (mut command, file) = (place.command(&args), place.path("counts"));
    let output = forked::output(command.env("STANDIN_COUNTS", &file));
    assert_eq!(output.status.code(), Some(0), "{}", errors(&output));
    let counts = counts(&file);
    let pageable = counts.get(PAGEABLE).copied().unwrap_or(0);
    println!("{} copies to the device, {pageable} of them from pageable memory", counts["host to device"]);
    // The trunk has 36 tensors; a head may be drawn on the CPU. Whether their numbers are finite is asked once.
    assert!(counts["host to device"] > 36 && pageable <= 2, "{counts:?}");
    println!("{} waits", waits(&counts));
    assert!(waits(&counts) <= 12, "{counts:?}");
}
