//! Reads a topic, as a member of a group or alone. Records taken from librdkafka are buffered until `poll` returns
//! them, so that a cancelled poll loses nothing.

mod assignment;
mod state;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use rdkafka::{
    Message, Offset,
    consumer::{CommitMode, Consumer as _},
    error::KafkaError,
    message::BorrowedMessage,
    types::RDKafkaErrorCode::{
        AllBrokersDown, BrokerTransportFailure, NotCoordinator, OperationTimedOut, RequestTimedOut, Resolve,
    },
};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use self::state::{Assignment, Flow, State};
use super::{
    blocking_drop::{BlockingDrop, blocking},
    client::{self, REQUEST_TIMEOUT},
    error::KafkaFailure,
    message::delivered,
    offsets::{self, Client, list},
    rebalance::RebalanceQueue,
    url::{KafkaUrl, Side},
};
use crate::{Consumer, Delivered, LogError, PartitionOffsets, Polled, Positions, Start, Watermarks};

/// Only committed records; partition ends are reported; offsets are stored only explicitly.
const FIXED: &[(&str, &str)] = &[
    ("isolation.level", "read_committed"),
    ("enable.partition.eof", "true"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    // Also if retention deleted records that the group had not read.
    ("auto.offset.reset", "earliest"),
    // Partitions that stay with a member are not taken from it on the way.
    ("partition.assignment.strategy", "cooperative-sticky"),
    ("allow.auto.create.topics", "false"),
];
/// Short timeouts, so that others take over within seconds. Little is fetched ahead, and a little of each partition in
/// turn.
const DEFAULTS: &[(&str, &str)] = &[
    ("session.timeout.ms", "10000"),
    ("heartbeat.interval.ms", "1000"),
    ("queued.max.messages.kbytes", "4096"),
    ("max.partition.fetch.bytes", "16384"),
];
/// Group id of consumers that read alone. They never join it, but librdkafka requires one.
const ALONE: &str = "lambda-architecture-reader";
/// How often a consumer without a group discovers new partitions; in a group librdkafka does.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(5);

/// A consumer of a topic.
pub(super) struct KafkaConsumer {
    client: Arc<Client>,
    brokers: String,
    topic: String,
    group: bool,
    start: Start,
    /// Start offsets of partitions without a committed one; partitions added later start at their beginning.
    start_offsets: PartitionOffsets,
    state: State,
    flow: Flow,
    assignment: Assignment,
    buffer: VecDeque<Delivered>,
    /// Time of the next partition discovery.
    next_discovery: Instant,
}

impl KafkaConsumer {
    pub(super) async fn open(
        url: &KafkaUrl,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Self, KafkaFailure> {
        let mut config = url.config(Side::Consumer, DEFAULTS, FIXED);
        config.set("group.id", group.unwrap_or(ALONE));
        let native = config.create_with_context(RebalanceQueue::default()).map_err(KafkaFailure::Open)?;
        let mut consumer = Self {
            client: Arc::new(BlockingDrop::new(native)),
            brokers: url.brokers.clone(),
            topic: topic.to_owned(),
            group: group.is_some(),
            start,
            start_offsets: PartitionOffsets::default(),
            state: State::Idle,
            flow: Flow::Running,
            assignment: Assignment::default(),
            buffer: VecDeque::new(),
            next_discovery: Instant::now() + DISCOVERY_INTERVAL,
        };
        // Also reports a missing topic at once.
        consumer.start_offsets = consumer
            .ask(move |client, topic, partitions| offsets::start(client, topic, partitions, start))
            .await?;
        Ok(consumer)
    }

    /// Asks a question about all partitions of the topic.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Client, &str, &[i32]) -> Result<T, KafkaFailure> + Send + 'static,
    ) -> Result<T, KafkaFailure> {
        let (client, brokers, topic) = (self.client.clone(), self.brokers.clone(), self.topic.clone());
        blocking(move || {
            let partitions = client::partitions(client.client(), &brokers, &topic, REQUEST_TIMEOUT)?;
            question(&client, &topic, &partitions)
        })
        .await
    }

    /// Takes available records until `max` are buffered or a rebalance is pending.
    fn fetch(&mut self, max: usize) -> Result<(), KafkaFailure> {
        let client = self.client.clone();
        let mut stream = client.stream();
        while self.buffer.len() < max && client.context().peek().is_none() {
            match stream.next().now_or_never().flatten() {
                Some(message) => self.take(message)?,
                None => break,
            }
        }
        Ok(())
    }

    /// Waits for a record or a rebalance.
    async fn wait(&mut self) -> Result<(), KafkaFailure> {
        let client = self.client.clone();
        tokio::select! {
            biased;
            () = client.context().changed() => Ok(()),
            message = client.recv() => self.take(message),
            () = sleep_until(self.next_discovery), if !self.group => self.find_new().await,
        }
    }

    fn take(&mut self, message: Result<BorrowedMessage<'_>, KafkaError>) -> Result<(), KafkaFailure> {
        match message {
            Ok(message) => {
                self.assignment.at_end.remove(&message.partition());
                self.buffer.push_back(delivered(&message));
            }
            Err(KafkaError::PartitionEOF(partition)) => drop(self.assignment.at_end.insert(partition)),
            // librdkafka recovers by itself.
            Err(KafkaError::MessageConsumption(
                BrokerTransportFailure
                | AllBrokersDown
                | OperationTimedOut
                | RequestTimedOut
                | Resolve
                | NotCoordinator,
            )) => {}
            Err(error) => return Err(KafkaFailure::Read(error)),
        }
        Ok(())
    }

    /// Whether every partition was read to its end.
    fn is_at_end(&self) -> bool {
        self.state.has_assignment() && self.assignment.owned.is_subset(&self.assignment.at_end)
    }

    /// Fails if the client can do nothing any more: the caller must open another one.
    fn check(&self) -> Result<(), KafkaFailure> {
        match self.client.client().fatal_error() {
            Some((code, _)) => Err(KafkaFailure::Read(KafkaError::MessageConsumptionFatal(code))),
            None => Ok(()),
        }
    }

    /// Takes at most `max` records out of the buffer, filling it first.
    fn buffered(&mut self, max: usize) -> Result<Vec<Delivered>, KafkaFailure> {
        if self.flow.is_paused() {
            return Ok(Vec::new());
        }
        self.fetch(max)?;
        Ok(self.buffer.drain(..self.buffer.len().min(max)).collect())
    }

    async fn next(&mut self, max: usize) -> Result<Polled, KafkaFailure> {
        self.check()?;
        self.prepare().map_err(KafkaFailure::Read)?;
        loop {
            if let Some(partitions) = self.settle().await? {
                return Ok(Polled::Revoked(partitions));
            }
            let records = self.buffered(max)?;
            if !records.is_empty() {
                return Ok(Polled::Records(records));
            }
            self.wait().await?;
        }
    }

    async fn available(&mut self, max: usize) -> Result<Vec<Delivered>, KafkaFailure> {
        self.check()?;
        let deadline = Instant::now() + 2 * REQUEST_TIMEOUT;
        loop {
            self.prepare().map_err(KafkaFailure::Read)?;
            if self.settle().await?.is_some() {
                continue;
            }
            let records = self.buffered(max)?;
            if !records.is_empty() || self.is_at_end() {
                return Ok(records);
            }
            let silent = |_| KafkaFailure::Silent(2 * REQUEST_TIMEOUT);
            timeout_at(deadline, self.wait()).await.map_err(silent)??;
        }
    }
}

#[async_trait]
impl Consumer for KafkaConsumer {
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError> {
        Ok(self.next(max).await?)
    }

    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        Ok(self.available(max).await?)
    }

    fn pause(&mut self) {
        self.flow = self.flow.paused();
    }

    fn resume(&mut self) {
        self.flow = self.flow.resumed();
    }

    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError> {
        let ours = next.iter().filter(|(partition, _)| self.assignment.owned.contains(partition));
        let offsets = list(&self.topic, ours.map(|(partition, next)| (*partition, Offset::Offset(*next))))
            .map_err(KafkaFailure::Commit)?;
        if !self.group || offsets.count() == 0 {
            return Ok(());
        }
        let client = self.client.clone();
        let commit =
            blocking(move || client.commit(&offsets, CommitMode::Sync).map_err(KafkaFailure::Commit));
        // The reader must go on serving the group when the coordinator is away.
        Ok(timeout(REQUEST_TIMEOUT, commit).await.map_err(|_| KafkaFailure::Silent(REQUEST_TIMEOUT))??)
    }
}

#[async_trait]
impl Positions for KafkaConsumer {
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError> {
        if !self.group {
            return Ok(PartitionOffsets::default());
        }
        let committed = |client: &Client, topic: &str, partitions: &[i32]| {
            offsets::committed(client, topic, partitions).map_err(KafkaFailure::Read)
        };
        Ok(self.ask(committed).await?)
    }

    async fn watermarks(&mut self) -> Result<Watermarks, LogError> {
        let watermarks = |client: &Client, topic: &str, partitions: &[i32]| {
            offsets::watermarks(client, topic, partitions).map_err(KafkaFailure::Read)
        };
        Ok(self.ask(watermarks).await?)
    }
}
