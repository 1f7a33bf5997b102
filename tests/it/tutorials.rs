//! The tutorials of `docs/tutorials`, by the letter: every command, on tiny checkpoints under the names of the real ones.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bench::copied;
use crate::support::{Place, errors, fixture};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Puts a checkpoint of the fixtures into the hub's cache under the id that a tutorial uses; returns its folder.
fn cached(place: &Place, id: &str, checkpoint: &str) -> std::path::PathBuf {
    let model = place.path("hub/hub").join(format!("models--{}", id.replace('/', "--")));
    let snapshot = model.join("snapshots").join(COMMIT);
    copied(&fixture(checkpoint), &snapshot);
    fs::create_dir_all(model.join("refs")).unwrap();
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    snapshot
}

/// The commands of a page: its blocks marked `sh`.
fn commands(page: &str) -> String {
    let blocks = page.split("```sh\n").skip(1).map(|after| after.split("```").next().unwrap());
    blocks.collect::<Vec<_>>().join("\n")
}

/// Runs the commands of a tutorial in a copy of its folder, `train` with these overrides; returns what they printed.
fn follow(place: &Place, name: &str, train: &str, input: &str) -> String {
    let folder = place.path("tutorials");
    let pages = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/tutorials");
    copied(&pages, &folder);
    copied(&pages.join("data"), &folder.join("data"));
    let page = fs::read_to_string(folder.join(format!("{name}.md"))).unwrap();
    let bin = place.path("bin");
    fs::create_dir_all(&bin).unwrap();
    let binary = env!("CARGO_BIN_EXE_loraxs");
    let wrapper = format!(
        "#!/bin/sh\nif [ \"$1\" = train ]; then set -- \"$@\" {train}; fi\nexec {binary} \"$@\" --threads 1 --device cpu\n"
    );
    fs::write(bin.join("loraxs"), wrapper).unwrap();
    fs::set_permissions(bin.join("loraxs"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.path("input"), input).unwrap();
    let script = format!("set -e\n{}", commands(&page));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(&folder)
        .env("PATH", path)
        .env("HF_HOME", place.path("hub"))
        .env("HF_HUB_OFFLINE", "1")
        .env("LORAXS_CACHE", place.path("cache"))
        .stdin(Stdio::from(fs::File::open(place.path("input")).unwrap()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{script}\n{}", errors(&output));
    String::from_utf8_lossy(&output.stdout).into_owned() + &errors(&output)
}

#[test]
fn classify_my_csv() {
    let place = Place::new();
    cached(&place, "sentence-transformers/all-MiniLM-L6-v2", "encoders/bert-gelu");
    let printed = follow(&place, "classify-my-csv", "--set data.max_length=40", "");
    let sorted = fs::read_to_string(place.path("tutorials/sorted.csv")).unwrap();
    assert_eq!(sorted.lines().count(), 7, "{sorted}");
    assert!(sorted.starts_with("id,text,"), "{sorted}");
    assert!(printed.contains("next: loraxs predict --model tickets-merged --input FILE"), "{printed}");
    assert!(printed.contains("billing") && place.path("tutorials/tickets-merged/config.json").exists());
}

#[test]
fn chat_on_my_conversations() {
    let place = Place::new();
    let snapshot = cached(&place, "HuggingFaceTB/SmolLM2-135M-Instruct", "decoders/llama-linear");
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
                    {% if add_generation_prompt %}assistant: {% endif %}";
    fs::write(snapshot.join("chat_template.jinja"), template).unwrap();
    let few = "--set train.max_steps=2 --set train.epochs=0 --set train.precision=fp32 --set data.max_length=128 --set adapter.rank=8";
    let printed = follow(&place, "chat-on-my-conversations", few, "When are you open?\n/quit\n");
    assert!(printed.contains("completion"), "{printed}");
    for folder in ["shop-merged/config.json", "shop-lora/adapter_config.json"] {
        assert!(place.path("tutorials").join(folder).exists(), "{folder}");
    }
}

#[test]
fn reproduce_a_row() {
    let place = Place::new();
    cached(&place, "roberta-large", "encoders/roberta-gelu");
    let rows = |count: usize, label: bool| {
        let row = |i: usize| match label {
            true => format!("{{\"sentence\": \"the cat sat {i}\", \"label\": {}}}\n", i % 2),
            false => format!("{{\"sentence\": \"the cat sat {i}\", \"label\": -1, \"idx\": {i}}}\n"),
        };
        (0..count).map(row).collect::<String>()
    };
    for (name, count, label) in [("train", 32, true), ("validation", 16, true), ("test", 8, false)] {
        fs::write(place.path(&format!("{name}.jsonl")), rows(count, label)).unwrap();
    }
    let catalog = "[\"glue/cola\"]\nlike = \"glue/cola\"\n\
                   files = { train = \"train.jsonl\", validation = \"validation.jsonl\", test = \"test.jsonl\" }\n";
    fs::write(place.path("glue.toml"), catalog).unwrap();
    let small = format!(
        "--datasets {} --set train.epochs=2 --set data.max_length=38",
        place.path("glue.toml").display()
    );
    let printed = follow(&place, "reproduce-a-row", &small, "");
    assert!(place.path("tutorials/submission/CoLA.tsv").exists(), "{printed}");
}
