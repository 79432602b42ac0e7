//! How a record is sent, retried, and written to the dead letters.

use std::{
    sync::{Mutex, atomic::Ordering::SeqCst},
    time::Duration,
};

use backend_log::{Delivered, Start};
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use event::Record;
use eventing::{
    dead_letters::DeadLetters,
    event::{Event, Origin},
    replay::replay,
    sink::SinkError,
};
use http::Response;
use tokio::time::Instant;

use crate::harness::{Function, Shared, event, eventually, run, source, status, value};

async fn sent(record: Record) -> http::Request<Bytes> {
    let (log, count) = (Shared::default(), Function::new(Duration::ZERO, |_| status(204)));
    log.0.put("user", record);
    let running = run(source("log-to-count"), &log, &count);
    eventually("it was sent", || !count.requests.lock().unwrap().is_empty()).await;
    running.end().await;
    let (function, request) = count.requests.lock().unwrap().remove(0);
    assert_eq!((function.as_str(), request.method()), ("count", &http::Method::POST));
    request
}

#[tokio::test(start_paused = true)]
async fn a_binary_event_is_sent_as_it_is() {
    let mut record = event("é 1%", "k");
    record.push_header("ce_traceparent", "00-a-b-01");
    let request = sent(record).await;
    for (header, expected) in [
        ("ce-id", "%C3%A9%201%25"),
        ("ce-source", "/test"),
        ("ce-type", "test"),
        ("ce-traceparent", "00-a-b-01"),
        ("ce-knativekafkapartition", "3"),
        ("ce-knativekafkaoffset", "0"),
        ("content-type", "application/json"),
        ("prefer", "reply"),
        ("kn-namespace", "default"),
    ] {
        assert_eq!(value(&request, header), expected, "{header}");
    }
    assert_eq!(request.body(), "{}");
}

