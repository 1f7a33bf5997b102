//! The hub client against a small HTTP server that serves repositories from memory, whole or broken.

#![allow(clippy::unwrap_used, reason = "a helper of a test may fail it")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use loraxs::fault::hint_of;
use loraxs::hub::{Hub, Settings};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use crate::forked;
use crate::support::{Place, encoders, errors};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const MOVED: &str = "76543210fedcba9876543210fedcba9876543210";
const MODEL: &str = "owner/tiny";

/// How the server treats one file or the whole repository.
#[derive(Clone, Copy, PartialEq)]
enum Trouble {
    /// The connection ends after this byte of the file, this many times.
    Cut { at: usize, times: u32 },
    /// One bit of the content is wrong.
    Wrong,
    /// Ranges are ignored: every answer is the file from its start.
    NoRanges,
    /// The files need a licence that was not accepted; the code is sent in `X-Error-Code`.
    Gated,
    /// Every listing is refused as that of a repository that does not exist.
    Gone,
    /// The revision points at another commit than the listing said.
    Moved,
}

#[derive(Default)]
struct State {
    /// By `models/owner/name` or `datasets/owner/name`, then by path.
    repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    trouble: BTreeMap<String, Trouble>,
    /// `METHOD path range authorization` of every request.
    log: Vec<String>,
}

/// A hub on one port, and on another the store to which it redirects for large files.
struct Server {
    endpoint: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let (hub, store) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let store_address = format!("http://{}", store.local_addr().unwrap());
        for listener in [hub, store] {
            let (state, store_address) = (Arc::clone(&state), store_address.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, store_address) = (Arc::clone(&state), store_address.clone());
                    std::thread::spawn(move || answer(stream, &state, &store_address));
                }
            });
        }
        Self { endpoint, state }
    }

    /// A server with the model [`MODEL`] and these files.
    fn with_model(files: &[(&str, &[u8])]) -> Self {
        let server = Self::start();
        server.put(&format!("models/{MODEL}"), files);
        server
    }

    fn put(&self, repository: &str, files: &[(&str, &[u8])]) {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())).collect();
        self.state.lock().unwrap().repositories.insert(repository.to_owned(), files);
    }

    fn trouble(&self, place: &str, trouble: Trouble) {
        self.state.lock().unwrap().trouble.insert(place.to_owned(), trouble);
    }

    fn heal(&self) {
        self.state.lock().unwrap().trouble.clear();
    }

    /// The requests since the last call.
    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    fn settings(&self, cache: &Path) -> Settings {
        Settings {
            endpoint: self.endpoint.clone(),
            cache: cache.to_owned(),
            token: None,
            offline: false,
            progress: false,
        }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub::with(self.settings(cache)).unwrap()
    }

    fn offline(&self, cache: &Path) -> Hub {
        Hub::with(Settings { offline: true, ..self.settings(cache) }).unwrap()
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, store: &str) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let headers: BTreeMap<String, String> = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_lowercase(), value.to_owned())))
        .collect();
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let path = first.split(' ').nth(1).unwrap_or("/").replace("%2F", "/").replace("%20", " ");
    let mut state = state.lock().unwrap();
    let line = format!("{} {path} {} {}", &first[..3], header("range"), header("authorization"));
    state.log.push(line.trim_end().to_owned());
    let start = header("range").trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap_or(0);
    let (head, body) = respond(&mut state, path.trim_start_matches('/'), start, store);
    drop(state);
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
}

