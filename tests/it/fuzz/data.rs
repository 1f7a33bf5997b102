//! Rows of data in all formats, changed before or after they are packed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;

use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::basic::{LogicalType, Repetition, Type as Physical};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::Type;
use serde_json::{Map, Value, json};

use super::dice::Dice;
use super::{json as json_text, kinds, text};
use crate::support::encoders;

/// A task that reads rows: the entry of its catalog, and the columns of its rows.
const TASKS: [(&str, &[&str]); 5] = [
    ("task = \"instruction\"\nprompt = \"Q: {q}\\nA: \"\nresponse = \"{a}\"\n", &["q", "a", "c"]),
    (
        "task = \"generation\"\nprompt = \"{q}\"\nanswer = \"{a}\"\nscorers = [\"gsm8k/flexible\"]\nmax_new_tokens = 3\ngroup_by = [\"c\"]\n",
        &["q", "a", "c"],
    ),
    ("task = \"chat\"\n", &["messages", "tools"]),
    (
        "task = \"classification\"\ntext = [\"q\", \"c\"]\nlabel = \"a\"\nlabels = [\"2\", \"3\"]\n",
        &["q", "a", "c"],
    ),
    ("task = \"regression\"\ntext = [\"q\"]\nlabel = \"a\"\n", &["q", "a"]),
];
const FORMATS: [&str; 6] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"];

/// Writes a data set that something is wrong with, and says what reads it.
pub fn rows(dice: &mut Dice, folder: &Path) -> Vec<String> {
    let (entry, columns) = TASKS[dice.below(TASKS.len())];
    if entry.contains("cation") || entry.contains("regression") {
        kinds::common(folder, "tiny/pairs", 2);
        kinds::put_model(folder, &encoders().join("bert-gelu"));
    }
    let format = FORMATS[dice.below(FORMATS.len())];
    let rows: Vec<Map<String, Value>> = (0..8).map(|i| row(columns, i)).collect();
    let mut bytes = match dice.below(12) {
        0 => large(dice, format, columns),
        _ => changed(dice, format, written(format, columns, &rows)),
    };
    let mut name = format!("rows.{format}");
    if dice.chance(25) {
        bytes = packed(&bytes);
        name += ".gz";
        if dice.chance(30) {
            bytes = text::changed(dice, bytes, "");
        }
    }
    fs::write(folder.join(&name), bytes).unwrap();
    let entry = format!(
        "[\"my/data\"]\nfiles = {{ train = {name:?}, validation = {name:?}, test = {name:?} }}\n{entry}"
    );
    fs::write(folder.join("datasets.toml"), &entry).unwrap();
    let template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}";
    fs::write(folder.join("model/chat_template.jinja"), template).unwrap();
    let is_prompt = entry.contains("generation");
    let mut args = vec!["train", "--recipe", "recipe.toml", "--out", "run", "--set", "data.dataset=my/data"];
    match dice.below(4) {
        0..2 => args.push("--dry-run"),
        2 => {}
        _ => args = vec!["eval", "--model", "model", "--task", "my/data", "--limit", "4"],
    }
    if is_prompt {
        args = vec!["eval", "--model", "model", "--task", "my/data", "--limit", "4"];
    }
    args.extend(["--datasets", "datasets.toml"]);
    args.into_iter().map(str::to_owned).collect()
}

fn row(columns: &[&str], i: usize) -> Map<String, Value> {
    let value = |column: &&str| match *column {
        "messages" => {
            json!([{"role": "user", "content": format!("{i}+1?")}, {"role": "assistant", "content": "3"}])
        }
        "tools" => Value::Null,
        "a" => json!((2 + i % 2).to_string()),
        _ => json!(format!("Ann has {i}")),
    };
    columns.iter().map(|column| ((*column).to_owned(), value(column))).collect()
}

fn cell(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn written(format: &str, columns: &[&str], rows: &[Map<String, Value>]) -> Vec<u8> {
    let lines = || rows.iter().map(|row| serde_json::to_string(row).unwrap()).collect::<Vec<_>>();
    match format {
        "json" => format!("[{}]", lines().join(",\n")).into_bytes(),
        "csv" | "tsv" => {
            let delimiter = if format == "csv" { b',' } else { b'\t' };
            let mut writer = csv::WriterBuilder::new().delimiter(delimiter).from_writer(Vec::new());
            writer.write_record(columns).unwrap();
            rows.iter().for_each(|row| writer.write_record(row.values().map(cell)).unwrap());
            writer.into_inner().unwrap()
        }
        "parquet" => parquet(columns, rows),
        _ => lines().join("\n").into_bytes(),
    }
}

fn changed(dice: &mut Dice, format: &str, bytes: Vec<u8>) -> Vec<u8> {
    let keys = "q¦a¦c¦messages¦tools¦label";
    match format {
        "json" => json_text::changed(dice, &bytes, keys),
        "jsonl" | "ndjson" => json_text::lines_changed(dice, &bytes, keys),
        "csv" | "tsv" => text::changed(dice, bytes, ",¦\t¦\"¦\"\"¦\n\n¦q,a,c\n¦\r"),
        _ => {
            // The footer says what the rest means
            let mut bytes = bytes;
            let tail = bytes
                .split_off(bytes.len() - if dice.chance(60) { bytes.len().min(400) } else { bytes.len() });
            [bytes, text::changed(dice, tail, "")].concat()
        }
    }
}

/// Rows, cells or columns without an end.
fn large(dice: &mut Dice, format: &str, columns: &[&str]) -> Vec<u8> {
    let size = [1_000, 30_000, 200_000, 2_000_000][dice.below(4)];
    let mut one = row(columns, 0);
    match dice.below(3) {
        0 => {
            let unit = dice.word("a¦Ann has 3 ¦é¦1 ");
            one.insert(columns[0].to_owned(), json!(unit.repeat(size)));
            written(format, columns, &[one, row(columns, 1)])
        }
        1 => {
            let names: Vec<String> = (0..size / 10).map(|i| format!("x{i}")).collect();
            one.extend(names.iter().map(|name| (name.clone(), json!("v"))));
            let columns: Vec<&str> =
                columns.iter().copied().chain(names.iter().map(String::as_str)).collect();
            written(
                format,
                if format == "parquet" { &columns[..columns.len().min(500)] } else { &columns },
                &[one],
            )
        }
        _ => written(format, columns, &vec![one; size / 10]),
    }
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn parquet(columns: &[&str], rows: &[Map<String, Value>]) -> Vec<u8> {
    let field = |name: &&str| {
        let builder =
            Type::primitive_type_builder(name, Physical::BYTE_ARRAY).with_repetition(Repetition::REQUIRED);
        Arc::new(builder.with_logical_type(Some(LogicalType::String)).build().unwrap())
    };
    let fields = columns.iter().map(field).collect();
    let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build().unwrap());
    let file = tempfile::NamedTempFile::new().unwrap();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer =
        SerializedFileWriter::new(File::create(file.path()).unwrap(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for name in columns {
        let mut column = group.next_column().unwrap().unwrap();
        let cells: Vec<ByteArray> = rows
            .iter()
            .map(|row| ByteArray::from(cell(row.get(*name).unwrap_or(&Value::Null)).into_bytes()))
            .collect();
        column.typed::<ByteArrayType>().write_batch(&cells, None, None).unwrap();
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
    fs::read(file.path()).unwrap()
}
