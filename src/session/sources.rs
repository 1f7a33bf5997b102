//! A data set by its name: an entry of the catalog, completed by what its rows tell.

use super::environment::Environment;
use crate::data::dataset::Dataset;
use crate::data::recognise;
use crate::fault::Result;

/// Returns the data set of this name.
/// Fails when there is none, or its rows do not tell what its entry leaves out.
pub fn open(place: &Environment, name: &str) -> Result<Dataset> {
    match place.catalog.entry(name) {
        Some((keys, folder)) if !keys.contains_key("task") => {
            recognise::complete(name, keys, &folder, &|dataset, split| place.files(dataset, split))
        }
        _ => Ok(place.catalog.get(name)?.clone()),
    }
}
