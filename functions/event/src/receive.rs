//! Reads the events of a request in any mode. This module decides what a valid event is.

use bytes::Bytes;
use http::HeaderMap;

use crate::{
    BATCHED, Event, InvalidEvent, STRUCTURED, binary, connector, is_json, json,
    limits::{MAX_ADMITTED_EXTENSIONS, MAX_ADMITTED_SIZE},
    media,
};

/// Maximum length of `traceparent` and `tracestate` that are forwarded, bytes (W3C Trace Context requires 55 and 512).
const MAX_TRACE: [(&str, usize); 2] = [("traceparent", 128), ("tracestate", 512)];

/// The events of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    /// In the order of the batch; one event in the other modes.
    pub events: Vec<Event>,
    /// The error of the next event of the batch, at which reading stopped.
    pub failure: Option<InvalidEvent>,
    /// Whether it came in batched mode.
    pub is_batch: bool,
}

impl Received {
    /// Reads the event or batch that a request carries, or that an OpenFaaS connector's request stands for.
    ///
    /// An event may be as large as one that passed through the log and the dead letters; `Event::admit` checks whether
    /// it may enter the log.
    pub fn from_http(headers: &HeaderMap, body: &Bytes) -> Result<Self, InvalidEvent> {
        let mut received = Self::read(headers, body)?;
        for event in &mut received.events {
            carry_trace(headers, event);
        }
        Ok(received)
    }

    fn read(headers: &HeaderMap, body: &Bytes) -> Result<Self, InvalidEvent> {
        if let Some(event) = connector::event(headers, body) {
            return Ok(event?.into());
        }
        let content_type = binary::content_type(headers)?.unwrap_or_default();
        match media::essence(&content_type).as_str() {
            BATCHED => {
                let (events, failure) = json::decode_batch(json::utf8(body)?)?;
                Ok(Self { events, failure, is_batch: true })
            }
            STRUCTURED => Ok(json::structured(body)?.into()),
            other if media::is_cloud_event(other) => Err(InvalidEvent::media_type(format!(
                "`{other}` is not understood; send {STRUCTURED} or {BATCHED}"
            ))),
            _ if headers.contains_key("ce-specversion") => Ok(binary::decode(headers, body)?.into()),
            // Without `ce-` headers it is some other JSON, or none.
            other if other.is_empty() || is_json(other) => Err(InvalidEvent::message(
                "this is no CloudEvent: the header `ce-specversion: 1.0` and the other `ce-` headers are missing",
            )),
            other => Err(InvalidEvent::media_type(format!(
                "`{other}` is not understood; send a CloudEvent in binary mode, {STRUCTURED} or {BATCHED}"
            ))),
        }
    }
}

impl From<Event> for Received {
    fn from(event: Event) -> Self {
        Self { events: vec![event], ..Self::default() }
    }
}

/// Forwards the request's trace with the event, as far as it fits: an event that may enter the log may do so with it.
fn carry_trace(headers: &HeaderMap, event: &mut Event) {
    for (name, longest) in MAX_TRACE {
        let value = headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let is_fit = (1..=longest).contains(&value.len()) && !value.contains('\t');
        let has_room = event.extensions().count() < MAX_ADMITTED_EXTENSIONS
            && event.encoded_size() + longest <= MAX_ADMITTED_SIZE;
        if is_fit && has_room && event.attribute(name).is_none() {
            event.set(name, value);
        }
    }
}

impl Event {
    /// Adds the request's trace to the event.
    pub fn carry_trace(&mut self, headers: &HeaderMap) {
        carry_trace(headers, self);
    }
}
