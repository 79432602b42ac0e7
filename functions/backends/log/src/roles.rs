//! What a log is for those who use it: it appends, reads, and says where a group stands.

use async_trait::async_trait;
use domain::{Failure, Store};
use event::{Delivered, Record};

use crate::{
    error::LogError,
    offsets::{PartitionOffsets, Watermarks},
};

/// Where a consumer group without a committed offset begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record kept.
    Earliest,
    /// After the newest record.
    Latest,
    /// At the first record appended at or after this time, milliseconds since 1970 UTC.
    Time(i64),
}

/// The result of a `poll`.
#[derive(Debug)]
pub enum Polled {
    /// In offset order within each partition; at least one.
    Records(Vec<Delivered>),
    /// Partitions that the next `poll` releases, because other members of the group want them. Finished offsets may be
    /// committed before it; records that were returned and are not finished are delivered again.
    Revoked(Vec<i32>),
}

/// The writing side of the log.
#[async_trait]
pub trait Appender: Store {
    /// Appends all records durably. Completes even if the caller gives up. One record that is too large fails the whole
    /// append.
    ///
    /// # Errors
    /// The log is unavailable: some records may have been written, and appending them again is safe for users. Or it is
    /// overloaded, or a record is too large: then nothing of this append is needed to be undone.
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), Failure>;
}

/// An append-only log of topics, each in partitions by key.
#[async_trait]
pub trait Log: Appender {
    /// Reads the topic. With a group: from its committed offsets, or from `start` where it has none.
    /// Without: from `start`, and commits are forgotten.
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError>;
    /// Where the topic and a group's reading of it stand. Whoever asks reads nothing and is no member of the group, so
    /// that asking triggers no rebalance.
    async fn positions(&self, topic: &str, group: &str) -> Result<Box<dyn Positions>, LogError> {
        // A consumer joins its group in the first poll.
        Ok(self.consume(topic, Some(group), Start::Earliest).await?)
    }
    /// Creates the topic if it is missing. In Kafka, reading a missing topic fails; the embedded log knows no difference
    /// between a missing topic and an empty one.
    async fn create(&self, _topic: &str) -> Result<(), LogError> {
        Ok(())
    }
}

/// A reader of a topic: alone, or as a member of a consumer group.
#[async_trait]
pub trait Consumer: Positions {
    /// Waits for at most `max` records, or until partitions are revoked. Cancel-safe.
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError>;
    /// Returns at most `max` of the available records; empty once all partitions are read to their ends. Releases
    /// revoked partitions at once.
    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError>;
    /// Until `resume`, `poll` returns no records, but keeps the membership and still returns revocations.
    fn pause(&mut self);
    /// Ends a pause, if there is one.
    fn resume(&mut self);
    /// Commits, per partition, the offset of the first unfinished record. Skips partitions that another member owns by
    /// now.
    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError>;
}

/// Where a topic and a group's reading of it stand. Asking does not join the group.
#[async_trait]
pub trait Positions: Send {
    /// Committed offsets of the group; empty without a group.
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError>;
    /// The low and high watermarks of all partitions.
    async fn watermarks(&mut self) -> Result<Watermarks, LogError>;
}
