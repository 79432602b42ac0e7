//! What every implementation of `Log` promises, run against each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::SeqCst},
    },
    time::Duration,
};

use backend_log::{Consumer, Delivered, Log, PartitionOffsets, Polled, SqliteLog, Start};
use bytes::Bytes;
use event::Record;
use tokio::time::timeout;

/// Storage of each implementation during a test.
mod fixture;
/// Cases that only Kafka has.
#[cfg(feature = "services")]
mod kafka;
/// Validation of Kafka URLs.
mod url;

use fixture::Fixture;

fn record(key: &str, value: &str) -> Record {
    Record {
        key: Some(Bytes::from(key.to_owned())),
        headers: vec![
            ("ce_id".to_owned(), Some(Bytes::from(value.to_owned()))),
            ("raw".to_owned(), Some(Bytes::from_static(&[0, 255, 1]))),
            ("empty".to_owned(), Some(Bytes::new())),
            ("nothing".to_owned(), None),
        ],
        value: Some(Bytes::from(value.to_owned())),
    }
}

fn numbered(range: Range<usize>) -> Vec<Record> {
    range.map(|n| record(&format!("key{}", n % 10), &n.to_string())).collect()
}

fn value(delivered: &Delivered) -> usize {
    std::str::from_utf8(delivered.record.value.as_ref().unwrap()).unwrap().parse().unwrap()
}

