//! Downloads a file into the cache: resumed where it broke off, checked, and only then given its name.
//!
//! `hf-hub` 0.5 would download too, but it renames a file into the cache without looking at its length or its hash,
//! may append a body to what is already there when it tries again, has no time limit on a stalled connection,
//! downloads a blob again for every commit that shares it, and moves the reference of the revision before the
//! snapshot is whole. Each of these can leave a file that looks whole and is not, or hang; hence this module.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::http::StatusCode;

use super::client::{Answer, Attempt, Client, Failure, Target, patiently, pause};
use super::settings::Settings;
use crate::fault::{Result, fault};
use crate::files;
use crate::report::progress::{BYTES, Progress};

/// Consecutive attempts without real progress before a download fails.
const ATTEMPTS: u32 = 5;
/// Bytes that count as progress, so that a large file survives any number of interruptions.
const WORTH: u64 = 1 << 20;

/// Returns the path of `file` in the snapshot of `commit`, downloading it if the cache lacks it.
pub(super) fn fetch(
    client: &Client,
    settings: &Settings,
    target: &Target,
    commit: &str,
    file: &str,
) -> Attempt<PathBuf> {
    let pointer = target.snapshot(commit).join(file);
    if pointer.exists() {
        return Ok(pointer);
    }
    let answer = patiently(|| client.open(target, commit, file, 0))?;
    let (etag, size) = described(&answer, target, file)?;
    let blob = target.root.join("blobs").join(&etag);
    let is_whole = || fs::metadata(&blob).is_ok_and(|found| found.len() == size);
    if !is_whole() {
        let _lock = lock(&lock_of(settings, target, &etag), file)?;
        if !is_whole() {
            let part = target.root.join("blobs").join(format!("{etag}.incomplete"));
            let came = fs::metadata(&part).map_or(0, |found| found.len());
            let progress = settings.progress.then(|| Progress::new(size, file, BYTES).starting_at(came));
            let download = Download { client, target, commit, file, etag: &etag, size, part, progress };
            download.run(answer, &blob)?;
        }
    }
    link(&etag, &blob, &pointer, file)?;
    Ok(pointer)
}

/// Returns the identifier and length of the content, without which nothing could be checked.
fn described(answer: &Answer, target: &Target, file: &str) -> Result<(String, u64)> {
    let plain = |tag: &&String| {
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !tag.is_empty() && !tag.starts_with('.') && tag.bytes().all(is_plain)
    };
    match (answer.etag.as_ref().filter(plain), answer.size) {
        (Some(etag), Some(size)) => Ok((etag.clone(), size)),
        (etag, _) => {
            let lacks = if etag.is_none() { "a usable `ETag`" } else { "its length" };
            Err(fault(format!("the hub sends `{file}` of `{}` without {lacks}", target.id))
                .hint("check that `HF_ENDPOINT` is a Hugging Face hub")
                .into())
        }
    }
}

/// One file being downloaded to its blob.
struct Download<'a> {
    client: &'a Client,
    target: &'a Target,
    commit: &'a str,
    file: &'a str,
    etag: &'a str,
    size: u64,
    part: PathBuf,
    progress: Option<Progress>,
}

