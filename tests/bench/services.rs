//! Benchmarks on real Kafka, Cassandra and MariaDB. Their client libraries alone are the references.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use backend_master::Master;
use bytes::Bytes;
use domain::Window;
use futures_util::{StreamExt, stream};
use http::Request;
use lambda_architecture::{burst::names, client::Client};
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    producer::{FutureProducer, FutureRecord},
};
use scylla::client::session_builder::SessionBuilder;
use sqlx::{AssertSqlSafe, Connection, MySqlConnection};
use uuid::Uuid;

use crate::{
    Figure, figure,
    load::{self, rate},
    median,
    server::{LENGTH, Server, rss_mb},
    storage,
    stores::{Services, Stores},
    system,
};

/// Number of events sent through each arrow.
const EVENTS: usize = 100_000;

/// Measures all figures, or those that `chosen` selects.
pub async fn all(chosen: &[String]) -> Vec<Figure> {
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|word| name.contains(word.as_str()));
    let mut figures = Vec::new();
    if is_chosen("ingest") {
        figures.extend(ingest().await);
    }
    if is_chosen("arrows") {
        figures.extend(arrows().await);
    }
    if is_chosen("batch") {
        figures.extend(batch().await);
    }
    if is_chosen("analytics") {
        figures.push(analytics().await);
    }
    if is_chosen("visible") {
        figures.push(visible().await);
    }
    figures
}

/// Creates separate stores on the services.
fn stores() -> (Stores, Arc<Services>) {
    match Stores::new() {
        Stores::Services(services) => (Stores::Services(services.clone()), services),
        Stores::Embedded => panic!("start this with infra/services/test.sh bench"),
    }
}

/// Measures durably stored users per second and the latency of a single request. Runs on a topic with one partition,
/// which is the least work for a client, and on a topic with as many partitions as the project's own services have.
async fn ingest() -> Vec<Figure> {
    let bare = Server::reference();
    let hyper = rate(bare.address, load::Request::User(""), 64, 201, LENGTH).await;
    drop(bare);
    let mut figures = Vec::new();
    for partitions in [1, 64] {
        let (stores, services) = stores();
        create(&services, partitions).await;
        // The first load warms up the broker.
        alone(&services, 64).await;
        let (kafka, _) = alone(&services, 64).await;
        let (_, one) = alone(&services, 1).await;
        let data = tempfile::tempdir().unwrap();
        let function = Server::function("ingest", &stores, data.path());
        let ours = rate(function.address, load::Request::User(""), 64, 201, LENGTH).await;
        let half = median(load::times(function.address, load::Request::User(""), 201, LENGTH).await);
        let (of_hyper, of_kafka, slower) = (ours / hyper, ours / kafka, half / one);
        figures.push(figure(
            &format!("`POST /user` to Kafka, acks=all, 64 connections, partitions: {partitions}"),
            format!("{ours:.0}/s, {of_hyper:.2}× and {of_kafka:.2}×"),
            format!("{hyper:.0}/s bare hyper, {kafka:.0}/s rdkafka alone"),
            "≥ 0.25× and ≥ 0.4×",
            of_hyper >= 0.25 && of_kafka >= 0.4,
        ));
        figures.push(figure(
            &format!("one `POST /user` at a time, partitions: {partitions}"),
            format!("p50 {half:.2} ms, {slower:.2}×"),
            format!("{one:.2} ms rdkafka alone"),
            "≤ 1.5×",
            slower <= 1.5,
        ));
    }
    figures
}

/// Creates the topic of the stores and the topic for rdkafka alone.
async fn create(services: &Services, partitions: i32) {
    let admin: AdminClient<_> =
        ClientConfig::new().set("bootstrap.servers", &services.kafka).create().unwrap();
    let names = [services.name.clone(), alone_topic(services)];
    let topics = names.each_ref().map(|name| NewTopic::new(name, partitions, TopicReplication::Fixed(1)));
    for created in admin.create_topics(&topics, &AdminOptions::new()).await.unwrap() {
        created.unwrap();
    }
}

fn alone_topic(services: &Services) -> String {
    format!("{}-alone", services.name)
}

