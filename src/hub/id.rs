//! Names of repositories, revisions and files.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fault::{Result, fault, nearest};
use crate::files::quantised;

/// Returns true for `name` or `owner/name`, in the characters that the hub allows.
fn is_repository(name: &str) -> bool {
    let allowed = |part: &str| {
        (1..=96).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    name.split('/').count() <= 2 && name.split('/').all(allowed)
}

/// Rejects a name that no model can have, naming what was looked for.
pub(super) fn check_model_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(fault("the name of the model is empty")
            .hint("give a folder, or a hub id such as `roberta-base` or `owner/name`")
            .into());
    }
    let path = Path::new(name);
    if path.is_file() {
        let hint = match quantised::of_files([name].into_iter()) {
            Some(_) => quantised::hint(path),
            None => "give the folder that holds `config.json` and the weights".to_owned(),
        };
        let message = format!("`{name}` is a file, expected the folder of a checkpoint");
        return Err(fault(message).hint(hint).into());
    }
    if is_repository(name) {
        return Ok(());
    }
    let place = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_path = ["./", "../", "/", "~"].iter().any(|begin| name.starts_with(begin));
    let no_id = if is_path { "" } else { ", and it is not a hub id" };
    let hint = near(path).map(|near| format!("did you mean the folder `{near}`?"));
    Err(fault(format!("no model `{name}`: no such folder here (`{}`){no_id}", place.display()))
        .hint(hint.unwrap_or("a hub id is `name` or `owner/name`".to_owned()))
        .into())
}

/// Warns of a name that may be a mistyped folder, since the folder before its slash is here: the hub is asked next.
pub(super) fn warn_of_folder(name: &str) {
    let path = Path::new(name);
    if path.parent().is_some_and(|parent| !parent.as_os_str().is_empty() && parent.is_dir()) {
        let near = near(path).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default();
        tracing::warn!("no such folder here: `{name}`{near}; looking for it on the hub");
    }
}

/// Returns the folder that a mistyped path may mean, beside where it would be.
fn near(path: &Path) -> Option<String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folders = std::fs::read_dir(parent).ok()?.flatten().filter(|entry| entry.path().is_dir());
    let names: Vec<String> = folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    let near = nearest(&path.file_name()?.to_string_lossy(), names.iter().map(String::as_str))?;
    Some(path.with_file_name(near).display().to_string())
}

/// Rejects a name that no data set repository can have.
pub(super) fn check_dataset_name(name: &str) -> Result<()> {
    if is_repository(name) {
        return Ok(());
    }
    Err(fault(format!("`{name}` is not a data set's hub id"))
        .hint("a hub id is `name` or `owner/name`")
        .into())
}

/// Rejects a revision that no repository can have; it becomes a path in the cache.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    let plain = revision.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\?*[~^:".contains(&byte));
    if plain && check_file_name(revision).is_ok() {
        return Ok(());
    }
    Err(fault(format!("`{revision}` is not a revision"))
        .hint("a revision is a branch, tag or commit, usually `main`")
        .into())
}

/// Rejects a repository's file name that would lead out of its folder.
pub(super) fn check_file_name(name: &str) -> Result<()> {
    let safe = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains(['\0', '\\']);
    if name.split('/').all(safe) {
        return Ok(());
    }
    Err(fault(format!(
        "the repository names a file `{}`, which is not a safe file name",
        name.escape_debug()
    ))
    .into())
}

/// Rejects a set of files such as `train-00000-of-00002.parquet` with missing parts.
pub(super) fn check_parts(names: &[String]) -> Result<()> {
    let mut groups: BTreeMap<(&str, u32), u32> = BTreeMap::new();
    for (stem, total) in names.iter().filter_map(|name| part_of(name)) {
        *groups.entry((stem, total)).or_default() += 1;
    }
    match groups.iter().find(|((_, total), found)| *found < total) {
        None => Ok(()),
        Some(((stem, total), found)) => {
            Err(fault(format!("`{stem}-*` has {total} parts, but only {found} were found"))
                .hint("run once online, without `--offline`")
                .into())
        }
    }
}

/// Splits `train-00000-of-00002.parquet` into `train` and 2.
fn part_of(name: &str) -> Option<(&str, u32)> {
    let (head, tail) = name.rsplit_once("-of-")?;
    let (stem, _) = head.rsplit_once('-')?;
    let digits = tail.split(|letter: char| !letter.is_ascii_digit()).next()?;
    Some((stem, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::hint_of;

    #[test]
    fn a_mistyped_folder_is_no_hub_id_and_the_nearest_is_named() {
        let place = tempfile::tempdir().unwrap();
        std::fs::create_dir(place.path().join("base")).unwrap();
        let wrong = place.path().join("bsae").display().to_string();
        let error = check_model_name(&wrong).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("no model `{wrong}`: no such folder here")),
            "{error}"
        );
        assert!(!error.to_string().contains("hub id"), "{error}");
        assert!(hint_of(&error).unwrap().ends_with("/base`?"), "{error:?}");
        assert!(check_model_name("./no/where").unwrap_err().to_string().contains("no such folder here"));
        assert!(check_model_name("a/b/c").unwrap_err().to_string().ends_with("and it is not a hub id"));
    }

    fn glob(pattern: &str, name: &str) -> bool {
        crate::files::matches(pattern.as_bytes(), name.as_bytes())
    }

    #[test]
    fn a_star_stays_within_a_folder_and_two_cross_folders() {
        assert!(glob("mrpc/train-*.parquet", "mrpc/train-00000-of-00001.parquet"));
        assert!(!glob("mrpc/train-*.parquet", "mrpc/test-00000-of-00001.parquet"));
        assert!(!glob("*.parquet", "mrpc/train.parquet"));
        assert!(glob("**/*.parquet", "a/b/train.parquet"));
        assert!(glob("**/*.parquet", "train.parquet"));
        assert!(glob("data.json", "data.json"));
        assert!(!glob("data.json", "data.jsonl"));
        assert!(glob("?.csv", "a.csv"));
        assert!(!glob("?.csv", "/.csv"));
    }

    #[test]
    fn hub_ids_have_one_or_two_plain_parts() {
        for good in ["gpt2", "FacebookAI/roberta-large", "a/b.c_d-e"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in ["", "a/b/c", "/a", "a/", "../a", "a b", "a/.b", "a--b", "~/x", "-a"] {
            assert!(!is_repository(bad), "{bad}");
        }
    }

    #[test]
    fn names_that_lead_out_of_the_folder_are_refused() {
        assert!(check_file_name("data/train.parquet").is_ok());
        for bad in ["../x", "/etc/x", "a//b", "a/../../b", "", "a/."] {
            assert!(check_file_name(bad).is_err(), "{bad}");
        }
        assert!(check_revision("refs/pr/1").is_ok());
        assert!(check_revision("a/../../b").is_err());
        assert!(check_revision("").is_err());
    }

    #[test]
    fn a_part_that_is_not_there_is_named() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert!(check_parts(&names(&["a/t-00000-of-00002.parquet", "a/t-00001-of-00002.parquet"])).is_ok());
        assert!(check_parts(&names(&["plain.json"])).is_ok());
        let missing = check_parts(&names(&["a/t-00001-of-00002.parquet"])).unwrap_err();
        assert_eq!(missing.to_string(), "`a/t-*` has 2 parts, but only 1 were found");
    }
}
