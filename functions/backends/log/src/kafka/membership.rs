//! What the group tells a consumer. Nothing of it is done at once: the consumer first lets go of its records.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaRespErr,
};
use tokio::sync::Notify;

/// A change that waits to be carried out.
#[derive(Debug, Clone)]
pub(super) enum Change {
    /// These partitions are this consumer's from now on.
    Assigned(Vec<i32>),
    /// These are wanted by others; the group waits until they are given up.
    Revoked(Vec<i32>),
    /// These are others' already.
    Lost(Vec<i32>),
}

/// The consumer's side of a group.
#[derive(Debug, Default)]
pub(super) struct Membership {
    changes: Mutex<VecDeque<Change>>,
    news: Notify,
    closing: AtomicBool,
}

impl Membership {
    /// The change to be carried out next; it stays until `done`.
    pub(super) fn change(&self) -> Option<Change> {
        self.changes().front().cloned()
    }

    /// The change is carried out.
    pub(super) fn done(&self) {
        self.changes().pop_front();
    }

    /// Waits for a change.
    pub(super) async fn news(&self) {
        self.news.notified().await;
    }

    /// From now on nobody holds records, so that changes can be carried out as they come.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn changes(&self) -> MutexGuard<'_, VecDeque<Change>> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for Membership {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "Kafka: {reason}");
    }
}

impl ConsumerContext for Membership {
    fn rebalance(&self, client: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.closing.load(Ordering::Acquire) {
            let done =
                if assigned { client.incremental_assign(list) } else { client.incremental_unassign(list) };
            if let Err(error) = done {
                tracing::debug!(%error, "a consumer that closes cannot change its partitions");
            }
            return;
        }
        let partitions = list.elements().iter().map(|element| element.partition()).collect();
        let change = match assigned {
            true => Change::Assigned(partitions),
            false if client.assignment_lost() => Change::Lost(partitions),
            false => Change::Revoked(partitions),
        };
        self.changes().push_back(change);
        self.news.notify_one();
    }
}
