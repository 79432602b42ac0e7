//! Sends records of the log to a function once more, as its source sent them: to bring back a view that was lost.
//! Runs beside the source itself, since functions take an event twice without harm.

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

/// Records of one read.
const PAGE: usize = 1_000;
/// How often a consumer that fails is replaced.
const READ_RETRIES: u32 = 5;

/// What came of a replay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Events that arrived.
    pub delivered: u64,
    /// Events that the function rejected, and records that cannot be sent; the source put those into the dead letters
    /// when they came first.
    pub rejected: u64,
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The log cannot be read.
    #[error("the log cannot be read now")]
    Log(#[from] LogError),
    /// The function did not answer, or not well, in all its tries.
    #[error("the function cannot take events now: {0}")]
    Away(String),
}

/// Sends all records from `start` to the topic's ends as of now to the source's function. A consumer that fails is
/// replaced, and goes on where it was.
pub async fn replay(
    source: &Source,
    start: Start,
    log: &dyn Log,
    sink: &dyn Sink,
    mut done: impl FnMut(u64),
) -> Result<Replayed, ReplayError> {
    let mut consumer = log.consume(&source.topic, None, start).await?;
    let kept = consumer.watermarks().await?;
    // Partitions whose end was not seen yet: while records keep coming, there is no empty page to wait for.
    let mut ahead: BTreeSet<i32> =
        kept.iter().filter(|(_, kept)| !kept.is_empty()).map(|(partition, _)| *partition).collect();
    // The offsets after the last records that were sent.
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
            if kept.get(&delivered.partition).is_none_or(|kept| delivered.offset + 1 >= kept.end) {
                ahead.remove(&delivered.partition);
            }
        }
        // Records that came in the meantime are the source's alone.
        let is_due = |d: &Delivered| {
            kept.get(&d.partition).is_some_and(|kept| d.offset < kept.end)
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

/// Sends records as the source does: as many at once, in its order.
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

/// Sends a record; answers its partition and whether it was taken. One that cannot be sent is the source's to report.
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
