//! Percent-encoding of values in headers.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

/// Characters that a CloudEvents header encodes: all but printable ASCII, plus `"` and `%`.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// A value as a header holds it.
pub(crate) fn encoded(value: &str) -> String {
    utf8_percent_encode(value, ENCODED).to_string()
}

/// Size of a value in a header, bytes.
pub(crate) fn encoded_len(value: &str) -> usize {
    utf8_percent_encode(value, ENCODED).map(str::len).sum()
}
