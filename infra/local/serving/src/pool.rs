//! The state of one function: its replicas and the requests that wait for them.
//! Takes no lock: [`ReplicaSet`](crate::replica_set::ReplicaSet) owns the lock around it.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use tokio::sync::oneshot;

use crate::{autoscaler::Autoscaler, crashes::Crashes, load::Load, replica::Replica, status::ColdStart};

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

/// What a waiting request receives: a replica of which a permit was taken for it. Whoever takes it out of the channel
/// must return the permit.
pub(crate) type Grant = Result<Arc<Replica>, Refusal>;

/// The state of one function.
pub(crate) struct Pool {
    /// Maximum number of requests in flight per replica; 0 means no limit.
    limit: u32,
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
    pub(crate) fn new(limit: u32, scaler: Autoscaler, load: Load) -> Self {
        Self {
            limit,
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

    /// Takes a permit of the least loaded replica. `None` if all are at their limit.
    pub(crate) fn acquire(&self) -> Option<Arc<Replica>> {
        let replica = self.replicas.iter().min_by_key(|replica| replica.preference())?;
        if self.limit != 0 && replica.in_flight() >= self.limit {
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

    /// Grants free permits to waiting requests in FIFO order.
    pub(crate) fn dispatch_waiting(&mut self) {
        while !self.waiting.is_empty()
            && let Some(replica) = self.acquire()
        {
            let first = self.waiting.pop_first();
            // The send fails if the request was cancelled but is still queued: the permit is for the next one.
            if first.is_none_or(|(_, grant)| grant.send(Ok(replica.clone())).is_err()) {
                replica.return_permit();
            }
        }
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