#[tokio::test(start_paused = true)]
async fn a_structured_event_is_sent_in_binary_mode() {
    let json = r#"{"specversion":"1.0","id":"7","source":"/s","type":"t","data":{"a": 1}}"#;
    let headers = vec![("content-type".into(), Some(Bytes::from_static(b"application/cloudevents+json")))];
    let request = sent(Record { key: None, headers, value: Some(Bytes::from_static(json.as_bytes())) }).await;
    assert_eq!((value(&request, "ce-id"), value(&request, "ce-source")), ("7".into(), "/s".into()));
    assert_eq!(request.body(), r#"{"a": 1}"#);
}

#[tokio::test(start_paused = true)]
async fn any_other_record_becomes_an_event_around_it() {
    let headers = vec![("X-Trace-1".into(), Some(Bytes::from_static(b"v")))];
    let key = Some(Bytes::from_static(b"k"));
    let request = sent(Record { key, headers, value: Some(Bytes::from_static(b"plain")) }).await;
    for (header, expected) in [
        ("ce-type", "dev.knative.kafka.event"),
        ("ce-id", "partition:3/offset:0"),
        ("ce-source", "/apis/v1/namespaces/default/kafkasources/log-to-count#user"),
        ("ce-subject", "partition:3#0"),
        ("ce-time", "2023-11-14T22:13:20.000Z"),
        ("ce-key", "k"),
        ("ce-partitionkey", "k"),
        ("ce-kafkaheaderxtrace1", "v"),
    ] {
        assert_eq!(value(&request, header), expected, "{header}");
    }
}

#[tokio::test(start_paused = true)]
async fn odd_headers_of_a_record_do_not_keep_it_from_being_an_event() {
    let header = |name: &str, value: &'static [u8]| (name.to_owned(), Some(Bytes::from_static(value)));
    let headers = vec![
        header("content-type", b"text/plain\nx"),
        header("X-A", b"first"),
        header("xa", b"second \xff"),
        header("\u{1F600}", b""),
    ];
    let request = sent(Record { key: None, headers, value: None }).await;
    assert_eq!(value(&request, "ce-type"), "dev.knative.kafka.event");
    assert_eq!(value(&request, "ce-kafkaheaderxa"), "second%20%EF%BF%BD");
    assert_eq!((value(&request, "content-type"), value(&request, "ce-kafkaheader")), Default::default());
    assert!(request.body().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_sent_becomes_a_dead_letter_with_its_bytes() {
    let (log, count) = (Shared::default(), Function::new(Duration::ZERO, |_| status(200)));
    let mut bad = event("", "k");
    bad.push_header("ce_other", &[0xff][..]);
    bad.headers.push(("ce_nothing".into(), None));
    log.0.put("user", bad);
    log.0.put("user", event("good", "k"));
    let running = run(source("log-to-count"), &log, &count);
    eventually("both are committed", || log.0.committed() == log.0.ends("user")).await;
    assert_eq!(count.heard("ce-id"), ["good"]);
    running.end().await;
    let letter = DeadLetters::read(&log, "user-dead-letter").await.unwrap().remove(0);
    assert_eq!((letter.function(), letter.code()), ("count", None));
    assert!(!letter.reason().is_empty());
    assert!(letter.reason().contains("ce_other"), "{}", letter.reason());
    let raw = letter.event.to_structured();
    for (name, value) in [("knativekafkapartition", "3"), ("knativekafkaoffset", "0")] {
        assert_eq!(raw[name], value, "{name}");
    }
    assert_eq!(raw["data_base64"], BASE64_STANDARD.encode("{}"));
    assert_eq!(raw["recordkey"], BASE64_STANDARD.encode("k"));
    let headers: serde_json::Value = serde_json::from_str(raw["recordheaders"].as_str().unwrap()).unwrap();
    let other = serde_json::json!(["ce_other", BASE64_STANDARD.encode([0xff])]);
    for header in [other, serde_json::json!(["ce_nothing", null])] {
        assert!(headers.as_array().unwrap().contains(&header), "{raw}");
    }
    let functions = ["count".to_owned()].into();
    let refused = letter.replay(&log, "user-dead-letter", &*count, &functions).await.unwrap_err();
    assert!(refused.to_string().contains("cannot be sent"), "{refused}");
    letter.discard(&log, "user-dead-letter").await.unwrap();
    assert!(DeadLetters::read(&log, "user-dead-letter").await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_can_be_sent_by_now_is_sent_by_a_replay() {
    let (log, count) = (Shared::default(), Function::new(Duration::ZERO, |_| status(200)));
    let delivered = Delivered { partition: 3, offset: 14, time_ms: 1, record: event("late", "k") };
    let origin = Origin { namespace: "default", name: "log-to-count", topic: "user" };
    let mut dead = Event::undeliverable(&delivered, origin, "an older version could not");
    dead.set("knativeerrordest", "http://count.default.svc.cluster.local");
    let mut record = dead.to_record();
    record.push_header("lambda-architecture-undeliverable", Bytes::new());
    log.0.put("user-dead-letter", record);
    let letter = DeadLetters::read(&log, "user-dead-letter").await.unwrap().remove(0);
    assert_eq!(letter.reason(), "an older version could not");
    letter.replay(&log, "user-dead-letter", &*count, &["count".to_owned()].into()).await.unwrap();
    assert_eq!((count.heard("ce-id"), count.heard("ce-type")), (vec!["late".into()], vec!["test".into()]));
    assert_eq!(count.heard("ce-knativekafkaoffset"), ["14"]);
    assert_eq!(count.heard("ce-recordheaders"), [""]);
}

/// More extensions than a header map holds: a plain insertion would panic.
fn enormous() -> Record {
    let mut record = event("enormous", "k");
    let extension = |n| (format!("ce_x{n}"), Some(Bytes::from_static(b"v")));
    record.headers.extend((0..24_600).map(extension));
    record
}

#[tokio::test(start_paused = true)]
async fn a_record_that_no_header_map_holds_stops_neither_source_nor_replay() {
    let (log, store) = (Shared::default(), Function::new(Duration::ZERO, |_| status(200)));
    log.0.put("user", enormous());
    log.0.put("user", event("good", "k"));
    let running = run(source("log-to-store"), &log, &store);
    eventually("both are committed", || log.0.committed() == log.0.ends("user")).await;
    assert_eq!((store.heard("ce-id"), running.progress.dead.load(SeqCst)), (vec!["good".to_owned()], 1));
    running.end().await;
    let again = Function::new(Duration::ZERO, |_| status(200));
    let replayed = replay(&source("log-to-store"), Start::Earliest, &log, &*again, |_| {}).await.unwrap();
    assert_eq!((replayed.delivered, replayed.rejected), (1, 1));
    let letter = DeadLetters::read(&log, "user-dead-letter").await.unwrap().remove(0);
    let functions = ["store".to_owned()].into();
    assert!(letter.replay(&log, "user-dead-letter", &*again, &functions).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_makes_the_source_panic_is_tried_and_then_dead() {
    let answer = |r: &_| match value(r, "ce-id").as_str() {
        "poison" => panic!("it was poison"),
        _ => status(200),
    };
    let (log, store) = (Shared::default(), Function::new(Duration::ZERO, answer));
    log.0.put("user", event("poison", "k"));
    log.0.put("user", event("good", "k"));
    let running = run(source("log-to-store"), &log, &store);
    eventually("both are committed", || log.0.committed() == log.0.ends("user")).await;
    assert_eq!(store.heard("ce-id"), ["poison", "poison", "poison", "good"]);
    let error = running.progress.health.last_error().unwrap();
    assert!(error.contains("it was poison") && error.contains("offset 0"), "{error}");
    running.end().await;
    let letter = DeadLetters::read(&log, "user-dead-letter").await.unwrap().remove(0);
    assert!(letter.reason().contains("it was poison"), "{}", letter.reason());
    // The raw record in the dead letter can be sent once the fault is fixed.
    let mended = Function::new(Duration::ZERO, |_| status(200));
    let functions = ["store".to_owned()].into();
    letter.replay(&log, "user-dead-letter", &*mended, &functions).await.unwrap();
    assert_eq!(
        (mended.heard("ce-id"), mended.heard("ce-type")),
        (vec!["poison".into()], vec!["test".into()])
    );
    assert!(DeadLetters::read(&log, "user-dead-letter").await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn tries_are_as_far_apart_as_the_manifest_says() {
    let start = Instant::now();
    let times = std::sync::Arc::new(Mutex::new(Vec::new()));
    let seen = times.clone();
    let count = Function::new(Duration::ZERO, move |_| {
        seen.lock().unwrap().push(start.elapsed().as_millis());
        if seen.lock().unwrap().len() < 5 { status(503) } else { status(200) }
    });
    let log = Shared::default();
    log.0.put("user", event("1", "k"));
    let running = run(source("log-to-count"), &log, &count);
    eventually("it arrived", || running.progress.delivered.load(SeqCst) == 1).await;
    assert_eq!(running.progress.retried.load(SeqCst), 4);
    running.end().await;
    let times = times.lock().unwrap();
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // The test's clock may be a millisecond late at each timer.
    let expected = [20, 40, 60, 80];
    assert!(gaps.iter().zip(expected).all(|(gap, e)| (e..e + 4).contains(gap)), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn a_rejected_event_goes_to_the_dead_letter_with_the_reason() {
    let body = "x".repeat(2_000);
    let answer = move |_: &_| {
        let head = Response::builder().status(422).header("kne-rule", "conflict");
        Ok(head.body(Bytes::from(body.clone())).unwrap())
    };
    let (log, count) = (Shared::default(), Function::new(Duration::ZERO, answer));
    log.0.put("user", event("1", "k"));
    let running = run(source("log-to-count"), &log, &count);
    eventually("it is committed", || log.0.committed() == log.0.ends("user")).await;
    running.end().await;
    assert_eq!(count.requests.lock().unwrap().len(), 1);
    let letter = log.0.records("user-dead-letter").remove(0).record;
    let data = BASE64_STANDARD.encode("x".repeat(1_024));
    for (header, expected) in [
        ("ce_id", "1"),
        ("ce_knativekafkaoffset", "0"),
        ("ce_knativeerrordest", "http://count.default.svc.cluster.local"),
        ("ce_knativeerrorcode", "422"),
        ("ce_knativeerrordata", &data),
        ("ce_knerule", "conflict"),
    ] {
        assert_eq!(letter.header(header), Some(&Bytes::from(expected.to_owned())), "{header}");
    }
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (Some(&b"k"[..]), Some(&b"{}"[..])));
}

#[tokio::test(start_paused = true)]
async fn without_any_answer_the_dead_letter_says_only_where_to() {
    let count = Function::new(Duration::ZERO, |_| Err(SinkError("refused".into())));
    let log = Shared::default();
    log.0.put("user", event("1", "k"));
    let running = run(source("log-to-count"), &log, &count);
    eventually("it is in the dead letter", || !log.0.records("user-dead-letter").is_empty()).await;
    running.end().await;
    assert_eq!(count.requests.lock().unwrap().len(), 241);
    let letters = DeadLetters::read(&log, "user-dead-letter").await.unwrap();
    assert_eq!((letters[0].function(), letters[0].code()), ("count", None));
    assert_eq!(letters[0].event.attribute("knativeerrordata"), None);
}
