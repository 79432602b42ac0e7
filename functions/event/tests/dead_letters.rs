//! Records and events that no source can send, and the dead letters that are made of them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use event::{Answer, Delivered, Event, Origin, RawRecord, Record, UNDELIVERABLE, Undecodable, Undelivered};

const ORIGIN: Origin<'static> = Origin { namespace: "default", name: "log-to-count", topic: "user" };

struct NoAnswer;

impl Undelivered for NoAnswer {
    fn answer(&self) -> Option<Answer<'_>> {
        None
    }
}

fn delivered(headers: &[(&str, &str)], value: impl Into<Bytes>) -> Delivered {
    let header = |(name, value): &(&str, &str)| ((*name).to_owned(), Some(Bytes::from((*value).to_owned())));
    let record = Record {
        key: Some(Bytes::from_static(b"\xffk")),
        headers: headers.iter().map(header).collect(),
        value: Some(value.into()),
    };
    Delivered { partition: 3, offset: 14, time_ms: 1_700_000_000_000, record }
}

fn fault(delivered: &Delivered) -> Undecodable {
    let request = Event::of_record(delivered, ORIGIN).and_then(|event| event.to_request("default"));
    request.unwrap_err()
}

fn is_letter(delivered: &Delivered) -> Event {
    let letter = Event::undeliverable(delivered, ORIGIN, fault(delivered));
    assert_eq!(letter.attribute("type"), Some(UNDELIVERABLE));
    assert!(letter.to_record().size() < 1_000_000 + 32 * 1024);
    letter
}