/// Status line, headers and as much of the body as the trouble lets through.
fn respond(state: &mut State, path: &str, start: usize, store: &str) -> (String, Vec<u8>) {
    let refuse = |status: &str, code: &str| {
        (format!("HTTP/1.1 {status}\r\nX-Error-Code: {code}\r\nContent-Length: 0\r\n\r\n"), Vec::new())
    };
    if let Some((repository, revision)) = path.strip_prefix("api/").and_then(|p| p.split_once("/revision/")) {
        let gone = state.trouble.values().any(|trouble| *trouble == Trouble::Gone);
        let Some(files) = state.repositories.get(repository).filter(|_| !gone) else {
            return refuse("401 Unauthorized", "RepoNotFound");
        };
        if !["main", COMMIT].contains(&revision) {
            return refuse("404 Not Found", "RevisionNotFound");
        }
        let names: Vec<String> = files.keys().map(|name| format!("{{\"rfilename\":{name:?}}}")).collect();
        let json = format!("{{\"sha\":{COMMIT:?},\"siblings\":[{}]}}", names.join(","));
        return (format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", json.len()), json.into_bytes());
    }
    let from_store = path.strip_prefix("store/");
    let Some((repository, rest)) = from_store.unwrap_or(path).split_once("/resolve/") else {
        return refuse("404 Not Found", "RepoNotFound");
    };
    let folder = if repository.starts_with("datasets/") { "" } else { "models/" };
    let (revision, name) = rest.split_once('/').unwrap_or((rest, ""));
    let Some(content) =
        state.repositories.get(&format!("{folder}{repository}")).and_then(|files| files.get(name))
    else {
        return refuse("404 Not Found", "EntryNotFound");
    };
    let is_large = name.ends_with(".safetensors") || name.ends_with(".parquet");
    let mut commit = COMMIT;
    match state.trouble.get(repository) {
        Some(Trouble::Gated) => return refuse("403 Forbidden", "GatedRepo"),
        Some(Trouble::Moved) if revision == "main" => commit = MOVED,
        _ => {}
    }
    let sha = format!("{:x}", Sha256::digest(content));
    if is_large && from_store.is_none() {
        let head = format!(
            "HTTP/1.1 302 Found\r\nLocation: {store}/store/{path}\r\nX-Linked-Etag: \"{sha}\"\r\nX-Linked-Size: {}\r\n\
             X-Repo-Commit: {commit}\r\nContent-Length: 0\r\n\r\n",
            content.len()
        );
        return (head, Vec::new());
    }
    let git = [format!("blob {}\0", content.len()).as_bytes(), content.as_slice()].concat();
    let etag = if is_large { "\"store\"".to_owned() } else { format!("W/\"{:x}\"", Sha1::digest(git)) };
    send(
        content.clone(),
        start,
        &format!("ETag: {etag}\r\nX-Repo-Commit: {commit}\r\n"),
        state.trouble.get_mut(name),
    )
}

fn send(
    mut content: Vec<u8>,
    start: usize,
    headers: &str,
    trouble: Option<&mut Trouble>,
) -> (String, Vec<u8>) {
    let (size, mut start, mut cut) = (content.len(), start, content.len());
    match trouble {
        Some(Trouble::Wrong) => content[size / 2] ^= 1,
        Some(Trouble::NoRanges) => start = 0,
        Some(Trouble::Cut { at, times }) if *times > 0 => {
            *times -= 1;
            cut = (*at).max(start);
        }
        _ => {}
    }
    let mut head = format!("HTTP/1.1 200 OK\r\n{headers}Content-Length: {}\r\n", size - start);
    if start > 0 {
        head = head.replace("200 OK", "206 Partial Content");
        let _ = write!(head, "Content-Range: bytes {start}-{}/{size}\r\n", size - 1);
    }
    (head + "Connection: close\r\n\r\n", content[start..cut].to_vec())
}

fn weights(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 31 % 251) as u8).collect()
}

