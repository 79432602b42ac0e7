//! Runs one function's process without the runtime, as a container does, and probes it as Knative does.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use command_fds::{CommandFdExt, FdMapping};

use crate::{
    app::{DEADLINE, PROGRAM},
    wire,
};

/// Timeout of queue-proxy's probe.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(100);
/// Interval between queue-proxy's probes after a response.
const PROBE_INTERVAL: Duration = Duration::from_millis(25);

/// A function's process. It is killed when the test ends.
pub struct Function {
    /// The address on which it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Function {
    /// Starts a function in `folder` with `variables`, without the test's own variables that configure functions. The
    /// listening socket is opened before the process starts, so the port need not be guessed.
    pub fn start(name: &str, folder: &Path, variables: &[(&str, String)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let mut command = Command::new(PROGRAM);
        for key in ["LOG_URL", "MASTER_URL", "VIEWS_URL", "CONFIG_FILE", "METRICS_PORT", "LISTEN_PID"] {
            command.env_remove(key);
        }
        command
            .args(["function", name])
            .current_dir(folder)
            .envs(variables.iter().map(|(key, value)| (key, value)))
            .env("PORT", address.port().to_string())
            .env("LISTEN_FDS", "1")
            // The function exits when this process does, even if the test fails or is killed.
            .env("LIFELINE", "stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(listener), child_fd: 3 }])
            .unwrap();
        Self { address, child: command.spawn().unwrap() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Probes readiness as queue-proxy does until a 200 arrives in time. Returns the time that this took.
pub async fn probe_until_ready(address: SocketAddr, path: &str) -> Duration {
    let (started, request) = (Instant::now(), wire::request("GET", path, &[], b""));
    let mut last = None;
    loop {
        match wire::ask_and_hang_up(address, &request, PROBE_TIMEOUT).await {
            Some(200) => return started.elapsed(),
            // Without a response the connection was dropped: the next probe follows immediately.
            None => {}
            answered => {
                last = answered;
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
        assert!(started.elapsed() < DEADLINE, "never ready: the last status was {last:?}");
    }
}

/// Requests readiness until the status is 200, without queue-proxy's timeout. Returns the time that this took.
pub async fn ask_until_ready(address: SocketAddr, path: &str) -> Duration {
    let (started, request) = (Instant::now(), wire::request("GET", path, &[], b""));
    loop {
        let status = wire::ask_and_hang_up(address, &request, DEADLINE).await;
        if status == Some(200) {
            return started.elapsed();
        }
        assert!(started.elapsed() < DEADLINE, "never ready: the last status was {status:?}");
        tokio::time::sleep(PROBE_INTERVAL).await;
    }
}
