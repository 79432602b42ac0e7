//! The log in Kafka, or in a server that speaks its protocol. Opening does no I/O: clients connect lazily.

mod blocking_drop;
mod client;
mod consumer;
mod error;
mod keys;
mod message;
mod offsets;
mod producer;
mod rebalance;
mod url;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use connect::{ConfigError, SingleFlight};
use event::Record;
use rdkafka::{
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    client::DefaultClientContext,
    types::RDKafkaErrorCode,
};

pub use self::error::KafkaFailure;
use self::{
    blocking_drop::{BlockingDrop, blocking},
    client::{REQUEST_TIMEOUT, TOPIC_RETRY_INTERVAL, partitions},
    consumer::KafkaConsumer,
    producer::Producer,
    url::{KafkaUrl, Side},
};
use crate::{Consumer, Log, LogError, Start};

/// Timeout of a readiness check.
const READY_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a readiness result is reused: a probe whose timeout is shorter than a round trip still gets it.
const READY_REUSE: Duration = Duration::from_millis(200);
/// Delay before a dead producer is replaced; doubles while successors die before they have written anything.
const MIN_BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_secs(2);

/// A log in Kafka.
#[derive(Clone)]
pub struct KafkaLog(Arc<Inner>);

struct Inner {
    url: KafkaUrl,
    producer: Mutex<Slot>,
    ready: SingleFlight<Result<(), Arc<KafkaFailure>>>,
}

/// The producer of a process; opened lazily, and replaced after a fatal error.
#[derive(Default)]
struct Slot {
    current: Option<Arc<Producer>>,
    /// How many producers in a row died without having written anything.
    failures: u32,
    /// No other one is opened before; each has threads and connections.
    retry_at: Option<Instant>,
}

impl KafkaLog {
    /// The log of `kafka://host:port[,host:port]/topic?key=value`.
    pub fn new(url: &str) -> Result<Self, ConfigError> {
        let (url, ready) = (KafkaUrl::parse(url)?, SingleFlight::new(READY_REUSE));
        Ok(Self(Arc::new(Inner { url, producer: Mutex::default(), ready })))
    }

    /// The topic that the URL names.
    #[must_use]
    pub fn topic(&self) -> &str {
        &self.0.url.topic
    }
}

impl KafkaLog {
    /// Requests of a connection are pipelined, so an append need not wait for another one's answer.
    pub(crate) const WRITES_AT_ONCE: usize = 1_000;

    /// As [`Appender::append`](crate::Appender::append), with the log's own error.
    pub async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), LogError> {
        Ok(self.0.producer()?.append(topic, &records).await?)
    }

    /// One metadata request, at most one in flight per process, however many probes ask. As
    /// [`Store::ready`](domain::Store::ready), with the log's own error.
    pub async fn ready(&self) -> Result<(), LogError> {
        let inner = self.0.clone();
        let checked = self.0.ready.run(|| async move {
            let producer = inner.producer()?;
            let ask =
                move || partitions(producer.client(), &inner.url.brokers, &inner.url.topic, READY_TIMEOUT);
            blocking(ask).await.map(drop).map_err(Arc::new)
        });
        let checked = checked.await.unwrap_or_else(|| Err(Arc::new(KafkaFailure::Ended)));
        Ok(checked.map_err(KafkaFailure::Shared)?)
    }
}

#[async_trait]
impl Log for KafkaLog {
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError> {
        Ok(Box::new(KafkaConsumer::open(&self.0.url, topic, group, start).await?))
    }

    async fn create(&self, topic: &str) -> Result<(), LogError> {
        let (inner, topic) = (self.0.clone(), topic.to_owned());
        // Spawned, so that a caller that gives up leaves no half-created topic behind.
        Ok(tokio::spawn(async move { inner.create(&topic).await }).await.map_err(KafkaFailure::GivenUp)??)
    }
}

impl Inner {
    fn producer(&self) -> Result<Arc<Producer>, KafkaFailure> {
        let mut slot = self.producer.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = &mut *slot;
        if let Some(producer) = &slot.current {
            let Some(reason) = producer.fatal_error() else { return Ok(producer.clone()) };
            let retry_at = match slot.retry_at {
                Some(retry_at) => retry_at,
                None => {
                    tracing::warn!(reason, "the Kafka producer can write no more, and is replaced");
                    // One that had written something died of a passing cause, another one of what is still there.
                    slot.failures = if producer.has_written() { 0 } else { slot.failures.saturating_add(1) };
                    let backoff = MIN_BACKOFF.saturating_mul(1 << slot.failures.min(10)).min(MAX_BACKOFF);
                    *slot.retry_at.insert(Instant::now() + backoff)
                }
            };
            if Instant::now() < retry_at {
                return Err(KafkaFailure::Dead(reason));
            }
            slot.retry_at = None;
        }
        let producer = slot.current.insert(Arc::new(Producer::open(&self.url)?)).clone();
        self.introduce(producer.clone());
        Ok(producer)
    }

    /// An idempotent producer asks for its id whenever it hears of the cluster, and else twice a second. The first time
    /// it hears, its connection is not up yet: asking for more lets it write half a second earlier.
    fn introduce(&self, producer: Arc<Producer>) {
        let (brokers, topic) = (self.url.brokers.clone(), self.url.topic.clone());
        tokio::task::spawn_blocking(move || {
            for _ in 0..2 {
                let _ = partitions(producer.client(), &brokers, &topic, READY_TIMEOUT);
            }
        });
    }

    /// Creates a topic with the broker's default partitions and replicas, and waits until it is readable.
    async fn create(&self, topic: &str) -> Result<(), KafkaFailure> {
        let config = self.url.config(Side::Producer, &[], &[]);
        let admin: AdminClient<DefaultClientContext> = config.create().map_err(KafkaFailure::Open)?;
        let admin = BlockingDrop::new(admin);
        let new = NewTopic::new(topic, -1, TopicReplication::Fixed(-1));
        let options = AdminOptions::new()
            .request_timeout(Some(REQUEST_TIMEOUT))
            .operation_timeout(Some(REQUEST_TIMEOUT));
        let created = admin.create_topics([&new], &options).await.map_err(KafkaFailure::Admin)?;
        for (topic, source) in created.into_iter().filter_map(Result::err) {
            use RDKafkaErrorCode::{
                ClusterAuthorizationFailed, TopicAlreadyExists, TopicAuthorizationFailed,
            };
            // Without permission to create topics, the topic is expected to exist.
            if !matches!(source, TopicAlreadyExists | ClusterAuthorizationFailed | TopicAuthorizationFailed) {
                return Err(KafkaFailure::Create { topic, source });
            }
        }
        let (brokers, topic) = (self.url.brokers.clone(), topic.to_owned());
        blocking(move || {
            let deadline = Instant::now() + REQUEST_TIMEOUT;
            loop {
                match partitions(admin.inner(), &brokers, &topic, REQUEST_TIMEOUT) {
                    Err(KafkaFailure::Topic { .. }) if Instant::now() < deadline => {
                        std::thread::sleep(TOPIC_RETRY_INTERVAL)
                    }
                    found => return found.map(drop),
                }
            }
        })
        .await
    }
}
