//! CloudEvents' JSON format: structured and batched mode. The work is linear in the input: members are counted while
//! they are read, and reading stops when there are too many.

use std::fmt;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use crate::{Event, InvalidEvent, attribute, error::printable, limits::MAX_ATTRIBUTES, media};

/// Maximum number of members: attributes, `datacontenttype`, `data` and `data_base64`.
const MAX_MEMBERS: usize = MAX_ATTRIBUTES + 3;
/// Attributes that are strings in JSON, too.
const STRINGS: [&str; 8] =
    ["specversion", "id", "source", "type", "subject", "time", "dataschema", "datacontenttype"];
/// What serde_json takes for something else than a member's name.
const MAGIC: &[u8] = b"$serde_json::private::";
const BOM: &[u8] = "\u{feff}".as_bytes();

/// Reads an event in structured mode.
pub(crate) fn structured(body: &[u8]) -> Result<Event, InvalidEvent> {
    decode(utf8(body)?)
}

/// JSON without a byte order mark, which some editors and clients add (RFC 8259 allows a reader to ignore it).
#[must_use]
pub fn without_bom(json: &[u8]) -> &[u8] {
    json.strip_prefix(BOM).unwrap_or(json)
}

pub(crate) fn utf8(body: &[u8]) -> Result<&str, InvalidEvent> {
    std::str::from_utf8(without_bom(body))
        .map_err(|e| InvalidEvent::message(format!("the CloudEvent's JSON must be UTF-8: {e}")))
}

/// Reads an event in structured mode.
pub(crate) fn decode(json: &str) -> Result<Event, InvalidEvent> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let members = (&mut deserializer)
        .deserialize_map(Members)
        .and_then(|members| deserializer.end().map(|()| members))
        .map_err(|e| InvalidEvent::message(format!("the CloudEvent must be a JSON object: {e}")))?;
    let (mut event, mut data, mut base64) = (Event::default(), None, None);
    for (name, raw) in members {
        match name.as_str() {
            "data" => data = Some(raw).filter(|raw| raw.get() != "null"),
            "data_base64" => base64 = Some(raw).filter(|raw| raw.get() != "null"),
            "datacontenttype" => event.content_type = text(&name, raw)?,
            _ => {
                attribute::check_name(&name)?;
                if let Some(value) = text(&name, raw)? {
                    event.attributes.push((name, value));
                }
            }
        }
    }
    event.data = match (data, base64) {
        (Some(_), Some(_)) => {
            return Err(InvalidEvent::message("`data` and `data_base64` exclude each other"));
        }
        (Some(raw), None) => content(raw, event.content_type.as_deref())?,
        (None, Some(raw)) => from_base64(raw)?,
        (None, None) => Bytes::new(),
    };
    attribute::checked(event)
}

/// Reads a batch, and stops at the first invalid event.
///
/// Returns the events before it and its error; `Err` if the batch is no JSON array.
pub(crate) fn decode_batch(json: &str) -> Result<(Vec<Event>, Option<InvalidEvent>), InvalidEvent> {
    let (mut events, mut failure) = (Vec::new(), None);
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let read = (&mut deserializer)
        .deserialize_seq(Items { events: &mut events, failure: &mut failure })
        .and_then(|()| deserializer.end());
    match read {
        Err(e) if failure.is_none() => {
            Err(InvalidEvent::message(format!("the batch must be a JSON array of CloudEvents: {e}")))
        }
        _ => Ok((events, failure)),
    }
}

/// A member's value as text; `null` means absent. Numbers and booleans are CloudEvents' Integer and Boolean.
fn text(name: &str, raw: &RawValue) -> Result<Option<String>, InvalidEvent> {
    let json = raw.get();
    let is_string_only = STRINGS.contains(&name);
    match json.as_bytes().first() {
        Some(b'n') => Ok(None),
        Some(b'"') => serde_json::from_str(json).map(Some).map_err(|e| {
            InvalidEvent::attribute(name, format!("must be a string of Unicode characters: {e}"))
        }),
        _ if is_string_only => Err(InvalidEvent::attribute(name, "must be a string")),
        Some(b't' | b'f') => Ok(Some(json.to_owned())),
        Some(b'-' | b'0'..=b'9') => {
            json.parse::<i32>().map(|number| Some(number.to_string())).map_err(|_| {
                InvalidEvent::attribute(name, "must be an integer of 32 bits; send other numbers as strings")
            })
        }
        _ => Err(InvalidEvent::attribute(name, "must be a string, an integer of 32 bits or a boolean")),
    }
}