/// Measures rdkafka alone with `in_flight` records in flight: acknowledged records per second, and the p50 latency of a
/// record in milliseconds.
async fn alone(services: &Services, in_flight: usize) -> (f64, f64) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", &services.kafka)
        .set("acks", "all")
        .set("linger.ms", "0")
        .create()
        .unwrap();
    let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let value = Bytes::from(vec![b'x'; 100]);
    let senders: Vec<_> = (0..in_flight)
        .map(|_| {
            let (producer, topic, sent, stop) =
                (producer.clone(), alone_topic(services), sent.clone(), stop.clone());
            let value = value.clone();
            tokio::spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Relaxed) {
                    let started = Instant::now();
                    let key = Uuid::new_v4().to_string();
                    let record = FutureRecord::to(&topic).key(&key).payload(&value[..]);
                    producer.send(record, Duration::from_secs(10)).await.unwrap();
                    sent.fetch_add(1, Relaxed);
                    times.push(started.elapsed().as_secs_f64() * 1_000.0);
                }
                times
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, started) = (sent.load(Relaxed), Instant::now());
    tokio::time::sleep(LENGTH).await;
    let per_second = (sent.load(Relaxed) - before) as f64 / started.elapsed().as_secs_f64();
    stop.store(true, Relaxed);
    let mut times = Vec::new();
    for sender in senders {
        times.extend(sender.await.unwrap());
    }
    (per_second, median(times))
}

/// Measures events per second from Kafka through each function.
async fn arrows() -> Vec<Figure> {
    let mut figures = Vec::new();
    for (function, to, least, reach) in
        [("count", "Cassandra", 8_000.0, "≥ 8,000/s"), ("store", "MariaDB", 10_000.0, "≥ 10,000/s")]
    {
        // The first run warms up the servers.
        through(function).await;
        let events = through(function).await;
        figures.push(figure(
            &format!("events Kafka → `{function}` → {to}, start of the system included"),
            format!("{events:.0}/s"),
            "–".into(),
            reach,
            events >= least,
        ));
    }
    figures
}

/// Measures events per second from a separate topic through a function. Panics unless every event has arrived.
async fn through(function: &str) -> f64 {
    let (stores, services) = stores();
    let data = tempfile::tempdir().unwrap();
    system::fill(&services.log_url(), &services.name, EVENTS).await;
    let events = system::through(function, &stores, data.path(), EVENTS).await;
    let stored = match function {
        "count" => stores.counted(data.path()).await,
        _ => stores.stored(data.path()).await,
    };
    assert_eq!(stored.len(), EVENTS, "not exact");
    events
}

/// Measures a full recompute at 1,000,000 users, and ticks at 1,000,000 and at 5,000,000 users.
async fn batch() -> Vec<Figure> {
    let (stores, services) = stores();
    let data = tempfile::tempdir().unwrap();
    let master = backend_master::open(&services.master_url()).unwrap();
    master.ready().await.unwrap();
    let mut server = MySqlConnection::connect(&services.master_url()).await.unwrap();
    users(&mut server, 1, 1_000_000).await;
    let function = Server::function("batch", &stores, data.path());
    let mut client = Client::new(function.address);
    full(&mut client).await;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let statement = "SELECT id, name FROM users ORDER BY CHAR_LENGTH(name) DESC, seq LIMIT 1";
        let started = Instant::now();
        sqlx::query(statement).fetch_one(&mut server).await.unwrap();
        theirs.push(started.elapsed().as_secs_f64());
        ours.push(full(&mut client).await);
    }
    let rss = rss_mb(function.pid());
    drop(function);
    let (ours, theirs) = (median(ours), median(theirs));
    let recompute = figure(
        "full recompute of batch at 1,000,000 users",
        format!("{ours:.2} s, {:.2}×, RSS {rss:.0} MB", ours / theirs),
        format!("{theirs:.2} s, the best single statement that finds the longest name"),
        "≤ 1.2×, ≤ 32 MB",
        ours / theirs <= 1.2 && rss <= 32.0,
    );
    let few = tick(&*master).await;
    users(&mut server, 1_000_001, 5_000_000).await;
    master.tick(true).await.unwrap();
    let many = tick(&*master).await;
    let tick = figure(
        "tick of batch with 1,000 new users at 5,000,000 stored",
        format!("{many:.1} ms, {:.2}×", many / few),
        format!("{few:.1} ms at 1,000,000"),
        "≤ 1.3×",
        many / few <= 1.3,
    );
    vec![recompute, tick]
}

