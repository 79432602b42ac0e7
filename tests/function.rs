//! One function's process without the runtime around it, as a container runs it; and the probes that Knative sends to it.

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

/// How long Knative's queue-proxy waits for the answer to a probe.
pub const PROBE_TIMEOUT: Duration = Duration::from_millis(100);
/// How long it waits before it asks again where it had an answer.
const PROBE_INTERVAL: Duration = Duration::from_millis(25);

/// A function's process; killed when the test ends.
pub struct Function {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
}

impl Function {
    /// Starts a function in a folder, with these variables and none of the test's own that configure it. Its socket
    /// listens before the process exists, so that no port is guessed.
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
            // It ends with this process, whatever happens.
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

/// Asks for readiness as queue-proxy does, again and again, until the answer is 200 in time; answers how long that took.
pub async fn probe_until_ready(address: SocketAddr, path: &str) -> Duration {
    let (started, request) = (Instant::now(), wire::request("GET", path, &[], b""));
    let mut last = None;
    loop {
        match wire::ask_and_hang_up(address, &request, PROBE_TIMEOUT).await {
            Some(200) => return started.elapsed(),
            // The connection was dropped: the next probe comes at once.
            None => {}
            answered => {
                last = answered;
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
        assert!(started.elapsed() < DEADLINE, "never ready: the last status was {last:?}");
    }
}

/// Asks for readiness without a limit of its own until the answer is 200; answers how long that took.
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
