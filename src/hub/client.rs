//! Requests to the hub: a repository's listing, and a file from some byte on.

use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hf_hub::api::RepoInfo;
use hf_hub::{Repo, RepoType};
use ureq::Agent;
use ureq::http::{HeaderMap, Response, StatusCode, Uri};

use crate::fault::fault;
use crate::files::url_part;

/// Number of attempts at a request before the hub counts as unreachable.
const ATTEMPTS: u32 = 3;
const REDIRECTS: u32 = 10;
/// Longest wait, in seconds, that a busy hub can demand before each further attempt.
const LONGEST_WAIT: u64 = 60;
/// A listing names each file of a repository; the largest data sets have hundreds of thousands.
const LISTING_LIMIT: u64 = 256 << 20;

/// Failure of a request.
#[derive(Debug)]
pub(super) enum Failure {
    /// The network or the hub is at fault, for this reason: a later attempt may work, or the cache may serve.
    Unreachable(String),
    /// Retrying would not help.
    Final(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Final(error)
    }
}

/// Outcome of a request.
pub(super) type Attempt<T> = Result<T, Failure>;

/// A repository at a revision, and its folder in the cache.
pub(super) struct Target {
    /// `name` or `owner/name`.
    pub id: String,
    pub kind: RepoType,
    pub repo: Repo,
    /// `CACHE/models--owner--name`.
    pub root: PathBuf,
}

impl Target {
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    pub(super) fn reference(&self) -> PathBuf {
        self.root.join("refs").join(self.repo.revision())
    }

    fn noun(&self) -> &'static str {
        match self.kind {
            RepoType::Model => "model",
            RepoType::Dataset => "data set",
            RepoType::Space => "space",
        }
    }
}

/// The start of a file's body, and the hub's metadata of the whole file.
pub(super) struct Answer {
    pub body: Response<ureq::Body>,
    /// Identifier of the content: a SHA-256 for large files.
    pub etag: Option<String>,
    /// Size of the whole file in bytes.
    pub size: Option<u64>,
    commit: Option<String>,
}

/// HTTP client for one endpoint.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

impl Client {
    pub(super) fn new(endpoint: &str, token: Option<&str>) -> Self {
        let agent = Agent::config_builder()
            .user_agent(concat!("loraxs/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // Redirects are followed here, so that only the endpoint gets the token.
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(30)))
            .build()
            .into();
        Self { agent, endpoint: endpoint.to_owned(), token: token.map(str::to_owned) }
    }

    /// Requests the commit that the revision refers to and the names of its files.
    pub(super) fn info(&self, target: &Target) -> Attempt<RepoInfo> {
        let folder = match target.kind {
            RepoType::Model => "models",
            RepoType::Dataset => "datasets",
            RepoType::Space => "spaces",
        };
        let revision = url_part(target.repo.revision(), "");
        let url = format!("{}/api/{folder}/{}/revision/{revision}", self.endpoint, target.id);
        patiently(|| {
            let mut answer = self.get(&url, 0)?;
            self.check_status(&answer, target, None)?;
            let text = answer.body.body_mut().with_config().limit(LISTING_LIMIT).read_to_string();
            let text = text.map_err(|error| Failure::Unreachable(error.to_string()))?;
            serde_json::from_str(&text).map_err(|error| {
                Failure::Unreachable(format!("the response is not a repository listing: {error}"))
            })
        })
    }

    /// Opens a file of `commit` from byte `start` on. Requests the revision, as other clients do, and the
    /// commit if the revision has moved since the listing.
    pub(super) fn open(&self, target: &Target, commit: &str, file: &str, start: u64) -> Attempt<Answer> {
        let answer = self.open_at(target, target.repo.revision(), file, start)?;
        match &answer.commit {
            Some(moved) if moved != commit => self.open_at(target, commit, file, start),
            _ => Ok(answer),
        }
    }

    fn open_at(&self, target: &Target, revision: &str, file: &str, start: u64) -> Attempt<Answer> {
        let (repo, revision, path) = (target.repo.url(), url_part(revision, ""), url_part(file, "/"));
        let answer = self.get(&format!("{}/{repo}/resolve/{revision}/{path}", self.endpoint), start)?;
        self.check_status(&answer, target, Some(file))?;
        Ok(answer)
    }

    /// Follows redirects. Metadata of the file is taken from the hub itself, not from the redirected store.
    fn get(&self, url: &str, start: u64) -> Attempt<Answer> {
        // rustls panics there.
        if SystemTime::now() < UNIX_EPOCH {
            return Err(Failure::Unreachable("this machine's clock is set before 1970".to_owned()));
        }
        let (mut url, mut etag, mut linked, mut size, mut commit) = (url.to_owned(), None, None, None, None);
        for _ in 0..=REDIRECTS {
            let own = authority(&url).is_some() && authority(&url) == authority(&self.endpoint);
            let mut request = self.agent.get(&url).header("Accept-Encoding", "identity");
            if let Some(token) = self.token.as_ref().filter(|_| own) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            let body = request.call().map_err(|error| Failure::Unreachable(error.to_string()))?;
            let headers = body.headers();
            if own {
                etag = text(headers, "etag").or(etag);
                linked = text(headers, "x-linked-etag").or(linked);
                size = text(headers, "x-linked-size").or(size);
                commit = text(headers, "x-repo-commit").or(commit);
            }
            if !body.status().is_redirection() {
                let etag =
                    linked.or(etag).map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
                let size = size.and_then(|text| text.parse().ok()).or_else(|| size_of(&body));
                return Ok(Answer { body, etag, size, commit });
            }
            url = text(headers, "location")
                .and_then(|location| redirected(&url, &location))
                .ok_or_else(|| Failure::Unreachable(format!("`{url}` redirects without a location")))?;
        }
        Err(Failure::Unreachable(format!("more than {REDIRECTS} redirects, the last to `{url}`")))
    }

