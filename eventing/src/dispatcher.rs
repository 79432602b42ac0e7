//! Sends a source's records to its function: as many at once as the source allows, each until it arrived or is in the
//! dead letters. Only then its offset counts as finished.

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
    offsets::Offsets,
    queue::Queue,
    reader::Revocation,
    sink::Sink,
    source::{Progress, RETRY_BACKOFF, Source, lock},
    warning::Warning,
};

/// Bytes of records read ahead. A log gives out many records of a partition before it comes to the next one, and an
/// ordered source needs some of each to have many under way.
const READ_AHEAD: usize = 16 * 1024 * 1024;
/// How often offsets are committed.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);
/// How long what is under way may take when the source is stopped.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a record is tried that makes the code panic.
const PANIC_TRIES: u32 = 3;

/// What sends the records of one source.
pub(crate) struct Dispatcher {
    pub(crate) source: Source,
    pub(crate) log: Arc<dyn Log>,
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) progress: Arc<Progress>,
    pub(crate) stop: CancellationToken,
}

impl Dispatcher {
    /// Runs until it is told to stop, then lets what is under way end.
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
                () = self.stop.cancelled() => break,
                Some(Revocation { partitions, answer }) = revocations.recv() => {
                    // What was read before must not come after.
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
                // Without waiting: a reader that cannot commit now takes it later.
                _ = commit.tick() => if let Ok(room) = commits.try_reserve()
                    && let Some(next) = offsets.take_commit()
                {
                    room.send(next);
                },
            }
        }
        drop(revocations);
        let drain = async {
            while let Some((partition, offset, finished)) = under_way.next().await {
                self.finish(&mut offsets, partition, offset, finished);
            }
        };
        // What does not end in time is sent again after the next start.
        let _ = timeout(DRAIN_TIMEOUT, drain).await;
        if let Some(next) = offsets.take_commit() {
            let _ = commits.send(next).await;
        }
    }

    fn begin(&self, records: Vec<Delivered>, queue: &mut Queue, offsets: &mut Offsets) {
        let mut own = lock(&self.progress.own);
        for delivered in records {
            own.entry(delivered.partition).or_insert(delivered.offset);
            offsets.begin(delivered.partition, delivered.offset);
            queue.push(delivered);
        }
    }

    fn finish(&self, offsets: &mut Offsets, partition: i32, offset: i64, finished: bool) {
        if let Some(next) = finished.then(|| offsets.finish(partition, offset)).flatten() {
            lock(&self.progress.own).insert(partition, next);
        }
    }

    /// Others read these partitions from now on, or all are read anew; answers the offsets from which.
    fn forget(
        &self,
        partitions: Option<Vec<i32>>,
        queue: &mut Queue,
        offsets: &mut Offsets,
    ) -> PartitionOffsets {
        let mut own = lock(&self.progress.own);
        let partitions = partitions.unwrap_or_else(|| own.keys().copied().collect());
        let next = |partition: &i32| {
            own.remove(partition);
            queue.forget(*partition);
            Some((*partition, offsets.forget(*partition)?))
        };
        partitions.iter().filter_map(next).collect()
    }

    /// Sends a record until it arrived or is in the dead letters; not finished when the source is stopped before that.
    async fn send(&self, delivered: Delivered, away: &Mutex<Warning>) -> (i32, i64, bool) {
        let finished = tokio::select! {
            biased;
            () = self.finish_record(&delivered, away) => true,
            // A request under way may still be answered; a wait for the next try is given up.
            () = async { self.stop.cancelled().await; sleep(DRAIN_TIMEOUT / 2).await } => false,
        };
        (delivered.partition, delivered.offset, finished)
    }

    /// A panic is the record's: nothing else is done with it here, and the others go on.
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
        // Only once it is there may the offset be committed: an event must never be in neither place.
        append(&*self.log, &source.dead_letters, dead).await;
        progress.dead.fetch_add(1, Relaxed);
    }

    /// Sends a record until it arrived; otherwise answers the dead letter that it becomes.
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
