//! Claims on the runs of a sweep, so that each is trained by one of the processes which share its folder, on any number of
//! hosts and without a server.
//!
//! A claim is a file in `.claims/` that only one process can create. While its process lives, the file is touched every few
//! seconds. A claim is dead when its process has ended, if that was on this machine, or when it was not touched for a minute by
//! the clock of the file system, which all processes share. A dead claim is renamed, which only one process can do, and then
//! removed.

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::fault::{Result, fault, locked};
use crate::files;

/// Folder of the claims in that of the sweep.
const CLAIMS: &str = ".claims";
/// Time without a touch after which a claim is dead. Network file systems may show a touch that late.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Touches in that time.
const BEATS: u32 = 8;
/// Time that putting back a claim may take.
const PUT_BACK: Duration = Duration::from_millis(200);
/// Attempts at a claim that others take over or release meanwhile.
const TRIES: usize = 8;

/// The claims that this process makes in the folder of a sweep.
#[derive(Debug)]
pub struct Claims {
    folder: PathBuf,
    timeout: Duration,
    /// A file without a name in the folder; its time of modification tells the file system's clock.
    clock: File,
    beating: Arc<Beating>,
}

/// A run that only this process trains while this lives, or until [`Claim::check`] fails.
#[derive(Debug)]
pub struct Claim {
    path: PathBuf,
    name: String,
    token: String,
    file: Arc<File>,
    beating: Arc<Beating>,
}

/// The process that has a claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Name of its host.
    pub host: String,
    /// Its number there.
    pub pid: i32,
    /// Local time of the claim on its host.
    pub since: String,
    /// Tells one boot, and on it one space of process numbers, from all others, whatever the host is called.
    machine: String,
    /// Start of the process in the system's own unit: a later process of that number has another.
    started: Option<u64>,
    /// Random; tells claims apart.
    token: String,
}

/// The thread that touches claims, which ends with the last value that holds this.
#[derive(Debug)]
struct Beating {
    claimed: Mutex<Vec<Arc<File>>>,
    _end: Sender<()>,
}

/// A claim as it was found.
#[derive(PartialEq, Eq)]
struct Found {
    /// Number of the file.
    inode: u64,
    content: Vec<u8>,
}

impl Claims {
    /// Opens the claims on the runs of the sweep in the folder `sweep`, which is made if needed.
    /// Fails when nothing can be written there.
    pub fn open(sweep: &Path) -> Result<Self> {
        Self::with_timeout(sweep, TIMEOUT)
    }

    fn with_timeout(sweep: &Path, timeout: Duration) -> Result<Self> {
        let folder = sweep.join(CLAIMS);
        let open = || {
            fs::create_dir_all(&folder)?;
            tempfile::tempfile_in(&folder)
        };
        let clock = open().map_err(|error| files::cannot_write(&folder, &error))?;
        let (end, ended) = channel();
        let beating = Arc::new(Beating { claimed: Mutex::default(), _end: end });
        let beats = Arc::downgrade(&beating);
        thread::spawn(move || beat(&beats, &ended, timeout / BEATS));
        Ok(Self { folder, timeout, clock, beating })
    }

