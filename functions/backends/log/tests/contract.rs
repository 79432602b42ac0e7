//! What every implementation of `Log` promises, run against each of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use backend_log::{Consumer, Delivered, Log, SqliteLog, Start};
use bytes::Bytes;
use shared::record::Record;
use tempfile::TempDir;

fn sqlite(dir: &TempDir) -> Arc<dyn Log> {
    Arc::new(SqliteLog::new(dir.path().join("log.db")))
}

fn record(key: &str, value: &str) -> Record {
    Record {
        key: Some(Bytes::from(key.to_owned())),
        headers: vec![
            ("ce_id".to_owned(), Bytes::from(value.to_owned())),
            ("raw".to_owned(), Bytes::from_static(&[0, 255, 1])),
        ],
        value: Some(Bytes::from(value.to_owned())),
    }
}

fn numbered(range: std::ops::Range<usize>) -> Vec<Record> {
    range.map(|n| record(&format!("key{}", n % 10), &n.to_string())).collect()
}

fn value(delivered: &Delivered) -> usize {
    std::str::from_utf8(delivered.record.value.as_ref().unwrap()).unwrap().parse().unwrap()
}

async fn read(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivered> {
    let mut all = Vec::new();
    while all.len() < count {
        let batch = tokio::time::timeout(Duration::from_secs(20), consumer.poll(7)).await.unwrap().unwrap();
        all.extend(batch.records);
    }
    all
}

fn next(records: &[Delivered]) -> BTreeMap<i32, i64> {
    records.iter().map(|r| (r.partition, r.offset + 1)).collect()
}

#[tokio::test]
async fn records_come_back_as_they_went_in() {
    let dir = tempfile::tempdir().unwrap();
    let odd = Record { key: None, headers: Vec::new(), value: None };
    let sent = vec![record("k", "“quotes” \\ \u{1F600}"), odd, record("", "")];
    sqlite(&dir).append("t", sent.clone()).await.unwrap();
    let mut consumer = sqlite(&dir).consume("t", None, Start::Earliest).await.unwrap();
    let is: Vec<_> = read(&mut *consumer, 3).await.into_iter().map(|d| d.record).collect();
    assert_eq!(is, sent);
}

#[tokio::test]
async fn a_keys_records_stay_in_order_in_one_partition() {
    let dir = tempfile::tempdir().unwrap();
    let log = sqlite(&dir);
    for start in (0..100).step_by(20) {
        log.append("t", numbered(start..start + 20)).await.unwrap();
    }
    log.append("other", numbered(0..3)).await.unwrap();
    let mut consumer = log.consume("t", None, Start::Earliest).await.unwrap();
    let records = read(&mut *consumer, 100).await;
    let (mut partitions, mut offsets) = (BTreeMap::new(), BTreeMap::<i32, i64>::new());
    for delivered in &records {
        let partition = partitions.entry(delivered.record.key.clone()).or_insert(delivered.partition);
        assert_eq!(*partition, delivered.partition);
        let expected = offsets.entry(delivered.partition).or_default();
        assert_eq!(*expected, delivered.offset, "offsets of a partition have no gaps");
        *expected += 1;
    }
    assert!(records.is_sorted_by_key(value));
    assert_eq!(consumer.ends().await.unwrap(), offsets);
}

#[tokio::test]
async fn a_group_goes_on_behind_what_it_committed() {
    let dir = tempfile::tempdir().unwrap();
    let log = sqlite(&dir);
    log.append("t", numbered(0..50)).await.unwrap();
    let mut consumer = log.consume("t", Some("g"), Start::Earliest).await.unwrap();
    let first = read(&mut *consumer, 50).await;
    // One partition is stuck at its first record; the others are finished as far as 30.
    let stuck = first[0].partition;
    let mut finished = next(&first[..30]);
    finished.insert(stuck, 0);
    consumer.commit(&finished).await.unwrap();
    drop(consumer);
    let mut again = sqlite(&dir).consume("t", Some("g"), Start::Latest).await.unwrap();
    let expected: BTreeSet<_> =
        first.iter().filter(|d| value(d) >= 30 || d.partition == stuck).map(value).collect();
    let is = read(&mut *again, expected.len()).await;
    assert_eq!(is.iter().map(value).collect::<BTreeSet<_>>(), expected);
    again.commit(&next(&is)).await.unwrap();
    log.append("t", numbered(50..51)).await.unwrap();
    let mut last = log.consume("t", Some("g"), Start::Earliest).await.unwrap();
    assert_eq!(read(&mut *last, 1).await.iter().map(value).collect::<Vec<_>>(), [50]);
    let mut stranger = log.consume("t", Some("h"), Start::Earliest).await.unwrap();
    assert_eq!(read(&mut *stranger, 51).await.len(), 51);
}

#[tokio::test]
async fn a_reader_starts_where_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let log = sqlite(&dir);
    log.append("t", numbered(0..5)).await.unwrap();
    let mut earliest = log.consume("t", None, Start::Earliest).await.unwrap();
    let before = read(&mut *earliest, 5).await[4].time_ms;
    while chrono::Utc::now().timestamp_millis() <= before {
        tokio::task::yield_now().await;
    }
    log.append("t", numbered(5..9)).await.unwrap();
    for (start, first) in [(Start::Earliest, 0), (Start::Time(0), 0), (Start::Time(before + 1), 5)] {
        let mut consumer = log.consume("t", None, start).await.unwrap();
        assert_eq!(value(&read(&mut *consumer, 1).await[0]), first, "{start:?}");
    }
    for start in [Start::Latest, Start::Time(i64::MAX)] {
        let mut consumer = log.consume("t", None, start).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(50), consumer.poll(1)).await;
        assert!(waiting.is_err(), "{start:?} has nothing to read yet");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_append_at_once_reaches_a_waiting_reader_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut consumer = sqlite(&dir).consume("t", Some("g"), Start::Earliest).await.unwrap();
    let appenders: Vec<_> = (0..5)
        .map(|n| {
            let log = sqlite(&dir);
            tokio::spawn(async move {
                for turn in 0..20 {
                    let start = n * 100 + turn * 5;
                    log.append("t", numbered(start..start + 5)).await.unwrap();
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

#[tokio::test]
async fn a_poll_that_was_given_up_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = sqlite(&dir);
    log.append("t", numbered(0..200)).await.unwrap();
    let mut consumer = log.consume("t", None, Start::Earliest).await.unwrap();
    let mut values = Vec::new();
    for micros in 0.. {
        if values.len() == 200 {
            break;
        }
        let poll = tokio::time::timeout(Duration::from_micros(micros * 10 % 3_000), consumer.poll(7)).await;
        values.extend(poll.into_iter().flat_map(|batch| batch.unwrap().records).map(|d| value(&d)));
    }
    assert_eq!(values, (0..200).collect::<Vec<_>>());
}
