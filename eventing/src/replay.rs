//! Sends records of the log to a function again, as its source sent them, to rebuild a view that was lost. May run beside
//! the source: functions are idempotent.

use std::{collections::BTreeSet, panic::AssertUnwindSafe};

use backend_log::{Delivered, Log, LogError, PartitionOffsets, Start};
use framework::supervise::panic_message;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;

use crate::{
    delivery::{Delivery, Verdict, deliver, verdict},
    failing::{RETRY_BACKOFF, chain},
    queue::Queue,
    sink::{Limited, Sink},
    source::Source,
};

/// Maximum number of records per read.
const PAGE: usize = 1_000;
/// How often a failed consumer is replaced before the replay fails.
const READ_RETRIES: u32 = 5;

/// The result of a replay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Events that the function accepted.
    pub delivered: u64,
    /// Events that the function rejected, and records that cannot be sent. Their source wrote dead letters for them.
    pub rejected: u64,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log cannot be read.
    #[error("the log cannot be read now")]
    Log(#[from] LogError),
    /// The function gave no usable answer in any attempt.
    #[error("the function cannot take events now: {0}")]
    Away(String),
}

/// Sends all records from `start` up to the current high watermarks to the source's function. Calls `done` with the number
/// of records after each page. A consumer that fails is replaced, and the replay resumes where it was.
pub async fn replay(
    source: &Source,
    start: Start,
    log: &dyn Log,
    sink: &dyn Sink,
    mut done: impl FnMut(u64),
) -> Result<Replayed, ReplayError> {
    let mut consumer = log.consume(&source.topic, None, start).await?;
    let watermarks = consumer.watermarks().await?;
    // Partitions that were not read to their watermark yet. An empty page would never come while records are appended.
    let mut ahead: BTreeSet<i32> =
        watermarks.iter().filter(|(_, range)| !range.is_empty()).map(|(partition, _)| *partition).collect();
    // Per partition, the offset after the last record that was sent.
    let mut sent = PartitionOffsets::default();
    let mut replayed = Replayed::default();
    let mut failures = 0;
    loop {
        let page = match consumer.poll_now(PAGE).await {
            Ok(page) => page,
            Err(error) if failures == READ_RETRIES => return Err(error.into()),
            Err(error) => {
                failures += 1;
                tracing::warn!(error = %chain(&error), "the log's consumer is replaced");
                sleep(RETRY_BACKOFF * failures).await;
                consumer = log.consume(&source.topic, None, start).await?;
                continue;
            }
        };
        if page.is_empty() {
            return Ok(replayed);
        }
        for delivered in &page {
            if watermarks.get(&delivered.partition).is_none_or(|range| delivered.offset + 1 >= range.end) {
                ahead.remove(&delivered.partition);
            }
        }
        // Newer records are left to the source.
        let is_due = |d: &Delivered| {
            watermarks.get(&d.partition).is_some_and(|range| d.offset < range.end)
                && sent.get(&d.partition).is_none_or(|next| d.offset >= *next)
        };
        let due: Vec<_> = page.into_iter().filter(is_due).collect();
        for delivered in &due {
            sent.insert(delivered.partition, delivered.offset + 1);
        }
        send_all(source, sink, due, &mut replayed).await?;
        done(replayed.delivered + replayed.rejected);
        if ahead.is_empty() {
            return Ok(replayed);
        }
    }
}

/// Sends records as the source does, with the same order and concurrency.
async fn send_all(
    source: &Source,
    sink: &dyn Sink,
    records: Vec<Delivered>,
    replayed: &mut Replayed,
) -> Result<(), ReplayError> {
    let mut queue = Queue::new(source.ordering, source.limit);
    records.into_iter().for_each(|delivered| queue.push(delivered));
    let mut under_way = FuturesUnordered::new();
    loop {
        while let Some(delivered) = queue.next() {
            under_way.push(send(source, sink, delivered));
        }
        let Some((partition, outcome)) = under_way.next().await else { return Ok(()) };
        queue.finished(partition);
        match outcome? {
            true => replayed.delivered += 1,
            false => replayed.rejected += 1,
        }
    }
}

/// Sends a record. Returns its partition and whether it was accepted. A record that cannot be sent is not reported: its
/// source did.
async fn send(source: &Source, sink: &dyn Sink, delivered: Delivered) -> (i32, Result<bool, ReplayError>) {
    let sending = AssertUnwindSafe(send_event(source, sink, &delivered)).catch_unwind().await;
    let outcome = sending.unwrap_or_else(|panic| {
        let Delivered { partition, offset, .. } = delivered;
        tracing::error!(partition, offset, why = panic_message(&*panic), "a record made the replay panic");
        Ok(false)
    });
    (delivered.partition, outcome)
}

async fn send_event(source: &Source, sink: &dyn Sink, delivered: &Delivered) -> Result<bool, ReplayError> {
    let made = source.event(delivered).and_then(|event| event.to_request(&source.namespace));
    let Ok(request) = made else { return Ok(false) };
    let delivery = Delivery { retry: 10, ..source.delivery };
    match deliver(&Limited(sink), &source.function, request, &delivery, |_| {}).await {
        Ok(()) => Ok(true),
        Err(failure) if verdict(failure.answer.as_ref().map(|a| a.status)) == Verdict::Rejected => Ok(false),
        Err(failure) => Err(ReplayError::Away(failure.why)),
    }
}
