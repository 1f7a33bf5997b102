//! What a command shows: the progress line of a terminal, logs for programs, quiet, and what comes next.

use std::fs;
use std::io::Read as _;
use std::os::fd::FromRawFd as _;
use std::process::Stdio;

use serde_json::Value;

use crate::bench::Bench;
use crate::support::{encoders, errors, json};

const TRAIN: [&str; 5] = ["train", "--recipe", "recipe.toml", "--out", "run"];

/// The screen of a terminal with so many columns, as far as the command uses it.
struct Screen {
    columns: usize,
    lines: Vec<Vec<char>>,
    row: usize,
    column: usize,
}

impl Screen {
    fn put(&mut self, c: char) {
        if self.column == self.columns {
            (self.row, self.column) = (self.row + 1, 0);
        }
        self.lines.resize(self.lines.len().max(self.row + 1), Vec::new());
        let line = &mut self.lines[self.row];
        line.resize(line.len().max(self.column + 1), ' ');
        line[self.column] = c;
        self.column += 1;
    }

    /// Shows `text`, with what it asks the terminal to do.
    fn show(&mut self, text: &str) {
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            match c {
                '\r' => self.column = 0,
                '\n' => self.row += 1,
                '\u{1b}' => {
                    assert_eq!(rest.next(), Some('['));
                    let mut number = String::new();
                    let end = loop {
                        match rest.next().unwrap() {
                            c if c.is_ascii_digit() || "?;".contains(c) => number.push(c),
                            c => break c,
                        }
                    };
                    let count: usize = number.parse().unwrap_or(1);
                    match end {
                        'A' => self.row -= count,
                        'B' => self.row += count,
                        'K' => {
                            self.lines.resize(self.lines.len().max(self.row + 1), Vec::new());
                            self.lines[self.row].truncate(if number == "2" { 0 } else { self.column });
                        }
                        'm' | 'h' | 'l' => {}
                        other => panic!("ESC [{number}{other}"),
                    }
                }
                c => self.put(c),
            }
        }
    }

    fn progress(&self) -> Vec<String> {
        let lines = self.lines.iter().map(|line| line.iter().collect::<String>());
        let lines = lines.map(|line| line.trim_end().to_owned());
        lines
            .filter(|line| line.contains(" of 600 steps") || line.contains('█') || line.contains('░'))
            .collect()
    }
}

