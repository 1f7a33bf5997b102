//! Files that are either whole or absent: each is written under a temporary name and renamed into place.

mod folder;
mod held;
mod partial;
pub mod quantised;
mod stand_in;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value};

use crate::fault::{Result, fault};
pub use folder::{replace_folder, write_folder};
pub use held::{Held, check as check_held, hold, hold_for_good};
use partial::Partial;
pub use partial::{remove_all as remove_partial, sweep};
pub use stand_in::check_start;

/// Key of a sealed file's checksum.
const SEAL: &str = "seal";

/// Writes a file through `fill`, beside `path`, then renames it into place.
/// The error names `path` when its folder cannot be made or has gone, the disk is full, or `fill` fails.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> Result<()> {
        fs::create_dir_all(folder)?;
        let partial = Partial::file(folder)?;
        let mut writer = BufWriter::new(partial.as_file());
        fill(&mut writer)?;
        writer.into_inner().map_err(|e| e.into_error())?.sync_all()?;
        Ok(partial.name(path)?)
    };
    check_held(path)?;
    let written = write();
    check_held(path)?;
    written.map_err(|error| match error.downcast::<io::Error>() {
        Ok(error) => cannot_write(path, &error),
        Err(error) => error.context(format!("cannot write `{}`", path.display())),
    })
}

/// Returns the error that `path` cannot be written, with a hint.
pub fn cannot_write(path: &Path, error: &io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "free some disk space, or write to another folder"
        }
        _ => "choose a writable folder",
    };
    fault(format!("cannot write `{}`: {error}", path.display())).hint(hint).into()
}

/// Writes `bytes` as [`write_atomically`] does.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomically(path, |out| Ok(out.write_all(bytes)?))
}

/// Writes a file that is not there yet; one that another process has written meanwhile stays.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let written = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        match file.persist_noclobber(path) {
            Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
            _ => Ok(()),
        }
    };
    written().map_err(|error| cannot_write(path, &error))
}

/// Writes `value` as indented JSON with a final newline, as [`write_atomically`] does.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    write_bytes(path, format!("{}\n", serde_json::to_string_pretty(value)?).as_bytes())
}

/// Writes one JSON object a line, as [`write_atomically`] does.
pub fn write_json_lines(path: &Path, rows: impl IntoIterator<Item = impl serde::Serialize>) -> Result<()> {
    write_atomically(path, |out| {
        rows.into_iter().try_for_each(|row| Ok(writeln!(out, "{}", serde_json::to_string(&row)?)?))
    })
}

/// Writes an object as [`write_json`] does, with a checksum of its content.
/// Fails as [`write_json`].
pub fn write_sealed(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let Value::Object(mut object) = serde_json::to_value(value)? else {
        return Err(fault("only an object can be sealed").into());
    };
    let seal = seal(&object)?;
    object.insert(SEAL.to_owned(), seal.into());
    write_json(path, &object)
}

/// Reads what [`write_sealed`] wrote; the boolean is true if it has a checksum (older versions wrote none).
/// The error names the file that cannot be read, is no JSON of this form, or does not say what was written.
pub fn read_sealed<T: serde::de::DeserializeOwned>(path: &Path) -> Result<(T, bool)> {
    let mut object: Map<String, Value> = read_json(path)?;
    let found = object.shift_remove(SEAL);
    if found.as_ref().is_some_and(|found| seal(&object).ok().as_deref() != found.as_str()) {
        return Err(fault(format!("`{}` is damaged: its checksum differs", path.display())).into());
    }
    let value = serde_json::from_value(object.into());
    Ok((value.with_context(|| format!("`{}` is not valid", path.display()))?, found.is_some()))
}

fn seal(object: &Map<String, Value>) -> Result<String> {
    Ok(blake3::hash(&serde_json::to_vec(object)?).to_hex().to_string())
}

/// Returns the BLAKE3 hash of a file's bytes.
/// The error names the file that cannot be read.
pub fn checksum(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap_rayon(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Returns the [`checksum`] of each file in a folder by its name.
/// The error names what cannot be read.
pub fn checksums(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let entry = entry?;
        if entry.path().is_file() {
            found.insert(entry.file_name().to_string_lossy().into_owned(), checksum(&entry.path())?);
        }
    }
    Ok(found)
}

/// Reads a whole file, naming it in the error.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// Reads a whole text file, naming it in the error.
pub fn read_text(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))
}

/// Rejects a folder path taken by something else, or in a folder where nothing can be written, before anything is computed.
/// The error names the path.
pub fn refuse_file(out: &Path) -> Result<()> {
    let whole = std::path::absolute(out).unwrap_or_else(|_| out.to_owned());
    let Some(existing) = whole.ancestors().find(|path| path.exists()) else { return Ok(()) };
    if !existing.is_dir() {
        return Err(cannot_write(out, &ErrorKind::NotADirectory.into()));
    }
    rustix::fs::access(existing, rustix::fs::Access::WRITE_OK)
        .map_err(|error| cannot_write(out, &error.into()))
}

/// Returns the free bytes on the disk of a folder, which need not exist yet; `None` if the system does not tell.
pub fn free_on_disk(folder: &Path) -> Option<u64> {
    let whole = std::path::absolute(folder).ok()?;
    let existing = whole.ancestors().find(|path| path.exists())?;
    rustix::fs::statvfs(existing).ok().map(|disk| disk.f_bavail * disk.f_frsize)
}

/// More bytes than any JSON file of settings has; parsing takes several times as many.
const MOST_JSON: u64 = 64 << 20;

