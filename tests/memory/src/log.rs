//! The log in memory: topics in partitions, consumer groups with cooperative rebalances, fenced commits and retention,
//! as Kafka has them.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use async_trait::async_trait;
use backend_log::{
    Appender, Consumer, Delivered, Log, LogError, PartitionOffsets, Polled, Positions, Start, Watermarks,
};
use domain::{Failure, Store};
use event::Record;
use tokio::sync::Notify;

use crate::{Clock, lock};

/// A log that all clones share. Each clone belongs to a process, whose consumers can be expired together.
#[derive(Clone)]
pub struct MemoryLog {
    state: Arc<Mutex<State>>,
    /// Wakes waiters in the order in which they came, as a deterministic simulation needs it.
    changed: Arc<Notify>,
    partitions: i32,
    clock: Clock,
    process: u64,
    next_member: Arc<AtomicU64>,
}

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Vec<Partition>>,
    groups: BTreeMap<(String, String), Group>,
}

#[derive(Default)]
struct Partition {
    /// The oldest offset that can be read. Older records are kept for `records` only.
    low: i64,
    records: Vec<(i64, Record)>,
}

/// A member of a group: its process and its number.
type Member = (u64, u64);

#[derive(Default)]
struct Group {
    committed: PartitionOffsets,
    members: Vec<Member>,
    owners: BTreeMap<i32, Member>,
}

impl Group {
    /// Who should own a partition.
    fn target(&self, partition: i32) -> Option<Member> {
        let count = self.members.len();
        (count > 0).then(|| self.members[usize::try_from(partition).unwrap_or(0) % count])
    }

    /// Assigns partitions without an owner. The others move once their owner releases them.
    fn assign(&mut self, partitions: i32) {
        self.owners.retain(|_, owner| self.members.contains(owner));
        for partition in 0..partitions {
            if let (None, Some(target)) = (self.owners.get(&partition), self.target(partition)) {
                self.owners.insert(partition, target);
            }
        }
    }

    fn leave(&mut self, is_gone: impl Fn(&Member) -> bool, partitions: i32) {
        self.members.retain(|member| !is_gone(member));
        self.assign(partitions);
    }

    fn owned(&self, member: Member) -> impl Iterator<Item = i32> {
        self.owners.iter().filter(move |(_, owner)| **owner == member).map(|(partition, _)| *partition)
    }
}

impl MemoryLog {
    /// An empty log whose topics have so many partitions.
    #[must_use]
    pub fn new(partitions: i32, clock: Clock) -> Self {
        let (state, changed, next_member) = Default::default();
        Self { state, changed, partitions, clock, process: 0, next_member }
    }

    /// The same log, as a process with this number sees it.
    #[must_use]
    pub fn for_process(&self, process: u64) -> Self {
        Self { process, ..self.clone() }
    }

    /// Removes a process from all groups, as a broker does that heard nothing of it for the session timeout.
    pub fn expire(&self, process: u64) {
        for group in lock(&self.state).groups.values_mut() {
            group.leave(|member| member.0 == process, self.partitions);
        }
        self.changed.notify_waiters();
    }

    /// Retention: removes records that all groups of the topic have committed.
    pub fn truncate(&self, topic: &str) {
        let mut state = lock(&self.state);
        let State { topics, groups } = &mut *state;
        for (number, partition) in (0..).zip(topics.entry(topic.to_owned()).or_default()) {
            let committed = groups.iter().filter(|((name, _), _)| name == topic);
            let lowest = committed.map(|(_, group)| group.committed.get(&number).copied().unwrap_or(0)).min();
            partition.low = partition.low.max(lowest.unwrap_or(0));
        }
    }

    /// All records of a topic that were ever appended, by partition.
    #[must_use]
    pub fn records(&self, topic: &str) -> BTreeMap<i32, Vec<Record>> {
        let state = lock(&self.state);
        let partitions = state.topics.get(topic).into_iter().flatten();
        let records = |partition: &Partition| partition.records.iter().map(|(_, r)| r.clone()).collect();
        (0..).zip(partitions.map(records)).collect()
    }