/// A model with one file of weights.
fn tiny(weights: &[u8]) -> Vec<(&str, &[u8])> {
    vec![
        (".gitattributes", b"*"),
        ("config.json", br#"{"architectures":["BertModel"]}"#),
        ("model.safetensors", weights),
        ("pytorch_model.bin", b"not wanted"),
        ("tokenizer.json", b"{}"),
    ]
}

/// What lies among the blobs of [`MODEL`], whole or not.
fn blobs(cache: &Path) -> Vec<PathBuf> {
    let folder = cache.join("models--owner--tiny").join("blobs");
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(folder).map(|all| all.flatten().map(|e| e.path()).collect()).unwrap_or_default();
    names.sort();
    names
}

#[test]
fn a_model_is_taken_into_the_cache_that_python_shares() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(100_000));
    let server = Server::with_model(&tiny(&content));
    let snapshot = server.hub(cache.path()).model(MODEL, "main").unwrap();
    let root = cache.path().join("models--owner--tiny");
    assert_eq!(snapshot.folder, root.join("snapshots").join(COMMIT));
    assert_eq!(snapshot.commit.as_deref(), Some(COMMIT));
    assert_eq!(std::fs::read_to_string(root.join("refs/main")).unwrap(), COMMIT);
    let sha = format!("{:x}", Sha256::digest(&content));
    let link = std::fs::read_link(snapshot.folder.join("model.safetensors")).unwrap();
    assert_eq!(link, PathBuf::from(format!("../../blobs/{sha}")));
    assert_eq!(std::fs::read(snapshot.folder.join("model.safetensors")).unwrap(), content);
    let names: Vec<_> =
        std::fs::read_dir(&snapshot.folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "only what a checkpoint needs is taken: {names:?}");
}

#[test]
fn the_second_use_downloads_nothing_and_offline_asks_nothing() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    let first = server.hub(cache.path()).model(MODEL, "main").unwrap();
    server.requests();
    assert_eq!(server.hub(cache.path()).model(MODEL, "main").unwrap(), first);
    assert_eq!(server.requests(), [format!("GET /api/models/{MODEL}/revision/main")]);
    assert_eq!(server.offline(cache.path()).model(MODEL, "main").unwrap(), first);
    assert_eq!(server.offline(cache.path()).model(MODEL, COMMIT).unwrap(), first);
    assert!(server.requests().is_empty());
}

#[test]
fn an_unreachable_hub_leaves_the_cache() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    let first = server.hub(cache.path()).model(MODEL, "main").unwrap();
    let settings = Settings { endpoint: "http://127.0.0.1:9".to_owned(), ..server.settings(cache.path()) };
    assert_eq!(Hub::with(settings.clone()).unwrap().model(MODEL, "main").unwrap(), first);
    let other = Hub::with(settings).unwrap().model("owner/other", "main").unwrap_err();
    assert!(other.to_string().starts_with("cannot get `owner/other` from `http://127.0.0.1:9`"), "{other}");
    assert!(hint_of(&other).unwrap().contains(&cache.path().display().to_string()));
}

#[test]
fn offline_without_a_copy_names_the_cache() {
    let cache = tempfile::tempdir().unwrap();
    let error = Server::start().offline(cache.path()).model(MODEL, "main").unwrap_err();
    let expected = format!(
        "offline, and `owner/tiny` at revision `main` is neither a folder nor in the cache `{}`",
        cache.path().display()
    );
    assert_eq!(error.to_string(), expected);
}

#[test]
fn offline_with_half_a_copy_says_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let root = cache.path().join("models--owner--tiny");
    std::fs::create_dir_all(root.join("refs")).unwrap();
    std::fs::create_dir_all(root.join("snapshots").join(COMMIT)).unwrap();
    std::fs::write(root.join("refs/main"), COMMIT).unwrap();
    std::fs::write(root.join("snapshots").join(COMMIT).join("config.json"), "{}").unwrap();
    let error = Server::start().offline(cache.path()).model(MODEL, "main").unwrap_err();
    assert!(error.to_string().starts_with("the cached copy of `owner/tiny` cannot be used"), "{error}");
    assert!(hint_of(&error).unwrap().starts_with("run once online"));
}

