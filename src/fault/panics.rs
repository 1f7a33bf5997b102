//! Panics turned into errors: those of a library over one file, and the file being read at any other failure.

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Fault, fault};

thread_local! {
    /// The files that are being read, the innermost last.
    static READ: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// Guard: a file is being read while it lives.
#[derive(Debug)]
#[must_use]
pub struct Reading {
    before: usize,
}

/// Marks this file or folder as the source of what follows, until the guard is dropped.
pub fn reading(path: &Path) -> Reading {
    READ.with_borrow_mut(|read| {
        read.push(path.to_owned());
        Reading { before: read.len() - 1 }
    })
}

impl Drop for Reading {
    fn drop(&mut self) {
        // After a panic, the entries left behind tell where it came from.
        if !std::thread::panicking() {
            READ.with_borrow_mut(|read| read.truncate(self.before));
        }
    }
}

/// Returns the file being read now, or when this thread panicked.
pub fn in_hand() -> Option<PathBuf> {
    READ.with_borrow(|read| read.last().cloned())
}

/// Locks a mutex, also after a thread that held it panicked.
pub fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the message of a panic.
pub fn words(payload: &(dyn Any + Send)) -> &str {
    let owned = payload.downcast_ref::<String>().map(String::as_str);
    owned.or(payload.downcast_ref::<&str>().copied()).unwrap_or("unknown fault")
}

/// Runs a library on a file, catching panics: some panic over files that they did not foresee.
///
/// # Errors
/// When it panics; names the file.
pub fn contained<T>(path: &Path, body: impl FnOnce() -> T) -> Result<T, Fault> {
    let reading = reading(path);
    let outcome = catch_unwind(AssertUnwindSafe(body));
    drop(reading);
    outcome.map_err(|payload| {
        let line = words(payload.as_ref()).lines().next().unwrap_or_default().to_owned();
        fault(format!("`{}` cannot be read: {line}", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_over_a_file_is_an_error_that_names_it() {
        let [outer, inner] = ["outer.toml", "inner.json"].map(Path::new);
        let read = reading(outer);
        let error = contained(inner, || std::hint::black_box(&[1][..0])[0]).unwrap_err();
        assert!(error.to_string().starts_with("`inner.json` cannot be read: index out of bounds"), "{error}");
        assert_eq!(contained(inner, || 3).unwrap(), 3);
        assert_eq!(in_hand().as_deref(), Some(outer));
        let outcome = catch_unwind(|| {
            let _read = reading(inner);
            std::hint::black_box(&[1][..0])[0]
        });
        assert_eq!((outcome.is_err(), in_hand().as_deref()), (true, Some(inner)));
        drop(read);
        assert_eq!(in_hand(), None);
    }
}
