//! Sources of checkpoints and data sets: the Hugging Face hub with its cache, or folders.
//!
//! The cache has the layout of `huggingface_hub` (`models--owner--name/{blobs,refs,snapshots}`), so Python
//! and this program share downloads. Names and listings are those of `hf-hub`; its transfer is not used, for
//! the reasons in `transfer.rs`.

mod checkpoint;
mod client;
mod id;
mod settings;
mod transfer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use anyhow::Context as _;
use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};

use crate::fault::{Result, fault, hint_of, locked, nearest};
use crate::files;
pub use checkpoint::is_without_weights;
use client::{Client, Failure, Target};
pub use settings::Settings;

/// The hub under one set of settings.
pub struct Hub {
    settings: Settings,
    client: Client,
    /// Listings already requested, so that a repository is listed once, however many files are fetched.
    listings: Mutex<BTreeMap<String, Option<RepoInfo>>>,
    /// Reason why the hub could not be reached; set once, so that waiting and warning happen only once.
    down: OnceLock<String>,
}

/// A checkpoint on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The folder with `config.json`, weights and tokenizer.
    pub folder: PathBuf,
    /// The commit it belongs to; `None` for a plain folder.
    pub commit: Option<String>,
}

impl Hub {
    /// Creates the hub that the environment describes, see [`Settings::from_environment`].
    ///
    /// # Errors
    /// Names the variable that cannot be used.
    pub fn new(offline: bool) -> Result<Self> {
        Self::with(Settings::from_environment(offline)?)
    }

    /// Creates the hub with explicit settings.
    ///
    /// # Errors
    /// When the endpoint is not an address or the token cannot be sent as a header.
    pub fn with(settings: Settings) -> Result<Self> {
        let settings = settings.checked()?;
        let client = Client::new(&settings.endpoint, settings.token.as_deref());
        Ok(Self { settings, client, listings: Mutex::default(), down: OnceLock::new() })
    }

    /// Finds a model by folder or hub id. A folder is used as it is; of a repository, configuration,
    /// tokenizer and safetensors weights are fetched, and the folder of the snapshot is returned.
    ///
    /// # Errors
    /// When there is neither a folder nor a repository of that name, it is gated, the hub cannot be reached and no
    /// whole copy is cached, a download stays broken, or the checkpoint has no `config.json` or no safetensors.
    pub fn model(&self, name: &str, revision: &str) -> Result<Snapshot> {
        let path = Path::new(name);
        if path.is_dir() {
            checkpoint::check_folder(path, name)?;
            return Ok(Snapshot { folder: path.to_owned(), commit: None });
        }
        id::check_model_name(name)?;
        let target = self.target(name, RepoType::Model, revision)?;
        let Some(info) = self.listing(&target)? else {
            return self.cached_model(&target);
        };
        let folder = self.fetch_model(&target, &info)?;
        self.remember(&target, &info.sha)?;
        Ok(Snapshot { folder, commit: Some(info.sha) })
    }

