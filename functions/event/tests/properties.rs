//! For arbitrary events, bytes and records: an admitted event reaches a function unchanged, also as a dead letter.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use bytes::Bytes;
use event::{Answer, Delivered, Event, Origin, Received, Record, STRUCTURED, UNDELIVERABLE, Undelivered};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header::CONTENT_TYPE};
use proptest::{collection::vec, option, prelude::*};

const ORIGIN: Origin<'static> = Origin { namespace: "default", name: "log-to-count", topic: "user" };

/// The largest response that a function may return.
struct Conflict(HeaderMap);

impl Undelivered for Conflict {
    fn answer(&self) -> Option<Answer<'_>> {
        Some(Answer { status: StatusCode::UNPROCESSABLE_ENTITY, headers: &self.0, body: &[b'x'; 2_000] })
    }
}

fn conflict() -> Conflict {
    let mut headers = HeaderMap::new();
    for n in 0..100 {
        headers.insert(HeaderName::try_from(format!("kne-{n}")).unwrap(), HeaderValue::from_static("why"));
    }
    Conflict(headers)
}

fn delivered(record: Record) -> Delivered {
    Delivered { partition: 63, offset: i64::MAX, time_ms: 1_700_000_000_000, record }
}

fn structured(json: &[u8]) -> Result<Event, String> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(STRUCTURED))]);
    let received = Received::from_http(&headers, &Bytes::copy_from_slice(json));
    received.map(|mut received| received.events.remove(0)).map_err(|e| e.to_string())
}

/// Returns the event that a function reads from a source's request for the record.
fn through_a_source(record: Record) -> Event {
    let request = Event::of_record(&delivered(record), ORIGIN).unwrap().to_request("default").unwrap();
    assert!(request.headers().len() < 80, "room for what proxies add");
    Received::from_http(request.headers(), request.body()).unwrap().events.remove(0)
}

fn sorted(event: &Event) -> Vec<(String, String)> {
    let is_place = |name: &str| name.starts_with("knativekafka");
    let mut attributes: Vec<_> =
        event.attributes.iter().filter(|(name, _)| !is_place(name)).cloned().collect();
    attributes.sort();
    attributes
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        5 => any::<String>(),
        3 => "[ -~]{0,40}",
        2 => "[ \"%\\\\\t\n]{0,8}[a-f0-9%]{0,8}[ \"]{0,2}",
        1 => vec(any::<char>(), 0..3_000).prop_map(String::from_iter),
    ]
}

prop_compose! {
    fn event()(
        id in text(),
        source in prop_oneof![Just("/s".to_owned()), Just("/a%20b".to_owned()), Just("/é?q#f".to_owned()), text()],
        kind in text(),
        subject in option::of(text()),
        time in option::of(prop_oneof![
            Just("2018-04-05T03:56:24Z".to_owned()),
            Just("9999-12-31T23:59:59-01:00".to_owned()),
            Just("2018-04-05t03:56:24.123456789123+23:00".to_owned()),
            text(),
        ]),
        extensions in vec(("[a-z0-9]{1,22}|[a-zA-Z_é-]{0,70}", text()), 0..60),
        content_type in option::of(prop_oneof![
            Just("application/json".to_owned()),
            Just(" Application/CloudEvents+JSON; charset=utf-8".to_owned()),
            Just("application/vnd.x+json; a=\"b\"".to_owned()),
            Just("text/plain".to_owned()),
            text(),
        ]),
        data in vec(any::<u8>(), 0..200),
    ) -> Event {
        let mut event = Event::new(id, source, kind);
        subject.into_iter().for_each(|subject| event.set("subject", subject));
        time.into_iter().for_each(|time| event.set("time", time));
        extensions.into_iter().for_each(|(name, value)| event.set(&name, value));
        event.content_type = content_type;
        event.data = data.into();
        event
    }
}

