//! Rows of an Arrow stream, the files of `save_to_disk` of Hugging Face's `datasets`.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float16Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type,
    UInt32Type, UInt64Type,
};
use arrow_array::{Array, StructArray};
use arrow_ipc::reader::StreamReader;
use arrow_schema::DataType;
use serde_json::Value;

use super::json::{Source, source};
use super::odd;
use super::row::{Body, Columns, Raw};
use crate::fault::{Fault, Result, contained, fault};

/// Returns the rows of `file`, named `path` in errors, its columns, and what it says of their types (`features.rs`).
///
/// # Errors
/// When the file is not a stream of Arrow, or broken at its start.
pub(super) fn open(path: &Path, file: File) -> Result<(Source, Vec<String>, Option<String>)> {
    let reader = contained(path, || StreamReader::try_new(BufReader::new(file), None))?;
    let reader = reader.map_err(|error| broken(path, &error))?;
    let schema = reader.schema();
    let columns = schema.fields().iter().map(|field| field.name().clone()).collect();
    let features = schema.metadata().get("huggingface").cloned();
    let mut rows = Batches { path: path.to_owned(), reader, batch: None, at: 0, number: 0 };
    Ok((source(move || rows.read()), columns, features))
}

fn broken(path: &Path, reason: &dyn std::fmt::Display) -> Fault {
    fault(format!("`{}` is not a complete Arrow stream: {reason}", path.display()))
        .hint("write the folder again with `save_to_disk`")
}

/// The rows of a stream, one batch after another.
struct Batches {
    path: PathBuf,
    reader: StreamReader<BufReader<File>>,
    batch: Option<StructArray>,
    /// Row of the batch.
    at: usize,
    number: usize,
}

impl Batches {
    fn read(&mut self) -> Result<Option<Raw>> {
        while self.batch.as_ref().is_none_or(|batch| self.at == batch.len()) {
            let next = contained(&self.path, || self.reader.next().transpose())?;
            let Some(batch) = next.map_err(|error| broken(&self.path, &error))? else { return Ok(None) };
            (self.batch, self.at) = (Some(batch.into()), 0);
        }
        let Some(batch) = &self.batch else { return Ok(None) };
        let row = contained(&self.path, || columns(batch, self.at))?;
        (self.at, self.number) = (self.at + 1, self.number + 1);
        Ok(Some(Raw::new(self.number, row.values().map(odd::size).sum(), Body::Read(Ok(row)))))
    }
}

fn columns(group: &StructArray, row: usize) -> Columns {
    let names = group.fields().iter().map(|field| field.name().clone());
    names.zip(group.columns().iter().map(|column| value(column, row))).collect()
}

/// Converts a value as Python's reader does.
fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    let list = |items: &dyn Array| (0..items.len()).map(|i| value(items, i)).collect::<Value>();
    match array.data_type() {
        DataType::Null => Value::Null,
        DataType::Boolean => array.as_boolean().value(row).into(),
        DataType::Int8 => array.as_primitive::<Int8Type>().value(row).into(),
        DataType::Int16 => array.as_primitive::<Int16Type>().value(row).into(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).into(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).into(),
        DataType::UInt8 => array.as_primitive::<UInt8Type>().value(row).into(),
        DataType::UInt16 => array.as_primitive::<UInt16Type>().value(row).into(),
        DataType::UInt32 => array.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Float16 => odd::float(array.as_primitive::<Float16Type>().value(row).into()),
        DataType::Float32 => odd::float(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => odd::float(array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => array.as_string::<i32>().value(row).into(),
        DataType::LargeUtf8 => array.as_string::<i64>().value(row).into(),
        DataType::List(_) => list(&array.as_list::<i32>().value(row)),
        DataType::LargeList(_) => list(&array.as_list::<i64>().value(row)),
        DataType::FixedSizeList(..) => list(&array.as_fixed_size_list().value(row)),
        DataType::Struct(_) => Value::Object(columns(array.as_struct(), row)),
        other => odd::unusable(format!("a value of Arrow's type `{other}`")),
    }
}
