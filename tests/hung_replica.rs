//! Replicas that hang, crash in a loop, or die in the middle of a batch.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::Request;
use lambda_architecture::client::Client;
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::{
    app::{App, DEADLINE, runs, signal},
    stores::Stores,
    wire,
};

/// Maximum time until a hanging replica is replaced.
const REPLACED: Duration = Duration::from_secs(30);
/// Timeout of one request.
const PATIENCE: Duration = Duration::from_secs(3);
/// Number of users per batch, and of batches per run.
const BATCH: usize = 200;
const BATCHES: usize = 20;

async fn replicas(app: &mut App, function: &str) -> Vec<u32> {
    let status = app.function(function).await;
    let replicas = status["replicas"].as_array().unwrap().iter();
    replicas.map(|replica| u32::try_from(replica["pid"].as_u64().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn a_replica_that_hangs_is_replaced() {
    let mut app = App::start().await;
    for (function, path) in
        [("count", "/function/count/user/count"), ("analytics", "/service-analytics/analytics?limit=1")]
    {
        app.get(path).await;
        let hung = replicas(&mut app, function).await;
        assert!(!hung.is_empty());
        hung.iter().for_each(|pid| signal(*pid, Signal::STOP));
        let (request, stopped) = (wire::request("GET", path, &[], b""), Instant::now());
        while wire::ask_and_hang_up(app.address, &request, PATIENCE).await != Some(200) {
            let waited = stopped.elapsed();
            assert!(waited < REPLACED, "{function}: nobody took over for {waited:?}");
        }
        app.eventually("what hung is gone", async |_| !hung.iter().any(|pid| runs(*pid))).await;
        let now = replicas(&mut app, function).await;
        assert!(!now.iter().any(|pid| hung.contains(pid)), "{now:?}");
    }
}

#[tokio::test]
async fn users_go_on_while_the_replicas_behind_the_log_hang() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "warm").await;
    app.settle().await;
    for function in ["count", "store"] {
        for pid in replicas(&mut app, function).await {
            signal(pid, Signal::STOP);
        }
    }
    app.post_user(Uuid::new_v4(), "while they hang").await;
    app.settle().await;
    assert_eq!(app.user_count().await, 2);
    assert_eq!(app.tick("").await["users"], 2);
    assert!(app.dead_letters().is_empty());
}

#[tokio::test]
async fn a_function_that_never_starts_tells_why_in_one_place() {
    let mut app = App::start_with(Stores::Embedded, |path, manifest| {
        if path != "functions/count/service.yaml" {
            return manifest;
        }
        let env = "          env:\n";
        assert!(manifest.contains(env), "{manifest}");
        let wrong = "            - name: LOG_LEVEL\n              value: lambda=loud\n";
        manifest.replace(env, &format!("{env}{wrong}"))
    })
    .await;
    let deadline = Instant::now() + DEADLINE;
    loop {
        let request = Request::get("/function/count/user/count").body(bytes::Bytes::new()).unwrap();
        let answer = app.send(request).await.unwrap();
        assert!(answer.status().is_server_error(), "{answer:?}");
        let status = app.function("count").await.to_string();
        // The error of the function, which names the key.
        if status.contains("LOG_LEVEL") {
            break;
        }
        assert!(Instant::now() < deadline, "the status never tells why: {status}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killing_ingest_in_the_middle_of_batches_loses_and_doubles_nothing() {
    let mut app = App::start().await;
    app.post_user(Uuid::new_v4(), "warm").await;
    let batches: Vec<Vec<Uuid>> =
        (0..BATCHES).map(|_| (0..BATCH).map(|_| Uuid::new_v4()).collect()).collect();
    let left = Arc::new(Mutex::new(batches.clone()));
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(post_all(app.address, left.clone()))).collect();
    while !clients.iter().all(tokio::task::JoinHandle::is_finished) {
        for pid in replicas(&mut app, "ingest").await {
            signal(pid, Signal::KILL);
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    for client in clients {
        client.await.unwrap();
    }
    app.settle().await;
    let sent: BTreeSet<_> = batches.into_iter().flatten().collect();
    assert_eq!(app.user_count().await, sent.len() as u64 + 1);
    assert_eq!(app.tick("?full=true").await["users"], sent.len() + 1);
    assert!(app.stores.stored(app.data.path()).await.is_superset(&sent));
}

/// Posts batches until none is left. Repeats each until it is acknowledged.
async fn post_all(address: std::net::SocketAddr, left: Arc<Mutex<Vec<Vec<Uuid>>>>) {
    let mut client = Client::new(address);
    loop {
        let Some(ids) = left.lock().await.pop() else { return };
        let event = |id: &Uuid| {
            let user = json!({ "id": id, "name": "batched" });
            json!({ "specversion": "1.0", "id": id, "source": "/s", "type": "t", "data": user })
        };
        let batch = json!(ids.iter().map(event).collect::<Vec<_>>()).to_string();
        let deadline = Instant::now() + DEADLINE;
        loop {
            let request =
                Request::post("/ingress/").header("content-type", "application/cloudevents-batch+json");
            let answer = client.send(request.body(batch.clone().into()).unwrap()).await;
            if answer.is_ok_and(|answer| answer.status() == 202) {
                break;
            }
            assert!(Instant::now() < deadline, "a batch is never taken");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
