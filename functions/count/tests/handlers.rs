//! Tests of the handlers with an in-memory counter.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use backend_views::Counter;
use bytes::Bytes;
use count::{Count, routes};
use domain::{Failure, Store};
use framework::router::Router;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

/// A counter that can be made unavailable.
#[derive(Default)]
struct Memory {
    ids: Mutex<HashSet<Uuid>>,
    away: Mutex<bool>,
}

impl Memory {
    fn reach(&self) -> Result<(), Failure> {
        match *self.away.lock().unwrap() {
            true => Err(Failure::unavailable("the counter is away")),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Memory {
    async fn ready(&self) -> Result<(), Failure> {
        self.reach()
    }
}

#[async_trait]
impl Counter for Memory {
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure> {
        self.reach()?;
        self.ids.lock().unwrap().extend(ids);
        Ok(())
    }

    async fn total(&self) -> Result<u64, Failure> {
        self.reach()?;
        Ok(self.ids.lock().unwrap().len() as u64)
    }
}

/// Sends a request. Returns the status and the JSON body, or null if the body is not JSON.
async fn send(router: &Router<Count>, method: Method, path: &str, body: &Value) -> (StatusCode, Value) {
    let media_type =
        if body.is_array() { "application/cloudevents-batch+json" } else { "application/cloudevents+json" };
    let request = http::Request::builder().method(method).uri(path).header("content-type", media_type);
    let response = router.call(request.body(Bytes::from(body.to_string())).unwrap()).await;
    (response.status(), serde_json::from_slice(response.body()).unwrap_or_default())
}

fn event(user: Uuid) -> Value {
    json!({
        "specversion": "1.0", "id": Uuid::new_v4(), "source": "/test", "type": "user",
        "data": { "id": user, "name": "a" },
    })
}

#[tokio::test]
async fn users_of_events_and_batches_are_counted_once() {
    let router = routes(Arc::new(Memory::default()));
    let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(send(&router, Method::POST, "/", &event(a)).await.0, 204);
    assert_eq!(send(&router, Method::POST, "/", &json!([event(a), event(b), event(b)])).await.0, 204);
    assert_eq!(send(&router, Method::POST, "/", &json!([])).await.0, 204);
    let total = send(&router, Method::GET, "/user/count", &Value::Null).await;
    assert_eq!(total, (StatusCode::OK, json!({ "userCount": 2 })));
}

#[tokio::test]
async fn an_invalid_event_of_a_batch_is_named_and_none_is_counted() {
    let counter = Arc::new(Memory::default());
    let router = routes(counter.clone());
    let mut bad = event(Uuid::new_v4());
    bad["data"]["name"] = json!("");
    let (status, problem) = send(&router, Method::POST, "/", &json!([event(Uuid::new_v4()), bad])).await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("event 1 of the batch"), "{problem}");
    assert!(counter.ids.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_counter_that_is_away_is_a_503_until_it_is_back() {
    let counter = Arc::new(Memory::default());
    let router = routes(counter.clone());
    *counter.away.lock().unwrap() = true;
    for (method, path) in [(Method::POST, "/"), (Method::GET, "/user/count"), (Method::GET, "/readyz")] {
        let (status, problem) = send(&router, method, path, &event(Uuid::new_v4())).await;
        assert_eq!(
            (status, &problem["detail"]),
            (StatusCode::SERVICE_UNAVAILABLE, &json!("the counter is away"))
        );
    }
    *counter.away.lock().unwrap() = false;
    assert_eq!(send(&router, Method::POST, "/", &event(Uuid::new_v4())).await.0, 204);
}
