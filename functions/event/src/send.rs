//! Writes binary mode: the request that a source sends.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, header::CONTENT_TYPE};

use crate::{Event, InvalidEvent, Undecodable, dead_letter, media, percent};

impl Event {
    /// The binary-mode request that a source sends. `Undecodable` if HTTP or a receiver's limits forbid it.
    pub fn to_request(&self, namespace: &str) -> Result<Request<Bytes>, Undecodable> {
        let event = dead_letter::without_record(self);
        event.check_sendable()?;
        let mut headers = HeaderMap::new();
        for (name, value) in &event.attributes {
            let header = HeaderName::try_from(format!("ce-{name}")).map_err(Undecodable::new)?;
            let value = percent::encoded(value);
            let value = HeaderValue::try_from(value).map_err(Undecodable::new)?;
            if headers.try_insert(header, value).map_err(Undecodable::new)?.is_some() {
                return Err(InvalidEvent::attribute(name, "is there twice").into());
            }
        }
        if let Some(content_type) = &event.content_type {
            if media::is_cloud_event(content_type) {
                return Err(
                    InvalidEvent::attribute("datacontenttype", "would be taken for another event").into()
                );
            }
            headers.insert(CONTENT_TYPE, HeaderValue::try_from(content_type).map_err(Undecodable::new)?);
        }
        headers.insert("prefer", HeaderValue::from_static("reply"));
        headers.insert("kn-namespace", HeaderValue::try_from(namespace).map_err(Undecodable::new)?);
        let mut request = Request::new(event.data.clone());
        *request.method_mut() = Method::POST;
        *request.headers_mut() = headers;
        Ok(request)
    }
}
