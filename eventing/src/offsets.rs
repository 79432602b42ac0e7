//! Tracks finished offsets per partition. What may be committed is the first unfinished offset.

use std::collections::{BTreeMap, VecDeque};

use backend_log::PartitionOffsets;

/// Offsets of records that were read and are not all finished, by partition.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    partitions: BTreeMap<i32, Partition>,
    changed: bool,
}

#[derive(Debug, Default)]
struct Partition {
    /// In the order read, and whether each is finished. The first one never is.
    open: VecDeque<(i64, bool)>,
    /// The offset after the last record read.
    read: i64,
}

impl Offsets {
    /// A record was read.
    pub(crate) fn begin(&mut self, partition: i32, offset: i64) {
        let partition = self.partitions.entry(partition).or_default();
        partition.open.push_back((offset, false));
        partition.read = offset + 1;
    }

    /// A record is finished. Returns the first unfinished offset of its partition; `None` if it was revoked.
    pub(crate) fn finish(&mut self, partition: i32, offset: i64) -> Option<i64> {
        // A partition that was revoked in the meantime belongs to another consumer.
        let partition = self.partitions.get_mut(&partition)?;
        let at = partition.open.binary_search_by_key(&offset, |(offset, _)| *offset).ok()?;
        partition.open[at].1 = true;
        while partition.open.front().is_some_and(|(_, finished)| *finished) {
            partition.open.pop_front();
            self.changed = true;
        }
        Some(partition.next())
    }

    /// Drops a partition that is revoked. Returns its first unfinished offset.
    pub(crate) fn forget(&mut self, partition: i32) -> Option<i64> {
        self.partitions.remove(&partition).map(|partition| partition.next())
    }

    /// The offsets to commit, if they changed since the last call.
    pub(crate) fn take_commit(&mut self) -> Option<PartitionOffsets> {
        let changed = std::mem::take(&mut self.changed);
        changed
            .then(|| self.partitions.iter().map(|(number, partition)| (*number, partition.next())).collect())
    }
}

impl Partition {
    fn next(&self) -> i64 {
        self.open.front().map_or(self.read, |(offset, _)| *offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_nothing_unfinished_before_it_is_committed() {
        let mut offsets = Offsets::default();
        for offset in [3, 4, 7] {
            offsets.begin(0, offset);
        }
        offsets.begin(1, 0);
        assert_eq!(offsets.take_commit(), None);
        assert_eq!(offsets.finish(0, 7), Some(3));
        assert_eq!(offsets.take_commit(), None);
        assert_eq!(offsets.finish(0, 3), Some(4));
        assert_eq!(offsets.take_commit(), Some([(0, 4), (1, 0)].into()));
        assert_eq!(offsets.finish(0, 4), Some(8));
        assert_eq!(offsets.take_commit(), Some([(0, 8), (1, 0)].into()));
        assert_eq!(offsets.take_commit(), None);
        assert_eq!((offsets.forget(1), offsets.forget(1)), (Some(0), None));
        assert_eq!(offsets.finish(1, 0), None);
    }
}
