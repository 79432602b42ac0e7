//! The master dataset in memory. As in MySQL, sequence numbers are assigned before a transaction commits, so a lower one
//! may become visible after a higher one, and an id that another transaction inserts is locked until that one ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use backend_master::{BatchJob, BatchViews, Dataset, Stored, Tick};
use domain::{Failure, History, Point, Store, User, Window};
use tokio::{sync::Notify, time::sleep};
use uuid::Uuid;

use crate::{Clock, history::select, lock};

/// How long a transaction takes between its inserts and its commit.
type CommitDelay = Arc<dyn Fn() -> Duration + Send + Sync>;

/// Defects on purpose, which a check of the whole system must find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Defects {
    /// The longest name is the one with the most bytes.
    pub longest_by_bytes: bool,
    /// A tick reads what is above the highest sequence number seen, and so misses late commits.
    pub skips_late_commits: bool,
    /// A transaction whose caller gave up leaves its row locks behind.
    pub keeps_locks: bool,
}

/// A master dataset that all clones share; a clone may have another clock.
#[derive(Clone)]
pub struct MemoryMaster {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    clock: Clock,
    commit_delay: CommitDelay,
    defects: Defects,
}

#[derive(Default)]
struct State {
    next_seq: u64,
    users: BTreeMap<u64, Row>,
    seqs: BTreeMap<Uuid, u64>,
    locked: BTreeSet<Uuid>,
    /// Committed, and not yet part of the batch views.
    pending: BTreeSet<u64>,
    batch: Batch,
}

#[derive(Clone)]
struct Row {
    id: Uuid,
    name: String,
    /// Milliseconds since 1970 UTC.
    stored_at: i64,
}

/// The batch views.
#[derive(Default, Clone, PartialEq, Eq)]
struct Batch {
    users: u64,
    highest_seq: u64,
    longest_seq: Option<u64>,
    /// Per minute, the newest time in milliseconds and the number of users stored in it.
    minutes: BTreeMap<i64, (i64, i64)>,
}

impl MemoryMaster {
    /// An empty master dataset whose transactions commit at once.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let (state, changed) = Default::default();
        let commit_delay: CommitDelay = Arc::new(|| Duration::ZERO);
        Self { state, changed, clock, commit_delay, defects: Defects::default() }
    }

    /// The same master dataset, with another clock.
    #[must_use]
    pub fn with_clock(&self, clock: Clock) -> Self {
        Self { clock, ..self.clone() }
    }

    /// With transactions that take a while.
    #[must_use]
    pub fn with_commit_delay(self, delay: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self { commit_delay: Arc::new(delay), ..self }
    }

    /// With defects.
    #[must_use]
    pub fn with_defects(self, defects: Defects) -> Self {
        Self { defects, ..self }
    }

    /// All users: id and name.
    #[must_use]
    pub fn users(&self) -> BTreeMap<Uuid, String> {
        lock(&self.state).users.values().map(|row| (row.id, row.name.clone())).collect()
    }

    /// The stored name of an id.
    #[must_use]
    pub fn name(&self, id: &Uuid) -> Option<String> {
        let state = lock(&self.state);
        state.seqs.get(id).map(|seq| state.users[seq].name.clone())
    }

    /// Waits until no other transaction inserts one of the ids, and locks them.
    async fn begin(&self, users: &[User]) -> Transaction {
        loop {
            let ended = self.changed.notified();
            tokio::pin!(ended);
            ended.as_mut().enable();
            {
                let mut state = lock(&self.state);
                if !users.iter().any(|user| state.locked.contains(&user.id)) {
                    state.locked.extend(users.iter().map(|user| user.id));
                    let first_seq = state.next_seq;
                    state.next_seq += users.len() as u64;
                    let ids = users.iter().map(|user| user.id).collect();
                    return Transaction { master: self.clone(), ids, first_seq, is_committed: false };
                }
            }
            ended.await;
        }
    }
}

/// Holds the locks of its ids until it is dropped.
struct Transaction {
    master: MemoryMaster,
    ids: Vec<Uuid>,
    first_seq: u64,
    is_committed: bool,
}

