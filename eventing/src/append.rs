//! Appends a dead letter, retrying until the log has it. One that is too large is truncated, or it would block its
//! partition for ever.

use std::{panic::AssertUnwindSafe, time::Duration};

use backend_log::Log;
use bytes::Bytes;
use domain::FailureKind;
use event::Record;
use framework::supervise::panic_message;
use futures_util::FutureExt;
use tokio::time::sleep;

use crate::{control::TRUNCATED, failing::RETRY_BACKOFF, warning::Warning};

/// Bytes below which no value, key or header is truncated.
const SMALLEST: usize = 1_024;
/// Timeout of one append.
const APPEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Headers that a dead letter keeps however far it is truncated.
const KEPT: [&str; 13] = [
    "ce_specversion",
    "ce_id",
    "ce_source",
    "ce_type",
    "ce_time",
    "ce_subject",
    "ce_partitionkey",
    "ce_knativekafkapartition",
    "ce_knativekafkaoffset",
    "ce_knativeerrordest",
    "ce_knativeerrorcode",
    "ce_knativeerrordata",
    "content-type",
];

/// Appends the record; returns once the log has confirmed it.
pub(crate) async fn append(log: &dyn Log, topic: &str, mut record: Record) {
    let mut warning = Warning::default();
    loop {
        let appending = AssertUnwindSafe(log.append(topic, vec![record.clone()])).catch_unwind();
        let (why, may_be_too_large) = match tokio::time::timeout(APPEND_TIMEOUT, appending).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(failure))) => (failure.to_string(), failure.kind == FailureKind::TooLarge),
            Ok(Err(panic)) => (format!("panicked: {}", panic_message(&*panic)), true),
            Err(_) => (format!("no answer within {APPEND_TIMEOUT:?}"), false),
        };
        if let Some(suppressed) = warning.due(&why) {
            tracing::warn!(topic, error = why, suppressed, "cannot append to the dead letters now");
        }
        match may_be_too_large.then(|| truncated(&record)).flatten() {
            Some(smaller) => record = smaller,
            None => sleep(RETRY_BACKOFF).await,
        }
    }
}

/// The record with half of its data; if little is left, with only the headers in `KEPT`, truncated. `None` if nothing is
/// left to cut.
fn truncated(record: &Record) -> Option<Record> {
    let mut smaller = record.clone();
    let value = record.value.clone().unwrap_or_default();
    if value.len() > SMALLEST {
        smaller.value = Some(value.slice(..(value.len() / 2).max(SMALLEST)));
    } else {
        smaller.headers.retain(|(name, _)| is_kept(name));
        smaller.headers.iter_mut().for_each(|(_, value)| *value = value.as_ref().map(cut));
        smaller.key = record.key.as_ref().map(cut);
    }
    if smaller == *record {
        return None;
    }
    if record.header(TRUNCATED).is_none() {
        smaller.push_header(TRUNCATED, value.len().to_string());
    }
    Some(smaller)
}

fn is_kept(name: &str) -> bool {
    KEPT.contains(&name) || crate::control::is_control(name)
}

/// The beginning of a text, without splitting a character.
fn cut(text: &Bytes) -> Bytes {
    let mut end = text.len().min(SMALLEST);
    while end < text.len() && end > 0 && (text[end] & 0b1100_0000) == 0b1000_0000 {
        end -= 1;
    }
    text.slice(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_shrinks_until_nothing_is_left_to_cut() {
        let header = |name: &str, len| (name.to_owned(), Some(Bytes::from("é".repeat(len))));
        let headers =
            vec![header("ce_id", 5_000), header("ce_other", 5_000), header(crate::control::RESOLUTION, 1)];
        let mut record = Record {
            key: Some(Bytes::from("k".repeat(5_000))),
            headers,
            value: Some(Bytes::from(vec![b'x'; 3_000_000])),
        };
        while let Some(smaller) = truncated(&record) {
            assert!(smaller.size() < record.size());
            record = smaller;
        }
        assert!(record.size() < 8 * SMALLEST, "{}", record.size());
        assert_eq!(record.header(TRUNCATED).unwrap(), "3000000");
        assert!(std::str::from_utf8(record.header("ce_id").unwrap()).is_ok());
        assert!(record.header("ce_other").is_none() && record.header(crate::control::RESOLUTION).is_some());
    }
}
