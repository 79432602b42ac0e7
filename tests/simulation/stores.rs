//! The stores as a process sees them: the models behind calls that may fail.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use backend_log::{
    Appender, Consumer, Delivered, Log, LogError, PartitionOffsets, Polled, Positions, Start, Watermarks,
};
use backend_master::{BatchJob, BatchViews, Dataset, Stored, Tick};
use backend_views::Counter;
use domain::{Failure, History, Point, Store, User, Window};
use event::Record;
use memory::{MemoryLog, MemoryMaster, MemoryViews};
use tokio::time::sleep;
use uuid::Uuid;

use crate::{
    checks::Checks,
    process::Process,
    world::{
        Defect,
        Fault::{
            self, AnswerLost, Delayed, DiesAfter, DiesBefore, LateEffect, PageLost, PartlyDone, Refused,
        },
        Seam,
    },
};

/// The faults of a call that writes.
pub const WRITE_FAULTS: [Fault; 6] = [Refused, AnswerLost, Delayed, LateEffect, DiesBefore, DiesAfter];
/// The faults of an append, of which a part may be done.
pub const APPEND_FAULTS: [Fault; 7] =
    [Refused, AnswerLost, Delayed, LateEffect, DiesBefore, DiesAfter, PartlyDone];
/// The faults of a call that reads.
pub const READ_FAULTS: [Fault; 2] = [Refused, Delayed];
/// The faults of a poll.
pub const POLL_FAULTS: [Fault; 4] = [Refused, Delayed, DiesBefore, PageLost];
/// The faults of a commit of offsets.
pub const COMMIT_FAULTS: [Fault; 4] = [Refused, AnswerLost, DiesBefore, DiesAfter];
/// How late a defect lets an effect come, milliseconds.
const POSTPONED_MS: u64 = 20_000;

/// A store as one process sees it.
#[derive(Clone)]
pub struct Seen<S> {
    pub store: S,
    pub process: Arc<Process>,
    pub checks: Arc<Checks>,
}

fn failure(why: &'static str) -> Failure {
    Failure::unavailable(why)
}

fn log_error(why: &'static str) -> LogError {
    LogError::Other(why.into())
}

#[async_trait]
impl<S: Store + Clone + 'static> Store for Seen<S> {
    async fn ready(&self) -> Result<(), Failure> {
        let store = self.store.clone();
        self.process.call(Seam::Read, &READ_FAULTS, async move { store.ready().await }, failure).await
    }

    fn writes_at_once(&self) -> usize {
        self.store.writes_at_once()
    }
}

#[async_trait]
impl Appender for Seen<MemoryLog> {
    async fn append(&self, topic: &str, mut records: Vec<Record>) -> Result<(), Failure> {
        let (store, process, topic) = (self.store.clone(), self.process.clone(), topic.to_owned());
        let world = process.world.clone();
        let is_dead_letter = topic != self.checks.topic;
        if is_dead_letter && world.has(Defect::ListsResolvedDeadLetters) {
            for record in &mut records {
                record.headers.retain(|(name, _)| !name.ends_with("resolution"));
            }
        }
        let postpones = if is_dead_letter {
            world.has(Defect::CommitsBeforeDeadLetter)
        } else {
            world.has(Defect::AcknowledgesBeforeAppend)
        };
        if postpones {
            let delay = world.within_ms(POSTPONED_MS);
            tokio::spawn(async move {
                process.alive(sleep(delay)).await;
                store.append(&topic, records).await
            });
            return Ok(());
        }
        if records.len() > 1 && self.process.world.draw(Seam::Append, &[PartlyDone]).is_some() {
            world.log(&process.name, format_args!("Append: PartlyDone"));
            records.truncate(world.below(records.len()));
            store.append(&topic, records).await?;
            return Err(failure("a part may be done"));
        }
        let append = async move { store.append(&topic, records).await };
        process.call(Seam::Append, &WRITE_FAULTS, append, failure).await
    }
}

#[async_trait]
impl Log for Seen<MemoryLog> {
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError> {
        let (store, topic, group) = (self.store.clone(), topic.to_owned(), group.map(str::to_owned));
        let (of, by) = (topic.clone(), group.clone());
        let open = async move { store.consume(&of, by.as_deref(), start).await };
        let inner = self.process.call(Seam::Consume, &READ_FAULTS, open, log_error).await?;
        Ok(Box::new(SeenConsumer { inner, topic, group, seen: self.clone() }))
    }
}

/// A consumer as its process sees it.
struct SeenConsumer {
    inner: Box<dyn Consumer>,
    topic: String,
    group: Option<String>,
    seen: Seen<MemoryLog>,
}

impl SeenConsumer {
    /// Before a poll. Cancel-safe: nothing is taken yet.
    async fn before_poll(process: &Process) -> Result<bool, LogError> {
        let world = &process.world;
        let fault = world.draw(Seam::Poll, &POLL_FAULTS);
        if let Some(fault) = fault {
            world.log(&process.name, format_args!("Poll: {fault:?}"));
        }
        match fault {
            Some(Refused) => return Err(log_error("refused")),
            Some(Delayed) => process.alive(sleep(world.within_ms(1_000))).await,
            Some(DiesBefore) => process.die(),
            _ => {}
        }
        process.alive(async {}).await;
        Ok(fault == Some(PageLost))
    }

