//! `loraxs eval` on prompts: predictions, results, resuming, and the layout of lm-evaluation-harness.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::bench::{check, copied, edit};
use crate::forked;
use crate::support::{Place, errors, fixture, json, json_lines};

const CATALOG: &str = r#"
[sums]
task = "generation"
dir = "DIR"
files = { train = "sums.jsonl", test = "sums.jsonl" }
prompt = "Question: {question}\nAnswer:"
answer = "{answer}"
scorers = ["gsm8k/flexible", "gsm8k/strict"]
max_new_tokens = 12
stop = ["Question:"]
group_by = ["kind"]
"#;

/// A place with a data set of twelve questions of two kinds.
fn place() -> Place {
    let place = Place::new();
    let row = |i: usize| {
        let kind = if i.is_multiple_of(3) { "easy" } else { "hard" };
        format!(
            "{{\"question\": \"What is {i} + 2?\", \"answer\": \"It is #### {}\", \"kind\": \"{kind}\"}}\n",
            i + 2
        )
    };
    fs::write(place.path("sums.jsonl"), (0..12).map(row).collect::<String>()).unwrap();
    let folder = place.path("");
    fs::write(place.path("sums.toml"), CATALOG.replace("DIR", folder.to_str().unwrap())).unwrap();
    place
}

fn command(place: &Place, model: &Path, out: &str, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(["eval", "--model", model.to_str().unwrap(), "--task", "sums", "--out", out]).args(more);
    command.arg("--datasets").arg(place.path("sums.toml")).args(["--device", "cpu", "--threads", "1"]);
    command.env("LORAXS_CACHE", place.path("cache")).env("HF_HUB_OFFLINE", "1").current_dir(place.path(""));
    command
}

fn model() -> PathBuf {
    fixture("decoders/llama-biased")
}

fn eval(place: &Place, out: &str, more: &[&str], code: i32) -> String {
    eval_of(&model(), place, out, more, code)
}

fn eval_of(model: &Path, place: &Place, out: &str, more: &[&str], code: i32) -> String {
    let output = forked::output(&command(place, model, out, more));
    assert_eq!(output.status.code(), Some(code), "{}", errors(&output));
    errors(&output)
}

fn predictions(place: &Place, out: &str) -> Vec<Value> {
    json_lines(&place.path(out).join("predictions/sums.jsonl"))
}

fn named(folder: &Path, start: &str) -> PathBuf {
    let found = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    found.into_iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(start)).unwrap()
}

#[test]
fn every_prompt_is_answered_once_and_judged_by_every_rule() {
    let place = place();
    eval(&place, "out", &["--batch-size", "5"], 0);
    let rows = predictions(&place, "out");
    assert_eq!(rows.len(), 12);
    for (index, row) in (0..).zip(&rows) {
        assert_eq!(row["index"], index);
        assert_eq!(row["prompt"], format!("Question: What is {index} + 2?\nAnswer:"));
        assert_eq!(row["verdicts"].as_object().unwrap().len(), 2);
        assert_eq!(row["correct"], row["verdicts"]["gsm8k/flexible"]["correct"]);
        assert!(!row["completion"].as_str().unwrap().contains("Question:"));
    }
    let results: Value = json(&place.path("out/results.json"));
    let right = rows.iter().filter(|row| row["correct"] == true).count() as f64;
    assert_eq!(results["sums"]["metrics"]["gsm8k/flexible"]["value"], right / 12.0);
    let kinds = results["sums"]["groups"]["kind"].as_object().unwrap();
    assert_eq!(kinds.keys().collect::<Vec<_>>(), ["easy", "hard"]);
    let layout = place.path("out").read_dir().unwrap().map(|e| e.unwrap().path());
    let folder = layout.into_iter().find(|path| path.is_dir() && !path.ends_with("predictions")).unwrap();
    let whole: Value = json(&named(&folder, "results_"));
    assert_eq!(whole["results"]["sums"]["exact_match,flexible-extract"], right / 12.0);
    assert_eq!([&whole["versions"]["sums"], &whole["n-shot"]["sums"]], [&json!(1.0), &json!(0)]);
    assert_eq!(whole["results"]["sums"]["alias"], "sums");
    let samples: Vec<Value> = json_lines(&named(&folder, "samples_sums_"));
    assert_eq!(samples.len(), 24);
    // Those of Python's `hashlib.sha256` of the row by `json.dumps(row, indent=2)`, of the prompt and of the target
    for (key, hash) in [
        ("doc_hash", "1d96c096b40fe814cddc8c8f37463c11697edfbd16a8eb867e6dbba52bb5a3e3"),
        ("prompt_hash", "88174a4b316638145a477714d280718f128a1353590173b79171a01d1181b2ed"),
        ("target_hash", "2dfbc7f5fef99b2635c43a3135dee595391887df1fede2d0364ab8b48b91d986"),
    ] {
        assert_eq!(samples[0][key], hash, "{key}");
    }
}

