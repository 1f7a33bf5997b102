//! Files that are either whole or absent: each is written beside its place and renamed into it.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::Context as _;

use crate::fault::Result;

/// Writes a file through `fill`, beside `path`, then renames it into place.
///
/// # Errors
/// Names `path` when its folder cannot be made, the disk is full, or `fill` fails.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        let mut writer = BufWriter::new(tempfile::Builder::new().prefix(".partial-").tempfile_in(folder)?);
        fill(&mut writer)?;
        let file = writer.into_inner().map_err(|e| e.into_error())?;
        set_ordinary_permissions(file.as_file())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().with_context(|| format!("cannot write `{}`", path.display()))
}

/// Writes `bytes` as [`write_atomically`] does.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |out| Ok(out.write_all(bytes)?))
}

/// Writes `value` as indented JSON with a final newline, as [`write_atomically`] does.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    write_bytes(path, format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
}

/// Reads a whole file, naming it in the error.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// Reads a whole text file, naming it in the error.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// Reads and parses a JSON file, naming it and the place of the mistake in the error.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    serde_json::from_str(&read_text(path)?).with_context(|| format!("`{}` is not valid", path.display()))
}

/// The folder for what can be made again: `$LORAXS_CACHE`, else `loraxs` in the user's cache folder.
pub fn cache_folder() -> std::path::PathBuf {
    let variable =
        |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(std::path::PathBuf::from);
    variable("LORAXS_CACHE").unwrap_or_else(|| {
        variable("XDG_CACHE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".cache")))
            .unwrap_or_else(std::env::temp_dir)
            .join("loraxs")
    })
}

/// Temporary files are private; the finished ones are as readable as any other file the user makes.
fn set_ordinary_permissions(file: &fs::File) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    Ok(())
}
