//! Folders that must stay in place while a command writes into them: one removed or moved meanwhile would
//! reappear with half of its content.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::cannot_write;
use crate::fault::{Result, fault, locked};

struct Folder {
    /// Every write below this path checks that the folder is still the same.
    path: PathBuf,
    /// The path as the user gave it.
    shown: PathBuf,
    opened: File,
}

static HELD: Mutex<Vec<Folder>> = Mutex::new(Vec::new());

/// Guard: the folder must stay in place while this lives.
#[derive(Debug)]
pub struct Held(PathBuf);

/// Creates the folder `path` if needed and holds it; messages call it `shown`.
/// Fails when it cannot be made or opened.
pub fn hold(path: &Path, shown: &Path) -> Result<Held> {
    let open = || {
        fs::create_dir_all(path)?;
        File::open(path)
    };
    let opened = open().map_err(|error| cannot_write(shown, &error))?;
    locked(&HELD).push(Folder { path: path.to_owned(), shown: shown.to_owned(), opened });
    Ok(Held(path.to_owned()))
}

/// Holds a folder until the process ends. Called with the first results, so that a rejected command creates
/// no folder.
/// Fails as [`hold`].
pub fn hold_for_good(path: &Path) -> Result<()> {
    if !locked(&HELD).iter().any(|folder| folder.path == path) {
        std::mem::forget(hold(path, path)?);
    }
    Ok(())
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut held = locked(&HELD);
        if let Some(place) = held.iter().rposition(|folder| folder.path == self.0) {
            held.remove(place);
        }
    }
}

/// Checks that the held folders above `path` are still the same.
/// The error names the one that was removed or moved.
pub fn check(path: &Path) -> Result<()> {
    let gone = |folder: &&Folder| path.starts_with(&folder.path) && !is_at(&folder.opened, &folder.path);
    match locked(&HELD).iter().find(gone) {
        None => Ok(()),
        Some(folder) => {
            Err(fault(format!("`{}` was removed or moved while being written", folder.shown.display()))
                .hint("run the command again, and leave it in place until the command ends")
                .into())
        }
    }
}

/// Returns true if an open file or folder is the one at `path`.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(file), Ok(path)) => (file.dev(), file.ino()) == (path.dev(), path.ino()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::write_bytes;

    #[test]
    fn nothing_is_written_into_a_held_folder_that_has_gone() {
        let place = tempfile::tempdir().unwrap();
        let run = place.path().join("run");
        let held = hold(&run, Path::new("run")).unwrap();
        write_bytes(&run.join("inner/file"), b"1").unwrap();
        fs::rename(&run, place.path().join("moved")).unwrap();
        let error = write_bytes(&run.join("inner/file"), b"2").unwrap_err();
        assert_eq!(error.to_string(), "`run` was removed or moved while being written");
        assert!(!run.exists());
        fs::create_dir(&run).unwrap();
        assert!(write_bytes(&run.join("file"), b"2").is_err(), "another folder has taken its place");
        write_bytes(&place.path().join("runs"), b"").unwrap();
        drop(held);
        write_bytes(&run.join("file"), b"2").unwrap();
    }
}
