//! `loraxs chat`: conversations equal to those of Transformers, in a pipe and in a terminal, and what it says of wrong input.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use std::{fs, thread};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::bench::text;
use crate::predict::fed;
use crate::real_models::smollm2;
use crate::support::{Place, encoders, errors, fixture, json};

/// A conversation of `chat.json`.
#[derive(Deserialize)]
struct Conversation {
    system: Option<String>,
    messages: Vec<String>,
    max_new_tokens: usize,
    answers: Vec<String>,
}

fn conversation(name: &str) -> Conversation {
    let mut fixture: Value = json(&fixture("chat.json"));
    serde_json::from_value(fixture[name].take()).unwrap()
}

/// A copy of the small decoder with the chat template of the fixture, or with this one, and these settings of `config.json` changed.
fn speaker(place: &Place, template: Option<&str>, sets: &[(&str, Value)]) -> PathBuf {
    let folder = place.path("model");
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(fixture("decoders/llama-biased")).unwrap().flatten() {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let fixture: Value = json(&fixture("chat.json"));
    let template = template.unwrap_or(fixture["template"].as_str().unwrap());
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let mut config: Value = json(&folder.join("config.json"));
    sets.iter().for_each(|(key, value)| config[*key] = value.clone());
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

fn arguments<'a>(model: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    ["chat", "--model", model].iter().chain(more).copied().collect()
}

/// What `chat` says to these lines, which must end with this exit code.
fn said(place: &Place, model: &Path, more: &[&str], lines: &str, code: i32) -> Output {
    let output = fed(&mut place.command(&arguments(model.to_str().unwrap(), more)), lines);
    assert_eq!(output.status.code(), Some(code), "{lines}\n{}", errors(&output));
    output
}

fn assert_answers_as_transformers(place: &Place, model: &Path, name: &str) {
    let Conversation { system, messages, max_new_tokens, answers } = conversation(name);
    let most = max_new_tokens.to_string();
    let mut more = vec!["--precision", "fp32", "--max-new-tokens", &most];
    more.extend(system.iter().flat_map(|text| ["--system", text]));
    let lines: String = messages.iter().map(|message| format!("{message}\n")).collect();
    let told: String = answers.iter().map(|answer| format!("{answer}\n")).collect();
    assert_eq!(text(&said(place, model, &more, &lines, 0)), told);
}

#[test]
fn a_conversation_is_that_of_transformers() {
    let place = Place::of_decoders();
    let model = speaker(&place, None, &[]);
    assert_answers_as_transformers(&place, &model, "tiny");
}

#[test]
fn a_conversation_with_a_real_model_is_that_of_transformers() {
    let Some(folder) = smollm2() else { return };
    assert_answers_as_transformers(&Place::of_decoders(), &folder, "smollm2");
}

#[test]
fn commands_change_what_follows_them() {
    let place = Place::of_decoders();
    let model = speaker(&place, None, &[]);
    let Conversation { messages, answers, .. } = conversation("tiny");
    let (question, answer) = (&messages[0], &answers[0]);
    let most = ["--precision", "fp32", "--max-new-tokens", "10"];
    let first = said(&place, &model, &most, &format!("{question}\n/reset\n{question}\n"), 0);
    assert_eq!(text(&first), format!("{answer}\n{answer}\n"));
    let lines = format!("/system Be brief.\n{question}\n/reset\n/system\n{question}\n");
    let with_system = text(&said(&place, &model, &most, &lines, 0));
    let told: Vec<&str> = with_system.lines().collect();
    assert!(told.len() == 2 && told[0] != answer && told[1] == answer, "{told:?}");
    let by_option = [&most[..], &["--system", "Be brief."]].concat();
    assert_eq!(text(&said(&place, &model, &by_option, &format!("{question}\n"), 0)).trim_end(), told[0]);
    // Settings by the names of the options, and back.
    let lines = "/set max-new-tokens=3\n/set temperature=0.5\n/set top_k = 7\n/set seed=9\n/set\n\
                 /set top-k=default\n/set temperature=default\n/set\n";
    let told = text(&said(&place, &model, &[], lines, 0));
    let expected = "max-new-tokens=3\ntemperature=0.5\ntop-k=7\ntop-p=1\nbeams=1\nrepetition-penalty=1\nseed=9\n\
                    max-new-tokens=3\ntemperature=0\ntop-k=0\ntop-p=1\nbeams=1\nrepetition-penalty=1\nseed=9\n";
    assert_eq!(told, expected);
    // As options on the command line do.
    let sampled = ["--temperature", "0.9", "--seed", "5", "--max-new-tokens", "8"];
    let by_options = text(&said(&place, &model, &sampled, &format!("{question}\n"), 0));
    let lines = format!("/set temperature=0.9\n/set seed=5\n/set max-new-tokens=8\n{question}\n");
    assert_eq!(text(&said(&place, &model, &[], &lines, 0)), by_options);
    assert!(
        text(&said(&place, &model, &[], "/help\n/quit\nnever answered\n", 0)).contains("/adapter DIR|none")
    );
}

#[test]
fn adapters_come_and_go() {
    let place = Place::of_decoders();
    let model = speaker(&place, None, &[]);
    let recipe = format!(
        "[model]\nname = {model:?}\n[adapter]\nrank = 4\nalpha = 64.0\n[data]\ndataset = \"tiny/instructions\"\n\
         max_length = 64\n[train]\nmax_steps = 10\nbatch_size = 4\nlearning_rate = 0.2\n[eval]\nevery = \"never\"\n"
    );
    let run = place.train(&recipe, "run", &[]);
    let most = ["--precision", "fp32", "--max-new-tokens", "10"];
    let base = text(&said(&place, &model, &most, "Why?\n", 0));
    let adapted =
        text(&said(&place, &model, &[&most[..], &["--adapter", "run/adapter"]].concat(), "Why?\n", 0));
    assert_ne!(adapted, base);
    let of_run = [&["chat", "--run", run.to_str().unwrap()], &most[..]].concat();
    let lines = "Why?\n/reset\n/adapter none\nWhy?\n/reset\n/adapter run\nWhy?\n";
    let output = fed(&mut place.command(&of_run), lines);
    assert_eq!(text(&output), format!("{adapted}{base}{adapted}"), "{}", errors(&output));
}

#[test]
fn what_cannot_be_talked_with_is_told() {
    let place = Place::of_decoders();
    let model = speaker(&place, None, &[]);
    let most = ["--max-new-tokens", "10"];
    let encoder = encoders().join("bert-gelu");
    let bare = fixture("decoders/llama-biased");
    let long = format!("{}\n", "How many? ".repeat(40));
    let cases: [(&Path, &[&str], &str, i32, &str); 12] = [
        (&encoder, &[], "Hi\n", 2, "bert-gelu` is a classifier\nhint: `loraxs predict`"),
        (&bare, &[], "Hi\n", 1, "llama-biased` has no chat template\nhint: put a `chat_template.jinja`"),
        (&model, &most, &long, 1, "tokens, and the model 128 positions: no room for an answer"),
        (&model, &most, "/sytem Be brief.\n", 2, "`/system`"),
        (&model, &most, "/set temprature=1\n", 2, "`temperature`"),
        (&model, &most, "/set temperature=hot\n", 2, "invalid value 'hot' for '--temperature <X>'"),
        (&model, &most, "/set top-k=5\n", 2, "`--top-k` and `--top-p` have no effect on greedy decoding"),
        (&model, &most, "/set beams\n", 2, "`/set` needs a name and a value"),
        (&model, &most, "/adapter nowhere\n", 1, "nowhere"),
        (&model, &["--temperature", "-1"], "", 2, "--temperature"),
        (&model, &["--shots", "1"], "", 2, "unexpected argument '--shots'"),
        (&model, &["--adapter", "nowhere"], "Hi\n", 1, "nowhere"),
    ];
    for (model, more, lines, code, words) in cases {
        let output = said(&place, model, more, lines, code);
        assert!(errors(&output).contains(words), "{words}\n{}", errors(&output));
        assert_eq!(text(&output), "", "{lines}");
    }
    let mut child = place.command(&arguments(model.to_str().unwrap(), &[]));
    fs::write(place.path("latin1"), b"caf\xe9\n").unwrap();
    let output = child.stdin(fs::File::open(place.path("latin1")).unwrap()).output().unwrap();
    assert!(errors(&output).contains("a line of standard input is not UTF-8"), "{}", errors(&output));
    let broken = speaker(&place, Some("{% for m in messages %}"), &[]);
    assert!(errors(&said(&place, &broken, &[], "Hi\n", 1)).contains("chat template"));
}

/// A terminal of its own, by tmux.
struct Screen {
    socket: String,
}

impl Screen {
    /// Starts `chat` in one; `None` without tmux.
    fn open(place: &Place, model: &Path, more: &[&str]) -> Option<Self> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("skipped: tmux is not installed");
            return None;
        }
        let command = place.command(&arguments(model.to_str().unwrap(), more));
        let socket = place.path("tmux").to_str().unwrap().to_owned();
        let mut tmux = Command::new("tmux");
        tmux.args(["-u", "-f", "/dev/null", "-S", &socket, "new-session", "-d", "-x", "100", "-y", "60"]);
        for (name, value) in command.get_envs() {
            tmux.args(["-e", &format!("{}={}", name.display(), value.unwrap_or_default().display())]);
        }
        tmux.arg("-c").arg(command.get_current_dir().unwrap());
        tmux.arg(command.get_program()).args(command.get_args());
        assert!(tmux.status().unwrap().success());
        Some(Self { socket })
    }

    fn tmux(&self, args: &[&str]) -> Output {
        Command::new("tmux").args(["-u", "-S", &self.socket]).args(args).output().unwrap()
    }

    /// Types a line, or presses keys that tmux names.
    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.press("Enter");
    }

    fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }

    /// Everything shown so far.
    fn shown(&self) -> String {
        text(&self.tmux(&["capture-pane", "-p", "-J", "-S", "-2000"])).trim_end().to_owned()
    }

    /// Waits until what is shown is so.
    fn wait(&self, what: &str, is: impl Fn(&str) -> bool) -> String {
        let start = Instant::now();
        loop {
            let shown = self.shown();
            if is(&shown) {
                return shown;
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no {what}:\n{shown}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the next prompt after a piece of text.
    fn prompt_after(&self, text: &str) -> String {
        self.wait("prompt", |shown| {
            shown.rfind(text).is_some_and(|at| shown[at..].contains('\n') && shown.ends_with("\n>"))
        })
    }

    fn is_over(&self) -> bool {
        !self.tmux(&["has-session"]).status.success()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn a_conversation_in_a_terminal_streams_and_is_that_of_transformers() {
    let place = Place::of_decoders();
    let model = speaker(&place, None, &[]);
    let Conversation { messages, answers, .. } = conversation("tiny");
    let more = ["--precision", "fp32", "--max-new-tokens", "10"];
    let Some(screen) = Screen::open(&place, &model, &more) else { return };
    screen.wait("start", |shown| shown.contains("/help shows the commands") && shown.ends_with("\n>"));
    for (message, answer) in messages.iter().zip(&answers) {
        screen.line(message);
        let shown = screen.prompt_after(message);
        assert!(shown.contains(&format!("> {message}\n{answer}\n")), "{answer}:\n{shown}");
    }
    // A wrong command ends nothing, lines may belong together, and Ctrl-D leaves.
    screen.line("/rest");
    assert!(screen.prompt_after("/rest").contains("`/reset`"));
    screen.line("/adapter nowhere");
    assert!(screen.prompt_after("/adapter nowhere").contains("ERROR"));
    screen.line("/reset");
    screen.line("What is \\");
    screen.line("2 + 3?");
    assert!(!screen.prompt_after("2 + 3?").contains("panicked"));
    screen.press("C-c");
    screen.wait("hint", |shown| shown.contains("Ctrl-C again, Ctrl-D or /quit to leave"));
    assert!(!screen.is_over());
    screen.press("C-d");
    let start = Instant::now();
    while !screen.is_over() {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", screen.shown());
        thread::sleep(Duration::from_millis(20));
    }
}

/// A template that tells what a conversation holds instead of going on with it.
const TELLS: &str = "{% if messages | length > 1 %}{{ raise_exception('history of ' ~ (messages | length) ~ ': ' ~ \
                     messages[1].content[:12] ~ '|') }}{% endif %}user: {{ messages[0].content }}\nassistant:";

#[test]
fn what_was_said_before_ctrl_c_stays_in_the_history() {
    let place = Place::of_decoders();
    let model = speaker(&place, Some(TELLS), &[("max_position_embeddings", json!(200_000))]);
    // An answer without an end.
    let config = model.join("generation_config.json");
    let mut settings: Value = json(&config);
    settings["suppress_tokens"] = json!([0, 2, 3, 60]);
    fs::write(&config, settings.to_string()).unwrap();
    let Some(screen) = Screen::open(&place, &model, &["--max-new-tokens", "100000"]) else { return };
    screen.wait("start", |shown| shown.ends_with("\n>"));
    screen.line("Count.");
    let answer = |shown: &str| shown.split_once("> Count.\n").unwrap_or_default().1.to_owned();
    let early = answer(&screen.wait("answer", |shown| answer(shown).chars().count() > 20));
    let later = answer(&screen.wait("more", |shown| answer(shown).len() > early.len() + 20));
    assert!(later.starts_with(early.trim_end()), "{early}\n{later}");
    screen.press("C-c");
    screen.wait("prompt", |shown| shown.ends_with("\n>"));
    screen.line("Go on.");
    let shown = screen.prompt_after("Go on.");
    let beginning: String = early.chars().take(12).collect();
    assert!(shown.contains(&format!("history of 3: {beginning}|")), "{beginning}\n{shown}");
    // The message that had no answer is gone.
    screen.line("And now?");
    let shown = screen.prompt_after("And now?");
    assert_eq!(shown.matches("history of 3").count(), 2, "{shown}");
    screen.press("C-c");
    screen.press("C-c");
    let start = Instant::now();
    while !screen.is_over() {
        assert!(start.elapsed() < Duration::from_secs(20), "{}", screen.shown());
        thread::sleep(Duration::from_millis(20));
    }
}
