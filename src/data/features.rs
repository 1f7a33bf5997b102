//! What Hugging Face's `datasets` writes into the metadata of a file about its columns: the names of classes that rows hold
//! by number.

use serde_json::Value;

use super::row::Columns;

/// A column of classes whose numbers are replaced by their names.
#[derive(Debug)]
pub(super) struct ClassNames {
    column: String,
    names: Vec<String>,
}

impl ClassNames {
    /// Returns the names of a column's classes; `metadata` is the value of the key `huggingface`.
    pub fn read(metadata: Option<&str>, column: &str) -> Option<Self> {
        let metadata: Value = serde_json::from_str(metadata?).ok()?;
        let names = names(metadata.get("info")?.get("features")?.get(column)?)?;
        Some(Self { column: column.to_owned(), names })
    }

    /// Returns the names in the order of their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Replaces the numbers of the column in a row.
    pub fn apply(&self, row: &mut Columns) {
        if let Some(value) = row.get_mut(&self.column) {
            self.rename(value);
        }
    }

    fn rename(&self, value: &mut Value) {
        if let Value::Array(list) = value {
            list.iter_mut().for_each(|value| self.rename(value));
        }
        let class = value.as_u64().and_then(|class| usize::try_from(class).ok());
        if let Some(name) = class.and_then(|class| self.names.get(class)) {
            *value = Value::String(name.clone());
        }
    }
}

/// Returns the names of a `ClassLabel`, or of a list of them.
fn names(feature: &Value) -> Option<Vec<String>> {
    if let Some(inner) = feature.get("feature").or(feature.get(0)) {
        return names(inner);
    }
    let names = feature.get("names").filter(|_| feature["_type"] == "ClassLabel")?.as_array()?;
    names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
}
