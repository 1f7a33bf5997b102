//! `loraxs predict`: answers equal to those of `eval` and of Transformers' pipelines, as they come, and why there is none.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Output, Stdio};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::{Bench, check, copied, text};
use crate::support::{Place, encoders, errors, fixture, json, json_lines, real, room};

/// A checkpoint of the fixtures.
fn encoder(name: &str) -> String {
    encoders().join(name).to_str().unwrap().to_owned()
}

/// The lines of JSON that a command prints.
fn lines(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Starts the command with pipes.
fn piped(command: &mut Command) -> (Child, ChildStdin, BufReader<std::process::ChildStdout>) {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    (child, input, output)
}

/// What the command answers to a text on standard input.
pub fn fed(command: &mut Command, input: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let bytes = input.as_bytes().to_vec();
    let writer = std::thread::spawn(move || {
        let _ = pipe.write_all(&bytes);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// One row of `predictions.json`.
#[derive(Deserialize)]
struct Classified {
    text: String,
    text_pair: Option<String>,
    answer: Vec<Scored>,
}

#[derive(Deserialize)]
struct Scored {
    label: String,
    score: f64,
}

#[test]
fn answers_are_those_of_the_pipeline_of_transformers() {
    let place = Place::new();
    let expected: Value = json(&fixture("predictions.json"));
    for (model, rows) in expected["classes"].as_object().unwrap() {
        let rows: Vec<Classified> = serde_json::from_value(rows.clone()).unwrap();
        assert!(rows.len() > 10, "{model}");
        for is_pair in [true, false] {
            let rows: Vec<&Classified> =
                rows.iter().filter(|row| row.text_pair.is_some() == is_pair).collect();
            let line =
                |row: &&Classified| format!("{}\n", json!({"text": row.text, "text_pair": row.text_pair}));
            let columns = if is_pair { "text,text_pair" } else { "text" };
            fs::write(place.path("rows.jsonl"), rows.iter().map(line).collect::<String>()).unwrap();
            let model = encoder(model);
            let args = ["predict", "--model", &model, "--input", "rows.jsonl", "--columns", columns];
            let answers = lines(&place.run(&args, 0));
            assert_eq!(answers.len(), rows.len());
            for (row, answer) in rows.iter().zip(&answers) {
                assert_eq!(
                    (&answer["text"], &answer["text_pair"]),
                    (&json!(row.text), &json!(row.text_pair))
                );
                if let [Scored { score, .. }] = row.answer[..] {
                    assert!((answer["prediction"].as_f64().unwrap() - score).abs() < room(1e-5), "{answer}");
                    continue;
                }
                assert_eq!(answer["prediction"], row.answer[0].label);
                for Scored { label, score } in &row.answer {
                    let found = answer["probabilities"][label].as_f64().unwrap();
                    assert!((found - score).abs() < room(1e-6), "{answer}: {label} {score}");
                }
            }
        }
    }
}

/// The largest difference between the probabilities of answers and of predictions by `eval`; labels must be the same.
fn distance_to_eval(answers: &[Value], predictions: &Path, labels: &[&str]) -> f64 {
    let predictions: Vec<Value> = json_lines(predictions);
    assert_eq!(answers.len(), predictions.len());
    let mut largest = 0.0_f64;
    for (answer, prediction) in answers.iter().zip(&predictions) {
        assert_eq!(answer["prediction"], labels[prediction["prediction"].as_u64().unwrap() as usize]);
        let powers: Vec<f64> =
            prediction["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap().exp()).collect();
        for (label, power) in labels.iter().zip(&powers) {
            let found = answer["probabilities"][label].as_f64().unwrap();
            largest = largest.max((found - power / powers.iter().sum::<f64>()).abs());
        }
    }
    largest
}

#[test]
fn a_run_answers_as_eval_scores_in_every_format() {
    let bench = Bench::new();
    bench.0.run(&["train", "--recipe", "recipe.toml", "--out", "run"], 0);
    bench.0.run(&["eval", "--run", "run", "--out", "scored"], 0);
    let predictions = bench.path("scored/predictions/tiny/pairs.jsonl");
    let labels = ["same", "other", "reversed"];
    let rows = fs::read_to_string(encoders().join("data/validation.jsonl")).unwrap();
    let told: Vec<Value> = rows.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let list = format!("[{}]", rows.trim_end().replace('\n', ","));
    let table = |delimiter: u8| {
        let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
        writer.write_record(["sentence1", "sentence2"]).unwrap();
        told.iter().for_each(|row| {
            writer.write_record(["sentence1", "sentence2"].map(|name| row[name].as_str().unwrap())).unwrap();
        });
        String::from_utf8(writer.into_inner().unwrap()).unwrap()
    };
    for (name, content) in [("a.jsonl", rows.clone()), ("a.json", list), ("a.csv", table(b','))] {
        fs::write(bench.path(name), content).unwrap();
        let output = bench.0.run(&["predict", "--run", "run", "--input", name], 0);
        let answers = lines(&output);
        assert!(distance_to_eval(&answers, &predictions, &labels) < room(1e-6), "{name}");
        for (answer, row) in answers.iter().zip(&told) {
            assert_eq!((&answer["sentence1"], &answer["sentence2"]), (&row["sentence1"], &row["sentence2"]));
            // The label is an input column as any other.
            assert!(name == "a.csv" || answer["label"] == row["label"], "{answer}");
        }
    }
    let streamed = fed(&mut bench.0.command(&["predict", "--run", "run"]), &rows);
    assert!(distance_to_eval(&lines(&streamed), &predictions, &labels) < room(1e-6));
    // Texts of the command line, and other columns than the data set's.
    let args = ["predict", "--run", "run", "--text", "rain", "--text-pair", "snow"];
    let one = lines(&bench.0.run(&args, 0));
    assert_eq!(one[0]["prediction"], lines(&streamed)[0]["prediction"]);
    let other = rows.replace("sentence1", "a").replace("sentence2", "b");
    fs::write(bench.path("other.jsonl"), other).unwrap();
    let args = ["predict", "--run", "run", "--input", "other.jsonl", "--columns", "a,b", "--out", "o.csv"];
    assert_eq!(text(&bench.0.run(&args, 0)), "wrote o.csv: 13 rows\n");
    let mut reader = csv::Reader::from_path(bench.path("o.csv")).unwrap();
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    let names = ["a", "b", "label", "score", "prediction", "p_same", "p_other", "p_reversed", "error"];
    assert_eq!(header, names);
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    for (record, answer) in records.iter().zip(lines(&streamed)) {
        assert_eq!(
            (&record[0], &record[4]),
            (answer["sentence1"].as_str().unwrap(), answer["prediction"].as_str().unwrap())
        );
        let p: f64 = record[5].parse().unwrap();
        assert!((p - answer["probabilities"]["same"].as_f64().unwrap()).abs() < room(1e-6));
    }
    let args = ["predict", "--run", "run", "--input", "a.jsonl", "--format", "tsv"];
    let table = text(&bench.0.run(&args, 0));
    assert_eq!(table.lines().next(), Some(names.join("\t").replace("a\tb", "sentence1\tsentence2").as_str()));
    assert!(table.lines().all(|line| line.matches('\t').count() == 8));
}

#[test]
fn a_number_is_answered_by_a_regression_of_another_names_columns() {
    let bench = Bench::new();
    bench.0.run(
        &["eval", "--model", &encoder("roberta-regression"), "--task", "tiny/score", "--out", "scored"],
        0,
    );
    let predictions: Vec<Value> = json_lines(&bench.path("scored/predictions/tiny/score.jsonl"));
    let input = encoders().join("data/validation.jsonl");
    let args = ["predict", "--model", &encoder("roberta-regression"), "--input", input.to_str().unwrap()];
    let answers = lines(&bench.0.run(&args, 0));
    for (answer, prediction) in answers.iter().zip(&predictions) {
        let difference = answer["prediction"].as_f64().unwrap() - prediction["prediction"].as_f64().unwrap();
        assert!(difference.abs() < room(1e-6), "{answer}");
        assert!(answer.get("probabilities").is_none());
    }
}

#[test]
fn a_line_is_answered_before_the_next_one_is_written() {
    let place = Place::new();
    let model = encoder("roberta-gelu");
    let (mut child, mut input, mut output) = piped(&mut place.command(&["predict", "--model", &model]));
    for words in ["rain", "{ snow", " ice ", "r\u{e4}in\r"] {
        // Nothing follows the line, not even the end.
        input.write_all(format!("{words}\n").as_bytes()).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(answer["text"], words.trim_end_matches('\r'));
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}

#[test]
fn whoever_stops_reading_ends_it_quietly_even_while_the_input_goes_on() {
    let place = Place::new();
    let (mut child, mut input, output) =
        piped(&mut place.command(&["predict", "--model", &encoder("roberta-gelu")]));
    let mut lines = output.lines();
    input.write_all(b"rain\n").unwrap();
    assert!(lines.next().unwrap().unwrap().starts_with("{\"text\":\"rain\""));
    drop(lines);
    input.write_all(b"snow\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut told = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut told).unwrap();
    assert_eq!(told, "");
}

#[test]
fn a_signal_ends_it_after_whole_lines_and_a_full_disk_is_told() {
    let place = Place::new();
    let model = encoder("roberta-gelu");
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (mut child, mut input, mut output) = piped(&mut place.command(&["predict", "--model", &model]));
        input.write_all(b"rain\nsnow\n").unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        // SAFETY: the child was not waited for, so its number is its own.
        unsafe { libc::kill(child.id() as i32, signal) };
        let rest: Vec<String> = output.lines().map(Result::unwrap).collect();
        assert_eq!(child.wait().unwrap().code(), Some(130));
        for line in std::iter::once(&line).chain(&rest) {
            assert!(serde_json::from_str::<Value>(line).unwrap()["prediction"].is_string(), "{line}");
        }
        drop(input);
    }
    let args = ["predict", "--model", &model, "--text", "rain"];
    let full = place.command(&args).stdout(File::create("/dev/full").unwrap()).output().unwrap();
    check(&args, &full, 1, &["cannot write the answers: No space left", "hint: free some disk space"]);
    // A file that may not grow is as one on a full disk; nothing is left of it.
    let many = format!("{}\n", "rain ".repeat(6)).repeat(5_000);
    fs::write(place.path("many.txt"), many).unwrap();
    let command = place.command(&["predict", "--model", &model, "--input", "many.txt", "--out", "o.jsonl"]);
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -f 100; exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    limited
        .envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))))
        .current_dir(place.path(""));
    check(
        &["--out o.jsonl"],
        &limited.output().unwrap(),
        1,
        &["cannot write `o.jsonl`", "hint: free some disk"],
    );
    let left: Vec<String> = fs::read_dir(place.path(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!left.iter().any(|name| name.contains("o.jsonl") || name.contains("partial")), "{left:?}");
}

#[test]
fn rows_that_cannot_be_answered_say_why_and_the_exit_code_does_too() {
    let place = Place::new();
    let model = encoder("roberta-gelu");
    let input = "{\"text\": \"rain\", \"id\": 12345678901234567890123}\n{\"text\": \n{\"text\": null}\n[1]\n\
                 {\"other\": 1}\n{\"text\": \"snow\", \"prediction\": 3}\n{\"text\": 7}\n";
    let output = fed(&mut place.command(&["predict", "--model", &model]), input);
    assert_eq!(output.status.code(), Some(1));
    let told = "error: 4 of 7 rows have no answer; the first is line 2: not valid JSON: ";
    assert!(errors(&output).contains(told), "{}", errors(&output));
    let answers = lines(&output);
    let told: Vec<&str> = answers.iter().map(|answer| answer["error"].as_str().unwrap_or_default()).collect();
    assert_eq!(told[0], "");
    assert_eq!(answers[0]["id"], "12345678901234567890123");
    assert!(told[1].starts_with("not valid JSON"), "{told:?}");
    assert_eq!(told[2], "column `text` is empty");
    assert!(told[3].contains("expected an object of columns, found a list"), "{told:?}");
    assert_eq!(told[4], "column `text` is empty");
    assert_eq!((told[5], &answers[5]["input_prediction"]), ("", &json!(3)));
    assert!(
        answers[5]["prediction"].is_string() && errors(&output).contains("written as `input_prediction`")
    );
    assert_eq!((told[6], &answers[6]["text"]), ("", &json!(7)));
    assert_eq!((&answers[4]["other"], &answers[4]["line"]), (&json!(1), &json!(5)));
    // In a flat format, an error has a column of its own.
    fs::write(place.path("rows.jsonl"), input).unwrap();
    let args = ["predict", "--model", &model, "--input", "rows.jsonl", "--out", "o.csv"];
    let output = place.run(&args, 1);
    assert!(
        errors(&output).contains("line 5 has a column `other` that the first row lacks"),
        "{}",
        errors(&output)
    );
    let mut reader = csv::Reader::from_path(place.path("o.csv")).unwrap();
    let records: Vec<csv::StringRecord> = reader.records().map(Result::unwrap).collect();
    assert_eq!((records.len(), records[2].iter().next_back()), (7, Some("line 3: column `text` is empty")));
    // Long texts are cut, and that is told.
    let long = format!("{}\n", "rain ".repeat(100));
    let output = fed(&mut place.command(&["predict", "--model", &model, "--max-length", "12"]), &long);
    assert!(errors(&output).contains("1 of 1 rows have more than 12 tokens"), "{}", errors(&output));
    // No row is no failure where rows come by a pipe.
    let none = fed(&mut place.command(&["predict", "--model", &model]), "");
    assert_eq!((none.status.code(), none.stdout.len()), (Some(0), 0));
}

/// Wrong options for a classifier, the exit code, and what the message holds.
const WRONG: [(&[&str], i32, &[&str]); 18] = [
    (&["--input", "none.csv"], 1, &["cannot read `none.csv`", "No such file"]),
    (&["--input", "rows.dat"], 1, &["cannot tell the format of `rows.dat`", "`.txt`"]),
    (&["--input", "empty.jsonl"], 1, &["`empty.jsonl` holds no row"]),
    (
        &["--input", "two.csv"],
        2,
        &[
            "cannot tell which column of `two.csv` is to be read",
            "`--columns`, or the two of a pair; columns: `title`, `body`",
        ],
    ),
    (
        &["--input", "two.csv", "--columns", "titel"],
        2,
        &["`two.csv` has no column `titel`", "did you mean `title`? columns: `body`, `title`"],
    ),
    (&["--input", "semi.csv", "--columns", "title"], 2, &["no column `title`", "separated by commas"]),
    (&["--input", "two.csv", "--task", "tiny/pairs"], 2, &["no column `sentence1`", "`--columns`"]),
    (
        &["--input", "lines.txt", "--task", "tiny/pairs"],
        2,
        &[
            "plain lines, but the columns `sentence1`, `sentence2`",
            "`{\"sentence1\":\"…\",\"sentence2\":\"…\"}`",
        ],
    ),
    (&["--input", "lines.txt", "--text", "a"], 2, &["--input", "cannot be used with"]),
    (&["--text-pair", "a"], 2, &["--text"]),
    (&["--text", "a", "--text", "b", "--text-pair", "c"], 2, &["2 `--text`, but 1 `--text-pair`"]),
    (
        &["--text", "a", "--task", "tiny/pairs"],
        2,
        &["reads pairs, `sentence1`, `sentence2`", "`--text-pair`"],
    ),
    (
        &["--text", "a", "--text-pair", "b", "--task", "tiny/sentences"],
        2,
        &["reads one text, `sentence1`", "leave out"],
    ),
    (&["--text", "a", "--columns", "a,b,c"], 2, &["expected one or two `--columns`, found 3"]),
    (&["--text", "a", "--task", "tiny/score"], 2, &["has 1 classes, but the model's head has 3 outputs"]),
    (&["--text", "a", "--task", "tiny/pears"], 2, &["tiny/pears", "did you mean `tiny/pairs`?"]),
    (&["--text", "a", "--out", "folder"], 2, &["`folder` is not a file that can be replaced"]),
    (&["--text", "a", "--max-length", "1000"], 2, &["`data.max_length` is 1000", "38"]),
];

#[test]
fn wrong_inputs_get_one_clear_message_each() {
    let bench = Bench::new();
    let model = encoder("roberta-gelu");
    let with = |more: &[&str]| -> Vec<String> {
        ["predict", "--model", &model].iter().chain(more).map(|&arg| arg.to_owned()).collect()
    };
    fs::write(bench.path("two.csv"), "title,body\na,b\n").unwrap();
    fs::write(bench.path("semi.csv"), "title;body\na;b\n").unwrap();
    fs::write(bench.path("lines.txt"), "rain\n").unwrap();
    fs::write(bench.path("empty.jsonl"), "").unwrap();
    fs::write(bench.path("rows.dat"), "x").unwrap();
    fs::create_dir(bench.path("folder")).unwrap();
    for (more, code, words) in WRONG {
        let args = with(more);
        bench.refuses(&args.iter().map(String::as_str).collect::<Vec<_>>(), code, words);
    }
}

#[test]
fn wrong_subjects_and_streams_get_one_clear_message_each() {
    let bench = Bench::new();
    let model = encoder("roberta-gelu");
    fs::create_dir(bench.path("folder")).unwrap();
    bench.refuses(&["predict", "--text", "a"], 2, &["--run"]);
    bench.refuses(&["predict", "--run", "folder", "--text", "a"], 1, &["`folder` is not a run"]);
    for (input, words) in [
        (
            "[{\"text\": \"a\"}]",
            &["`standard input` holds a list of JSON", "hint: save it to a file named `.json`"][..],
        ),
        ("{\"titel\": 1}\n", &["cannot tell which column of `standard input`", "columns: `titel`"]),
    ] {
        let output = fed(&mut bench.0.command(&["predict", "--model", &model]), input);
        check(&[input], &output, if input.starts_with('[') { 1 } else { 2 }, words);
    }
}

#[test]
fn memory_does_not_grow_with_the_number_of_lines() {
    let place = Place::new();
    let peak = |lines: usize| {
        let mut child = place
            .command(&["predict", "--model", &encoder("roberta-gelu")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (mut pipe, status) = (child.stdin.take().unwrap(), format!("/proc/{}/status", child.id()));
        let writer = std::thread::spawn(move || {
            let line = "rain and snow, and whatever else the sky may hold\n".repeat(100);
            (0..lines / 100).for_each(|_| pipe.write_all(line.as_bytes()).unwrap());
        });
        let (mut answered, mut peak) = (0, 0);
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            answered += 1;
            assert!(line.unwrap().ends_with("}}"));
            if answered % 1000 == 0 {
                let text = fs::read_to_string(&status).unwrap_or_default();
                let kib =
                    text.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
                peak = peak.max(kib.map_or(0, |kib| kib.parse::<usize>().unwrap()));
            }
        }
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(answered, lines);
        peak
    };
    let (few, many) = (peak(4_000), peak(40_000));
    assert!(many < few + (12 << 10), "{few} and {many} KiB");
}

/// With `LORAXS_TEST_DATA`: a thousand sentences of SST-2 through MiniLM, whose head is drawn.
#[test]
fn a_thousand_real_sentences_are_answered_as_eval_scores_them() {
    let (Some(data), Some(model)) = (real("glue/sst2"), real("models/minilm-l6")) else { return };
    let place = Place::with_own(&format!(
        "[sst2]\ntask = \"classification\"\ndir = {data:?}\nfiles = {{ train = \"train.jsonl\" }}\n\
         text = [\"sentence\"]\nlabel = \"label\"\nlabels = [\"negative\", \"positive\"]\n"
    ));
    let recipe = format!(
        "[model]\nname = {model:?}\n[adapter]\nmethod = \"head\"\n[data]\ndataset = \"sst2\"\nlimit = 16\n\
         [train]\nmax_steps = 1\nbatch_size = 16\n[eval]\nevery = \"never\"\n"
    );
    place.train(&recipe, "run", &[]);
    place.run(&["eval", "--run", "run", "--split", "train", "--limit", "1000", "--out", "scored"], 0);
    let rows = fs::read_to_string(data.join("train.jsonl")).unwrap();
    let rows: String = rows.split_inclusive('\n').take(1000).collect();
    fs::write(place.path("rows.jsonl"), rows).unwrap();
    let answers = lines(&place.run(&["predict", "--run", "run", "--input", "rows.jsonl"], 0));
    let predictions = place.path("scored/predictions/sst2.jsonl");
    let distance = distance_to_eval(&answers, &predictions, &["negative", "positive"]);
    assert!(distance < room(1e-6), "{distance}");
}

/// One text of `predictions.json`, and how it is continued: as it is, and as a user's message.
#[derive(Deserialize)]
struct Continued {
    text: String,
    completion: String,
    answer: String,
}

/// The texts that a decoder of the fixtures continues.
fn continued(model: &str) -> Vec<Continued> {
    let expected: Value = json(&fixture("predictions.json"));
    serde_json::from_value(expected["completions"][model].clone()).unwrap()
}

/// A copy of a decoder of the fixtures with a chat template.
fn with_template(place: &Place, model: &str) -> String {
    let copy = copied(&fixture("decoders").join(model), &place.path("chat-model"));
    let expected: Value = json(&fixture("predictions.json"));
    fs::write(copy.join("chat_template.jinja"), expected["template"].as_str().unwrap()).unwrap();
    copy.to_str().unwrap().to_owned()
}

#[test]
fn completions_are_those_of_transformers_as_texts_and_in_a_chat() {
    let place = Place::of_decoders();
    for model in ["llama-biased", "qwen3-normed"] {
        let rows = continued(model);
        assert!(rows.len() > 4);
        let line = |row: &Continued| format!("{}\n", json!({"prompt": row.text, "id": row.text.len()}));
        fs::write(place.path("rows.jsonl"), rows.iter().map(line).collect::<String>()).unwrap();
        let folder = fixture("decoders").join(model);
        let chat = with_template(&place, model);
        let cases: [(&str, &[&str], bool); 4] = [
            (folder.to_str().unwrap(), &[], false),
            (&chat, &[], true),
            (&chat, &["--raw"], false),
            (&chat, &["--batch-size", "2"], true),
        ];
        for (folder, more, is_chat) in cases {
            let args = ["predict", "--model", folder, "--input", "rows.jsonl", "--max-new-tokens", "12"];
            let answers = lines(&place.run(&[&args[..], more].concat(), 0));
            assert_eq!(answers.len(), rows.len());
            for (row, answer) in rows.iter().zip(&answers) {
                let expected = if is_chat { &row.answer } else { &row.completion };
                assert_eq!(answer["completion"], *expected, "{model} {more:?} {answer}");
                assert_eq!((&answer["id"], &answer["prompt"]), (&json!(row.text.len()), &json!(row.text)));
                assert!(["end", "length"].contains(&answer["finish"].as_str().unwrap()));
            }
        }
        // Conversations, whose answers at the end are left out, and plain lines.
        let message = |row: &Continued| {
            let turns =
                json!([{"role": "user", "content": row.text}, {"role": "assistant", "content": "No."}]);
            format!("{}\n", json!({"messages": turns}))
        };
        let conversations: String = rows.iter().map(message).collect();
        let texts: String = rows.iter().map(|row| format!("{}\n", row.text)).collect();
        for input in [conversations, texts] {
            let args = ["predict", "--model", &chat, "--max-new-tokens", "12"];
            let answers = lines(&fed(&mut place.command(&args), &input));
            let told: Vec<&str> =
                answers.iter().map(|answer| answer["completion"].as_str().unwrap()).collect();
            assert_eq!(told, rows.iter().map(|row| &row.answer[..]).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_run_asks_by_its_own_template_and_sampling_is_that_of_eval() {
    let place = Place::with_own(
        "[sums]\ntask = \"generation\"\nfiles = { train = \"sums.jsonl\", test = \"sums.jsonl\" }\n\
         prompt = \"Question: {question}\\nAnswer:\"\nanswer = \"{answer}\"\nscorers = [\"gsm8k/flexible\"]\n\
         max_new_tokens = 9\nstop = [\"y\"]\n\
         [told]\ntask = \"instruction\"\nfiles = { train = \"sums.jsonl\", validation = \"sums.jsonl\" }\n\
         prompt = \"Question: {question}\\nAnswer:\"\nresponse = \" {answer}\"\n",
    );
    let row =
        |i: usize| format!("{{\"question\": \"What is {i} + {}?\", \"answer\": \"{}\"}}\n", i * i, i + i * i);
    fs::write(place.path("sums.jsonl"), (0..40).map(row).collect::<String>()).unwrap();
    let model = fixture("decoders/llama-biased");
    let recipe = format!(
        "[model]\nname = {model:?}\n[adapter]\nrank = 2\nalpha = 2\n[data]\ndataset = \"told\"\nmax_length = 48\n\
         [train]\nmax_steps = 2\nbatch_size = 4\nlearning_rate = 0.05\n[eval]\nevery = \"never\"\n"
    );
    place.train(&recipe, "run", &[]);
    let sampled = ["--temperature", "0.9", "--seed", "7", "--top-k", "20"];
    for (more, name) in [
        (&[][..], "greedy"),
        (&sampled, "sampled"),
        (&["--shots", "2"], "shots"),
        (&["--beams", "3"], "beams"),
    ] {
        let eval = ["eval", "--run", "run", "--task", "sums", "--out", name];
        place.run(&[&eval[..], more].concat(), 0);
        let records: Vec<Value> = json_lines(&place.path(&format!("{name}/predictions/sums.jsonl")));
        let input = ["predict", "--run", "run", "--task", "sums", "--input", "sums.jsonl"];
        let answers = lines(&place.run(&[&input[..], more].concat(), 0));
        assert_eq!(answers.len(), 40);
        // Of the rows that are shots, `eval` leaves each out of its own.
        for (record, answer) in records.iter().zip(&answers).skip(if name == "shots" { 3 } else { 0 }) {
            assert_eq!(
                (&answer["completion"], &answer["finish"]),
                (&record["completion"], &record["finish"]),
                "{name}"
            );
            assert_eq!(answer["answer"].as_str(), record["gold"].as_str());
        }
    }
    // The run's own data set asks the same, but knows no stop text; a text is what its one column holds.
    let args = ["predict", "--run", "run", "--max-new-tokens", "9"];
    let own = lines(&place.run(&[&args[..], &["--input", "sums.jsonl"]].concat(), 0));
    let text = lines(
        &place.run(&[&args[..], &["--text", "What is 1 + 1?", "--text", "What is 2 + 4?"]].concat(), 0),
    );
    assert_eq!(
        [&text[0]["completion"], &text[1]["completion"]],
        [&own[1]["completion"], &own[2]["completion"]]
    );
    let raw = ["--raw", "--text", "Question: What is 1 + 1?\nAnswer:"];
    assert_eq!(lines(&place.run(&[&args[..], &raw].concat(), 0))[0]["completion"], own[1]["completion"]);
    // CSV holds what breaks lines.
    place.run(&[&args[..], &["--input", "sums.jsonl", "--out", "o.csv"]].concat(), 0);
    let mut reader = csv::Reader::from_path(place.path("o.csv")).unwrap();
    let cells: Vec<String> = reader.records().map(|record| record.unwrap()[2].to_owned()).collect();
    assert_eq!(cells, own.iter().map(|answer| answer["completion"].as_str().unwrap()).collect::<Vec<_>>());
}

#[test]
fn a_prompt_is_answered_before_the_next_one_is_written_and_order_is_kept() {
    let place = Place::of_decoders();
    let model = fixture("decoders/llama-biased");
    let args = ["predict", "--model", model.to_str().unwrap(), "--max-new-tokens", "6"];
    let mut command = place.command(&args);
    let (mut child, mut input, mut output) = piped(&mut command);
    for words in ["What is 2?", "a", "What is 2 and what else is there to tell of it?"] {
        input.write_all(format!("{words}\n").as_bytes()).unwrap();
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["text"], words);
    }
    drop(output);
    input.write_all(b"more\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "whoever stops reading ends it");
    // Several threads, prompts of all lengths, rows without an answer between them, more than are read at once.
    let row = |i: usize| match i % 7 {
        3 => format!("{{\"prompt\": null, \"id\": {i}}}\n"),
        _ => format!("{}\n", json!({"prompt": "2 + ".repeat(1 + i * i % 11), "id": i})),
    };
    let rows: String = (0..2500).map(row).collect();
    let bench = Bench(place);
    let more = ["--device", "cpu", "--threads", "3"];
    let output = fed(&mut bench.bare(&[&args[..], &more].concat()), &rows);
    let answers = lines(&output);
    assert_eq!((output.status.code(), answers.len()), (Some(1), 2500), "{}", errors(&output));
    for (i, answer) in answers.iter().enumerate() {
        assert_eq!(answer["id"], i);
        assert_eq!(answer.get("completion").is_some(), i % 7 != 3, "{answer}");
    }
    let mut told = BTreeMap::new();
    for answer in answers.iter().filter(|answer| answer["prompt"].is_string()) {
        let first = told.entry(answer["prompt"].as_str()).or_insert(&answer["completion"]);
        assert_eq!(*first, &answer["completion"]);
    }
    assert_eq!(told.len(), 6);
}

#[test]
fn wrong_prompts_get_one_clear_message_each() {
    let bench = Bench(Place::of_decoders());
    let model = fixture("decoders/llama-biased");
    let model = model.to_str().unwrap();
    fs::write(bench.path("rows.csv"), "question,answer\na,b\n").unwrap();
    fs::write(bench.path("two.csv"), "first,second\na,b\n").unwrap();
    fs::write(bench.path("chat.jsonl"), "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n")
        .unwrap();
    let cases: [(&[&str], i32, &[&str]); 9] = [
        (&["--input", "two.csv"], 2, &["cannot tell which column of `two.csv` is to be read", "`--columns`"]),
        (&["--input", "two.csv", "--columns", "first,second"], 2, &["a prompt is in one column"]),
        (
            &["--input", "rows.csv", "--columns", "answer", "--task", "tiny/instructions"],
            2,
            &["the template of the prompts names their columns, `question`", "`--raw`"],
        ),
        (
            &["--input", "two.csv", "--task", "tiny/instructions"],
            2,
            &["no column `question`", "columns: `first`, `second`"],
        ),
        (
            &["--input", "chat.jsonl"],
            1,
            &["the prompts of `the input` are a chat, but the tokenizer has no chat template", "hint: "],
        ),
        (&["--text", "a", "--text-pair", "b"], 2, &["reads one text", "leave out `--text-pair`"]),
        (
            &["--text", "a", "--max-length", "9"],
            2,
            &["`--max-length` cuts the texts of classifiers", "`--max-new-tokens`"],
        ),
        (
            &["--text", "a", "--shots", "1"],
            2,
            &["`--shots` are rows of a data set for `generation`", "`--task`"],
        ),
        (&["--text", "a", "--raw", "--task", "tiny/instructions"], 2, &["--raw", "cannot be used with"]),
    ];
    for (more, code, words) in cases {
        let args = [&["predict", "--model", model][..], more].concat();
        bench.refuses(&args, code, words);
    }
    // What is wrong with a row alone is told with the row.
    let long = format!("{}\n\"\"\n", json!({"prompt": "2 + ".repeat(5000)}));
    let output = fed(&mut bench.0.command(&["predict", "--model", model]), &long);
    let answers = lines(&output);
    assert!(
        answers[0]["error"].as_str().unwrap().contains("that the model has positions for"),
        "{}",
        answers[0]
    );
    assert_eq!((answers.len(), output.status.code()), (2, Some(1)));
    let encoder = encoder("roberta-gelu");
    bench.refuses(
        &["predict", "--model", &encoder, "--text", "a", "--temperature", "1"],
        2,
        &["language model"],
    );
    bench.refuses(&["predict", "--model", &encoder, "--text", "a", "--raw"], 2, &["language model"]);
}

/// The rows of the fixtures of heads, and a run on them.
fn run_of_heads(task: &str, metric: &str) -> (Bench, Vec<Value>) {
    let bench = Bench(Place::with_own(&catalog_of_heads()));
    let recipe = format!(
        "[model]\nname = {:?}\n[adapter]\nmethod = \"full\"\n[data]\ndataset = {task:?}\nmax_length = 32\n\
         [train]\nmax_steps = 300\nbatch_size = 8\nlearning_rate = 0.005\n[eval]\nevery = \"never\"\nmetric = {metric:?}\n",
        encoders().join("bert-gelu")
    );
    bench.0.train(&recipe, "run", &[]);
    bench.0.run(&["eval", "--run", "run", "--out", "scored"], 0);
    let predictions = json_lines(&bench.path(&format!("scored/predictions/{task}.jsonl")));
    (bench, predictions)
}

/// The catalog of the fixtures of heads, with the place of its files.
pub fn catalog_of_heads() -> String {
    let folder = fixture("heads/data");
    let text = fs::read_to_string(folder.join("datasets.toml")).unwrap();
    text.replace("files ", &format!("dir     = {folder:?}\nfiles "))
}

/// The names of classes of a data set.
fn names(catalog: &toml::Table, task: &str, classes: &Value) -> Vec<Value> {
    let labels = catalog[task]["labels"].as_array().unwrap();
    let name = |class: &Value| labels[class.as_u64().unwrap() as usize].as_str().unwrap().into();
    classes.as_array().unwrap().iter().map(name).collect()
}

#[test]
fn sets_of_labels_are_those_of_eval() {
    let input = fixture("heads/data/validation.jsonl");
    let args = ["predict", "--run", "run", "--input", input.to_str().unwrap()];
    let catalog: toml::Table = catalog_of_heads().parse().unwrap();
    let (bench, predictions) = run_of_heads("heads/sets", "f1_micro");
    let answers = lines(&bench.0.run(&args, 0));
    assert_eq!(answers.len(), predictions.len());
    for (answer, prediction) in answers.iter().zip(&predictions) {
        assert_eq!(answer["prediction"], json!(names(&catalog, "heads/sets", &prediction["prediction"])));
        for (p, logit) in answer["probabilities"]
            .as_object()
            .unwrap()
            .values()
            .zip(prediction["logits"].as_array().unwrap())
        {
            let expected = 1.0 / (1.0 + (-logit.as_f64().unwrap()).exp());
            assert!((p.as_f64().unwrap() - expected).abs() < room(1e-6), "{answer}");
        }
    }
}

#[test]
fn tags_of_words_are_those_of_eval_and_make_up_entities() {
    let input = fixture("heads/data/validation.jsonl");
    let args = ["predict", "--run", "run", "--input", input.to_str().unwrap()];
    let catalog: toml::Table = catalog_of_heads().parse().unwrap();
    let (bench, predictions) = run_of_heads("heads/words", "f1");
    let answers = lines(&bench.0.run(&args, 0));
    let column = catalog["heads/words"]["text"].as_str().unwrap();
    let mut entities = 0;
    for (answer, prediction) in answers.iter().zip(&predictions) {
        let tags: Vec<&Value> =
            answer["prediction"].as_array().unwrap().iter().filter(|tag| !tag.is_null()).collect();
        assert_eq!(
            tags,
            names(&catalog, "heads/words", &prediction["prediction"]).iter().collect::<Vec<_>>()
        );
        let words = answer[column].as_array().unwrap();
        for entity in answer["entities"].as_array().unwrap() {
            let [start, end] = ["start", "end"].map(|name| entity[name].as_u64().unwrap() as usize);
            let within: Vec<&str> = words[start..end].iter().map(|word| word.as_str().unwrap()).collect();
            assert_eq!(entity["word"], within.join(" "));
            assert!(
                answer["prediction"][start]
                    .as_str()
                    .unwrap()
                    .ends_with(entity["entity_group"].as_str().unwrap())
            );
            entities += 1;
        }
    }
    assert!(entities > 10, "{entities}");
    // A text is split into its words.
    let is_plain = |word: &Value| word.as_str().unwrap().chars().all(char::is_alphanumeric);
    let has_entities = |answer: &&Value| !answer["entities"].as_array().unwrap().is_empty();
    let of_words = |answer: &Value| answer[column].as_array().unwrap().clone();
    let chosen =
        answers.iter().filter(has_entities).find(|answer| of_words(answer).iter().all(is_plain)).unwrap();
    let words = of_words(chosen);
    let sentence: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
    let text = lines(&bench.0.run(&["predict", "--run", "run", "--text", &sentence.join("  ")], 0));
    let groups = |answer: &Value| -> Vec<(Value, String)> {
        let all = answer["entities"].as_array().unwrap().iter();
        all.map(|found| (found["entity_group"].clone(), found["word"].as_str().unwrap().replace(' ', "")))
            .collect()
    };
    assert_eq!(groups(&text[0]), groups(chosen));
    for entity in text[0]["entities"].as_array().unwrap() {
        let [start, end] = ["start", "end"].map(|name| entity[name].as_u64().unwrap() as usize);
        let within: String = sentence.join("  ").chars().skip(start).take(end - start).collect();
        assert_eq!(entity["word"], within);
    }
}
