//! Tests of the handler with an in-memory dataset.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use backend_master::{Dataset, Stored};
use bytes::Bytes;
use domain::{Failure, FailureKind, Store as _, User};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use store::routes;
use uuid::Uuid;

#[derive(Default)]
struct Memory {
    names: Mutex<HashMap<Uuid, String>>,
    failure: Mutex<Option<FailureKind>>,
}

#[async_trait]
impl domain::Store for Memory {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }
}

#[async_trait]
impl Dataset for Memory {
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, Failure> {
        if let Some(kind) = *self.failure.lock().unwrap() {
            return Err(Failure::new(kind, "the dataset is away"));
        }
        let mut names = self.names.lock().unwrap();
        let store = |user: User| match names.get(&user.id) {
            Some(kept) if *kept == user.name => Stored::Duplicate,
            Some(kept) => Stored::Conflict { kept: kept.clone() },
            None => {
                names.insert(user.id, user.name);
                Stored::New
            }
        };
        Ok(users.into_iter().map(store).collect())
    }
}

async fn post(dataset: &Arc<Memory>, body: &Value) -> (StatusCode, HeaderMap, String) {
    let media_type =
        if body.is_array() { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
    let request = http::Request::post("/").header("content-type", media_type);
    let request = request.body(Bytes::from(body.to_string())).unwrap();
    let (head, body) = routes(dataset.clone()).call(request).await.into_parts();
    let problem: Value = serde_json::from_slice(&body).unwrap_or_default();
    (head.status, head.headers, problem["detail"].as_str().unwrap_or_default().to_owned())
}

fn event(id: Uuid, name: &str) -> Value {
    json!({
        "specversion": "1.0", "id": Uuid::new_v4(), "source": "/test", "type": "user",
        "data": { "id": id, "name": name },
    })
}

#[tokio::test]
async fn the_first_name_of_a_user_stays_and_another_one_is_a_422() {
    let (dataset, id) = (Arc::new(Memory::default()), Uuid::new_v4());
    assert_eq!(post(&dataset, &event(id, "first")).await.0, 204);
    assert_eq!(post(&dataset, &event(id, "first")).await.0, 204);
    let (status, _, detail) = post(&dataset, &event(id, "second")).await;
    assert_eq!(status, 422);
    assert!(detail.contains("\"first\"") && detail.contains("\"second\""), "{detail}");
    assert_eq!(dataset.names.lock().unwrap()[&id], "first");
}

#[tokio::test]
async fn a_conflict_in_a_batch_is_named_by_its_index_and_the_other_users_are_stored() {
    let (dataset, id, other) = (Arc::new(Memory::default()), Uuid::new_v4(), Uuid::new_v4());
    let (status, _, detail) =
        post(&dataset, &json!([event(id, "first"), event(id, "second"), event(other, "x")])).await;
    assert_eq!(status, 422);
    assert!(detail.starts_with("event 1 of the batch"), "{detail}");
    assert_eq!(dataset.names.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn what_a_failure_of_the_dataset_means_is_in_the_status() {
    let dataset = Arc::new(Memory::default());
    for (kind, status, retry) in [
        (FailureKind::Unavailable, 503, true),
        (FailureKind::Overloaded, 429, true),
        (FailureKind::TooLarge, 413, false),
    ] {
        *dataset.failure.lock().unwrap() = Some(kind);
        let (answered, headers, detail) = post(&dataset, &event(Uuid::new_v4(), "a")).await;
        assert_eq!((answered.as_u16(), headers.contains_key("retry-after")), (status, retry));
        assert_eq!(detail, "the dataset is away");
    }
    assert!(dataset.ready().await.is_ok());
}
