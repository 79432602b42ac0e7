//! Sends a source's records to its function: as many at once as the source allows, each until it is delivered or a dead
//! letter. Only then does its offset count as finished.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    time::Duration,
};

use backend_log::{Delivered, Log, PartitionOffsets};
use bytes::Bytes;
use event::Record;
use framework::supervise::panic_message;
use futures_util::{FutureExt, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    append::append,
    control::UNDELIVERABLE,
    delivery::{Failure, deliver},
    event::Event,
    failing::RETRY_BACKOFF,
    offsets::Offsets,
    progress::Progress,
    queue::Queue,
    reader::Revocation,
    sink::Sink,
    source::Source,
    warning::Warning,
};

/// Bytes of records to buffer. A log returns long runs of one partition, and an ordered source needs records of many
/// partitions to have many events in flight.
const READ_AHEAD: usize = 16 * 1024 * 1024;
/// Interval between commits.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// How long deliveries in flight may take after the source is stopped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts to send a record that makes this code panic.
const PANIC_TRIES: u32 = 3;

/// Sends the records of one source. [`Reader`](crate::reader::Reader) says why the two cannot deadlock.
pub(crate) struct Dispatcher {
    pub(crate) source: Source,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stop: CancellationToken,
}

impl Dispatcher {
    /// Runs until `stop`, then drains deliveries in flight and hands over the last commit.
    pub(crate) async fn run(
        &self,
        mut records: mpsc::Receiver<Vec<Delivered>>,
        mut revocations: mpsc::Receiver<Revocation>,
        commits: mpsc::Sender<PartitionOffsets>,
    ) {
        let mut queue = Queue::new(self.source.ordering, self.source.limit);
        let mut offsets = Offsets::default();
        let away = Mutex::default();
        let mut under_way = FuturesUnordered::new();
        let mut commit = interval(COMMIT_INTERVAL);
        commit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(delivered) = queue.next() {
                under_way.push(self.send(delivered, &away));
            }
            self.progress.under_way.store(under_way.len(), Relaxed);
            tokio::select! {
                // In this order, so that neither commits nor revocations wait for deliveries, and a simulation sees the
                // same order each time.
                biased;
                () = self.stop.cancelled() => break,
                // Without waiting for the reader: what it cannot take now is part of the next commit.
                _ = commit.tick() => if let Ok(room) = commits.try_reserve()
                    && let Some(next) = offsets.take_commit()
                {
                    room.send(next);
                },
                Some(Revocation { partitions, answer }) = revocations.recv() => {
                    // Records that were read before the revocation must not be begun after it.
                    while let Ok(batch) = records.try_recv() {
                        self.begin(batch, &mut queue, &mut offsets);
                    }
                    let _ = answer.send(self.forget(partitions, &mut queue, &mut offsets));
                }
                Some((partition, offset, finished)) = under_way.next() => {
                    queue.finished(partition);
                    self.finish(&mut offsets, partition, offset, finished);
                }
                Some(batch) = records.recv(), if queue.waiting() < READ_AHEAD => {
                    self.begin(batch, &mut queue, &mut offsets);
                }
            }
        }
        drop(revocations);
        let drain = async {
            while let Some((partition, offset, finished)) = under_way.next().await {
                self.finish(&mut offsets, partition, offset, finished);
            }
        };
        // What is not delivered in time is sent again after the next start.
        let _ = timeout(DRAIN_TIMEOUT, drain).await;
        if let Some(next) = offsets.take_commit() {
            let _ = commits.send(next).await;
        }
    }

    fn begin(&self, records: Vec<Delivered>, queue: &mut Queue, offsets: &mut Offsets) {
        let mut unfinished = self.progress.unfinished();
        for delivered in records {
            unfinished.entry(delivered.partition).or_insert(delivered.offset);
            offsets.begin(delivered.partition, delivered.offset);
            queue.push(delivered);
        }
    }

    fn finish(&self, offsets: &mut Offsets, partition: i32, offset: i64, finished: bool) {
        if let Some(next) = finished.then(|| offsets.finish(partition, offset)).flatten() {
            self.progress.unfinished().insert(partition, next);
        }
    }

    /// Drops what is buffered of revoked partitions, or of all. Returns their first unfinished offsets.
    fn forget(
        &self,
        partitions: Option<Vec<i32>>,
        queue: &mut Queue,
        offsets: &mut Offsets,
    ) -> PartitionOffsets {
        let mut unfinished = self.progress.unfinished();
        let partitions = partitions.unwrap_or_else(|| unfinished.keys().copied().collect());
        let next = |partition: &i32| {
            unfinished.remove(partition);
            queue.forget(*partition);
            Some((*partition, offsets.forget(*partition)?))
        };
        partitions.iter().filter_map(next).collect()
    }

    /// Sends a record until it is delivered or a dead letter. Returns partition, offset and whether it is finished: it is
    /// not if the source is stopped first.
    async fn send(&self, delivered: Delivered, away: &Mutex<Warning>) -> (i32, i64, bool) {
        let finished = tokio::select! {
            biased;
            () = self.finish_record(&delivered, away) => true,
            // A request in flight may still be answered; a retry is given up.
            () = async { self.stop.cancelled().await; sleep(DRAIN_TIMEOUT / 2).await } => false,
        };
        (delivered.partition, delivered.offset, finished)
    }

    /// Catches panics, so that a record that causes one becomes a dead letter and stops no other record.
    async fn finish_record(&self, delivered: &Delivered, away: &Mutex<Warning>) {
        let Self { source, progress, .. } = self;
        let mut tries = 1;
        let dead = loop {
            match AssertUnwindSafe(self.arrive(delivered, away)).catch_unwind().await {
                Ok(Ok(())) => {
                    progress.delivered.fetch_add(1, Relaxed);
                    return;
                }
                Ok(Err(dead)) => break dead,
                Err(panic) => {
                    let why = format!("a record made its source panic: {}", panic_message(&*panic));
                    let Delivered { partition, offset, .. } = delivered;
                    tracing::error!(source = source.name, partition, offset, why);
                    progress.health.failed(format!("partition {partition}, offset {offset}: {why}"));
                    if tries == PANIC_TRIES {
                        break self.undeliverable(delivered, &why);
                    }
                    tries += 1;
                    sleep(RETRY_BACKOFF).await;
                }
            }
        };
        // The offset counts as finished after that: a crash in between must not lose the event.
        append(&*self.log, &source.dead_letters, dead).await;
        progress.dead.fetch_add(1, Relaxed);
    }

    /// Sends a record until it is delivered. The error is the dead letter that it becomes.
    async fn arrive(&self, delivered: &Delivered, away: &Mutex<Warning>) -> Result<(), Record> {
        let Self { source, progress, .. } = self;
        let made =
            source.event(delivered).and_then(|event| Ok((event.to_request(&source.namespace)?, event)));
        let (request, event) = match made {
            Ok(made) => made,
            Err(why) => {
                let Delivered { partition, offset, .. } = delivered;
                tracing::error!(source = source.name, partition, offset, %why, "a record that cannot be sent goes to the dead letters");
                return Err(self.undeliverable(delivered, &why.to_string()));
            }
        };
        let retried = |failure: &Failure| {
            progress.retried.fetch_add(1, Relaxed);
            let due = away.lock().unwrap_or_else(PoisonError::into_inner).due(&failure.why);
            if let Some(suppressed) = due {
                let (function, why) = (&source.function, &failure.why);
                tracing::warn!(source = source.name, function, why, suppressed, "an event is tried again");
                progress.health.failed(format!("{function}: {why}"));
            }
        };
        match deliver(&*self.sink, &source.function, request, &source.delivery, retried).await {
            Ok(()) => {
                if away.lock().unwrap_or_else(PoisonError::into_inner).clear() {
                    tracing::info!(source = source.name, function = source.function, "events arrive again");
                    progress.health.recovered();
                }
                Ok(())
            }
            Err(failure) => {
                let (function, why) = (&source.function, &failure.why);
                tracing::warn!(source = source.name, function, why, "an event goes to the dead letters");
                let destination = self.sink.destination(function, &source.namespace);
                Err(event.dead(&destination, &failure).to_record())
            }
        }
    }

    /// The dead letter of a record that cannot be sent.
    fn undeliverable(&self, delivered: &Delivered, why: &str) -> Record {
        let Source { function, namespace, .. } = &self.source;
        let mut event: Event = Event::undeliverable(delivered, self.source.origin(), why);
        event.set("knativeerrordest", self.sink.destination(function, namespace));
        let mut record = event.to_record();
        record.push_header(UNDELIVERABLE, Bytes::new());
        record
    }
}
