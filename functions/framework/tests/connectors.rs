//! Requests of OpenFaaS' connectors become events. Other requests are handled as usual.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use event::{Event, STRUCTURED};
use framework::user_event::{from_http, to_record, user};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

const USER: &str = r#"{"id":"fc0e2dd1-2b60-4d4b-9a10-94b5a2a4f9ad","name":"Zoë"}"#;
const KAFKA: [(&str, &str); 4] = [
    ("content-type", "text/plain"),
    ("x-topic", "user"),
    ("x-kafka-partition", "3"),
    ("x-kafka-offset", "14"),
];

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs {
        headers
            .append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
    }
    headers
}

fn received(pairs: &[(&str, &str)], body: &str) -> Event {
    let mut events = from_http(&headers(pairs), &Bytes::from(body.to_owned())).unwrap();
    assert_eq!(events.len(), 1);
    events.remove(0)
}

fn status(pairs: &[(&str, &str)], body: &str) -> StatusCode {
    from_http(&headers(pairs), &Bytes::from(body.to_owned())).unwrap_err().status()
}

fn attribute(received: &Event, name: &str) -> Option<String> {
    received.attribute(name).map(str::to_owned)
}

#[test]
fn a_raw_record_of_the_kafka_connector_is_a_user() {
    let received = received(&[KAFKA.as_slice(), &[("x-kafka-key", "k 1")]].concat(), USER);
    assert_eq!(user(&received).unwrap().name, "Zoë");
    for (name, value) in [
        ("type", "dev.knative.kafka.event"),
        ("id", "partition:3/offset:14"),
        ("subject", "partition:3#14"),
        ("source", "/openfaas/kafka-connector#user"),
        ("partitionkey", "k 1"),
        ("knativekafkapartition", "3"),
        ("knativekafkaoffset", "14"),
    ] {
        assert_eq!(attribute(&received, name).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn a_key_that_is_no_text_comes_encoded() {
    let key = |key| {
        let more = [("x-kafka-key", key), ("x-kafka-key-enc", "b64")];
        attribute(&received(&[KAFKA.as_slice(), &more].concat(), USER), "key").unwrap()
    };
    assert_eq!(key("YWJj"), "abc");
    assert_eq!(key("/w=="), "/w==");
}

#[test]
fn a_record_that_is_an_event_stays_that_event() {
    let own = [
        ("x-kafka-ce_specversion", "1.0"),
        ("x-kafka-ce_id", "7"),
        ("x-kafka-ce_source", "/ingest"),
        ("x-kafka-ce_type", "dev.lambda-architecture.user.ingested"),
        ("x-kafka-ce_subject", "Zoë 100%"),
        ("x-kafka-ce_traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-kafka-content-type", "application/json"),
    ];
    let received = received(&[KAFKA.as_slice(), &own].concat(), USER);
    assert_eq!(attribute(&received, "id").as_deref(), Some("7"));
    assert_eq!(attribute(&received, "subject").as_deref(), Some("Zoë 100%"));
    let record = to_record(&received, &user(&received).unwrap());
    assert!(record.header("ce_traceparent").is_some() && record.header("ce_key").is_none());
}

#[test]
fn a_record_in_structured_mode_is_read_as_one() {
    let event = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t","data":{USER}}}"#);
    let received = received(&[KAFKA.as_slice(), &[("x-kafka-content-type", STRUCTURED)]].concat(), &event);
    assert_eq!((attribute(&received, "id").as_deref(), user(&received).is_ok()), (Some("1"), true));
}

#[test]
fn a_connector_that_says_only_the_topic_is_understood() {
    let only = [("content-type", "application/json"), ("x-topic", "user")];
    assert!(user(&received(&only, USER)).is_ok());
    assert_ne!(attribute(&received(&only, USER), "id"), attribute(&received(&only, USER), "id"));
}

#[test]
fn what_a_record_holds_is_checked_as_ever() {
    let bad = user(&received(&KAFKA, "not a user")).unwrap_err();
    assert_eq!(bad.status, StatusCode::BAD_REQUEST);
}

#[test]
fn every_cron_connector_ticks() {
    for pairs in [
        [("x-topic", "cron-function"), ("content-type", "text/plain")],
        [("x-connector", "cron-connector"), ("content-type", "text/plain")],
        [("user-agent", "openfaas/cron-connector"), ("content-type", "application/json")],
        [("x-call-id", "c"), ("x-start-time", "1700000000000000000")],
    ] {
        let tick = received(&pairs, "");
        assert_eq!(attribute(&tick, "type").as_deref(), Some("dev.lambda-architecture.tick"), "{pairs:?}");
        assert_eq!(user(&tick).unwrap_err().status, StatusCode::BAD_REQUEST);
    }
}

#[test]
fn what_no_connector_sent_keeps_its_status() {
    let gateway = [("x-call-id", "c"), ("x-start-time", "1"), ("content-type", "application/json")];
    for (pairs, expected) in [
        (&[("content-type", "text/plain")] as &[_], 415),
        (&[("content-type", "text/plain"), ("x-kafka-key", "k")], 415),
        (&[("content-type", "application/cloudevents+xml"), ("x-topic", "user")], 415),
        (&[("ce-specversion", "1.0"), ("x-topic", "user")], 400),
        (&gateway, 400),
        (&gateway[..2], 400),
    ] {
        assert_eq!(status(pairs, USER).as_u16(), expected, "{pairs:?}");
    }
    assert_eq!(status(&[], "").as_u16(), 400);
}
