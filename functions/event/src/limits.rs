//! Size limits of events. An acknowledged event passes servers that limit headers: a KafkaSink takes 8 KiB, hyper 100
//! headers over HTTP/1.1 and 16 KiB over HTTP/2. So `ingest` admits less than functions accept: the difference is room
//! for what sources, proxies and dead letters add.

use crate::{Event, InvalidEvent, error::Undecodable, percent};

/// Maximum length of an attribute's name, bytes. CloudEvents advises 20; KafkaSource's own names are longer.
pub const MAX_ATTRIBUTE_NAME: usize = 64;
/// Most attributes, extensions included, of an event that is received or sent.
pub const MAX_ATTRIBUTES: usize = 64;
/// Most bytes of the names and percent-encoded values of all attributes of an event that is received or sent.
pub const MAX_ATTRIBUTES_SIZE: usize = 12 * 1024;
/// Most extensions of an event that is admitted to the log.
pub const MAX_ADMITTED_EXTENSIONS: usize = 32;
/// Most bytes of the names and percent-encoded values of all attributes of an event that is admitted to the log.
pub const MAX_ADMITTED_SIZE: usize = 4 * 1024;

/// Attributes that CloudEvents defines; all others are extensions.
const DEFINED: [&str; 7] = ["specversion", "id", "source", "type", "subject", "time", "dataschema"];
/// Prefix of the extensions that describe a dead letter: clients may not set them.
const RESERVED: &str = "knativeerror";

impl Event {
    /// Bytes of the names and percent-encoded values of all attributes and of the content type.
    pub(crate) fn encoded_size(&self) -> usize {
        let size = |(name, value): &(String, String)| name.len() + percent::encoded_len(value);
        self.attributes.iter().map(size).sum::<usize>() + self.content_type.as_ref().map_or(0, String::len)
    }

    /// Attributes that CloudEvents does not define.
    pub(crate) fn extensions(&self) -> impl Iterator<Item = &(String, String)> {
        self.attributes.iter().filter(|(name, _)| !DEFINED.contains(&name.as_str()))
    }

    /// Checks whether an event may be acknowledged: it fits on every hop to the functions and, with the reason added,
    /// into the dead letters and back. The error names the attribute to change.
    pub fn admit(&self) -> Result<(), InvalidEvent> {
        if let Some((name, _)) = self.extensions().nth(MAX_ADMITTED_EXTENSIONS) {
            return Err(InvalidEvent::attribute(
                name,
                format!("is one too many: an event may have at most {MAX_ADMITTED_EXTENSIONS} extensions"),
            ));
        }
        for (name, _) in self.extensions() {
            if name.starts_with(RESERVED) {
                return Err(InvalidEvent::attribute(
                    name,
                    format!("is reserved: extensions that begin with `{RESERVED}` describe a dead letter"),
                ));
            }
        }
        for (name, value) in &self.attributes {
            if value.chars().any(char::is_control) {
                return Err(InvalidEvent::attribute(name, "must have no control characters"));
            }
        }
        self.check_size(MAX_ADMITTED_SIZE)
    }

    /// Checks the total size of all attributes; the error names the largest.
    pub(crate) fn check_size(&self, limit: usize) -> Result<(), InvalidEvent> {
        let size = self.encoded_size();
        if size <= limit {
            return Ok(());
        }
        let largest = self.attributes.iter().max_by_key(|(name, value)| name.len() + value.len());
        Err(InvalidEvent::attribute(
            largest.map_or("datacontenttype", |(name, _)| name),
            format!(
                "is too large: names and percent-encoded values of all attributes may have {limit} bytes together, \
                 they have {size}"
            ),
        ))
    }

    /// Checks whether the event fits into a request's headers.
    pub(crate) fn check_sendable(&self) -> Result<(), Undecodable> {
        let count = self.attributes.len();
        if count > MAX_ATTRIBUTES {
            return Err(Undecodable::new(format!(
                "an event with {count} attributes cannot be sent; the most are {MAX_ATTRIBUTES}"
            )));
        }
        if let Some((name, _)) = self.attributes.iter().find(|(name, _)| name.len() > MAX_ATTRIBUTE_NAME) {
            return Err(InvalidEvent::attribute(
                name,
                format!("is too long a name; it may have {MAX_ATTRIBUTE_NAME} characters"),
            )
            .into());
        }
        Ok(self.check_size(MAX_ATTRIBUTES_SIZE)?)
    }
}
