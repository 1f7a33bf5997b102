//! `loraxs eval` on prompts: predictions, results, resuming, and the layout of lm-evaluation-harness.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

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

fn eval(place: &Place, out: &str, more: &[&str], code: i32) -> String {
    let model = fixture("decoders/llama-biased");
    let mut args = vec!["eval", "--model", model.to_str().unwrap(), "--task", "sums", "--out", out];
    args.extend(more);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_loraxs"));
    command.args(&args).arg("--datasets").arg(place.path("sums.toml")).args([
        "--device",
        "cpu",
        "--threads",
        "1",
    ]);
    command.env("LORAXS_CACHE", place.path("cache")).env("HF_HUB_OFFLINE", "1").current_dir(place.path(""));
    let output = forked::output(&command);
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
    assert_eq!(json_lines::<Value>(&named(&folder, "samples_sums_")).len(), 24);
}

#[test]
fn an_interrupted_scoring_goes_on_from_its_predictions() {
    let place = place();
    eval(&place, "whole", &[], 0);
    eval(&place, "cut", &[], 0);
    let path = place.path("cut/predictions/sums.jsonl");
    let text = fs::read_to_string(&path).unwrap();
    let mut lines: Vec<String> = text.lines().take(5).map(str::to_owned).collect();
    // What is there already is kept as it is, which shows that it is not answered again.
    lines[1] = lines[1].replace("\"tokens\":", "\"tokens\":1");
    fs::write(&path, format!("{}\n{}", lines.join("\n"), &text.lines().nth(5).unwrap()[..40])).unwrap();
    eval(&place, "cut", &["--batch-size", "3"], 0);
    let (cut, whole) = (predictions(&place, "cut"), predictions(&place, "whole"));
    assert_eq!(cut.len(), 12);
    assert_ne!(cut[1], whole[1]);
    assert_eq!((&cut[0], &cut[2..]), (&whole[0], &whole[2..]));
    let message = eval(&place, "cut", &["--max-new-tokens", "13"], 2);
    assert!(message.contains("holds answers of another model or of other settings"), "{message}");
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
