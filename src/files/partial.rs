//! Unfinished files and folders, under short temporary names in the folder where they will stay.
//!
//! Each is locked while its process lives, which tells remains of a killed process from files being written:
//! the next process that writes into the folder removes them. An interrupted process removes its own.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use super::held::is_at;
use crate::fault::locked;

/// Prefix of temporary names.
const PREFIX: &str = ".partial-loraxs-";

/// The temporary files and folders of this process.
static PRESENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// The folders that this process has searched for remains of others.
static SWEPT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Held by steps that must not end half-way, and by the end of an interrupted process.
static BUSY: Mutex<()> = Mutex::new(());

/// Delays interruptions until the guard is dropped; for short steps that would leave a mess.
pub fn uninterrupted() -> MutexGuard<'static, ()> {
    locked(&BUSY)
}

/// A temporary file or folder, removed if dropped before it gets its name.
#[derive(Debug)]
pub struct Partial {
    path: PathBuf,
    /// The open file or folder; holds the lock.
    file: File,
}

impl Partial {
    /// Creates an empty file in `folder`.
    /// Fails when it cannot be made.
    pub fn file(folder: &Path) -> io::Result<Self> {
        Self::make(folder, |path| OpenOptions::new().write(true).create_new(true).open(path))
    }

    /// Creates an empty folder in `folder`.
    /// Fails when it cannot be made.
    pub fn folder(folder: &Path) -> io::Result<Self> {
        Self::make(folder, |path| {
            fs::create_dir(path)?;
            // Another process may sweep it before it is opened.
            File::open(path).map_err(|error| match error.kind() {
                ErrorKind::NotFound => ErrorKind::AlreadyExists.into(),
                _ => error,
            })
        })
    }

    /// Calls `make` with the first free name.
    fn make(folder: &Path, make: impl Fn(&Path) -> io::Result<File>) -> io::Result<Self> {
        static MADE: AtomicU64 = AtomicU64::new(0);
        sweep(folder);
        // Nothing new starts when the process is about to end.
        let _uninterrupted = uninterrupted();
        loop {
            let number = MADE.fetch_add(1, Ordering::Relaxed);
            let path = folder.join(format!("{PREFIX}{}-{number}", std::process::id()));
            let file = match make(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made?,
            };
            locked(&PRESENT).insert(path.clone());
            let made = Self { path, file };
            // Without locks in the file system, nothing is swept either.
            let _ = made.file.lock();
            // Another process may have swept it before it was locked.
            if is_at(&made.file, &made.path) {
                return Ok(made);
            }
        }
    }

    /// Returns its temporary path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the open file.
    pub fn as_file(&self) -> &File {
        &self.file
    }

    /// Renames it into place, replacing a file of that name; of folders, only an empty one.
    /// Fails when the system refuses.
    pub fn name(self, path: &Path) -> io::Result<()> {
        let _uninterrupted = uninterrupted();
        fs::rename(&self.path, path)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // On failure an error is already being reported; after a rename, nothing is left to remove.
        let _ = remove(&self.path);
        locked(&PRESENT).remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Returns true if `name` is that of a temporary file or folder.
pub fn is_partial(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().starts_with(PREFIX.as_bytes())
}

/// Removes remains of killed processes from `folder`; once per process.
pub fn sweep(folder: &Path) {
    if !locked(&SWEPT).insert(folder.to_owned()) {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let kind = entry.file_type();
        if is_partial(&entry.file_name()) && kind.is_ok_and(|kind| kind.is_file() || kind.is_dir()) {
            remove_stale(&entry.path());
        }
    }
}

fn remove_stale(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    if file.try_lock().is_ok() {
        match remove(path) {
            Ok(()) => tracing::debug!("removed `{}`, left by a killed process", path.display()),
            Err(error) => tracing::debug!("cannot remove `{}`: {error}", path.display()),
        }
    }
}

/// Removes this process's unfinished files and folders before it ends.
pub fn remove_all() {
    std::mem::forget(uninterrupted());
    let present = locked(&PRESENT).clone();
    for path in present {
        // Files may be added to a folder while it is emptied.
        while matches!(remove(&path), Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_not_named_is_removed_and_what_is_stays() {
        let folder = tempfile::tempdir().unwrap();
        drop(Partial::file(folder.path()).unwrap());
        let inner = Partial::folder(folder.path()).unwrap();
        fs::write(inner.path().join("x"), "").unwrap();
        drop(inner);
        assert_eq!(names(folder.path()), [""; 0]);
        let long = "n".repeat(255);
        Partial::file(folder.path()).unwrap().name(&folder.path().join(&long)).unwrap();
        assert_eq!(names(folder.path()), [long]);
    }

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let folder = tempfile::tempdir().unwrap();
        let (file, inner) = (Partial::file(folder.path()).unwrap(), Partial::folder(folder.path()).unwrap());
        fs::write(folder.path().join(format!("{PREFIX}file")), "left").unwrap();
        fs::create_dir(folder.path().join(format!("{PREFIX}folder"))).unwrap();
        fs::write(folder.path().join(format!("{PREFIX}folder/x")), "left").unwrap();
        fs::write(folder.path().join(".partial-of-others"), "theirs").unwrap();
        locked(&SWEPT).remove(folder.path());
        sweep(folder.path());
        let mut expected = [file.path(), inner.path(), &folder.path().join(".partial-of-others")]
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        expected.sort();
        assert_eq!(names(folder.path()), expected);
    }
}
