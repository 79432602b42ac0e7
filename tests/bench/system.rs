//! Benchmarks of the whole system as a process: throughput, latency, and resource use when idle.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use framework::user_event;
use lambda_architecture::{burst::names, client::Client};
use serde_json::Value;

use crate::{
    Figure, figure,
    load::{self, rate},
    median,
    server::{Process, rss_mb},
    storage,
    stores::Stores,
};

/// Number of events sent through each arrow.
const EVENTS: usize = 100_000;

/// A running system.
pub struct System {
    pub address: SocketAddr,
    process: Process,
}

impl System {
    /// Starts the system on these stores with the listed manifests, or with all manifests if the list is empty.
    pub fn start(stores: &Stores, data: &Path, manifests: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lambda-architecture"));
        command.current_dir(env!("CARGO_MANIFEST_DIR")).args(["--listen", "127.0.0.1:0", "--data"]).arg(data);
        stores.configure(&mut command);
        let files = stores.manifests(data, |_, manifest| manifest);
        let wanted = |file: &&PathBuf| {
            let name = file.file_name().unwrap().to_string_lossy();
            manifests.is_empty() || manifests.iter().any(|path| name == path.replace('/', "-"))
        };
        command.arg("--manifests").args(files.iter().filter(wanted));
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next().unwrap().unwrap();
        let address = line.rsplit_once("http://").unwrap().1.parse().unwrap();
        // Drain the rest, because the system would block on a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        Self { address, process: Process(child) }
    }

    /// Returns the JSON of `GET path`.
    pub async fn json(&self, path: &str) -> Value {
        let answer = Client::new(self.address).get(path).await.unwrap();
        serde_json::from_slice(answer.body()).unwrap()
    }
}

async fn post(client: &mut Client, n: usize) {
    let answer = client.post_json("/ingress/user", names::user(n).to_json()).await.unwrap();
    assert_eq!(answer.status(), 201);
}

