//! The test harness: one runtime in a temporary folder, on its own port. It is killed when the test ends.

use std::{
    io::{BufRead, BufReader, Read},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::{Request, Response, StatusCode};
use lambda_architecture::client::{Client, ClientError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::stores::Stores;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_lambda-architecture");
/// Timeout of `eventually`: far more than is needed, since machines are noisy.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Options of a system in addition to its manifests.
#[derive(Default)]
pub struct Options {
    /// Environment variables of the runtime.
    pub variables: Vec<(&'static str, String)>,
    /// Maximum number of open files per process.
    pub open_files: Option<u32>,
    /// The parent of the data folder, instead of the default temporary folder.
    pub parent: Option<PathBuf>,
}

/// A running system.
pub struct App {
    pub address: SocketAddr,
    pub data: TempDir,
    pub stores: Stores,
    options: Options,
    args: Vec<String>,
    runtime: Child,
    client: Client,
}

impl App {
    /// Starts the system with empty stores.
    pub async fn start() -> Self {
        match Stores::new() {
            // As users run it: with the manifests in the project's folder.
            Stores::Embedded => {
                Self::run(Stores::Embedded, tempfile::tempdir().unwrap(), Options::default(), Vec::new())
            }
            services => Self::start_with(services, |_, manifest| manifest).await,
        }
    }

    /// Starts the system on `stores`. `change` gets the path and the text of each manifest and returns the text to use.
    pub async fn start_with(stores: Stores, change: impl Fn(&str, String) -> String) -> Self {
        Self::start_as(stores, Options::default(), change).await
    }

    /// Like `start_with`, with options.
    pub async fn start_as(stores: Stores, options: Options, change: impl Fn(&str, String) -> String) -> Self {
        let parent = options.parent.clone().unwrap_or_else(std::env::temp_dir);
        let data = tempfile::tempdir_in(parent).unwrap();
        let manifests = data.path().join("manifests");
        std::fs::create_dir(&manifests).unwrap();
        let files = stores.manifests(&manifests, change);
        let paths = files.iter().map(|file| file.to_str().unwrap().to_owned());
        Self::run(stores, data, options, std::iter::once("--manifests".to_owned()).chain(paths).collect())
    }

    fn run(stores: Stores, data: TempDir, options: Options, args: Vec<String>) -> Self {
        let (runtime, address) = spawn(&stores, data.path(), &options, &args);
        Self { address, data, stores, options, args, runtime, client: Client::new(address) }
    }

    /// SIGKILLs the runtime and starts it again on the same data.
    pub fn kill_and_restart(&mut self) {
        self.runtime.kill().unwrap();
        self.runtime.wait().unwrap();
        self.restart();
    }

    /// Starts the runtime again after it has exited.
    pub fn restart(&mut self) {
        (self.runtime, self.address) = spawn(&self.stores, self.data.path(), &self.options, &self.args);
        self.client = Client::new(self.address);
    }

    /// The runtime's process id.
    pub fn pid(&self) -> u32 {
        self.runtime.id()
    }

    /// Sends SIGTERM and waits until the process exits. Returns the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        signal(self.pid(), Signal::TERM);
        self.runtime.wait().unwrap().code()
    }

    /// Waits until the process exits by itself. Returns the exit code, or `None` if it is still running after `limit`.
    pub async fn exit_code(&mut self, limit: Duration) -> Option<i32> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if let Some(status) = self.runtime.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        None
    }

    /// Runs the program with a subcommand on the same data and address.
    pub fn command(&self, args: &[&str]) -> Output {
        let listen = self.address.to_string();
        program(&self.stores, self.data.path(), &listen).args(args).args(&self.args).output().unwrap()
    }

    /// Sends a request whose URI is a path.
    pub async fn send(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, ClientError> {
        self.client.send(request).await
    }

    /// Polls a readiness route until the status is 200, and returns the body. Until then the status is 503 with a
    /// reason: the function is still connecting, or an event source has not created the topic yet.
    pub async fn probe_until_ready(&mut self, path: &str) -> String {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let answer = self.send(Request::get(path).body(Bytes::new()).unwrap()).await.unwrap();
            let body = String::from_utf8(answer.body().to_vec()).unwrap();
            if answer.status() == StatusCode::OK {
                return body;
            }
            let problem: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{body}");
            assert!(!problem["detail"].as_str().unwrap().is_empty(), "{body}");
            assert!(Instant::now() < deadline, "{path} is never ready: {body}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Posts JSON.
    pub async fn post(&mut self, path: &str, body: impl Into<Bytes>) -> Response<Bytes> {
        self.client.post_json(path, body).await.unwrap()
    }

    /// Posts a user and expects it to be acknowledged.
    pub async fn post_user(&mut self, id: Uuid, name: &str) {
        let answer = self.post("/ingress/user", json!({ "id": id, "name": name }).to_string()).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{:?}", answer.body());
        let echoed: Value = serde_json::from_slice(answer.body()).unwrap();
        assert_eq!(echoed, json!({ "id": id, "name": name }));
    }

    /// `GET path`, which must return 200 with JSON.
    pub async fn get(&mut self, path: &str) -> Value {
        let answer = self.client.get(path).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}: {:?}", answer.body());
        serde_json::from_slice(answer.body()).unwrap()
    }

    /// `GET /analytics`.
    pub async fn analytics(&mut self) -> Value {
        self.get("/service-analytics/analytics").await
    }

    /// Posts a user until it is acknowledged. Returns the number of failed attempts.
    pub async fn post_user_until_taken(&mut self, id: Uuid, name: &str) -> u32 {
        let (deadline, mut refused) = (Instant::now() + DEADLINE, 0);
        let user = json!({ "id": id, "name": name }).to_string();
        loop {
            let answer = self.client.post_json("/ingress/user", user.clone()).await;
            if answer.as_ref().is_ok_and(|answer| answer.status() == StatusCode::CREATED) {
                return refused;
            }
            assert!(Instant::now() < deadline, "never acknowledged: {answer:?}");
            refused += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The dead letters as CloudEvents in JSON, as `dead-letters list --json` prints them.
    pub fn dead_letters(&self) -> Vec<Value> {
        let list = self.command(&["dead-letters", "list", "--json"]);
        assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
        serde_json::from_slice(&list.stdout).unwrap()
    }

    /// The newest user count in analytics.
    pub async fn user_count(&mut self) -> u64 {
        let analytics = self.get("/service-analytics/analytics?limit=1").await;
        analytics["userCount"][0]["userCount"].as_u64().unwrap_or(0)
    }

    /// Runs the batch layer as its PingSource does. Returns its summary.
    pub async fn tick(&mut self, query: &str) -> Value {
        let event = Request::post(format!("/function/batch/{query}"))
            .header("ce-specversion", "1.0")
            .header("ce-type", "dev.knative.sources.ping")
            .header("ce-source", "/apis/v1/namespaces/default/pingsources/minute-to-batch")
            .header("ce-id", Uuid::new_v4().to_string())
            .header("content-type", "application/json")
            .body(Bytes::from_static(b"{}"))
            .unwrap();
        let answer = self.send(event).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{:?}", answer.body());
        serde_json::from_slice(answer.body()).unwrap()
    }

    /// The entry of a function in `/status`.
    pub async fn function(&mut self, name: &str) -> Value {
        let status = self.get("/status").await;
        let functions = status["functions"].as_array().unwrap().clone();
        functions.into_iter().find(|f| f["name"] == name).unwrap()
    }

    /// The process ids of all running functions.
    pub async fn function_pids(&mut self) -> Vec<u32> {
        let status = self.get("/status").await;
        let replicas =
            status["functions"].as_array().unwrap().iter().flat_map(|f| f["replicas"].as_array().unwrap());
        replicas.filter_map(|r| r["pid"].as_u64()).map(|pid| u32::try_from(pid).unwrap()).collect()
    }

    /// The function name and process id of each running replica.
    pub async fn functions_with_pids(&mut self) -> Vec<(String, u32)> {
        let status = self.get("/status").await;
        let functions = status["functions"].as_array().unwrap().iter();
        let replicas = functions.flat_map(|function| {
            let replicas = function["replicas"].as_array().unwrap().iter();
            replicas.map(|replica| (function["name"].as_str().unwrap().to_owned(), replica["pid"].as_u64()))
        });
        replicas.filter_map(|(name, pid)| Some((name, u32::try_from(pid?).unwrap()))).collect()
    }

    /// Waits until both layers have processed everything that was ingested. Ends with a tick of the batch layer.
    pub async fn settle(&mut self) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let arrows = self.get("/status").await["arrows"].take();
            // An unknown lag does not count as zero.
            if arrows.as_array().unwrap().iter().all(|arrow| arrow["lag"] == 0) {
                break;
            }
            assert!(Instant::now() < deadline, "never processed: {arrows}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.tick("").await;
    }

    /// Waits until the condition holds. Fails after `DEADLINE`.
    pub async fn eventually(&mut self, what: &str, mut condition: impl AsyncFnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !condition(self).await {
            assert!(Instant::now() < deadline, "never came true: {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.runtime.kill();
        let _ = self.runtime.wait();
    }
}

/// Whether the process is still running.
pub fn runs(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A process that has exited but has not been waited for is a zombie.
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Sends a signal. Ignores a process that has exited.
pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let _ = kill_process(pid, signal);
}

/// The command that runs the program on a data folder and a listen address, from the project's root.
pub fn program(stores: &Stores, data: &Path, listen: &str) -> Command {
    let mut command = Command::new(PROGRAM);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).arg("--listen").arg(listen).arg("--data").arg(data);
    stores.configure(&mut command);
    command
}

/// Wraps the command in a shell that limits the number of open files and then replaces itself with the command.
fn limited(command: Command, files: u32) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -n {files} && exec \"$0\" \"$@\"")]);
    shell.arg(command.get_program()).args(command.get_args());
    shell.current_dir(env!("CARGO_MANIFEST_DIR"));
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(key, value),
            None => shell.env_remove(key),
        };
    }
    shell
}

/// Starts the runtime and reads its listen address from its first lines of output.
fn spawn(stores: &Stores, data: &Path, options: &Options, args: &[String]) -> (Child, SocketAddr) {
    let mut command = program(stores, data, "127.0.0.1:0");
    if let Some(files) = options.open_files {
        command = limited(command, files);
    }
    let mut runtime = command
        .args(args)
        .envs(options.variables.iter().map(|(key, value)| (key, value)))
        .stdout(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(runtime.stdout.take().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if let Some((_, address)) = line.trim().rsplit_once("http://") {
            let address = address.trim_end_matches('/').parse().unwrap();
            // The rest must be read, or the runtime would block on a full pipe.
            std::thread::spawn(move || std::io::copy(&mut lines.by_ref(), &mut std::io::sink()));
            return (runtime, address);
        }
        line.clear();
    }
    let _ = runtime.kill();
    panic!("the runtime ended with {:?} before it listened", runtime.wait());
}
