//! A new user's first session: two users are posted one after the other, and both layers process them.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::app::App;

#[tokio::test]
async fn two_users_are_seen_by_both_layers() {
    let mut app = App::start().await;
    assert_eq!(app.analytics().await, json!({ "longestNameUser": null, "userCount": [] }));

    let first = Uuid::new_v4();
    app.post_user(first, "user1").await;
    app.eventually("the first user is counted", async |app| app.user_count().await == 1).await;
    app.settle().await;
    let analytics = app.analytics().await;
    assert_eq!(analytics["longestNameUser"], json!({ "id": first, "name": "user1" }));
    assert_eq!(counts(&analytics), [1]);

    let second = Uuid::new_v4();
    app.post_user(second, "user12345").await;
    app.eventually("the second user is counted", async |app| app.user_count().await == 2).await;
    app.settle().await;
    let analytics = app.analytics().await;
    assert_eq!(analytics["longestNameUser"], json!({ "id": second, "name": "user12345" }));
    assert_eq!(counts(&analytics), [1, 2]);
    exact_shape(&analytics);
    assert_eq!(app.get("/function/count/user/count").await, json!({ "userCount": 2 }));
}

#[tokio::test]
async fn the_longest_name_has_most_characters_not_bytes() {
    let mut app = App::start().await;
    let (ascii, tie) = (Uuid::new_v4(), Uuid::new_v4());
    app.post_user(Uuid::new_v4(), "😀😀😀").await;
    app.post_user(ascii, "abcd").await;
    app.settle().await;
    app.post_user(tie, "数えて四").await;
    app.settle().await;
    assert_eq!(app.analytics().await["longestNameUser"]["id"], json!(ascii));
    assert_eq!(app.tick("?full=true").await["longestNameUser"]["id"], json!(ascii));
}

#[tokio::test]
async fn pages_lead_back_through_the_whole_history() {
    let mut app = App::start().await;
    for n in 1..=5 {
        app.post_user(Uuid::new_v4(), "someone").await;
        app.eventually("it is counted", async |app| app.user_count().await == n).await;
    }
    let mut pages = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let path = format!("/service-analytics/analytics?{query}");
        let answer = app.send(hyper::Request::get(path).body(bytes::Bytes::new()).unwrap()).await.unwrap();
        let link = answer.headers().get("link").map(|l| l.to_str().unwrap().to_owned());
        let page = counts(&serde_json::from_slice(answer.body()).unwrap());
        pages.splice(0..0, page);
        let Some(link) = link else { break };
        query = link.strip_prefix("<?").unwrap().strip_suffix(">; rel=\"prev\"").unwrap().to_owned();
    }
    assert_eq!(pages, [1, 2, 3, 4, 5]);
}

#[tokio::test]
async fn every_documented_way_to_a_function_leads_there() {
    let mut app = App::start().await;
    for (host, path) in [
        ("127.0.0.1", "/service-analytics/analytics"),
        ("127.0.0.1", "/function/analytics/analytics"),
        ("analytics.default.localhost", "/analytics"),
        ("analytics.default.localhost:8080", "/analytics?limit=3"),
    ] {
        let request = hyper::Request::get(path).header("host", host).body(bytes::Bytes::new()).unwrap();
        let answer = app.send(request).await.unwrap();
        assert_eq!(answer.status(), 200, "{host}{path}");
        assert_eq!(counts(&serde_json::from_slice(answer.body()).unwrap()), [0; 0]);
    }
    let folder =
        app.send(hyper::Request::get("/service-analytics").body(bytes::Bytes::new()).unwrap()).await.unwrap();
    assert_eq!(
        (folder.status().as_u16(), &folder.headers()["location"]),
        (308, &"/service-analytics/".parse().unwrap())
    );
    for path in ["/", "/service-analytics/"] {
        let answer = app.send(hyper::Request::get(path).body(bytes::Bytes::new()).unwrap()).await.unwrap();
        let kind = answer.headers()["content-type"].to_str().unwrap();
        assert!(answer.status() == 200 && kind.starts_with("text/html"), "{path}: {}", answer.status());
    }
    for function in ["ingest", "count", "store", "batch", "analytics"] {
        for probe in ["healthz", "_/health", "health/liveness"] {
            let path = format!("/function/{function}/{probe}");
            let answer =
                app.send(hyper::Request::get(&path).body(bytes::Bytes::new()).unwrap()).await.unwrap();
            assert_eq!((answer.status().as_u16(), &answer.body()[..]), (200, &b"ok"[..]), "{path}");
        }
        for probe in ["readyz", "_/ready", "health/readiness"] {
            let path = format!("/function/{function}/{probe}");
            assert_eq!(app.probe_until_ready(&path).await, "ok", "{path}");
        }
    }
}

/// The counts in a response of analytics, oldest first.
pub fn counts(analytics: &Value) -> Vec<u64> {
    analytics["userCount"].as_array().unwrap().iter().map(|p| p["userCount"].as_u64().unwrap()).collect()
}

fn exact_shape(analytics: &Value) {
    assert_eq!(analytics.as_object().unwrap().len(), 2);
    for point in analytics["userCount"].as_array().unwrap() {
        assert_eq!(point.as_object().unwrap().len(), 3);
        let (id, time) = (point["id"].as_str().unwrap(), point["time"].as_str().unwrap());
        assert_eq!(Uuid::parse_str(id).unwrap().to_string(), id);
        assert!(time.len() == 20 && time.ends_with('Z'), "{time} is not UTC to the second");
        assert!(chrono::DateTime::parse_from_rfc3339(time).is_ok());
    }
}