#[test]
fn a_download_that_breaks_once_is_continued() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(300_000));
    let server = Server::with_model(&tiny(&content));
    server.trouble("model.safetensors", Trouble::Cut { at: 120_000, times: 1 });
    let snapshot = server.hub(cache.path()).model(MODEL, "main").unwrap();
    assert_eq!(std::fs::read(snapshot.folder.join("model.safetensors")).unwrap(), content);
    let continued = server.requests().iter().filter(|line| line.contains("bytes=120000-")).count();
    assert_eq!(continued, 2, "the hub and its store are asked for the rest");
}

#[test]
fn a_download_that_breaks_on_a_server_without_ranges_starts_again() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(300_000));
    let server = Server::with_model(&tiny(&content));
    server.trouble("model.safetensors", Trouble::Cut { at: 120_000, times: u32::MAX });
    assert!(server.hub(cache.path()).model(MODEL, "main").is_err());
    server.trouble("model.safetensors", Trouble::NoRanges);
    let snapshot = server.hub(cache.path()).model(MODEL, "main").unwrap();
    assert_eq!(std::fs::read(snapshot.folder.join("model.safetensors")).unwrap(), content);
}

#[test]
fn a_download_that_always_breaks_leaves_nothing_that_looks_whole() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(300_000));
    let server = Server::with_model(&tiny(&content));
    server.trouble("model.safetensors", Trouble::Cut { at: 120_000, times: u32::MAX });
    let error = server.hub(cache.path()).model(MODEL, "main").unwrap_err();
    assert!(error.to_string().contains("`model.safetensors`"), "{error}");
    assert!(error.to_string().ends_with("received 120000 of 300000 bytes"), "{error}");
    let snapshot = cache.path().join("models--owner--tiny/snapshots").join(COMMIT);
    assert!(!snapshot.join("model.safetensors").exists());
    assert!(!cache.path().join("models--owner--tiny/refs/main").exists());
    let large: Vec<PathBuf> =
        blobs(cache.path()).into_iter().filter(|blob| blob.metadata().unwrap().len() > 1000).collect();
    assert_eq!(large.len(), 1);
    assert!(large[0].to_string_lossy().ends_with(".incomplete"), "{large:?}");
    assert!(server.offline(cache.path()).model(MODEL, "main").is_err());
    // What came is not asked for again.
    server.heal();
    server.requests();
    let healed = server.hub(cache.path()).model(MODEL, "main").unwrap();
    assert_eq!(std::fs::read(healed.folder.join("model.safetensors")).unwrap(), content);
    assert!(server.requests().iter().any(|line| line.contains("bytes=120000-")));
}

#[test]
fn wrong_bytes_are_noticed_and_deleted() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(5000));
    let server = Server::with_model(&tiny(&content));
    for file in ["config.json", "model.safetensors"] {
        server.trouble(file, Trouble::Wrong);
        let error = server.hub(cache.path()).model(MODEL, "main").unwrap_err();
        let words = format!("`{file}` of `owner/tiny` was corrupted in transfer");
        assert!(error.to_string().starts_with(&words), "{error}");
        assert!(blobs(cache.path()).iter().all(|blob| blob.metadata().unwrap().len() < 5000));
        server.heal();
    }
    assert!(server.hub(cache.path()).model(MODEL, "main").is_ok());
}

#[test]
fn a_part_of_other_making_is_replaced() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(5000));
    let server = Server::with_model(&tiny(&content));
    let folder = cache.path().join("models--owner--tiny/blobs");
    std::fs::create_dir_all(&folder).unwrap();
    let part = folder.join(format!("{:x}.incomplete", Sha256::digest(&content)));
    for left in [vec![7; 3000], vec![7; 5000], vec![7; 9000]] {
        std::fs::write(&part, left).unwrap();
        let snapshot = server.hub(cache.path()).model(MODEL, "main").unwrap();
        let weights = snapshot.folder.join("model.safetensors");
        assert_eq!(std::fs::read(&weights).unwrap(), content);
        std::fs::remove_file(std::fs::canonicalize(&weights).unwrap()).unwrap();
    }
}

