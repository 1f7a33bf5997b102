//! Instructions, prompts and conversations against the published code and Transformers, and what is wrong with rows.

use std::fs;
use std::path::{Path, PathBuf};

use loraxs::data::catalog::Catalog;
use loraxs::data::examples::load_in;
use loraxs::data::prompts::{self, Prompts, Shots};
use loraxs::data::split::Split;
use loraxs::data::tokenize::Tokenizer;
use loraxs::data::{Example, Examples};
use loraxs::fault::{Result, hint_of};
use serde_json::{Value, json};

use crate::data::{crc, test_data};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/rendering")
}

/// What `scripts/reference/rendering.py` wrote.
fn reference(name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(fixtures().join(name)).unwrap()).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text `{key}` in {value}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

/// The tokenizer of a folder with settings on top of those that lie there.
fn tokenizer(folder: &Path, settings: &Value, config: &Value) -> Result<Tokenizer> {
    let place = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, place.path().join(path.file_name().unwrap())).unwrap();
    }
    for (name, changes) in [("tokenizer_config.json", settings), ("config.json", config)] {
        let path = place.path().join(name);
        let mut whole: Value =
            fs::read_to_string(&path).map_or_else(|_| json!({}), |text| serde_json::from_str(&text).unwrap());
        for (key, value) in changes.as_object().unwrap() {
            whole[key] = value.clone();
        }
        fs::write(&path, whole.to_string()).unwrap();
    }
    Tokenizer::load(place.path())
}

/// A catalog entry over files that are written first.
struct Place {
    folder: tempfile::TempDir,
    catalog: Catalog,
}

impl Place {
    fn new(entry: &str, files: &[(&str, &str)]) -> Result<Self> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let path = folder.path().join("datasets.toml");
        fs::write(&path, format!("[mine]\n{entry}\n")).unwrap();
        Ok(Self { catalog: Catalog::builtin()?.with_file(&path)?, folder })
    }

    fn examples(&self, tokenizer: &Tokenizer, max_length: usize, limit: usize) -> Result<Examples> {
        let dataset = self.catalog.get("mine")?;
        let files = dataset.local_files("train")?;
        let split = Split { dataset, name: "train", files: &files, limit };
        load_in(&self.folder.path().join("cache"), &split, tokenizer, max_length)
    }

    fn prompts(&self, tokenizer: &Tokenizer, limit: usize, shots: usize, from: &str) -> Result<Prompts> {
        let dataset = self.catalog.get("mine")?;
        let (files, others) = (dataset.local_files("test")?, dataset.local_files(from)?);
        let split = Split { dataset, name: "test", files: &files, limit };
        let solved = Split { dataset, name: from, files: &others, limit: 0 };
        prompts::load(&split, Some(&Shots { count: shots, split: solved }), Some((tokenizer, 1000)))
    }
}

fn words(list: &[u8]) -> Vec<u32> {
    list.iter().map(|t| u32::from(*t)).collect()
}

#[test]
fn instructions_of_real_rows_are_tokens_and_masks_of_the_published_code() {
    let Some(data) = test_data() else { return };
    let fixture = reference("real.json");
    for entry in fixture["instruction"].as_array().unwrap() {
        let name = text(entry, "tokenizer");
        let tokenizer = tokenizer(&data.join(name), &json!({"eos_token": "</s>"}), &json!({})).unwrap();
        let file = data.join(text(entry, "file"));
        let like = format!("like = \"{}\"\nfiles = {{ train = {file:?} }}", text(entry, "dataset"));
        let place = Place::new(&like, &[]).unwrap();
        let length = entry["max_length"].as_u64().unwrap() as usize;
        // Rows that are cut away wholly do not count for a limit, but are rows all the same
        let limit = entry["rows"].as_u64().unwrap() as usize;
        let found = place.examples(&tokenizer, length, limit).unwrap();
        let list = &found.examples;
        assert_eq!(list.len(), limit, "{entry}");
        assert!(list.last().unwrap().index < entry["limit"].as_u64().unwrap() as usize, "{entry}");
        assert_eq!(json!(list.iter().map(|e| e.ids.len()).sum::<usize>()), entry["tokens"], "{entry}");
        let targets: usize = list.iter().flat_map(|e| &e.trained).map(|t| usize::from(*t)).sum();
        assert_eq!(json!(targets), entry["targets"], "{entry}");
        assert_eq!(json!(crc(list.iter().map(|e| e.ids.clone()))), entry["ids"], "{entry}");
        assert_eq!(json!(crc(list.iter().map(|e| words(&e.trained)))), entry["mask"], "{entry}");
        assert_eq!(place.examples(&tokenizer, length, limit).unwrap(), found, "from the cache");
    }
}