    /// The committed offsets of a group.
    #[must_use]
    pub fn committed(&self, topic: &str, group: &str) -> PartitionOffsets {
        let state = lock(&self.state);
        let group = state.groups.get(&(topic.to_owned(), group.to_owned()));
        group.map(|group| group.committed.clone()).unwrap_or_default()
    }

    /// Commits for a group whoever owns its partitions, as a broker without fencing would do.
    pub fn commit_without_fencing(&self, topic: &str, group: &str, next: &PartitionOffsets) {
        let mut state = lock(&self.state);
        let group = state.groups.entry((topic.to_owned(), group.to_owned())).or_default();
        group.committed.extend(next.clone());
    }

    fn partition_of(&self, key: &[u8]) -> usize {
        // FNV-1a.
        let hash = key.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        usize::try_from(hash % u64::try_from(self.partitions).unwrap_or(1)).unwrap_or(0)
    }

    fn topic<'a>(&self, state: &'a mut State, topic: &str) -> &'a mut Vec<Partition> {
        let partitions = state.topics.entry(topic.to_owned()).or_default();
        partitions.resize_with(usize::try_from(self.partitions).unwrap_or(1), Partition::default);
        partitions
    }
}

#[async_trait]
impl Store for MemoryLog {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn writes_at_once(&self) -> usize {
        2
    }
}

#[async_trait]
impl Appender for MemoryLog {
    async fn append(&self, topic: &str, records: Vec<Record>) -> Result<(), Failure> {
        let now = (self.clock)();
        let mut state = lock(&self.state);
        let partitions = self.topic(&mut state, topic);
        for (n, record) in records.into_iter().enumerate() {
            let to = record.key.as_ref().map_or(n % partitions.len(), |key| self.partition_of(key));
            partitions[to].records.push((now, record));
        }
        self.changed.notify_waiters();
        Ok(())
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn consume(
        &self,
        topic: &str,
        group: Option<&str>,
        start: Start,
    ) -> Result<Box<dyn Consumer>, LogError> {
        let mut state = lock(&self.state);
        let first = |partition: &Partition| match start {
            Start::Earliest => 0,
            Start::Latest => partition.records.len(),
            Start::Time(ms) => partition.records.partition_point(|(time, _)| *time < ms),
        };
        let start = (0..).zip(self.topic(&mut state, topic).iter().map(first));
        let start = start.map(|(partition, at)| (partition, i64::try_from(at).unwrap_or(0))).collect();
        let mut consumer = MemoryConsumer {
            log: self.clone(),
            topic: topic.to_owned(),
            group: group.map(str::to_owned),
            member: (self.process, self.next_member.fetch_add(1, Relaxed)),
            is_member: false,
            start,
            positions: PartitionOffsets::default(),
            revoking: Vec::new(),
            first_partition: 0,
            is_paused: false,
        };
        if group.is_none() {
            consumer.positions = consumer.start.clone();
        }
        Ok(Box::new(consumer))
    }
}

/// A consumer of a topic.
struct MemoryConsumer {
    log: MemoryLog,
    topic: String,
    group: Option<String>,
    member: Member,
    is_member: bool,
    /// Where a partition starts without a committed offset.
    start: PartitionOffsets,
    /// Next offsets of the partitions that it reads.
    positions: PartitionOffsets,
    /// Returned as revoked by the last poll; the next one releases them.
    revoking: Vec<i32>,
    /// The partition that the next page starts with.
    first_partition: i32,
    is_paused: bool,
}

impl MemoryConsumer {
    fn key(&self) -> Option<(String, String)> {
        self.group.as_ref().map(|group| (self.topic.clone(), group.clone()))
    }