    /// Fetches only `config.json` of a hub model and returns its folder, so that a wrong model is detected
    /// before its weights are fetched. `None` for a plain folder, or if only the cache can be used.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn config(&self, name: &str, revision: &str) -> Result<Option<PathBuf>> {
        if Path::new(name).is_dir() {
            return Ok(None);
        }
        id::check_model_name(name)?;
        id::warn_of_folder(name);
        let target = self.target(name, RepoType::Model, revision)?;
        let Some(info) = self.listing(&target)? else { return Ok(None) };
        checkpoint::check_config(&names_of(&info)?, &format!("the repository `{}`", target.id), &target.id)?;
        self.fetch(&target, &info.sha, checkpoint::CONFIG)?;
        Ok(Some(target.snapshot(&info.sha)))
    }

    /// Fetches the files of a data set repository that match `pattern`, sorted by their path there. In the
    /// pattern, `*` and `?` stay within a folder and `**` crosses folders, as in `mrpc/train-*.parquet`.
    ///
    /// # Errors
    /// As [`Hub::model`]; also when no file matches.
    pub fn dataset(&self, repo: &str, revision: &str, pattern: &str) -> Result<Vec<PathBuf>> {
        id::check_dataset_name(repo)?;
        let target = self.target(repo, RepoType::Dataset, revision)?;
        let Some(info) = self.listing(&target)? else {
            return self.cached_dataset(&target, pattern);
        };
        let names = names_of(&info)?;
        let wanted = matching(&names, pattern);
        if wanted.is_empty() {
            return Err(no_match(&target, pattern, &names).into());
        }
        let fetched: Result<Vec<PathBuf>> =
            wanted.iter().map(|file| self.fetch(&target, &info.sha, file)).collect();
        let fetched = fetched?;
        self.remember(&target, &info.sha)?;
        Ok(fetched)
    }

    /// Returns the paths of all files of a data set repository.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn dataset_files(&self, repo: &str, revision: &str) -> Result<Vec<String>> {
        id::check_dataset_name(repo)?;
        let target = self.target(repo, RepoType::Dataset, revision)?;
        let names = match self.listing(&target)? {
            Some(info) => names_of(&info)?,
            None => {
                let commit = self.cached_commit(&target).ok_or_else(|| self.not_cached(&target))?;
                let mut names = BTreeSet::new();
                files_below(&target.snapshot(&commit), "", &mut names)?;
                names
            }
        };
        Ok(names.into_iter().collect())
    }

    fn target(&self, name: &str, kind: RepoType, revision: &str) -> Result<Target> {
        id::check_revision(revision)?;
        let repo = Repo::with_revision(name.to_owned(), kind, revision.to_owned());
        let root = self.settings.cache.join(repo.folder_name());
        Ok(Target { id: name.to_owned(), kind, repo, root })
    }

    /// Returns commit and file names of a repository, or `None` to use the cache: offline, or the hub
    /// cannot be reached and something is cached.
    fn listing(&self, target: &Target) -> Result<Option<RepoInfo>> {
        if self.settings.offline {
            return Ok(None);
        }
        let key = target.repo.api_url();
        if let Some(known) = locked(&self.listings).get(&key) {
            return Ok(known.clone());
        }
        let asked = match self.down.get() {
            Some(why) => Err(Failure::Unreachable(why.clone())),
            None => self.client.info(target),
        };
        let remember = |answer: Option<RepoInfo>| {
            locked(&self.listings).insert(key, answer.clone());
            answer
        };
        let why = match asked {
            Ok(info) => {
                id::check_file_name(&info.sha)?;
                return Ok(remember(Some(info)));
            }
            // As in `huggingface_hub`: earlier downloads stay usable, even if access to them has been lost.
            Err(Failure::Final(error)) if self.cached_commit(target).is_some() => {
                tracing::warn!("{error}; using the cache");
                return Ok(remember(None));
            }
            Err(Failure::Final(error)) => return Err(error),
            Err(Failure::Unreachable(why)) => why,
        };
        if self.cached_commit(target).is_none() {
            return Err(self.unreachable(target, &why));
        }
        if self.down.set(why.clone()).is_ok() {
            tracing::warn!("cannot reach `{}` ({why}); using the cache", self.settings.endpoint);
        }
        Ok(None)
    }

    /// Fetches a checkpoint's files, small ones first, so that faults show before the weights are fetched.
    fn fetch_model(&self, target: &Target, info: &RepoInfo) -> Result<PathBuf> {
        let names = names_of(info)?;
        checkpoint::check_config(&names, &format!("the repository `{}`", target.id), &target.id)?;
        let config = self.fetch(target, &info.sha, checkpoint::CONFIG)?;
        let weights = checkpoint::weights(&names, &target.id, &config)?;
        for file in names.iter().filter(|file| files::is_companion(file)) {
            self.fetch(target, &info.sha, file)?;
        }
        let main = self.fetch(target, &info.sha, weights)?;
        if weights == checkpoint::INDEX {
            let shards = checkpoint::shards(&main)?;
            checkpoint::check_shards(&shards, &names, &format!("the repository `{}`", target.id))?;
            for shard in &shards {
                self.fetch(target, &info.sha, shard)?;
            }
        }
        Ok(target.snapshot(&info.sha))
    }

    fn fetch(&self, target: &Target, commit: &str, file: &str) -> Result<PathBuf> {
        transfer::fetch(&self.client, &self.settings, target, commit, file).map_err(|failure| match failure {
            Failure::Unreachable(why) => self.unreachable(target, &format!("`{file}`: {why}")),
            Failure::Final(error) => error,
        })
    }

    /// Records a complete download: the reference marks the snapshot to use without a network.
    fn remember(&self, target: &Target, commit: &str) -> Result<()> {
        let reference = target.reference();
        let known = std::fs::read_to_string(&reference).is_ok_and(|text| text.trim() == commit);
        if known || target.repo.revision() == commit {
            return Ok(());
        }
        files::write_bytes(&reference, commit.as_bytes())
    }

    /// Returns the cached commit of this revision, which may be a branch, a tag or a commit itself.
    fn cached_commit(&self, target: &Target) -> Option<String> {
        let named = std::fs::read_to_string(target.reference()).ok().map(|text| text.trim().to_owned());
        named
            .into_iter()
            .chain([target.repo.revision().to_owned()])
            .find(|commit| id::check_file_name(commit).is_ok() && target.snapshot(commit).is_dir())
    }

    fn cached_model(&self, target: &Target) -> Result<Snapshot> {
        let commit = self.cached_commit(target).ok_or_else(|| self.not_cached(target))?;
        let folder = target.snapshot(&commit);
        checkpoint::check_folder(&folder, &target.id).map_err(|error| {
            let other = hint_of(&error).map(|hint| format!("; if that changes nothing: {hint}"));
            fault(format!("the cached copy of `{}` cannot be used: {error:#}", target.id))
                .hint(format!("run once online, without `--offline`{}", other.unwrap_or_default()))
        })?;
        Ok(Snapshot { folder, commit: Some(commit) })
    }

    fn cached_dataset(&self, target: &Target, pattern: &str) -> Result<Vec<PathBuf>> {
        let commit = self.cached_commit(target).ok_or_else(|| self.not_cached(target))?;
        let folder = target.snapshot(&commit);
        let mut names = BTreeSet::new();
        files_below(&folder, "", &mut names)?;
        let found = matching(&names, pattern);
        if found.is_empty() {
            let message = format!("no file that matches `{pattern}` is cached in `{}`", folder.display());
            return Err(fault(message).hint("run once online, without `--offline`").into());
        }
        id::check_parts(&found)
            .with_context(|| format!("the cached copy of `{}` is incomplete", target.id))?;
        Ok(found.iter().map(|name| folder.join(name)).collect())
    }

    fn not_cached(&self, target: &Target) -> anyhow::Error {
        let (id, revision, cache) = (&target.id, target.repo.revision(), self.settings.cache.display());
        fault(format!(
            "offline, and `{id}` at revision `{revision}` is neither a folder nor in the cache `{cache}`"
        ))
        .hint(
            "run once without `--offline` and `HF_HUB_OFFLINE`, or point `HF_HOME` at the cache that has it",
        )
        .into()
    }

    fn unreachable(&self, target: &Target, why: &str) -> anyhow::Error {
        let (endpoint, cache) = (&self.settings.endpoint, self.settings.cache.display());
        let known = match self.cached_commit(target) {
            Some(commit) => {
                format!("with `--offline`, the copy of commit {commit} in the cache `{cache}` is used")
            }
            None => {
                format!("the cache `{cache}` has no complete copy; the next run continues the download")
            }
        };
        fault(format!("cannot get `{}` from `{endpoint}`: {why}", target.id))
            .hint(format!("check the network, the proxy and `HF_ENDPOINT`; {known}"))
            .into()
    }
}