impl Download<'_> {
    /// Downloads the rest of the part, checks it and renames it to `blob`. `first` is a body from byte 0 on.
    fn run(self, first: Answer, blob: &Path) -> Attempt<()> {
        let mut part = self.open_part()?;
        let mut is_continued = self.length(&part)? > 0;
        let mut first = Some(first);
        loop {
            self.complete(&mut part, first.take())?;
            let Some(found) = self.wrong_hash()? else { break };
            part.set_len(0).with_context(|| self.cannot_write())?;
            // Remains of an earlier run may be of another file; what came now may not.
            if !is_continued {
                fs::remove_file(&self.part).with_context(|| self.cannot_write())?;
                return Err(self.broken(&found).into());
            }
            is_continued = false;
        }
        part.sync_all().with_context(|| self.cannot_write())?;
        fs::rename(&self.part, blob).with_context(|| format!("cannot write `{}`", blob.display()))?;
        if let Some(progress) = self.progress {
            progress.finish();
        }
        Ok(())
    }

    /// Tries until the part has the length of the file.
    fn complete(&self, part: &mut File, mut first: Option<Answer>) -> Attempt<()> {
        let mut failures = 0;
        loop {
            let start = self.length(part)?;
            if start == self.size {
                return Ok(());
            }
            if start > self.size {
                part.set_len(0).with_context(|| self.cannot_write())?;
                continue;
            }
            let answer = match first.take().filter(|_| start == 0) {
                Some(answer) => Ok(answer),
                None => self.client.open(self.target, self.commit, self.file, start),
            };
            let why = match answer.and_then(|answer| self.receive(part, start, answer)) {
                Ok(()) => "the connection closed early".to_owned(),
                Err(Failure::Unreachable(why)) => why,
                Err(failure) => return Err(failure),
            };
            let length = self.length(part)?;
            if length == self.size {
                return Ok(());
            }
            failures = if length >= start + WORTH { 0 } else { failures + 1 };
            if failures == ATTEMPTS {
                let (came, size) = (length, self.size);
                return Err(Failure::Unreachable(format!("{why}; received {came} of {size} bytes")));
            }
            pause(failures, &why);
        }
    }

    /// Appends a body that continues the part, or replaces the part if the server sends the whole file.
    fn receive(&self, part: &mut File, start: u64, answer: Answer) -> Attempt<()> {
        let range = answer.body.headers().get("content-range").and_then(|value| value.to_str().ok());
        let continues = range.is_some_and(|range| range.starts_with(&format!("bytes {start}-")));
        let mut length = start;
        match answer.body.status() {
            StatusCode::PARTIAL_CONTENT if continues => {}
            status => {
                part.set_len(0).with_context(|| self.cannot_write())?;
                length = 0;
                if status != StatusCode::OK {
                    return Err(Failure::Unreachable(format!(
                        "requested bytes from {start} on, got {status}"
                    )));
                }
            }
        }
        let mut reader = answer.body.into_body().into_reader();
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Failure::Unreachable(error.to_string())),
            };
            length += count as u64;
            if length > self.size {
                return Err(Failure::Unreachable(format!("the server sent more than {} bytes", self.size)));
            }
            let chunk = buffer.get(..count).unwrap_or_default();
            part.write_all(chunk).with_context(|| self.cannot_write())?;
            if let Some(progress) = &self.progress {
                progress.tick(length, "");
            }
        }
    }

    /// Returns the part's hash if it differs from the hub's: SHA-256 for a large file; for a small one git's
    /// SHA-1, or the plain SHA-1 that mirrors send.
    fn wrong_hash(&self) -> Result<Option<String>> {
        let is_hash = self.etag.bytes().all(|byte| byte.is_ascii_hexdigit());
        let found = match self.etag.len() {
            64 if is_hash => vec![self.hash::<Sha256>("")?],
            40 if is_hash => {
                vec![self.hash::<Sha1>(&format!("blob {}\0", self.size))?, self.hash::<Sha1>("")?]
            }
            _ => return Ok(None),
        };
        let is_right = found.iter().any(|hash| hash.eq_ignore_ascii_case(self.etag));
        Ok(found.into_iter().next().filter(|_| !is_right))
    }

    /// Returns the hash of `before` and the part in hex.
    fn hash<D: Digest + std::io::Write>(&self, before: &str) -> Result<String> {
        let cannot = || format!("cannot read `{}`", self.part.display());
        let mut part = File::open(&self.part).with_context(cannot)?;
        let mut hasher = D::new();
        Digest::update(&mut hasher, before);
        std::io::copy(&mut part, &mut hasher).with_context(cannot)?;
        Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn broken(&self, found: &str) -> anyhow::Error {
        let (file, id, etag) = (self.file, &self.target.id, self.etag);
        fault(format!(
            "`{file}` of `{id}` was corrupted in transfer: its hash is `{found}`, expected `{etag}`"
        ))
        .hint("it was deleted; run again, and if that does not help, check for a proxy that changes files")
        .into()
    }

    fn open_part(&self) -> Result<File> {
        let make = || {
            if let Some(folder) = self.part.parent() {
                fs::create_dir_all(folder)?;
            }
            OpenOptions::new().append(true).create(true).open(&self.part)
        };
        make().with_context(|| self.cannot_write())
    }

    fn length(&self, part: &File) -> Result<u64> {
        Ok(part.metadata().with_context(|| self.cannot_write())?.len())
    }

    fn cannot_write(&self) -> String {
        format!("cannot write `{}`", self.part.display())
    }
}

/// Returns `CACHE/.locks/models--owner--name/ETAG.lock`, which `huggingface_hub` locks for the same blob.
fn lock_of(settings: &Settings, target: &Target, etag: &str) -> PathBuf {
    settings.cache.join(".locks").join(target.repo.folder_name()).join(format!("{etag}.lock"))
}

/// Waits until no other process downloads the same blob. Dropping the returned file releases the lock.
fn lock(path: &Path, file: &str) -> Result<File> {
    let take = || -> std::io::Result<File> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let held = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        if held.try_lock().is_err() {
            tracing::info!("waiting for another process to download `{file}`");
            held.lock()?;
        }
        Ok(held)
    };
    take().map_err(|error| {
        fault(format!("cannot lock `{}`: {error}", path.display()))
            .hint("point `HF_HOME` at a writable folder")
            .into()
    })
}

/// Makes `pointer` a link to the blob, or a copy if the file system has no links.
fn link(etag: &str, blob: &Path, pointer: &Path, file: &str) -> Result<()> {
    let make = || {
        if let Some(folder) = pointer.parent() {
            fs::create_dir_all(folder)?;
        }
        if pointer.is_symlink() && !pointer.exists() {
            fs::remove_file(pointer)?;
        }
        let up = "../".repeat(file.split('/').count() + 1);
        std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), pointer)
    };
    match make() {
        Ok(()) => Ok(()),
        Err(_) if pointer.exists() => Ok(()),
        Err(error) if [ErrorKind::PermissionDenied, ErrorKind::Unsupported].contains(&error.kind()) => {
            files::write_atomically(pointer, |out| {
                std::io::copy(&mut File::open(blob)?, out)?;
                Ok(())
            })
        }
        Err(error) => Err(error).with_context(|| format!("cannot write `{}`", pointer.display())),
    }
}
