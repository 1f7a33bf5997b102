//! Tokenizers' folders as Transformers reads them (`scripts/reference/tokenizer_folders.py`), and the special tokens
//! around prompts and responses.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use loraxs::data::Examples;
use loraxs::data::catalog::Catalog;
use loraxs::data::examples::load_in;
use loraxs::data::prompts::{self, Prompts};
use loraxs::data::split::Split;
use loraxs::data::tokenize::Tokenizer;
use loraxs::fault::Result;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{fixture, json, real};

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    base: String,
    files: BTreeMap<String, Value>,
    rows: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    text: String,
    ids: Vec<u32>,
    decoded: String,
}

/// A folder with one of the fixtures' tokenizers and these files, their names without the ending.
fn folder<'a>(base: &str, files: impl IntoIterator<Item = (&'a str, &'a Value)>) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = fixture("tokenizers").join(format!("{base}.json"));
    fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        fs::write(folder.path().join(format!("{name}.json")), content.to_string()).unwrap();
    }
    folder
}

#[test]
fn the_files_of_a_folder_are_read_as_in_transformers() {
    let Fixture { cases } = json(&fixture("tokenizers/cases.json"));
    assert_eq!(cases.len(), 84);
    for case in cases {
        let folder = folder(&case.base, case.files.iter().map(|(name, content)| (name.as_str(), content)));
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        for row in case.rows {
            let place = format!("{}: {:?}", case.name, row.text);
            assert_eq!(tokenizer.encode_whole(&row.text).unwrap(), row.ids, "{place}");
            assert_eq!(tokenizer.encode(&row.text, None, 1000).unwrap().ids, row.ids, "{place}");
            assert_eq!(tokenizer.decode(&row.ids, true).unwrap(), row.decoded, "{place}");
        }
    }
}

#[test]
fn a_token_of_llama_2_that_another_file_adds_is_one_token() {
    let Some(source) = real("tokenizers/llama2") else { return };
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(source).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    fs::write(folder.path().join("added_tokens.json"), "{\"<tool>\": 32000}").unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.encode_whole("a <tool> b").unwrap(), [1, 263, 29871, 32000, 289]);
}

