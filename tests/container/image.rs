//! A container without a container engine: a process with separate mounts and an image's tree as its root. It gets the
//! user, privileges, environment and standard input that Knative's runtime contract specifies.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Response;
use lambda_architecture::client::Client;
use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::{NamedTempFile, TempDir};
use tokio::{
    process::{Child, Command as Process},
    time::sleep,
};

use crate::not_run::{Lacks, not_run};

/// The images of the functions.
pub const FUNCTIONS: [&str; 5] = ["ingest", "count", "store", "batch", "analytics"];
/// The image of the forwarder, which is not a function.
pub const FORWARDER: &str = "forwarder";
/// The user id and group id of the images.
pub const USER: u32 = 65_532;

/// The steps of a container engine, in order. The last line replaces the shell with the function.
const ENGINE: &str = r#"
set -e
root="$1" tmp="$2" mode="$3"
shift 3
mount --bind "$root" "$root"
mount --bind "$tmp" "$root/tmp"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for device in null zero full random urandom; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount --rbind /proc "$root/proc"
mount -o "remount,bind,$mode" "$root"
cd /
exec env -i "$@" /usr/bin/setpriv --no-new-privs /usr/sbin/chroot --userspec=65532:65532 --groups= "$root" /function <&-
"#;

/// Timeout of every wait, with a margin for a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// The folder with the trees of all images, one subfolder per image. If images or root are not available, reports why
/// and returns `None`.
pub fn images() -> Option<PathBuf> {
    let Some(folder) = std::env::var_os("IMAGES").map(PathBuf::from) else {
        not_run(Lacks::Images, "IMAGES names no folder of images; `task test:images` makes one");
        return None;
    };
    let probe = Command::new("unshare").args(["--mount", "true"]).status();
    if !geteuid().is_root() || !probe.is_ok_and(|status| status.success()) {
        not_run(Lacks::Root, "a process needs root here to get a root folder of its own");
        return None;
    }
    Some(folder)
}

/// Whether the image's files may be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// As in a cluster.
    ReadOnly,
    /// Owned by the function's user, so that the test detects writes.
    Writable,
}

/// A running container.
pub struct Container {
    /// The address on which it listens.
    pub address: SocketAddr,
    child: Child,
    root: TempDir,
    tree: BTreeSet<PathBuf>,
    output: NamedTempFile,
}

impl Container {
    /// Starts an image with Knative's environment and `env`. `tmp` is mounted as its `/tmp`.
    pub fn start(images: &Path, name: &str, root: Root, tmp: &Path, env: &[(&str, String)]) -> Self {
        let copy = tree(&images.join(name), root);
        let address = free_address();
        let mut command = Process::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", ENGINE, "engine"]);
        let mode = if root == Root::ReadOnly { "ro" } else { "rw" };
        command.arg(copy.path()).arg(tmp).arg(mode).args(environment(name, address.port(), env));
        let output = NamedTempFile::new().unwrap();
        command.stdin(Stdio::null()).stdout(output.reopen().unwrap());
        let child = command.kill_on_drop(true).spawn().unwrap();
        let tree = files(copy.path());
        Self { address, child, root: copy, tree, output }
    }

    /// Waits until the container responds.
    pub async fn answers(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        while Client::new(self.address).get("/healthz").await.is_err() {
            assert!(self.child.try_wait().unwrap().is_none(), "it ended: {}", self.logs());
            assert!(Instant::now() < deadline, "it never answered: {}", self.logs());
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// `GET path`.
    pub async fn get(&self, path: &str) -> Response<Bytes> {
        Client::new(self.address).get(path).await.unwrap()
    }

    /// The text that the container has written to standard output.
    pub fn logs(&self) -> String {
        fs::read_to_string(self.output.path()).unwrap()
    }

    /// Reads a file of the process in `/proc`.
    pub fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.child.id().unwrap())).unwrap()
    }

    /// Reads a field of `/proc/PID/status`.
    pub fn status(&self, field: &str) -> String {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:"))).unwrap();
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Resident memory, in kilobytes.
    pub fn rss_kb(&self) -> u64 {
        self.status("VmRSS").trim_end_matches(" kB").parse().unwrap()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let pid = self.child.id().and_then(|id| Pid::from_raw(id.try_into().unwrap())).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    /// Waits until the process exits. Returns its status.
    pub async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.expect("it never ended").unwrap()
    }

    /// The files in the container's root that were created after its start.
    pub fn written(&self) -> Vec<PathBuf> {
        files(self.root.path()).difference(&self.tree).cloned().collect()
    }
}

/// Exactly the environment that Knative Serving sets, followed by `more`.
pub fn environment(name: &str, port: u16, more: &[(&str, String)]) -> Vec<String> {
    let knative = [
        ("PORT", port.to_string()),
        ("K_SERVICE", name.to_owned()),
        ("K_REVISION", format!("{name}-00001")),
        ("K_CONFIGURATION", name.to_owned()),
    ];
    // The forwarder needs the URL of a gateway.
    let gateway =
        (name == FORWARDER && more.is_empty()).then(|| ("GATEWAY_URL", "http://127.0.0.1:9".to_owned()));
    let all = knative.into_iter().chain(gateway).chain(more.iter().cloned());
    all.map(|(key, value)| format!("{key}={value}")).collect()
}

/// A loopback address on which no process listens.
pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A temporary folder that every user may write to.
pub fn tmp() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    folder
}

/// A copy of an image's tree with the folders that an engine adds.
fn tree(image: &Path, root: Root) -> TempDir {
    use std::os::unix::fs::{PermissionsExt, chown};
    let copy = tempfile::tempdir().unwrap();
    let from = image.join(".");
    assert!(Command::new("cp").arg("-a").arg(&from).arg(copy.path()).status().unwrap().success());
    for folder in ["dev", "proc", "tmp"] {
        fs::create_dir_all(copy.path().join(folder)).unwrap();
    }
    fs::set_permissions(copy.path(), fs::Permissions::from_mode(0o755)).unwrap();
    if root == Root::Writable {
        chown(copy.path(), Some(USER), Some(USER)).unwrap();
    }
    copy
}

fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut all = BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(files(&path));
        }
        all.insert(path);
    }
    all
}
