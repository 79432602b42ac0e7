//! The replicas of one function and the requests that wait for them, under one lock.
//!
//! Why this cannot deadlock: see [`Pool`].

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{
    autoscaler::Autoscaler, crashes::Crashes, lease::Lease, load::Load, replica::Replica, status::ColdStart,
};

/// Length of the cold-start history.
const COLD_STARTS: usize = 20;

/// Why a request got no replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The queue is full.
    Full,
    /// The runtime is shutting down.
    Stopping,
    /// The process crashes at every start; holds the reason.
    CrashLoop(String),
}

/// What a waiting request receives.
pub(crate) type Grant = Result<Lease, Refusal>;

/// The state of one function, guarded by `Function::pool`.
///
/// Lock order: the pool lock is a leaf. While it is held, no other lock of this crate is taken and nothing is awaited;
/// channels, cancellation tokens and `spawn` have internal locks that call nothing back.
///
/// Why permits cannot deadlock: a request waits for a permit without holding the lock or another permit, so there is no
/// cycle. Every permit is owned by a [`Lease`], whose `Drop` returns it and dispatches the next waiting request;
/// requests in flight end by their timeout, so permits come back. Waiting requests are dispatched whenever a permit is
/// returned or a replica becomes ready. If no replica is left, `Function::activate` starts one, or the requests are
/// refused (crash loop, shutdown). So no request waits without a replica that is running or starting.
///
/// Dropping a `Lease` takes the lock. Code that holds the lock must therefore hand a lease on or call
/// `Lease::release_locked`, and never drop it, as `Function::dispatch_waiting` does.
pub(crate) struct Pool {
    pub(crate) scaler: Autoscaler,
    /// Ready replicas, oldest first.
    pub(crate) replicas: Vec<Arc<Replica>>,
    /// Number of processes that are not ready yet.
    pub(crate) starting: u32,
    /// Number of replicas that the autoscaler wants.
    pub(crate) desired: u32,
    /// Waiting requests by ticket, so in FIFO order. A cancelled request removes its own entry.
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

    /// Number of ready and starting replicas.
    pub(crate) fn total(&self) -> u32 {
        u32::try_from(self.replicas.len()).unwrap_or(u32::MAX).saturating_add(self.starting)
    }

    /// Acquires a permit of the least loaded replica. `None` if all have `limit` requests (0 means no limit).
    pub(crate) fn acquire(&self, limit: u32) -> Option<Arc<Replica>> {
        let replica = self.replicas.iter().min_by_key(|replica| replica.preference())?;
        if limit != 0 && replica.in_flight() >= limit {
            return None;
        }
        replica.take_permit();
        Some(replica.clone())
    }

    /// Enqueues a request. Returns its ticket and the channel on which it receives its grant.
    pub(crate) fn enqueue(&mut self) -> (u64, oneshot::Receiver<Grant>) {
        let (grant, granted) = oneshot::channel();
        self.next_ticket += 1;
        self.waiting.insert(self.next_ticket, grant);
        (self.next_ticket, granted)
    }

    /// Refuses all waiting requests.
    pub(crate) fn refuse_waiting(&mut self, why: &Refusal) {
        for waiting in std::mem::take(&mut self.waiting).into_values() {
            let _ = waiting.send(Err(why.clone()));
        }
    }

    /// Starts to drain a replica: it gets no further requests.
    pub(crate) fn remove(&mut self, replica: &Arc<Replica>) {
        self.replicas.retain(|r| !Arc::ptr_eq(r, replica));
        replica.draining.cancel();
    }

    pub(crate) fn record_cold_start(&mut self, cold: ColdStart) {
        if self.cold_starts.len() == COLD_STARTS {
            self.cold_starts.pop_front();
        }
        self.cold_starts.push_back(cold);
    }
}
