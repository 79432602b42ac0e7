//! One function process: inherits a listening socket, is stopped by SIGTERM, then SIGKILL. Independent of HTTP.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use tokio::{
    process::{Child, Command},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::spec::FunctionSpec;

/// The first file descriptor that systemd's protocol passes.
const LISTEN_FD: i32 = 3;
/// How long to wait for the exit of a process after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Size of the log's tail that is searched for the reason of a crash, bytes.
const LAST_WORDS_LIMIT: u64 = 8 * 1024;

/// Starts replicas of functions. Tests implement it without processes.
pub trait Launcher: Send + Sync + 'static {
    /// Starts one replica. Its address accepts connections when this returns.
    ///
    /// # Errors
    /// It could not be started.
    fn launch(&self, spec: &FunctionSpec) -> io::Result<Launched>;

    /// Where operators find the log of a function's replicas.
    fn log_of(&self, function: &str) -> String;
}

/// A replica that was started.
pub struct Launched {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// Cancel it to stop the replica gracefully.
    pub stop: CancellationToken,
    /// Cancel it to kill the replica.
    pub kill: CancellationToken,
    /// Completes when the replica has exited; returns its exit status and the end of its log.
    pub ended: BoxFuture<'static, String>,
}

/// What to start for a function.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// All environment variables besides those that the launcher sets; the child inherits none.
    pub env: Vec<(String, String)>,
}

/// What to start for a function, or why nothing may be started now.
type LaunchOf = dyn Fn(&FunctionSpec) -> io::Result<Launch> + Send + Sync;

/// Starts replicas as child processes that cannot outlive this one.
pub struct Processes {
    launch: Box<LaunchOf>,
    logs: PathBuf,
    grace: Duration,
}

impl Processes {
    /// Children log into `logs`; one that ignores SIGTERM is killed after `grace`.
    pub fn new(
        launch: impl Fn(&FunctionSpec) -> io::Result<Launch> + Send + Sync + 'static,
        logs: impl Into<PathBuf>,
        grace: Duration,
    ) -> Self {
        Self { launch: Box::new(launch), logs: logs.into(), grace }
    }

    fn log_path(&self, function: &str) -> PathBuf {
        self.logs.join(format!("{function}.log"))
    }
}

impl Launcher for Processes {
    fn launch(&self, spec: &FunctionSpec) -> io::Result<Launched> {
        let launch = (self.launch)(spec)?;
        // Listen before the child exists: connections queue in the backlog until it accepts.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let path = self.log_path(&spec.name);
        let log = append_to_log(&path)?;
        let last_words = LastWords { begin: log.metadata()?.len(), path };
        let mut command = command(&launch, spec, address.port());
        command.stdout(log.try_clone()?).stderr(log);
        command
            .fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(listener), child_fd: LISTEN_FD }])
            .map_err(io::Error::other)?;
        let child = command.spawn()?;
        // Closes this process' copy of the socket, so that a dead child's port refuses connections instead of hanging.
        drop(command);
        let pid = child.id().unwrap_or_default();
        let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
        let ended = Box::pin(watch(child, stop.clone(), kill.clone(), self.grace, last_words));
        Ok(Launched { pid, address, stop, kill, ended })
    }

    fn log_of(&self, function: &str) -> String {
        self.log_path(function).display().to_string()
    }
}

/// Opens a log file for appending. Creates the file's own folder, but nothing above it: a data folder that was removed
/// must not come back empty.
///
/// # Errors
/// The folder or the file cannot be created.
pub fn append_to_log(path: &Path) -> io::Result<File> {
    match path.parent().map(std::fs::create_dir) {
        Some(Err(error)) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn command(launch: &Launch, spec: &FunctionSpec, port: u16) -> Command {
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.args)
        // This process holds the secrets of all functions.
        .env_clear()
        .envs(launch.env.iter().map(|(k, v)| (k, v)))
        .envs(spec.env.iter().map(|(k, v)| (k, v)))
        .env("PORT", port.to_string())
        .env("K_SERVICE", &spec.name)
        .env("K_CONFIGURATION", &spec.name)
        .env("K_REVISION", format!("{}-00001", spec.name))
        .env("LISTEN_FDS", "1")
        // The pipe closes when this process dies, even by SIGKILL; the child then exits.
        .env("LIFELINE", "stdin")
        .stdin(Stdio::piped())
        // Its own group, so that Ctrl-C reaches only this process, which drains its children.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Waits for the child's exit; stops or kills it when told to.
async fn watch(
    mut child: Child,
    stop: CancellationToken,
    kill: CancellationToken,
    grace: Duration,
    last_words: LastWords,
) -> String {
    // Taken out, because `wait` would close the lifeline at once.
    let lifeline = child.stdin.take();
    let status = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => terminate(&mut child, &kill, grace).await,
        () = kill.cancelled() => kill_child(&mut child).await,
    };
    drop(lifeline);
    let how = status.map_or_else(|error| error.to_string(), |status| status.to_string());
    match last_words.read().filter(|_| !stop.is_cancelled()) {
        Some(words) => format!("{how}: {words}"),
        None => how,
    }
}

/// Sends SIGTERM, then SIGKILL after `grace`.
async fn terminate(child: &mut Child, kill: &CancellationToken, grace: Duration) -> io::Result<ExitStatus> {
    // Not reaped yet, so the pid cannot have been reused.
    if let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
        // If it exited meanwhile, it is reaped below.
        let _ = kill_process(pid, Signal::TERM);
    }
    tokio::select! {
        status = child.wait() => return status,
        () = sleep(grace) => {}
        () = kill.cancelled() => {}
    }
    kill_child(child).await
}