#[test]
fn all_shards_of_an_index_are_taken() {
    let (cache, one, two) = (tempfile::tempdir().unwrap(), weights(2000), weights(3000));
    let index =
        br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("model.safetensors.index.json", index),
        ("model-00001-of-00002.safetensors", &one),
        ("model-00002-of-00002.safetensors", &two),
    ];
    let server = Server::with_model(&files);
    let snapshot = server.hub(cache.path()).model(MODEL, "main").unwrap();
    assert_eq!(std::fs::read(snapshot.folder.join("model-00002-of-00002.safetensors")).unwrap(), two);
    let lacking = Server::with_model(&files[..3]);
    let error = lacking.hub(tempfile::tempdir().unwrap().path()).model(MODEL, "main").unwrap_err();
    assert!(error.to_string().contains("has no `model-00002-of-00002.safetensors`"), "{error}");
}

#[test]
fn a_pickle_only_repository_says_how_to_convert_it() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::with_model(&[
        ("config.json", br#"{"architectures":["BertForMaskedLM"]}"#),
        ("pytorch_model.bin", b"pickle"),
    ]);
    let error = server.hub(cache.path()).model(MODEL, "main").unwrap_err();
    assert!(error.to_string().contains("pickle only (`pytorch_model.bin`)"), "{error}");
    let hint = hint_of(&error).unwrap();
    assert!(hint.contains("BertForMaskedLM") && hint.contains("safe_serialization=True"), "{hint}");
    assert!(!server.requests().iter().any(|line| line.contains("pytorch_model.bin")));
}

#[test]
fn refusals_say_what_to_do() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    let hub = server.hub(cache.path());
    let missing = hub.model("owner/nothing", "main").unwrap_err();
    assert!(missing.to_string().starts_with("no model `owner/nothing` with revision `main`"), "{missing}");
    assert!(missing.to_string().contains("private"), "{missing}");
    assert!(hint_of(&missing).unwrap().contains("`HF_TOKEN`"));
    let revision = hub.model(MODEL, "v9").unwrap_err();
    assert_eq!(revision.to_string(), "the model `owner/tiny` has no revision `v9`");
    server.trouble(MODEL, Trouble::Gated);
    let gated = hub.model(MODEL, "main").unwrap_err();
    assert_eq!(gated.to_string(), "the model `owner/tiny` is gated (403 Forbidden)");
    let hint = hint_of(&gated).unwrap();
    assert_eq!(hint, format!("accept its licence at `{}/{MODEL}`, then set `HF_TOKEN`", server.endpoint));
    for odd in ["a/b/c", "", "../elsewhere", "Cargo.toml"] {
        let error = hub.model(odd, "main").unwrap_err();
        assert!(error.to_string().contains(&format!("`{odd}`")) || odd.is_empty(), "{error}");
    }
}

#[test]
fn what_was_taken_before_is_used_where_the_hub_refuses_it() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    let first = server.hub(cache.path()).model(MODEL, "main").unwrap();
    server.trouble("listing", Trouble::Gone);
    server.requests();
    let hub = server.hub(cache.path());
    assert_eq!(hub.config(MODEL, "main").unwrap(), None);
    assert_eq!(hub.model(MODEL, "main").unwrap(), first);
    assert_eq!(server.requests().len(), 1, "a refusal is asked for once");
    assert!(server.hub(tempfile::tempdir().unwrap().path()).model(MODEL, "main").is_err());
}

