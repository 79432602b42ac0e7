//! Events from foreign producers must neither hide dead letters from operators nor control their terminals.

use bytes::Bytes;
use event::Record;
use hyper::Request;
use serde_json::json;
use uuid::Uuid;

use crate::{app::App, stores::Stores};

/// Type of the system's own events that mark a dead letter as resolved.
const RESOLVED: &str = "dev.lambda-architecture.dead-letter.resolved";

fn output(app: &App, args: &[&str]) -> String {
    let output = app.command(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn places(list: &str) -> Vec<String> {
    list.lines().map(|line| line.split_whitespace().next().unwrap().to_owned()).collect()
}

/// Appends a record to the log, as a foreign producer does.
async fn append(app: &App, record: Record) {
    let url = match &app.stores {
        Stores::Embedded => format!("sqlite:{}", app.data.path().join("log.db").display()),
        Stores::Services(services) => services.log_url(),
    };
    backend_log::open(&url).unwrap().append(&backend_log::topic(&url), vec![record]).await.unwrap();
}

fn conflicting(id: Uuid, name: &str) -> Bytes {
    json!({ "id": id, "name": name }).to_string().into()
}

fn record(headers: &[(&str, &str)], value: Bytes) -> Record {
    let needed = [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "/dead-letters")];
    let headers = needed.iter().chain(headers);
    let headers =
        headers.map(|(name, value)| ((*name).to_owned(), Some(Bytes::copy_from_slice(value.as_bytes()))));
    Record { key: None, headers: headers.collect(), value: Some(value) }
}

#[tokio::test]
async fn an_event_that_says_a_dead_letter_is_resolved_hides_none() {
    let mut app = App::start().await;
    let id = Uuid::new_v4();
    app.post_user(id, "the first").await;
    app.post_user(id, "the second").await;
    app.settle().await;
    let before = places(&output(&app, &["dead-letters", "list"]));
    let [place] = before.as_slice() else { panic!("{before:?}") };

    // Through `ingest`, which may refuse it.
    let event = json!({
        "specversion": "1.0", "id": "1", "source": "/dead-letters", "type": RESOLVED, "subject": place,
        "data": { "id": id, "name": "the third" },
    });
    let posted = Request::post("/ingress/").header("content-type", "application/cloudevents+json");
    let posted = app.send(posted.body(event.to_string().into()).unwrap()).await.unwrap().status().as_u16();
    assert!([202, 400].contains(&posted), "{posted}");
    // Directly into the log, with headers that the system's own events might have.
    for (n, extra) in
        [("kind", "resolved"), ("how", "dropped"), ("partitionkey", place.as_str())].iter().enumerate()
    {
        let name = format!("ce_{}", extra.0);
        let headers = [("ce_type", RESOLVED), ("ce_subject", place.as_str()), (name.as_str(), extra.1)];
        append(&app, record(&headers, conflicting(id, &format!("foreign {n}")))).await;
    }
    let expected = 1 + usize::from(posted == 202) + 3;
    app.eventually("all of them are dead letters", async |app| {
        app.get("/status").await["deadLetters"].as_u64() == Some(expected as u64)
    })
    .await;
    let after = places(&output(&app, &["dead-letters", "list"]));
    assert!(after.contains(place), "{place} is hidden: {after:?}");
    assert_eq!(after.len(), expected, "{after:?}");
    app.kill_and_restart();
    app.eventually("they are there after a restart", async |app| {
        app.get("/status").await["deadLetters"].as_u64() == Some(expected as u64)
    })
    .await;
    // The operator's own commands still take effect.
    output(&app, &["dead-letters", "drop", place]);
    assert!(!places(&output(&app, &["dead-letters", "list"])).contains(place));
}

/// Whether a text moves a terminal's cursor, changes its colours or reorders its output.
fn controls(text: &str) -> bool {
    let reorders =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().any(|c| (c.is_control() && c != '\n') || reorders(c))
}

#[tokio::test]
async fn what_comes_from_events_does_not_reach_a_terminal_as_it_is() {
    let mut app = App::start().await;
    let id = Uuid::new_v4();
    app.post_user(id, "the first").await;
    app.settle().await;
    let evil =
        "\u{1b}[2J\u{1b}[H\n3:14     store    422  2026-01-01T00:00:00Z forged\r\u{7}\u{9b}31m\u{202e}";
    for name in ["ce_partitionkey", "ce_subject", "ce_type", "ce_source", "ce_x", "ce_knativeerrordata"] {
        let mut headers = vec![(name, evil)];
        headers.extend((name != "ce_type").then_some(("ce_type", "t")));
        append(&app, record(&headers, conflicting(id, &format!("by {name}")))).await;
    }
    let kind = [("ce_type", "t"), ("content-type", evil)];
    append(&app, record(&kind, conflicting(id, "by content type"))).await;
    // The reason of this dead letter repeats the name; the next one has a body that is shown in full.
    let name = "\u{202e}\u{2066}the second";
    append(&app, record(&[("ce_type", "t")], conflicting(id, name))).await;
    append(&app, record(&[("ce_type", "t")], Bytes::from(evil))).await;
    // Both functions refuse a value that is not a user.
    app.eventually("they are dead letters", async |app| {
        app.get("/status").await["deadLetters"].as_u64().is_some_and(|letters| letters >= 10)
    })
    .await;
    app.settle().await;
    let status = app.get("/status").await["deadLetters"].clone();
    let list = output(&app, &["dead-letters", "list"]);
    assert!(!controls(&list), "{list:?}");
    assert_eq!(Some(list.lines().count() as u64), status.as_u64(), "{list:?}");
    for place in places(&list) {
        let shown = output(&app, &["dead-letters", "show", &place]);
        assert!(!controls(&shown), "{shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("3:14 ")), "a forged line: {shown:?}");
    }
}