    fn page(&self, max: usize) -> usize {
        1 + self.seen.process.world.below(max.min(12))
    }
}

#[async_trait]
impl Positions for SeenConsumer {
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError> {
        self.seen.process.alive(self.inner.committed()).await
    }

    async fn watermarks(&mut self) -> Result<Watermarks, LogError> {
        self.seen.process.alive(self.inner.watermarks()).await
    }
}

#[async_trait]
impl Consumer for SeenConsumer {
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError> {
        let loses_page = Self::before_poll(&self.seen.process).await?;
        let max = self.page(max);
        let process = self.seen.process.clone();
        let polled = process.alive(self.inner.poll(max)).await?;
        if loses_page {
            return Err(log_error("the consumer failed"));
        }
        match &polled {
            Polled::Records(records) => {
                if self.group.is_some() && process.world.has(Defect::CommitsBeforeDelivery) {
                    let next = records.iter().map(|d| (d.partition, d.offset + 1)).collect();
                    self.commit(&next).await?;
                }
            }
            Polled::Revoked(partitions) => {
                process.world.log(&process.name, format_args!("gives up {partitions:?} of {:?}", self.group));
                if process.world.has(Defect::CommitsLostPartitions) {
                    return Ok(Polled::Records(Vec::new()));
                }
            }
        }
        Ok(polled)
    }

    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        let loses_page = Self::before_poll(&self.seen.process).await?;
        let max = self.page(max);
        let process = self.seen.process.clone();
        let records = process.alive(self.inner.poll_now(max)).await?;
        if loses_page { Err(log_error("the consumer failed")) } else { Ok(records) }
    }

    fn pause(&mut self) {
        self.inner.pause();
    }

    fn resume(&mut self) {
        self.inner.resume();
    }

    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError> {
        let Seen { store, process, checks } = self.seen.clone();
        let world = process.world.clone();
        process.alive(sleep(world.within_ms(4))).await;
        let fault = self.group.as_ref().and_then(|_| world.draw(Seam::Commit, &COMMIT_FAULTS));
        if let Some(fault) = fault {
            world.log(&process.name, format_args!("Commit: {fault:?}"));
        }
        match fault {
            Some(Refused) => return Err(log_error("refused")),
            Some(DiesBefore) => process.die(),
            _ => {}
        }
        process.alive(async {}).await;
        let Some(group) = &self.group else { return self.inner.commit(next).await };
        let before = store.committed(&self.topic, group);
        if world.has(Defect::CommitsLostPartitions) {
            store.commit_without_fencing(&self.topic, group, next);
        } else {
            self.inner.commit(next).await?;
        }
        let committed = store.committed(&self.topic, group);
        world.log(&process.name, format_args!("commits {next:?} of {group}: {committed:?}"));
        checks.committed(&world, group, &before, &committed);
        match fault {
            Some(AnswerLost) => Err(log_error("the answer was lost")),
            Some(DiesAfter) => {
                process.die();
                process.alive(async { Ok(()) }).await
            }
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Counter for Seen<MemoryViews> {
    async fn count(&self, ids: Vec<Uuid>) -> Result<(), Failure> {
        let (views, world) = (self.store.clone(), self.process.world.clone());
        let count = async move {
            if world.has(Defect::CountsDuplicates) {
                views.count_without_check(&ids);
                return Ok(());
            }
            views.count(ids).await
        };
        self.process.call(Seam::Count, &WRITE_FAULTS, count, failure).await
    }

    async fn total(&self) -> Result<u64, Failure> {
        let views = self.store.clone();
        self.process.call(Seam::Read, &READ_FAULTS, async move { views.total().await }, failure).await
    }
}

#[async_trait]
impl<S: History + Clone + 'static> History for Seen<S> {
    async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
        let store = self.store.clone();
        let points = async move { store.points(window).await };
        self.process.call(Seam::Read, &READ_FAULTS, points, failure).await
    }

    async fn oldest(&self) -> Result<Option<Point>, Failure> {
        let store = self.store.clone();
        self.process.call(Seam::Read, &READ_FAULTS, async move { store.oldest().await }, failure).await
    }
}

#[async_trait]
impl Dataset for Seen<MemoryMaster> {
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, Failure> {
        let master = self.store.clone();
        let store = async move { master.store(users).await };
        self.process.call(Seam::Store, &WRITE_FAULTS, store, failure).await
    }
}

#[async_trait]
impl BatchJob for Seen<MemoryMaster> {
    async fn tick(&self, full: bool) -> Result<Tick, Failure> {
        let master = self.store.clone();
        let tick = async move { master.tick(full).await };
        self.process.call(Seam::Tick, &WRITE_FAULTS, tick, failure).await
    }
}

#[async_trait]
impl BatchViews for Seen<MemoryMaster> {
    async fn longest(&self) -> Result<Option<User>, Failure> {
        let master = self.store.clone();
        self.process.call(Seam::Read, &READ_FAULTS, async move { master.longest().await }, failure).await
    }
}

/// How long a transaction of the master dataset takes before its commit.
pub fn commit_delay(process: &Arc<crate::world::World>) -> impl Fn() -> Duration + Send + Sync + use<> {
    let world = process.clone();
    move || {
        let most = if world.per_mille(100) { 2_000 } else { 10 };
        world.within_ms(most)
    }
}
