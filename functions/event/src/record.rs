//! Log records: an event's record in Kafka's binary mode, and the event that a KafkaSource makes of any record.

use std::{collections::HashMap, fmt::Display};

use bytes::Bytes;
use chrono::{DateTime, Datelike, SecondsFormat};

use crate::{Event, STRUCTURED, Undecodable, json, media};

/// Type of the event that a source wraps around a record that is no CloudEvent.
const PLAIN_RECORD: &str = "dev.knative.kafka.event";

/// Key, headers and value; the log adds partition, offset and time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// Determines the partition: a user's id.
    pub key: Option<Bytes>,
    /// In order; names are as given (`ce_id`, `content-type`, …). Kafka knows headers without a value: `None`, which is
    /// not the empty value.
    pub headers: Vec<(String, Option<Bytes>)>,
    /// The data; `None` is a tombstone.
    pub value: Option<Bytes>,
}

impl Record {
    /// The value of the first header of that name that has one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&Bytes> {
        self.values().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Adds a header with a value.
    pub fn push_header(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        self.headers.push((name.into(), Some(value.into())));
    }

    /// The headers that have a value. Events are read from these alone, as CloudEvents' own readers do.
    fn values(&self) -> impl Iterator<Item = (&str, &Bytes)> {
        self.headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_ref()?)))
    }

    /// Size of key, headers and value, including the memory of the header list, bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let bytes = |field: &Option<Bytes>| field.as_ref().map_or(0, Bytes::len);
        let header = |(name, value): &(String, Option<Bytes>)| {
            size_of_val(name) + size_of_val(value) + name.len() + bytes(value)
        };
        bytes(&self.key) + bytes(&self.value) + self.headers.iter().map(header).sum::<usize>()
    }

    /// The header `content-type` as text.
    pub(crate) fn content_type(&self) -> Option<String> {
        self.header("content-type").map(|value| String::from_utf8_lossy(value).into_owned())
    }
}

/// A record as delivered by the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered {
    /// Which partition, from 0.
    pub partition: i32,
    /// Position in the partition; grows, not always by one.
    pub offset: i64,
    /// When it was appended, milliseconds since 1970 UTC.
    pub time_ms: i64,
    /// The record itself.
    pub record: Record,
}

/// Where a record was read, for the attributes that a KafkaSource makes of it.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// The source's namespace.
    pub namespace: &'a str,
    /// The source's name.
    pub name: &'a str,
    /// The topic.
    pub topic: &'a str,
}

impl Origin<'_> {
    /// The `source` of events that a KafkaSource makes.
    #[must_use]
    pub fn source(&self) -> String {
        let Self { namespace, name, topic } = self;
        format!("/apis/v1/namespaces/{namespace}/kafkasources/{name}#{topic}")
    }
}

impl Event {
    /// The event that a KafkaSource makes of a record: the one it contains, or a wrapper. `partition` and `offset` are
    /// set to the record's own.
    pub fn of_record(delivered: &Delivered, origin: Origin<'_>) -> Result<Self, Undecodable> {
        let mut event = Self::from_record(delivered, origin)?;
        event.set_place(&delivered.partition, &delivered.offset);
        Ok(event)
    }

    /// The event in a record, or a wrapper, without its position.
    pub fn from_record(delivered: &Delivered, origin: Origin<'_>) -> Result<Self, Undecodable> {
        let record = &delivered.record;
        let content_type = record.content_type();
        if content_type.as_deref().is_some_and(|kind| media::essence(kind) == STRUCTURED) {
            return Ok(json::structured(record.value.as_deref().unwrap_or_default())?);
        }
        if record.header("ce_specversion").is_some() {
            return Self::binary_record(record, content_type);
        }
        let position: (&dyn Display, &dyn Display) = (&delivered.partition, &delivered.offset);
        let mut event = Self::around(origin.source(), Some(position));
        event.attributes.extend(time(delivered.time_ms).map(|time| ("time".to_owned(), time)));
        if let Some(key) = &record.key {
            event.set_key(&String::from_utf8_lossy(key));
        }
        event.set_record_headers(record);
        // Drop a content type that HTTP cannot express: the record is still usable.
        event.content_type = content_type.filter(|kind| http::HeaderValue::try_from(kind).is_ok());
        event.data = record.value.clone().unwrap_or_default();
        Ok(event)
    }

