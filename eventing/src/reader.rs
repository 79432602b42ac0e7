//! Reads ahead for a source and commits its offsets. Stays a member of the consumer group, however slow the source is.

use std::{sync::Arc, time::Duration};

use backend_log::{Consumer, Delivered, Log, LogError, PartitionOffsets, Polled, Start};
use tokio::{
    sync::{mpsc, oneshot},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    failing::{Failing, RETRY_BACKOFF, chain},
    progress::Progress,
    source::Source,
};

/// Maximum number of records per poll.
const PAGE: usize = 500;
/// How long to wait for room for records before polling without taking any, which keeps the membership.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// Maximum delay between two attempts to open a consumer.
const MAX_OPEN_BACKOFF: Duration = Duration::from_secs(5);
/// Timeout of the commit for partitions that are given up.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells the dispatcher that the reader gives up partitions.
pub(crate) struct Revocation {
    /// Those that other members of the group want; `None` for all, when the consumer is replaced.
    pub(crate) partitions: Option<Vec<i32>>,
    /// Takes their first unfinished offsets, to commit.
    pub(crate) answer: oneshot::Sender<PartitionOffsets>,
}

/// Owns the consumer: reads ahead as far as there is room, serves the group, and commits what the dispatcher tells it.
///
/// Reader and dispatcher cannot deadlock, because the dispatcher never waits for the reader while the reader may wait for
/// it:
/// - The reader waits for the dispatcher in two places. For room for records, it goes on taking commits and serving the
///   group meanwhile. For the answer to a revocation, it does nothing else; the channel of revocations has room, since
///   the reader sends the next one only after the answer.
/// - The dispatcher's loop waits for whichever comes first: a revocation, a finished delivery, records, the timer, the
///   stop. It answers a revocation without waiting, and hands over a commit only if there is room (`try_reserve`).
/// - When it stops, the dispatcher first drops its end of the revocations: a reader that waits for an answer, or sends
///   another revocation, gets an error and goes on. Then the dispatcher drains deliveries, which need no reader and have a
///   timeout. Only then does it wait for the reader to take the last commit. The reader does so in every state but during
///   a commit to the log and a backoff, which end by themselves.
/// - If either task panics, its ends of the channels are dropped, and the other one ends.
///
/// Neither holds a lock while it waits; those of `Progress` have their order there.
pub(crate) struct Reader {
    source: Source,
    log: Arc<dyn Log>,
    progress: Arc<Progress>,
    revocations: mpsc::Sender<Revocation>,
    /// Offsets whose commit failed, for example during a rebalance.
    uncommitted: Option<PartitionOffsets>,
    reading: Failing,
    committing: Failing,
}

impl Reader {
    pub(crate) fn new(
        source: Source,
        log: Arc<dyn Log>,
        progress: Arc<Progress>,
        revocations: mpsc::Sender<Revocation>,
    ) -> Self {
        let (reading, committing) = Default::default();
        Self { source, log, progress, revocations, uncommitted: None, reading, committing }
    }

    /// Runs until the dispatcher drops `commits`. Replaces a consumer whose state is unknown after an error.
    pub(crate) async fn run(
        mut self,
        records: mpsc::Sender<Vec<Delivered>>,
        mut commits: mpsc::Receiver<PartitionOffsets>,
        stop: CancellationToken,
    ) {
        loop {
            let opened = tokio::select! {
                biased;
                () = async { while commits.recv().await.is_some() {} } => return,
                () = stop.cancelled() => None,
                opened = self.open() => Some(opened),
            };
            let Some(mut consumer) = opened else { break };
            if self.read(&mut *consumer, &records, &mut commits, &stop).await {
                return;
            }
            tracing::warn!(source = self.source.name, "the log's consumer is replaced");
            self.revoke(&mut *consumer, None).await;
            self.uncommitted = None;
        }
        // There is no consumer to commit with. What was finished since the last commit is sent again.
        while commits.recv().await.is_some() {}
    }

