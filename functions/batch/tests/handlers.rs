//! Tests of the handler with an in-memory job.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backend_master::{BatchJob, Tick};
use batch::routes;
use bytes::Bytes;
use domain::{Failure, Store};
use http::StatusCode;
use serde_json::{Value, json};

/// Records the `full` flag of each run.
#[derive(Default)]
struct Memory(Mutex<Vec<bool>>);

#[async_trait]
impl Store for Memory {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl BatchJob for Memory {
    async fn tick(&self, full: bool) -> Result<Tick, Failure> {
        let mut runs = self.0.lock().unwrap();
        runs.push(full);
        match runs.len() {
            3 => Err(Failure::unavailable("the job is away")),
            _ => Ok(Tick { new_users: 2, users: 5, longest_name_user: None, full }),
        }
    }
}

async fn post(job: &Arc<Memory>, path: &str, headers: &[(&str, &str)]) -> (StatusCode, Value) {
    let request = headers
        .iter()
        .fold(http::Request::post(path), |request, (name, value)| request.header(*name, *value));
    let response = routes(job.clone()).call(request.body(Bytes::new()).unwrap()).await;
    (response.status(), serde_json::from_slice(response.body()).unwrap_or_default())
}

const PING: [(&str, &str); 4] = [
    ("ce-specversion", "1.0"),
    ("ce-id", "1"),
    ("ce-source", "/ping"),
    ("ce-type", "dev.knative.sources.ping"),
];

#[tokio::test]
async fn each_event_is_one_run_and_full_is_asked_for_in_the_query() {
    let job = Arc::new(Memory::default());
    let run = json!({ "newUsers": 2, "users": 5, "longestNameUser": null, "full": false });
    assert_eq!(post(&job, "/", &PING).await, (StatusCode::OK, run));
    assert_eq!(post(&job, "/?full=true", &PING).await.1["full"], true);
    assert_eq!(post(&job, "/", &PING).await.0, 503);
    assert_eq!(*job.0.lock().unwrap(), [false, true, false]);
}

#[tokio::test]
async fn an_unknown_parameter_or_no_event_is_refused_without_a_run() {
    let job = Arc::new(Memory::default());
    assert_eq!(post(&job, "/?full=yes", &PING).await.0, 400);
    assert_eq!(post(&job, "/", &[("ce-id", "1")]).await.0, 400);
    assert!(job.0.lock().unwrap().is_empty());
}
