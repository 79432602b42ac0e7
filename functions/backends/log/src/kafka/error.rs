//! Kafka's errors, and what each means for the caller.

use std::{sync::Arc, time::Duration};

use rdkafka::{error::KafkaError, types::RDKafkaErrorCode};

/// What failed. Each variant keeps its source.
#[derive(Debug, thiserror::Error)]
pub enum KafkaFailure {
    /// The client configuration is invalid, for example an unreadable certificate.
    #[error("no Kafka client can be made of LOG_URL")]
    Open(#[source] KafkaError),
    /// The queue is full; none of these records was written.
    #[error("too many records wait for Kafka already; send it again later")]
    Full,
    /// A record exceeds Kafka's limit; retrying is useless.
    #[error("a record is larger than the {limit} bytes that `message.max.bytes` or the topic allow")]
    TooLarge {
        /// Maximum size of a record, bytes.
        limit: usize,
    },
    /// The producer failed fatally and is being replaced. Nothing was written.
    #[error("the Kafka producer is being replaced after a fatal error ({0})")]
    Dead(String),
    /// The shared result of a request that several callers waited for.
    #[error(transparent)]
    Shared(Arc<Self>),
    /// Kafka did not confirm that it has the records; it may have all, some or none of them.
    #[error("it is unknown whether the log has it, and safe to send it again: Kafka did not confirm it{}", after(.trouble))]
    Unconfirmed {
        /// The last broker error.
        trouble: Option<String>,
        /// Why.
        source: KafkaError,
    },
    /// The producer was dropped before Kafka confirmed the records; it may have all, some or none of them.
    #[error("it is unknown whether the log has it, and safe to send it again: the Kafka client ended")]
    Ended,
    /// No broker answers.
    #[error("no Kafka broker answers at {brokers} about the topic `{topic}`")]
    Unreachable {
        /// The brokers.
        brokers: String,
        /// The topic.
        topic: String,
        /// Why.
        source: Box<KafkaError>,
    },
    /// The topic does not exist, or is unavailable.
    #[error("the topic `{topic}` cannot be used at {brokers}")]
    Topic {
        /// The brokers.
        brokers: String,
        /// The topic.
        topic: String,
        /// Why.
        source: RDKafkaErrorCode,
    },
    /// The topic does not exist and cannot be created.
    #[error("the topic `{topic}` cannot be created")]
    Create {
        /// The topic.
        topic: String,
        /// Why.
        source: RDKafkaErrorCode,
    },
    /// An administrative request failed.
    #[error("Kafka cannot be administered now")]
    Admin(#[source] KafkaError),
    /// Records or offsets cannot be read.
    #[error("Kafka cannot be read now")]
    Read(#[source] KafkaError),
    /// Offsets cannot be committed.
    #[error("Kafka cannot remember offsets now")]
    Commit(#[source] KafkaError),
    /// No answer came in time.
    #[error("Kafka did not answer within {0:?}")]
    Silent(Duration),
    /// The task ended with its runtime.
    #[error("the request to Kafka was given up")]
    GivenUp(#[from] tokio::task::JoinError),
}

fn after(trouble: &Option<String>) -> String {
    trouble.as_ref().map_or_else(String::new, |trouble| format!(" ({trouble})"))
}