/// The bytes of `data`: JSON as written, or the content of a string if the type is not JSON.
fn content(raw: &RawValue, content_type: Option<&str>) -> Result<Bytes, InvalidEvent> {
    let is_json = content_type.is_none_or(media::is_json);
    if is_json || !raw.get().starts_with('"') {
        return Ok(Bytes::copy_from_slice(raw.get().as_bytes()));
    }
    let text: String = serde_json::from_str(raw.get())
        .map_err(|e| InvalidEvent::message(format!("`data` must be a string of Unicode characters: {e}")))?;
    Ok(text.into())
}

fn from_base64(raw: &RawValue) -> Result<Bytes, InvalidEvent> {
    let text: String = serde_json::from_str(raw.get())
        .map_err(|e| InvalidEvent::message(format!("`data_base64` must be a string: {e}")))?;
    let bytes = BASE64_STANDARD
        .decode(text)
        .map_err(|e| InvalidEvent::message(format!("`data_base64` must be Base64: {e}")))?;
    Ok(bytes.into())
}

/// The members of a JSON object in order; duplicates are an error.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Self::Value::new();
        while let Some(name) = map.next_key::<String>()? {
            if members.len() == MAX_MEMBERS {
                return Err(A::Error::custom(format!(
                    "`{}` is one too many: an event may have at most {MAX_ATTRIBUTES} attributes",
                    printable(&name)
                )));
            }
            // At most MAX_MEMBERS names are compared.
            if members.iter().any(|(n, _)| *n == name) {
                return Err(A::Error::custom(format!("duplicate field `{}`", printable(&name))));
            }
            members.push((name, map.next_value()?));
        }
        Ok(members)
    }
}

/// The events of a batch, up to the first invalid one.
struct Items<'a> {
    events: &'a mut Vec<Event>,
    failure: &'a mut Option<InvalidEvent>,
}

impl<'de> Visitor<'de> for Items<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while let Some(raw) = seq.next_element_seed(Raw)? {
            match decode(raw.get()) {
                Ok(event) => self.events.push(event),
                Err(invalid) => {
                    *self.failure = Some(invalid);
                    return Err(A::Error::custom("an event of the batch is invalid"));
                }
            }
        }
        Ok(())
    }
}

/// Borrows an element's text.
struct Raw;

impl<'de> DeserializeSeed<'de> for Raw {
    type Value = &'de RawValue;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}

impl Event {
    /// The event in structured mode (CloudEvents' JSON format); an array of these is a batch. Data that is not JSON, or
    /// would not survive a round trip, is in `data_base64`.
    #[must_use]
    pub fn to_structured(&self) -> Value {
        let text = |(name, value): &(String, String)| (name.clone(), Value::from(value.clone()));
        let mut members: Map<_, _> = self.attributes.iter().map(text).collect();
        members
            .extend(self.content_type.iter().map(|t| ("datacontenttype".to_owned(), Value::from(t.clone()))));
        if let Some(data) = self.json_data() {
            members.insert("data".to_owned(), data);
        } else if !self.data.is_empty() {
            members.insert("data_base64".to_owned(), BASE64_STANDARD.encode(&self.data).into());
        }
        Value::Object(members)
    }

    /// The data as JSON, if it is. A missing content type means JSON, as in binary mode.
    fn json_data(&self) -> Option<Value> {
        let is_json = self.content_type.as_deref().is_none_or(media::is_json);
        let is_plain = !self.data.windows(MAGIC.len()).any(|window| window == MAGIC);
        if !is_json || !is_plain {
            return None;
        }
        // `null` would be read as no data.
        serde_json::from_slice(&self.data).ok().filter(|data: &Value| !data.is_null())
    }
}
