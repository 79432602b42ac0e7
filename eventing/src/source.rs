//! A KafkaSource as it is run: which topic it reads, as which consumer group, and to which function it sends events.

use std::collections::BTreeMap;

use backend_log::{Delivered, Start};

use crate::{
    delivery::Delivery,
    event::{Event, Origin, Undecodable},
    manifest::{InitialOffset, KafkaSource, Metadata, Ordering},
};

/// Maximum number of events in flight per consumer of an unordered source (`max.poll.records` of Knative's dispatcher).
const PER_CONSUMER: usize = 50;
/// Maximum number of events in flight of an ordered source; the number of its partitions is usually lower.
const ORDERED: usize = 1_000;
/// One topic of a KafkaSource.
#[derive(Clone)]
pub struct Source {
    /// The KafkaSource's name.
    pub name: String,
    /// The KafkaSource's namespace.
    pub namespace: String,
    /// The topic.
    pub topic: String,
    /// The consumer group, under which offsets are committed.
    pub group: String,
    /// Where the group begins if it has no committed offsets.
    pub start: Start,
    /// Whether a partition's events are sent one after the other.
    pub ordering: Ordering,
    /// Maximum number of events in flight.
    pub limit: usize,
    /// The function that gets the events.
    pub function: String,
    /// Retries and timeouts.
    pub delivery: Delivery,
    /// The topic of the source's dead letters.
    pub dead_letters: String,
    /// Extensions to set on each event (`ceOverrides`).
    pub overrides: BTreeMap<String, String>,
}

impl Source {
    /// The sources of a manifest, one per topic. Undeliverable events go to the topic `dead_letters`.
    #[must_use]
    pub fn of(metadata: &Metadata, spec: &KafkaSource, dead_letters: &str) -> Vec<Self> {
        let consumers = spec.consumers.unwrap_or(1).max(1) as usize;
        let source = |topic: &String| Self {
            name: metadata.name.clone(),
            namespace: metadata.namespace().to_owned(),
            topic: topic.clone(),
            group: spec
                .consumer_group
                .clone()
                .unwrap_or_else(|| format!("knative-kafka-source-{}", metadata.name)),
            start: match spec.initial_offset {
                InitialOffset::Earliest => Start::Earliest,
                InitialOffset::Latest => Start::Latest,
            },
            ordering: spec.ordering,
            limit: match spec.ordering {
                Ordering::Ordered => ORDERED,
                Ordering::Unordered => consumers * PER_CONSUMER,
            },
            function: spec.sink.reference.name.clone(),
            delivery: Delivery::of(spec.delivery.as_ref()),
            dead_letters: dead_letters.to_owned(),
            overrides: spec.ce_overrides.clone().unwrap_or_default().extensions,
        };
        spec.topics.iter().map(source).collect()
    }

    /// The event that this source sends for a record. Fails if no event can be made of it.
    pub fn event(&self, delivered: &Delivered) -> Result<Event, Undecodable> {
        let mut event = Event::of_record(delivered, self.origin())?;
        for (name, value) in &self.overrides {
            event.set(name, value.clone());
        }
        Ok(event)
    }

    pub(crate) fn origin(&self) -> Origin<'_> {
        Origin { namespace: &self.namespace, name: &self.name, topic: &self.topic }
    }
}
