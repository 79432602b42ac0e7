//! Readiness probes as Knative's queue-proxy sends them: it drops the connection after a timeout of 100 ms and probes
//! again.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::{
    function::{Function, ask_until_ready, probe_until_ready},
    not_run::{Lacks, not_run},
    proxy::Proxy,
    stores::{Services, Stores, master_url_at, mysql_server},
    wire,
};

/// Replicas of each function that start at once on the same stores: twenty over all functions.
const REPLICAS: usize = 5;
/// Maximum extra time of all replicas compared with a single one that is requested without queue-proxy's timeout.
const TOGETHER: Duration = Duration::from_secs(2);
/// Maximum time of each response on a busy machine. The fastest of several must be much faster.
const NOISE: Duration = Duration::from_secs(2);
/// All functions except `ingest`, which has no store that needs tables.
const WITH_TABLES: [&str; 4] = ["count", "store", "batch", "analytics"];

/// Starts all replicas at once and probes each. Returns the time from when all are alive until all are ready, which
/// excludes the time that the machine needs to start twenty processes.
async fn probe_together(folder: &Path, names: &[&str], variables: &[(&'static str, String)]) -> Duration {
    let start = |name: &&str| Function::start(name, folder, variables);
    let replicas: Vec<_> =
        names.iter().flat_map(|name| std::iter::repeat_n(name, REPLICAS)).map(start).collect();
    let probe = |path: &'static str, with_patience: bool| {
        let probe = move |replica: &Function| {
            let address = replica.address;
            tokio::spawn(async move {
                match with_patience {
                    true => ask_until_ready(address, path).await,
                    false => probe_until_ready(address, path).await,
                };
                Instant::now()
            })
        };
        replicas.iter().map(probe).collect::<Vec<_>>()
    };
    let (ready, alive) = (probe("/readyz", false), probe("/healthz", true));
    let last = async |times: Vec<JoinHandle<Instant>>| {
        let mut last = None;
        for time in times {
            last = last.max(Some(time.await.unwrap()));
        }
        last.unwrap()
    };
    last(ready).await.saturating_duration_since(last(alive).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_replicas_on_an_empty_folder_get_ready_at_once() {
    let alone = tempfile::tempdir().unwrap();
    let mut patient = Duration::ZERO;
    for name in WITH_TABLES {
        let (started, function) = (Instant::now(), Function::start(name, alone.path(), &[]));
        ask_until_ready(function.address, "/readyz").await;
        patient = patient.max(started.elapsed());
    }
    let folder = tempfile::tempdir().unwrap();
    let together = probe_together(folder.path(), &WITH_TABLES, &[]).await;
    assert!(together < patient + TOGETHER, "{together:?} together, {patient:?} alone");
}

fn urls(services: &Services, mysql: &Proxy, cassandra: &Proxy) -> [(&'static str, String); 2] {
    [
        ("MASTER_URL", master_url_at(services, &mysql.address.to_string())),
        ("VIEWS_URL", format!("cassandra://{}/{}", cassandra.address, services.name)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_replicas_get_ready_on_empty_servers_far_away() {
    if matches!(Stores::new(), Stores::Embedded) {
        return not_run(Lacks::Services, "there are no services here");
    }
    for delay in [20, 100].map(Duration::from_millis) {
        let (alone, together) = (Stores::new(), Stores::new());
        let (Stores::Services(alone), Stores::Services(together)) = (&alone, &together) else {
            unreachable!()
        };
        // Half of a round trip in each direction.
        let mysql = Proxy::start(&mysql_server(alone), delay / 2);
        let cassandra = Proxy::start(&alone.cassandra, delay / 2);
        let folder = tempfile::tempdir().unwrap();
        let mut patient = Duration::ZERO;
        for name in WITH_TABLES {
            let started = Instant::now();
            let function = Function::start(name, folder.path(), &urls(alone, &mysql, &cassandra));
            ask_until_ready(function.address, "/readyz").await;
            patient = patient.max(started.elapsed());
        }
        let took = probe_together(folder.path(), &WITH_TABLES, &urls(together, &mysql, &cassandra)).await;
        println!("round trip {delay:?}: {took:?} together, {patient:?} alone");
        assert!(took < patient + TOGETHER, "round trip {delay:?}: {took:?} together, {patient:?} alone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_is_answered_in_time_while_a_store_hangs() {
    let silent = Proxy::silent();
    let (at, folder) = (silent.address, tempfile::tempdir().unwrap());
    let kafka = ("LOG_URL", format!("kafka://{at}/user"));
    let mysql = ("MASTER_URL", format!("mysql://root:root@{at}/lambda"));
    let cassandra = ("VIEWS_URL", format!("cassandra://{at}/lambda"));
    for (name, variables) in [
        ("ingest", vec![kafka]),
        ("count", vec![cassandra.clone()]),
        ("store", vec![mysql.clone()]),
        ("batch", vec![mysql.clone()]),
        ("analytics", vec![mysql, cassandra]),
    ] {
        let function = Function::start(name, folder.path(), &variables);
        let alive = wire::request("GET", "/healthz", &[], b"");
        wire::ask(function.address, &alive).await.unwrap();
        let mut fastest = Duration::MAX;
        for _ in 0..10 {
            let started = Instant::now();
            let ready = wire::request("GET", "/readyz", &[], b"");
            let answer = wire::ask(function.address, &ready).await.unwrap();
            let took = started.elapsed();
            assert_eq!(answer.status, 503, "{name}: {answer:?}");
            let detail = answer.problem();
            // "connecting" until the first attempt to connect ends, then its error.
            let told = ["connecting", "answer"].iter().any(|word| detail.to_lowercase().contains(word));
            assert!(told, "{name}: {detail}");
            assert!(took < NOISE, "{name}: answered after {took:?}");
            fastest = fastest.min(took);
        }
        assert!(fastest < Duration::from_millis(150), "{name}: {fastest:?}");
        drop(function);
    }
}
