//! An event on its way from a record to a request, and to a record of the dead letter.
//! Attributes stay text from end to end: nothing is parsed that is only passed on.

use backend_log::Delivered;
use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use chrono::{DateTime, SecondsFormat};
use http::{HeaderMap, HeaderName, HeaderValue, Request, header::CONTENT_TYPE};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde_json::{Map, Value};
use shared::{event, record::Record};

use crate::delivery::Failure;

/// What a CloudEvents header encodes: all but printable ASCII, and `"` and `%` of that.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// An event as a source sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Attributes and extensions by name, `datacontenttype` not among them.
    pub attributes: Vec<(String, String)>,
    /// Media type of the data.
    pub content_type: Option<String>,
    /// The data.
    pub data: Bytes,
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

/// The record cannot become an event; the words say why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(String);

impl Event {
    /// The event that a KafkaSource makes of a record: the one that it is, or a new one around it.
    pub fn of_record(delivered: &Delivered, origin: Origin<'_>) -> Result<Self, Undecodable> {
        let record = &delivered.record;
        let content_type =
            record.header("content-type").map(|value| String::from_utf8_lossy(value).into_owned());
        let mut event = if content_type.as_deref().is_some_and(|t| t.starts_with(event::STRUCTURED)) {
            Self::structured(record)?
        } else if record.header("ce_specversion").is_some() {
            Self::binary(record, content_type)?
        } else {
            Self::around(delivered, origin)
        };
        event.set("knativekafkapartition", delivered.partition.to_string());
        event.set("knativekafkaoffset", delivered.offset.to_string());
        Ok(event)
    }

