//! A data set by its name: an entry of the catalog, a file, a folder, or a repository of the hub, completed by what its rows
//! tell; and its examples, also those held out of a recipe's training rows.

use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::environment::Environment;
use crate::data::dataset::Dataset;
use crate::data::share::Holdout;
use crate::data::tokenize::Tokenizer;
use crate::data::{Examples, local, recognise, repository};
use crate::fault::{Result, fault};
use crate::files;
use crate::recipe::DataRecipe;
use crate::spec::Validation;

/// The names of data sets on the hub begin so.
const HUB: &str = "hub:";

/// Returns the data set of this name.
/// Fails when there is none, or its rows do not tell what its entry leaves out.
pub fn open(place: &Environment, name: &str) -> Result<Dataset> {
    with(place, name, Table::new(), None)
}

/// Returns the data set of a recipe, whose keys go before those of its entry.
/// Fails as [`open`].
pub fn of_recipe(place: &Environment, data: &DataRecipe) -> Result<Dataset> {
    let file = data.validation.split();
    let is_file = files::is_data_place(file, Path::new(file));
    with(place, &data.dataset, data.entry(), Some(file).filter(|_| is_file))
}

/// Returns the data set of this name with further keys, and a file that is a split of its own.
fn with(place: &Environment, name: &str, given: Table, file: Option<&str>) -> Result<Dataset> {
    let entry = if place.catalog.has(name) { place.catalog.entry(name) } else { found(place, name)? };
    let is_changed = !given.is_empty() || file.is_some();
    let Some((mut keys, folder)) = entry.filter(|(keys, _)| !keys.contains_key("task") || is_changed) else {
        return Ok(place.catalog.get(name)?.clone());
    };
    keys.extend(given);
    if let (Some(file), Some(Value::Table(splits))) = (file, keys.get_mut("files")) {
        splits.insert(file.to_owned(), Value::from(file));
    }
    recognise::complete(name, keys, &folder, &|dataset, split| place.files(dataset, split))
}

/// Returns the keys of a data set that is no entry of the catalog.
fn found(place: &Environment, name: &str) -> Result<Option<(Table, PathBuf)>> {
    let keys = if name.starts_with(HUB) { Some(of_hub(place, name)?) } else { local::keys(name)? };
    Ok(keys.map(|keys| (keys, PathBuf::new())))
}

/// Returns the keys of `hub:OWNER/NAME`, with `/CONFIG` and `@REVISION` after it as needed.
fn of_hub(place: &Environment, name: &str) -> Result<Table> {
    let rest = name.trim_start_matches(HUB);
    let (id, revision) = rest.split_once('@').unwrap_or((rest, "main"));
    let mut parts = id.splitn(3, '/');
    let owner = [parts.next(), parts.next()];
    let repository = owner.into_iter().flatten().collect::<Vec<_>>().join("/");
    let names = place.hub.dataset_files(&repository, revision)?;
    let readme = match names.iter().any(|name| name == "README.md") {
        true => {
            let path = place.hub.dataset(&repository, revision, "README.md")?;
            path.first().map(|path| files::read_text(path)).transpose()?
        }
        false => None,
    };
    let splits = repository::splits(name, &names, readme.as_deref(), parts.next())?;
    let files: Table = splits.into_iter().map(|(split, names)| (split, Value::from(names))).collect();
    Ok(Table::from_iter([
        ("hub".to_owned(), Value::from(repository)),
        ("revision".to_owned(), Value::from(revision)),
        ("files".to_owned(), files.into()),
    ]))
}

/// Returns the examples of a split. Where `data` holds out a share of its training rows, the split `validation` is that
/// share, and the training split what is left; `data.limit` counts for both together.
/// Fails when the data set has no such split, or no row can be used.
pub fn examples(
    place: &Environment,
    (dataset, split): (&Dataset, &str),
    data: Option<&DataRecipe>,
    tokenizer: &Tokenizer,
    (max_length, limit): (usize, usize),
) -> Result<Examples> {
    let shared = data.and_then(|data| match data.validation {
        Validation::Share(share) => Some((data, Holdout { share, seed: data.validation_seed })),
        Validation::Split(_) => None,
    });
    let Some((data, holdout)) =
        shared.filter(|(data, _)| split == data.train || split == data.validation.split())
    else {
        return place.split(dataset, split, tokenizer, max_length, limit);
    };
    let whole = place.split(dataset, &data.train, tokenizer, max_length, data.limit)?;
    if whole.examples.len() < 2 {
        return Err(fault(format!("`{}` {} has one row: none can be held out", dataset.name, data.train))
            .hint("name a split or a file as `data.validation`, or set `eval.every = \"never\"`")
            .into());
    }
    let [stay, held] = holdout.apart(whole);
    let mut part = if split == data.train { stay } else { held };
    if limit > 0 && split != data.train {
        part.examples.truncate(limit);
        part.hash = format!("{}|{limit}", part.hash);
    }
    Ok(part)
}
