//! Record headers that tell what the system itself writes beside users' events. Events from outside cannot carry them:
//! `ingest`, sources and a KafkaSink write headers named `content-type` and `ce_…` alone.

/// A dead letter was taken care of: its value is a `Resolution` in JSON.
pub(crate) const RESOLUTION: &str = "lambda-architecture-resolution";
/// The dead letter's data or headers were cut: its value is how many bytes the data had.
pub(crate) const TRUNCATED: &str = "lambda-architecture-truncated";
/// The dead letter holds a raw record that cannot be sent; its value is empty.
pub(crate) const UNDELIVERABLE: &str = "lambda-architecture-undeliverable";

/// Whether a record header is one of these.
pub(crate) fn is_control(name: &str) -> bool {
    [RESOLUTION, TRUNCATED, UNDELIVERABLE].contains(&name)
}
