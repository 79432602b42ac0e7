//! Which partitions a consumer reads: those that the group assigns, or all of them.

use rdkafka::{Offset, consumer::Consumer as _, error::KafkaError};
use tokio::time::Instant;

use super::{DISCOVERY_INTERVAL, KafkaConsumer};
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
    /// Joins the group or takes all partitions; releases those that the last poll reported as revoked; pauses or
    /// resumes.
    pub(super) fn prepare(&mut self) -> Result<(), KafkaError> {
        if !self.subscribed && self.group {
            self.client.subscribe(&[&self.topic])?;
        } else if !self.subscribed {
            self.assign(
                &self.start_offsets.keys().copied().collect::<Vec<_>>(),
                &self.start_offsets.clone(),
            )?;
        }
        self.subscribed = true;
        if !self.revoking.is_empty() {
            self.unassign(&self.revoking.clone())?;
            self.revoking.clear();
        }
        if self.pausing != self.paused {
            let assignment = self.client.assignment()?;
            match self.pausing {
                true => self.client.pause(&assignment)?,
                false => self.client.resume(&assignment)?,
            }
            self.paused = self.pausing;
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
        self.owned.get_or_insert_default().extend(partitions);
        self.at_end.retain(|partition| !partitions.contains(partition));
        if self.paused {
            self.client.pause(&self.client.assignment()?)?;
        }
        Ok(())
    }

    fn unassign(&mut self, partitions: &[i32]) -> Result<(), KafkaError> {
        let partitions_at = partitions.iter().map(|partition| (*partition, Offset::Invalid));
        let revoked = list(&self.topic, partitions_at)?;
        if self.paused {
            // librdkafka keeps the pause beyond the assignment: a partition that came back would not be read.
            self.client.resume(&revoked)?;
        }
        self.client.incremental_unassign(&revoked)?;
        self.forget(partitions);
        Ok(())
    }

    fn forget(&mut self, partitions: &[i32]) {
        if let Some(owned) = &mut self.owned {
            owned.retain(|partition| !partitions.contains(partition));
        }
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
                    self.revoking.clone_from(&partitions);
                    return Ok(Some(partitions));
                }
                Rebalance::Lost(partitions) => {
                    self.client.context().acknowledge();
                    // Others own them already, so their offsets are no longer ours to commit.
                    self.forget(&partitions);
                    self.revoking.clone_from(&partitions);
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
        let owned = self.owned.clone().unwrap_or_default();
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
        self.client.context().close();
        let mut revoked = std::mem::take(&mut self.revoking);
        while let Some(change) = self.client.context().peek() {
            self.client.context().acknowledge();
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