#[test]
fn a_newer_commit_that_does_not_come_leaves_the_older() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let root = cache.path().join("models--owner--tiny");
    for (name, bytes) in tiny(&content) {
        let path = root.join("snapshots").join(MOVED).join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    std::fs::create_dir_all(root.join("refs")).unwrap();
    std::fs::write(root.join("refs/main"), MOVED).unwrap();
    let server = Server::with_model(&tiny(&content));
    server.trouble("model.safetensors", Trouble::Cut { at: 10, times: u32::MAX });
    let error = server.hub(cache.path()).model(MODEL, "main").unwrap_err();
    let hint = hint_of(&error).unwrap();
    assert!(hint.contains(&format!("with `--offline`, the copy of commit {MOVED}")), "{hint}");
    let older = server.offline(cache.path()).model(MODEL, "main").unwrap();
    assert_eq!(older.commit.as_deref(), Some(MOVED));
}

#[test]
fn a_model_that_is_not_supported_is_refused_before_its_weights_come() {
    let content = weights(1000);
    let mut files = tiny(&content);
    files[1].1 = br#"{"model_type":"gpt_bigcode"}"#;
    let (server, place) = (Server::with_model(&files), Place::new());
    let mut command = place.command(&["init-svd", "--model", MODEL, "--rank", "4"]);
    command
        .env("HF_ENDPOINT", &server.endpoint)
        .env("HF_HUB_OFFLINE", "0")
        .env("HF_HOME", place.path("home"));
    let output = forked::output(&command);
    assert!(errors(&output).contains("the model type `gpt_bigcode` is not supported"), "{}", errors(&output));
    assert!(server.requests().iter().all(|line| !line.contains("model.safetensors")));
}

#[test]
fn a_file_in_place_of_the_cache_is_named() {
    let (place, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    let cache = place.path().join("cache");
    std::fs::write(&cache, "a file").unwrap();
    let error = server.hub(&cache).model(MODEL, "main").unwrap_err();
    assert!(format!("{error:#}").contains(&cache.display().to_string()), "{error:#}");
}

#[test]
fn the_token_goes_to_the_hub_alone() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    let settings = Settings { token: Some("hf_secret".to_owned()), ..server.settings(cache.path()) };
    Hub::with(settings).unwrap().model(MODEL, "main").unwrap();
    let requests = server.requests();
    let (store, hub): (Vec<_>, Vec<_>) = requests.iter().partition(|line| line.contains("/store/"));
    assert!(!store.is_empty() && store.iter().all(|line| !line.contains("hf_secret")), "{store:?}");
    assert!(hub.iter().all(|line| line.ends_with("Bearer hf_secret")), "{hub:?}");
}

#[test]
fn a_revision_that_moves_while_it_is_taken_does_not_mix_two_commits() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(1000));
    let server = Server::with_model(&tiny(&content));
    server.trouble(MODEL, Trouble::Moved);
    server.hub(cache.path()).model(MODEL, "main").unwrap();
    let by_commit = format!("GET /{MODEL}/resolve/{COMMIT}/tokenizer.json");
    assert!(server.requests().contains(&by_commit));
}

#[test]
fn files_of_a_data_set_are_taken_by_pattern() {
    let (cache, part) = (tempfile::tempdir().unwrap(), weights(500));
    let server = Server::start();
    let files: [(&str, &[u8]); 4] = [
        ("README.md", b"-"),
        ("mrpc/train-00001-of-00002.parquet", &part),
        ("mrpc/train-00000-of-00002.parquet", b"first"),
        ("mrpc/test 1.csv", b"a,b"),
    ];
    server.put("datasets/nyu-mll/glue", &files);
    let hub = server.hub(cache.path());
    let found = hub.dataset("nyu-mll/glue", "main", "mrpc/train-*.parquet").unwrap();
    let root = cache.path().join("datasets--nyu-mll--glue/snapshots").join(COMMIT);
    let expected =
        ["mrpc/train-00000-of-00002.parquet", "mrpc/train-00001-of-00002.parquet"].map(|f| root.join(f));
    assert_eq!(found, expected);
    assert_eq!(std::fs::read(&found[1]).unwrap(), part);
    assert_eq!(hub.dataset("nyu-mll/glue", "main", "mrpc/test *").unwrap(), [root.join("mrpc/test 1.csv")]);
    assert_eq!(server.requests().iter().filter(|line| line.contains("/api/")).count(), 1);
    let none = hub.dataset("nyu-mll/glue", "main", "mrpc/trian-*.parquet").unwrap_err();
    assert!(hint_of(&none).unwrap().contains("is `mrpc/t"), "{:?}", hint_of(&none));

    let offline = server.offline(cache.path());
    assert_eq!(offline.dataset("nyu-mll/glue", "main", "mrpc/train-*.parquet").unwrap(), expected);
    std::fs::remove_file(&expected[0]).unwrap();
    let partial = offline.dataset("nyu-mll/glue", "main", "mrpc/train-*.parquet").unwrap_err();
    assert!(format!("{partial:#}").contains("has 2 parts, but only 1 were found"), "{partial:#}");
}