#[test]
fn an_event_with_more_attributes_than_headers_fit_is_no_panic() {
    let members: Vec<_> = (0..40_000).map(|n| format!(r#""x{n}":"1""#)).collect();
    let json = format!(r#"{{"specversion":"1.0","id":"1","source":"/s","type":"t",{}}}"#, members.join(","));
    let structured = delivered(&[("content-type", "application/cloudevents+json")], json.clone());
    assert!(fault(&structured).to_string().contains("at most 64"));
    assert_eq!(is_letter(&structured).data, json);

    let mut many =
        delivered(&[("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "/"), ("ce_type", "t")], "{}");
    let names = (0..40_000).map(|n| (format!("ce_x{n}"), Some(Bytes::from_static(b"1"))));
    many.record.headers.extend(names);
    assert!(fault(&many).to_string().contains("attributes"));
    assert_eq!(is_letter(&many).attribute("recordtruncated"), Some("headers"));
    let plain = |n| (format!("h{n}"), Some(Bytes::from_static(b"1")));
    let mut many = delivered(&[], r#"{"a":1}"#);
    many.record.headers.extend((0..92).map(plain));
    assert_eq!(is_letter(&many).to_structured()["data_base64"], BASE64_STANDARD.encode(r#"{"a":1}"#));
}

#[test]
fn an_undeliverable_record_is_kept_with_all_that_it_was() {
    let mut delivered = delivered(&[("ce_specversion", "1.0"), ("ce_id", "\u{1}")], &b"\xff\x00"[..]);
    delivered.record.headers.extend([("none".to_owned(), None), ("empty".to_owned(), Some(Bytes::new()))]);
    let letter = is_letter(&delivered);
    let shown = letter.to_structured();
    for (name, value) in [
        ("data_base64", BASE64_STANDARD.encode(b"\xff\x00")),
        ("recordkey", BASE64_STANDARD.encode(b"\xffk")),
        (
            "recordheaders",
            r#"[["ce_specversion","MS4w"],["ce_id","AQ=="],["none",null],["empty",""]]"#.to_owned(),
        ),
        ("knativekafkapartition", "3".to_owned()),
        ("knativekafkaoffset", "14".to_owned()),
        ("knativeerrordata", BASE64_STANDARD.encode(fault(&delivered).to_string())),
        ("datacontenttype", "application/octet-stream".to_owned()),
    ] {
        assert_eq!(shown[name], value, "{name}");
    }
    assert_eq!(shown.get("recordtruncated"), None);
    let read =
        Event::from_record(&Delivered { record: letter.to_record(), ..delivered.clone() }, ORIGIN).unwrap();
    let raw = RawRecord::from_event(&read).unwrap();
    assert_eq!(raw.delivered, delivered);
    assert_eq!(raw.origin().source(), ORIGIN.source());
    let request = letter.to_request("default").unwrap();
    assert!(!request.headers().contains_key("ce-recordheaders"), "a replay sends the data alone");
}

#[test]
fn a_header_without_a_value_is_no_attribute() {
    let own = [("ce_id", "1"), ("ce_source", "/s"), ("ce_type", "t"), ("content-type", "text/plain")];
    let mut sent = delivered(&own, "data");
    // The first header of a name has no value, or the only one has none.
    sent.record.headers.insert(0, ("ce_id".to_owned(), None));
    sent.record.headers.extend(["ce_subject", "content-type", "plain"].map(|name| (name.to_owned(), None)));
    let plain = Event::from_record(&sent, ORIGIN).unwrap();
    assert_eq!(plain.attribute("kafkaheaderceid"), Some("1"));
    assert_eq!((plain.attribute("kafkaheaderplain"), plain.attribute("kafkaheadercesubject")), (None, None));
    sent.record.headers.push(("ce_specversion".to_owned(), None));
    assert_eq!(Event::from_record(&sent, ORIGIN).unwrap(), plain, "it claims to be no event");
    sent.record.push_header("ce_specversion", "1.0");
    let event = Event::from_record(&sent, ORIGIN).unwrap();
    assert_eq!((event.attribute("id"), event.attribute("subject")), (Some("1"), None));
    assert_eq!(event.content_type.as_deref(), Some("text/plain"));
}

#[test]
fn a_letter_stays_below_what_a_producer_takes() {
    let long = "h".repeat(400_000);
    let mut large = delivered(&[("ce_specversion", "1.0"), ("a", "b"), ("long", &long)], vec![0; 1_000_000]);
    large.record.key = Some(Bytes::from(vec![b'k'; 500_000]));
    let letter = is_letter(&large);
    assert_eq!(letter.attribute("recordtruncated"), Some("key headers value"));
    assert!(RawRecord::from_event(&letter).unwrap_err().contains("key headers value"));
}

#[test]
fn a_record_that_would_be_read_as_another_event_is_not_sent() {
    let own = [("ce_specversion", "1.0"), ("ce_id", "1"), ("ce_source", "/s"), ("ce_type", "t")];
    for kind in
        ["application/cloudevents-batch+json", "application/cloudevents+avro", "Application/CloudEvents"]
    {
        let with = [own.as_slice(), &[("content-type", kind)]].concat();
        is_letter(&delivered(&with, "[]"));
        is_letter(&delivered(&[("content-type", kind)], "[]"));
    }
    for more in [("ce_ID", "2"), ("ce_a b", "1"), ("ce_é", "1"), ("content-type", "a\nb")] {
        is_letter(&delivered(&[own.as_slice(), &[more]].concat(), "{}"));
    }
    let name = format!("ce_{}", "x".repeat(65));
    is_letter(&delivered(&[own.as_slice(), &[(&name, "1")]].concat(), "{}"));
    let value = "é".repeat(2_100);
    is_letter(&delivered(&[own.as_slice(), &[("ce_x", &value)]].concat(), "{}"));
}

#[test]
fn the_reason_of_a_dead_letter_is_the_last_one_alone() {
    let mut event = Event::new("1", "/s", "t");
    for name in ["knativeerrordata", "knativeerrorcode"] {
        event.set(name, "forged");
        assert_eq!(event.admit().unwrap_err().attribute.as_deref(), Some("knativeerrordata"));
    }
    let dead = event.dead("http://count", &NoAnswer);
    assert_eq!(dead.attribute("knativeerrordest"), Some("http://count"));
    assert!(!dead.attributes.iter().any(|(_, value)| value == "forged"));
}
