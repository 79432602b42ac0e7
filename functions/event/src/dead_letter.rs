//! Dead-letter events: with the reason of the failure, or wrapped around a record that cannot be sent.

use std::{borrow::Cow, fmt::Display};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::DateTime;
use http::{HeaderMap, StatusCode};

use crate::{
    Event,
    record::{Delivered, Origin, Record, extension_name, time},
};

/// Type of the event around a record that cannot be sent.
pub const UNDELIVERABLE: &str = "dev.lambda-architecture.record.undeliverable";
/// Bytes of an answer's body that a dead letter keeps, as Knative does.
const MAX_ERROR_DATA: usize = 1_024;
/// Headers `kne-…` of an answer that a dead letter keeps, and the bytes of each.
const MAX_ERROR_HEADERS: (usize, usize) = (16, 256);
/// Bytes of an undeliverable record that a dead letter keeps: below 1,000,000, which is a producer's default limit,
/// however near to it the record itself was.
const MAX_KEY: usize = 64 * 1024;
const MAX_HEADERS: usize = 256 * 1024;
const MAX_RECORD: usize = 900_000;
/// Longest key that is also the dead letter's own key.
const MAX_PARTITION_KEY: usize = 1_024;
/// Attributes that describe an undeliverable record; they are never sent to a function.
const RECORD: [&str; 3] = ["recordkey", "recordheaders", "recordtruncated"];

/// The last answer to an event that was not delivered.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, of which those that begin with `kne-` are kept.
    pub headers: &'a HeaderMap,
    /// Its body, of which the beginning is kept.
    pub body: &'a [u8],
}

/// What a delivery failed with.
pub trait Undelivered {
    /// The last answer; `None` when there was none.
    fn answer(&self) -> Option<Answer<'_>>;
}

impl Event {
    /// The event as it goes to the dead letter: with why, and where to it could not be delivered. What it said of that
    /// itself before is removed.
    #[must_use]
    pub fn dead(mut self, destination: &str, failure: &impl Undelivered) -> Self {
        self.attributes.retain(|(name, _)| !name.starts_with("knativeerror"));
        self.set("knativeerrordest", destination);
        let Some(answer) = failure.answer() else { return self };
        self.set("knativeerrorcode", answer.status.as_u16().to_string());
        let data = &answer.body[..answer.body.len().min(MAX_ERROR_DATA)];
        self.set("knativeerrordata", BASE64_STANDARD.encode(data));
        let (count, length) = MAX_ERROR_HEADERS;
        let kept = answer.headers.iter().filter_map(|(name, value)| {
            let name = name.as_str().strip_prefix("kne-").map(extension_name)?;
            let value = value.to_str().ok()?;
            (name.len() <= length && value.len() <= length).then_some((name, value))
        });
        for (name, value) in kept.take(count) {
            self.set(&format!("kne{name}"), value);
        }
        self
    }

    /// The event around a record that cannot be sent, for the dead letter: its value is the data, its key
    /// (`recordkey`) and the values of its headers (`recordheaders`, a JSON array of pairs; null without a value) are
    /// Base64, and `why` is the reason as if a function had answered it. What is too long is cut and named in `recordtruncated`.
    #[must_use]
    pub fn undeliverable(delivered: &Delivered, origin: Origin<'_>, why: impl Display) -> Self {
        let Delivered { partition, offset, time_ms, record } = delivered;
        let mut event =
            Self::new(format!("partition:{partition}/offset:{offset}"), origin.source(), UNDELIVERABLE);
        event.set("subject", format!("partition:{partition}#{offset}"));
        event.attributes.extend(time(*time_ms).map(|time| ("time".to_owned(), time)));
        event.set_place(partition, offset);
        let why = why.to_string();
        event.set(
            "knativeerrordata",
            BASE64_STANDARD.encode(&why.as_bytes()[..why.len().min(MAX_ERROR_DATA)]),
        );
        let mut cut = Vec::new();
        let mut room = MAX_RECORD;
        if let Some(key) = &record.key {
            let text = std::str::from_utf8(key).ok().filter(|key| key.len() <= MAX_PARTITION_KEY);
            event.attributes.extend(text.map(|key| ("partitionkey".to_owned(), key.to_owned())));
            let kept = beginning(key, MAX_KEY, "key", &mut cut);
            event.set("recordkey", BASE64_STANDARD.encode(kept));
        }
        if !record.headers.is_empty() {
            event.set("recordheaders", headers(record, &mut cut));
        }
        room -= event.encoded_size().min(room);
        // Whatever it claims to be, it is shown as the bytes that it is.
        event.content_type = Some("application/octet-stream".to_owned());
        if let Some(value) = &record.value {
            event.data = beginning(value, room, "value", &mut cut);
        }
        if !cut.is_empty() {
            event.set("recordtruncated", cut.join(" "));
        }
        event
    }
}