#[test]
fn prompts_of_real_sets_are_tokens_of_the_published_code() {
    let Some(data) = test_data() else { return };
    for entry in reference("real.json")["prompts"].as_array().unwrap() {
        let tokenizer = Tokenizer::load(&data.join(text(entry, "tokenizer"))).unwrap();
        let file = data.join(text(entry, "file"));
        let like = format!("like = \"{}\"\nfiles = {{ test = {file:?} }}", text(entry, "dataset"));
        let rows = entry["rows"].as_u64().unwrap() as usize;
        let found = Place::new(&like, &[]).unwrap().prompts(&tokenizer, rows, 0, "test").unwrap().prompts;
        assert_eq!(json!(found.len()), entry["rows"], "{entry}");
        assert_eq!(json!(found.iter().map(|p| p.ids.len()).sum::<usize>()), entry["tokens"], "{entry}");
        assert_eq!(json!(crc(found.iter().map(|p| p.ids.clone()))), entry["ids"], "{entry}");
        assert!(found.iter().all(|p| !p.gold.is_empty()), "{entry}");
    }
}

#[test]
fn tokenizers_of_llama_and_mistral_are_built_as_transformers_builds_them() {
    let Some(data) = test_data() else { return };
    let fixture = reference("real.json");
    let texts = fixture["of"].as_array().unwrap();
    for variant in fixture["texts"].as_array().unwrap() {
        let folder = data.join(text(variant, "tokenizer"));
        let tokenizer = tokenizer(&folder, &variant["settings"], &variant["config"]).unwrap();
        for (i, text) in texts.iter().enumerate() {
            let ids = tokenizer.encode_whole(text.as_str().unwrap()).unwrap();
            let setting = (&variant["tokenizer"], &variant["settings"], &variant["config"]);
            assert_eq!(json!(ids), variant["ids"][i], "{text} {setting:?}");
            assert_eq!(
                json!(tokenizer.decode(&ids, true).unwrap()),
                variant["texts"][i],
                "{text} {setting:?}"
            );
        }
    }
}

/// The tokenizer of the fixture with this chat template.
pub fn chat_tokenizer(template: &Value) -> Tokenizer {
    let place = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("tokenizer.json"), place.path().join("tokenizer.json")).unwrap();
    let settings = json!({"chat_template": template["template"], "bos_token": template["bos_token"],
                          "eos_token": template["eos_token"]});
    tokenizer(place.path(), &settings, &json!({})).unwrap()
}

const CHAT: &str = "task = \"chat\"\nfiles = { train = \"c.jsonl\" }";

/// The example of a row of conversations.
pub fn conversation(tokenizer: &Tokenizer, row: &Value) -> Result<Example> {
    let place = Place::new(CHAT, &[("c.jsonl", &row.to_string())])?;
    Ok(place.examples(tokenizer, 4096, 0)?.examples.remove(0))
}