/// Returns the file names of a repository, none of which may lead out of its folder.
fn names_of(info: &RepoInfo) -> Result<BTreeSet<String>> {
    info.siblings
        .iter()
        .map(|file| id::check_file_name(&file.rfilename).map(|()| file.rfilename.clone()))
        .collect()
}

fn matching(names: &BTreeSet<String>, pattern: &str) -> Vec<String> {
    names.iter().filter(|name| files::matches(pattern.as_bytes(), name.as_bytes())).cloned().collect()
}

fn no_match(target: &Target, pattern: &str, names: &BTreeSet<String>) -> crate::fault::Fault {
    let message = format!("no file of the data set `{}` matches `{pattern}`", target.id);
    match nearest(pattern, names.iter().map(String::as_str)) {
        Some(near) => fault(message).hint(format!("the nearest of its {} files is `{near}`", names.len())),
        None => {
            let some: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
            fault(message).hint(format!(
                "it has {} files, the first are `{}`",
                names.len(),
                some.join("`, `")
            ))
        }
    }
}

/// Adds the paths of all files below `folder`, relative to the first one and separated by `/`.
fn files_below(folder: &Path, prefix: &str, names: &mut BTreeSet<String>) -> Result<()> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() {
            files_below(&entry.path(), &format!("{name}/"), names)?;
        } else if entry.path().exists() {
            names.insert(name);
        }
    }
    Ok(())
}
