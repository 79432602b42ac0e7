//! One function process: started with its socket already listening, ended by SIGTERM, then SIGKILL.
//! Knows nothing of HTTP; whoever starts it talks to its address.

use std::{
    fs::{File, OpenOptions},
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use command_fds::{CommandFdExt, FdMapping};
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::FunctionSpec;

/// The first file descriptor that systemd's protocol passes.
const LISTEN_FD: i32 = 3;

/// Starts replicas of functions; tests bring one that starts no process.
pub trait Launcher: Send + Sync + 'static {
    /// Starts one replica, which may be asked at its address from now on.
    ///
    /// # Errors
    /// It could not be started.
    fn launch(&self, spec: &FunctionSpec) -> io::Result<Launched>;

    /// Where people read what a function's replicas log.
    fn log_of(&self, function: &str) -> String;
}

/// A replica that was started.
pub struct Launched {
    /// Its process.
    pub pid: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// Cancelled to end it.
    pub stop: CancellationToken,
    /// Ends when it has ended, and says how.
    pub ended: BoxFuture<'static, String>,
}

/// What to start for a function.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables on top of the inherited ones.
    pub env: Vec<(String, String)>,
}

/// Starts replicas as child processes that cannot outlive this one.
pub struct Processes {
    launch: Box<dyn Fn(&FunctionSpec) -> Launch + Send + Sync>,
    logs: PathBuf,
    grace: Duration,
}

impl Processes {
    /// Children log into `logs`; one that ignores SIGTERM is killed after `grace`.
    pub fn new(
        launch: impl Fn(&FunctionSpec) -> Launch + Send + Sync + 'static,
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
        // It listens before the child exists, so that nobody need ask whether the child is ready.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let log = append(&self.log_path(&spec.name))?;
        let mut command = command(&(self.launch)(spec), spec, address.port());
        command.stdout(log.try_clone()?).stderr(log);
        command
            .fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(listener), child_fd: LISTEN_FD }])
            .map_err(io::Error::other)?;
        let child = command.spawn()?;
        // With the command goes this side's socket: a dead child's port then refuses instead of hanging.
        drop(command);
        let pid = child.id().unwrap_or_default();
        let (stop, grace) = (CancellationToken::new(), self.grace);
        let ended = Box::pin(watch(child, stop.clone(), grace));
        Ok(Launched { pid, address, stop, ended })
    }

    fn log_of(&self, function: &str) -> String {
        self.log_path(function).display().to_string()
    }
}

fn append(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

fn command(launch: &Launch, spec: &FunctionSpec, port: u16) -> Command {
    let mut command = Command::new(&launch.program);
    command
        .args(&launch.args)
        // One port cannot be shared by replicas, and a process id of the protocol would not be the child's.
        .env_remove("METRICS_PORT")
        .env_remove("LISTEN_PID")
        .envs(launch.env.iter().map(|(k, v)| (k, v)))
        .envs(spec.env.iter().map(|(k, v)| (k, v)))
        .env("PORT", port.to_string())
        .env("K_SERVICE", &spec.name)
        .env("K_CONFIGURATION", &spec.name)
        .env("K_REVISION", format!("{}-00001", spec.name))
        .env("LISTEN_FDS", "1")
        // SIGKILL of this process closes the pipe, which ends the child.
        .env("LIFELINE", "stdin")
        .stdin(Stdio::piped())
        // Ctrl-C is for this process alone, which ends its children once their requests are answered.
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Waits for the child's end; asks for it when told to.
async fn watch(mut child: Child, stop: CancellationToken, grace: Duration) -> String {
    // `wait` would close the lifeline at once.
    let lifeline = child.stdin.take();
    let how = tokio::select! {
        status = child.wait() => status,
        () = stop.cancelled() => end(&mut child, grace).await,
    };
    drop(lifeline);
    match how {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

async fn end(child: &mut Child, grace: Duration) -> io::Result<std::process::ExitStatus> {
    // Not waited for yet, so the number still is this child's.
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        kill_process(pid, Signal::TERM)?;
    }
    if let Ok(status) = timeout(grace, child.wait()).await {
        return status;
    }
    child.kill().await?;
    child.wait().await
}
