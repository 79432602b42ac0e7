//! What a source did so far and where it is, for its status.

use std::{
    ops::Range,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize},
    },
};

use backend_log::{PartitionOffsets, Watermarks};
use framework::supervise::TaskHealth;

/// Counters and positions of a running source.
///
/// Lock order: `unfinished` before `start_offsets`. Each is held for a few instructions, never across an await.
#[derive(Debug, Default)]
pub struct Progress {
    /// Events delivered.
    pub delivered: AtomicU64,
    /// Attempts after the first.
    pub retried: AtomicU64,
    /// Events that became dead letters.
    pub dead: AtomicU64,
    /// Events in flight.
    pub under_way: AtomicUsize,
    /// Restarts after panics, and the last failure.
    pub health: TaskHealth,
    /// First unfinished offset of each partition that is read here.
    unfinished: Mutex<PartitionOffsets>,
    /// Where the group began, if it had committed nothing.
    start_offsets: Mutex<PartitionOffsets>,
}

impl Progress {
    /// The number of unfinished records within the watermarks. Partitions that other members of the group read are where
    /// the group `committed`.
    #[must_use]
    pub fn lag(&self, watermarks: &Watermarks, committed: &PartitionOffsets) -> i64 {
        let (unfinished, start_offsets) = (self.unfinished(), self.start_offsets());
        let next = |partition| {
            unfinished.get(partition).or(committed.get(partition)).or(start_offsets.get(partition)).copied()
        };
        let lag = |(partition, range): (_, &Range<i64>)| {
            range.end - next(partition).unwrap_or(range.start).max(range.start)
        };
        watermarks.iter().map(|watermark| lag(watermark).max(0)).sum()
    }

    pub(crate) fn unfinished(&self) -> MutexGuard<'_, PartitionOffsets> {
        self.unfinished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn start_offsets(&self) -> MutexGuard<'_, PartitionOffsets> {
        self.start_offsets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
