//! Which partitions a consumer reads: those that the group assigns, or all of them.

use rdkafka::{Offset, consumer::Consumer as _, error::KafkaError};
use tokio::time::Instant;

use super::{
    DISCOVERY_INTERVAL, KafkaConsumer,
    state::{Flow, State},
};
use crate::{
    PartitionOffsets, Start,
    kafka::{
        blocking_drop::blocking,
        error::KafkaFailure,
        offsets::{self, list},
        rebalance::Rebalance,
    },
};

impl KafkaConsumer {
    /// Brings librdkafka to where the state wants it: joins the group or takes all partitions, releases those that the
    /// last poll reported as revoked, pauses or resumes. The state changes after the call that it needs, so that a call
    /// that failed is made again by the next poll.
    pub(super) fn prepare(&mut self) -> Result<(), KafkaError> {
        match &self.state {
            State::Idle if self.group => {
                self.client.subscribe(&[&self.topic])?;
                self.state = State::Joining;
            }
            State::Idle => {
                let partitions = self.start_offsets.keys().copied().collect::<Vec<_>>();
                self.assign(&partitions, &self.start_offsets.clone())?;
            }
            State::Revoking(partitions) => {
                self.unassign(&partitions.clone())?;
                self.state = State::Reading;
            }
            State::Joining | State::Reading => {}
        }
        match self.flow {
            Flow::Pausing => {
                self.client.pause(&self.client.assignment()?)?;
                self.flow = Flow::Paused;
            }
            Flow::Resuming => {
                self.client.resume(&self.client.assignment()?)?;
                self.flow = Flow::Running;
            }
            Flow::Running | Flow::Paused => {}
        }
        Ok(())
    }

    /// Adds partitions: from their start offset, else from the committed one, else from the beginning.
    fn assign(&mut self, partitions: &[i32], start_offsets: &PartitionOffsets) -> Result<(), KafkaError> {
        let other = if self.group { Offset::Stored } else { Offset::Beginning };
        let at = |partition: &i32| {
            (*partition, start_offsets.get(partition).map_or(other, |at| Offset::Offset(*at)))
        };
        self.client.incremental_assign(&list(&self.topic, partitions.iter().map(at))?)?;
        self.state = State::Reading;
        self.assignment.add(partitions);
        if self.flow.is_paused() {
            self.client.pause(&self.client.assignment()?)?;
        }
        Ok(())
    }

    fn unassign(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        let partitions_at = partitions.iter().map(|partition| (*partition, Offset::Invalid));
        let revoked = list(&self.topic, partitions_at)?;
        if self.flow.is_paused() {
            // librdkafka keeps the pause beyond the assignment: a partition that came back would not be read.
            self.client.resume(&revoked)?;
        }
        self.client.incremental_unassign(&revoked)?;
        self.forget(partitions);
        Ok(())
    }

    fn forget(&mut self, partitions: &[i32]) {
        self.assignment.remove(partitions);
        self.buffer.retain(|delivered| !partitions.contains(&delivered.partition));
    }

    /// Applies a rebalance; returns the partitions to release.
    pub(super) async fn settle(&mut self) -> Result<Option<Vec<i32>>, KafkaFailure> {
        while let Some(change) = self.client.context().peek() {
            match change {
                Rebalance::Assigned(partitions) => {
                    let start_offsets = self.start_offsets_of(&partitions).await?;
                    // Not earlier, so that a poll that is cancelled here finds it again.
                    self.client.context().acknowledge();
                    self.assign(&partitions, &start_offsets).map_err(KafkaFailure::Read)?;
                }
                Rebalance::Revoked(partitions) | Rebalance::Lost(partitions) if partitions.is_empty() => {
                    self.client.context().acknowledge();
                    self.unassign(&partitions).map_err(KafkaFailure::Read)?;
                }
                Rebalance::Revoked(partitions) => {
                    self.client.context().acknowledge();
                    self.buffer.retain(|delivered| !partitions.contains(&delivered.partition));
                    self.state = State::Revoking(partitions.clone());
                    return Ok(Some(partitions));
                }
                Rebalance::Lost(partitions) => {
                    self.client.context().acknowledge();
                    // Others own them already, so their offsets are no longer ours to commit.
                    self.forget(&partitions);
                    self.state = State::Revoking(partitions.clone());
                    return Ok(Some(partitions));
                }
            }
        }
        Ok(None)
    }

    /// Start offsets of partitions without a committed one.
    async fn start_offsets_of(&self, partitions: &[i32]) -> Result<PartitionOffsets, KafkaFailure> {
        if self.start == Start::Earliest {
            return Ok(PartitionOffsets::default());
        }
        let (client, topic, asked) = (self.client.clone(), self.topic.clone(), partitions.to_vec());
        let committed =
            blocking(move || offsets::committed(&client, &topic, &asked).map_err(KafkaFailure::Read)).await?;
        let new = partitions.iter().filter(|partition| !committed.contains_key(partition));
        Ok(new.filter_map(|partition| Some((*partition, *self.start_offsets.get(partition)?))).collect())
    }

    /// Adds partitions that were created since.
    pub(super) async fn find_new(&mut self) -> Result<(), KafkaFailure> {
        self.next_discovery = Instant::now() + DISCOVERY_INTERVAL;
        // A broker that is away is asked again later.
        let Ok(partitions) = self.ask(|_, _, partitions| Ok(partitions.to_vec())).await else {
            return Ok(());
        };
        let owned = &self.assignment.owned;
        let new: Vec<_> = partitions.into_iter().filter(|partition| !owned.contains(partition)).collect();
        if new.is_empty() {
            return Ok(());
        }
        self.assign(&new, &PartitionOffsets::default()).map_err(KafkaFailure::Read)
    }
}

impl Drop for KafkaConsumer {
    /// Leaves the group at once, after acknowledging every pending rebalance, so that others take over.
    fn drop(&mut self) {
        let mut revoked = match std::mem::replace(&mut self.state, State::Idle) {
            State::Revoking(partitions) => partitions,
            State::Idle | State::Joining | State::Reading => Vec::new(),
        };
        for change in self.client.context().close() {
            match change {
                Rebalance::Assigned(partitions) => {
                    let _ = self.assign(&partitions, &PartitionOffsets::default());
                }
                Rebalance::Revoked(partitions) | Rebalance::Lost(partitions) => revoked.extend(partitions),
            }
        }
        if !revoked.is_empty() {
            let _ = self.unassign(&revoked);
        }
    }
}
