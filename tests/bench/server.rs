//! A function in its own process, and a bare hyper server of the same build as its reference.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use command_fds::{CommandFdExt, FdMapping};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use lambda_architecture::client::Client;

use crate::{
    Figure, figure,
    load::{self, rate},
    median,
    stores::Stores,
};

/// Duration of each load measurement.
pub const LENGTH: Duration = Duration::from_secs(4);
/// Environment variable that makes this program run as the bare server.
const REFERENCE: &str = "BENCH_REFERENCE";

/// A child process. Killed when dropped.
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server process.
pub struct Server {
    /// The address that it listens on.
    pub address: SocketAddr,
    process: Process,
}

impl Server {
    /// Starts a function on these stores. Embedded stores are files in `data`.
    pub fn function(name: &str, stores: &Stores, data: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lambda-architecture"));
        command.args(["function", name]);
        stores.configure(&mut command);
        if matches!(stores, Stores::Embedded) {
            for (key, file) in [("LOG_URL", "log"), ("MASTER_URL", "master"), ("VIEWS_URL", "views")] {
                command.env(key, format!("sqlite:{}", data.join(format!("{file}.db")).display()));
            }
        }
        Self::spawn(command)
    }

    /// Starts the bare server.
    pub fn reference() -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(REFERENCE, "1");
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        command.env("LISTEN_FDS", "1").stdin(Stdio::null()).stdout(Stdio::null());
        command.fd_mappings(vec![FdMapping { parent_fd: listener.into(), child_fd: 3 }]).unwrap();
        Self { address, process: Process(command.spawn().unwrap()) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.0.id()
    }

    /// Resident memory of the process, MB.
    pub fn rss_mb(&self) -> f64 {
        rss_mb(self.process.0.id())
    }
}

/// Resident memory of a process, MB.
pub fn rss_mb(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// Whether this process is the bare server.
pub fn is_reference() -> bool {
    std::env::var_os(REFERENCE).is_some()
}

/// Runs the bare server: it echoes each request's body with status 201.
pub fn run_reference() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = listenfd::ListenFd::from_env().take_tcp_listener(0).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(echo));
            tokio::spawn(async move { drop(connection.await) });
        }
    });
}

async fn echo(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let response = Response::builder().status(201).header("content-type", "application/json");
    Ok(response.body(Full::new(body)).unwrap())
}

/// Measures the time from exec to a function's first response, and the latency of a request through the gateway to a
/// function that is scaled to zero.
pub async fn start() -> Vec<Figure> {
    let data = tempfile::tempdir().unwrap();
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..40 {
        ours.push(first_answer(|| Server::function("ingest", &Stores::Embedded, data.path())).await);
        theirs.push(first_answer(Server::reference).await);
    }
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    let measured = format!("{ours:.2} ms, {ratio:.2}×");
    let first = figure(
        "exec → first answer of a function",
        measured,
        format!("{theirs:.2} ms, empty hyper server"),
        "≤ 1.5× and ≤ 10 ms",
        ratio <= 1.5 && ours <= 10.0,
    );
    vec![first, crate::system::first_request().await]
}

async fn first_answer(start: impl FnOnce() -> Server) -> f64 {
    let started = Instant::now();
    let server = start();
    Client::new(server.address).get("/healthz").await.unwrap();
    started.elapsed().as_secs_f64() * 1_000.0
}

/// Measures durably stored users per second, directly at `ingest` and through the gateway.
pub async fn ingest() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (connections, reach, least) in [(64, "≥ 0.15×", 0.15), (512, "≥ 0.25×", 0.25)] {
        let bare = Server::reference();
        let theirs = rate(bare.address, load::Request::User(""), connections, 201, LENGTH).await;
        drop(bare);
        let data = tempfile::tempdir().unwrap();
        let function = Server::function("ingest", &Stores::Embedded, data.path());
        let straight = rate(function.address, load::Request::User(""), connections, 201, LENGTH).await;
        drop(function);
        let ratio = straight / theirs;
        figures.push(figure(
            &format!("`POST /user` straight to ingest, {connections} connections"),
            format!("{straight:.0}/s, {ratio:.2}×"),
            format!("{theirs:.0}/s, bare hyper"),
            reach,
            ratio >= least,
        ));
        let gateway = crate::system::gateway_rate(connections, LENGTH).await;
        let ratio = gateway / straight;
        figures.push(figure(
            &format!("the same through the gateway, {connections} connections"),
            format!("{gateway:.0}/s, {ratio:.2}×"),
            format!("{straight:.0}/s straight"),
            "≥ 0.5×",
            ratio >= 0.5,
        ));
    }
    figures
}