#[test]
fn progress_is_one_line_that_fits_and_goes_away() {
    for columns in [40, 100] {
        let bench = Bench::new();
        let mut size = libc::winsize { ws_row: 24, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let (mut master, mut slave) = (0, 0);
        // SAFETY: both numbers are written, and the size is read.
        assert_eq!(
            unsafe {
                libc::openpty(
                    &mut master,
                    &mut slave,
                    std::ptr::null_mut(),
                    std::ptr::null_mut(),
                    &raw mut size,
                )
            },
            0
        );
        // SAFETY: both were just opened, and nothing else has them.
        let (mut terminal, slave) = unsafe { (fs::File::from_raw_fd(master), fs::File::from_raw_fd(slave)) };
        let more = [
            "--set",
            "train.max_steps=600",
            "--set",
            "eval.every=300",
            "--set",
            "train.checkpoint_every=never",
        ];
        let mut command = bench.0.command(&[&TRAIN[..], &more].concat());
        command.env("TERM", "xterm").env_remove("NO_COLOR").stderr(Stdio::from(slave)).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        drop(command);
        let mut screen = Screen { columns: columns.into(), lines: Vec::new(), row: 0, column: 0 };
        let (mut seen, mut bytes, mut buffer) = (0, Vec::new(), [0; 4096]);
        // The terminal fails to read once the command has closed it.
        while let Ok(count @ 1..) = terminal.read(&mut buffer) {
            bytes.extend_from_slice(&buffer[..count]);
            let end = std::str::from_utf8(&bytes).map_or_else(|e| e.valid_up_to(), str::len);
            let mut text = String::from_utf8(bytes.drain(..end).collect()).unwrap();
            // A sequence may go on in the next read.
            if let Some(at) = text.rfind('\u{1b}').filter(|&at| !text[at..].contains(char::is_alphabetic)) {
                bytes.splice(0..0, text.split_off(at).into_bytes());
            }
            screen.show(&text);
            let found = screen.progress();
            assert!(found.len() <= 1, "{columns}: {found:#?}");
            assert!(found.iter().all(|line| line.chars().count() < columns.into()), "{found:?}");
            seen += found.len();
        }
        assert!(child.wait().unwrap().success());
        assert!(seen > 0, "{columns}: the line was never seen");
        assert!(screen.progress().is_empty(), "{columns}: left behind {:?}", screen.progress());
    }
}

#[test]
fn json_logs_have_fields_and_text_has_sentences() {
    let bench = Bench::new();
    let more = ["--set", "train.log_every=1", "--log-format", "json"];
    let output = bench.0.run(&[&TRAIN[..], &more].concat(), 0);
    let lines: Vec<Value> = errors(&output).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(
        lines.iter().all(|line| line["timestamp"].is_string() && line["level"].is_string()),
        "{lines:#?}"
    );
    let points: Vec<&Value> = lines.iter().filter(|line| line["loss"].is_number()).collect();
    assert_eq!(points.len(), 2, "{lines:#?}");
    let logged: Vec<Value> = crate::support::json_lines(&bench.path("run/metrics.jsonl"));
    for (point, logged) in points.iter().zip(&logged) {
        for field in ["step", "epoch", "loss", "learning_rate", "head_learning_rate", "grad_norm"] {
            assert_eq!(point[field], logged[field], "{field}");
        }
    }
    let evaluated = lines.iter().find(|line| line["metrics"].is_object()).unwrap();
    assert_eq!((&evaluated["step"], &evaluated["best"]), (&2.into(), &true.into()));
    assert_eq!(evaluated["metrics"], logged.last().unwrap()["metrics"]);
    assert!(evaluated["message"].as_str().unwrap().starts_with("step 2: accuracy 0."), "{evaluated}");
    fs::remove_dir_all(bench.path("run")).unwrap();
    let text = errors(&bench.0.run(&TRAIN, 0));
    assert!(text.contains("step 2: accuracy 0.") && text.contains("(best)"), "{text}");
    assert!(!text.contains("step=") && !text.contains("step 2: loss"), "{text}");
}

#[test]
fn quiet_says_nothing() {
    let bench = Bench::new();
    let base = encoders().join("bert-gelu");
    let basis = ["init-svd", "--model", base.to_str().unwrap(), "--rank", "4", "-q"];
    for args in [
        &basis[..],
        &[&TRAIN[..], &["-q"]].concat(),
        &["train", "--resume", "run", "-q"],
        &["eval", "--run", "run", "-q"],
        &["merge", "--run", "run", "--out", "merged", "-q"],
        &["merge", "--run", "run", "--out", "lora", "--format", "peft", "-q"],
    ] {
        let output = bench.0.run(args, 0);
        assert_eq!((output.stdout.len(), output.stderr.len()), (0, 0), "{args:?}: {}", errors(&output));
    }
    assert!(errors(&bench.0.run(&["eval", "--run", "nowhere", "-q"], 1)).starts_with("error: "));
}

#[test]
fn nothing_is_best_without_a_number() {
    let bench = Bench::new();
    // Equal labels have no correlation.
    let row = "{\"a\": \"alpha beta\", \"y\": 1.0}\n{\"a\": \"gamma\", \"y\": 1.0}\n".repeat(4);
    let catalog = bench.data("data", &row, "task = \"regression\"\ntext = \"a\"\nlabel = \"y\"\n");
    let run = |out: &str, sets: &[&str]| {
        let mut args =
            vec!["train", "--recipe", "recipe.toml", "--out", out, "--set", "data.dataset=my/data"];
        args.extend(["--datasets", catalog.to_str().unwrap(), "--device", "cpu"]);
        sets.iter().for_each(|set| args.extend(["--set", set]));
        let output = crate::forked::output(&bench.bare(&args));
        assert!(output.status.success(), "{}", errors(&output));
        format!("{}{}", crate::bench::text(&output), errors(&output))
    };
    let text = run("undefined", &[]);
    assert!(text.contains("pearson NaN") && !text.contains("best"), "{text}");
    assert!(text.contains("my/data pearson: undefined in every evaluation, the last at step 2"), "{text}");
    assert!(bench.path("undefined/adapter/adapter_model.safetensors").exists());
    let text = run("never", &["eval.every=never"]);
    assert!(text.contains("my/data: not evaluated, 2 steps") && !text.contains("best"), "{text}");
}

#[test]
fn each_command_ends_with_the_next_one_which_works() {
    let bench = Bench::new();
    let run = |args: &[&str]| crate::bench::text(&bench.0.run(args, 0));
    let line = |text: &str, begin: &str| {
        let found: Vec<&str> = text.lines().filter(|line| line.starts_with(begin)).collect();
        assert_eq!(found.len(), 1, "{begin} in {text}");
        found[0].to_owned()
    };
    // The commands that are named are run as they stand.
    let follow = |text: &str, command: &str| {
        let next = line(text, "next: ");
        let from =
            next.find(&format!("loraxs {command} ")).unwrap_or_else(|| panic!("no {command} in {next}"));
        let words: Vec<&str> = next[from..].split(", or ").next().unwrap().split(' ').skip(1).collect();
        run(&words)
    };
    let trained = run(&TRAIN);
    assert!(
        line(&trained, "next: ").contains("loraxs predict --run run --text \"…\" --text-pair \"…\", or "),
        "{trained}"
    );
    assert_eq!(
        line(&trained, "in Python: "),
        "in Python: AutoModelForSequenceClassification.from_pretrained(\"run-merged\") after `loraxs merge --run run --out \
         run-merged`"
    );
    let evaluated = run(&["eval", "--run", "run"]);
    assert_eq!(
        line(&evaluated, "in Python: "),
        "in Python: pandas.read_json(\"run/eval/predictions/tiny/pairs.jsonl\", lines=True)"
    );
    assert!(bench.path("run/eval/predictions/tiny/pairs.jsonl").exists());
    let merged = follow(&evaluated, "merge");
    assert_eq!(
        line(&merged, "in Python: "),
        "in Python: AutoModelForSequenceClassification.from_pretrained(\"run-merged\")"
    );
    let again = follow(&merged, "eval");
    assert!(line(&again, "next: ").contains("loraxs predict --model run-merged --input FILE"), "{again}");
    let lora = run(&["merge", "--run", "run", "--out", "lora", "--format", "peft"]);
    let base = encoders().join("bert-gelu");
    let python = format!(
        "in Python: PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained({:?}, \
         config=AutoConfig.from_pretrained(\"lora\")), \"lora\")",
        base.canonicalize().unwrap()
    );
    assert_eq!(line(&lora, "in Python: "), python);
    follow(&lora, "eval");
    // The labels are there for both readers.
    let labels = json::<Value>(&bench.path("lora/loraxs.json"))["labels"].clone();
    assert_eq!(labels, json::<Value>(&bench.path("run/adapter/adapter_config.json"))["labels"]);
    assert_eq!(json::<Value>(&bench.path("lora/config.json"))["id2label"]["1"], labels[1]);
    // A LoRA is what PEFT loads.
    let plain = run(&["train", "--recipe", "recipe.toml", "--out", "plain", "--set", "adapter.method=lora"]);
    assert!(line(&plain, "in Python: ").contains(", num_labels=3), \"plain/adapter\")"), "{plain}");
}
