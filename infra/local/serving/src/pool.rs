//! The replicas of one function and the requests that wait for them, under one lock.
//!
//! Nothing is awaited and no other lock is taken while the pool is locked, so it cannot deadlock. Dropping a lease locks
//! the pool; so no lease is dropped while it is locked (`Function::dispatch_waiting` disarms those that it keeps).

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    autoscaler::Autoscaler, crashes::Crashes, lease::Lease, load::Load, replica::Replica, status::ColdStart,
};

/// How many cold starts are remembered.
const COLD_STARTS: usize = 20;

/// Why a request got no replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Too many wait already.
    Full,
    /// The runtime ends.
    Stopping,
    /// Its process dies whenever it is started; says how.
    CrashLoop(String),
}

/// What a waiting request gets.
pub(crate) type Grant = Result<Lease, Refusal>;

pub(crate) struct Pool {
    pub(crate) scaler: Autoscaler,
    /// Those that take requests, oldest first.
    pub(crate) replicas: Vec<Arc<Replica>>,
    /// Processes that have not answered yet.
    pub(crate) starting: u32,
    /// How many replicas the autoscaler wants.
    pub(crate) desired: u32,
    /// By ticket: first come, first served. A request that stops waiting takes itself out.
    pub(crate) waiting: BTreeMap<u64, oneshot::Sender<Grant>>,
    next_ticket: u64,
    pub(crate) load: Load,
    /// Requests since the start.
    pub(crate) requests: u64,
    pub(crate) cold_starts: VecDeque<ColdStart>,
    pub(crate) crashes: Crashes,
    pub(crate) stopping: bool,
}

impl Pool {
    pub(crate) fn new(scaler: Autoscaler, load: Load) -> Self {
        Self {
            scaler,
            replicas: Vec::new(),
            starting: 0,
            desired: 0,
            waiting: BTreeMap::new(),
            next_ticket: 0,
            load,
            requests: 0,
            cold_starts: VecDeque::new(),
            crashes: Crashes::default(),
            stopping: false,
        }
    }

    /// Replicas that take requests or will.
    pub(crate) fn total(&self) -> u32 {
        u32::try_from(self.replicas.len()).unwrap_or(u32::MAX).saturating_add(self.starting)
    }

    /// Takes a permit of the replica that is preferred; none where it has `limit` requests already (0: no limit).
    pub(crate) fn acquire(&self, limit: u32) -> Option<Arc<Replica>> {
        let replica = self.replicas.iter().min_by_key(|replica| replica.preference())?;
        if limit != 0 && replica.in_flight() >= limit {
            return None;
        }
        replica.take_permit();
        Some(replica.clone())
    }

    /// Lines up; answers the ticket and where the grant comes.
    pub(crate) fn wait(&mut self) -> (u64, oneshot::Receiver<Grant>) {
        let (grant, granted) = oneshot::channel();
        self.next_ticket += 1;
        self.waiting.insert(self.next_ticket, grant);
        (self.next_ticket, granted)
    }

    /// Sends all who wait away.
    pub(crate) fn refuse(&mut self, why: &Refusal) {
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            let _ = waiting.send(Err(why.clone()));
        }
    }

    /// A replica gets no more requests.
    pub(crate) fn remove(&mut self, replica: &Arc<Replica>) {
        self.replicas.retain(|r| !Arc::ptr_eq(r, replica));
        replica.draining.cancel();
    }

    pub(crate) fn remember(&mut self, cold: ColdStart) {
        if self.cold_starts.len() == COLD_STARTS {
            self.cold_starts.pop_front();
        }
        self.cold_starts.push_back(cold);
    }
}