/// Sends SIGKILL. A process in an uninterruptible system call is abandoned after a timeout.
async fn kill_child(child: &mut Child) -> io::Result<ExitStatus> {
    child.start_kill()?;
    timeout(KILL_TIMEOUT, child.wait()).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The part of the log that a child wrote.
struct LastWords {
    path: PathBuf,
    /// Length of the log when the child was started.
    begin: u64,
}

impl LastWords {
    fn read(&self) -> Option<String> {
        let mut log = File::open(&self.path).ok()?;
        let end = log.metadata().ok()?.len();
        // Read from the start if the log was truncated meanwhile.
        let begin = if self.begin <= end { self.begin } else { 0 };
        log.seek(SeekFrom::Start(begin.max(end.saturating_sub(LAST_WORDS_LIMIT)))).ok()?;
        let mut bytes = Vec::new();
        log.take(LAST_WORDS_LIMIT).read_to_end(&mut bytes).ok()?;
        last_words(&String::from_utf8_lossy(&bytes))
    }
}

/// The reason of a crash: the last lines of standard error, or else the last log line at WARN or ERROR.
fn last_words(log: &str) -> Option<String> {
    let lines =
        log.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with("note: run with"));
    let (json, plain): (Vec<_>, Vec<_>) = lines.partition(|line| line.starts_with('{'));
    let words = if plain.is_empty() {
        json.into_iter().rev().find_map(logged_error)?
    } else {
        plain[plain.len().saturating_sub(2)..].join(" ")
    };
    Some(words.chars().take(300).collect())
}

fn logged_error(line: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
        error: Option<String>,
    }
    let line: Line = serde_json::from_str(line).ok()?;
    let matters = line.level == "error" || line.level == "warn";
    matters.then(|| line.error.map_or(line.msg.clone(), |error| format!("{}: {error}", line.msg)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_what_the_child_said_last() {
        let cases = [
            ("", None),
            ("{\"level\":\"info\",\"msg\":\"serves\"}\n", None),
            ("MASTER_URL: `x` is not known here\n", Some("MASTER_URL: `x` is not known here")),
            (
                "{\"level\":\"info\",\"msg\":\"a\"}\nthread 'main' panicked at a.rs:1:\nit broke\nnote: run with `RUST_BACKTRACE=1`\n",
                Some("thread 'main' panicked at a.rs:1: it broke"),
            ),
            ("{\"level\":\"error\",\"msg\":\"no\",\"error\":\"disk\"}\n", Some("no: disk")),
        ];
        for (log, words) in cases {
            assert_eq!(last_words(log).as_deref(), words, "{log}");
        }
    }

    #[tokio::test]
    async fn a_process_that_does_not_end_is_killed_and_one_that_failed_says_why() {
        let logs = tempfile::tempdir().unwrap();
        let shell = |script: &'static str| {
            let launch = move |_: &FunctionSpec| {
                Ok(Launch { program: "sh".into(), args: vec!["-c".into(), script.into()], env: Vec::new() })
            };
            Processes::new(launch, logs.path().join("meanwhile"), Duration::from_secs(60))
        };
        let spec = FunctionSpec::named("f");
        let failing = shell("echo 'MASTER_URL: no' >&2; exit 64").launch(&spec).unwrap();
        assert_eq!(failing.ended.await, "exit status: 64: MASTER_URL: no");
        let deaf = shell("trap '' TERM; echo ready; exec sleep 60").launch(&spec).unwrap();
        let log = logs.path().join("meanwhile/f.log");
        let ready = async {
            while !std::fs::read_to_string(&log).unwrap().contains("ready") {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(30), ready).await.unwrap();
        deaf.stop.cancel();
        let killing = async {
            tokio::task::yield_now().await;
            deaf.kill.cancel();
        };
        let (how, ()) = tokio::join!(timeout(Duration::from_secs(30), deaf.ended), killing);
        let how = how.unwrap();
        assert!(how.contains("signal: 9"), "{how}");
    }
}
