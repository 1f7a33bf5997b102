//! Entries of local data without one: a file, a folder that `save_to_disk` of Hugging Face's `datasets` wrote, or a folder of
//! files.

use std::path::Path;

use anyhow::Context as _;
use serde::Deserialize;
use toml::{Table, Value};

use super::repository::{self, Splits};
use crate::fault::{Result, fault};
use crate::files::{self, is_data, is_data_place};

/// The file that lists the splits of a folder.
const SPLITS: &str = "dataset_dict.json";
/// The file that lists the files of a split.
const STATE: &str = "state.json";

#[derive(Deserialize)]
struct Listed {
    splits: Vec<String>,
}

#[derive(Deserialize)]
struct State {
    #[serde(rename = "_data_files")]
    files: Vec<DataFile>,
    #[serde(rename = "_split")]
    split: Option<String>,
}

#[derive(Deserialize)]
struct DataFile {
    filename: String,
}

/// Returns the keys of an entry for the file or folder `name`; `None` if that is no name of one.
///
/// # Errors
/// When it does not exist, or holds no data.
pub fn keys(name: &str) -> Result<Option<Table>> {
    let path = Path::new(name);
    let whole = std::path::absolute(path).with_context(|| format!("cannot resolve `{name}`"))?;
    if path.is_file() && is_data_place(name, path) {
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let splits = Splits::from([("train".to_owned(), vec![file])]);
        return Ok(Some(of(whole.parent().unwrap_or(&whole), splits)));
    }
    if is_data_place(name, path) {
        return Ok(Some(of(&whole, splits(name, path)?)));
    }
    let is_named_as_path = is_data(name) || Path::new(name).is_absolute() || name.starts_with('.');
    match is_named_as_path {
        true => Err(fault(format!("no file or folder `{}`", whole.display()))
            .hint("a data set is a name of the catalog, a file, a folder, or `hub:OWNER/NAME`")
            .into()),
        false => Ok(None),
    }
}

/// Returns an entry's keys of these files in a folder.
fn of(folder: &Path, splits: Splits) -> Table {
    let files: Table = splits.into_iter().map(|(split, names)| (split, Value::from(names))).collect();
    Table::from_iter([
        ("dir".to_owned(), Value::from(folder.to_string_lossy().into_owned())),
        ("files".to_owned(), files.into()),
    ])
}

fn splits(name: &str, folder: &Path) -> Result<Splits> {
    if folder.join(SPLITS).is_file() {
        let listed: Listed = files::read_json(&folder.join(SPLITS))?;
        return listed
            .splits
            .into_iter()
            .map(|split| Ok((split.clone(), saved(folder, &split)?.1)))
            .collect();
    }
    if folder.join(STATE).is_file() {
        let (split, names) = saved(folder, "")?;
        return Ok(Splits::from([(split.unwrap_or("train".to_owned()), names)]));
    }
    let mut names = Vec::new();
    list(folder, "", &mut names)?;
    names.sort();
    repository::splits(name, &names, None, None)
}

/// Returns the name and the files of a saved split in a folder below `folder`.
fn saved(folder: &Path, below: &str) -> Result<(Option<String>, Vec<String>)> {
    let state: State = files::read_json(&folder.join(below).join(STATE))?;
    let inside = |file: DataFile| match below {
        "" => file.filename,
        below => format!("{below}/{}", file.filename),
    };
    Ok((state.split, state.files.into_iter().map(inside).collect()))
}

/// Adds the data files of a folder and of those in it.
fn list(folder: &Path, prefix: &str, names: &mut Vec<String>) -> Result<()> {
    let cannot = || format!("cannot read folder `{}`", folder.display());
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let entry = entry.with_context(cannot)?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() && prefix.is_empty() {
            list(&entry.path(), &format!("{name}/"), names)?;
        } else if is_data(&name) {
            names.push(name);
        }
    }
    Ok(())
}