    /// The record that a KafkaSink makes of the event: binary mode, its key the extension `partitionkey`.
    #[must_use]
    pub fn to_record(&self) -> Record {
        let key = self.attribute("partitionkey").map(|key| Bytes::from(key.to_owned()));
        let headers = Vec::with_capacity(self.attributes.len() + 1);
        let mut record = Record { key, headers, value: Some(self.data.clone()) };
        for (name, value) in &self.attributes {
            record.push_header(format!("ce_{name}"), value.clone());
        }
        if let Some(content_type) = &self.content_type {
            record.push_header("content-type", content_type.clone());
        }
        record
    }

    fn binary_record(record: &Record, content_type: Option<String>) -> Result<Self, Undecodable> {
        let mut event =
            Self { content_type, data: record.value.clone().unwrap_or_default(), ..Self::default() };
        let mut seen = HashMap::with_capacity(record.headers.len());
        for (header, value) in record.values() {
            let Some(name) = header.strip_prefix("ce_") else { continue };
            let name = name.to_ascii_lowercase();
            let value = std::str::from_utf8(value)
                .map_err(|_| Undecodable::new(format!("the header {header:?} is not UTF-8")))?;
            if seen.insert(name.clone(), ()).is_some() {
                return Err(Undecodable::new(format!("the header {header:?} is there twice")));
            }
            event.attributes.push((name, value.to_owned()));
        }
        for required in ["id", "source", "type"] {
            if event.attribute(required).is_none_or(str::is_empty) {
                return Err(Undecodable::new(format!("the header ce_{required} is missing")));
            }
        }
        Ok(event)
    }

    /// The wrapper of a record that is no CloudEvent; `place` is its partition and offset.
    pub(crate) fn around(source: String, position: Option<(&dyn Display, &dyn Display)>) -> Self {
        let Some((partition, offset)) = position else {
            // The connector gave no position. A user's identity does not depend on the event's id.
            return Self::new(uuid::Uuid::now_v7(), source, PLAIN_RECORD);
        };
        let mut event = Self::new(format!("partition:{partition}/offset:{offset}"), source, PLAIN_RECORD);
        event.set("subject", format!("partition:{partition}#{offset}"));
        event
    }

    /// Adds the record's position to the event.
    pub(crate) fn set_place(&mut self, partition: &dyn Display, offset: &dyn Display) {
        self.set("knativekafkapartition", partition.to_string());
        self.set("knativekafkaoffset", offset.to_string());
    }

    /// The record's key, in the two extensions that a KafkaSource writes.
    pub(crate) fn set_key(&mut self, key: &str) {
        self.set("partitionkey", key);
        self.set("key", key);
    }

    /// Each header as an extension; if names collide, the last one wins.
    fn set_record_headers(&mut self, record: &Record) {
        let mut indexes: HashMap<String, usize> = HashMap::new();
        for (name, value) in record.values() {
            let name = format!("kafkaheader{}", extension_name(name));
            let value = String::from_utf8_lossy(value).into_owned();
            if let Some(index) = indexes.get(&name) {
                self.attributes[*index].1 = value;
            } else {
                indexes.insert(name.clone(), self.attributes.len());
                self.attributes.push((name, value));
            }
        }
    }
}

/// A record's time; `None` if CloudEvents cannot express it.
pub(crate) fn time(time_ms: i64) -> Option<String> {
    let time = DateTime::from_timestamp_millis(time_ms)?;
    (1..=9999).contains(&time.year()).then(|| time.to_rfc3339_opts(SecondsFormat::Millis, true))
}

/// What may stand in an extension's name of it.
pub(crate) fn extension_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}
