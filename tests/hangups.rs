//! Clients that disconnect before they receive the response. Their requests must leave nothing open, locked or half
//! done.

use std::{net::SocketAddr, time::Duration};

use serde_json::json;
use sqlx::{Connection, Row};
use uuid::Uuid;

use crate::{
    app::App,
    function::{Function, ask_until_ready},
    stores::{Services, Stores},
    wire,
};

/// Timeouts after which clients disconnect, in milliseconds.
const PATIENCE_MS: [u64; 5] = [0, 1, 5, 20, 100];
/// Number of requests per route, with each timeout in turn.
const TIMES: usize = 100;
/// Maximum time until a process that starts afterwards is ready. Waiting for a leftover lock would take longer.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// Requests to each route of each function and of the gateway. All of them post the same user.
fn requests(user: &str) -> Vec<Vec<u8>> {
    let json = ("Content-Type", "application/json");
    let event =
        [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/hangups"), ("ce-type", "test"), json];
    let functions =
        ["/ingress", "/function/count", "/function/store", "/function/batch", "/service-analytics"];
    let probes =
        ["healthz", "readyz", "_/health", "_/ready", "health/liveness", "health/readiness", "nowhere"];
    let mut requests = vec![
        wire::request("POST", "/ingress/user", &[json], user.as_bytes()),
        wire::request("POST", "/ingress/", &event, user.as_bytes()),
        wire::request("POST", "/function/count/", &event, user.as_bytes()),
        wire::request("POST", "/function/store/", &event, user.as_bytes()),
        wire::request("POST", "/function/batch/", &event, b"{}"),
        wire::request("POST", "/function/batch/?full=true", &event, b"{}"),
    ];
    let gets = ["/", "/status", "/function/count/user/count", "/service-analytics/analytics?limit=10"];
    let gets = gets.map(str::to_owned).into_iter().chain(
        functions.iter().flat_map(|function| probes.iter().map(move |probe| format!("{function}/{probe}"))),
    );
    requests.extend(gets.map(|path| wire::request("GET", &path, &[], b"")));
    requests
}

async fn hang_up_often(address: SocketAddr, requests: Vec<Vec<u8>>) {
    let route = |request: Vec<u8>| async move {
        for time in 0..TIMES {
            let patience = Duration::from_millis(PATIENCE_MS[time % PATIENCE_MS.len()]);
            wire::ask_and_hang_up(address, &request, patience).await;
        }
    };
    let routes: Vec<_> = requests.into_iter().map(|request| tokio::spawn(route(request))).collect();
    for route in routes {
        route.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_hang_up_on_every_route_leave_nothing_behind() {
    let mut app = App::start().await;
    let abandoned = Uuid::new_v4();
    let user = json!({ "id": abandoned, "name": "abandoned" }).to_string();
    hang_up_often(app.address, requests(&user)).await;

    app.post_user(abandoned, "abandoned").await;
    app.post_user(Uuid::new_v4(), "patient").await;
    app.settle().await;
    assert_eq!(app.user_count().await, 2);
    assert_eq!(app.get("/function/count/user/count").await, json!({ "userCount": 2 }));
    assert_eq!(app.tick("?full=true").await["users"], 2);
    assert!(app.dead_letters().is_empty());
    for function in ["ingest", "count", "store", "batch", "analytics"] {
        let waits = async |app: &mut App| app.function(function).await["queued"] == 0;
        app.eventually("no request waits", waits).await;
    }
    if let Stores::Services(services) = &app.stores {
        let services = services.clone();
        leaves_no_lock(&services).await;
        // A function that starts now must not wait for the earlier requests.
        let variables = urls(&services);
        for function in ["ingest", "count", "store", "batch", "analytics"] {
            let started = Function::start(function, app.data.path(), &variables);
            let took = ask_until_ready(started.address, "/readyz").await;
            assert!(took < READY_TIMEOUT, "{function} was ready after {took:?}");
        }
    }
}

fn urls(services: &Services) -> [(&'static str, String); 3] {
    [
        ("LOG_URL", services.log_url()),
        ("MASTER_URL", services.master_url()),
        ("VIEWS_URL", services.views_url()),
    ]
}

/// Waits until no transaction is open and the lock of the migration is free.
async fn leaves_no_lock(services: &Services) {
    let mut server = sqlx::MySqlConnection::connect(&services.master_url()).await.unwrap();
    let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
    loop {
        let open: i64 = sqlx::query_scalar(
            "SELECT CAST(COUNT(*) AS SIGNED) FROM information_schema.innodb_trx AS trx
             JOIN information_schema.processlist AS process ON process.id = trx.trx_mysql_thread_id
             WHERE process.db = DATABASE() AND process.id <> CONNECTION_ID()",
        )
        .fetch_one(&mut server)
        .await
        .unwrap();
        let locks = sqlx::query("SELECT CAST(IS_FREE_LOCK(CONCAT('migrate:', MD5(DATABASE()))) AS SIGNED)");
        let free: Option<i64> = locks.fetch_one(&mut server).await.unwrap().get(0);
        if open == 0 && free == Some(1) {
            return;
        }
        let now = tokio::time::Instant::now();
        assert!(now < deadline, "{open} transactions are open, the migration's lock is free: {free:?}");
        // The server refreshes its list of transactions only if no client has queried it for 100 ms.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Functions on empty stores. The first requests create the tables, and each client disconnects.
#[tokio::test(flavor = "multi_thread")]
async fn tables_are_created_whole_although_whoever_asked_first_hangs_up() {
    for patience in PATIENCE_MS {
        let stores = Stores::new();
        let folder = tempfile::tempdir().unwrap();
        let variables = match &stores {
            Stores::Services(services) => urls(services).to_vec(),
            Stores::Embedded => Vec::new(),
        };
        let functions = ["ingest", "count", "store", "batch", "analytics"]
            .map(|name| Function::start(name, folder.path(), &variables));
        let ready = wire::request("GET", "/readyz", &[], b"");
        for _ in 0..3 {
            for function in &functions {
                let patience = Duration::from_millis(patience);
                wire::ask_and_hang_up(function.address, &ready, patience).await;
            }
        }
        for function in &functions {
            let took = ask_until_ready(function.address, "/readyz").await;
            assert!(took < READY_TIMEOUT, "after {patience} ms: ready after {took:?}");
        }
        if let Stores::Services(services) = &stores {
            leaves_no_lock(services).await;
        }
    }
}
