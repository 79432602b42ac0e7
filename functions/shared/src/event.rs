//! CloudEvents 1.0 as they come over HTTP in binary, structured and batched mode, and as they go into the log.
//! Attributes are cloudevents-sdk's; the data stays the bytes that came, since parsing it would hide doubled fields.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
pub use cloudevents::Event;
use cloudevents::{AttributesReader, AttributesWriter, EventBuilder, EventBuilderV10, event::SpecVersion};
use http::{HeaderMap, StatusCode, header::CONTENT_TYPE};
use percent_encoding::percent_decode_str;
use serde::{Deserialize, Deserializer, de};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    connector,
    error::{Error, Rejection},
    record::Record,
    user::User,
};

/// Media type of structured mode.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// Media type of batched mode.
pub const BATCHED: &str = "application/cloudevents-batch+json";
/// Type of the events that `POST /user` becomes.
pub const INGESTED: &str = "dev.lambda-architecture.user.ingested";

/// An event as it came: its attributes and extensions, and the bytes of its data.
#[derive(Debug, Clone)]
pub struct Received {
    /// Attributes and extensions; holds no data.
    pub event: Event,
    /// The data; empty when there is none.
    pub data: Bytes,
}

impl Received {
    /// The user that the data is.
    pub fn user(&self) -> Result<User, Rejection> {
        if let Some(kind) = self.event.datacontenttype().filter(|kind| !is_json(kind)) {
            return Err(Rejection::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("the event's data must be JSON (`application/json`), not `{kind}`"),
            ));
        }
        if self.data.is_empty() {
            return Err(Rejection::bad_data("the event has no data; its data must be a user"));
        }
        User::from_json(&self.data)
    }
}

/// Reads the event, or the batch of events, that a request carries or stands for.
pub fn from_http(headers: &HeaderMap, body: &Bytes) -> Result<Vec<Received>, Error> {
    let translated = connector::cloud_event(headers, body);
    let headers = translated.as_ref().unwrap_or(headers);
    let media_type = media_type(headers);
    let mut events = match media_type.as_str() {
        BATCHED => batched(body)?,
        STRUCTURED => vec![structured(body)?],
        other if other.starts_with("application/cloudevents") => {
            return Err(
                unsupported(format!("`{other}` is not understood; send {STRUCTURED} or {BATCHED}")).into()
            );
        }
        _ if headers.contains_key("ce-specversion") => vec![binary(headers, body)?],
        // Without `ce-` headers it is JSON of another kind, or not JSON at all.
        other if other.is_empty() || is_json(other) => {
            return Err(Rejection::bad_data(
                "this is no CloudEvent: the header `ce-specversion: 1.0` and the other `ce-` headers are missing",
            )
            .into());
        }
        other => {
            return Err(unsupported(format!(
                "`{other}` is not understood; send a CloudEvent in binary mode, {STRUCTURED} or {BATCHED}"
            ))
            .into());
        }
    };
    for received in &mut events {
        carry_trace(headers, &mut received.event);
    }
    Ok(events)
}

/// The users that received events carry; what is wrong with one of several names its index.
pub fn users(events: &[Received]) -> Result<Vec<User>, Rejection> {
    events
        .iter()
        .enumerate()
        .map(|(index, received)| received.user().map_err(|r| at_index(r, index, events.len())))
        .collect()
}

/// Says in the detail which of several events it is about.
#[must_use]
pub fn at_index(mut rejection: Rejection, index: usize, of: usize) -> Rejection {
    if of > 1 {
        rejection.detail = format!("event {index} of the batch: {}", rejection.detail);
    }
    rejection
}

/// The event that a plain `POST /user` becomes.
pub fn ingested(user: &User, headers: &HeaderMap) -> Result<Event, Error> {
    let id = user.id.to_string();
    let mut event = EventBuilderV10::new()
        .id(Uuid::now_v7().to_string())
        .ty(INGESTED)
        .source("/ingest")
        .subject(id.clone())
        .time(chrono::Utc::now())
        .extension("partitionkey", id)
        .build()
        .map_err(|e| Rejection::bad_data(e.to_string()))?;
    event.set_datacontenttype(Some("application/json"));
    carry_trace(headers, &mut event);
    Ok(event)
}

/// The record of an event whose data is the user, in CloudEvents' Kafka binary mode; its key is the user's id.
#[must_use]
pub fn to_record(event: &Event, user: &User) -> Record {
    let id = user.id.to_string();
    let mut headers = Vec::with_capacity(10);
    for (name, value) in event.iter() {
        let name = match name {
            "datacontenttype" => "content-type".to_owned(),
            other => format!("ce_{other}"),
        };
        headers.push((name, Bytes::from(value.to_string())));
    }
    for (name, value) in [("content-type", "application/json"), ("ce_partitionkey", &id)] {
        if !headers.iter().any(|(n, _)| n == name) {
            headers.push((name.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
        }
    }
    Record { key: Some(Bytes::from(id)), headers, value: Some(Bytes::from(user.to_json())) }
}

/// The content type without its parameters, in lower case; empty when there is none.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Whether a media type, with or without parameters, is JSON.
#[must_use]
pub fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    kind == "application/json" || kind == "text/json" || kind.ends_with("+json")
}

/// A 415.
pub fn unsupported(detail: impl Into<String>) -> Rejection {
    Rejection::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail)
}

