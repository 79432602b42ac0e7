//! Benchmarks of the embedded stores: throughput, and its dependence on the amount of stored data.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use backend_master::Master;
use lambda_architecture::burst::names;
use sqlx::{Connection, SqliteConnection};

use crate::{
    Figure, figure,
    load::{Request, rate},
    median,
    server::Server,
    stores::Stores,
};

/// Rows per transaction of the reference.
const ROWS: usize = 500;

/// Measures rows per second that one SQLite connection inserts with the same durability as the system's stores.
pub async fn rows_per_second(rows: usize) -> f64 {
    let data = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}?mode=rwc", data.path().join("rows.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let schema = "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
        CREATE TABLE users (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, name TEXT NOT NULL)";
    sqlx::raw_sql(schema).execute(&mut database).await.unwrap();
    let users: Vec<_> = (0..rows).map(names::user).collect();
    let started = Instant::now();
    for some in users.chunks(ROWS) {
        let json =
            serde_json::to_string(&some.iter().map(|u| (u.id.as_simple(), &u.name)).collect::<Vec<_>>());
        let mut transaction = database.begin().await.unwrap();
        sqlx::query("INSERT INTO users (id, name) SELECT unhex(value ->> 0), value ->> 1 FROM json_each(?)")
            .bind(json.unwrap())
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }
    rows as f64 / started.elapsed().as_secs_f64()
}

/// Number of users that a function has stored.
pub async fn stored(function: &str, data: &Path) -> u64 {
    match function {
        "count" => {
            let url = format!("sqlite:{}", data.join("views.db").display());
            backend_views::open(&url, Duration::from_secs(1_000_000)).unwrap().total().await.unwrap()
        }
        _ => master(&data.join("master.db")).tick(false).await.unwrap().users,
    }
}

/// Measures a tick with 1,000 new users at 1,000,000 and at 10,000 stored users.
pub async fn tick() -> Figure {
    let (many, few) = (tick_at(1_000_000).await, tick_at(10_000).await);
    let ratio = many / few;
    figure(
        "tick of batch with 1,000 new users at 1,000,000 stored",
        format!("{many:.1} ms, {ratio:.2}×"),
        format!("{few:.1} ms at 10,000"),
        "≤ 1.5×",
        ratio <= 1.5,
    )
}

async fn tick_at(users: usize) -> f64 {
    let data = tempfile::tempdir().unwrap();
    let master = master(&data.path().join("master.db"));
    for _ in 0..users / 10_000 {
        master.store((0..10_000).map(names::user).collect()).await.unwrap();
    }
    master.tick(false).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..15 {
        master.store((0..1_000).map(names::user).collect()).await.unwrap();
        let started = Instant::now();
        assert_eq!(master.tick(false).await.unwrap().new_users, 1_000);
        times.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    median(times)
}

/// Measures `GET /analytics` with a long and with a short history.
pub async fn analytics() -> Figure {
    let (mut rates, mut rss) = (Vec::new(), 0.0);
    for points in [1_000_000, 1_000] {
        let data = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", data.path().join("views.db").display());
        backend_views::open(&url, Duration::from_secs(1_000_000_000)).unwrap().ready().await.unwrap();
        let mut database = SqliteConnection::connect(&url).await.unwrap();
        let fill = "WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < ?)
            INSERT INTO history (user_count, id, time) SELECT n, randomblob(16), 1600000000 + n FROM n";
        sqlx::query(fill).bind(points).execute(&mut database).await.unwrap();
        let server = Server::function("analytics", &Stores::Embedded, data.path());
        rates.push(rate(server.address, Request::Analytics, 8, 200, Duration::from_secs(4)).await);
        rss = server.rss_mb().max(rss);
    }
    history_figure("1,000,000 points", "1,000 points", &rates, rss)
}

/// Creates the row that compares a long with a short history: requests per second of both, and the highest memory.
pub fn history_figure(long: &str, short: &str, rates: &[f64], rss: f64) -> Figure {
    let ratio = rates[0] / rates[1];
    figure(
        &format!("`GET /analytics` at {long}, 1,000 of them answered"),
        format!("{:.0}/s, {ratio:.2}×, RSS {rss:.0} MB", rates[0]),
        format!("{:.0}/s at {short}", rates[1]),
        "≥ 0.7×, ≤ 64 MB",
        ratio >= 0.7 && rss <= 64.0,
    )
}

/// Opens the embedded master dataset in a file.
fn master(file: &Path) -> Arc<dyn Master> {
    backend_master::open(&format!("sqlite:{}", file.display())).unwrap()
}