#[test]
fn conversations_are_rendered_and_masked_as_by_transformers() {
    let fixture = reference("chat.json");
    let mut compared = 0;
    for template in fixture["templates"].as_array().unwrap() {
        let marked = chat_tokenizer(template);
        let mut bare = template.clone();
        let source =
            ["{%- generation -%}", "{%- endgeneration -%}", "{% generation %}", "{% endgeneration %}"]
                .iter()
                .fold(text(template, "template").to_owned(), |source, tag| source.replace(tag, ""));
        bare["template"] = json!(source);
        let bare = chat_tokenizer(&bare);
        for (i, (row, expected)) in fixture["conversations"]
            .as_array()
            .unwrap()
            .iter()
            .zip(template["expected"].as_array().unwrap())
            .enumerate()
        {
            let what = format!("{} {i}", text(template, "name"));
            if let Some(error) = expected["error"].as_str() {
                let found = format!("{:#}", conversation(&marked, row).unwrap_err());
                assert!(found.contains(": chat template, line "), "{what}: {found}");
                assert!(found.contains(error) || error.contains("'"), "{what}: {found}");
                continue;
            }
            let example = conversation(&marked, row).unwrap();
            let shown = marked.decode(&example.ids, false).unwrap();
            assert_eq!(shown, text(expected, "text"), "{what}");
            assert_eq!(json!(example.ids), expected["ids"], "{what}");
            assert_eq!(json!(example.trained), expected["mask"], "{what}: {shown}");
            // Without marks, the prompt that a template writes for a turn says where it begins; one writes none
            if text(template, "name") != "python" {
                assert_eq!(conversation(&bare, row).unwrap(), example, "{what} without marks");
            }
            compared += 1;
        }
    }
    assert!(compared > 18, "{compared}");
}

#[test]
fn prompts_of_a_chat_are_those_of_transformers() {
    let fixture = reference("chat.json");
    let expected: Value = crate::support::json(&crate::support::fixture("chat.json"));
    let mut compared = 0;
    for (template, expected) in
        fixture["templates"].as_array().unwrap().iter().zip(list(&expected["prompts"]))
    {
        let tokenizer = chat_tokenizer(template);
        for (row, expected) in fixture["conversations"].as_array().unwrap().iter().zip(list(expected)) {
            let entry = "task = \"generation\"\nmessages = \"messages\"\nfiles = { test = \"c.jsonl\" }";
            let place = Place::new(entry, &[("c.jsonl", &row.to_string())]).unwrap();
            let found = place.prompts(&tokenizer, 0, 0, "test");
            if expected.is_null() {
                assert!(found.is_err(), "{row}");
                continue;
            }
            let prompt = found.unwrap().prompts.remove(0);
            assert_eq!(json!([prompt.text, prompt.ids]), json!([expected["text"], expected["ids"]]), "{row}");
            let last = list(&row["messages"]).last().unwrap();
            let gold = last["content"].as_str().filter(|_| last["role"] == "assistant").unwrap_or_default();
            assert_eq!(prompt.gold, gold);
            compared += 1;
        }
    }
    assert!(compared > 20, "{compared}");
}

