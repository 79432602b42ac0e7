//! Reads a topic ahead for a source and commits for it, as a member of a group that is served whatever the source does.

use std::{sync::Arc, time::Duration};

use backend_log::{Consumer, Delivered, Log, LogError, PartitionOffsets, Polled, Start};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    source::{Progress, RETRY_BACKOFF, Source, chain, lock},
    warning::Warning,
};

/// Records of one read.
const PAGE: usize = 500;
/// How long there may be no room for records before the group is served without taking any.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a Kafka client may fail before it is replaced. It recovers by itself from what passes, and a new member
/// would divide the group anew; but what is fatal to it never passes.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest delay between two tries to open a consumer.
const MAX_OPEN_BACKOFF: Duration = Duration::from_secs(5);
/// How long the last commit of a consumer may take that is thrown away.
const LAST_COMMIT_TIMEOUT: Duration = Duration::from_secs(10);

/// Partitions that this reader gives up.
pub(crate) struct Revocation {
    /// Those that others want; all when the topic is read anew.
    pub(crate) partitions: Option<Vec<i32>>,
    /// Where the offsets go that may be committed of them.
    pub(crate) answer: oneshot::Sender<PartitionOffsets>,
}

/// Owns the consumer: reads ahead as far as there is room, serves the group, and commits what it is told.
pub(crate) struct Reader {
    source: Source,
    log: Arc<dyn Log>,
    progress: Arc<Progress>,
    revocations: mpsc::Sender<Revocation>,
    /// What could not be committed, as when the group is being divided anew.
    uncommitted: Option<PartitionOffsets>,
    reading: Failing,
    committing: Failing,
}

/// Since when something fails.
#[derive(Default)]
struct Failing {
    since: Option<Instant>,
    warning: Warning,
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

    /// Reads until whoever sends commits is gone. A consumer whose state is unknown after an error is replaced.
    pub(crate) async fn run(
        mut self,
        records: mpsc::Sender<Vec<Delivered>>,
        mut commits: mpsc::Receiver<PartitionOffsets>,
        stop: CancellationToken,
    ) {
        loop {
            let opened = tokio::select! {
                opened = self.open() => Some(opened),
                () = stop.cancelled() => None,
                () = async { while commits.recv().await.is_some() {} } => return,
            };
            let Some(mut consumer) = opened else { break };
            if self.read(&mut *consumer, &records, &mut commits, &stop).await {
                return;
            }
            tracing::warn!(source = self.source.name, "the log's consumer is replaced");
            self.revoke(&mut *consumer, None).await;
            self.uncommitted = None;
        }
        // Nothing can be committed without a consumer.
        while commits.recv().await.is_some() {}
    }

    /// Opens a consumer, as often as it takes.
    async fn open(&mut self) -> Box<dyn Consumer> {
        let mut backoff = RETRY_BACKOFF;
        loop {
            match begin(&self.source, &*self.log).await {
                Ok((consumer, begin)) => {
                    *lock(&self.progress.begin) = begin;
                    return consumer;
                }
                Err(error) => {
                    self.reading.log(&self.source, &error, "cannot read the log now", &self.progress)
                }
            }
            sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_OPEN_BACKOFF);
        }
    }

    /// Answers whether whoever sends commits is gone; otherwise the consumer is to be replaced.
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
                // First, so that a busy log does not keep commits waiting.
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
                            self.reading.ended(&self.progress);
                            if let Some(revoked) = revoked {
                                self.revoke(consumer, Some(revoked)).await;
                                // The group waits for the next poll.
                                room_timeout = Duration::ZERO;
                            }
                        }
                        Err(error) => {
                            self.reading.log(&self.source, &error, "cannot read the log now", &self.progress);
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

    /// Commits what is finished of partitions that are given up.
    async fn revoke(&mut self, consumer: &mut dyn Consumer, partitions: Option<Vec<i32>>) {
        match (&mut self.uncommitted, &partitions) {
            (Some(uncommitted), Some(gone)) => uncommitted.retain(|partition, _| !gone.contains(partition)),
            (uncommitted, None) => *uncommitted = None,
            (None, Some(_)) => {}
        }
        let (answer, answered) = oneshot::channel();
        // A dispatcher that has stopped commits by itself what ended.
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
                self.committing.ended(&self.progress);
                None
            }
            Err(error) => {
                self.committing.log(&self.source, &error, "cannot commit offsets now", &self.progress);
                Some(next)
            }
        };
    }
}

impl Failing {
    fn log(&mut self, source: &Source, error: &LogError, what: &str, progress: &Progress) {
        self.since.get_or_insert_with(Instant::now);
        let why = chain(error);
        if let Some(suppressed) = self.warning.due(&why) {
            tracing::warn!(source = source.name, error = why, suppressed, "{what}");
            progress.health.failed(format!("{what}: {why}"));
        }
    }

    fn ended(&mut self, progress: &Progress) {
        if self.since.take().is_some() {
            self.warning.clear();
            progress.health.recovered();
        }
    }

    /// Whether it fails for so long that it will not pass; counts anew from here.
    fn is_lasting(&mut self) -> bool {
        let lasting = self.since.is_some_and(|since| since.elapsed() >= RECOVERY_TIMEOUT);
        if lasting {
            self.since = None;
        }
        lasting
    }
}

/// Whether the consumer is whole after an error; others may have left records out.
fn recovers_by_itself(error: &LogError) -> bool {
    matches!(error, LogError::Kafka(_))
}

async fn begin(source: &Source, log: &dyn Log) -> Result<(Box<dyn Consumer>, PartitionOffsets), LogError> {
    log.create(&source.topic).await?;
    let mut consumer = log.consume(&source.topic, Some(&source.group), source.start).await?;
    let mut begin = PartitionOffsets::default();
    if source.start == Start::Latest && consumer.committed().await?.is_empty() {
        let watermarks = consumer.watermarks().await?;
        begin = watermarks.into_iter().map(|(partition, kept)| (partition, kept.end)).collect();
    }
    Ok((consumer, begin))
}

/// Reads records once there is room for them, and passes them on. Without room for so long, serves the group without
/// reading. Returns the partitions that are revoked, if any. Cancel-safe: the room is had before the records.
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
    // The dispatcher is gone, and with it soon the commits.
    let Ok(room) = room else { return std::future::pending().await };
    match consumer.poll(PAGE).await? {
        Polled::Records(read) => room.send(read),
        Polled::Revoked(partitions) => return Ok(Some(partitions)),
    }
    Ok(None)
}
