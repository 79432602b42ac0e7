//! A broker that stops responding for a while.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[path = "../../../../tests/not_run.rs"]
mod not_run;

use std::{
    process::Command,
    time::{Duration, Instant},
};

use backend_log::{KafkaLog, Log, LogError, Start};
use bytes::Bytes;
use domain::{Failure, FailureKind};
use event::Record;
use rdkafka::{
    ClientConfig,
    admin::{AdminClient, AdminOptions},
    client::DefaultClientContext,
};
use uuid::Uuid;

use self::not_run::{Lacks, not_run};

/// Longer than every timeout under test plus the delay of a loaded machine: a call that takes longer waits for the
/// broker.
const HANGS: Duration = Duration::from_secs(20);

fn one(value: &'static str) -> Vec<Record> {
    vec![Record { key: None, headers: Vec::new(), value: Some(Bytes::from_static(value.as_bytes())) }]
}

/// Pauses a broker's process (SIGSTOP) until dropped (SIGCONT).
struct Paused<'a>(&'a str);

impl<'a> Paused<'a> {
    fn new(pid: &'a str) -> Self {
        signal("-STOP", pid);
        Self(pid)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        signal("-CONT", self.0);
    }
}

fn signal(signal: &str, pid: &str) {
    assert!(Command::new("kill").args([signal, pid]).status().unwrap().success());
}

/// The values of all records.
async fn all(log: &KafkaLog, topic: &str) -> Result<Vec<Bytes>, LogError> {
    let mut consumer = log.consume(topic, None, Start::Earliest).await?;
    let mut values = Vec::new();
    loop {
        let records = consumer.poll_now(10).await?;
        if records.is_empty() {
            return Ok(values);
        }
        values.extend(records.into_iter().filter_map(|d| d.record.value));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_broker_is_an_error_in_time_and_used_again_within_seconds() {
    let Ok(pid) = std::env::var("KAFKA_PID") else {
        return not_run(
            Lacks::Services,
            "KAFKA_PID must be the process of the broker that KAFKA_BROKER names",
        );
    };
    let broker = std::env::var("KAFKA_BROKER").expect("KAFKA_BROKER names a broker like 127.0.0.1:9092");
    let topic = format!("test-{}", Uuid::new_v4().simple());
    let log = KafkaLog::new(&format!("kafka://{broker}/{topic}")).unwrap();
    log.create(&topic).await.unwrap();
    log.append(&topic, one("before")).await.unwrap();
    let paused = Paused::new(&pid);
    let started = Instant::now();
    let error = Failure::from(log.append(&topic, one("meanwhile")).await.unwrap_err());
    assert_eq!(error.kind, FailureKind::Unavailable, "{error}");
    assert!(started.elapsed() < HANGS, "{:?}", started.elapsed());
    let started = Instant::now();
    assert!(log.ready().await.is_err());
    assert!(started.elapsed() < HANGS, "{:?}", started.elapsed());
    drop(paused);
    let back = Instant::now();
    while log.append(&topic, one("after")).await.is_err() {
        assert!(back.elapsed() < HANGS, "the broker is back and not used");
    }
    println!("used again after {:?}", back.elapsed());
    // The controller may have taken the partitions from the broker in the meantime. Until the broker knows that, it
    // rejects readers.
    let values = loop {
        match all(&log, &topic).await {
            Ok(values) => break values,
            Err(error) => assert!(back.elapsed() < HANGS, "nothing can be read: {error}"),
        }
    };
    for value in ["before", "after"] {
        assert_eq!(values.iter().filter(|v| **v == value).count(), 1, "{value} of {values:?}");
    }
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &broker).create().unwrap();
    admin.delete_topics(&[&topic], &AdminOptions::new()).await.unwrap();
}
