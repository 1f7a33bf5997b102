//! Folders that are either whole or absent: each is filled under a temporary name and renamed into place.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::Path;

use super::partial::{Partial, is_partial, uninterrupted};
use super::{cannot_write, held};
use crate::fault::{Result, fault, renamed};

/// Creates the folder `out` through `fill`. Of several processes that write the same folder, the first to finish wins.
/// Fails when `out` exists and holds anything, a folder cannot be made or has gone, or `fill` fails.
pub fn write_folder<T>(out: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let cannot = |error: io::Error| -> anyhow::Error {
        fault(format!("cannot make the folder `{}`: {error}", out.display()))
            .hint("choose a folder that can be made and written by `--out`")
            .into()
    };
    // An existing folder may be a link or a mount point: it stays, and is filled.
    let is_there = out.exists();
    if is_there && !is_empty(out) {
        return Err(is_used(out));
    }
    if !is_there && out.file_name().is_none() {
        return Err(fault(format!("`{}` names no folder that could be made", out.display())).into());
    }
    let beside = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = if is_there { out } else { beside };
    let (partial, made) = filled(parent, out, cannot, fill)?;
    let moved = if is_there { fill_from(out, partial.path()) } else { partial.name(out) };
    moved.map_err(|error| match error.kind() {
        ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists | ErrorKind::NotADirectory => is_used(out),
        _ => cannot(error),
    })?;
    Ok(made)
}

/// Creates the folder `place` through `fill`; a folder of that name is replaced.
/// Fails when a folder cannot be made or has gone, or `fill` fails.
pub fn replace_folder(place: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let cannot = |error: io::Error| cannot_write(place, &error);
    held::check(place)?;
    let (partial, ()) = filled(place.parent().unwrap_or(place), place, cannot, fill)?;
    if place.exists() {
        fs::remove_dir_all(place).map_err(cannot)?;
    }
    partial.name(place).map_err(cannot)
}

/// Fills a temporary folder in `parent`, which messages call `out`.
fn filled<T>(
    parent: &Path,
    out: &Path,
    cannot: impl Fn(io::Error) -> anyhow::Error,
    fill: impl FnOnce(&Path) -> Result<T>,
) -> Result<(Partial, T)> {
    fs::create_dir_all(parent).map_err(&cannot)?;
    let partial = Partial::folder(parent).map_err(&cannot)?;
    let temporary = partial.path().display().to_string();
    let _held = held::hold(partial.path(), out)?;
    let made =
        fill(partial.path()).map_err(|error| renamed(error, &temporary, &out.display().to_string()))?;
    held::check(partial.path())?;
    Ok((partial, made))
}

fn is_used(out: &Path) -> anyhow::Error {
    fault(format!("`{}` is there already and no empty folder", out.display()))
        .hint("choose another folder by `--out`, or remove this one")
        .into()
}

/// Returns true if a folder holds nothing but other processes' unfinished files.
fn is_empty(folder: &Path) -> bool {
    let used = |entry: io::Result<fs::DirEntry>| !entry.is_ok_and(|entry| is_partial(&entry.file_name()));
    fs::read_dir(folder).is_ok_and(|mut entries| !entries.any(used))
}

/// Moves the content of `partial` into the empty folder `out`, one process at a time; `config.json` comes
/// last, for without it there is no checkpoint and no adapter.
fn fill_from(out: &Path, partial: &Path) -> io::Result<()> {
    let _uninterrupted = uninterrupted();
    let lock = File::open(out)?;
    // A file system may have no locks; then there is nothing to wait for.
    let _ = lock.lock();
    if !is_empty(out) {
        return Err(ErrorKind::DirectoryNotEmpty.into());
    }
    let entries: io::Result<Vec<_>> =
        fs::read_dir(partial)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let mut names = entries?;
    names.sort_by_key(|name| name.as_encoded_bytes().ends_with(b"config.json"));
    names.iter().try_for_each(|name| fs::rename(partial.join(name), out.join(name)))
}
