//! Media types: those of CloudEvents' modes, and what `datacontenttype` may be.

use http::{HeaderMap, header::CONTENT_TYPE};

/// Media type of structured mode.
pub const STRUCTURED: &str = "application/cloudevents+json";
/// Media type of batched mode.
pub const BATCHED: &str = "application/cloudevents-batch+json";
/// Prefix of all media types that make a receiver look for the event in the body.
const CLOUD_EVENTS: &str = "application/cloudevents";
/// Longest media type with its parameters, bytes.
const MAX_LENGTH: usize = 255;

/// The content type without its parameters, in lower case; empty when there is none.
#[must_use]
pub fn media_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    essence(text)
}

/// Whether a media type, with or without parameters, is JSON.
#[must_use]
pub fn is_json(kind: &str) -> bool {
    let kind = essence(kind);
    kind == "application/json" || kind == "text/json" || kind.ends_with("+json")
}

/// Whether data of this type would be mistaken for a structured or batched event.
pub(crate) fn is_cloud_event(kind: &str) -> bool {
    essence(kind).starts_with(CLOUD_EVENTS)
}

/// Type and subtype without parameters, in lower case.
pub(crate) fn essence(kind: &str) -> String {
    kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Why a text is no valid `datacontenttype`; `None` if it is.
pub(crate) fn fault(kind: &str) -> Option<String> {
    let (essence, parameters) = kind.split_once(';').unwrap_or((kind, ""));
    let is_token = |text: &str| {
        let is_tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        !text.is_empty() && text.bytes().all(is_tchar)
    };
    let is_type = essence.trim().split_once('/').is_some_and(|(t, sub)| is_token(t) && is_token(sub));
    if kind.len() > MAX_LENGTH {
        Some(format!("must have at most {MAX_LENGTH} bytes"))
    } else if !is_type || !parameters.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        Some("must be a media type like `application/json`".to_owned())
    } else if is_cloud_event(kind) {
        Some("must be the type of the data, not of a CloudEvent around it".to_owned())
    } else {
        None
    }
}