#[test]
fn a_folder_is_used_as_it_is() {
    let (cache, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let hub = Server::start().offline(cache.path());
    let name = folder.path().to_str().unwrap();
    let empty = hub.model(name, "main").unwrap_err();
    assert_eq!(empty.to_string(), format!("the folder `{name}` has no `config.json`"));
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    std::fs::write(folder.path().join("model.safetensors"), "").unwrap();
    let snapshot = hub.model(name, "main").unwrap();
    assert_eq!((snapshot.folder.as_path(), snapshot.commit), (folder.path(), None));
}

#[test]
fn several_at_once_do_not_disturb_each_other() {
    let (cache, content) = (tempfile::tempdir().unwrap(), weights(400_000));
    let server = Server::with_model(&tiny(&content));
    std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..4).map(|_| scope.spawn(|| server.hub(cache.path()).model(MODEL, "main").unwrap())).collect();
        for worker in workers {
            let folder = worker.join().unwrap().folder;
            assert_eq!(std::fs::read(folder.join("model.safetensors")).unwrap(), content);
        }
    });
}

#[test]
fn a_run_is_bound_to_the_commit_that_it_began_with() {
    let folder = encoders().join("bert-gelu");
    let names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let files: Vec<(&str, Vec<u8>)> =
        names.into_iter().map(|name| (name, std::fs::read(folder.join(name)).unwrap())).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(name, bytes)| (*name, bytes.as_slice())).collect();
    let (server, place) = (Server::with_model(&files), Place::new());
    let run = |args: &[&str], offline: &str| {
        let mut command = place.command(args);
        command.env("HF_ENDPOINT", &server.endpoint).env("HF_HUB_OFFLINE", offline);
        let output = forked::output(command.env("HF_HOME", place.path("home")));
        assert!(output.status.success(), "{args:?}: {}", errors(&output));
    };
    let recipe = "[model]\nname = \"owner/tiny\"\n[adapter]\nrank = 4\n[data]\ndataset = \"tiny/pairs\"\n\
                  max_length = 24\n[train]\nmax_steps = 1\n";
    std::fs::write(place.path("recipe.toml"), recipe).unwrap();
    let train = ["train", "--recipe", "recipe.toml", "--out", "run"];
    run(&train, "0");
    let saved = std::fs::read_to_string(place.path("run/recipe.toml")).unwrap();
    assert!(saved.contains(&format!("revision = \"{COMMIT}\"")), "{saved}");
    // Where no branch is known any more, the commit is still found.
    std::fs::remove_file(place.path("home/hub/models--owner--tiny/refs/main")).unwrap();
    run(&["eval", "--run", "run"], "1");
    run(&["merge", "--model", "owner/tiny", "--adapter", "run/adapter", "--out", "merged"], "1");
    std::fs::remove_file(place.path("run/results.json")).unwrap();
    run(&[&train[..], &["--resume"]].concat(), "1");
}
