//! Runs of the command without its start. libtorch takes a sixth of a second to register its operators, and the tests run
//! the command several hundred times: one process registers them and forks for every run.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::{ExitStatusExt as _, parent_id};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::{env, process};

use loraxs::{cli, commands, torch};
use serde::{Deserialize, Serialize};

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
}

/// As [`Command::output`], for a command with the built binary, UTF-8 arguments and a folder of its own.
pub fn output(command: &Command) -> Output {
    static SERVER: LazyLock<(tempfile::TempDir, Child)> = LazyLock::new(start);
    let text = |text: &std::ffi::OsStr| text.to_str().unwrap().to_owned();
    let printed = tempfile::tempdir().unwrap();
    let request = Request {
        args: std::iter::once(command.get_program()).chain(command.get_args()).map(text).collect(),
        environment: command.get_envs().map(|(key, value)| (text(key), value.map(text))).collect(),
        folder: command.get_current_dir().unwrap().to_owned(),
        out: printed.path().join("out"),
        err: printed.path().join("err"),
    };
    let mut stream = UnixStream::connect(SERVER.0.path().join("socket")).unwrap();
    stream.write_all(&serde_json::to_vec(&request).unwrap()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut status = String::new();
    stream.read_to_string(&mut status).unwrap();
    Output {
        status: ExitStatus::from_raw(status.parse().expect("the forking process has gone")),
        stdout: fs::read(&request.out).unwrap(),
        stderr: fs::read(&request.err).unwrap(),
    }
}

/// The process that forks, and the folder of its socket: this binary, with the only test that serves.
fn start() -> (tempfile::TempDir, Child) {
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

/// Answers requests until the process of the tests is gone.
fn serve() -> ! {
    // A fork keeps the thread that forks alone; the other one only waits for the end of this test, without a lock.
    assert!(fs::read_dir("/proc/self/task").unwrap().count() <= 2, "other threads may hold locks");
    let parent = parent_id();
    // SAFETY: standard input is the listening socket, and nothing else uses it.
    let listener = unsafe { UnixListener::from_raw_fd(0) };
    let mut waits = libc::pollfd { fd: listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: no handler is set; children whose end is ignored leave no zombies.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    while parent_id() == parent {
        // SAFETY: `waits` outlives the call.
        if unsafe { libc::poll(&raw mut waits, 1, 500) } == 1 {
            let (stream, _) = listener.accept().unwrap();
            fork(|| answer(stream));
        }
    }
    process::exit(0)
}

/// Runs `child` in a process of its own and gives its number.
fn fork<T>(child: impl FnOnce() -> T) -> libc::pid_t {
    // SAFETY: the only other thread holds no lock that the child could need.
    match unsafe { libc::fork() } {
        0 => {
            child();
            // SAFETY: ends the child without what the parent registered for its own end.
            unsafe { libc::_exit(0) }
        }
        -1 => panic!("cannot fork: {}", std::io::Error::last_os_error()),
        number => number,
    }
}

/// Forks once more for the command itself, and tells how it ended when it is all gone, its files and locks too.
fn answer(mut stream: UnixStream) {
    let mut request = Vec::new();
    stream.read_to_end(&mut request).unwrap();
    let request: Request = serde_json::from_slice(&request).unwrap();
    // SAFETY: the command's end is waited for here, and SIGCHLD is what the command finds in any other shell.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
    let command = fork(|| run(request));
    let mut status = 0;
    // SAFETY: a child of this process, and a number that outlives the call.
    assert_eq!(unsafe { libc::waitpid(command, &raw mut status, 0) }, command);
    stream.write_all(status.to_string().as_bytes()).unwrap();
}

/// What `main` does, with the place that a new process would have.
fn run(request: Request) -> ! {
    for (path, descriptor) in [(&request.out, 1), (&request.err, 2)] {
        let file = File::create(path).unwrap();
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
