//! Requests of OpenFaaS' connectors, as the CloudEvents that they stand for. The Pro Kafka connector posts a record's
//! raw value and its position in headers (<https://docs.openfaas.com/openfaas-pro/kafka-events>); the cron connector
//! posts almost nothing.

use std::fmt::Display;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use cloudevents::{EventBuilder, EventBuilderV10};
use http::{
    HeaderMap, HeaderValue,
    header::{CONTENT_TYPE, USER_AGENT},
};

use crate::{Event, InvalidEvent, STRUCTURED, attribute, json, limits::MAX_ATTRIBUTES, media, media_type};

/// The topic that names a function of the cron connector.
const CRON: &str = "cron-function";
/// Prefix of the headers that the Kafka connector makes of a record's own.
const RECORD_HEADER: &str = "x-kafka-";

/// The event that a connector's request stands for; `None` where no connector sent it.
pub(crate) fn event(headers: &HeaderMap, body: &Bytes) -> Option<Result<Event, InvalidEvent>> {
    if headers.contains_key("ce-specversion") || media::is_cloud_event(&media_type(headers)) {
        return None;
    }
    let topic = headers.get("x-topic").and_then(|topic| topic.to_str().ok());
    match topic {
        Some(topic) if topic != CRON => Some(record(headers, topic, body)),
        Some(_) => Some(tick(body)),
        None if is_tick(headers, body) => Some(tick(body)),
        None => None,
    }
}

/// Newer cron connectors give their name. The Community Edition's posts nothing at all, to which the gateway adds its
/// own two headers.
fn is_tick(headers: &HeaderMap, body: &Bytes) -> bool {
    let is_named = ["x-connector", USER_AGENT.as_str()].iter().any(|name| {
        headers
            .get(*name)
            .is_some_and(|value| value.to_str().is_ok_and(|value| value.contains("cron-connector")))
    });
    let is_bare = body.is_empty() && !headers.contains_key(CONTENT_TYPE);
    is_named || is_bare && headers.contains_key("x-call-id") && headers.contains_key("x-start-time")
}

fn tick(body: &Bytes) -> Result<Event, InvalidEvent> {
    let builder = EventBuilderV10::new().id(uuid::Uuid::now_v7()).source("/openfaas/cron-connector");
    let mut event = Event::try_from(builder.ty("dev.lambda-architecture.tick"))?;
    event.data = body.clone();
    Ok(event)
}

/// The event in the record, or a wrapper as a KafkaSource makes it.
fn record(headers: &HeaderMap, topic: &str, body: &Bytes) -> Result<Event, InvalidEvent> {
    let own = |name: &str| headers.get(format!("{RECORD_HEADER}{name}"));
    let text = |name: &str| own(name).map(|value| text(name, value)).transpose();
    let (partition, offset) = (text("partition")?, text("offset")?);
    let content_type = text("content-type")?;
    let mut event = if content_type.as_deref().is_some_and(|kind| media::essence(kind) == STRUCTURED) {
        json::structured(body)?
    } else {
        let mut event = if own("ce_specversion").is_some() {
            binary(headers)?
        } else {
            let position = partition.as_ref().zip(offset.as_ref());
            let position = position.map(|(p, o)| (p as &dyn Display, o as &dyn Display));
            let mut event = Event::around(format!("/openfaas/kafka-connector#{topic}"), position);
            if let Some(key) = key(headers) {
                event.set_key(&key);
            }
            event
        };
        event.content_type = content_type;
        event.data = body.clone();
        event
    };
    for (name, value) in [("knativekafkapartition", partition), ("knativekafkaoffset", offset)] {
        if let Some(value) = value {
            event.set(name, value);
        }
    }
    attribute::checked(event)
}

/// The attributes of a binary-mode record, which the connector copies into headers without encoding.
fn binary(headers: &HeaderMap) -> Result<Event, InvalidEvent> {
    let mut event = Event::default();
    for (header, value) in headers {
        let name = header.as_str().strip_prefix(RECORD_HEADER).and_then(|name| name.strip_prefix("ce_"));
        let Some(name) = name else { continue };
        if event.attributes.len() == MAX_ATTRIBUTES {
            return Err(attribute::too_many(name));
        }
        if event.attribute(name).is_some() {
            return Err(InvalidEvent::attribute(name, format!("comes twice, in the header `{header}`")));
        }
        event.attributes.push((name.to_owned(), text(name, value)?));
    }
    Ok(event)
}

fn text(name: &str, value: &HeaderValue) -> Result<String, InvalidEvent> {
    let text = std::str::from_utf8(value.as_bytes());
    Ok(text.map_err(|_| InvalidEvent::attribute(name, "must be UTF-8"))?.to_owned())
}

/// The record's key; the connector encodes a key that is not text.
fn key(headers: &HeaderMap) -> Option<String> {
    let key = headers.get("x-kafka-key")?.as_bytes();
    let is_encoded = headers.get("x-kafka-key-enc").is_some_and(|encoding| encoding == "b64");
    let decoded = is_encoded.then(|| BASE64_STANDARD.decode(key).ok()).flatten();
    let decoded = decoded.and_then(|key| String::from_utf8(key).ok());
    Some(decoded.unwrap_or_else(|| String::from_utf8_lossy(key).into_owned()))
}
