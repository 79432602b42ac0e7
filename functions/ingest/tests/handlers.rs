//! Tests of the handlers with an in-memory log.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backend_log::Appender;
use bytes::Bytes;
use domain::{Failure, FailureKind, Store};
use event::Record;
use http::StatusCode;
use ingest::routes;
use serde_json::{Value, json};
use uuid::Uuid;

/// A log that can be made to fail. It rejects a user with the name `large` as too large.
#[derive(Default)]
struct Memory {
    records: Mutex<Vec<(String, Record)>>,
    failure: Mutex<Option<FailureKind>>,
}

#[async_trait]
impl Store for Memory {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl Appender for Memory {
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), Failure> {
        let is_large = |record: &Record| user(record)["name"] == "large";
        if let Some(kind) = *self.failure.lock().unwrap() {
            return Err(Failure::new(kind, "the log is away"));
        }
        if records.iter().any(is_large) {
            return Err(Failure::new(FailureKind::TooLarge, "a record is too large"));
        }
        self.records.lock().unwrap().extend(records.into_iter().map(|record| (topic.to_owned(), record)));
        Ok(())
    }
}

fn user(record: &Record) -> Value {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

fn event(name: &str) -> Value {
    let user = json!({ "id": Uuid::new_v4(), "name": name });
    json!({ "specversion": "1.0", "id": "1", "source": "/test", "type": "user", "data": user })
}

async fn post(log: &Arc<Memory>, path: &str, media_type: &str, body: &Value) -> (StatusCode, Value) {
    let request = http::Request::post(path).header("content-type", media_type);
    let request = request.body(Bytes::from(body.to_string())).unwrap();
    let response = routes(log.clone(), "user".to_owned()).call(request).await;
    (response.status(), serde_json::from_slice(response.body()).unwrap_or_default())
}

const BATCH: &str = "application/cloudevents-batch+json";

#[tokio::test]
async fn a_user_is_echoed_once_the_log_has_it_under_its_id() {
    let (log, id) = (Arc::new(Memory::default()), Uuid::new_v4());
    let body = json!({ "id": id, "name": "Zoë" });
    assert_eq!(post(&log, "/user", "application/json", &body).await, (StatusCode::CREATED, body.clone()));
    let records = log.records.lock().unwrap();
    let [(topic, record)] = records.as_slice() else { panic!("{records:?}") };
    assert_eq!((topic.as_str(), user(record)), ("user", body));
    assert_eq!(record.key.as_deref(), Some(id.to_string().as_bytes()));
}

#[tokio::test]
async fn events_of_a_batch_are_appended_together_or_none_is() {
    let log = Arc::new(Memory::default());
    assert_eq!(post(&log, "/", BATCH, &json!([event("a"), event("b")])).await.0, 202);
    assert_eq!(log.records.lock().unwrap().len(), 2);
    let (status, problem) = post(&log, "/", BATCH, &json!([event("c"), event("")])).await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("event 1 of the batch"), "{problem}");
    assert_eq!(log.records.lock().unwrap().len(), 2);
    assert_eq!(post(&log, "/user", "text/plain", &event("a")["data"]).await.0, 415);
}

#[tokio::test]
async fn a_record_that_is_too_large_does_not_fail_its_neighbours() {
    let log = Arc::new(Memory::default());
    let router = routes(log.clone(), "user".to_owned());
    // Sent concurrently, so that they share a commit.
    let send = async |name: &str| {
        let request = http::Request::post("/user").header("content-type", "application/json");
        let request = request.body(Bytes::from(event(name)["data"].to_string())).unwrap();
        router.call(request).await.status().as_u16()
    };
    assert_eq!(tokio::join!(send("a"), send("large"), send("b")), (201, 413, 201));
    let names: Vec<_> =
        log.records.lock().unwrap().iter().map(|(_, record)| user(record)["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
}

#[tokio::test]
async fn what_a_failure_of_the_log_means_is_in_the_status() {
    let log = Arc::new(Memory::default());
    for (kind, status) in
        [(FailureKind::Unavailable, 503), (FailureKind::Overloaded, 429), (FailureKind::TooLarge, 413)]
    {
        *log.failure.lock().unwrap() = Some(kind);
        let (answered, problem) = post(&log, "/", BATCH, &json!([event("a")])).await;
        assert_eq!((answered.as_u16(), &problem["detail"]), (status, &json!("the log is away")));
    }
}