fn binary(headers: &HeaderMap, body: &Bytes) -> Result<Received, Rejection> {
    for name in headers.keys().filter(|name| name.as_str().starts_with("ce-")) {
        if headers.get_all(name).iter().count() > 1 {
            return Err(Rejection::bad_data(format!("the header `{name}` is there more than once")));
        }
    }
    if headers.get("ce-specversion").is_some_and(|v| v != "1.0") {
        return Err(Rejection::bad_data("`ce-specversion` must be `1.0`"));
    }
    let mut event = cloudevents::binding::http::to_event(headers, Vec::new()).map_err(no_event)?;
    decode_percent(&mut event);
    Ok(Received { event: checked(event)?, data: body.clone() })
}

/// Binary mode encodes what a header cannot hold as `%XX` of its UTF-8 bytes.
fn decode_percent(event: &mut Event) {
    let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(|t| t.into_owned());
    let encoded: Vec<_> = event
        .iter_extensions()
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .filter(|(_, value)| value.contains('%'))
        .collect();
    for (name, value) in encoded {
        if let Ok(value) = decoded(&value) {
            event.set_extension(&name, value);
        }
    }
    if let Some(Ok(subject)) = event.subject().filter(|s| s.contains('%')).map(decoded) {
        event.set_subject(Some(subject));
    }
    if let Some(Ok(id)) = event.id().contains('%').then(|| decoded(event.id())) {
        event.set_id(id);
    }
    if let Some(Ok(kind)) = event.ty().contains('%').then(|| decoded(event.ty())) {
        event.set_type(kind);
    }
}

fn batched(body: &Bytes) -> Result<Vec<Received>, Rejection> {
    let parts: Vec<Box<RawValue>> = serde_json::from_slice(body)
        .map_err(|e| Rejection::bad_data(format!("the batch must be a JSON array of CloudEvents: {e}")))?;
    let of = parts.len().max(2);
    parts
        .iter()
        .enumerate()
        .map(|(index, part)| structured(part.get().as_bytes()).map_err(|r| at_index(r, index, of)))
        .collect()
}

fn structured(json: &[u8]) -> Result<Received, Rejection> {
    let mut envelope: Envelope = serde_json::from_slice(json)
        .map_err(|e| Rejection::bad_data(format!("the CloudEvent must be a JSON object: {e}")))?;
    let data = envelope.take("data").filter(|raw| raw.get() != "null");
    let base64 = envelope.take("data_base64").filter(|raw| raw.get() != "null");
    let data = match (data, base64) {
        (Some(_), Some(_)) => return Err(Rejection::bad_data("`data` and `data_base64` exclude each other")),
        (Some(raw), None) => Bytes::copy_from_slice(raw.get().as_bytes()),
        (None, Some(raw)) => from_base64(&raw)?,
        (None, None) => Bytes::new(),
    };
    let event: Event = serde_json::from_str(&envelope.into_json()).map_err(no_event)?;
    if event.specversion() != SpecVersion::V10 {
        return Err(Rejection::bad_data("`specversion` must be `1.0`"));
    }
    Ok(Received { event: checked(event)?, data })
}

fn from_base64(raw: &RawValue) -> Result<Bytes, Rejection> {
    let text: String = serde_json::from_str(raw.get())
        .map_err(|e| Rejection::bad_data(format!("`data_base64` must be a string: {e}")))?;
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|e| Rejection::bad_data(format!("`data_base64` must be Base64: {e}")))?;
    Ok(bytes.into())
}

fn no_event(error: impl fmt::Display) -> Rejection {
    Rejection::bad_data(format!("this is no CloudEvent 1.0: {error}"))
}

/// What the SDK lets through and the specification does not.
fn checked(event: Event) -> Result<Event, Rejection> {
    for (name, value) in [("id", event.id()), ("source", event.source()), ("type", event.ty())] {
        if value.is_empty() {
            return Err(Rejection::bad_data(format!("`{name}` must not be empty")));
        }
    }
    for (name, _) in event.iter_extensions() {
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(Rejection::bad_data(format!(
                "the extension `{name}` must be named with lower-case letters and digits alone"
            )));
        }
    }
    Ok(event)
}

/// A trace that came with the request goes on with the event.
fn carry_trace(headers: &HeaderMap, event: &mut Event) {
    for name in ["traceparent", "tracestate"] {
        let value = headers.get(name).and_then(|v| v.to_str().ok());
        if let Some(value) = value.filter(|_| event.extension(name).is_none()) {
            event.set_extension(name, value.to_owned());
        }
    }
}

/// A JSON object's members in order, none of them twice.
struct Envelope(Vec<(String, Box<RawValue>)>);

impl Envelope {
    fn take(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.0.iter().position(|(n, _)| n == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn into_json(self) -> String {
        let members =
            self.0.iter().map(|(name, raw)| format!("{}:{raw}", serde_json::Value::from(name.as_str())));
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> de::Visitor<'de> for Members {
            type Value = Envelope;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<Envelope, A::Error> {
                let mut members = Vec::<(String, Box<RawValue>)>::new();
                while let Some(name) = map.next_key::<String>()? {
                    if members.iter().any(|(n, _)| *n == name) {
                        return Err(de::Error::custom(format!("duplicate field `{name}`")));
                    }
                    members.push((name, map.next_value()?));
                }
                Ok(Envelope(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
