//! Errors of events, for the sender and for whoever forwards them.

/// Maximum length of an error's text, bytes; the rest would only repeat the input.
const MAX_TEXT: usize = 500;
/// Maximum length of an external name in an error, characters.
const MAX_NAME: usize = 64;

/// A message that is no valid CloudEvent 1.0, or one that could not be delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct InvalidEvent {
    /// The invalid attribute, if it is one.
    pub attribute: Option<String>,
    /// What to change, in one sentence.
    pub why: String,
    /// Whether the media type is unsupported (415), rather than the event invalid (400).
    pub is_unsupported_media_type: bool,
}

impl InvalidEvent {
    /// The message as a whole is invalid.
    pub(crate) fn message(why: impl Into<String>) -> Self {
        Self { attribute: None, why: clip(why.into()), is_unsupported_media_type: false }
    }

    /// An attribute is invalid; `why` continues a sentence that begins with its name.
    pub(crate) fn attribute(name: &str, why: impl std::fmt::Display) -> Self {
        let name = printable(name);
        let why = format!("this is no CloudEvent 1.0 that can be delivered: `{name}` {why}");
        Self { attribute: Some(name), why: clip(why), is_unsupported_media_type: false }
    }

    /// The media type is unsupported.
    pub(crate) fn media_type(why: impl Into<String>) -> Self {
        Self { is_unsupported_media_type: true, ..Self::message(why) }
    }
}

/// An event or record cannot be sent in binary mode; the text says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(String);

impl Undecodable {
    pub(crate) fn new(why: impl std::fmt::Display) -> Self {
        Self(clip(why.to_string()))
    }
}

impl From<InvalidEvent> for Undecodable {
    fn from(error: InvalidEvent) -> Self {
        Self(error.why)
    }
}

/// An external name, safe to repeat: no control characters, limited length.
pub(crate) fn printable(name: &str) -> String {
    let mut text: String = name.chars().take(MAX_NAME).flat_map(char::escape_debug).collect();
    if name.chars().nth(MAX_NAME).is_some() {
        text.push('…');
    }
    text
}

fn clip(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
    text
}
