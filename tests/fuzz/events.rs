//! An event means the same in each mode, as a record, and once a source has sent it.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use domain::User;
use event::{BATCHED, Delivered, Event, Origin, RawRecord, Received, Record, STRUCTURED, UNDELIVERABLE};
use framework::user_event::{admitted_from_http, ingested, to_record, user, users_from_http};
use http::{HeaderMap, HeaderName, HeaderValue, header::CONTENT_TYPE};
use serde_json::{Map, Value};

use crate::{
    engine::{corpus, fuzz, fuzz_with},
    message::Message,
};

pub const ORIGIN: Origin<'static> = Origin { namespace: "default", name: "log-to-count", topic: "user" };
/// Most bytes of an error's text: it does not repeat what was sent.
const LONGEST: usize = 2_000;

pub fn delivered(record: Record) -> Delivered {
    Delivered { partition: 63, offset: i64::MAX, time_ms: 1_700_000_000_000, record }
}

/// All of an event but its place in the log, in one order.
fn content(event: &Event) -> (Vec<(String, String)>, Option<String>, Bytes) {
    let mut attributes = event.attributes.clone();
    attributes.retain(|(name, _)| !name.starts_with("knativekafka"));
    attributes.sort();
    (attributes, event.content_type.clone(), event.data.clone())
}

fn headers(kind: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))])
}

/// The event in structured mode, with the very bytes of its data.
fn structured(event: &Event) -> String {
    let text = |(name, value): &(String, String)| (name.clone(), Value::from(value.clone()));
    let mut members: Map<_, _> = event.attributes.iter().map(text).collect();
    if let Some(kind) = &event.content_type {
        members.insert("datacontenttype".to_owned(), kind.clone().into());
    }
    if !event.data.is_empty() {
        members.insert("data_base64".to_owned(), BASE64_STANDARD.encode(&event.data).into());
    }
    Value::Object(members).to_string()
}

/// The event as requests in the three modes, the batch with the event twice, and as the records of other producers.
pub fn all_modes(event: &Event) -> Vec<(&'static str, HeaderMap, Bytes)> {
    let json = structured(event);
    let through = |record: Record| {
        let sent = Event::of_record(&delivered(record), ORIGIN).and_then(|event| event.to_request("default"));
        let sent = sent.unwrap_or_else(|why| panic!("{event:?} cannot be sent: {why}"));
        (sent.headers().clone(), sent.body().clone())
    };
    let binary = event.to_request("default").unwrap_or_else(|why| panic!("{event:?}: {why}"));
    let value = Some(Bytes::from(json.clone()));
    let in_structured = vec![("content-type".to_owned(), Some(Bytes::from(STRUCTURED)))];
    let (record, body) = through(event.to_record());
    let (structured_record, structured_body) = through(Record { key: None, headers: in_structured, value });
    vec![
        ("binary", binary.headers().clone(), binary.body().clone()),
        ("structured", headers(STRUCTURED), json.clone().into()),
        ("batched", headers(BATCHED), format!("[{json},{json}]").into()),
        ("a record", record, body),
        ("a structured record", structured_record, structured_body),
    ]
}

/// An event that one mode accepts is the same in each.
fn is_the_same_in_all_modes(event: &Event) {
    // A source takes away what describes such a record, and adds the place of a record to what is full already.
    let is_full = event.attributes.len() > event::MAX_ATTRIBUTES - 2;
    if event.attribute("type") == Some(UNDELIVERABLE) || is_full {
        return;
    }
    let size: usize = event.attributes.iter().map(|(name, value)| name.len() + 3 * value.len()).sum();
    if size + 300 > event::MAX_ATTRIBUTES_SIZE {
        return;
    }
    for (mode, headers, body) in all_modes(event) {
        let received = Received::from_http(&headers, &body);
        let received = received.unwrap_or_else(|why| panic!("{mode} refuses {event:?}: {why}"));
        assert_eq!(received.failure, None, "{mode} refuses {event:?}");
        for other in &received.events {
            assert_eq!(content(other), content(event), "{mode}");
        }
        assert!(!received.events.is_empty());
    }
}

/// What ingest admits is the same user in each mode, and what it appends is accepted by functions.
fn reaches_functions(event: &Event, user: &User) {
    for (mode, headers, body) in all_modes(event) {
        let read = users_from_http(&headers, &body).unwrap_or_else(|why| panic!("{mode}: {why}"));
        assert!(!read.is_empty() && read.iter().all(|read| read == user), "{mode}: {read:?}");
        if !mode.contains("record") {
            let admitted = admitted_from_http(&headers, &body).unwrap_or_else(|why| panic!("{mode}: {why}"));
            assert!(admitted.iter().all(|(e, u)| content(e) == content(event) && u == user), "{mode}");
        }
    }
    appended(&to_record(event, user), user);
}

/// A function reads the user of a record that ingest appended.
pub fn appended(record: &Record, user: &User) {
    let sent = Event::of_record(&delivered(record.clone()), ORIGIN).unwrap().to_request("default").unwrap();
    assert_eq!(&users_from_http(sent.headers(), sent.body()).unwrap()[..], std::slice::from_ref(user));
}

