//! Rows of a Parquet file.

use std::fs::File;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveTime, TimeDelta};
use num_bigint::BigInt;
use parquet::basic::{LogicalType, TimeUnit, Type as Physical};
use parquet::file::metadata::ParquetMetaData;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use parquet::schema::types::Type;
use serde_json::Value;

use super::json::{Source, source};
use super::odd;
use super::row::{Body, Columns, Raw};
use crate::fault::{Fault, Result, contained, fault};

/// Returns the rows of `file`, named `path` in errors, its columns, and what it says of their types (`features.rs`).
///
/// # Errors
/// When the file is not Parquet, is cut short, contradicts itself, or uses a compression that is not built in.
pub(super) fn open(path: &Path, file: File) -> Result<(Source, Vec<String>, Option<String>)> {
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    let reader = contained(path, || SerializedFileReader::new(file))?.map_err(|e| broken(path, &e))?;
    contained(path, || check(reader.metadata(), size))?.map_err(|reason| broken(path, &reason))?;
    let schema = reader.metadata().file_metadata().schema_descr().root_schema_ptr();
    let said = reader.metadata().file_metadata().key_value_metadata();
    let said = said.into_iter().flatten().find(|pair| pair.key == "huggingface");
    let features = said.and_then(|pair| pair.value.clone());
    let columns = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
    let records = contained(path, || RowIter::from_file_into(Box::new(reader)))?;
    let mut rows = Records { path: path.to_owned(), records, schema, number: 0 };
    Ok((source(move || rows.read()), columns, features))
}

fn broken(path: &Path, reason: &dyn std::fmt::Display) -> Fault {
    fault(format!("`{}` is not a complete Parquet file: {reason}", path.display()))
        .hint("download the file again")
}

/// Refuses a file whose parts disagree on how much they hold: it would be read for as long as it claims.
fn check(metadata: &ParquetMetaData, size: u64) -> std::result::Result<(), String> {
    let fields = metadata.file_metadata().schema().get_fields();
    let mut names: Vec<&str> = fields.iter().map(|field| field.name()).collect();
    names.sort_unstable();
    let mut pairs = names.iter().zip(names.iter().skip(1));
    if let Some((name, _)) = pairs.find(|(name, next)| name == next) {
        return Err(format!("it names the column `{name}` twice"));
    }
    for (i, group) in metadata.row_groups().iter().enumerate() {
        let rows = group.num_rows();
        if group.columns().is_empty() || rows < 0 {
            return Err(format!("row group {i} has {} columns and {rows} rows", group.columns().len()));
        }
        for column in group.columns() {
            let (values, descriptor) = (column.num_values(), column.column_descr());
            let fits = if descriptor.max_rep_level() == 0 { values == rows } else { values >= rows };
            let (start, length) = column.byte_range();
            if !fits || start.checked_add(length).is_none_or(|end| end > size) {
                let name = descriptor.path();
                return Err(format!(
                    "row group {i} says {rows} rows, its column `{name}` {values} values in {length} bytes from byte {start} on"
                ));
            }
        }
    }
    Ok(())
}

/// The records of a file, one after another.
struct Records {
    path: PathBuf,
    records: RowIter<'static>,
    schema: std::sync::Arc<Type>,
    number: usize,
}

impl Records {
    fn read(&mut self) -> Result<Option<Raw>> {
        let next = contained(&self.path, || {
            let next = self.records.next().transpose();
            next.map(|record| record.map(|record| columns(&record, &self.schema)))
        })?;
        let Some(columns) = next.map_err(|error| broken(&self.path, &error))? else { return Ok(None) };
        self.number += 1;
        let size = columns.values().map(odd::size).sum();
        Ok(Some(Raw::new(self.number, size, Body::Read(Ok(columns)))))
    }
}

/// Returns the values of a record by column name; `group` is their type.
fn columns(record: &Record, group: &Type) -> Columns {
    let fields = group.get_fields();
    let column = |(i, (name, field)): (usize, (&String, &Field))| {
        let of_name = fields.get(i).filter(|of| of.name() == name);
        (name.clone(), value(field, of_name.map(|of| &**of)))
    };
    record.get_column_iter().enumerate().map(column).collect()
}

/// Converts a value as Python's readers of Parquet do, in the words that Python prints.
fn value(field: &Field, of: Option<&Type>) -> Value {
    let element = of.and_then(inner);
    match field {
        Field::Null => Value::Null,
        Field::Bool(b) => Value::Bool(*b),
        Field::Byte(n) => Value::from(*n),
        Field::Short(n) => Value::from(*n),
        Field::Int(n) => Value::from(*n),
        Field::Long(n) => long(*n, of),
        Field::UByte(n) => Value::from(*n),
        Field::UShort(n) => Value::from(*n),
        Field::UInt(n) => Value::from(*n),
        Field::ULong(n) => Value::from(*n),
        Field::Float16(x) => odd::float(f64::from(*x)),
        Field::Float(x) => odd::float(f64::from(*x)),
        Field::Double(x) => odd::float(*x),
        Field::Str(text) => Value::String(text.clone()),
        Field::Bytes(bytes) => match std::str::from_utf8(bytes.data()) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => odd::unusable("bytes that are not UTF-8 text"),
        },
        Field::Decimal(decimal) => Value::String(decimal_text(decimal.data(), decimal.scale())),
        Field::Date(days) => texted(date(*days)),
        Field::TimeMillis(n) => texted(time(i64::from(*n).checked_mul(1_000_000))),
        Field::TimeMicros(n) => texted(time(n.checked_mul(1000))),
        Field::TimestampMillis(_) if of.is_some_and(is_int96) => {
            odd::unusable("a time as INT96, an old form of Parquet")
        }
        Field::TimestampMillis(n) => texted(moment(n.checked_mul(1000), 0, of)),
        Field::TimestampMicros(n) => texted(moment(Some(*n), 0, of)),
        Field::Group(record) => match of {
            Some(group) if group.is_group() => Value::Object(columns(record, group)),
            _ => Value::Null,
        },
        Field::ListInternal(list) => list.elements().iter().map(|field| value(field, element)).collect(),
        Field::MapInternal(map) => map
            .entries()
            .iter()
            .map(|(key, entry)| (plain(key), value(entry, None)))
            .collect::<Columns>()
            .into(),
    }
}

