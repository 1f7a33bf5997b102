//! Runs of the command without its start. libtorch takes a sixth of a second to register its operators, and the tests run
//! the command several hundred times: one process registers them and forks for every run.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{ExitStatusExt as _, parent_id};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use std::{env, mem, process};

use loraxs::{cli, commands, torch};
use serde::{Deserialize, Serialize};

use crate::fuzz;
use crate::support::{Place, errors};

/// Tells a process of the tests that it is to fork; its standard input is the socket that requests come by.
const FORKS: &str = "LORAXS_TEST_FORKS";

/// One run of the command; what it prints goes to files.
#[derive(Serialize, Deserialize)]
struct Request {
    args: Vec<String>,
    environment: Vec<(String, Option<String>)>,
    folder: PathBuf,
    out: PathBuf,
    err: PathBuf,
    limits: Option<Limits>,
}

/// What a run may take; the system ends one that takes more.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Limits {
    /// Seconds of computing, over all threads.
    pub seconds: u64,
    /// Bytes of addresses beyond those that the forking process has.
    pub bytes: u64,
}

/// What a run took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Seconds of computing, over all threads.
    pub seconds: f64,
    /// Largest resident memory in bytes, that of the forking process included.
    pub bytes: u64,
}

/// A run of the command that was started.
pub struct Run {
    /// Where its number came by and its end will.
    answers: BufReader<UnixStream>,
    number: libc::pid_t,
    printed: tempfile::TempDir,
}

impl Run {
    /// Sends a signal, if it is not over.
    pub fn signal(&mut self, signal: i32) {
        if !self.is_over() {
            // SAFETY: sends a signal to a process whose end was not told, so its number is its own.
            unsafe { libc::kill(self.number, signal) };
        }
    }

    /// Whether it is over.
    pub fn is_over(&mut self) -> bool {
        self.answers.get_ref().set_nonblocking(true).unwrap();
        let seen = self.answers.fill_buf().is_ok();
        self.answers.get_ref().set_nonblocking(false).unwrap();
        seen
    }

    /// Waits for its end.
    pub fn wait(self) -> Output {
        self.measured().0
    }

    /// Waits for its end, and ends it where that does not come within `most`.
    pub fn within(mut self, most: Duration) -> (Output, Taken) {
        self.answers.get_ref().set_read_timeout(Some(most)).unwrap();
        let is_over = self.answers.fill_buf().is_ok();
        self.answers.get_ref().set_read_timeout(None).unwrap();
        if !is_over {
            self.signal(libc::SIGKILL);
        }
        self.measured()
    }

    fn measured(mut self) -> (Output, Taken) {
        let [status, micros, kib] = numbers(&mut self.answers);
        let output = Output {
            status: ExitStatus::from_raw(status as i32),
            stdout: fs::read(self.printed.path().join("out")).unwrap(),
            stderr: fs::read(self.printed.path().join("err")).unwrap(),
        };
        (output, Taken { seconds: micros as f64 / 1e6, bytes: 1024 * kib as u64 })
    }
}

/// The next line of the forking process.
fn numbers<const N: usize>(answers: &mut BufReader<UnixStream>) -> [i64; N] {
    let mut line = String::new();
    answers.read_line(&mut line).unwrap();
    let numbers: Vec<i64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    numbers.try_into().expect("the forking process has gone")
}

/// As [`Command::output`], for a command with the built binary, UTF-8 arguments and a folder of its own.
pub fn output(command: &Command) -> Output {
    start(command).wait()
}

/// As [`Command::spawn`], for such a command.
pub fn start(command: &Command) -> Run {
    start_within(command, None)
}