fn without_trace(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    headers.remove("traceparent");
    headers.remove("tracestate");
    headers
}

fn check_request(input: &[u8]) -> String {
    let (headers, body) = Message::parse(input).request();
    let received = Received::from_http(&headers, &body);
    let read = users_from_http(&headers, &body);
    if let Ok(received) = &received {
        received.events.iter().take(20).for_each(is_the_same_in_all_modes);
    }
    let admitted = admitted_from_http(&headers, &body);
    // A proxy adds the headers of a trace, and must not get an event refused.
    let bare = admitted_from_http(&without_trace(&headers), &body);
    assert_eq!(admitted.is_ok(), bare.is_ok(), "with a trace {admitted:?}, without one {bare:?}");
    match admitted {
        Ok(admitted) => {
            let users: Vec<_> = admitted.iter().map(|(_, user)| user.clone()).collect();
            assert_eq!(read.unwrap(), users, "functions read what ingest does");
            for (event, user) in admitted.iter().take(20) {
                reaches_functions(event, user);
                appended(&to_record(&ingested(user, &headers).unwrap(), user), user);
            }
            let kinds: Vec<_> = admitted.iter().take(3).map(|(event, _)| event.attributes.len()).collect();
            format!("admitted {kinds:?} {}", "x".repeat(kinds.iter().sum::<usize>().min(50)))
        }
        Err(why) => {
            let why = why.to_string();
            assert!(why.len() < LONGEST, "{} bytes of an error", why.len());
            why
        }
    }
}

/// A record is sent as the one event that it is, or becomes a dead letter that holds all of it.
fn check_record(input: &[u8]) -> String {
    let delivered = Message::parse(input).delivered();
    let event = Event::of_record(&delivered, ORIGIN);
    let sent = event.clone().and_then(|event| event.to_request("default"));
    match sent {
        Ok(sent) => match Received::from_http(sent.headers(), sent.body()) {
            Ok(received) => {
                assert_eq!((received.is_batch, received.events.len()), (false, 1));
                let received = &received.events[0];
                is_the_same_in_all_modes(received);
                let users = users_from_http(sent.headers(), sent.body());
                assert_eq!(users.ok(), user(received).ok().map(|user| vec![user]));
                format!("sent {}", user(received).map_or_else(|why| why.to_string(), |_| "a user".to_owned()))
            }
            Err(why) => {
                assert!(why.to_string().len() < LONGEST);
                format!("refused {why}")
            }
        },
        Err(why) => {
            assert!(why.to_string().len() < LONGEST);
            let letter = Event::undeliverable(&delivered, ORIGIN, &why);
            assert!(letter.to_record().size() < 1_000_000 + 32 * 1024, "a producer takes it");
            let again = Delivered { record: letter.to_record(), ..delivered.clone() };
            let read = Event::from_record(&again, ORIGIN).unwrap();
            assert_eq!(content(&read), content(&letter));
            match RawRecord::from_event(&read) {
                Ok(raw) => {
                    let mut whole = delivered;
                    whole.record.value.get_or_insert_with(Bytes::new);
                    let is_known_time = read.attribute("time").is_some();
                    whole.time_ms = if is_known_time { whole.time_ms } else { 0 };
                    assert_eq!(raw.delivered, whole, "the dead letter holds the whole record");
                }
                Err(_) => assert!(read.attribute("recordtruncated").is_some()),
            }
            format!("dead {why}")
        }
    }
}

#[test]
fn an_event_means_the_same_in_each_mode() {
    fuzz("event", check_request);
}

#[test]
fn a_record_is_sent_or_becomes_a_whole_dead_letter() {
    fuzz("record", check_record);
}

/// The requests that OpenFaaS' connectors make of records mean what the records do.
#[test]
fn a_connector_passes_on_what_a_source_does() {
    fuzz_with("connector", corpus("record"), None, |input| {
        let Delivered { partition, offset, record, .. } = Message::parse(input).delivered();
        let mut headers = HeaderMap::new();
        let place = [("x-topic", "user".to_owned()), ("x-kafka-partition", partition.to_string())];
        for (name, value) in place.into_iter().chain([("x-kafka-offset", offset.to_string())]) {
            headers.insert(name, HeaderValue::try_from(value).unwrap());
        }
        for (name, value) in &record.headers {
            let name = HeaderName::try_from(format!("x-kafka-{}", name.to_ascii_lowercase()));
            let value = HeaderValue::from_bytes(value.as_deref().unwrap_or_default());
            if let (Ok(name), Ok(value)) = (name, value) {
                let _ = headers.try_append(name, value);
            }
        }
        let body = record.value.unwrap_or_default();
        match Received::from_http(&headers, &body) {
            Ok(received) => {
                received.events.iter().for_each(is_the_same_in_all_modes);
                users_from_http(&headers, &body).map_or_else(|why| why.to_string(), |_| "a user".to_owned())
            }
            Err(why) => why.to_string(),
        }
    });
}