/// A record that an undeliverable event holds, with where it was read. It borrows from nothing, so that it outlives
/// the event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawRecord {
    /// The record.
    pub delivered: Delivered,
    namespace: String,
    name: String,
    topic: String,
}

impl RawRecord {
    /// Where the record was read.
    #[must_use]
    pub fn origin(&self) -> Origin<'_> {
        Origin { namespace: &self.namespace, name: &self.name, topic: &self.topic }
    }

    /// The record inside of what [`Event::undeliverable`] made. The error says why it cannot be had: it is no such
    /// event, or parts of the record were cut.
    pub fn from_event(event: &Event) -> Result<Self, String> {
        let attribute = |name: &str| event.attribute(name).ok_or_else(|| format!("`{name}` is missing"));
        if let Some(parts) = event.attribute("recordtruncated") {
            return Err(format!("only the beginning of the record is kept ({parts})"));
        }
        let number = |name: &str| attribute(name)?.parse::<i64>().map_err(|e| format!("`{name}`: {e}"));
        let partition = number("knativekafkapartition")?;
        let time = event.attribute("time").and_then(|time| DateTime::parse_from_rfc3339(time).ok());
        let headers: Vec<(String, Option<String>)> = event
            .attribute("recordheaders")
            .map_or(Ok(Vec::new()), serde_json::from_str)
            .map_err(not_whole)?;
        let headers =
            headers.into_iter().map(|(name, value)| Ok((name, value.as_deref().map(decoded).transpose()?)));
        let record = Record {
            key: event.attribute("recordkey").map(decoded).transpose()?,
            headers: headers.collect::<Result<_, String>>()?,
            value: Some(event.data.clone()),
        };
        let source = attribute("source")?;
        let origin = source.strip_prefix("/apis/v1/namespaces/").and_then(|rest| {
            let (namespace, rest) = rest.split_once("/kafkasources/")?;
            let (name, topic) = rest.split_once('#')?;
            Some((namespace.to_owned(), name.to_owned(), topic.to_owned()))
        });
        let (namespace, name, topic) = origin.ok_or_else(|| format!("`{source}` is no KafkaSource"))?;
        let delivered = Delivered {
            partition: i32::try_from(partition).map_err(not_whole)?,
            offset: number("knativekafkaoffset")?,
            time_ms: time.map_or(0, |time| time.timestamp_millis()),
            record,
        };
        Ok(Self { delivered, namespace, name, topic })
    }
}

fn decoded(text: &str) -> Result<Bytes, String> {
    BASE64_STANDARD.decode(text).map(Bytes::from).map_err(not_whole)
}

fn not_whole(why: impl Display) -> String {
    format!("the raw record is not whole: {why}")
}

/// The event without what describes an undeliverable record: a replay sends the record's value.
pub(crate) fn without_record(event: &Event) -> Cow<'_, Event> {
    if event.attribute("type") != Some(UNDELIVERABLE) {
        return Cow::Borrowed(event);
    }
    let mut event = event.clone();
    event.attributes.retain(|(name, _)| !RECORD.contains(&name.as_str()));
    Cow::Owned(event)
}

fn beginning(bytes: &Bytes, limit: usize, name: &'static str, cut: &mut Vec<&'static str>) -> Bytes {
    if bytes.len() > limit {
        cut.push(name);
    }
    bytes.slice(..bytes.len().min(limit))
}

/// The record's headers as JSON, as many as there is room for.
fn headers(record: &Record, cut: &mut Vec<&'static str>) -> String {
    let mut room = MAX_HEADERS;
    let mut kept = Vec::new();
    for (name, value) in &record.headers {
        let size = 8 + 6 * name.len() + value.as_ref().map_or(0, Bytes::len).div_ceil(3) * 4;
        if size > room {
            cut.push("headers");
            break;
        }
        room -= size;
        kept.push((name, value.as_ref().map(|value| BASE64_STANDARD.encode(value))));
    }
    // Pairs of strings or nulls have no way to fail to serialise.
    serde_json::to_string(&kept).unwrap_or_default()
}
