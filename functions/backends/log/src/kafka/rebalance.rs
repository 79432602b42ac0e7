//! Rebalances. None takes effect at once: the consumer first releases its records.

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

/// A pending rebalance.
#[derive(Debug, Clone)]
pub(super) enum Rebalance {
    /// These partitions are now assigned to this consumer.
    Assigned(Vec<i32>),
    /// These are revoked; the group waits until they are released.
    Revoked(Vec<i32>),
    /// These are lost: others own them already.
    Lost(Vec<i32>),
}

/// The consumer's side of a group.
#[derive(Debug, Default)]
pub(super) struct RebalanceQueue {
    pending: Mutex<VecDeque<Rebalance>>,
    notify: Notify,
    closing: AtomicBool,
}

impl RebalanceQueue {
    /// The next rebalance; it stays until it is acknowledged.
    pub(super) fn peek(&self) -> Option<Rebalance> {
        self.pending().front().cloned()
    }

    /// Acknowledges the rebalance.
    pub(super) fn acknowledge(&self) {
        self.pending().pop_front();
    }

    /// Waits for a change.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// From now on no records are held, so rebalances are applied as they come.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<Rebalance>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for RebalanceQueue {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        super::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "Kafka: {reason}");
    }
}

impl ConsumerContext for RebalanceQueue {
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
            true => Rebalance::Assigned(partitions),
            false if client.assignment_lost() => Rebalance::Lost(partitions),
            false => Rebalance::Revoked(partitions),
        };
        self.pending().push_back(change);
        self.notify.notify_one();
    }
}