impl Transaction {
    fn commit(mut self, users: Vec<User>) -> Vec<Stored> {
        self.is_committed = true;
        let now = (self.master.clock)().max(0);
        let mut state = lock(&self.master.state);
        let first_seq = self.first_seq;
        let store = |(n, user): (usize, User)| match state.seqs.get(&user.id) {
            Some(seq) if state.users[seq].name == user.name => Stored::Duplicate,
            Some(seq) => Stored::Conflict { kept: state.users[seq].name.clone() },
            None => {
                let seq = first_seq + n as u64;
                state.seqs.insert(user.id, seq);
                state.users.insert(seq, Row { id: user.id, name: user.name, stored_at: now });
                state.pending.insert(seq);
                Stored::New
            }
        };
        users.into_iter().enumerate().map(store).collect()
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if !self.is_committed && self.master.defects.keeps_locks {
            return;
        }
        let mut state = lock(&self.master.state);
        for id in &self.ids {
            state.locked.remove(id);
        }
        self.master.changed.notify_waiters();
    }
}

impl Batch {
    fn apply(&mut self, seq: u64, users: &BTreeMap<u64, Row>, length: impl Fn(&str) -> usize) {
        let row = &users[&seq];
        self.users += 1;
        self.highest_seq = self.highest_seq.max(seq + 1);
        let minute = self.minutes.entry(row.stored_at.div_euclid(60_000)).or_default();
        *minute = (minute.0.max(row.stored_at), minute.1 + 1);
        let rank = |seq: u64| (length(&users[&seq].name), std::cmp::Reverse(seq));
        if self.longest_seq.is_none_or(|longest| rank(seq) > rank(longest)) {
            self.longest_seq = Some(seq);
        }
    }
}

impl State {
    fn longest(&self) -> Option<User> {
        let row = &self.users[&self.batch.longest_seq?];
        Some(User { id: row.id, name: row.name.clone() })
    }

    fn points(&self) -> Result<Vec<Point>, Failure> {
        let mut users = 0;
        let point = |(minute, (newest, came)): (&i64, &(i64, i64))| {
            users += came;
            Point::minute(*minute, newest.div_euclid(1_000), users).map_err(Failure::unavailable)
        };
        self.batch.minutes.iter().map(point).collect()
    }
}

#[async_trait]
impl Store for MemoryMaster {
    async fn ready(&self) -> Result<(), Failure> {
        Ok(())
    }

    fn writes_at_once(&self) -> usize {
        2
    }
}

#[async_trait]
impl Dataset for MemoryMaster {
    async fn store(&self, users: Vec<User>) -> Result<Vec<Stored>, Failure> {
        let master = self.clone();
        let stored = async move {
            let transaction = master.begin(&users).await;
            sleep((master.commit_delay)()).await;
            transaction.commit(users)
        };
        if self.defects.keeps_locks {
            return Ok(stored.await);
        }
        tokio::spawn(stored).await.map_err(Failure::unavailable)
    }
}

#[async_trait]
impl BatchJob for MemoryMaster {
    async fn tick(&self, full: bool) -> Result<Tick, Failure> {
        let defects = self.defects;
        let length = move |name: &str| {
            if defects.longest_by_bytes { name.len() } else { name.chars().count() }
        };
        let mut state = lock(&self.state);
        let before = state.batch.users;
        let mut batch = state.batch.clone();
        if full {
            batch = Batch::default();
            state.users.keys().for_each(|seq| batch.apply(*seq, &state.users, length));
        } else {
            let seen = if defects.skips_late_commits { batch.highest_seq } else { 0 };
            state.pending.range(seen..).for_each(|seq| batch.apply(*seq, &state.users, length));
        }
        state.pending.clear();
        state.batch = batch;
        let (users, longest_name_user) = (state.batch.users, state.longest());
        Ok(Tick { new_users: users - before.min(users), users, longest_name_user, full })
    }
}

#[async_trait]
impl History for MemoryMaster {
    async fn points(&self, window: Window) -> Result<Vec<Point>, Failure> {
        let now_s = (self.clock)().div_euclid(1_000);
        let points = lock(&self.state).points()?;
        let has_future =
            window.ends_about(now_s) && points.last().is_some_and(|point| point.time.timestamp() > now_s);
        let latest_s = window.latest_s(now_s);
        let points = select(points.into_iter(), &window.at(now_s, has_future));
        Ok(points.into_iter().map(|point| point.not_after(latest_s)).collect())
    }

    async fn oldest(&self) -> Result<Option<Point>, Failure> {
        Ok(lock(&self.state).points()?.into_iter().next())
    }
}

#[async_trait]
impl BatchViews for MemoryMaster {
    async fn longest(&self) -> Result<Option<User>, Failure> {
        Ok(lock(&self.state).longest())
    }
}