/// As [`start`], of a run that may take so much.
pub fn start_within(command: &Command, limits: Option<Limits>) -> Run {
    static SERVER: LazyLock<(tempfile::TempDir, Child)> = LazyLock::new(server);
    let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
    let printed = tempfile::tempdir().unwrap();
    let request = Request {
        args: std::iter::once(command.get_program()).chain(command.get_args()).map(text).collect(),
        environment: command.get_envs().map(|(key, value)| (text(key), value.map(text))).collect(),
        folder: command.get_current_dir().unwrap().to_owned(),
        out: printed.path().join("out"),
        err: printed.path().join("err"),
        limits,
    };
    // Here, because a run may be killed before it takes the first step
    for file in [&request.out, &request.err] {
        File::create(file).unwrap();
    }
    let mut stream = UnixStream::connect(SERVER.0.path().join("socket")).unwrap();
    stream.write_all(&serde_json::to_vec(&request).unwrap()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answers = BufReader::new(stream);
    let [number] = numbers(&mut answers);
    Run { number: number as libc::pid_t, answers, printed }
}

/// The process that forks, and the folder of its socket: this binary, with the only test that serves.
fn server() -> (tempfile::TempDir, Child) {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    let process = Command::new(env::current_exe().unwrap())
        .args(["--exact", "forked::a_forked_command_is_the_command_started"])
        // Where tests may run side by side, the main thread would wake after a minute to say that this one is slow.
        .args(["--test-threads=1", "--nocapture"])
        .env(FORKS, "1")
        .stdin(OwnedFd::from(listener))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (folder, process)
}

/// A run that was forked, and where its end is to be told.
struct Forked {
    number: libc::pid_t,
    /// Closed when the run is over.
    end: PipeReader,
    answers: UnixStream,
}

/// Takes back that interrupts are ignored, as a shell has it for what it starts in the background.
pub fn heed_interrupts() {
    // SAFETY: sets what the system does itself.
    assert_ne!(unsafe { libc::signal(libc::SIGINT, libc::SIG_DFL) }, libc::SIG_ERR);
}

/// Answers requests until the process of the tests is gone.
fn serve() -> ! {
    heed_interrupts();
    // A fork keeps the thread that forks alone; the other one only waits for the end of this test, without a lock.
    assert!(fs::read_dir("/proc/self/task").unwrap().count() <= 2, "other threads may hold locks");
    let parent = parent_id();
    // SAFETY: standard input is the listening socket, and nothing else uses it.
    let listener = unsafe { UnixListener::from_raw_fd(0) };
    let mut running: Vec<Forked> = Vec::new();
    while parent_id() == parent {
        let ends = running.iter().map(|run| run.end.as_raw_fd());
        let mut waits: Vec<libc::pollfd> = ends
            .chain([listener.as_raw_fd()])
            .map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 })
            .collect();
        // SAFETY: `waits` outlives the call.
        unsafe { libc::poll(waits.as_mut_ptr(), waits.len() as libc::nfds_t, 500) };
        let comes = waits.pop().is_some_and(|wait| wait.revents != 0);
        for i in (0..waits.len()).rev().filter(|i| waits[*i].revents != 0) {
            told(running.swap_remove(i));
        }
        if comes {
            let (stream, _) = listener.accept().unwrap();
            let forked = fork(stream, &mut running);
            running.push(forked);
        }
    }
    process::exit(0)
}

/// Forks for a request.
fn fork(mut answers: UnixStream, running: &mut Vec<Forked>) -> Forked {
    let mut request = Vec::new();
    answers.read_to_end(&mut request).unwrap();
    let request: Request = serde_json::from_slice(&request).unwrap();
    let (end, held) = pipe().unwrap();
    // SAFETY: the only other thread holds no lock that the child could need.
    match unsafe { libc::fork() } {
        0 => {
            running.clear();
            drop((answers, end));
            // SAFETY: a flag of this process: no run outlives the tests.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            run(request, &held)
        }
        -1 => panic!("cannot fork: {}", std::io::Error::last_os_error()),
        number => {
            // A test that failed may have gone: nobody is left to tell.
            let _ = writeln!(answers, "{number}");
            Forked { number, end, answers }
        }
    }
}

/// Tells how a run ended, when it is all gone, its files and locks too.
fn told(mut run: Forked) {
    let mut status = 0;
    // SAFETY: plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: a child of this process, and numbers that outlive the call.
    assert_eq!(unsafe { libc::wait4(run.number, &raw mut status, 0, &raw mut usage) }, run.number);
    let micros = |time: libc::timeval| 1_000_000 * time.tv_sec + time.tv_usec;
    let micros = micros(usage.ru_utime) + micros(usage.ru_stime);
    let _ = writeln!(run.answers, "{status} {micros} {}", usage.ru_maxrss);
}

/// Sets what this process may take.
fn limit(limits: Limits) {
    let pages = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').next().unwrap().parse().unwrap();
    let addresses = 4096 * pages + limits.bytes;
    for (which, most) in
        [(libc::RLIMIT_AS, addresses), (libc::RLIMIT_CPU, limits.seconds), (libc::RLIMIT_CORE, 0)]
    {
        let most = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: `most` outlives the call.
        assert_eq!(unsafe { libc::setrlimit(which, &raw const most) }, 0);
    }
}

/// What `main` does, with the place that a new process would have; the end of the process closes `_held`.
fn run(request: Request, _held: &PipeWriter) -> ! {
    for (path, descriptor) in [(&request.out, 1), (&request.err, 2)] {
        let file = File::options().write(true).open(path).unwrap();
        // SAFETY: both descriptors are open.
        assert_eq!(unsafe { libc::dup2(file.as_raw_fd(), descriptor) }, descriptor);
    }
    env::set_current_dir(&request.folder).unwrap();
    for (key, value) in &request.environment {
        // SAFETY: no other thread reads the environment.
        match value {
            Some(value) => unsafe { env::set_var(key, value) },
            None => unsafe { env::remove_var(key) },
        }
    }
    if let Some(limits) = request.limits {
        limit(limits);
    }
    if request.args[0] == fuzz::JUDGE {
        torch::leave(fuzz::judge(&request.args[1]))
    }
    torch::leave(commands::run(cli::parse(request.args, commands::VERSION)))
}

#[test]
fn a_forked_command_is_the_command_started() {
    if env::var_os(FORKS).is_some() {
        serve();
    }
    let place = Place::new();
    let wrong = ["train", "--recipe", "nowhere"];
    for args in [&["completions", "bash"][..], &["train", "--help"], &["trian"], &wrong, &["eval"]] {
        let mut command = place.command(args);
        let (forked, started) = (output(&command), command.output().unwrap());
        assert_eq!(forked, started, "{args:?}: {}", errors(&forked));
    }
}
