//! `docs/keys.md`, made from the code that reads recipes and catalogs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use loraxs::adapters::Method;
use loraxs::data::entry::Entry;
use loraxs::data::task::{
    Chat, Classification, Generation, Instruction, MultiLabel, PlainText, Regression, TokenClassification,
};
use loraxs::recipe::{AdapterRecipe, DataRecipe, EvalRecipe, ModelRecipe, TrainRecipe};
use loraxs::spec::reader::Reader;

const INTRODUCTION: &str = "# Keys

Every key of a recipe and of a catalog entry, generated from the code that reads them; after a change there,
`LORAXS_WRITE=1 cargo test --test it -- keys::` writes this file anew.
";

type Keys = &'static [(&'static str, &'static str)];

/// The words for a value that fits `key`, from the message about one that does not.
fn expected(key: &str, open: &dyn Fn(&str) -> Reader, read: &dyn Fn(&mut Reader)) -> String {
    let mut reader = open(&format!("{} = 1979-05-27", key.rsplit('.').next().unwrap()));
    read(&mut reader);
    let faults = reader.faults().join("\n");
    let (_, words) =
        faults.split_once(": expected ").unwrap_or_else(|| panic!("{key} is not read: {faults}"));
    let words = words.split_once(", found a date or time").unwrap().0;
    words.split_once(", since").map_or(words, |(range, _)| range).to_owned()
}

fn default(key: &str, reader: &Reader, missing: &[String]) -> String {
    match &reader.known()[key] {
        _ if missing.iter().any(|fault| fault.contains(&format!("`{key}`"))) => "required".to_owned(),
        None => "none".to_owned(),
        Some(value) => format!("`{}`", serde_json::to_string(value).unwrap()),
    }
}

/// A table of `keys`. `open` opens a document in which they stand at the level of one line.
fn table(keys: Keys, open: &dyn Fn(&str) -> Reader, read: &dyn Fn(&mut Reader)) -> String {
    let empty = || {
        let mut reader = open("");
        read(&mut reader);
        reader
    };
    let missing: Vec<String> = empty().faults().into_iter().map(|fault| fault.replace("`x.", "`")).collect();
    let mut text = "\n| key | value | default | meaning |\n|---|---|---|---|\n".to_owned();
    for (key, meaning) in keys {
        let (leaf, value) = (key.rsplit('.').next().unwrap(), expected(key, open, read));
        let default = default(key, &empty(), &missing);
        writeln!(text, "| `{leaf}` | {value} | {default} | {} |", meaning.trim()).unwrap();
    }
    text
}

fn of_recipe(section: &str, keys: Keys, read: &dyn Fn(&mut Reader)) -> String {
    let open = |line: &str| Reader::open(&format!("[{section}]\n{line}\n"), "recipe").unwrap();
    table(keys, &open, read)
}

fn of_entry(keys: Keys, read: &dyn Fn(&mut Reader)) -> String {
    let open = |line: &str| Reader::open_entries(&format!("[x]\n{line}\n"), "catalog").unwrap().remove(0).1;
    table(keys, &open, read)
}

fn reference() -> String {
    let mut text = format!("{INTRODUCTION}\n## Recipe\n\n### `[model]`\n");
    text += &of_recipe("model", ModelRecipe::KEYS, &|reader| _ = ModelRecipe::read(reader));
    text += "\n### `[adapter]`\n";
    let methods = Method::all();
    let defaults = methods[0].basis_defaults();
    text += &of_recipe("adapter", AdapterRecipe::KEYS, &|reader| _ = AdapterRecipe::read(reader));
    for method in methods.iter().filter(|method| !method.documented().is_empty()) {
        let (init, sigma) = method.basis_defaults();
        write!(text, "\nWith `method = \"{}\"`", method.name()).unwrap();
        if (init, sigma) != defaults {
            write!(text, ", where `init = \"{init}\"` and `sigma = \"{sigma}\"` by default").unwrap();
        }
        text += ":\n";
        text += &of_recipe("adapter", method.documented(), &|reader| _ = method.read(reader));
    }
    text += "\n### `[data]`\n";
    text += &of_recipe("data", DataRecipe::KEYS, &|reader| _ = DataRecipe::read(reader));
    text += "\n### `[train]`\n";
    text += &of_recipe("train", TrainRecipe::KEYS, &|reader| _ = TrainRecipe::read(reader));
    text += "\n### `[eval]`\n";
    text += &of_recipe("eval", EvalRecipe::KEYS, &|reader| _ = EvalRecipe::read(reader));
    text += "\n## Catalog\n\n### Every entry\n";
    text += &of_entry(Entry::KEYS, &|reader| _ = Entry::read(reader));
    text += "\n### `task = \"classification\"`\n";
    text += &of_entry(Classification::KEYS, &|reader| _ = Classification::read(reader));
    text += "\n### `task = \"regression\"`\n";
    text += &of_entry(Regression::KEYS, &|reader| _ = Regression::read(reader));
    text += "\n### `task = \"multi-label\"`\n";
    text += &of_entry(MultiLabel::KEYS, &|reader| _ = MultiLabel::read(reader));
    text += "\n### `task = \"token-classification\"`\n";
    text += &of_entry(TokenClassification::KEYS, &|reader| _ = TokenClassification::read(reader));
    text += "\n### `task = \"instruction\"`\n";
    text += &of_entry(Instruction::KEYS, &|reader| _ = Instruction::read(reader));
    text += "\n### `task = \"text\"`\n";
    text += &of_entry(PlainText::KEYS, &|reader| _ = PlainText::read(reader));
    text += "\n### `task = \"chat\"`\n";
    text += &of_entry(Chat::KEYS, &|reader| _ = Chat::read(reader));
    text += "\n### `task = \"generation\"`\n";
    text += &of_entry(Generation::KEYS, &|reader| _ = Generation::read(reader));
    text
}

#[test]
fn the_reference_is_that_of_the_code() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/keys.md");
    let made = reference();
    if std::env::var_os("LORAXS_WRITE").is_some() {
        fs::write(&path, &made).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == made,
        "docs/keys.md is out of date: {INTRODUCTION}"
    );
}
