//! A record as librdkafka gives it out.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use event::Record;
use rdkafka::{
    Message,
    message::{BorrowedMessage, Headers},
};

use crate::Delivered;

/// Copies a record out of librdkafka's memory.
pub(super) fn delivered(message: &BorrowedMessage<'_>) -> Delivered {
    Delivered {
        partition: message.partition(),
        offset: message.offset(),
        time_ms: message.timestamp().to_millis().unwrap_or_default(),
        record: Record {
            key: message.key().map(Bytes::copy_from_slice),
            headers: message.headers().map(headers).unwrap_or_default(),
            value: message.payload().map(Bytes::copy_from_slice),
        },
    }
}

/// All headers but those whose name is not UTF-8, which rdkafka cannot give out.
fn headers(headers: &impl Headers) -> Vec<(String, Option<Bytes>)> {
    let header = |at| {
        // rdkafka panics on such a name, which any producer may write.
        let header = catch_unwind(AssertUnwindSafe(|| headers.try_get(at))).ok()??;
        Some((header.key.to_owned(), header.value.map(Bytes::copy_from_slice)))
    };
    (0..headers.count()).filter_map(header).collect()
}
