//! A separate keyspace for each test on the node that `CASSANDRA_NODE` names, and cases that only a server has.

/// A proxy to the node that can cut connections.
mod line;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use backend_views::{CassandraError, CassandraViews, Views, ViewsError};
use domain::Failure;
use scylla::client::{session::Session, session_builder::SessionBuilder};
use uuid::Uuid;

use self::line::Line;
use crate::{ALL, WEEK, counts, ids};

fn node() -> String {
    std::env::var("CASSANDRA_NODE").expect("CASSANDRA_NODE names a node like 127.0.0.1:9042")
}

/// A keyspace, which the first client to use it creates.
pub struct Keyspace(String);

impl Keyspace {
    pub fn new() -> Self {
        Self(format!("test_{}", Uuid::new_v4().simple()))
    }

    /// Opens views with additional URL parameters.
    pub fn views(&self, retention: Duration, parameters: &str) -> Arc<dyn Views> {
        self.views_through(&node(), retention, parameters)
    }

    pub fn views_by(&self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Arc<dyn Views> {
        let url = format!("cassandra://{}/{}", node(), self.0);
        Arc::new(CassandraViews::with_clock(&url, WEEK, clock).unwrap())
    }

    fn views_through(&self, node: &str, retention: Duration, parameters: &str) -> Arc<dyn Views> {
        let url = format!("cassandra://{node}/{}?{parameters}", self.0);
        Arc::new(CassandraViews::new(&url, retention).unwrap())
    }

    pub async fn fill(&self, points: &[(i64, u64)]) {
        let session = session().await;
        for (time, count) in points {
            let day = i32::try_from(time.div_euclid(24 * 60 * 60)).unwrap();
            let count = i64::try_from(*count).unwrap();
            let insert = format!("INSERT INTO {}.history_days (only_row, day) VALUES (0, ?)", self.0);
            session.query_unpaged(insert, (day,)).await.unwrap();
            let insert = format!("INSERT INTO {}.history (day, time, user_count) VALUES (?, ?, ?)", self.0);
            session.query_unpaged(insert, (day, time, count)).await.unwrap();
        }
    }

    pub async fn drop(self) {
        let drop = format!("DROP KEYSPACE IF EXISTS {}", self.0);
        session().await.query_unpaged(drop, ()).await.unwrap();
    }
}

async fn session() -> Session {
    SessionBuilder::new().known_node(node()).fetch_schema_metadata(false).build().await.unwrap()
}

/// Retries `go` until it succeeds. Panics if it still fails after `limit`.
async fn within<T, F: Future<Output = Result<T, Failure>>>(limit: Duration, go: impl Fn() -> F) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match go().await {
            Ok(done) => return done,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_processes_that_come_first_create_one_schema() {
    let keyspace = Keyspace::new();
    let firsts: Vec<_> = (0..8)
        .map(|_| {
            let (views, ids) = (keyspace.views(WEEK, ""), ids(5));
            tokio::spawn(async move { views.count(ids).await.unwrap() })
        })
        .collect();
    for first in firsts {
        first.await.unwrap();
    }
    assert_eq!(keyspace.views(WEEK, "").total().await.unwrap(), 40);
    keyspace.drop().await;
}

#[tokio::test]
async fn another_number_of_shards_than_the_keyspace_has_is_refused() {
    let keyspace = Keyspace::new();
    keyspace.views(WEEK, "shards=3").count(ids(20)).await.unwrap();
    let error = keyspace.views(WEEK, "shards=4").total().await.unwrap_err();
    let Some(ViewsError::Cassandra(CassandraError::Shards { asked: 4, found: 3 })) =
        error.cause().downcast_ref()
    else {
        panic!("{error:?}");
    };
    for same in ["", "shards=3"] {
        assert_eq!(keyspace.views(WEEK, same).total().await.unwrap(), 20);
    }
    keyspace.drop().await;
}

/// A day in seconds.
const DAY: i64 = 24 * 60 * 60;

#[tokio::test]
async fn a_writer_that_is_still_in_the_old_day_makes_no_answer_fall() {
    let keyspace = Keyspace::new();
    let (yesterday, today) = (keyspace.views_by(|| DAY - 1), keyspace.views_by(|| DAY + 1));
    let mut total = 0;
    let mut expected = Vec::new();
    for (writer, new) in [(&yesterday, 3), (&today, 1), (&yesterday, 2), (&yesterday, 1), (&today, 1)] {
        writer.count(ids(new)).await.unwrap();
        total += new as u64;
        expected.insert(0, total);
        let counts = counts(&today.points(ALL).await.unwrap());
        assert_eq!(counts.first(), Some(&total), "{counts:?}");
        assert!(counts.is_sorted_by(|a, b| a > b), "{counts:?}");
    }
    // The first point of the new day was superseded by a later one of the old day.
    expected.retain(|count| *count != 4);
    assert_eq!(counts(&today.points(ALL).await.unwrap()), expected);
    keyspace.drop().await;
}

#[tokio::test]
async fn the_newest_point_goes_with_the_retention_and_comes_back_with_the_next_event() {
    let keyspace = Keyspace::new();
    let (brief, ids) = (keyspace.views(Duration::from_secs(1), ""), ids(2));
    brief.count(ids.clone()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !brief.points(ALL).await.unwrap().is_empty() {
        assert!(Instant::now() < deadline, "a point outlives its retention");
    }
    assert_eq!((brief.oldest().await.unwrap(), brief.total().await.unwrap()), (None, 2));
    brief.count(vec![Uuid::new_v4()]).await.unwrap();
    assert_eq!(counts(&keyspace.views(WEEK, "").points(ALL).await.unwrap()), [3, 2]);
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_line_that_is_cut_again_and_again_makes_nothing_count_twice_or_never() {
    const CUTS: usize = 12;
    let (keyspace, line) = (Keyspace::new(), Line::to(node()).await);
    keyspace.views(WEEK, "").ready().await.unwrap();
    let cuts = Arc::new(AtomicUsize::new(0));
    let counters: Vec<_> = (0..3)
        .map(|_| {
            let (views, cuts) = (keyspace.views_through(&line.address(), WEEK, ""), cuts.clone());
            tokio::spawn(async move {
                let mut counted = 0;
                while cuts.load(Ordering::Relaxed) < CUTS {
                    let ids = ids(20);
                    // Retries like an event source, which resends unacknowledged events.
                    within(Duration::from_secs(60), || views.count(ids.clone())).await;
                    counted += ids.len() as u64;
                }
                counted
            })
        })
        .collect();
    let mut pace = tokio::time::interval(Duration::from_millis(150));
    while cuts.load(Ordering::Relaxed) < CUTS {
        // Cuts connections while requests are in flight.
        pace.tick().await;
        cuts.fetch_add(usize::from(line.cut() > 0), Ordering::Relaxed);
    }
    let mut counted = 0;
    for counter in counters {
        counted += counter.await.unwrap();
    }
    assert!(counted > 0);
    let views = keyspace.views(WEEK, "");
    let history = views.points(ALL).await.unwrap();
    assert_eq!((history[0].user_count, views.total().await.unwrap()), (counted, counted));
    assert!(counts(&history).is_sorted_by(|a, b| a > b));
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_away_is_said_at_once_and_used_again_within_five_seconds() {
    let (keyspace, line) = (Keyspace::new(), Line::to(node()).await);
    let views = keyspace.views_through(&line.address(), WEEK, "timeout=2s");
    // A busy node may take longer than the time limit to create the tables.
    let first = ids(3);
    within(Duration::from_secs(60), || views.count(first.clone())).await;
    for silent in [false, true] {
        if silent {
            line.stall()
        } else {
            line.hang_up()
        }
        for _ in 0..3 {
            let asked = Instant::now();
            views.ready().await.unwrap_err();
            assert!(asked.elapsed() < Duration::from_secs(20), "silent {silent}: {:?}", asked.elapsed());
        }
        line.mend();
        within(Duration::from_secs(30), || views.count(ids(1))).await;
    }
    assert_eq!(counts(&views.points(ALL).await.unwrap()), [5, 4, 3]);
    keyspace.drop().await;
}

/// Probes as queue-proxy does: with a timeout of 100 ms, and again immediately. Returns the time until ready.
async fn probe_until_ready(views: &dyn Views, limit: Duration) -> Duration {
    let begun = Instant::now();
    loop {
        if let Ok(Ok(())) = tokio::time::timeout(Duration::from_millis(100), views.ready()).await {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < limit, "not ready after {limit:?}");
        // A probe that fails immediately is repeated after a short delay.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_replicas_that_are_probed_impatiently_over_a_slow_line_become_ready() {
    let (keyspace, line) = (Keyspace::new(), Line::delayed(node(), Duration::from_millis(50)).await);
    for round in ["first", "again"] {
        let replicas = (0..20).map(|_| {
            let views = keyspace.views_through(&line.address(), WEEK, "");
            async move { probe_until_ready(&*views, Duration::from_secs(30)).await }
        });
        let times = futures_util::future::join_all(replicas).await;
        println!("{round}: {:?}", times.iter().max());
    }
    keyspace.views(WEEK, "").count(ids(1)).await.unwrap();
    keyspace.drop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_at_another_address_is_used_again() {
    let (keyspace, old, new) = (Keyspace::new(), Line::to(node()).await, Line::to(node()).await);
    new.hang_up();
    let nodes = format!("{},{}", old.address(), new.address());
    let views = keyspace.views_through(&nodes, WEEK, "timeout=2s");
    views.count(ids(3)).await.unwrap();
    for (gone, there) in [(&old, &new), (&new, &old)] {
        gone.hang_up();
        there.mend();
        within(Duration::from_secs(30), || views.count(ids(1))).await;
    }
    assert_eq!(views.total().await.unwrap(), 5);
    keyspace.drop().await;
}

#[tokio::test]
async fn a_server_that_lost_its_tables_gets_them_again() {
    let keyspace = Keyspace::new();
    let views = keyspace.views(WEEK, "");
    views.count(ids(3)).await.unwrap();
    let drop = format!("DROP KEYSPACE {}", keyspace.0);
    session().await.query_unpaged(drop, ()).await.unwrap();
    within(Duration::from_secs(20), || views.count(ids(2))).await;
    assert!(views.total().await.unwrap() >= 2);
    keyspace.drop().await;
}