/// Measures the first request to a function that is scaled to zero.
pub async fn first_request() -> Figure {
    let mut times = Vec::new();
    for n in 0..15 {
        let data = tempfile::tempdir().unwrap();
        let system = System::start(&Stores::Embedded, data.path(), &[]);
        let mut client = Client::new(system.address);
        client.get("/status").await.unwrap();
        let started = Instant::now();
        post(&mut client, n).await;
        times.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    let longest = times.iter().copied().fold(0.0, f64::max);
    let middle = median(times);
    let measured = format!("median {middle:.1} ms, longest {longest:.1} ms of 15");
    figure(
        "first request to a function at zero, through the gateway",
        measured,
        "–".into(),
        "≤ 50 ms",
        middle <= 50.0,
    )
}

/// Measures durably stored users per second through the gateway.
pub async fn gateway_rate(connections: usize, length: Duration) -> f64 {
    let data = tempfile::tempdir().unwrap();
    // Without arrows, as in the measurement directly at `ingest`, so that no consumer reads the log meanwhile.
    let system = System::start(&Stores::Embedded, data.path(), &["functions/ingest/service.yaml"]);
    rate(system.address, load::Request::User("/ingress"), connections, 201, length).await
}

/// Measures events per second from the log through each function.
pub async fn arrows() -> Vec<Figure> {
    let rows = storage::rows_per_second(EVENTS).await;
    let mut figures = Vec::new();
    for function in ["count", "store"] {
        let data = tempfile::tempdir().unwrap();
        let log = format!("sqlite:{}", data.path().join("log.db").display());
        fill(&log, "user", EVENTS).await;
        let events = through(function, &Stores::Embedded, data.path(), EVENTS).await;
        assert_eq!(storage::stored(function, data.path()).await, EVENTS as u64, "not exact");
        let ratio = events / rows;
        figures.push(figure(
            &format!("events through `{function}`, start of the system included"),
            format!("{events:.0}/s, {ratio:.3}×"),
            format!("{rows:.0} rows/s, one SQLite connection"),
            "≥ 0.05× and ≥ 10,000/s",
            ratio >= 0.05 && events >= 10_000.0,
        ));
    }
    figures
}

/// Measures events per second from the log through a function, including the start of the system.
pub async fn through(function: &str, stores: &Stores, data: &Path, events: usize) -> f64 {
    let service = format!("functions/{function}/service.yaml");
    let arrow = format!("eventing/log-to-{function}.yaml");
    let started = Instant::now();
    let system = System::start(stores, data, &[&service, &arrow, "eventing/dead-letter.yaml"]);
    loop {
        let status = system.json("/status").await;
        let arrow = &status["arrows"][0];
        if arrow["lag"] == 0 && arrow["delivered"].as_u64() >= Some(events as u64) {
            return events as f64 / started.elapsed().as_secs_f64();
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{status}");
        // More frequent polls would load the log with queries for its lag.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Appends `users` users to a topic of the log.
pub async fn fill(log: &str, topic: &str, users: usize) {
    let log = backend_log::open(log).unwrap();
    let numbers: Vec<_> = (0..users).collect();
    for some in numbers.chunks(1_000) {
        let record = |n: &usize| {
            let user = names::user(*n);
            user_event::to_record(&user_event::ingested(&user, &http::HeaderMap::new()).unwrap(), &user)
        };
        log.append(topic, some.iter().map(record).collect()).await.unwrap();
    }
}

/// Measures the time from a POST until the user is visible in analytics, one user after the other.
pub async fn visible() -> Figure {
    let (half, most) = until_seen(&Stores::Embedded).await;
    let measured = format!("p50 {half:.1} ms, p99 {most:.1} ms of 1,000");
    let reached = half <= 30.0 && most <= 150.0;
    figure("POST → visible in analytics", measured, "–".into(), "p50 ≤ 30 ms, p99 ≤ 150 ms", reached)
}

/// Returns p50 and p99 of the time from a POST until the user is visible, in milliseconds, over 1,000 users.
pub async fn until_seen(stores: &Stores) -> (f64, f64) {
    let data = tempfile::tempdir().unwrap();
    let system = System::start(stores, data.path(), &[]);
    let (mut poster, mut reader) = (Client::new(system.address), Client::new(system.address));
    let mut times = Vec::new();
    for n in 0..1_020_u64 {
        let started = Instant::now();
        post(&mut poster, n as usize).await;
        loop {
            let answer: Bytes = reader.get("/service-analytics/analytics?limit=1").await.unwrap().into_body();
            let analytics: Value = serde_json::from_slice(&answer).unwrap();
            if analytics["userCount"][0]["userCount"].as_u64() == Some(n + 1) {
                break;
            }
        }
        // The first requests include the start of functions.
        if n >= 20 {
            times.push(started.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// Measures the runtime's memory and CPU time with all functions scaled to zero.
pub async fn idle() -> Figure {
    let data = tempfile::tempdir().unwrap();
    // Without the PingSource, which would start a function during the measurement.
    let manifests =
        ["ingest", "count", "store", "batch", "analytics"].map(|f| format!("functions/{f}/service.yaml"));
    let arrows =
        ["log-to-count", "log-to-store", "dead-letter"].map(|arrow| format!("eventing/{arrow}.yaml"));
    let manifests: Vec<_> = manifests.iter().chain(&arrows).map(String::as_str).collect();
    let system = System::start(&Stores::Embedded, data.path(), &manifests);
    let mut client = Client::new(system.address);
    for n in 0..100 {
        post(&mut client, n).await;
    }
    let started = Instant::now();
    loop {
        let status = system.json("/status").await;
        let functions = status["functions"].as_array().unwrap();
        if functions.iter().all(|f| f["replicas"].as_array().unwrap().is_empty()) {
            break;
        }
        assert!(started.elapsed() < Duration::from_secs(120), "{status}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let pid = system.process.0.id();
    let before = cpu_ticks(pid);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let percent = (cpu_ticks(pid) - before) / 20.0;
    let rss = rss_mb(pid);
    let measured = format!("RSS {rss:.0} MB, CPU {percent:.2} % over 20 s");
    figure(
        "runtime with all functions at zero",
        measured,
        "–".into(),
        "≤ 50 MB, ≤ 1 %",
        rss <= 50.0 && percent <= 1.0,
    )
}

/// CPU time of a process in hundredths of a second (`USER_HZ` of Linux).
fn cpu_ticks(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}