    /// Joins the group, releases what was revoked, and starts partitions that were assigned. Returns partitions that are
    /// revoked now.
    fn serve_group(&mut self) -> Vec<i32> {
        let Some(key) = self.key() else { return Vec::new() };
        let log = self.log.clone();
        let mut state = lock(&log.state);
        let group = state.groups.entry(key).or_default();
        if self.is_member && !group.members.contains(&self.member) {
            // Expired. Others may own its partitions already.
            self.is_member = false;
            self.revoking.clear();
            return std::mem::take(&mut self.positions).into_iter().map(|(partition, _)| partition).collect();
        }
        if !self.is_member {
            self.is_member = true;
            group.members.push(self.member);
            group.assign(log.partitions);
            log.changed.notify_waiters();
        }
        if !self.revoking.is_empty() {
            for partition in self.revoking.drain(..) {
                group.owners.remove(&partition);
                self.positions.remove(&partition);
            }
            group.assign(log.partitions);
            log.changed.notify_waiters();
        }
        for partition in group.owned(self.member) {
            let from = group.committed.get(&partition).or_else(|| self.start.get(&partition));
            self.positions.entry(partition).or_insert(from.copied().unwrap_or(0));
        }
        self.revoking = group.owned(self.member).filter(|p| group.target(*p) != Some(self.member)).collect();
        self.revoking.clone()
    }

    fn page(&mut self, max: usize) -> Vec<Delivered> {
        let log = self.log.clone();
        let mut state = lock(&log.state);
        let partitions = log.topic(&mut state, &self.topic);
        let mut page = Vec::new();
        for turn in 0..log.partitions {
            let number = (self.first_partition + turn) % log.partitions;
            let Some(position) = self.positions.get_mut(&number) else { continue };
            let partition = &partitions[usize::try_from(number).unwrap_or(0)];
            *position = (*position).max(partition.low);
            let rest = partition.records.iter().skip(usize::try_from(*position).unwrap_or(0));
            for (time_ms, record) in rest.take(max - page.len()) {
                let record = record.clone();
                page.push(Delivered { partition: number, offset: *position, time_ms: *time_ms, record });
                *position += 1;
            }
        }
        self.first_partition = (self.first_partition + 1) % log.partitions;
        page
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        let Some(key) = self.key() else { return };
        if let Some(group) = lock(&self.log.state).groups.get_mut(&key) {
            group.leave(|member| *member == self.member, self.log.partitions);
        }
        self.log.changed.notify_waiters();
    }
}

#[async_trait]
impl Positions for MemoryConsumer {
    async fn committed(&mut self) -> Result<PartitionOffsets, LogError> {
        let group = self.group.clone();
        Ok(group.map(|group| self.log.committed(&self.topic, &group)).unwrap_or_default())
    }

    async fn watermarks(&mut self) -> Result<Watermarks, LogError> {
        let mut state = lock(&self.log.state);
        let partitions = self.log.topic(&mut state, &self.topic).iter();
        let range = |partition: &Partition| -> Range<i64> {
            partition.low..i64::try_from(partition.records.len()).unwrap_or(i64::MAX)
        };
        Ok((0..).zip(partitions.map(range)).collect())
    }
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn poll(&mut self, max: usize) -> Result<Polled, LogError> {
        let changed = self.log.changed.clone();
        loop {
            let news = changed.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            let revoked = self.serve_group();
            if !revoked.is_empty() {
                return Ok(Polled::Revoked(revoked));
            }
            if !self.is_paused {
                let page = self.page(max);
                if !page.is_empty() {
                    return Ok(Polled::Records(page));
                }
            }
            news.await;
        }
    }

    async fn poll_now(&mut self, max: usize) -> Result<Vec<Delivered>, LogError> {
        while !self.serve_group().is_empty() {}
        Ok(self.page(max))
    }

    fn pause(&mut self) {
        self.is_paused = true;
    }

    fn resume(&mut self) {
        self.is_paused = false;
    }

    async fn commit(&mut self, next: &PartitionOffsets) -> Result<(), LogError> {
        let Some(key) = self.key() else { return Ok(()) };
        let mut state = lock(&self.log.state);
        let group = state.groups.entry(key).or_default();
        for (partition, offset) in next.iter() {
            if group.owners.get(partition) == Some(&self.member) {
                group.committed.insert(*partition, *offset);
            }
        }
        Ok(())
    }
}