#[test]
fn a_token_that_the_model_does_not_embed_is_refused_where_it_stands() {
    let config = json!({"model_type": "llama", "vocab_size": 287});
    let folder = folder("byte-level", [("config", &config), ("added_tokens", &json!({"<tool>": 287}))]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert!(tokenizer.encode_whole("hello").is_ok());
    for error in [
        tokenizer.encode_whole("a <tool> b").map(drop),
        tokenizer.encode_open("a <tool> b", 9).map(drop),
        tokenizer.encode_plain("a <tool> b", 9).map(drop),
        tokenizer.encode("a", Some("<tool>"), 20).map(drop),
    ] {
        let message = error.unwrap_err().to_string();
        assert_eq!(message, "token `<tool>` has the id 287, but the model's vocabulary ends at 287");
    }
}

/// A tokenizer with this template of special tokens, and one row of data in forms of all kinds.
struct Place {
    folder: tempfile::TempDir,
    tokenizer: Tokenizer,
}

impl Place {
    fn new(base: &str, template: &str, settings: &Value) -> Self {
        let folder = folder(base, [("tokenizer_config", settings)]);
        let path = folder.path().join("tokenizer.json");
        let mut file: Value = json(&path);
        let part = |word: &str| match word {
            "A" | "B" => json!({"Sequence": {"id": word, "type_id": 0}}),
            _ => json!({"SpecialToken": {"id": word, "type_id": 0}}),
        };
        let parts: Vec<Value> = template.split(' ').map(part).collect();
        let ids: BTreeMap<&str, Value> = template
            .split(' ')
            .filter(|word| *word != "A")
            .map(|word| {
                let vocabulary = &file["model"]["vocab"];
                let place = |list: &Vec<Value>| list.iter().position(|pair| pair[0] == word).unwrap();
                let id = vocabulary.as_array().map_or(vocabulary[word].clone(), |list| json!(place(list)));
                (word, json!({"id": word, "ids": [id], "tokens": [word]}))
            })
            .collect();
        file["post_processor"] =
            json!({"type": "TemplateProcessing", "single": parts, "pair": [], "special_tokens": ids});
        fs::write(&path, file.to_string()).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        Self { folder, tokenizer }
    }

    fn catalog(&self, entry: &str, rows: &str) -> Catalog {
        fs::write(self.folder.path().join("rows.jsonl"), rows).unwrap();
        let path = self.folder.path().join("datasets.toml");
        let files = "files = { train = \"rows.jsonl\", test = \"rows.jsonl\" }";
        fs::write(&path, format!("[mine]\n{entry}\n{files}\n")).unwrap();
        Catalog::builtin().unwrap().with_file(&path).unwrap()
    }

    fn prompts(&self, prompt: &str, rows: &str, limit: usize) -> Result<Prompts> {
        let catalog = self.catalog(&format!("task = \"generation\"\nprompt = {}", json!(prompt)), rows);
        let dataset = catalog.get("mine")?;
        let files = dataset.local_files("test")?;
        let split = Split { dataset, name: "test", files: &files, limit };
        prompts::load(&split, None, Some((&self.tokenizer, 100)))
    }

    fn trained(&self, prompt: &str, response: &str, rows: &str) -> Result<Examples> {
        let entry =
            format!("task = \"instruction\"\nprompt = {}\nresponse = {}", json!(prompt), json!(response));
        let catalog = self.catalog(&entry, rows);
        let dataset = catalog.get("mine")?;
        let files = dataset.local_files("train")?;
        let split = Split { dataset, name: "train", files: &files, limit: 0 };
        load_in(self.folder.path(), &split, &self.tokenizer, 64)
    }
}

const ROW: &str = "{\"q\": \"the world\", \"a\": \"one two\"}\n";

/// The prompt that is continued, and the tokens and targets that are trained on.
fn seen(place: &Place, prompt: &str, response: &str) -> [String; 3] {
    let show = |ids: &[u32]| place.tokenizer.decode(ids, false).unwrap();
    let asked = place.prompts(prompt, ROW, 0).unwrap().prompts.remove(0).ids;
    let example = place.trained(prompt, response, ROW).unwrap().examples.remove(0);
    let first = example.trained.iter().position(|trained| *trained == 1).unwrap();
    assert_eq!(example.ids[..first], asked, "training and generation see the same prompt");
    [show(&asked), show(&example.ids), show(&example.ids[first..])]
}

#[test]
fn a_prompt_begins_with_what_the_tokenizer_puts_first_once_and_does_not_end_with_what_it_puts_last() {
    let plain = json!({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"});
    for base in ["byte-level", "unigram"] {
        for (template, begins) in [
            ("<s> A </s>", "<s>"),
            ("A </s>", ""),
            ("<s> A", "<s>"),
            ("<s> A </s> <mask>", "<s>"),
            ("<mask> <s> A <pad>", "<mask><s>"),
            ("A", ""),
        ] {
            let template = if template == "A" { "A" } else { template };
            let place = Place::new(base, template, &plain);
            let bare = Place::new(base, "A </s>", &plain);
            let [prompt, whole, target] = seen(&place, "hello {q}:", " {a}");
            let [text, all, answer] = seen(&bare, "hello {q}:", " {a}");
            assert_eq!(prompt.trim_start_matches(begins).trim(), text.trim(), "{base}, {template}");
            assert!(prompt.starts_with(begins) && !text.contains("</s>"), "{prompt}");
            assert!(
                whole.ends_with("</s>") && all.ends_with("</s>") && !whole.contains("</s></s>"),
                "{whole}"
            );
            assert_eq!(target, answer, "{base}, {template}");
            // Written in the data set as well, whole or in part: still once, and a response may bring its own end.
            let last = if begins.is_empty() { "" } else { "<s>" };
            let [again, ..] = seen(&place, &format!("{last}hello {{q}}:"), " {a}");
            assert!(again.starts_with(begins) && again.matches("<s>").count() < 2, "{again}");
            let [prompt, whole, target] = seen(&place, &format!("{begins}hello {{q}}:"), " {a}</s>");
            assert_eq!(prompt.matches("<s>").count(), begins.matches("<s>").count(), "{prompt}");
            assert_eq!((whole.matches("</s>").count(), target.matches("</s>").count()), (1, 1), "{whole}");
        }
    }
}

#[test]
fn an_end_of_text_that_the_prompt_writes_itself_stays_in_it() {
    let place = Place::new("byte-level", "<s> A </s>", &json!({"eos_token": "</s>"}));
    let [prompt, whole, _] = seen(&place, "hello</s>{q}</s>", "{a}");
    assert_eq!(prompt, "<s>hello</s>the world</s>");
    assert_eq!(whole, "<s>hello</s>the world</s>one two</s>");
}

#[test]
fn a_row_whose_prompt_has_no_token_or_too_many_is_counted_and_left_out() {
    let long = format!("{{\"q\": \"{}\"}}\n", "the world ".repeat(80));
    let huge = format!("{{\"q\": \"{}\"}}\n", "the world ".repeat(300_000));
    let rows = format!(
        "{{\"q\": \"\"}}\n{{\"q\": \"hello\"}}\n{long}{{\"q\": \"world\"}}\n{huge}{{\"q\": \"two\"}}\n"
    );
    let place = Place::new("byte-level", "A </s>", &json!({"eos_token": "</s>"}));
    let found = place.prompts("{q}", &rows, 0).unwrap();
    assert_eq!(found.prompts.iter().map(|prompt| prompt.index).collect::<Vec<_>>(), [1, 3, 5]);
    assert_eq!(found.skipped.count, 3);
    let [empty, long, huge] = &found.skipped.first[..] else { panic!("{:?}", found.skipped.first) };
    assert!(empty.ends_with("rows.jsonl` line 1: the prompt is empty: it has no tokens"), "{empty}");
    assert!(
        long.contains("line 3: the prompt has ") && long.contains(" more than the 100 that the model"),
        "{long}"
    );
    assert!(huge.contains("line 5: the prompt has more than the 100 tokens that the model"), "{huge}");
    let limited = place.prompts("{q}", &rows, 2).unwrap();
    assert_eq!(limited.prompts.iter().map(|prompt| prompt.index).collect::<Vec<_>>(), [1, 3]);
    // Where the tokenizer begins texts with a token, nothing is empty.
    let place = Place::new("byte-level", "<s> A </s>", &json!({"eos_token": "</s>"}));
    assert_eq!(place.prompts("{q}", "{\"q\": \"\"}\n", 0).unwrap().prompts[0].ids, [0]);
    // A text of which a normaliser leaves nothing.
    let place = Place::new("wordpiece", "A", &json!({"tokenizer_class": "PreTrainedTokenizerFast"}));
    let blank = "{\"q\": \" \\u0000\\n \"}\n{\"q\": \"hello\"}\n";
    assert_eq!(place.prompts("{q}", blank, 0).unwrap().prompts.len(), 1);
    let error = place.prompts(" ", "{\"q\": 1}\n", 0).unwrap_err().to_string();
    assert!(error.contains("can be used") && error.contains("the prompt is empty"), "{error}");
}

#[test]
fn a_tokenizer_that_cannot_be_read_or_applied_names_its_file() {
    let broken = |change: &dyn Fn(&Path)| {
        let folder = folder("byte-level", []);
        change(&folder.path().join("tokenizer.json"));
        Tokenizer::load(folder.path()).unwrap_err().to_string()
    };
    for (from, to, part) in [
        ("\"decoder\":{", "\"decoder\":{,", "decoder"),
        ("\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"BiteLevel\"", "decoder"),
        ("\"pre_tokenizer\":{\"type\":\"ByteLevel\"", "\"pre_tokenizer\":{\"type\":7", "pre_tokenizer"),
        ("\"post_processor\":{", "\"post_processor\":{\"", "post_processor"),
        ("\"model\":{\"type\":\"BPE\"", "\"model\":{\"type\":\"BP", "model"),
        ("\"merges\":[[", "\"merges\":[[\"no\",\"pair\"],[", "model"),
    ] {
        let message = broken(&|path| {
            let text = fs::read_to_string(path).unwrap();
            assert!(text.contains(from), "{from}");
            fs::write(path, text.replacen(from, to, 1)).unwrap();
        });
        let expected = format!("tokenizer.json` is not a tokenizer: `{part}`");
        assert!(message.contains(&expected), "{expected}: {message}");
    }
}

#[test]
fn stored_truncation_and_padding_do_not_count_but_for_the_side() {
    let place = |direction: &str, settings: Value| {
        let folder = folder("wordpiece", [("tokenizer_config", &settings)]);
        let path = folder.path().join("tokenizer.json");
        let mut file: Value = json(&path);
        file["truncation"] =
            json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": direction});
        file["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_id": 0, "pad_type_id": 0,
                                 "pad_token": "[PAD]", "pad_to_multiple_of": null});
        fs::write(&path, file.to_string()).unwrap();
        let tokenizer = Tokenizer::load(folder.path()).unwrap();
        let ids = |length| tokenizer.encode("hello the world one two", None, length).unwrap().ids;
        assert_eq!(tokenizer.encode_open("hello the world one two", 100).unwrap().0.len(), 6);
        assert_eq!(ids(20).len(), 7);
        tokenizer.decode(&ids(4), true).unwrap()
    };
    let plain = json!({"tokenizer_class": "PreTrainedTokenizerFast"});
    assert_eq!(place("Right", plain.clone()), "hello the");
    assert_eq!(place("Left", plain), "one two");
    assert_eq!(place("Left", json!({"truncation_side": "right"})), "hello the");
    assert_eq!(place("Right", json!({"truncation_side": "left"})), "one two");
}