#[test]
fn without_rules_completions_are_written_and_not_scored() {
    let place = place();
    let catalog = fs::read_to_string(place.path("sums.toml")).unwrap();
    eval(&place, "scored", &[], 0);
    fs::write(
        place.path("sums.toml"),
        catalog.lines().filter(|l| !l.contains("scorers")).collect::<Vec<_>>().join("\n"),
    )
    .unwrap();
    let output = forked::output(&command(&place, &model(), "plain", &[]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("not scored: its catalog entry has no `scorers`"),
        "{said}"
    );
    assert!(!said.contains("metric") && said.contains("wrote plain"), "{said}");
    let texts = |out: &str| {
        predictions(&place, out).iter().map(|row| row["completion"].to_string()).collect::<Vec<_>>()
    };
    assert_eq!(texts("plain"), texts("scored"));
    let row = &predictions(&place, "plain")[0];
    assert!(row.get("correct").is_none() && row["verdicts"] == json!({}), "{row}");
    assert_eq!(json::<Value>(&place.path("plain/results.json"))["sums"]["metrics"], json!({}));
    // An interrupted one goes on as well.
    eval(&place, "plain", &[], 0);
}

#[test]
fn a_base_with_a_chat_template_is_asked_in_it_or_the_user_is_told() {
    let place = place();
    let own = copied(&model(), &place.path("model"));
    let fixture: Value = json(&fixture("chat.json"));
    fs::write(own.join("chat_template.jinja"), fixture["template"].as_str().unwrap()).unwrap();
    let words = "the base has a chat template, but the prompts of `sums` are plain text: `chat = true`";
    assert!(eval_of(&own, &place, "plain", &[], 0).contains(words));
    let catalog = fs::read_to_string(place.path("sums.toml")).unwrap();
    fs::write(place.path("sums.toml"), format!("{catalog}chat = true\n")).unwrap();
    let said = eval_of(&own, &place, "chat", &["--shots", "1"], 0);
    assert!(!said.contains("chat template"), "{said}");
    assert_eq!(
        predictions(&place, "chat")[1]["prompt"],
        "<s>user: Question: What is 0 + 2?\nAnswer:\nassistant: It is #### 2\n\
         user: Question: What is 1 + 2?\nAnswer:\nassistant:"
    );
}

#[test]
fn an_interrupted_scoring_goes_on_from_its_predictions() {
    let place = place();
    eval(&place, "whole", &[], 0);
    eval(&place, "cut", &[], 0);
    let path = place.path("cut/predictions/sums.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().take(5).map(str::to_owned).collect();
    // What is there already is kept, which shows that it is not answered again; lines of older versions have no check.
    let mut older: Map<String, Value> = serde_json::from_str(&lines[1]).unwrap();
    older.remove("check");
    lines[1] = Value::Object(older).to_string().replace("\"tokens\":", "\"tokens\":1");
    fs::write(&path, format!("{}\n{}", lines.join("\n"), &text.lines().nth(5).unwrap()[..40])).unwrap();
    eval(&place, "cut", &["--batch-size", "3"], 0);
    let (cut, whole) = (predictions(&place, "cut"), predictions(&place, "whole"));
    assert_eq!(cut.len(), 12);
    assert_ne!(cut[1], whole[1]);
    assert_eq!((&cut[0], &cut[2..]), (&whole[0], &whole[2..]));
    fs::write(place.path("cut/predictions/sums.settings.json"), "{").unwrap();
    for more in [&[][..], &["--max-new-tokens", "13"]] {
        let message = eval(&place, "cut", more, 2);
        assert!(message.contains("has completions of another model or other settings"), "{message}");
    }
}

#[test]
fn answers_are_not_trusted_but_counted_and_judged_again() {
    let place = place();
    eval(&place, "out", &[], 0);
    let (path, whole) = (place.path("out/predictions/sums.jsonl"), predictions(&place, "out"));
    let (text, results) = (fs::read_to_string(&path).unwrap(), scores(&place));
    let first = |from: &str, to: &str| {
        assert!(text.contains(from), "no {from}");
        text.replacen(from, to, 1)
    };
    let (all, line) = (text.clone() + &text, text.lines().next().unwrap());
    let verdict = if line.contains("\"correct\":true") { ("true", "false") } else { ("false", "true") };
    let correct = ["\"correct\":".to_owned() + verdict.0, "\"correct\":".to_owned() + verdict.1];
    let cases = [
        (all, "left out 12 of 24 completions that are damaged, duplicates"),
        (first(&correct[0], &correct[1]), ""),
        (text.replace(&correct[0], &correct[1]), ""),
        (
            first("\"completion\":\"", "\"completion\":\"#### 2 "),
            "left out 1 of 12 completions that are damaged",
        ),
        (first("\"index\":0", "\"index\":12"), "left out 1 of 12 completions"),
        (first("\"index\":0", "\"index\":1"), "left out 1 of 12 completions"),
        (first("What is 0", "What is 9"), "left out 1 of 12 completions"),
        (first("\"tokens\":", "\"tokens\":7"), "left out 1 of 12 completions"),
        (first("\"gold\":\"", "\"gold\":\"1"), "left out 1 of 12 completions"),
        (first("{", "{{"), "left out 1 of 12 completions"),
    ];
    for (changed, words) in cases {
        fs::write(&path, &changed).unwrap();
        let said = eval(&place, "out", &[], 0);
        assert!(said.contains(words) && said.contains("left out") != words.is_empty(), "{words}: {said}");
        assert_eq!(predictions(&place, "out"), whole, "{words}");
        assert_eq!(scores(&place), results, "{words}");
    }
    // Bytes that are no text are a damaged line as well.
    let mut bytes = text.clone().into_bytes();
    bytes[20] = 0xff;
    fs::write(&path, bytes).unwrap();
    assert!(eval(&place, "out", &[], 0).contains("left out 1 of 12 completions"));
    assert_eq!(predictions(&place, "out"), whole);
}

/// What `results.json` says, but for the clock.
fn scores(place: &Place) -> Value {
    let mut results: Value = json(&place.path("out/results.json"));
    results["sums"]["seconds"] = Value::Null;
    results
}

#[test]
fn a_folder_of_results_that_goes_away_ends_the_scoring() {
    let place = place();
    fs::write(place.path("many.jsonl"), {
        let row = |i: usize| {
            format!("{{\"question\": \"What is {i} + 2?\", \"answer\": \"#### 2\", \"kind\": \"x\"}}\n")
        };
        (0..5000).map(row).collect::<String>()
    })
    .unwrap();
    let catalog =
        CATALOG.replace("DIR", place.path("").to_str().unwrap()).replace("sums.jsonl", "many.jsonl");
    fs::write(place.path("sums.toml"), catalog).unwrap();
    let mut run = forked::start(&command(&place, &model(), "out", &[]));
    let lines =
        || fs::read_to_string(place.path("out/predictions/sums.jsonl")).unwrap_or_default().lines().count();
    while lines() < 3 {
        assert!(!run.is_over(), "the scoring ended");
        std::thread::sleep(Duration::from_millis(2));
    }
    fs::rename(place.path("out"), place.path("moved")).unwrap();
    let output = run.wait();
    check(
        &["eval"],
        &output,
        1,
        &["`out` was removed or moved while being written", "hint: run the command again, and leave it"],
    );
    assert!(!place.path("out").exists());
    fs::rename(place.path("moved"), place.path("out")).unwrap();
    eval(&place, "out", &["--limit", "3"], 2);
}

#[test]
fn a_model_whose_path_is_longer_than_a_name_may_be_is_scored() {
    let place = place();
    let folder = place.path(&"f".repeat(150)).join("m".repeat(150));
    fs::create_dir_all(folder.parent().unwrap()).unwrap();
    copied(&fixture("decoders/llama-biased"), &folder);
    let output = forked::output(&command(&place, &folder, "out", &["--limit", "1"]));
    assert!(output.status.success(), "{}", errors(&output));
    let entries = fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(entries.into_iter().any(|name| name.to_str().unwrap().ends_with(&"m".repeat(150))));
}

#[test]
fn shots_and_drawing_change_prompts_and_answers() {
    let place = place();
    eval(&place, "greedy", &["--limit", "4"], 0);
    eval(&place, "shots", &["--limit", "4", "--shots", "2"], 0);
    eval(&place, "drawn", &["--limit", "4", "--temperature", "1.5", "--top-k", "30", "--seed", "3"], 0);
    eval(&place, "beams", &["--limit", "4", "--beams", "3"], 0);
    let [greedy, shots, drawn, beams] =
        ["greedy", "shots", "drawn", "beams"].map(|out| predictions(&place, out));
    assert_eq!([greedy.len(), shots.len(), drawn.len(), beams.len()], [4; 4]);
    assert!(
        shots[3]["prompt"]
            .as_str()
            .unwrap()
            .starts_with("Question: What is 0 + 2?\nAnswer: It is #### 2\n\n")
    );
    let texts = |rows: &[Value]| rows.iter().map(|row| row["completion"].to_string()).collect::<Vec<_>>();
    assert_ne!(texts(&greedy), texts(&drawn));
    assert_ne!(texts(&greedy), texts(&beams));
}

#[test]
fn the_checkpoint_is_asked_for_penalties_and_the_command_line_overrules_it() {
    let place = place();
    let own = copied(&fixture("decoders/llama-biased"), &place.path("model"));
    edit(&own.join("generation_config.json"), |config| {
        config.insert("repetition_penalty".to_owned(), json!(1.4));
        config.insert("stop_strings".to_owned(), json!(["e"]));
        config.insert("do_sample".to_owned(), json!(true));
        config.insert("top_k".to_owned(), json!(20));
        config.insert("num_beams".to_owned(), json!(2));
    });
    let texts = |out: &str| {
        predictions(&place, out).iter().map(|row| row["completion"].to_string()).collect::<Vec<_>>()
    };
    let result =
        |out: &str| json::<Value>(&place.path(out).join("results.json"))["sums"]["generation"].clone();
    eval(&place, "plain", &[], 0);
    let message = eval_of(&own, &place, "own", &[], 0);
    let lines: Vec<&str> =
        message.lines().filter(|line| line.contains("generation_config.json`: ")).collect();
    assert_eq!(lines.len(), 1, "{message}");
    assert!(
        lines[0].contains("set by the command line and the catalog instead: `do_sample` true"),
        "{message}"
    );
    assert!(lines[0].contains("`num_beams` 2") && lines[0].contains("`top_k` 20"), "{message}");
    assert_ne!(texts("own"), texts("plain"));
    assert!(texts("own").iter().all(|text| !text.contains('e')));
    assert_eq!(
        result("own"),
        json!({"until": ["Question:", "e"], "max_gen_toks": 12, "do_sample": false, "repetition_penalty": 1.4})
    );
    // What the command line decides as the checkpoint does is not told.
    let message =
        eval_of(&own, &place, "beams", &["--beams", "2", "--temperature", "0.5", "--limit", "2"], 0);
    assert!(message.contains("catalog instead: `top_k` 20") && !message.contains("`num_beams`"), "{message}");
    edit(&own.join("generation_config.json"), |config| drop(config.remove("stop_strings")));
    eval_of(&own, &place, "off", &["--repetition-penalty", "1"], 0);
    assert_eq!(texts("off"), texts("plain"));
    eval(&place, "on", &["--repetition-penalty", "1.4"], 0);
    eval_of(&own, &place, "same", &[], 0);
    assert_eq!(texts("on"), texts("same"));
    // Answers without a penalty are not gone on from with one.
    let message = eval_of(&own, &place, "off", &["--repetition-penalty", "1.1"], 2);
    assert!(message.contains("has completions of another model or other settings"), "{message}");
    let message = eval_of(&own, &place, "x", &["--repetition-penalty", "0"], 2);
    assert!(message.contains("expected a number above 0"), "{message}");
    edit(&own.join("generation_config.json"), |config| {
        drop(config.insert("no_repeat_ngram_size".to_owned(), json!("two")))
    });
    let message = eval_of(&own, &place, "x", &[], 1);
    assert!(
        message.contains("`no_repeat_ngram_size`: expected a whole number from 0, found `\"two\"`"),
        "{message}"
    );
}

#[test]
fn sizes_out_of_range_are_refused_at_the_door_with_the_limit_and_its_reason() {
    let place = place();
    for (option, number, words) in [
        (
            "--max-new-tokens",
            "4611686018427387904",
            "a whole number from 1 to 1048576, since no model writes a longer text",
        ),
        ("--max-new-tokens", "18446744073709551615", "from 1 to 1048576"),
        ("--max-new-tokens", "0", "from 1 to 1048576"),
        (
            "--beams",
            "4611686018427387904",
            "a whole number from 1 to 1024, since each takes the memory of a prompt",
        ),
        (
            "--top-k",
            "9223372036854775808",
            "a whole number from 0 to 4294967295, since no vocabulary is larger",
        ),
        (
            "--shots",
            "18446744073709551615",
            "a whole number from 0 to 65536, since every prompt holds them all",
        ),
        (
            "--batch-size",
            "18446744073709551615",
            "a whole number from 1 to 1048576, since they are in memory at once",
        ),
        (
            "--max-length",
            "18446744073709551615",
            "a whole number from 1 to 16777216, since no model has more positions",
        ),
    ] {
        let message = eval(&place, "x", &[option, number], 2);
        assert!(
            message.contains(&format!("invalid value '{number}' for '{option} <N>': expected ")),
            "{message}"
        );
        assert!(message.contains(words), "{message}");
    }
    // More than the vocabulary is all of it.
    eval(&place, "k", &["--temperature", "1", "--top-k", "4294967295", "--limit", "2"], 0);
}

#[test]
fn numbers_of_a_catalog_are_in_the_same_ranges() {
    let place = place();
    let catalog = fs::read_to_string(place.path("sums.toml")).unwrap();
    for (key, value, words) in [
        (
            "max_new_tokens",
            "0",
            "expected a whole number from 1 to 1048576, since no model writes a longer text",
        ),
        ("max_new_tokens", "-3", "expected a whole number from 1"),
        ("max_new_tokens", "9223372036854775807", "found `9223372036854775807`"),
        ("beams", "0", "expected a whole number from 1 to 1024"),
        ("beams", "9223372036854775807", "expected a whole number from 1 to 1024"),
        ("top_k", "-1", "expected a whole number from 0 to 4294967295"),
        ("top_p", "0", "expected a number above 0 and up to 1"),
        ("temperature", "-1", "expected a number of at least 0"),
        ("temperature", "nan", "expected a number of at least 0"),
        ("temperature", "inf", "expected a number of at least 0"),
    ] {
        let others = catalog.lines().filter(|line| !line.starts_with(key)).collect::<Vec<_>>().join("\n");
        fs::write(place.path("sums.toml"), format!("{others}\n{key} = {value}\n")).unwrap();
        let message = eval(&place, "x", &[], 2);
        assert!(
            message.contains(&format!("`sums.{key}`: ")) && message.contains(words),
            "{key} {value}: {message}"
        );
    }
}

#[test]
fn what_memory_cannot_hold_is_refused_before_it_is_taken() {
    let place = place();
    let message = eval(&place, "x", &["--max-new-tokens", "1048576", "--beams", "1024", "--limit", "1"], 1);
    assert!(message.contains("new ones and 1024 beams takes "), "{message}");
    assert!(
        message.contains(" GB of keys and values, and ")
            && message.contains("hint: lower `--max-new-tokens`"),
        "{message}"
    );
}

#[test]
fn memory_is_taken_for_what_is_written_and_not_for_what_could_be() {
    let place = place();
    let model = copied(&model(), &place.path("model"));
    let ends: Vec<u32> = (0..101).collect();
    edit(&model.join("generation_config.json"), |settings| settings["eos_token_id"] = json!(ends));
    let taken = |most: &str, out: &str| {
        let run = forked::start(&command(&place, &model, out, &["--max-new-tokens", most]));
        let (output, taken) = run.within(Duration::from_secs(60));
        assert!(output.status.success(), "{}", errors(&output));
        taken.bytes
    };
    let (few, many) = (taken("8", "few"), taken("1048576", "many"));
    assert!(many < few + (50 << 20), "{few} and {many}");
}

#[test]
fn answers_under_another_config_are_not_gone_on_with() {
    let place = place();
    let model = copied(&model(), &place.path("model"));
    eval_of(&model, &place, "out", &[], 0);
    edit(&model.join("config.json"), |config| config["rms_norm_eps"] = json!(0.5));
    let message = eval_of(&model, &place, "out", &[], 2);
    assert!(message.contains("has completions of another model or other settings"), "{message}");
}

/// Runs `eval --completions`.
fn rescored(place: &Place, file: &str, out: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(["eval", "--completions", file, "--task", "sums", "--out", out]).args(more);
    command.arg("--datasets").arg(place.path("sums.toml")).args(["--device", "cpu", "--threads", "1"]);
    command.env("LORAXS_CACHE", place.path("cache")).env("HF_HUB_OFFLINE", "1").current_dir(place.path(""));
    forked::output(&command)
}

/// Writes a file of JSON lines.
fn write_lines(place: &Place, file: &str, rows: &[Value]) {
    fs::write(place.path(file), rows.iter().map(|row| format!("{row}\n")).collect::<String>()).unwrap();
}

/// Results without the settings, times and tokens of a model.
fn results(place: &Place, out: &str) -> Value {
    let mut results: Value = json(&place.path(out).join("results.json"));
    let sums = results["sums"].as_object_mut().unwrap();
    ["generation", "seconds", "truncation"].iter().for_each(|key| drop(sums.remove(*key)));
    results
}

#[test]
fn answers_made_elsewhere_are_scored_as_our_own() {
    let place = place();
    eval(&place, "out", &[], 0);
    let own = predictions(&place, "out");
    let keyed = |key: &str, answer: &str| {
        own.iter().rev().map(|row| json!({key: row[key], "completion": row[answer]})).collect::<Vec<_>>()
    };
    write_lines(&place, "index.jsonl", &keyed("index", "completion"));
    write_lines(&place, "prompt.jsonl", &keyed("prompt", "completion"));
    fs::write(place.path("list.json"), json!(keyed("index", "completion")).to_string()).unwrap();
    let layout = place.path("out").read_dir().unwrap().map(|e| e.unwrap().path());
    let folder = layout.into_iter().find(|path| path.is_dir() && !path.ends_with("predictions")).unwrap();
    let samples = named(&folder, "samples_sums_");
    let own_file = "out/predictions/sums.jsonl";
    let files = ["index.jsonl", "prompt.jsonl", "list.json", own_file, samples.to_str().unwrap()];
    let told = |rows: &[Value]| {
        rows.iter().map(|row| json!([row["completion"], row["verdicts"]])).collect::<Vec<_>>()
    };
    for (at, file) in files.into_iter().enumerate() {
        let out = format!("again-{at}");
        let output = rescored(&place, file, &out, &[]);
        assert!(output.status.success(), "{file}: {}", errors(&output));
        assert_eq!(results(&place, &out), results(&place, "out"), "{file}");
        assert_eq!(told(&predictions(&place, &out)), told(&own), "{file}");
    }
    // Whoever answers right is right; a part of the answers, where the limit makes it whole; and the limit of a whole file.
    let mut right = keyed("index", "gold");
    write_lines(&place, "right.jsonl", &right);
    right.reverse();
    write_lines(&place, "part.jsonl", &right[..5]);
    for (file, limit, count) in [("right.jsonl", "0", 12), ("part.jsonl", "5", 5), ("right.jsonl", "3", 3)] {
        let output = rescored(&place, file, &format!("right-{limit}"), &["--limit", limit]);
        assert!(output.status.success(), "{file}: {}", errors(&output));
        let found = results(&place, &format!("right-{limit}"));
        assert_eq!(found["sums"]["metrics"]["gsm8k/strict"]["value"], 1.0);
        assert_eq!(found["sums"]["count"], count);
    }
}

#[test]
fn answers_that_fit_no_data_set_are_told() {
    let place = place();
    let tell = |more: &[&str], code: i32, words: &[&str]| {
        check(more, &rescored(&place, "answers.jsonl", "none", more), code, words);
        assert!(!place.path("none/results.json").exists());
    };
    let row = |index: usize| json!({"index": index, "completion": "#### 2"});
    let whole: Vec<Value> = (0..12).map(row).collect();
    write_lines(&place, "answers.jsonl", &whole[..7]);
    let words = "5 of 12 prompts of `sums` test have no completion; the first is row 7\nhint: `--limit 7`";
    tell(&[], 1, &[words]);
    tell(&["--limit", "8"], 1, &["1 of 8 prompts"]);
    write_lines(&place, "answers.jsonl", &whole[1..]);
    tell(&[], 1, &["1 of 12 prompts of `sums` test have no completion; the first is row 0", "`--limit N`"]);
    for (extra, words) in [
        (row(12), "1 of 13 rows answer no prompt of `sums` test; the first is row 13"),
        (json!({"prompt": "What?", "completion": ""}), "1 of 13 rows answer no prompt of `sums` test"),
        (row(3), "1 of 13 rows are a second answer to a prompt of `sums` test; the first is row 13"),
        (
            json!({"index": 1, "completion": 7}),
            "cannot be used; the first is line 13: its `completion` is no text",
        ),
        (json!({"completion": "7"}), "it has no `index` and no `prompt`"),
        (json!({"doc_id": 1, "resps": [["a", "b"]]}), "`resps` holds 2 answers, expected one"),
        (json!({"index": 1}), "it has no `completion`"),
    ] {
        write_lines(&place, "answers.jsonl", &[&whole[..], &[extra]].concat());
        tell(&[], 1, &[words]);
    }
    tell(&["--model", "m"], 2, &["cannot be used with"]);
    tell(&["--task", "other"], 2, &["the answers to one `--task`"]);
    fs::remove_file(place.path("answers.jsonl")).unwrap();
    tell(&[], 1, &["answers.jsonl"]);
    // A folder with a model's completions is not written over.
    eval(&place, "model", &[], 0);
    let output = rescored(&place, "model/predictions/sums.jsonl", "model", &[]);
    check(&[], &output, 2, &["has other completions", "--out"]);
}