/// Returns the element type of a list: below the repeated group of every list, or a repeated field itself.
fn inner(list: &Type) -> Option<&Type> {
    let repeated = list.is_group().then(|| list.get_fields().first()).flatten()?;
    let is_wrapper = repeated.is_group() && repeated.get_fields().len() == 1 && repeated.name() != "array";
    Some(if is_wrapper { repeated.get_fields().first()? } else { repeated })
}

fn is_int96(of: &Type) -> bool {
    of.is_primitive() && of.get_physical_type() == Physical::INT96
}

/// Returns a text, or a mark that Python cannot hold the time.
fn texted(text: Option<String>) -> Value {
    text.map_or_else(|| odd::unusable("a time that Python cannot hold"), Value::String)
}

/// Converts a long number, which may be a time: fields have no type of their own for nanoseconds.
fn long(number: i64, of: Option<&Type>) -> Value {
    match of.and_then(|of| of.get_basic_info().logical_type_ref()) {
        Some(LogicalType::Timestamp(t)) if t.unit == TimeUnit::NANOS => {
            texted(moment(Some(number.div_euclid(1000)), number.rem_euclid(1000), of))
        }
        Some(LogicalType::Time(t)) if t.unit == TimeUnit::NANOS => texted(time(Some(number))),
        _ => Value::from(number),
    }
}

/// `str` of a `datetime`, or of the `Timestamp` of pandas where there are nanoseconds.
fn moment(micros: Option<i64>, nanos: i64, of: Option<&Type>) -> Option<String> {
    let moment = DateTime::from_timestamp_micros(micros?)?;
    let fraction = match (moment.timestamp_subsec_micros(), nanos) {
        (0, 0) => String::new(),
        (micros, 0) => format!(".{micros:06}"),
        (micros, nanos) => format!(".{micros:06}{nanos:03}"),
    };
    // Without a logical type, the older type of a file means UTC.
    let is_utc = match of.and_then(|of| of.get_basic_info().logical_type_ref()) {
        Some(LogicalType::Timestamp(t)) => t.is_adjusted_to_u_t_c,
        _ => true,
    };
    let zone = if is_utc { "+00:00" } else { "" };
    is_year(moment.year()).then(|| format!("{}{fraction}{zone}", moment.format("%Y-%m-%d %H:%M:%S")))
}

fn date(days: i32) -> Option<String> {
    let epoch = NaiveDate::from_ymd_opt(1970, 1, 1)?;
    let date = epoch.checked_add_signed(TimeDelta::try_days(days.into())?)?;
    is_year(date.year()).then(|| date.format("%Y-%m-%d").to_string())
}

/// Returns true if Python supports this year.
fn is_year(year: i32) -> bool {
    (1..=9999).contains(&year)
}

/// `str` of a `time`, which has no nanoseconds.
fn time(nanos: Option<i64>) -> Option<String> {
    let nanos = nanos.filter(|nanos| nanos % 1000 == 0)?;
    let second = u32::try_from(nanos.div_euclid(1_000_000_000)).ok()?;
    let time = NaiveTime::from_num_seconds_from_midnight_opt(second, 0)?;
    let micros = nanos.rem_euclid(1_000_000_000) / 1000;
    let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
    Some(format!("{}{fraction}", time.format("%H:%M:%S")))
}

/// `str` of a `Decimal`: its digits with a point `scale` places before the end, and small ones with an exponent.
fn decimal_text(bytes: &[u8], scale: i32) -> String {
    let number = BigInt::from_signed_bytes_be(bytes);
    let digits = number.magnitude().to_string();
    let sign = if number.sign() == num_bigint::Sign::Minus { "-" } else { "" };
    let places = usize::try_from(scale).unwrap_or(0);
    // The power of ten of the first digit.
    let power = digits.len() as i64 - 1 - places as i64;
    if power < -6 {
        let (first, rest) = digits.split_at(1);
        let point = if rest.is_empty() { "" } else { "." };
        return format!("{sign}{first}{point}{rest}E{power:+}");
    }
    let padded = format!("{digits:0>width$}", width = places + 1);
    let (whole, fraction) = padded.split_at(padded.len() - places);
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
}

/// Returns the key of a map entry without the quotes that a text is displayed with.
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

    use super::super::row::{Row, Wanted};
    use super::super::rows::Rows;
    use super::*;

    fn read_rows(path: &Path) -> Result<Vec<Row>> {
        Rows::open(path, &Wanted::default())?.next(100)
    }

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
            let values: Vec<Value> = rows.iter().map(|r| Value::Object(r.columns.clone().unwrap())).collect();
            let expected = [
                json!({"text": "é 1", "label": 1, "score": 3.8}),
                json!({"text": null, "label": -1, "score": odd::float(f64::NAN)}),
                json!({"text": "two", "label": 0, "score": 5.0}),
            ];
            assert_eq!(values, expected, "{compression}");
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
            assert!(error.contains("f.parquet` is not a complete Parquet file"), "{error}");
        }
    }
}
