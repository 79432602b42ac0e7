//! Validation of attributes, the same for all modes.

use chrono::{DateTime, Datelike, SecondsFormat, Timelike, Utc};
use iri_string::{spec::IriSpec, validate};

use crate::{
    Event, InvalidEvent,
    limits::{MAX_ATTRIBUTE_NAME, MAX_ATTRIBUTES, MAX_ATTRIBUTES_SIZE},
    media,
};

/// Largest UTC offset that Java's clients accept, seconds.
const MAX_OFFSET_S: i32 = 18 * 3600;
/// Most digits of a second's fraction that all clients read: nanoseconds.
const MAX_FRACTION_DIGITS: usize = 9;

/// Checks an attribute's name; `Err` names it.
pub(crate) fn check_name(name: &str) -> Result<(), InvalidEvent> {
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(InvalidEvent::attribute(name, "must be named with lower-case letters and digits alone"));
    }
    if name.len() > MAX_ATTRIBUTE_NAME {
        return Err(InvalidEvent::attribute(
            name,
            format!("is too long a name; it may have {MAX_ATTRIBUTE_NAME} characters"),
        ));
    }
    match name {
        "data" => Err(InvalidEvent::attribute(name, "cannot be an attribute; it is the body")),
        "datacontenttype" => Err(InvalidEvent::attribute(name, "goes into the header `Content-Type`")),
        _ => Ok(()),
    }
}

/// The error for more attributes than anybody could send.
pub(crate) fn too_many(name: &str) -> InvalidEvent {
    InvalidEvent::attribute(
        name,
        format!("is one too many: an event may have at most {MAX_ATTRIBUTES} attributes"),
    )
}

/// The normalised event, or what is wrong with it.
pub(crate) fn checked(mut event: Event) -> Result<Event, InvalidEvent> {
    if let Some((name, _)) = event.attributes.get(MAX_ATTRIBUTES) {
        return Err(too_many(name));
    }
    for (name, value) in &mut event.attributes {
        check_name(name)?;
        check_value(name, value)?;
    }
    for required in ["specversion", "id", "source", "type"] {
        if event.attribute(required).is_none() {
            return Err(InvalidEvent::attribute(required, "is missing"));
        }
    }
    if let Some(kind) = &mut event.content_type {
        *kind = kind.trim().to_owned();
        if let Some(why) = media::fault(kind) {
            return Err(InvalidEvent::attribute("datacontenttype", why));
        }
    }
    event.check_size(MAX_ATTRIBUTES_SIZE)?;
    Ok(event)
}

