//! What OpenFaaS' connectors send, put as the CloudEvent that it stands for. They know no CloudEvents: the Pro Kafka
//! connector posts a record's raw value and says in headers where it lies (<https://docs.openfaas.com/openfaas-pro/kafka-events>),
//! the cron connector posts next to nothing. Knows the headers alone, not what the functions do with the event.

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONTENT_TYPE, USER_AGENT},
};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use uuid::Uuid;

use crate::event::{STRUCTURED, media_type};

/// The topic that names a function of the cron connector.
const CRON: &str = "cron-function";
/// What begins the name of each header that the Kafka connector makes of a record's own.
const OF_RECORD: &str = "x-kafka-";
/// What a CloudEvents header encodes: all but printable ASCII, and `"` and `%` of that.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers of the CloudEvent that a connector's request stands for; `None` where no connector sent it.
pub(crate) fn cloud_event(headers: &HeaderMap, body: &Bytes) -> Option<HeaderMap> {
    if headers.contains_key("ce-specversion") || media_type(headers).starts_with("application/cloudevents") {
        return None;
    }
    let topic = headers.get("x-topic").and_then(|topic| topic.to_str().ok());
    let mut event = match topic {
        Some(topic) if topic != CRON => record(headers, topic),
        Some(_) => tick(),
        None if is_tick(headers, body) => tick(),
        None => return None,
    };
    for name in ["traceparent", "tracestate"] {
        if let Some(value) = headers.get(name) {
            event.insert(name, value.clone());
        }
    }
    Some(event)
}

/// Newer cron connectors give their name. The Community Edition's posts nothing at all, to which the gateway adds its
/// own two headers.
fn is_tick(headers: &HeaderMap, body: &Bytes) -> bool {
    let named = ["x-connector", USER_AGENT.as_str()].iter().any(|name| {
        headers
            .get(*name)
            .is_some_and(|value| value.to_str().is_ok_and(|value| value.contains("cron-connector")))
    });
    let bare = body.is_empty() && !headers.contains_key(CONTENT_TYPE);
    named || bare && headers.contains_key("x-call-id") && headers.contains_key("x-start-time")
}

fn tick() -> HeaderMap {
    let mut event = Attributes::default();
    event.set("specversion", b"1.0");
    event.set("id", Uuid::now_v7().to_string().as_bytes());
    event.set("type", b"dev.lambda-architecture.tick");
    event.set("source", b"/openfaas/cron-connector");
    event.0
}

/// The event that the record is, or else one around it, as a KafkaSource makes it.
fn record(headers: &HeaderMap, topic: &str) -> HeaderMap {
    let own = |name: &str| headers.get(format!("{OF_RECORD}{name}")).map(HeaderValue::as_bytes);
    let mut event = Attributes::default();
    if let Some(content_type) = headers.get(format!("{OF_RECORD}{CONTENT_TYPE}")) {
        event.0.insert(CONTENT_TYPE, content_type.clone());
        if media_type(&event.0) == STRUCTURED {
            return event.0;
        }
    }
    if own("ce_specversion").is_some() {
        for (name, value) in headers {
            if let Some(name) =
                name.as_str().strip_prefix(OF_RECORD).and_then(|name| name.strip_prefix("ce_"))
            {
                event.set(name, value.as_bytes());
            }
        }
    } else {
        event.set("specversion", b"1.0");
        event.set("type", b"dev.knative.kafka.event");
        event.set("source", format!("/openfaas/kafka-connector#{topic}").as_bytes());
        match (own("partition"), own("offset")) {
            (Some(partition), Some(offset)) => {
                event.set("id", &[b"partition:", partition, b"/offset:", offset].concat());
                event.set("subject", &[b"partition:", partition, b"#", offset].concat());
            }
            // An older connector says neither; who a user is does not depend on it.
            _ => event.set("id", Uuid::now_v7().to_string().as_bytes()),
        }
        if let Some(key) = key(headers) {
            event.set("partitionkey", &key);
            event.set("key", &key);
        }
    }
    for (name, value) in [("knativekafkapartition", own("partition")), ("knativekafkaoffset", own("offset"))]
    {
        if let Some(value) = value {
            event.set(name, value);
        }
    }
    event.0
}

/// The record's key; the connector encodes one that is not text.
fn key(headers: &HeaderMap) -> Option<Vec<u8>> {
    let key = headers.get("x-kafka-key")?.as_bytes();
    let encoded = headers.get("x-kafka-key-enc").is_some_and(|encoding| encoding == "b64");
    let decoded =
        encoded.then(|| BASE64_STANDARD.decode(key).ok().filter(|key| std::str::from_utf8(key).is_ok()));
    Some(decoded.flatten().unwrap_or_else(|| key.to_vec()))
}

/// Headers of binary mode.
#[derive(Default)]
struct Attributes(HeaderMap);

impl Attributes {
    fn set(&mut self, name: &str, value: &[u8]) {
        let value = percent_encode(value, ENCODED).to_string();
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(format!("ce-{name}")), value.try_into()) {
            self.0.insert(name, value);
        }
    }
}
