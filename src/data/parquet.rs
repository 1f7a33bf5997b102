//! Rows of a Parquet file.

use std::fs::File;
use std::path::Path;

use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row as Record};
use serde_json::{Number, Value};

use super::rows::{Columns, Row, Rows, collect};
use crate::fault::{Result, fault};

/// Reads all rows of `file`; `path` is its name in errors.
///
/// # Errors
/// When the file is not Parquet, is cut short, or uses a compression that is not built in.
pub fn read(path: &Path, file: File) -> Result<Rows> {
    let broken = |e: parquet::errors::ParquetError| {
        fault(format!("`{}` is not a whole Parquet file: {e}", path.display())).hint("fetch the file again")
    };
    let reader = SerializedFileReader::new(file).map_err(broken)?;
    let mut rows = Vec::new();
    for (i, record) in reader.get_row_iter(None).map_err(broken)?.enumerate() {
        rows.push(Row { number: i + 1, columns: Ok(columns(&record.map_err(broken)?)) });
    }
    let mut rows = collect("row", rows);
    let schema = reader.metadata().file_metadata().schema();
    rows.columns.extend(schema.get_fields().iter().map(|field| field.name().to_owned()));
    Ok(rows)
}

fn columns(record: &Record) -> Columns {
    record.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// JSON has no NaN: such a number becomes the text that names it, so that a label says what is wrong with it.
fn float(number: f64) -> Value {
    Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => Value::from(*n),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(x) => float(f64::from(*x)),
        // Through its shortest text, so that 3.8 stays 3.8
        Field::Float(x) => x.to_string().parse().map_or_else(|_| float(f64::from(*x)), float),
        Field::Double(x) => float(*x),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => {
            std::str::from_utf8(bytes.data()).map_or(Value::Null, |text| Value::String(text.to_owned()))
        }
        Field::Group(record) => Value::Object(columns(record)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        Field::MapInternal(map) => {
            map.entries().iter().map(|(key, entry)| (plain(key), value(entry))).collect::<Columns>().into()
        }
        other => Value::String(other.to_string()),
    }
}

/// The key of a map entry without the quotes that a text is displayed with.
fn plain(key: &Field) -> String {
    match key {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::{Compression, LogicalType, Repetition, Type as Physical};
    use parquet::data_type::{ByteArray, ByteArrayType, DoubleType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::types::Type;
    use serde_json::json;

    use super::super::rows::read_rows;
    use super::*;

    /// Three rows as the hub's GLUE files hold them: a text that may be null, a label, a number.
    fn write(path: &Path, compression: Compression) {
        let field = |name: &str, physical, repetition, logical: Option<LogicalType>| {
            let builder = Type::primitive_type_builder(name, physical).with_repetition(repetition);
            Arc::new(builder.with_logical_type(logical).build().unwrap())
        };
        let fields = vec![
            field("text", Physical::BYTE_ARRAY, Repetition::OPTIONAL, Some(LogicalType::String)),
            field("label", Physical::INT64, Repetition::REQUIRED, None),
            field("score", Physical::DOUBLE, Repetition::REQUIRED, None),
        ];
        let schema = Arc::new(Type::group_type_builder("schema").with_fields(fields).build().unwrap());
        let properties = Arc::new(WriterProperties::builder().set_compression(compression).build());
        let mut writer = SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        let texts = [ByteArray::from("é 1"), ByteArray::from("two")];
        column.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 0, 1]), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&[1, -1, 0], None, None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<DoubleType>().write_batch(&[3.8, f64::NAN, 5.0], None, None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn rows_come_with_nulls_and_numbers_under_every_compression() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
            Compression::BROTLI(Default::default()),
            Compression::LZ4_RAW,
        ] {
            write(&path, compression);
            let rows = read_rows(&path).unwrap();
            let values: Vec<Value> =
                rows.rows.iter().map(|r| Value::Object(r.columns.clone().unwrap())).collect();
            let expected = [
                json!({"text": "é 1", "label": 1, "score": 3.8}),
                json!({"text": null, "label": -1, "score": "NaN"}),
                json!({"text": "two", "label": 0, "score": 5.0}),
            ];
            assert_eq!(values, expected, "{compression}");
            assert_eq!(rows.unit, "row");
        }
    }

    #[test]
    fn gzipped_and_broken_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f.parquet");
        write(&path, Compression::SNAPPY);
        let bytes = std::fs::read(&path).unwrap();
        let packed = folder.path().join("g.parquet.gz");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), Default::default());
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        encoder.finish().unwrap();
        assert_eq!(read_rows(&packed).unwrap(), read_rows(&path).unwrap());
        for cut in [0, 3, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let error = read_rows(&path).unwrap_err().to_string();
            assert!(error.contains("f.parquet` is not a whole Parquet file"), "{error}");
        }
    }
}
