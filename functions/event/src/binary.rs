//! Reads binary mode: attributes as headers. A value is percent-encoded (UTF-8) where a header cannot hold it.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, header::CONTENT_TYPE};
use percent_encoding::percent_decode_str;

use crate::{Event, InvalidEvent, attribute, limits::MAX_ATTRIBUTES};

/// Reads the event from a request's headers and body.
pub(crate) fn decode(headers: &HeaderMap, body: &Bytes) -> Result<Event, InvalidEvent> {
    let mut event = Event { data: body.clone(), ..Event::default() };
    for (header, value) in headers {
        let Some(name) = header.as_str().strip_prefix("ce-") else { continue };
        attribute::check_name(name)?;
        if event.attributes.len() == MAX_ATTRIBUTES {
            return Err(attribute::too_many(name));
        }
        if event.attribute(name).is_some() {
            return Err(InvalidEvent::attribute(name, format!("comes twice, in the header `{header}`")));
        }
        event.attributes.push((name.to_owned(), decode_value(name, value.as_bytes())?));
    }
    event.content_type = content_type(headers)?;
    attribute::checked(event)
}

/// The request's only content type; an empty one counts as missing.
pub(crate) fn content_type(headers: &HeaderMap) -> Result<Option<String>, InvalidEvent> {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(InvalidEvent::message("the header `Content-Type` is there more than once"));
    }
    let text = first.map(|value| std::str::from_utf8(value.as_bytes())).transpose().map_err(|_| {
        InvalidEvent::attribute("datacontenttype", "(the header `Content-Type`) must be UTF-8")
    })?;
    Ok(text.filter(|text| !text.trim().is_empty()).map(str::to_owned))
}

/// A header's value, unquoted (older senders quote it) and percent-decoded once.
fn decode_value(name: &str, bytes: &[u8]) -> Result<String, InvalidEvent> {
    let not_utf8 = |_| InvalidEvent::attribute(name, "must be UTF-8");
    let text = std::str::from_utf8(bytes).map_err(not_utf8)?;
    let text = unquoted(text.trim_matches([' ', '\t']));
    let decoded = percent_decode_str(&text).decode_utf8();
    let is_usable = match &decoded {
        Ok(decoded) => attribute::is_uri(name, decoded) != Some(false),
        Err(_) => false,
    };
    // A URI is ASCII with its own escapes, and many senders do not encode those again.
    if !is_usable && attribute::is_uri(name, &text) == Some(true) {
        return Ok(text.into_owned());
    }
    Ok(decoded.map_err(not_utf8)?.into_owned())
}

/// The content of an RFC 9110 quoted string; anything else unchanged.
fn unquoted(text: &str) -> Cow<'_, str> {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return Cow::Borrowed(text);
    };
    let mut content = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match character {
            // The quotation mark at the end was escaped, or one within was not: no quoted string.
            '"' => return Cow::Borrowed(text),
            '\\' => match characters.next() {
                Some(escaped) => content.push(escaped),
                None => return Cow::Borrowed(text),
            },
            other => content.push(other),
        }
    }
    Cow::Owned(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_unquoted_and_decoded_once() {
        for (name, header, value) in [
            ("subject", "Zo%C3%AB", "Zoë"),
            ("subject", "Zoë", "Zoë"),
            ("subject", "100%25%20x", "100% x"),
            ("subject", "100%", "100%"),
            ("subject", "%2541", "%41"),
            ("subject", r#""a b""#, "a b"),
            ("subject", r#""a \"b\" \\c""#, r#"a "b" \c"#),
            ("subject", r#""a%22b""#, r#"a"b"#),
            ("subject", r#""a"#, r#""a"#),
            ("subject", r#""a"b""#, r#""a"b""#),
            ("subject", r#""a\""#, r#""a\""#),
            ("subject", "\"", "\""),
            ("subject", "\"\"", ""),
            ("subject", " %20x%20 ", " x "),
            ("source", "/caf%C3%A9", "/café"),
            ("source", "/a%2520b", "/a%20b"),
            ("source", "/a%20b", "/a%20b"),
            ("source", "/%FF", "/%FF"),
            ("dataschema", "https%3A//h/s", "https://h/s"),
        ] {
            assert_eq!(decode_value(name, header.as_bytes()).as_deref(), Ok(value), "{header}");
        }
        for bytes in [&b"%FF"[..], b"\xff", b"%ED%A0%80", b"\"%FF\""] {
            assert_eq!(decode_value("subject", bytes).unwrap_err().attribute.as_deref(), Some("subject"));
        }
    }
}