async fn read(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivered> {
    let mut all = Vec::new();
    while all.len() < count {
        let polled = tokio::time::timeout(Duration::from_secs(20), consumer.poll(7)).await.unwrap().unwrap();
        all.extend(records(polled));
    }
    all
}

/// Returns the records of a poll; empty if partitions were revoked.
fn records(polled: Polled) -> Vec<Delivered> {
    match polled {
        Polled::Records(records) => records,
        Polled::Revoked(_) => Vec::new(),
    }
}

async fn read_now(consumer: &mut dyn Consumer) -> Vec<Delivered> {
    let mut all = Vec::new();
    loop {
        let records = consumer.poll_now(7).await.unwrap();
        if records.is_empty() {
            return all;
        }
        all.extend(records);
    }
}

fn next(records: &[Delivered]) -> PartitionOffsets {
    records.iter().map(|r| (r.partition, r.offset + 1)).collect()
}

fn values(records: &[Delivered]) -> BTreeSet<usize> {
    records.iter().map(value).collect()
}

async fn records_come_back_as_they_went_in(fixture: &Fixture) {
    let topic = fixture.topic("t");
    let odd = Record { key: None, headers: Vec::new(), value: None };
    let mut sent = vec![record("k", "“quotes” \\ \u{1F600}"), odd, record("", "")];
    fixture.log().append(&topic, sent.clone()).await.unwrap();
    let mut consumer = fixture.log().consume(&topic, None, Start::Earliest).await.unwrap();
    let mut is: Vec<_> = read(&mut *consumer, 3).await.into_iter().map(|d| d.record).collect();
    sent.sort_by(|a, b| a.key.cmp(&b.key));
    is.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(is, sent);
}

async fn a_keys_records_stay_in_order_in_one_partition(fixture: &Fixture) {
    let (log, topic) = (fixture.log(), fixture.topic("t"));
    for start in (0..100).step_by(20) {
        log.append(&topic, numbered(start..start + 20)).await.unwrap();
    }
    log.append(&fixture.topic("other"), numbered(0..3)).await.unwrap();
    let mut consumer = log.consume(&topic, None, Start::Earliest).await.unwrap();
    let records = read(&mut *consumer, 100).await;
    let (mut partitions, mut offsets) = (BTreeMap::new(), BTreeMap::<i32, i64>::new());
    for delivered in &records {
        let partition = partitions.entry(delivered.record.key.clone()).or_insert(delivered.partition);
        assert_eq!(*partition, delivered.partition);
        let expected = offsets.entry(delivered.partition).or_default();
        assert_eq!(*expected, delivered.offset, "offsets of a partition have no gaps");
        *expected += 1;
    }
    for partition in offsets.keys() {
        assert!(records.iter().filter(|d| d.partition == *partition).is_sorted_by_key(value));
    }
    let watermarks = consumer.watermarks().await.unwrap().into_iter().filter(|(_, range)| !range.is_empty());
    assert!(watermarks.eq(offsets.into_iter().map(|(partition, end)| (partition, 0..end))));
}

async fn a_group_goes_on_behind_what_it_committed(fixture: &Fixture) {
    let (log, topic, group) = (fixture.log(), fixture.topic("t"), fixture.group("g"));
    log.append(&topic, numbered(0..50)).await.unwrap();
    let mut consumer = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let first = read(&mut *consumer, 50).await;
    // One partition is stuck at its first record. The others are finished as far as the first 30 records.
    let stuck = first[0].partition;
    let mut finished: PartitionOffsets = first.iter().map(|d| (d.partition, 0)).collect();
    finished.extend(next(&first[..30]));
    finished.insert(stuck, 0);
    consumer.commit(&finished).await.unwrap();
    drop(consumer);
    let mut again = fixture.log().consume(&topic, Some(&group), Start::Latest).await.unwrap();
    assert_eq!(again.committed().await.unwrap(), finished);
    let expected: BTreeSet<_> =
        first.iter().filter(|d| d.offset >= finished[&d.partition]).map(value).collect();
    let is = read(&mut *again, expected.len()).await;
    assert_eq!(values(&is), expected);
    again.commit(&next(&is)).await.unwrap();
    drop(again);
    log.append(&topic, numbered(50..51)).await.unwrap();
    let mut last = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    assert_eq!(values(&read(&mut *last, 1).await), [50].into());
    let mut stranger = log.consume(&topic, Some(&fixture.group("h")), Start::Earliest).await.unwrap();
    assert_eq!(read(&mut *stranger, 51).await.len(), 51);
}

async fn a_reader_starts_where_it_is_told(fixture: &Fixture) {
    let (log, topic) = (fixture.log(), fixture.topic("t"));
    log.append(&topic, numbered(0..5)).await.unwrap();
    let mut earliest = log.consume(&topic, None, Start::Earliest).await.unwrap();
    let before = read(&mut *earliest, 5).await.iter().map(|d| d.time_ms).max().unwrap();
    while chrono::Utc::now().timestamp_millis() <= before {
        tokio::task::yield_now().await;
    }
    log.append(&topic, numbered(5..9)).await.unwrap();
    for group in [None, Some(fixture.group("g"))] {
        for (start, first) in [(Start::Time(before + 1), 5), (Start::Time(0), 0), (Start::Earliest, 0)] {
            let mut consumer = log.consume(&topic, group.as_deref(), start).await.unwrap();
            assert_eq!(values(&read(&mut *consumer, 9 - first).await), (first..9).collect(), "{start:?}");
        }
    }
    for start in [Start::Latest, Start::Time(i64::MAX)] {
        let mut consumer = log.consume(&topic, None, start).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(50), consumer.poll(1)).await;
        assert!(waiting.is_err(), "{start:?} has nothing to read yet");
        log.append(&topic, numbered(9..10)).await.unwrap();
        assert_eq!(values(&read(&mut *consumer, 1).await), [9].into(), "{start:?}");
    }
}

async fn what_is_there_now_is_read_to_the_end_and_no_further(fixture: &Fixture) {
    let (log, topic) = (fixture.log(), fixture.topic("t"));
    let mut consumer = log.consume(&topic, None, Start::Earliest).await.unwrap();
    assert_eq!(read_now(&mut *consumer).await, []);
    log.append(&topic, numbered(0..100)).await.unwrap();
    let mut consumer = log.consume(&topic, None, Start::Earliest).await.unwrap();
    assert_eq!(values(&read_now(&mut *consumer).await), (0..100).collect());
    log.append(&topic, numbered(100..101)).await.unwrap();
    assert_eq!(values(&read(&mut *consumer, 1).await), [100].into());
}

async fn a_consumer_without_room_loses_nothing(fixture: &Fixture) {
    let (log, topic) = (fixture.log(), fixture.topic("t"));
    log.append(&topic, numbered(0..100)).await.unwrap();
    let mut consumer = log.consume(&topic, Some(&fixture.group("g")), Start::Earliest).await.unwrap();
    let mut is = read(&mut *consumer, 1).await;
    for turn in 0..5 {
        log.append(&topic, numbered(100 + turn..101 + turn)).await.unwrap();
        consumer.pause();
        let paused = tokio::time::timeout(Duration::from_millis(100), consumer.poll(7)).await;
        assert!(paused.is_err(), "nothing is revoked");
        consumer.resume();
        is.extend(read(&mut *consumer, 10).await);
    }
    is.extend(read(&mut *consumer, 105 - is.len()).await);
    assert_eq!((values(&is), is.len()), ((0..105).collect(), 105));
}

