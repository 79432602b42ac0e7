//! What every client of Kafka does: asks for a topic's partitions, and writes librdkafka's log lines.

use std::time::Duration;

use rdkafka::{
    client::{Client, ClientContext},
    config::RDKafkaLogLevel,
    types::RDKafkaErrorCode,
};

use super::error::KafkaFailure;

/// Timeout of a metadata or admin request.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Poll interval for a topic that was just created or has lost its leader.
pub(super) const TOPIC_RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// The partitions of a topic. Waits for a broker.
pub(super) fn partitions<C: ClientContext>(
    client: &Client<C>,
    brokers: &str,
    topic: &str,
    patience: Duration,
) -> Result<Vec<i32>, KafkaFailure> {
    let (brokers, name) = (brokers.to_owned(), topic.to_owned());
    let metadata = match client.fetch_metadata(Some(topic), patience) {
        Ok(metadata) => metadata,
        Err(source) => {
            return Err(KafkaFailure::Unreachable { brokers, topic: name, source: Box::new(source) });
        }
    };
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let error = match found {
        Some(found) => found.error().map(RDKafkaErrorCode::from),
        None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
    };
    match (found, error) {
        (Some(found), None) => Ok(found.partitions().iter().map(|partition| partition.id()).collect()),
        (_, source) => {
            let source = source.unwrap_or(RDKafkaErrorCode::UnknownTopic);
            Err(KafkaFailure::Topic { brokers, topic: name, source })
        }
    }
}

/// A line of librdkafka's log. At most WARN: librdkafka recovers without an operator.
pub(super) fn log(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => {
            tracing::debug!(facility, "Kafka: {message}");
        }
        _ => tracing::warn!(facility, "Kafka: {message}"),
    }
}
