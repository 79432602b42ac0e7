//! Record headers that mark what the system itself writes to a dead-letter topic. Events from outside cannot forge them:
//! `ingest`, sources and a KafkaSink only write headers named `content-type` and `ce_…`.

/// Resolves a dead letter: its value is a `Resolution` in JSON.
pub(crate) const RESOLUTION: &str = "lambda-architecture-resolution";
/// The dead letter's data or headers were truncated: its value is the original size of the data, bytes.
pub(crate) const TRUNCATED: &str = "lambda-architecture-truncated";
/// The dead letter contains a raw record that cannot be sent; its value is empty.
pub(crate) const UNDELIVERABLE: &str = "lambda-architecture-undeliverable";

/// Whether a record header is one of these.
pub(crate) fn is_control(name: &str) -> bool {
    [RESOLUTION, TRUNCATED, UNDELIVERABLE].contains(&name)
}