    /// Opens a consumer, retrying until it succeeds.
    async fn open(&mut self) -> Box<dyn Consumer> {
        let mut backoff = RETRY_BACKOFF;
        loop {
            match open(&self.source, &*self.log).await {
                Ok((consumer, start_offsets)) => {
                    *self.progress.start_offsets() = start_offsets;
                    return consumer;
                }
                Err(error) => {
                    self.reading.failed(&self.source, &error, "cannot read the log now", &self.progress)
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_OPEN_BACKOFF);
        }
    }

    /// Serves one consumer. Returns true when the dispatcher is gone, false if the consumer must be replaced.
    async fn read(
        &mut self,
        consumer: &mut dyn Consumer,
        records: &mpsc::Sender<Vec<Delivered>>,
        commits: &mut mpsc::Receiver<PartitionOffsets>,
        stop: &CancellationToken,
    ) -> bool {
        let mut room_timeout = ROOM_TIMEOUT;
        loop {
            if !stop.is_cancelled() && self.committing.is_lasting() {
                return false;
            }
            let retry = self.uncommitted.clone();
            tokio::select! {
                // First, so that a busy log does not delay commits.
                biased;
                next = commits.recv() => match next {
                    Some(next) => self.commit(consumer, next).await,
                    None => return true,
                },
                Some(next) = async { sleep(RETRY_BACKOFF).await; retry }, if self.uncommitted.is_some() => {
                    self.commit(consumer, next).await;
                }
                polled = next(consumer, records, room_timeout), if !stop.is_cancelled() => {
                    room_timeout = ROOM_TIMEOUT;
                    match polled {
                        Ok(revoked) => {
                            self.reading.recovered(&self.progress);
                            if let Some(revoked) = revoked {
                                self.revoke(consumer, Some(revoked)).await;
                                // The next poll releases the partitions: the group waits for it.
                                room_timeout = Duration::ZERO;
                            }
                        }
                        Err(error) => {
                            self.reading.failed(&self.source, &error, "cannot read the log now", &self.progress);
                            sleep(RETRY_BACKOFF).await;
                            if !recovers_by_itself(&error) || self.reading.is_lasting() {
                                return false;
                            }
                        }
                    }
                }
                () = stop.cancelled(), if !stop.is_cancelled() => {}
            }
        }
    }

    /// Lets the dispatcher forget partitions that are given up, and commits what it has finished of them.
    async fn revoke(&mut self, consumer: &mut dyn Consumer, partitions: Option<Vec<i32>>) {
        match (&mut self.uncommitted, &partitions) {
            (Some(uncommitted), Some(gone)) => uncommitted.retain(|partition, _| !gone.contains(partition)),
            (uncommitted, None) => *uncommitted = None,
            (None, Some(_)) => {}
        }
        let (answer, answered) = oneshot::channel();
        // A dispatcher that is stopping commits by itself what it has finished.
        if self.revocations.send(Revocation { partitions, answer }).await.is_err() {
            return;
        }
        let next = answered.await.unwrap_or_default();
        if next.is_empty() {
            return;
        }
        let why = match timeout(LAST_COMMIT_TIMEOUT, consumer.commit(&next)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {LAST_COMMIT_TIMEOUT:?}"),
        };
        let source = &self.source.name;
        tracing::warn!(source, error = why, "cannot commit offsets of partitions that are given up");
    }

    async fn commit(&mut self, consumer: &mut dyn Consumer, next: PartitionOffsets) {
        self.uncommitted = match consumer.commit(&next).await {
            Ok(()) => {
                self.committing.recovered(&self.progress);
                None
            }
            Err(error) => {
                self.committing.failed(&self.source, &error, "cannot commit offsets now", &self.progress);
                Some(next)
            }
        };
    }
}

/// Whether the same consumer may be used after an error. The embedded log's may have skipped records.
fn recovers_by_itself(error: &LogError) -> bool {
    matches!(error, LogError::Kafka(_))
}

/// Opens a consumer. Also returns where a group starts that has committed nothing and skips what is there; empty
/// otherwise.
async fn open(source: &Source, log: &dyn Log) -> Result<(Box<dyn Consumer>, PartitionOffsets), LogError> {
    log.create(&source.topic).await?;
    let mut consumer = log.consume(&source.topic, Some(&source.group), source.start).await?;
    let mut start_offsets = PartitionOffsets::default();
    if source.start == Start::Latest && consumer.committed().await?.is_empty() {
        let watermarks = consumer.watermarks().await?;
        start_offsets = watermarks.into_iter().map(|(partition, range)| (partition, range.end)).collect();
    }
    Ok((consumer, start_offsets))
}

/// Polls once there is room for records, and sends them to the dispatcher. After `room_timeout` without room it polls a
/// paused consumer, which only serves the group. Returns revoked partitions, if any. Cancel-safe: room is reserved before
/// records are taken.
async fn next(
    consumer: &mut dyn Consumer,
    records: &mpsc::Sender<Vec<Delivered>>,
    room_timeout: Duration,
) -> Result<Option<Vec<i32>>, LogError> {
    consumer.resume();
    let room = match timeout(room_timeout, records.reserve()).await {
        Ok(room) => room,
        Err(_) => {
            consumer.pause();
            tokio::select! {
                biased;
                room = records.reserve() => {
                    consumer.resume();
                    room
                }
                polled = consumer.poll(PAGE) => match polled? {
                    Polled::Revoked(partitions) => return Ok(Some(partitions)),
                    // A paused consumer returns none.
                    Polled::Records(_) => return Ok(None),
                },
            }
        }
    };
    // The dispatcher is gone; `commits` ends next.
    let Ok(room) = room else { return std::future::pending().await };
    match consumer.poll(PAGE).await? {
        Polled::Records(read) => room.send(read),
        Polled::Revoked(partitions) => return Ok(Some(partitions)),
    }
    Ok(None)
}