    /// Turns the hub's refusals into errors. It answers 401 both for private and for missing repositories, so
    /// that nobody can find out which private ones exist.
    fn check_status(&self, answer: &Answer, target: &Target, file: Option<&str>) -> Attempt<()> {
        let status = answer.body.status();
        if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE {
            return Ok(());
        }
        let retry = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].contains(&status);
        if status.is_server_error() || retry {
            let wait = text(answer.body.headers(), "retry-after").and_then(|seconds| seconds.parse().ok());
            if let Some(wait) = wait.map(|seconds: u64| Duration::from_secs(seconds.min(LONGEST_WAIT))) {
                tracing::info!("`{}` returned {status} and asks to wait {wait:?}", self.endpoint);
                std::thread::sleep(wait);
            }
            return Err(Failure::Unreachable(format!("it returned {status}")));
        }
        let (id, noun, endpoint, revision) =
            (&target.id, target.noun(), &self.endpoint, target.repo.revision());
        let page = format!("{endpoint}/{}", target.repo.url());
        let token = match self.token {
            Some(_) => "check that your token can read it",
            None => "set `HF_TOKEN`",
        };
        let code = text(answer.body.headers(), "x-error-code");
        let error = match (status.as_u16(), code.as_deref(), file) {
            (_, Some("RevisionNotFound"), _) => {
                fault(format!("the {noun} `{id}` has no revision `{revision}`"))
                    .hint(format!("its branches and tags are at `{page}/tree/main`"))
            }
            (_, Some("EntryNotFound"), Some(file)) | (404, None, Some(file)) => {
                fault(format!("the {noun} `{id}` has no file `{file}` at revision `{revision}`"))
            }
            (_, Some("GatedRepo"), _) | (403, _, _) => {
                fault(format!("the {noun} `{id}` is gated ({status})"))
                    .hint(format!("accept its licence at `{page}`, then {token}"))
            }
            (401, _, _) | (404, _, _) => fault(format!(
                "no {noun} `{id}` with revision `{revision}` at `{endpoint}` ({status}): it does not exist, or is \
                 private or gated{}",
                if matches!(target.kind, RepoType::Model) { "; there is no folder of that name either" } else { "" }
            ))
            .hint(format!(
                "check the name; if it is private, {token}; if it is gated, accept its licence \
                at `{page}`"
            )),
            _ => fault(format!("`{endpoint}` returned {status} for the {noun} `{id}`")),
        };
        Err(Failure::Final(error.into()))
    }
}

/// Retries a few times, with growing pauses, what the network may have broken.
pub(super) fn patiently<T>(mut attempt: impl FnMut() -> Attempt<T>) -> Attempt<T> {
    for failures in 1..ATTEMPTS {
        match attempt() {
            Err(Failure::Unreachable(why)) => pause(failures, &why),
            other => return other,
        }
    }
    attempt()
}

/// Waits before another attempt: 0.2 s after the first failure, twice that after each further one.
pub(super) fn pause(failures: u32, why: &str) {
    let wait = Duration::from_millis(100 << failures.min(6));
    tracing::debug!("retrying in {wait:?}: {why}");
    std::thread::sleep(wait);
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(|value| value.trim().to_owned())
}

/// Returns the size of the whole file, of which a response may be a range.
fn size_of(response: &Response<ureq::Body>) -> Option<u64> {
    let headers = response.headers();
    if let Some(range) = text(headers, "content-range") {
        return range.rsplit('/').next()?.parse().ok();
    }
    let is_plain = response.status() == StatusCode::OK && !headers.contains_key("content-encoding");
    text(headers, "content-length").filter(|_| is_plain)?.parse().ok()
}

/// Returns scheme, host and port of a URL.
fn authority(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    Some(format!("{}://{}", uri.scheme_str()?, uri.authority()?))
}

/// Resolves a redirect of `url` to `location`.
fn redirected(url: &str, location: &str) -> Option<String> {
    if location.starts_with("http://") || location.starts_with("https://") {
        return Some(location.to_owned());
    }
    if location.starts_with("//") {
        return Some(format!("{}:{location}", url.split(':').next()?));
    }
    if location.starts_with('/') {
        return Some(format!("{}{location}", authority(url)?));
    }
    let folder = url.split('?').next()?.rsplit_once('/')?.0;
    Some(format!("{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_may_be_relative_to_the_host_or_the_folder() {
        let url = "https://hub.example:8080/a/resolve/main/f?x=/y";
        assert_eq!(redirected(url, "http://cdn/x").as_deref(), Some("http://cdn/x"));
        assert_eq!(redirected(url, "//cdn/x").as_deref(), Some("https://cdn/x"));
        assert_eq!(redirected(url, "/api/x").as_deref(), Some("https://hub.example:8080/api/x"));
        assert_eq!(redirected(url, "g").as_deref(), Some("https://hub.example:8080/a/resolve/main/g"));
    }

    #[test]
    fn what_is_not_plain_in_an_address_is_encoded() {
        assert_eq!(url_part("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(url_part("a b/c#d?.json", "/"), "a%20b/c%23d%3F.json");
    }
}
