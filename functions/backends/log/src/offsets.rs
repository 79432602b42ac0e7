//! Offsets of a topic's partitions.

use std::{
    collections::{BTreeMap, btree_map},
    ops::{Deref, DerefMut, Range},
};

/// An offset per partition. Committed, it is that of the first record that is not finished.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartitionOffsets(BTreeMap<i32, i64>);

/// Per partition, the offsets from the oldest record to the one after the newest.
pub type Watermarks = BTreeMap<i32, Range<i64>>;

impl Deref for PartitionOffsets {
    type Target = BTreeMap<i32, i64>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for PartitionOffsets {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl FromIterator<(i32, i64)> for PartitionOffsets {
    fn from_iter<I: IntoIterator<Item = (i32, i64)>>(offsets: I) -> Self {
        Self(offsets.into_iter().collect())
    }
}

impl<const N: usize> From<[(i32, i64); N]> for PartitionOffsets {
    fn from(offsets: [(i32, i64); N]) -> Self {
        Self(offsets.into())
    }
}

impl IntoIterator for PartitionOffsets {
    type Item = (i32, i64);
    type IntoIter = btree_map::IntoIter<i32, i64>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}
