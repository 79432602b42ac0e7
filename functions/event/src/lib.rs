//! CloudEvents 1.0: one `Event`, read from and written to HTTP (binary, structured, batched), log records and JSON.
//!
//! Attributes stay text, and the data stays the bytes received: what is only forwarded is never parsed. Does no I/O;
//! knows neither users nor the log.

mod attribute;
mod binary;
mod build;
mod connector;
mod dead_letter;
mod error;
mod json;
mod limits;
mod media;
mod percent;
mod receive;
mod record;
mod send;

use bytes::Bytes;
pub use cloudevents::{EventBuilder, EventBuilderV10};

pub use crate::{
    dead_letter::{Answer, RawRecord, UNDELIVERABLE, Undelivered},
    error::{InvalidEvent, Undecodable},
    json::without_bom,
    limits::{
        MAX_ADMITTED_EXTENSIONS, MAX_ADMITTED_SIZE, MAX_ATTRIBUTE_NAME, MAX_ATTRIBUTES, MAX_ATTRIBUTES_SIZE,
    },
    media::{BATCHED, STRUCTURED, is_json, media_type},
    receive::Received,
    record::{Delivered, Origin, Record},
};

/// An event: its attributes as text, and the bytes of its data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// Attributes and extensions by name, including `specversion`, excluding `datacontenttype`. Names are unique.
    pub attributes: Vec<(String, String)>,
    /// Media type of the data (`datacontenttype`); if absent, JSON.
    pub content_type: Option<String>,
    /// The data; empty when there is none.
    pub data: Bytes,
}

impl Event {
    /// An event with the required attributes and no data.
    #[must_use]
    pub fn new(id: impl Into<String>, source: impl Into<String>, kind: impl Into<String>) -> Self {
        let attributes = [
            ("specversion", "1.0".to_owned()),
            ("id", id.into()),
            ("source", source.into()),
            ("type", kind.into()),
        ];
        let attributes = attributes.map(|(name, value)| (name.to_owned(), value)).into();
        Self { attributes, content_type: None, data: Bytes::new() }
    }

    /// The value of an attribute or extension.
    #[must_use]
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Sets an attribute or extension.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        match self.attributes.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value.into(),
            None => self.attributes.push((name.to_owned(), value.into())),
        }
    }
}
