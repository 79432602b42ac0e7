//! Which record may be sent next: any up to a limit in flight, or, if ordered, one of each partition at a time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use backend_log::Delivered;

use crate::manifest::Ordering;

/// Records waiting to be sent.
pub(crate) struct Queue {
    ordering: Ordering,
    /// Maximum number of records in flight.
    limit: usize,
    under_way: usize,
    /// Bytes of the records that wait.
    waiting: usize,
    /// One lane per partition if ordered; otherwise a single lane, 0.
    lanes: BTreeMap<i32, VecDeque<Delivered>>,
    /// Lanes whose first record may be sent now.
    free: BTreeSet<i32>,
    /// Lanes of an ordered queue with a record in flight.
    busy: BTreeSet<i32>,
}

impl Queue {
    pub(crate) fn new(ordering: Ordering, limit: usize) -> Self {
        Self {
            ordering,
            limit,
            under_way: 0,
            waiting: 0,
            lanes: BTreeMap::new(),
            free: BTreeSet::new(),
            busy: BTreeSet::new(),
        }
    }

    /// Bytes of the records that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    pub(crate) fn push(&mut self, delivered: Delivered) {
        let lane = self.lane(delivered.partition);
        self.waiting += size(&delivered);
        self.lanes.entry(lane).or_default().push_back(delivered);
        if !self.busy.contains(&lane) {
            self.free.insert(lane);
        }
    }

    /// The next record that may be sent; in flight until `finished`.
    pub(crate) fn next(&mut self) -> Option<Delivered> {
        if self.under_way >= self.limit {
            return None;
        }
        let lane = *self.free.first()?;
        let records = self.lanes.get_mut(&lane)?;
        let record = records.pop_front()?;
        if self.ordering == Ordering::Ordered {
            self.free.remove(&lane);
            self.busy.insert(lane);
        } else if records.is_empty() {
            self.free.remove(&lane);
        }
        self.waiting -= size(&record);
        self.under_way += 1;
        Some(record)
    }

    /// A record of the partition is no longer in flight.
    pub(crate) fn finished(&mut self, partition: i32) {
        self.under_way -= 1;
        let lane = self.lane(partition);
        if self.busy.remove(&lane) {
            match self.lanes.get(&lane) {
                Some(records) if !records.is_empty() => drop(self.free.insert(lane)),
                _ => drop(self.lanes.remove(&lane)),
            }
        }
    }

    /// Drops the waiting records of a partition that another member owns now.
    pub(crate) fn forget(&mut self, partition: i32) {
        let lane = self.lane(partition);
        if let Some(records) = self.lanes.get_mut(&lane) {
            records.retain(|delivered| {
                let stays = delivered.partition != partition;
                if !stays {
                    self.waiting -= size(delivered);
                }
                stays
            });
            if records.is_empty() {
                self.free.remove(&lane);
            }
        }
    }

    fn lane(&self, partition: i32) -> i32 {
        match self.ordering {
            Ordering::Ordered => partition,
            Ordering::Unordered => 0,
        }
    }
}

fn size(delivered: &Delivered) -> usize {
    size_of::<Delivered>() + delivered.record.size()
}

#[cfg(test)]
mod tests {
    use event::Record;

    use super::*;

    fn at(partition: i32, offset: i64) -> Delivered {
        Delivered { partition, offset, time_ms: 0, record: Record::default() }
    }

    fn position(delivered: Option<Delivered>) -> Option<(i32, i64)> {
        delivered.map(|d| (d.partition, d.offset))
    }

    #[test]
    fn an_ordered_queue_has_one_of_each_partition_under_way() {
        let mut queue = Queue::new(Ordering::Ordered, 100);
        for offset in 0..2 {
            queue.push(at(0, offset));
            queue.push(at(1, offset));
        }
        assert_eq!(position(queue.next()), Some((0, 0)));
        assert_eq!(position(queue.next()), Some((1, 0)));
        assert_eq!((position(queue.next()), queue.waiting()), (None, 2 * size(&at(0, 0))));
        queue.finished(1);
        assert_eq!(position(queue.next()), Some((1, 1)));
        queue.forget(0);
        queue.finished(0);
        assert_eq!((position(queue.next()), queue.waiting()), (None, 0));
    }

    #[test]
    fn an_unordered_queue_has_as_many_under_way_as_it_may() {
        let mut queue = Queue::new(Ordering::Unordered, 3);
        for offset in 0..5 {
            queue.push(at(0, offset));
        }
        assert_eq!(std::iter::from_fn(|| queue.next()).count(), 3);
        queue.finished(0);
        assert_eq!(position(queue.next()), Some((0, 3)));
        assert_eq!(position(queue.next()), None);
    }
}