/// Reads the text of a JSON file of a size that can be parsed, naming it in the error. A byte order mark
/// is skipped.
pub fn read_json_text(path: &Path) -> Result<String> {
    match fs::metadata(path).map(|about| about.len()) {
        Ok(found @ MOST_JSON..) => {
            let path = path.display();
            Err(fault(format!("`{path}` has {found} bytes, expected fewer than {MOST_JSON}")).into())
        }
        _ => {
            let bytes = read_bytes(path)?;
            check_start(path, &bytes)?;
            let text = String::from_utf8(bytes);
            let text = text.with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
        }
    }
}

/// Reads and parses a JSON file, naming it and the position of the mistake in the error.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    parse_json(&read_json_text(path)?).with_context(|| format!("`{}` is not valid", path.display()))
}

/// Parses JSON; errors name the key of the wrong value, the position, and the expected type in plain words.
/// Fails where the text is no JSON, or not of this form.
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

/// Returns the last key before a position, counted from 1, in the text of an object.
fn key_before(text: &str, line: usize, column: usize) -> Option<&str> {
    let start: usize = text.split_inclusive('\n').take(line.checked_sub(1)?).map(str::len).sum();
    let before = text.get(..start + column)?;
    let quoted = before.get(..before.rfind("\":")?)?;
    quoted.get(quoted.rfind('"')? + 1..)
}

/// Files of a checkpoint that tokenizer, processor and generation are read from, besides those that
/// [`is_companion`] recognises by extension.
const COMPANIONS: [&str; 15] = [
    "added_tokens.json",
    "bpe.codes",
    "chat_template.json",
    "dict.txt",
    "generation_config.json",
    "merges.txt",
    "normalizer.json",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
];

/// Folder of further chat templates in a checkpoint.
pub const TEMPLATES: &str = "additional_chat_templates";

/// Returns true if a checkpoint's file, by its path there, accompanies configuration and weights.
pub fn is_companion(path: &str) -> bool {
    let template = path.strip_prefix(TEMPLATES).and_then(|rest| rest.strip_prefix('/'));
    let name = template.unwrap_or(path);
    if name.contains('/') {
        return false;
    }
    let code = name.starts_with("tokenization_") && name.ends_with(".py");
    let of_tokenizer = [".model", ".tiktoken"].iter().any(|ending| name.ends_with(ending)) || code;
    name.ends_with(".jinja") || template.is_none() && (of_tokenizer || COMPANIONS.contains(&name))
}

/// Returns a text as a part of a URL: percent-encoded, except for the unreserved characters of RFC 3986 and those of `also`.
pub fn url_part(text: impl AsRef<[u8]>, also: &str) -> String {
    let is_plain =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte) || also.as_bytes().contains(byte);
    let one = |byte: &u8| if is_plain(byte) { char::from(*byte).into() } else { format!("%{byte:02X}") };
    text.as_ref().iter().map(one).collect()
}

/// Matches `name` against `pattern`: `?` is one byte, `*` any number within a folder, `**` across folders.
pub fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [b'*', b'*', b'/', rest @ ..] if matches(rest, name) => true,
        [b'*', b'*', rest @ ..] => (0..=name.len()).any(|cut| matches(rest, name.get(cut..).unwrap_or(&[]))),
        [b'*', rest @ ..] => {
            let reach = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
            (0..=reach).any(|cut| matches(rest, name.get(cut..).unwrap_or(&[])))
        }
        [b'?', rest @ ..] => matches!(name, [first, tail @ ..] if *first != b'/' && matches(rest, tail)),
        [wanted, rest @ ..] => matches!(name, [first, tail @ ..] if first == wanted && matches(rest, tail)),
    }
}

/// Endings of data files, each also before `.gz`.
const DATA: [&str; 8] = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "txt"];

/// Returns true if a file's name says that it holds rows.
pub fn is_data(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let stem = name.strip_suffix(".gz").unwrap_or(&name);
    stem.rsplit_once('.').is_some_and(|(_, ending)| DATA.contains(&ending))
}

/// Returns true if `name`, which stands for the path `at`, means a data file or a folder of them rather than an entry of a
/// catalog.
pub fn is_data_place(name: &str, at: &Path) -> bool {
    let is_saved = || ["dataset_dict.json", "state.json"].iter().any(|file| at.join(file).is_file());
    let is_path = || name.starts_with(['.', '/']) || name.ends_with('/');
    is_data(name) && at.is_file() || at.is_dir() && (is_path() || is_saved())
}

/// Returns the cache folder: `$LORAXS_CACHE`, or else `loraxs` in the user's cache folder.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_may_begin_with_a_byte_order_mark() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        for text in ["{\"a\": \"\u{feff}\"}", "\u{feff}{\"a\": \"\u{feff}\"}"] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_json::<Value>(&path).unwrap(), serde_json::json!({"a": "\u{feff}"}));
        }
        let wrong: [(&[u8], &str); 2] =
            [(b"<html>\xe9", "config.json` is an HTML page"), (b"\"\xe9\"", "cannot read `")];
        for (bytes, words) in wrong {
            fs::write(&path, bytes).unwrap();
            let error = read_json::<Value>(&path).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn every_change_of_a_sealed_value_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let value = serde_json::json!({"step": 31, "loss": 0.1, "none": f64::NAN, "runs": [{"noise": "ab"}]});
        write_sealed(&path, &value).unwrap();
        let text = read_text(&path).unwrap();
        let read = |text: String| {
            fs::write(&path, text).unwrap();
            read_sealed::<Value>(&path)
        };
        assert_eq!(read(text.clone()).unwrap(), (value.clone(), true));
        for (from, to) in
            [("31", "32"), ("0.1", "0.11"), ("\"ab\"", "\"bb\""), ("null", "1"), ("step", "stop")]
        {
            let error = read(text.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains("state.json` is damaged"), "{error}");
        }
        assert_eq!(read(value.to_string()).unwrap(), (value, false));
    }
}