async fn what_many_append_at_once_reaches_a_waiting_reader_once(fixture: &Fixture) {
    let topic = fixture.topic("t");
    let mut consumer =
        fixture.log().consume(&topic, Some(&fixture.group("g")), Start::Earliest).await.unwrap();
    let appenders: Vec<_> = (0..5)
        .map(|n| {
            let (log, topic) = (fixture.log(), topic.clone());
            tokio::spawn(async move {
                for turn in 0..20 {
                    let start = n * 100 + turn * 5;
                    log.append(&topic, numbered(start..start + 5)).await.unwrap();
                }
            })
        })
        .collect();
    let mut values: Vec<_> = read(&mut *consumer, 500).await.iter().map(value).collect();
    for appender in appenders {
        appender.await.unwrap();
    }
    values.sort_unstable();
    assert_eq!(values, (0..500).collect::<Vec<_>>());
}

async fn asking_where_a_group_stands_neither_reads_nor_joins(fixture: &Fixture) {
    let (log, topic, group) = (fixture.log(), fixture.topic("t"), fixture.group("g"));
    log.append(&topic, numbered(0..50)).await.unwrap();
    let mut consumer = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let mut positions = fixture.log().positions(&topic, &group).await.unwrap();
    assert_eq!(positions.committed().await.unwrap(), PartitionOffsets::default());
    let is = read(&mut *consumer, 50).await;
    consumer.commit(&next(&is)).await.unwrap();
    assert_eq!(positions.committed().await.unwrap(), next(&is));
    let ends = positions.watermarks().await.unwrap().into_iter().filter(|(_, range)| !range.is_empty());
    assert!(ends.map(|(partition, range)| (partition, range.end)).eq(next(&is)));
    // The reader still owns every partition: querying positions does not join the group, so nothing is revoked.
    let waiting = timeout(Duration::from_millis(500), consumer.poll(7)).await;
    assert!(waiting.is_err(), "{waiting:?}");
}

async fn a_poll_that_was_given_up_loses_nothing(fixture: &Fixture) {
    let (log, topic) = (fixture.log(), fixture.topic("t"));
    log.append(&topic, numbered(0..200)).await.unwrap();
    let mut consumer = log.consume(&topic, Some(&fixture.group("g")), Start::Time(0)).await.unwrap();
    let mut values = Vec::new();
    for micros in 0.. {
        if values.len() >= 200 {
            break;
        }
        let poll = tokio::time::timeout(Duration::from_micros(micros * 10 % 9_000), consumer.poll(7)).await;
        values.extend(poll.into_iter().flat_map(|polled| records(polled.unwrap())).map(|d| value(&d)));
    }
    values.sort_unstable();
    assert_eq!(values, (0..200).collect::<Vec<_>>());
}

async fn calls_that_are_given_up_leave_nothing_behind(fixture: &Fixture) {
    let (topic, group) = (fixture.topic("t"), fixture.group("g"));
    let log = fixture.log();
    for patience in [0, 1, 5, 20, 100].map(Duration::from_millis) {
        for n in 0..10 {
            // Every fifth round opens a separate log, as a new process would.
            let log = if n % 5 == 0 { fixture.log() } else { log.clone() };
            let _ = timeout(patience, log.ready()).await;
            let _ = timeout(patience, log.create(&topic)).await;
            let _ = timeout(patience, log.append(&topic, numbered(0..3))).await;
            if let Ok(Ok(mut consumer)) =
                timeout(patience, log.consume(&topic, Some(&group), Start::Earliest)).await
            {
                let _ = timeout(patience, consumer.poll(1)).await;
                let _ = timeout(patience, consumer.committed()).await;
                let _ = timeout(patience, consumer.watermarks()).await;
            }
        }
    }
    log.append(&topic, vec![record("k", "7777")]).await.unwrap();
    let mut consumer = log.consume(&topic, Some(&group), Start::Earliest).await.unwrap();
    let last = timeout(Duration::from_secs(60), async {
        while !read(&mut *consumer, 1).await.iter().any(|delivered| value(delivered) == 7_777) {}
    });
    last.await.unwrap();
}