/// Inserts users that were stored 60 ms apart, with MariaDB's sequence engine.
async fn users(server: &mut MySqlConnection, from: u64, to: u64) {
    let insert = format!(
        "INSERT INTO users (id, name, stored_at, stored_by)
         SELECT UNHEX(MD5(seq)), CONCAT('José García ', seq MOD 997, REPEAT('x', seq MOD 17)), 1700000000000 + seq * 60,
             UNHEX(MD5('bench')) FROM seq_{from}_to_{to}"
    );
    sqlx::query(AssertSqlSafe(insert)).execute(server).await.unwrap();
}

async fn full(client: &mut Client) -> f64 {
    let ping = Request::post("/?full=true")
        .header("ce-specversion", "1.0")
        .header("ce-type", "dev.knative.sources.ping")
        .header("ce-source", "/bench")
        .header("ce-id", "1")
        .header("content-type", "application/json")
        .body(Bytes::from_static(b"{}"))
        .unwrap();
    let started = Instant::now();
    let answer = client.send(ping).await.unwrap();
    assert_eq!(answer.status(), 200, "{:?}", answer.body());
    started.elapsed().as_secs_f64()
}

async fn tick(master: &dyn Master) -> f64 {
    let mut times = Vec::new();
    for _ in 0..15 {
        master.store((0..1_000).map(names::user).collect()).await.unwrap();
        let started = Instant::now();
        assert_eq!(master.tick(false).await.unwrap().new_users, 1_000);
        times.push(started.elapsed().as_secs_f64() * 1_000.0);
    }
    median(times)
}

/// Measures `GET /analytics` with a long and with a short history in Cassandra.
async fn analytics() -> Figure {
    let (mut rates, mut rss) = (Vec::new(), 0.0);
    for points in [100_000, 1_000] {
        let (stores, services) = stores();
        let data = tempfile::tempdir().unwrap();
        history(&services, points).await;
        let server = Server::function("analytics", &stores, data.path());
        rates.push(rate(server.address, load::Request::Analytics, 8, 200, LENGTH).await);
        rss = server.rss_mb().max(rss);
    }
    storage::history_figure("100,000 rows in Cassandra", "1,000 rows", &rates, rss)
}

/// Writes a history of `points` points, one per second until now.
async fn history(services: &Services, points: i64) {
    let views = backend_views::open(&services.views_url(), Duration::from_secs(30 * 86_400)).unwrap();
    views.ready().await.unwrap();
    let session = SessionBuilder::new().known_node(&services.cassandra).build().await.unwrap();
    session.use_keyspace(&services.name, true).await.unwrap();
    let now = chrono::Utc::now().timestamp();
    let days: BTreeSet<_> = [now - points, now].map(day).into();
    for day in days {
        let add = "INSERT INTO history_days (only_row, day) VALUES (0, ?)";
        session.query_unpaged(add, (day,)).await.unwrap();
    }
    let point = "INSERT INTO history (day, time, user_count) VALUES (?, ?, ?)";
    let point = session.prepare(point).await.unwrap();
    stream::iter(1..=points)
        .for_each_concurrent(64, |count| {
            let time = now - points + count;
            let inserted = session.execute_unpaged(&point, (day(time), time, count));
            async move { drop(inserted.await.unwrap()) }
        })
        .await;
    let newest = "UPDATE history SET newest_time = ?, newest_count = ? WHERE day = ?";
    session.query_unpaged(newest, (now, points, day(now))).await.unwrap();
    assert_eq!(views.points(Window { limit: 2, ..Window::default() }).await.unwrap().len(), 2);
}

fn day(time: i64) -> i32 {
    i32::try_from(time.div_euclid(86_400)).unwrap()
}

async fn visible() -> Figure {
    let (stores, _) = stores();
    let (half, most) = system::until_seen(&stores).await;
    let measured = format!("p50 {half:.1} ms, p99 {most:.1} ms of 1,000");
    let reached = half <= 50.0 && most <= 250.0;
    figure("POST → visible in analytics", measured, "–".into(), "p50 ≤ 50 ms, p99 ≤ 250 ms", reached)
}
