//! Sends records of the log to a function once more, as its source sent them: to bring back a view that was lost.
//! Runs beside the source itself, since functions take an event twice without harm.

use std::collections::BTreeSet;

use backend_log::{Delivered, Log, LogError, Start};
use futures_util::{StreamExt, stream::FuturesUnordered};

use crate::{
    delivery::{Delivery, Verdict, deliver, verdict},
    queue::Queue,
    sink::Sink,
    source::Source,
};

/// Records of one read.
const PAGE: usize = 1_000;

/// What came of a replay.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Events that arrived.
    pub delivered: u64,
    /// Events that the function rejected; the source put those into the dead letter when they came first.
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

/// Sends all records from `start` to the topic's ends as of now to the source's function.
pub async fn replay(
    source: &Source,
    start: Start,
    log: &dyn Log,
    sink: &dyn Sink,
    mut done: impl FnMut(u64),
) -> Result<Replayed, ReplayError> {
    let mut consumer = log.consume(&source.topic, None, start).await?;
    let kept = consumer.kept().await?;
    let is_old = |d: &Delivered| kept.get(&d.partition).is_some_and(|kept| d.offset < kept.end);
    // Partitions whose end was not seen yet: while records keep coming, there is no empty page to wait for.
    let mut ahead: BTreeSet<i32> =
        kept.iter().filter(|(_, kept)| !kept.is_empty()).map(|(partition, _)| *partition).collect();
    let mut replayed = Replayed::default();
    loop {
        let page = consumer.poll_now(PAGE).await?.records;
        if page.is_empty() {
            return Ok(replayed);
        }
        for delivered in &page {
            if kept.get(&delivered.partition).is_none_or(|kept| delivered.offset + 1 >= kept.end) {
                ahead.remove(&delivered.partition);
            }
        }
        // Records that came in the meantime are the source's alone.
        let old = page.into_iter().filter(is_old);
        let mut queue = Queue::new(source.ordering, source.limit);
        old.for_each(|delivered| queue.push(delivered));
        let mut under_way = FuturesUnordered::new();
        loop {
            while let Some(delivered) = queue.next() {
                under_way.push(send(source, sink, delivered));
            }
            let Some((partition, outcome)) = under_way.next().await else { break };
            queue.finished(partition);
            match outcome? {
                true => replayed.delivered += 1,
                false => replayed.rejected += 1,
            }
        }
        done(replayed.delivered + replayed.rejected);
        if ahead.is_empty() {
            return Ok(replayed);
        }
    }
}

/// Sends a record; answers its partition and whether it was taken.
async fn send(source: &Source, sink: &dyn Sink, delivered: Delivered) -> (i32, Result<bool, ReplayError>) {
    let made = source.event(&delivered).and_then(|event| event.to_request(&source.namespace));
    let Ok(request) = made else { return (delivered.partition, Ok(false)) };
    let delivery = Delivery { retry: 10, ..source.delivery };
    let outcome = match deliver(sink, &source.function, request, &delivery, || {}).await {
        Ok(()) => Ok(true),
        Err(failure) if verdict(failure.answer.as_ref().map(|a| a.status)) == Verdict::Rejected => Ok(false),
        Err(failure) => Err(ReplayError::Away(failure.why)),
    };
    (delivered.partition, outcome)
}