    /// The value of an attribute or extension.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Sets an attribute or extension.
    pub fn set(&mut self, name: &str, value: String) {
        match self.attributes.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.attributes.push((name.to_owned(), value)),
        }
    }

    /// The request of binary mode that a source sends.
    pub fn to_request(&self, namespace: &str) -> Result<Request<Bytes>, Undecodable> {
        let mut request = Request::new(self.data.clone());
        *request.method_mut() = http::Method::POST;
        let headers = request.headers_mut();
        for (name, value) in &self.attributes {
            let name = HeaderName::try_from(format!("ce-{name}")).map_err(undecodable)?;
            let value = utf8_percent_encode(value, ENCODED).to_string();
            headers.insert(name, HeaderValue::try_from(value).map_err(undecodable)?);
        }
        if let Some(content_type) = &self.content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::try_from(content_type).map_err(undecodable)?);
        }
        headers.insert("prefer", HeaderValue::from_static("reply"));
        headers.insert("kn-namespace", HeaderValue::try_from(namespace).map_err(undecodable)?);
        Ok(request)
    }

    /// The event in structured mode (CloudEvents' JSON format); an array of these is a batch.
    #[must_use]
    pub fn to_structured(&self) -> Value {
        let text = |(name, value): &(String, String)| (name.clone(), Value::from(value.clone()));
        let mut members: Map<_, _> = self.attributes.iter().map(text).collect();
        // Without a content type data is JSON, in this format as in binary mode.
        let is_json = self.content_type.as_deref().is_none_or(event::is_json);
        members
            .extend(self.content_type.iter().map(|t| ("datacontenttype".to_owned(), Value::from(t.clone()))));
        match serde_json::from_slice(&self.data) {
            _ if self.data.is_empty() => None,
            Ok(data) if is_json => members.insert("data".to_owned(), data),
            _ => members.insert("data_base64".to_owned(), BASE64_STANDARD.encode(&self.data).into()),
        };
        Value::Object(members)
    }

    /// The record that a KafkaSink makes of the event: binary mode, its key the extension `partitionkey`.
    #[must_use]
    pub fn to_record(&self) -> Record {
        let header = |(name, value): &(String, String)| (format!("ce_{name}"), Bytes::from(value.clone()));
        let mut headers: Vec<_> = self.attributes.iter().map(header).collect();
        headers.extend(self.content_type.iter().map(|t| ("content-type".to_owned(), Bytes::from(t.clone()))));
        let key = self.attribute("partitionkey").map(|key| Bytes::from(key.to_owned()));
        Record { key, headers, value: Some(self.data.clone()) }
    }

    /// The event as it goes to the dead letter: with why, and where to it could not be delivered.
    #[must_use]
    pub fn dead(mut self, destination: &str, failure: &Failure) -> Self {
        self.set("knativeerrordest", destination.to_owned());
        let Some(answer) = &failure.answer else { return self };
        self.set("knativeerrorcode", answer.status.as_u16().to_string());
        let data = &answer.body[..answer.body.len().min(1_024)];
        self.set("knativeerrordata", BASE64_STANDARD.encode(data));
        for (name, value) in &answer.headers {
            if let (Some(name), Ok(value)) = (name.as_str().strip_prefix("kne-"), value.to_str()) {
                self.set(&format!("kne{}", extension_name(name)), value.to_owned());
            }
        }
        self
    }

    fn structured(record: &Record) -> Result<Self, Undecodable> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(event::STRUCTURED));
        let body = record.value.clone().unwrap_or_default();
        let received = event::from_http(&headers, &body).map_err(undecodable)?.pop();
        let received = received.ok_or_else(|| Undecodable("it is empty".to_owned()))?;
        let all = received.event.iter().map(|(name, value)| (name.to_owned(), value.to_string()));
        let (types, attributes): (Vec<_>, Vec<_>) = all.partition(|(name, _)| name == "datacontenttype");
        let content_type = types.into_iter().next().map(|(_, value)| value);
        Ok(Self { attributes, content_type, data: received.data })
    }

    fn binary(record: &Record, content_type: Option<String>) -> Result<Self, Undecodable> {
        let mut attributes = Vec::with_capacity(record.headers.len() + 2);
        for (name, value) in &record.headers {
            if let Some(name) = name.strip_prefix("ce_") {
                attributes.push((name.to_ascii_lowercase(), text(value)?));
            }
        }
        for required in ["id", "source", "type"] {
            if !attributes.iter().any(|(name, value)| name == required && !value.is_empty()) {
                return Err(Undecodable(format!("the header ce_{required} is missing")));
            }
        }
        Ok(Self { attributes, content_type, data: record.value.clone().unwrap_or_default() })
    }

    /// A record that is no CloudEvent.
    fn around(delivered: &Delivered, origin: Origin<'_>) -> Self {
        let Delivered { partition, offset, time_ms, record } = delivered;
        let Origin { namespace, name, topic } = origin;
        let time = DateTime::from_timestamp_millis(*time_ms).unwrap_or_default();
        let mut attributes = vec![
            ("specversion".to_owned(), "1.0".to_owned()),
            ("type".to_owned(), "dev.knative.kafka.event".to_owned()),
            ("id".to_owned(), format!("partition:{partition}/offset:{offset}")),
            ("source".to_owned(), format!("/apis/v1/namespaces/{namespace}/kafkasources/{name}#{topic}")),
            ("subject".to_owned(), format!("partition:{partition}#{offset}")),
            ("time".to_owned(), time.to_rfc3339_opts(SecondsFormat::Millis, true)),
        ];
        if let Some(key) = &record.key {
            let key = String::from_utf8_lossy(key).into_owned();
            attributes.push(("partitionkey".to_owned(), key.clone()));
            attributes.push(("key".to_owned(), key));
        }
        // What cannot be said in HTTP is left out, since the record is none the worse for it.
        let content_type = record.header("content-type").and_then(|value| {
            let value = String::from_utf8_lossy(value).into_owned();
            HeaderValue::try_from(&value).is_ok().then_some(value)
        });
        let mut event = Self { attributes, content_type, data: record.value.clone().unwrap_or_default() };
        for (name, value) in &record.headers {
            let name = format!("kafkaheader{}", extension_name(name));
            event.set(&name, String::from_utf8_lossy(value).into_owned());
        }
        event
    }
}

/// What may stand in an extension's name of it.
fn extension_name(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

fn text(value: &Bytes) -> Result<String, Undecodable> {
    Ok(std::str::from_utf8(value).map_err(undecodable)?.to_owned())
}

fn undecodable(error: impl std::fmt::Display) -> Undecodable {
    Undecodable(error.to_string())
}