/// Runs all cases against one implementation.
macro_rules! suite {
    ($name:ident, $fixture:expr) => {
        suite!($name, $fixture, [
            records_come_back_as_they_went_in,
            a_keys_records_stay_in_order_in_one_partition,
            a_group_goes_on_behind_what_it_committed,
            a_reader_starts_where_it_is_told,
            what_is_there_now_is_read_to_the_end_and_no_further,
            a_consumer_without_room_loses_nothing,
            asking_where_a_group_stands_neither_reads_nor_joins,
            what_many_append_at_once_reaches_a_waiting_reader_once,
            a_poll_that_was_given_up_loses_nothing,
            calls_that_are_given_up_leave_nothing_behind,
        ]);
    };
    ($name:ident, $fixture:expr, [$($case:ident),* $(,)?]) => {
        mod $name {
            use super::*;

            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $case() {
                    let fixture = $fixture.await;
                    super::$case(&fixture).await;
                    fixture.clean().await;
                }
            )*
        }
    };
}

suite!(on_sqlite, Fixture::sqlite());
suite!(in_memory, Fixture::memory());

#[cfg(feature = "services")]
suite!(on_kafka, Fixture::kafka());

/// `n` hours after a fixed time, in milliseconds since 1970 UTC.
fn hour(n: i64) -> i64 {
    (1_700_000_000 + n * 3_600) * 1_000
}

#[tokio::test]
async fn a_clock_that_was_ahead_and_set_back_hides_no_record_from_a_replay() {
    let dir = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(0));
    let open = || {
        let now = now.clone();
        SqliteLog::with_clock(dir.path().join("log.db"), move || now.load(SeqCst))
    };
    let log = open();
    // Appends at the true hours 0, 1, 2, 3 and 5. At 1 the clock is three hours ahead; from 2 on it is correct again.
    for (n, clock) in [0, 4, 2, 3, 5].into_iter().enumerate() {
        now.store(hour(clock), SeqCst);
        log.append("t", numbered(n..n + 1)).await.unwrap();
    }
    let mut all = log.consume("t", None, Start::Earliest).await.unwrap();
    let times: Vec<_> = read(&mut *all, 5).await.iter().map(|delivered| delivered.time_ms).collect();
    assert_eq!(times, [hour(0), hour(4), hour(4), hour(4), hour(5)]);
    // Another process with another clock follows the same rule, and each topic has its own newest time.
    now.store(hour(2), SeqCst);
    let other = open();
    other.append("t", numbered(5..6)).await.unwrap();
    other.append("other", numbered(0..1)).await.unwrap();
    let mut all = other.consume("other", None, Start::Earliest).await.unwrap();
    assert_eq!(read(&mut *all, 1).await[0].time_ms, hour(2));
    for (from, first) in [
        (hour(0), 0),
        // From hours 1 to 4, reads also return records appended earlier, but skip none because of its future timestamp.
        (hour(0) + 1, 1),
        (hour(2), 1),
        (hour(3), 1),
        (hour(4), 1),
        (hour(4) + 1, 4),
        (hour(5), 4),
    ] {
        for group in [None, Some(format!("from {from}"))] {
            let mut consumer = log.consume("t", group.as_deref(), Start::Time(from)).await.unwrap();
            assert_eq!(values(&read_now(&mut *consumer).await), (first..6).collect(), "{from}");
        }
    }
}

#[tokio::test]
async fn a_reader_is_woken_and_an_append_fails_when_files_go_away() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("data");
    let log = SqliteLog::new(folder.join("log.db"));
    let mut consumer = log.consume("t", None, Start::Earliest).await.unwrap();
    for n in 0..3 {
        std::fs::remove_file(folder.join("log.db-notify")).unwrap();
        log.append("t", numbered(n..n + 1)).await.unwrap();
        assert_eq!(values(&read(&mut *consumer, 1).await), BTreeSet::from([n]));
    }
    std::fs::rename(&folder, dir.path().join("elsewhere")).unwrap();
    log.append("t", numbered(3..4)).await.expect_err("nobody can find it there again");
}
