//! `KafkaSource` and `KafkaSink`: from the log to a function, and to the log.

use serde::Deserialize;
use serde_json::Value;

use super::{
    delivery::{DeliverySpec, Overrides},
    resource::Destination,
};

/// `sources.knative.dev/v1 KafkaSource`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KafkaSource {
    /// The cluster's brokers; on a laptop `LOG_URL` names the log.
    pub bootstrap_servers: Vec<String>,
    /// Topics to read.
    pub topics: Vec<String>,
    /// The consumer group; derived from the source's name if absent.
    pub consumer_group: Option<String>,
    /// Number of consumers.
    pub consumers: Option<u32>,
    /// Where the group begins if it has no committed offsets.
    #[serde(default)]
    pub initial_offset: InitialOffset,
    /// Whether a partition's events are sent one after the other.
    #[serde(default)]
    pub ordering: Ordering,
    /// Where events go.
    pub sink: Destination,
    /// Retries, timeout and dead-letter sink.
    pub delivery: Option<DeliverySpec>,
    /// Extensions to set on each event.
    pub ce_overrides: Option<Overrides>,
    /// TLS and authentication for the cluster's brokers.
    pub net: Option<Value>,
}

/// Where a consumer group begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InitialOffset {
    /// At the oldest record.
    Earliest,
    /// After the newest record.
    #[default]
    Latest,
}

/// Whether events are sent one after the other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// At most one event per partition is in flight.
    #[default]
    Ordered,
    /// Events of a partition may be in flight together.
    Unordered,
}

/// `eventing.knative.dev/v1alpha1 KafkaSink`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct KafkaSink {
    /// Where events are appended.
    pub topic: String,
    /// The brokers in a cluster.
    pub bootstrap_servers: Vec<String>,
    /// Partitions of a topic that the cluster creates.
    pub num_partitions: Option<u32>,
    /// Replicas of a topic that the cluster creates.
    pub replication_factor: Option<u32>,
    /// How events become records; only `binary` is supported.
    #[serde(default)]
    pub content_mode: ContentMode,
    /// TLS and authentication for the cluster's brokers.
    pub auth: Option<Value>,
}

/// How events become records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ContentMode {
    /// Attributes as headers.
    #[default]
    Binary,
}
