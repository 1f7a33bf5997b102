//! Files that are either whole or absent: each is written beside its place and renamed into it.

use std::fs;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;

use crate::fault::{Result, fault};

/// Writes a file through `fill`, beside `path`, then renames it into place.
///
/// # Errors
/// Names `path` when its folder cannot be made, the disk is full, or `fill` fails.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        // As readable as any other file that the user makes: the umask takes away from this.
        let mode = fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().prefix(".partial-").permissions(mode).tempfile_in(folder)?;
        let mut writer = BufWriter::new(file);
        fill(&mut writer)?;
        let file = writer.into_inner().map_err(|e| e.into_error())?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => cannot_write(path, &error),
        Err(error) => error.context(format!("cannot write `{}`", path.display())),
    })
}

/// That `path` cannot be written, and what to do about it.
pub fn cannot_write(path: &Path, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "make room on the disk, or write to another folder"
        }
        _ => "choose a folder that can be made and written",
    };
    fault(format!("cannot write `{}`: {error}", path.display())).hint(hint).into()
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
    parse_json(&read_text(path)?).with_context(|| format!("`{}` is not valid", path.display()))
}

/// Parses JSON; an error names the key whose value is wrong, the place, and what was expected in plain words.
///
/// # Errors
/// Where the text is no JSON, or not of this form.
pub fn parse_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|error| {
        let mut message = error.to_string();
        let words =
            [("i64", "a whole number"), ("usize", "a count"), ("u32", "a count"), ("f64", "a number")];
        for (name, plain) in words {
            message = message.replace(&format!("expected {name}"), &format!("expected {plain}"));
        }
        match key_before(text, error.line(), error.column()).filter(|_| message.starts_with("invalid")) {
            Some(key) => fault(format!("`{key}`: {message}")).into(),
            None => fault(message).into(),
        }
    })
}

/// The last key before a place, counted from 1, in the text of an object.
fn key_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let start: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let before = text.get(..start + column)?;
    let quoted = before.get(..before.rfind("\":")?)?;
    quoted.get(quoted.rfind('"')? + 1..)
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
