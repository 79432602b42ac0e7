//! Rebalances. None takes effect at once: the consumer first releases its records.

use std::{
    collections::VecDeque,
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rdkafka::{
    ClientContext, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::KafkaError,
    types::RDKafkaRespErr,
};
use tokio::sync::Notify;

use super::client;

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

/// Passes rebalances from librdkafka's callback, on whatever thread polls the client, to the consumer's task.
///
/// The two cannot deadlock:
/// - The callback waits for nobody. It appends to the queue and returns; librdkafka then goes on without the new
///   assignment, and sends heartbeats meanwhile. Only other members of the group wait, for at most
///   `max.poll.interval.ms`, until the consumer assigns or unassigns.
/// - The consumer waits for the callback (`changed`) and for records together, so that either wakes it. A notification
///   is stored until it is taken, and `peek` comes before each wait: none is lost.
/// - `stage` is the only lock. It is held for a few instructions, never across an await or a call of librdkafka, whose
///   own locks may be held by the thread that runs the callback. So there is no order of locks to keep.
/// - The end: `close` takes what is pending and makes the callback apply the rest itself, under the same lock. Nothing
///   can be queued after it that nobody would acknowledge, for which librdkafka's close would wait.
#[derive(Debug, Default)]
pub(super) struct RebalanceQueue {
    stage: Mutex<Stage>,
    notify: Notify,
}

/// Who applies a rebalance.
#[derive(Debug)]
enum Stage {
    /// The consumer does, in order.
    Queued(VecDeque<Rebalance>),
    /// The callback does: the consumer is gone and holds no records.
    Immediate,
}

impl Default for Stage {
    fn default() -> Self {
        Self::Queued(VecDeque::new())
    }
}

impl RebalanceQueue {
    /// The next rebalance; it stays until it is acknowledged.
    pub(super) fn peek(&self) -> Option<Rebalance> {
        match &*self.stage() {
            Stage::Queued(pending) => pending.front().cloned(),
            Stage::Immediate => None,
        }
    }

    /// Removes the rebalance that `peek` returned.
    pub(super) fn acknowledge(&self) {
        if let Stage::Queued(pending) = &mut *self.stage() {
            pending.pop_front();
        }
    }

    /// Waits for a rebalance.
    pub(super) async fn changed(&self) {
        self.notify.notified().await;
    }

    /// From now on the callback applies rebalances itself. Returns those that are pending, for the caller to apply.
    pub(super) fn close(&self) -> VecDeque<Rebalance> {
        match mem::replace(&mut *self.stage(), Stage::Immediate) {
            Stage::Queued(pending) => pending,
            Stage::Immediate => VecDeque::new(),
        }
    }

    /// Queues a rebalance; answers whether there is a consumer to apply it.
    fn push(&self, change: Rebalance) -> bool {
        let Stage::Queued(pending) = &mut *self.stage() else { return false };
        pending.push_back(change);
        self.notify.notify_one();
        true
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for RebalanceQueue {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        client::log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, "Kafka: {reason}");
    }
}

impl ConsumerContext for RebalanceQueue {
    fn rebalance(&self, client: &BaseConsumer<Self>, what: RDKafkaRespErr, list: &mut TopicPartitionList) {
        let assigned = what == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let partitions = list.elements().iter().map(|element| element.partition()).collect();
        let change = match assigned {
            true => Rebalance::Assigned(partitions),
            false if client.assignment_lost() => Rebalance::Lost(partitions),
            false => Rebalance::Revoked(partitions),
        };
        if self.push(change) {
            return;
        }
        let applied =
            if assigned { client.incremental_assign(list) } else { client.incremental_unassign(list) };
        if let Err(error) = applied {
            tracing::debug!(%error, "a consumer that closes cannot change its partitions");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_rebalance_is_queued_until_acknowledged_and_after_the_close_left_to_the_callback() {
        let queue = RebalanceQueue::default();
        assert!(queue.push(Rebalance::Assigned(vec![1])));
        assert!(queue.push(Rebalance::Revoked(vec![1])));
        queue.changed().await;
        for _ in 0..2 {
            assert!(matches!(queue.peek(), Some(Rebalance::Assigned(partitions)) if partitions == [1]));
        }
        queue.acknowledge();
        let pending = queue.close();
        assert!(matches!(&pending.iter().collect::<Vec<_>>()[..], [Rebalance::Revoked(_)]), "{pending:?}");
        assert!(!queue.push(Rebalance::Assigned(vec![2])), "nobody would acknowledge it");
        assert!(queue.peek().is_none() && queue.close().is_empty());
    }
}