#[test]
fn shots_of_a_chat_are_turns_after_the_systems() {
    let template = "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[answer]";
    let tokenizer = chat_tokenizer(
        &json!({"template": template, "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    );
    let texts = |entry: &str, rows: &[Value]| -> Vec<String> {
        let rows: String = rows.iter().map(|row| format!("{row}\n")).collect();
        let entry = format!("task = \"generation\"\nfiles = {{ test = \"c.jsonl\" }}\n{entry}");
        let place = Place::new(&entry, &[("c.jsonl", &rows)]).unwrap();
        let found = place.prompts(&tokenizer, 0, 1, "test").unwrap().prompts;
        assert!(found.iter().all(|p| tokenizer.decode(&p.ids, false).unwrap() == p.text));
        found.into_iter().map(|prompt| prompt.text).collect()
    };
    let said = |who: &str, q: &str, a: &str| {
        json!(
            [["system", who], ["user", q], ["assistant", a]]
                .map(|[role, content]| json!({"role": role, "content": content}))
        )
    };
    let rows = [
        json!({"m": said("A", "1", "2"), "q": 1, "a": 2}),
        json!({"m": said("B", "3", "4"), "q": 3, "a": 4}),
    ];
    assert_eq!(
        texts("messages = \"m\"", &rows),
        [
            "<|im_start|>[system]A[user]3[assistant]4[user]1[answer]",
            "<|im_start|>[system]B[user]1[assistant]2[user]3[answer]"
        ]
    );
    assert_eq!(
        texts("prompt = \"{q}?\"\nchat = true\nanswer = \"{a}\"", &rows)[1],
        "<|im_start|>[user]1?[assistant]2[user]3?[answer]"
    );
}

#[test]
fn earlier_turns_that_a_template_rewrites_are_not_trained_on() {
    let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}\
                    <think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    let tokenizer =
        chat_tokenizer(&json!({"template": template, "bos_token": null, "eos_token": "<|im_end|>"}));
    let turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")];
    let messages: Vec<Value> =
        turns.iter().map(|(role, said)| json!({"role": role, "content": said})).collect();
    let example = conversation(&tokenizer, &json!({ "messages": messages })).unwrap();
    let trained: Vec<u32> =
        example.ids.iter().zip(&example.trained).filter(|(_, t)| **t == 1).map(|(id, _)| *id).collect();
    assert_eq!(tokenizer.decode(&trained, false).unwrap(), "<think>d<|im_end|>");
}

#[test]
fn messages_of_all_kinds_are_rendered_as_by_transformers() {
    let odd = &reference("chat.json")["odd"];
    let tokenizer = chat_tokenizer(&odd["template"]);
    for (row, expected) in
        odd["conversations"].as_array().unwrap().iter().zip(odd["expected"].as_array().unwrap())
    {
        let found = conversation(&tokenizer, row);
        if expected["error"].is_string() {
            assert!(found.is_err(), "{row}: {expected}");
            continue;
        }
        let example = found.unwrap_or_else(|error| panic!("{row}: {error:#}"));
        assert_eq!(tokenizer.decode(&example.ids, false).unwrap(), text(expected, "text"), "{row}");
        assert_eq!(json!(example.trained), expected["mask"], "{row}");
    }
}

#[test]
fn conversations_with_tools_have_a_template_of_their_own_where_there_is_one() {
    let template =
        |word: &str| format!("{word}{{% for m in messages %}}{{{{ m.role ~ m.content }}}}{{% endfor %}}");
    let named = |name: &str| json!({"name": name, "template": template(name)});
    let said = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
    let shown = |tokenizer: &Tokenizer, tools: Value| {
        let example = conversation(tokenizer, &json!({"messages": said, "tools": tools})).unwrap();
        tokenizer.decode(&example.ids, false).unwrap()
    };
    let place = tempfile::tempdir().unwrap();
    fs::copy(fixtures().join("tokenizer.json"), place.path().join("tokenizer.json")).unwrap();
    let settings = json!({"chat_template": [named("default"), named("rag"), named("tool_use")]});
    let listed = tokenizer(place.path(), &settings, &json!({})).unwrap();
    fs::write(place.path().join("chat_template.jinja"), template("file")).unwrap();
    fs::create_dir(place.path().join("additional_chat_templates")).unwrap();
    fs::write(place.path().join("additional_chat_templates/tool_use.jinja"), template("tools")).unwrap();
    let filed = Tokenizer::load(place.path()).unwrap();
    for (tokenizer, [without, with]) in [(listed, ["default", "tool_use"]), (filed, ["file", "tools"])] {
        assert_eq!(shown(&tokenizer, Value::Null), format!("{without}useraassistantb"));
        assert_eq!(shown(&tokenizer, json!([{"name": "f"}])), format!("{with}useraassistantb"));
        assert_eq!(shown(&tokenizer, json!([])), format!("{with}useraassistantb"));
    }
}

#[test]
fn wrong_conversations_and_templates_are_told() {
    let chatml = &reference("chat.json")["templates"][1];
    let tokenizer = chat_tokenizer(chatml);
    let user = json!({"role": "user", "content": "a"});
    let said = json!([user, {"role": "assistant", "content": "b"}]);
    for (row, expected) in [
        (json!({"messages": []}), "column `messages` has no message"),
        (json!({"messages": "hello"}), "column `messages`: expected a list of messages, found a text"),
        (json!({"messages": [user, "x"]}), "column `messages`, message 2: expected an object, found a text"),
        (json!({"messages": [user, {"content": "x"}]}), "'dict object' has no attribute 'role'"),
        (json!({"messages": [user, {"role": "assistant"}]}), "'dict object' has no attribute 'content'"),
        (json!({"messages": [user, {"role": "bot", "content": 3}]}), "for +: 'int' and 'str'"),
        (json!({"messages": [user]}), "nothing of the assistant's turns is left to train on"),
        (
            json!({"messages": said, "tools": "sum"}),
            "column `tools` holds a text that is not JSON: expected value",
        ),
        (
            json!({"messages": said, "tools": ["sum"]}),
            "column `tools`: expected a list of objects, found a text",
        ),
    ] {
        let error = conversation(&tokenizer, &row).unwrap_err().to_string();
        assert!(error.starts_with("no row of `mine` train can be used: `/"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    let mut bare = chatml.clone();
    bare["template"] = json!("{% for m in messages %}{{ m.role ~ m.content }}{% endfor %}");
    let row = json!({"messages": [user, {"role": "bot", "content": "x"}]});
    let error = conversation(&chat_tokenizer(&bare), &row).unwrap_err().to_string();
    assert!(error.contains("column `messages` has no message with the role `assistant`"), "{error}");
    let row = json!({ "messages": said });
    for (template, expected) in [
        (json!("{% if %}"), "chat template, line 1: "),
        (json!("a\n{{ messages.x.y }}"), "chat template, line 2: "),
        (
            json!("a\n\n{{ messages | urlize }}"),
            "chat template, line 3: the filter `urlize` is not supported",
        ),
        (json!("{{ raise_exception('no ' ~ 1) }}"), "chat template, line 1: no 1"),
        (json!([{"name": "tools", "template": "x"}]), "has no template named `default`"),
    ] {
        let place = tempfile::tempdir().unwrap();
        fs::copy(fixtures().join("tokenizer.json"), place.path().join("tokenizer.json")).unwrap();
        let settings = json!({ "chat_template": template });
        let loaded = self::tokenizer(place.path(), &settings, &json!({}));
        let error = loaded.and_then(|tokenizer| conversation(&tokenizer, &row)).unwrap_err();
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
    let bare = Tokenizer::load(&fixtures()).unwrap();
    let error = conversation(&bare, &row).unwrap_err();
    assert_eq!(error.to_string(), "data set `mine` is for chat, but the tokenizer has no chat template");
    let place = Place::new(CHAT, &[("c.jsonl", &row.to_string())]).unwrap();
    let error = place.examples(&tokenizer, 3, 0).unwrap_err().to_string();
    assert!(error.contains("the assistant's first turn begins after "), "{error}");
}

#[test]
fn messages_of_another_form_are_told_with_the_form_that_is_expected() {
    let tokenizer = chat_tokenizer(&reference("chat.json")["templates"][1]);
    let said = json!([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]);
    let of_json = "column `messages`: expected a list of messages, found a text that holds JSON";
    for (messages, expected) in [
        (
            json!([{"from": "narrator", "value": "a"}]),
            "column `messages`, message 1: unknown `from`: `narrator`; known are `human`, ",
        ),
        (
            json!([{"who": "a", "what": "b"}]),
            "column `messages`: a message has no `role`; found `who`, `what` (chat template, ",
        ),
        (json!(said.to_string()), of_json),
        (json!("[hello]"), "column `messages`: expected a list of messages, found a text"),
    ] {
        let error = conversation(&tokenizer, &json!({ "messages": messages })).unwrap_err();
        let message = error.to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(message.contains("holds JSON"), expected == of_json, "{message}");
        let hint = hint_of(&error).unwrap();
        assert!(hint.starts_with("messages are a list of objects with `role` and `content`; see "), "{hint}");
    }
    // A template may well take messages of that form.
    let template =
        "{% for m in messages %}{{ m.from }}{% generation %}{{ m.value }}{% endgeneration %}{% endfor %}";
    let own = chat_tokenizer(&json!({"template": template, "bos_token": null, "eos_token": "<|im_end|>"}));
    let example = conversation(&own, &json!({ "messages": said })).unwrap();
    assert_eq!(own.decode(&example.ids, false).unwrap(), "humanagptb");
}

#[test]
fn a_template_that_is_right_is_not_to_be_corrected() {
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    for (template, is_right) in [
        ("{% block a %}x{% endblock %}", true),
        ("{% autoescape true %}x{% endautoescape %}", true),
        ("{{ self.a() }}", true),
        ("{{ messages | pprint }}", true),
        ("{{ messages[0].content | urlize }}", true),
        ("{% if %}", false),
        ("{% blok a %}", false),
        ("{{ messages | nothing }}", false),
    ] {
        let source = json!({"template": template, "bos_token": null, "eos_token": "<|im_end|>"});
        let error = conversation(&chat_tokenizer(&source), &row).unwrap_err();
        let hint = hint_of(&error).unwrap();
        let expected = match is_right {
            true => "this construct is not supported here: render the rows beforehand",
            false => "correct it in `chat_template.jinja` or `tokenizer_config.json`",
        };
        assert!(hint.starts_with(expected), "{template}: {hint}");
        assert_eq!(hint.contains("`instruction` data set"), is_right, "{template}: {hint}");
    }
}

const ASK: &str = "task = \"instruction\"\nprompt = \"Q: {q}\\nA:\"\nresponse = \" {a}\"";

#[test]
fn wrong_instructions_are_told() {
    let tokenizer = chat_tokenizer(&reference("chat.json")["templates"][1]);
    let files = "\nfiles = { train = \"i.jsonl\" }";
    let fails = |entry: &str, rows: &str, length: usize| {
        let place = Place::new(&format!("{entry}{files}"), &[("i.jsonl", rows)]);
        let error = place.and_then(|place| place.examples(&tokenizer, length, 0)).unwrap_err();
        (format!("{error:#}"), hint_of(&error).unwrap_or_default().to_owned())
    };
    let (message, hint) = fails(ASK, "{\"question\": \"x\", \"a\": 1}", 64);
    assert!(message.ends_with("i.jsonl` has no column `q`"), "{message}");
    assert_eq!(hint, "columns: `a`, `question`");
    let long = json!({"q": "long ".repeat(40), "a": "b"}).to_string();
    let rows = format!("{{\"q\": \"x\", \"a\": \" \"}}\n{{\"q\": null, \"a\": \"y\"}}\n{long}");
    let (message, _) = fails(ASK, &rows, 30);
    for part in
        ["line 1: the response is empty", "line 2: column `q` is empty", "line 3: the prompt alone has "]
    {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
    let (message, _) = fails("task = \"instruction\"\nprompt = \"{q\"\nresponse = \"\"", "{}", 8);
    assert!(message.contains("`mine.prompt`: `{` at character 1 is unmatched"), "{message}");
    assert!(message.contains("`mine.response`: expected a text, found an empty one"), "{message}");
    let (message, _) = fails("task = \"generation\"\nprompt = \"{q}\"", "{\"q\": \"x\"}", 8);
    assert_eq!(message, "data set `mine` is for generation, not for training");
    let place = Place::new(&format!("{ASK}{files}"), &[("i.jsonl", "{\"q\": \"x\", \"a\": \"y\"}")]).unwrap();
    let error = place.examples(&Tokenizer::load(&fixtures()).unwrap(), 64, 0).unwrap_err();
    assert_eq!(error.to_string(), "no end-of-text token is known");
    assert!(hint_of(&error).unwrap().contains("`eos_token_id`"));
}

#[test]
fn the_end_is_trained_unless_it_was_cut_off() {
    let tokenizer = chat_tokenizer(&reference("chat.json")["templates"][1]);
    let files = "\nfiles = { train = \"i.jsonl\" }";
    let place = Place::new(&format!("{ASK}{files}"), &[("i.jsonl", "{\"q\": \"x\", \"a\": \"y\"}")]).unwrap();
    let whole = place.examples(&tokenizer, 64, 0).unwrap();
    let example = &whole.examples[0];
    assert_eq!(tokenizer.decode(&example.ids, false).unwrap(), "Q: x\nA: y<|im_end|>");
    let prompt = tokenizer.encode_whole("Q: x\nA:").unwrap().len();
    assert_eq!(example.trained.iter().position(|t| *t == 1), Some(prompt));
    assert_eq!(tokenizer.show(example).unwrap(), "Q: x\nA:⟦ y<|im_end|>⟧");
    let cut = place.examples(&tokenizer, example.ids.len() - 1, 0).unwrap();
    assert_eq!(
        (cut.examples[0].ids.as_slice(), cut.truncation.rows),
        (&example.ids[..example.ids.len() - 1], 1)
    );
}

#[test]
fn shots_are_the_first_rows_and_never_the_row_itself() {
    let tokenizer = Tokenizer::load(&fixtures()).unwrap();
    let rows: String = (1..5).map(|i| format!("{{\"q\": \"{i}+1\", \"a\": {}}}\n", i + 1)).collect();
    let entry = "task = \"generation\"\nprompt = \"Q: {q}\\nA:\"\nanswer = \"{a}\"\n\
                 files = { train = \"t.jsonl\", test = \"t.jsonl\" }";
    let place = Place::new(entry, &[("t.jsonl", &rows)]).unwrap();
    let texts = |shots, from| -> Vec<String> {
        let found = place.prompts(&tokenizer, 0, shots, from).unwrap().prompts;
        assert!(found.iter().all(|p| p.ids == tokenizer.encode_whole(&p.text).unwrap()));
        found.into_iter().map(|prompt| prompt.text).collect()
    };
    assert_eq!(texts(0, "train")[1], "Q: 2+1\nA:");
    assert_eq!(texts(1, "train")[0], "Q: 1+1\nA: 2\n\nQ: 1+1\nA:");
    assert_eq!(texts(2, "test")[0], "Q: 2+1\nA: 3\n\nQ: 3+1\nA: 4\n\nQ: 1+1\nA:");
    assert_eq!(texts(2, "test")[3], "Q: 1+1\nA: 2\n\nQ: 2+1\nA: 3\n\nQ: 4+1\nA:");
    let prompts = place.prompts(&tokenizer, 0, 0, "train").unwrap();
    let last = &prompts.prompts[3];
    assert_eq!((last.index, last.gold.as_str(), &last.columns["a"]), (3, "5", &json!(5)));
    assert_ne!(prompts.hash, place.prompts(&tokenizer, 0, 1, "train").unwrap().hash);
    let error = place.prompts(&tokenizer, 0, 4, "train").unwrap_err().to_string();
    assert_eq!(error, "4 shots were requested, but `mine` train has 4");
    let entry = entry.replace("prompt = \"Q", "shot = \"{q}={a}\"\nshot_separator = \"; \"\nprompt = \"Q");
    let place = Place::new(&entry, &[("t.jsonl", &rows)]).unwrap();
    let found = place.prompts(&tokenizer, 0, 2, "train").unwrap().prompts;
    assert_eq!(found[3].text, "1+1=2; 2+1=3; Q: 4+1\nA:");
}