/// Mostly valid events, so that the code after the checks is tested, too.
fn mild_event() -> impl Strategy<Value = Event> {
    let value = || "[ -~é日😀]{1,30}";
    (value(), value(), vec(("[a-j][a-z0-9]{0,20}", value()), 0..33), vec(any::<u8>(), 0..100)).prop_map(
        |(id, kind, extensions, data)| {
            let mut event = Event::new(id, "/s%20é", kind);
            extensions.into_iter().filter(|(name, _)| name != "data").for_each(|(n, v)| event.set(&n, v));
            event.content_type = Some("text/plain".to_owned());
            event.data = data.into();
            event
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_admitted_reaches_a_function_in_every_way(event in prop_oneof![event(), mild_event()]) {
        let json = event.to_structured().to_string();
        let Ok(read) = structured(json.as_bytes()) else { return Ok(()) };
        if read.admit().is_err() {
            return Ok(());
        }
        let is_same = |other: &Event| {
            assert_eq!(sorted(other), sorted(&read));
            assert_eq!((&other.content_type, &other.data), (&read.content_type, &read.data));
        };
        // Binary and structured records. Each mode accepts what the other accepts.
        is_same(&through_a_source(read.to_record()));
        let json = Bytes::from(read.to_structured().to_string());
        let headers = vec![("content-type".to_owned(), Some(Bytes::from(STRUCTURED)))];
        let is_binary_data = read.to_structured().get("data").is_none();
        let through = through_a_source(Record { key: None, headers, value: Some(json) });
        assert_eq!(sorted(&through), sorted(&read));
        assert!(!is_binary_data || through.data == read.data);
        let binary = read.to_request("default").unwrap();
        let again = Received::from_http(binary.headers(), binary.body()).unwrap().events.remove(0);
        is_same(&again);
        assert!(again.admit().is_ok());
        // Into a dead letter, out of it, and to the function with the reason still attached.
        let dead = Event::of_record(&delivered(read.to_record()), ORIGIN).unwrap().dead("http://count", &conflict());
        let mut letter = Event::of_record(&delivered(dead.to_record()), ORIGIN).unwrap();
        assert_eq!(sorted(&letter), sorted(&dead));
        through_a_source(dead.to_record());
        structured(letter.to_structured().to_string().as_bytes()).unwrap();
        letter.attributes.retain(|(name, _)| !name.starts_with("knativeerror") && !name.starts_with("kne"));
        is_same(&through_a_source(letter.to_record()));
    }

    #[test]
    fn no_bytes_are_more_than_an_error(body in prop_oneof![
        vec(any::<u8>(), 0..300),
        r#"\{("(id|source|type|specversion|data|time|x)":("1.0"|"[ -~]{0,9}"|-?[0-9]{1,11}|null|true|\[|\{\}|"\\ud800"),?){0,9}\}"#
            .prop_map(String::into_bytes),
    ]) {
        let _ = structured(&body);
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(event::BATCHED))]);
        let _ = Received::from_http(&headers, &Bytes::from([b"[", &body[..], b"]"].concat()));
    }

    #[test]
    fn no_header_is_more_than_an_error(
        id in vec(prop_oneof![Just(b'%'), Just(b'"'), 32..=126_u8, 128..=255_u8], 0..20),
        kind in vec(prop_oneof![32..=126_u8, 128..=255_u8], 0..20),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in [("ce-specversion", "1.0"), ("ce-source", "/s"), ("ce-type", "t")] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        headers.insert("ce-id", HeaderValue::from_bytes(&id).unwrap());
        headers.insert(CONTENT_TYPE, HeaderValue::from_bytes(&kind).unwrap());
        if let Ok(received) = Received::from_http(&headers, &Bytes::new()) {
            let event = &received.events[0];
            if event.admit().is_ok() {
                assert_eq!(sorted(&through_a_source(event.to_record())), sorted(event));
            }
        }
    }

    #[test]
    fn every_record_is_sent_or_becomes_a_dead_letter(
        key in option::of(vec(any::<u8>(), 0..50)),
        headers in vec((prop_oneof![
            Just("ce_specversion".to_owned()), Just("ce_id".to_owned()), Just("ce_source".to_owned()),
            Just("ce_type".to_owned()), Just("content-type".to_owned()), "ce_[a-z]{0,80}", any::<String>(),
        ], prop_oneof![
            Just(None), vec(any::<u8>(), 0..20).prop_map(Some),
            Just(Some(b"application/cloudevents+json".to_vec())), Just(Some(b"1.0".to_vec())),
            Just(Some(b"application/cloudevents-batch+json".to_vec())),
        ]), 0..90),
        value in option::of(vec(any::<u8>(), 0..200)),
        time_ms in any::<i64>(),
    ) {
        let headers = headers.into_iter().map(|(name, value)| (name, value.map(Bytes::from))).collect();
        let record = Record { key: key.map(Bytes::from), headers, value: value.clone().map(Bytes::from) };
        let delivered = Delivered { partition: 0, offset: 1, time_ms, record };
        let sent = Event::of_record(&delivered, ORIGIN).and_then(|event| event.to_request("default"));
        match sent {
            // The function may reject it, but only as a single event.
            Ok(request) => if let Ok(received) = Received::from_http(request.headers(), request.body()) {
                assert_eq!((received.is_batch, received.events.len()), (false, 1));
            },
            Err(why) => {
                let letter = Event::undeliverable(&delivered, ORIGIN, &why);
                let again = Delivered { record: letter.to_record(), ..delivered.clone() };
                let read = Event::from_record(&again, ORIGIN).unwrap();
                assert_eq!((read.attribute("type"), &read.data[..]), (Some(UNDELIVERABLE), &value.unwrap_or_default()[..]));
                read.to_request("default").unwrap();
            }
        }
    }
}