fn check_value(name: &str, value: &mut String) -> Result<(), InvalidEvent> {
    let fault = |why: &str| Err(InvalidEvent::attribute(name, why));
    match name {
        "specversion" if value != "1.0" => {
            fault("(in binary mode the header `ce-specversion`) must be `1.0`")
        }
        "id" | "type" | "subject" if value.is_empty() => fault("must not be empty"),
        "source" if !is_uri_reference(value) => fault("must be a URI or a relative reference, and not empty"),
        "dataschema" if !is_absolute_uri(value) => fault("must be an absolute URI"),
        "time" => {
            *value = time(value).map_err(|why| InvalidEvent::attribute(name, why))?;
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Whether an attribute's type is a URI, which binary mode may carry without percent-encoding.
pub(crate) fn is_uri(name: &str, value: &str) -> Option<bool> {
    match name {
        "source" => Some(is_uri_reference(value)),
        "dataschema" => Some(is_absolute_uri(value)),
        _ => None,
    }
}

/// A reference of RFC 3986 or 3987 that Java and Go accept, too.
fn is_uri_reference(text: &str) -> bool {
    // Java's `URI` rejects an empty part after the scheme, and an empty authority without a path.
    let before_fragment = text.split('#').next().unwrap_or_default();
    let is_hollow =
        text.is_empty() || before_fragment.ends_with(':') || text.ends_with("//") && is_authority(text);
    !is_hollow && !text.contains(char::is_whitespace) && validate::iri_reference::<IriSpec>(text).is_ok()
}

/// Whether what ends with `//` has nothing else but perhaps a scheme.
fn is_authority(text: &str) -> bool {
    text == "//" || text.ends_with("://") && text.matches('/').count() == 2
}

fn is_absolute_uri(text: &str) -> bool {
    is_uri_reference(text) && validate::iri::<IriSpec>(text).is_ok()
}

/// A time that all clients accept: RFC 3339 with `T`, no leap second, an offset of at most 18 hours, at most nine
/// fractional digits. Other forms are rewritten in UTC.
fn time(text: &str) -> Result<String, &'static str> {
    const FAULT: &str = "must be a time of RFC 3339 like `2018-04-05T03:56:24Z`";
    let upper = text.to_ascii_uppercase();
    if upper.as_bytes().get(10) != Some(&b'T') || !upper.is_ascii() {
        return Err(FAULT);
    }
    let time = DateTime::parse_from_rfc3339(&upper).map_err(|_| FAULT)?;
    let utc = time.with_timezone(&Utc);
    if time.nanosecond() >= 1_000_000_000 {
        return Err("must not be a leap second");
    }
    if !(1..=9999).contains(&utc.year()) {
        return Err("must lie in the years 0001 to 9999 in UTC");
    }
    let fraction = upper.split_once('.').map_or("", |(_, rest)| rest);
    let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
    let is_common = time.offset().local_minus_utc().abs() <= MAX_OFFSET_S && digits <= MAX_FRACTION_DIGITS;
    Ok(if is_common { upper } else { utc.to_rfc3339_opts(SecondsFormat::AutoSi, true) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_one_that_every_client_reads() {
        for (text, written) in [
            ("2018-04-05T03:56:24Z", "2018-04-05T03:56:24Z"),
            ("2018-04-05t03:56:24.5z", "2018-04-05T03:56:24.5Z"),
            ("2018-04-05T03:56:24.123456789+18:00", "2018-04-05T03:56:24.123456789+18:00"),
            ("2018-04-05T23:56:24+23:56", "2018-04-05T00:00:24Z"),
            ("2018-04-05T03:56:24.1234567891Z", "2018-04-05T03:56:24.123456789Z"),
            ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
            ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(time(text).as_deref(), Ok(written), "{text}");
        }
        for text in [
            "",
            "yesterday",
            "2018-04-05",
            "2018-04-05 03:56:24Z",
            "2018-04-05T03:56:24",
            "2016-12-31T23:59:60Z",
            "9999-12-31T23:59:59-01:00",
            "0001-01-01T00:00:00+01:00",
            "0000-01-01T00:00:00Z",
            "+10000-01-01T00:00:00Z",
            "10000-01-01T00:00:00Z",
            "2018-13-05T03:56:24Z",
            "2018-04-05T24:00:00Z",
            "2018-04-05T03:56:24+24:00",
            "２018-04-05T03:56:24Z",
        ] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_source_is_a_reference_that_java_and_go_read() {
        for text in [
            "/",
            "/s",
            "s",
            "?q",
            "#f",
            "urn:event:1",
            "https://h:1/p?q#f",
            "/é",
            "a/b:c",
            "mailto:a@b",
            "//h",
        ] {
            assert!(is_uri_reference(text), "{text}");
        }
        for text in [
            "", " ", "/a b", "a:", "a:#f", "//", "http://", ":a", "1:a", "/%", "/%zz", "/<", "/\"",
            "/\u{a0}", "a\nb",
        ] {
            assert!(!is_uri_reference(text), "{text}");
        }
        assert!(
            is_absolute_uri("urn:schema:1") && is_absolute_uri("https://h/s#f") && !is_absolute_uri("/s")
        );
    }
}