    /// Claims the run `name`; `None` if another claim on it lives. Whether the run is finished is to be asked afterwards.
    /// Fails when the claim cannot be written or read.
    pub fn take(&self, name: &str) -> Result<Option<Claim>> {
        let path = self.path(name);
        let cannot = |error: io::Error| files::cannot_write(&path, &error);
        for _ in 0..TRIES {
            match OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(file) => return self.claim(name, file).map(Some).map_err(cannot),
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(cannot(error)),
                Err(_) => {}
            }
            if let Some(found) = self.dead(&path).map_err(cannot)? {
                self.bury(&path, &found).map_err(cannot)?;
            }
            // One that is gone was released, or was dead.
            if path.exists() {
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Returns the process that has a claim on the run `name`.
    pub fn holder(&self, name: &str) -> Option<Holder> {
        serde_json::from_slice(&fs::read(self.path(name)).ok()?).ok()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Writes who has the claim into its new file.
    fn claim(&self, name: &str, mut file: File) -> io::Result<Claim> {
        let holder = Holder::this_process();
        let path = self.path(name);
        if let Err(error) = file.write_all(&serde_json::to_vec(&holder)?) {
            fs::remove_file(&path)?;
            return Err(error);
        }
        let file = Arc::new(file);
        locked(&self.beating.claimed).push(Arc::clone(&file));
        Ok(Claim {
            path,
            name: name.to_owned(),
            token: holder.token,
            file,
            beating: Arc::clone(&self.beating),
        })
    }

    /// Returns the claim at `path` if it is dead.
    fn dead(&self, path: &Path) -> io::Result<Option<Found>> {
        // Opening it makes a network file system ask for its present time.
        let Some((found, touched)) = Found::at(path)? else { return Ok(None) };
        let holder: Option<Holder> = serde_json::from_slice(&found.content).ok();
        if holder.is_some_and(|holder| holder.has_ended()) {
            return Ok(Some(found));
        }
        touch(&self.clock)?;
        let now = self.clock.metadata()?.modified()?;
        let silent = now.duration_since(touched).is_ok_and(|silence| silence > self.timeout);
        Ok(silent.then_some(found))
    }

    /// Removes a dead claim; one that took its place meanwhile stays.
    fn bury(&self, path: &Path, dead: &Found) -> io::Result<()> {
        let grave = self.folder.join(format!(".dead-{}", token()));
        match fs::rename(path, &grave) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed?,
        }
        if Found::at(&grave)?.is_none_or(|(found, _)| found != *dead) {
            // Where a third process has the run by now, the second one notices.
            let _ = fs::hard_link(&grave, path);
        }
        fs::remove_file(&grave)
    }
}

impl Claim {
    /// Checks that the run is still this process's: one that was stopped for long has lost it, and must write no more.
    /// Fails when it is not.
    pub fn check(&self) -> Result<()> {
        let is_held = || self.is_held().with_context(|| format!("cannot read `{}`", self.path.display()));
        if is_held()? {
            return Ok(());
        }
        // Another process that wanted to remove a dead claim may just be putting this one back.
        thread::sleep(PUT_BACK);
        if is_held()? {
            return Ok(());
        }
        let lost = format!(
            "another process has taken over the run `{}`: this one was silent for too long",
            self.name
        );
        Err(fault(lost).hint("leave the run to it").into())
    }

    fn is_held(&self) -> io::Result<bool> {
        let found = Found::at(&self.path)?;
        let holder = found.and_then(|(found, _)| serde_json::from_slice::<Holder>(&found.content).ok());
        Ok(holder.is_some_and(|holder| holder.token == self.token))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        locked(&self.beating.claimed).retain(|file| !Arc::ptr_eq(file, &self.file));
        if self.is_held().unwrap_or(false) {
            // Left behind, it is dead with this process.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Holder {
    fn this_process() -> Self {
        let pid = std::process::id() as i32;
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let since = chrono::Local::now().format("%Y-%m-%d %H:%M:%S").to_string();
        let started = state_of(pid).map(|(_, started)| started);
        Self { host, pid, since, machine: machine(), started, token: token() }
    }

    /// Returns true if it is known that the process has ended; of another machine's, nobody here knows.
    fn has_ended(&self) -> bool {
        let own = machine();
        if own.is_empty() || own != self.machine {
            return false;
        }
        let exists = Pid::from_raw(self.pid)
            .is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(rustix::io::Errno::SRCH));
        let is_another = |(state, started)| {
            ['Z', 'X'].contains(&state) || self.started.is_some_and(|before| before != started)
        };
        // One of another user may be hidden.
        !exists || state_of(self.pid).is_some_and(is_another)
    }
}

impl Found {
    /// Returns the claim at `path` and the time of its last touch; `None` if there is none.
    fn at(path: &Path) -> io::Result<Option<(Self, SystemTime)>> {
        let mut file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let about = file.metadata()?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(Some((Self { inode: about.ino(), content }, about.modified()?)))
    }
}

/// Touches all claims from time to time until there is nobody left to make any.
fn beat(beats: &Weak<Beating>, ended: &Receiver<()>, interval: Duration) {
    while ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        let Some(beating) = beats.upgrade() else { return };
        let claimed = locked(&beating.claimed).clone();
        for file in claimed {
            // A claim that cannot be touched is lost in the end, which its check tells.
            let _ = touch(&file);
        }
    }
}

/// Sets the time of modification by the clock of the file system.
fn touch(file: &File) -> io::Result<()> {
    let [omitted, now] = [UTIME_OMIT, UTIME_NOW].map(|tv_nsec| Timespec { tv_sec: 0, tv_nsec });
    Ok(rustix::fs::futimens(file, &Timestamps { last_access: omitted, last_modification: now })?)
}

/// Returns what tells this boot and its space of process numbers from others; empty if the system does not say.
fn machine() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    if boot.is_empty() || space.as_os_str().is_empty() {
        return String::new();
    }
    format!("{} {}", boot.trim(), space.display())
}

/// Returns state and start of a process, from `/proc`.
fn state_of(pid: i32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program before may hold anything.
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// Returns a random text.
fn token() -> String {
    let random = || RandomState::new().build_hasher().finish();
    format!("{:016x}{:016x}{:x}", random(), random(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, stdin};
    use std::process::{Child, ChildStdout, Command, Stdio};

    const SHORT: Duration = Duration::from_secs(2);
    /// Tells a process of the tests what to do: the folder, the timeout in milliseconds, and the names to claim.
    const ROLE: &str = "LORAXS_TEST_CLAIMS";

    /// Another process, which claims names and answers each line that it is sent.
    struct Other {
        process: Child,
        answers: BufReader<ChildStdout>,
    }

    impl Other {
        fn start(folder: &Path, timeout: Duration, names: &str) -> Self {
            let mut process = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "session::sweep::claim::tests::one_process", "--ignored", "--nocapture"])
                .env(ROLE, format!("{}|{}|{names}", folder.display(), timeout.as_millis()))
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let answers = BufReader::new(process.stdout.take().unwrap());
            let mut other = Self { process, answers };
            assert_eq!(other.answer(), "ready");
            other
        }

        fn send(&mut self) {
            self.process.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        }

        fn answer(&mut self) -> String {
            let mut line = String::new();
            loop {
                line.clear();
                assert!(self.answers.read_line(&mut line).unwrap() > 0, "the other process has ended");
                if let Some((_, answer)) = line.trim_end_matches('\n').split_once("claims: ") {
                    return answer.to_owned();
                }
            }
        }

        fn ask(&mut self) -> String {
            self.send();
            self.answer()
        }

        fn signal(&self, signal: rustix::process::Signal) {
            let pid = Pid::from_raw(self.process.id() as i32).unwrap();
            rustix::process::kill_process(pid, signal).unwrap();
        }
    }

    impl Drop for Other {
        fn drop(&mut self) {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }

    /// The other process: at the first line it claims all names and tells which it got, at later ones whether it still has them.
    #[test]
    #[ignore = "started by the tests below as a process of its own"]
    #[allow(clippy::print_stdout, reason = "the other end reads it")]
    fn one_process() {
        let Ok(role) = std::env::var(ROLE) else { return };
        let [folder, timeout, names] = role.split('|').collect::<Vec<_>>().try_into().unwrap();
        let timeout = Duration::from_millis(timeout.parse().unwrap());
        let claims = Claims::with_timeout(Path::new(folder), timeout).unwrap();
        println!("claims: ready");
        let mut held: Option<Vec<Claim>> = None;
        for _ in stdin().lines() {
            let told = match &held {
                None => {
                    let taken = names.split(' ').filter_map(|name| claims.take(name).unwrap());
                    let names = held.insert(taken.collect()).iter().map(|claim| claim.name.clone());
                    names.collect::<Vec<_>>().join(" ")
                }
                Some(held) => {
                    let checks = held.iter().map(|claim| claim.check().err().map(|error| error.to_string()));
                    checks.map(|lost| lost.unwrap_or("held".into())).collect::<Vec<_>>().join("; ")
                }
            };
            println!("claims: {told}");
        }
    }

    fn elsewhere(claims: &Claims, name: &str, touched: SystemTime, change: impl FnOnce(&mut Holder)) {
        let mut holder = Holder::this_process();
        change(&mut holder);
        let file = File::create(claims.path(name)).unwrap();
        (&file).write_all(&serde_json::to_vec(&holder).unwrap()).unwrap();
        file.set_modified(touched).unwrap();
    }

    #[test]
    fn a_claim_excludes_others_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let claims = Claims::open(&folder.path().join("sweep")).unwrap();
        let claim = claims.take("rank=4,seed=0").unwrap().unwrap();
        assert!(claims.take("rank=4,seed=0").unwrap().is_none());
        let holder = claims.holder("rank=4,seed=0").unwrap();
        assert_eq!(holder.pid as u32, std::process::id());
        claim.check().unwrap();
        drop(claim);
        assert!(claims.holder("rank=4,seed=0").is_none());
        assert!(claims.take("rank=4,seed=0").unwrap().is_some());
        assert_eq!(fs::read_dir(folder.path().join("sweep/.claims")).unwrap().count(), 0);
    }

    /// Lets two processes take what they can at the same time, and returns all that they took, in order.
    fn taken(others: &mut [Other; 2]) -> Vec<String> {
        others.iter_mut().for_each(Other::send);
        let names = others.each_mut().map(Other::answer).join(" ");
        let mut all: Vec<String> = names.split_whitespace().map(str::to_owned).collect();
        all.sort_unstable_by_key(|name| name.trim_start_matches("seed=").parse::<u32>().unwrap());
        all
    }

    #[test]
    fn of_two_processes_each_run_goes_to_one() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..200).map(|number| format!("seed={number}")).collect();
        let mut others = [0, 1].map(|_| Other::start(folder.path(), TIMEOUT, &names.join(" ")));
        let all = taken(&mut others);
        assert_eq!(all, names);
    }

    #[test]
    fn dead_claims_of_a_killed_process_go_to_one_of_those_that_want_them() {
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<String> = (0..100).map(|number| format!("seed={number}")).collect();
        let names = names.join(" ");
        let mut killed = Other::start(folder.path(), TIMEOUT, &names);
        assert_eq!(killed.ask(), names);
        let claims = Claims::open(folder.path()).unwrap();
        assert!(claims.take("seed=0").unwrap().is_none());
        let mut others = [0, 1].map(|_| Other::start(folder.path(), TIMEOUT, &names));
        killed.signal(rustix::process::Signal::KILL);
        killed.process.wait().unwrap();
        let all = taken(&mut others);
        assert_eq!(all.join(" "), names);
        for mut other in others {
            let told = other.ask();
            assert!(told.split("; ").all(|told| told == "held" || told.is_empty()), "{told}");
        }
    }

    #[test]
    fn a_process_elsewhere_that_is_silent_for_long_has_lost_its_claim() {
        let folder = tempfile::tempdir().unwrap();
        let claims = Claims::with_timeout(folder.path(), SHORT).unwrap();
        let now = SystemTime::now();
        let host = |holder: &mut Holder| (holder.machine, holder.host) = ("else".into(), "node7".into());
        elsewhere(&claims, "a", now, host);
        assert!(claims.take("a").unwrap().is_none());
        assert_eq!(claims.holder("a").unwrap().host, "node7");
        thread::sleep(SHORT * 3 / 2);
        let claim = claims.take("a").unwrap().unwrap();
        // What is touched is alive.
        thread::sleep(SHORT * 3 / 2);
        assert!(claims.take("a").unwrap().is_none());
        claim.check().unwrap();
        // A clock that is ahead.
        elsewhere(&claims, "b", now + Duration::from_secs(3600), host);
        assert!(claims.take("b").unwrap().is_none());
        // A process that ended between making the file and writing it.
        let file = File::create(claims.path("c")).unwrap();
        assert!(claims.take("c").unwrap().is_none());
        file.set_modified(now - Duration::from_secs(3600)).unwrap();
        assert!(claims.take("c").unwrap().is_some());
    }

    #[test]
    fn a_later_process_of_the_same_number_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let claims = Claims::open(folder.path()).unwrap();
        elsewhere(&claims, "a", SystemTime::now(), |_| {});
        assert!(claims.take("a").unwrap().is_none());
        elsewhere(&claims, "a", SystemTime::now(), |holder| holder.started = Some(1));
        assert!(claims.take("a").unwrap().is_some());
    }

    #[test]
    fn a_process_that_was_stopped_for_long_notices_that_it_lost_its_claim() {
        let folder = tempfile::tempdir().unwrap();
        let mut stopped = Other::start(folder.path(), SHORT, "a b");
        assert_eq!(stopped.ask(), "a b");
        assert_eq!(stopped.ask(), "held; held");
        let claims = Claims::with_timeout(folder.path(), SHORT).unwrap();
        stopped.signal(rustix::process::Signal::STOP);
        assert!(claims.take("a").unwrap().is_none());
        thread::sleep(SHORT * 3 / 2);
        let claim = claims.take("a").unwrap().unwrap();
        stopped.signal(rustix::process::Signal::CONT);
        let told = stopped.ask();
        assert!(
            told.starts_with("another process has taken over the run `a`") && told.ends_with("; held"),
            "{told}"
        );
        drop(stopped);
        claim.check().unwrap();
    }

    #[test]
    fn a_claim_that_took_the_place_of_a_dead_one_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let claims = Claims::open(folder.path()).unwrap();
        elsewhere(&claims, "a", SystemTime::now(), |holder| holder.started = Some(1));
        let dead = claims.dead(&claims.path("a")).unwrap().unwrap();
        let claim = claims.take("a").unwrap().unwrap();
        // A second process found the first claim dead, too, and comes late.
        claims.bury(&claims.path("a"), &dead).unwrap();
        claim.check().unwrap();
        drop(claim);
        assert_eq!(fs::read_dir(folder.path().join(CLAIMS)).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told() {
        let error = Claims::open(Path::new("/proc/sweep")).unwrap_err();
        assert!(error.to_string().starts_with("cannot write `/proc/sweep/.claims`: "), "{error}");
        assert_eq!(crate::fault::hint_of(&error), Some("choose a writable folder"));
    }
}
