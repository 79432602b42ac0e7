//! A record that cannot be sent, as a dead letter: an event around the raw record, and the way back.

use backend_log::Delivered;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use serde::{Deserialize, Serialize};
use shared::record::Record;

use crate::event::{Event, Origin};

/// Type of the event. It only tells people what they see: the record header tells such a dead letter from an event of
/// this type that somebody sent.
const TYPE: &str = "dev.lambda-architecture.record.undeliverable";

/// The data of the event.
#[derive(Serialize, Deserialize)]
struct RawRecord {
    reason: String,
    namespace: String,
    source: String,
    topic: String,
    partition: i32,
    offset: i64,
    time_ms: i64,
    key_base64: Option<String>,
    /// Names and values in Base64.
    headers: Vec<(String, String)>,
    data_base64: Option<String>,
}

/// The event around a record.
pub(crate) fn event(delivered: &Delivered, origin: Origin<'_>, why: &str) -> Event {
    let Delivered { partition, offset, time_ms, record } = delivered;
    let Origin { namespace, name, topic } = origin;
    let raw = RawRecord {
        reason: why.to_owned(),
        namespace: namespace.to_owned(),
        source: name.to_owned(),
        topic: topic.to_owned(),
        partition: *partition,
        offset: *offset,
        time_ms: *time_ms,
        key_base64: record.key.as_ref().map(encoded),
        headers: record.headers.iter().map(|(name, value)| (name.clone(), encoded(value))).collect(),
        data_base64: record.value.as_ref().map(encoded),
    };
    let time = DateTime::from_timestamp_millis(*time_ms).unwrap_or_default();
    let mut attributes = vec![
        ("specversion".to_owned(), "1.0".to_owned()),
        ("type".to_owned(), TYPE.to_owned()),
        ("id".to_owned(), format!("partition:{partition}/offset:{offset}")),
        ("source".to_owned(), format!("/apis/v1/namespaces/{namespace}/kafkasources/{name}#{topic}")),
        ("subject".to_owned(), format!("partition:{partition}#{offset}")),
        ("time".to_owned(), time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        ("knativekafkapartition".to_owned(), partition.to_string()),
        ("knativekafkaoffset".to_owned(), offset.to_string()),
        ("knativeerrordata".to_owned(), BASE64_STANDARD.encode(&why.as_bytes()[..why.len().min(1_024)])),
    ];
    let key = record.key.as_ref().and_then(|key| String::from_utf8(key.to_vec()).ok());
    attributes.extend(key.map(|key| ("partitionkey".to_owned(), key)));
    let data = serde_json::to_vec(&raw).unwrap_or_default();
    Event { attributes, content_type: Some("application/json".to_owned()), data: data.into() }
}

/// Tries to make of the record inside what its source would send now; the error says why it still cannot.
pub(crate) fn retry(event: &Event) -> Result<Event, String> {
    let raw: RawRecord =
        serde_json::from_slice(&event.data).map_err(|e| format!("the raw record is not whole: {e}"))?;
    let record = Record {
        key: raw.key_base64.as_deref().map(decoded).transpose()?,
        headers: raw
            .headers
            .into_iter()
            .map(|(name, value)| Ok((name, decoded(&value)?)))
            .collect::<Result<_, String>>()?,
        value: raw.data_base64.as_deref().map(decoded).transpose()?,
    };
    let delivered = Delivered { partition: raw.partition, offset: raw.offset, time_ms: raw.time_ms, record };
    let origin = Origin { namespace: &raw.namespace, name: &raw.source, topic: &raw.topic };
    Event::of_record(&delivered, origin).map_err(|why| why.to_string())
}

fn encoded(bytes: &Bytes) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn decoded(text: &str) -> Result<Bytes, String> {
    BASE64_STANDARD.decode(text).map(Bytes::from).map_err(|e| format!("the raw record is not whole: {e}"))
}
